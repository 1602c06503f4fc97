package provenance

import (
	"io/fs"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/results/resultstest"
)

// BenchmarkRecord records 20 versions of each of 50 packages, as they come: with
// nothing signed, with signed commits, with attestations too, and with these as
// envelopes, which is how they might have been kept instead. bytes/record is the
// repository when git has packed it as well as it can.
func BenchmarkRecord(b *testing.B) {
	s := signer(b)
	prove := func(rec *results.Record) (results.Provenance, error) { return Prove(rec, farm, s) }
	for _, c := range []struct {
		name string
		o    results.Options
	}{
		{"plain", results.Options{}},
		{"signed", results.Options{Sign: s.SignCommit}},
		{"attested", results.Options{Sign: s.SignCommit, Prove: prove}},
		{"enveloped", results.Options{Sign: s.SignCommit, Prove: func(rec *results.Record) (p results.Provenance, err error) {
			if p, err = prove(rec); err == nil {
				p.Statement, err = Envelope(p)
				p.Signature = []byte("\n") // it is in there
			}
			return p, err
		}}},
	} {
		b.Run(c.name, func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "results.git")
			c.o.MaxPacks = -1
			r, err := results.Open(path, c.o)
			if err != nil {
				b.Fatal(err)
			}
			defer r.Close()
			n := 0
			for b.Loop() {
				o := resultstest.Outcome(n%50, n/50, "x86_64", int64(n+1))
				n++
				if _, err := r.Record(b.Context(), o); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			if out, err := exec.Command("git", "-C", path, "repack", "-adfq", "--depth=50", "--window=50").CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
			size := int64(0)
			err = filepath.WalkDir(filepath.Join(path, "objects/pack"), func(p string, d fs.DirEntry, err error) error {
				if err != nil || !strings.HasSuffix(p, ".pack") {
					return err
				}
				fi, err := d.Info()
				size += fi.Size()
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(size)/float64(n), "bytes/record")
		})
	}
}
