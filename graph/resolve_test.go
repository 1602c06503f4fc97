package graph

import (
	"errors"
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
