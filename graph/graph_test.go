package graph

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
)

// rel1 makes a release: "name version" and what it needs.
func release(name, version string, archs []string, needs ...string) quarry.Release {
	return quarry.Release{Package: name, Version: version, Channel: "testing", Commit: strings.Repeat("a", 40), Archs: archs, Needs: needs}
}

var two = []string{"x86_64", "aarch64"}

func needText(g *Graph, n Node) string {
	var list []string
	for _, need := range g.Needs(n) {
		s := need.Raw + " = "
		if need.To != None {
			s += g.String(need.To)
		} else {
			s += string(need.Why)
		}
		list = append(list, s)
	}
	return strings.Join(list, "; ")
}

func at(t *testing.T, g *Graph, pkg, version, arch string) Node {
	t.Helper()
	n, ok := g.Node(pkg, version, arch)
	if !ok {
		t.Fatalf("no node %s %s %s", pkg, version, arch)
	}
	return n
}

func TestConstraints(t *testing.T) {
	with := func(r quarry.Release, provides ...string) quarry.Release {
		r.Provides = provides
		return r
	}
	base := []quarry.Release{
		release("zlib", "1.2.11", two), release("zlib", "1.3.1", two), release("zlib", "1.10", two[:1]),
		release("gtk-doc", "1.33", two), release("gtk", "4.0", two),
		release("openssh", "7.0-p1", two),
		with(release("postfix", "3.8", two), "mta", "sendmail-8.17"),
		with(release("exim", "4.97", two), "mta-2"),
		with(release("exim", "4.96", two), "mta-1"),
		with(release("jdk", "17.0", two), "java-runtime-17", "jdk"),
		with(release("gcc", "13", two, "cc"), "cc"),
		with(release("tcc", "1", two), "cc", "gtk-doc"),
		release("docs", "1", []string{quarry.Noarch}),
		release("odd-1.0", "2", two),
	}
	for _, tt := range []struct{ needs, want string }{
		{"zlib", "zlib = zlib 1.10 x86_64"},
		{"zlib-1.3.1", "zlib-1.3.1 = zlib 1.3.1 x86_64"},
		{"zlib-1.3.10", "zlib-1.3.10 = version"},
		{"zlib<1.10", "zlib<1.10 = zlib 1.3.1 x86_64"},
		{"zlib>=1.2 zlib<1.3", "zlib>=1.2, zlib<1.3 = zlib 1.2.11 x86_64"},
		{"zlib zlib<=1.3.1 zlib<=1.3.1", "zlib, zlib<=1.3.1 = zlib 1.3.1 x86_64"},
		{"zlib>=2 zlib<1", "zlib>=2, zlib<1 = contradiction"},
		{"zlib>1.3 zlib<=1.3", "zlib>1.3, zlib<=1.3 = contradiction"},
		{"zlib-1.3.1 zlib-1.2.11", "zlib-1.3.1, zlib-1.2.11 = contradiction"},
		{"zlib-1.3.1 zlib>1.3.1", "zlib-1.3.1, zlib>1.3.1 = contradiction"},
		{"zlib>=1.3.1 zlib<=1.3.1", "zlib>=1.3.1, zlib<=1.3.1 = zlib 1.3.1 x86_64"},
		{"zlib>1.3.1 zlib<1.9", "zlib>1.3.1, zlib<1.9 = version"},
		{"gtk-doc-1.33", "gtk-doc-1.33 = gtk-doc 1.33 x86_64"},
		{"gtk-doc", "gtk-doc = gtk-doc 1.33 x86_64"}, // a real package wins over tcc
		{"gtk-4.0", "gtk-4.0 = gtk 4.0 x86_64"},
		{"odd-1.0", "odd-1.0 = odd-1.0 2 x86_64"},
		{"openssh-7.0-p1", "openssh-7.0-p1 = openssh 7.0-p1 x86_64"},
		{"mta", "mta = exim 4.97 x86_64"},
		{"mta>=2", "mta>=2 = exim 4.97 x86_64"},
		{"mta<2", "mta<2 = exim 4.96 x86_64"},
		{"mta-3", "mta-3 = version"},
		{"mta postfix", "mta = postfix 3.8 x86_64; postfix = postfix 3.8 x86_64"},
		{"sendmail>=8", "sendmail>=8 = postfix 3.8 x86_64"},
		{"java-runtime-17", "java-runtime-17 = jdk 17.0 x86_64"},
		{"java-runtime>=11", "java-runtime>=11 = jdk 17.0 x86_64"},
		{"java>=11", "java>=11 = missing"},
		{"cc", "cc = gcc 13 x86_64"},
		{"docs", "docs = docs 1 noarch"},
		{"absent-1.0 absent lost", "absent-1.0 = missing; lost = missing"},
		{"--help", "--help = unreadable"},
		{"zlib=1", "zlib=1 = unreadable"},
		{"a<<1", "a<<1 = unreadable"},
	} {
		g := New(append(slices.Clone(base), release("me", "1", two, strings.Fields(tt.needs)...)), Options{Archs: two})
		if got := needText(g, at(t, g, "me", "1", "x86_64")); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.needs, got, tt.want)
		}
		var got []string
		for _, n := range g.Resolve(strings.Fields(tt.needs), "x86_64") {
			got = append(got, n.Raw)
		}
		if len(got) != strings.Count(tt.want, " = ") {
			t.Errorf("Resolve of %s gives %q", tt.needs, got)
		}
	}
	// What provides the name itself comes last among those that do.
	g := New(base, Options{Archs: two})
	if got := needText(g, at(t, g, "gcc", "13", "aarch64")); got != "cc = tcc 1 aarch64" {
		t.Error(got)
	}
	// zlib 1.10 is not built for aarch64.
	if got := g.Resolve([]string{"zlib", "zlib>1.3.1"}, "aarch64"); len(got) != 1 || got[0].Why != WrongArch {
		t.Errorf("%+v", got)
	}
	if got := g.Resolve([]string{"zlib"}, "aarch64"); g.String(got[0].To) != "zlib 1.3.1 aarch64" {
		t.Errorf("%+v", got)
	}
	if got := g.Resolve([]string{"zlib", "docs"}, "vax"); got[0].Why != WrongArch || g.String(got[1].To) != "docs 1 noarch" {
		t.Errorf("%+v", got)
	}
}

