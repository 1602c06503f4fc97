package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"syscall"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/graph"
	"github.com/spf13/afero"
)

// Options are the queue's stages and its settings. Fs, Releases, Records, Run
// and Record must be set; the rest has defaults.
type Options struct {
	// Fs is the queue's own folder, with the journal and saved outcomes, e.g.
	// afero.NewBasePathFs(afero.NewOsFs(), "var/queue"). It is disposable.
	Fs afero.Fs

	// Releases lists what is pushed: the releases of one package, or of all
	// for "". Broken branches come back as problems and stop no other; builds
	// of a branch (or, where Branch is empty, of a package) with a problem are
	// left as they are. An error means that nothing is known.
	Releases func(ctx context.Context, pkg string) ([]quarry.Release, []Problem, error)
	// Records opens one consistent view of a channel's records, or of those with a
	// submitted group's over them: view is what [quarry.Release.View] says. That of
	// a group that is not submitted any more is the channel's.
	Records func(ctx context.Context, view string) (Records, error)
	// Run makes one attempt at a build. A failed build is an outcome; an error
	// is the farm's fault: see FarmError and EnvironmentError for its reach. When ctx
	// ends it has to stop soon and clean up.
	Run func(ctx context.Context, b quarry.Build, deps []quarry.DepUsed, onStep func(step string)) (*quarry.Outcome, error)
	// Record commits an outcome to the results and returns the commit. It must
	// be idempotent by Outcome.Build.Key: it is called again after a crash. An
	// error that is ErrObsolete (or has a method Obsolete() bool that returns
	// true) says that something newer stands there.
	Record func(ctx context.Context, o *quarry.Outcome) (commit string, err error)
	// LastBuild is the highest build number used by anything that outlives the
	// journal (records, logs), so that numbering goes on after a wipe. nil: 0.
	LastBuild func(ctx context.Context) (int64, error)
	// Probe asks whether the farm works again after a farm-wide error. nil:
	// the next build finds out.
	Probe func(ctx context.Context) error
	// ProbeEnvironment asks the same for one environment after an
	// EnvironmentError, e.g. whether there is a base now. nil: the next build
	// finds out.
	ProbeEnvironment func(ctx context.Context, env quarry.Environment) error

	// Graph says what a channel's graph is of, its archs above all. nil: what the
	// releases name.
	Graph func(channel string) graph.Options
	// Past calls observe for builds of the past that succeeded, in the order in
	// which they ended, so that Expected knows them. It is called once, beside
	// all else. nil: only builds to come are learnt from.
	Past func(ctx context.Context, observe func(Past)) error

	// Groups is where submitted groups are kept. nil: releases are built as if they
	// had been pushed to none.
	Groups Groups
	// Campaigns is where mass rebuilds are kept. nil: there are none.
	Campaigns Campaigns
	// Compare tells what a target's newest failure was built with that its last
	// success was not, in lines for people, e.g. zlib 1.3, was 1.2; ok is false
	// where there is no success. nil: nobody knows.
	Compare func(ctx context.Context, t quarry.Target) (differences []string, ok bool, err error)

	// Observe is told of each build that has come to another state, when that is in
	// the journal, and of each step that a running one comes to. ObservePauses is
	// told why nothing is begun, at the start and whenever that changes. Both are
	// called by the queue's own goroutine, in order: they must not block, call the
	// queue, or change what they are given. nil: nobody is told.
	Observe       func(b quarry.Build)
	ObservePauses func(list []PauseStatus)

	Workers int // builds at once; 0: one for every two CPUs, at least one
	// Room is how many builds may run at one time just now, where that is fewer
	// than Workers; those that run beyond it go on. See [Queue.Roomed]. It must not
	// block nor call the queue. nil: as many as Workers.
	Room func() int
	// Slots tells how the machine's slots are shared just now, so that Expected knows
	// how many a build has. It is called often, and must be quick, not block and not
	// call the queue. nil: builds take what they took.
	Slots func() Slots
	// Memory is how many bytes all builds together may take; 0: no bound. One that
	// asks for much waits until there is so much, see [sched.Gate]. BuildMemory is
	// the most that one of them can take, whatever it asks for; 0: no bound.
	Memory, BuildMemory int64
	Tries               int // attempts before a build is errored; 0: 3

	ReplanEvery time.Duration // between full plans; 0: 3 minutes
	History     int           // ended builds kept in memory and journal; 0: 2,000
	HistoryAge  time.Duration // and for how long; 0: 30 days

	// RetryDelay is the pause before the next try, after the n-th (from 1) that
	// the farm lost. nil: 10 s, then 60 s.
	RetryDelay func(n int) time.Duration
	// BackoffMin and BackoffMax bound the pause between probes, and between
	// tries to write the journal, an outcome or a record. 0: 1 s and 30 s.
	BackoffMin, BackoffMax time.Duration
	// StopGrace is how long a commit to the results may still take when the
	// queue is stopped. 0: 10 s.
	StopGrace time.Duration

	Log *slog.Logger // nil: slog.Default()
}

