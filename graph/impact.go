package graph

import (
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry"
)

// Impact is what a push causes: the difference between two graphs of a channel.
// Nodes are those of the graph after it.
type Impact struct {
	Builds   []Node          // new, or of another commit; what is needed first comes first
	Rebuilds []Node          // what needs those, directly or through others, in the same order
	Gone     []quarry.Target // what is no longer wanted, sorted
	Archs    []ArchImpact    // in the channel's order, noarch last; only those with anything to build
	Work     time.Duration   // expected, of all builds and rebuilds together
	Longest  time.Duration   // the longest chain of them: no farm is faster
	Broken   []BrokenNeed    // dependencies of others that were met and no longer are
	Unmet    []BrokenNeed    // dependencies of what is pushed that nothing meets
	Cycles   []Cycle         // that were not there before
}

// ArchImpact is the part of an impact that is on one arch.
type ArchImpact struct {
	Arch             string
	Builds, Rebuilds int
	Work             time.Duration
	Longest          time.Duration // of the chains that begin on this arch
}

// BrokenNeed is a dependency that nothing meets.
type BrokenNeed struct {
	Node Node
	Need Need
	Text string // e.g. git 2.40 x86_64 needs zlib<1.3: no version that is pushed fits (there is 1.3.1)
}

// Expected is a bound on how soon so many builders can be through with it.
func (i *Impact) Expected(builders int) time.Duration {
	return max(i.Longest, i.Work/time.Duration(max(1, builders)))
}

// Compare tells what the step from one graph of a channel to another causes, in
// linear time, most of which is saved where after was made from before by With.
// took tells how long a node of after is expected to build; nil: no time.
//
// All that needs what changed counts as rebuilt: that is the most it can be, as
// rebuilding stops where an output is the same as before. What is broken or
// restricted, or has a dependency that nothing meets, is not rebuilt, and nothing
// is because of it.
func Compare(before, after *Graph, took func(Node) time.Duration) *Impact {
	im := &Impact{}
	if took == nil {
		took = func(Node) time.Duration { return 0 }
	}
	sameArchs := slices.Equal(before.archs, after.archs)
	wanted := func(n Node) bool {
		return after.Release(n).Declined(after.Arch(n)) == ""
	}
	built := func(n Node) bool { return wanted(n) && after.met(n) }
	var builds, moved []Node
	for slot, re := range after.rels {
		if re == nil || sameArchs && slot < len(before.rels) && before.rels[slot] == re {
			continue
		}
		old, ok := before.slot(re.r.Package, re.r.Version)
		for _, a := range re.archs {
			n := after.node(int32(slot), a)
			o := None
			if ok {
				if m, there := before.Node(re.r.Package, re.r.Version, after.archs[a]); there {
					o = m
				}
			}
			fresh := o == None || before.rels[old].r.Commit != re.r.Commit
			switch {
			case fresh && wanted(n):
				builds = append(builds, n)
			case !fresh && built(n) && !sameDeps(before, o, after, n):
				moved = append(moved, n)
			}
			im.unmet(before, o, after, n, fresh)
		}
	}
	for slot, re := range before.rels {
		if re == nil || sameArchs && slot < len(after.rels) && after.rels[slot] == re {
			continue
		}
		for _, a := range re.archs {
			n := before.node(int32(slot), a)
			if m, ok := after.Node(re.r.Package, re.r.Version, before.archs[a]); !ok || after.Arch(m) != before.archs[a] {
				im.Gone = append(im.Gone, before.Target(n))
			}
		}
	}
	slices.SortFunc(im.Gone, func(a, b quarry.Target) int { return strings.Compare(a.String(), b.String()) })
	im.sum(after, builds, moved, built, took)
	byText := func(a, b BrokenNeed) int { return strings.Compare(a.Text, b.Text) }
	slices.SortFunc(im.Broken, byText)
	slices.SortFunc(im.Unmet, byText)

	old := map[string]bool{}
	for _, c := range before.Cycles() {
		old[c.Text] = true
	}
	for _, c := range after.Cycles() {
		if !old[c.Text] {
			im.Cycles = append(im.Cycles, c)
		}
	}
	return im
}

// sameDeps reports whether two nodes need the same releases.
func sameDeps(before *Graph, o Node, after *Graph, n Node) bool {
	x, y := before.Deps(o), after.Deps(n)
	if len(x) != len(y) {
		return false
	}
	had := make(map[quarry.Target]bool, len(x))
	for _, d := range x {
		had[before.Target(d)] = true
	}
	for _, d := range y {
		if !had[after.Target(d)] {
			return false
		}
	}
	return true
}

func (i *Impact) unmet(before *Graph, o Node, after *Graph, n Node, fresh bool) {
	var was map[[2]string]bool
	for _, need := range after.Needs(n) {
		if need.To != None {
			continue
		}
		b := BrokenNeed{Node: n, Need: need, Text: after.String(n) + " " + after.whyNeed(need)}
		if fresh {
			i.Unmet = append(i.Unmet, b)
			continue
		}
		if was == nil {
			was = map[[2]string]bool{}
			for _, m := range before.Needs(o) {
				was[[2]string{m.Raw, m.Arch}] = m.To == None
			}
		}
		if !was[[2]string{need.Raw, need.Arch}] {
			i.Broken = append(i.Broken, b)
		}
	}
}

// met reports whether something meets each dependency of a node.
func (g *Graph) met(n Node) bool {
	slot, arch := g.split(n)
	c := g.rels[slot].class(arch)
	for i := range c.needs {
		if c.to(i, arch) < 0 {
			return false
		}
	}
	return true
}

// sum works out the order, the time and the archs.
func (i *Impact) sum(g *Graph, builds, moved []Node, built func(Node) bool, took func(Node) time.Duration) {
	if len(builds)+len(moved) == 0 {
		return
	}
	const first, again = 1, 2
	what := make([]uint8, g.Size())
	from := slices.DeleteFunc(slices.Concat(builds, moved), func(n Node) bool { return !built(n) })
	for _, n := range g.Above(from, built) {
		what[n] = again
	}
	for _, n := range moved {
		what[n] = again
	}
	for _, n := range builds {
		what[n] = first
	}
	archs := make([]ArchImpact, len(g.archs))
	paths := g.Paths(func(n Node) time.Duration {
		if what[n] == 0 {
			return -1
		}
		return took(n)
	})
	for _, n := range g.topology().order {
		w := what[n]
		if w == 0 {
			continue
		}
		_, arch := g.split(n)
		a := &archs[arch]
		if w == first {
			i.Builds = append(i.Builds, n)
			a.Builds++
		} else {
			i.Rebuilds = append(i.Rebuilds, n)
			a.Rebuilds++
		}
		d := max(0, took(n))
		a.Work += d
		i.Work += d
		a.Longest = max(a.Longest, paths[n])
		i.Longest = max(i.Longest, paths[n])
	}
	for arch := range archs {
		a := archs[(arch+1)%len(archs)] // noarch last
		a.Arch = g.archs[(arch+1)%len(archs)]
		if a.Builds+a.Rebuilds > 0 {
			i.Archs = append(i.Archs, a)
		}
	}
}
