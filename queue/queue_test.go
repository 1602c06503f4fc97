package queue

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Morphux/quarry"
)

func TestPushToRecord(t *testing.T) {
	w := newWorld(t)
	q := start(t, w.options(folder(t)))
	q.planned()
	w.push("zlib", "1.3.1", "a", archs2)
	w.push("bad", "1", "b", []string{"x86_64"})
	zlib, bad := q.pushed("zlib"), q.pushed("bad")
	if len(zlib) != 2 || len(bad) != 1 {
		t.Fatalf("got %d and %d builds, want 2 and 1", len(zlib), len(bad))
	}
	for _, b := range zlib {
		got := q.wait(b.Number)
		if got.State != quarry.Succeeded || got.Record == "" || got.Attempt != 1 || got.Ended.IsZero() || got.Started.IsZero() {
			t.Errorf("got %+v", plain(got))
		}
	}
	got := q.wait(bad[0].Number)
	if got.State != quarry.Failed || got.Reason != "make ended with status 2" || got.Record == "" {
		t.Errorf("got %+v", plain(got))
	}
	if got.Repo != "" {
		t.Errorf("whoever looks is told where the farm keeps its repositories: %s", got.Repo)
	}
	for _, o := range w.history {
		if o.Build.Repo == "" {
			t.Errorf("who built %v was not told where the repository is", o.Build)
		}
	}
	if again := q.pushed("bad"); len(again) != 0 {
		t.Errorf("a failure is a record, yet it is built again: %v", again)
	}
	if err := w.once(); err != nil {
		t.Error(err)
	}
	if infos, _ := readDirNames(q.opts.Fs, outcomesDir); len(infos) != 0 {
		t.Errorf("outcomes left behind: %v", infos)
	}
}

func TestWaiting(t *testing.T) {
	w := newWorld(t)
	block := make(chan struct{})
	w.onRun = func(ctx context.Context, b quarry.Build, _ func(string)) (*quarry.Outcome, error) {
		if b.Package == "libgreet" {
			<-block
		}
		return nil, nil
	}
	q := start(t, w.options(folder(t)))
	x := []string{"x86_64"}
	w.push("hello", "2.0", "a", x, "libgreet-1.0", "zlib>=1.2")
	hello := q.first("hello")
	if hello.State != quarry.Waiting || !strings.Contains(hello.Reason, "libgreet-1.0") || !strings.Contains(hello.Reason, "zlib>=1.2") {
		t.Fatalf("got %+v", plain(hello))
	}
	q.planned()
	reason := func(want string) {
		t.Helper()
		q.until("reason "+want, func() bool { b, _ := q.Get(hello.Number); return b.Reason == want })
	}
	reason("waits for libgreet-1.0, which nobody has pushed, and for zlib>=1.2, which nobody has pushed")
	w.push("libgreet", "0.9", "b", x)
	q.pushed("libgreet")
	reason("waits for libgreet-1.0, a version that nobody has pushed, and for zlib>=1.2, which nobody has pushed")
	w.push("zlib", "1.3", "c", []string{"aarch64"})
	q.pushed("zlib")
	reason("waits for libgreet-1.0, a version that nobody has pushed, and for zlib>=1.2, which is not built for x86_64")
	w.push("zlib", "1.3", "c2", archs2)
	q.pushed("zlib")
	reason("waits for libgreet-1.0, a version that nobody has pushed")
	w.push("libgreet", "1.0", "d", x)
	greet := q.pushed("libgreet")
	reason("waits for libgreet-1.0")
	close(block)
	for _, b := range greet {
		q.wait(b.Number)
	}
	if b := q.wait(hello.Number); b.State != quarry.Succeeded {
		t.Errorf("got %+v", plain(b))
	}
	if n := w.ranTimes("libgreet", "1.0"); n != 1 {
		t.Errorf("libgreet ran %d times", n)
	}

	w.push("app", "1", "e", x, "badlib-1.0")
	app := q.first("app")
	w.push("badlib", "1.0", "f", x)
	q.wait(q.first("badlib").Number)
	q.until("told of the failure", func() bool {
		b, _ := q.Get(app.Number)
		return b.Reason == "waits for badlib-1.0, whose build failed"
	})
	// What is noarch may need what one machine's arch has.
	w.push("scripts", "1", "s", []string{quarry.Noarch}, "slow-1.0")
	scripts := q.first("scripts")
	w.push("slow", "1.0", "t", x, "never-1.0")
	q.pushed("slow")
	q.until("no blame for the arch", func() bool {
		b, _ := q.Get(scripts.Number)
		return b.Reason == "waits for slow-1.0"
	})
	// The reason is known from git alone as well.
	q.stop()
	fresh := start(t, w.options(folder(t)))
	fresh.until("told of the failure after a wipe", func() bool {
		l := fresh.List(Filter{Package: "app"})
		return len(l) == 1 && l[0].Reason == "waits for badlib-1.0, whose build failed" && l[0].Number > app.Number-2
	})
}

