package graph

import (
	"slices"
	"time"
)

// reverse are the edges the other way around, by slot.
type reverse struct{ off, to []int32 }

// flip is made once a graph, when it is first asked for.
func (g *Graph) flip() *reverse {
	g.flipped.Do(func() {
		r := &reverse{off: make([]int32, len(g.rels)+1)}
		total := 0
		for _, re := range g.rels {
			if re != nil {
				for _, s := range re.succ {
					r.off[s+1]++
				}
				total += len(re.succ)
			}
		}
		for i := range g.rels {
			r.off[i+1] += r.off[i]
		}
		r.to = make([]int32, total)
		at := slices.Clone(r.off[:len(g.rels)])
		for slot, re := range g.rels {
			if re != nil {
				for _, s := range re.succ {
					r.to[at[s]] = int32(slot)
					at[s]++
				}
			}
		}
		g.rev = r
	})
	return g.rev
}

// Dependents gives the nodes that need a node, each once.
func (g *Graph) Dependents(n Node) []Node { return g.appendDependents(nil, n) }

func (g *Graph) appendDependents(list []Node, n Node) []Node {
	r := g.flip()
	slot, arch := g.split(n)
	for _, u := range r.to[r.off[slot]:r.off[slot+1]] {
		re := g.rels[u]
		for _, a := range re.archs {
			// Only what is cross built needs anything of another arch.
			if !re.cross && arch != 0 && a != arch && !(a == 0 && arch == g.machine) {
				continue
			}
			if re.plain || g.needsNode(u, a, n) {
				list = append(list, g.node(u, a))
			}
		}
	}
	return list
}

func (g *Graph) needsNode(slot, arch int32, n Node) bool {
	c := g.rels[slot].class(arch)
	for i := range c.needs {
		if to := c.to(i, arch); to >= 0 && g.target(to, c.archOf(&c.needs[i], arch)) == n {
			return true
		}
	}
	return false
}

// Above gives all nodes that need some node, directly or through others, what is
// needed before what needs it. The nodes given are not among them, unless one
// needs another of them. What is needed by those that are not in is passed over,
// and so is what only they lead to; nil takes all.
func (g *Graph) Above(nodes []Node, in func(Node) bool) []Node {
	seen := make([]bool, g.Size())
	queue := slices.Clone(nodes)
	count := 0
	var buf []Node
	for len(queue) > 0 {
		n := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		buf = g.appendDependents(buf[:0], n)
		for _, d := range buf {
			if !seen[d] && (in == nil || in(d)) {
				seen[d] = true
				count++
				queue = append(queue, d)
			}
		}
	}
	list := make([]Node, 0, count)
	for _, n := range g.topology().order {
		if seen[n] {
			list = append(list, n)
		}
	}
	return list
}

// Paths gives, by node, the longest expected time from the start of its build to
// the end of the last one that waits for it: its own, and the longest chain of
// what needs it. This is the rank in critical-path order. took tells how long a
// node takes; one that takes no part (it is built, or nobody wants it) is
// negative, has no path, and none leads through it. The edges that bootstrap
// cuts do not count, nor do those inside of cycles.
func (g *Graph) Paths(took func(Node) time.Duration) []time.Duration {
	t := g.topology()
	paths := make([]time.Duration, g.Size())
	own := make([]time.Duration, g.Size())
	for _, n := range t.order {
		own[n] = took(n)
		paths[n] = max(0, own[n])
	}
	var buf []Node
	for i := len(t.order) - 1; i >= 0; i-- {
		n := t.order[i]
		if own[n] < 0 {
			continue
		}
		buf = g.waitsFor(t, buf[:0], n)
		for _, d := range buf {
			if own[d] < 0 || t.flags[n]&t.flags[d]&flagKnot != 0 && t.knot[n] == t.knot[d] {
				continue
			}
			paths[d] = max(paths[d], own[d]+paths[n])
		}
	}
	return paths
}
