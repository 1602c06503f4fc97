package mirror

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/results/resultstest"
)

// BenchmarkLists makes the lists of repositories of all sizes: out of nothing, and
// after 100 more records; the delta between, and what a client does with it. Sizes
// are those of one arch.
func BenchmarkLists(b *testing.B) {
	for _, size := range []resultstest.Size{resultstest.Small, resultstest.Medium, resultstest.Large} {
		b.Run(fmt.Sprintf("packages=%d", size.Packages), func(b *testing.B) { benchLists(b, size) })
	}
}

func benchLists(b *testing.B, size resultstest.Size) {
	ctx := context.Background()
	repo, err := results.Open(resultstest.Copy(b, size), results.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer repo.Close()
	old, err := repo.Snapshot(resultstest.Channel)
	if err != nil {
		b.Fatal(err)
	}
	for _, o := range resultstest.Next(size, 100) {
		if _, err := repo.Record(ctx, o); err != nil {
			b.Fatal(err)
		}
	}
	now, err := repo.Snapshot(resultstest.Channel)
	if err != nil {
		b.Fatal(err)
	}
	arch := resultstest.Archs[0]
	var first *stage
	outer := b
	b.Run("anew", func(b *testing.B) {
		for b.Loop() {
			first = lay(b, outer.TempDir(), old)
		}
		h := first.head
		b.ReportMetric(float64(h.Index[arch].Size), "index-bytes")
		b.ReportMetric(float64(h.Index[arch].TextSize), "text-bytes")
		b.ReportMetric(float64(h.Older[arch].Size), "older-bytes")
	})
	if first == nil {
		first = lay(b, b.TempDir(), old)
	}
	h := first.head
	var next *Head
	b.Run("after 100 records", func(b *testing.B) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for b.Loop() {
			if next, err = (&stage{dir: first.dir, head: first.head, log: first.log}).build(ctx, now, today); err != nil {
				b.Fatal(err)
			}
		}
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/float64(b.N)/1e6, "MB-allocated")
	})
	var all map[string][]byte
	b.Run("delta of 100 records", func(b *testing.B) {
		for b.Loop() {
			if all, err = new(loader).deltas(ctx, old, now, resultstest.Archs[:2], deltaLimit(size.Packages)); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(len(all[deltaName(Newest, arch, old.Commit(), now.Commit())])), "delta-bytes")
	})
	b.Run("client", func(b *testing.B) {
		packed, err := os.ReadFile(first.dir + "/" + h.Index[arch].Name)
		if err != nil {
			b.Fatal(err)
		}
		text, err := h.Index[arch].Unpack(packed)
		if err != nil {
			b.Fatal(err)
		}
		delta := all[deltaName(Newest, arch, old.Commit(), now.Commit())]
		for _, c := range []struct {
			name string
			do   func() error
		}{
			{"unpack and check", func() error { _, err := h.Index[arch].Unpack(packed); return err }},
			{"parse", func() error { _, err := ParseList(text); return err }},
			{"apply delta and check", func() error {
				d, err := Unpack(delta, MaxText)
				if err == nil {
					d, err = ApplyDelta(text, d)
				}
				if err == nil {
					err = next.Index[arch].Check(d)
				}
				return err
			}},
		} {
			b.Run(c.name, func(b *testing.B) {
				for b.Loop() {
					if err := c.do(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	})
	b.Run("export without records", func(b *testing.B) {
		r, err := results.OpenReader(repo.Path(), "")
		if err != nil {
			b.Fatal(err)
		}
		defer r.Close()
		dir := b.TempDir()
		for _, step := range []string{"first", "again"} {
			began := time.Now()
			if _, err := Export(ctx, ExportOptions{Dir: dir, Results: r, Now: today, Force: true}); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(time.Since(began).Seconds(), step+"-s")
		}
		b.ReportMetric(0, "ns/op")
	})
}

// lay makes the lists of a snapshot in a folder.
func lay(b *testing.B, dir string, s *results.Snapshot) *stage {
	b.Helper()
	st, err := openStage(dir, nil)
	if err != nil {
		b.Fatal(err)
	}
	h, err := st.build(context.Background(), s, today)
	if err == nil {
		_, err = st.show(h, nil, today)
	}
	if err != nil {
		b.Fatal(err)
	}
	return st
}
