package queue

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry"
)

// Why a worker's context ended.
var (
	errStopping = errors.New("the queue is being stopped")
	errToldStop = errors.New("the build has been told to stop")
)

const firstPlanWait = 30 * time.Second

// run is the owner's goroutine: take what has happened, as much of it as there
// is, decide, write it to the journal with one sync, show it.
func (o *owner) run(ctx context.Context) error {
	last, err := o.q.opts.LastBuild(ctx)
	if err != nil {
		if o.report.Lines == 0 {
			return fmt.Errorf("cannot find out which build numbers have been used: %w", err)
		}
		o.q.opts.Log.Warn("build numbers go on from the journal's", "error", err)
	}
	o.last = max(o.last, last)

	o.workCtx, o.stopWork = context.WithCancelCause(context.WithoutCancel(ctx))
	defer o.stopWork(nil)
	o.hardCtx, o.stopHard = context.WithCancel(context.WithoutCancel(ctx))
	defer o.stopHard()

	if o.manual != nil {
		o.setPause("manual", nil, *o.manual)
	}
	o.stale = true // so that whoever observes pauses hears of none, too
	o.recover()
	o.aside(func() func(*owner) {
		err := o.q.remember(o.workCtx)
		return func(o *owner) {
			if err != nil && !o.stopping {
				o.q.opts.Log.Warn("not all builds of the past are known: expected times are guessed until builds have told", "error", err)
			}
		}
	})
	o.replan(nil)
	// Builds wait for the first plan, which knows what became obsolete or was
	// recorded meanwhile, but not for ever.
	o.q.postAfter(firstPlanWait, func(o *owner) { o.planned = true })
	o.flush()
	stop := ctx.Done()
	for !o.stopping || o.busy+o.recorders+o.aides+len(o.lent) > 0 {
		select {
		case f := <-o.q.events:
			f(o)
			o.more()
		case <-stop:
			stop = nil
			o.stop()
		}
		o.dispatch()
		o.flush()
	}
	if len(o.facts) > 0 {
		o.q.opts.Log.Warn("stopped before the journal could be written: the next start finds out what has been done", "changes", len(o.facts))
	}
	if err := o.journal.close(); err != nil {
		o.q.opts.Log.Warn("closing the journal", "error", err)
	}
	return nil
}

// aside does something slow beside the owner's goroutine, and hands the owner
// what f returns. A stop waits for it.
func (o *owner) aside(f func() func(*owner)) {
	o.aides++
	go func() {
		then := f()
		o.q.post(func(o *owner) {
			o.aides--
			then(o)
		})
	}()
}

// more takes what else is waiting, so that many pushes share one sync.
func (o *owner) more() {
	for range 255 {
		select {
		case f := <-o.q.events:
			f(o)
		default:
			return
		}
	}
}

// stop begins the end: nothing new is started, what runs is told to stop, and
// commits to the results have StopGrace to finish.
func (o *owner) stop() {
	o.stopping = true
	o.stopWork(errStopping)
	time.AfterFunc(o.q.opts.StopGrace, o.stopHard)
	for _, w := range slices.Concat(o.planWaiters, o.planNext) {
		if w != nil {
			w <- ErrStopped
		}
	}
	o.planWaiters, o.planNext = nil, nil
}

// recover takes up what the journal says was under way when the last run ended.
func (o *owner) recover() {
	saved := map[int64]bool{}
	for _, n := range o.q.saved.list() {
		o.last = max(o.last, n)
		saved[n] = true
	}
	for _, n := range slices.Sorted(maps.Keys(o.builds)) {
		it := o.builds[n]
		if it.State == quarry.Waiting {
			o.dirty[n] = struct{}{}
		}
		if it.State != quarry.Running && it.State != quarry.Recording {
			continue
		}
		out, err := o.q.saved.load(n, it.Key)
		if err != nil && it.State == quarry.Recording && it.stop == "" {
			o.q.opts.Log.With(it.LogAttrs()...).Warn("building again, as what was to be recorded is lost", "error", err)
		}
		// Facts: where the journal cannot be written, it goes on from here
		// when it can.
		o.fact(func(o *owner) {
			c := *o.builds[n]
			switch {
			case c.stop != "":
				o.end(&c, c.stop, c.stopReason)
			case out != nil:
				c.State, c.Step = quarry.Recording, ""
				o.set(&c)
			default:
				c.State, c.Attempt, c.Step = quarry.Queued, max(0, c.Attempt-1), ""
				c.Reason = "put back: the daemon ended while it ran"
				o.set(&c)
			}
		}, func() {
			if o.builds[n].State == quarry.Recording {
				o.startRecording(n, out)
			}
		})
		delete(saved, n)
	}
	// What is left is of builds that have ended, or that nobody knows any more:
	// git has their branches, the planner finds them.
	for n := range saved {
		o.q.saved.remove(n)
	}
}

