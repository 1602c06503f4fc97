// Package sched decides what is built next. It is pure: it knows builds by what
// they are expected to take, and no clock but the one it is given. The queue and
// the simulator (see [Simulate]) use the same rules.
//
//   - The longest chain of expected time behind a build counts first (critical
//     path), so that no builder stands idle at the end for want of it.
//   - Waiting counts like path, so that nothing starves: see [Priority.Before].
//   - Mass work comes behind all else, but one pick in [BackgroundShare] is its.
//   - What needs much memory waits for room, and nothing that would take its room
//     away starts meanwhile: see [Gate].
package sched

import (
	"container/heap"
	"time"
)

// Priority is the place of a build among those that could start. It is a value:
// nothing in it has to be renewed as time passes.
type Priority struct {
	// Background is mass work: it yields to all that is not.
	Background bool
	// Path is the longest expected time from the start of this build to the end
	// of the last one that waits for it (graph.Graph.Paths).
	Path time.Duration
	// Since is when the work was asked for. All builds of one push have the same,
	// whenever they get ready: among them Path alone decides.
	Since time.Time
	// Number decides among equals: the lower goes first.
	Number int64
}

// Before reports whether p goes before q, of the same kind of work: the one with
// the longer path, where each moment since it was asked for counts as much as a
// moment of path. So a build waits for those asked for later at most as long as
// their paths are longer than its own. Both wait alike, so that who goes first
// never changes while they do; that is why no clock is needed.
func (p Priority) Before(q Priority) bool {
	if p.Background != q.Background {
		return q.Background
	}
	if a, b := p.rank(), q.rank(); a != b {
		return a > b
	}
	return p.Number < q.Number
}

// rank is Path + (now - Since), without now. In microseconds no two times that
// Go knows are too far apart for that.
func (p Priority) rank() int64 { return p.Path.Microseconds() - p.Since.UnixMicro() }

// BackgroundShare is how often background work is taken though other work is
// there: one pick in so many. It keeps a mass rebuild going behind a farm that is
// always busy.
const BackgroundShare = 8

// lookahead is how many builds of a class are looked at for one that fits.
const lookahead = 64

// Queue holds what could start, by class: the classes are environments, or
// whatever decides which builders fit. The zero value is empty. It is used by one
// goroutine at a time.
type Queue[K comparable] struct {
	classes map[string]*[2]line[K] // foreground, background
	in      map[K]*entry[K]
	picks   int // of foreground work, while background work was there
}

type entry[K comparable] struct {
	key   K
	p     Priority
	class string
	at    int
}

type line[K comparable] []*entry[K]

func (l line[K]) Len() int           { return len(l) }
func (l line[K]) Less(i, j int) bool { return l[i].p.Before(l[j].p) }
func (l line[K]) Swap(i, j int)      { l[i], l[j] = l[j], l[i]; l[i].at, l[j].at = i, j }
func (l *line[K]) Push(x any) {
	e := x.(*entry[K])
	e.at = len(*l)
	*l = append(*l, e)
}
func (l *line[K]) Pop() any {
	old := *l
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*l = old[:len(old)-1]
	return e
}

func (q *Queue[K]) line(e *entry[K]) *line[K] {
	c := q.classes[e.class]
	if c == nil {
		c = new([2]line[K])
		q.classes[e.class] = c
	}
	return &c[index(e.p.Background)]
}

func index(background bool) int {
	if background {
		return 1
	}
	return 0
}

// Set puts a build into the queue, or gives one that is there another class or
// priority.
func (q *Queue[K]) Set(key K, class string, p Priority) {
	if q.in == nil {
		q.in, q.classes = map[K]*entry[K]{}, map[string]*[2]line[K]{}
	}
	if e := q.in[key]; e != nil {
		if e.class == class && e.p.Background == p.Background {
			e.p = p
			heap.Fix(q.line(e), e.at)
			return
		}
		q.Remove(key)
	}
	e := &entry[K]{key: key, p: p, class: class}
	q.in[key] = e
	heap.Push(q.line(e), e)
}

// Remove takes a build out; one that is not there does not matter.
func (q *Queue[K]) Remove(key K) {
	e := q.in[key]
	if e == nil {
		return
	}
	delete(q.in, key)
	heap.Remove(q.line(e), e.at)
	if c := q.classes[e.class]; len(c[0])+len(c[1]) == 0 {
		delete(q.classes, e.class)
	}
}

// Len is how many builds are there.
func (q *Queue[K]) Len() int { return len(q.in) }

// Next takes out the build to start now: the first one of the classes that allow
// takes, of which fits says yes; nil functions take all. It looks at a limited
// number of builds, so that a queue full of what does not fit costs little; what
// it passes over stays where it was.
func (q *Queue[K]) Next(allow func(class string) bool, fits func(K) bool) (key K, ok bool) {
	var open []string
	waiting := [2]bool{}
	for class, c := range q.classes {
		if allow == nil || allow(class) {
			open = append(open, class)
			waiting[0] = waiting[0] || len(c[0]) > 0
			waiting[1] = waiting[1] || len(c[1]) > 0
		}
	}
	first := 0
	if waiting[0] && waiting[1] && q.picks+1 >= BackgroundShare {
		first = 1
	}
	for _, kind := range []int{first, 1 - first} {
		if !waiting[kind] {
			continue
		}
		if key, ok = q.take(open, kind, fits); ok {
			if kind == 1 {
				q.picks = 0
			} else if waiting[1] {
				q.picks++
			}
			return key, true
		}
	}
	return key, false
}

func (q *Queue[K]) take(open []string, kind int, fits func(K) bool) (key K, ok bool) {
	var aside []*entry[K]
	defer func() {
		for _, e := range aside {
			heap.Push(q.line(e), e)
		}
	}()
	for len(aside) < lookahead {
		var best *entry[K]
		for _, class := range open {
			if l := q.classes[class][kind]; len(l) > 0 && (best == nil || l[0].p.Before(best.p)) {
				best = l[0]
			}
		}
		if best == nil {
			return key, false
		}
		if fits == nil || fits(best.key) {
			q.Remove(best.key)
			return best.key, true
		}
		heap.Pop(q.line(best))
		aside = append(aside, best)
	}
	return key, false
}
