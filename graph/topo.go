package graph

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// topo is the order of a graph, made when it is first asked for.
type topo struct {
	order  []Node // what is needed before what needs it
	flags  []uint8
	inner  map[Node]int32 // part of the nodes that need each other, by what recipes say
	knot   map[Node]int32 // the same with the cuts made: what is left is a cycle
	cycles [][]Node       // by knot
	parts  int32          // how many inner has

	mu    sync.Mutex // guards the following
	texts map[int32]string
}

// Flags of a node.
const (
	flagCut  uint8 = 1 << iota // does not wait for what it needs in its own part of inner
	flagKnot                   // in a cycle that nobody declared
)

// Tarjan's strongly connected components, with a stack of its own instead of
// recursion: chains may be as long as they like. succ(v) are the neighbours of v.
// each is called for every component, what it needs having been there before.
type tarjan struct {
	index, low []int32
	onStack    []bool
	stack      []int32
	work       []frame
	count      int32
}

type frame struct {
	v    int32
	next int32
}

func newTarjan(n int) *tarjan {
	return &tarjan{index: make([]int32, n), low: make([]int32, n), onStack: make([]bool, n)}
}

func (t *tarjan) from(root int32, succ func(int32) []int32, each func([]int32)) {
	if t.index[root] != 0 {
		return
	}
	enter := func(v int32) {
		t.count++
		t.index[v], t.low[v] = t.count, t.count
		t.stack = append(t.stack, v)
		t.onStack[v] = true
		t.work = append(t.work, frame{v: v})
	}
	enter(root)
	for len(t.work) > 0 {
		f := &t.work[len(t.work)-1]
		v, list := f.v, succ(f.v)
		descended := false
		for int(f.next) < len(list) {
			w := list[f.next]
			f.next++
			if t.index[w] == 0 {
				enter(w)
				descended = true
				break
			}
			if t.onStack[w] {
				t.low[v] = min(t.low[v], t.index[w])
			}
		}
		if descended {
			continue
		}
		t.work = t.work[:len(t.work)-1]
		if len(t.work) > 0 {
			up := t.work[len(t.work)-1].v
			t.low[up] = min(t.low[up], t.low[v])
		}
		if t.low[v] != t.index[v] {
			continue
		}
		at := len(t.stack) - 1
		for t.stack[at] != v {
			at--
		}
		part := t.stack[at:]
		for _, w := range part {
			t.onStack[w] = false
		}
		each(part)
		t.stack = t.stack[:at]
	}
}

// topology is made once a graph. Releases are ordered first, whatever their
// archs: what needs nothing of itself there does not on any arch, and that is
// ten times less to look at. Only inside of what needs itself nodes count.
func (g *Graph) topology() *topo {
	g.sorted.Do(func() {
		t := &topo{order: make([]Node, 0, g.nodes), flags: make([]uint8, g.Size()), inner: map[Node]int32{}, knot: map[Node]int32{}}
		// By name, so that the order does not depend on how the graph came to be.
		slots := make([]int32, 0, len(g.rels))
		for slot, re := range g.rels {
			if re != nil {
				slots = append(slots, int32(slot))
			}
		}
		slices.SortFunc(slots, func(a, b int32) int {
			x, y := g.rels[a].r, g.rels[b].r
			return cmp.Or(strings.Compare(x.Package, y.Package), strings.Compare(x.Version, y.Version))
		})
		tj := newTarjan(len(g.rels))
		succ := func(s int32) []int32 { return g.rels[s].succ }
		each := func(part []int32) {
			if len(part) == 1 && !slices.Contains(g.rels[part[0]].succ, part[0]) {
				for _, a := range g.rels[part[0]].archs {
					t.order = append(t.order, g.node(part[0], a))
				}
				return
			}
			g.untie(t, part)
		}
		for _, s := range slots {
			tj.from(s, succ, each)
		}
		g.topo = t
	})
	return g.topo
}

