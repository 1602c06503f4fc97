package images_test

import (
	"strings"
	"testing"

	"github.com/Morphux/quarry/images"
)

// TestSetCPU: what is set is what the kernel has, and never more than the limit.
func TestSetCPU(t *testing.T) {
	t.Parallel()
	f := newFarm(t)
	w := f.workspace(t, images.Limits{CPUs: 0.5})
	const show = `for f in cpu.max cpu.weight cpu/cpu.cfs_quota_us cpu/cpu.shares cpu,cpuacct/cpu.cfs_quota_us cpu,cpuacct/cpu.shares; do
		[ -e /sys/fs/cgroup/$f ] && cat /sys/fs/cgroup/$f | cut -d' ' -f1
	done; true`
	for _, tt := range []struct {
		cpus   float64
		weight int
		quota  string
		parts  []string // with cpu.weight, with cpu.shares
	}{
		{0.25, 200, "25000", []string{"200", "2048"}},
		{0, 50, "25000", []string{"50", "512"}},
		{8, 0, "50000", []string{"50", "512"}},
	} {
		if err := w.SetCPU(tt.cpus, tt.weight); err != nil {
			t.Fatal(err)
		}
		got := strings.Fields(sh(t, w, show))
		if len(got) < 2 || got[0] != tt.quota || got[1] != tt.parts[0] && got[1] != tt.parts[1] {
			t.Errorf("after %g processors of weight %d the kernel has %q", tt.cpus, tt.weight, got)
		}
	}
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.SetCPU(1, 100); err == nil {
		t.Error("the processor time of a workspace that has ended was set")
	}
}
