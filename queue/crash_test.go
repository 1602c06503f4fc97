package queue

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/spf13/afero"
)

var errDead = errors.New("the process is dead")

// fate decides when the process dies: at its n-th act, be it an operation on
// the disk or a step of a stage. From then on nothing it does has an effect,
// and what it had written without a sync is partly lost.
type fate struct {
	mu    sync.Mutex
	acts  int
	at    int    // 0: never
	kind  string // counts only acts of this kind, if it is set
	where string
	dead  chan struct{}
	rnd   *rand.Rand
	// unsynced files: how much of each is safe
	safe map[string]int64
	fs   afero.Fs
}

func newFate(fsys afero.Fs, at int) *fate {
	return &fate{at: at, dead: make(chan struct{}), fs: fsys, safe: map[string]int64{}, rnd: rand.New(rand.NewPCG(uint64(at), 1))}
}

// act is called before each act, and fails when it is not to happen.
func (f *fate) act(where string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.dead:
		return errDead
	default:
	}
	if kind, _, _ := strings.Cut(where, " "); f.kind == "" || f.kind == kind {
		f.acts++
	} else {
		return nil
	}
	if f.acts == f.at {
		f.where = where
		for name, safe := range f.safe {
			if fi, err := f.fs.Stat(name); err == nil && fi.Size() > safe {
				file, err := f.fs.OpenFile(name, os.O_RDWR, 0)
				if err == nil {
					file.Truncate(safe + f.rnd.Int64N(fi.Size()-safe+1))
					file.Close()
				}
			}
		}
		close(f.dead)
		return errDead
	}
	return nil
}

func (f *fate) isDead() bool {
	select {
	case <-f.dead:
		return true
	default:
		return false
	}
}

// mortal is a file system used by a process that may die.
type mortal struct {
	afero.Fs
	f *fate
}

func (m mortal) Create(name string) (afero.File, error) {
	return m.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o666)
}

func (m mortal) Open(name string) (afero.File, error) { return m.OpenFile(name, os.O_RDONLY, 0) }

func (m mortal) OpenFile(name string, flag int, perm os.FileMode) (afero.File, error) {
	if flag != os.O_RDONLY {
		if err := m.f.act("open " + name); err != nil {
			return nil, err
		}
	} else if m.f.isDead() {
		return nil, errDead
	}
	file, err := m.Fs.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &mortalFile{file, m.f, name}, nil
}

func (m mortal) Rename(a, b string) error {
	if err := m.f.act("rename " + a); err != nil {
		return err
	}
	m.f.mu.Lock()
	delete(m.f.safe, b)
	if n, ok := m.f.safe[a]; ok {
		m.f.safe[b] = n
		delete(m.f.safe, a)
	}
	m.f.mu.Unlock()
	return m.Fs.Rename(a, b)
}

func (m mortal) Remove(name string) error {
	if err := m.f.act("remove " + name); err != nil {
		return err
	}
	return m.Fs.Remove(name)
}

func (m mortal) MkdirAll(name string, perm os.FileMode) error {
	if err := m.f.act("mkdir " + name); err != nil {
		return err
	}
	return m.Fs.MkdirAll(name, perm)
}

type mortalFile struct {
	afero.File
	f    *fate
	name string
}

func (m *mortalFile) Write(p []byte) (int, error) {
	m.f.mu.Lock()
	if _, ok := m.f.safe[m.name]; !ok {
		if fi, err := m.File.Stat(); err == nil {
			m.f.safe[m.name] = fi.Size()
		}
	}
	m.f.mu.Unlock()
	half := len(p) / 2
	if m.f.isDead() {
		return 0, errDead
	}
	n, err := m.File.Write(p[:half])
	if err != nil {
		return n, err
	}
	if err := m.f.act("write " + m.name); err != nil {
		return n, err
	}
	k, err := m.File.Write(p[half:])
	return n + k, err
}

func (m *mortalFile) Sync() error {
	if err := m.f.act("sync " + m.name); err != nil {
		return err
	}
	err := m.File.Sync()
	m.f.mu.Lock()
	delete(m.f.safe, m.name)
	m.f.mu.Unlock()
	return err
}

func (m *mortalFile) Truncate(n int64) error {
	if err := m.f.act("truncate " + m.name); err != nil {
		return err
	}
	return m.File.Truncate(n)
}

// crashWorld has one build of every kind.
func crashWorld(t *testing.T) *world {
	w := newWorld(t)
	w.onRun = func(ctx context.Context, b quarry.Build, _ func(string)) (*quarry.Outcome, error) {
		if b.Package == "flaky" && b.Attempt == 1 {
			return nil, errors.New("lost once")
		}
		return nil, nil
	}
	return w
}

