package events

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Morphux/quarry"
)

// BenchmarkFollow appends events, each in a batch of its own, while many follow;
// one operation is one event told to all.
func BenchmarkFollow(b *testing.B) {
	for _, followers := range []int{0, 100, 1000, 5000} {
		b.Run(fmt.Sprint(followers), func(b *testing.B) {
			l := open(b, b.TempDir(), Options{})
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			ctx, cancel := context.WithCancel(b.Context())
			var work, ready sync.WaitGroup
			var told atomic.Int64
			for range followers {
				work.Add(1)
				ready.Add(1)
				go func() {
					defer work.Done()
					first := true
					for range l.Follow(ctx, 0) {
						if first {
							ready.Done()
							first = false
						}
						told.Add(1)
					}
				}()
			}
			l.Append(event(0))
			ready.Wait()
			runtime.GC()
			runtime.ReadMemStats(&after)
			told.Store(0)
			n := int64(0)
			for b.Loop() {
				n++
				l.Append(event(n))
				if err := l.Flush(ctx); err != nil {
					b.Fatal(err)
				}
			}
			for told.Load() < n*int64(followers) {
				time.Sleep(time.Millisecond)
			}
			b.StopTimer()
			cancel()
			work.Wait()
			if followers > 0 {
				b.ReportMetric(float64(after.HeapInuse+after.StackInuse-before.HeapInuse-before.StackInuse)/float64(followers), "B/follower")
			}
		})
	}
}

// BenchmarkAppend is a mass rebuild's flood: as many as come.
func BenchmarkAppend(b *testing.B) {
	l := open(b, b.TempDir(), Options{})
	for i := 0; b.Loop(); i++ {
		l.Append(event(int64(i)))
		if i%1000 == 999 {
			if err := l.Flush(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkOpen is the start of a farm with a full log of 64 MiB.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	l := open(b, dir, Options{})
	for i := int64(0); l.First() == 1; i++ {
		l.Append(event(i))
		if i%1000 == 999 {
			if err := l.Flush(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	}
	n := l.Last() - l.First() + 1
	l.Close()
	for b.Loop() {
		l, err := Open(dir, Options{}, nil)
		if err != nil {
			b.Fatal(err)
		}
		l.Close()
	}
	b.ReportMetric(float64(n), "events")
}

func event(n int64) Event {
	b := build(n+1, quarry.Failed)
	b.Reason = "make: a.c:1:10: fatal error: zconf.h: No such file or directory"
	return OfBuild(b, false, "testing")
}
