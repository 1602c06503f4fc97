package images

import "strings"

// own are the paths that the farm, podman and the runtime make in a
// workspace's writable layer: mount points and what podman tells about itself.
var own = []string{
	"/quarry", "/.quarry", "/run/.containerenv", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/etc/mtab",
	"/proc", "/sys", "/dev",
}

// OwnPath reports whether an absolute path of a workspace belongs to the farm
// itself, so that nothing that a build did is to be read from its presence in
// Workspace.Upper.
func OwnPath(path string) bool {
	for _, p := range own {
		if rest, ok := strings.CutPrefix(path, p); ok && (rest == "" || rest[0] == '/') {
			return true
		}
	}
	return false
}
