package queue

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/sched"
	"github.com/google/go-cmp/cmp"
)

// lineup is a farm with one worker that notes in which order builds start. It is
// paused until run.
type lineup struct {
	*world
	*running
	mu    sync.Mutex
	order []string
}

// newLineup begins with how long packages take.
func newLineup(t *testing.T, takes map[string]time.Duration, change func(*Options)) *lineup {
	l := &lineup{world: newWorld(t)}
	l.onRun = func(_ context.Context, b quarry.Build, _ func(string)) (*quarry.Outcome, error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		word := b.Package
		if b.Arch != "x86_64" {
			word += " " + b.Arch
		}
		l.order = append(l.order, word)
		return nil, nil
	}
	opts := l.options(folder(t))
	opts.Workers = 1
	opts.Past = func(_ context.Context, observe func(Past)) error {
		for pkg, d := range takes {
			for _, arch := range archs2 {
				observe(Past{Package: pkg, Arch: arch, Ran: sched.Ran{Took: d}})
			}
		}
		return nil
	}
	if change != nil {
		change(&opts)
	}
	l.running = start(t, opts)
	l.planned()
	if err := l.Pause(t.Context(), "bob", "to line up"); err != nil {
		t.Fatal(err)
	}
	for pkg, d := range takes {
		l.until("the past of "+pkg, func() bool { return l.Expected(pkg, "x86_64") == d })
	}
	return l
}

// ranked waits until the places of all builds are known.
func (q *running) ranked() {
	q.t.Helper()
	q.until("ranks", func() bool {
		known := false
		err := q.ask(context.Background(), func(o *owner) error {
			live := 0
			for _, list := range o.live {
				live += len(list)
			}
			known = live == len(o.ranks) && !o.unranked && !o.ranking
			return nil
		})
		return err == nil && known
	})
}

// run has everything built and gives the order in which it was.
func (l *lineup) run(t *testing.T) []string {
	t.Helper()
	l.ranked()
	if err := l.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.settle()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.order
}

// TestOrder: what the longest chain hangs on goes first, whatever its environment
// and whenever it came; work in bulk comes behind.
func TestOrder(t *testing.T) {
	x := []string{"x86_64"}
	minutes := func(m int) time.Duration { return time.Duration(m) * time.Minute }
	l := newLineup(t, map[string]time.Duration{"small": minutes(1), "lib": minutes(10), "big": minutes(60), "app": minutes(100), "old": minutes(1000), "wanted": minutes(5), "needs-old": minutes(2)}, nil)
	old := func(pkg string) {
		l.pushAs(func(r *quarry.Release) { r.Pushed = r.Pushed.Add(-48 * time.Hour) }, pkg, "1", "a", x)
		l.pushed(pkg)
	}
	old("old")
	for _, p := range []struct {
		pkg   string
		archs []string
		needs []string
	}{
		{"small", x, nil},
		{"big", archs2[:1], nil},
		{"app", x, []string{"lib"}},
		{"lib", x, nil},
	} {
		l.push(p.pkg, "1", "a", p.archs, p.needs...)
		l.pushed(p.pkg)
	}
	old("wanted") // somebody waits for it
	l.push("needs-old", "1", "a", x, "wanted")
	l.pushed("needs-old")
	// When exactly what waits gets ready is not for a test to say.
	got := slices.DeleteFunc(l.run(t), func(s string) bool { return s == "app" || s == "needs-old" })
	if diff := cmp.Diff([]string{"lib", "big aarch64", "wanted", "small", "old"}, got); diff != "" {
		t.Error(diff)
	}
}

