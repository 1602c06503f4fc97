package layers

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Tree is what lies in a layer, by name: enough to tell whether two layers get
// in each other's way.
type Tree struct {
	top   node
	Files int   // paths of all kinds
	Bytes int64 // on disk, which file systems change after the fact: blocks are given to files late
	// Length is what files and links hold, bytes. It stays the same.
	Length int64
}

// node is one path. Of what is no folder only the kind counts.
type node struct {
	name           string
	mode, uid, gid uint32
	kids           []node // sorted by name
}

func (n *node) is(kind uint32) bool { return n.mode&unix.S_IFMT == kind }

func (n *node) find(name string) *node {
	i, ok := slices.BinarySearchFunc(n.kids, name, func(k node, name string) int { return strings.Compare(k.name, name) })
	if !ok {
		return nil
	}
	return &n.kids[i]
}

// Limits on what a layer may hold. Install's are lower.
const (
	maxFiles = 1_000_000
	maxDepth = 256
)

// errForeign is of an entry that no layer may have.
var errForeign = errors.New("is of a kind that no layer can have")

// Scan reads a layer, following no link. With clean it takes the notes off that
// overlayfs keeps in the extended attributes of a writable layer: of folders that
// it made it notes that nothing below shows through them, which is not so
// any more when the layer lies over others than it was written over.
func Scan(dir string, clean bool) (*Tree, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	s := scan{tree: &Tree{top: node{mode: unix.S_IFDIR}}, clean: clean}
	if err := s.folder(os.NewFile(uintptr(fd), dir), &s.tree.top, 0); err != nil {
		return nil, err
	}
	return s.tree, nil
}

type scan struct {
	tree  *Tree
	clean bool
	seen  map[uint64]bool // inodes of several names
}

func (s *scan) folder(dir *os.File, into *node, depth int) error {
	defer dir.Close()
	fail := func(name string, err error) error {
		return fmt.Errorf("layer %s: %.200q: %w", dir.Name(), name, err)
	}
	if depth > maxDepth {
		return fail(".", fmt.Errorf("is more than %d folders deep", maxDepth))
	}
	fd := int(dir.Fd())
	if s.clean {
		if err := cleanXattrs(fd); err != nil {
			return fail(".", err)
		}
	}
	names, err := dir.Readdirnames(-1)
	if err != nil && err != io.EOF {
		return fail(".", err)
	}
	slices.Sort(names)
	into.kids = make([]node, len(names))
	for i, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fail(name, err)
		}
		if s.tree.Files++; s.tree.Files > maxFiles {
			return fail(name, fmt.Errorf("is one of more than %d", maxFiles))
		}
		k := &into.kids[i]
		*k = node{name: name, mode: st.Mode & unix.S_IFMT}
		switch k.mode {
		case unix.S_IFDIR:
			k.mode, k.uid, k.gid = st.Mode, st.Uid, st.Gid
			sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err != nil {
				return fail(name, err)
			}
			if err := s.folder(os.NewFile(uintptr(sub), dir.Name()+"/"+name), k, depth+1); err != nil {
				return err
			}
		case unix.S_IFREG, unix.S_IFLNK, unix.S_IFIFO:
		default: // a character device 0:0 hides a file below
			return fail(name, errForeign)
		}
		if st.Nlink > 1 && k.mode == unix.S_IFREG {
			if s.seen[st.Ino] {
				continue
			}
			if s.seen == nil {
				s.seen = map[uint64]bool{}
			}
			s.seen[st.Ino] = true
		}
		s.tree.Bytes += st.Blocks * 512
		if k.mode == unix.S_IFREG || k.mode == unix.S_IFLNK {
			s.tree.Length += st.Size
		}
	}
	return nil
}

// overlayXattrs are where overlayfs keeps its notes: the second where it has
// been told to by userxattr.
var overlayXattrs = []string{"trusted.overlay.", "user.overlay."}

func cleanXattrs(fd int) error {
	buf := make([]byte, 1024)
	n, err := unix.Flistxattr(fd, buf)
	if err == unix.ERANGE {
		buf = make([]byte, 64<<10) // XATTR_LIST_MAX
		n, err = unix.Flistxattr(fd, buf)
	}
	if err != nil {
		return os.NewSyscallError("flistxattr", err)
	}
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		for _, prefix := range overlayXattrs {
			if !strings.HasPrefix(name, prefix) {
				continue
			}
			// One that says that the folder has moved cannot come from
			// unpacking, and without it the layer would be another.
			if strings.HasSuffix(name, ".redirect") || strings.HasSuffix(name, ".metacopy") {
				return errForeign
			}
			if err := unix.Fremovexattr(fd, name); err != nil {
				return os.NewSyscallError("fremovexattr", err)
			}
		}
	}
	return nil
}

// at finds what a layer has at a real path.
func (t *Tree) at(path string) *node {
	n := &t.top
	for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		if n = n.find(part); n == nil {
			return nil
		}
	}
	return n
}

// Conflict tells at which path the layer, made over the root alone, would be
// another if it were made over the root with the tree below it; "" when there
// is none. A file in the place of a file is none: the later one is what counts
// in either case.
func (l *Layer) Conflict(below *Tree) string {
	for _, path := range l.seen {
		if below.at(path) != nil {
			return path
		}
	}
	return conflict("", &below.top, &l.tree.top)
}

func conflict(path string, a, b *node) string {
	i, j := 0, 0
	for i < len(a.kids) && j < len(b.kids) {
		x, y := &a.kids[i], &b.kids[j]
		switch c := strings.Compare(x.name, y.name); {
		case c < 0:
			i++
			continue
		case c > 0:
			j++
			continue
		}
		i++
		j++
		full := path + "/" + x.name
		switch {
		case x.is(unix.S_IFREG) && y.is(unix.S_IFREG):
		case x.is(unix.S_IFDIR) && y.is(unix.S_IFDIR):
			// A folder that was there keeps its owner and mode.
			if x.mode != y.mode || x.uid != y.uid || x.gid != y.gid {
				return full
			}
			if p := conflict(full, x, y); p != "" {
				return p
			}
		default:
			return full
		}
	}
	return ""
}

// Over is Conflict with an earlier layer.
func (l *Layer) Over(below *Layer) string { return l.Conflict(below.tree) }
