package notify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/events"
	"github.com/Morphux/quarry/results"
	"golang.org/x/sync/errgroup"
)

// Options are what the notifier works with. Dir, Events and Results must be set;
// of what is needed for letters only, all where Mail is.
type Options struct {
	Dir     string // its own folder, e.g. var/notify
	Events  *events.Log
	Results *results.Repo

	Mail  *Mail // how letters are sent; nil: none are written
	Hooks []Hook

	// People lists who may be written to: those who are known now.
	People func() ([]Person, error)
	// Live reports whether builds of a cause are still under way.
	Live func(Cause) bool
	// Report explains a failure; nil: what the record says has to do.
	Report func(ctx context.Context, b Build) (*Report, error)
	// Origin finds the build that led to a change; false when nobody knows.
	Origin func(ctx context.Context, channel string, build int64) (quarry.Build, bool)
	// Campaign tells of a mass rebuild.
	Campaign func(ctx context.Context, id string) (*Campaign, error)

	// Texts have links to the web pages at URL, and commands that ask the farm at
	// SSH, e.g. "ssh -p 2222 farm"; "" where there is none.
	URL, SSH string

	// MaxRecipients is how many people one cause may be told to; above it only who
	// caused it and the admins are. 0: 20.
	MaxRecipients int
	// Settle is how long after the end of a build others of the same cause are
	// waited for, when there are any under way. 0: a minute.
	Settle time.Duration
	// GiveUp is how long a letter is tried. 0: 5 days.
	GiveUp time.Duration
	// Backoff is the pause after the n-th try (from 1) that failed, for letters and
	// deliveries. nil: 10 s, doubling, up to half an hour, a little at random.
	Backoff func(n int) time.Duration

	Log *slog.Logger // nil: slog.Default()
}

// Person is somebody who may be written to.
type Person struct {
	User, Name, Email string
	Mail              string // what they want to be written about: see package keys
	Admin             bool
}

// Report explains a failure. Its text is safe to show.
type Report struct {
	Failure quarry.Failure
	Log     []string // the last lines
	// Last names the last success, e.g. "build 12 of 1.3, 3 days before"; "" where
	// there is none. Since are lines on what has changed since then.
	Last      string
	Since     []string
	Reproduce string
}

// Campaign is a mass rebuild.
type Campaign struct {
	ID, By, Reason           string
	Over                     bool
	Cancelled                string // who called it off
	Total, Succeeded, Failed int
	New                      []Broken // that did not fail before it
}

// Broken is what a mass rebuild has broken.
type Broken struct {
	quarry.Target
	Build int64
	Since []string // what it was built with that is another now
}

// Notifier tells people and programs. Its methods may be called by several
// goroutines at once.
type Notifier struct {
	opts  Options
	log   *slog.Logger
	box   *box
	hooks []*hook

	seen     atomic.Int64 // state.Cursor
	gathered atomic.Int64 // len(state.Batches)

	// The following are decide's alone.
	state state
	stuck int // tries at the event after state.Cursor
}

// New opens the notifier's folder. Nothing is told before Run.
func New(opts Options) (*Notifier, error) {
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	if opts.MaxRecipients <= 0 {
		opts.MaxRecipients = 20
	}
	if opts.Settle <= 0 {
		opts.Settle = time.Minute
	}
	if opts.GiveUp <= 0 {
		opts.GiveUp = 5 * 24 * time.Hour
	}
	if opts.Backoff == nil {
		opts.Backoff = backoff
	}
	if opts.People == nil {
		opts.People = func() ([]Person, error) { return nil, nil }
	}
	if opts.Live == nil {
		opts.Live = func(Cause) bool { return false }
	}
	n := &Notifier{opts: opts, log: opts.Log}
	if err := os.MkdirAll(filepath.Join(opts.Dir, hooksDir), 0o700); err != nil {
		return nil, fmt.Errorf("folder of what is to be told cannot be made: %w", err)
	}
	var err error
	if n.state, err = loadState(opts.Dir); err != nil {
		return nil, err
	}
	if n.box, err = openBox(filepath.Join(opts.Dir, "mail"), &n.opts); err != nil {
		return nil, err
	}
	for _, h := range opts.Hooks {
		hook, err := newHook(h, &n.opts)
		if err != nil {
			return nil, err
		}
		n.hooks = append(n.hooks, hook)
	}
	return n, nil
}

