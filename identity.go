package quarry

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// Role is what somebody may do.
type Role string

// The roles. An admin may do everything, a maintainer may push the packages
// that match their patterns and rebuild or cancel those, a reader may look, a
// builder may take builds from another machine.
const (
	RoleAdmin      Role = "admin"
	RoleMaintainer Role = "maintainer"
	RoleReader     Role = "reader"
	RoleBuilder    Role = "builder"
)

// Identity is somebody who has proved to hold a key, or who speaks through the
// local socket.
type Identity struct {
	Packager
	Role     Role     `json:"role"`
	Packages []string `json:"packages,omitempty"` // patterns as of path.Match a maintainer may push; none: all
	// Only narrows Packages: a name has to match one of these, too. It is what the
	// token says that somebody has shown; none: nothing more than Packages.
	Only []string `json:"only,omitempty"`
}

// MayPush reports whether the identity may push to, rebuild and cancel builds
// of a package.
func (id Identity) MayPush(pkg string) bool {
	switch id.Role {
	case RoleAdmin:
		return true
	case RoleMaintainer:
		return matches(id.Packages, pkg) && matches(id.Only, pkg)
	}
	return false
}

// Reaches reports whether the token that somebody has shown is good for a package.
// It says nothing of what they may do with it.
func (id Identity) Reaches(pkg string) bool { return matches(id.Only, pkg) }

// matches reports whether a name matches one of the patterns, if there are any.
func matches(patterns []string, name string) bool {
	return len(patterns) == 0 || slices.ContainsFunc(patterns, func(pattern string) bool {
		ok, err := path.Match(pattern, name)
		return err == nil && ok
	})
}

// MayRead reports whether the identity may fetch repositories and look at
// builds.
func (id Identity) MayRead() bool {
	switch id.Role {
	case RoleAdmin, RoleMaintainer, RoleReader, RoleBuilder:
		return true
	}
	return false
}

// rolePrefix begins a word that stands for everybody of a role.
const rolePrefix = "role:"

// CheckPeople reports whether s can stand in a list of people: a user's name, or
// role:ROLE for everybody who has the role.
func CheckPeople(s string) error {
	role, ok := strings.CutPrefix(s, rolePrefix)
	if !ok {
		return CheckUser(s)
	}
	if !slices.Contains([]Role{RoleAdmin, RoleMaintainer, RoleReader, RoleBuilder}, Role(role)) {
		return fmt.Errorf("role %.40q is none: there are admin, maintainer, reader and builder", role)
	}
	return nil
}

// Among reports whether the identity is in a list of people. Admins are in all,
// and everybody is in an empty one.
func (id Identity) Among(people []string) bool {
	return len(people) == 0 || id.Role == RoleAdmin || slices.Contains(people, id.User) ||
		slices.Contains(people, rolePrefix+string(id.Role))
}

// People says a list of people in words, e.g. "alice, bob and admins".
func People(people []string) string {
	if len(people) == 0 {
		return "everybody who may push the package"
	}
	var words []string
	for _, p := range people {
		if role, ok := strings.CutPrefix(p, rolePrefix); !ok {
			words = append(words, p)
		} else if role != string(RoleAdmin) {
			words = append(words, role+"s")
		}
	}
	if len(words) == 0 {
		return "admins"
	}
	return strings.Join(words, ", ") + " and admins"
}
