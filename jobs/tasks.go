package jobs

import (
	"fmt"
	"time"
)

// lookAtTasks looks at the processes of those builds of which it is time, and
// lets their jobservers know. No lock is held: it takes a while.
func (g *Governor) lookAtTasks() {
	type look struct {
		s    *Share
		turn int
	}
	var looks []look
	g.mu.Lock()
	now := g.now()
	for _, s := range g.shares {
		if s.bridge == nil || s.place.Tasks == nil || s.ended {
			continue
		}
		every := taskEvery
		if s.bridge.clients {
			every = probeFor - 5*time.Millisecond // on each tick: nothing else tells what they run
		}
		if due(now, s.tasked, every) {
			s.tasked = now
			looks = append(looks, look{s, s.bridge.turn})
		}
	}
	g.mu.Unlock()
	for _, l := range looks {
		t, err := l.s.place.Tasks()
		if err != nil {
			continue // the workspace is ending, or nobody can tell here
		}
		var tell func()
		g.mu.Lock()
		if !l.s.ended {
			l.s.bridge.saw(t, l.turn)
			if p := l.s.bridge.pool; p != nil {
				p.Leaked(t.Leaves)
			}
			tell = l.s.watch(t, now)
		}
		g.mu.Unlock()
		if tell != nil {
			tell()
		}
	}
}

// A build runs clearly more than it may when so many looks in a row, which are
// some seconds, find more than twice as many tasks at work as it has slots, and
// two more: a compiler and its assembler work at the same time, too, for one job.
const (
	overLooks = 5
	overSlack = 2
)

// watch notices what runs more than it was given.
type watch struct {
	at   time.Time
	seen [overLooks]int // tasks at work beyond what is out, the latest first
	runs [overLooks]int
	told bool
}

// watch takes a look at the build's processes, and returns what is to be done
// when the lock is open again. g.mu is held.
func (s *Share) watch(t Tasks, now time.Time) (tell func()) {
	w := &s.over
	if !due(now, w.at, taskEvery) {
		return nil
	}
	w.at = now
	copy(w.seen[1:], w.seen[:])
	copy(w.runs[1:], w.runs[:])
	out := max(s.m.seen.Out, s.m.grant)
	w.seen[0], w.runs[0] = t.Running-2*out-overSlack, t.Running
	runs, over := w.runs[0], true
	for i := range w.runs {
		runs, over = min(runs, w.runs[i]), over && w.seen[i] > 0
	}
	if over && !w.told {
		w.told = true
		what := fmt.Sprintf("ran %d processes or threads at one time where %d may run", runs, out)
		if s.forced == "" {
			s.forced = what
			if s.place.Over != nil {
				tell = func() { s.place.Over(what) }
			}
		}
	}
	// Once that is known, it counts as what it runs. Where its processor time
	// follows its slots, it takes no more than those.
	s.m.fixed = 0
	if s.forced != "" && s.g.opts.Enforce == EnforceNone && runs > out {
		s.m.fixed = runs
	}
	return tell
}
