package graph

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
)

// ask puts every question to a graph.
func ask(t *testing.T, g *Graph) *Status {
	t.Helper()
	if n := len(g.Order()); n != g.Len() {
		t.Fatalf("%d nodes in order, want %d", n, g.Len())
	}
	g.Cycles()
	g.Paths(func(Node) time.Duration { return time.Second })
	s := g.Status(StatusOptions{})
	s.Blockers(10)
	for i, n := range g.Order() {
		if i < 20 || i > g.Len()-20 {
			g.Needs(n)
			g.Dependents(n)
			s.Reasons(n)
			s.Explain(n)
		}
	}
	next := g.With("", nil)
	Compare(g, next, nil)
	return s
}

// 100,000 nodes, in the shapes that recursion and squares of their number fail
// at: had they any, this would not end while somebody waits, or at all.
func TestLarge(t *testing.T) {
	const n = 100_000
	arch := []string{"x86_64"}
	name := func(i int) string { return fmt.Sprintf("p%d", i) }
	for _, tt := range []struct {
		name  string
		needs func(i int) []string
		check func(g *Graph, s *Status) error
	}{
		{"chain", func(i int) []string {
			if i == 0 {
				return nil
			}
			return []string{name(i - 1)}
		}, func(g *Graph, s *Status) error {
			paths := g.Paths(func(Node) time.Duration { return time.Second })
			if m, _ := g.Node("p0", "1", "x86_64"); paths[m] != n*time.Second || len(g.Above([]Node{m}, nil)) != n-1 || s.Count(Ready) != 1 {
				return fmt.Errorf("path %v, %d ready", paths[m], s.Count(Ready))
			}
			return nil
		}},
		{"chain with nothing under it", func(i int) []string {
			if i == 0 {
				return []string{"gone"}
			}
			return []string{name(i - 1)}
		}, func(g *Graph, s *Status) error {
			m, _ := g.Node(name(n-1), "1", "x86_64")
			if b := s.Blockers(0); len(b) != 1 || b[0].Name != "gone" || b[0].Blocks != n || len(s.Explain(m)) > 1000 {
				return fmt.Errorf("%+v; %s", b, s.Explain(m))
			}
			return nil
		}},
		{"ring", func(i int) []string { return []string{name((i + 1) % n)} }, func(g *Graph, s *Status) error {
			c := g.Cycles()
			if len(c) != 1 || len(c[0].Path) != n || len(c[0].Text) > 2000 || s.Count(Blocked) != n || !strings.Contains(c[0].Text, "more)") {
				return fmt.Errorf("%d cycles, %.200s", len(c), c[0].Text)
			}
			return nil
		}},
		{"star", func(i int) []string {
			if i == 0 {
				return nil
			}
			return []string{"p0"}
		}, func(g *Graph, s *Status) error {
			next := g.With("p0", []quarry.Release{release("p0", "2", arch)})
			if im := Compare(g, next, nil); len(im.Rebuilds) != n-1 || len(im.Broken) > 0 {
				return fmt.Errorf("%d rebuilds", len(im.Rebuilds))
			}
			if im := Compare(g, g.With("p0", nil), nil); len(im.Broken) != n-1 {
				return fmt.Errorf("%d broken", len(im.Broken))
			}
			return nil
		}},
		{"everything needs something else that is gone", func(i int) []string {
			return []string{fmt.Sprintf("gone%d", i), name(i / 2)}[:1+min(1, i)]
		}, func(g *Graph, s *Status) error {
			b := s.Blockers(3)
			if len(b) != 3 || b[0].Name != "gone0" || b[0].Blocks != n {
				return fmt.Errorf("%+v", b)
			}
			return nil
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			releases := make([]quarry.Release, n)
			for i := range releases {
				releases[i] = release(name(i), "1", arch, tt.needs(i)...)
			}
			g := New(releases, Options{})
			if err := tt.check(g, ask(t, g)); err != nil {
				t.Error(err)
			}
		})
	}
}

