package graph

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/Morphux/quarry"
)

// Query says what part of a graph to show.
type Query struct {
	Package string // name, or name-version for one release; "": everything
	Arch    string // "": all archs, in one picture
	Reverse bool   // what needs it, instead of what it needs
	Depth   int    // steps away from it; 0: all
	Weak    bool   // recommended and optional dependencies too
	// Status, if any, has to be of the same graph. It gives nodes their standing.
	Status *Status
	// Word, if any, gives the standing instead, for the nodes that one SubNode
	// stands for: the caller may know more than Status, e.g. what is being built.
	Word func(nodes []Node) string
}

// Sub is a part of a graph, for showing. It can be marshalled to JSON.
type Sub struct {
	Reverse bool      `json:"reverse,omitempty"`
	Roots   []int     `json:"roots"` // indexes into Nodes
	Nodes   []SubNode `json:"nodes"`
	Edges   []SubEdge `json:"edges"`
	limit   int       // Query.Depth

	// Paint, if any, colours a node's standing in Text: what it gives stands
	// there instead of text.
	Paint func(standing, text string) string `json:"-"`
}

// SubNode is a release, on one arch or on several, or a name that nothing stands
// behind.
type SubNode struct {
	Package   string   `json:"package"`
	Version   string   `json:"version,omitempty"`
	Archs     []string `json:"archs,omitempty"`
	Missing   string   `json:"missing,omitempty"`   // why there is no release, e.g. nobody has pushed it
	Declined  string   `json:"declined,omitempty"`  // why it is not built (on any of the archs)
	Bootstrap bool     `json:"bootstrap,omitempty"` // can be built before what it needs
	Standing  string   `json:"standing,omitempty"`  // the worst of its archs, see Query.Status
	Depth     int      `json:"depth"`               // steps from the nearest root
	More      bool     `json:"more,omitempty"`      // there is more behind it, left out for Depth
}

// Name is what people call it, e.g. zlib 1.3.1.
func (n SubNode) Name() string {
	if n.Version == "" {
		return n.Package
	}
	return n.Package + " " + n.Version
}

// SubEdge says that From needs To; they are indexes into Sub.Nodes.
type SubEdge struct {
	From int    `json:"from"`
	To   int    `json:"to"`
	Need string `json:"need"` // as the recipe writes it
	Kind string `json:"kind"` // e.g. needed, host+target, optional
}

// Select gives the part of a graph that a query asks for. A package that is not
// there is an error that names those with similar names.
func (g *Graph) Select(q Query) (*Sub, error) {
	s := &selection{g: g, q: q, arch: -1, sub: &Sub{Reverse: q.Reverse, limit: q.Depth, Roots: []int{}, Nodes: []SubNode{}, Edges: []SubEdge{}}, at: map[Node]int{}, missing: map[string]int{}, edges: map[SubEdge]bool{}}
	if q.Arch != "" {
		a, ok := g.archID[q.Arch]
		if !ok {
			return nil, fmt.Errorf("no release is for %.40q: choose of %s, or leave the arch out for all", q.Arch, strings.Join(g.archs, ", "))
		}
		s.arch = a
	}
	roots, err := s.roots()
	if err != nil {
		return nil, err
	}
	s.walk(roots)
	return s.sub, nil
}

// selection is a query at work. What it walks are nodes if the query has an
// arch, else the first nodes of releases, which stand for all of their archs.
type selection struct {
	g       *Graph
	q       Query
	arch    int32 // -1 for all
	sub     *Sub
	at      map[Node]int
	missing map[string]int
	edges   map[SubEdge]bool
	keys    []Node          // by index into sub.Nodes; None for what is missing
	weak    map[Node][]Node // what recommends a node, or has it as optional
}

// key is the node that stands for a release in this picture.
func (s *selection) key(n Node) Node {
	if s.arch >= 0 {
		return n
	}
	slot, _ := s.g.split(n)
	return s.g.node(slot, s.g.rels[slot].archs[0])
}