// end gives a build its final state, in this batch.
func (o *owner) end(c *item, state quarry.State, reason string) {
	c.State, c.Reason, c.Step = state, reason, ""
	c.stop, c.stopReason, c.unmet = "", "", nil
	c.Ended = time.Now()
	c.endSeq = o.q.clock.Add(1)
	o.set(c)
	delete(o.dirty, c.Number)
	o.look(c.Package) // what it needs may have changed while it was built
	o.touch(c.Package)
	o.touch(providedNames(c.Provides)...)
	number := c.Number
	o.after(func(err error) {
		if err == nil {
			o.q.saved.remove(number)
		}
	})
}

// patience is how long a free worker waits while waiting builds are looked at.
const patience = 50 * time.Millisecond

// room is how many builds may run at one time just now.
func (o *owner) room() int {
	most := o.q.opts.Workers
	if o.q.opts.Room != nil {
		most = min(most, o.q.opts.Room())
	}
	return most
}

// Roomed has the queue look whether there is more room for builds than there was.
func (q *Queue) Roomed() { q.post(func(*owner) {}) }

// dispatch starts builds while there are free workers.
func (o *owner) dispatch() {
	if o.stopping || !o.planned || o.journalTry > 0 || o.paused() {
		return
	}
	room := o.room()
	if o.busy >= room {
		return
	}
	now := time.Now()
	if o.examining && o.examTry == 0 || len(o.dirty) > 0 {
		// What is about to get ready may be what should go first.
		if o.patient.IsZero() {
			o.patient = now.Add(patience)
			o.q.postAfter(patience, func(*owner) {})
		}
		if now.Before(o.patient) {
			return
		}
	} else {
		o.patient = time.Time{}
	}
	gate := o.gate(now)
	for o.busy < room {
		it := o.next(now, gate)
		if it == nil {
			o.lend(now)
			return
		}
		if o.recall(it, now) {
			o.enqueue(it)
			return
		}
		c := *it
		c.State, c.Reason, c.Step, c.Attempt, c.Started = quarry.Running, "", "", it.Attempt+1, now
		o.set(&c)
		o.busy++
		o.after(func(err error) {
			if err != nil {
				o.busy--
				return
			}
			ctx, cancel := context.WithCancelCause(o.workCtx)
			o.cancels[c.Number] = cancel
			if cur := o.builds[c.Number]; cur.stop != "" {
				cancel(errToldStop)
			}
			b := c.Build
			go func() {
				res := o.q.work(ctx, b)
				cancel(nil)
				o.q.post(func(o *owner) { o.finished(b.Number, res) })
			}()
		})
	}
}

// result is what a worker brings back. One of out, err and unmet is set.
type result struct {
	out     *quarry.Outcome
	err     error
	unmet   []string
	stopped bool // it ended because it was told to by the queue's stop
}

// work makes one attempt. It runs in a worker's goroutine.
func (q *Queue) work(ctx context.Context, b quarry.Build) (res result) {
	deps, missing, without, err := q.resolve(ctx, b)
	b.Without = without
	if err == nil && len(missing) > 0 {
		return result{unmet: missing}
	}
	var out *quarry.Outcome
	if err != nil {
		// No fault of this build's: every other one reads the same records.
		err = &FarmError{fmt.Errorf("cannot read the records: %w", err)}
	} else {
		out, err = q.attempt(ctx, b, deps)
	}
	stopping := errors.Is(context.Cause(ctx), errStopping)
	if err != nil {
		return result{err: err, stopped: stopping}
	}
	if errors.Is(context.Cause(ctx), errToldStop) {
		return result{err: errToldStop}
	}
	key := fmt.Sprintf("save %d", b.Number)
	for try := 0; ; try++ {
		err := q.saved.save(b.Number, out)
		if err == nil {
			if try > 0 {
				q.post(func(o *owner) { o.clearPause(key) })
			}
			return result{out: out}
		}
		q.post(func(o *owner) { o.setPause(key, nil, Pause{Reason: err.Error()}) })
		select {
		case <-ctx.Done():
			q.post(func(o *owner) { o.clearPause(key) })
			return result{err: err, stopped: errors.Is(context.Cause(ctx), errStopping)}
		case <-time.After(q.opts.backoff(try)):
		}
	}
}

// resolve finds the artifacts of what the build needs, as they are now.
func (q *Queue) resolve(ctx context.Context, b quarry.Build) (deps []quarry.DepUsed, missing, without []string, err error) {
	if _, tools := b.CrossNeeds(b.Arch); len(tools)+len(b.BuildNeeds(b.Arch)) == 0 {
		return nil, nil, nil, nil
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("looking up dependencies panicked: %v", p)
		}
	}()
	recs, err := q.Look(ctx, b.View())
	if err != nil {
		return nil, nil, nil, err
	}
	return resolve(recs, b.Release, b.Arch)
}

