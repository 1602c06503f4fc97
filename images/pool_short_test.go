package images_test

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/podman"
	"github.com/Morphux/quarry/internal/testbase"
	"github.com/Morphux/quarry/internal/testdisk"
)

func TestPoolShort(t *testing.T) {
	t.Run("memory", func(t *testing.T) {
		out := new(book)
		f := pooled(t, testbase.Podman(t), images.Options{Pool: images.PoolOptions{Max: 2}, Log: out.logger()})
		if err := f.store.Start(t.Context(), "testing"); err != nil {
			t.Fatal(err)
		}
		f.ready(t, 1)
		images.SetMinMemory(f.store, 1<<60)
		e := f.ready(t, 0)
		if !strings.Contains(e.Paused, "memory is short") || e.Target != 0 || !e.Started {
			t.Errorf("%+v", e)
		}
		if err := f.store.Start(t.Context(), "testing"); err == nil || !strings.Contains(err.Error(), "memory is short") {
			t.Errorf("%v", err)
		}
		w := f.workspace(t, images.Limits{}) // builds go on
		if w.Warm {
			t.Error("it was ready")
		}
		w.Close(t.Context())
		images.SetMinMemory(f.store, 1)
		if e := f.has(t, "one ready", func(e images.Environment) bool { return e.Warm > 0 }); e.Paused != "" {
			t.Errorf("%+v", e)
		}
		if n, m := out.count("no workspaces are kept ready for a while"), out.count("workspaces are kept ready again"); n != 1 || m != 1 {
			t.Errorf("%d and %d lines in the log:\n%s", n, m, out)
		}
	})
	t.Run("disk", func(t *testing.T) {
		state := smallDisk(t)
		conn := startPodman(t, podman.Config{State: state, ImageStores: []string{testbase.ImageStore(t)}})
		f := pooled(t, conn, images.Options{WorkDir: filepath.Join(state, "work"), Pool: images.PoolOptions{Max: 2, MinDisk: 16 << 20}})
		if err := f.store.Start(t.Context(), "testing"); err != nil {
			t.Fatal(err)
		}
		f.ready(t, 1)
		free := testdisk.Fill(t, state, 8<<20)
		if e := f.ready(t, 0); !strings.Contains(e.Paused, "disk is short") {
			t.Errorf("%+v", e)
		}
		w := f.workspace(t, images.Limits{}) // builds go on while they can
		w.Close(t.Context())
		free()
		f.has(t, "one ready", func(e images.Environment) bool { return e.Warm > 0 })
	})
	t.Run("disk that is full while one is made", func(t *testing.T) {
		state := smallDisk(t)
		conn := startPodman(t, podman.Config{State: state, ImageStores: []string{testbase.ImageStore(t)}})
		out := new(book)
		f := pooled(t, conn, images.Options{WorkDir: filepath.Join(state, "work"), Pool: images.PoolOptions{Max: 2}, Log: out.logger()})
		// What is made takes what is left of the disk, and the pool may look just then.
		images.SetMinDisk(f.store, -1)
		f.store.Expect("testing", testbase.Arch, 1)
		f.ready(t, 1) // podman has what it needs once
		free := testdisk.Fill(t, state, 16<<10)
		f.store.Expect("testing", testbase.Arch, 2)
		e := f.has(t, "a reason", func(e images.Environment) bool { return e.Paused != "" })
		if !strings.Contains(e.Paused, "no space left") || e.Warm != 1 {
			t.Errorf("%+v", e)
		}
		free()
		f.ready(t, 2)
		if n := out.count("no workspace can be made ready"); n != 1 {
			t.Errorf("%d lines in the log:\n%s", n, out)
		}
	})
}

// smallDisk is a folder on a disk of 64 MiB.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatalf("%v: run the tests as root, or inside podman unshare", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("%s: %v", dir, err)
		}
	})
	return dir
}
