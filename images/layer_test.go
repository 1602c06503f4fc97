package images

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What an update leaves is read as long as somebody wants it, and is in an image
// what it was in the container.
func TestLayerOfUpdate(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, size int64) {
		t.Helper()
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(p, size); err != nil {
			t.Fatal(err)
		}
	}
	l := layer{upper: dir, count: 65536, ctx: t.Context()}
	write("small", 10)
	if sum, err := l.sum(); err != nil || sum.Size < 10 {
		t.Errorf("%+v, %v", sum, err)
	}
	write("huge", 4<<40) // on ext4 no more than 16 TiB; to read it takes an hour
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	l.ctx = ctx
	if _, err := l.sum(); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	l.ctx = t.Context()
	if err := os.Remove(filepath.Join(dir, "huge")); err != nil {
		t.Fatal(err)
	}
	write(".wh.small", 0)
	if _, err := l.sum(); err == nil || !strings.Contains(err.Error(), ".wh.small has a name that stands for a deleted file") {
		t.Errorf("%v", err)
	}
}
