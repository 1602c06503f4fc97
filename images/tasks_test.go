package images

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// proc writes a /proc with processes of one thread: pid, state, parent.
func proc(t testing.TB, lines ...string) (dir string, pids []int) {
	t.Helper()
	dir = t.TempDir()
	for _, line := range lines {
		var pid, parent, threads int
		var state string
		if n, err := fmt.Sscan(line, &pid, &state, &parent, &threads); n < 3 {
			t.Fatalf("%q: %v", line, err)
		}
		pids = append(pids, pid)
		writeStat(t, filepath.Join(dir, fmt.Sprint(pid)), pid, state[:1], parent, max(threads, 1))
		for i := range threads {
			writeStat(t, filepath.Join(dir, fmt.Sprint(pid), "task", fmt.Sprint(pid+i)), pid+i, state[i%len(state):][:1], parent, threads)
		}
	}
	return dir, pids
}

func writeStat(t testing.TB, dir string, pid int, state string, parent, threads int) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("%d (a) R 1 (b)\n) %s %d 0 0 0 -1 0 0 0 0 0 0 0 0 0 20 0 %d 0 1 2 3\n", pid, state, parent, threads)
	if err := os.WriteFile(filepath.Join(dir, "stat"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestTasks(t *testing.T) {
	for _, tt := range []struct {
		name  string
		lines []string
		own   bool
		want  Tasks
	}{
		{"nothing but the guest", []string{"100 R 1"}, true, Tasks{}},
		{"make with two jobs", []string{"100 S 1", "101 S 100", "102 S 101", "103 R 102", "104 D 101"}, true, Tasks{2, 2}},
		{"what ended and waits for its parent does not count", []string{"100 S 1", "101 R 100", "102 Z 101", "103 Z 100"}, true, Tasks{1, 1}},
		{"threads", []string{"100 S 1 12", "101 SRRD 100 4", "102 RS 100 2", "103 S 102"}, true, Tasks{5, 4}},
		{"left by its parent", []string{"100 S 1", "101 S 77"}, true, Tasks{1, 0}},
		{"a whole machine", []string{"1 S 0", "100 S 1", "101 S 100", "102 R 101", "103 R 101", "200 R 1", "201 R 200"}, false, Tasks{2, 2}},
		{"a whole machine without the guest", []string{"1 S 0", "200 R 1"}, false, Tasks{}},
		{"parents in a circle", []string{"100 S 1", "101 R 102", "102 R 101"}, false, Tasks{}},
	} {
		dir, pids := proc(t, tt.lines...)
		l := looker{proc: dir}
		if got := l.tasks(append(pids, 999), 100, tt.own); got != tt.want {
			t.Errorf("%s: %+v, not %+v", tt.name, got, tt.want)
		}
	}
	// A build with more than anybody wants to look at.
	lines := []string{"100 S 1"}
	for i := range 2 * mostTasks {
		lines = append(lines, fmt.Sprintf("%d R 100", 1000+i))
	}
	dir, pids := proc(t, lines...)
	l := looker{proc: dir}
	if got := l.tasks(pids, 100, true); got.Leaves != 2*mostTasks || got.Running != mostTasks-1 {
		t.Errorf("of %d tasks: %+v", 2*mostTasks, got)
	}
}

// TestRealTasks looks at processes of this machine.
func TestRealTasks(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", "sleep 1000 & sh -c 'sleep 1000; :' & while :; do :; done")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	}()
	w := &Workspace{Name: "test", pid: os.Getpid(), store: &Store{}}
	for until := time.Now().Add(2 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		pids, own, err := w.pids()
		if err != nil || own {
			t.Fatalf("%v, %v", own, err)
		}
		l := looker{proc: procFS}
		// As if the shell were a guest: what it starts counts.
		below, all := l.tasks(pids, cmd.Process.Pid, false), Tasks{}
		if all, err = w.Tasks(); err != nil {
			t.Fatal(err)
		}
		if below == (Tasks{2, 0}) && all.Leaves >= 2 && all.Running >= 1 {
			return
		}
		if time.Now().After(until) {
			t.Fatalf("below the shell %+v, not 2 that sleep; with it %+v", below, all)
		}
	}
}

func TestParseStat(t *testing.T) {
	const rest = " 7 0 0 0 -1 0 0 0 0 0 0 0 0 0 20 0 3 0 1 2 3\n"
	for _, text := range []string{"", "1", "1 (", "1 ()", "1 (x) R", "1 (x) RR" + rest, "1 (x) R x 0 0 0 -1 0 0 0 0 0 0 0 0 0 20 0 3 0", "1 (x) R 1 0 0 0 -1 0 0 0 0 0 0 0 0 0 20 0 x 0"} {
		if p, ok := parseStat([]byte(text)); ok {
			t.Errorf("%q: %+v", text, p)
		}
	}
	for _, name := range []string{"x", "", ")", "( ", "a b) R 9 9 9", strings.Repeat(")", 15)} {
		if p, ok := parseStat([]byte("12 (" + name + ") D" + rest)); !ok || p.state != 'D' || p.parent != 7 || p.threads != 3 {
			t.Errorf("%q: %+v, %v", name, p, ok)
		}
	}
}

// BenchmarkTasks looks at a workspace of a hundred processes.
func BenchmarkTasks(b *testing.B) {
	var pids []int
	for range 100 {
		cmd := exec.Command("sleep", "1000")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		defer func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}()
		pids = append(pids, cmd.Process.Pid)
	}
	l := looker{proc: procFS}
	for b.Loop() {
		if t := l.tasks(pids, 1, true); t.Leaves != 100 {
			b.Fatalf("%+v", t)
		}
	}
}
