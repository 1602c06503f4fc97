// Package jobs shares the slots of one machine among the builds that run on it.
//
// A slot is the right to run one job (a compiler, as a rule) at one time. A build
// that has n slots runs n jobs: one that needs no token, and n-1 with a token out
// of its jobserver each. The [Governor] looks at what builds do with theirs, and
// moves slots from those that have no use for them to those that have. How many
// there are for all follows a [Policy], and what people say.
//
// [Divide] says who gets how many, the core (core.go) when one moves; both are
// pure. doc/jobs.md tells admins.
package jobs

import (
	"log/slog"
	"time"

	"github.com/Morphux/quarry/buildcontrol"
)

// What is done about builds that obey nothing that tells them their jobs.
const (
	EnforceNone   = "none"
	EnforceWeight = "weight" // where processors are short, they get as their slots are
	EnforceQuota  = "quota"  // and they get no more than that anyway
)

// Options say what a governor has to share.
type Options struct {
	Total   int // slots of the machine; 0: one for each processor
	Min     int // slots that a build has at least, where the limit allows; 0: 1
	Max     int // slots that a build has at most; 0: Total
	Enforce string
	Policy  Policy
	Places  Places // where the machine tells of itself
	State   string // file that keeps what was said by hand; "": it is forgotten
	// Control tells clients of its protocol in builds their numbers; nil: there are
	// none.
	Control *buildcontrol.Server
	// Own gives the folders of the control groups whose processes are the farm's.
	Own func() []string
	// Limited is told when the limit or its reason has changed, one after the
	// other. It may not call the governor.
	Limited func(was, is Limit)
	Log     *slog.Logger
	Now     func() time.Time
}

// Build is a build that wants slots.
type Build struct {
	Number  int64
	Attempt int
	Name    string  // e.g. zlib-1.3
	Key     string  // from which its token is made, so that the same build has the same
	Max     int     // jobs that its recipe allows; 0: any number
	Weight  float64 // its part where several want slots, e.g. 0.25; 0: 1
	Width   float64 // what Summary said last time; 0: nobody knows
}

// Stat is what a build has at one moment.
type Stat struct {
	Granted  int           // slots that it may have
	Used     int           // of them those that jobs run in
	SlotTime time.Duration // slots that it was granted until now, times how long
}

// Summary is what a build has had.
type Summary struct {
	SlotTime time.Duration // slots that it was granted, times how long
	Peak     int           // the most jobs that were seen to run at one time
	Width    float64       // jobs at one time in the mean, while there were more than one; 1 if there never were
	Forced   string        // what runs a number of jobs of its own, e.g. "make -j8"; "": nothing
	Repaired int           // tokens that were lost with their holders, and made again
}

// Status is what there is to see of a governor.
type Status struct {
	Total   int           `json:"total"`
	Limit   Limit         `json:"limit"`
	Hand    *Hand         `json:"hand,omitempty"` // who set it
	Min     int           `json:"min"`
	Max     int           `json:"max"`
	Enforce string        `json:"enforce"`
	Granted int           `json:"granted"` // to all builds
	Used    int           `json:"used"`
	Out     int           `json:"out"` // granted, or still to come back
	Signals Signals       `json:"signals"`
	Builds  []BuildStatus `json:"builds"` // those that wait come last
}

// BuildStatus is what one build has.
type BuildStatus struct {
	Number   int64     `json:"number"`
	Attempt  int       `json:"attempt"`
	Name     string    `json:"name"`
	Since    time.Time `json:"since"`
	Waiting  bool      `json:"waiting,omitempty"` // for its first slot
	Parallel bool      `json:"parallel"`          // its step may have more than one
	Granted  int       `json:"granted"`
	Out      int       `json:"out"` // granted, or still to come back
	Used     int       `json:"used"`
	Want     int       `json:"want"`   // what it could use, as far as it has shown
	Hungry   bool      `json:"hungry"` // it uses all that it has
	Ceiling  int       `json:"ceiling"`
	Weight   float64   `json:"weight"`
	Hand     int       `json:"hand,omitempty"` // slots that somebody has set
	By       string    `json:"by,omitempty"`
	Clients  int       `json:"clients,omitempty"` // of the protocol
	Forced   string    `json:"forced,omitempty"`
	Repaired int       `json:"repaired,omitempty"`
}
