package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// BrokenError says that a root was replaced only half, so that its container is
// of no use any more. Any other error of [Replace] means that nothing changed.
type BrokenError struct{ Err error }

func (e *BrokenError) Error() string {
	return "the container's root was replaced only half: " + e.Err.Error()
}
func (e *BrokenError) Unwrap() error { return e.Err }

// Replace makes a mount that [New] made the root of every process whose root is
// now that of the process pid, in that one's mount namespace. Whoever has this
// root as working directory has the new one's. Everything that is mounted
// below the old root is then mounted below the new one at the same places,
// where it must have folders for folders and files for files. pidfd stands for
// the same process and makes sure that it does.
//
// The container should be idle: a path that is being looked up at this moment
// may end in either tree. Files that are open stay those of the old one.
func Replace(pid, pidfd int, root *os.File) error {
	mounts, err := Mounts(pid)
	if err != nil {
		return err
	}
	top, err := Root(mounts)
	if err != nil {
		return err
	}
	if top.Shared {
		return errors.New("the container's root shares its mounts with others: it cannot be replaced")
	}
	var points []string
	for _, m := range mounts {
		if m.Parent == top.ID && m.Point != "/" {
			points = append(points, m.Point[1:])
		}
	}
	if err := unix.PidfdSendSignal(pidfd, 0, nil, 0); err != nil {
		return fmt.Errorf("the container's first process is gone: %w", err)
	}
	return onThread(func() error { return replace(pidfd, int(root.Fd()), points) })
}

// replace runs on a thread of its own. Nothing in it opens a file by a path
// that somebody else could lead astray: names are resolved below one of the
// two roots, without links.
func replace(pidfd, root int, points []string) (err error) {
	// setns(2) refuses a thread that shares its root with others.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return os.NewSyscallError("unshare(CLONE_FS)", err)
	}
	if err := unix.Setns(pidfd, unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("setns(CLONE_NEWNS)", err)
	}
	// Root and working directory are the container's now.
	old, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "the container's root", Err: err}
	}
	defer unix.Close(old)
	// Over the old root: there nobody who has it as his root sees it.
	if err := unix.MoveMount(root, "", old, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return os.NewSyscallError("move_mount of the new root", err)
	}
	pivoted := false
	defer func() {
		if err == nil || pivoted {
			return
		}
		if e := unix.Fchdir(root); e == nil {
			e = unix.Unmount(".", unix.MNT_DETACH)
			if e != nil {
				err = &BrokenError{errors.Join(err, os.NewSyscallError("unmount the new root", e))}
			}
		}
	}()
	for _, p := range points {
		if err := bring(old, root, p); err != nil {
			return err
		}
	}
	if err := unix.Fchdir(root); err != nil {
		return os.NewSyscallError("fchdir", err)
	}
	// The new root takes the old one's place and has it mounted over itself.
	if err := unix.PivotRoot(".", "."); err != nil {
		return os.NewSyscallError("pivot_root", err)
	}
	pivoted = true
	if err := unix.Fchdir(old); err != nil {
		return &BrokenError{os.NewSyscallError("fchdir", err)}
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return &BrokenError{os.NewSyscallError("unmount the old root", err)}
	}
	return nil
}

// bring mounts what is mounted at a place below one root at the same place
// below another, with all that is mounted below it.
func bring(old, root int, point string) error {
	from, err := openPlace(old, point, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/" + point, Err: err}
	}
	defer unix.Close(from)
	// Not into a mount that was brought before: there are none that overlap.
	to, err := openPlace(root, point, unix.RESOLVE_NO_XDEV)
	if err != nil {
		return &os.PathError{Op: "open in the new root", Path: "/" + point, Err: err}
	}
	defer unix.Close(to)
	tree, err := unix.OpenTree(from, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	if err != nil {
		return &os.PathError{Op: "open_tree", Path: "/" + point, Err: err}
	}
	defer unix.Close(tree)
	if err := unix.MoveMount(tree, "", to, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "move_mount", Path: "/" + point, Err: err}
	}
	return nil
}

// openPlace opens a path below a folder, through no link.
func openPlace(dir int, path string, resolve uint64) (int, error) {
	return unix.Openat2(dir, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | resolve,
	})
}

// Mount is a line of /proc/PID/mountinfo (proc_pid_mountinfo(5)).
type Mount struct {
	ID, Parent int
	Point      string   // absolute, below the process's root
	Flags      []string // of the mount, e.g. rw, nosuid
	Shared     bool
	Type       string   // e.g. overlay
	Options    []string // of the file system; texts in them are escaped as the kernel does it
}

// Mounts lists the mounts that a process sees.
func Mounts(pid int) ([]Mount, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("the container's mounts cannot be read: %w", err)
	}
	return parseMounts(data)
}

func parseMounts(data []byte) ([]Mount, error) {
	var all []Mount
	for line := range bytes.Lines(data) {
		f := strings.Fields(string(line))
		dash := 6
		for dash < len(f) && f[dash] != "-" {
			dash++
		}
		if dash+3 >= len(f) || !strings.HasPrefix(f[4], "/") {
			return nil, fmt.Errorf("the container's mounts cannot be read: line %q is of no known form", bytes.TrimSpace(line))
		}
		m := Mount{Point: unescape(f[4]), Flags: strings.Split(f[5], ","), Type: f[dash+1], Options: splitOptions(f[dash+3])}
		var e1, e2 error
		m.ID, e1 = strconv.Atoi(f[0])
		m.Parent, e2 = strconv.Atoi(f[1])
		if e1 != nil || e2 != nil {
			return nil, fmt.Errorf("the container's mounts cannot be read: line %q is of no known form", bytes.TrimSpace(line))
		}
		for _, o := range f[6:dash] {
			m.Shared = m.Shared || strings.HasPrefix(o, "shared:")
		}
		all = append(all, m)
	}
	return all, nil
}

// Root finds the mount that is the root of all the others.
func Root(mounts []Mount) (Mount, error) {
	var found []Mount
	for _, m := range mounts {
		if m.Point == "/" {
			found = append(found, m)
		}
	}
	if len(found) != 1 {
		return Mount{}, fmt.Errorf("the container has %d mounts as its root, not one", len(found))
	}
	return found[0], nil
}

// unescape undoes the kernel's \040 for blanks.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// splitOptions splits at commas that are not within quotation marks, as labels
// of SELinux have them.
func splitOptions(s string) []string {
	quoted := false
	return strings.FieldsFunc(s, func(r rune) bool {
		if r == '"' {
			quoted = !quoted
		}
		return r == ',' && !quoted
	})
}
