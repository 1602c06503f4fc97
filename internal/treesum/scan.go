package treesum

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// maxDepth bounds how deep folders nest: each level takes an open file.
const maxDepth = 512

// Scan measures the tree below the folder root. deep reads everything, else
// only lstat's word counts. No link is followed: not root's last element, and
// none below it. read, which may be nil, is told of bytes as they are read, by
// several goroutines at once.
//
// What is there but cannot be read is noted in the entry (see [Tree.Unread]);
// an error means that root itself cannot be, that the tree nests deeper than
// 512 folders, or that ctx ended.
func Scan(ctx context.Context, root string, deep bool, read func(int64)) (*Tree, error) {
	fd, err := unix.Open(root, dirFlags, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: root, Err: err}
	}
	top := &node{name: "."}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "stat", Path: root, Err: err}
	}
	top.stat(&st)
	s := &scanner{deep: deep, read: read, links: map[linked]*shared{}}
	if s.read == nil {
		s.read = func(int64) {}
	}
	s.work, s.ctx = errgroup.WithContext(ctx)
	s.work.SetLimit(max(2, runtime.GOMAXPROCS(0)))
	s.work.Go(func() error { return s.dir(fd, top, 0) })
	if err := s.work.Wait(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	t := &Tree{Deep: deep, Entries: make([]Entry, 0, top.count())}
	top.flatten("", t)
	return t, nil
}

const (
	dirFlags  = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fileFlags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
)

// openat opens without leaving a trace in the time of access where that is
// allowed.
func openat(dir int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_NOATIME, 0)
		if err == unix.EPERM {
			fd, err = unix.Openat(dir, name, flags, 0)
		}
		if err != unix.EINTR {
			return fd, err
		}
	}
}

type node struct {
	name string
	e    Entry
	kids []*node
}

func (n *node) count() int {
	c := 1
	for _, k := range n.kids {
		c += k.count()
	}
	return c
}

func (n *node) flatten(dir string, t *Tree) {
	path := n.name
	if dir != "" {
		path = join(dir, n.name)
	}
	n.e.Path = path
	t.Entries = append(t.Entries, n.e)
	for _, k := range n.kids {
		k.flatten(path, t)
	}
}

func (n *node) stat(st *unix.Stat_t) {
	e := &n.e
	e.Mode, e.UID, e.GID, e.Inode = st.Mode&07777, st.Uid, st.Gid, st.Ino
	e.Mtime = Time{int64(st.Mtim.Sec), uint32(st.Mtim.Nsec)}
	e.Ctime = Time{int64(st.Ctim.Sec), uint32(st.Ctim.Nsec)}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Kind, e.Size = File, st.Size
	case unix.S_IFDIR:
		e.Kind = Dir
	case unix.S_IFLNK:
		e.Kind = Link
	case unix.S_IFIFO:
		e.Kind = Pipe
	case unix.S_IFSOCK:
		e.Kind = Socket
	case unix.S_IFCHR:
		e.Kind, e.Rdev = Char, uint64(st.Rdev)
	case unix.S_IFBLK:
		e.Kind, e.Rdev = Block, uint64(st.Rdev)
	}
}

type scanner struct {
	ctx  context.Context
	work *errgroup.Group
	deep bool
	read func(int64)

	mu    sync.Mutex // guards the following
	links map[linked]*shared
}

// linked is a file with several names, which is read once.
type linked struct{ dev, ino uint64 }

type shared struct {
	once   sync.Once
	sum    [32]byte
	attrs  []Xattr
	unread string
}

// run does something beside when a processor is free, else at once. Either way
// f must close what it was given.
func (s *scanner) run(f func() error) error {
	if s.work.TryGo(f) {
		return nil
	}
	return f()
}

// dir reads the open folder fd, and closes it.
func (s *scanner) dir(fd int, n *node, depth int) error {
	f := os.NewFile(uintptr(fd), n.name)
	defer f.Close()
	if depth > maxDepth {
		return fmt.Errorf("folders nest deeper than %d: no system needs that", maxDepth)
	}
	if err := s.ctx.Err(); err != nil {
		return err
	}
	names, err := f.Readdirnames(-1)
	if err != nil {
		n.e.Unread = reason(err)
	}
	if s.deep && n.e.Unread == "" {
		n.e.Attrs, err = fileAttrs(fd)
		if err != nil {
			n.e.Unread = reason(err)
		}
	}
	slices.Sort(names)
	nodes := make([]node, len(names))
	n.kids = make([]*node, 0, len(names))
	var st unix.Stat_t
	for i, name := range names {
		k := &nodes[i]
		k.name = name
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			if err == unix.ENOENT {
				continue // removed meanwhile
			}
			k.e.Unread = reason(err)
			n.kids = append(n.kids, k)
			continue
		}
		k.stat(&st)
		n.kids = append(n.kids, k)
		if err := s.entry(fd, k, &st, depth); err != nil {
			return err
		}
	}
	return nil
}