// live runs a process against the world until everything is recorded, or it
// dies as f says.
func live(t *testing.T, w *world, f *fate, push bool) (builds []quarry.Build) {
	w.mu.Lock()
	w.tick = f.act
	w.mu.Unlock()
	opts := w.options(mortal{f.fs, f})
	q, err := New(opts)
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
			t.Fatalf("it does not end after dying at %s", f.where)
		}
	}()
	if push {
		for _, p := range []struct {
			pkg   string
			archs []string
			needs []string
		}{
			{"zlib", archs2, nil},
			{"app", archs2[1:], []string{"zlib-1"}},
			{"bad", archs2[1:], nil},
			{"flaky", archs2[1:], nil},
		} {
			w.push(p.pkg, "1", "a", p.archs, p.needs...)
			pctx, stop := context.WithTimeout(ctx, 2*time.Minute)
			go func() { // a pusher does not wait for a dead daemon
				select {
				case <-f.dead:
					stop()
				case <-pctx.Done():
				}
			}()
			_, err := q.Pushed(pctx, p.pkg)
			stop()
			if err != nil && !f.isDead() {
				t.Fatalf("push of %s: %v", p.pkg, err)
			}
		}
	}
	for end := time.Now().Add(2 * time.Minute); !f.isDead(); time.Sleep(200 * time.Microsecond) {
		if w.settled() && len(q.List(Filter{Live: true})) == 0 {
			return q.List(Filter{})
		}
		if time.Now().After(end) {
			t.Fatalf("never done: %+v %v", q.Status(), states(q.List(Filter{})))
		}
	}
	return nil
}

// TestCrashAnywhere kills the process at every single act from an empty folder
// to the last record, and the next one at a random act of its own. After that
// every release has exactly one record per arch.
func TestCrashAnywhere(t *testing.T) {
	count := newFate(folder(t), 0)
	live(t, crashWorld(t), count, true)
	acts := count.acts
	if acts < 80 {
		t.Fatalf("only %d acts: the test does not see what the queue does", acts)
	}
	t.Logf("%d acts", acts)
	// Which act comes how many-th differs from one life to the next. So that
	// every kind is met whatever the schedule, the first of each is asked for.
	type death struct {
		kind string
		at   int
	}
	var deaths []death
	for at := range acts {
		deaths = append(deaths, death{at: at + 1})
	}
	known := []string{"write", "sync", "rename", "open", "run", "record", "recorded", "releases"}
	for _, k := range known {
		deaths = append(deaths, death{k, 1})
	}
	kinds := map[string]int{}
	var mu sync.Mutex
	t.Run("at", func(t *testing.T) {
		for _, d := range deaths {
			t.Run(fmt.Sprint(d.kind, d.at), func(t *testing.T) {
				t.Parallel()
				w := crashWorld(t)
				fsys := folder(t)
				first := newFate(fsys, d.at)
				first.kind = d.kind
				live(t, w, first, true)
				mu.Lock()
				kinds[strings.Fields(first.where + " none")[0]]++
				mu.Unlock()
				second := newFate(fsys, 1+first.rnd.IntN(acts/2))
				live(t, w, second, false)
				last := newFate(fsys, 0)
				builds := live(t, w, last, false)
				what := fmt.Sprintf("dead at %s, then at %s: ", first.where, second.where)
				if err := w.once(); err != nil {
					t.Error(what, err)
				}
				if !w.settled() || len(w.history) != 5 {
					t.Error(what, len(w.history), "records")
				}
				for _, b := range builds {
					if b.State != quarry.Succeeded && b.State != quarry.Failed || (b.State == quarry.Failed) != (b.Package == "bad") {
						t.Errorf("%s%s is %s: %s", what, b, b.State, b.Reason)
					}
				}
				if names, _ := readDirNames(fsys, outcomesDir); len(names) > 0 {
					t.Error(what, "outcomes left behind:", names)
				}
				if names, _ := readDirNames(fsys, "."); strings.Contains(fmt.Sprint(names), journalNew) {
					t.Error(what, "left behind:", names)
				}
			})
		}
	})
	t.Logf("died at: %v", kinds)
	for _, k := range known {
		if kinds[k] == 0 {
			t.Errorf("it never died at %q", k)
		}
	}
}

// TestWipe: with the whole state folder gone in the middle of work, everything
// is built all the same, and numbers go on.
func TestWipe(t *testing.T) {
	w := crashWorld(t)
	hold := make(chan struct{})
	inner := w.onRun
	w.onRun = func(ctx context.Context, b quarry.Build, onStep func(string)) (*quarry.Outcome, error) {
		if b.Package == "zlib" {
			select {
			case <-hold:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		return inner(ctx, b, onStep)
	}
	q := start(t, w.options(folder(t)))
	w.push("bad", "1", "a", archs2)
	for _, b := range q.pushed("bad") {
		q.wait(b.Number)
	}
	w.push("zlib", "1", "a", archs2)
	w.push("app", "1", "a", archs2, "zlib")
	q.pushed("zlib")
	q.pushed("app")
	q.stop()
	close(hold)
	q = start(t, w.options(folder(t)))
	q.until("all built", w.settled)
	if err := w.once(); err != nil {
		t.Error(err)
	}
	if len(w.history) != 6 {
		t.Errorf("%d records", len(w.history))
	}
}
