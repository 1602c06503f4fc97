// Package graph answers questions about dependencies: which release meets a
// constraint, and what has to be installed with it. It is pure: what there is
// comes in through functions.
package graph

import "strings"

// Compare orders two versions: negative when a is older than b, 0 when they
// are equal, positive when a is newer. The rule is dpkg's for upstream versions
// (deb-version(7)) without epochs: runs of digits compare as numbers, runs of
// other characters compare letter by letter with all letters before all
// non-letters and ~ before everything, even the end. So 1.0~rc1 < 1.0 < 1.0.1 <
// 1.0a < 1.0-p1, and 1.9 < 1.10.
func Compare(a, b string) int {
	for a != "" || b != "" {
		for (a != "" && !isDigit(a[0])) || (b != "" && !isDigit(b[0])) {
			x, y := order(a), order(b)
			if x != y {
				return x - y
			}
			a, b = rest(a), rest(b)
		}
		var x, y string
		x, a = number(a)
		y, b = number(b)
		if len(x) != len(y) {
			return len(x) - len(y)
		}
		if c := strings.Compare(x, y); c != 0 {
			return c
		}
	}
	return 0
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// rest drops the first byte of a run of other characters; it stays where a run
// of digits begins.
func rest(s string) string {
	if s == "" || isDigit(s[0]) {
		return s
	}
	return s[1:]
}

// order is the weight of the first character: the end of a run weighs nothing.
func order(s string) int {
	switch {
	case s == "" || isDigit(s[0]):
		return 0
	case s[0] == '~':
		return -1
	case s[0] >= 'a' && s[0] <= 'z', s[0] >= 'A' && s[0] <= 'Z':
		return int(s[0])
	}
	return int(s[0]) + 256
}

// number takes a run of digits off the front, without leading zeros.
func number(s string) (digits, rest string) {
	i := 0
	for i < len(s) && isDigit(s[i]) {
		i++
	}
	return strings.TrimLeft(s[:i], "0"), s[i:]
}
