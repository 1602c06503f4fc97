package results

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
)

// collectArtifacts keeps what References sees, by the last digits of the artifacts.
func collectArtifacts(seen *[]string) func([]byte) error {
	return func(text []byte) error {
		rec, err := Parse(text)
		if err == nil {
			*seen = append(*seen, strings.TrimLeft(rec.Artifact, "0"))
		}
		return err
	}
}

// TestReferences sees what stands, and what has stood long enough.
func TestReferences(t *testing.T) {
	day := 24 * time.Hour
	begin := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	now := begin
	r := open(t, Options{MaxPacks: -1, Now: func() time.Time { return now }})
	build := int64(0)
	put := func(channel, pkg, version, artifact string) {
		t.Helper()
		build++
		o := on(channel, "alice", sample(pkg, version, "x86_64", build))
		o.Artifact.SHA256 = fmt.Sprintf("%064s", artifact)
		record(t, r, o)
	}
	put("testing", "zlib", "1.3", "a1")
	now = begin.Add(10 * day)
	put("testing", "zlib", "1.3", "a2") // a1 stood until day 10
	put("stable", "git", "2.0", "b1")
	now = begin.Add(20 * day)
	put("testing", "zlib", "1.3", "a3")
	now = begin.Add(30 * day)
	put("testing", "make", "4.4", "c1")
	if _, err := r.Promote(t.Context(), Promotion{From: "testing", To: "stable", All: true, By: bob}); err != nil {
		t.Fatal(err)
	}
	submit(t, r, submission("gnome", "libgreet"))
	stageAll(t, r, "gnome", 100, "libgreet")

	for _, c := range []struct {
		since int // days
		want  string
	}{{0, "a1 a2 a3 b1 c1"}, {10, "a1 a2 a3 b1 c1"}, {11, "a2 a3 b1 c1"}, {20, "a2 a3 b1 c1"}, {21, "a3 b1 c1"}, {99, "a3 b1 c1"}} {
		var seen []string
		if _, err := r.References(t.Context(), begin.Add(time.Duration(c.since)*day), collectArtifacts(&seen)); err != nil {
			t.Fatal(err)
		}
		slices.Sort(seen)
		seen = slices.Compact(seen)
		var plain []string
		groups := 0
		for _, s := range seen {
			if len(s) > 2 { // the group's, of which the sample says what they are
				groups++ // both archs have one and the same
				continue
			}
			plain = append(plain, s)
		}
		if got := strings.Join(plain, " "); got != c.want || groups != 1 {
			t.Errorf("since day %d: got %s and %d of the group, want %s", c.since, got, groups, c.want)
		}
	}
}

// TestReferencesMore sees what comes while somebody looks, once.
func TestReferencesMore(t *testing.T) {
	r := open(t, Options{MaxPacks: -1})
	put := func(channel, artifact string, build int64) {
		t.Helper()
		o := on(channel, "alice", sample("zlib", "1.3", "x86_64", build))
		o.Artifact.SHA256 = fmt.Sprintf("%064s", artifact)
		record(t, r, o)
	}
	put("testing", "a1", 1)
	var seen []string
	refs, err := r.References(t.Context(), time.Now().Add(-time.Hour), collectArtifacts(&seen))
	if err != nil {
		t.Fatal(err)
	}
	more := func(want ...string) {
		t.Helper()
		seen = nil
		if err := refs.More(t.Context()); err != nil {
			t.Fatal(err)
		}
		slices.Sort(seen)
		seen = slices.Compact(seen)
		if !slices.Equal(seen, want) {
			t.Errorf("more are %v, want %v", seen, want)
		}
	}
	more()
	put("testing", "a2", 2)
	put("testing", "a3", 3) // a2 stood for a moment
	put("fresh", "d1", 4)   // a channel that was not there
	more("a2", "a3", "d1")
	more()
	// A branch that somebody has put elsewhere is looked at as a whole.
	git(t, r.Path(), "update-ref", "refs/heads/testing", git(t, r.Path(), "rev-parse", "refs/heads/fresh"))
	put("other", "e1", 5)
	more("d1", "e1")
}

// TestReferencesDamaged says so where a record cannot be read.
func TestReferencesDamaged(t *testing.T) {
	r := open(t, Options{MaxPacks: -1})
	record(t, r, sample("zlib", "1.3", "x86_64", 1))
	s := snapshot(t, r)
	var set objectSet
	bad, err := r.odb.apply(s.root, []edit{{path: RecordPath(s.target("zlib", "1.3", "x86_64")), hash: plumbing.NewHash(strings.Repeat("12", 20))}}, &set)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.store(&set); err != nil {
		t.Fatal(err)
	}
	git(t, r.Path(), "update-ref", "refs/heads/testing", git(t, r.Path(), "commit-tree", bad.String(), "-p", s.Commit(), "-m", "by hand"))
	if _, err := r.References(t.Context(), time.Now(), func([]byte) error { return nil }); err == nil {
		t.Error("a record that is not there is passed over")
	}
}
