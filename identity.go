package quarry

import (
	"path"
	"slices"
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
}

// MayPush reports whether the identity may push to, rebuild and cancel builds
// of a package.
func (id Identity) MayPush(pkg string) bool {
	switch id.Role {
	case RoleAdmin:
		return true
	case RoleMaintainer:
		return len(id.Packages) == 0 || slices.ContainsFunc(id.Packages, func(pattern string) bool {
			ok, err := path.Match(pattern, pkg)
			return err == nil && ok
		})
	}
	return false
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
