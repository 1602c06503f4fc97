package queue

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Morphux/quarry"
)

// Queue is the owner of all build state. Make it with New, start it with Run;
// its methods may be used by any goroutine, before Run too (those that change
// something wait for it).
type Queue struct {
	opts   Options
	board  *board
	events chan func(*owner) // everything that happens, in order
	ended  chan struct{}     // closed when Run is over
	clock  atomic.Int64      // orders plans and ends of builds; not time
	owner  *owner
	ran    atomic.Bool
	saved  outcomes

	releases  *releases
	durations durations
	campaigns campaigns
	groups    groups

	submitting sync.Mutex // held while groups are submitted, dropped or landed; taken before recordMu

	recordMu sync.Mutex // one commit to the results at a time
}

// New reads the journal. It fails only when a stage is missing: a journal that
// is lost, damaged or unreadable costs time, never a build.
func New(opts Options) (*Queue, error) {
	if err := opts.fill(); err != nil {
		return nil, err
	}
	q := &Queue{
		opts:   opts,
		board:  newBoard(opts.Workers),
		events: make(chan func(*owner), 64),
		ended:  make(chan struct{}),
		saved:  outcomes{opts.Fs},

		releases:  newReleases(opts.Graph),
		campaigns: campaigns{store: opts.Campaigns},
		groups:    groups{refused: map[string]string{}, landed: map[string]string{}, landing: map[string]chan struct{}{}},
	}
	q.owner = newOwner(q)
	q.owner.load()
	return q, nil
}

// Run runs the queue until ctx ends. Then running builds are cancelled and put
// back, and it returns when all workers have ended. It fails only when it
// cannot begin. It can be called once.
func (q *Queue) Run(ctx context.Context) error {
	if q.ran.Swap(true) {
		return errors.New("the queue has been run already: make a new one")
	}
	defer q.board.close()
	defer close(q.ended)
	return q.owner.run(ctx)
}

// post hands the owner something to do. It reports false when the queue has
// ended and nobody will do it.
func (q *Queue) post(f func(*owner)) bool {
	select {
	case q.events <- f:
		return true
	case <-q.ended:
		return false
	}
}

// postAfter posts after a pause. A timer left over when the queue ends finds
// it ended.
func (q *Queue) postAfter(d time.Duration, f func(*owner)) {
	time.AfterFunc(d, func() { q.post(f) })
}

