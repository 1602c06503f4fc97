package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/Morphux/quarry/buildcontrol"
)

// rig is a governor that runs, on a machine that tells nothing of itself.
type rig struct {
	*Governor
	t testing.TB
}

func newRig(t testing.TB, o Options) *rig {
	t.Helper()
	if o.Control == nil {
		o.Control = buildcontrol.New(buildcontrol.Options{})
	}
	g, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return &rig{g, t}
}

// patience is how long a test waits for what must come to be.
const patience = 5 * time.Minute

// until waits for something that must come to be.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after %v it is still not so that %s", patience, what)
		}
	}
}

// maker is a build with a make that runs as many jobs as it is let, each until it
// is told to end.
type maker struct {
	*Share
	t    testing.TB
	dir  string
	fifo *os.File
	end  chan struct{}  // ends a job for each value
	stop chan struct{}  // closed when it starts none any more
	live sync.WaitGroup // jobs

	running atomic.Int64
	all     *atomic.Int64 // of all makers
	tasks   atomic.Int64  // what Tasks says is working; 0: what runs
	over    atomic.Value
	cpu     atomic.Value
}

func (r *rig) begin(all *atomic.Int64, b Build) *maker {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := r.Begin(ctx, b)
	if err != nil {
		r.t.Fatal(err)
	}
	return r.open(s, all)
}

