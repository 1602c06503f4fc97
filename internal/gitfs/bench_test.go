package gitfs

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/Morphux/quarry/internal/testpkg"
)

// many makes a packed bare repository whose one commit holds n files of 1 to 15
// KB in folders of 20, by git fast-import.
func many(tb testing.TB, n int) (repo, commit string) {
	tb.Helper()
	repo = filepath.Join(tb.TempDir(), "many.git")
	testpkg.Git(tb, tb.TempDir(), "init", "-q", "--bare", "-b", "master", repo)
	random := rand.New(rand.NewPCG(5, 6))
	words := bytes.Fields([]byte("int char static return if else for while struct const void size buffer offset length 0x1f \n\t"))
	var in bytes.Buffer
	fmt.Fprintf(&in, "commit refs/heads/master\ncommitter A <a@b> %d +0000\ndata 0\n", testpkg.Unix)
	for i := range n {
		var file bytes.Buffer
		for size := 1000 + random.IntN(14000); file.Len() < size; {
			file.Write(words[random.IntN(len(words))])
			fmt.Fprintf(&file, " %d", random.IntN(1000))
		}
		fmt.Fprintf(&in, "M 644 inline srcs/d%03d/f%05d.c\ndata %d\n%s\n", i/20, i, file.Len(), file.Bytes())
	}
	testpkg.GitInput(tb, repo, in.Bytes(), "fast-import", "--quiet")
	testpkg.Git(tb, repo, "repack", "-q", "-a", "-d")
	return repo, testpkg.Git(tb, repo, "rev-parse", "master")
}

func walkAll(tb testing.TB, repo, commit string) (n int) {
	f, err := Open(repo, commit)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	if err := fs.WalkDir(f, ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			n++
		}
		return err
	}); err != nil {
		tb.Fatal(err)
	}
	return n
}

// export writes a commit out as a build's sources would be.
func export(tb testing.TB, repo, commit, dir string) {
	f, err := Open(repo, commit)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	if err := fs.WalkDir(f, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		path := filepath.Join(dir, name)
		if d.IsDir() {
			return os.MkdirAll(path, 0o755)
		}
		in, err := f.Open(name)
		if err != nil {
			return err
		}
		defer in.Close()
		out, err := os.Create(path)
		if err != nil {
			return err
		}
		if _, err := io.Copy(out, in); err != nil {
			return err
		}
		return out.Close()
	}); err != nil {
		tb.Fatal(err)
	}
}

func archive(tb testing.TB, repo, commit, dir string) {
	cmd := exec.Command("sh", "-c", `git -C "$1" archive "$2" | tar -x -C "$3"`, "sh", repo, commit, dir)
	cmd.Env = testpkg.Env()
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("git archive | tar -x: %v\n%s", err, out)
	}
}

// A commit of 5,000 files opens and walks in well under a second, whatever the
// machine is doing besides.
func TestWalkFiveThousand(t *testing.T) {
	repo, commit := many(t, 5000)
	best := time.Hour
	for range 3 {
		start := time.Now()
		if n := walkAll(t, repo, commit); n != 5000 {
			t.Fatalf("%d files, want 5000", n)
		}
		best = min(best, time.Since(start))
	}
	if best > 500*time.Millisecond {
		t.Errorf("opening and walking 5,000 files took %v", best)
	}
}

// BenchmarkCommit measures walking, measuring and exporting a commit of 5,000
// files beside git archive | tar -x of the same, in turns, and gives the ratios.
func BenchmarkCommit(b *testing.B) {
	repo, commit := many(b, 5000)
	var walk, measure, write, tar time.Duration
	timed := func(sum *time.Duration, f func()) {
		start := time.Now()
		f()
		*sum += time.Since(start)
	}
	for b.Loop() {
		timed(&walk, func() { walkAll(b, repo, commit) })
		timed(&measure, func() {
			f, err := Open(repo, commit)
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			if _, err := f.Measure(); err != nil {
				b.Fatal(err)
			}
		})
		ours, theirs := b.TempDir(), b.TempDir()
		timed(&write, func() { export(b, repo, commit, ours) })
		timed(&tar, func() { archive(b, repo, commit, theirs) })
		os.RemoveAll(ours)
		os.RemoveAll(theirs)
	}
	per := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 / float64(b.N) }
	b.ReportMetric(per(walk), "walk-ms")
	b.ReportMetric(per(measure), "measure-ms")
	b.ReportMetric(per(write), "export-ms")
	b.ReportMetric(per(tar), "archive|tar-ms")
	b.ReportMetric(per(walk)/per(tar), "walk/tar")
	b.ReportMetric(per(write)/per(tar), "export/tar")
}
