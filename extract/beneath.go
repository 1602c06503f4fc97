package extract

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// This file opens things below a folder without being led out of it. Every
// step is one openat of one name with O_NOFOLLOW, relative to the descriptor
// of the step before: that works on every kernel and under every seccomp
// profile (openat2 does neither), and a folder renamed or replaced meanwhile
// can only make a step fail.

// retry runs a system call again for as long as a signal interrupts it.
func retry[T any](f func() (T, error)) (T, error) {
	for {
		v, err := f()
		if err != unix.EINTR {
			return v, err
		}
	}
}

// openat opens one name, which may not be a link, below a folder.
func openat(dir int, name string, flags int, mode uint32) (int, error) {
	return retry(func() (int, error) {
		return unix.Openat(dir, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
	})
}

// openRoot opens the folder that everything else is relative to. The path is
// the caller's own and trusted up to its last element, which may not be a link.
func openRoot(root string) (int, error) {
	fd, err := openat(unix.AT_FDCWD, root, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open folder", Path: root, Err: err}
	}
	return fd, nil
}

// fstat and lstat describe an open file and a name that is not followed.
func fstat(fd int) (st unix.Stat_t, err error) {
	_, err = retry(func() (struct{}, error) { return struct{}{}, unix.Fstat(fd, &st) })
	return st, err
}

func lstat(dir int, name string) (st unix.Stat_t, err error) {
	_, err = retry(func() (struct{}, error) {
		return struct{}{}, unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	})
	return st, err
}

// readlink reads a link of at most max bytes. An empty name reads the link
// that dir itself is (opened with O_PATH).
func readlink(dir int, name string, max int) (string, error) {
	buf := make([]byte, max+1)
	n, err := retry(func() (int, error) { return unix.Readlinkat(dir, name, buf) })
	switch {
	case err != nil:
		return "", err
	case n > max:
		return "", unix.ENAMETOOLONG
	}
	return string(buf[:n]), nil
}

// readFull fills buf from an offset, or says how much there was.
func readFull(fd int, buf []byte, off int64) (int, error) {
	done := 0
	for done < len(buf) {
		n, err := retry(func() (int, error) { return unix.Pread(fd, buf[done:], off+int64(done)) })
		if err != nil {
			return done, err
		}
		if n == 0 {
			break
		}
		done += n
	}
	return done, nil
}

// dirCursor opens files by paths that come in sorted order: it keeps the
// folder of the last one open, so that most cost one openat.
type dirCursor struct {
	root int
	dir  string // relative to root, "" for root itself
	fd   int    // of dir; not ours while it is root
}

func newDirCursor(root int) *dirCursor { return &dirCursor{root: root, fd: root} }

func (c *dirCursor) close() {
	if c.fd != c.root {
		unix.Close(c.fd)
		c.fd, c.dir = c.root, ""
	}
}

// open opens a file for reading by its path relative to root, through no link.
// It does not wait, not even when the name has become a FIFO.
func (c *dirCursor) open(rel string) (int, error) {
	dir, name := path.Split(rel)
	dir = strings.TrimSuffix(dir, "/")
	if dir != c.dir {
		c.close()
		fd := c.root
		for part := range strings.SplitSeq(dir, "/") {
			if part == "" {
				continue
			}
			next, err := openat(fd, part, unix.O_PATH|unix.O_DIRECTORY, 0)
			if fd != c.root {
				unix.Close(fd)
			}
			if err != nil {
				return -1, err
			}
			fd = next
		}
		c.dir, c.fd = dir, fd
	}
	return openat(c.fd, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
}

// maxLinks is how many links one path may lead through, as in the kernel.
const maxLinks = 40

// rootfs looks paths up the way a process whose root is this folder would:
// links are followed, but absolute ones begin at the root and none climbs out.
type rootfs struct {
	root int
	// refuse, where it is set, may forbid to follow the link at a real path.
	refuse func(real string) error
	// mkdir makes the folders that a link points to and that do not exist.
	mkdir bool
	// saw, where it is set, is told of everything on the way that is no folder:
	// links, other files, and names that are not there.
	saw func(real string)
}

func (r *rootfs) note(real string) {
	if r.saw != nil {
		r.saw(real)
	}
}

// place is where a path really lies.
type place struct {
	fd   int    // an O_PATH descriptor of the file itself
	real string // relative to the root, through no link; "" is the root
	stat unix.Stat_t
}

// lookup finds what a path leads to, following links in every element of it,
// the last included. The caller closes the place.
func (r *rootfs) lookup(name string) (_ place, err error) {
	type step struct {
		fd   int
		name string
	}
	root, err := openat(r.root, ".", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return place{}, err
	}
	stack := []step{{root, ""}} // from the root to where we are
	pop := func(to int) {
		for _, s := range stack[to:] {
			unix.Close(s.fd)
		}
		stack = stack[:to]
	}
	defer func() {
		if err != nil {
			pop(0)
		}
	}()
	real := func(last string) string {
		parts := make([]string, 0, len(stack))
		for _, s := range stack[1:] {
			parts = append(parts, s.name)
		}
		if last != "" {
			parts = append(parts, last)
		}
		return strings.Join(parts, "/")
	}

	todo := strings.Split(name, "/")
	links, own := 0, len(todo) // own: how many of todo are the path's own, not a link's
	for len(todo) > 0 {
		part := todo[0]
		todo = todo[1:]
		isOwn := len(todo) < own
		if isOwn {
			own = len(todo)
		}
		switch part {
		case "", ".":
			continue
		case "..":
			pop(max(1, len(stack)-1))
			continue
		}
		at := stack[len(stack)-1].fd
		fd, err := openat(at, part, unix.O_PATH, 0)
		if err != nil {
			r.note(real(part))
		}
		if err == unix.ENOENT && r.mkdir && !isOwn {
			if err = unix.Mkdirat(at, part, 0o755); err == nil {
				fd, err = openat(at, part, unix.O_PATH, 0)
			}
		}
		if err != nil {
			return place{}, &os.PathError{Op: "look up", Path: "/" + real(part), Err: err}
		}
		st, err := fstat(fd)
		if err != nil {
			unix.Close(fd)
			return place{}, &os.PathError{Op: "stat", Path: "/" + real(part), Err: err}
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			r.note(real(part))
		}
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			stack = append(stack, step{fd, part})
			continue
		}
		target, err := readlink(fd, "", unix.PathMax)
		unix.Close(fd)
		if err != nil {
			return place{}, &os.PathError{Op: "read link", Path: "/" + real(part), Err: err}
		}
		if links++; links > maxLinks {
			return place{}, &os.PathError{Op: "look up", Path: name, Err: unix.ELOOP}
		}
		if r.refuse != nil {
			if err := r.refuse(real(part)); err != nil {
				return place{}, err
			}
		}
		if strings.HasPrefix(target, "/") {
			pop(1)
		}
		todo = append(strings.Split(target, "/"), todo...)
		if len(todo) > unix.PathMax {
			return place{}, &os.PathError{Op: "look up", Path: name, Err: unix.ENAMETOOLONG}
		}
	}
	last := len(stack) - 1
	p := place{fd: stack[last].fd, real: real("")}
	if p.stat, err = fstat(p.fd); err != nil {
		return place{}, err
	}
	for _, s := range stack[:last] {
		unix.Close(s.fd)
	}
	return p, nil
}

// lookupDir is lookup for what has to be a folder.
func (r *rootfs) lookupDir(name string) (place, error) {
	p, err := r.lookup(name)
	if err != nil {
		return p, err
	}
	if p.stat.Mode&unix.S_IFMT != unix.S_IFDIR {
		unix.Close(p.fd)
		return place{}, fmt.Errorf("%s is not a folder", quotePath("/"+p.real))
	}
	return p, nil
}

// openFile opens the regular file that a path leads to; nothing else.
func (r *rootfs) openFile(name string) (*os.File, unix.Stat_t, error) {
	p, err := r.lookup(name)
	if err != nil {
		return nil, p.stat, err
	}
	defer unix.Close(p.fd)
	if p.stat.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, p.stat, fmt.Errorf("%s is not a regular file", quotePath("/"+p.real))
	}
	c := newDirCursor(r.root)
	defer c.close()
	fd, err := c.open(p.real)
	if err != nil {
		return nil, p.stat, &os.PathError{Op: "open", Path: "/" + p.real, Err: err}
	}
	f := os.NewFile(uintptr(fd), "/"+p.real)
	if st, err := fstat(fd); err != nil || st.Dev != p.stat.Dev || st.Ino != p.stat.Ino {
		f.Close()
		return nil, p.stat, errors.Join(fmt.Errorf("%s changed while it was opened", quotePath("/"+p.real)), err)
	}
	return f, p.stat, nil
}

// names lists a folder, sorted.
func (r *rootfs) names(dir string) ([]string, error) {
	p, err := r.lookupDir(dir)
	if err != nil {
		return nil, err
	}
	defer unix.Close(p.fd)
	fd, err := openat(p.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open folder", Path: "/" + p.real, Err: err}
	}
	f := os.NewFile(uintptr(fd), "/"+p.real)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}
