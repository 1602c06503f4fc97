package graph

import (
	"fmt"
	"strings"
)

// ReasonKind says why nothing can build a node.
type ReasonKind string

// The kinds of reasons. The first five are why a dependency has nothing that
// meets it.
const (
	Missing       ReasonKind = "missing"       // nobody has pushed what it needs
	WrongVersion  ReasonKind = "version"       // only versions that do not fit
	WrongArch     ReasonKind = "not-for-arch"  // what fits is not built for the arch
	Contradiction ReasonKind = "contradiction" // it asks of one name what no version can be
	Unreadable    ReasonKind = "unreadable"    // a dependency is neither a name nor name-version

	NoArch     ReasonKind = "no-arch"    // the channel does not have the arch
	NoBuilder  ReasonKind = "no-builder" // no builder fits; see StatusOptions.Builder
	Broken     ReasonKind = "broken"     // its recipe says so
	Restricted ReasonKind = "restricted" // its recipe says that the farm must not build it
	InCycle    ReasonKind = "cycle"      // it is in a cycle that no recipe declares
	BuildFails ReasonKind = "failed"     // its build failed
	Dependency ReasonKind = "dependency" // something that it needs has a reason
)

// Reason is one thing that stands against a node.
type Reason struct {
	Kind ReasonKind `json:"kind"`
	Text string     `json:"text"`           // for people, one line
	Need string     `json:"need,omitempty"` // of a dependency: as the recipe writes it
	On   Node       `json:"-"`              // of kind Dependency: what is in the way; None otherwise
}

// State is what has become of a node, as far as the caller knows.
type State uint8

// The states. Built is in the channel; what failed stands against all that
// needs it until it is built after all.
const (
	Unbuilt State = iota
	Built
	BuildFailed
)

// Standing is where a node stands.
type Standing uint8

// The standings. A node that is Done is built; one that is Ready could be built
// now; Waiting waits for something that can be built; nothing can build what is
// Blocked.
const (
	Absent Standing = iota // no node
	Done
	Ready
	Waiting
	Blocked
)

// String is one word, e.g. ready.
func (s Standing) String() string {
	return [...]string{"absent", "done", "ready", "waiting", "blocked"}[min(s, 4)]
}

// StatusOptions say what the graph cannot know. A nil function means: nothing is
// built, or every arch has a builder.
type StatusOptions struct {
	State func(Node) State
	// Builder tells why nothing builds for a node, e.g. "no builder for
	// riscv64"; "" when something does.
	Builder func(Node) string
}

// Status is where all nodes of a graph stand at one moment.
type Status struct {
	g        *Graph
	o        StatusOptions
	standing []Standing
	own      []bool // blocked for a reason of its own
	counts   [5]int
}

// Status looks at all nodes once, what is needed first.
func (g *Graph) Status(o StatusOptions) *Status {
	if o.State == nil {
		o.State = func(Node) State { return Unbuilt }
	}
	if o.Builder == nil {
		o.Builder = func(Node) string { return "" }
	}
	t := g.topology()
	s := &Status{g: g, o: o, standing: make([]Standing, g.Size()), own: make([]bool, g.Size())}
	given := g.givenArchs()
	var buf []Node
	for _, n := range t.order {
		s.standing[n] = Blocked // what a knot needs of itself is not there yet
		switch {
		case o.State(n) == Built:
			s.standing[n] = Done
		case s.obstructed(t, given, n):
			s.own[n] = true
		default:
			buf = g.waitsFor(t, buf[:0], n)
			st := Ready
			for _, d := range buf {
				switch s.standing[d] {
				case Done:
				case Blocked:
					st = Blocked
				default:
					st = max(st, Waiting)
				}
			}
			s.standing[n] = st
		}
		s.counts[s.standing[n]]++
	}
	return s
}

// givenArchs are the archs that the channel was said to have; nil for all.
func (g *Graph) givenArchs() []bool {
	if len(g.opts.Archs) == 0 {
		return nil
	}
	given := make([]bool, len(g.archs))
	given[0] = true
	for _, a := range g.opts.Archs {
		given[g.archID[a]] = true
	}
	return given
}

// obstructed reports whether anything but another node stands against a node.
func (s *Status) obstructed(t *topo, given []bool, n Node) bool {
	g := s.g
	slot, arch := g.split(n)
	re := g.rels[slot]
	if given != nil && !given[arch] || arch == 0 && g.machine < 0 || t.flags[n]&flagKnot != 0 || s.o.State(n) == BuildFailed {
		return true
	}
	if len(re.r.Traits) > 0 && re.r.Declined(g.archs[arch]) != "" || s.o.Builder(n) != "" {
		return true
	}
	c := re.class(arch)
	for i := range c.needs {
		if c.to(i, arch) < 0 {
			return true
		}
	}
	return false
}

