package images_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/podman"
	"github.com/Morphux/quarry/internal/testbase"
)

// pooled is a farm with one channel, whose pool is at work.
func pooled(t testing.TB, conn *podman.Conn, opts images.Options) farm {
	t.Helper()
	if opts.Pool.MinMemory == 0 {
		opts.Pool.MinMemory = 1 // whatever the machine has
	}
	if opts.Pool.MinDisk == 0 {
		opts.Pool.MinDisk = 1
	}
	opts.Pool.MaxStall = 100
	if opts.WorkDir == "" {
		opts.WorkDir = filepath.Join(t.TempDir(), "work")
	}
	opts.Channels = []images.Channel{{Name: "testing", Archs: []string{testbase.Arch}}}
	s := newStore(t, conn, opts)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		images.RunPool(ctx, s)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return farm{conn, s, opts.WorkDir}
}

// has waits until the one environment is as it should be.
func (f farm) has(t testing.TB, what string, ok func(images.Environment) bool) images.Environment {
	t.Helper()
	var e images.Environment
	for deadline := time.Now().Add(3 * time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if e = f.store.Environments(t.Context())[0]; ok(e) {
			return e
		}
	}
	t.Fatalf("%s never came to be: %+v", what, e)
	return e
}

func (f farm) ready(t testing.TB, n int) images.Environment {
	t.Helper()
	return f.has(t, fmt.Sprint(n, " ready"), func(e images.Environment) bool { return e.Warm == n && e.Making == 0 })
}

// stall stops the podman service in its tracks, as it were, until the returned
// function is called: whoever asks it for anything waits.
func (f farm) stall(t testing.TB) (resume func()) {
	t.Helper()
	pid := f.conn.PID()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatal(err)
	}
	var found []int
	for _, field := range strings.Fields(string(data)) {
		cmd, err := os.ReadFile("/proc/" + field + "/cmdline")
		if err != nil || !strings.Contains(string(cmd), "\x00system\x00service\x00") {
			continue
		}
		var n int
		if _, err := fmt.Sscan(field, &n); err != nil {
			t.Fatal(err)
		}
		found = append(found, n)
	}
	if len(found) != 1 {
		t.Fatalf("service %d has the children %s, of which %v serve", pid, data, found)
	}
	if err := syscall.Kill(found[0], syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resume = sync.OnceFunc(func() { syscall.Kill(found[0], syscall.SIGCONT) })
	t.Cleanup(resume)
	return resume
}

const limitsInside = `grep -E 'open files|processes|file size|core' /proc/self/limits; df -k --output=size /dev/shm
for f in memory.max memory.swap.max pids.max cpu.max memory/memory.limit_in_bytes memory/memory.memsw.limit_in_bytes pids/pids.max cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us; do
	[ -e /sys/fs/cgroup/$f ] && echo $f $(cat /sys/fs/cgroup/$f)
done; true`

