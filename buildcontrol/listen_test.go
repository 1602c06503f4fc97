package buildcontrol

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	ls, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), path); err == nil || !strings.Contains(err.Error(), "answered") {
		t.Errorf("a socket that is answered: %v", err)
	}
	ls[0].(*net.UnixListener).SetUnlinkOnClose(false)
	ls[0].Close()
	if ls, err = Listen(t.Context(), path); err != nil {
		t.Fatal("a socket that is left over:", err)
	}
	ls[0].Close()
	for _, odd := range []string{"127.0.0.1:no-such-service", "1.2.3.4:5:6", dir + "/", dir + "/" + strings.Repeat("x", 200)} {
		if ls, err := Listen(t.Context(), odd); err == nil {
			ls[0].Close()
			t.Errorf("%q can be listened on", odd)
		}
	}
	if ls, err = Listen(t.Context(), ":0"); err != nil {
		t.Fatal(err)
	}
	ls[0].Close()
}

// A Unix socket is its owner's alone, and what is made beside it is as it would
// be without.
func TestListenModes(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	dir := t.TempDir()
	stop, modes := make(chan struct{}), make(chan fs.FileMode)
	go func() {
		all := fs.FileMode(0o666)
		for i := 0; ; i++ {
			select {
			case <-stop:
				modes <- all
				return
			default:
			}
			f, err := os.OpenFile(filepath.Join(dir, strconv.Itoa(i)), os.O_CREATE, 0o666)
			if err != nil {
				t.Error(err)
				continue
			}
			if info, err := f.Stat(); err != nil {
				t.Error(err)
			} else {
				all &= info.Mode()
			}
			f.Close()
		}
	}()
	for range 300 {
		ls, err := Listen(t.Context(), filepath.Join(dir, "s"))
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(filepath.Join(dir, "s")); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("a socket has %v, %v", info, err)
		}
		ls[0].Close()
	}
	close(stop)
	if all := <-modes; all != 0o666 {
		t.Errorf("files that are made meanwhile have only %v", all)
	}
}
