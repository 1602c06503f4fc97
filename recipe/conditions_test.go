package recipe

import (
	"strings"
	"testing"

	"github.com/Morphux/quarry"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func withQuarry(ext string) []byte {
	return []byte(`{"package": {"name": "pkg", "version": "1.0", "description": "A package"}, "compilation": {}, "quarry": ` + ext + `}`)
}

func TestTraits(t *testing.T) {
	r, err := Parse(withQuarry(`{
		"provides": ["awk", "sh-1.0"],
		"memory": "1G",
		"dependencies": {"needed": ["a"], "build": ["b>=2"], "host": ["h"], "target": ["t"]},
		"when": [
			{"arch": "arm*", "broken": "no barriers", "dependencies": {"needed": ["a", "arm"]}},
			{"arch": ["armv7l", "i?86"], "broken": false, "restricted": true},
			{"cross": true, "nocross": "runs what it builds", "dependencies": {"host": ["pkg"]}},
			{"cross": false, "bootstrap": true},
			{"arch": "s390x", "cross": true, "nocross": false, "broken": "cross only"}
		]}`))
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Warnings) > 0 {
		t.Errorf("warnings: %v", r.Warnings)
	}
	if got := strings.Join(r.Info.Provides, " "); got != "awk sh-1.0" {
		t.Errorf("provides %s", got)
	}
	plain := quarry.Traits{Needs: []string{"a"}, HostNeeds: []string{"h", "b>=2"}, TargetNeeds: []string{"t", "b>=2"}, Memory: 1 << 30}
	native := plain
	native.Bootstrap = true
	crossed := plain
	crossed.NoCross, crossed.HostNeeds = true, []string{"h", "b>=2", "pkg"}
	for _, tt := range []struct {
		arch   string
		cross  bool
		want   quarry.Traits
		change func(*quarry.Traits)
	}{
		{"x86_64", false, native, nil},
		{"x86_64", true, crossed, nil},
		{"armv6l", false, native, func(t *quarry.Traits) { t.Broken, t.Needs = "no barriers", []string{"a", "arm"} }},
		{"armv7l", false, native, func(t *quarry.Traits) { t.Restricted, t.Needs = "no reason is given", []string{"a", "arm"} }},
		{"i686", true, crossed, func(t *quarry.Traits) { t.Restricted = "no reason is given" }},
		{"s390x", true, crossed, func(t *quarry.Traits) { t.NoCross, t.Broken = false, "cross only" }},
		{"s390x", false, native, nil},
		{"an arch nobody knows", false, native, nil},
	} {
		if tt.change != nil {
			tt.change(&tt.want)
		}
		if diff := cmp.Diff(tt.want, r.Traits(tt.arch, tt.cross)); diff != "" {
			t.Errorf("%s, cross %v (- want, + got):\n%s", tt.arch, tt.cross, diff)
		}
	}
}

func TestInfoFor(t *testing.T) {
	r, err := Parse([]byte(`{"package": {"name": "pkg", "version": "1.0", "description": "A package"}, "compilation": {},
		"dependencies": ["a", "b"], "quarry": {"dependencies": {"needed": ["b", "c"], "host": ["h"]},
		"when": [{"arch": "s390x", "dependencies": {"needed": ["z"]}}, {"cross": true, "dependencies": {"needed": ["x"]}}]}}`))
	if err != nil {
		t.Fatal(err)
	}
	for arch, want := range map[string][2]string{"x86_64": {"a b c", "a b c x"}, "s390x": {"a b c z", "a b c z x"}} {
		for i, cross := range []bool{false, true} {
			if got := strings.Join(r.InfoFor(arch, cross).Needed, " "); got != want[i] {
				t.Errorf("on %s, cross built %v, it needs %s, want %s", arch, cross, got, want[i])
			}
		}
	}
	if got := strings.Join(r.Info.Needed, " "); got != "a b" {
		t.Errorf("the recipe itself has become %s", got)
	}
}

func TestConditionsRefused(t *testing.T) {
	for ext, want := range map[string]string{
		`{"broken": 1}`:                                                   "quarry.broken is a number: give true or false, or the reason",
		`{"broken": ""}`:                                                  "quarry.broken is blank",
		`{"bootstrap": "yes"}`:                                            "quarry.bootstrap is a string",
		`{"when": {}}`:                                                    "quarry.when is an object",
		`{"when": [{"broken": true}]}`:                                    "has no condition",
		`{"when": [{"arch": [], "broken": true}]}`:                        "is empty, so the entry would hold for all archs",
		`{"when": [{"arch": "[", "broken": true}]}`:                       "no pattern for archs",
		`{"when": [{"arch": "x", "cross": "no"}]}`:                        "when[0].cross is a string",
		`{"provides": ["awk>=1"]}`:                                        "provides a name, or name-version, and no range",
		`{"provides": "awk"}`:                                             "quarry.provides is a string",
		`{"dependencies": {"host": ["-x"]}}`:                              "does not fit",
		`{"dependencies": {"target": ["pkg"]}}`:                           "is the package itself",
		`{"when": [{"arch": "x", "dependencies": {"host": ["pkg>=1"]}}]}`: "is the package itself",
	} {
		if _, err := Parse(withQuarry(ext)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s:\n got %v\nwant %s", ext, err, want)
		}
	}
}

// A release says of cross builds only what is another matter then.
func TestFill(t *testing.T) {
	parse := func(ext string) *Recipe {
		r, err := Parse([]byte(`{"package": {"name": "pkg", "version": "1.0", "description": "A package"}, "compilation": {}, "dependencies": ["a"], "quarry": ` + ext + `}`))
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	rel := quarry.Release{Archs: []string{"old"}, Traits: map[string]quarry.Traits{"old": {}}, Crossed: map[string]quarry.Traits{"old": {}}}
	parse(`{"when": [{"arch": "arm*", "nocross": true}]}`).Fill(&rel, []string{"x86_64", "armv7l"})
	want := quarry.Release{Needs: []string{"a"}, Archs: []string{"x86_64", "armv7l"}, Traits: map[string]quarry.Traits{"armv7l": {NoCross: true}}}
	if diff := cmp.Diff(want, rel, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("(- want, + got):\n%s", diff)
	}
	parse(`{"archs": ["armv7l"], "broken": "no", "when": [{"cross": true, "broken": false}]}`).Fill(&rel, []string{"x86_64", "armv7l"})
	want = quarry.Release{Needs: []string{"a"}, Archs: []string{"armv7l"}, Traits: map[string]quarry.Traits{"armv7l": {Broken: "no"}},
		Crossed: map[string]quarry.Traits{"armv7l": {}}}
	if diff := cmp.Diff(want, rel, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("(- want, + got):\n%s", diff)
	}
}
