package graph

import "github.com/Morphux/quarry"

// bound is one condition on a version.
type bound struct {
	op      string // >=, <=, > or <; "" for exactly this version
	version string // "" for any
}

func meetsAll(version string, want []bound) bool {
	for _, b := range want {
		// What has no version meets only what asks for none.
		if b.version != "" && (version == "" || !meets(version, b.op, b.version)) {
			return false
		}
	}
	return true
}

// contradicts reports whether no version could ever meet all bounds.
func contradicts(want []bound) bool {
	var low, high bound // the tightest
	for _, b := range want {
		switch {
		case b.version == "":
		case b.op == "":
			return !meetsAll(b.version, want) // an exact one has only itself to offer
		case b.op[0] == '>':
			if c := quarry.CompareVersions(b.version, low.version); low.op == "" || c > 0 || c == 0 && b.op == ">" {
				low = b
			}
		default:
			if c := quarry.CompareVersions(b.version, high.version); high.op == "" || c < 0 || c == 0 && b.op == "<" {
				high = b
			}
		}
	}
	if low.op == "" || high.op == "" {
		return false
	}
	c := quarry.CompareVersions(low.version, high.version)
	return c > 0 || c == 0 && (low.op == ">" || high.op == "<")
}
