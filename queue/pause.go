package queue

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry"
)

// pause is one reason not to start builds. The queue, or one
// environment, is paused while it has any.
type pause struct {
	Pause
	env     *quarry.Environment // nil: the whole queue
	try     int                 // probes that failed since the last build that worked
	on      bool                // false: it is over, but not yet proved to be
	probing bool
}

func (o *owner) paused() bool {
	for _, p := range o.pauses {
		if p.on && p.env == nil {
			return true
		}
	}
	return false
}

func (o *owner) setPause(key string, env *quarry.Environment, why Pause) {
	p := o.pauses[key]
	if p == nil {
		p = &pause{env: env}
		o.pauses[key] = p
	}
	since := why.Since
	if since.IsZero() {
		since = p.Since
	}
	if since.IsZero() || !p.on && why.Since.IsZero() {
		since = time.Now()
	}
	if !p.on || p.Reason != why.Reason {
		o.q.opts.Log.Warn("paused", "what", key, "reason", why.Reason)
	}
	p.Pause, p.on = why, true
	p.Since = since
	o.stale = true
}

func (o *owner) clearPause(key string) {
	if p := o.pauses[key]; p != nil {
		if p.on {
			o.q.opts.Log.Info("no longer paused", "what", key, "reason", p.Reason)
		}
		delete(o.pauses, key)
		o.stale = true
	}
}

// pauseEnded is the proof that what a pause was for is over: a build went
// through. A pause that is on stays, being younger than that build's start.
func (o *owner) pauseEnded(key string) {
	if p := o.pauses[key]; p != nil && !p.on {
		delete(o.pauses, key)
	}
}

// trouble pauses the queue (or an environment) for an error that all builds would
// meet, until a probe finds it gone. While nothing has been proved, the pauses
// get longer.
func (o *owner) trouble(key string, env *quarry.Environment, err error) {
	o.setPause(key, env, Pause{Reason: oneLine(err)})
	o.scheduleProbe(key)
}

func (o *owner) scheduleProbe(key string) {
	p := o.pauses[key]
	if p == nil || p.probing {
		return
	}
	p.probing = true
	d := o.q.opts.backoff(p.try)
	p.try++
	o.q.postAfter(d, func(o *owner) {
		if o.pauses[key] == p && !o.stopping {
			o.probe(key, p)
		}
	})
}

func (o *owner) probe(key string, p *pause) {
	ctx, env := o.workCtx, p.env
	o.aside(func() func(*owner) {
		err := o.q.probe(ctx, env)
		return func(o *owner) {
			if o.pauses[key] != p || o.stopping {
				return
			}
			p.probing = false
			if err != nil {
				o.trouble(key, env, err)
				return
			}
			if p.on {
				p.on = false
				o.stale = true
				o.q.opts.Log.Info("probing found it well again", "what", key, "was", p.Reason)
			}
		}
	})
}

func (q *Queue) probe(ctx context.Context, env *quarry.Environment) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the probe panicked: %v", p)
		}
	}()
	switch {
	case env == nil && q.opts.Probe != nil:
		return q.opts.Probe(ctx)
	case env != nil && q.opts.ProbeEnvironment != nil:
		return q.opts.ProbeEnvironment(ctx, *env)
	}
	return nil
}

// probeNow has every trouble looked at again without waiting.
func (o *owner) probeNow() {
	for key, p := range o.pauses {
		if p.on && (key == "farm" || p.env != nil) {
			p.try, p.probing = 0, true
			o.probe(key, p)
		}
	}
	if o.journalTry > 0 {
		o.retryJournal(o.journalGen)
	}
}

// journalFailed pauses the queue until the journal can be written. The batch
// has been undone; what has happened all the same waits in facts.
func (o *owner) journalFailed(err error) {
	o.setPause("journal", nil, Pause{Reason: oneLine(err)})
	if o.journalTry == 0 {
		o.journalTry = 1
		o.scheduleJournal()
	}
}

func (o *owner) scheduleJournal() {
	o.journalGen++
	gen := o.journalGen
	o.q.postAfter(o.q.opts.backoff(o.journalTry-1), func(o *owner) { o.retryJournal(gen) })
}

func (o *owner) retryJournal(gen int) {
	if gen != o.journalGen || o.journalTry == 0 {
		return
	}
	if err := o.journal.append(entry{Last: o.last}); err != nil {
		o.journalTry++
		o.setPause("journal", nil, Pause{Reason: oneLine(err)})
		if !o.stopping {
			o.scheduleJournal()
		}
		return
	}
	o.journalTry = 0
	o.clearPause("journal")
	facts := o.facts
	o.facts = nil
	for _, f := range facts {
		f(o)
	}
	if !o.stopping {
		o.replan(nil) // what pushes could not enter is found again
	}
}

// setManual pauses or resumes for a person, in this batch.
func (o *owner) setManual(p *Pause) {
	old := o.manual
	show := func(p *Pause) {
		if o.manual = p; p == nil {
			o.clearPause("manual")
		} else {
			o.setPause("manual", nil, *p)
		}
	}
	e := entry{Pause: &Pause{}}
	if p != nil {
		e.Pause = p
	}
	if p == nil && old == nil {
		return
	}
	show(p)
	o.extra = append(o.extra, e)
	o.after(func(err error) {
		if err != nil {
			show(old)
		}
	})
}

// setProblems replaces the problems of one source.
func (o *owner) setProblems(source string, list []Problem) {
	if len(list) == 0 && len(o.problems[source]) == 0 {
		return
	}
	if len(list) == 0 {
		delete(o.problems, source)
	} else {
		o.problems[source] = list
	}
	o.stale = true
}

// setDeclined replaces what of a package is not built because its recipes say so.
func (o *owner) setDeclined(pkg string, list []quarry.Declined) {
	b := o.q.board
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(list) == 0 {
		delete(b.declined, pkg)
	} else {
		b.declined[pkg] = list
	}
}

// refresh brings the board's status up to date after a batch.
func (o *owner) refresh() {
	o.examine()
	o.surveyAgain()
	o.rerank()
	o.land()
	if o.massDone && !o.stopping {
		o.massDone = false
		o.replan(nil)
	}
	b := o.q.board
	b.mu.Lock()
	b.status.Busy, b.status.Last = o.busy, o.last
	changed := o.stale
	if changed {
		o.refreshStatus()
	}
	paused := b.status.Paused
	b.mu.Unlock()
	if changed {
		o.q.opts.ObservePauses(paused)
	}
}

// refreshStatus rewrites pauses and problems. b.mu is held.
func (o *owner) refreshStatus() {
	o.stale = false
	b := o.q.board
	b.status.Last = o.last
	before := len(b.status.Paused)
	b.status.Paused, b.status.Problems = nil, nil
	for _, p := range o.pauses {
		if p.on {
			b.status.Paused = append(b.status.Paused, PauseStatus{p.env, p.Pause})
		}
	}
	slices.SortFunc(b.status.Paused, func(a, b PauseStatus) int {
		if c := a.Since.Compare(b.Since); c != 0 {
			return c
		}
		return strings.Compare(a.Reason, b.Reason)
	})
	for _, list := range o.problems {
		b.status.Problems = append(b.status.Problems, list...)
	}
	slices.SortFunc(b.status.Problems, func(a, b Problem) int { return strings.Compare(a.Error(), b.Error()) })
	if len(b.subs) > 0 && (before == 0) != (len(b.status.Paused) == 0) {
		// Who follows a queued build hears that it stands still, and why.
		for _, n := range b.order {
			if b.builds[n].State == quarry.Queued {
				for s := range b.subs {
					s.add(n)
				}
			}
		}
	}
}
