package provenance

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/results/resultstest"
)

// farmOf is a results repository whose successes are attested.
func farmOf(t *testing.T) (*results.Repo, func(channel string, rec quarry.Target) error) {
	t.Helper()
	s := signer(t)
	r, err := results.Open(filepath.Join(t.TempDir(), "results.git"), results.Options{
		Sign: s.SignCommit, Prove: func(rec *results.Record) (results.Provenance, error) { return Prove(rec, farm, s) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r, func(channel string, at quarry.Target) error {
		snap, err := r.Snapshot(channel)
		if err != nil {
			t.Fatal(err)
		}
		p, err := snap.Provenance(at.Package, at.Version, at.Arch)
		if err != nil {
			return err
		}
		rec, err := snap.Get(at.Package, at.Version, at.Arch)
		if err != nil {
			return err
		}
		_, err = Verify(p, rec, signers(s), time.Now())
		return err
	}
}

func put(t *testing.T, r *results.Repo, o *quarry.Outcome) quarry.Target {
	t.Helper()
	if _, err := r.Record(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	return o.Build.Target()
}

// The statement goes wherever its record goes: to other channels and back, and it
// stays beside the success when a later build fails.
func TestCarried(t *testing.T) {
	r, check := farmOf(t)
	at := put(t, r, outcome(0, 1))
	if err := check("testing", at); err != nil {
		t.Error(err)
	}
	promote := func(force bool) {
		t.Helper()
		if _, err := r.Promote(t.Context(), results.Promotion{From: "testing", To: "stable", Releases: []quarry.Release{{Package: at.Package, Version: at.Version}}, Force: force}); err != nil {
			t.Fatal(err)
		}
	}
	promote(false)
	if err := check("stable", at); err != nil {
		t.Errorf("promoted: %v", err)
	}
	put(t, r, outcome(0, 2)) // a rebuild, of the next number
	promote(false)
	if err := check("stable", at); err != nil {
		t.Errorf("promoted again: %v", err)
	}
	if _, err := r.Rollback(t.Context(), results.Rollback{Channel: "stable"}); err != nil {
		t.Fatal(err)
	}
	if err := check("stable", at); err != nil {
		t.Errorf("rolled back: %v", err)
	}
	// What was not there before has no statement after, either.
	if _, err := r.Rollback(t.Context(), results.Rollback{Channel: "stable", Commit: first(t, r, "stable"), Force: true}); err != nil {
		t.Fatal(err)
	}
	if err := check("stable", at); !errors.Is(err, results.ErrNotFound) {
		t.Errorf("taken back: %v", err)
	}
	failed := resultstest.Failure(0, 0, "x86_64", 3)
	put(t, r, failed)
	if err := check("testing", at); err != nil {
		t.Errorf("after a failure: %v", err)
	}
}

// A success that nobody attests does not stand beside the statement on another.
func TestNotAttested(t *testing.T) {
	r, _ := farmOf(t)
	at := put(t, r, outcome(0, 1))
	path := r.Path()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	plain, err := results.Open(path, results.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	put(t, plain, outcome(0, 2))
	snap, err := plain.Snapshot("testing")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := snap.Provenance(at.Package, at.Version, at.Arch); !errors.Is(err, results.ErrNotFound) {
		t.Errorf("its provenance is %v", err)
	}
}

// What a group has built is attested when it was built, and lands with it.
func TestGroup(t *testing.T) {
	r, check := farmOf(t)
	put(t, r, outcome(0, 1)) // so that the landing counts another revision
	o := outcome(0, 2)
	o.Artifact.SHA256 = strings.Repeat("a2", 32)
	o.Build.Group, o.Build.Stage = "greet", "20260314-3f9a0c12"
	sub := quarry.Submission{Group: "greet", Channel: "testing", ID: o.Build.Stage, At: time.Now(),
		Members: []quarry.Member{{Package: o.Build.Package, Version: o.Build.Version, Commit: o.Build.Commit, Archs: []string{"x86_64"}}}}
	if err := r.Submit(t.Context(), sub); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Stage(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	staged, err := r.Staged("testing", "greet")
	if err != nil {
		t.Fatal(err)
	}
	at := o.Build.Target()
	before, err := staged.Provenance(at.Package, at.Version, at.Arch)
	if err != nil {
		t.Fatal(err)
	}
	// Submitted once more, it keeps what it has built.
	sub.ID = "20260315-3f9a0c13"
	if err := r.Submit(t.Context(), sub); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Land(t.Context(), "testing", "greet", sub.ID); err != nil {
		t.Fatal(err)
	}
	if err := check("testing", at); err != nil {
		t.Errorf("landed: %v", err)
	}
	snap, err := r.Snapshot("testing")
	if err != nil {
		t.Fatal(err)
	}
	if after, err := snap.Provenance(at.Package, at.Version, at.Arch); err != nil || !bytes.Equal(after.Statement, before.Statement) {
		t.Errorf("another statement has landed: %v", err)
	}
	if rec, err := snap.Get(at.Package, at.Version, at.Arch); err != nil || rec.Revision != 2 {
		t.Errorf("the record is %+v, %v", rec, err)
	}
}

// first is the first commit of a channel.
func first(t *testing.T, r *results.Repo, channel string) string {
	t.Helper()
	s, err := r.Snapshot(channel)
	if err != nil {
		t.Fatal(err)
	}
	var none results.Snapshot
	list, err := s.Since(t.Context(), &none)
	if err != nil {
		t.Fatal(err)
	}
	return list[0].ID
}
