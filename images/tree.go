package images

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// What a build leaves on disk is hostile: links that point anywhere, folders
// nested deeper than any path can say, and more of everything than one expects.
// The walk goes from open folder to open folder and follows no link.

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
