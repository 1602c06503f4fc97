package results

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Morphux/quarry"
)

// The benchmarks show whether what a record costs grows with the repository.
// Run them as
//
//	go test -tags remote -run xxx -bench . ./results
//
// The repositories are made by git fast-import, once per run of the tests.
// Compare figures within one run.

var benchSizes = []int{1_000, 100_000}

// pkgName gives names that crowd together as Debian's 63,682 do: of a hundred,
// 8 begin with python3-, 7 with libghc-, 35 more with lib, 3 with golang-.
func pkgName(i int) string {
	r := rand.New(rand.NewPCG(uint64(i), 7))
	b := make([]byte, 4+r.IntN(8))
	for j := range b {
		b[j] = 'a' + byte(r.IntN(26))
	}
	prefix := ""
	switch c := i % 100; {
	case c < 8:
		prefix = "python3-"
	case c < 15:
		prefix = "libghc-"
	case c < 50:
		prefix = "lib"
	case c < 53:
		prefix = "golang-"
	}
	return fmt.Sprintf("%s%s%d", prefix, b, i)
}

// realistic is an outcome of a package with 26 files.
func realistic(pkg string, number int64) *quarry.Outcome {
	o := sample(pkg, "1.0", "x86_64", number)
	r := rand.New(rand.NewPCG(uint64(number), uint64(len(pkg))))
	hex := func() string {
		return fmt.Sprintf("%016x%016x%016x%016x", r.Uint64(), r.Uint64(), r.Uint64(), r.Uint64())
	}
	o.Artifact.SHA256 = hex()
	for i := range 20 {
		o.Facts.Files = append(o.Facts.Files, quarry.File{
			Path: fmt.Sprintf("/usr/share/%s/file-%02d", pkg, i), Kind: quarry.KindRegular, Class: quarry.ClassOther, Mode: 0o644, Size: r.Int64N(1 << 20), SHA256: hex(),
		})
	}
	return o
}

func recordFiles(tb testing.TB, o *quarry.Outcome) map[string][]byte {
	rec, err := NewRecord(o, 0)
	if err != nil {
		tb.Fatal(err)
	}
	list, err := filesText(rec, o)
	if err != nil {
		tb.Fatal(err)
	}
	edits, err := recordEdits(rec, list, Provenance{})
	if err != nil {
		tb.Fatal(err)
	}
	out := make(map[string][]byte)
	for _, e := range edits {
		if e.blob != nil {
			out[e.path] = e.blob
		}
	}
	return out
}

func writeCommit(w io.Writer, n int64, parent string, files map[string][]byte) {
	fmt.Fprintf(w, "commit refs/heads/testing\ncommitter Quarry <quarry@localhost> %d +0000\ndata 6\nsetup\n", 1_700_000_000+n)
	if parent != "" {
		fmt.Fprintf(w, "from %s\n", parent)
	}
	for path, data := range files {
		fmt.Fprintf(w, "M 100644 inline %s\ndata %d\n", path, len(data))
		w.Write(data)
		w.Write([]byte("\n"))
	}
}

var bigRepos struct {
	sync.Mutex
	dir string
	m   map[int]string
}

func TestMain(m *testing.M) {
	code := m.Run()
	if bigRepos.dir != "" {
		os.RemoveAll(bigRepos.dir)
	}
	os.Exit(code)
}

// bigMaster is a repository with the records of n packages, that came in
// commits of a thousand. Its objects are not deltas, as those at the tip of a
// repository are after a repack. It is to be read only.
func bigMaster(tb testing.TB, n int) string {
	tb.Helper()
	bigRepos.Lock()
	defer bigRepos.Unlock()
	if bigRepos.m == nil {
		dir, err := os.MkdirTemp("", "quarry-bench-")
		if err != nil {
			tb.Fatal(err)
		}
		bigRepos.dir, bigRepos.m = dir, make(map[int]string)
	}
	master := bigRepos.m[n]
	if master != "" {
		return master
	}
	master = filepath.Join(bigRepos.dir, fmt.Sprint(n))
	r, err := Open(master, Options{})
	if err != nil {
		tb.Fatal(err)
	}
	r.Close()
	cmd := exec.Command("git", "-C", master, "fast-import", "--quiet", "--depth=0")
	in, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	w := bufio.NewWriterSize(in, 1<<20)
	for i := 0; i < n; i += 1000 {
		files := make(map[string][]byte)
		for j := i; j < min(n, i+1000); j++ {
			for p, d := range recordFiles(tb, realistic(pkgName(j), int64(j+1))) {
				files[p] = d
			}
		}
		writeCommit(w, int64(i), "", files)
	}
	w.Flush()
	in.Close()
	if err := cmd.Wait(); err != nil {
		tb.Fatal(err)
	}
	bigRepos.m[n] = master
	return master
}

