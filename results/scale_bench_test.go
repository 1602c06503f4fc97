package results_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/results/resultstest"
)

// These benchmarks show how the results repository stands up to the number of
// packages, with stock git on the other end:
//
//	go test -tags remote -run '^$' -bench Scale -benchtime 1x -timeout 0 ./results
//
// The repositories are made once and kept in the cache folder. The largest, which
// takes a quarter of an hour to make, is measured only where QUARRY_BENCH_LARGE is
// set. Compare figures within one run; cpu-s is what the server's side used.

func each(b *testing.B, f func(b *testing.B, size resultstest.Size)) {
	for _, size := range resultstest.Measured() {
		b.Run(fmt.Sprintf("%dx%dx%d", size.Packages, size.Archs, size.Versions), func(b *testing.B) { f(b, size) })
	}
}

func open(b *testing.B, path string, opts results.Options) *results.Repo {
	b.Helper()
	r, err := results.Open(path, opts)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { r.Close() })
	return r
}

// tended is a copy of a repository as the farm keeps it.
func tended(b *testing.B, size resultstest.Size) (string, *results.Repo) {
	b.Helper()
	size.Tended = true
	path := resultstest.Copy(b, size)
	r := open(b, path, results.Options{MaxPacks: -1})
	return path, r
}

