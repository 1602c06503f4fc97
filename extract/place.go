package extract

import (
	"archive/tar"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry"
)

// node is one entry on its way into the folder installer.parent.
type node struct {
	base   string // its name there
	real   string // its real path
	h      *tar.Header
	exists bool
	there  unix.Stat_t     // what exists
	ours   quarry.FileKind // what this artifact put there before, through another name of the folder
	kept   bool            // what was there stays
}

func (n *node) is(kind uint32) bool { return n.exists && n.there.Mode&unix.S_IFMT == kind }

var (
	errIsFolder     = errors.New("a folder is there already")
	errIsFile       = errors.New("a file is there already, where a folder has to be")
	errIsFolderLink = errors.New("a link to a folder is there already")
)

// leadsToFolder reports whether the link that was there leads to a folder.
func (in *installer) leadsToFolder(n *node) bool {
	look := rootfs{root: in.root, saw: in.saw}
	p, err := look.lookupDir(n.real)
	if err == nil {
		unix.Close(p.fd)
	}
	return err == nil
}

// folder makes a folder where there is none.
func (in *installer) folder(n *node) error {
	switch {
	case n.is(unix.S_IFDIR):
		n.kept = true
		return nil
	case n.is(unix.S_IFLNK) && n.ours == "":
		// usr-merge: /lib is the base's link to usr/lib, and stays. Where it
		// leads is made if it is missing, as /run/lock behind /var/lock.
		p, err := in.lookupDir(n.real)
		if err == nil {
			n.kept = true
			unix.Close(p.fd)
		}
		return err
	case n.is(unix.S_IFLNK):
		// The artifact has /lib/x as a link to its folder /usr/lib/x, and both
		// are one place here: the folder it is.
		if err := unix.Unlinkat(in.parent.fd, n.base, 0); err != nil {
			return &os.PathError{Op: "remove", Path: "/" + n.real, Err: err}
		}
	case n.exists:
		return errIsFile
	}
	if err := unix.Mkdirat(in.parent.fd, n.base, 0o700); err != nil {
		return &os.PathError{Op: "make folder", Path: "/" + n.real, Err: err}
	}
	fd, err := openat(in.parent.fd, n.base, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return &os.PathError{Op: "open folder", Path: "/" + n.real, Err: err}
	}
	defer unix.Close(fd)
	in.dirs = append(in.dirs, madeDir{n.real, n.h.ModTime})
	return in.own(fd, n)
}

// own gives an open file its owner and mode.
func (in *installer) own(fd int, n *node) error {
	if in.chown {
		if err := unix.Fchown(fd, n.h.Uid, n.h.Gid); err != nil {
			return &os.PathError{Op: "set owner", Path: "/" + n.real, Err: err}
		}
	}
	// After the owner, as a change of that clears setuid.
	if err := unix.Fchmod(fd, uint32(n.h.Mode)); err != nil {
		return &os.PathError{Op: "set mode", Path: "/" + n.real, Err: err}
	}
	return nil
}

// layoutDirs hold the links that are a system's layout (/lib, /usr/sbin,
// /usr/local/man): where they lead to a folder they stay.
var layoutDirs = []string{"", "usr", "usr/local"}

func (in *installer) symlink(n *node) error {
	switch {
	case n.is(unix.S_IFDIR):
		// Debian has a folder /usr/lib/terminfo, where ncurses installs a link:
		// the folder stays and serves as well.
		n.kept = true
		return nil
	case n.is(unix.S_IFLNK):
		target, err := readlink(in.parent.fd, n.base, unix.PathMax)
		if err != nil {
			return &os.PathError{Op: "read link", Path: "/" + n.real, Err: err}
		}
		layout := slices.Contains(layoutDirs, in.parent.real) && n.ours == "" && in.leadsToFolder(n)
		if target == n.h.Linkname || layout {
			in.note(n.real)
			n.kept = true
			return nil
		}
	case n.exists && n.ours != "":
		// The artifact has /usr/lib/x as a link to its file /lib/x, and both
		// are one place here: the file it is.
		n.kept = true
		return nil
	}
	return in.create(n, func(name string) error {
		if err := unix.Symlinkat(n.h.Linkname, in.parent.fd, name); err != nil {
			return err
		}
		if in.chown {
			if err := unix.Fchownat(in.parent.fd, name, n.h.Uid, n.h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return err
			}
		}
		return in.setTime(in.parent.fd, name, n.h.ModTime)
	})
}

