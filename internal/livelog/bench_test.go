package livelog

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Lines of a build's log, as a runner hands them over.
var chunk = []byte(strings.Repeat("gcc -DHAVE_CONFIG_H -I. -O2 -g -c -o libz_la-inflate.lo inflate.c\n", 8))

// BenchmarkPlainFile is what the others are measured against.
func BenchmarkPlainFile(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "log"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		if _, err := f.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
}

func benchmarkWrite(b *testing.B, followers int) {
	s := open(b, b.TempDir(), Options{})
	l := create(b, s, 1, 1)
	var wg sync.WaitGroup
	for range followers {
		r, err := s.Follow(b.Context(), 1)
		if err != nil {
			b.Fatal(err)
		}
		wg.Go(func() { io.Copy(io.Discard, r); r.Close() })
	}
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		l.Write(chunk)
	}
	b.StopTimer()
	l.Close()
	wg.Wait()
}

func BenchmarkWrite(b *testing.B)          { benchmarkWrite(b, 0) }
func BenchmarkWriteFollowed1(b *testing.B) { benchmarkWrite(b, 1) }
func BenchmarkWriteFollowed8(b *testing.B) { benchmarkWrite(b, 8) }

// BenchmarkTail is the last 200 lines of a log of 20 MB.
func BenchmarkTail(b *testing.B) {
	s := open(b, b.TempDir(), Options{})
	l := create(b, s, 1, 1)
	for range 20 << 20 / len(chunk) {
		l.Write(chunk)
	}
	for b.Loop() {
		if lines, err := l.Tail(200); err != nil || len(lines) != 200 {
			b.Fatal(len(lines), err)
		}
	}
}
