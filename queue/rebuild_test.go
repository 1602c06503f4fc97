package queue

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/Morphux/quarry"
)

// abiWorld has packages that offer to be built against what the test says.
type abiWorld struct {
	*world
	mu  sync.Mutex
	abi map[string]string // by package
}

func newABIWorld(t *testing.T) *abiWorld {
	w := &abiWorld{world: newWorld(t), abi: map[string]string{}}
	w.onOutcome = func(out *quarry.Outcome, b quarry.Build) {
		w.mu.Lock()
		defer w.mu.Unlock()
		out.Facts = &quarry.Facts{ABI: w.abi[b.Package]}
	}
	return w
}

func (w *abiWorld) offer(pkg, abi string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.abi[pkg] = abi
}

// settle waits until nothing is under way and nothing more comes.
func (q *running) settle() {
	q.t.Helper()
	for {
		q.until("an end", func() bool { return len(q.List(Filter{Live: true})) == 0 })
		last := q.Status().Last
		if err := q.Replan(context.Background()); err != nil {
			q.t.Fatal(err)
		}
		if q.Status().Last == last && len(q.List(Filter{Live: true})) == 0 {
			return
		}
	}
}

// since lists what was recorded after the first n records, in order.
func (w *abiWorld) since(n int) (list []string) {
	w.world.mu.Lock()
	defer w.world.mu.Unlock()
	for _, o := range w.history[n:] {
		list = append(list, o.Build.Package)
	}
	return list
}

// TestRebuildPropagates: a change of what a package offers has what was built against it
// built again, each once, in order, and goes no further than it has to.
func TestRebuildPropagates(t *testing.T) {
	x := []string{"x86_64"}
	w := newABIWorld(t)
	w.offer("lib", "1")
	w.offer("mid", "1")
	w.offer("wide", "1")
	// A diamond: top needs mid and wide, which both need lib; far needs top,
	// which offers nothing; other needs none of it.
	w.push("lib", "1", "a", x)
	w.push("mid", "1", "a", x, "lib")
	w.push("wide", "1", "a", x, "lib-1")
	w.push("top", "1", "a", x, "mid", "wide", "lib")
	w.push("far", "1", "a", x, "top")
	w.push("other", "1", "a", x)
	opts := w.options(folder(t))
	q := start(t, opts)
	q.settle()
	if n := len(w.since(0)); n != 6 {
		t.Fatalf("%d records at first: %v", n, w.since(0))
	}

	t.Run("unchanged", func(t *testing.T) {
		n := len(w.since(0))
		if _, err := q.RebuildTarget(t.Context(), quarry.Target{Package: "lib", Version: "1"}, "bob"); err != nil {
			t.Fatal(err)
		}
		q.settle()
		if got := w.since(n); fmt.Sprint(got) != "[lib]" {
			t.Errorf("a rebuild that offers the same led to %v", got)
		}
	})
	t.Run("changed", func(t *testing.T) {
		n := len(w.since(0))
		w.offer("lib", "2")
		if _, err := q.RebuildTarget(t.Context(), quarry.Target{Package: "lib", Version: "1"}, "bob"); err != nil {
			t.Fatal(err)
		}
		q.settle()
		got := w.since(n)
		sorted := slices.Sorted(slices.Values(got))
		if fmt.Sprint(sorted) != "[lib mid top wide]" || got[0] != "lib" || got[3] != "top" {
			t.Errorf("a rebuild that offers something else led to %v", got)
		}
		for _, b := range q.List(Filter{Package: "mid", Limit: 1}) {
			if !strings.HasPrefix(b.Nonce, rebuildNonce) || b.Why != "rebuilt: lib has changed" {
				t.Errorf("mid's rebuild: nonce %q, why %q", b.Nonce, b.Why)
			}
		}
	})
	t.Run("in steps", func(t *testing.T) {
		// mid changes too when it is built again: top, built last, sees both.
		n := len(w.since(0))
		w.offer("lib", "3")
		w.offer("mid", "3")
		if _, err := q.RebuildTarget(t.Context(), quarry.Target{Package: "lib", Version: "1"}, "bob"); err != nil {
			t.Fatal(err)
		}
		q.settle()
		got := w.since(n)
		if fmt.Sprint(slices.Sorted(slices.Values(got))) != "[lib mid top wide]" || got[3] != "top" {
			t.Errorf("changes in steps led to %v", got)
		}
	})
	t.Run("restart", func(t *testing.T) {
		// A change that lands while nobody is there to see it is found at start.
		q.stop()
		w.world.mu.Lock()
		w.world.abi[quarry.Target{Channel: "testing", Package: "wide", Version: "1", Arch: "x86_64"}] = "other"
		n := len(w.history)
		w.world.mu.Unlock()
		q = start(t, opts)
		q.settle()
		if got := w.since(n); fmt.Sprint(got) != "[top]" {
			t.Errorf("after the restart: %v", got)
		}
	})
}