func TestArchs(t *testing.T) {
	flaky := release("flaky", "2", two)
	flaky.Traits = map[string]quarry.Traits{"aarch64": {Broken: "barriers"}}
	old := release("flaky", "1", two)
	asm := release("asm", "1", two, "zlib")
	asm.Traits = map[string]quarry.Traits{"x86_64": {Needs: []string{"nasm", "zlib>=9"}, HostNeeds: []string{"perl"}, TargetNeeds: []string{"perl"}}}
	alien := release("alien", "1", []string{"loongarch64"}, "docs")
	docs := release("docs", "1", []string{quarry.Noarch}, "perl")
	g := New([]quarry.Release{flaky, old, asm, alien, docs, release("zlib", "1", two), release("nasm", "2", two[:1]), release("perl", "5", two),
		release("user", "1", two, "flaky", "docs")}, Options{Archs: two, Machine: "aarch64"})
	for _, tt := range []struct{ pkg, version, arch, want string }{
		{"user", "1", "x86_64", "flaky = flaky 2 x86_64; docs = docs 1 noarch"},
		{"user", "1", "aarch64", "flaky = flaky 1 aarch64; docs = docs 1 noarch"}, // 2 is broken there
		{"asm", "1", "x86_64", "zlib, zlib>=9 = version; nasm = nasm 2 x86_64; perl = perl 5 x86_64"},
		{"asm", "1", "aarch64", "zlib = zlib 1 aarch64"},
		{"alien", "1", "loongarch64", "docs = docs 1 noarch"},
		{"docs", "1", "noarch", "perl = perl 5 aarch64"},
		{"docs", "1", "x86_64", "perl = perl 5 aarch64"},
	} {
		n := at(t, g, tt.pkg, tt.version, tt.arch)
		if got := needText(g, n); got != tt.want {
			t.Errorf("%s %s: %s, want %s", tt.pkg, tt.arch, got, tt.want)
		}
		if !g.Valid(n) || g.Valid(None) || g.Valid(Node(g.Size())) {
			t.Error("Valid is wrong")
		}
	}
	if k := g.Needs(at(t, g, "asm", "1", "x86_64"))[2].Kind; k != HostNeed|TargetNeed || k.String() != "host+target" {
		t.Errorf("perl is %v", k)
	}
	if _, ok := g.Node("docs", "1", "vax"); ok {
		t.Error("a node for an arch nobody has")
	}
	if _, ok := g.Node("nasm", "2", "aarch64"); ok {
		t.Error("a node for an arch it is not built for")
	}
	if g.Len() != 2+2+2+1+1+2+1+2+2 {
		t.Errorf("%d nodes", g.Len())
	}
	// docs is built once and needed everywhere.
	var users []string
	for _, n := range g.Dependents(at(t, g, "docs", "1", "noarch")) {
		users = append(users, g.String(n))
	}
	slices.Sort(users)
	if got := strings.Join(users, ", "); got != "alien 1 loongarch64, user 1 aarch64, user 1 x86_64" {
		t.Error(got)
	}
	if d := g.Dependents(at(t, g, "perl", "5", "x86_64")); len(d) != 1 || g.String(d[0]) != "asm 1 x86_64" {
		t.Errorf("perl on x86_64: %v", d)
	}
	s := g.Status(StatusOptions{Builder: func(n Node) string {
		if g.Arch(n) == "noarch" {
			return ""
		}
		return map[string]string{"aarch64": "no builder for aarch64"}[g.Arch(n)]
	}})
	for _, tt := range []struct{ pkg, version, arch, want string }{
		{"alien", "1", "loongarch64", "the channel does not build for loongarch64"},
		{"flaky", "2", "aarch64", "is broken: barriers; and no builder for aarch64"},
		{"docs", "1", "noarch", "needs perl 5 aarch64: no builder for aarch64"},
		{"asm", "1", "x86_64", "needs zlib, zlib>=9: no version that is pushed fits (there is 1)"},
		{"user", "1", "x86_64", "needs docs 1 noarch, which needs perl 5 aarch64: no builder for aarch64"},
	} {
		if got := s.Explain(at(t, g, tt.pkg, tt.version, tt.arch)); got != tt.want {
			t.Errorf("%s %s: %s, want %s", tt.pkg, tt.arch, got, tt.want)
		}
	}
	if st := s.Of(at(t, g, "flaky", "2", "x86_64")); st != Ready {
		t.Errorf("flaky on x86_64 is %v", st)
	}
}

