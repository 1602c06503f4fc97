package queue

import (
	"context"
	"errors"
	"slices"
	"time"
)

// ErrRecalled is why the context of a loan ends when a build needs the worker.
var ErrRecalled = errors.New("a build needs the worker")

// loan is a worker that does something else than a build.
type loan struct {
	memory   int64
	given    chan context.Context // takes one, when the worker is there
	stop     context.CancelCauseFunc
	recalled bool
}

// Lend waits until a worker has nothing to build, and gives it for work of
// another kind, which may take so many bytes of memory (0: what a build may take
// that asks for nothing). No build waits for such work: the context that it gets
// ends, with the cause [ErrRecalled], when there is a build for the worker, and
// when the queue stops. done gives the worker back; it has to be called, soon
// after the context has ended. Those who wait are served in the order in which
// they came; while the queue is paused nobody is.
func (q *Queue) Lend(ctx context.Context, memory int64) (work context.Context, done func(), err error) {
	l := &loan{memory: q.MemoryOf(memory), given: make(chan context.Context, 1)}
	if err := q.ask(ctx, func(o *owner) error {
		o.borrowers = append(o.borrowers, l)
		return nil
	}); err != nil {
		// It may have been taken down all the same.
		q.post(func(o *owner) { o.giveBack(l) })
		return nil, nil, err
	}
	giveBack := func() { q.post(func(o *owner) { o.giveBack(l) }) }
	select {
	case work = <-l.given:
	case <-ctx.Done():
		giveBack()
		return nil, nil, context.Cause(ctx)
	case <-q.ended:
		return nil, nil, ErrStopped
	}
	// What the caller's context says holds as well.
	both, stop := context.WithCancelCause(work)
	unlink := context.AfterFunc(ctx, func() { stop(context.Cause(ctx)) })
	return both, func() {
		unlink()
		stop(nil)
		giveBack()
	}, nil
}

// giveBack takes a worker back, or whoever waits for one out of the line.
func (o *owner) giveBack(l *loan) {
	same := func(x *loan) bool { return x == l }
	o.borrowers = slices.DeleteFunc(o.borrowers, same)
	o.lent = slices.DeleteFunc(o.lent, same)
	if l.stop != nil {
		l.stop(nil)
	}
}

// lend gives workers that no build can use to those who wait for some.
func (o *owner) lend(now time.Time) {
	gate := o.gate(now)
	for len(o.borrowers) > 0 && o.busy+len(o.lent) < o.room() {
		l := o.borrowers[0]
		if gate != nil {
			for _, other := range o.lent {
				gate.Admit(other.memory, 0)
			}
			if !gate.Admit(l.memory, 0) {
				return
			}
		}
		ctx, stop := context.WithCancelCause(o.workCtx)
		l.stop = stop
		o.borrowers = o.borrowers[1:]
		o.lent = append(o.lent, l)
		l.given <- ctx
		gate = o.gate(now)
	}
}

// recall reports whether a build cannot begin for what has been lent, and asks for
// as much of that back as is needed, the latest first. The build begins when it has
// come back.
func (o *owner) recall(it *item, now time.Time) bool {
	if len(o.lent) == 0 {
		return false
	}
	fits := func(out []*loan) bool {
		if o.busy+len(out) >= o.room() {
			return false
		}
		gate := o.gate(now)
		if gate == nil {
			return true
		}
		for _, l := range out {
			gate.Admit(l.memory, 0)
		}
		return gate.Admit(o.memory(it), o.q.Expected(it.Package, it.Arch))
	}
	if fits(o.lent) {
		return false
	}
	for keep := len(o.lent) - 1; keep >= 0; keep-- {
		if l := o.lent[keep]; !l.recalled {
			l.recalled = true
			l.stop(ErrRecalled)
		}
		if fits(o.lent[:keep]) {
			break
		}
	}
	return true
}