func (r *rig) open(s *Share, all *atomic.Int64) *maker {
	r.t.Helper()
	m := &maker{Share: s, t: r.t, dir: r.t.TempDir(), end: make(chan struct{}), all: all}
	err := s.Open(Place{
		Dir: m.dir, Inside: "/quarry", UID: os.Getuid(), GID: os.Getgid(),
		Tasks: func() (Tasks, error) {
			n := int(m.running.Load())
			return Tasks{Leaves: n, Running: max(n, int(m.tasks.Load()))}, nil
		},
		CPU:  func(cpus float64, weight int) error { m.cpu.Store([2]float64{cpus, float64(weight)}); return nil },
		Over: func(what string) { m.over.Store(what) },
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return m
}

// make runs jobs in a parallel step until halt.
func (m *maker) make(jobs int) {
	m.t.Helper()
	m.Step(true)
	m.stop = make(chan struct{})
	if m.Fifo() == "/quarry/.jobs" {
		fd, err := syscall.Open(filepath.Join(m.dir, ".jobs"), syscall.O_RDWR|syscall.O_NONBLOCK, 0)
		if err != nil {
			m.t.Fatal(err)
		}
		m.fifo = os.NewFile(uintptr(fd), "jobs")
	}
	stop := m.stop
	run := func(n int64) {
		m.running.Add(n)
		m.all.Add(n)
	}
	m.live.Add(1)
	go func() { // the first needs no token: another follows on it at once
		defer m.live.Done()
		run(1)
		defer run(-1)
		for {
			select {
			case <-m.end:
			case <-stop:
				return
			}
		}
	}()
	for range jobs - 1 {
		m.live.Add(1)
		go func() {
			defer m.live.Done()
			var token [1]byte
			for {
				if _, err := m.fifo.Read(token[:]); err != nil {
					return // it is closed
				}
				run(1)
				select {
				case <-m.end:
				case <-stop:
				}
				run(-1)
				_, _ = m.fifo.Write(token[:])
			}
		}()
	}
}

// halt ends all jobs, as the end of a step does.
func (m *maker) halt() {
	close(m.stop)
	if m.fifo != nil {
		_ = m.fifo.SetReadDeadline(time.Unix(1, 0))
	}
	m.live.Wait()
	if m.fifo != nil {
		m.fifo.Close()
	}
}

func (m *maker) runs(n int) {
	m.t.Helper()
	until(m.t, fmt.Sprintf("%d jobs run in build %d", n, m.build.Number), func() bool { return m.running.Load() == int64(n) })
}

// down ends jobs until no more than n slots are out, and waits until a job runs in
// each of these.
func (m *maker) down(n int) {
	m.t.Helper()
	until(m.t, fmt.Sprintf("%d slots are left to build %d", n, m.build.Number), func() bool {
		out, _ := m.slots()
		if out > n {
			m.end <- struct{}{}
		}
		return out <= n
	})
	m.runs(n)
}

// give ends jobs as their slots are another's, until that one runs n jobs.
func (m *maker) give(to *maker, n int) {
	m.t.Helper()
	until(m.t, fmt.Sprintf("%d jobs run in build %d", n, to.build.Number), func() bool {
		if out, granted := m.slots(); out > granted {
			m.end <- struct{}{}
		}
		return to.running.Load() == int64(n)
	})
}

func (m *maker) slots() (out, granted int) {
	m.g.mu.Lock()
	defer m.g.mu.Unlock()
	return m.bridge.state().Out, m.m.grant
}

// never looks all the time that no more jobs run than there are slots.
func never(t testing.TB, all *atomic.Int64, most int64) (stop func()) {
	done, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		for {
			if n := all.Load(); n > most {
				t.Errorf("%d jobs run where %d may", n, most)
				return
			}
			select {
			case <-done:
				return
			case <-time.After(100 * time.Microsecond):
			}
		}
	}()
	return func() { close(done); <-gone }
}

// TestSharing: two builds with real jobservers share four slots, of which one goes
// to the other only once its job has ended.
func TestSharing(t *testing.T) {
	r := newRig(t, Options{Total: 4})
	var all atomic.Int64
	defer never(t, &all, 4)()
	a := r.begin(&all, Build{Number: 1, Name: "a-1", Key: "a"})
	a.make(100)
	a.runs(4)

	began := make(chan *Share)
	go func() {
		s, err := r.Begin(context.Background(), Build{Number: 2, Name: "b-1", Key: "b"})
		if err != nil {
			t.Error(err)
		}
		began <- s
	}()
	until(t, "the second waits", func() bool { return len(r.Status().Builds) == 2 })
	select {
	case <-began:
		t.Fatal("the second build has begun on a slot in which a job runs")
	case <-time.After(300 * time.Millisecond):
	}
	st := r.Status()
	if w := st.Builds[1]; !w.Waiting || w.Number != 2 || w.Granted != 0 || st.Out != 4 {
		t.Errorf("%+v", st)
	}
	a.down(3)
	b := r.open(<-began, &all)
	b.make(100)
	b.runs(1)
	a.give(b, 2)
	a.end <- struct{}{} // it gets its own share again
	a.runs(2)

	// One that needs one job only leaves the others to the other.
	a.halt()
	a.make(1)
	b.runs(3)
	a.halt()
	sum := a.End()
	b.runs(4)
	if sum.Peak != 4 || sum.SlotTime <= 0 || sum.Width <= 1 || sum.Width > 4 || sum.Forced != "" || sum.Repaired != 0 {
		t.Errorf("%+v", sum)
	}
	if again := a.End(); again != sum {
		t.Errorf("at first %+v, then %+v", sum, again)
	}
	b.halt()
	b.Step(false)
	if st := b.Now(); st.Granted != 1 || st.Used != 1 {
		t.Errorf("in a serial step: %+v", st)
	}
	b.End()
	if st := r.Status(); len(st.Builds) != 0 || st.Out != 0 || st.Granted != 0 {
		t.Errorf("%+v", st)
	}
	for _, name := range []string{".jobs", ".buildcontrol"} {
		if _, err := os.Lstat(filepath.Join(b.dir, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left behind: %v", name, err)
		}
	}
	if err := b.Open(Place{Dir: t.TempDir()}); err == nil {
		t.Error("a build that has ended was opened")
	}
}

// TestSaidByHand: numbers that people set are obeyed, and last beyond a restart.
func TestSaidByHand(t *testing.T) {
	state := filepath.Join(t.TempDir(), "jobs.json")
	var mu sync.Mutex
	var news []string
	o := Options{Total: 8, State: state, Limited: func(was, is Limit) {
		mu.Lock()
		defer mu.Unlock()
		news = append(news, fmt.Sprintf("%d to %d %s", was.Slots, is.Slots, is.Why))
	}}
	r := newRig(t, o)
	var all atomic.Int64
	a := r.begin(&all, Build{Number: 7, Name: "a-1", Key: "a"})
	a.make(100)
	a.runs(8)
	if n, err := r.Set(7, 3, "anna"); err != nil || n != 3 {
		t.Errorf("%d, %v", n, err)
	}
	a.down(3)
	if n, err := r.Set(7, 5, "anna"); err != nil || n != 5 {
		t.Errorf("%d, %v", n, err)
	}
	a.runs(5)
	if err := r.Limit(4, time.Time{}, "bert"); err != nil {
		t.Error(err)
	}
	a.down(4)
	st := r.Status()
	if b := st.Builds[0]; b.Hand != 5 || b.By != "anna" || b.Granted != 4 || st.Hand == nil || st.Hand.By != "bert" || st.Limit.Slots != 4 || st.Limit.Why != "by hand: bert" {
		t.Errorf("%+v", st)
	}
	for _, bad := range []func() error{
		func() error { _, err := r.Set(8, 3, "anna"); return err },
		func() error { _, err := r.Set(7, -1, "anna"); return err },
		func() error { _, err := r.Set(7, 1<<40, "anna"); return err },
		func() error { return r.Limit(-1, time.Time{}, "anna") },
		func() error { return r.Limit(1<<40, time.Time{}, "anna") },
		func() error { return r.Limit(2, time.Now().Add(-time.Minute), "anna") },
	} {
		if err := bad(); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("taken: %v", err)
		}
	}
	if _, err := r.Set(8, 3, "anna"); !errors.Is(err, ErrNotRunning) {
		t.Error(err)
	}
	if data, err := json.Marshal(r.Status()); err != nil || !strings.Contains(string(data), `"limit":{"slots":4,"kind":"hand","why":"by hand: bert"}`) {
		t.Errorf("%s, %v", data, err)
	}
	mu.Lock()
	if s := strings.Join(news, "; "); s != "8 to 4 by hand: bert" {
		t.Errorf("told: %s", s)
	}
	mu.Unlock()

	// The daemon is killed, and another begins the build anew.
	again := newRig(t, o)
	b := again.begin(&all, Build{Number: 7, Attempt: 2, Name: "a-1", Key: "a"})
	if st := again.Status(); st.Limit.Slots != 4 || st.Builds[0].Hand != 5 {
		t.Errorf("after a restart: %+v", st)
	}
	if err := again.Limit(0, time.Time{}, "bert"); err != nil {
		t.Error(err)
	}
	if _, err := again.Set(7, 0, "anna"); err != nil {
		t.Error(err)
	}
	if st := again.Status(); st.Limit.Slots != 8 || st.Hand != nil || st.Builds[0].Hand != 0 || st.Builds[0].By != "" {
		t.Errorf("taken back: %+v", st)
	}
	b.End()
	a.halt()
	a.End()

	// What cannot be read was not said, and does not keep a daemon from starting.
	for _, text := range []string{"", "{", `{"limit":{"slots":-4}}`, `{"builds":{"7":{"slots":99999999}}}`, `{"limit":7}`, strings.Repeat("x", saidBytes+1)} {
		if err := os.WriteFile(state, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if g, err := New(o); err != nil || g.Status().Limit.Slots != 8 || len(g.said.Builds) != 0 {
			t.Errorf("%.40q: %v", text, err)
		}
	}
}

// TestLimitEnds: a limit for a time is over when that is.
func TestLimitEnds(t *testing.T) {
	var mu sync.Mutex
	now := time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)
	r := newRig(t, Options{Total: 8, State: filepath.Join(t.TempDir(), "jobs.json"), Now: func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	}, Policy: Policy{Schedule: rules(t, "20:00-06:00 6")}})
	if err := r.Limit(2, now.Add(2*time.Hour), "anna"); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		after time.Duration
		slots int
	}{{0, 2}, {time.Hour, 2}, {time.Hour, 8}, {6 * time.Hour, 6}, {10 * time.Hour, 8}} {
		mu.Lock()
		now = now.Add(tt.after)
		mu.Unlock()
		if l := r.Status().Limit; l.Slots != tt.slots {
			t.Errorf("after %v more: %+v, want %d slots", tt.after, l, tt.slots)
		}
	}
}

