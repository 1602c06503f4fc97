package graph

import (
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/Morphux/quarry"
)

// Options say what a graph is of.
type Options struct {
	// Archs are the channel's, e.g. x86_64 and aarch64. A release for an arch
	// that is not among them has a node all the same, which nothing can build.
	// Empty: all archs that the releases name.
	Archs []string
	// Machine is the arch of the machines that build what is noarch, and so the
	// one on which the dependencies of that are looked for. "": the first arch.
	Machine string
	// Weak gives the recommended and the optional dependencies of a release, as
	// its recipe writes them. They are for showing only: no order, no state and
	// no cycle comes of them. nil: there are none.
	Weak func(r *quarry.Release) (recommended, optional []string)
}

// Graph is what the releases of a channel need, on each arch, at one moment. It
// never changes and may be used by many goroutines: With makes the next one.
//
// A node is a release on one arch. A release that is noarch has one node, which
// serves all archs; if its archs name others beside, noarch counts.
type Graph struct {
	opts    Options
	archs   []string // noarch is 0
	archID  map[string]int32
	machine int32 // arch that noarch is built on; -1 for none

	// By slot. A slot is the place of a release; nil where it is free. A node is
	// slot*len(archs)+arch.
	rels   []*rel
	noarch []bool
	free   []int32
	nodes  int

	names  names
	byName [][]int32    // by name: slots of the package's releases, newest first
	provs  [][]provider // by name: who provides it, by package and then newest first
	users  [][]int32    // by name: slots of releases with a dependency that may mean it

	sorted  sync.Once
	topo    *topo
	flipped sync.Once
	rev     *reverse
}

// rel is a release and what its dependencies mean. It is never changed.
type rel struct {
	r        *quarry.Release
	name     int32
	archs    []int32 // rising; never empty for what has nodes
	classes  []class // archs with the same dependencies
	succ     []int32 // slots that any arch needs, each once
	mentions []int32 // names whose coming or going may change what a dependency means
	plain    bool    // all archs need the same of succ
	cross    bool    // on some arch it is cross built
}

// provider is a release that stands for a virtual package.
type provider struct {
	slot    int32
	version string // "" where the recipe gives none
}

// names gives small numbers to strings. Snapshots share base, which is not
// changed once a graph is made; extra is copied when it grows.
type names struct {
	list        []string
	base, extra map[string]int32
	owned       bool // extra belongs to the graph that is being made
}

func (n *names) find(s string) (int32, bool) {
	if id, ok := n.base[s]; ok {
		return id, true
	}
	id, ok := n.extra[s]
	return id, ok
}

// maxExtra is how many names may come after a graph was built whole.
const maxExtra = 1000

// Node is a release on one arch. It has a meaning only together with the graph
// that gave it, except that a release that stays keeps its nodes from one graph
// to the next (see [Graph.With]).
type Node int32

// None is no node.
const None Node = -1

// New makes the graph of a channel's releases. Of two with the same package and
// version the later one counts. The releases must not be changed afterwards.
// Dependencies that mean nothing are no error here: they are the node's state,
// see [Graph.Needs] and [Graph.Status].
func New(releases []quarry.Release, o Options) *Graph {
	g := &Graph{opts: o, machine: -1}
	g.opts.Archs = slices.Clone(o.Archs)
	g.setArchs(releases)
	own := slices.Clone(releases)
	b := newBuilder(g)
	g.names = names{base: make(map[string]int32, len(own)*2), owned: true}
	at := make(map[[2]string]int32, len(own))
	for i := range own {
		r := &own[i]
		key := [2]string{r.Package, r.Version}
		if slot, ok := at[key]; ok {
			g.rels[slot].r = r
			continue
		}
		at[key] = int32(len(g.rels))
		g.rels = append(g.rels, &rel{r: r, name: b.intern(r.Package)})
	}
	g.noarch = make([]bool, len(g.rels))
	for slot, re := range g.rels {
		b.place(int32(slot), re)
		g.byName[re.name] = append(g.byName[re.name], int32(slot))
	}
	for _, slots := range g.byName {
		g.sortReleases(slots)
	}
	for slot, re := range g.rels {
		b.provide(int32(slot), re.r)
	}
	for id := range g.provs {
		g.sortProviders(g.provs[id])
	}
	for slot, re := range g.rels {
		b.resolve(int32(slot), re)
	}
	// Names that dependencies brought have nothing yet. The users of all names
	// share one array.
	counts := make([]int32, len(g.names.list))
	total := 0
	for _, re := range g.rels {
		for _, id := range re.mentions {
			counts[id]++
		}
		total += len(re.mentions)
	}
	flat := make([]int32, total)
	for id, n := range counts {
		g.users[id] = flat[:0:n]
		flat = flat[n:]
	}
	for slot, re := range g.rels {
		for _, id := range re.mentions {
			g.users[id] = append(g.users[id], int32(slot))
		}
	}
	g.names.owned = false
	return g
}

