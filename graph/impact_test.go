package graph

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Morphux/quarry"
)

func impactText(g *Graph, im *Impact) string {
	var b strings.Builder
	names := func(what string, nodes []Node) {
		if len(nodes) > 0 {
			fmt.Fprintf(&b, "%s", what)
			for _, n := range nodes {
				fmt.Fprintf(&b, " %s/%s", g.label(n), g.Arch(n))
			}
			b.WriteString("; ")
		}
	}
	names("builds", im.Builds)
	names("rebuilds", im.Rebuilds)
	for _, t := range im.Gone {
		fmt.Fprintf(&b, "gone %s; ", t)
	}
	for _, n := range im.Broken {
		fmt.Fprintf(&b, "broken %s; ", n.Text)
	}
	for _, n := range im.Unmet {
		fmt.Fprintf(&b, "unmet %s; ", n.Text)
	}
	for _, c := range im.Cycles {
		fmt.Fprintf(&b, "cycle %s; ", c.Text)
	}
	fmt.Fprintf(&b, "%v, %v", im.Work, im.Longest)
	return b.String()
}

func TestImpact(t *testing.T) {
	one := two[:1]
	base := []quarry.Release{release("zlib", "1.3", one), release("zlib", "1.2", one), release("git", "2", one, "zlib<1.3"),
		release("curl", "8", one, "zlib"), release("app", "1", one, "curl"), release("doc", "1", []string{quarry.Noarch}, "app"), release("lone", "1", one)}
	g := New(base, Options{Archs: one})
	commit := func(r quarry.Release) quarry.Release { r.Commit = strings.Repeat("b", 40); return r }
	broken := commit(base[3])
	broken.Traits = map[string]quarry.Traits{"x86_64": {Broken: "for a test"}}
	for _, tt := range []struct {
		name, pkg string
		releases  []quarry.Release
		want      string
	}{
		{"nothing", "zlib", base[:2], "0s, 0s"},
		{"a leaf", "lone", []quarry.Release{commit(base[6])}, "builds lone/x86_64; 1m0s, 1m0s"},
		{"a library", "zlib", []quarry.Release{commit(base[0]), base[1]},
			"builds zlib 1.3/x86_64; rebuilds curl/x86_64 app/x86_64 doc/noarch; 4m0s, 4m0s"},
		{"the older one", "zlib", []quarry.Release{base[0], commit(base[1])}, "builds zlib 1.2/x86_64; rebuilds git/x86_64; 2m0s, 2m0s"},
		{"a new version", "zlib", append(base[:2:2], release("zlib", "1.4", one)),
			"builds zlib 1.4/x86_64; rebuilds curl/x86_64 app/x86_64 doc/noarch; 4m0s, 4m0s"},
		{"a version that others need goes", "zlib", base[:1],
			"gone zlib 1.2 x86_64; broken git 2 x86_64 needs zlib<1.3: no version that is pushed fits (there is 1.3); 0s, 0s"},
		{"the newest goes", "zlib", base[1:2], "rebuilds curl/x86_64 app/x86_64 doc/noarch; gone zlib 1.3 x86_64; 3m0s, 3m0s"},
		{"all goes", "curl", nil, "gone curl 8 x86_64; broken app 1 x86_64 needs curl: nobody has pushed it; 0s, 0s"},
		{"a cycle comes", "zlib", append(base[:1:1], release("zlib", "1.2", one, "git")),
			"builds git/x86_64 zlib 1.2/x86_64; cycle"},
		{"what it needs is not there", "lone", []quarry.Release{commit(release("lone", "1", one, "gone"))},
			"builds lone/x86_64; unmet lone 1 x86_64 needs gone: nobody has pushed it; 1m0s, 1m0s"},
		{"it comes to be broken", "curl", []quarry.Release{broken}, "0s, 0s"},
	} {
		next := g.With(tt.pkg, tt.releases)
		im := Compare(g, next, func(Node) time.Duration { return time.Minute })
		got := impactText(next, im)
		if tt.name == "a cycle comes" {
			if len(im.Cycles) != 1 || im.Cycles[0].Text != "git -> zlib 1.2 -> git" {
				t.Errorf("%s: %s", tt.name, got)
			}
			continue
		}
		if got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
	im := Compare(New(nil, Options{Archs: one}), g, func(Node) time.Duration { return time.Minute })
	if len(im.Builds) != 7 || im.Expected(1) != 7*time.Minute || im.Expected(100) != 4*time.Minute || im.Expected(0) != 7*time.Minute {
		t.Errorf("%+v", im)
	}
	if a := im.Archs; len(a) != 2 || a[0].Arch != "x86_64" || a[0].Builds != 6 || a[1].Arch != "noarch" || a[1].Work != time.Minute {
		t.Errorf("%+v", a)
	}
}

// A new arch makes the graph anew, and so do very many new names.
func TestWithGrows(t *testing.T) {
	g := New(links("a: b; b"), Options{})
	next := g.With("b", []quarry.Release{release("b", "1", []string{"x86_64", "vax"})})
	if _, ok := next.Node("b", "1", "vax"); !ok || next.Len() != 3 {
		t.Error("the new arch is missing")
	}
	for i := range 3 * maxExtra {
		name := fmt.Sprintf("n%d", i)
		next = next.With(name, []quarry.Release{release(name, "1", two[:1], "a")})
		if i%3 > 0 {
			next = next.With(name, nil)
		}
	}
	if len(next.names.extra) > maxExtra+10 || next.Len() != 3+maxExtra || len(next.rels) > next.Len()+10 {
		t.Errorf("%d names beside %d, %d nodes in %d places", len(next.names.extra), len(next.names.base), next.Len(), len(next.rels))
	}
}

// Many goroutines ask one graph; what is made when it is first asked for is
// made once.
func TestShared(t *testing.T) {
	g := New(links("a: b c; b: c; c: d; d: b; e!: e"), Options{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			g.Cycles()
			for n := range g.Nodes() {
				g.Dependents(n)
			}
			s := g.Status(StatusOptions{})
			s.Blockers(0)
			g.With("c", nil).Order()
			g.Resolve([]string{"a", "unheard-of-1"}, "x86_64")
			for n := range g.Nodes() {
				s.Explain(n)
			}
		})
	}
	wg.Wait()
}
