package images

import (
	"strings"
	"testing"

	quarry "github.com/Morphux/quarry"
)

func TestBaseRef(t *testing.T) {
	for in, tag := range map[string]string{
		"x86_64": "x86_64", "x86_64:trixie": "x86_64.trixie", "ARM-9:a-1": "ARM-9.a-1",
		strings.Repeat("a", quarry.MaxArch) + ":" + strings.Repeat("b", quarry.MaxArch): strings.Repeat("a", quarry.MaxArch) + "." + strings.Repeat("b", quarry.MaxArch),
	} {
		r, err := ParseBaseRef(in)
		if err != nil || r.String() != in || r.tag() != tag {
			t.Errorf("%q: %+v, %v", in, r, err)
		}
		if back, ok := parseTag(tag); !ok || back != r {
			t.Errorf("tag %q: %+v, %v", tag, back, ok)
		}
	}
	for _, in := range []string{"", ":", ":x", "x86_64:", "x86_64:Trixie", "x86_64:a.b", "x86_64:a:b", "x86_64:1", "-x", "a.b", "noarch", "noarch:x",
		"x86_64: a", "x86_64:a/b", "x86_64:../a", "x\x00", "x86_64:é", "a:" + strings.Repeat("b", quarry.MaxArch+1), strings.Repeat("a", 9999)} {
		if r, err := ParseBaseRef(in); err == nil {
			t.Errorf("%q was taken for %+v", in, r)
		} else if strings.Contains(err.Error(), "\n") || len(err.Error()) > 400 {
			t.Errorf("%q", err)
		}
	}
	for _, tag := range []string{"", ".", "x86_64.", ".x", "x86_64:a", "x86_64.a.b", "latest.X", "noarch"} {
		if r, ok := parseTag(tag); ok {
			t.Errorf("tag %q was taken for %+v", tag, r)
		}
	}
}

func FuzzBaseRef(f *testing.F) {
	f.Add("x86_64:trixie")
	f.Add("a.b")
	f.Fuzz(func(t *testing.T, in string) {
		if r, err := ParseBaseRef(in); err == nil && r.String() != in {
			t.Errorf("%q became %q", in, r)
		}
		if r, ok := parseTag(in); ok && r.tag() != in {
			t.Errorf("tag %q became %q", in, r.tag())
		}
	})
}

// The values were computed with sha256sum, as the specification says.
func TestChainID(t *testing.T) {
	a, b, c := "sha256:"+strings.Repeat("a", 64), "sha256:"+strings.Repeat("b", 64), "sha256:"+strings.Repeat("c", 64)
	for _, x := range []struct {
		diffs []string
		want  string
	}{
		{[]string{a}, a},
		{[]string{a, b}, "sha256:ccd722928bd92476ba1745586fed6e45a102504185ad88cd89e01ff116fd146c"},
		{[]string{a, b, c}, "sha256:c1377126441fb2f5ec2c21ae2a60255331d639e830f0ee1b40a36e52d4c40588"},
	} {
		if got, err := chainID(x.diffs); err != nil || got != x.want {
			t.Errorf("%d layers: %s, %v", len(x.diffs), got, err)
		}
	}
	for _, bad := range [][]string{nil, {""}, {"sha256:x"}, {"md5:" + strings.Repeat("a", 64)}, {strings.ToUpper(a)}, {a + "0"}, {a, "x"}} {
		if got, err := chainID(bad); err == nil {
			t.Errorf("%q has digest %s", bad, got)
		}
	}
}