// One recipe may be as large as recipes may be, for all archs there can be.
func TestLargeRecipe(t *testing.T) {
	var archs, needs []string
	for i := range 64 {
		archs = append(archs, fmt.Sprintf("arch%02d", i))
	}
	var list []quarry.Release
	for i := range 1000 {
		needs = append(needs, fmt.Sprintf("a-1-2-3-4-5-6-7-8-9-%d", i), fmt.Sprintf("b>=%d", i), fmt.Sprintf("c%d", i))
		list = append(list, release(fmt.Sprintf("c%d", i), "1", archs[i%64:]))
		list[i].Provides = []string{"everything"}
	}
	r := release("big", "1", archs, append(slices.Clone(needs), "everything")...)
	r.Traits = map[string]quarry.Traits{}
	for _, a := range archs {
		r.Traits[a] = quarry.Traits{Needs: needs[:100], HostNeeds: needs[100:200], TargetNeeds: needs[200:300]}
	}
	list = append(list, r)
	for i := range 2000 {
		list = append(list, release(fmt.Sprintf("user%d", i), "1", archs[:2], "everything"))
	}
	g := New(list, Options{})
	ask(t, g)
	g.With("c7", nil)
}

// Blockers that are counted are counted right, however many there are: the
// guess only chooses.
func TestManyBlockers(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	var list []quarry.Release
	for i := range 3000 {
		r := release(fmt.Sprintf("p%04d", i), "1", two[:1])
		for range 2 {
			if i > 0 && rnd.IntN(3) > 0 {
				r.Needs = append(r.Needs, fmt.Sprintf("p%04d", rnd.IntN(i)))
			}
		}
		list = append(list, r)
	}
	g := New(list, Options{})
	s := g.Status(StatusOptions{State: func(n Node) State {
		if n%3 == 0 {
			return BuildFailed
		}
		return Unbuilt
	}})
	got := s.Blockers(40)
	exact := map[string]int{}
	var best []int
	for n := range g.Nodes() {
		if s.own[n] {
			count := len(g.Above([]Node{n}, nil))
			exact[g.label(n)+" 1"] = count
			best = append(best, count)
		}
	}
	if len(best) <= maxExact {
		t.Fatalf("only %d blockers", len(best))
	}
	slices.Sort(best)
	slices.Reverse(best)
	for i, b := range got {
		if b.Blocks != exact[b.Name] || b.Blocks != best[i] {
			t.Errorf("%d: %s blocks %d, want %d; it should be %d here", i, b.Name, b.Blocks, exact[b.Name], best[i])
		}
	}
}

// FuzzGraph builds graphs of whatever text there is. Three words of a line are
// name, version and archs, those behind are needs; those with a + are provided.
func FuzzGraph(f *testing.F) {
	f.Add("zlib 1.3 x86_64,noarch\ngit 2 x86_64 zlib>=1 zlib<1 +vcs-2 git\nvcs 1 x86_64 vcs")
	f.Add("a-1 1 x a-1-1 a\na 1-1 x,y a-1>=1 +a-1")
	f.Add("a 1 noarch b\nb 1 y a")
	f.Add(strings.Join(hostile, " ") + "\n" + strings.Join(hostile, "\n"))
	f.Fuzz(func(t *testing.T, text string) {
		var list []quarry.Release
		for line := range strings.Lines(text) {
			words := strings.Split(strings.TrimSuffix(line, "\n"), " ")
			for len(words) < 3 {
				words = append(words, "")
			}
			if len(list) == 50 || len(words) > 100 {
				break
			}
			r := release(words[0], words[1], strings.Split(words[2], ","))
			for _, w := range words[3:] {
				switch {
				case strings.HasPrefix(w, "+"):
					r.Provides = append(r.Provides, w[1:])
				case strings.HasPrefix(w, "!"):
					r.Traits = map[string]quarry.Traits{w[1:]: {Bootstrap: true, Needs: words[3:]}}
				default:
					r.Needs = append(r.Needs, w)
				}
			}
			list = append(list, r)
		}
		g := New(list, Options{Archs: []string{"x86_64", "noarch", ""}})
		ask(t, g)
		for _, q := range []Query{{}, {Reverse: true}, {Depth: 1, Arch: "x86_64"}} {
			if s, err := g.Select(q); err == nil {
				var b strings.Builder
				if s.Text(&b) != nil || s.DOT(&b) != nil || s.JSON(&b) != nil {
					t.Error("cannot write")
				}
			}
		}
		if len(list) == 0 {
			return
		}
		// Take a package out, and put it back.
		pkg := list[len(list)/2].Package
		var own []quarry.Release
		for _, r := range list {
			if r.Package == pkg {
				own = append(own, r)
			}
		}
		again := g.With(pkg, nil).With(pkg, own)
		if got, want := picture(again), picture(New(list, g.opts)); got != want {
			t.Errorf("with and without %q:\n%s\nwant\n%s", pkg, got, want)
		}
		CheckNeeds(strings.Fields(text))
		g.Resolve(strings.Fields(text), "x86_64")
	})
}