func (s *selection) roots() ([]Node, error) {
	g := s.g
	var list []Node
	add := func(slot int32) {
		re := g.rels[slot]
		switch {
		case len(re.archs) == 0:
		case s.arch < 0:
			list = append(list, g.node(slot, re.archs[0]))
		case slices.Contains(re.archs, s.arch):
			list = append(list, g.node(slot, s.arch))
		case g.noarch[slot]:
			list = append(list, g.node(slot, 0))
		}
	}
	if s.q.Package != "" {
		found := g.releasesNamed(s.q.Package)
		for _, slot := range found {
			add(slot)
		}
		switch {
		case len(found) == 0:
			return nil, fmt.Errorf("no package or release is called %.120q%s", s.q.Package, g.similar(s.q.Package))
		case len(list) == 0 && s.arch >= 0:
			return nil, fmt.Errorf("%s is not built for %s: leave the arch out, or choose another", s.q.Package, s.q.Arch)
		}
		return list, nil
	}
	// Everything, from those that nothing else needs (or that need nothing) on:
	// then come those in cycles, which always have something that needs them.
	t := g.topology()
	seen := map[int32]bool{}
	take := func(n Node) {
		slot, arch := g.split(n)
		if !seen[slot] && (s.arch < 0 || arch == s.arch || arch == 0) {
			seen[slot] = true
			add(slot)
		}
	}
	r := g.flip()
	for i := range t.order {
		n := t.order[len(t.order)-1-i]
		if s.q.Reverse {
			n = t.order[i]
		}
		slot, _ := g.split(n)
		ends := r.off[slot] == r.off[slot+1]
		if s.q.Reverse {
			ends = len(g.rels[slot].succ) == 0
		}
		if ends {
			take(n)
		}
	}
	for _, knot := range t.cycles {
		for _, n := range knot {
			take(n)
		}
	}
	for n := range t.inner {
		take(n)
	}
	slices.SortFunc(list, func(a, b Node) int { return strings.Compare(g.String(a), g.String(b)) })
	return list, nil
}

// releasesNamed finds name, or name-version.
func (g *Graph) releasesNamed(s string) []int32 {
	if id, ok := g.names.find(s); ok && len(g.byName[id]) > 0 {
		return g.byName[id]
	}
	for i := len(s) - 1; i > 0; i-- {
		if s[i] == '-' {
			if slot, ok := g.slot(s[:i], s[i+1:]); ok {
				return []int32{slot}
			}
		}
	}
	return nil
}

// similar names packages that a misspelt name may mean.
func (g *Graph) similar(s string) string {
	var list []string
	if s = strings.ToLower(s); len(s) > 1 {
		for id, slots := range g.byName {
			name := g.names.list[id]
			if len(slots) > 0 && (strings.Contains(strings.ToLower(name), s) || strings.HasPrefix(s, strings.ToLower(name))) {
				list = append(list, name)
			}
		}
	}
	slices.SortFunc(list, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b)) })
	switch {
	case len(list) == 0:
		return ": see quarry graph for all"
	case len(list) > 5:
		list = list[:5]
	}
	return ": is it " + strings.Join(list, ", ") + "?"
}

// walk goes from the roots on, breadth first.
func (s *selection) walk(roots []Node) {
	for _, n := range roots {
		if _, ok := s.at[n]; !ok {
			s.sub.Roots = append(s.sub.Roots, s.enter(n, 0))
		}
	}
	for i := 0; i < len(s.sub.Nodes); i++ {
		if s.keys[i] == None {
			continue
		}
		next := s.neighbours(s.keys[i])
		if s.q.Depth > 0 && s.sub.Nodes[i].Depth >= s.q.Depth {
			// Edges between what is shown are shown, nothing new is.
			for _, nb := range next {
				j, ok := s.find(nb)
				if !ok {
					s.sub.Nodes[i].More = true
					continue
				}
				s.edge(i, j, nb)
			}
			continue
		}
		for _, nb := range next {
			j, ok := s.find(nb)
			if !ok {
				j = s.enterAny(nb, s.sub.Nodes[i].Depth+1)
			}
			s.edge(i, j, nb)
		}
	}
}

// neighbour is one end of an edge; the other is at hand.
type neighbour struct {
	need Need
	node Node // None: nothing meets the need
}

