package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/graph"
	"github.com/Morphux/quarry/graph/graphtest"
	"github.com/Morphux/quarry/sched"
)

// TestGraphFollows: the graph is that of git as last read, an old one stays as it
// was, and nothing is made anew when nothing has changed.
func TestGraphFollows(t *testing.T) {
	x := []string{"x86_64"}
	w := newWorld(t)
	q, err := New(w.options(folder(t)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.Graph("testing"); !errors.Is(err, ErrUnsurveyed) {
		t.Errorf("before anything was read: %v", err)
	}
	if _, err := q.Graph("no channel"); err == nil || errors.Is(err, ErrUnsurveyed) {
		t.Errorf("a channel that cannot be: %v", err)
	}
	survey := func(pkg string) *graph.Graph {
		t.Helper()
		if _, _, err := q.survey(t.Context(), pkg); err != nil {
			t.Fatal(err)
		}
		g, err := q.Graph("testing")
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	w.push("lib", "1", "a", x)
	w.push("app", "1", "a", x, "lib", "awk")
	first := survey("")
	if got := first.Packages(); fmt.Sprint(got) != "[app lib]" {
		t.Errorf("at first: %v", got)
	}
	if same := survey(""); same != first {
		t.Error("nothing has changed, and the graph is another")
	}
	w.pushAs(func(r *quarry.Release) { r.Provides = []string{"awk"} }, "gawk", "5", "a", x)
	second := survey("gawk")
	app, _ := second.Node("app", "1", "x86_64")
	if needs := second.Needs(app); needs[1].To == graph.None || second.Release(needs[1].To).Package != "gawk" {
		t.Errorf("what provides awk is not found: %+v", needs)
	}
	if got := first.Packages(); fmt.Sprint(got) != "[app lib]" {
		t.Errorf("the first graph is now %v", got)
	}

	w.delete("gawk", "5")
	w.problems = []Problem{{Err: errors.New("the folder cannot be listed")}}
	if got := survey("").Packages(); fmt.Sprint(got) != "[app gawk lib]" {
		t.Errorf("with a problem of the whole, which may be why it is missing: %v", got)
	}
	w.problems = []Problem{{Package: "gawk", Branch: "gawk-5", Err: errors.New("is broken")}}
	if got := survey("gawk").Packages(); fmt.Sprint(got) != "[app gawk lib]" {
		t.Errorf("with a branch that cannot be read: %v", got)
	}
	w.problems = nil
	if got := survey("").Packages(); fmt.Sprint(got) != "[app lib]" {
		t.Errorf("when it is gone: %v", got)
	}

	// A survey that began earlier says nothing new.
	w.push("lib", "2", "b", x)
	fresh := survey("lib")
	q.releases.learn("lib", nil, nil, 1)
	if g, _ := q.Graph("testing"); g != fresh {
		t.Error("an old survey has changed the graph")
	}
}

// TestGraphBeside: surveys and readers at once; each graph is of one moment.
func TestGraphBeside(t *testing.T) {
	s := newReleases(func(string) graph.Options { return graph.Options{Archs: []string{"x86_64"}} })
	// A push always moves both versions of a package to the same commit.
	push := func(i int) []quarry.Release {
		var list []quarry.Release
		for _, v := range []string{"1", "2"} {
			list = append(list, quarry.Release{Channel: "testing", Package: "a", Version: v, Commit: fmt.Sprintf("%040x", i), Archs: []string{"x86_64"}})
		}
		return list
	}
	s.learn("", push(0), nil, 0)
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			for range 300 {
				g, err := s.snapshot("testing")
				if err != nil {
					t.Error(err)
					return
				}
				if of := g.Of("a"); len(of) != 2 || g.Release(of[0]).Commit != g.Release(of[1]).Commit {
					t.Error("a half-read graph")
					return
				}
			}
		})
	}
	all.Go(func() {
		for i := range 300 {
			s.learn("a", push(i+1), nil, int64(i+1))
		}
	})
	all.Wait()
	g, err := s.snapshot("testing")
	if want := fmt.Sprintf("%040x", 300); err != nil || g.Release(g.Of("a")[0]).Commit != want {
		t.Errorf("the last push is not seen: %v", err)
	}
}

