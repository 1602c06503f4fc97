package resultstest

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/Morphux/quarry/results"
)

// What is made is what the farm would have made: git finds nothing wrong with it,
// and Quarry reads it and writes on.
func TestFarm(t *testing.T) {
	t.Setenv("QUARRY_CACHE", t.TempDir())
	size := Size{Packages: 60, Archs: 2, Versions: 3}
	master := Farm(t, size)
	if again := Farm(t, size); again != master {
		t.Errorf("made again at %s", again)
	}
	if out, err := exec.Command("git", "-C", master, "fsck", "--strict").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	path := Copy(t, size)
	r, err := results.Open(path, results.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s, err := r.Snapshot(Channel)
	if err != nil {
		t.Fatal(err)
	}
	for i := range size.Packages {
		versions, err := s.Versions(Name(i), Archs[1])
		want := size.Versions
		if Fails(i) {
			want-- // the newest is none that can be installed
			if _, err := s.Failure(Name(i), Version(2), Archs[1]); err != nil {
				t.Error(err)
			}
		}
		if err != nil || len(versions) != want {
			t.Errorf("%s has the versions %v, %v: there are to be %d", Name(i), versions, err, want)
		}
		rec, err := s.Get(Name(i), Version(0), Archs[0])
		if err != nil {
			t.Fatal(err)
		}
		if rec.Artifact != Artifact(rec.Package, rec.Version, rec.Arch) || len(rec.Recipe.Needed) != len(Needs(i)) {
			t.Errorf("%s is not as it was made", rec.Target())
		}
		for _, name := range rec.Recipe.Needed {
			if _, err := s.Latest(name, Archs[1]); err != nil {
				t.Errorf("%s needs %s: %v", rec.Package, name, err)
			}
		}
	}
	last, err := r.LastBuild()
	if err != nil || last != int64(size.Records()) {
		t.Errorf("the last build is %d, %v", last, err)
	}
	for _, o := range Next(size, 5) {
		if _, err := r.Record(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("git", "-C", master, "log", "--oneline", Channel).Output()
	if n := strings.Count(string(out), "\n"); err != nil || n != size.Records() {
		t.Errorf("the history has %d commits, %v: one for each of %d records is right, and none of the copy's", n, err, size.Records())
	}
}

// A copy is whole also where it cannot share the packs, as the cache is on another
// file system.
func TestCopyToAnotherFileSystem(t *testing.T) {
	cache, err := os.MkdirTemp("/dev/shm", "quarry-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(cache) })
	t.Setenv("QUARRY_CACHE", cache)
	size := Size{Packages: 5, Archs: 1}
	path := Copy(t, size)
	if out, err := exec.Command("git", "-C", path, "fsck", "--strict").CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	r, err := results.OpenReader(path, Channel)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Get(Name(0), Version(0), Archs[0]); err != nil {
		t.Error(err)
	}
}

// BenchmarkFarm makes what other benchmarks use, where the cache does not have it yet.
func BenchmarkFarm(b *testing.B) {
	for _, size := range Measured() {
		b.Run(fmt.Sprintf("%dx%d", size.Packages, size.Versions), func(b *testing.B) {
			for range b.N {
				Farm(b, size)
			}
		})
	}
}
