package sched

import (
	"cmp"
	"slices"
	"time"
)

// Running is a build on a machine.
type Running struct {
	Memory int64     // bytes it may take
	Ends   time.Time // when it is expected to end; one that is over time counts as about to end
}

// Gate decides which builds may start on a machine, so that all that runs fits
// into its memory. One that does not fit holds its place: what comes after it may
// start only where that does not put it off, which is when it is over in time or
// the memory is enough for both (EASY backfilling). So giants exclude each other,
// and none of them starves behind a stream of small ones.
//
// A gate is made for one round of starts and asked in the order of priorities.
type Gate struct {
	total, used int64
	now         time.Time
	running     []Running
	held        bool
	from        time.Time // when the held build can start
	spare       int64     // memory that it leaves free then
}

// NewGate makes the gate of a machine with so many bytes for builds, 0 for no
// limit, and what runs there now.
func NewGate(total int64, running []Running, now time.Time) *Gate {
	g := &Gate{total: total, now: now, running: slices.Clone(running)}
	for i, r := range g.running {
		g.running[i].Memory = g.clamp(r.Memory)
		g.used += g.running[i].Memory
	}
	return g
}

// clamp has a build that wants more than there is run alone.
func (g *Gate) clamp(memory int64) int64 { return min(max(0, memory), g.total) }

// Admit reports whether a build may start now, and counts it as running if so.
// takes is how long it is expected to run.
func (g *Gate) Admit(memory int64, takes time.Duration) bool {
	if g.total <= 0 {
		return true
	}
	memory = g.clamp(memory)
	if g.used+memory > g.total {
		if !g.held {
			g.hold(memory)
		}
		return false
	}
	ends := g.now.Add(takes)
	if g.held && ends.After(g.from) {
		if memory > g.spare {
			return false
		}
		g.spare -= memory
	}
	g.used += memory
	g.running = append(g.running, Running{memory, ends})
	return true
}

// hold keeps a place for a build that does not fit yet.
func (g *Gate) hold(memory int64) {
	byEnd := slices.Clone(g.running)
	slices.SortFunc(byEnd, func(a, b Running) int { return cmp.Or(a.Ends.Compare(b.Ends), cmp.Compare(a.Memory, b.Memory)) })
	free := g.total - g.used
	g.held, g.from = true, g.now
	for _, r := range byEnd {
		if free >= memory {
			break
		}
		free += r.Memory
		if r.Ends.After(g.from) {
			g.from = r.Ends
		}
	}
	g.spare = free - memory
}
