package extract

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestArtifacts(t *testing.T) {
	s := newStore(t)
	art, err := s.Put(strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	if art.SHA256 != sum("hello") || art.Size != 5 {
		t.Errorf("artifact %+v", art)
	}
	p := s.Path(art.SHA256)
	if want := filepath.Join(s.dir, art.SHA256[:2], art.SHA256+".tar.zst"); p != want {
		t.Errorf("path %s, want %s", p, want)
	}
	f, err := s.Open(art.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if b, err := io.ReadAll(f); err != nil || string(b) != "hello" {
		t.Errorf("read %q, %v", b, err)
	}

	// The same again leaves the file alone; damage is found and mended.
	before, _ := os.Stat(p)
	if _, err := s.Put(strings.NewReader("hello")); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Stat(p); !os.SameFile(before, after) {
		t.Error("the same artifact was written again")
	}
	if err := os.WriteFile(p, []byte("hellO"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(art.SHA256); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("damaged: %v", err)
	}
	if _, err := s.Put(strings.NewReader("hello")); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(art.SHA256); err != nil {
		t.Error(err)
	}

	if err := s.Remove(art.SHA256); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(art.SHA256); err != nil {
		t.Errorf("removing what is gone: %v", err)
	}
	if _, err := s.Open(art.SHA256); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("opening what is gone: %v", err)
	}
	for _, bad := range []string{"", "ab", "../../../../etc/passwd", strings.Repeat("A", 64), strings.Repeat("g", 64), strings.Repeat("a", 66)} {
		if s.Path(bad) != "" {
			t.Errorf("Path(%q) = %q", bad, s.Path(bad))
		}
		if _, err := s.Open(bad); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open(%q): %v", bad, err)
		}
		if s.Verify(bad) == nil || s.Remove(bad) == nil {
			t.Errorf("%q was taken for a hash", bad)
		}
	}
}

// A writer that is killed leaves a temporary file, which the next start clears.
func TestArtifactsAfterCrash(t *testing.T) {
	s := newStore(t)
	art, err := s.Put(strings.NewReader("kept"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.create()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	p.file.Close()
	again, err := OpenArtifacts(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	if m, _ := filepath.Glob(filepath.Join(s.dir, artifactTmp, "*")); len(m) > 0 {
		t.Errorf("left behind: %v", m)
	}
	if err := again.Verify(art.SHA256); err != nil {
		t.Error(err)
	}
}

func TestArtifactsTogether(t *testing.T) {
	s := newStore(t)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			data := noise(uint64(i%4), 300_000)
			for range 5 {
				art, err := s.Put(strings.NewReader(data))
				if err == nil {
					err = s.Verify(art.SHA256)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// A full disk is the farm's error, says so, and leaves nothing behind.
func TestArtifactsDiskFull(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatalf("cannot mount a small tmpfs, run as root with CAP_SYS_ADMIN: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	s, err := OpenArtifacts(dir)
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	build(t, root, file("big", noise(1, 3*chunkSize), 0o644))
	_, _, err = Tree(t.Context(), root, options(Options{Store: s}))
	if !errors.Is(err, syscall.ENOSPC) || IsRefused(err) {
		t.Errorf("error %v", err)
	}
	if _, err := s.Put(strings.NewReader("small")); err != nil {
		t.Errorf("what it had written is still there: %v", err)
	}
}