// bigRepo is a copy of bigMaster, to write to.
func bigRepo(tb testing.TB, n int) string {
	tb.Helper()
	master := bigMaster(tb, n)
	copied := filepath.Join(tb.TempDir(), "results.git")
	if out, err := exec.Command("cp", "-a", master, copied).CombinedOutput(); err != nil {
		tb.Fatalf("%v: %s", err, out)
	}
	return copied
}

// BenchmarkRecord is one finished build to one durable commit, beside two ways
// of stock git to write the same files: git add and git commit in a worktree
// (which syncs nothing but what core.fsync=all says), and git fast-import, which
// writes a stream of commits and syncs once at its end.
func BenchmarkRecord(b *testing.B) {
	for _, n := range benchSizes {
		// The repository is made at the first of the rounds with which the
		// benchmark finds its length, and the numbers of builds go on rising.
		r := sync.OnceValue(func() *Repo {
			r := openAt(b, bigRepo(b, n), Options{})
			record(b, r, realistic("first", 1)) // reads the indexes of the packs
			return r
		})
		i := 0
		b.Run(fmt.Sprintf("quarry/%d", n), func(b *testing.B) {
			r := r()
			b.ResetTimer()
			for range b.N {
				i++
				record(b, r, realistic(pkgName(i*7919%n), int64(n+i)))
			}
			perSecond(b)
		})
	}
	for _, n := range benchSizes {
		repo := sync.OnceValue(func() string { return bigRepo(b, n) })
		i := 0
		b.Run(fmt.Sprintf("fast-import/%d", n), func(b *testing.B) {
			repo := repo()
			var in bytes.Buffer
			parent := "refs/heads/testing^0"
			for range b.N {
				i++
				writeCommit(&in, int64(i), parent, recordFiles(b, realistic(pkgName(i*7919%n), int64(n+i))))
				parent = ""
			}
			b.ResetTimer()
			cmd := exec.Command("git", "-C", repo, "fast-import", "--quiet")
			cmd.Stdin = &in
			if out, err := cmd.CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
			perSecond(b)
		})
	}
	for _, n := range benchSizes {
		work := sync.OnceValue(func() string {
			work := filepath.Join(b.TempDir(), "work")
			git(b, bigRepo(b, n), "worktree", "add", "-q", "--force", work, "testing")
			// Files as old as the index are read anew at every add: be fair.
			time.Sleep(1100 * time.Millisecond)
			git(b, work, "status", "--short")
			return work
		})
		i := 0
		b.Run(fmt.Sprintf("worktree/%d", n), func(b *testing.B) {
			work := work()
			b.ResetTimer()
			for range b.N {
				i++
				var names []string
				for p, d := range recordFiles(b, realistic(pkgName(i*7919%n), int64(n+i))) {
					if err := os.WriteFile(filepath.Join(work, p), d, 0o666); err != nil {
						b.Fatal(err)
					}
					names = append(names, p)
				}
				git(b, work, append([]string{"add"}, names...)...)
				git(b, work, "commit", "-q", "-m", "record")
			}
			perSecond(b)
		})
	}
}

func perSecond(b *testing.B) {
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
}

func BenchmarkLookup(b *testing.B) {
	for _, n := range benchSizes {
		look := func(b *testing.B, s *Snapshot, i int) {
			if _, ok, err := s.Lookup(pkgName(i), "1.0", "x86_64"); !ok || err != nil {
				b.Fatal(ok, err)
			}
		}
		open := func(b *testing.B) *Snapshot {
			r, err := OpenReader(bigMaster(b, n), "testing")
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { r.Close() })
			look(b, r.Snapshot, 1) // the indexes of the packs
			return r.Snapshot
		}
		b.Run(fmt.Sprintf("first/%d", n), func(b *testing.B) {
			var s *Snapshot
			for i := range b.N {
				if i%n == 0 { // all have been read: forget them
					b.StopTimer()
					s = open(b)
					b.StartTimer()
				}
				look(b, s, i*7919%n)
			}
		})
		b.Run(fmt.Sprintf("again/%d", n), func(b *testing.B) {
			s := open(b)
			b.ResetTimer()
			for range b.N {
				look(b, s, 1)
			}
		})
	}
}

