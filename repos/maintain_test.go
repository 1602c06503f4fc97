package repos

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Morphux/quarry/internal/testpkg"
)

func TestMaintain(t *testing.T) {
	r, err := Open(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	fill := func(name string, n int) string {
		t.Helper()
		path, err := r.Ensure(name)
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			file := filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(file, fmt.Appendf(nil, "%s %d", name, i), 0o644); err != nil {
				t.Fatal(err)
			}
			testpkg.Git(t, path, "hash-object", "-w", file)
		}
		return path
	}
	few, many, bad := fill("few", 3), fill("many", manyLoose), fill("bad", manyLoose)
	if err := os.RemoveAll(filepath.Join(bad, "objects", "pack")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bad, "objects", "pack"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	all := testpkg.Git(t, many, "cat-file", "--batch-all-objects", "--batch-check")
	if err := r.Maintain(t.Context()); err == nil || !strings.Contains(err.Error(), "bad.git cannot be maintained") {
		t.Errorf("of a bad repository: %v", err)
	}
	if got := testpkg.Git(t, few, "count-objects"); !strings.HasPrefix(got, "3 objects") {
		t.Errorf("few has %s", got)
	}
	if got := testpkg.Git(t, many, "count-objects"); !strings.HasPrefix(got, "0 objects") {
		t.Errorf("many has %s", got)
	}
	if got := testpkg.Git(t, many, "cat-file", "--batch-all-objects", "--batch-check"); got != all {
		t.Error("not all objects are there")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Maintain(ctx); err == nil {
		t.Error("it goes on when it is to end")
	}
}
