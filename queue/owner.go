package queue

import (
	"cmp"
	"context"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/sched"
)

// item is a build as the queue holds it. An item is never changed: a new one
// takes its place, so that others may read it, and it can be put back when the
// journal refuses the new one.
type item struct {
	quarry.Build
	stop       quarry.State // Cancelled or Obsolete: what it has been told to become
	stopReason string
	urgent     bool // somebody asked for it in person, though it was wanted before

	// Not in the journal:
	unmet     []string  // what a waiting build waits for
	notBefore time.Time // of the next try
	putBacks  int       // times that the farm's troubles sent it back
	endSeq    int64     // Queue.clock at its end
}

// owner is the state of the queue. Only the goroutine in run uses it.
type owner struct {
	q       *Queue
	journal *journal
	report  journalReport

	builds    map[int64]*item
	last      int64                             // highest number used
	targets   map[quarry.Target]map[int64]*item // all builds known at a target
	live      map[string]map[int64]*item        // builds under way, by package
	waiters   map[string]map[int64]struct{}     // waiting builds, by package that they may wait for
	active    map[int64]struct{}                // running builds
	ready     sched.Queue[int64]                // queued builds that are not parked
	parked    map[int64]struct{}                // queued builds that cannot start before something has happened
	held      map[int64]map[int64]struct{}      // of these, by the build that goes first
	ranks     map[int64]rank                    // of builds under way, as last worked out
	unranked  bool                              // something has changed since
	ranking   bool
	rankAgain time.Time                      // not before this
	massDone  bool                           // the last build of a mass rebuild has ended: a plan tells whether that is over
	campaign  map[string]int                 // builds under way, by nonce of a mass rebuild
	needs     map[string][]string            // names that a package's releases may mean by what they need
	needers   map[string]map[string]struct{} // the way back
	again     map[string]struct{}            // packages to survey, because something landed
	looking   map[string]int64               // those, and the ones that are being surveyed for it, with the last wish for each
	looks     int64                          // wishes, ever
	applying  bool                           // a full plan is being applied: some of what it wants is not known yet
	massKnown map[string]bool                // IDs of the mass rebuilds that a full plan has seen
	surveying bool
	lines     map[string]map[Line]*line      // what git has, as last surveyed, by package
	providers map[string]map[string]struct{} // by virtual name: packages in lines that provide it
	tickets   map[string]int64               // of the last survey applied, by package
	ended     []int64                        // ended builds, in the order of their ends
	nEnded    int                            // how many of them are still known
	pruneAt   int                            // how many are pruned at once

	tx      []change
	extra   []entry
	afters  []func(error)
	answers []func() // to those who asked, once the board shows what they tell of

	facts      []func(*owner) // happened, but not journalled yet
	compactAt  int            // lines before a failed compaction is tried again
	journalTry int            // tries to write the journal since it broke; 0: it works
	journalGen int            // numbers the timers of those tries
	manual     *Pause
	pauses     map[string]*pause
	problems   map[string][]Problem // by what found them
	stale      bool                 // the board's pauses and problems are
	stuck      map[int64]error      // recording builds whose record cannot be made
	cancels    map[int64]context.CancelCauseFunc
	busy       int     // worker slots taken
	lent       []*loan // that do something else than a build
	borrowers  []*loan // who wait for one
	recorders  int
	aides      int // goroutines of aside

	planning    bool
	planWaiters []chan error     // for the plan that runs
	planNext    []chan error     // for the one after it
	planLooks   map[string]int64 // looking, when it began
	planned     bool             // the first plan has been tried
	surveyed    bool             // a full plan has succeeded: lines knows all packages
	planTry     int
	planGen     int // numbers the timers of full plans: only the newest counts

	landDue bool // groups are to be looked at: one may have all that it needs
	landing bool
	landTry int

	dirty     map[int64]struct{} // waiting builds to be looked at again
	examining bool
	examTry   int
	patient   time.Time // until when a free worker waits for that

	stopping bool
	workCtx  context.Context // of workers; cancelled when stopping
	stopWork context.CancelCauseFunc
	hardCtx  context.Context // of commits to the results; cancelled StopGrace later
	stopHard context.CancelFunc
}

// line is a branch as last surveyed.
type line struct {
	commit   string
	archs    []string
	failed   map[string]bool   // archs whose record is a failure of this commit
	declined map[string]string // archs that it is not built for, and why
	provides []string          // virtual names, as providedNames
}

// change is one replaced item, for undoing.
type change struct {
	number   int64
	old, new *item
}

func newOwner(q *Queue) *owner {
	return &owner{
		q:        q,
		builds:   map[int64]*item{},
		targets:  map[quarry.Target]map[int64]*item{},
		live:     map[string]map[int64]*item{},
		waiters:  map[string]map[int64]struct{}{},
		active:   map[int64]struct{}{},
		parked:   map[int64]struct{}{},
		held:     map[int64]map[int64]struct{}{},
		campaign: map[string]int{},
		needs:    map[string][]string{},
		needers:  map[string]map[string]struct{}{},
		again:    map[string]struct{}{},
		looking:  map[string]int64{},
		lines:    map[string]map[Line]*line{},

		providers: map[string]map[string]struct{}{},

		tickets:  map[string]int64{},
		pauses:   map[string]*pause{},
		problems: map[string][]Problem{},
		stuck:    map[int64]error{},
		cancels:  map[int64]context.CancelCauseFunc{},
		dirty:    map[int64]struct{}{},
		pruneAt:  q.opts.History + q.opts.History/10 + 1,
	}
}

