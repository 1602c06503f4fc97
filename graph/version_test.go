package graph

import (
	"os/exec"
	"testing"
)

var ordered = []string{"1.0~~", "1.0~~a", "1.0~", "1.0~rc1", "1.0", "1.0a", "1.0b", "1.0+git1", "1.0-p1", "1.0.1", "1.2", "1.9", "1.10", "2", "10", "2024a"}

func TestCompare(t *testing.T) {
	for i, a := range ordered {
		for j, b := range ordered {
			if got := Compare(a, b); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("Compare(%q, %q) = %d", a, b, got)
			}
		}
	}
	if Compare("1.01", "1.1") != 0 || Compare("", "") != 0 {
		t.Error("leading zeros count")
	}
}

// TestCompareAsDpkg asks dpkg itself. Its revision rule is another one, so
// versions with a dash are given a revision to keep the dash upstream.
func TestCompareAsDpkg(t *testing.T) {
	if _, err := exec.LookPath("dpkg"); err != nil {
		t.Fatal("dpkg is missing: apt-get install dpkg, or run the tests on a Debian-like system")
	}
	for i, a := range ordered {
		for _, b := range ordered[i+1:] {
			want := exec.Command("dpkg", "--compare-versions", a+"-1", "lt", b+"-1").Run() == nil
			if got := Compare(a, b) < 0; got != want {
				t.Errorf("%q < %q: %v, dpkg says %v", a, b, got, want)
			}
		}
	}
}

func FuzzCompare(f *testing.F) {
	f.Add("1.0", "1.0~rc1", "2")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		sign := func(n int) int {
			switch {
			case n < 0:
				return -1
			case n > 0:
				return 1
			}
			return 0
		}
		if Compare(a, a) != 0 {
			t.Fatalf("%q differs from itself", a)
		}
		if sign(Compare(a, b)) != -sign(Compare(b, a)) {
			t.Fatalf("%q and %q are not ordered", a, b)
		}
		if Compare(a, b) <= 0 && Compare(b, c) <= 0 && Compare(a, c) > 0 {
			t.Fatalf("%q <= %q <= %q, but the first is after the last", a, b, c)
		}
	})
}
