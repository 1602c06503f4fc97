package quarry

import (
	"slices"
	"testing"
)

func TestCompareVersions(t *testing.T) {
	// Each line stands in rising order.
	for _, rising := range [][]string{
		{"1.0-dev", "1.0-alpha1", "1.0alpha2", "1.0-beta", "1.0pre1", "1.0-rc1", "1.0rc2", "1.0", "1.0a", "1.0b", "1.0.1", "1.0.2", "1.0.10", "1.1", "2", "10"},
		{"6.9", "7.0", "7.0-p1", "7.0p2", "7.1"},
		{"1.1.1", "1.1.1a", "1.1.1w", "1.1.2"},
		{"20230101", "20240101", "99999999999999999999999999", "100000000000000000000000000"},
	} {
		for i, a := range rising {
			for j, b := range rising {
				if got := CompareVersions(a, b); (got < 0) != (i < j) || (got > 0) != (i > j) {
					t.Errorf("CompareVersions(%q, %q) = %d, but they stand at %d and %d", a, b, got, i, j)
				}
			}
		}
	}
	for _, same := range [][2]string{{"1.0", "1.00"}, {"7.0p1", "7.0-p1"}, {"007", "7"}} {
		if got := CompareVersions(same[0], same[1]); got != 0 {
			t.Errorf("CompareVersions(%q, %q) = %d, want 0", same[0], same[1], got)
		}
	}
}

func FuzzCompareVersions(f *testing.F) {
	f.Add("1.0", "1.0-rc1", "1.0a")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		sign := func(n int) int { return min(1, max(-1, n)) }
		if sign(CompareVersions(a, b)) != -sign(CompareVersions(b, a)) {
			t.Errorf("%q and %q: the order depends on who comes first", a, b)
		}
		// Sorting relies on the order being transitive.
		vs := []string{a, b, c}
		slices.SortFunc(vs, CompareVersions)
		if CompareVersions(vs[0], vs[2]) > 0 {
			t.Errorf("%q sorts before %q and is newer", vs[0], vs[2])
		}
	})
}