// untie orders the nodes of releases that need each other.
func (g *Graph) untie(t *topo, part []int32) {
	local := map[Node]int32{}
	var nodes []Node
	for _, s := range part {
		for _, a := range g.rels[s].archs {
			n := g.node(s, a)
			local[n] = int32(len(nodes))
			nodes = append(nodes, n)
		}
	}
	succ := make([][]int32, len(nodes))
	var buf []Node
	for i, n := range nodes {
		buf = g.appendDeps(buf[:0], n)
		for _, d := range buf {
			if j, ok := local[d]; ok {
				succ[i] = append(succ[i], j)
			}
		}
	}
	next := func(v int32) []int32 { return succ[v] }
	knotted := func(p []int32) bool { return len(p) > 1 || slices.Contains(succ[p[0]], p[0]) }
	inner := make([]int32, len(nodes))
	tj := newTarjan(len(nodes))
	for i := range nodes {
		tj.from(int32(i), next, func(p []int32) {
			t.parts++
			for _, v := range p {
				inner[v] = t.parts
				if knotted(p) {
					t.inner[nodes[v]] = t.parts
				}
			}
		})
	}
	for i, n := range nodes {
		if !g.traits(n).Bootstrap {
			continue
		}
		kept := slices.DeleteFunc(slices.Clone(succ[i]), func(j int32) bool { return inner[j] == inner[i] })
		if len(kept) < len(succ[i]) {
			succ[i] = kept
			t.flags[n] |= flagCut
		}
	}
	tj = newTarjan(len(nodes))
	for i := range nodes {
		tj.from(int32(i), next, func(p []int32) {
			for _, v := range p {
				t.order = append(t.order, nodes[v])
			}
			if !knotted(p) {
				return
			}
			cycle := make([]Node, len(p))
			for k, v := range p {
				cycle[k] = nodes[v]
				t.flags[nodes[v]] |= flagKnot
				t.knot[nodes[v]] = int32(len(t.cycles))
			}
			t.cycles = append(t.cycles, cycle)
		})
	}
}

// waitsFor adds the nodes that a node waits for to list: what it needs, but for
// the edges that are cut because it can be built before that. Possibly some of
// it twice.
func (g *Graph) waitsFor(t *topo, list []Node, n Node) []Node {
	from := len(list)
	list = g.appendDeps(list, n)
	if t.flags[n]&flagCut == 0 {
		return list
	}
	part := t.inner[n]
	kept := list[:from]
	for _, d := range list[from:] {
		if in, ok := t.inner[d]; !ok || in != part {
			kept = append(kept, d)
		}
	}
	return kept
}

// Order gives all nodes, what is needed before what needs it; packages that do
// not need each other stand in the order of their names. Edges are cut at nodes
// that are declared as bootstrap. The nodes of a cycle that is not declared stand
// together, in no order.
func (g *Graph) Order() []Node { return slices.Clone(g.topology().order) }

// Cycle is packages that need each other, so that none can be built first.
type Cycle struct {
	Path  []Node   // a shortest way around through its first: a, b, c for a -> b -> c -> a
	Size  int      // how many nodes need each other here; those that Path leaves out included
	Archs []string // those that have the same cycle
	Text  string   // e.g. a -> b -> a
}

// Cycles lists the cycles that no recipe declares. Each set of nodes that need
// each other is told once, by a shortest cycle through the package that sorts
// first in it; the same cycle on several archs is one.
func (g *Graph) Cycles() []Cycle {
	t := g.topology()
	var list []Cycle
	at := map[string]int{}
	for k, nodes := range t.cycles {
		first := slices.MinFunc(nodes, func(a, b Node) int { return strings.Compare(g.String(a), g.String(b)) })
		list = g.addCycle(list, at, g.around(t, first, int32(k)), len(nodes))
	}
	slices.SortStableFunc(list, func(a, b Cycle) int { return strings.Compare(a.Text, b.Text) })
	return list
}

