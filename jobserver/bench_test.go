package jobserver_test

import (
	"slices"
	"testing"
	"time"

	"github.com/Morphux/quarry/internal/testtools"
)

// BenchmarkSet measures how long it takes from Set until the new number shows:
// up, until all jobs that are new have begun; down, from the end of a job until
// its slot is back. Where the build is first to have the token, another job ends
// 50 ms later.
func BenchmarkSet(b *testing.B) {
	for _, tl := range tools(b) {
		if tl.ninja {
			continue // it has to end a job to see that it may run more
		}
		b.Run(tl.name, func(b *testing.B) {
			var up, down []time.Duration
			lost := 0
			for b.Loop() {
				bd := start(b, tl, 1)
				bd.trace.Wait(b, 1)
				for range 10 {
					at := testtools.Clock()
					bd.pool.Set(5)
					bd.trace.Wait(b, 5)
					events := bd.trace.Events(b)
					up = append(up, events[len(events)-1].At-at)
					bd.pool.Set(1)
					for bd.pool.State().Out > 1 {
						bd.next(b)
					}
					bd.trace.Wait(b, 1)
					bd.pool.Set(2)
					bd.trace.Wait(b, 2)
					bd.pool.Set(1)
					ended := time.Now()
					bd.trace.End(b, 1)
					for bd.pool.State().Out > 1 {
						select {
						case <-bd.pool.Changed():
						case <-time.After(50 * time.Millisecond): // the build was first
							lost++
							bd.trace.End(b, 1)
						}
					}
					down = append(down, time.Since(ended))
					bd.trace.Wait(b, 1)
				}
				bd.end()
			}
			for name, all := range map[string][]time.Duration{"up": up, "down": down} {
				slices.Sort(all)
				b.ReportMetric(all[len(all)/2].Seconds()*1e3, name+"-ms")
				b.ReportMetric(all[len(all)*99/100].Seconds()*1e3, name+"-p99-ms")
			}
			b.ReportMetric(float64(lost)/float64(len(down)), "lost/slot")
			b.ReportMetric(0, "ns/op")
		})
	}
}
