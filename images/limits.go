package images

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/internal/podman"
)

// DefaultLimits are the limits for this machine where nobody says otherwise:
// three quarters of its memory but 8 GiB at most, all its processors, 4096
// processes, 20 GiB of disk, and open files as most distributions allow them.
func DefaultLimits() Limits {
	l := Limits{
		Memory: 8 << 30,
		Pids:   4096,
		CPUs:   float64(runtime.NumCPU()),
		Disk:   20 << 30,
		NoFile: 16384,
		Shm:    256 << 20,
	}
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		l.Memory = min(l.Memory, int64(si.Totalram)*int64(si.Unit)/4*3)
	}
	return l
}

// or fills in what l leaves out.
func (l Limits) or(d Limits) Limits {
	pick := func(a, b int64) int64 {
		if a > 0 {
			return a
		}
		return b
	}
	r := Limits{
		Memory:   pick(l.Memory, d.Memory),
		Pids:     pick(l.Pids, d.Pids),
		CPUs:     l.CPUs,
		Disk:     pick(l.Disk, d.Disk),
		NoFile:   l.NoFile,
		NProc:    l.NProc,
		FileSize: pick(l.FileSize, d.FileSize),
		Shm:      pick(l.Shm, d.Shm),
	}
	if !(r.CPUs > 0) {
		r.CPUs = d.CPUs
	}
	if r.NoFile == 0 {
		r.NoFile = d.NoFile
	}
	if r.NProc == 0 {
		r.NProc = d.NProc
	}
	return r
}

// fit makes the limits such that this machine can grant them.
func (l Limits) fit() Limits {
	if l.NProc == 0 {
		// Well above what the cgroup allows: its counter tells that a build ran
		// into the limit, which the kernel's refusal by this one would not.
		l.NProc = 2 * uint64(max(l.Pids, 0))
	}
	if l.FileSize == 0 || l.FileSize > l.Disk {
		l.FileSize = l.Disk
	}
	// Without CAP_SYS_RESOURCE nobody gets more than the daemon may have.
	l.NoFile = min(l.NoFile, podman.HardLimit(unix.RLIMIT_NOFILE))
	l.NProc = min(l.NProc, podman.HardLimit(unix.RLIMIT_NPROC))
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_FSIZE, &r) == nil && r.Max < uint64(l.FileSize) {
		l.FileSize = int64(r.Max)
	}
	l.CPUs = min(l.CPUs, float64(runtime.NumCPU()))
	return l
}

// The least that a workspace can start with.
const (
	leastMemory = 16 << 20
	leastPids   = 16
)

func (l Limits) check() error {
	switch {
	case l.Memory < leastMemory:
		return fmt.Errorf("memory limit of %d bytes is too little for a workspace: give %d at least", l.Memory, leastMemory)
	case l.Pids < leastPids:
		return fmt.Errorf("limit of %d processes is too little for a workspace: give %d at least", l.Pids, leastPids)
	case l.CPUs < 0.01:
		return fmt.Errorf("limit of %g processors is too little for a workspace: give 0.01 at least", l.CPUs)
	case l.Disk < 1<<20:
		return fmt.Errorf("disk limit of %d bytes is too little for a workspace: give 1 MiB at least", l.Disk)
	case l.NoFile < 64, l.NProc < leastPids:
		return fmt.Errorf("limits of %d open files and %d processes per user are too little for a workspace: give 64 and %d at least", l.NoFile, l.NProc, leastPids)
	}
	return nil
}

// wide are the limits of a workspace that waits for its build. What a process
// can only lower is as high as it can be.
func (s *Store) wide() Limits {
	l := s.limits.fit()
	l.NoFile = podman.HardLimit(unix.RLIMIT_NOFILE)
	l.NProc = podman.HardLimit(unix.RLIMIT_NPROC)
	l.FileSize = math.MaxInt64
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_FSIZE, &r) == nil && r.Max < math.MaxInt64 {
		l.FileSize = int64(r.Max)
	}
	return l
}

// grant changes the limits of a workspace in which only the guest runs. All but
// that on /dev/shm can be changed.
func (w *Workspace) grant(l Limits) error {
	if w.store.limited == nil {
		if err := w.grantGroups(l); err != nil {
			return err
		}
	}
	for _, r := range []struct {
		name     string
		resource int
		n        uint64
	}{
		{"open files", unix.RLIMIT_NOFILE, l.NoFile},
		{"processes per user", unix.RLIMIT_NPROC, l.NProc},
		{"size of a file", unix.RLIMIT_FSIZE, uint64(l.FileSize)},
	} {
		// Whether the number is still the guest's is seen afterwards: its end does
		// not go unnoticed (see alive).
		if err := unix.Prlimit(w.pid, r.resource, &unix.Rlimit{Cur: r.n, Max: r.n}, nil); err != nil {
			return fmt.Errorf("limit on %s cannot be set to %d: %w", r.name, r.n, err)
		}
	}
	w.Limits = l
	return nil
}

// grantGroups changes the limits that control groups keep, as the runtime would
// have set them.
func (w *Workspace) grantGroups(l Limits) error {
	was, cg := w.Limits, w.store.cgroups
	proc, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", w.pid))
	if err != nil {
		return fmt.Errorf("control groups of its guest cannot be read: %w", err)
	}
	in := func(controller string) (dir string, err error) {
		if dir = cg.Dir(proc, controller); dir == "" {
			err = fmt.Errorf("there is no %s control group", controller)
		}
		return dir, err
	}
	put := func(controller, file string, value any) error {
		dir, err := in(controller)
		if err != nil {
			return err
		}
		err = os.WriteFile(filepath.Join(dir, file), fmt.Append(nil, value), 0)
		if err != nil {
			return fmt.Errorf("limit cannot be set to %v: %w", value, err)
		}
		return nil
	}
	v2 := cg.Mode == podman.CgroupV2
	var errs []error
	if l.CPUs != was.CPUs {
		dir, err := in("cpu")
		if err == nil {
			err = setCPU(dir, v2, l.CPUs, 0)
		}
		errs = append(errs, err)
	}
	add := func(changed bool, controller, file string, value any) {
		if changed {
			errs = append(errs, put(controller, file, value))
		}
	}
	if v2 {
		add(l.Memory != was.Memory, "memory", "memory.max", l.Memory)
		add(l.Pids != was.Pids, "pids", "pids.max", l.Pids)
		return errors.Join(errs...)
	}
	// Memory with swap is never less than memory, not even in between.
	files := []string{"memory.limit_in_bytes"}
	if swapLimited(cg) {
		files = append(files, "memory.memsw.limit_in_bytes")
	}
	if l.Memory > was.Memory {
		slices.Reverse(files)
	}
	for _, file := range files {
		add(l.Memory != was.Memory, "memory", file, l.Memory)
	}
	add(l.Pids != was.Pids, "pids", "pids.max", l.Pids)
	return errors.Join(errs...)
}

// swapLimited reports whether the kernel can count swap; asking it to when it
// cannot is an error.
func swapLimited(c podman.Cgroups) bool {
	if c.Mode == podman.CgroupV2 {
		return true // runc and crun leave memory.swap.max out when it is missing
	}
	_, err := os.Stat(c.V1["memory"] + "/memory.memsw.limit_in_bytes")
	return err == nil
}
