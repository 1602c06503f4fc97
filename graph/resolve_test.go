package graph

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/Morphux/quarry"
)

func there(list ...string) Provider {
	return func(pkg, arch string) ([]quarry.DepUsed, error) {
		var out []quarry.DepUsed
		for _, s := range list {
			if name, version, _ := strings.Cut(s, " "); name == pkg {
				out = append(out, quarry.DepUsed{Package: name, Version: version})
			}
		}
		return out, nil
	}
}

func TestResolve(t *testing.T) {
	all := there("zlib 1.2.11", "zlib 1.3.1", "zlib 1.10", "gtk-doc 1.33", "gtk 4.0", "openssh 7.0-p1")
	for _, tt := range []struct{ dep, want string }{
		{"zlib", "zlib 1.10"},
		{"zlib-1.3.1", "zlib 1.3.1"},
		{"zlib-1.4", ""},
		{"zlib>=1.3", "zlib 1.10"},
		{"zlib<1.10", "zlib 1.3.1"},
		{"zlib<=1.2.11", "zlib 1.2.11"},
		{"zlib>1.10", ""},
		{"gtk-doc-1.33", "gtk-doc 1.33"},
		{"gtk-doc-1.34", ""},
		{"openssh-7.0-p1", "openssh 7.0-p1"},
		{"absent-1.0", ""},
	} {
		d, ok, err := Resolve(tt.dep, "x86_64", all)
		got := ""
		if ok {
			got = d.Package + " " + d.Version
		}
		if err != nil || got != tt.want {
			t.Errorf("Resolve(%q) = %q, %v; want %q", tt.dep, got, err, tt.want)
		}
	}
	if _, _, err := Resolve("--help", "x86_64", all); err == nil {
		t.Error("an option is taken for a dependency")
	}
}

func TestClosure(t *testing.T) {
	all := there("a 1", "b 1", "c 1", "c 2", "d 1")
	needs := func(m map[string][]string) func(quarry.DepUsed) ([]string, error) {
		return func(d quarry.DepUsed) ([]string, error) { return m[d.Package+" "+d.Version], nil }
	}
	direct := []quarry.DepUsed{{Package: "a", Version: "1"}, {Package: "d", Version: "1"}}
	got, err := Closure(direct, "x", needs(map[string][]string{"a 1": {"b"}, "b 1": {"c-1", "a"}, "d 1": {"c-1"}}), all)
	var names []string
	for _, d := range got {
		names = append(names, d.Package)
	}
	if s := strings.Join(names, " "); err != nil || s != "c b a d" {
		t.Errorf("order is %q, %v", s, err)
	}
	_, err = Closure(direct, "x", needs(map[string][]string{"a 1": {"c-1"}, "d 1": {"c-2"}}), all)
	if err == nil || !strings.Contains(err.Error(), "needs c 2") {
		t.Errorf("two versions of one package: %v", err)
	}
	// c alone would be c 2; the recipe, or who came before, wants c 1.
	for _, n := range []map[string][]string{{"a 1": {"c"}, "d 1": {"c"}}, {"a 1": {"c-1"}, "d 1": {"c"}}} {
		recipe := direct
		if n["a 1"][0] == "c" {
			recipe = append(slices.Clone(direct), quarry.DepUsed{Package: "c", Version: "1"})
		}
		got, err := Closure(recipe, "x", needs(n), all)
		if err != nil || len(got) != 3 || got[0].Version != "1" || got[0].Package != "c" {
			t.Errorf("%v: %v, %v", n, got, err)
		}
	}
	_, err = Closure([]quarry.DepUsed{{Package: "c", Version: "1"}, {Package: "c", Version: "2"}}, "x", needs(nil), all)
	if !errors.As(err, new(*ConflictError)) {
		t.Errorf("a recipe that wants two versions: %v", err)
	}
	_, err = Closure(direct, "x", needs(map[string][]string{"a 1": {"gone"}}), all)
	if err == nil || !strings.Contains(err.Error(), "gone") {
		t.Errorf("a missing dependency: %v", err)
	}
}