func TestPool(t *testing.T) {
	f := pooled(t, testbase.Podman(t), images.Options{Pool: images.PoolOptions{Max: 3}})
	if err := f.store.Start(t.Context(), "testing"); err != nil {
		t.Fatal(err)
	}
	e := f.ready(t, 1)
	if !e.Started || e.Target != 1 || e.Paused != "" || e.Busy != 0 || e.Name() != "testing/"+testbase.Arch || e.Base.Digest == "" || e.Instance.Digest == "" {
		t.Errorf("%+v", e)
	}
	if e.Memory < 1<<20 || e.Memory > 64<<20 || e.Disk <= 0 || e.Disk > 1<<20 {
		t.Errorf("it takes %d bytes of memory and %d of disk", e.Memory, e.Disk)
	}
	used := map[string]bool{}
	once := func(w *images.Workspace) {
		t.Helper()
		if used[w.ContainerID] || used[w.Dir] {
			t.Errorf("workspace %s was used before", w.ContainerID)
		}
		used[w.ContainerID], used[w.Dir] = true, true
	}
	limits := images.Limits{Memory: 512 << 20, Pids: 100, CPUs: 0.5, NoFile: 1000, NProc: 900, FileSize: 64 << 20, Disk: 1 << 30}
	more := images.Limits{Memory: 20 << 30, Pids: 20000, CPUs: 1, NoFile: 2000, Disk: 30 << 30}
	seen := map[images.Limits]string{}

	t.Run("taking takes nothing of podman", func(t *testing.T) {
		resume := f.stall(t)
		w := f.workspace(t, limits)
		if !w.Warm || w.Name != "7" || w.Channel != "testing" || w.Made.Take <= 0 || w.Made.Total() <= 0 {
			t.Errorf("%+v", w)
		}
		once(w)
		seen[limits] = sh(t, w, limitsInside)
		if u, err := w.Usage(); err != nil || u.PeakMemory == 0 {
			t.Errorf("%+v, %v", u, err)
		}
		if e := f.store.Environments(t.Context())[0]; e.Busy != 1 {
			t.Errorf("%+v", e)
		}
		if err := w.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if e := f.store.Environments(t.Context())[0]; e.Busy != 0 {
			t.Errorf("%+v", e)
		}
		resume()
	})
	t.Run("larger than the usual", func(t *testing.T) {
		f.ready(t, 1)
		w := f.workspace(t, more)
		if !w.Warm {
			t.Errorf("%+v", w)
		}
		once(w)
		seen[more] = sh(t, w, limitsInside)
		w.Close(t.Context())
	})
	t.Run("stopped", func(t *testing.T) {
		if err := f.store.Stop(t.Context(), "testing/"+testbase.Arch); err != nil {
			t.Fatal(err)
		}
		if e := f.store.Environments(t.Context())[0]; e.Warm != 0 || e.Making != 0 || e.Target != 0 || e.Started || !e.Stopped {
			t.Errorf("%+v", e)
		}
		// What is made for a build has the very limits that a ready one gets.
		for l, want := range seen {
			w := f.workspace(t, l)
			once(w)
			if got := sh(t, w, limitsInside); w.Warm || got != want {
				t.Errorf("warm: %v\n%s\na ready one had\n%s", w.Warm, got, want)
			}
			w.Close(t.Context())
		}
		if e := f.store.Environments(t.Context())[0]; e.Warm != 0 || e.Making != 0 {
			t.Errorf("%+v", e)
		}
	})
	t.Run("what a ready one cannot be", func(t *testing.T) {
		if err := f.store.Start(t.Context(), "testing"); err != nil {
			t.Fatal(err)
		}
		w := f.workspace(t, images.Limits{Shm: 1 << 20})
		once(w)
		if got := sh(t, w, "df -k --output=size /dev/shm | tail -1 | tr -d ' '"); w.Warm || got != "1024" {
			t.Errorf("warm: %v, %s", w.Warm, got)
		}
		w.Close(t.Context())
		w, err := f.store.Workspace(t.Context(), images.Spec{Name: "7", Arch: testbase.Arch, Channel: "other"})
		if err != nil {
			t.Fatal(err)
		}
		if w.Warm {
			t.Error("there is a ready one for a channel that nobody knows")
		}
		once(w)
		w.Close(t.Context())
	})
	t.Run("used once", func(t *testing.T) {
		for range 6 {
			w := f.workspace(t, images.Limits{})
			once(w)
			sh(t, w, "touch /etc/soiled /quarry/soiled")
			w.Close(t.Context())
		}
	})
	t.Run("names", func(t *testing.T) {
		for name, want := range map[string]string{
			"stable": "give CHANNEL or CHANNEL/ARCH, with a channel of the configuration (testing)", "": "no environment", "testing/": "channel testing is built for",
			"testing/vax": "channel testing is built for " + testbase.Arch, "testing/" + testbase.Arch + "/x": "no environment", "../x": "no environment",
		} {
			for _, do := range []func(context.Context, string) error{f.store.Start, f.store.Stop} {
				if err := do(t.Context(), name); err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%q: %v", name, err)
				}
			}
		}
	})
}

