package images

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/internal/cgroup"
	"github.com/Morphux/quarry/internal/podman"
)

// readCgroup finds the control groups of a process.
func readCgroup(c podman.Cgroups, pid int) cgroup.Group {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return cgroup.Group{}
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return cgroup.Group{}
	}
	// Where a runtime made no group of its own, what is counted is this
	// process's, or the whole machine's.
	dir := func(controller string) string {
		d := c.Dir(data, controller)
		if d == c.Dir(own, controller) {
			return ""
		}
		return d
	}
	g := cgroup.Group{
		V2:  c.Mode == podman.CgroupV2,
		CPU: dir("cpuacct"), Memory: dir("memory"), Pids: dir("pids"), IO: dir("blkio"),
	}
	if u := c.Unified(data); u != c.Unified(own) {
		g.Unified = u
	}
	return g
}

// CPUGroups gives the folders of the control groups that count the processor time
// of all that runs in workspaces of this farm.
func (s *Store) CPUGroups() []string {
	if dir := s.cgroups.CPU(s.conn.Farm()); dir != "" {
		return []string{dir}
	}
	return nil
}

// count sees to it that io is counted, once for each store: a kernel that
// counts goes on with it.
func (s *Store) count(g *cgroup.Group) {
	if g.V2 || g.IO == "" {
		return
	}
	s.countOnce.Do(func() {
		var err error
		if s.counted, err = cgroup.CountIO(s.cgroups.V1["blkio"], g.IO, ""); !s.counted {
			s.log.Info("this kernel does not count the io of builds", "error", err)
		}
	})
	g.Counted = s.counted
}

// Usage tells what the workspace has used until now. After its end it tells
// what was seen last. An error means that this machine cannot tell at all.
func (w *Workspace) Usage() (Usage, error) {
	if w.store.limited != nil {
		return Usage{}, fmt.Errorf("use of resources is not known: %w", w.store.limited)
	}
	w.sample()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.usage, nil
}

// Sample tells what the workspace uses at this moment, and the bytes that it
// had on disk when that was last measured. Nothing of the first is known after
// the workspace's end, or on a machine that cannot tell.
func (w *Workspace) Sample() (now cgroup.Stat, disk cgroup.Count) {
	now = w.sample()
	w.mu.Lock()
	defer w.mu.Unlock()
	return now, w.disk
}

// MeasureDisk measures how much disk the workspace takes when the watcher has
// not come to it yet, as in a short build.
func (w *Workspace) MeasureDisk() {
	w.mu.Lock()
	known := w.disk.Known
	w.mu.Unlock()
	if !known {
		_ = w.measure() // its limit is the watcher's business
	}
}

// threadsOf counts the threads of a process, 0 when it is gone: each is a folder
// in its task folder, whose links the kernel counts.
func threadsOf(pid int) int64 {
	var st unix.Stat_t
	if pid <= 0 || unix.Stat(fmt.Sprintf("/proc/%d/task", pid), &st) != nil {
		return 0
	}
	return max(0, int64(st.Nlink)-2)
}

// sample reads the counters and keeps the highest value of each: after the
// container's end its cgroup is gone, and they are not known any more.
func (w *Workspace) sample() cgroup.Stat {
	now := w.cgroup.Read()
	if now.Procs.Known {
		n := threadsOf(w.pid) // the guest's, none of the build's
		now.Procs.N = max(0, now.Procs.N-n)
		if now.PeakProcs.Known {
			now.PeakProcs.N = max(now.Procs.N, now.PeakProcs.N-n)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	u := &w.usage
	u.PeakMemory = max(u.PeakMemory, now.PeakMemory.N, now.Memory.N)
	u.Anonymous = max(u.Anonymous, now.Anon.N)
	u.User = max(u.User, time.Duration(now.User.N)*time.Microsecond)
	u.Sys = max(u.Sys, time.Duration(now.Sys.N)*time.Microsecond)
	u.OOMKills = max(u.OOMKills, now.OOMKills.N)
	u.PidsHits = max(u.PidsHits, now.PidsHits.N)
	u.Read = max(u.Read, now.Read.N)
	u.Written = max(u.Written, now.Written.N)
	u.PeakProcs = max(u.PeakProcs, now.PeakProcs.N, now.Procs.N)
	if u.PeakMemory == 0 {
		u.PeakMemory = u.Anonymous // a kernel without memory.peak
	}
	return now
}