func (g *Graph) setArchs(releases []quarry.Release) {
	g.archs = []string{quarry.Noarch}
	g.archID = map[string]int32{quarry.Noarch: 0}
	add := func(arch string) {
		if _, ok := g.archID[arch]; !ok {
			g.archID[arch] = int32(len(g.archs))
			g.archs = append(g.archs, arch)
		}
	}
	for _, a := range g.opts.Archs {
		add(a)
	}
	more := map[string]bool{}
	for i := range releases {
		for _, a := range releases[i].Archs {
			if _, ok := g.archID[a]; !ok {
				more[a] = true
			}
		}
	}
	for _, a := range slices.Sorted(maps.Keys(more)) {
		add(a)
	}
	if id, ok := g.archID[g.opts.Machine]; ok && id > 0 {
		g.machine = id
	} else if g.opts.Machine == "" && len(g.archs) > 1 {
		g.machine = 1
	}
}

// sortReleases puts the newest first.
func (g *Graph) sortReleases(slots []int32) {
	slices.SortFunc(slots, func(a, b int32) int { return newerFirst(g.rels[a].r, g.rels[b].r) })
}

func newerFirst(a, b *quarry.Release) int {
	if c := quarry.CompareVersions(b.Version, a.Version); c != 0 {
		return c
	}
	return strings.Compare(b.Version, a.Version) // 1.0 and 1.00: any order, but always the same
}

func (g *Graph) sortProviders(list []provider) {
	slices.SortFunc(list, func(a, b provider) int {
		x, y := g.rels[a.slot], g.rels[b.slot]
		if c := strings.Compare(x.r.Package, y.r.Package); c != 0 {
			return c
		}
		if c := newerFirst(x.r, y.r); c != 0 {
			return c
		}
		return strings.Compare(b.version, a.version)
	})
}

// Archs are the channel's, and those that releases name beyond them; noarch is
// not among them.
func (g *Graph) Archs() []string { return slices.Clone(g.archs[1:]) }

// Len is how many nodes there are.
func (g *Graph) Len() int { return g.nodes }

// Size is above every node, for slices that are indexed by node. Not every
// number below it is a node.
func (g *Graph) Size() int { return len(g.rels) * len(g.archs) }

// Packages lists the names of all packages that have a release, sorted.
func (g *Graph) Packages() []string {
	var list []string
	for id, slots := range g.byName {
		if len(slots) > 0 {
			list = append(list, g.names.list[id])
		}
	}
	slices.Sort(list)
	return list
}

// Nodes gives all nodes, in no order that means anything; see [Graph.Order].
func (g *Graph) Nodes() iter.Seq[Node] {
	return func(yield func(Node) bool) {
		for slot, re := range g.rels {
			if re == nil {
				continue
			}
			for _, a := range re.archs {
				if !yield(g.node(int32(slot), a)) {
					return
				}
			}
		}
	}
}

// Node finds a release on an arch. That of a release that is noarch is found by
// noarch, and by every arch that it serves.
func (g *Graph) Node(pkg, version, arch string) (Node, bool) {
	a, ok := g.archID[arch]
	if !ok {
		return None, false
	}
	slot, ok := g.slot(pkg, version)
	if !ok {
		return None, false
	}
	if g.noarch[slot] {
		a = 0
	}
	if !slices.Contains(g.rels[slot].archs, a) {
		return None, false
	}
	return g.node(slot, a), true
}