// attempt calls the stage and holds it to its contract.
func (q *Queue) attempt(ctx context.Context, b quarry.Build, deps []quarry.DepUsed) (out *quarry.Outcome, err error) {
	defer func() {
		if p := recover(); p != nil {
			out, err = nil, fmt.Errorf("the runner panicked: %v", p)
			q.opts.Log.With(b.LogAttrs()...).Error("a panic in the runner", "panic", p)
		}
	}()
	b.Archs, b.Needs = slices.Clone(b.Archs), slices.Clone(b.Needs)
	out, err = q.opts.Run(ctx, b, deps, func(step string) {
		q.post(func(o *owner) { o.step(b.Number, b.Attempt, step) })
	})
	switch {
	case err != nil:
		return nil, err
	case out == nil:
		return nil, errors.New("the runner returned neither an outcome nor an error")
	case out.Status != quarry.Succeeded && out.Status != quarry.Failed:
		return nil, fmt.Errorf("the runner returned an outcome that is %q: it has to be succeeded or failed", out.Status)
	}
	c := *out
	c.Build = b
	c.Build.State, c.Build.Step = out.Status, ""
	c.Build.Ended = out.Ended
	return &c, nil
}

// step shows how far a running build is. It is not journalled: after a crash
// no step is running.
func (o *owner) step(number int64, attempt int, step string) {
	it := o.builds[number]
	if it == nil || it.State != quarry.Running || it.Attempt != attempt {
		return
	}
	c := *it
	c.Step = step
	o.put(number, &c)
	if len(o.tx) > 0 { // it is shown with the batch, if that changes it too
		for _, t := range o.tx {
			if t.number == number {
				return
			}
		}
	}
	b := o.q.board
	b.mu.Lock()
	b.show(number, &c)
	b.mu.Unlock()
	o.q.opts.Observe(c.Build)
}

// finished takes what a worker brings back.
func (o *owner) finished(number int64, res result) {
	o.busy--
	delete(o.cancels, number)
	if res.out != nil {
		o.pauseEnded("farm")
		if it := o.builds[number]; it != nil {
			o.pauseEnded(it.Environment().String())
		}
	}
	if res.err != nil && !res.stopped {
		if it := o.builds[number]; it != nil && it.stop == "" {
			switch {
			case isFarmWide(res.err):
				o.trouble("farm", nil, res.err)
			case isEnvironmentWide(res.err):
				env := it.Environment()
				o.trouble(env.String(), &env, res.err)
			}
		}
	}
	var record bool
	o.fact(func(o *owner) {
		record = false
		it := o.builds[number]
		if it == nil || it.State != quarry.Running {
			return
		}
		c := *it
		c.Step = ""
		switch {
		case it.stop != "":
			o.end(&c, it.stop, it.stopReason)
		case res.out != nil:
			c.State = quarry.Recording
			o.set(&c)
			record = true
		case len(res.unmet) > 0:
			c.State, c.Attempt, c.unmet = quarry.Waiting, it.Attempt-1, res.unmet
			c.Reason = o.explain(&c)
			o.set(&c)
			o.dirty[number] = struct{}{}
		case res.stopped:
			c.State, c.Attempt = quarry.Queued, it.Attempt-1
			c.Reason = "put back: the daemon was stopped"
			o.set(&c)
		case isFarmWide(res.err), isEnvironmentWide(res.err):
			c.State, c.Attempt = quarry.Queued, it.Attempt-1
			c.putBacks++
			c.Reason = "put back: " + oneLine(res.err)
			// The farm has its own pause; this one lets others go first when
			// it is this build that brings the farm down.
			o.delay(&c, o.q.opts.backoff(c.putBacks-1))
			o.set(&c)
		case it.Attempt >= o.q.opts.Tries:
			o.end(&c, quarry.Errored, fmt.Sprintf("tried %d times, last: %s", it.Attempt, oneLine(res.err)))
		default:
			c.State = quarry.Queued
			d := o.q.opts.RetryDelay(it.Attempt)
			c.Reason = fmt.Sprintf("try %d of %d failed, the next follows in %s: %s", it.Attempt, o.q.opts.Tries, d, oneLine(res.err))
			o.delay(&c, d)
			o.set(&c)
		}
	}, func() {
		if record {
			o.startRecording(number, res.out)
		}
	})
}

// delay keeps a build from being started for a while, and looks again then.
func (o *owner) delay(c *item, d time.Duration) {
	c.notBefore = time.Now().Add(d)
	number := c.Number
	o.q.postAfter(d+time.Millisecond, func(o *owner) { o.unpark(number) })
}