// TestAsked: who asks for what waits in the background has it brought forward, and
// a restart does not forget it.
func TestAsked(t *testing.T) {
	x := []string{"x86_64"}
	w := newABIWorld(t)
	fsys := folder(t)
	w.offer("lib", "1")
	for _, p := range []string{"app", "tool"} {
		w.push(p, "1", "a", x, "lib")
	}
	w.push("lib", "1", "a", x)
	q := start(t, w.options(fsys))
	q.settle()
	stop := make(chan struct{})
	w.onRun = func(ctx context.Context, b quarry.Build, _ func(string)) (*quarry.Outcome, error) {
		if b.Package != "lib" {
			select {
			case <-stop:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		return nil, nil
	}
	opts := w.options(fsys)
	opts.Workers = 1
	q.stop()
	q = start(t, opts)
	w.offer("lib", "2")
	if _, err := q.RebuildTarget(t.Context(), quarry.Target{Package: "lib", Version: "1"}, "bob"); err != nil {
		t.Fatal(err)
	}
	var queued quarry.Build
	q.until("one that runs and one that waits", func() bool {
		running, all := 0, q.List(Filter{Live: true})
		for _, b := range all {
			if b.State == quarry.Running && b.Package != "lib" {
				running++
			} else {
				queued = b
			}
		}
		return len(all) == 2 && running == 1
	})
	background := func() (is bool) {
		t.Helper()
		if err := q.ask(t.Context(), func(o *owner) error { is = o.background(o.builds[queued.Number]); return nil }); err != nil {
			t.Fatal(err)
		}
		return is
	}
	if !background() {
		t.Error("a rebuild that nobody asked for is no background work")
	}
	b, err := q.Rebuild(t.Context(), queued.Number, "carol")
	if err != nil || b.Number != queued.Number {
		t.Fatalf("asked for %d, got %d: %v", queued.Number, b.Number, err)
	}
	if background() || !strings.HasSuffix(b.Why, ", and asked for by carol") {
		t.Errorf("what somebody asked for is background work; why: %s", b.Why)
	}
	q.stop()
	q = start(t, opts)
	if background() {
		t.Error("the restart has forgotten that somebody asked")
	}
	close(stop)
	q.settle()
}

// TestGiants: builds that ask for more memory than there is at once do not run
// together, small ones do not wait for them, and the giant says what it waits for.
func TestGiants(t *testing.T) {
	x := []string{"x86_64"}
	w := newWorld(t)
	const total = 16 << 30
	claims := map[string]int64{"giant1": 10 << 30, "giant2": 12 << 30, "monster": 99 << 30}
	var mu sync.Mutex
	var used int64
	release := map[string]chan struct{}{}
	for _, p := range []string{"giant1", "giant2", "monster", "small1", "small2"} {
		release[p] = make(chan struct{})
		w.pushAs(func(r *quarry.Release) { r.Traits = map[string]quarry.Traits{"x86_64": {Memory: claims[p]}} }, p, "1", "a", x)
	}
	w.onRun = func(ctx context.Context, b quarry.Build, _ func(string)) (*quarry.Outcome, error) {
		claim := min(claims[b.Package], 12<<30)
		mu.Lock()
		if used += claim; used > total {
			t.Errorf("%d bytes are asked for at once", used)
		}
		mu.Unlock()
		select {
		case <-release[b.Package]:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		mu.Lock()
		used -= claim
		mu.Unlock()
		return nil, nil
	}
	opts := w.options(folder(t))
	opts.Workers, opts.Memory, opts.BuildMemory = 8, total, 12<<30
	q := start(t, opts)
	running := func() (list []string) {
		for _, b := range q.List(Filter{States: []quarry.State{quarry.Running}}) {
			list = append(list, b.Package)
		}
		return list
	}
	giants := func() (n int, which string) {
		for _, p := range running() {
			if claims[p] > 0 {
				n++
				which = p
			}
		}
		return n, which
	}
	q.until("a giant and both small ones", func() bool { n, _ := giants(); return n == 1 && len(running()) == 3 })
	q.until("giants that say why they wait", func() bool {
		for _, b := range q.List(Filter{States: []quarry.State{quarry.Queued}}) {
			if strings.HasPrefix(b.Reason, "waits for memory: it may take ") && strings.HasSuffix(b.Reason, " of the 16.0 GiB that builds have") {
				return true
			}
		}
		return false
	})
	for i := range 3 {
		q.until(fmt.Sprint("giant ", i), func() bool { n, _ := giants(); return n == 1 })
		_, which := giants()
		close(release[which])
		q.until(which+" to end", func() bool { _, now := giants(); return now != which })
	}
	close(release["small1"])
	close(release["small2"])
	q.settle()
}

// TestVirtual: what waits for a name that no package has waits for those that
// provide it, says what became of them, and wakes when one lands.
func TestVirtual(t *testing.T) {
	x := []string{"x86_64"}
	w := newWorld(t)
	fails := true
	w.onOutcome = func(out *quarry.Outcome, b quarry.Build) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if b.Package == "gawk" && fails {
			out.Status = quarry.Failed
			out.Failure = &quarry.Failure{Step: quarry.StepMake, Cause: quarry.CauseExit, Message: "make ended with status 2", Status: 2}
		}
	}
	provide := func(pkg, version string, names ...string) {
		w.pushAs(func(r *quarry.Release) { r.Provides = names }, pkg, version, version, x)
	}
	q := start(t, w.options(folder(t)))
	q.settle()
	w.push("user", "1", "a", x, "awk")
	user := q.first("user")
	reason := func(want string) {
		t.Helper()
		q.until("reason "+want, func() bool { b, _ := q.Get(user.Number); return b.Reason == want })
	}
	reason("waits for awk, which nobody has pushed")
	provide("gawk", "5", "awk", "posix-awk")
	q.pushed("gawk")
	reason("waits for awk, whose build failed")
	provide("gawk", "6", "posix-awk")
	q.pushed("gawk")
	reason("waits for awk, whose build failed") // the other version has nothing to do with it
	w.mu.Lock()
	fails = false
	w.mu.Unlock()
	if _, err := q.RebuildTarget(t.Context(), quarry.Target{Package: "gawk", Version: "5"}, "bob"); err != nil {
		t.Fatal(err)
	}
	if b := q.wait(user.Number); b.State != quarry.Succeeded {
		t.Errorf("user is %s: %s", b.State, b.Reason)
	}
}
