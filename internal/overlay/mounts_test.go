package overlay

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseMounts(t *testing.T) {
	got, err := parseMounts([]byte(`36 35 98:0 /mnt1 / rw,noatime master:1 - overlay over\040lay rw,context="system_u:object_r:t:s0:c1,c2",lowerdir=/a\054b,volatile
37 36 0:5 / /with\040blank\134 ro shared:2 propagate_from:1 - tmpfs tmpfs rw
38 36 0:6 / /x rw - proc proc rw
`))
	want := []Mount{
		{ID: 36, Parent: 35, Point: "/", Flags: []string{"rw", "noatime"}, Type: "overlay",
			Options: []string{"rw", `context="system_u:object_r:t:s0:c1,c2"`, `lowerdir=/a\054b`, "volatile"}},
		{ID: 37, Parent: 36, Point: `/with blank\`, Flags: []string{"ro"}, Shared: true, Type: "tmpfs", Options: []string{"rw"}},
		{ID: 38, Parent: 36, Point: "/x", Flags: []string{"rw"}, Type: "proc", Options: []string{"rw"}},
	}
	if err != nil || !cmp.Equal(got, want) {
		t.Errorf("%v\n%s", err, cmp.Diff(want, got))
	}
	if m, err := Root(got); err != nil || m.ID != 36 {
		t.Errorf("root %v, %v", m, err)
	}
	for _, bad := range []string{"x", "36 35 98:0 / relative rw - ext4 x rw", "36 35 98:0 / / rw - ext4", "a b 98:0 / / rw - ext4 x rw"} {
		if m, err := parseMounts([]byte(bad)); err == nil {
			t.Errorf("%q gives %v", bad, m)
		}
	}
	for _, bad := range [][]Mount{nil, {{Point: "/x"}}, {{Point: "/"}, {Point: "/"}}} {
		if m, err := Root(bad); err == nil {
			t.Errorf("root of %v: %v", bad, m)
		}
	}
}
