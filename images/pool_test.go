package images_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/podman"
	"github.com/Morphux/quarry/internal/testbase"
)

// pooled is a farm with one channel, whose pool is at work.
func pooled(t testing.TB, conn *podman.Conn, o images.PoolOptions) farm {
	t.Helper()
	if o.MinMemory == 0 {
		o.MinMemory = 1 // whatever the machine has
	}
	if o.MinDisk == 0 {
		o.MinDisk = 1
	}
	work := filepath.Join(t.TempDir(), "work")
	s := newStore(t, conn, images.Options{WorkDir: work, Pool: o,
		Channels: []images.Channel{{Name: "testing", Archs: []string{testbase.Arch}}}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		images.RunPool(ctx, s)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return farm{conn, s, work}
}

// has waits until the one environment is as it should be.
func (f farm) has(t testing.TB, what string, ok func(images.Environment) bool) images.Environment {
	t.Helper()
	var e images.Environment
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if e = f.store.Environments(t.Context())[0]; ok(e) {
			return e
		}
	}
	t.Fatalf("%s never came to be: %+v", what, e)
	return e
}

func TestPool(t *testing.T) {
	f := pooled(t, testbase.Podman(t), images.PoolOptions{Max: 3})
	if err := f.store.Start(t.Context(), "testing"); err != nil {
		t.Fatal(err)
	}
	e := f.has(t, "one ready", func(e images.Environment) bool { return e.Warm == 1 && e.Making == 0 })
	t.Logf("%+v", e)
	w := f.workspace(t, images.Limits{Memory: 512 << 20, Pids: 100, CPUs: 0.5, NoFile: 1000, FileSize: 64 << 20})
	t.Log(w.Warm, w.Made)
	t.Log(sh(t, w, "ulimit -n; ulimit -u; ulimit -f; cat /sys/fs/cgroup/*/memory.limit_in_bytes; cat /sys/fs/cgroup/*/pids.max /sys/fs/cgroup/*/cpu.cfs_quota_us"))
	w.Close(t.Context())
}
