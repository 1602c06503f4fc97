// Package deltree deletes trees that somebody hostile has made: it follows no
// link, and needs neither a path that reaches the bottom nor an open folder for
// every level, as os.RemoveAll does.
package deltree

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// maxNest is how many folders of a tree are open at one time.
const maxNest = 64

var trash atomic.Int64

// Remove removes path and everything below it. A path that is not there is
// no error.
func Remove(path string) error {
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

// Clear removes everything below the folder path.
func Clear(path string) error {
	entries, err := os.ReadDir(path)
	for _, e := range entries {
		err = errors.Join(err, Remove(filepath.Join(path, e.Name())))
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