// TestExpected: what was built before tells how long a build takes.
func TestExpected(t *testing.T) {
	w := newWorld(t)
	w.push("zlib", "1", "a", []string{"x86_64"})
	w.onOutcome = func(out *quarry.Outcome, _ quarry.Build) {
		out.Started = time.Unix(1_700_000_000, 0)
		out.Ended = out.Started.Add(90 * time.Second)
	}
	opts := w.options(folder(t))
	opts.Past = func(_ context.Context, observe func(Past)) error {
		observe(Past{Package: "gcc", Arch: "x86_64", Ran: sched.Ran{Took: time.Hour}})
		return nil
	}
	q := start(t, opts)
	q.until("the past", func() bool { return q.Expected("gcc", "x86_64") == time.Hour })
	for _, b := range q.pushed("zlib") {
		q.wait(b.Number)
	}
	if d := q.Expected("zlib", "x86_64"); d != 90*time.Second {
		t.Errorf("zlib is expected to take %s", d)
	}
}

// TestExpectedWithSlots: how long a build takes depends on the slots that it has or
// would get.
func TestExpectedWithSlots(t *testing.T) {
	w := newWorld(t)
	opts := w.options(folder(t))
	opts.Workers = 2
	var slots atomic.Pointer[Slots]
	slots.Store(&Slots{All: 8, Of: map[int64]float64{7: 8, 8: 1}})
	opts.Slots = func() Slots { return *slots.Load() }
	opts.Past = func(_ context.Context, observe func(Past)) error {
		// 20 seconds alone, and 80 shared among 4.
		observe(Past{Package: "gcc", Arch: "x86_64", Ran: sched.Ran{Took: 40 * time.Second, CPU: 100 * time.Second, SlotTime: 100 * time.Second, Width: 4, Jobs: 8}})
		return nil
	}
	q := start(t, opts)
	q.until("the past", func() bool { return q.Known("gcc") })
	say := func(what string, got time.Duration, want int) {
		t.Helper()
		if d := got - time.Duration(want)*time.Second; d.Abs() > 10*time.Millisecond {
			t.Errorf("%s: %v, want %d s", what, got, want)
		}
	}
	b := quarry.Build{Arch: "x86_64", State: quarry.Running, Release: quarry.Release{Package: "gcc"}}
	say("one that begins", q.Expected("gcc", "x86_64"), 40)
	b.Number = 7
	say("one that has all", q.ExpectedOf(b), 30)
	b.Number = 8
	say("one that has one", q.ExpectedOf(b), 100)
	b.Number = 9
	say("one that has not got any yet", q.ExpectedOf(b), 40)
	b.Number, b.State = 7, quarry.Queued
	say("one that does not run", q.ExpectedOf(b), 40)
	slots.Store(&Slots{All: 4})
	say("with fewer for all", q.Expected("gcc", "x86_64"), 60)
	slots.Store(&Slots{All: 16, Most: 2})
	say("with few for one", q.Expected("gcc", "x86_64"), 60)
	slots.Store(&Slots{})
	say("with none to share out", q.Expected("gcc", "x86_64"), 40)
	if n := q.Width("gcc", "x86_64"); n != 4 {
		t.Errorf("width %v", n)
	}
	if n := q.Width("zlib", "x86_64"); n != 0 {
		t.Errorf("width of what nobody has built: %v", n)
	}
}

// BenchmarkGraph is the graph of 10,000 packages on 10 archs: the first one, the
// next after a push, and the same again.
func BenchmarkGraph(b *testing.B) {
	list := graphtest.Generate(graphtest.Options{Packages: 10000, Seed: 1}).Releases
	made := func() *releases {
		s := newReleases(func(string) graph.Options { return graph.Options{Archs: graphtest.Archs} })
		s.learn("", list, nil, 0)
		return s
	}
	snapshot := func(s *releases) {
		if _, err := s.snapshot("testing"); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			snapshot(made())
		}
	})
	b.Run("push", func(b *testing.B) {
		s := made()
		snapshot(s)
		for i := 0; b.Loop(); i++ {
			r := list[i*7919%len(list)]
			r.Commit, r.Needs = fmt.Sprintf("%040x", i), slices.Clone(r.Needs)
			s.learn(r.Package, []quarry.Release{r}, nil, int64(i+1))
			snapshot(s)
		}
	})
	b.Run("same", func(b *testing.B) {
		s := made()
		snapshot(s)
		for b.Loop() {
			snapshot(s)
		}
	})
}
