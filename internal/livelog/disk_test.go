package livelog

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/Morphux/quarry/internal/testdisk"
)

// TestDiskFull: a full disk costs lines, never the build, and the log says so.
func TestDiskFull(t *testing.T) {
	testdisk.Run(t, 1<<20, func(t *testing.T, dir string) {
		s := open(t, dir, Options{})
		l := create(t, s, 1, 1)
		fmt.Fprint(l, "before\n")
		free := testdisk.Fill(t, dir, 16<<10)
		p := bytes.Repeat([]byte("y"), 999)
		p = append(p, '\n')
		for range 100 {
			if n, err := l.Write(p); n != len(p) || err != nil {
				t.Fatal(n, err)
			}
		}
		if err := l.Err(); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("got %v: is the disk not full?", err)
		}
		// One that begins on the full disk.
		other := create(t, s, 1001, 1)
		fmt.Fprint(other, "lost\n")
		r, err := s.Follow(t.Context(), 1001)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		full := create(t, s, 2, 1)
		if err := full.Close(); err != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Error(err)
		}
		free()
		fmt.Fprint(other, "kept\n")
		buf := make([]byte, 1000)
		n, err := r.Read(buf)
		if got := string(buf[:n]); err != nil || !strings.HasSuffix(got, "kept\n") {
			t.Errorf("got %q, %v", got, err)
		}
		closeLog(t, other)
		fmt.Fprint(l, "after\n")
		closeLog(t, l)
		got := read(t, s, 1)
		before, rest, ok := strings.Cut(got, "\n==> ")
		if !ok || !strings.HasPrefix(before, "before\nyyy") || !strings.HasSuffix(rest, "bytes of the log are lost here: write "+dir+"/0000/1.log: no space left on device\nafter\n") {
			t.Errorf("got %.40q... and %.200q", before, rest)
		}
		var lost int
		if _, err := fmt.Sscanf(rest, "%d bytes", &lost); err != nil || len(before)+lost != 7+100*1000 {
			t.Errorf("%d bytes are there, %d are said to be lost, %d were written: %v", len(before), lost, 7+100*1000, err)
		}
	})
}

// TestDiskFullAtClose: what cannot be compressed stays as it is, and is
// compressed when there is room.
func TestDiskFullAtClose(t *testing.T) {
	testdisk.Run(t, 1<<20, func(t *testing.T, dir string) {
		s := open(t, dir, Options{})
		l := create(t, s, 1, 1)
		var want strings.Builder
		for i := range 8000 {
			fmt.Fprintf(l, "%x\n", i*i*i)
			fmt.Fprintf(&want, "%x\n", i*i*i)
		}
		free := testdisk.Fill(t, dir, 0)
		if err := l.Close(); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "build 1") {
			t.Fatalf("got %v", err)
		}
		if got := read(t, s, 1); got != want.String() {
			t.Errorf("got %d bytes, want %d", len(got), want.Len())
		}
		free()
		if _, err := s.Prune(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if s.exists(plainPath(1)) || !s.exists(packedPath(1)) {
			t.Error("it was not compressed later")
		}
		if got := read(t, s, 1); got != want.String() {
			t.Errorf("got %d bytes, want %d", len(got), want.Len())
		}
	})
}
