// Package images keeps the bases and makes the workspaces in which builds run,
// through podman.
//
// A base is a clean, installed system for one arch: an OCI image that never
// changes ([Store.Load], [Store.Bootstrap]). An instance is a base brought up
// to date for a channel ([Store.Update]). A workspace is a container over an
// instance, made for one build and thrown away after it ([Store.Workspace],
// [Workspace.Close]).
//
// # Workspaces that are ready
//
// While [Store.Maintain] runs, clean workspaces are kept ready for each channel
// and arch (an environment): containers that were started, whose guest has
// connected and waits. Taking one asks nothing of podman. Its limits are
// changed where the kernel keeps them, control groups and prlimit(2), and one
// whose guest is dead is thrown away. What a container cannot become any more,
// such as one with network, is made when it is asked for, as is one for which
// none is ready or under way. None ever comes back after its build.
//
// How many are kept follows demand, within [PoolOptions].Max over all
// environments: builds that wait ([Store.Expect]), one that was used of late,
// and one more for each build that lately found none. They are made one at a
// time while nobody waits for them, so that builds have the machine. With
// little memory or disk left none are kept, until there is a quarter more than
// the least; after a failure an environment rests, longer each time, for half a
// minute at most. [Store.Environments] tells what is ready, and why not.
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
