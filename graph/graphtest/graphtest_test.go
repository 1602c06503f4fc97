package graphtest

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/graph"
)

func TestGenerate(t *testing.T) {
	o := Options{Packages: 3000, Seed: 7}
	d := Generate(o)
	if !reflect.DeepEqual(d, Generate(o)) {
		t.Error("the same options give another distribution")
	}
	if reflect.DeepEqual(d.Releases, Generate(Options{Packages: 3000, Seed: 8}).Releases) {
		t.Error("another seed gives the same")
	}
	for _, r := range d.Releases {
		if quarry.CheckName(r.Package) != nil || quarry.CheckVersion(r.Version) != nil {
			t.Fatalf("%s %s is no release", r.Package, r.Version)
		}
	}
	g := graph.New(d.Releases, graph.Options{Archs: Archs})
	if c := g.Cycles(); len(c) > 0 {
		t.Errorf("cycles that nobody declares: %v", c[0].Text)
	}
	declared := 0
	edges, most, longest := 0, 0, time.Duration(0)
	paths := g.Paths(func(graph.Node) time.Duration { return 1 })
	for n := range g.Nodes() {
		deps := len(g.Deps(n))
		edges += deps
		if deps > len(g.WaitsFor(n)) {
			declared++
		}
		most = max(most, len(g.Dependents(n)))
		longest = max(longest, paths[n])
	}
	// What makes it a distribution: few cycles but some, a few packages that a
	// large part needs, chains that are long, and not as long as it is large.
	mean := float64(edges) / float64(g.Len())
	if declared == 0 || mean < 4 || mean > 12 || most < 600 || longest < 12 || longest > 300 {
		t.Errorf("%d bootstrapped, %.1f needs on average, %d users at most, a chain of %d", declared, mean, most, longest)
	}
	s := g.Status(graph.StatusOptions{})
	if blocked := s.Count(graph.Blocked); blocked > g.Len()/5 {
		t.Errorf("%d of %d are blocked: %+v", blocked, g.Len(), s.Blockers(5))
	}
	if a, b := d.Takes(d.Releases[0].Package, "x86_64"), d.Takes(d.Releases[0].Package, "aarch64"); a <= 0 || a == b {
		t.Errorf("takes %v and %v", a, b)
	}
}

const sources = `Package: zlib
Binary: zlib1g, zlib1g-dev,
 zlib1g-udeb
Version: 1:1.2.13.dfsg-1
Architecture: any
Build-Depends: debhelper (>= 13), gcc-multilib [amd64 i386] <!nocheck>, dpkg-dev

Package: debhelper
Binary: debhelper, dh-sysuser
Version: 13.11~4
Architecture: all
Build-Depends: perl:any, po4a | gettext

Package: git
Binary: git
Version: 1:2.39
Architecture: any all
Build-Depends: zlib1g-dev(>=1), debhelper, zlib1g
Build-Depends-Indep: asciidoc
`

func TestParseSources(t *testing.T) {
	list, err := ParseSources(strings.NewReader(sources), []string{"x86_64"})
	if err != nil || len(list) != 3 {
		t.Fatal(list, err)
	}
	for i, want := range []string{"zlib 1.1.2.13.dfsg-1 [x86_64] [debhelper]", "debhelper 13.11-4 [noarch] []", "git 1.2.39 [x86_64] [zlib debhelper]"} {
		r := list[i]
		if got := r.Package + " " + r.Version + " [" + strings.Join(r.Archs, " ") + "] [" + strings.Join(r.Needs, " ") + "]"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if _, err := ParseSources(strings.NewReader("no index at all\n"), nil); err == nil {
		t.Error("took a line without a field")
	}
}
