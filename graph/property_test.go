package graph

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
)

var threeArchs = []string{"x86_64", "aarch64", "riscv64"}

// randomPackage makes all releases of one package of a random graph. Names are
// few and hold dashes and digits, so that readings, versions, virtual packages
// and cycles meet.
func randomPackage(rnd *rand.Rand, name string, names []string) []quarry.Release {
	versions := []string{"1", "1.0", "2", "2.1", "1-2"}
	ops := []string{"", "", "", "-", ">=", "<=", ">", "<"}
	need := func() string {
		s := names[rnd.IntN(len(names))]
		if rnd.IntN(20) == 0 {
			s = "virtual" + fmt.Sprint(rnd.IntN(3))
		}
		if op := ops[rnd.IntN(len(ops))]; op != "" {
			s += op + versions[rnd.IntN(len(versions))]
		}
		return s
	}
	var list []quarry.Release
	for _, v := range versions {
		if rnd.IntN(3) > 0 && len(list) > 0 || rnd.IntN(12) == 0 {
			continue
		}
		r := release(name, v, nil)
		r.Commit = fmt.Sprintf("%040d", rnd.IntN(1000))
		for _, a := range threeArchs {
			if rnd.IntN(5) > 0 {
				r.Archs = append(r.Archs, a)
			}
		}
		if rnd.IntN(6) == 0 {
			r.Archs = []string{quarry.Noarch}
		}
		for range rnd.IntN(4) {
			r.Needs = append(r.Needs, need())
		}
		for range rnd.IntN(2) * rnd.IntN(3) {
			p := "virtual" + fmt.Sprint(rnd.IntN(3))
			if rnd.IntN(2) == 0 {
				p += "-" + versions[rnd.IntN(3)]
			}
			r.Provides = append(r.Provides, p)
		}
		for _, a := range append([]string{quarry.Noarch}, threeArchs...) {
			var tr quarry.Traits
			tr.Bootstrap = rnd.IntN(8) == 0
			if rnd.IntN(12) == 0 {
				tr.Broken = "for a test"
			}
			if rnd.IntN(12) == 0 {
				tr.Needs = []string{need()}
			}
			if rnd.IntN(12) == 0 {
				tr.HostNeeds = []string{need()}
			}
			if rnd.IntN(12) == 0 && a != quarry.Noarch {
				tr.HostNeeds, tr.TargetNeeds = append(tr.HostNeeds, need(), name), []string{need()}
				if tr.Cross = append(threeArchs, "vax")[rnd.IntN(4)]; tr.Cross == a {
					tr.Cross = ""
				}
			}
			if !tr.IsZero() {
				if r.Traits == nil {
					r.Traits = map[string]quarry.Traits{}
				}
				r.Traits[a] = tr
			}
		}
		list = append(list, r)
	}
	return list
}

func randomNames(n int) []string {
	var names []string
	for i := range n {
		names = append(names, []string{"p%d", "p%d-2", "p-%d"}[i%3])
		names[i] = fmt.Sprintf(names[i], i/3)
	}
	return names
}

func flatten(m map[string][]quarry.Release) []quarry.Release {
	var all []quarry.Release
	for _, pkg := range slices.Sorted(maps.Keys(m)) {
		all = append(all, m[pkg]...)
	}
	return all
}

// picture is all that a graph says, in words that do not depend on how it came
// to be.
func picture(g *Graph) string {
	var b strings.Builder
	for _, n := range g.Order() {
		var up []string
		for _, d := range g.Dependents(n) {
			up = append(up, g.String(d))
		}
		slices.Sort(up)
		fmt.Fprintf(&b, "%s: %s; for %s\n", g.String(n), needText(g, n), strings.Join(up, ", "))
	}
	for _, c := range g.Cycles() {
		fmt.Fprintf(&b, "cycle %s size %d on %v\n", c.Text, c.Size, c.Archs)
	}
	fmt.Fprintln(&b, g.Len(), g.Packages())
	return b.String()
}