// A cross build needs tools of the machine's arch and libraries of its own.
func TestCross(t *testing.T) {
	gcc := release("gcc", "13", two)
	gcc.Traits = map[string]quarry.Traits{"aarch64": {Cross: "x86_64", Needs: []string{"libc"}, HostNeeds: []string{"gcc", "make<5", "doc"}, TargetNeeds: []string{"make>4"}}}
	odd := release("odd", "1", two)
	odd.Traits = map[string]quarry.Traits{"aarch64": {Cross: "vax", HostNeeds: []string{"make", "doc"}}, "x86_64": {NoWorker: "no worker for it"}}
	g := New([]quarry.Release{gcc, odd, release("libc", "2", two), release("make", "4", two), release("make", "5", two), release("doc", "1", []string{quarry.Noarch})}, Options{Archs: two})
	n := at(t, g, "gcc", "13", "aarch64")
	if got, want := needText(g, n), "libc = libc 2 aarch64; make>4 = make 5 aarch64; gcc = gcc 13 x86_64; make<5 = make 4 x86_64; doc = doc 1 noarch"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if k := g.Needs(n); k[0].Arch != "aarch64" || k[2].Arch != "x86_64" || k[2].Kind != HostNeed {
		t.Errorf("%+v", k)
	}
	if c := g.Cycles(); len(c) > 0 { // of the same release, and on another arch
		t.Error(c[0].Text)
	}
	if d := g.Dependents(at(t, g, "gcc", "13", "x86_64")); len(d) != 1 || d[0] != n {
		t.Errorf("%v", d)
	}
	s := g.Status(StatusOptions{State: func(m Node) State {
		if g.String(m) == "gcc 13 x86_64" {
			return BuildFailed
		}
		return Built
	}})
	if s.Of(n) != Done {
		t.Error(s.Of(n))
	}
	s = g.Status(StatusOptions{})
	if got := s.Explain(at(t, g, "odd", "1", "aarch64")); got != "needs make: it is not built for vax" {
		t.Error(got)
	}
	if got := s.Reasons(at(t, g, "odd", "1", "x86_64")); len(got) != 1 || got[0].Kind != NoBuilder || got[0].Text != "no worker for it" {
		t.Error(got)
	}
	if s.Of(n) != Waiting {
		t.Error(s.Of(n))
	}
}