// Run tells, until ctx ends.
func (n *Notifier) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	if n.opts.Mail != nil {
		group.Go(func() error { n.decide(ctx); return nil })
		group.Go(func() error { n.box.run(ctx); return nil })
	} else if err := n.forget(); err != nil {
		n.log.Warn("what was to be told cannot be forgotten", "err", err)
	}
	for _, h := range n.hooks {
		group.Go(func() error { h.run(ctx); return nil })
	}
	return group.Wait()
}

// forget drops the place in the log of events, so that nothing of a time without
// mail is told when there is mail again.
func (n *Notifier) forget() error {
	if !n.state.Begun && len(n.state.Batches) == 0 {
		return nil
	}
	n.state.Begun, n.state.Cursor, n.state.Batches = false, 0, nil
	return n.state.save(n.opts.Dir)
}

// tick is how often gathered builds are looked at.
func (n *Notifier) tick() time.Duration {
	return min(max(n.opts.Settle/10, 20*time.Millisecond), 5*time.Second)
}

// decide reads events and writes letters, until ctx ends. What cannot be read or
// written is tried again: nothing is passed over for it.
func (n *Notifier) decide(ctx context.Context) {
	if !n.state.Begun { // what is past is not news
		if n.opts.Events.Flush(ctx) != nil {
			return
		}
		n.state.Begun, n.state.Cursor = true, n.opts.Events.Last()
		n.state.dirty = true
	}
	arrived := follow(ctx, n.opts.Events, n.log)
	defer func() {
		if err := n.state.save(n.opts.Dir); err != nil {
			n.log.Warn("what has been told cannot be noted, and is found again", "err", err)
		}
	}()
	for try := 0; ctx.Err() == nil; {
		more, err := n.step(ctx)
		wait := n.tick()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			try++
			wait = n.opts.Backoff(try)
			n.log.Warn("packagers cannot be told for now, which is tried again", "err", err, "in", wait)
		case more:
			try = 0
			continue
		default:
			try = 0
		}
		news := arrived
		if err != nil {
			news = nil
		}
		var timer <-chan time.Time
		if err != nil || len(n.state.Batches) > 0 {
			timer = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-news:
		case <-timer:
		}
	}
}

// follow says when there are events that were not there when it was called.
func follow(ctx context.Context, happened *events.Log, log *slog.Logger) <-chan struct{} {
	arrived := make(chan struct{}, 1)
	since := happened.Last()
	nudge := func() {
		select {
		case arrived <- struct{}{}:
		default:
		}
	}
	go func() {
		for again := true; again && ctx.Err() == nil; {
			again = false
			for e, err := range happened.Follow(ctx, since) {
				if err == nil {
					since = e.N
					nudge()
					continue
				}
				again = true
				log.Warn("events cannot be followed, which is tried again", "err", err)
				select {
				case <-ctx.Done():
				case <-time.After(5 * time.Second):
				}
				since = happened.Last()
				nudge()
			}
		}
	}()
	return arrived
}

const (
	eventsAtOnce = 500
	// maxStuck is how often one event is tried, over half an hour, before the
	// others go on without it.
	maxStuck = 8
)

// step deals with the next events and with what is due. more is true when there
// are more events.
func (n *Notifier) step(ctx context.Context) (more bool, err error) {
	list, err := n.opts.Events.Read(n.state.Cursor, eventsAtOnce)
	if err != nil {
		return false, err
	}
	for i := range list {
		e := &list[i]
		if e.Kind == events.Gap {
			n.log.Warn("events are not kept any more that nobody was told of", "why", e.Text)
		}
		if err := n.take(ctx, e); err != nil {
			if n.stuck++; n.stuck < maxStuck || ctx.Err() != nil {
				return false, errors.Join(err, n.saved())
			}
			n.log.Error("nobody is told of an event, as what is known of it cannot be read", "event", e.N, "text", e.Text, "err", err)
		}
		n.state.Cursor, n.stuck = e.N, 0
	}
	if err := n.saved(); err != nil {
		return false, err
	}
	err = n.flush(ctx, time.Now())
	n.gathered.Store(int64(len(n.state.Batches)))
	n.seen.Store(n.state.Cursor)
	return len(list) > 0, err
}

// saved writes the state where it has changed. The cursor alone can wait: what is
// read again is nothing.
func (n *Notifier) saved() error {
	if !n.state.dirty && n.state.Cursor < n.state.kept+eventsAtOnce {
		return nil
	}
	return n.state.save(n.opts.Dir)
}

