package extract

import (
	"archive/tar"
	"strings"
	"testing"
)

// What an installation depends on besides its own paths is told: the links
// that it was led through or that it left, and names that were not there.
func TestInstallSeen(t *testing.T) {
	for name, c := range map[string]struct {
		items []item
		want  string
	}{
		"folders only":        {[]item{{name: "usr", typ: tar.TypeDir}, {name: "usr/bin", typ: tar.TypeDir}, {name: "usr/bin/x", data: "x"}}, ""},
		"usr-merge":           {[]item{{name: "lib", typ: tar.TypeDir}, {name: "lib/x", data: "x"}}, "/lib"},
		"a link in a link":    {[]item{{name: "lock", typ: tar.TypeDir}, {name: "lock/x", data: "x"}}, "/lock /run/lock /run/lock/deep"},
		"a layout link stays": {[]item{{name: "bin", typ: tar.TypeSymlink, link: "elsewhere"}}, "/bin"},
		"the same link":       {[]item{{name: "usr", typ: tar.TypeDir}, {name: "usr/bin", typ: tar.TypeDir}, {name: "usr/bin/vi", typ: tar.TypeSymlink, link: "true"}}, "/usr/bin/vi"},
		"a link to a file is replaced": {[]item{{name: "usr", typ: tar.TypeDir}, {name: "usr/bin", typ: tar.TypeDir}, {name: "usr/bin/vi", data: "vi"}},
			"/usr/bin/true /usr/bin/vi"},
		"a link to nothing is replaced": {[]item{{name: "usr", typ: tar.TypeDir}, {name: "usr/bin", typ: tar.TypeDir}, {name: "usr/bin/awk", data: "awk"}},
			"/etc/alternatives /usr/bin/awk"},
		"what it brings is no news": {[]item{{name: "new", typ: tar.TypeDir}, {name: "new/a", data: "a"}, {name: "new/b", typ: tar.TypeSymlink, link: "a"},
			{name: "new/c", typ: tar.TypeLink, link: "new/a"}, {name: "new/d", typ: tar.TypeFifo}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			root, _ := baseRoot(t)
			seen, err := InstallSeen(packed(t, archive(t, c.items...)), root, Limits{}, 2)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(seen, " "); got != c.want {
				t.Errorf("saw %q, want %q", got, c.want)
			}
		})
	}
	root, _ := baseRoot(t)
	if _, err := InstallSeen(packed(t, archive(t, item{name: "a", data: "12345"})), root, Limits{Bytes: 4}, 1); err == nil || !strings.Contains(err.Error(), "larger than 4 bytes") {
		t.Errorf("limits: %v", err)
	}
}