func (s *selection) neighbours(n Node) []neighbour {
	g := s.g
	slot, arch := g.split(n)
	archs := []int32{arch}
	if s.arch < 0 {
		archs = g.rels[slot].archs
	}
	var list []neighbour
	if s.q.Reverse {
		for _, a := range archs {
			self := g.node(slot, a)
			for _, u := range s.dependents(self) {
				for _, need := range s.needs(u) {
					if need.To == self {
						list = append(list, neighbour{need: need, node: s.key(u)})
					}
				}
			}
		}
		return list
	}
	if s.arch < 0 && g.rels[slot].plain {
		archs = archs[:1] // the others say the same
	}
	for _, a := range archs {
		for _, need := range s.needs(g.node(slot, a)) {
			nb := neighbour{need, None}
			if need.To != None {
				nb.node = s.key(need.To)
			}
			list = append(list, nb)
		}
	}
	return list
}

// needs are what a node needs, and the weak ones if they are asked for.
func (s *selection) needs(n Node) []Need {
	g := s.g
	list := g.Needs(n)
	if !s.q.Weak || g.opts.Weak == nil {
		return list
	}
	slot, arch := g.split(n)
	rec, opt := g.opts.Weak(g.rels[slot].r)
	list = append(list, g.resolveList(rec, g.machineArch(arch), Recommended)...)
	return append(list, g.resolveList(opt, g.machineArch(arch), Optional)...)
}

// dependents are what needs a node, and what recommends it if that is asked for.
func (s *selection) dependents(n Node) []Node {
	list := s.g.Dependents(n)
	if !s.q.Weak || s.g.opts.Weak == nil {
		return list
	}
	if s.weak == nil {
		s.weak = map[Node][]Node{}
		for u := range s.g.Nodes() {
			for _, need := range s.needs(u) {
				if need.Kind&(Recommended|Optional) != 0 && need.To != None && !slices.Contains(s.weak[need.To], u) {
					s.weak[need.To] = append(s.weak[need.To], u)
				}
			}
		}
	}
	for _, u := range s.weak[n] {
		if !slices.Contains(list, u) {
			list = append(list, u)
		}
	}
	return list
}

func (s *selection) find(nb neighbour) (int, bool) {
	if nb.node == None {
		i, ok := s.missing[nb.need.Raw]
		return i, ok
	}
	i, ok := s.at[nb.node]
	return i, ok
}

func (s *selection) enterAny(nb neighbour, depth int) int {
	if nb.node != None {
		return s.enter(nb.node, depth)
	}
	i := len(s.sub.Nodes)
	s.missing[nb.need.Raw] = i
	s.sub.Nodes = append(s.sub.Nodes, SubNode{Package: nb.need.Raw, Missing: s.g.whyNot(nb.need), Depth: depth})
	s.keys = append(s.keys, None)
	return i
}

func (s *selection) enter(n Node, depth int) int {
	g := s.g
	i := len(s.sub.Nodes)
	s.at[n] = i
	slot, arch := g.split(n)
	re := g.rels[slot]
	node := SubNode{Package: re.r.Package, Version: re.r.Version, Depth: depth}
	archs := []int32{arch}
	if s.arch < 0 {
		archs = re.archs
	}
	worst := Absent
	var nodes []Node
	for _, a := range archs {
		nodes = append(nodes, g.node(slot, a))
		node.Archs = append(node.Archs, g.archs[a])
		node.Bootstrap = node.Bootstrap || re.r.Traits[g.archs[a]].Bootstrap
		if why := re.r.Declined(g.archs[a]); why != "" && node.Declined == "" {
			if node.Declined = why; len(archs) > 1 {
				node.Declined = g.archs[a] + ": " + why
			}
		}
		if s.q.Status != nil {
			worst = max(worst, s.q.Status.Of(g.node(slot, a)))
		}
	}
	if worst != Absent {
		node.Standing = worst.String()
	}
	if s.q.Word != nil {
		node.Standing = s.q.Word(nodes)
	}
	if len(archs) == 1 && archs[0] == 0 {
		node.Archs = []string{quarry.Noarch}
	}
	s.sub.Nodes = append(s.sub.Nodes, node)
	s.keys = append(s.keys, n)
	return i
}

func (s *selection) edge(i, j int, nb neighbour) {
	e := SubEdge{From: i, To: j, Need: nb.need.Raw, Kind: nb.need.Kind.String()}
	if s.q.Reverse {
		e.From, e.To = j, i
	}
	if !s.edges[e] {
		s.edges[e] = true
		s.sub.Edges = append(s.sub.Edges, e)
	}
}
