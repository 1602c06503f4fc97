package quarry

import "testing"

func TestAmong(t *testing.T) {
	alice := Identity{Packager: Packager{User: "alice"}, Role: RoleMaintainer}
	carol := Identity{Packager: Packager{User: "carol"}, Role: RoleAdmin}
	// A user whose name looks like a list's word for a role is no such role.
	odd := Identity{Packager: Packager{User: "admin"}, Role: RoleReader}
	for _, tt := range []struct {
		id     Identity
		people []string
		want   bool
	}{
		{alice, nil, true},
		{alice, []string{"alice"}, true},
		{alice, []string{"bob", "role:maintainer"}, true},
		{alice, []string{"bob", "role:admin"}, false},
		{carol, []string{"alice"}, true},
		{odd, []string{"role:admin"}, false},
		{Identity{}, []string{"role:admin"}, false},
	} {
		if got := tt.id.Among(tt.people); got != tt.want {
			t.Errorf("%s among %v: %t", tt.id.User, tt.people, got)
		}
	}
}

func TestCheckPeople(t *testing.T) {
	for s, ok := range map[string]bool{"alice": true, "role:admin": true, "role:maintainer": true, "role:king": false,
		"role:": false, "": false, "-x": false, "a b": false, "a=b": false, "a,b": false} {
		if err := CheckPeople(s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, tt := range []struct {
		people []string
		want   string
	}{
		{nil, "everybody who may push the package"},
		{[]string{"role:admin"}, "admins"},
		{[]string{"alice", "role:maintainer", "role:admin"}, "alice, maintainers and admins"},
	} {
		if got := People(tt.people); got != tt.want {
			t.Errorf("%v in words: %q, want %q", tt.people, got, tt.want)
		}
	}
}