// ask has the owner do something and waits until it is in the journal.
func (q *Queue) ask(ctx context.Context, f func(*owner) error) error {
	reply := make(chan error, 1)
	do := func(o *owner) {
		if o.stopping {
			reply <- ErrStopped
			return
		}
		if err := f(o); err != nil {
			reply <- err
			return
		}
		o.after(func(err error) { o.answers = append(o.answers, func() { reply <- err }) })
	}
	select {
	case q.events <- do:
	case <-q.ended:
		return ErrStopped
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-reply:
		return err
	case <-q.ended:
		select {
		case err := <-reply:
			return err
		default:
			return ErrStopped
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func unknown(number int64) error { return fmt.Errorf("build %d: %w", number, ErrUnknown) }

// survey reads what git says now, of one package or (pkg empty) of all. The
// ticket orders it among others: what began to be read later is newer.
func (q *Queue) survey(ctx context.Context, pkg string) (views map[string]*View, ticket int64, err error) {
	views, _, ticket, err = q.surveyMass(ctx, pkg)
	return views, ticket, err
}

// surveyMass also tells which mass rebuilds it knew of.
func (q *Queue) surveyMass(ctx context.Context, pkg string) (views map[string]*View, mass []Campaign, ticket int64, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("planning panicked: %v", p)
		}
	}()
	ticket = q.clock.Add(1)
	mass, err = q.campaigns.all(ctx, pkg == "")
	if err != nil {
		return nil, nil, ticket, err
	}
	releases, problems, err := q.opts.Releases(ctx, pkg)
	if err != nil {
		return nil, nil, ticket, fmt.Errorf("cannot list the releases: %w", err)
	}
	if _, err := q.assign(ctx, releases); err != nil {
		return nil, nil, ticket, err
	}
	q.releases.learn(pkg, releases, problems, ticket)
	views, err = Survey(pkg, releases, problems, q.snapshots(ctx), mass...)
	return views, mass, ticket, err
}

// snapshots opens the records of each view once.
func (q *Queue) snapshots(ctx context.Context) func(string) (Records, error) {
	open := map[string]Records{}
	return func(view string) (Records, error) {
		if r := open[view]; r != nil {
			return r, nil
		}
		r, err := q.Look(ctx, view)
		if err != nil {
			return nil, err
		}
		open[view] = r
		return r, nil
	}
}

// Pushed plans one package and returns its builds under way, oldest first and
// without those that are being stopped, when they are in the journal. Its cost is that of the package, not of the
// farm. With branches that cannot be planned it returns what could be, and
// their problems as the error.
func (q *Queue) Pushed(ctx context.Context, pkg string) ([]quarry.Build, error) {
	if err := quarry.CheckName(pkg); err != nil {
		return nil, err
	}
	views, ticket, err := q.survey(ctx, pkg)
	if err != nil {
		return nil, err
	}
	var items []*item
	err = q.ask(ctx, func(o *owner) error {
		o.apply(views[pkg], ticket)
		for _, it := range o.live[pkg] {
			if it.stop == "" {
				items = append(items, it)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, p := range views[pkg].Problems {
		errs = append(errs, p)
	}
	slices.SortFunc(items, func(a, b *item) int { return cmp.Compare(a.Number, b.Number) })
	return q.board.views(items), errors.Join(errs...)
}

// Replan plans everything and returns when that is done. The queue does it by
// itself at its start and every Options.ReplanEvery.
func (q *Queue) Replan(ctx context.Context) error {
	done := make(chan error, 1)
	if err := q.ask(ctx, func(o *owner) error { o.replan(done); return nil }); err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-q.ended:
		return ErrStopped
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Rebuild makes a new build of what a build was for, at the commit where its
// branch is now, whether or not that has a record. One that has not begun yet
// is returned instead of a second one. by is who asks.
func (q *Queue) Rebuild(ctx context.Context, number int64, by string) (quarry.Build, error) {
	b, err := q.Get(number)
	if err != nil {
		return b, err
	}
	builds, err := q.RebuildTarget(ctx, b.Target(), by)
	if err != nil {
		return quarry.Build{}, err
	}
	return builds[0], nil
}

// RebuildTarget does the same for a target; without an Arch for all archs of
// the release, without a Channel for all channels that have it.
func (q *Queue) RebuildTarget(ctx context.Context, t quarry.Target, by string) ([]quarry.Build, error) {
	if err := quarry.CheckName(t.Package); err != nil {
		return nil, err
	}
	views, ticket, err := q.survey(ctx, t.Package)
	if err != nil {
		return nil, err
	}
	view := views[t.Package]
	recs := q.snapshots(ctx)
	var wants []Want
	branch := quarry.Branch(t.Package, t.Version)
	found := false
	var declined []string
	for _, r := range view.Releases {
		if r.Version != t.Version || t.Channel != "" && r.Channel != t.Channel {
			continue
		}
		found = true
		for _, arch := range r.Archs {
			if t.Arch != "" && arch != t.Arch {
				continue
			}
			w := Want{Release: r, Arch: arch}
			if why := r.Declined(arch); why != "" {
				declined = append(declined, fmt.Sprintf("for %s, as it is %s", arch, why))
				continue
			}
			snapshot, err := recs(r.View())
			if err == nil {
				w.Unmet, err = unmet(snapshot, r, arch)
			}
			if err != nil {
				return nil, err
			}
			wants = append(wants, w)
		}
	}
	switch {
	case !found && len(view.Problems) > 0:
		return nil, view.Problems[0]
	case !found:
		return nil, fmt.Errorf("branch %s is not there: push it to have it built", branch)
	case len(wants) == 0 && len(declined) > 0:
		return nil, fmt.Errorf("%s is not built %s: change its recipe first", branch, strings.Join(declined, ", and "))
	case len(wants) == 0:
		return nil, fmt.Errorf("%s is not built for %s: see its archs in package.json and those of the channel", branch, t.Arch)
	}
	slices.SortFunc(wants, func(a, b Want) int {
		if a.Arch+" "+a.Release.Channel < b.Arch+" "+b.Release.Channel {
			return -1
		}
		return 1
	})
	var items []*item
	err = q.ask(ctx, func(o *owner) error {
		o.apply(view, ticket) // first what the branch's move makes obsolete
		for _, w := range wants {
			items = append(items, o.builds[o.rebuild(w, by)])
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return q.board.views(items), nil
}

// Cancel calls a build off; by is who asks. One that runs is told to stop, and
// is cancelled when it has: see Wait.
func (q *Queue) Cancel(ctx context.Context, number int64, by string) error {
	return q.ask(ctx, func(o *owner) error { return o.cancel(number, "cancelled by "+by) })
}

// Pause keeps new builds from being started, over restarts too, until Resume.
// What runs goes on.
func (q *Queue) Pause(ctx context.Context, by, reason string) error {
	if reason == "" {
		reason = "paused by " + by
	}
	return q.ask(ctx, func(o *owner) error {
		o.setManual(&Pause{By: by, Reason: reason, Since: time.Now()})
		return nil
	})
}

// Resume ends a Pause. Pauses that the farm's troubles cause end by themselves;
// Resume has them probed again at once.
func (q *Queue) Resume(ctx context.Context) error {
	return q.ask(ctx, func(o *owner) error {
		o.setManual(nil)
		o.probeNow()
		return nil
	})
}

func nonce() string {
	b := make([]byte, 8)
	rand.Read(b)
	return fmt.Sprintf("%x", b)
}