// A graph that grew push by push is the one that is made at once.
func TestWithIsNew(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 4))
		names := randomNames(3 + rnd.IntN(25))
		state := map[string][]quarry.Release{}
		for _, name := range names[:len(names)/2] {
			state[name] = randomPackage(rnd, name, names)
		}
		o := Options{Archs: threeArchs}
		g := New(flatten(state), o)
		for range 25 {
			name := names[rnd.IntN(len(names))]
			before, was := g, picture(g)
			switch rnd.IntN(5) {
			case 0:
				delete(state, name)
			case 1: // the same again
			default:
				state[name] = randomPackage(rnd, name, names)
			}
			g = g.With(name, state[name])
			want := New(flatten(state), o)
			if got, want := picture(g), picture(want); got != want {
				t.Fatalf("seed %d: with %s:\n%s\nnew:\n%s", seed, name, got, want)
			}
			if picture(before) != was {
				t.Fatalf("seed %d: the graph before has changed", seed)
			}
			checkImpact(t, before, g)
		}
	}
}

// checkImpact compares an impact with what follows from its definition.
func checkImpact(t *testing.T, before, after *Graph) {
	t.Helper()
	took := func(n Node) time.Duration { return time.Duration(len(after.String(n))) * time.Second }
	im := Compare(before, after, took)
	set := map[Node]bool{}
	fresh := map[Node]bool{}
	built := func(n Node) bool {
		for _, need := range after.Needs(n) {
			if need.To == None {
				return false
			}
		}
		return after.Release(n).Declined(after.Arch(n)) == ""
	}
	for n := range after.Nodes() {
		r := after.Release(n)
		if r.Declined(after.Arch(n)) != "" {
			continue
		}
		o, ok := before.Node(r.Package, r.Version, after.Arch(n))
		if !ok || before.Release(o).Commit != r.Commit {
			fresh[n], set[n] = true, true
		} else if built(n) && !sameDeps(before, o, after, n) {
			set[n] = true
		}
	}
	for grew := true; grew; {
		grew = false
		for n := range after.Nodes() {
			if set[n] || !built(n) {
				continue
			}
			for _, d := range after.Deps(n) {
				if set[d] && built(d) {
					set[n], grew = true, true
				}
			}
		}
	}
	got := map[Node]bool{}
	var work time.Duration
	for _, n := range im.Builds {
		got[n] = true
		if !fresh[n] {
			t.Fatalf("%s is not new", after.String(n))
		}
	}
	for _, n := range im.Rebuilds {
		got[n] = true
	}
	for n := range got {
		work += took(n)
	}
	if !maps.Equal(got, set) || work != im.Work || len(got) != len(im.Builds)+len(im.Rebuilds) {
		for n := range set {
			if !got[n] {
				t.Logf("not rebuilt: %s (%s)", after.String(n), needText(after, n))
			}
		}
		t.Fatalf("%d builds, %d rebuilds and %v, want %d in all and %v", len(im.Builds), len(im.Rebuilds), im.Work, len(set), work)
	}
	n, sum := 0, time.Duration(0)
	for _, a := range im.Archs {
		n, sum = n+a.Builds+a.Rebuilds, sum+a.Work
	}
	if n != len(set) || sum != work {
		t.Fatalf("the archs have %d and %v", n, sum)
	}
	var gone []quarry.Target
	for n := range before.Nodes() {
		target := before.Target(n)
		if m, ok := after.Node(target.Package, target.Version, target.Arch); !ok || after.Arch(m) != target.Arch {
			gone = append(gone, target)
		}
	}
	if len(gone) != len(im.Gone) {
		t.Fatalf("gone %v, want %v", im.Gone, gone)
	}
	broken := 0
	for n := range after.Nodes() {
		target := after.Target(n)
		o, ok := before.Node(target.Package, target.Version, target.Arch)
		if !ok || before.Release(o).Commit != after.Release(n).Commit {
			continue
		}
		met := map[[2]string]bool{}
		for _, need := range before.Needs(o) {
			met[[2]string{need.Raw, need.Arch}] = need.To != None
		}
		for _, need := range after.Needs(n) {
			was, same := met[[2]string{need.Raw, need.Arch}]
			if need.To == None && (was || !same) {
				broken++
			}
		}
	}
	if broken != len(im.Broken) {
		t.Fatalf("%d broken, want %d", len(im.Broken), broken)
	}
}

