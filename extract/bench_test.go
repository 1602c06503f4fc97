package extract

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// benchTree makes a tree like a large package's: 300 MB in 2,000 files, four
// fifths of the bytes ELF files of this machine, the rest text of it. It
// returns its files, sorted.
func benchTree(b *testing.B) (root string, files []string, bytesTotal int64) {
	const wantFiles, wantBytes = 2000, 300_000_000
	root = b.TempDir()
	used := map[string]bool{}
	add := func(limit int64, dirs []string, take func(name string, head []byte, size int64) bool) {
		for _, dir := range dirs {
			filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
				if err != nil || !d.Type().IsRegular() || used[p] {
					return nil
				}
				if bytesTotal >= limit || len(files) >= wantFiles-1 {
					return fs.SkipAll
				}
				data, err := os.ReadFile(p)
				if err != nil || len(data) == 0 || !take(p, data[:min(4, len(data))], int64(len(data))) {
					return nil
				}
				if int64(len(data)) > limit-bytesTotal {
					data = data[:limit-bytesTotal]
				}
				used[p] = true
				to := filepath.Join(root, p)
				if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
					b.Fatal(err)
				}
				if err := os.WriteFile(to, data, 0o755); err != nil {
					b.Fatal(err)
				}
				files = append(files, to)
				bytesTotal += int64(len(data))
				return nil
			})
		}
	}
	isELF := func(head []byte) bool { return bytes.HasPrefix(head, []byte(elfMagic)) }
	add(wantBytes*8/10, []string{"/usr/bin", "/usr/sbin", "/usr/lib", "/usr/libexec"}, func(_ string, head []byte, size int64) bool {
		return isELF(head) && size < 16<<20
	})
	text := func(_ string, head []byte, size int64) bool { return !isELF(head) && size < 200_000 }
	add(wantBytes, []string{"/usr/include", "/usr/share", "/usr/local"}, text)
	// Whatever is missing on this machine: one more text.
	if rest := wantBytes - bytesTotal; rest > 0 {
		to := filepath.Join(root, "rest.txt")
		var text strings.Builder
		for i := 0; int64(text.Len()) < rest; i++ {
			fmt.Fprintf(&text, "%d %x\n", i, sha256.Sum256(fmt.Append(nil, i)))
		}
		if err := os.WriteFile(to, []byte(text.String()[:rest]), 0o644); err != nil {
			b.Fatal(err)
		}
		files = append(files, to)
		bytesTotal += rest
	}
	slices.Sort(files)
	return root, files, bytesTotal
}

// hashFiles is plain SHA-256, the measure.
func hashFiles(b *testing.B, files []string, workers int) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			h, buf := sha256.New(), make([]byte, 1<<20)
			for i := next.Add(1) - 1; i < int64(len(files)); i = next.Add(1) - 1 {
				f, err := os.Open(files[i])
				if err != nil {
					b.Error(err)
					return
				}
				h.Reset()
				_, err = io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, buf)
				f.Close()
				if err != nil {
					b.Error(err)
				}
				h.Sum(nil)
			}
		})
	}
	wg.Wait()
}

// BenchmarkExtract compares the reading of a tree with plain SHA-256 of the
// same files on as many cores, and with what a shell would do for less. Every
// round runs all cases in turn, so that a machine that is busy with something
// else slows them alike; it reports the medians, as MB/s and as multiples of
// the time of plain SHA-256, and of the CPU time, which a busy machine changes
// less.
//
//	go test -tags remote -run - -bench Extract -benchtime 9x ./extract
func BenchmarkExtract(b *testing.B) {
	root, files, size := benchTree(b)
	cores := runtime.GOMAXPROCS(0)
	o := Options{SourceTime: sourceTime}
	var packed int64
	tree := func(o Options) {
		_, art, err := Tree(context.Background(), root, o)
		if err != nil {
			b.Fatal(err)
		}
		if art != nil {
			packed = art.Size
		}
	}
	shell := func(script string) {
		run(b, "sh", "-c", "all() { find '"+root+"' -type f -print0 | xargs -0 \"$@\"; }; "+script)
	}
	one := o
	one.Workers = 1
	cases := []struct {
		name string
		run  func()
	}{
		{"sha256", func() { hashFiles(b, files, cores) }},
		{"sha256-1core", func() { hashFiles(b, files, 1) }},
		{"facts", func() { tree(o) }},
		{"facts-1core", func() { tree(one) }},
		{"facts+artifact", func() {
			o := o
			o.Store = newStore(b)
			tree(o)
		}},
		{"sha256sum", func() { shell("all sha256sum >/dev/null") }},
		{"sha256sum+readelf-d", func() { shell("all sha256sum >/dev/null; all readelf -Whldn >/dev/null 2>&1; true") }},
		{"sha256sum+readelf-a", func() { shell("all sha256sum >/dev/null; all readelf -a >/dev/null 2>&1; true") }},
	}
	times, cpus := make([][]time.Duration, len(cases)), make([][]time.Duration, len(cases))
	hashFiles(b, files, cores) // warms the page cache
	for b.Loop() {
		for i, c := range cases {
			start, cpu := time.Now(), cpuTime(b)
			c.run()
			times[i] = append(times[i], time.Since(start))
			cpus[i] = append(cpus[i], cpuTime(b)-cpu)
		}
	}
	median := func(of [][]time.Duration, i int) float64 {
		slices.Sort(of[i])
		return of[i][len(of[i])/2].Seconds()
	}
	b.ReportMetric(0, "ns/op") // of all cases together: says nothing
	for i, c := range cases {
		wall, ratio, cpu := median(times, i), median(times, i)/median(times, 0), median(cpus, i)/median(cpus, 0)
		b.ReportMetric(float64(size)/1e6/wall, c.name+"-MB/s")
		b.ReportMetric(ratio, c.name+"-x")
		b.Logf("%-20s %6.0f ms %6.0f MB/s %6.2f x sha256, CPU %6.0f ms %6.2f x", c.name,
			wall*1e3, float64(size)/1e6/wall, ratio, median(cpus, i)*1e3, cpu)
	}
	b.ReportMetric(float64(packed)/float64(size), "packed")
}

// cpuTime is what this process and those that it ran have used.
func cpuTime(b *testing.B) (sum time.Duration) {
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			b.Fatal(err)
		}
		sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return sum
}

// BenchmarkInstall lays the same tree in.
func BenchmarkInstall(b *testing.B) {
	root, _, size := benchTree(b)
	store := newStore(b)
	_, art, err := Tree(context.Background(), root, Options{Store: store, SourceTime: sourceTime})
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	for b.Loop() {
		b.StopTimer()
		to := b.TempDir()
		f, err := store.Open(art.SHA256)
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if _, err := Install(f, to); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		f.Close()
		os.RemoveAll(to)
		b.StartTimer()
	}
}
