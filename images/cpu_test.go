package images

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Morphux/quarry/internal/podman"
)

// TestCPUFiles: both versions of control groups are told what they take.
func TestCPUFiles(t *testing.T) {
	for _, tt := range []struct {
		v2     bool
		cpus   float64
		weight int
		want   map[string]string
	}{
		{true, 1.5, 100, map[string]string{"cpu.max": "150000 100000", "cpu.weight": "100"}},
		{true, 0, 50, map[string]string{"cpu.weight": "50"}},
		{true, 0.0001, 0, map[string]string{"cpu.max": "1000 100000"}},
		{true, -1, -1, nil},
		{true, 1, 1 << 30, map[string]string{"cpu.max": "100000 100000", "cpu.weight": "10000"}},
		{false, 2, 100, map[string]string{"cpu.cfs_quota_us": "200000", "cpu.shares": "1024"}},
		{false, 0, 1, map[string]string{"cpu.shares": "10"}},
		{false, 0.25, 0, map[string]string{"cpu.cfs_quota_us": "25000"}},
	} {
		dir := t.TempDir()
		if err := setCPU(dir, tt.v2, tt.cpus, tt.weight); err != nil {
			t.Error(err)
		}
		files, err := os.ReadDir(dir)
		if err != nil || len(files) != len(tt.want) {
			t.Errorf("%+v: %v, %v", tt, files, err)
		}
		for name, want := range tt.want {
			if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
				t.Errorf("%+v: %s is %q (%v), want %q", tt, name, got, err, want)
			}
		}
	}
	if err := setCPU(filepath.Join(t.TempDir(), "gone"), true, 1, 1); err == nil || !strings.Contains(err.Error(), "processor time of a workspace") {
		t.Errorf("in a group that is gone: %v", err)
	}
}

// TestSetCPUEnded: nothing is set for a workspace that has ended, though its group
// and its first process are still there, as until its monitor has asked after that.
func TestSetCPUEnded(t *testing.T) {
	cg, err := podman.DetectCgroups()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cg.V1, cg.V2 = map[string]string{"cpu": dir}, dir
	proc, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(cg.Dir(proc, "cpu"), 0o755); err != nil {
		t.Fatal(err)
	}
	w := &Workspace{pid: os.Getpid(), ContainerID: t.Name(), Limits: Limits{CPUs: 1}, store: &Store{cgroups: cg}}
	if err := w.SetCPU(1, 100); err != nil {
		t.Errorf("while it lives: %v", err)
	}
	w.closed = true
	if err := w.SetCPU(1, 100); err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("after its end: %v", err)
	}
}
