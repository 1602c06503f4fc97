package queue

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Morphux/quarry"
)

// over waits until a mass rebuild has ended by itself, and gives its report.
func (q *running) over(id string) Report {
	q.t.Helper()
	var c Campaign
	q.until("the end of mass rebuild "+id, func() bool {
		if err := q.Replan(context.Background()); err != nil {
			q.t.Fatal(err)
		}
		list, err := q.MassRebuilds(context.Background())
		if err != nil {
			q.t.Fatal(err)
		}
		i := slices.IndexFunc(list, func(c Campaign) bool { return c.ID == id })
		if i < 0 {
			q.t.Fatalf("mass rebuild %s is gone", id)
		}
		c = list[i]
		return c.Over()
	})
	if c.Report == nil {
		q.t.Fatalf("mass rebuild %s ended without a report: %+v", id, c)
	}
	return *c.Report
}

func (q *running) mass(c Campaign) Campaign {
	q.t.Helper()
	c.By = "root"
	c, err := q.Mass(context.Background(), c)
	if err != nil {
		q.t.Fatal(err)
	}
	return c
}

func counts(r Report) string {
	return fmt.Sprintf("%d: %d ok, %d failed, %d left, %d lost", r.Total, r.Succeeded, r.Failed, r.Left(), r.Lost)
}

// TestMass: a mass rebuild builds all that matches, each once and in order, also
// where what is built changes what it offers.
func TestMass(t *testing.T) {
	x := []string{"x86_64"}
	w := newABIWorld(t)
	for _, p := range []string{"lib", "mid", "top"} {
		w.offer(p, "1")
	}
	w.push("lib", "1", "a", archs2)
	w.push("mid", "1", "a", archs2, "lib")
	w.push("top", "1", "a", x, "mid", "lib")
	w.push("bad", "1", "a", x, "lib")
	w.push("other", "1", "a", x, "lib")
	q := start(t, w.options(folder(t)))
	q.settle()

	t.Run("all", func(t *testing.T) {
		n := len(w.since(0))
		for _, p := range []string{"lib", "mid", "top"} {
			w.offer(p, "2") // they are rebuilt for this as well, but not twice
		}
		c := q.mass(Campaign{Reason: "new compiler"})
		r := q.over(c.ID)
		if got := counts(r); got != "7: 6 ok, 1 failed, 0 left, 0 lost" || len(r.Failures) != 1 || r.Failures[0].New {
			t.Errorf("report %s, failures %+v", got, r.Failures)
		}
		got := w.since(n)
		if fmt.Sprint(slices.Sorted(slices.Values(got))) != "[bad lib lib mid mid other top]" {
			t.Errorf("it built %v", got)
		}
		if slices.Index(got, "mid") < slices.Index(got, "lib") || slices.Index(got, "top") < slices.Index(got, "mid") {
			t.Errorf("built in the order %v", got)
		}
		b := q.List(Filter{Package: "top", Limit: 1})[0]
		if b.Nonce != "mass-"+c.ID || b.Why != "mass rebuild "+c.ID+": new compiler" {
			t.Errorf("nonce %s, why %q", b.Nonce, b.Why)
		}
	})
	t.Run("unchanged", func(t *testing.T) {
		n := len(w.since(0))
		q.over(q.mass(Campaign{Match: []string{"l*"}, Arch: "x86_64"}).ID)
		if got := w.since(n); fmt.Sprint(got) != "[lib]" {
			t.Errorf("lib alone, which offers the same, led to %v", got)
		}
	})
	t.Run("changed", func(t *testing.T) {
		n := len(w.since(0))
		w.offer("lib", "3")
		r := q.over(q.mass(Campaign{Match: []string{"lib", "top"}, Arch: "x86_64"}).ID)
		q.settle()
		if got := counts(r); got != "2: 2 ok, 0 failed, 0 left, 0 lost" {
			t.Errorf("report %s", got)
		}
		// The rest on x86_64 is rebuilt for what lib offers now, top at most once.
		if got := slices.Sorted(slices.Values(w.since(n))); fmt.Sprint(got) != "[lib mid other top]" {
			t.Errorf("it led to %v", got)
		}
	})
	t.Run("nothing", func(t *testing.T) {
		for _, c := range []Campaign{{Match: []string{"nothing*"}}, {Match: []string{"["}}, {Match: []string{""}}, {Arch: "riscv64"}, {Arch: "a b"}, {Channel: "stable"}, {Channel: ".."}} {
			if got, err := q.Mass(t.Context(), c); err == nil {
				t.Errorf("%+v began %+v", c, got)
			}
		}
		if _, err := q.Report(t.Context(), "nothing"); !errors.Is(err, ErrNoMass) {
			t.Errorf("the report of none: %v", err)
		}
		if _, err := q.CancelMass(t.Context(), "nothing", "root"); !errors.Is(err, ErrNoMass) {
			t.Errorf("the end of none: %v", err)
		}
	})
}

