package main

import (
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/Morphux/quarry/results"
)

// TestForgottenAtStart: a build whose record stands is found before a queue that has
// lost all knows how many there were.
func TestForgottenAtStart(t *testing.T) {
	repo, err := results.Open(filepath.Join(t.TempDir(), "results.git"), results.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	if _, err := repo.Record(t.Context(), dbOutcome("zlib", "1.3.1", "x86_64", 7, nil)); err != nil {
		t.Fatal(err)
	}
	st := &stages{results: repo, index: repo.Index(), log: slog.New(slog.DiscardHandler)}
	find := st.forgotten(queueAtRest(t))
	if b, ok := find(t.Context(), 7); !ok || b.Package != "zlib" || b.Number != 7 {
		t.Errorf("build 7 is %+v, %v", b, ok)
	}
	if b, ok := find(t.Context(), 8); ok {
		t.Errorf("build 8 is %+v", b)
	}
}
