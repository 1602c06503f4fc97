package queue

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/google/go-cmp/cmp"
)

var (
	t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	t1 = t0.Add(time.Hour)
)

func rel(version, commit string, pushed time.Time, archs ...string) quarry.Release {
	return quarry.Release{Package: "zlib", Version: version, Channel: "testing", Commit: commit, Pushed: pushed, Archs: archs}
}

func known(number int64, r quarry.Release, arch string, s quarry.State, change ...func(*Known)) Known {
	k := Known{Build: quarry.Build{Number: number, Release: r, Arch: arch, State: s}}
	k.Key = quarry.BuildKey(k.Target(), k.Commit, "")
	for _, f := range change {
		f(&k)
	}
	return k
}

func TestDecide(t *testing.T) {
	a, b := rel("1", "aaaa", t0, "x86_64"), rel("1", "bbbb", t1, "x86_64")
	again := rel("1", "aaaa", t1, "x86_64")
	rebuild := func(k *Known) { k.Nonce = "n" }
	told := func(s quarry.State) func(*Known) { return func(k *Known) { k.Stop = s } }
	late := func(k *Known) { k.Recorded = true }
	ref := func(s quarry.State, source string) map[string]quarry.RecordRef {
		return map[string]quarry.RecordRef{"x86_64": {Status: s, Source: source}}
	}
	for _, c := range []struct {
		name     string
		releases []quarry.Release
		problems []Problem
		records  map[string]quarry.RecordRef
		known    []Known
		want     string
	}{
		{"new", []quarry.Release{a}, nil, nil, nil, "new x86_64 aaaa"},
		{"two archs", []quarry.Release{rel("1", "aaaa", t0, "x86_64", "riscv64")}, nil, nil, nil, "new x86_64 aaaa; new riscv64 aaaa"},
		{"one of two", []quarry.Release{rel("1", "aaaa", t0, "x86_64", "riscv64")}, nil, ref(quarry.Succeeded, "aaaa"), nil, "new riscv64 aaaa"},
		{"recorded", []quarry.Release{a}, nil, ref(quarry.Succeeded, "aaaa"), nil, ""},
		{"failed is recorded", []quarry.Release{a}, nil, ref(quarry.Failed, "aaaa"), nil, ""},
		{"record of another commit", []quarry.Release{b}, nil, ref(quarry.Succeeded, "aaaa"), nil, "new x86_64 bbbb"},
		{"under way", []quarry.Release{a}, nil, nil, []Known{known(1, a, "x86_64", quarry.Running)}, ""},
		{"waiting is under way", []quarry.Release{a}, nil, nil, []Known{known(1, a, "x86_64", quarry.Waiting)}, ""},
		{"recording is under way", []quarry.Release{a}, nil, nil, []Known{known(1, a, "x86_64", quarry.Recording)}, ""},
		{"moved on", []quarry.Release{b}, nil, nil, []Known{known(1, a, "x86_64", quarry.Running)},
			"stop 1 branch zlib-1 moved on to bbbb; new x86_64 bbbb"},
		{"moved on and back", []quarry.Release{again}, nil, nil,
			[]Known{known(1, a, "x86_64", quarry.Running, told(quarry.Obsolete)), known(2, b, "x86_64", quarry.Queued)},
			"stop 2 branch zlib-1 moved on to aaaa; new x86_64 aaaa"},
		{"moved on, told already", []quarry.Release{b}, nil, nil,
			[]Known{known(1, a, "x86_64", quarry.Running, told(quarry.Obsolete)), known(2, b, "x86_64", quarry.Queued)}, ""},
		{"gone", nil, nil, nil, []Known{known(1, a, "x86_64", quarry.Queued)}, "stop 1 branch zlib-1 is gone"},
		{"gone, ended before", nil, nil, nil, []Known{known(1, a, "x86_64", quarry.Failed)}, ""},
		{"unreadable branch", nil, []Problem{{"zlib", "zlib-1", errors.New("eio")}}, nil, []Known{known(1, a, "x86_64", quarry.Queued)}, ""},
		{"unreadable package", nil, []Problem{{"zlib", "", errors.New("eio")}}, nil, []Known{known(1, a, "x86_64", quarry.Queued)}, ""},
		{"another branch unreadable", nil, []Problem{{"zlib", "zlib-2", errors.New("eio")}}, nil, []Known{known(1, a, "x86_64", quarry.Queued)},
			"stop 1 branch zlib-1 is gone"},
		{"arch no longer wanted", []quarry.Release{rel("1", "aaaa", t0, "riscv64")}, nil, nil, []Known{known(1, a, "x86_64", quarry.Queued)},
			"stop 1 zlib-1 is no longer wanted for x86_64; new riscv64 aaaa"},
		{"errored stays", []quarry.Release{a}, nil, nil, []Known{known(1, a, "x86_64", quarry.Errored)}, ""},
		{"cancelled stays", []quarry.Release{a}, nil, nil, []Known{known(1, a, "x86_64", quarry.Cancelled)}, ""},
		{"being cancelled stays", []quarry.Release{a}, nil, nil, []Known{known(1, a, "x86_64", quarry.Running, told(quarry.Cancelled))}, ""},
		{"errored and pushed again", []quarry.Release{again}, nil, nil, []Known{known(1, a, "x86_64", quarry.Errored)}, "new x86_64 aaaa"},
		{"errored, and a new commit", []quarry.Release{b}, nil, nil, []Known{known(1, a, "x86_64", quarry.Errored)}, "new x86_64 bbbb"},
		{"errored, rebuilt, record lost", []quarry.Release{a}, nil, nil,
			[]Known{known(1, a, "x86_64", quarry.Errored), known(2, a, "x86_64", quarry.Succeeded, rebuild)}, "new x86_64 aaaa"},
		{"errored, rebuilt, cancelled", []quarry.Release{a}, nil, nil,
			[]Known{known(2, a, "x86_64", quarry.Cancelled, rebuild), known(1, a, "x86_64", quarry.Errored)}, ""},
		{"record gone from git", []quarry.Release{a}, nil, nil, []Known{known(1, a, "x86_64", quarry.Succeeded)}, "new x86_64 aaaa"},
		{"recorded while planning", []quarry.Release{a}, nil, nil, []Known{known(1, a, "x86_64", quarry.Failed, late)}, ""},
		{"obsolete is no answer", []quarry.Release{a}, nil, nil, []Known{known(1, a, "x86_64", quarry.Obsolete)}, "new x86_64 aaaa"},
		{"recorded, but the journal lost that", []quarry.Release{a}, nil, ref(quarry.Succeeded, "aaaa"), []Known{known(1, a, "x86_64", quarry.Queued)},
			"done 1 succeeded"},
		{"recorded, and running again", []quarry.Release{a}, nil, ref(quarry.Succeeded, "aaaa"), []Known{known(1, a, "x86_64", quarry.Running)}, ""},
		{"a rebuild of what is recorded", []quarry.Release{a}, nil, ref(quarry.Succeeded, "aaaa"), []Known{known(1, a, "x86_64", quarry.Queued, rebuild)}, ""},
		{"a rebuild is under way", []quarry.Release{a}, nil, nil, []Known{known(1, a, "x86_64", quarry.Queued, rebuild)}, ""},
		{"older push first", []quarry.Release{rel("2", "cccc", t1, "x86_64"), rel("1", "dddd", t0, "x86_64")}, nil, nil, nil,
			"new x86_64 dddd; new x86_64 cccc"},
	} {
		t.Run(c.name, func(t *testing.T) {
			views, err := Survey("zlib", c.releases, c.problems, func(string) (Records, error) { return table(c.records), nil })
			if err != nil {
				t.Fatal(err)
			}
			p := views["zlib"].Decide(c.known)
			got := ""
			say := func(format string, args ...any) {
				if got != "" {
					got += "; "
				}
				got += fmt.Sprintf(format, args...)
			}
			for _, s := range p.Stop {
				say("stop %d %s", s.Number, s.Reason)
			}
			for _, d := range p.Done {
				say("done %d %s", d.Number, d.Ref.Status)
			}
			for _, w := range p.New {
				say("new %s %s", w.Arch, w.Release.Commit)
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// table is records of zlib 1 by arch.
type table map[string]quarry.RecordRef

func (m table) Lookup(_, version, arch string) (quarry.RecordRef, bool, error) {
	ref, ok := m[arch]
	return ref, ok && version == "1", nil
}

func (m table) Resolve(dep, arch string) (quarry.DepUsed, bool, error) {
	return quarry.DepUsed{}, m[arch].Status == quarry.Succeeded, nil
}

func (m table) Stale(r quarry.Release, arch string) (string, string, error) { return "", "", nil }

// TestSurveyBad: a release that cannot be one is a problem of its own.
func TestSurveyBad(t *testing.T) {
	good := rel("1", "aaaa", t0, "x86_64")
	bad := good
	bad.Package, bad.Version = "../x", "1"
	none := rel("2", "", t0, "x86_64")
	arch := rel("3", "aaaa", t0, "-x")
	late := rel("4", "aaaa", t0, "x86_64")
	late.Time = time.Unix(253402400000, 0) // the year 10000, which JSON cannot hold
	views, err := Survey("", []quarry.Release{bad, none, good, arch, late}, nil, func(string) (Records, error) { return table(nil), nil })
	if err != nil {
		t.Fatal(err)
	}
	v := views["zlib"]
	if len(v.Wants) != 1 || len(v.Releases) != 1 || len(v.Problems) != 3 || len(views["../x"].Problems) != 1 {
		t.Errorf("got %+v", v)
	}
	if _, err := Survey("", []quarry.Release{good}, nil, func(string) (Records, error) { return nil, errors.New("no such repository") }); err == nil ||
		err.Error() != "cannot read the records of channel testing: no such repository" {
		t.Errorf("got %v", err)
	}
}

// What a recipe says not to build on an arch is no wish there, and is told.
func TestSurveyDeclined(t *testing.T) {
	r := rel("1", "aaaa", t0, "x86_64", "aarch64", "s390x")
	r.Needs = []string{"a"}
	r.Traits = map[string]quarry.Traits{
		"aarch64": {Broken: "no barriers"}, "s390x": {Restricted: "its licence", Broken: "too"},
		"x86_64": {Needs: []string{"x"}, HostNeeds: []string{"a", "h"}},
	}
	views, err := Survey("", []quarry.Release{r}, nil, func(string) (Records, error) { return table(nil), nil })
	if err != nil {
		t.Fatal(err)
	}
	v := views["zlib"]
	if len(v.Wants) != 1 || v.Wants[0].Arch != "x86_64" || strings.Join(v.Wants[0].Unmet, " ") != "a x h" {
		t.Errorf("wants %+v", v.Wants)
	}
	if len(v.Declined) != 2 || v.Declined[0].Reason != "broken: no barriers" || v.Declined[1].Reason != "restricted: its licence" {
		t.Errorf("declined %+v", v.Declined)
	}
	k := Known{Build: quarry.Build{Number: 7, Release: r, Arch: "aarch64", State: quarry.Queued}}
	if p := v.Decide([]Known{k}); len(p.Stop) != 1 || !strings.Contains(p.Stop[0].Reason, "zlib-1 is not to be built for aarch64, broken: no barriers") {
		t.Errorf("plan %+v", p)
	}
}

func TestDepNames(t *testing.T) {
	for dep, want := range map[string][]string{
		"zlib":            {"zlib"},
		"zlib-1.3.1":      {"zlib-1.3.1", "zlib"},
		"gtk-doc-1.33-p1": {"gtk-doc-1.33-p1", "gtk-doc-1.33", "gtk-doc", "gtk"},
		"zlib >= 1.2":     {"zlib"},
		"a-b<1-2":         {"a-b"},
		"-x":              {"-x"},
		"":                {""},
	} {
		if diff := cmp.Diff(want, depNames(dep)); diff != "" {
			t.Errorf("%q: %s", dep, diff)
		}
	}
	for _, c := range []struct {
		dep, name, version string
		want               bool
	}{
		{"zlib", "zlib", "1", true}, {"zlib-1", "zlib", "1", true}, {"zlib-1", "zlib", "2", false},
		{"gtk-doc-1", "gtk", "doc-1", true}, {"gtk-doc-1", "gtk-doc", "1", true}, {"gtk-doc-1", "gtk", "1", false},
		{"zlib>=9", "zlib", "1", true}, {"zlib>=9", "zli", "b", false},
	} {
		if got := depMayMean(c.dep, c.name, c.version); got != c.want {
			t.Errorf("%q by %s %s: got %t", c.dep, c.name, c.version, got)
		}
	}
}

// damaged has one record that cannot be read.
type damaged struct{ table }

func (d damaged) Lookup(pkg, version, arch string) (quarry.RecordRef, bool, error) {
	if pkg == "bad" {
		return quarry.RecordRef{}, false, errors.New("it has no schema")
	}
	return d.table.Lookup(pkg, version, arch)
}

func (d damaged) Resolve(dep, arch string) (quarry.DepUsed, bool, error) {
	if dep == "bad" {
		return quarry.DepUsed{}, false, errors.New("it has no schema")
	}
	return d.table.Resolve(dep, arch)
}

// TestSurveyDamaged: one bad record stops no other release, as one bad row has
// stopped other farms.
func TestSurveyDamaged(t *testing.T) {
	good, bad, needs := rel("1", "aaaa", t0, "x86_64"), rel("1", "bbbb", t0, "x86_64"), rel("2", "cccc", t0, "x86_64")
	bad.Package = "bad"
	needs.Needs = []string{"bad"}
	releases := []quarry.Release{good, bad, needs}
	views, err := Survey("", releases, nil, func(string) (Records, error) { return damaged{}, nil })
	if err != nil {
		t.Fatal(err)
	}
	z, b := views["zlib"], views["bad"]
	if len(z.Wants) != 1 || len(z.Problems) != 1 || z.Problems[0].Branch != "zlib-2" || len(b.Wants) != 0 || len(b.Problems) != 1 {
		t.Errorf("got %+v and %+v", z, b)
	}
	// A full disk or too many open files are no record's fault.
	full := func(string) (Records, error) { return nil, fmt.Errorf("reading: %w", syscall.EMFILE) }
	if _, err := Survey("", releases, nil, full); err == nil {
		t.Error("what is farm-wide became a problem of one branch")
	}
}