// oneLine makes an error fit a reason.
func oneLine(err error) string {
	s := strings.Join(strings.Fields(err.Error()), " ")
	if len(s) > 500 {
		s = strings.ToValidUTF8(s[:500], "") + "..."
	}
	return s
}

// startRecording has an outcome committed to the results.
func (o *owner) startRecording(number int64, out *quarry.Outcome) {
	// Its waits end at once when the queue stops, a commit in progress has
	// until StopGrace.
	wait, cancel := context.WithCancelCause(o.workCtx)
	o.cancels[number] = cancel
	o.recorders++
	go func() {
		defer cancel(nil)
		for try := 0; wait.Err() == nil; try++ {
			commit, err := o.q.record(o.hardCtx, out)
			if err == nil || isObsolete(err) {
				o.q.post(func(o *owner) { o.recorded(number, out, commit, err) })
				return
			}
			o.q.post(func(o *owner) { o.recordFailed(number, err) })
			select {
			case <-wait.Done():
			case <-time.After(o.q.opts.backoff(try)):
			}
		}
		o.q.post(func(o *owner) { o.recordGivenUp(number) })
	}()
}

func (q *Queue) record(ctx context.Context, out *quarry.Outcome) (commit string, err error) {
	q.recordMu.Lock()
	defer q.recordMu.Unlock()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("recording panicked: %v", p)
			q.opts.Log.With(out.Build.LogAttrs()...).Error("a panic in recording", "panic", p)
		}
	}()
	c := *out
	return q.opts.Record(ctx, &c)
}

// recorded ends a build whose record stands, or must not.
func (o *owner) recorded(number int64, out *quarry.Outcome, commit string, err error) {
	o.recorders--
	delete(o.cancels, number)
	o.unstick(number)
	o.fact(func(o *owner) {
		it := o.builds[number]
		if it == nil || it.State != quarry.Recording {
			return
		}
		c := *it
		if err != nil {
			o.end(&c, quarry.Obsolete, oneLine(err))
			return
		}
		c.Record = commit
		o.end(&c, out.Status, verdict(out))
		if out.Status == quarry.Succeeded {
			o.q.durations.observe(pastOf(out))
			o.unranked = true
			o.landed(&c)
			o.landDue = o.landDue || c.Stage != ""
		}
		if l := o.lines[it.Package][lineOf(it.Release)]; l != nil && l.commit == it.Commit {
			if l.failed == nil {
				l.failed = map[string]bool{}
			}
			l.failed[it.Arch] = out.Status == quarry.Failed
		}
	}, nil)
}

// verdict is the reason of a failed build.
func verdict(out *quarry.Outcome) string {
	if out.Failure == nil {
		return ""
	}
	return oneLine(errors.New(out.Failure.Reason()))
}

// recordFailed notes that a record cannot be made. It is tried for ever: the
// work is done and saved. One such build stops no other, unless its trouble is
// the farm's; several of them say that it is.
func (o *owner) recordFailed(number int64, err error) {
	it := o.builds[number]
	if it == nil || it.State != quarry.Recording {
		return
	}
	if it.stop != "" {
		if cancel := o.cancels[number]; cancel != nil {
			cancel(errToldStop)
		}
		return
	}
	o.stuck[number] = err
	o.stuckPause()
}

func (o *owner) unstick(number int64) {
	if _, ok := o.stuck[number]; ok {
		delete(o.stuck, number)
		o.stuckPause()
	}
}

func (o *owner) stuckPause() {
	var problems []Problem
	farm := false
	for n, err := range o.stuck {
		if it := o.builds[n]; it != nil {
			problems = append(problems, Problem{it.Package, quarry.Branch(it.Package, it.Version),
				fmt.Errorf("build %d cannot be recorded: %w", n, err)})
		}
		farm = farm || isFarmWide(err)
	}
	o.setProblems("recording", problems)
	if farm || len(o.stuck) >= max(3, o.q.opts.Workers) {
		for n, err := range o.stuck {
			o.setPause("record", nil, Pause{Reason: fmt.Sprintf("%d results cannot be recorded, such as that of build %d: %s", len(o.stuck), n, oneLine(err))})
			break
		}
	} else {
		o.clearPause("record")
	}
}

// recordGivenUp ends a recording that was told to stop. When it is the queue
// that stops, the build stays as it is and is recorded at the next start.
func (o *owner) recordGivenUp(number int64) {
	o.recorders--
	delete(o.cancels, number)
	o.unstick(number)
	o.fact(func(o *owner) {
		if it := o.builds[number]; it != nil && it.State == quarry.Recording && it.stop != "" {
			c := *it
			o.end(&c, it.stop, it.stopReason)
		}
	}, nil)
}