func write(b *testing.B, r *results.Repo, list []*quarry.Outcome) {
	b.Helper()
	for _, o := range list {
		if _, err := r.Record(b.Context(), o); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkScaleCommit is one record, made durable.
func BenchmarkScaleCommit(b *testing.B) {
	each(b, func(b *testing.B, size resultstest.Size) {
		path := resultstest.Copy(b, size)
		r := open(b, path, results.Options{})
		list := resultstest.Next(size, 1000)
		write(b, r, list[:10]) // reads the indexes of the packs
		var took []time.Duration
		for b.Loop() {
			for _, o := range list[10:] {
				start := time.Now()
				write(b, r, []*quarry.Outcome{o})
				took = append(took, time.Since(start))
			}
			list = nil
		}
		slices.Sort(took)
		b.ReportMetric(took[len(took)/2].Seconds()*1000, "p50-ms")
		b.ReportMetric(took[len(took)*99/100].Seconds()*1000, "p99-ms")
		b.ReportMetric(0, "ns/op")
	})
}

// packed asks git for a pack, as git upload-pack does for a client, and says how
// large it is and what it cost.
func packed(b *testing.B, repo, revs string, args ...string) (size int64, cpu, wall time.Duration) {
	b.Helper()
	cmd := exec.Command("git", append([]string{"-C", repo, "pack-objects", "--revs", "--stdout", "--delta-base-offset", "-q", "--thin"}, args...)...)
	cmd.Stdin = strings.NewReader(revs)
	var n counter
	cmd.Stdout, cmd.Stderr = &n, os.Stderr
	start := time.Now()
	if err := cmd.Run(); err != nil {
		b.Fatal(err)
	}
	return int64(n), cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), time.Since(start)
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// BenchmarkScaleServe is what a clone costs the server, before maintenance has made
// bitmaps and after.
func BenchmarkScaleServe(b *testing.B) {
	each(b, func(b *testing.B, size resultstest.Size) {
		before := resultstest.Copy(b, size)
		after, _ := tended(b, size)
		for _, what := range []string{"full", "blobless"} {
			var args []string
			if what == "blobless" {
				args = []string{"--filter=blob:none"}
			}
			for _, when := range []struct{ name, repo string }{{"before", before}, {"after", after}} {
				b.Run(what+"/"+when.name, func(b *testing.B) {
					for b.Loop() {
						n, cpu, _ := packed(b, when.repo, "testing\n", args...)
						b.ReportMetric(cpu.Seconds(), "cpu-s")
						b.ReportMetric(float64(n)/1e6, "MB")
					}
				})
			}
		}
	})
}

// BenchmarkScaleClone is a clone as somebody sees it, the work of the client's git
// included.
func BenchmarkScaleClone(b *testing.B) {
	each(b, func(b *testing.B, size resultstest.Size) {
		path, _ := tended(b, size)
		for _, args := range [][]string{{}, {"--depth=1"}, {"--filter=blob:none"}} {
			b.Run("git"+strings.Join(args, ""), func(b *testing.B) {
				for b.Loop() {
					into := filepath.Join(b.TempDir(), "clone")
					run(b, append(append([]string{"clone", "-q", "--bare", "--no-local"}, args...), "file://"+path, into)...)
					b.ReportMetric(float64(bytesOf(b, into, ".pack"))/1e6, "MB")
					os.RemoveAll(into)
				}
			})
		}
	})
}

// bytesOf adds the sizes of the packs of a repository up, or of what else ends so.
func bytesOf(b *testing.B, repo, ext string) (n int64) {
	b.Helper()
	list, err := filepath.Glob(filepath.Join(repo, "objects", "pack", "*"+ext))
	if err != nil {
		b.Fatal(err)
	}
	for _, name := range list {
		info, err := os.Stat(name)
		if err != nil {
			b.Fatal(err)
		}
		n += info.Size()
	}
	return n
}

// BenchmarkScaleFetch is what a client does that lacks 100 records: as they were
// written, in a repository without bitmaps and with; and when they have been melted
// together.
func BenchmarkScaleFetch(b *testing.B) {
	each(b, func(b *testing.B, size resultstest.Size) {
		for _, state := range []string{"untended", "written", "melted"} {
			b.Run(state, func(b *testing.B) {
				path, r := tended(b, size)
				if state == "untended" {
					path = resultstest.Copy(b, size)
					r = open(b, path, results.Options{MaxPacks: -1})
				}
				client := filepath.Join(b.TempDir(), "client.git")
				run(b, "clone", "-q", "--bare", path, client) // hard links
				old := run(b, "-C", path, "rev-parse", "testing")
				write(b, r, resultstest.Next(size, 100))
				if state == "melted" {
					if err := r.Maintain(b.Context()); err != nil {
						b.Fatal(err)
					}
				}
				n, cpu, _ := packed(b, path, "testing\n^"+old+"\n")
				has := bytesOf(b, client, ".pack")
				for b.Loop() {
					b.StopTimer()
					copied := filepath.Join(b.TempDir(), "copy.git")
					if out, err := exec.Command("cp", "-al", client, copied).CombinedOutput(); err != nil {
						b.Fatalf("%v: %s", err, out)
					}
					b.StartTimer()
					run(b, "-C", copied, "-c", "fetch.unpackLimit=1", "fetch", "-q", "file://"+path, "testing")
					b.StopTimer()
					if bytesOf(b, copied, ".pack") == has {
						b.Fatal("nothing came")
					}
					b.StartTimer()
				}
				b.ReportMetric(float64(n)/1e3, "kB")
				b.ReportMetric(cpu.Seconds(), "cpu-s")
			})
		}
	})
}

// BenchmarkScaleMaintain is what tending costs: from nothing; and after 100 records,
// as it is most times.
func BenchmarkScaleMaintain(b *testing.B) {
	each(b, func(b *testing.B, size resultstest.Size) {
		path := resultstest.Copy(b, size)
		r := open(b, path, results.Options{MaxPacks: -1})
		done := 0
		maintain := func(b *testing.B) {
			if err := r.Maintain(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
		b.Run("first", func(b *testing.B) {
			for range b.N {
				maintain(b)
			}
		})
		b.Run("after-100", func(b *testing.B) {
			for range b.N {
				b.StopTimer()
				write(b, r, resultstest.Next(size, done+100)[done:])
				done += 100
				b.StartTimer()
				maintain(b)
			}
		})
		b.ReportMetric(0, "ns/op")
	})
}

// BenchmarkScaleSize is what a record weighs on disk, its part of trees and commits
// included.
func BenchmarkScaleSize(b *testing.B) {
	each(b, func(b *testing.B, size resultstest.Size) {
		path, _ := tended(b, size)
		for b.Loop() {
			b.ReportMetric(float64(bytesOf(b, path, ".pack"))/float64(size.Records()), "B/record")
			b.ReportMetric(float64(bytesOf(b, path, "")-bytesOf(b, path, ".pack"))/float64(size.Records()), "B-index/record")
			b.ReportMetric(0, "ns/op")
		}
	})
}

// BenchmarkScaleMemory is what a process holds that has the index of a channel.
func BenchmarkScaleMemory(b *testing.B) {
	each(b, func(b *testing.B, size resultstest.Size) {
		path := resultstest.Farm(b, size)
		for b.Loop() {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			x, err := results.OpenIndex(path)
			if err != nil {
				b.Fatal(err)
			}
			v, err := x.View(b.Context(), resultstest.Channel)
			if err != nil {
				b.Fatal(err)
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "heap-MB")
			b.ReportMetric(rss(b), "rss-MB")
			runtime.KeepAlive(v)
			x.Close()
		}
	})
}

func rss(b *testing.B) float64 {
	b.Helper()
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); f[0] == "VmRSS:" {
			kb, err := strconv.ParseFloat(f[1], 64)
			if err != nil {
				b.Fatal(err)
			}
			return kb / 1e3
		}
	}
	return 0
}

// BenchmarkScaleNaive is the layout of those who have failed with it: all records of
// the newest versions in one folder, in a repository without anything else, and 100
// commits of a record each, by git fast-import, which syncs nothing. What a fetch of
// them costs is to be compared with BenchmarkScaleFetch.
func BenchmarkScaleNaive(b *testing.B) {
	each(b, func(b *testing.B, size resultstest.Size) {
		path := resultstest.Copy(b, size)
		var first bytes.Buffer
		begin := func(w *bytes.Buffer, branch, from string) {
			fmt.Fprintf(w, "commit refs/heads/%s\ncommitter Quarry <quarry@localhost> 1700000000 +0000\ndata 1\nx\n%s", branch, from)
		}
		begin(&first, "flat", "")
		for line := range strings.Lines(run(b, "-C", path, "ls-tree", "-r", "testing", "packages")) {
			head, name, _ := strings.Cut(strings.TrimSpace(line), "\t")
			if part := strings.Split(name, "/"); part[len(part)-2] == resultstest.Version(size.Versions-1) {
				fmt.Fprintf(&first, "M 100644 %s %s-%s\n", strings.Fields(head)[2], part[len(part)-3], strings.TrimSuffix(part[len(part)-1], ".toml"))
			}
		}
		feed := func(in *bytes.Buffer) {
			cmd := exec.Command("git", "-C", path, "-c", "fastimport.unpackLimit=0", "fast-import", "--quiet")
			cmd.Stdin = in
			if out, err := cmd.CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
		}
		feed(&first)
		old := run(b, "-C", path, "rev-parse", "flat")
		var next bytes.Buffer
		from := "from refs/heads/flat^0\n"
		for _, o := range resultstest.Next(size, 100) {
			rec, err := results.NewRecord(o, 0)
			if err != nil {
				b.Fatal(err)
			}
			text, err := rec.Marshal()
			if err != nil {
				b.Fatal(err)
			}
			list, err := results.MarshalFiles(rec.Package, rec.Version, rec.Arch, o.Facts.Files)
			if err != nil {
				b.Fatal(err)
			}
			begin(&next, "flat", from)
			from = ""
			fmt.Fprintf(&next, "M 100644 inline %s-%s\ndata %d\n%s\n", rec.Package, rec.Arch, len(text), text)
			fmt.Fprintf(&next, "M 100644 inline %s-%s.files\ndata %d\n%s\n", rec.Package, rec.Arch, len(list), list)
		}
		start := time.Now()
		feed(&next)
		perCommit := time.Since(start) / 100
		for b.Loop() {
			n, cpu, wall := packed(b, path, "flat\n^"+old+"\n")
			b.ReportMetric(perCommit.Seconds()*1000, "commit-ms")
			b.ReportMetric(float64(n)/1e3, "kB")
			b.ReportMetric(cpu.Seconds(), "cpu-s")
			b.ReportMetric(wall.Seconds()*1000, "fetch-ms")
		}
		b.ReportMetric(0, "ns/op")
	})
}
