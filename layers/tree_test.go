package layers

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/Morphux/quarry/extract"
)

// same lays artifacts in as a workspace has it, layers first and the rest
// streamed, and by streaming all, and compares. It returns how many were layers.
func (f *farm) same(t testing.TB, shas ...string) (laid int, err error) {
	t.Helper()
	streamed := f.mount(t)
	want := f.install(t.Context(), streamed, shas...)

	var ls []*Layer
	for _, sha := range shas {
		l, err := f.cache.Get(t.Context(), f.root, sha, f.store.Path(sha))
		if err != nil {
			break
		}
		ls = append(ls, l)
		t.Cleanup(l.Release)
	}
	for laid < len(ls) {
		why := ""
		for i := 0; i < laid && why == ""; i++ {
			why = ls[laid].Over(ls[i])
		}
		if why != "" {
			break
		}
		laid++
	}
	m := f.mount(t, ls[:laid]...)
	got := f.install(t.Context(), m, shas[laid:]...)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%d layers: %v, streamed: %v", laid, got, want)
	}
	if want == nil && got == nil {
		if d := cmp.Diff(strings.Split(listing(t, streamed), "\n"), strings.Split(listing(t, m), "\n")); d != "" {
			t.Errorf("%d layers make another system (-streamed +laid in):\n%s", laid, d)
		}
	}
	return laid, want
}

func TestConflicts(t *testing.T) {
	f := newFarm(t, Options{})
	file := func(p string) entryOf { return entryOf{p, "file", "of " + p, 0o644} }
	for name, c := range map[string]struct {
		a, b   []entryOf
		laid   int // of the two
		fails  bool
		hidden bool
	}{
		"nothing in common":                   {a: []entryOf{file("usr/lib/a")}, b: []entryOf{file("usr/lib/b")}, laid: 2},
		"the same file":                       {a: []entryOf{file("usr/lib/a"), file("etc/conf")}, b: []entryOf{{"usr/lib/a", "file", "b", 0o4755}}, laid: 2},
		"through base links":                  {a: []entryOf{file("lib/a"), file("bin/a"), file("var/lock/a")}, b: []entryOf{file("lib/b"), file("var/run/b")}, laid: 2},
		"both make a target":                  {a: []entryOf{file("var/lock/a")}, b: []entryOf{file("var/lock/b")}, laid: 1},
		"folder over link":                    {a: []entryOf{file("opt/real/f"), {"opt/d", "link", "real", 0}}, b: []entryOf{file("opt/d/g")}, laid: 1},
		"link over folder":                    {a: []entryOf{file("opt/d/f")}, b: []entryOf{file("opt/real/g"), {"opt/d", "link", "real", 0}}, laid: 1},
		"folder over file":                    {a: []entryOf{file("opt/d")}, b: []entryOf{file("opt/d/g")}, laid: 1, fails: true},
		"file over folder":                    {a: []entryOf{file("opt/d/g")}, b: []entryOf{file("opt/d")}, laid: 1, fails: true},
		"file over link":                      {a: []entryOf{file("opt/f"), {"opt/l", "link", "f", 0}}, b: []entryOf{file("opt/l")}, laid: 1},
		"another folder mode":                 {a: []entryOf{{"opt/d", "dir", "", 0o700}}, b: []entryOf{file("opt/d/f")}, laid: 1},
		"the same link":                       {a: []entryOf{{"opt/l", "link", "f", 0}}, b: []entryOf{{"opt/l", "link", "f", 0}}, laid: 1},
		"a FIFO":                              {a: []entryOf{{"opt/p", "fifo", "", 0o600}}, b: []entryOf{{"opt/p", "fifo", "", 0o622}}, laid: 1},
		"the target of a base's link appears": {a: []entryOf{{"etc/alt/awk", "dir", "", 0o755}}, b: []entryOf{file("usr/bin/awk")}, laid: 1, fails: true},
		"a base's link is replaced":           {a: []entryOf{file("opt/x")}, b: []entryOf{file("opt/x/f")}, laid: 1, fails: true},
		"a link on the way of a base's link":  {a: []entryOf{{"run/lock", "link", "/tmp", 0}}, b: []entryOf{file("var/lock/f")}, laid: 1},
		"cannot be installed":                 {a: []entryOf{file("usr/lib/a")}, b: []entryOf{file("usr/lib")}, laid: 1, fails: true},
		"hard links":                          {a: []entryOf{file("usr/a1"), {"usr/a2", "hard", "usr/a1", 0}}, b: []entryOf{file("usr/a1"), {"usr/b2", "hard", "usr/a1", 0}}, laid: 2},
	} {
		t.Run(name, func(t *testing.T) {
			laid, err := f.same(t, f.artifact(t, c.a...), f.artifact(t, c.b...))
			if laid != c.laid || (err != nil) != c.fails {
				t.Errorf("%d laid in, want %d; %v", laid, c.laid, err)
			}
		})
	}
}