func (s *scanner) entry(dir int, k *node, st *unix.Stat_t, depth int) error {
	switch {
	case k.e.Kind == Dir:
		sub, err := openat(dir, k.name, dirFlags)
		if err != nil {
			k.e.Unread = reason(err)
			return nil
		}
		return s.run(func() error { return s.dir(sub, k, depth+1) })
	case k.e.Kind == Link:
		var err error
		if k.e.Link, err = readlinkat(dir, k.name); err != nil {
			k.e.Unread = reason(err)
			return nil
		}
	case k.e.Kind == File && s.deep:
		fd, err := openat(dir, k.name, fileFlags)
		if err != nil {
			k.e.Unread = reason(err)
			return nil
		}
		if st.Size < 64<<10 {
			return s.file(fd, k, st)
		}
		at := *st // st is the loop's next entry by then
		return s.run(func() error { return s.file(fd, k, &at) })
	}
	if s.deep {
		var err error
		// There is no way to ask for the attributes of what must not be opened
		// but by a path.
		if k.e.Attrs, err = pathAttrs(fmt.Sprintf("/proc/self/fd/%d/%s", dir, k.name)); err != nil {
			k.e.Unread = reason(err)
		}
	}
	return nil
}

// file reads the open file fd, and closes it.
func (s *scanner) file(fd int, k *node, st *unix.Stat_t) error {
	defer unix.Close(fd)
	once := &shared{}
	if st.Nlink > 1 {
		id := linked{uint64(st.Dev), st.Ino}
		s.mu.Lock()
		if known := s.links[id]; known != nil {
			once = known
		}
		s.links[id] = once
		s.mu.Unlock()
	}
	once.once.Do(func() { s.content(fd, st, once) })
	k.e.Sum, k.e.Attrs, k.e.Unread = once.sum, once.attrs, once.unread
	return s.ctx.Err()
}

var buffers = sync.Pool{New: func() any { return new([256 << 10]byte) }}

func (s *scanner) content(fd int, st *unix.Stat_t, to *shared) {
	var now unix.Stat_t
	err := unix.Fstat(fd, &now)
	if err == nil && (now.Ino != st.Ino || now.Mode != st.Mode) {
		err = errors.New("it was replaced while it was read")
	}
	buf := buffers.Get().(*[256 << 10]byte)
	defer buffers.Put(buf)
	sum := sha256.New()
	for err == nil && s.ctx.Err() == nil {
		var n int
		n, err = unix.Read(fd, buf[:])
		switch {
		case err == unix.EINTR:
			err = nil
		case n > 0:
			sum.Write(buf[:n])
			s.read(int64(n))
		case err == nil:
			err = io.EOF
		}
	}
	if err == io.EOF {
		err = nil
	}
	sum.Sum(to.sum[:0])
	if err == nil {
		to.attrs, err = fileAttrs(fd)
	}
	if err != nil {
		to.unread = reason(err)
	}
}

func reason(err error) string {
	var path *os.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	return err.Error()
}

func readlinkat(dir int, name string) (string, error) {
	buf := make([]byte, 256)
	for {
		n, err := unix.Readlinkat(dir, name, buf)
		if err != nil {
			return "", err
		}
		if n < len(buf) {
			return string(buf[:n]), nil
		}
		buf = make([]byte, 2*len(buf))
	}
}

func fileAttrs(fd int) ([]Xattr, error) {
	return attrs(
		func(b []byte) (int, error) { return unix.Flistxattr(fd, b) },
		func(name string, b []byte) (int, error) { return unix.Fgetxattr(fd, name, b) })
}

func pathAttrs(path string) ([]Xattr, error) {
	return attrs(
		func(b []byte) (int, error) { return unix.Llistxattr(path, b) },
		func(name string, b []byte) (int, error) { return unix.Lgetxattr(path, name, b) })
}

func attrs(list func([]byte) (int, error), get func(string, []byte) (int, error)) ([]Xattr, error) {
	names, err := grow(list)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	var found []Xattr
	for raw := range bytes.SplitSeq(names, []byte{0}) {
		name := string(raw)
		if name == "" || name == "security.selinux" {
			continue
		}
		value, err := grow(func(b []byte) (int, error) { return get(name, b) })
		if err != nil {
			return nil, err
		}
		found = append(found, Xattr{name, string(value)})
	}
	slices.SortFunc(found, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	return found, nil
}

// grow calls f with a buffer that is large enough.
func grow(f func([]byte) (int, error)) ([]byte, error) {
	// Nearly no file has any, which the first call tells without a buffer.
	for {
		n, err := f(nil)
		if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENODATA) {
			return nil, nil
		}
		if err != nil || n == 0 {
			return nil, err
		}
		buf := make([]byte, n)
		n, err = f(buf)
		if errors.Is(err, unix.ERANGE) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}
