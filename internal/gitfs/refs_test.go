package gitfs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/Morphux/quarry/internal/testpkg"
)

func TestRefs(t *testing.T) {
	repo := testpkg.Bare(t, "hello", "1.0")
	head := testpkg.Git(t, repo, "rev-parse", "master")
	testpkg.Git(t, repo, "branch", "feature/x", "master")
	testpkg.Git(t, repo, "tag", "-m", "t", "hello-9")
	check := func(t *testing.T, want map[string]string) {
		t.Helper()
		got, err := Refs(t.Context(), repo, "refs/heads")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		// The way by git sees the same.
		if got, err = forEachRef(t.Context(), repo, "refs/heads"); err != nil {
			t.Fatal(err)
		}
		delete(want, "broken") // git only warns of it
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("for-each-ref: %s", diff)
		}
	}
	check(t, map[string]string{"master": head, "hello-1.0": head})
	testpkg.Git(t, repo, "pack-refs", "--all", "--prune")
	if _, err := os.Stat(filepath.Join(repo, "refs/heads/master")); err == nil {
		t.Fatal("master was not packed")
	}
	check(t, map[string]string{"master": head, "hello-1.0": head})
	// A loose ref goes before a packed one; what is no hash is shown as such.
	newer := testpkg.Git(t, repo, "commit-tree", "-p", head, "-m", "Newer", head+"^{tree}")
	testpkg.Git(t, repo, "update-ref", "refs/heads/hello-1.0", newer)
	testpkg.Git(t, repo, "symbolic-ref", "refs/heads/alias", "refs/heads/master")
	if err := os.WriteFile(filepath.Join(repo, "refs/heads/broken"), []byte(strings.Repeat("z", 40)+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	check(t, map[string]string{"master": head, "hello-1.0": newer, "alias": "", "broken": ""})
	if refs, err := Refs(t.Context(), repo, "refs/none"); err != nil || len(refs) != 0 {
		t.Errorf("%v, %v", refs, err)
	}
	// Trouble in reading is told from there being nothing.
	if err := os.Rename(filepath.Join(repo, "packed-refs"), filepath.Join(repo, "was")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(repo, "packed-refs"), 0o755); err != nil {
		t.Fatal(err)
	}
	if refs, err := Refs(t.Context(), repo, "refs/heads"); err == nil {
		t.Errorf("a packed-refs that cannot be read gave %v", refs)
	}
}
