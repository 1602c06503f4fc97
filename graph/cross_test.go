package graph

import (
	"strings"
	"testing"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/recipe"
)

func TestCanCross(t *testing.T) {
	broken := func(b bool) quarry.Traits {
		if b {
			return quarry.Traits{Broken: "for a test"}
		}
		return quarry.Traits{}
	}
	// dxpb's truth table, row by row: broken, broken now, can cross.
	for _, row := range []struct{ broken, now, can bool }{
		{false, true, false},
		{false, false, true},
		{true, true, true},
		{true, false, true},
	} {
		if got := CanCross(broken(row.broken), broken(row.now)); got != row.can {
			t.Errorf("broken %v, broken now %v: can cross %v", row.broken, row.now, got)
		}
		// First of all, and once more when it is read as for a cross build.
		for _, no := range [][2]bool{{true, false}, {false, true}, {true, true}} {
			native, crossed := broken(row.broken), broken(row.now)
			native.NoCross, crossed.NoCross = no[0], no[1]
			if CanCross(native, crossed) {
				t.Errorf("broken %v, broken now %v: can cross in spite of nocross %v", row.broken, row.now, no)
			}
		}
	}
}

// The table as recipes come to it: settings that hold on conditions.
func TestCanCrossConditions(t *testing.T) {
	for _, tt := range []struct {
		ext  string
		can  string // archs of x86_64, aarch64 and armv7l that it can be cross built for
		name string
	}{
		{`{}`, "x86_64 aarch64 armv7l", "nothing said"},
		{`{"nocross": true}`, "", "never"},
		{`{"broken": true}`, "x86_64 aarch64 armv7l", "broken anyhow: not for crossing"},
		{`{"when": [{"cross": true, "broken": "tests run"}]}`, "", "broken when crossed"},
		{`{"when": [{"cross": true, "arch": "arm*", "broken": "tests run"}]}`, "x86_64 aarch64", "broken when crossed for one target"},
		{`{"when": [{"cross": true, "arch": "aarch64", "nocross": true}]}`, "x86_64 armv7l", "nocross inside of a cross condition"},
		{`{"when": [{"arch": "aarch64", "nocross": true}]}`, "x86_64 armv7l", "nocross for a target"},
		{`{"nocross": true, "when": [{"arch": "armv7l", "nocross": false}]}`, "armv7l", "taken back for a target"},
		{`{"nocross": true, "when": [{"cross": true, "nocross": false}]}`, "", "taken back too late: the first look forbids it"},
		{`{"broken": true, "when": [{"cross": true, "broken": false}]}`, "x86_64 aarch64 armv7l", "only broken when not crossed"},
		{`{"when": [{"cross": false, "broken": true}, {"cross": true, "broken": true}]}`, "x86_64 aarch64 armv7l", "broken both ways"},
		{`{"when": [{"arch": "armv7l", "broken": "here"}, {"cross": true, "broken": "there"}]}`, "armv7l", "broken now, and natively on one"},
	} {
		r, err := recipe.Parse([]byte(`{"package": {"name": "p", "version": "1", "description": "d"}, "compilation": {}, "quarry": ` + tt.ext + `}`))
		if err != nil {
			t.Fatal(err)
		}
		var can []string
		for _, arch := range []string{"x86_64", "aarch64", "armv7l"} {
			if CanCross(r.Traits(arch, false), r.Traits(arch, true)) {
				can = append(can, arch)
			}
		}
		if got := strings.Join(can, " "); got != tt.can {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.can)
		}
	}
}

func TestParseWorker(t *testing.T) {
	for s, want := range map[string]Worker{
		"x86_64:x86_64":              {"x86_64", "x86_64", 100, false},
		"x86_64:aarch64":             {"x86_64", "aarch64", 100, true},
		"x86_64:aarch64:300":         {"x86_64", "aarch64", 300, true},
		"x86_64:i686:10:false":       {"x86_64", "i686", 10, false},
		"x86_64:x86_64:0:true":       {"x86_64", "x86_64", 0, true},
		"x86_64:aarch64::true":       {"x86_64", "aarch64", 100, true},
		"vax:an-arch_nobody:1000000": {"vax", "an-arch_nobody", 1000000, true},
	} {
		got, err := ParseWorker(s)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", s, got, err)
		}
	}
	for s, want := range map[string]string{
		"":                         "has 1 parts",
		"x86_64":                   "has 1 parts",
		"a:b:1:true:x":             "has 5 parts",
		":b":                       "does not fit",
		"a:-b":                     "does not fit",
		"a:noarch":                 "names noarch",
		"a:b:-1":                   "has the cost",
		"a:b:+1":                   "has the cost",
		"a:b: 1":                   "has the cost",
		"a:b:1000001":              "has the cost",
		"a:b:1e3":                  "has the cost",
		"a:b:1:yes":                "neither true nor false",
		"a:b:1:":                   "neither true nor false",
		"a b:c":                    "does not fit",
		"a:b:99999999999999999999": "has the cost",
	} {
		if _, err := ParseWorker(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", s, err, want)
		}
	}
	if _, err := ParseWorkers(nil); err == nil {
		t.Error("no workers are none to build with")
	}
	if all, err := ParseWorkers([]string{"a:b", "c:c:5"}); err != nil || len(all) != 2 {
		t.Error(all, err)
	}
}

func TestCheapest(t *testing.T) {
	parse := func(s string) []Worker {
		all, err := ParseWorkers(strings.Fields(s))
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	for _, tt := range []struct {
		workers, arch string
		cross         bool
		want          int
	}{
		{"x86_64:x86_64 aarch64:aarch64", "aarch64", true, 1},
		{"x86_64:aarch64:50 aarch64:aarch64:90", "aarch64", true, 0},
		{"x86_64:aarch64:50 aarch64:aarch64:90", "aarch64", false, 1}, // cannot cross: native, whatever it costs
		{"x86_64:aarch64:50", "aarch64", false, -1},
		{"x86_64:aarch64:50", "x86_64", true, -1},
		{"x86_64:aarch64:50 aarch64:aarch64:90", "noarch", false, 0}, // what is noarch fits all
		{"x86_64:aarch64:90 aarch64:aarch64:90", "aarch64", true, 1}, // as cheap: native
		{"a:b:7:false c:b:7:false", "b", false, 0},                   // as cheap: the first
		{"x86_64:i686:10:false i686:i686:500", "i686", false, 0},
		{"a:a", "b", true, -1},
	} {
		if got := Cheapest(parse(tt.workers), tt.arch, tt.cross); got != tt.want {
			t.Errorf("%s for %s, cross %v: %d, want %d", tt.workers, tt.arch, tt.cross, got, tt.want)
		}
	}
}

func FuzzParseWorker(f *testing.F) {
	for _, s := range []string{"x86_64:aarch64:300", "a:b::true", "a:b:1:false", ":::", "a:b:0x1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		w, err := ParseWorker(s)
		if err != nil {
			return
		}
		again, err := ParseWorker(w.String())
		if err != nil || again != w {
			t.Errorf("%q is %+v, written as %q, read as %+v, %v", s, w, w.String(), again, err)
		}
		if w.Cost < 0 || w.Cost > MaxCost || !w.Fits(quarry.Noarch, false) || !w.Fits(w.Target, true) || w.Fits(w.Target, false) == w.Cross {
			t.Errorf("%+v", w)
		}
	})
}
