// Package podman runs or finds a podman API service and keeps it going.
//
// Quarry's own service lives in a mount namespace and a PID namespace of its
// own, with everything it writes below one folder. That is what makes it leave
// nothing behind: its mounts are never seen by the host, and the kernel ends
// every container with the first process of the namespace, however the daemon
// died, kill -9 included. It also gives podman short, fixed paths (podman keeps
// absolute paths in its database, opens the folders above its storage to
// everybody, and Unix sockets allow 107 bytes), whatever the state folder is
// called and wherever it is moved to.
package podman