// load takes the state out of the journal.
func (o *owner) load() {
	o.journal, o.report = openJournal(o.q.opts.Fs, o.q.opts.Log, func(e entry) {
		o.last = max(o.last, e.Last)
		if e.Pause != nil {
			o.manual = e.Pause
			if e.Pause.By == "" {
				o.manual = nil
			}
		}
		if e.Build != nil {
			it := &item{Build: *e.Build, stop: e.Stop, stopReason: e.StopReason, urgent: e.Urgent}
			if it.State == quarry.Waiting {
				it.unmet = nil // until they are looked at
				for dep := range needs(it.Release, it.Arch) {
					it.unmet = append(it.unmet, dep)
				}
			}
			o.last = max(o.last, it.Number)
			o.put(it.Number, it)
		}
	})
	o.journal.all = o.all
	o.ended = o.ended[:0]
	for n, it := range o.builds {
		if it.State.Ended() {
			o.ended = append(o.ended, n)
		}
	}
	o.nEnded = len(o.ended)
	slices.SortFunc(o.ended, func(a, b int64) int {
		return cmp.Or(o.builds[a].Ended.Compare(o.builds[b].Ended), cmp.Compare(a, b))
	})
	b := o.q.board
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range slices.Sorted(maps.Keys(o.builds)) {
		b.show(n, o.builds[n])
	}
	b.status.BadLines = o.report.Bad
	o.refreshStatus()
}

// all is everything that the journal has to hold.
func (o *owner) all() iter.Seq[entry] {
	return func(yield func(entry) bool) {
		if !yield(entry{Last: o.last}) {
			return
		}
		if o.manual != nil && !yield(entry{Pause: o.manual}) {
			return
		}
		for _, n := range slices.Sorted(maps.Keys(o.builds)) {
			if !yield(o.builds[n].entry()) {
				return
			}
		}
	}
}

func (it *item) entry() entry {
	return entry{Build: &it.Build, Stop: it.stop, StopReason: it.stopReason, Urgent: it.urgent}
}

// set replaces an item in this batch of changes.
func (o *owner) set(it *item) {
	o.tx = append(o.tx, change{it.Number, o.put(it.Number, it), it})
}

// forget drops an ended build. Nothing is journalled: it is not written again
// by the next compaction, and would be dropped once more if it came back.
func (o *owner) forget(number int64) {
	o.put(number, nil)
	b := o.q.board
	b.mu.Lock()
	b.show(number, nil)
	b.mu.Unlock()
}

// put replaces an item and keeps every index in step.
func (o *owner) put(number int64, it *item) (old *item) {
	old = o.builds[number]
	if old != nil {
		t := old.Target()
		drop(o.targets, t, number)
		if !old.State.Ended() {
			drop(o.live, old.Package, number)
			o.count(old, -1)
		} else {
			o.nEnded--
		}
		delete(o.active, number)
		for _, dep := range old.unmet {
			for _, name := range depNames(dep) {
				drop(o.waiters, name, number)
			}
		}
	}
	if it == nil || it.State != quarry.Queued {
		o.ready.Remove(number)
		delete(o.parked, number)
	}
	if it == nil {
		delete(o.builds, number)
		o.release(number)
		return old
	}
	o.builds[number] = it
	add(o.targets, it.Target(), number, it)
	if it.State.Ended() || it.State == quarry.Waiting {
		o.release(number)
	}
	if old != nil && occupies(old) && !occupies(it) {
		for n := range o.targets[it.Target()] {
			o.unpark(n) // those that targetBusy kept
		}
	}
	if !it.State.Ended() {
		add(o.live, it.Package, number, it)
		o.count(it, 1)
		o.unranked = o.unranked || old == nil || old.State.Ended()
		if it.State == quarry.Running {
			o.active[number] = struct{}{}
		}
	} else {
		o.nEnded++
		if old == nil || !old.State.Ended() {
			o.ended = append(o.ended, number)
		}
	}
	for _, dep := range it.unmet {
		for _, name := range depNames(dep) {
			add(o.waiters, name, number, struct{}{})
		}
	}
	if len(it.unmet) > 0 && (old == nil || !slices.Equal(old.unmet, it.unmet)) && !it.bulk() {
		for other := range o.needed(it) {
			if other.State == quarry.Queued && other.bulk() {
				o.enqueue(other) // somebody waits for it now
			}
		}
	}
	if it.State == quarry.Queued {
		o.enqueue(it)
	}
	if old != nil && isMass(&old.Build) && o.campaign[old.Nonce] == 0 {
		o.massDone = true
	}
	return old
}

