package graph

import (
	"fmt"
	"slices"
	"strings"
)

// Kind says what a dependency is for.
type Kind uint8

// The kinds. One need may be of several, as all that a recipe says of one name
// has to hold at once.
const (
	Needed      Kind = 1 << iota // to build and to run, for the arch that it is built for
	HostNeed                     // while it is built, on the machine that builds
	TargetNeed                   // while it is built, for the arch that it is built for
	Recommended                  // shown only
	Optional                     // shown only
)

// String lists the kinds, e.g. needed or host+target.
func (k Kind) String() string {
	var list []string
	for i, word := range []string{"needed", "host", "target", "recommended", "optional"} {
		if k&(1<<i) != 0 {
			list = append(list, word)
		}
	}
	return strings.Join(list, "+")
}

// Need is one dependency of a node and what it comes to.
type Need struct {
	Raw  string // as the recipe writes it, e.g. zlib>=1.2; several of one name are joined by ", "
	Name string // the name that is meant, e.g. zlib; "" if it cannot be read
	Kind Kind
	Arch string     // that it has to be met on: the node's, but for what the machine of a cross build needs
	To   Node       // what meets it; None if nothing does
	Why  ReasonKind // why nothing does; "" if something does
}

// Needs gives the dependencies of a node, one for each name, in the order of
// the recipe.
func (g *Graph) Needs(n Node) []Need {
	slot, arch := g.split(n)
	return g.needsOf(g.rels[slot].class(arch), arch)
}

func (g *Graph) needsOf(c *class, arch int32) []Need {
	list := make([]Need, len(c.needs))
	for i := range c.needs {
		list[i] = g.need(c, i, arch)
	}
	return list
}

func (g *Graph) need(c *class, i int, arch int32) Need {
	n := &c.needs[i]
	out := Need{Raw: n.raw, Kind: n.kind, To: None, Arch: c.cross}
	if !n.away {
		out.Arch = g.machineArch(arch)
	}
	arch = c.archOf(n, arch)
	if n.name >= 0 {
		out.Name = g.names.list[n.name]
	}
	switch to := c.to(i, arch); to {
	case noPackage:
		out.Why = Missing
	case noVersion:
		out.Why = WrongVersion
	case notForArch:
		out.Why = WrongArch
	case contradictory:
		out.Why = Contradiction
	case unreadable:
		out.Why = Unreadable
	default:
		out.To = g.target(to, arch)
	}
	return out
}

// Resolve tells what a list of dependencies would come to on an arch, as if a
// release had it: for cross builds, whose dependencies stand on two archs, and
// for what is not pushed yet.
func (g *Graph) Resolve(needs []string, arch string) []Need {
	return g.resolveList(needs, arch, Needed)
}

func (g *Graph) resolveList(needs []string, arch string, kind Kind) []Need {
	a, ok := g.archID[arch]
	if !ok {
		a = noSuchArch // only what is noarch fits
	}
	// Names that nobody has are entered in a copy: the graph is shared.
	view := g.view()
	b := newBuilder(view)
	c := class{archs: []int32{a}}
	b.add(&c, nil, kind, needs)
	b.aim(-1, &c)
	list := view.needsOf(&c, a)
	for i := range list {
		list[i].Arch = arch
	}
	return list
}

// view is a copy that names may be added to.
func (g *Graph) view() *Graph {
	v := &Graph{opts: g.opts, archs: g.archs, archID: g.archID, machine: g.machine, rels: g.rels, noarch: g.noarch,
		names: names{list: slices.Clip(g.names.list), base: g.names.base}}
	v.names.extra = make(map[string]int32, len(g.names.extra)+8)
	for s, id := range g.names.extra {
		v.names.extra[s] = id
	}
	v.byName, v.provs, v.users = slices.Clip(g.byName), slices.Clip(g.provs), slices.Clip(g.users)
	return v
}

// whyNeed says in words why a dependency has nothing that meets it.
func (g *Graph) whyNeed(n Need) string {
	return fmt.Sprintf("needs %.200s: %s", n.Raw, g.whyNot(n))
}

func (g *Graph) whyNot(n Need) string {
	switch n.Why {
	case WrongVersion:
		return fmt.Sprintf("no version that is pushed fits (%s)", g.versions(n.Name))
	case WrongArch:
		return "it is not built for " + n.Arch
	case Contradiction:
		return "no version can be all of that at once, loosen one of them"
	case Unreadable:
		return "that is neither a name nor name-version"
	}
	return "nobody has pushed it"
}

// versions lists what there is of a name, for people.
func (g *Graph) versions(name string) string {
	id, ok := g.names.find(name)
	if !ok {
		return "there is none"
	}
	var list []string
	for _, s := range g.byName[id] {
		list = append(list, g.rels[s].r.Version)
	}
	if len(list) == 0 {
		for _, p := range g.provs[id] {
			s := g.rels[p.slot].r.Package
			if p.version != "" {
				s += " provides " + p.version
			} else {
				s += " provides no version"
			}
			list = append(list, s)
		}
	}
	if len(list) > 5 {
		list = append(list[:5], "...")
	}
	return "there is " + strings.Join(list, ", ")
}