// Those who find none wait for one that is under way, and no longer.
func TestPoolWaiting(t *testing.T) {
	f := pooled(t, testbase.Podman(t), images.Options{Pool: images.PoolOptions{Max: 1}})
	take := func(ctx context.Context) chan any {
		got := make(chan any, 1)
		go func() {
			w, err := f.store.Workspace(ctx, images.Spec{Name: "1", Arch: testbase.Arch, Channel: "testing"})
			if err != nil {
				got <- err
				return
			}
			got <- w
		}()
		return got
	}
	waiting := func(n int) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); images.Waiting(f.store) != n; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d wait, not %d", images.Waiting(f.store), n)
			}
		}
	}
	folders := func() []os.DirEntry {
		t.Helper()
		list, err := os.ReadDir(f.work)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	begin := func() (resume func()) {
		t.Helper()
		f.store.Expect("testing", testbase.Arch, 1)
		f.ready(t, 1) // what is under way from here on was begun below
		if err := f.store.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		resume = f.stall(t)
		images.DropWarm(f.store, "", "")
		f.has(t, "one under way", func(e images.Environment) bool { return e.Making == 1 && e.Warm == 0 && len(folders()) == 2 })
		return resume
	}
	t.Run("until it is ready", func(t *testing.T) {
		resume := begin()
		got := take(t.Context())
		waiting(1)
		resume()
		w, ok := (<-got).(*images.Workspace)
		if !ok || !w.Warm {
			t.Fatalf("%+v", w)
		}
		if got := sh(t, w, "echo works"); got != "works" {
			t.Errorf("%q", got)
		}
		w.Close(t.Context())
	})
	t.Run("until they give up", func(t *testing.T) {
		resume := begin()
		ctx, cancel := context.WithCancel(t.Context())
		got := take(ctx)
		waiting(1)
		cancel()
		if err, ok := (<-got).(error); !ok || !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		waiting(0)
		resume()
		f.ready(t, 1)
	})
	t.Run("until it fails", func(t *testing.T) {
		begin()
		got := take(t.Context())
		waiting(1)
		if err := syscall.Kill(f.conn.PID(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		w, ok := (<-got).(*images.Workspace)
		if !ok {
			t.Fatal("a build suffered because none could be made ready")
		}
		w.Close(t.Context())
	})
	t.Run("until it is replaced", func(t *testing.T) {
		resume := begin()
		got := take(t.Context())
		waiting(1)
		images.DropWarm(f.store, "testing", testbase.Arch)
		before := folders()
		resume()
		w, ok := (<-got).(*images.Workspace)
		if !ok {
			t.Fatal("none came")
		}
		if slices.ContainsFunc(before, func(e os.DirEntry) bool { return e.Name() == filepath.Base(w.Dir) }) {
			t.Errorf("what was under way when the instance was replaced was used: %s", w.Dir)
		}
		w.Close(t.Context())
	})
}

// Whatever happens to workspaces that wait, no build gets a dead one, and
// others take their place.
func TestPoolDeaths(t *testing.T) {
	f := pooled(t, testbase.Podman(t), images.Options{Pool: images.PoolOptions{Max: 2}})
	name := "testing/" + testbase.Arch
	f.store.Expect("testing", testbase.Arch, 2)
	alive := func(t *testing.T) {
		t.Helper()
		w := f.workspace(t, images.Limits{})
		if got := sh(t, w, "echo lives"); got != "lives" {
			t.Errorf("%q", got)
		}
		if err := w.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	// kill returns when the whole process is dead, each thread of it.
	kill := func(t *testing.T, pid int) {
		t.Helper()
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(time.Minute); ; {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 1000)
			if n == 1 {
				return
			}
			if err != nil && !errors.Is(err, unix.EINTR) || time.Now().After(deadline) {
				t.Fatalf("process %d does not die: %v", pid, err)
			}
		}
	}
	t.Run("taken at once", func(t *testing.T) {
		f.ready(t, 2)
		for _, pid := range images.Ready(f.store)[name] {
			kill(t, pid)
		}
		alive(t)
	})
	t.Run("one of two", func(t *testing.T) {
		f.ready(t, 2)
		kill(t, images.Ready(f.store)[name][0])
		alive(t)
	})
	t.Run("replaced", func(t *testing.T) {
		f.ready(t, 2)
		was := images.Ready(f.store)[name]
		for _, pid := range was {
			kill(t, pid)
		}
		f.has(t, "two others", func(e images.Environment) bool {
			now := images.Ready(f.store)[name]
			return len(now) == 2 && now[0] != was[0] && now[1] != was[0] && now[0] != was[1] && now[1] != was[1]
		})
		alive(t)
	})
	t.Run("service", func(t *testing.T) {
		f.ready(t, 2)
		was := images.Ready(f.store)[name]
		kill(t, f.conn.PID())
		alive(t)
		f.has(t, "two others", func(e images.Environment) bool {
			now := images.Ready(f.store)[name]
			return e.Paused == "" && len(now) == 2 && now[0] != was[0] && now[1] != was[1]
		})
		alive(t)
	})
	t.Run("removed by hand", func(t *testing.T) {
		f.ready(t, 2)
		if err := f.store.Sweep(t.Context()); err != nil { // leaves them alone
			t.Fatal(err)
		}
		f.ready(t, 2)
		alive(t)
	})
	if err := f.store.Stop(t.Context(), "testing"); err != nil {
		t.Fatal(err)
	}
	f.clean(t)
}

// TestPoolWakes: a farm that has just been started has a workspace ready for the
// first build, though nobody has asked for one yet.
func TestPoolWakes(t *testing.T) {
	f := pooled(t, testbase.Podman(t), images.Options{Pool: images.PoolOptions{Max: 2}})
	f.ready(t, 1)
	ws, err := f.store.Workspace(t.Context(), images.Spec{Name: "first", Arch: testbase.Arch, Channel: "testing"})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close(t.Context())
	if !ws.Warm {
		t.Error("the first build's workspace was not ready")
	}
}

func TestPoolDemand(t *testing.T) {
	t.Parallel()
	f := pooled(t, testbase.Podman(t), images.Options{Pool: images.PoolOptions{Max: 3, Idle: time.Second}})
	// The start counts as a use, and Idle is over soon.
	f.has(t, "nobody wants any", func(e images.Environment) bool { return e.Warm == 0 && e.Making == 0 && e.Target == 0 })
	f.store.Expect("testing", testbase.Arch, 100)
	f.ready(t, 3)
	f.store.Expect("nobody", testbase.Arch, 100)
	f.store.Expect("testing", testbase.Arch, 0)
	f.ready(t, 0)
	if err := f.store.Start(t.Context(), "testing"); err != nil {
		t.Fatal(err)
	}
	f.store.Expect("testing", testbase.Arch, 2)
	f.ready(t, 2)
	f.store.Expect("testing", testbase.Arch, 0)
	f.ready(t, 1) // that many however idle

	release := images.HoldWarm(f.store, "testing", "", "it is being sanitized")
	if e := f.store.Environments(t.Context())[0]; e.Warm != 0 || e.Making != 0 || e.Paused != "it is being sanitized" {
		t.Errorf("%+v", e)
	}
	if err := f.store.Start(t.Context(), "testing"); err == nil || !strings.Contains(err.Error(), "it is being sanitized") {
		t.Errorf("%v", err)
	}
	release()
	f.ready(t, 1)
}

// What people asked for outlives the daemon.
func TestPoolRemembers(t *testing.T) {
	t.Parallel()
	conn := testbase.Podman(t)
	channels := []images.Channel{{Name: "a", Archs: []string{testbase.Arch}}, {Name: "b", Archs: []string{testbase.Arch}}, {Name: "c", Archs: []string{testbase.Arch}}}
	open := func() *images.Store {
		return newStore(t, conn, images.Options{Channels: channels, Pool: images.PoolOptions{Max: 2, MinMemory: 1, MinDisk: 1, MaxStall: 100}})
	}
	s := open()
	// The pool does not run, so the first is waited for in vain: not for the base,
	// which is known from here on.
	if _, err := s.Base(t.Context(), testbase.Arch); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := s.Start(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "a/"+testbase.Arch+" is started") {
		t.Errorf("%v", err)
	}
	if err := s.Stop(t.Context(), "b"); err != nil {
		t.Error(err)
	}
	check := func(want string) {
		t.Helper()
		got := ""
		for _, e := range open().Environments(t.Context()) {
			got += fmt.Sprintf("%s %v %v, ", e.Channel, e.Started, e.Stopped)
		}
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	check("a true false, b false true, c false false, ")
	if err := s.Stop(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	check("a false true, b false true, c false false, ")
	channels = channels[:1]
	check("a false true, ")
	if err := os.WriteFile(filepath.Join(conn.Dir(), "environments.json"), []byte("{{"), 0o644); err != nil {
		t.Fatal(err)
	}
	check("a false false, ")
	if err := newStore(t, conn, images.Options{Channels: channels}).Start(t.Context(), "a"); err == nil || !strings.Contains(err.Error(), "pool.max") {
		t.Errorf("%v", err)
	}
}

// Many at once, with replacements in between: nobody gets what somebody else
// has, and nothing is left.
func TestPoolStorm(t *testing.T) {
	t.Parallel()
	f := pooled(t, testbase.Podman(t), images.Options{Pool: images.PoolOptions{Max: 6}})
	f.store.Expect("testing", testbase.Arch, 6)
	f.ready(t, 6)
	var mu sync.Mutex
	used := map[string]bool{}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := range 6 {
				w, err := f.store.Workspace(t.Context(), images.Spec{Name: fmt.Sprint(i, "-", j), Arch: testbase.Arch, Channel: "testing"})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if used[w.ContainerID] {
					t.Errorf("workspace %s was used before", w.ContainerID)
				}
				used[w.ContainerID] = true
				mu.Unlock()
				if a, err := try(w, request{Shell: "[ ! -e /etc/who ] && echo " + w.Name + " >/etc/who && cat /etc/who"}); err != nil || strings.TrimSpace(a.Output) != w.Name {
					t.Errorf("%s: %+v, %v", w.Name, a, err)
				}
				if err := w.Close(t.Context()); err != nil {
					t.Error(err)
				}
				if i == 0 && j%2 == 0 {
					images.DropWarm(f.store, "", "")
				}
				f.store.Environments(t.Context())
			}
		})
	}
	wg.Wait()
	f.store.Expect("testing", testbase.Arch, 6)
	f.has(t, "six ready", func(e images.Environment) bool { return e.Warm == 6 })
	if err := f.store.Close(t.Context()); err != nil {
		t.Error(err)
	}
	f.clean(t)
}
