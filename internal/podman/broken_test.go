package podman

import (
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A storage whose lists cannot be parsed is begun anew; one that this process
// cannot read for its own reasons stays as it is.
func TestDropBroken(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	notes := filepath.Join(root, "overlay-images", "images.json")
	if err := os.MkdirAll(filepath.Dir(notes), 0o700); err != nil {
		t.Fatal(err)
	}
	c := &Conn{log: slog.New(slog.DiscardHandler)}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(notes, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("[]")
	// Nothing can be opened any more, as by a daemon that has too many files open.
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 0, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	err := brokenNotes(root)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err == nil || lost(err) {
		t.Errorf("without a file to open with the storage counts as lost: %v", err)
	}
	for _, err := range []error{unix.EACCES, unix.ENOMEM} {
		if lost(&os.PathError{Op: "open", Path: notes, Err: err}) {
			t.Errorf("%v is the storage's fault", err)
		}
	}
	if err := c.dropBroken(root); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(notes); err != nil {
		t.Errorf("a storage that is well was begun anew: %v", err)
	}
	write("[{")
	if err := c.dropBroken(root); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(root); err != nil || len(left) > 0 {
		t.Errorf("left of a broken storage: %v, %v", left, err)
	}
}