func (in *installer) hardlink(n *node) error {
	target, ok := in.names[n.h.Linkname]
	if !ok {
		return fmt.Errorf("it is a hard link to %s, which is no file that the artifact has before it", quotePath("/"+n.h.Linkname))
	}
	if target == n.real {
		n.kept = true
		return nil
	}
	look := rootfs{root: in.root}
	dir, err := look.lookupDir(path.Dir(target))
	if err != nil {
		return err
	}
	defer unix.Close(dir.fd)
	if err := in.replaceable(n); err != nil {
		return err
	}
	return in.create(n, func(name string) error {
		return unix.Linkat(dir.fd, path.Base(target), in.parent.fd, name, 0)
	})
}

func (in *installer) fifo(n *node) error {
	if err := in.replaceable(n); err != nil {
		return err
	}
	return in.create(n, func(name string) error {
		if err := unix.Mknodat(in.parent.fd, name, unix.S_IFIFO|0o600, 0); err != nil {
			return err
		}
		if in.chown {
			if err := unix.Fchownat(in.parent.fd, name, n.h.Uid, n.h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return err
			}
		}
		// There is no fchmodat that follows no link before Linux 6.6, and none
		// is needed: this name was made just now, and is no link.
		if err := unix.Fchmodat(in.parent.fd, name, uint32(n.h.Mode), 0); err != nil {
			return err
		}
		return in.setTime(in.parent.fd, name, n.h.ModTime)
	})
}

func (in *installer) regular(n *node, contents io.Reader) error {
	if err := in.replaceable(n); err != nil {
		return err
	}
	return in.create(n, func(name string) error {
		fd, err := openat(in.parent.fd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), "/"+n.real)
		defer f.Close()
		// Only the writer's own Write: reading from a tar entry has no shortcut
		// that the buffer could spoil.
		written, err := io.CopyBuffer(struct{ io.Writer }{f}, contents, in.buf)
		if err == nil && written != n.h.Size {
			err = io.ErrUnexpectedEOF
		}
		if _, ours := errors.AsType[*os.PathError](err); err != nil && !ours {
			err = fmt.Errorf("cannot read the artifact: %w", err)
		}
		if err == nil {
			err = in.own(fd, n)
		}
		if caps := n.h.PAXRecords[paxCaps]; caps != "" && err == nil {
			// A workspace may be kept from setting them, and can do without.
			err = unix.Fsetxattr(fd, capXattr, []byte(caps), 0)
			if err == unix.EPERM || err == unix.ENOTSUP {
				err = nil
			}
		}
		if err == nil {
			err = in.setTime(in.parent.fd, name, n.h.ModTime)
		}
		return cmp.Or(err, f.Close())
	})
}

// replaceable reports whether a file may take the place of what is there.
func (in *installer) replaceable(n *node) error {
	switch {
	case n.is(unix.S_IFDIR):
		return errIsFolder
	case n.is(unix.S_IFLNK) && n.ours == "" && in.leadsToFolder(n):
		return errIsFolderLink
	}
	return nil
}

// create makes a new name, or makes it beside the one that exists and moves it
// there: a file that runs or is mapped is replaced, never written into.
func (in *installer) create(n *node, with func(name string) error) error {
	fail := func(name string, err error) error {
		unix.Unlinkat(in.parent.fd, name, 0)
		if errno, ok := err.(unix.Errno); ok {
			err = &os.PathError{Op: "write", Path: "/" + n.real, Err: errno}
		}
		return err
	}
	if !n.exists {
		if err := with(n.base); err != nil {
			return fail(n.base, err)
		}
		return nil
	}
	var name string
	for {
		name = fmt.Sprintf(".quarry-%d", in.temp)
		in.temp++
		if _, err := lstat(in.parent.fd, name); err == unix.ENOENT {
			break
		}
	}
	if err := with(name); err != nil {
		return fail(name, err)
	}
	if err := unix.Renameat(in.parent.fd, name, in.parent.fd, n.base); err != nil {
		return fail(name, err)
	}
	// Renaming one name of a file over another name of it does nothing.
	unix.Unlinkat(in.parent.fd, name, 0)
	return nil
}

func (in *installer) setTime(dir int, name string, t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	_, err := retry(func() (struct{}, error) {
		return struct{}{}, unix.UtimesNanoAt(dir, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	})
	return err
}

// finish gives the new folders their times, now that nothing is made in them.
func (in *installer) finish() error {
	look := rootfs{root: in.root}
	for _, d := range slices.Backward(in.dirs) {
		p, err := look.lookupDir(path.Dir(d.real))
		if err != nil {
			return fmt.Errorf("cannot set the time of /%s: %w", d.real, err)
		}
		err = in.setTime(p.fd, path.Base(d.real), d.time)
		unix.Close(p.fd)
		if err != nil {
			return fmt.Errorf("cannot set the time of /%s: %w", d.real, err)
		}
	}
	return nil
}
