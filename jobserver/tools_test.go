package jobserver_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/Morphux/quarry/internal/testtools"
	"github.com/Morphux/quarry/jobserver"
)

// tool is a build program that takes part in a jobserver.
type tool struct {
	name, path, form string
	ninja            bool
}

func tools(t testing.TB) []tool {
	system, err := exec.LookPath("make")
	if err != nil {
		t.Fatal("there is no make: make deps installs it")
	}
	all := []tool{{"make", system, jobserver.Descriptor, false}}
	if path, ok := testtools.Make(t); ok {
		all = append(all, tool{"make-4.4", path, jobserver.FIFO, false}, tool{"make-4.4-descriptor", path, jobserver.Descriptor, false})
	}
	if path, ok := testtools.Ninja(t); ok {
		all = append(all, tool{"ninja", path, jobserver.FIFO, true})
	}
	return all
}

// build is a build of a test with a jobserver.
type build struct {
	dir   string
	pool  *jobserver.Pool
	trace *testtools.Trace
	cmd   *exec.Cmd
	end   func() // ends all of it
}

const ceiling = 8 // what the build is told

// of is how many jobs a build has: of those of make, each of two sub-makes has half,
// one after the other. They are more than can be used up, however often a build
// has a token back before the pool.
const of = 1600

func start(t testing.TB, tl tool, jobs int) *build {
	t.Helper()
	b := &build{dir: t.TempDir()}
	files := map[string]string{"job": string(testtools.Job(t))}
	if tl.ninja {
		var w strings.Builder
		w.WriteString("rule job\n command = ./job trace gate\n")
		for i := range of {
			fmt.Fprintf(&w, "build t%d: job\n", i)
		}
		files["build.ninja"] = w.String()
	} else {
		files["Makefile"] = "all: a b\nb: a\na b:\n\t-@$(MAKE) -f jobs.mk\n"
		var w strings.Builder
		w.WriteString("all:")
		for i := range of / 2 {
			fmt.Fprintf(&w, " t%d", i)
		}
		w.WriteString("\nt%:\n\t@./job trace gate\n")
		files["jobs.mk"] = w.String()
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(b.dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b.trace = testtools.Watch(t, b.dir, os.Getuid())
	var err error
	if b.pool, err = jobserver.New(jobserver.Options{Dir: b.dir, Name: ".jobs", UID: os.Getuid(), GID: os.Getgid()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.pool.Close)
	b.pool.Set(jobs)
	b.cmd = exec.Command(tl.path)
	b.cmd.Dir = b.dir
	for _, kv := range os.Environ() {
		switch key, _, _ := strings.Cut(kv, "="); key {
		case "MAKEFLAGS", "MFLAGS", "MAKELEVEL":
		default:
			b.cmd.Env = append(b.cmd.Env, kv)
		}
	}
	b.cmd.Env = append(b.cmd.Env, "MAKEFLAGS="+jobserver.Flags(tl.form, b.pool.Path(), ceiling))
	log := &strings.Builder{}
	b.cmd.Stdout, b.cmd.Stderr = log, log
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if tl.form == jobserver.Descriptor {
		f, err := os.OpenFile(b.pool.Path(), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		b.cmd.ExtraFiles = []*os.File{f}
	}
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.end = sync.OnceFunc(func() {
		_ = syscall.Kill(-b.cmd.Process.Pid, syscall.SIGKILL)
		_ = b.cmd.Wait()
		b.trace.Open(t) // ninja's jobs have groups of their own
	})
	t.Cleanup(func() {
		b.end()
		if t.Failed() {
			t.Logf("%s: %s", tl.path, log)
		}
	})
	return b
}

// bounded checks that no more jobs run than slots are out. It may only be called
// while the number is not raised.
func (b *build) bounded(t testing.TB) {
	t.Helper()
	is := b.pool.State()
	if n := b.trace.Running(t); n > is.Out {
		t.Errorf("%d jobs run, with %+v", n, is)
	}
}

// set brings the build to n jobs. To have fewer it ends one after another.
func (b *build) set(t testing.TB, tl tool, n int) {
	t.Helper()
	up := n > b.pool.State().Want
	b.pool.Set(n)
	for up && tl.ninja && b.trace.Running(t) < n {
		// It only looks for tokens when a job ends.
		b.next(t)
	}
	for b.pool.State().Out > n {
		b.bounded(t)
		b.next(t)
	}
	b.trace.Wait(t, n)
	b.bounded(t)
	if is := b.pool.State(); is.Free != 0 || is.Out != n {
		t.Errorf("with %d jobs: %+v", n, is)
	}
}

// next ends a job, and waits until what comes of it has settled.
func (b *build) next(t testing.TB) {
	t.Helper()
	ended := b.trace.Ended(t)
	b.trace.End(t, 1)
	testtools.Until(t, func() string {
		// Another begins if the build is the first to have the token again.
		if is := b.pool.State(); b.trace.Ended(t) == ended || b.trace.Running(t) != is.Held+1 {
			return fmt.Sprintf("%d jobs run after one has ended, with %+v", b.trace.Running(t), is)
		}
		return ""
	})
}

// TestTools has the jobs of real build programs follow the number.
func TestTools(t *testing.T) {
	for _, tl := range tools(t) {
		t.Run(tl.name, func(t *testing.T) {
			b := start(t, tl, 1)
			b.trace.Wait(t, 1)
			for _, n := range []int{5, 2, ceiling, 1, 3} {
				b.set(t, tl, n)
			}
			b.trace.Open(t)
			if err := b.cmd.Wait(); err != nil {
				t.Errorf("the build ends with %v", err)
			}
			if is, want := b.pool.State(), (jobserver.State{Want: 3, Out: 3, Free: 2}); is != want {
				t.Errorf("at its end: %+v, not %+v", is, want)
			}
			if n := testtools.Peak(0, b.trace.Events(t)); n != ceiling {
				t.Errorf("%d jobs ran at one time, not %d", n, ceiling)
			}
			if n := b.trace.Ended(t); n != of {
				t.Errorf("%d jobs have ended, not %d", n, of)
			}
		})
	}
}

// TestKilled has a sub-make die with its jobs, and the tokens for them.
func TestKilled(t *testing.T) {
	for _, tl := range tools(t) {
		if tl.ninja {
			continue // there is nobody to find it dead
		}
		t.Run(tl.name, func(t *testing.T) {
			b := start(t, tl, 5)
			b.trace.Wait(t, 5)
			sub := b.children(t, b.cmd.Process.Pid)
			if len(sub) != 1 {
				t.Fatalf("make has %v below it, not one sub-make", sub)
			}
			// All at once, or it would hear of the end of its jobs.
			doomed := append(sub, b.children(t, sub[0])...)
			if len(doomed) != 6 {
				t.Fatalf("the sub-make has %v below it, not 5 jobs", doomed[1:])
			}
			for _, sig := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGKILL} {
				for _, pid := range doomed {
					if err := syscall.Kill(pid, sig); err != nil {
						t.Fatal(err)
					}
				}
			}
			// The next sub-make has the slot of make's own, and no more.
			testtools.Until(t, func() string {
				if n := b.living(t); n != 1 {
					return fmt.Sprintf("%d jobs run, not 1", n)
				}
				return ""
			})
			if is, want := b.pool.State(), (jobserver.State{Want: 5, Out: 5, Held: 4}); is != want {
				t.Fatalf("before anybody looks: %+v, not %+v", is, want)
			}
			testtools.Until(t, func() string {
				b.pool.Leaked(b.living(t))
				if n := b.living(t); n != 5 {
					return fmt.Sprintf("%d jobs run, not 5, with %+v", n, b.pool.State())
				}
				return ""
			})
			if is, want := b.pool.State(), (jobserver.State{Want: 5, Out: 5, Held: 4, Repaired: 4}); is != want {
				t.Errorf("afterwards: %+v, not %+v", is, want)
			}
		})
	}
}

// living counts the jobs whose processes are there.
func (b *build) living(t *testing.T) (n int) {
	t.Helper()
	for _, sub := range b.children(t, b.cmd.Process.Pid) {
		n += len(b.children(t, sub))
	}
	return n
}

// children lists the processes that another has started and that have not ended.
func (b *build) children(t *testing.T, of int) (pids []int) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		var state rune
		var pid, parent int
		_, _ = fmt.Sscan(string(text), &pid)
		_, _ = fmt.Sscanf(string(text[strings.LastIndexByte(string(text), ')')+1:]), " %c %d", &state, &parent)
		if parent == of && state != 'Z' {
			pids = append(pids, pid)
		}
	}
	return pids
}
