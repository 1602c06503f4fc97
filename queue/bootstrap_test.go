package queue

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/Morphux/quarry"
)

// bootstrap pushes a package that is declared to be buildable before what it
// needs.
func (w *world) bootstrap(pkg, commit string, needs ...string) {
	w.pushAs(func(r *quarry.Release) { r.Traits = map[string]quarry.Traits{"x86_64": {Bootstrap: true}} }, pkg, "1", commit, []string{"x86_64"}, needs...)
}

// TestBootstrap: of packages that need each other the one that is declared goes
// without the others, and only without those; what nobody has pushed holds it as
// it holds everybody.
func TestBootstrap(t *testing.T) {
	x := []string{"x86_64"}
	for name, tt := range map[string]struct {
		push []func(w *world)
		want string // builds in order, with what they went without
		wait string // builds that go on waiting
	}{
		"two": {[]func(*world){
			func(w *world) { w.bootstrap("gcc", "a", "libc>=1", "make") },
			func(w *world) { w.push("make", "1", "a", x) },
			func(w *world) { w.push("libc", "1", "a", x, "gcc") },
		}, "make, gcc without libc>=1, libc", ""},
		"three": {[]func(*world){
			func(w *world) { w.push("b", "1", "a", x, "c") },
			func(w *world) { w.push("c", "1", "a", x, "a") },
			func(w *world) { w.bootstrap("a", "a", "b") },
			func(w *world) { w.push("user", "1", "a", x, "b") },
		}, "a without b, c, b, user", ""},
		"missing": {[]func(*world){
			func(w *world) { w.push("b", "1", "a", x, "a") },
			func(w *world) { w.bootstrap("a", "a", "b", "ghost") },
		}, "", "a: waits for ghost, which nobody has pushed; b: waits for a"},
		"no cycle": {[]func(*world){
			func(w *world) { w.bootstrap("a", "a", "bad") },
			func(w *world) { w.push("bad", "1", "a", x) },
		}, "bad", "a: waits for bad, whose build failed"},
		"not declared": {[]func(*world){
			func(w *world) { w.push("a", "1", "a", x, "b") },
			func(w *world) { w.push("b", "1", "a", x, "a") },
		}, "", "a: waits for b; b: waits for a"},
	} {
		for _, how := range []string{"before the start", "one by one"} {
			t.Run(name+" "+how, func(t *testing.T) {
				w := newWorld(t)
				if how == "before the start" {
					for _, push := range tt.push {
						push(w)
					}
				}
				q := start(t, w.options(folder(t)))
				if err := q.Replan(t.Context()); err != nil {
					t.Fatal(err)
				}
				if how != "before the start" {
					for _, push := range tt.push {
						push(w)
						w.mu.Lock()
						var all []string
						for l := range w.branches {
							all = append(all, l.Package)
						}
						w.mu.Unlock()
						for _, pkg := range all {
							q.pushed(pkg)
						}
					}
				}
				got := func() (did, waits []string) {
					w.mu.Lock()
					for _, o := range w.history {
						s := o.Build.Package
						if len(o.Build.Without) > 0 {
							s += " without " + strings.Join(o.Build.Without, " ")
						}
						did = append(did, s)
					}
					w.mu.Unlock()
					for _, b := range q.List(Filter{Live: true}) {
						waits = append(waits, fmt.Sprintf("%s: %s", b.Package, b.Reason))
					}
					slices.Sort(waits)
					return did, waits
				}
				q.until("the end of "+name, func() bool {
					did, waits := got()
					return strings.Join(did, ", ") == tt.want && strings.Join(waits, "; ") == tt.wait
				})
			})
		}
	}
}