// take deals with one event.
func (n *Notifier) take(ctx context.Context, e *events.Event) error {
	switch {
	case e.Kind == events.MassEnded:
		n.state.batch(Cause{Kind: ByMass, ID: e.ID}, e.N).Over = true
		n.state.dirty = true
		return nil
	case e.Kind != events.Succeeded && e.Kind != events.Failed, e.Build == nil, e.Build.Record == "":
		return nil
	}
	b := buildOf(e.Build)
	history := History{Told: n.state.told(b.Target)}
	if b.Status == quarry.Failed {
		same, last, err := standings(n.opts.Results, b)
		if errors.Is(err, results.ErrNotFound) {
			n.log.Warn("a record is gone, so nobody is told of it", "build", b.Number, "err", err)
			return nil
		}
		if err != nil {
			return err
		}
		history.Same, history.Last = same, last
	}
	d := Decide(b, history)
	n.log.Debug("a build has ended", "build", b.Number, "package", b.Package, "version", b.Version, "arch", b.Arch, "tell", d.Kind, "why", d.Why)
	n.state.take(b, d, e.N)
	return nil
}

// buildOf is what a decision needs of a build.
func buildOf(b *quarry.Build) Build {
	return Build{Target: b.Target(), Number: b.Number, Status: b.State, Source: b.Commit, Nonce: b.Nonce,
		Pushed: b.Pushed, Created: b.Created, Packager: b.Packager, Record: b.Record}
}

// CauseOfBuild says what set off a build of the queue.
func CauseOfBuild(b *quarry.Build) Cause { return CauseOf(buildOf(b)) }

// standings reads what stood before a build's record was written.
func standings(r *results.Repo, b Build) (same, last *Standing, err error) {
	at, err := r.SnapshotAt(b.Channel, b.Record)
	if err != nil {
		return nil, nil, err
	}
	if at, err = at.Before(); err != nil {
		return nil, nil, err
	}
	list, err := at.Newest(b.Package, b.Arch)
	if err != nil {
		return nil, nil, err
	}
	for _, rec := range list {
		s := &Standing{Status: rec.Status, Source: rec.Source, Pushed: rec.Pushed, User: rec.Packager.User}
		switch {
		case rec.Version == b.Version:
			same = s
		case last == nil || !s.Pushed.Before(last.Pushed):
			last = s
		}
	}
	return same, last, nil
}

// Status is what the notifier has to do, and what troubles it.
type Status struct {
	Mail     bool         `json:"mail"`     // whether letters are sent
	Event    int64        `json:"event"`    // the last one that it was decided of who is told
	Gathered int          `json:"gathered"` // causes of which more is waited for, before letters are written
	Letters  []Letter     `json:"letters"`  // not sent yet, and those given up
	Hooks    []HookStatus `json:"webhooks"` // all that are configured
	Problems []string     `json:"problems,omitempty"`
}

// Status tells what is to be told yet.
func (n *Notifier) Status() Status {
	s := Status{Mail: n.opts.Mail != nil, Event: n.seen.Load(), Gathered: int(n.gathered.Load()), Letters: n.box.list(), Hooks: []HookStatus{}}
	for _, h := range n.hooks {
		s.Hooks = append(s.Hooks, h.status())
	}
	s.Problems = n.problems(s)
	return s
}

// Problems are lines on what troubles the notifier, for the farm's status.
func (n *Notifier) Problems() []string { return n.problems(n.Status()) }

func (n *Notifier) problems(s Status) (list []string) {
	given := 0
	var last *Letter
	for i := range s.Letters {
		if l := &s.Letters[i]; !l.GivenUp.IsZero() {
			given++
			last = l
		}
	}
	if given > 0 {
		list = append(list, fmt.Sprintf("%s could not be delivered, the last one to %s: %s; quarry notify shows them", count(given, "letter"), last.User, last.Error))
	}
	if err := n.box.trouble(); err != "" {
		list = append(list, "mail: "+err)
	}
	for _, h := range s.Hooks {
		switch {
		case h.Failing != nil && time.Since(*h.Failing) >= troubleAfter:
			list = append(list, fmt.Sprintf("webhook %s takes nothing since %s: %s", h.Name, h.Failing.UTC().Format("2006-01-02 15:04 UTC"), h.Error))
		case h.GivenUp > 0:
			list = append(list, fmt.Sprintf("webhook %s was not told of %s, the last one of them event %d; quarry notify drop forgets it", h.Name, count(int(h.GivenUp), "event"), h.LastGivenUp))
		}
	}
	return list
}

// troubleAfter is how long something has to fail for the status to say so: a
// server that is started again is no trouble.
const troubleAfter = 10 * time.Minute

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func sortedUnique(s []string) []string {
	slices.Sort(s)
	return slices.Compact(s)
}
