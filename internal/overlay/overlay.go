// Package overlay does what the mount program cannot: it mounts an overlay
// that shows nowhere, of any number of layers, and makes it the root of a
// container that runs already.
//
// It needs Linux 5.12 for layers seen through a user namespace, else 5.2, and
// CAP_SYS_ADMIN over the namespace that it runs in. All of it happens on
// threads of its own that end with it, so that neither the working directory
// nor the mounts of the rest of the process are touched.
package overlay

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// MaxLayers is how many layers one overlay may have. The kernel's limit is 500
// (OVL_MAX_STACK), but every name that is looked up costs a look into each.
const MaxLayers = 200

// Lower is a layer that is only read.
type Lower struct {
	Dir string // absolute path
	// IDs is a user namespace through which the layer's owners are seen: what
	// belongs to root there belongs to the root of the namespace here. nil: as
	// it is on disk.
	IDs *os.File
}

// Spec says what an overlay is made of.
type Spec struct {
	Lower []Lower // topmost first; at least one
	// Upper and Work are empty folders on one file system.
	Upper, Work string
	// Scratch is an empty folder, in no path of the others. Mounts are made on
	// it that only this call sees.
	Scratch string
	Options []string // of overlayfs, e.g. volatile or userxattr
	Flags   uintptr  // of mount(2), e.g. unix.MS_NODEV
}

// New mounts an overlay that is attached nowhere. It is gone with the file that
// stands for it, unless something is made of that: a working directory, or
// the root of a container with [Replace].
func New(s Spec) (root *os.File, err error) {
	if len(s.Lower) == 0 || len(s.Lower) > MaxLayers {
		return nil, fmt.Errorf("an overlay of %d layers cannot be mounted: it takes 1 to %d", len(s.Lower), MaxLayers)
	}
	err = onThread(func() error {
		root, err = s.mount()
		return err
	})
	return root, err
}

// mount runs on a thread of its own. What mount(2) takes in one page of
// options is short names in the working directory, which is how the limit on
// the length of all paths is met; fsconfig(2) can add layers one by one only
// since Linux 6.7.
func (s *Spec) mount() (*os.File, error) {
	// A mount namespace of one's own: whatever happens, nothing is left behind.
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return nil, os.NewSyscallError("unshare(CLONE_NEWNS)", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, os.NewSyscallError("make mounts private", err)
	}
	if err := unix.Mount("quarry", s.Scratch, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return nil, &os.PathError{Op: "mount a tmpfs on", Path: s.Scratch, Err: err}
	}
	if err := unix.Chdir(s.Scratch); err != nil {
		return nil, &os.PathError{Op: "chdir", Path: s.Scratch, Err: err}
	}
	names := make([]string, len(s.Lower))
	for i, l := range s.Lower {
		names[i] = strconv.Itoa(i)
		if err := l.bring(names[i]); err != nil {
			return nil, err
		}
	}
	for name, dir := range map[string]string{"u": s.Upper, "w": s.Work} {
		if !filepath.IsAbs(dir) {
			return nil, fmt.Errorf("an overlay's folder %q is no absolute path", dir)
		}
		if err := unix.Symlink(dir, name); err != nil {
			return nil, &os.PathError{Op: "link to", Path: dir, Err: err}
		}
	}
	if err := unix.Mkdir("m", 0o700); err != nil {
		return nil, os.NewSyscallError("mkdir", err)
	}
	data := strings.Join(append([]string{"lowerdir=" + strings.Join(names, ":"), "upperdir=u", "workdir=w"}, s.Options...), ",")
	if err := unix.Mount("overlay", "m", "overlay", s.Flags, data); err != nil {
		return nil, fmt.Errorf("mount an overlay of %d layers (%s): %w", len(names), strings.Join(s.Options, ","), err)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, "m", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("open_tree", err)
	}
	return os.NewFile(uintptr(fd), "overlay on "+s.Upper), nil
}

// bring makes a layer known under a short name in the working directory.
func (l *Lower) bring(name string) error {
	if !filepath.IsAbs(l.Dir) {
		return fmt.Errorf("a layer's folder %q is no absolute path", l.Dir)
	}
	if l.IDs == nil {
		if err := unix.Symlink(l.Dir, name); err != nil {
			return &os.PathError{Op: "link to", Path: l.Dir, Err: err}
		}
		return nil
	}
	if err := unix.Mkdir(name, 0o700); err != nil {
		return os.NewSyscallError("mkdir", err)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, l.Dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return &os.PathError{Op: "open_tree", Path: l.Dir, Err: err}
	}
	defer unix.Close(fd)
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(l.IDs.Fd())}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr); err != nil {
		return &os.PathError{Op: "mount_setattr(MOUNT_ATTR_IDMAP)", Path: l.Dir, Err: err}
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, name, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "move_mount", Path: l.Dir, Err: err}
	}
	return nil
}

// onThread runs f on a thread that nothing else uses and that ends afterwards,
// with whatever f made of it.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The first thread cannot end, and /proc/PID shows its namespaces as
			// the process's. While it is held here, another gets the work.
			done <- onThread(f)
			runtime.UnlockOSThread()
			return
		}
		done <- f()
		// Not unlocked: the thread ends with this goroutine.
	}()
	return <-done
}