// links makes releases out of "a: b c; b: c; c!" for one arch, where ! declares
// bootstrap.
func links(text string, archs ...string) []quarry.Release {
	if len(archs) == 0 {
		archs = two[:1]
	}
	var list []quarry.Release
	for _, s := range strings.Split(text, ";") {
		name, needs, _ := strings.Cut(strings.TrimSpace(s), ":")
		name, boot := strings.CutSuffix(strings.TrimSpace(name), "!")
		r := release(name, "1", archs, strings.Fields(needs)...)
		if boot {
			r.Traits = map[string]quarry.Traits{}
			for _, a := range archs {
				r.Traits[a] = quarry.Traits{Bootstrap: true}
			}
		}
		list = append(list, r)
	}
	return list
}

func TestCycles(t *testing.T) {
	for _, tt := range []struct{ graph, cycles, through, order string }{
		{"a: b; b: c; c", "", "", "c b a"},
		{"a: b; b: a", "a -> b -> a", "b -> a -> b", ""},
		{"a: a", "a -> a", "", ""},
		{"a: b; b: c; c: a b; d: a", "a -> b -> c -> a", "b -> c -> b", ""},
		{"a: b; b!: a c; c", "", "", "c b a"},
		{"a!: a", "", "", "a"},
		{"gcc: glibc binutils; glibc!: gcc linux; binutils: glibc; linux", "", "", "linux glibc binutils gcc"},
		// The cut at b leaves the other cycle.
		{"a: b c; b!: a; c: d; d: c", "c -> d -> c", "", ""},
		{"a: b; b: a; c: d; d: c", "a -> b -> a, c -> d -> c", "b -> a -> b", ""},
	} {
		for _, archs := range [][]string{{"x86_64"}, two} {
			g := New(links(tt.graph, archs...), Options{Archs: two})
			var got []string
			for _, c := range g.Cycles() {
				got = append(got, c.Text)
				if len(c.Archs) != len(archs) {
					t.Errorf("%s: archs %v", tt.graph, c.Archs)
				}
			}
			if s := strings.Join(got, ", "); s != tt.cycles {
				t.Errorf("%s: cycles %s, want %s", tt.graph, s, tt.cycles)
			}
			if tt.through != "" {
				if c, ok := g.CycleThrough("b"); !ok || c.Text != tt.through {
					t.Errorf("%s: through b %q", tt.graph, c.Text)
				}
			}
			if c, ok := g.CycleThrough("linux"); ok {
				t.Errorf("%s: %v", tt.graph, c)
			}
			if tt.order != "" && len(archs) == 1 {
				var order []string
				for _, n := range g.Order() {
					order = append(order, g.Release(n).Package)
				}
				if s := strings.Join(order, " "); s != tt.order {
					t.Errorf("%s: order %s", tt.graph, s)
				}
			}
		}
	}
	// Bootstrap on one arch leaves the cycle on the other.
	list := links("a: b; b: a", two...)
	list[0].Traits = map[string]quarry.Traits{"aarch64": {Bootstrap: true}}
	if c := New(list, Options{}).Cycles(); len(c) != 1 || strings.Join(c[0].Archs, " ") != "x86_64" {
		t.Errorf("%+v", c)
	}
}

