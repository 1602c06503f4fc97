package quarry

import "strings"

// CompareVersions tells which of two versions is the newer one: negative when
// a is older than b, positive when it is newer, 0 when neither is. Runs of
// digits count as numbers of any length and beat letters; what follows a
// version makes it newer (1.0 < 1.0.1, 1.0 < 1.0a), except for the words of
// work under way, dev, alpha, beta, pre and rc, which make it older in that
// order (1.0-rc1 < 1.0). The signs between the runs do not count (7.0p1 and
// 7.0-p1 are the same age), so two different versions may compare equal.
func CompareVersions(a, b string) int {
	for {
		var x, y string
		x, a = versionRun(a)
		y, b = versionRun(b)
		if x == "" && y == "" {
			return 0
		}
		if c := compareRuns(x, y); c != 0 {
			return c
		}
	}
}

// versionRun takes the next run of digits or of letters off a version.
func versionRun(s string) (run, rest string) {
	start := 0
	for start < len(s) && !alnum(s[start]) {
		start++
	}
	end := start
	for end < len(s) && alnum(s[end]) && digit(s[end]) == digit(s[start]) {
		end++
	}
	return s[start:end], s[end:]
}

func compareRuns(x, y string) int {
	if c := runRank(x) - runRank(y); c != 0 {
		return c
	}
	if x != "" && digit(x[0]) {
		x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
		if len(x) != len(y) {
			return len(x) - len(y)
		}
	}
	return strings.Compare(x, y)
}

var unfinished = []string{"dev", "alpha", "beta", "pre", "rc"}

// runRank orders kinds of runs: work under way, the end, letters, numbers.
func runRank(run string) int {
	if run == "" {
		return len(unfinished)
	}
	if digit(run[0]) {
		return len(unfinished) + 2
	}
	for i, word := range unfinished {
		if strings.EqualFold(run, word) {
			return i
		}
	}
	return len(unfinished) + 1
}