// TestByForce: what runs more than it was given is noticed, told once, and counted.
func TestByForce(t *testing.T) {
	r := newRig(t, Options{Total: 8})
	var all atomic.Int64
	a := r.begin(&all, Build{Number: 1, Name: "a-1", Key: "a"})
	b := r.begin(&all, Build{Number: 2, Name: "b-1", Key: "b"})
	a.Step(false)
	b.make(100)
	b.runs(7)
	a.tasks.Store(6)
	until(t, "it is noticed", func() bool { return a.over.Load() != nil })
	if s := a.over.Load().(string); s != "ran 6 processes or threads at one time where 1 may run" {
		t.Error(s)
	}
	b.down(2) // the other has what is left
	if st := r.Status().Builds[0]; st.Forced == "" || st.Used != 6 || st.Want < 6 {
		t.Errorf("%+v", st)
	}
	a.tasks.Store(0)
	b.runs(7)            // the other has all again
	a.Forced("make -j8") // it is known already
	if sum := a.End(); sum.Forced != "ran 6 processes or threads at one time where 1 may run" || sum.Peak != 6 {
		t.Errorf("%+v", sum)
	}
	b.halt()
	b.Forced("make -j9")
	if sum := b.End(); sum.Forced != "make -j9" {
		t.Errorf("%+v", sum)
	}
}

