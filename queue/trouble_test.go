package queue

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/Morphux/quarry"
)

// TestProblemsKeepBuilds: a repository that cannot be read for a moment must
// not take its builds down, nor those of others.
func TestProblemsKeepBuilds(t *testing.T) {
	w := newWorld(t)
	q := start(t, w.options(folder(t)))
	q.planned()
	w.push("app", "1", "c", []string{"x86_64"}, "nothing-1")
	app := q.first("app")
	w.delete("app", "1")
	w.push("zlib", "1", "d", []string{"x86_64"})
	w.mu.Lock()
	w.problems = []Problem{{"app", "app-1", errors.New("input/output error")}}
	w.mu.Unlock()
	builds, err := q.Pushed(t.Context(), "app")
	if err == nil || err.Error() != "app: branch app-1: input/output error" || len(builds) != 1 || builds[0].Number != app.Number {
		t.Fatalf("got %v, %v", builds, err)
	}
	if err := q.Replan(t.Context()); err != nil {
		t.Fatal(err)
	}
	q.until("zlib is built", func() bool { return len(w.branchRecords("zlib")) == 1 })
	if b, _ := q.Get(app.Number); b.State != quarry.Waiting {
		t.Errorf("got %+v", plain(b))
	}
	if p := q.Status().Problems; len(p) != 1 {
		t.Errorf("got problems %v", p)
	}
	w.mu.Lock()
	w.problems, w.releasesErr = nil, errors.New("no such folder")
	w.mu.Unlock()
	if err := q.Replan(t.Context()); err == nil || !strings.Contains(err.Error(), "no such folder") {
		t.Errorf("got %v", err)
	}
	if b, _ := q.Get(app.Number); b.State != quarry.Waiting {
		t.Errorf("got %+v", plain(b))
	}
	w.mu.Lock()
	w.releasesErr = nil
	w.mu.Unlock()
	// It recovers by itself, and now the branch is truly gone.
	if b := q.wait(app.Number); b.State != quarry.Obsolete {
		t.Errorf("got %+v", plain(b))
	}
	q.until("problems gone", func() bool { return len(q.Status().Problems) == 0 })
}

func TestErroredIsRemembered(t *testing.T) {
	w := newWorld(t)
	broken := atomic.Bool{}
	broken.Store(true)
	w.onRun = func(context.Context, quarry.Build, func(string)) (*quarry.Outcome, error) {
		if broken.Load() {
			return nil, errors.New("the container\nvanished")
		}
		return nil, nil
	}
	fsys := folder(t)
	q := start(t, w.options(fsys))
	w.push("zlib", "1", "a", []string{"x86_64"})
	n := q.first("zlib").Number
	b := q.wait(n)
	if b.State != quarry.Errored || b.Attempt != 3 || b.Reason != "tried 3 times, last: the container vanished" {
		t.Fatalf("got %+v", plain(b))
	}
	broken.Store(false)
	if err := q.Replan(t.Context()); err != nil {
		t.Fatal(err)
	}
	q.stop()
	q = start(t, w.options(fsys))
	if err := q.Replan(t.Context()); err != nil {
		t.Fatal(err)
	}
	if l := q.List(Filter{}); len(l) != 1 || l[0].State != quarry.Errored {
		t.Fatalf("a replan started it again: %v", states(l))
	}
	if w.runs[b.Target()] != 3 || len(w.history) != 0 {
		t.Errorf("runs %v, records %v", w.runs, w.history)
	}
	again, err := q.Rebuild(t.Context(), n, "bob")
	if err != nil {
		t.Fatal(err)
	}
	if again.Nonce == "" || again.Reason != "rebuild asked for by bob" || again.Number <= n {
		t.Errorf("got %+v", plain(again))
	}
	if b := q.wait(again.Number); b.State != quarry.Succeeded {
		t.Errorf("got %+v", plain(b))
	}
	// The other way to try again is to push again.
	broken.Store(true)
	w.push("ed", "1", "a", []string{"x86_64"})
	lost := q.wait(q.first("ed").Number)
	broken.Store(false)
	if l := q.pushed("ed"); len(l) != 0 {
		t.Fatalf("got %v", l)
	}
	w.push("ed", "1", "a", []string{"x86_64"})
	if b := q.wait(q.first("ed").Number); b.Number == lost.Number || b.State != quarry.Succeeded {
		t.Errorf("got %+v", plain(b))
	}
}

