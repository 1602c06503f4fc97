package results_test

import (
	"runtime"
	"testing"
	"time"

	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/results/resultstest"
)

// BenchmarkReferences goes over all that the records of a farm refer to, with a
// history of all that it has ever had, and over none of the past.
func BenchmarkReferences(b *testing.B) {
	for name, size := range map[string]resultstest.Size{"1000": resultstest.Small, "10000": resultstest.Medium} {
		path := resultstest.Copy(b, size)
		for _, past := range []struct {
			name  string
			since time.Time
		}{{"now", time.Now()}, {"always", time.Time{}}} {
			b.Run(name+"/"+past.name, func(b *testing.B) {
				for range b.N {
					r, err := results.Open(path, results.Options{MaxPacks: -1})
					if err != nil {
						b.Fatal(err)
					}
					n, size := 0, 0
					refs, err := r.References(b.Context(), past.since, func(text []byte) error { n++; size += len(text); return nil })
					if err != nil {
						b.Fatal(err)
					}
					b.StopTimer()
					runtime.GC()
					var m runtime.MemStats
					runtime.ReadMemStats(&m)
					b.ReportMetric(float64(n), "records")
					b.ReportMetric(float64(m.HeapAlloc)/(1<<20), "MB")
					runtime.KeepAlive(refs)
					r.Close()
					b.StartTimer()
				}
			})
		}
	}
}
