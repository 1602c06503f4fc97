package results

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
)

// TestMirrorWhileWriting copies the repository with git while records are written
// and packs are melted together: each copy is whole, and the copy that is brought up
// to date as well.
func TestMirrorWhileWriting(t *testing.T) {
	r := open(t, Options{MaxPacks: 5})
	record(t, r, sample("zlib", "1.3", "x86_64", 1))
	ctx, stop := context.WithCancel(t.Context())
	written := make(chan error, 1)
	all := make(chan struct{}) // closed when there is a text of each name
	go func() {
		for n := int64(2); ctx.Err() == nil; n++ {
			if _, err := r.Record(context.Background(), sample(fmt.Sprintf("p%d", n%40), "1", "x86_64", n)); err != nil {
				written <- err
				return
			}
			if err := r.Keep(context.Background(), "mass", fmt.Sprint("m", n%3), []byte(fmt.Sprint(n))); err != nil {
				written <- err
				return
			}
			if n == 4 {
				close(all)
			}
		}
		written <- nil
	}()
	whole := func(path string) {
		t.Helper()
		git(t, path, "fsck", "--strict", "--no-dangling")
		c, err := OpenReader(path, "testing")
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		for rec, err := range c.List(t.Context()) {
			if err != nil || rec.Package == "" {
				t.Errorf("a record of the copy: %v", err)
			}
		}
	}
	kept := filepath.Join(t.TempDir(), "kept.git")
	git(t, r.Path(), "clone", "-q", "--mirror", "file://"+r.Path(), kept)
	for range 8 {
		fresh := filepath.Join(t.TempDir(), "fresh.git")
		git(t, r.Path(), "clone", "-q", "--mirror", "file://"+r.Path(), fresh)
		whole(fresh)
		git(t, kept, "fetch", "-q", "--prune", "origin", "+refs/*:refs/*")
		whole(kept)
	}
	select {
	case <-all:
	case err := <-written:
		t.Fatal(err)
	}
	git(t, kept, "fetch", "-q", "--prune", "origin", "+refs/*:refs/*")
	stop()
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	// What was copied is a farm's database again.
	again := openAt(t, kept, Options{})
	if texts, err := again.Kept("mass"); err != nil || len(texts) != 3 {
		t.Errorf("the copy keeps %d texts, %v", len(texts), err)
	}
	if got := git(t, kept, "config", "uploadpack.allowFilter"); got != "true" {
		t.Errorf("the copy has not got its settings: %q", got)
	}
	record(t, again, sample("late", "1", "x86_64", 1_000_000))
	fsck(t, kept)
}
