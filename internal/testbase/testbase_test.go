package testbase_test

import (
	"archive/tar"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry/internal/podman/tinyelf"
	"github.com/Morphux/quarry/internal/testbase"
)

func TestMain(m *testing.M) {
	if os.Getenv("QUARRY_TEST_CHILD") != "" {
		testing.Init()
		fmt.Println("store", testbase.ImageStore(fatal{}))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// fatal is as much of a test as a child process has.
type fatal struct{ testing.TB }

func (fatal) Helper() {}
func (fatal) Fatal(a ...any) {
	fmt.Println(append([]any{"fatal"}, a...)...)
	os.Exit(1)
}

// Test processes that start at once make one storage, and one that was killed
// on the way does no harm.
func TestImageStore(t *testing.T) {
	cache := t.TempDir()
	base := filepath.Join(t.TempDir(), "base.tar")
	f, err := os.Create(base)
	if err != nil {
		t.Fatal(err)
	}
	m, _ := tinyelf.Of(testbase.Arch)
	prog, ok := m.Program()
	if !ok {
		t.Fatalf("no program for %s", testbase.Arch)
	}
	w := tar.NewWriter(f)
	for _, e := range []struct {
		name string
		data []byte
	}{{"bin/sh", prog}, {"big", make([]byte, 50<<20)}} {
		if err := w.WriteHeader(&tar.Header{Name: e.name, Mode: 0o755, Size: int64(len(e.data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	child := func() *exec.Cmd {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "QUARRY_TEST_CHILD=1", "QUARRY_CACHE="+cache, "QUARRY_TEST_BASE="+base)
		return cmd
	}
	stores := func() []string {
		found, err := filepath.Glob(filepath.Join(cache, "store-*[0-9a-f]"))
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	for _, wait := range []time.Duration{200, 500, 900} {
		victim := child()
		if err := victim.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(wait * time.Millisecond)
		victim.Process.Kill()
		victim.Wait()
	}
	answers := make(chan string)
	for range 3 {
		go func() {
			out, err := child().CombinedOutput()
			answers <- fmt.Sprintf("%s%v", out, err)
		}()
	}
	first := ""
	for range 3 {
		a := <-answers
		if !strings.HasPrefix(a, "store "+cache) || !strings.HasSuffix(a, "<nil>") {
			t.Errorf("%s", a)
		}
		if first == "" {
			first = a
		}
		if a != first {
			t.Errorf("%q is not %q", a, first)
		}
	}
	if found := stores(); len(found) != 1 {
		t.Errorf("stores: %v", found)
	}
	if left, _ := filepath.Glob(filepath.Join(cache, "*.making")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	// Another tarball makes another storage, and the old one goes.
	old := stores()
	if err := os.Chtimes(base, time.Time{}, time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	if out, err := child().CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if found := stores(); len(found) != 1 || len(old) != 1 || found[0] == old[0] {
		t.Errorf("stores %v after %v", found, old)
	}
}