// TestFarmTrouble: errors of the farm do not count against a build, and show.
func TestFarmTrouble(t *testing.T) {
	w := newWorld(t)
	var down, probes atomic.Int64
	down.Store(1)
	w.onRun = func(context.Context, quarry.Build, func(string)) (*quarry.Outcome, error) {
		if down.Load() == 1 {
			return nil, fmt.Errorf("cannot start: %w", &FarmError{errors.New("podman is gone")})
		}
		return nil, nil
	}
	opts := w.options(folder(t))
	opts.Probe = func(context.Context) error {
		probes.Add(1)
		if down.Load() == 1 {
			return errors.New("podman does not answer")
		}
		return nil
	}
	q := start(t, opts)
	w.push("zlib", "1", "a", archs2)
	builds := q.pushed("zlib")
	q.until("pause", func() bool {
		p := q.Status().Paused
		return len(p) == 1 && p[0].Reason == "podman does not answer"
	})
	q.until("probes", func() bool { return probes.Load() > 3 })
	// Both were tried at once, and one may have come back later.
	q.until("a build that stands still", func() bool {
		b, _ := q.Get(builds[0].Number)
		return b.State == quarry.Queued && b.Attempt == 0 && strings.Contains(b.Reason, "paused: podman does not answer")
	})
	w.mu.Lock()
	n := w.runs[builds[0].Target()]
	w.mu.Unlock()
	if n > 2 {
		t.Errorf("it was started %d times in spite of the pause", n)
	}
	down.Store(0)
	for _, b := range builds {
		if got := q.wait(b.Number); got.State != quarry.Succeeded || got.Attempt != 1 {
			t.Errorf("got %+v", plain(got))
		}
	}
	if p := q.Status().Paused; len(p) != 0 {
		t.Errorf("still paused: %v", p)
	}
}

// TestEnvironmentTrouble: an arch without a base stands still and says so; the other
// goes on.
func TestEnvironmentTrouble(t *testing.T) {
	w := newWorld(t)
	var down atomic.Bool
	down.Store(true)
	w.onRun = func(_ context.Context, b quarry.Build, _ func(string)) (*quarry.Outcome, error) {
		if b.Arch == "aarch64" && down.Load() {
			return nil, &EnvironmentError{errors.New("no base for aarch64: load one with quarry images load")}
		}
		return nil, nil
	}
	opts := w.options(folder(t))
	opts.ProbeEnvironment = func(_ context.Context, env quarry.Environment) error {
		if env.Arch == "aarch64" && down.Load() {
			return errors.New("no base for aarch64: load one with quarry images load")
		}
		return nil
	}
	q := start(t, opts)
	var numbers []int64
	for i := range 5 {
		pkg := fmt.Sprintf("p%d", i)
		w.push(pkg, "1", "a", archs2)
		for _, b := range q.pushed(pkg) {
			if b.Arch == "x86_64" {
				q.wait(b.Number)
			} else {
				numbers = append(numbers, b.Number)
			}
		}
	}
	q.until("the pause of one environment", func() bool { return len(q.Status().Paused) > 0 })
	s := q.Status()
	if len(s.Paused) != 1 || s.Paused[0].Environment.String() != "testing/aarch64" || len(s.Envs) != 1 || !strings.Contains(s.Envs[0].Paused, "no base") {
		t.Errorf("got %+v", s)
	}
	if b, _ := q.Get(numbers[4]); b.Reason != "paused: no base for aarch64: load one with quarry images load" {
		t.Errorf("got %+v", plain(b))
	}
	down.Store(false)
	for _, n := range numbers {
		if b := q.wait(n); b.State != quarry.Succeeded {
			t.Errorf("got %+v", plain(b))
		}
	}
}

