package fsck

import (
	"fmt"
	"testing"
	"time"

	"github.com/Morphux/quarry/results/resultstest"
)

// BenchmarkRun looks at a repository whole, as git has it, then at what 100 records
// have changed; git fsck, which is a part of the first, is timed beside it.
func BenchmarkRun(b *testing.B) {
	for _, size := range []resultstest.Size{resultstest.Small, resultstest.Large} {
		path := resultstest.Farm(b, size)
		b.Run(fmt.Sprintf("%dx%d", size.Packages, size.Versions), func(b *testing.B) {
			for b.Loop() {
				var last string
				began, parts := time.Now(), map[string]time.Duration{}
				sum, err := Run(b.Context(), Options{Repo: path, Progress: func(what string, _, _ int) {
					if what != last {
						parts[last] += time.Since(began)
						last, began = what, time.Now()
					}
				}}, func(Finding) {})
				parts[last] += time.Since(began)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(sum.Records), "records")
				b.ReportMetric(parts["git objects"].Seconds(), "s-git")
				b.ReportMetric(parts["records of testing"].Seconds(), "s-records")
				b.ReportMetric(parts["commits of testing"].Seconds(), "s-commits")
			}
		})
	}
}
