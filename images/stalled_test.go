package images_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/internal/podman"
	"github.com/Morphux/quarry/internal/testbase"
)

// A stream that stands still holds up nobody who has given it up, nor those who
// come after.
func TestStalledStream(t *testing.T) {
	t.Parallel()
	f, _ := farmWith(t, startPodman(t, podman.Config{}), nil)
	whole := small(t, testbase.Arch, entry{name: "./big", data: strings.Repeat("x", 3<<20)})
	for _, n := range []int{0, 100, 512, len(whole) - 1024} { // before it is known what it is, and while it is imported
		r, w := io.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			_, err := f.store.LoadFrom(ctx, testbase.Arch, r, "standard input", nil)
			ended <- err
		}()
		if _, err := w.Write(whole[:n]); err != nil {
			t.Fatal(err)
		}
		cancel()
		select {
		case err := <-ended:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("after %d bytes: %v", n, err)
			}
		case <-time.After(2 * time.Minute):
			t.Fatalf("after %d bytes it goes on waiting for more", n)
		}
		w.Close()
	}
	if _, err := f.store.LoadFrom(t.Context(), testbase.Arch, bytes.NewReader(whole), "standard input", nil); err != nil {
		t.Error(err)
	}
	f.nothingHalf(t)
	// A pipe that nobody writes to is no file.
	fifo := filepath.Join(t.TempDir(), "base.tar")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.store.Load(t.Context(), testbase.Arch, fifo, nil); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("%v", err)
	}
}