// TestMassNewlyFailing: what failed before is told apart from what fails now.
func TestMassNewlyFailing(t *testing.T) {
	x := []string{"x86_64"}
	w := newABIWorld(t)
	fails := map[string]bool{}
	inner := w.onOutcome
	w.onOutcome = func(out *quarry.Outcome, b quarry.Build) {
		inner(out, b)
		w.mu.Lock()
		defer w.mu.Unlock()
		if fails[b.Package] {
			out.Status, out.Facts = quarry.Failed, nil
			out.Failure = &quarry.Failure{Step: quarry.StepMake, Cause: quarry.CauseExit, Message: "make ended with status 2", Status: 2}
		}
	}
	for _, p := range []string{"a", "b", "bad"} {
		w.push(p, "1", "a", x)
	}
	q := start(t, w.options(folder(t)))
	q.settle()
	fail := func(pkg string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		fails[pkg] = true
	}
	fail("a")
	if _, err := q.RebuildTarget(t.Context(), quarry.Target{Package: "a", Version: "1"}, "bob"); err != nil {
		t.Fatal(err)
	}
	q.settle()
	fail("b")
	r := q.over(q.mass(Campaign{}).ID)
	var got []string
	for _, f := range r.Failures {
		got = append(got, fmt.Sprint(f.Package, " ", f.New, " ", f.Since))
	}
	if fmt.Sprint(got) != "[b true [something] a false [something] bad false []]" {
		t.Errorf("failures: %v", got)
	}
}

