package extract

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestPublish(t *testing.T) {
	root := t.TempDir()
	store, err := OpenArtifacts(filepath.Join(root, "artifacts"))
	if err != nil {
		t.Fatal(err)
	}
	put := func(text string) string {
		t.Helper()
		art, err := store.Put(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		return art.SHA256
	}
	first, second := put("first"), put("second")
	dir := filepath.Join(root, "output", "testing")
	const name = "zlib-1.3-x86_64.tar.zst"
	holds := func(want string) {
		t.Helper()
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(got) != want {
			t.Errorf("%s holds %q (%v), want %q", name, got, err, want)
		}
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 1 {
			t.Errorf("folder has %v (%v), want %s alone", entries, err, name)
		}
	}
	for _, step := range []struct{ sha, want string }{{first, "first"}, {first, "first"}, {second, "second"}, {first, "first"}} {
		if err := store.Publish(step.sha, dir, name); err != nil {
			t.Fatal(err)
		}
		holds(step.want)
	}
	// A link where the file is to be is replaced, not followed.
	outside := filepath.Join(root, "outside")
	if err := os.WriteFile(outside, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
	if err := store.Publish(second, dir, name); err != nil {
		t.Fatal(err)
	}
	holds("second")
	if got, err := os.ReadFile(outside); err != nil || string(got) != "mine" {
		t.Errorf("file outside holds %q (%v)", got, err)
	}
	// Several at once, of two contents: one of them is there, and nothing else.
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			if err := store.Publish([]string{first, second}[i%2], dir, name); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("folder has %v (%v), want %s alone", entries, err, name)
	}
	for _, bad := range []struct{ sha, name string }{{first, "../x"}, {first, ""}, {first, ".x"}, {"../../x", name}, {strings.Repeat("0", 64), name}} {
		if err := store.Publish(bad.sha, dir, bad.name); err == nil {
			t.Errorf("%s is put at %q", bad.sha, bad.name)
		}
	}
}
