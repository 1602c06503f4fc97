package testtools

import (
	"bufio"
	"bytes"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

//go:embed testdata/job.c
var jobC []byte

var jobOnce = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "quarry-job-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	src, bin := filepath.Join(dir, "job.c"), filepath.Join(dir, "job")
	if err := os.WriteFile(src, jobC, 0o644); err != nil {
		return nil, err
	}
	if out, err := exec.Command("gcc", "-O1", "-Wall", "-D_GNU_SOURCE", "-static", "-o", bin, src).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, lastLines(out))
	}
	return os.ReadFile(bin)
})

// Job returns a program that runs in any system of this machine's arch: a job
// that writes down in a [Trace] when it begins and ends, and ends when the test
// says so. Called as
//
//	job TRACE GATE             it is one job, until [Trace.End] lets it go
//	job TRACE -- COMMAND...    it is COMMAND, written down
//	job TRACE GATE N           it runs N jobs of the first kind, as many at one
//	                           time as build control says over $BUILDSOCKET
func Job(t testing.TB) []byte {
	t.Helper()
	bin, err := jobOnce()
	if err != nil {
		t.Fatalf("a program for tests cannot be compiled: %v: make deps installs what the tests need", err)
	}
	return bin
}

// Trace is what the jobs of a build have written down, and the gate that they
// wait at.
type Trace struct {
	dir  string
	gate *os.File
}

// Event is the begin or the end of a job.
type Event struct {
	Begin bool
	PID   int
	At    time.Duration // of the kernel's monotonic clock: see [Clock]
}

// Clock is the time now, as it is in events.
func Clock() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // the kernel has had it for twenty years
	}
	return time.Duration(ts.Nano())
}

// Watch makes the gate of jobs that are called with TRACE trace and GATE gate in
// a folder, before they are. The build's root is uid on this machine.
func Watch(t testing.TB, dir string, uid int) *Trace {
	t.Helper()
	gate := filepath.Join(dir, "gate")
	if err := unix.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(gate, uid, uid); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(gate, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &Trace{dir, f}
}

// Events tells what has been written down until now, in order of time.
func (r *Trace) Events(t testing.TB) []Event {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(r.dir, "trace"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	// A line may be seen before all of it is written: it is none until it ends.
	data = data[:bytes.LastIndexByte(data, '\n')+1]
	var all []Event
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		var what string
		var pid int
		var at int64
		if _, err := fmt.Sscanf(s.Text(), "%s %d %d", &what, &pid, &at); err != nil {
			t.Fatalf("line %q of a trace: %v", s.Text(), err)
		}
		all = append(all, Event{what == "s", pid, time.Duration(at)})
	}
	slices.SortStableFunc(all, func(a, b Event) int { return int(a.At - b.At) })
	return all
}

// Running counts the jobs that have begun and not ended.
func (r *Trace) Running(t testing.TB) int {
	t.Helper()
	n := 0
	for _, e := range r.Events(t) {
		n += delta(e)
	}
	return n
}

// Ended counts the jobs that have ended.
func (r *Trace) Ended(t testing.TB) int {
	t.Helper()
	n := 0
	for _, e := range r.Events(t) {
		if !e.Begin {
			n++
		}
	}
	return n
}

func delta(e Event) int {
	if e.Begin {
		return 1
	}
	return -1
}

// Peak is the most jobs that ran at one time, of several builds together, since
// a moment of [Clock] (0: ever).
func Peak(since time.Duration, builds ...[]Event) int {
	all := slices.Concat(builds...)
	slices.SortStableFunc(all, func(a, b Event) int { return int(a.At - b.At) })
	n, most := 0, 0
	for _, e := range all {
		n += delta(e)
		if e.At >= since {
			most = max(most, n)
		}
	}
	return most
}

// Wait waits until n jobs run.
func (r *Trace) Wait(t testing.TB, n int) {
	t.Helper()
	Until(t, func() string {
		if is := r.Running(t); is != n {
			return fmt.Sprintf("%d jobs run, not %d", is, n)
		}
		return ""
	})
}

// patience is what no condition takes on any machine.
const patience = 5 * time.Minute

// Until waits until a condition holds: until it has no complaint any more.
func Until(t testing.TB, complaint func() string) {
	t.Helper()
	for until := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		switch why := complaint(); {
		case why == "":
			return
		case time.Now().After(until):
			t.Fatalf("after %s %s", patience, why)
		}
	}
}

// End lets n of the jobs that run end.
func (r *Trace) End(t testing.TB, n int) {
	t.Helper()
	if _, err := r.gate.WriteString(strings.Repeat("\n", n)); err != nil {
		t.Fatal(err)
	}
}

// Open lets all jobs end, those that are yet to begin as well.
func (r *Trace) Open(t testing.TB) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, "gate.open"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	r.End(t, 4096)
}

// Program reads a program that [Make] or [Ninja] gave, to put into a package.
func Program(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