// TestEnforce: processor time follows slots where that is asked for.
func TestEnforce(t *testing.T) {
	for how, want := range map[string][2]bool{EnforceNone: {false, false}, EnforceWeight: {false, true}, EnforceQuota: {true, true}} {
		r := newRig(t, Options{Total: 4, Enforce: how})
		var all atomic.Int64
		a := r.begin(&all, Build{Number: 1, Name: "a-1", Key: "a"})
		a.Step(true)
		got, _ := a.cpu.Load().([2]float64)
		if (got[0] > 0) != want[0] || (got[1] > 0) != want[1] || want[1] && got[1] != 400 {
			t.Errorf("%s: %v", how, got)
		}
		a.Step(false)
		if one, _ := a.cpu.Load().([2]float64); one[0] != got[0]/4 || one[1] != got[1]/4 {
			t.Errorf("%s: with a quarter of the slots %v after %v", how, one, got)
		}
		a.End()
	}
	if _, err := New(Options{Enforce: "force"}); err == nil {
		t.Error("taken")
	}
	if _, err := New(Options{Total: 2, Min: 3}); err == nil {
		t.Error("taken")
	}
	if _, err := New(Options{Total: MaxSlots + 1}); err == nil {
		t.Error("taken")
	}
}

// TestOneJob: what never runs more than one job has no jobserver, but a number.
func TestOneJob(t *testing.T) {
	r := newRig(t, Options{Total: 4})
	var all atomic.Int64
	a := r.begin(&all, Build{Number: 1, Name: "a-1", Key: "a", Max: 1})
	a.Step(true)
	if a.Fifo() != "" || a.Ceiling() != 1 || a.Now().Granted != 1 || len(a.Env()) != 3 {
		t.Errorf("%q, %d, %+v, %q", a.Fifo(), a.Ceiling(), a.Now(), a.Env())
	}
	a.End()
	// Where there is no protocol, nothing speaks of it.
	g, err := New(Options{Total: 4})
	if err != nil {
		t.Fatal(err)
	}
	s, err := g.Begin(t.Context(), Build{Number: 1, Max: 3})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Open(Place{Dir: t.TempDir(), Inside: "/q", UID: os.Getuid(), GID: os.Getgid()}); err != nil || s.Env() != nil || s.Ceiling() != 3 {
		t.Errorf("%v, %q, %d", err, s.Env(), s.Ceiling())
	}
	if err := s.Open(Place{Dir: t.TempDir(), Inside: "/q", UID: os.Getuid(), GID: os.Getgid()}); err == nil {
		t.Error("it was opened twice")
	}
	s.End()
	if s, err = g.Begin(t.Context(), Build{Number: 2}); err != nil {
		t.Fatal(err)
	}
	if err := s.Open(Place{Dir: t.TempDir() + "/none", UID: os.Getuid(), GID: os.Getgid()}); err == nil {
		t.Error("it was opened nowhere")
	}
	s.End()
}

