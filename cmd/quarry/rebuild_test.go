package main

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/queue"
	"github.com/Morphux/quarry/results"
)

// rebuilds are records of packages none of which is built twice alike, as with
// compilers that put a time into what they make.
type rebuilds struct {
	t     *testing.T
	repo  *results.Repo
	needs map[string][]string
	now   map[string]quarry.DepUsed
	n     int64
}

func (w *rebuilds) release(pkg string) quarry.Release {
	return quarry.Release{Package: pkg, Version: "1", Channel: "testing", Commit: strings.Repeat("a", 40), Time: time.Unix(1, 0),
		Archs: []string{"x86_64"}, Needs: w.needs[pkg]}
}

// build builds packages at the same time, each against what there was before.
func (w *rebuilds) build(nonces map[string]string) {
	w.t.Helper()
	before := map[string]quarry.DepUsed{}
	for pkg, d := range w.now {
		before[pkg] = d
	}
	for pkg, nonce := range nonces {
		w.n++
		b := quarry.Build{Number: w.n, Release: w.release(pkg), Arch: "x86_64", Nonce: nonce}
		b.Key = quarry.BuildKey(b.Target(), b.Commit, nonce)
		o := &quarry.Outcome{Build: b, Status: quarry.Succeeded, Started: time.Unix(w.n, 0), Ended: time.Unix(w.n+1, 0),
			Facts: &quarry.Facts{ABI: fmt.Sprintf("%064x", w.n)}, Artifact: &quarry.Artifact{SHA256: fmt.Sprintf("%064x", w.n)}}
		for _, need := range w.needs[pkg] {
			if d, ok := before[need]; ok {
				o.Deps = append(o.Deps, d)
			}
		}
		if _, err := w.repo.Record(w.t.Context(), o); err != nil {
			w.t.Fatal(err)
		}
		w.now[pkg] = quarry.DepUsed{Package: pkg, Version: "1", Artifact: o.Artifact.SHA256, ABI: o.Facts.ABI, Direct: true}
	}
}

// stale gives the nonces of what has to be built again.
func (w *rebuilds) stale() map[string]string {
	w.t.Helper()
	snap, err := w.repo.Snapshot("testing")
	if err != nil {
		w.t.Fatal(err)
	}
	list := map[string]string{}
	for pkg := range w.needs {
		why, change, err := records{snap}.Stale(w.release(pkg), "x86_64")
		if err != nil {
			w.t.Fatal(err)
		}
		if (why == "") != (change == "") {
			w.t.Errorf("%s: why %q, change %q", pkg, why, change)
		}
		if why != "" {
			list[pkg] = "abi-" + change
		}
	}
	return list
}

// TestRebuildsEnd: packages that need each other do not rebuild one another for
// ever, however their builds fall together, and a change still gets to all of them.
func TestRebuildsEnd(t *testing.T) {
	if change, ok := queue.Change("abi-x"); change != "x" || !ok {
		t.Fatal("what is rebuilt has another nonce than this test gives it")
	}
	for name, needs := range map[string]map[string][]string{
		"two":       {"lib": nil, "a": {"lib", "b"}, "b": {"lib", "a"}, "far": {"b"}},
		"three":     {"lib": nil, "a": {"lib", "c"}, "b": {"lib", "a"}, "c": {"lib", "b"}, "far": {"c"}},
		"all":       {"lib": nil, "a": {"lib", "b", "c"}, "b": {"lib", "a", "c"}, "c": {"a", "b"}, "far": {"a"}},
		"no circle": {"lib": nil, "a": {"lib"}, "b": {"a"}, "c": {"a", "b"}, "far": {"c"}},
	} {
		for _, together := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, together %v", name, together), func(t *testing.T) {
				repo, err := results.Open(filepath.Join(t.TempDir(), "results.git"), results.Options{})
				if err != nil {
					t.Fatal(err)
				}
				defer repo.Close()
				w := &rebuilds{t: t, repo: repo, needs: needs, now: map[string]quarry.DepUsed{}}
				for _, nonce := range []string{"", "again"} { // then each against all that it needs
					all := map[string]string{}
					for pkg := range needs {
						all[pkg] = nonce
					}
					w.build(all)
				}
				for _, by := range []string{"again", "lib", "a"} {
					if by != "again" {
						w.build(map[string]string{by: "somebody"})
					}
					built := map[string]int{}
					for {
						now := w.stale()
						if len(now) == 0 {
							break
						}
						if !together {
							first := slices.Sorted(maps.Keys(now))[0]
							now = map[string]string{first: now[first]}
						}
						w.build(now)
						for pkg := range now {
							if built[pkg]++; built[pkg] > 5 {
								t.Fatalf("after %s was built, %s is built again and again: %v", by, pkg, built)
							}
						}
					}
					for pkg := range needs {
						if by != "again" && built[pkg] == 0 && pkg != "lib" && pkg != by {
							t.Errorf("%s was built, and %s not again: %v", by, pkg, built)
						}
					}
				}
			})
		}
	}
}
