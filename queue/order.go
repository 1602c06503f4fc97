package queue

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/graph"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/sched"
)

// rank is the place of a build in the graph.
type rank struct {
	path time.Duration // see sched.Priority.Path
	pos  int32         // in graph.Graph.Order, from 1
}

// enqueue has a queued build take its place among those that could start.
func (o *owner) enqueue(it *item) {
	if _, ok := o.parked[it.Number]; !ok {
		o.ready.Set(it.Number, it.Environment().String(), o.priority(it))
	}
}

func (o *owner) priority(it *item) sched.Priority {
	p := sched.Priority{Background: o.background(it), Since: it.Created, Number: it.Number}
	if r, ok := o.ranks[it.Number]; ok {
		p.Path = r.path
	} else {
		p.Path = o.q.Expected(it.Package, it.Arch)
	}
	return p
}

// backlog is how long before its build came up a release must have been pushed for
// nobody to be waiting at the door: its arch is new, or the records were lost.
const backlog = 24 * time.Hour

// bulk reports whether nobody has asked for a build in person.
func (it *item) bulk() bool { return !it.urgent && Bulk(it.Build) }

// Bulk reports whether a build is work in bulk: a mass rebuild, one for a changed
// dependency, or for what was pushed long before.
func Bulk(b quarry.Build) bool {
	return isAutomatic(&b) || b.Nonce == "" && !b.Pushed.IsZero() && b.Created.Sub(b.Pushed) > backlog
}

// background reports whether a build yields to others: one that nobody has asked
// for in person, and that nothing waits for which somebody has.
func (o *owner) background(it *item) bool {
	if !it.bulk() {
		return false
	}
	for _, name := range slices.Concat([]string{it.Package}, providedNames(it.Provides)) {
		for n := range o.waiters[name] {
			if w := o.builds[n]; !w.bulk() && w.Channel == it.Channel {
				return false
			}
		}
	}
	return true
}

// park takes a queued build out of those that could start, until unpark.
func (o *owner) park(number int64) {
	o.parked[number] = struct{}{}
	o.ready.Remove(number)
}

func (o *owner) unpark(number int64) {
	if _, ok := o.parked[number]; !ok {
		return
	}
	delete(o.parked, number)
	if it := o.builds[number]; it != nil && it.State == quarry.Queued {
		o.enqueue(it)
	}
}

// next is the build to start now, if any. What cannot start whatever becomes of
// others is parked, so that it costs nothing until that has changed.
func (o *owner) next(now time.Time, gate *sched.Gate) *item {
	allow := func(class string) bool {
		p := o.pauses[class]
		return p == nil || !p.on
	}
	for {
		type parking struct{ it, by *item }
		var park []parking
		var short *item
		n, ok := o.ready.Next(allow, func(n int64) bool {
			it := o.builds[n]
			if it.notBefore.After(now) || o.targetBusy(it) {
				park = append(park, parking{it: it})
				return false
			}
			if o.unsettled(it) {
				return false // for the moment
			}
			if by := o.heldBy(it); by != nil {
				park = append(park, parking{it, by})
				return false
			}
			if gate == nil || gate.Admit(o.memory(it), o.q.Expected(it.Package, it.Arch)) {
				return true
			}
			if short == nil {
				short = it
			}
			return false
		})
		for _, p := range park {
			o.park(p.it.Number)
			if p.by != nil {
				o.hold(p.it, p.by)
			}
		}
		if short != nil {
			o.say(short, fmt.Sprintf("waits for memory: it may take %s of the %s that builds have", human.Size(o.memory(short)), human.Size(o.q.opts.Memory)))
		}
		if ok {
			return o.builds[n]
		}
		if len(park) == 0 {
			return nil
		}
	}
}

// say gives a queued build another reason.
func (o *owner) say(it *item, why string) {
	if it.Reason != why {
		c := *it
		c.Reason = why
		o.set(&c)
	}
}

// gate is the memory that is left for builds; nil for no bound.
func (o *owner) gate(now time.Time) *sched.Gate {
	if o.q.opts.Memory <= 0 {
		return nil
	}
	var running []sched.Running
	for n := range o.active {
		it := o.builds[n]
		running = append(running, sched.Running{Memory: o.memory(it), Ends: it.Started.Add(o.q.ExpectedOf(it.Build))})
	}
	return sched.NewGate(o.q.opts.Memory, running, now)
}

func (o *owner) memory(it *item) int64 { return o.q.MemoryOf(it.Traits[it.Arch].Memory) }

// rankEvery is the least time between two rankings; they also get at most a
// twentieth of one processor.
const rankEvery = time.Second

// rerank has the places of all builds under way worked out anew, beside the
// owner's goroutine, when what they depend on has changed.
func (o *owner) rerank() {
	if !o.unranked || o.ranking || o.stopping || time.Now().Before(o.rankAgain) {
		return
	}
	o.unranked = false
	var items []*item
	for _, list := range o.live {
		for _, it := range list {
			items = append(items, it)
		}
	}
	if len(items) == 0 {
		o.ranks = nil
		return
	}
	o.ranking = true
	o.aside(func() func(*owner) {
		began := time.Now()
		ranks := o.q.rank(items)
		pause := max(rankEvery, 20*time.Since(began))
		return func(o *owner) {
			o.ranking = false
			o.ranked(ranks)
			o.rankAgain = time.Now().Add(pause)
			o.q.postAfter(pause+time.Millisecond, func(*owner) {})
		}
	})
}

func (o *owner) ranked(ranks map[int64]rank) {
	before := o.ranks
	o.ranks = ranks
	for n, r := range ranks {
		if was, ok := before[n]; ok && was.path == r.path {
			continue
		}
		if it := o.builds[n]; it != nil && it.State == quarry.Queued {
			o.enqueue(it)
		}
	}
}

// rank finds the places of builds in the graphs of their channels. Paths lead
// through what is under way only.
func (q *Queue) rank(items []*item) (ranks map[int64]rank) {
	ranks = make(map[int64]rank, len(items))
	defer func() {
		if p := recover(); p != nil {
			q.opts.Log.Error("ranking builds panicked", "panic", p)
		}
	}()
	slices.SortFunc(items, func(a, b *item) int {
		return cmp.Or(strings.Compare(a.Channel, b.Channel), cmp.Compare(a.Number, b.Number))
	})
	for len(items) > 0 {
		channel := items[0].Channel
		end := slices.IndexFunc(items, func(it *item) bool { return it.Channel != channel })
		if end < 0 {
			end = len(items)
		}
		of := items[:end]
		items = items[end:]
		g, err := q.Graph(channel)
		if err != nil {
			continue // not yet surveyed: each counts for itself
		}
		nodes := make([]graph.Node, len(of))
		takes := make(map[graph.Node]time.Duration, len(of))
		for i, it := range of {
			n, ok := g.Node(it.Package, it.Version, it.Arch)
			if !ok {
				nodes[i] = graph.None
				continue
			}
			nodes[i], takes[n] = n, q.Expected(it.Package, it.Arch)
		}
		paths := g.Paths(func(n graph.Node) time.Duration {
			if d, ok := takes[n]; ok {
				return d
			}
			return -1
		})
		pos := make(map[graph.Node]int32, len(takes))
		for i, n := range g.Order() {
			if _, ok := takes[n]; ok {
				pos[n] = int32(i + 1)
			}
		}
		for i, it := range of {
			if n := nodes[i]; n != graph.None {
				ranks[it.Number] = rank{paths[n], pos[n]}
			}
		}
	}
	return ranks
}
