package results

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"golang.org/x/sys/unix"
)

var indexMasters struct {
	sync.Mutex
	m map[int]string
}

// twoArchs is a repository with the records of n packages on two archs, one in
// twenty a failure, packed as stock git does. It is to be read only.
func twoArchs(tb testing.TB, n int) string {
	tb.Helper()
	bigMaster(tb, 1_000) // makes the folder that goes at the end
	indexMasters.Lock()
	defer indexMasters.Unlock()
	if dir := indexMasters.m[n]; dir != "" {
		return dir
	}
	dir := filepath.Join(bigRepos.dir, fmt.Sprintf("index-%d", n))
	r, err := Open(dir, Options{})
	if err != nil {
		tb.Fatal(err)
	}
	r.Close()
	cmd := exec.Command("git", "-C", dir, "fast-import", "--quiet")
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
			for k, arch := range []string{"x86_64", "aarch64"} {
				o := realistic(pkgName(j), int64(2*j+k+1))
				if j%20 == 0 && k == 1 {
					o = failing(pkgName(j), "1.0", arch, int64(2*j+k+1))
				}
				o.Build.Arch = arch
				for p, d := range recordFiles(tb, o) {
					files[p] = d
				}
			}
		}
		writeCommit(w, int64(i), "", files)
	}
	w.Flush()
	in.Close()
	if err := cmd.Wait(); err != nil {
		tb.Fatal(err)
	}
	git(tb, dir, "repack", "-adq") // as the daemon does, by and by
	if indexMasters.m == nil {
		indexMasters.m = map[int]string{}
	}
	indexMasters.m[n] = dir
	return dir
}

// processors is how long this process has kept processors busy: unlike the time on
// the clock, it says the same on a machine that does other things, too.
func processors(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

var indexSizes = []int{1_000, 10_000, 100_000}

// BenchmarkIndexCold reads all records of a channel for the first time. plain is
// reading every blob of a record in the order of the tree, and no more than that;
// parse is reading the head of each, as the planner does.
func BenchmarkIndexCold(b *testing.B) {
	for _, n := range indexSizes {
		b.Run(fmt.Sprintf("index/%d", n), func(b *testing.B) {
			dir := twoArchs(b, n)
			var before, after runtime.MemStats
			var entries int
			var spent time.Duration
			for range b.N {
				b.StopTimer()
				x, err := OpenIndex(dir)
				if err != nil {
					b.Fatal(err)
				}
				runtime.GC()
				runtime.ReadMemStats(&before)
				cpu := processors(b)
				b.StartTimer()
				v := view(b, x, "testing")
				b.StopTimer()
				spent += processors(b) - cpu
				x.odb.mu.Lock() // what of it is the store of objects does not count
				held := x.odb.packs
				x.odb.mu.Unlock()
				runtime.GC()
				runtime.ReadMemStats(&after)
				for _, p := range held {
					after.HeapAlloc -= uint64(len(p.idx))
				}
				entries = v.recent.n
				x.Close()
				runtime.KeepAlive(v)
				b.StartTimer()
			}
			b.ReportMetric(float64(entries)*float64(b.N)/b.Elapsed().Seconds(), "records/s")
			b.ReportMetric(float64(spent.Microseconds())/float64(entries*b.N), "cpu-µs/record")
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(entries), "B/entry")
		})
		for _, how := range []string{"plain", "parse"} {
			b.Run(fmt.Sprintf("%s/%d", how, n), func(b *testing.B) {
				dir := twoArchs(b, n)
				count := 0
				cpu := processors(b)
				for range b.N {
					r, err := OpenReader(dir, "testing")
					if err != nil {
						b.Fatal(err)
					}
					count = 0
					for _, top := range []string{packagesDir, failuresDir} {
						for p, err := range r.places(b.Context(), top, nil) {
							if err == nil && how == "plain" {
								_, err = r.odb.get(plumbing.BlobObject, p.hash)
							} else if err == nil {
								_, err = r.odb.head(p.hash)
							}
							if err != nil {
								b.Fatal(err)
							}
							count++
						}
					}
					r.Close()
				}
				b.ReportMetric(float64((processors(b)-cpu).Microseconds())/float64(count*b.N), "cpu-µs/record")
				b.ReportMetric(float64(count)*float64(b.N)/b.Elapsed().Seconds(), "records/s")
			})
		}
	}
}

// BenchmarkIndexUpdate is what one new record costs an index: the commit itself is
// not measured.
func BenchmarkIndexUpdate(b *testing.B) {
	for _, n := range indexSizes {
		open := sync.OnceValues(func() (*Repo, *Index) {
			copied := filepath.Join(b.TempDir(), "results.git")
			if out, err := exec.Command("cp", "-a", twoArchs(b, n), copied).CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
			r := openAt(b, copied, Options{MaxPacks: -1})
			x := r.Index()
			view(b, x, "testing")
			return r, x
		})
		i := 0
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r, x := open()
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				b.StopTimer()
				i++
				record(b, r, realistic(pkgName(i*7919%n), int64(10*n+i)))
				b.StartTimer()
				view(b, x, "testing")
			}
		})
	}
}

// BenchmarkIndexRead is a question to an index that is up to date, by all CPUs.
func BenchmarkIndexRead(b *testing.B) {
	const n = 10_000
	x, err := OpenIndex(twoArchs(b, n))
	if err != nil {
		b.Fatal(err)
	}
	defer x.Close()
	view(b, x, "testing")
	b.Run("package", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for i := 0; pb.Next(); i++ {
				if view(b, x, "testing").Package(pkgName(i%n)) == nil {
					b.Error("it is not there")
				}
			}
		})
	})
	b.Run("recent", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				k := 0
				for range view(b, x, "testing").Recent(Place{}) {
					if k++; k == 50 {
						break
					}
				}
			}
		})
	})
	b.Run("groups", func(b *testing.B) {
		for range b.N {
			view(b, x, "testing").group()
		}
	})
}
