package results

import (
	"errors"
	"strings"
	"testing"

	"github.com/Morphux/quarry"
)

// TestBefore: the channel as a commit has it, and as it was before that.
func TestBefore(t *testing.T) {
	r := open(t, Options{})
	first := record(t, r, sample("zlib", "1.2", "x86_64", 1))
	second := record(t, r, failing("zlib", "1.3", "x86_64", 2))
	record(t, r, sample("zlib", "1.3", "x86_64", 3))
	record(t, r, failing("zlib", "1.2", "x86_64", 4))
	record(t, r, sample("zlib", "1.2", "aarch64", 5))

	newest := func(s *Snapshot) (got string) {
		t.Helper()
		list, err := s.Newest("zlib", "x86_64")
		if err != nil {
			t.Fatal(err)
		}
		for _, rec := range list {
			got += " " + rec.Version + ":" + string(rec.Status)
		}
		return strings.TrimSpace(got)
	}
	at, err := r.SnapshotAt("testing", second)
	if err != nil {
		t.Fatal(err)
	}
	if got := newest(at); got != "1.2:succeeded 1.3:failed" {
		t.Errorf("at the second commit: %s", got)
	}
	before, err := at.Before()
	if err != nil || before.Commit() != first {
		t.Fatalf("before the second commit is %s (%v), want %s", before.Commit(), err, first)
	}
	if got := newest(before); got != "1.2:succeeded" {
		t.Errorf("at the first commit: %s", got)
	}
	none, err := before.Before()
	if err != nil || newest(none) != "" {
		t.Errorf("before the first commit: %v, %v", none, err)
	}
	if again, err := none.Before(); err != nil || again.Commit() != "" {
		t.Errorf("before nothing is %v, %v", again, err)
	}
	if got := newest(snapshot(t, r)); got != "1.2:failed 1.3:succeeded" {
		t.Errorf("now: %s", got)
	}
	for _, commit := range []string{"", "main", strings.Repeat("ab", 20)} {
		if _, err := r.SnapshotAt("testing", commit); err == nil || len(commit) == 40 && !errors.Is(err, ErrNotFound) {
			t.Errorf("commit %q: error is %v", commit, err)
		}
	}
}

// TestTargetOf: what a build was of, by its number.
func TestTargetOf(t *testing.T) {
	r := open(t, Options{})
	want := record(t, r, sample("zlib", "1.2", "x86_64", 7))
	record(t, r, sample("ed", "1.19", "x86_64", 8))
	target, commit, ok, err := r.TargetOf("testing", 7)
	if err != nil || !ok || commit != want || target != (quarry.Target{Channel: "testing", Package: "zlib", Version: "1.2", Arch: "x86_64"}) {
		t.Errorf("build 7 is of %v at %s (%v, %v)", target, commit, ok, err)
	}
	if target, _, ok, err := r.TargetOf("testing", 9); ok || err != nil {
		t.Errorf("build 9 is of %v (%v)", target, err)
	}
}
