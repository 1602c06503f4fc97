package results_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/results/resultstest"
)

func run(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// Whoever fetches while records are written and packs are melted together gets the
// whole, and so does a reader of ours.
func TestFetchBesideMaintenance(t *testing.T) {
	size := resultstest.Size{Packages: 60, Archs: 2, Versions: 3}
	path := resultstest.Copy(t, size)
	r, err := results.Open(path, results.Options{MaxPacks: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() {
		defer stop()
		for i, o := range resultstest.Next(size, 60) {
			if _, err := r.Record(t.Context(), o); err != nil {
				t.Error(err)
			}
			if i%10 == 9 {
				if err := r.Maintain(t.Context()); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for i, args := range [][]string{{}, {"--depth=2"}, {"--filter=blob:none"}} {
		wg.Go(func() {
			for n := 0; n == 0 || ctx.Err() == nil; n++ {
				into := filepath.Join(t.TempDir(), fmt.Sprint("clone", i, n))
				cmd := exec.Command("git", append(append([]string{"clone", "-q", "--bare"}, args...), "file://"+path, into)...)
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("%v: %v: %s", args, err, out)
					return
				}
				if out, err := exec.Command("git", "-C", into, "fsck", "--connectivity-only", "--no-dangling").CombinedOutput(); err != nil {
					t.Errorf("%v: %v: %s", args, err, out)
				}
			}
		})
	}
	wg.Wait()
	run(t, "-C", path, "fsck", "--strict", "--no-dangling")
	if out := run(t, "-C", path, "rev-list", "--count", resultstest.Channel); out != fmt.Sprint(size.Records()+60) {
		t.Errorf("there are %s commits", out)
	}
}

// Thousands of refs come into one file, and all that is there stays.
func TestManyRefs(t *testing.T) {
	path := resultstest.Copy(t, resultstest.Size{Packages: 20, Archs: 1})
	var in strings.Builder
	tip := run(t, "-C", path, "rev-parse", resultstest.Channel)
	for i := range 600 {
		fmt.Fprintf(&in, "create refs/quarry/vote/%d %s\n", i, tip)
	}
	cmd := exec.Command("git", "-C", path, "update-ref", "--stdin")
	cmd.Stdin = strings.NewReader(in.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	before := run(t, "-C", path, "for-each-ref")
	r, err := results.Open(path, results.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.Maintain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := run(t, "-C", path, "for-each-ref"); after != before {
		t.Errorf("the refs are %s", after)
	}
	if left, err := filepath.Glob(filepath.Join(path, "refs", "quarry", "vote", "*")); err != nil || len(left) > 0 {
		t.Errorf("%d are files of their own still, %v", len(left), err)
	}
	h, err := r.Record(t.Context(), resultstest.Next(resultstest.Size{Packages: 20, Archs: 1}, 1)[0])
	if err != nil {
		t.Fatal(err)
	}
	if got := run(t, "-C", path, "rev-parse", resultstest.Channel); got != h {
		t.Errorf("the branch is at %s and not at %s", got, h)
	}
}