// TestObsolete is two pushes to one branch in quick succession: the slow older
// build must not write over the newer.
func TestObsolete(t *testing.T) {
	w := newWorld(t)
	begun := make(chan quarry.Build, 10)
	w.onRun = func(ctx context.Context, b quarry.Build, _ func(string)) (*quarry.Outcome, error) {
		if strings.HasSuffix(b.Commit, "a") {
			begun <- b
			<-ctx.Done()
			// It is so slow to stop that it finishes.
			time.Sleep(20 * time.Millisecond)
			return outcome(b, nil), nil
		}
		return nil, nil
	}
	q := start(t, w.options(folder(t)))
	w.push("zlib", "1", "a", []string{"x86_64"})
	old := q.first("zlib")
	<-begun
	w.push("zlib", "1", "b", []string{"x86_64"})
	fresh := q.pushed("zlib")
	if len(fresh) != 1 || fresh[0].Number == old.Number || fresh[0].State != quarry.Queued {
		t.Fatalf("got %v", states(fresh))
	}
	if b := q.wait(old.Number); b.State != quarry.Obsolete || !strings.Contains(b.Reason, "moved on to") {
		t.Errorf("got %+v", plain(b))
	}
	if b := q.wait(fresh[0].Number); b.State != quarry.Succeeded {
		t.Errorf("got %+v", plain(b))
	}
	if len(w.history) != 1 || !w.settled() {
		t.Errorf("records: %+v", w.history)
	}
	// A deleted branch, with its build waiting.
	w.push("app", "1", "c", []string{"x86_64"}, "nothing-1")
	app := q.first("app")
	w.delete("app", "1")
	q.pushed("app")
	if b := q.wait(app.Number); b.State != quarry.Obsolete || b.Reason != "branch app-1 is gone" {
		t.Errorf("got %+v", plain(b))
	}
}

func (w *world) branchRecords(pkg string) (list []quarry.Outcome) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range w.history {
		if o.Build.Package == pkg {
			list = append(list, o)
		}
	}
	return list
}

