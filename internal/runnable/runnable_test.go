package runnable

import (
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestWriteFile: no process begins while a program is being written.
func TestWriteFile(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	go func() { wrote <- WriteFile(pipe, make([]byte, 4<<20)) }() // more than a pipe holds
	r, err := os.Open(pipe)                                       // returns when it is being written to
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if syscall.ForkLock.TryLock() {
		syscall.ForkLock.Unlock()
		t.Error("a process may begin meanwhile")
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Error(err)
	}
	if err := <-wrote; err != nil {
		t.Error(err)
	}
	if !syscall.ForkLock.TryLock() {
		t.Fatal("none may begin afterwards")
	}
	syscall.ForkLock.Unlock()
}