// TestRecordTrouble: a record that cannot be made stops no other, is seen, and
// is tried until it stands.
func TestRecordTrouble(t *testing.T) {
	w := newWorld(t)
	var down, all atomic.Bool
	down.Store(true)
	w.onRecord = func(o *quarry.Outcome) error {
		switch {
		case all.Load() && down.Load():
			return errors.New("the ref is locked")
		case o.Build.Package == "stuck" && down.Load():
			return errors.New("the ref is locked")
		case o.Build.Package == "panics" && down.Load():
			panic("oops")
		case o.Build.Package == "late":
			return fmt.Errorf("late-1: %w", ErrObsolete)
		}
		return nil
	}
	q := start(t, w.options(folder(t)))
	q.planned()
	x := []string{"x86_64"}
	var builds []quarry.Build
	for _, pkg := range []string{"stuck", "panics", "fine", "late"} {
		w.push(pkg, "1", "a", x)
		builds = append(builds, q.pushed(pkg)...)
	}
	if b := q.wait(builds[2].Number); b.State != quarry.Succeeded {
		t.Errorf("got %+v", plain(b))
	}
	if b := q.wait(builds[3].Number); b.State != quarry.Obsolete {
		t.Errorf("got %+v", plain(b))
	}
	q.until("problems show", func() bool { return len(q.Status().Problems) == 2 })
	if b, _ := q.Get(builds[0].Number); b.State != quarry.Recording {
		t.Errorf("got %+v", plain(b))
	}
	if p := q.Status().Paused; len(p) != 0 {
		t.Errorf("paused: %+v", p)
	}
	// A third one says that it is not the builds.
	all.Store(true)
	w.push("third", "1", "a", x)
	builds = append(builds, q.pushed("third")...)
	q.until("pause", func() bool { return len(q.Status().Paused) == 1 })
	// One of them is called off.
	if err := q.Cancel(t.Context(), builds[1].Number, "bob"); err != nil {
		t.Fatal(err)
	}
	if b := q.wait(builds[1].Number); b.State != quarry.Cancelled {
		t.Errorf("got %+v", plain(b))
	}
	down.Store(false)
	for _, i := range []int{0, 4} {
		if b := q.wait(builds[i].Number); b.State != quarry.Succeeded {
			t.Errorf("got %+v", plain(b))
		}
	}
	q.until("no pause and no problem", func() bool { s := q.Status(); return len(s.Paused)+len(s.Problems) == 0 })
	if err := w.once(); err != nil {
		t.Error(err)
	}
}

// TestBadStages: what a stage must not do ends its own build, not the queue.
func TestBadStages(t *testing.T) {
	w := newWorld(t)
	w.onRun = func(_ context.Context, b quarry.Build, _ func(string)) (*quarry.Outcome, error) {
		switch b.Package {
		case "panic":
			panic("a stage with a bug")
		case "state":
			return &quarry.Outcome{Status: quarry.Running}, nil
		}
		return nil, nil
	}
	opts := w.options(folder(t))
	run := opts.Run
	opts.Run = func(ctx context.Context, b quarry.Build, deps []quarry.DepUsed, onStep func(string)) (*quarry.Outcome, error) {
		if b.Package == "nothing" {
			return nil, nil
		}
		return run(ctx, b, deps, onStep)
	}
	q := start(t, opts)
	for pkg, want := range map[string]string{
		"panic":   "tried 3 times, last: the runner panicked: a stage with a bug",
		"state":   `tried 3 times, last: the runner returned an outcome that is "running": it has to be succeeded or failed`,
		"nothing": "tried 3 times, last: the runner returned neither an outcome nor an error",
	} {
		w.push(pkg, "1", "a", []string{"x86_64"})
		if b := q.wait(q.first(pkg).Number); b.State != quarry.Errored || b.Reason != want {
			t.Errorf("%s: got %+v", pkg, b)
		}
	}
}
