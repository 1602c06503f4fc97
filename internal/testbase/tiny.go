package testbase

import (
	"archive/tar"
	"os"
	"path/filepath"
	"testing"

	"github.com/Morphux/quarry/internal/podman/tinyelf"
)

// Tiny returns the path of the tarball of a system for an arch with nothing in
// it but a /bin/sh that ends with 0, whatever it is asked: for tests that need a
// base and no build.
func Tiny(t testing.TB, arch string) (path string) {
	t.Helper()
	m, _ := tinyelf.Of(arch)
	prog, ok := m.Program()
	if !ok {
		t.Fatalf("no program for %s is known: add it to tinyelf", arch)
	}
	path = filepath.Join(t.TempDir(), "tiny.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	if err := w.WriteHeader(&tar.Header{Name: "bin/sh", Mode: 0o755, Size: int64(len(prog))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(prog); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}
