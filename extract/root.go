package extract

import (
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Root looks paths up in a folder the way a process whose root it is would: links
// on the way are followed, absolute ones begin at the folder, and none leads out
// of it. It is what [Install] looks with, for those who lay artifacts in by a
// transaction of their own.
type Root struct{ fs rootfs }

// OpenRoot opens a folder, which may not be a link.
func OpenRoot(dir string) (*Root, error) {
	fd, err := openRoot(dir)
	if err != nil {
		return nil, err
	}
	return &Root{rootfs{root: fd}}, nil
}

// Close lets go of the folder.
func (r *Root) Close() error { return unix.Close(r.fs.root) }

// FD is the folder's descriptor, open until [Root.Close].
func (r *Root) FD() int { return r.fs.root }

// Dir opens the folder that a path leads to, with O_PATH: it is good for the calls
// whose names end in at. real is where it lies, relative to the root and through no
// link; "" is the root itself. Errors wrap those of the system.
func (r *Root) Dir(name string) (dir *os.File, real string, err error) {
	p, err := r.fs.lookupDir(name)
	if err != nil {
		return nil, "", err
	}
	return os.NewFile(uintptr(p.fd), "/"+p.real), p.real, nil
}

// Real opens a folder by a path that leads through no link, with O_PATH: a link on
// the way is an error.
func (r *Root) Real(name string) (*os.File, error) {
	fd, err := openat(r.fs.root, ".", unix.O_PATH|unix.O_DIRECTORY, 0)
	for part := range strings.SplitSeq(name, "/") {
		if err != nil {
			break
		}
		if part == "" {
			continue
		}
		dir := fd
		fd, err = openat(dir, part, unix.O_PATH|unix.O_DIRECTORY, 0)
		unix.Close(dir)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open folder", Path: "/" + name, Err: err}
	}
	return os.NewFile(uintptr(fd), "/"+name), nil
}

// IsLayout reports whether links in a folder are a system's layout, such as /lib:
// where they lead to a folder, artifacts leave them as they are. The folder is
// given as [Root.Dir] tells it.
func IsLayout(dir string) bool { return slices.Contains(layoutDirs, dir) }
