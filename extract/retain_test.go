package extract

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestRetain(t *testing.T) {
	s := newStore(t)
	put := func(text string) string {
		t.Helper()
		art, err := s.Put(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		return art.SHA256
	}
	one, two := put("one"), put("two")
	old := time.Now().Add(-48 * time.Hour)
	for _, sha := range []string{one, two} {
		if err := os.Chtimes(s.Path(sha), old, old); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Publish(two, filepath.Join(filepath.Dir(s.dir), "output"), "two"); err != nil {
		t.Fatal(err)
	}
	for _, odd := range []string{"ab/x.tar.zst", "zz/" + one + ".tar.zst", one[:2] + "/" + one + ".part"} {
		os.MkdirAll(filepath.Dir(filepath.Join(s.dir, odd)), 0o755)
		if err := os.WriteFile(filepath.Join(s.dir, odd), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got := map[string]Stored{}
	if err := s.Each(t.Context(), func(a Stored) error { got[hex.EncodeToString(a.SHA256[:])] = a; return nil }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[one].Size != 3 || got[one].Linked || !got[two].Linked || got[one].Used.Unix() != old.Unix() {
		t.Errorf("got %+v", got)
	}

	day := time.Now().Add(-24 * time.Hour)
	if put("one") != one { // made again, which makes it new
		t.Fatal("another digest")
	}
	if gone, err := s.RemoveUnused(one, day); gone || err != nil {
		t.Errorf("what was made again: %v, %v", gone, err)
	}
	if gone, err := s.RemoveUnused(two, day); !gone || err != nil {
		t.Errorf("what is old: %v, %v", gone, err)
	}
	if gone, err := s.RemoveUnused(two, day); gone || err != nil {
		t.Errorf("what is gone: %v, %v", gone, err)
	}
	if _, err := s.RemoveUnused("../x", day); err == nil {
		t.Error("what is no hash is removed")
	}
}

// TestRetainRace makes artifacts again while others remove them for being old: what
// was made is there.
func TestRetainRace(t *testing.T) {
	s := newStore(t)
	art, err := s.Put(strings.NewReader("again"))
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		old := time.Now().Add(-48 * time.Hour)
		if err := os.Chtimes(s.Path(art.SHA256), old, old); err != nil {
			t.Fatal(err)
		}
		var both sync.WaitGroup
		both.Go(func() {
			if _, err := s.RemoveUnused(art.SHA256, time.Now().Add(-time.Hour)); err != nil {
				t.Error(err)
			}
		})
		both.Go(func() {
			if _, err := s.Put(strings.NewReader("again")); err != nil {
				t.Error(err)
			}
		})
		both.Wait()
		if err := s.Verify(art.SHA256); err != nil {
			t.Fatal(err)
		}
	}
}