// Records is one consistent view of the records of a channel. It is used by
// one goroutine at a time.
type Records interface {
	// Lookup finds the newest record, success or failure, of a version on an
	// arch.
	Lookup(pkg, version, arch string) (quarry.RecordRef, bool, error)
	// Resolve finds a successful record with an artifact that meets a needed
	// dependency as recipes write it, e.g. zlib-1.3.1 or zlib>=1.2, for arch
	// (a noarch record serves every arch). See AllRecords for several at once.
	Resolve(dep, arch string) (quarry.DepUsed, bool, error)
	// Stale tells why the success of a release on an arch has to be made again,
	// in a line for people; "" when it has not. change names what has changed,
	// the same for the same change, in the letters of a build's nonce.
	Stale(r quarry.Release, arch string) (why, change string, err error)
}

// AllRecords is what Records may have besides: all that a release needs on one
// arch at once, so that all it says of one name holds, and what provides a virtual
// package is by preference something that it needs by its own name. missing are
// the needs that nothing meets.
type AllRecords interface {
	ResolveAll(needs []string, arch string) (deps []quarry.DepUsed, missing []string, err error)
}

// Problem says why a branch, or a whole package when Branch is empty, cannot
// be planned.
type Problem struct {
	Package string
	Branch  string // e.g. zlib-1.3.1
	Err     error
}

func (p Problem) Error() string {
	switch {
	case p.Branch != "":
		return fmt.Sprintf("%s: branch %s: %v", p.Package, p.Branch, p.Err)
	case p.Package != "":
		return fmt.Sprintf("%s: %v", p.Package, p.Err)
	}
	return p.Err.Error()
}

// Unwrap gives the error itself.
func (p Problem) Unwrap() error { return p.Err }

// MarshalJSON writes the error as its text.
func (p Problem) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Package string `json:"package,omitempty"`
		Branch  string `json:"branch,omitempty"`
		Error   string `json:"error"`
	}{p.Package, p.Branch, p.Err.Error()})
}

// Errors of the queue's methods.
var (
	ErrUnknown = errors.New("no such build: see quarry status for those that are kept")
	ErrStopped = errors.New("the queue is stopped: start the daemon again")
	// ErrObsolete is what Record returns (wrapped or not) when the branch has
	// moved on and the record must not be written.
	ErrObsolete = errors.New("obsolete: something newer stands there")
)

// FarmError wraps an error of Run that has nothing to do with the build and
// would meet every other one too: the disk is full, podman is gone. The attempt
// does not count, the build goes back, the queue pauses and probes. Any error
// with a method FarmWide() bool that returns true does the same, and so do the
// errors of a full disk and of too many open files.
type FarmError struct{ Err error }

func (e *FarmError) Error() string  { return e.Err.Error() }
func (e *FarmError) Unwrap() error  { return e.Err }
func (e *FarmError) FarmWide() bool { return true }

// EnvironmentError wraps an error of Run that all builds of the same channel
// and arch would meet, such as a missing base. It pauses that environment only.
// Any error with a method EnvironmentWide() bool that returns true does the same.
type EnvironmentError struct{ Err error }

func (e *EnvironmentError) Error() string         { return e.Err.Error() }
func (e *EnvironmentError) Unwrap() error         { return e.Err }
func (e *EnvironmentError) EnvironmentWide() bool { return true }

func isFarmWide(err error) bool {
	var wide interface{ FarmWide() bool }
	if errors.As(err, &wide) && wide.FarmWide() {
		return true
	}
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS,
		syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

func isEnvironmentWide(err error) bool {
	var wide interface{ EnvironmentWide() bool }
	return errors.As(err, &wide) && wide.EnvironmentWide()
}

func isObsolete(err error) bool {
	var o interface{ Obsolete() bool }
	return errors.Is(err, ErrObsolete) || errors.As(err, &o) && o.Obsolete()
}

func (o *Options) fill() error {
	switch {
	case o.Fs == nil:
		return errors.New("queue: no folder for the journal: set Options.Fs")
	case o.Releases == nil, o.Records == nil, o.Run == nil, o.Record == nil:
		return errors.New("queue: a stage is missing: set Releases, Records, Run and Record in Options")
	}
	or := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	or(&o.ReplanEvery, 3*time.Minute)
	or(&o.HistoryAge, 30*24*time.Hour)
	or(&o.BackoffMin, time.Second)
	or(&o.BackoffMax, 30*time.Second)
	or(&o.StopGrace, 10*time.Second)
	if o.Workers <= 0 {
		o.Workers = max(1, runtime.NumCPU()/2)
	}
	if o.Tries <= 0 {
		o.Tries = 3
	}
	if o.History <= 0 {
		o.History = 2000
	}
	if o.RetryDelay == nil {
		o.RetryDelay = func(n int) time.Duration {
			if n <= 1 {
				return 10 * time.Second
			}
			return time.Minute
		}
	}
	if o.LastBuild == nil {
		o.LastBuild = func(context.Context) (int64, error) { return 0, nil }
	}
	if o.Graph == nil {
		o.Graph = func(string) graph.Options { return graph.Options{} }
	}
	if o.Observe == nil {
		o.Observe = func(quarry.Build) {}
	}
	if o.ObservePauses == nil {
		o.ObservePauses = func([]PauseStatus) {}
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return nil
}

// backoff is the n-th pause (from 0): doubling, bounded.
func (o *Options) backoff(n int) time.Duration {
	d := o.BackoffMin
	for ; n > 0 && d < o.BackoffMax; n-- {
		d *= 2
	}
	return min(d, o.BackoffMax)
}