// TestRebuildFails: a rebuild that fails is not tried again for the same
// change, and what stands stays.
func TestRebuildFails(t *testing.T) {
	x := []string{"x86_64"}
	w := newABIWorld(t)
	w.offer("lib", "1")
	fail := false
	inner := w.onOutcome
	w.onOutcome = func(out *quarry.Outcome, b quarry.Build) {
		inner(out, b)
		if b.Package == "app" && fail {
			out.Status, out.Facts = quarry.Failed, nil
			out.Failure = &quarry.Failure{Step: quarry.StepMake, Cause: quarry.CauseExit, Message: "make ended with status 2", Status: 2}
		}
	}
	w.push("lib", "1", "a", x)
	w.push("app", "1", "a", x, "lib")
	q := start(t, w.options(folder(t)))
	q.settle()
	change := func(abi string) []string {
		t.Helper()
		n := len(w.since(0))
		w.offer("lib", abi)
		if _, err := q.RebuildTarget(t.Context(), quarry.Target{Package: "lib", Version: "1"}, "bob"); err != nil {
			t.Fatal(err)
		}
		q.settle()
		return w.since(n)
	}
	fail = true
	if got := change("2"); fmt.Sprint(got) != "[lib app]" {
		t.Errorf("the change led to %v", got)
	}
	if got := change("2"); fmt.Sprint(got) != "[lib]" {
		t.Errorf("what failed was tried again for the same change: %v", got)
	}
	fail = false
	if got := change("3"); fmt.Sprint(got) != "[lib app]" {
		t.Errorf("another change led to %v", got)
	}
}

// TestRebuildTakenBack: a rebuild that has not begun when what it was for is as
// it was ends obsolete.
func TestRebuildTakenBack(t *testing.T) {
	r := rel("1", "aaaa", t0, "x86_64")
	target := quarry.Target{Channel: "testing", Package: "zlib", Version: "1", Arch: "x86_64"}
	nonce := rebuildNonce + "cc"
	recorded := quarry.RecordRef{Status: quarry.Succeeded, Source: r.Commit, Build: 1, Key: quarry.BuildKey(target, r.Commit, "")}
	view := func(recs Records) *View {
		t.Helper()
		views, err := Survey("", []quarry.Release{r}, nil, func(string) (Records, error) { return recs, nil })
		if err != nil {
			t.Fatal(err)
		}
		return views["zlib"]
	}
	stale := staleTable{table{"x86_64": recorded}, "cc"}
	known := func(nonce string, state quarry.State) []Known {
		return []Known{{Build: quarry.Build{Number: 2, Release: r, Arch: "x86_64", Nonce: nonce, State: state}, Recorded: true}}
	}
	for _, tt := range []struct {
		name      string
		recs      Records
		known     []Known
		new, stop int
	}{
		{"stale", stale, nil, 1, 0},
		{"under way", stale, known(nonce, quarry.Queued), 0, 0},
		{"another one under way", stale, known("bob", quarry.Running), 0, 0},
		{"done, and the view is older", stale, known(nonce, quarry.Succeeded), 0, 0},
		{"built for somebody, and the view is older", stale, known("bob", quarry.Succeeded), 0, 0},
		{"cancelled", stale, known(nonce, quarry.Cancelled), 0, 0},
		{"another change was cancelled", stale, known(rebuildNonce+"dd", quarry.Cancelled), 1, 0},
		{"taken back", table{"x86_64": recorded}, known(nonce, quarry.Queued), 0, 1},
		{"taken back while it runs", table{"x86_64": recorded}, known(nonce, quarry.Running), 0, 0},
		{"asked for by somebody", table{"x86_64": recorded}, known("bob", quarry.Queued), 0, 0},
	} {
		p := view(tt.recs).Decide(tt.known)
		if len(p.New) != tt.new || len(p.Stop) != tt.stop || len(p.Done) != 0 {
			t.Errorf("%s: %+v", tt.name, p)
		}
	}
	failed := recorded
	failed.Status, failed.Key = quarry.Failed, quarry.BuildKey(target, r.Commit, nonce)
	if v := view(staleTable{table{"x86_64": failed}, "cc"}); len(v.Wants) != 0 || v.Stale[target] != nonce {
		t.Errorf("what failed is wanted again: %+v", v)
	}
}

type staleTable struct {
	table
	change string
}

func (s staleTable) Stale(quarry.Release, string) (string, string, error) {
	return "zlib has changed", s.change, nil
}

// TestRebuildCycle: builds that need each other in a circle do not hold one
// another for ever.
func TestRebuildCycle(t *testing.T) {
	x := []string{"x86_64"}
	w := newABIWorld(t)
	for _, p := range []string{"a", "b", "c"} {
		w.offer(p, "1")
	}
	w.push("lib", "1", "a", x)
	w.push("a", "1", "a", x, "lib")
	w.push("b", "1", "a", x, "lib", "a")
	w.push("c", "1", "a", x, "lib", "b")
	q := start(t, w.options(folder(t)))
	q.settle()
	// Now a needs c as well, as a bootstrapped package does.
	w.push("a", "1", "a", x, "lib", "c")
	n := len(w.since(0))
	w.offer("lib", "2")
	if _, err := q.RebuildTarget(t.Context(), quarry.Target{Package: "lib", Version: "1"}, "bob"); err != nil {
		t.Fatal(err)
	}
	q.settle()
	if got := slices.Sorted(slices.Values(w.since(n))); fmt.Sprint(got) != "[a b c lib]" {
		t.Errorf("a circle led to %v", got)
	}
}