// TestGiveUp: whoever gives up waiting leaves nothing behind.
func TestGiveUp(t *testing.T) {
	r := newRig(t, Options{Total: 1})
	var all atomic.Int64
	a := r.begin(&all, Build{Number: 1, Name: "a-1"})
	ctx, cancel := context.WithCancel(context.Background())
	failed := make(chan error)
	go func() {
		_, err := r.Begin(ctx, Build{Number: 2, Name: "b-1"})
		failed <- err
	}()
	until(t, "it waits", func() bool { return len(r.Status().Builds) == 2 })
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if st := r.Status(); len(st.Builds) != 1 {
		t.Errorf("%+v", st)
	}
	a.End()
	r.begin(&all, Build{Number: 3}).End()
}

// TestNameless: what has no number, as a verification has none, is not told from
// others without one.
func TestNameless(t *testing.T) {
	r := newRig(t, Options{Total: 4})
	var all atomic.Int64
	a := r.begin(&all, Build{Name: "verify-1 a-1"})
	if _, err := r.Set(0, 3, "anna"); !errors.Is(err, ErrNotRunning) || r.Status().Builds[0].Hand != 0 {
		t.Errorf("%v, %+v", err, r.Status())
	}
	a.End()
}

// TestQuiet: where nothing is built, nothing ticks.
func TestQuiet(t *testing.T) {
	var calls atomic.Int64
	r := newRig(t, Options{Total: 2, Now: func() time.Time { calls.Add(1); return time.Now() }})
	var all atomic.Int64
	a := r.begin(&all, Build{Number: 1})
	was := calls.Load()
	until(t, "it ticks while there is a build", func() bool { return calls.Load() > was+20 })
	a.End()
	until(t, "nothing has looked at the clock for five ticks", func() bool {
		was := calls.Load()
		time.Sleep(5 * tick)
		return calls.Load() == was
	})
}

// TestStorm has many builds come, work and go at once while people set numbers:
// there are never more jobs than slots.
func TestStorm(t *testing.T) {
	const slots = 6
	r := newRig(t, Options{Total: slots})
	var all atomic.Int64
	defer never(t, &all, slots)()
	stop := make(chan struct{})
	var aside sync.WaitGroup
	aside.Add(1)
	go func() {
		defer aside.Done()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			_, _ = r.Set(int64(i%20), i%9, "anna")
			if st := r.Status(); st.Out > slots || st.Granted > slots {
				t.Errorf("%+v", st)
			}
			time.Sleep(time.Millisecond)
		}
	}()
	var builds sync.WaitGroup
	for i := range 20 {
		builds.Add(1)
		go func() {
			defer builds.Done()
			m := r.begin(&all, Build{Number: int64(i), Name: fmt.Sprintf("p-%d", i), Key: fmt.Sprint(i), Weight: []float64{1, 0.25}[i%2]})
			for range 3 {
				m.make(1 + i)
				for range 10 {
					m.end <- struct{}{}
				}
				m.halt()
				m.Step(false)
			}
			m.End()
		}()
	}
	builds.Wait()
	close(stop)
	aside.Wait()
	if n := all.Load(); n != 0 {
		t.Errorf("%d jobs are left", n)
	}
}

// BenchmarkTurn is what one look at all builds costs.
func BenchmarkTurn(b *testing.B) {
	for _, n := range []int{2, 64} {
		b.Run(fmt.Sprintf("builds=%d", n), func(b *testing.B) {
			g, err := New(Options{Total: 4 * n})
			if err != nil {
				b.Fatal(err)
			}
			for i := range n {
				s, err := g.Begin(b.Context(), Build{Number: int64(i)})
				if err != nil {
					b.Fatal(err)
				}
				defer s.End()
				if err := s.Open(Place{Dir: b.TempDir(), UID: os.Getuid(), GID: os.Getgid()}); err != nil {
					b.Fatal(err)
				}
				s.Step(true)
			}
			b.ReportAllocs()
			for b.Loop() {
				g.round()
			}
		})
	}
}
