package repos

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/storage/filesystem"

	"github.com/Morphux/quarry/internal/testpkg"
)

// farm makes n repositories of one release each, by go-git as stock git would
// take minutes, and gives their folder.
func farm(tb testing.TB, n int) *Repos {
	tb.Helper()
	r := open(tb)
	when := time.Unix(testpkg.Unix, 0)
	for i := range n {
		name := fmt.Sprintf("package%05d", i)
		path := filepath.Join(r.dir, name+".git")
		for _, dir := range []string{"objects", "refs/heads"} {
			if err := os.MkdirAll(filepath.Join(path, dir), 0o755); err != nil {
				tb.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(path, "HEAD"), []byte("ref: refs/heads/master\n"), 0o644); err != nil {
			tb.Fatal(err)
		}
		store := filesystem.NewStorage(osfs.New(path), cache.NewObjectLRU(1<<20))
		put := func(kind plumbing.ObjectType, encode func(plumbing.EncodedObject) error) plumbing.Hash {
			o := &plumbing.MemoryObject{}
			o.SetType(kind)
			if err := encode(o); err != nil {
				tb.Fatal(err)
			}
			hash, err := store.SetEncodedObject(o)
			if err != nil {
				tb.Fatal(err)
			}
			return hash
		}
		text := fmt.Sprintf(`{"package": {"name": %q, "version": "1.0", "description": "Number %d"}, "compilation": {"configure": [{"prefix": "/usr"}]},
			"dependencies": {"needed": ["zlib-1.3.1", "glibc"]}}`, name, i)
		blob := put(plumbing.BlobObject, func(o plumbing.EncodedObject) error {
			w, err := o.Writer()
			if err == nil {
				_, err = w.Write([]byte(text))
			}
			return err
		})
		srcs := put(plumbing.TreeObject, (&object.Tree{Entries: []object.TreeEntry{{Name: "main.c", Mode: filemode.Regular, Hash: blob}}}).Encode)
		root := put(plumbing.TreeObject, (&object.Tree{Entries: []object.TreeEntry{
			{Name: "package.json", Mode: filemode.Regular, Hash: blob}, {Name: "srcs", Mode: filemode.Dir, Hash: srcs}}}).Encode)
		who := object.Signature{Name: testpkg.AuthorName, Email: testpkg.AuthorEmail, When: when}
		commit := put(plumbing.CommitObject, (&object.Commit{Author: who, Committer: who, Message: "Release", TreeHash: root}).Encode)
		for _, branch := range []string{"master", name + "-1.0"} {
			if err := os.WriteFile(filepath.Join(path, "refs/heads", branch), []byte(commit.String()+"\n"), 0o644); err != nil {
				tb.Fatal(err)
			}
		}
	}
	return r
}

// BenchmarkReleases lists 10,000 repositories: for the first time, again, one
// of them, and what git for-each-ref in each would take for the refs alone
// (measured on 50).
func BenchmarkReleases(b *testing.B) {
	const n = 10_000
	made := farm(b, n)
	var before, after runtime.MemStats
	var first, again, one, stock time.Duration
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		r, err := Open(made.dir, nil)
		if err != nil {
			b.Fatal(err)
		}
		timed := func(sum *time.Duration, pkg string, want int) {
			b.Helper()
			start := time.Now()
			releases, problems := list(b, r, pkg)
			*sum += time.Since(start)
			if len(releases) != want || len(problems) != 0 {
				b.Fatalf("%d releases, %d problems, e.g. %v", len(releases), len(problems), problems[:min(1, len(problems))])
			}
		}
		timed(&first, "", n)
		timed(&again, "", n)
		timed(&one, "package00042", 1)
		runtime.GC()
		runtime.ReadMemStats(&after)
		runtime.KeepAlive(r)
		start := time.Now()
		for i := range 50 {
			testpkg.Git(b, filepath.Join(made.dir, fmt.Sprintf("package%05d.git", i)), "for-each-ref")
		}
		stock += time.Since(start) * n / 50
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 / float64(b.N) }
	b.ReportMetric(ms(first), "first-ms")
	b.ReportMetric(ms(again), "again-ms")
	b.ReportMetric(ms(one), "one-ms")
	b.ReportMetric(ms(stock), "for-each-ref-ms")
	b.ReportMetric(ms(again)/ms(stock), "again/for-each-ref")
	b.ReportMetric(float64(int64(after.HeapAlloc)-int64(before.HeapAlloc))/n, "heap-B/release")
}
