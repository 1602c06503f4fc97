package queue

import (
	"context"
	"errors"
	"fmt"

	"github.com/Morphux/quarry"
)

// LandedGroup gives the commit with which a submission has landed since the queue
// was started. It waits while the submission is being landed: whoever finds that
// the group is gone can ask whether it has landed.
func (q *Queue) LandedGroup(id string) (commit string, ok bool) {
	for {
		q.groups.mu.Lock()
		commit, ok = q.groups.landed[id]
		over := q.groups.landing[id]
		q.groups.mu.Unlock()
		if over == nil {
			return commit, ok
		}
		<-over
	}
}

// land has all groups looked at, and those landed of which all is built.
func (o *owner) land() {
	if !o.landDue || o.landing || o.stopping || !o.surveyed {
		return
	}
	o.landDue = false
	if o.q.opts.Groups == nil {
		return
	}
	o.landing = true
	ctx, hard := o.workCtx, o.hardCtx
	o.aside(func() func(*owner) {
		landed, problems, err := o.q.landAll(ctx, hard)
		return func(o *owner) {
			o.landing = false
			if o.stopping {
				return
			}
			o.setProblems("groups", problems)
			if err != nil {
				o.q.opts.Log.Warn("groups cannot be looked at, and are tried again", "error", err)
				o.landTry++
				o.q.postAfter(o.q.opts.backoff(o.landTry-1), func(o *owner) { o.landDue = true })
				return
			}
			o.landTry = 0
			if landed {
				o.replan(nil) // everything goes on as if the members had been pushed now
			}
		}
	})
}

// landAll lands what is ready. An error is trouble that may pass.
func (q *Queue) landAll(ctx, hard context.Context) (landed bool, problems []Problem, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("landing panicked: %v", p)
		}
	}()
	// Nobody submits or drops meanwhile.
	q.submitting.Lock()
	defer q.submitting.Unlock()
	list, err := q.Groups(ctx, "")
	if err != nil {
		return false, nil, err
	}
	var errs []error
	for _, g := range list {
		if g.ready {
			commit, err := q.landOne(hard, g.sub)
			switch {
			case err == nil:
				landed = true
				q.opts.Log.Info("group has landed", "group", g.Name, "channel", g.Channel, "commit", commit)
				continue
			case !errors.Is(err, ErrBackwards):
				problems = append(problems, Problem{Err: fmt.Errorf("group %s cannot land on %s and is tried again: %w", g.Name, g.Channel, err)})
				errs = append(errs, err)
				continue
			}
			g.State, g.Reason = GroupRefused, oneLine(err)
			q.groups.mu.Lock()
			q.groups.refused[g.ID] = g.Reason
			q.groups.mu.Unlock()
		}
		if g.State == GroupRefused {
			problems = append(problems, Problem{Err: fmt.Errorf("group %s does not land on %s: %s", g.Name, g.Channel, g.Reason)})
		}
	}
	return landed, problems, errors.Join(errs...)
}

func (q *Queue) landOne(ctx context.Context, s quarry.Submission) (commit string, err error) {
	q.recordMu.Lock()
	defer q.recordMu.Unlock()
	over := make(chan struct{})
	q.groups.mu.Lock()
	q.groups.landing[s.ID] = over
	q.groups.mu.Unlock()
	defer func() {
		q.groups.mu.Lock()
		delete(q.groups.landing, s.ID)
		q.groups.mu.Unlock()
		close(over)
	}()
	if commit, err = q.opts.Groups.Land(ctx, s); err != nil {
		return "", err
	}
	q.groups.mu.Lock()
	defer q.groups.mu.Unlock()
	if len(q.groups.landed) > 1000 {
		clear(q.groups.landed)
	}
	q.groups.landed[s.ID] = commit
	delete(q.groups.refused, s.ID)
	return commit, nil
}