// Of gives all nodes of a package, its newest release first.
func (g *Graph) Of(pkg string) []Node {
	var list []Node
	if id, ok := g.names.find(pkg); ok {
		for _, slot := range g.byName[id] {
			for _, a := range g.rels[slot].archs {
				list = append(list, g.node(slot, a))
			}
		}
	}
	return list
}

func (g *Graph) slot(pkg, version string) (int32, bool) {
	id, ok := g.names.find(pkg)
	if !ok {
		return 0, false
	}
	for _, slot := range g.byName[id] {
		if g.rels[slot].r.Version == version {
			return slot, true
		}
	}
	return 0, false
}

func (g *Graph) node(slot, arch int32) Node { return Node(slot*int32(len(g.archs)) + arch) }

func (g *Graph) split(n Node) (slot, arch int32) {
	a := int32(len(g.archs))
	return int32(n) / a, int32(n) % a
}

// Valid reports whether there is such a node.
func (g *Graph) Valid(n Node) bool {
	if n < 0 || int(n) >= g.Size() {
		return false
	}
	slot, arch := g.split(n)
	return g.rels[slot] != nil && slices.Contains(g.rels[slot].archs, arch)
}

// Release is the node's release, which must not be changed. It panics, as all
// that take a node do, if the node is not of this graph.
func (g *Graph) Release(n Node) *quarry.Release {
	slot, _ := g.split(n)
	return g.rels[slot].r
}

// Arch is the arch that the node is for; it may be noarch.
func (g *Graph) Arch(n Node) string {
	_, arch := g.split(n)
	return g.archs[arch]
}

// Target is the place of the node's record.
func (g *Graph) Target(n Node) quarry.Target {
	r := g.Release(n)
	return quarry.Target{Channel: r.Channel, Package: r.Package, Version: r.Version, Arch: g.Arch(n)}
}

// String names a node for people, e.g. zlib 1.3.1 x86_64.
func (g *Graph) String(n Node) string { return g.Target(n).String() }

// traits is what the recipe says of the node's arch.
func (g *Graph) traits(n Node) quarry.Traits {
	slot, arch := g.split(n)
	return g.rels[slot].r.Traits[g.archs[arch]]
}

// target is the node of slot that serves what is built on arch.
func (g *Graph) target(slot, arch int32) Node {
	if g.noarch[slot] {
		return g.node(slot, 0)
	}
	if arch == 0 {
		arch = g.machine
	}
	return g.node(slot, arch)
}

// appendDeps adds what a node needs to list: possibly some of it twice.
func (g *Graph) appendDeps(list []Node, n Node) []Node {
	slot, arch := g.split(n)
	c := g.rels[slot].class(arch)
	for i := range c.needs {
		switch to := c.needs[i].to; {
		case to >= 0:
			list = append(list, g.target(to, c.archOf(&c.needs[i], arch)))
		case to == perArch:
			if to := c.oddFor(int32(i), arch); to >= 0 {
				list = append(list, g.target(to, arch))
			}
		}
	}
	return list
}

// Deps gives the nodes that a node needs, each once. A dependency that nothing
// meets is not among them, see [Graph.Needs].
func (g *Graph) Deps(n Node) []Node { return unique(g.appendDeps(nil, n)) }

func unique(list []Node) []Node {
	if len(list) < 2 {
		return list
	}
	seen := make(map[Node]bool, len(list))
	return slices.DeleteFunc(list, func(n Node) bool {
		if seen[n] {
			return true
		}
		seen[n] = true
		return false
	})
}

func (re *rel) class(arch int32) *class {
	if len(re.classes) == 1 {
		return &re.classes[0]
	}
	for i := range re.classes {
		if slices.Contains(re.classes[i].archs, arch) {
			return &re.classes[i]
		}
	}
	return &class{}
}
