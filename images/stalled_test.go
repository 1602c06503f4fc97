package images_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/images"
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

// A store whose podman does not answer any more ends all the same.
func TestCloseStalled(t *testing.T) {
	t.Parallel()
	f, _ := setupFarm(t, images.Setup{Update: []string{"echo it runs; sleep 1000"}})
	runs, updated := make(chan bool), make(chan error, 1)
	go func() {
		once := sync.OnceFunc(func() { close(runs) })
		_, err := f.store.Update(context.Background(), "testing", testbase.Arch, true, func(p images.Progress) {
			if p.Line == "it runs" {
				once()
			}
		})
		updated <- err
	}()
	<-runs
	resume := f.stall(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	closed := make(chan error, 1)
	go func() { closed <- f.store.Close(ctx) }()
	select {
	case err := <-closed:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	case <-time.After(time.Minute):
		t.Error("it waits for podman")
	}
	resume()
	if err := <-updated; err == nil {
		t.Error("it was updated")
	}
}
