package images

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Tasks is what runs in a workspace at one moment.
type Tasks struct {
	Leaves  int // threads of all processes without children
	Running int // tasks that run, are ready to, or wait for a disk
}

// mostTasks is how many tasks are looked at one by one. A build with more is
// not one that compiles with a few jobs.
const mostTasks = 1024

// Tasks looks at the processes below the guest. It reads a few lines for each
// of them, and so can be called some times a second.
func (w *Workspace) Tasks() (Tasks, error) {
	if w.pid <= 0 {
		return Tasks{}, errors.New("processes of a workspace are not known where its guest is in a place that this process cannot see")
	}
	pids, own, err := w.pids()
	if err != nil {
		return Tasks{}, fmt.Errorf("processes of workspace %s cannot be listed: %w", w.Name, err)
	}
	l := looker{proc: procFS}
	return l.tasks(pids, w.pid, own), nil
}

// procFS is where the kernel tells of processes.
const procFS = "/proc"

// pids lists the processes of the workspace, its guest among them; where it has
// no control group of its own, all of the machine.
func (w *Workspace) pids() (pids []int, own bool, err error) {
	for _, dir := range []string{w.cgroup.Pids, w.cgroup.CPU, w.cgroup.Memory, w.cgroup.Unified} {
		if dir == "" {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return nil, true, nil // the workspace has ended
		}
		if err != nil {
			return nil, false, err
		}
		for line := range bytes.Lines(data) {
			if pid, err := strconv.Atoi(string(bytes.TrimSpace(line))); err == nil {
				pids = append(pids, pid)
			}
		}
		return pids, true, nil
	}
	dir, err := os.Open(procFS)
	if err != nil {
		return nil, false, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, false, err
}

// looker reads /proc.
type looker struct {
	proc string
	left int // tasks that may still be looked at
	buf  [1024]byte
}

// process is what is known of one.
type process struct {
	parent, threads int
	state           byte
	child           bool // it has one
	ours            bool // it comes from the guest
}

// tasks counts what runs of pids: all but the guest if they are its own, else
// those that come from it.
func (l *looker) tasks(pids []int, guest int, own bool) (t Tasks) {
	l.left = mostTasks
	all := make(map[int]*process, len(pids))
	for i, pid := range pids {
		if l.left--; l.left < 0 {
			t.Leaves += len(pids) - i // each may be one
			break
		}
		if p, ok := l.stat(fmt.Sprintf("%s/%d/stat", l.proc, pid)); ok && p.state != 'Z' && p.state != 'X' {
			all[pid] = &p
		}
	}
	for pid, p := range all {
		if pid != guest && (own || below(all, pid, guest)) {
			p.ours = true
			if up := all[p.parent]; up != nil {
				up.child = true
			}
		}
	}
	for pid, p := range all {
		if !p.ours {
			continue
		}
		if !p.child {
			t.Leaves += max(p.threads, 1)
		}
		t.Running += l.running(pid, p)
	}
	return t
}

// below reports whether a process comes from guest, which gets those whose
// parents end.
func below(all map[int]*process, pid, guest int) bool {
	for range len(all) + 1 {
		p := all[pid]
		if p == nil {
			return false
		}
		if p.ours || p.parent == guest {
			return true
		}
		pid = p.parent
	}
	return false
}

// running counts the tasks of a process that run or wait for a disk.
func (l *looker) running(pid int, p *process) int {
	if p.threads <= 1 {
		return works(p.state)
	}
	dir, err := os.Open(fmt.Sprintf("%s/%d/task", l.proc, pid))
	if err != nil {
		return 0
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(mostTasks)
	n := 0
	for _, name := range names {
		if l.left--; l.left < 0 {
			break
		}
		if t, ok := l.stat(fmt.Sprintf("%s/%d/task/%s/stat", l.proc, pid, name)); ok {
			n += works(t.state)
		}
	}
	return n
}

func works(state byte) int {
	if state == 'R' || state == 'D' {
		return 1
	}
	return 0
}

// stat reads what proc_pid_stat(5) has of a task.
func (l *looker) stat(path string) (process, bool) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return process{}, false // it has ended
	}
	n, err := unix.Read(fd, l.buf[:])
	unix.Close(fd)
	if err != nil || n <= 0 {
		return process{}, false
	}
	return parseStat(l.buf[:n])
}

// parseStat takes "pid (name) state ppid ... num_threads" apart. The name may
// hold anything, brackets too.
func parseStat(b []byte) (process, bool) {
	_, rest, ok := cutLast(b, ')')
	if !ok {
		return process{}, false
	}
	f := bytes.Fields(rest)
	const state, ppid, threads = 0, 1, 17 // fields 3, 4 and 20
	if len(f) <= threads || len(f[state]) != 1 {
		return process{}, false
	}
	p := process{state: f[state][0]}
	var err1, err2 error
	p.parent, err1 = strconv.Atoi(string(f[ppid]))
	p.threads, err2 = strconv.Atoi(string(f[threads]))
	return p, err1 == nil && err2 == nil
}

func cutLast(b []byte, sep byte) (before, after []byte, ok bool) {
	i := bytes.LastIndexByte(b, sep)
	if i < 0 {
		return nil, nil, false
	}
	return b[:i], b[i+1:], true
}
