// Package jobs shares the slots of one machine among the builds that run on it.
//
// A slot is the right to run one job (a compiler, as a rule) at one time. A build
// that has n slots runs n jobs: one that needs no token, and n-1 with a token out
// of its jobserver each. The governor looks at what builds do with theirs, and
// moves slots from those that have no use for them to those that have.
package jobs

import (
	"context"
	"log/slog"
	"time"
)

// What is done besides to builds that obey no jobserver.
const (
	EnforceNone   = "none"
	EnforceWeight = "weight" // their part of the processors follows their slots
	EnforceQuota  = "quota"  // and they get no more
)

// Options say what a governor has to share.
type Options struct {
	Total   int // slots of the machine; 0: one a processor
	Min     int // slots that a build has at least, where the limit allows; 0: 1
	Max     int // slots that a build has at most; 0: Total
	Enforce string
	Policy  Policy
	State   string // file that keeps what was said by hand; "": it is forgotten
	// Own gives the folders of the control groups whose processes are the farm's.
	Own func() []string
	// Limited is told when the limit has changed; it may not call the governor.
	Limited func(was, is Limit)
	Log     *slog.Logger
	Now     func() time.Time
}

// Build is a build that wants slots.
type Build struct {
	Number  int64
	Attempt int
	Name    string  // e.g. zlib-1.3
	Key     string  // the build's, from which its token is made
	Max     int     // jobs that its recipe allows; 0: any number
	Weight  float64 // 0: 1
	Width   float64 // slots that it used on average last time; 0: nobody knows
}

// Stat is what a share has at one moment.
type Stat struct {
	Granted, Used int
	SlotTime      time.Duration // slots that it was granted so far, times how long
}

// Summary is what a build has had.
type Summary struct {
	SlotTime time.Duration // slots that it was granted, times how long
	BusyTime time.Duration // jobs that it ran, times how long, as far as was seen
	Peak     int           // the most jobs at one time
	Width    float64       // jobs at one time in the mean, while there were more than one (see meter); 0: there was none
	Forced   string        // what forced a number of jobs, "" for none
	Repaired int           // tokens that were lost in it, and made again
}

// Status is what there is to see of a governor.
type Status struct {
	Total   int           `json:"total"`
	Limit   Limit         `json:"limit"`
	Hand    *Hand         `json:"hand,omitempty"`
	Min     int           `json:"min"`
	Max     int           `json:"max"`
	Enforce string        `json:"enforce"`
	Granted int           `json:"granted"` // to all builds
	Used    int           `json:"used"`
	Out     int           `json:"out"` // granted, and what is still to come back
	Signals Signals       `json:"signals"`
	Builds  []BuildStatus `json:"builds"` // those that wait for their first slot last
}

// BuildStatus is one build's part of it.
type BuildStatus struct {
	Number   int64     `json:"number"`
	Attempt  int       `json:"attempt"`
	Name     string    `json:"name"`
	Since    time.Time `json:"since"`
	Waiting  bool      `json:"waiting,omitempty"` // for its first slot
	Parallel bool      `json:"parallel"`          // its step may have more than one
	Granted  int       `json:"granted"`
	Out      int       `json:"out"`
	Used     int       `json:"used"`
	Want     int       `json:"want"` // what it could use
	Hungry   bool      `json:"hungry"`
	Ceiling  int       `json:"ceiling"`
	Weight   float64   `json:"weight"`
	Hand     int       `json:"hand,omitempty"` // slots that somebody has set
	By       string    `json:"by,omitempty"`
	Clients  int       `json:"clients,omitempty"` // that speak the protocol
	Forced   string    `json:"forced,omitempty"`
	Repaired int       `json:"repaired,omitempty"`
}

// Governor shares a machine's slots. It is safe for concurrent use.
type Governor struct{}

// New makes a governor.
func New(o Options) (*Governor, error) { return &Governor{}, nil }

// Run looks after the builds until ctx ends.
func (g *Governor) Run(ctx context.Context) error { return nil }

// Begin waits until there is a slot for the build. The error is ctx's.
func (g *Governor) Begin(ctx context.Context, b Build) (*Share, error) { return &Share{}, nil }

// Set fixes how many slots a running build has, as far as the limit and its
// ceiling allow; 0 leaves it to the governor again. It tells what the build may
// have now.
func (g *Governor) Set(number int64, n int, by string) (int, error) { return 0, nil }

// Limit sets how many slots there are for all builds, until a time, or for good
// when that is zero; 0 takes it back.
func (g *Governor) Limit(n int, until time.Time, by string) error { return nil }

// Status tells who has what.
func (g *Governor) Status() Status { return Status{} }

// Subscribe tells when Status has changed, until stop is called. Changes that come
// quickly are one.
func (g *Governor) Subscribe() (changed <-chan struct{}, stop func()) { return nil, nil }

// Share is what one build has of the slots.
type Share struct{}

func (s *Share) Open(p Place) error { return nil }
func (s *Share) Env() []string      { return nil }
func (s *Share) Fifo() string       { return "" }
func (s *Share) Ceiling() int       { return 1 }
func (s *Share) Step(parallel bool) {}
func (s *Share) Forced(what string) {}

// Now tells what the build has and uses at this moment.
func (s *Share) Now() Stat { return Stat{} }

// End gives all slots back. Nothing of the build may run any more. It may be
// called again, and tells the same.
func (s *Share) End() Summary { return Summary{} }

var _ Slots = (*Share)(nil)
