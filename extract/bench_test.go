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
	add(wantBytes, []string{"/usr/include", "/usr/share", runtime.GOROOT()}, text)
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
// same files on as many cores, and with what a shell would do for less. Run it
// as one: each case reports its time as a multiple of plain SHA-256's.
//
//	go test -tags remote -run - -bench Extract -benchtime 5x ./extract
func BenchmarkExtract(b *testing.B) {
	root, files, size := benchTree(b)
	cores := runtime.GOMAXPROCS(0)
	var plain time.Duration
	hashFiles(b, files, cores) // warms the page cache
	for range 5 {
		start := time.Now()
		hashFiles(b, files, cores)
		if d := time.Since(start); plain == 0 || d < plain {
			plain = d
		}
	}
	elf := strings.Join([]string{"find", root, "-type f -print0 | xargs -0"}, " ")
	measure := func(name string, f func(b *testing.B)) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				f(b)
			}
			b.ReportMetric(float64(b.Elapsed())/float64(b.N)/float64(plain), "x-sha256")
		})
	}
	o := Options{SourceTime: sourceTime}
	measure("sha256", func(b *testing.B) { hashFiles(b, files, cores) })
	measure("sha256-1core", func(b *testing.B) { hashFiles(b, files, 1) })
	measure("facts", func(b *testing.B) {
		if _, _, err := Tree(context.Background(), root, o); err != nil {
			b.Fatal(err)
		}
	})
	measure("facts-1core", func(b *testing.B) {
		o := o
		o.Workers = 1
		if _, _, err := Tree(context.Background(), root, o); err != nil {
			b.Fatal(err)
		}
	})
	b.Run("facts+artifact", func(b *testing.B) {
		b.SetBytes(size)
		var packed int64
		for b.Loop() {
			b.StopTimer()
			o := o
			o.Store = newStore(b)
			b.StartTimer()
			_, art, err := Tree(context.Background(), root, o)
			if err != nil {
				b.Fatal(err)
			}
			packed = art.Size
		}
		b.ReportMetric(float64(b.Elapsed())/float64(b.N)/float64(plain), "x-sha256")
		b.ReportMetric(float64(packed)/float64(size), "packed")
	})
	measure("find-xargs-sha256sum", func(b *testing.B) {
		run(b, "sh", "-c", elf+" sha256sum >/dev/null")
	})
	measure("sha256sum+readelf-d", func(b *testing.B) {
		run(b, "sh", "-c", elf+" sha256sum >/dev/null; "+elf+" readelf -Whldn >/dev/null 2>&1; true")
	})
	measure("sha256sum+readelf-a", func(b *testing.B) {
		run(b, "sh", "-c", elf+" sha256sum >/dev/null; "+elf+" readelf -a >/dev/null 2>&1; true")
	})
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