// The questions against answers that take their time.
func TestQueriesAreNaive(t *testing.T) {
	for seed := range uint64(80) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		names := randomNames(3 + rnd.IntN(18))
		var all []quarry.Release
		for _, name := range names {
			all = append(all, randomPackage(rnd, name, names)...)
		}
		g := New(all, Options{Archs: threeArchs})
		n := newNaive(g)
		n.checkOrder(t)
		n.checkPaths(t, rnd)
		n.checkStatus(t, rnd)
		n.checkAbove(t, rnd)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

type naive struct {
	g     *Graph
	nodes []Node
	needs map[Node][]Node // with the cuts made
	reach map[Node]map[Node]bool
}

func closure(nodes []Node, needs map[Node][]Node) map[Node]map[Node]bool {
	reach := map[Node]map[Node]bool{}
	for _, n := range nodes {
		seen := map[Node]bool{}
		queue := slices.Clone(needs[n])
		for len(queue) > 0 {
			d := queue[0]
			queue = queue[1:]
			if !seen[d] {
				seen[d] = true
				queue = append(queue, needs[d]...)
			}
		}
		reach[n] = seen
	}
	return reach
}

func newNaive(g *Graph) *naive {
	n := &naive{g: g, nodes: slices.Collect(g.Nodes()), needs: map[Node][]Node{}}
	raw := map[Node][]Node{}
	for _, v := range n.nodes {
		raw[v] = g.Deps(v)
	}
	reach := closure(n.nodes, raw)
	for _, v := range n.nodes {
		boot := g.Release(v).Traits[g.Arch(v)].Bootstrap
		for _, d := range raw[v] {
			if !boot || !reach[d][v] { // d leads back to v
				n.needs[v] = append(n.needs[v], d)
			}
		}
	}
	n.reach = closure(n.nodes, n.needs)
	return n
}

func (n *naive) checkOrder(t *testing.T) {
	at := map[Node]int{}
	order := n.g.Order()
	for i, v := range order {
		at[v] = i
	}
	if len(at) != len(n.nodes) || len(order) != len(n.nodes) {
		t.Errorf("%d nodes in order, want %d", len(order), len(n.nodes))
	}
	knotted := map[Node]bool{}
	for _, v := range n.nodes {
		for _, d := range n.needs[v] {
			if at[d] > at[v] && !n.reach[d][v] {
				t.Errorf("%s comes before %s, which it needs", n.g.String(v), n.g.String(d))
			}
		}
		knotted[v] = n.reach[v][v]
	}
	for _, c := range n.g.Cycles() {
		for i, v := range c.Path {
			next := c.Path[(i+1)%len(c.Path)]
			if !slices.Contains(n.needs[v], next) {
				t.Errorf("cycle %s: %s does not need %s", c.Text, n.g.String(v), n.g.String(next))
			}
		}
	}
	topo := n.g.topology()
	for _, v := range n.nodes {
		if _, ok := topo.knot[v]; ok != knotted[v] {
			t.Errorf("%s is in a cycle: %v, want %v", n.g.String(v), ok, knotted[v])
		}
	}
	for _, pkg := range n.g.Packages() {
		best := 0
		for _, v := range n.g.Of(pkg) {
			// Breadth first over needs, one step at a time.
			steps, level := 0, []Node{v}
			for steps = 1; steps <= len(n.nodes) && knotted[v]; steps++ {
				var next []Node
				for _, m := range level {
					next = append(next, n.needs[m]...)
				}
				slices.Sort(next)
				level = slices.Compact(next)
				if slices.Contains(level, v) {
					if best == 0 || steps < best {
						best = steps
					}
					break
				}
			}
		}
		c, ok := n.g.CycleThrough(pkg)
		if ok != (best > 0) || len(c.Path) != best {
			t.Errorf("cycle through %s has %d steps (%s), want %d", pkg, len(c.Path), c.Text, best)
		}
	}
}

func (n *naive) checkPaths(t *testing.T, rnd *rand.Rand) {
	own := map[Node]time.Duration{}
	for _, v := range n.nodes {
		own[v] = time.Duration(rnd.IntN(50) - 10)
	}
	want := map[Node]time.Duration{}
	for _, v := range n.nodes {
		want[v] = max(0, own[v])
	}
	for range n.nodes {
		for _, v := range n.nodes {
			for _, d := range n.needs[v] {
				if own[v] >= 0 && own[d] >= 0 && !(n.reach[d][v]) {
					want[d] = max(want[d], own[d]+want[v])
				}
			}
		}
	}
	got := n.g.Paths(func(v Node) time.Duration { return own[v] })
	for _, v := range n.nodes {
		if got[v] != want[v] {
			t.Errorf("path of %s is %d, want %d", n.g.String(v), got[v], want[v])
		}
	}
}

func (n *naive) checkStatus(t *testing.T, rnd *rand.Rand) {
	state := map[Node]State{}
	for _, v := range n.nodes {
		switch rnd.IntN(6) {
		case 0, 1:
			state[v] = Built
		case 2:
			state[v] = BuildFailed
		}
	}
	s := n.g.Status(StatusOptions{State: func(v Node) State { return state[v] }})
	own := map[Node]bool{}
	blocked := map[Node]bool{}
	for _, v := range n.nodes {
		bad := state[v] == BuildFailed || n.g.Release(v).Declined(n.g.Arch(v)) != "" || n.reach[v][v]
		for _, need := range n.g.Needs(v) {
			bad = bad || need.To == None
		}
		own[v] = bad && state[v] != Built
		blocked[v] = own[v]
	}
	for range n.nodes {
		for _, v := range n.nodes {
			for _, d := range n.needs[v] {
				blocked[v] = blocked[v] || blocked[d] && state[v] != Built
			}
		}
	}
	for _, v := range n.nodes {
		want := Ready
		switch {
		case state[v] == Built:
			want = Done
		case blocked[v]:
			want = Blocked
		default:
			for _, d := range n.needs[v] {
				if state[d] != Built {
					want = Waiting
				}
			}
		}
		if got := s.Of(v); got != want {
			t.Errorf("%s is %v, want %v", n.g.String(v), got, want)
		}
		if (want == Blocked) != (len(s.Reasons(v)) > 0) || (want == Blocked) != (s.Explain(v) != "") {
			t.Errorf("%s is %v for %v (%s)", n.g.String(v), want, s.Reasons(v), s.Explain(v))
		}
		if chain := s.Chain(v); want == Blocked && !own[chain[len(chain)-1]] {
			t.Errorf("%s is blocked by %v, which is not to blame", n.g.String(v), chain)
		}
	}
	// What a release stands in the way of: all that gets to it over what is blocked.
	for _, b := range s.Blockers(0) {
		if strings.HasPrefix(b.Name, "cycle of ") || len(b.Nodes) == 0 {
			continue
		}
		hit := map[Node]bool{}
		for _, v := range b.Nodes {
			hit[v] = true
		}
		count := 0
		for grew := true; grew; {
			grew = false
			for _, v := range n.nodes {
				if hit[v] || !blocked[v] {
					continue
				}
				for _, d := range n.needs[v] {
					if hit[d] && !hit[v] {
						hit[v], grew = true, true
						count++
					}
				}
			}
		}
		if !n.knots() && count != b.Blocks {
			t.Errorf("%s blocks %d, want %d", b.Name, b.Blocks, count)
		}
	}
}

func (n *naive) knots() bool {
	return slices.ContainsFunc(n.nodes, func(v Node) bool { return n.reach[v][v] })
}

func (n *naive) checkAbove(t *testing.T, rnd *rand.Rand) {
	if len(n.nodes) == 0 {
		return
	}
	from := n.nodes[rnd.IntN(len(n.nodes))]
	raw := map[Node][]Node{}
	for _, v := range n.nodes {
		raw[v] = n.g.Deps(v)
	}
	reach := closure(n.nodes, raw)
	want := map[Node]bool{}
	for _, v := range n.nodes {
		if reach[v][from] {
			want[v] = true
		}
	}
	got := map[Node]bool{}
	for _, v := range n.g.Above([]Node{from}, nil) {
		got[v] = true
	}
	if !maps.Equal(got, want) {
		t.Errorf("above %s: %d, want %d", n.g.String(from), len(got), len(want))
	}
}
