package images

import "strconv"

// Root is a host path that leads into the workspace's whole file system, base
// and writable layer together, while its first process lives; "" when the
// service runs where this process cannot see it. What is behind it is hostile
// once a build has begun: open nothing there by following links.
func (w *Workspace) Root() string {
	if w.pid == 0 {
		return ""
	}
	return "/proc/" + strconv.Itoa(w.pid) + "/root/." // the point follows the kernel's link, which is no path
}