func TestCatalog(t *testing.T) {
	offers := map[string]string{ // name: who provides it, as package version provided
		"mta": "postfix 3.8 , exim 4.96 1, exim 4.97 2",
		"awk": "gawk 5 ,mawk 1.3 1.3",
	}
	c := Catalog{There: there("zlib 1.2", "zlib 1.3", "zlib 2", "gawk 5", "mawk 1.3", "postfix 3.8", "exim 4.96", "exim 4.97", "awk-1 1", "real 1"),
		Virtual: func(name, arch string) (out []Offer, err error) {
			for _, s := range strings.Split(offers[name], ",") {
				if f := strings.Split(strings.TrimLeft(s, " "), " "); len(f) == 3 {
					out = append(out, Offer{quarry.DepUsed{Package: f[0], Version: f[1]}, f[2]})
				}
			}
			return out, nil
		}}
	for _, tt := range []struct{ needs, want string }{
		{"zlib", "zlib 2"},
		{"zlib>=1.2 zlib<2", "zlib 1.3"},
		{"zlib<2 real zlib-1.2", "zlib 1.2, real 1"},
		{"zlib>2", "missing zlib>2"},
		{"zlib>1.2 zlib<1.3", "missing zlib>1.2 zlib<1.3"},
		{"zlib>=3 zlib<2", "contradict"},
		{"mta", "exim 4.97"},
		{"mta>=1 mta<2", "exim 4.96"},
		{"mta postfix", "postfix 3.8, postfix 3.8"},
		{"mta-1", "exim 4.96"},
		{"awk", "gawk 5"},
		{"awk>=1", "mawk 1.3"},
		{"awk-1", "awk-1 1"},
		{"awk-1.3", "mawk 1.3"},
		{"nobody real", "missing nobody, real 1"},
		{"--x", "neither"},
	} {
		var got []string
		found, err := c.ResolveAll(strings.Fields(tt.needs), "x86_64")
		for _, r := range found {
			if len(r.Missing) > 0 {
				got = append(got, "missing "+strings.Join(r.Missing, " "))
			} else {
				got = append(got, r.Package+" "+r.Version)
			}
		}
		if err != nil {
			if s := err.Error(); !strings.Contains(s, "contradict") && !strings.Contains(s, "may not begin") || !strings.Contains("contradict neither", tt.want) {
				t.Errorf("%s: %v", tt.needs, err)
			}
		} else if s := strings.Join(got, ", "); s != tt.want {
			t.Errorf("%s: %s, want %s", tt.needs, s, tt.want)
		}
	}
	// What is installed anyway provides it; several entries of one name hold at once.
	needs := map[string][]string{"app 1": {"mta", "zlib"}, "postfix 3.8": {"zlib<2", "zlib>=1.3"}}
	direct := []quarry.DepUsed{{Package: "postfix", Version: "3.8"}, {Package: "app", Version: "1"}}
	got, err := c.Closure(direct, "x86_64", func(d quarry.DepUsed) ([]string, error) { return needs[d.Package+" "+d.Version], nil })
	if err != nil || len(got) != 3 || got[0].Version != "1.3" || got[1].Package != "postfix" || got[2].Package != "app" {
		t.Errorf("%v, %v", got, err)
	}
	needs["app 1"] = []string{"zlib>3", "zlib<1"}
	if _, err := c.Closure(direct, "x86_64", func(d quarry.DepUsed) ([]string, error) { return needs[d.Package+" "+d.Version], nil }); !errors.As(err, new(*ContradictionError)) {
		t.Errorf("%v", err)
	}
}

// A chain of 100,000 needs no recursion.
func TestClosureDeep(t *testing.T) {
	all := func(pkg, arch string) ([]quarry.DepUsed, error) {
		return []quarry.DepUsed{{Package: pkg, Version: "1"}}, nil
	}
	const n = 100_000
	next := 0
	got, err := Closure([]quarry.DepUsed{{Package: "p", Version: "1"}}, "x", func(quarry.DepUsed) ([]string, error) {
		if next++; next > n {
			return nil, nil
		}
		return []string{fmt.Sprintf("p%d", next)}, nil
	}, all)
	if err != nil || len(got) != n+1 || got[n].Package != "p" {
		t.Errorf("%d, %v", len(got), err)
	}
}

func TestCheckNeeds(t *testing.T) {
	for needs, want := range map[string]string{
		"a>=1 a<2 b c-1.0":    "",
		"a>=2 a<2":            "dependencies a>=2 and a<2 contradict each other",
		"a>=2 b a<1 b>1 b<=1": "dependencies a>=2 and a<1 contradict each other",
		"a=1":                 "operator that is not known",
	} {
		err := CheckNeeds(strings.Fields(needs))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", needs, err)
		}
	}
}
