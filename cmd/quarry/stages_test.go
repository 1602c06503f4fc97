package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/results"
)

// TestRecordable: whatever passes is taken by the results repository, and what
// is not taken there is stopped here, where it still can be the recipe's fault.
// A result that cannot be recorded is tried for ever, and three of them pause
// the farm.
func TestRecordable(t *testing.T) {
	repo, err := results.Open(filepath.Join(t.TempDir(), "results.git"), results.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	outcome := func(n int64, files []quarry.File) *quarry.Outcome {
		r := quarry.Release{Package: "p", Version: "1", Channel: "testing", Commit: strings.Repeat("a", 40), Time: time.Unix(1, 0)}
		b := quarry.Build{Number: n, Release: r, Arch: "x86_64"}
		b.Key = quarry.BuildKey(b.Target(), b.Commit, fmt.Sprint(n))
		return &quarry.Outcome{Build: b, Status: quarry.Succeeded, Started: time.Unix(1, 0), Ended: time.Unix(2, 0),
			Facts: &quarry.Facts{Files: files}, Artifact: &quarry.Artifact{SHA256: strings.Repeat("b", 64)}}
	}
	long := func(i, n int) string { return fmt.Sprintf("lib%07d", i) + strings.Repeat("x", n-10) }
	libraries := func(n int) (list []quarry.File) {
		for i := range n {
			list = append(list, quarry.File{Path: "/usr/lib/" + long(i, 20), Kind: quarry.KindRegular, Class: quarry.ClassShared,
				ELF: &quarry.ELF{Arch: "x86_64", Type: "dyn", Soname: long(i, 250)}})
		}
		return list
	}
	paths := func(n int) (list []quarry.File) {
		for i := range n {
			list = append(list, quarry.File{Path: "/usr/share/" + long(i, 1200), Kind: quarry.KindRegular, SHA256: strings.Repeat("c", 64)})
		}
		return list
	}
	for i, tt := range []struct {
		what  string
		files []quarry.File
		want  string
	}{
		{"a usual package", libraries(20), ""},
		{"many long sonames", libraries(90_000), "the record of what it installed"},
		{"many long paths", paths(190_000), "the list of the files"},
		{"fewer long paths", paths(20_000), ""},
	} {
		o := outcome(int64(i+1), tt.files)
		err := recordable(o)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.what, err)
		}
		if err == nil {
			if _, err := repo.Record(t.Context(), o); err != nil {
				t.Errorf("%s passed, and is refused: %v", tt.what, err)
			}
		}
	}
	late := outcome(9, nil)
	late.Build.Time = time.Unix(1<<40, 0)
	if recordable(late) == nil {
		t.Error("a time that no record can hold passed")
	}
}