// Of is where a node stands.
func (s *Status) Of(n Node) Standing { return s.standing[n] }

// Count is how many nodes stand so.
func (s *Status) Count(st Standing) int { return s.counts[st] }

// List gives the nodes that stand so, what is needed before what needs it.
func (s *Status) List(st Standing) []Node {
	var list []Node
	for _, n := range s.g.topology().order {
		if s.standing[n] == st {
			list = append(list, n)
		}
	}
	return list
}

// Reasons tells all that stands against a node that is blocked; nothing for
// others.
func (s *Status) Reasons(n Node) []Reason {
	if s.standing[n] != Blocked {
		return nil
	}
	g := s.g
	t := g.topology()
	list := s.plainReasons(n)
	if t.flags[n]&flagKnot != 0 {
		list = append(list, Reason{Kind: InCycle, On: None, Text: fmt.Sprintf(
			"is in a cycle: %s; declare one of them as bootstrap, or break the cycle", g.knotText(t, n))})
	}
	seen := map[Node]bool{}
	for _, d := range g.waitsFor(t, nil, n) {
		if s.standing[d] == Blocked && !seen[d] && d != n {
			seen[d] = true
			list = append(list, Reason{Kind: Dependency, On: d, Text: fmt.Sprintf("needs %s, which nothing can build", g.String(d))})
		}
	}
	return list
}

// plainReasons are those that are of the node itself, but for a cycle.
func (s *Status) plainReasons(n Node) []Reason {
	g := s.g
	slot, arch := g.split(n)
	r := g.rels[slot].r
	var list []Reason
	add := func(k ReasonKind, need, format string, args ...any) {
		list = append(list, Reason{Kind: k, Need: need, Text: fmt.Sprintf(format, args...), On: None})
	}
	if given := g.givenArchs(); given != nil && !given[arch] {
		add(NoArch, "", "the channel does not build for %s", g.archs[arch])
	}
	if arch == 0 && g.machine < 0 {
		add(NoArch, "", "the channel has no arch that could build what is noarch")
	}
	tr := r.Traits[g.archs[arch]]
	if tr.Restricted != "" {
		add(Restricted, "", "is restricted: %s", tr.Restricted)
	}
	if tr.Broken != "" {
		add(Broken, "", "is broken: %s", tr.Broken)
	}
	if tr.NoWorker != "" {
		add(NoBuilder, "", "%s", tr.NoWorker)
	}
	if why := s.o.Builder(n); why != "" {
		add(NoBuilder, "", "%s", why)
	}
	if s.o.State(n) == BuildFailed {
		add(BuildFails, "", "its build failed")
	}
	for _, need := range g.Needs(n) {
		if need.To == None {
			add(need.Why, need.Raw, "%s", g.whyNeed(need))
		}
	}
	return list
}

// machineArch is the arch whose packages are installed for a build.
func (g *Graph) machineArch(arch int32) string {
	if arch == 0 && g.machine >= 0 {
		arch = g.machine
	}
	if arch < 0 {
		return ""
	}
	return g.archs[arch]
}

// Chain leads from a blocked node down to the first one that is blocked for a
// reason of its own, through what each needs: n first.
func (s *Status) Chain(n Node) []Node {
	t := s.g.topology()
	var chain []Node
	seen := map[Node]bool{}
	for s.standing[n] == Blocked && !seen[n] {
		chain = append(chain, n)
		seen[n] = true
		if s.own[n] {
			break
		}
		for _, d := range s.g.waitsFor(t, nil, n) {
			if s.standing[d] == Blocked {
				n = d
				break
			}
		}
	}
	return chain
}

// Explain tells in one line why a node is blocked, e.g. "needs a 1 x86_64, which
// needs b 2 x86_64: its build failed"; "" for one that is not.
func (s *Status) Explain(n Node) string {
	chain := s.Chain(n)
	if len(chain) == 0 {
		return ""
	}
	var words []string
	for i, m := range chain[1:] {
		if i < 8 || i >= len(chain)-3 {
			words = append(words, "needs "+s.g.String(m))
		} else if i == 8 {
			words = append(words, fmt.Sprintf("needs %d others in turn", len(chain)-12))
		}
	}
	var reasons []string
	for _, r := range s.Reasons(chain[len(chain)-1]) {
		if r.Kind != Dependency { // those are echoes
			reasons = append(reasons, r.Text)
		}
	}
	why := strings.Join(reasons, "; and ")
	if len(words) > 0 {
		why = strings.Join(words, ", which ") + ": " + why
	}
	return why
}
