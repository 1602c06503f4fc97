package images

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/Morphux/quarry/internal/podman"
)

// SetCPU changes how much processor time the workspace gets while its build runs:
// cpus of them at most, as far as its limits allow, and where others want some, a
// part of weight (1 to 10000, where 100 is everybody's). 0 leaves either as it is.
// An error says that this machine cannot do it, or that the workspace has ended.
func (w *Workspace) SetCPU(cpus float64, weight int) error {
	if err := w.store.limited; err != nil {
		return fmt.Errorf("processor time of a workspace cannot be set: %w", err)
	}
	proc, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", w.pid))
	if err != nil {
		return fmt.Errorf("control groups of the workspace cannot be read: %w", err)
	}
	cg := w.store.cgroups
	dir := cg.Dir(proc, "cpu")
	w.mu.Lock()
	ended := w.killed || w.closed // its group may be there for a while
	w.mu.Unlock()
	// Once the guest has ended its number may be anybody's, but not its group.
	if ended || w.ContainerID == "" || !strings.Contains(dir, w.ContainerID) {
		return errors.New("processor time of a workspace cannot be set: it has no cpu control group of its own, or has ended")
	}
	return setCPU(dir, cg.Mode == podman.CgroupV2, min(cpus, w.Limits.CPUs), weight)
}

// setCPU writes what the kernel takes: Linux' Documentation/admin-guide/
// cgroup-v2.rst (cpu.max, cpu.weight) and scheduler/sched-bwc.rst,
// sched-design-CFS.rst (cpu.cfs_quota_us, cpu.shares, of which 1024 is
// everybody's).
func setCPU(dir string, v2 bool, cpus float64, weight int) error {
	const period = 100_000     // µs, the kernel's own default
	const least = period / 100 // the kernel takes no less than 1 ms
	put := func(file string, text string) error {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0); err != nil {
			return fmt.Errorf("processor time of a workspace cannot be set to %s: %w", text, err)
		}
		return nil
	}
	var errs []error
	if cpus > 0 {
		quota := max(least, int64(cpus*period))
		if v2 {
			errs = append(errs, put("cpu.max", fmt.Sprintf("%d %d", quota, period)))
		} else {
			errs = append(errs, put("cpu.cfs_quota_us", fmt.Sprint(quota)))
		}
	}
	if weight > 0 {
		weight = min(weight, 10_000)
		if v2 {
			errs = append(errs, put("cpu.weight", fmt.Sprint(weight)))
		} else {
			errs = append(errs, put("cpu.shares", fmt.Sprint(max(2, weight*1024/100))))
		}
	}
	return errors.Join(errs...)
}
