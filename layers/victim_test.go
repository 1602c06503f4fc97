package layers

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Morphux/quarry/internal/overlay"
)

// order is what a victim is told to do.
type order struct {
	Cache, Base, Artifact, Path string
}

// victim unpacks an artifact, until somebody kills it.
func victim(text string) {
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	c, err := Open(Options{Dir: o.Cache})
	if err == nil {
		root := &Root{Digest: "sha256:base", Lower: []overlay.Lower{{Dir: o.Base}}, UID: ids, GID: ids, Count: 65536}
		_, err = c.Get(context.Background(), root, o.Artifact, o.Path)
	}
	fmt.Println(err)
	os.Exit(1)
}

// A process that is killed while it unpacks leaves nothing that is taken for a
// layer, and nothing that goes on unpacking.
func TestKilled(t *testing.T) {
	f := newFarm(t, Options{})
	var tree []entryOf
	for i := range 1000 {
		tree = append(tree, entryOf{fmt.Sprintf("usr/share/d%02d/f%04d", i%50, i), "file", fmt.Sprint(i), 0o644})
	}
	// Nobody else's process unpacks this one.
	sha := f.artifact(t, append(tree, entryOf{"usr/share/whose", "file", f.dir, 0o644})...)
	// A FIFO holds the unpacking up at its end, for as long as it takes.
	pipe := filepath.Join(f.dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(f.store.Path(sha))
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(f.dir, "other")
	text, err := json.Marshal(order{dir, f.root.Lower[0].Dir, sha, pipe})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "QUARRY_TEST_LAYERS_VICTIM="+string(text))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	w, err := os.OpenFile(pipe, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	go w.Write(data[:len(data)-1])
	// Until it has written much of it.
	wait(t, "the victim unpacks", func() bool {
		found, _ := filepath.Glob(filepath.Join(dir, nameTmp, "layer-*", nameDiff, "usr/share/d4*"))
		return len(found) > 0
	})
	if n := unpackers(t, sha); n != 1 {
		t.Errorf("%d processes unpack, want 1", n)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	wait(t, "the unpacker ends with its parent", func() bool { return unpackers(t, sha) == 0 })

	c, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if n, _, _ := c.Usage(); n != 0 {
		t.Errorf("%d layers after a death", n)
	}
	if left, err := os.ReadDir(filepath.Join(dir, nameTmp)); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	l, err := c.Get(t.Context(), f.root, sha, f.store.Path(sha))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	if files, _ := l.Size(); files < 1000 {
		t.Errorf("%d files", files)
	}
}

func wait(t testing.TB, what string, until func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Minute); !until(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not after five minutes: %s", what)
		}
	}
}

// unpackers counts the processes that unpack an artifact.
func unpackers(t testing.TB, artifact string) (n int) {
	t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range found {
		data, _ := os.ReadFile(p)
		if strings.HasPrefix(string(data), unpackerName+"\x00"+artifact) {
			n++
		}
	}
	return n
}