// hold has builds of some packages wait, until let go.
func (w *world) hold(match func(quarry.Build) bool) (letGo func()) {
	stop := make(chan struct{})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.onRun = func(ctx context.Context, b quarry.Build, _ func(string)) (*quarry.Outcome, error) {
		if match(b) {
			select {
			case <-stop:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		return nil, nil
	}
	return func() { close(stop) }
}

// TestMassShared: what two mass rebuilds want is built once for both, if it had
// not begun before the second; what a push builds meanwhile counts as well.
func TestMassShared(t *testing.T) {
	x := []string{"x86_64"}
	w := newABIWorld(t)
	for _, p := range []string{"a", "b", "c", "d"} {
		w.push(p, "1", "a", x)
	}
	opts := w.options(folder(t))
	opts.Workers = 1
	q := start(t, opts)
	q.settle()
	letGo := w.hold(func(quarry.Build) bool { return true })
	n := len(w.since(0))
	first := q.mass(Campaign{})
	var began quarry.Build
	q.until("one that runs", func() bool {
		for _, b := range q.List(Filter{States: []quarry.State{quarry.Running}}) {
			began = b
			return true
		}
		return false
	})
	second := q.mass(Campaign{})
	if !second.Over() && len(second.Shared) == 0 {
		t.Errorf("the second shares nothing: %+v", second)
	}
	w.push("d", "1", "dd", x)
	q.pushed("d")
	letGo()
	for _, c := range []Campaign{first, second} {
		if got := counts(q.over(c.ID)); got != "4: 4 ok, 0 failed, 0 left, 0 lost" {
			t.Errorf("%s: %s", c.ID, got)
		}
	}
	want := []string{"a", "b", "c", "d"}
	if began.Package != "d" { // that one began before the second, and is obsolete when it is d
		want = append(want, began.Package)
		slices.Sort(want)
	}
	if got := slices.Sorted(slices.Values(w.since(n))); !slices.Equal(got, want) {
		t.Errorf("%s ran when the second began; it took %v", began.Package, got)
	}
}

// TestMassCancel: what has not begun is not built any more, unless another mass
// rebuild wants it.
func TestMassCancel(t *testing.T) {
	x := []string{"x86_64"}
	w := newABIWorld(t)
	for _, p := range []string{"a", "b", "c", "d"} {
		w.push(p, "1", "a", x)
	}
	opts := w.options(folder(t))
	q := start(t, opts)
	q.settle()
	if err := q.Pause(t.Context(), "bob", ""); err != nil {
		t.Fatal(err)
	}
	n := len(w.since(0))
	first := q.mass(Campaign{})
	second := q.mass(Campaign{Match: []string{"[ab]"}})
	if r, err := q.Report(t.Context(), first.ID); err != nil || r.Queued != 4 || r.Left() != 4 || r.Expected <= 0 {
		t.Errorf("before anything was built: %+v %v", r, err)
	}
	c, err := q.CancelMass(t.Context(), first.ID, "carol")
	if err != nil || c.Cancelled != "carol" || !c.Over() || c.Report.Left() != 4 {
		t.Errorf("called off: %+v %v", c, err)
	}
	if _, err := q.CancelMass(t.Context(), first.ID, "carol"); err == nil {
		t.Error("called off twice")
	}
	if live := q.List(Filter{Live: true}); len(live) != 2 {
		t.Errorf("%d builds are still under way", len(live))
	}
	for _, b := range q.List(Filter{Package: "c", Limit: 1}) {
		if b.State != quarry.Obsolete || b.Reason != "no mass rebuild wants it any more" {
			t.Errorf("c is %s: %s", b.State, b.Reason)
		}
	}
	// One of the two that are left is called off by itself.
	if err := q.Cancel(t.Context(), q.List(Filter{Package: "b", Limit: 1})[0].Number, "carol"); err != nil {
		t.Fatal(err)
	}
	if err := q.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := counts(q.over(second.ID)); got != "2: 1 ok, 0 failed, 0 left, 1 lost" {
		t.Errorf("the second: %s", got)
	}
	if got := w.since(n); fmt.Sprint(got) != "[a]" {
		t.Errorf("it built %v", got)
	}
}

// TestMassWiped: a mass rebuild goes on where it was when the queue's folder is
// lost, and nothing is built twice, though its numbers were used by no record yet.
func TestMassWiped(t *testing.T) {
	x := []string{"x86_64"}
	w := newABIWorld(t)
	var all []string
	for i := range 6 {
		all = append(all, fmt.Sprint("p", i))
		w.push(all[i], "1", "a", x, all[:i]...)
	}
	q := start(t, w.options(folder(t)))
	q.settle()
	letGo := w.hold(func(b quarry.Build) bool { return b.Package == "p3" })
	n := len(w.since(0))
	first := q.mass(Campaign{})
	q.until("three of them", func() bool { return len(w.since(n)) == 3 })
	second := q.mass(Campaign{Match: []string{"p[0145]"}}) // First is a number beyond all records
	q.stop()
	letGo()
	q = start(t, w.options(folder(t)))
	q.over(second.ID)
	if got := counts(q.over(first.ID)); got != "6: 6 ok, 0 failed, 0 left, 0 lost" {
		t.Error(got)
	}
	if got := w.since(n); fmt.Sprint(got) != "[p0 p1 p2 p0 p1 p3 p4 p5]" {
		t.Errorf("it built %v", got)
	}
}

// TestMassGivenUp: what the farm gives up does not keep a mass rebuild open.
func TestMassGivenUp(t *testing.T) {
	w := newABIWorld(t)
	for _, p := range []string{"a", "b"} {
		w.push(p, "1", "a", archs2[:1])
	}
	q := start(t, w.options(folder(t)))
	q.settle()
	w.mu.Lock()
	w.onRun = func(_ context.Context, b quarry.Build, _ func(string)) (*quarry.Outcome, error) {
		if b.Package == "a" {
			return nil, errors.New("lost")
		}
		return nil, nil
	}
	w.mu.Unlock()
	if got := counts(q.over(q.mass(Campaign{}).ID)); got != "2: 1 ok, 0 failed, 0 left, 1 lost" {
		t.Error(got)
	}
}

// TestMassBegunBefore: what was under way when a mass rebuild began is built anew
// for it, and what needs that comes after, however long the planner takes to see it.
func TestMassBegunBefore(t *testing.T) {
	x := []string{"x86_64"}
	w := newABIWorld(t)
	w.push("lib", "1", "a", x)
	w.push("app", "1", "a", x, "lib")
	var slow atomic.Bool // the planner
	plan := make(chan struct{})
	w.tick = func(where string) error {
		if where == "releases" && slow.Load() {
			<-plan
		}
		return nil
	}
	q := start(t, w.options(folder(t)))
	q.settle()
	letGo := w.hold(func(b quarry.Build) bool { return b.Package == "lib" && b.Attempt == 1 })
	first := q.mass(Campaign{Match: []string{"lib"}})
	q.until("lib runs", func() bool { return len(q.List(Filter{States: []quarry.State{quarry.Running}})) == 1 })
	second := q.mass(Campaign{})
	n := len(w.since(0))
	slow.Store(true)
	letGo()
	q.until("the first lib", func() bool { return len(w.since(n)) > 0 })
	// Nothing may begin now. Whether it would can only be waited for.
	for range 100 {
		if got := w.since(n); len(got) > 1 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	close(plan)
	q.over(first.ID)
	q.over(second.ID)
	if got := w.since(n); fmt.Sprint(got) != "[lib lib app]" {
		t.Errorf("built %v", got)
	}
}

// TestMassWaits: what waits in vain keeps nobody from being built, and what waits
// for what is being built goes before what needs it.
func TestMassWaits(t *testing.T) {
	x := []string{"x86_64"}
	w := newABIWorld(t)
	w.push("lib", "1", "a", x)
	w.push("mid", "1", "a", x, "lib")
	w.push("top", "1", "a", x, "mid")
	q := start(t, w.options(folder(t)))
	q.settle()
	q.stop()
	w.push("mid", "1", "b", x, "lib", "late") // late is there only later
	w.push("late", "1", "a", x)
	letGo := w.hold(func(b quarry.Build) bool { return b.Package == "late" })
	q = start(t, w.options(folder(t)))
	q.until("mid waits", func() bool {
		l := q.List(Filter{Package: "mid", States: []quarry.State{quarry.Waiting}})
		return len(l) == 1
	})
	q.until("late runs", func() bool { return len(q.List(Filter{Package: "late", States: []quarry.State{quarry.Running}})) == 1 })
	n := len(w.since(0))
	c := q.mass(Campaign{Match: []string{"top"}})
	q.until("top after mid", func() bool {
		b := q.List(Filter{Package: "top", Limit: 1})[0]
		return b.State == quarry.Queued && strings.HasPrefix(b.Reason, "after build ") && strings.HasSuffix(b.Reason, ", as it needs mid")
	})
	letGo()
	q.over(c.ID)
	if got := w.since(n); fmt.Sprint(got) != "[late mid top]" {
		t.Errorf("built %v", got)
	}

	// Now late is gone for good, and mid waits in vain.
	w.delete("late", "1")
	w.mu.Lock()
	delete(w.records, quarry.Target{Channel: "testing", Package: "late", Version: "1", Arch: "x86_64"})
	w.mu.Unlock()
	w.push("mid", "1", "c", x, "lib", "late")
	n = len(w.since(0))
	q.pushed("mid")
	q.over(q.mass(Campaign{Match: []string{"top"}}).ID)
	if got := w.since(n); fmt.Sprint(got) != "[top]" {
		t.Errorf("with mid waiting in vain: built %v", got)
	}
}

// A package that is planned for itself, between the making of a mass rebuild and
// the plan of all for it, does not go ahead of what it needs.
func TestMassBeforeItsPlan(t *testing.T) {
	w := newWorld(t)
	w.push("lib", "1", "a", archs2[:1])
	w.push("app", "1", "a", archs2[:1], "lib")
	q := start(t, w.options(folder(t)))
	q.settle()
	c := Campaign{ID: "20260314-3f9a", By: "root", Made: time.Now().UTC().Truncate(time.Second), First: q.Status().Last + 1}
	if _, err := q.campaigns.update(t.Context(), c.ID, func(to *Campaign) error { *to = c; return nil }); err != nil {
		t.Fatal(err)
	}
	begun := func() (pkgs []string) {
		for _, b := range q.List(Filter{}) {
			if b.Nonce == c.nonce() {
				pkgs = append(pkgs, b.Package)
			}
		}
		return pkgs
	}
	q.pushed("app")
	if got := begun(); len(got) > 0 {
		t.Errorf("%v is built for it before all is planned", got)
	}
	if err := q.Replan(t.Context()); err != nil {
		t.Fatal(err)
	}
	q.settle()
	var built []string
	w.mu.Lock()
	for _, o := range w.history {
		if o.Build.Nonce == c.nonce() {
			built = append(built, o.Build.Package)
		}
	}
	w.mu.Unlock()
	if want := []string{"lib", "app"}; !slices.Equal(built, want) {
		t.Errorf("built %v, not %v", built, want)
	}
}

// TestMassAnywhere: random graphs, mass rebuilds, failures of the farm and deaths
// of the process: every target is built exactly once for each mass rebuild, after
// what it needs.
func TestMassAnywhere(t *testing.T) {
	for seed := range 24 {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			massAnywhere(t, rand.New(rand.NewPCG(uint64(seed), 4)))
		})
	}
}

func massAnywhere(t *testing.T, rnd *rand.Rand) {
	w := newWorld(t)
	n := 4 + rnd.IntN(8)
	needs := map[string][]string{}
	for i := range n {
		pkg := fmt.Sprint("p", i)
		if rnd.IntN(6) == 0 && i > 0 {
			pkg = fmt.Sprint("bad", i) // nothing needs it
		}
		var list []string
		for j := range i {
			if rnd.IntN(3) == 0 && needs[fmt.Sprint("p", j)] != nil {
				list = append(list, fmt.Sprint("p", j))
			}
		}
		needs[pkg] = append([]string{}, list...)
		w.push(pkg, "1", "a", archs2[:1], list...)
	}
	q := start(t, w.options(folder(t)))
	q.settle()
	q.stop()
	before := len(w.history)

	fsys := folder(t)
	var made []Campaign
	lives := 1 + rnd.IntN(5)
	for life := 0; ; life++ {
		f := newFate(fsys, 0)
		if life < lives {
			f.at = 3 + rnd.IntN(60)
		}
		if life > 0 && rnd.IntN(3) == 0 { // the folder is lost
			fsys = folder(t)
			f.fs = fsys
		}
		flaky := rnd.IntN(2) == 0
		w.mu.Lock()
		w.tick = f.act
		w.onRun = func(_ context.Context, b quarry.Build, _ func(string)) (*quarry.Outcome, error) {
			if flaky && b.Attempt == 1 && b.Number%3 == 0 {
				return nil, errors.New("lost once")
			}
			return nil, nil
		}
		w.mu.Unlock()
		done := oneLife(t, w, f, func(q *Queue) {
			if len(made) > 0 && rnd.IntN(3) > 0 {
				return
			}
			c := Campaign{By: "root"}
			if len(made) > 0 {
				c.Match = []string{"*[0-5]"}
			}
			q.Mass(t.Context(), c)
			w.mu.Lock()
			made = made[:0]
			for _, c := range w.mass {
				made = append(made, c)
			}
			w.mu.Unlock()
		})
		if done && len(made) > 0 {
			break
		}
		if life > 200 {
			t.Fatal("it never came to an end")
		}
	}

	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range made {
		at := map[string]int{}
		for i, o := range w.history[before:] {
			if o.Build.Nonce != c.nonce() {
				continue
			}
			if at[o.Build.Package] > 0 {
				t.Errorf("%s was built twice for %s", o.Build.Package, c.ID)
			}
			at[o.Build.Package] = i + 1
		}
		for pkg := range needs {
			target := quarry.Target{Channel: "testing", Package: pkg, Version: "1", Arch: archs2[0]}
			if !c.covers(target) {
				continue
			}
			if ref := w.records[target]; !c.counts(ref.Build) {
				t.Errorf("%s was not built for %s: its record is of build %d, before %d", pkg, c.ID, ref.Build, c.First)
			}
			for _, dep := range needs[pkg] {
				if at[pkg] > 0 && at[dep] > at[pkg] {
					t.Errorf("%s was built for %s before %s, which it needs", pkg, c.ID, dep)
				}
			}
		}
	}
	// No more builds than there were reasons for.
	total := map[string]int{}
	for _, o := range w.history[before:] {
		total[o.Build.Package]++
	}
	for pkg, k := range total {
		if k > len(made) {
			t.Errorf("%s was built %d times for %d mass rebuilds", pkg, k, len(made))
		}
	}
}

// oneLife runs a process until all mass rebuilds are over (then it reports true),
// or it dies.
func oneLife(t *testing.T, w *world, f *fate, act func(*Queue)) bool {
	q, err := New(w.options(mortal{f.fs, f}))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- q.Run(ctx) }()
	defer func() {
		cancel()
		select {
		case <-done:
		case <-time.After(2 * time.Minute):
			t.Error("the queue does not stop")
		}
	}()
	acted := make(chan struct{})
	go func() { defer close(acted); act(q) }()
	defer func() { cancel(); <-acted }()
	for end := time.Now().Add(2 * time.Minute); !f.isDead(); time.Sleep(500 * time.Microsecond) {
		select {
		case <-acted:
		default:
			continue
		}
		if len(q.List(Filter{Live: true})) == 0 && w.massOver() {
			return true
		}
		// What a mass rebuild waits for at its end is a full plan.
		pctx, stop := context.WithTimeout(ctx, 50*time.Millisecond)
		q.Replan(pctx)
		stop()
		if time.Now().After(end) {
			t.Fatalf("never done: %+v %v", q.Status(), states(q.List(Filter{})))
		}
	}
	return false
}

func (w *world) massOver() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.mass {
		if !c.Over() {
			return false
		}
	}
	return true
}

// TestSpans: numbers are told from each other as they were written.
func TestSpans(t *testing.T) {
	c := Campaign{First: 100, Shared: spans([]int64{3, 4, 5, 9, 20, 21})}
	if got := fmt.Sprint(c.Shared); got != "[3-5 9 20-21]" {
		t.Errorf("written as %s", got)
	}
	var yes []int64
	for n := range int64(102) {
		if c.counts(n) {
			yes = append(yes, n)
		}
	}
	if fmt.Sprint(yes) != "[3 4 5 9 20 21 100 101]" {
		t.Errorf("read as %v", yes)
	}
	for _, hostile := range []string{"", "-", "x", "1-x", "-1", "99999999999999999999"} {
		c.Shared = []string{hostile}
		if c.counts(1) {
			t.Errorf("%q holds 1", hostile)
		}
	}
}
