package results

import (
	"errors"
	"testing"

	"github.com/Morphux/quarry"
)

// An entry says what the record does, and entries go over just the successes of
// the architectures that are asked for.
func TestEntries(t *testing.T) {
	r := open(t, Options{SBU: 30})
	for i, arch := range []string{"x86_64", "aarch64", quarry.Noarch} {
		o := sample("zlib", "1.3.1", arch, int64(i+1))
		o.Info.Recommended, o.Info.Optional = []string{"a"}, []string{"b>=2"}
		record(t, r, o)
	}
	record(t, r, failing("broken", "1.0", "x86_64", 9))
	s := snapshot(t, r)
	got := 0
	for e, err := range s.Entries(t.Context(), func(arch string) bool { return arch != "aarch64" }) {
		if err != nil {
			t.Fatal(err)
		}
		got++
		rec, err := s.Get(e.Package, e.Version, e.Arch)
		if err != nil {
			t.Fatal(err)
		}
		if e.Arch == "aarch64" || e.SBU != rec.Time.SBU || e.SBU == 0 || e.Artifact() != rec.Artifact || e.Recommended()[0] != "a" || e.Optional()[0] != "b>=2" || !e.Ended().Equal(rec.Ended) {
			t.Errorf("%+v is not %+v", e, rec)
		}
	}
	if got != 2 {
		t.Errorf("%d entries", got)
	}
	if e, err := s.Entry("zlib", "1.3.1", "aarch64"); err != nil || e.Arch != "aarch64" {
		t.Errorf("%v, %v", e, err)
	}
	if _, err := s.Entry("broken", "1.0", "x86_64"); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
	if _, err := s.Entry("../x", "1.0", "x86_64"); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
}