// Whatever artifacts have in them, those that are laid in make the same system
// as those that are installed.
func TestAnyTrees(t *testing.T) {
	f := newFarm(t, Options{})
	seed := uint64(1)
	rounds := 30
	if s := os.Getenv("QUARRY_TEST_SEED"); s != "" {
		if _, err := fmt.Sscan(s, &seed); err != nil {
			t.Fatal(err)
		}
		rounds = 1000
	}
	var layered, refused, failed int
	for round := range rounds {
		r := rand.New(rand.NewPCG(seed, uint64(round)))
		var shas []string
		var trees [][]entryOf
		for range 2 + r.IntN(2) {
			tree := randomTree(r)
			sha, err := f.pack(t, tree)
			var no *extract.RefusedError
			if errors.As(err, &no) {
				refused++
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			shas, trees = append(shas, sha), append(trees, tree)
		}
		laid, err := f.same(t, shas...)
		layered += laid
		if err != nil {
			failed++
		}
		if t.Failed() {
			t.Fatalf("round %d of seed %d: %v", round, seed, trees)
		}
	}
	t.Logf("%d layers in %d rounds; %d trees were refused, %d rounds ended in an error", layered, rounds, refused, failed)
	if layered < rounds || failed > rounds*2/3 {
		t.Errorf("the trees are no good: %d layers in %d rounds, %d of which failed", layered, rounds, failed)
	}
}

// randomTree is a tree of few names, so that several have much in common. No
// path in it leads through another that is no folder.
func randomTree(r *rand.Rand) []entryOf {
	paths := []string{
		"lib", "lib/a", "lib/d/a", "bin/a", "bin/sh", "usr/lib/a", "usr/lib/d/a", "usr/lib/d", "usr/bin/awk", "usr/share/d", "usr/share/d/old",
		"usr/share/d/new", "etc/conf", "etc/alt/awk", "etc/alt", "opt/x", "opt/x/a", "opt/d/a", "opt/d/b", "opt/d", "opt/e", "opt/e/a",
		"srv/x", "srv/x/a", "var/run/a", "var/lock/a", "run/lock", "run/lock/a", "run/a", "usr/local/man/a", "usr/local/man", "usr/local/share/man/a",
	}
	folders := map[string]bool{"lib": true, "usr/share/d": true, "etc/alt": true, "usr/local/man": true, "opt/d": true, "usr/lib/d": true, "opt/e": true}
	targets := []string{"usr/lib", "/usr/lib", "a", "d", "../opt/d", "/opt/d", "/srv/x", "/etc/alt/awk", "/opt/e", "nowhere", ".."}
	modes := []uint32{0o644, 0o755, 0o600, 0o4755, 0o2711}
	dirModes := []uint32{0o755, 0o755, 0o755, 0o700, 0o2775}
	r.Shuffle(len(paths), func(i, j int) { paths[i], paths[j] = paths[j], paths[i] })
	kind := map[string]string{} // of every path, folders above included
	var tree []entryOf
	var files []string
next:
	for _, p := range paths[:1+r.IntN(5)] {
		for q := range kind {
			if q == p || strings.HasPrefix(q, p+"/") {
				continue next
			}
		}
		for i := range p {
			if p[i] == '/' && kind[p[:i]] != "" && kind[p[:i]] != "dir" {
				continue next
			}
		}
		e := entryOf{path: p, kind: "file", data: fmt.Sprint(r.IntN(1000)), mode: modes[r.IntN(len(modes))]}
		n := r.IntN(10)
		if folders[p] && r.IntN(8) > 0 {
			n %= 4 // anything else cannot be installed
		}
		switch {
		case n < 2:
			e.kind, e.mode = "dir", dirModes[r.IntN(len(dirModes))]
		case n < 4:
			e.kind, e.data = "link", targets[r.IntN(len(targets))]
		case n < 5 && len(files) > 0:
			e.kind, e.data = "hard", files[r.IntN(len(files))]
		case n < 6:
			e.kind = "fifo"
		default:
			files = append(files, p)
		}
		for i := range p {
			if p[i] == '/' {
				kind[p[:i]] = "dir"
			}
		}
		kind[p] = e.kind
		tree = append(tree, e)
	}
	return tree
}