func TestStatus(t *testing.T) {
	g := New(links("app: lib tool; lib: base; tool: gone base; base; top: app; old: failed; failed; loop: pool; pool: loop; swim: pool; dead: app gone"), Options{})
	state := map[string]State{"base": Built, "failed": BuildFailed}
	s := g.Status(StatusOptions{State: func(n Node) State { return state[g.Release(n).Package] }})
	for pkg, want := range map[string]string{
		"base":   "done",
		"lib":    "ready",
		"app":    "blocked: needs tool 1 x86_64: needs gone: nobody has pushed it",
		"top":    "blocked: needs app 1 x86_64, which needs tool 1 x86_64: needs gone: nobody has pushed it",
		"tool":   "blocked: needs gone: nobody has pushed it",
		"failed": "blocked: its build failed",
		"old":    "blocked: needs failed 1 x86_64: its build failed",
		"loop":   "blocked: is in a cycle: loop -> pool -> loop; declare one of them as bootstrap, or break the cycle",
		"swim":   "blocked: needs pool 1 x86_64: is in a cycle: pool -> loop -> pool; declare one of them as bootstrap, or break the cycle",
	} {
		n := at(t, g, pkg, "1", "x86_64")
		got := s.Of(n).String()
		if why := s.Explain(n); why != "" {
			got += ": " + why
		}
		if got != want {
			t.Errorf("%s is %s, want %s", pkg, got, want)
		}
	}
	var got []string
	for _, b := range s.Blockers(3) {
		got = append(got, fmt.Sprintf("%s (%s) %d", b.Name, b.Why, b.Blocks))
	}
	if want := "gone (nobody has pushed it) 4; cycle of loop and 1 more (they need each other, and none is declared as bootstrap: see quarry graph) 1; failed 1 (its build failed) 1"; strings.Join(got, "; ") != want {
		t.Errorf("blockers: %s", strings.Join(got, "; "))
	}
	if s.Count(Ready) != 1 || len(s.List(Ready)) != 1 || s.Count(Done) != 1 || s.Count(Blocked) != 9 {
		t.Errorf("%v", s.counts)
	}
	kinds := func(pkg string) (out []ReasonKind) {
		for _, r := range s.Reasons(at(t, g, pkg, "1", "x86_64")) {
			out = append(out, r.Kind)
		}
		return out
	}
	if k := kinds("dead"); !slices.Equal(k, []ReasonKind{Missing, Dependency}) {
		t.Errorf("dead: %v", k)
	}
}

func TestPaths(t *testing.T) {
	g := New(links("app: lib tool; lib: base; tool: base; base; solo; loop: pool base; pool: loop"), Options{})
	took := map[string]time.Duration{"app": 1, "lib": 10, "tool": 100, "base": 1000, "solo": 7, "loop": 50, "pool": 60}
	paths := g.Paths(func(n Node) time.Duration { return took[g.Release(n).Package] })
	for pkg, want := range map[string]time.Duration{"app": 1, "lib": 11, "tool": 101, "base": 1101, "solo": 7, "loop": 50, "pool": 60} {
		if got := paths[at(t, g, pkg, "1", "x86_64")]; got != want {
			t.Errorf("%s: %d, want %d", pkg, got, want)
		}
	}
	took["tool"] = -1 // built
	paths = g.Paths(func(n Node) time.Duration { return took[g.Release(n).Package] })
	if got := paths[at(t, g, "base", "1", "x86_64")]; got != 1050 {
		t.Errorf("base without tool: %d", got)
	}
}
