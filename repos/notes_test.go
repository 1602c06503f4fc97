package repos

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Morphux/quarry/internal/testpkg"
)

func TestNote(t *testing.T) {
	r := open(t)
	commit := release(t, r, "hello", "1.0")
	repo, err := r.Path("hello")
	if err != nil {
		t.Fatal(err)
	}
	set := func(text string) error {
		return r.Note(t.Context(), "hello", commit, func(string) string { return text })
	}
	if err := set("one\n"); err != nil {
		t.Fatal(err)
	}
	// Git spreads many notes over folders; all are kept.
	run := func(input string, args ...string) string {
		t.Helper()
		out, err := git(t.Context(), repo, []byte(input), append([]string{"-c", "user.name=a", "-c", "user.email=a@example.org"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	other, one := run("of another commit", "hash-object", "-w", "--stdin"), run("one\n", "hash-object", "-w", "--stdin")
	var folders strings.Builder
	for object, note := range map[string]string{other: other, commit: one} {
		inner := run("100644 blob "+note+"\t"+object[2:]+"\n", "mktree")
		fmt.Fprintf(&folders, "040000 tree %s\t%s\n", inner, object[:2])
	}
	run("", "update-ref", NotesRef, run("", "commit-tree", run(folders.String(), "mktree"), "-m", "x", "-p", NotesRef))
	testpkg.Git(t, repo, "update-ref", "refs/notes/commits", testpkg.Git(t, repo, "rev-parse", NotesRef))
	own := testpkg.Git(t, repo, "rev-parse", "refs/notes/commits")
	if err := r.Note(t.Context(), "hello", commit, func(old string) string {
		if old != "one\n" {
			t.Errorf("the note was %q", old)
		}
		return "two\n"
	}); err != nil {
		t.Fatal(err)
	}
	if s := testpkg.Git(t, repo, "notes", "--ref=quarry", "show", commit); s != "two" {
		t.Errorf("git shows %q", s)
	}
	if n := strings.Count(testpkg.Git(t, repo, "notes", "--ref=quarry", "list"), "\n"); n != 1 {
		t.Errorf("there are %d notes", n+1)
	}
	if testpkg.Git(t, repo, "rev-parse", "refs/notes/commits") != own {
		t.Error("somebody else's notes were touched")
	}
	testpkg.Git(t, repo, "fsck", "--strict")

	at := testpkg.Git(t, repo, "rev-parse", NotesRef)
	if err := set("two\n"); err != nil || testpkg.Git(t, repo, "rev-parse", NotesRef) != at {
		t.Errorf("what stands was written again, or %v", err)
	}
	// Others may move the ref at any time.
	moved := 0
	err = r.Note(t.Context(), "hello", commit, func(old string) string {
		if moved++; moved < 3 {
			testpkg.Git(t, repo, "notes", "--ref=quarry", "append", "-m", fmt.Sprint("other ", moved), commit)
		}
		return old + "three\n"
	})
	if s := testpkg.Git(t, repo, "notes", "--ref=quarry", "show", commit); err != nil || !strings.Contains(s, "other 2") || !strings.HasSuffix(s, "three") || moved != 3 {
		t.Errorf("after %d tries (%v) the note is %q", moved, err, s)
	}
	if err := r.Note(t.Context(), "hello", strings.Repeat("1", 40), func(string) string { return "x\n" }); !errors.Is(err, ErrNoCommit) {
		t.Errorf("a commit that is not there: %v", err)
	}
}

// TestNoteElsewhere: in a repository of another user nothing is written.
func TestNoteElsewhere(t *testing.T) {
	dir := t.TempDir()
	other := filepath.Join(dir, "other.git")
	if os.Geteuid() == 0 {
		testpkg.Git(t, dir, "init", "-q", "--bare", other)
		if err := os.Chown(other, 12345, 12345); err != nil {
			t.Fatal(err)
		}
	} else if err := os.Symlink("/usr", other); err != nil { // root's
		t.Fatal(err)
	}
	r := open(t, filepath.Join(dir, "*.git"))
	if err := r.Note(t.Context(), "other", strings.Repeat("1", 40), func(string) string { return "x\n" }); !errors.Is(err, ErrNotOurs) {
		t.Errorf("Note: %v", err)
	}
}
