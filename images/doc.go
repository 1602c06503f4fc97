// Package images keeps the bases and makes the workspaces in which builds run,
// through podman.
//
// A base is a clean, installed system for one arch: an OCI image that never
// changes ([Store.Load], [Store.Bootstrap]). A workspace is a container over a
// base, made for one build and thrown away after it ([Store.Workspace],
// [Workspace.Close]). A warm pool will sit between the two one day; builds
// already ask for a workspace and give it back, so they will not notice.
//
// # What a build can reach
//
// The root of a workspace is nobody on the host: it has a user namespace in
// which 0 stands for the host's [Options].UIDBase. It has no network, seven
// capabilities over its own namespace (see the list in workspace.go, with the
// reason for each), no new privileges, podman's default system call filter
// less everything that makes namespaces, mounts or keyrings, and limits on
// memory, processes, processors, disk, open files and the size of a file.
// Nothing of the host shows inside: not its name, its environment, its hosts
// file, nor where the farm's folders lie, with one exception, the mount table,
// in which the kernel tells where a mounted folder lies on its file system.
//
// # The guest
//
// The first process is Quarry's own guest, a static program that is mounted
// read-only at [GuestPath] and so runs in any base, of any arch. It connects to
// a socket in [Workspace].Dir (which is [HomePath] inside) that takes one
// connection and is gone before the first line of a recipe runs. Killing the
// first process ends all others: the kernel sees to that.
//
// # Limits on disk
//
// No quota of overlay on ext4 exists, and those of xfs and btrfs take mount
// options and tools that few machines have. So a watcher measures the writable
// layer and the folder every two seconds, or less often when that takes long,
// and kills a workspace that has more than [Limits].Disk; a file counts 4 KiB
// beside its blocks, since inodes run out too. Between two looks a build can
// write more than its limit, at the speed of the disk; one file alone never
// grows beyond it.
//
// # Without root
//
// All of it works for a plain user when Quarry itself is started inside the
// user's namespace, as in `podman unshare quarry serve`: then output that
// belongs to subordinate ids can be read. On machines with version 1 or hybrid
// control groups a user cannot limit memory, processes and CPU
// ([Store.Limited]); the limits on disk, files and processes per user id hold.
package images