// CycleThrough gives a shortest cycle through a package, on any arch.
func (g *Graph) CycleThrough(pkg string) (Cycle, bool) {
	t := g.topology()
	var list []Cycle
	at := map[string]int{}
	for _, n := range g.Of(pkg) {
		if k, ok := t.knot[n]; ok {
			list = g.addCycle(list, at, g.around(t, n, k), len(t.cycles[k]))
		}
	}
	if len(list) == 0 {
		return Cycle{}, false
	}
	return slices.MinFunc(list, func(a, b Cycle) int {
		return cmp.Or(cmp.Compare(len(a.Path), len(b.Path)), strings.Compare(a.Text, b.Text))
	}), true
}

func (g *Graph) addCycle(list []Cycle, at map[string]int, path []Node, size int) []Cycle {
	text := g.pathText(append(slices.Clone(path), path[0]))
	var archs []string
	for _, n := range path {
		if a := g.Arch(n); !slices.Contains(archs, a) {
			archs = append(archs, a)
		}
	}
	i, ok := at[text]
	if !ok {
		at[text] = len(list)
		return append(list, Cycle{Path: path, Size: size, Archs: archs, Text: text})
	}
	for _, a := range archs {
		if !slices.Contains(list[i].Archs, a) {
			list[i].Archs = append(list[i].Archs, a)
		}
	}
	return list
}

// knotText is the cycle that a node is in, e.g. a -> b -> a. In a small knot that
// is one through the node itself; to find that in a large one for each of its
// nodes would take the square of their number, so that all share one.
func (g *Graph) knotText(t *topo, n Node) string {
	k := t.knot[n]
	nodes := t.cycles[k]
	if len(nodes) <= 64 {
		return g.pathText(append(g.around(t, n, k), n))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.texts[k] == "" {
		if t.texts == nil {
			t.texts = map[int32]string{}
		}
		t.texts[k] = g.pathText(append(g.around(t, nodes[0], k), nodes[0]))
	}
	return t.texts[k]
}

// maxPath is how much of a way is printed at both ends.
const maxPath = 20

// pathText writes a -> b -> a. The version is told of packages that have several
// releases; a long way is shortened in its middle.
func (g *Graph) pathText(path []Node) string {
	words := make([]string, 0, min(len(path), 2*maxPath+1))
	for i, n := range path {
		switch {
		case i < maxPath || i >= len(path)-maxPath:
			words = append(words, g.label(n))
		case i == maxPath:
			words = append(words, fmt.Sprintf("(%d more)", len(path)-2*maxPath))
		}
	}
	return strings.Join(words, " -> ")
}

// label names a node's package, with the version where there are several.
func (g *Graph) label(n Node) string {
	slot, _ := g.split(n)
	re := g.rels[slot]
	if len(g.byName[re.name]) > 1 {
		return re.r.Package + " " + re.r.Version
	}
	return re.r.Package
}

// around finds a shortest cycle through a node of a knot, breadth first.
func (g *Graph) around(t *topo, start Node, knot int32) []Node {
	from := map[Node]Node{}
	queue := []Node{start}
	var buf []Node
	for len(queue) > 0 {
		n := queue[0]
		queue = queue[1:]
		buf = g.waitsFor(t, buf[:0], n)
		for _, d := range buf {
			if d == start {
				path := []Node{n}
				for n != start {
					n = from[n]
					path = append(path, n)
				}
				slices.Reverse(path)
				return path
			}
			if k, ok := t.knot[d]; !ok || k != knot {
				continue
			}
			if _, seen := from[d]; !seen {
				from[d] = n
				queue = append(queue, d)
			}
		}
	}
	return []Node{start} // not reached: a knot leads back to all of its nodes
}

// WaitsFor gives the nodes that a node has to wait for, each once: what it needs,
// but for the edges that are cut where it is declared as bootstrap.
func (g *Graph) WaitsFor(n Node) []Node { return unique(g.waitsFor(g.topology(), nil, n)) }
