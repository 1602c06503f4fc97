package deltree_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/Morphux/quarry/internal/podman/deltree"
)

// nest makes folders below the working folder, each in the last and closed to
// everybody.
func nest(t *testing.T, top string, n int) {
	t.Helper()
	back, err := os.Open(".")
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	if err := os.Chdir(top); err != nil {
		t.Fatal(err)
	}
	defer back.Chdir()
	for range n {
		if err := syscall.Mkdir("d", 0o700); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Chdir("d"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRemove(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(dir, "outside")
	if err := os.MkdirAll(filepath.Join(outside, "keep"), 0o755); err != nil {
		t.Fatal(err)
	}
	tree := filepath.Join(dir, "tree")
	for _, d := range []string{"deep", "wide", "closed/in"} {
		if err := os.MkdirAll(filepath.Join(tree, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	nest(t, filepath.Join(tree, "deep"), 2500) // no path names its end, and few processes may open so many
	for i := range 6000 {
		if err := os.WriteFile(filepath.Join(tree, "wide", string(rune('a'+i%26))+string(rune(0x4e00+i))), nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{"abs": outside, "rel": "../outside", "loop": "loop", "up": ".."} {
		if err := os.Symlink(target, filepath.Join(tree, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(tree, "fifo"), 0); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"closed/in", "closed", "."} {
		if err := os.Chmod(filepath.Join(tree, d), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := deltree.Remove(tree); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != "outside" {
		t.Errorf("left: %v, %v", left, err)
	}
	if _, err := os.Stat(filepath.Join(outside, "keep")); err != nil {
		t.Error(err)
	}
}

func TestEdges(t *testing.T) {
	dir := t.TempDir()
	for _, p := range []string{"nothing", "no/where"} {
		if err := deltree.Remove(filepath.Join(dir, p)); err != nil {
			t.Errorf("%s: %v", p, err)
		}
	}
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("file", link); err != nil {
		t.Fatal(err)
	}
	if err := deltree.Remove(link); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Errorf("a link was followed: %v", err)
	}
	if err := deltree.Clear(dir); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