func TestCancel(t *testing.T) {
	w := newWorld(t)
	begun := make(chan struct{}, 10)
	w.onRun = func(ctx context.Context, b quarry.Build, _ func(string)) (*quarry.Outcome, error) {
		begun <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	opts := w.options(folder(t))
	opts.Workers = 1
	q := start(t, opts)
	w.push("zlib", "1", "a", archs2)
	builds := q.pushed("zlib")
	<-begun
	q.untilState(builds[0].Number, quarry.Running)
	for _, b := range builds {
		if err := q.Cancel(t.Context(), b.Number, "bob"); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range builds {
		if got := q.wait(b.Number); got.State != quarry.Cancelled || got.Reason != "cancelled by bob" {
			t.Errorf("got %+v", plain(got))
		}
	}
	if err := q.Replan(t.Context()); err != nil {
		t.Fatal(err)
	}
	if l := q.List(Filter{Live: true}); len(l) != 0 {
		t.Errorf("started again: %v", l)
	}
	if err := q.Cancel(t.Context(), builds[0].Number, "bob"); err == nil || !strings.Contains(err.Error(), "ended already") {
		t.Errorf("got %v", err)
	}
	if err := q.Cancel(t.Context(), 99, "bob"); !errors.Is(err, ErrUnknown) {
		t.Errorf("got %v", err)
	}
}

func TestRebuild(t *testing.T) {
	w := newWorld(t)
	q := start(t, w.options(folder(t)))
	w.push("zlib", "1", "a", archs2)
	for _, b := range q.pushed("zlib") {
		q.wait(b.Number)
	}
	builds, err := q.RebuildTarget(t.Context(), quarry.Target{Package: "zlib", Version: "1"}, "bob")
	if err != nil || len(builds) != 2 {
		t.Fatalf("got %v, %v", builds, err)
	}
	for _, b := range builds {
		if got := q.wait(b.Number); got.State != quarry.Succeeded {
			t.Errorf("got %+v", plain(got))
		}
	}
	one, err := q.RebuildTarget(t.Context(), quarry.Target{Package: "zlib", Version: "1", Arch: "aarch64"}, "bob")
	if err != nil || len(one) != 1 || one[0].Arch != "aarch64" {
		t.Fatalf("got %v, %v", one, err)
	}
	q.wait(one[0].Number)
	if len(w.history) != 5 {
		t.Errorf("%d records", len(w.history))
	}
	for _, c := range []struct {
		t    quarry.Target
		want string
	}{
		{quarry.Target{Package: "zlib", Version: "2"}, "branch zlib-2 is not there: push it to have it built"},
		{quarry.Target{Package: "zlib", Version: "1", Arch: "riscv64"}, "zlib-1 is not built for riscv64: see its archs in package.json and those of the channel"},
		{quarry.Target{Package: "-x", Version: "1"}, `package name "-x" may not begin with '-': use ASCII letters, digits and + - . _, beginning with a letter or digit`},
	} {
		if _, err := q.RebuildTarget(t.Context(), c.t, "bob"); err == nil || err.Error() != c.want {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
	// Asked twice before it begins, it is one.
	if err := q.Pause(t.Context(), "bob", ""); err != nil {
		t.Fatal(err)
	}
	b1, err1 := q.Rebuild(t.Context(), one[0].Number, "bob")
	b2, err2 := q.Rebuild(t.Context(), one[0].Number, "carol")
	if err1 != nil || err2 != nil || b1.Number != b2.Number {
		t.Errorf("got %v %v, %v %v", b1, err1, b2, err2)
	}
}

func TestStopPutsBack(t *testing.T) {
	w := newWorld(t)
	begun := make(chan struct{}, 10)
	first := atomic.Bool{}
	first.Store(true)
	w.onRun = func(ctx context.Context, b quarry.Build, _ func(string)) (*quarry.Outcome, error) {
		if first.Load() {
			begun <- struct{}{}
			<-ctx.Done()
			return nil, fmt.Errorf("stopped: %w", ctx.Err())
		}
		return nil, nil
	}
	fsys := folder(t)
	q := start(t, w.options(fsys))
	w.push("zlib", "1", "a", archs2)
	builds := q.pushed("zlib")
	<-begun
	<-begun
	q.stop()
	if _, err := q.Wait(t.Context(), builds[0].Number); !errors.Is(err, ErrStopped) {
		t.Errorf("got %v", err)
	}
	if _, err := q.Pushed(t.Context(), "zlib"); !errors.Is(err, ErrStopped) {
		t.Errorf("got %v", err)
	}
	first.Store(false)
	q2, err := New(w.options(fsys))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range builds {
		if got, _ := q2.Get(b.Number); got.State != quarry.Queued || got.Attempt != 0 || got.Reason != "put back: the daemon was stopped" {
			t.Errorf("got %+v", plain(got))
		}
	}
	q = start(t, w.options(fsys))
	for _, b := range builds {
		if got := q.wait(b.Number); got.State != quarry.Succeeded || got.Attempt != 1 {
			t.Errorf("got %+v", plain(got))
		}
	}
}

func TestPauseLasts(t *testing.T) {
	w := newWorld(t)
	fsys := folder(t)
	q := start(t, w.options(fsys))
	if err := q.Pause(t.Context(), "bob", "moving house"); err != nil {
		t.Fatal(err)
	}
	q.stop()
	q = start(t, w.options(fsys))
	w.push("zlib", "1", "a", []string{"x86_64"})
	b := q.first("zlib")
	if b.Reason != "paused: moving house" {
		t.Errorf("got %+v", plain(b))
	}
	time.Sleep(20 * time.Millisecond)
	if b, _ := q.Get(b.Number); b.State != quarry.Queued {
		t.Errorf("got %+v", plain(b))
	}
	if err := q.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	q.wait(b.Number)
	q.stop()
	q = start(t, w.options(fsys))
	q.planned() // before it runs it has no pauses at all
	if p := q.Status().Paused; len(p) != 0 {
		t.Errorf("got %v", p)
	}
}

// TestSubscribe: a reader that does not read holds up nobody, and is told the
// last state of every build when it does.
func TestSubscribe(t *testing.T) {
	w := newWorld(t)
	q := start(t, w.options(folder(t)))
	ctx, cancel := context.WithCancel(t.Context())
	slow := q.Subscribe(ctx)
	for i := range 50 {
		w.push(fmt.Sprintf("p%d", i), "1", "a", archs2)
	}
	if err := q.Replan(t.Context()); err != nil {
		t.Fatal(err)
	}
	q.until("all built", w.settled)
	last := map[int64]quarry.State{}
	for len(last) < 100 || anyLive(last) {
		select {
		case b, ok := <-slow:
			if !ok {
				t.Fatal("closed early")
			}
			last[b.Number] = b.State
		case <-time.After(2 * time.Minute):
			t.Fatalf("not told everything: %v", last)
		}
	}
	cancel()
	for range slow {
	}
	ended := q.Subscribe(t.Context())
	q.stop()
	for range ended {
	}
}

func anyLive(m map[int64]quarry.State) bool {
	for _, s := range m {
		if !s.Ended() {
			return true
		}
	}
	return false
}

func TestStepShows(t *testing.T) {
	w := newWorld(t)
	goOn := make(chan struct{})
	w.onRun = func(_ context.Context, _ quarry.Build, onStep func(string)) (*quarry.Outcome, error) {
		onStep(quarry.StepConfigure)
		<-goOn
		return nil, nil
	}
	q := start(t, w.options(folder(t)))
	w.push("zlib", "1", "a", []string{"x86_64"})
	b := q.first("zlib")
	q.until("step", func() bool { b, _ := q.Get(b.Number); return b.Step == quarry.StepConfigure })
	close(goOn)
	if b := q.wait(b.Number); b.Step != "" {
		t.Errorf("got %+v", plain(b))
	}
}

// TestHistory: the past is bounded, what has to be remembered is not lost.
func TestHistory(t *testing.T) {
	w := newWorld(t)
	w.onRun = func(_ context.Context, b quarry.Build, _ func(string)) (*quarry.Outcome, error) {
		if b.Package == "lost" {
			return nil, errors.New("gone")
		}
		return nil, nil
	}
	fsys := folder(t)
	opts := w.options(fsys)
	opts.History = 10
	q := start(t, opts)
	w.push("lost", "1", "a", []string{"x86_64"})
	lost := q.first("lost").Number
	q.wait(lost)
	for i := range 40 {
		pkg := fmt.Sprintf("p%d", i)
		w.push(pkg, "1", "a", []string{"x86_64"})
		q.wait(q.first(pkg).Number)
	}
	check := func() {
		t.Helper()
		if err := q.Replan(t.Context()); err != nil {
			t.Fatal(err)
		}
		l := q.List(Filter{})
		if len(l) > 13 || len(l) < 10 {
			t.Errorf("%d builds are kept", len(l))
		}
		if b, err := q.Get(lost); err != nil || b.State != quarry.Errored {
			t.Errorf("got %+v, %v", b, err)
		}
	}
	check()
	q.stop()
	q = start(t, opts)
	check()
	if n := q.Status().Last; n != 41 {
		t.Errorf("last number is %d", n)
	}
	if len(w.history) != 40 {
		t.Errorf("%d records", len(w.history))
	}
}

// TestManyPushers: everything pushed at once is recorded once.
func TestManyPushers(t *testing.T) {
	w := newWorld(t)
	opts := w.options(folder(t))
	opts.Workers = 4
	q := start(t, opts)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			pkg := fmt.Sprintf("p%d", i)
			for v := range 3 {
				w.push(pkg, fmt.Sprint(v), fmt.Sprintf("%x", i), archs2)
				builds, err := q.Pushed(t.Context(), pkg)
				if err != nil {
					t.Error(err)
				}
				for _, b := range builds {
					if _, err := q.Wait(t.Context(), b.Number); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	q.until("all built", w.settled)
	if err := w.once(); err != nil {
		t.Error(err)
	}
	if len(w.history) != 120 || w.peak > 4 {
		t.Errorf("%d records, %d builds at once", len(w.history), w.peak)
	}
}
