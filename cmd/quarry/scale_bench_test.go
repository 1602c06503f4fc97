package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/extract"
	"github.com/Morphux/quarry/pipeline"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/results/resultstest"
)

// BenchmarkScalePromote takes 1,000 packages, on both of their architectures, into an
// empty channel with one commit: the records are looked up, what each needs is found
// there, and the commit is on disk.
func BenchmarkScalePromote(b *testing.B) {
	for _, size := range resultstest.Measured() {
		b.Run(fmt.Sprintf("%dx%dx%d", size.Packages, size.Archs, size.Versions), func(b *testing.B) {
			artifacts, err := extract.OpenArtifacts(b.TempDir())
			if err != nil {
				b.Fatal(err)
			}
			version := resultstest.Version(size.Versions - 1)
			var list []quarry.Release
			for i := range 1000 { // what they need is among them
				list = append(list, quarry.Release{Package: resultstest.Name(i), Version: version})
				for _, arch := range resultstest.Archs[:size.Archs] { // that they are there is looked at, no more
					path := artifacts.Path(resultstest.Artifact(resultstest.Name(i), version, arch))
					if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o644)); err != nil {
						b.Fatal(err)
					}
				}
			}
			for b.Loop() {
				b.StopTimer()
				path := resultstest.Copy(b, size)
				res, err := results.Open(path, results.Options{MaxPacks: -1})
				if err != nil {
					b.Fatal(err)
				}
				m := mover{stages: &stages{pipeline: &pipeline.Pipeline{Artifacts: artifacts}, results: res, index: res.Index()}}
				b.StartTimer()
				done, err := res.Promote(b.Context(), results.Promotion{From: resultstest.Channel, To: "stable", Releases: list,
					By: quarry.Packager{User: "alice", Name: "Alice", Email: "alice@example.org"}, Check: m.checker(b.Context())})
				b.StopTimer()
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(len(done.Moves)), "records")
				res.Close()
				os.RemoveAll(path)
				b.StartTimer()
			}
		})
	}
}