// BenchmarkPlan looks every package up, as the planner does, first with nothing
// in memory and then again after one more record.
func BenchmarkPlan(b *testing.B) {
	for _, n := range benchSizes {
		path := sync.OnceValue(func() string { return bigRepo(b, n) })
		names := make([]string, n)
		for i := range names {
			names[i] = pkgName(i)
		}
		plan := func(b *testing.B, r *Repo) {
			s := snapshot(b, r)
			for _, name := range names {
				if _, ok, err := s.Lookup(name, "1.0", "x86_64"); !ok || err != nil {
					b.Fatal(name, ok, err)
				}
			}
		}
		b.Run(fmt.Sprintf("cold/%d", n), func(b *testing.B) {
			for range b.N {
				plan(b, openAt(b, path(), Options{}))
			}
		})
		i := 0
		b.Run(fmt.Sprintf("warm/%d", n), func(b *testing.B) {
			r := openAt(b, path(), Options{})
			plan(b, r)
			b.ResetTimer()
			for range b.N {
				i++
				record(b, r, realistic(names[i%n], int64(n+i)))
				plan(b, r)
			}
		})
	}
}

func BenchmarkOpenReader(b *testing.B) {
	for _, n := range benchSizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			path := bigMaster(b, n)
			b.ResetTimer()
			for range b.N {
				r, err := OpenReader(path, "testing")
				if err != nil {
					b.Fatal(err)
				}
				if _, err := r.Get(pkgName(5), "1.0", "x86_64"); err != nil {
					b.Fatal(err)
				}
				r.Close()
			}
		})
	}
}

func BenchmarkSearch(b *testing.B) {
	for _, n := range benchSizes {
		for _, what := range []string{"name*", "words", "file"} {
			b.Run(fmt.Sprintf("%s/%d", what, n), func(b *testing.B) {
				path := bigMaster(b, n)
				b.ResetTimer()
				for range b.N {
					s, err := OpenReader(path, "testing")
					if err != nil {
						b.Fatal(err)
					}
					found := 0
					switch what {
					case "file":
						for _, err := range s.Owners(context.Background(), "/usr/share/"+pkgName(5)+"/file-07", "") {
							if err != nil {
								b.Fatal(err)
							}
							found++
						}
					default:
						query := map[string]string{"name*": pkgName(5) + "*", "words": pkgName(5)}[what]
						for _, err := range s.Search(context.Background(), query) {
							if err != nil {
								b.Fatal(err)
							}
							found++
						}
					}
					if found == 0 {
						b.Fatal("nothing was found")
					}
					s.Close()
				}
			})
		}
	}
}

func BenchmarkMaintain(b *testing.B) {
	for _, n := range benchSizes {
		r := sync.OnceValue(func() *Repo {
			r := openAt(b, bigRepo(b, n), Options{MaxPacks: -1})
			if err := r.Maintain(b.Context()); err != nil {
				b.Fatal(err)
			}
			return r
		})
		i := 0
		b.Run(fmt.Sprintf("after-50/%d", n), func(b *testing.B) {
			r := r()
			for range b.N {
				b.StopTimer()
				for range 50 {
					i++
					record(b, r, realistic(pkgName(i*7919%n), int64(n+i)))
				}
				b.StartTimer()
				if err := r.Maintain(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkFilesForms writes the same list of 2,000 files in the form that was
// chosen, one line a file, and as TOML's array of tables, to show why.
func BenchmarkFilesForms(b *testing.B) {
	o := realistic("zlib", 1)
	for i := range 2000 {
		f := o.Facts.Files[10]
		f.Path = fmt.Sprintf("%s-%d", f.Path, i)
		o.Facts.Files = append(o.Facts.Files, f)
	}
	b.Run("marshal", func(b *testing.B) {
		for range b.N {
			data, err := MarshalFiles("zlib", "1.0", "x86_64", o.Facts.Files)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(data)))
		}
	})
	data, err := MarshalFiles("zlib", "1.0", "x86_64", o.Facts.Files)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("parse", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for range b.N {
			if _, err := ParseFiles(data); err != nil {
				b.Fatal(err)
			}
		}
	})
	tables := strings.NewReplacer("files = [", "", "  {path", "\n[[files]]\npath", ", ", "\n", "},", "", "}\n]", "").Replace(string(data))
	b.Logf("one line a file: %d bytes; an array of tables: %d bytes", len(data), len(tables))
}