// count keeps track of how many builds of each mass rebuild are under way.
func (o *owner) count(it *item, by int) {
	if !isMass(&it.Build) {
		return
	}
	if o.campaign[it.Nonce] += by; o.campaign[it.Nonce] == 0 {
		delete(o.campaign, it.Nonce)
	}
}

func add[K comparable, V any](m map[K]map[int64]V, k K, n int64, v V) {
	if m[k] == nil {
		m[k] = make(map[int64]V, 1)
	}
	m[k][n] = v
}

func drop[K comparable, V any](m map[K]map[int64]V, k K, n int64) {
	if delete(m[k], n); len(m[k]) == 0 {
		delete(m, k)
	}
}

// after calls f when this batch is in the journal, or with the error that kept
// it out.
func (o *owner) after(f func(error)) { o.afters = append(o.afters, f) }

// fact is something that has happened whether or not the journal can be
// written: f notes it down, and is called again until that is in the journal.
// then runs once it is.
func (o *owner) fact(f func(*owner), then func()) {
	f(o)
	o.after(func(err error) {
		if err != nil {
			o.facts = append(o.facts, func(o *owner) { o.fact(f, then) })
		} else if then != nil {
			then()
		}
	})
}

// flush writes this batch of changes to the journal and shows them, or undoes
// them all.
func (o *owner) flush() {
	for first := true; first || len(o.tx)+len(o.extra)+len(o.afters) > 0; first = false {
		o.commit()
	}
	o.refresh()
	answers := o.answers
	o.answers = nil
	for _, answer := range answers { // who asked looks at what it has come to
		answer()
	}
}

func (o *owner) commit() {
	tx, extra, afters := o.tx, o.extra, o.afters
	o.tx, o.extra, o.afters = nil, nil, nil
	var err error
	if len(tx)+len(extra) > 0 {
		entries := extra
		newest := make(map[int64]*item, len(tx))
		for _, c := range tx {
			newest[c.number] = c.new
		}
		for _, c := range tx {
			if newest[c.number] == c.new {
				entries = append(entries, c.new.entry())
			}
		}
		if err = o.journal.append(entries...); err != nil {
			for _, c := range slices.Backward(tx) {
				o.put(c.number, c.old)
			}
			o.journalFailed(err)
		} else {
			b := o.q.board
			b.mu.Lock()
			for _, c := range tx {
				if newest[c.number] == c.new {
					b.show(c.number, o.builds[c.number])
				}
			}
			b.mu.Unlock()
			for _, c := range tx {
				o.log(c)
				if it := o.builds[c.number]; newest[c.number] == c.new && it != nil {
					o.q.opts.Observe(it.Build)
				}
			}
		}
	}
	for _, f := range afters {
		f(err)
	}
	if o.nEnded >= o.pruneAt {
		o.prune(time.Now())
	}
	if err == nil && o.journalTry == 0 && o.journal.lines > max(o.compactAt, 4*len(o.builds)+1000) {
		o.compactAt = 0
		if err := o.journal.compact(); err != nil {
			o.q.opts.Log.Warn("the journal cannot be compacted and grows on", "error", err)
			o.compactAt = o.journal.lines + 1000
		}
	}
}

func (o *owner) log(c change) {
	if c.old != nil && c.old.State == c.new.State {
		return
	}
	o.q.opts.Log.With(c.new.LogAttrs()...).Info(c.new.Build.String()+": "+string(c.new.State),
		"state", c.new.State, "reason", c.new.Reason, "attempt", c.new.Attempt)
}

// targetBusy keeps two builds for one record apart, so that the older can
// never write over the newer.
func (o *owner) targetBusy(it *item) bool {
	for n, other := range o.targets[it.Target()] {
		if n != it.Number && occupies(other) {
			return true
		}
	}
	return false
}

// occupies reports whether a build has its target for itself.
func occupies(it *item) bool { return it.State == quarry.Running || it.State == quarry.Recording }

// prune bounds the past that is kept. Errored and cancelled builds stay while
// their branch is at their commit: the planner would start them again.
func (o *owner) prune(now time.Time) {
	var keep []int64
	excess := o.nEnded - o.q.opts.History
	seen := map[int64]bool{}
	for _, n := range o.ended {
		it := o.builds[n]
		if it == nil || !it.State.Ended() || seen[n] {
			continue
		}
		seen[n] = true
		if (excess > 0 || now.Sub(it.Ended) > o.q.opts.HistoryAge) && !o.pinned(it) {
			o.forget(n)
			excess--
			continue
		}
		keep = append(keep, n)
	}
	o.ended = keep
	// A tenth above, so that it is not done at every end, even when all that
	// is kept has to be.
	o.pruneAt = max(o.nEnded, o.q.opts.History) + o.q.opts.History/10 + 1
}

func (o *owner) pinned(it *item) bool {
	if it.State != quarry.Errored && it.State != quarry.Cancelled {
		return false
	}
	if !o.surveyed {
		return true
	}
	l := o.lines[it.Package][lineOf(it.Release)]
	return l != nil && l.commit == it.Commit
}
