package images

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// What a build leaves on disk is hostile: links that point anywhere, folders
// nested deeper than any path can say, and more of everything than one expects.
// Both walks below go from open folder to open folder and follow no link.

// maxNest is how many folders the removing walk holds open.
const maxNest = 64

// entryCost is what a file costs in the count beside its blocks. Empty files
// have none, but take an inode each, of which ext4 has one for 16 KiB of disk.
const entryCost = 4096

// What ends a measuring walk early.
var (
	errTooMuch = errors.New("it used more disk than its limit")
	errTooDeep = fmt.Errorf("it nested folders deeper than %d", maxDepth)
)

// usage measures the bytes that a tree takes on disk. It stops with errTooMuch
// when they are more than most.
func usage(root string, most int64) (int64, error) {
	var total int64
	seen := map[inode]bool{} // of files with several names
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			return 0, nil
		}
		return 0, &os.PathError{Op: "open", Path: root, Err: err}
	}
	err = measure(fd, 0, func(st *unix.Stat_t) error {
		if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			id := inode{st.Dev, st.Ino}
			if seen[id] {
				return nil
			}
			seen[id] = true
		}
		total += st.Blocks*512 + entryCost
		if total > most {
			return errTooMuch
		}
		return nil
	})
	return total, err
}

type inode struct{ dev, ino uint64 }

// maxDepth is how deep the measuring goes, and so how deep a build may nest.
// Nothing sane does: PATH_MAX ends at 2048 one-letter folders.
const maxDepth = 1024

// measure calls f for everything below the folder fd, which it closes.
func measure(fd, depth int, f func(*unix.Stat_t) error) error {
	dir := os.NewFile(uintptr(fd), "")
	defer dir.Close()
	if depth > maxDepth {
		return errTooDeep
	}
	for {
		names, err := dir.Readdirnames(1024)
		for _, name := range names {
			var st unix.Stat_t
			if unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
				continue // gone meanwhile: the build is running
			}
			if err := f(&st); err != nil {
				return err
			}
			if st.Mode&unix.S_IFMT != unix.S_IFDIR {
				continue
			}
			sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NOATIME, 0)
			if errors.Is(err, unix.EPERM) {
				sub, err = unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			}
			if err != nil {
				continue
			}
			if err := measure(sub, depth+1, f); err != nil {
				return err
			}
		}
		if err == io.EOF || len(names) == 0 {
			return nil
		}
		if err != nil {
			return nil // a folder that was removed under the walk
		}
	}
}

var trash atomic.Int64

// removeTree removes path and everything below it. A path that is not there is
// no error.
func removeTree(path string) error {
	parent, err := unix.Open(filepath.Dir(path), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	defer unix.Close(parent)
	r := remover{top: parent, queue: []string{filepath.Base(path)}}
	for len(r.queue) > 0 {
		name := r.queue[len(r.queue)-1]
		r.queue = r.queue[:len(r.queue)-1]
		if err := r.remove(parent, name, 0); err != nil {
			return fmt.Errorf("%s cannot be removed: %w", path, err)
		}
	}
	return nil
}

// clearTree removes everything below the folder path.
func clearTree(path string) error {
	entries, err := os.ReadDir(path)
	for _, e := range entries {
		err = errors.Join(err, removeTree(filepath.Join(path, e.Name())))
	}
	return err
}

// remover deletes trees of any depth with few open folders: what is nested too
// deep is moved up beside the tree's root and deleted from there afterwards.
type remover struct {
	top   int      // open folder that holds the root
	queue []string // names in top
}

// remove deletes one entry of the open folder dir, or moves it to the queue.
func (r *remover) remove(dir int, name string, depth int) error {
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		return err
	}
	if depth > maxNest {
		moved := fmt.Sprintf(".trash-%d-%d", os.Getpid(), trash.Add(1))
		if err := unix.Renameat(dir, name, r.top, moved); err != nil {
			return err
		}
		r.queue = append(r.queue, moved)
		return nil
	}
	open := func() (int, error) {
		return unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	}
	fd, oerr := open()
	if errors.Is(oerr, unix.EACCES) {
		// A closed folder stops only those who are not root.
		unix.Fchmodat(dir, name, 0o700, 0)
		fd, oerr = open()
	}
	if oerr != nil {
		return err // of the first try: it was no folder
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	for {
		names, rerr := f.Readdirnames(4096)
		if rerr != nil && rerr != io.EOF {
			return rerr
		}
		for _, n := range names {
			if err := r.remove(fd, n, depth+1); err != nil {
				return err
			}
		}
		if len(names) > 0 {
			continue
		}
		err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
		if !errors.Is(err, unix.ENOTEMPTY) {
			if errors.Is(err, unix.ENOENT) {
				return nil
			}
			return err
		}
		// Reading while deleting may have skipped entries: once more.
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
}
