// Package treesum tells whether a folder with everything in it is still what it
// was.
//
// [Scan] takes a folder's measure: of each file its kind, mode, owner, size,
// times, inode and, in a deep scan, the SHA-256 of its content and its extended
// attributes. [Tree.Encode] keeps that in a small file. Later, [Touched] on a
// quick scan finds whatever was changed through the file system, since that
// leaves a trace in the time of the last change (ctime) that no program can
// put back; and [Compare] on a deep scan finds also what changed beneath it,
// by power loss or a dying disk, and says what differs.
package treesum

import (
	"fmt"
	"strings"
)

// Kind says what a file is.
type Kind byte

const (
	File   Kind = 'f'
	Dir    Kind = 'd'
	Link   Kind = 'l' // symbolic
	Pipe   Kind = 'p'
	Socket Kind = 's'
	Char   Kind = 'c' // overlay's mark of a deleted file is one, with Rdev 0
	Block  Kind = 'b'
)

func (k Kind) String() string {
	switch k {
	case File:
		return "a file"
	case Dir:
		return "a folder"
	case Link:
		return "a symbolic link"
	case Pipe:
		return "a pipe"
	case Socket:
		return "a socket"
	case Char:
		return "a character device"
	case Block:
		return "a block device"
	}
	return fmt.Sprintf("of unknown kind %d", byte(k))
}

// Time is a file's time; those of ext4 reach beyond what 64 bits of
// nanoseconds can say.
type Time struct {
	Sec  int64 // since 1970
	Nsec uint32
}

// Xattr is one extended attribute.
type Xattr struct{ Name, Value string }

// Entry is one file of a tree.
type Entry struct {
	Path  string // from the tree's root, with slashes, e.g. usr/bin/sh; "." is the root itself
	Kind  Kind
	Mode  uint32 // permission bits, setuid, setgid and sticky included (07777)
	UID   uint32
	GID   uint32
	Size  int64  // bytes; of a File only
	Rdev  uint64 // of a Char or Block only
	Link  string // where a Link leads, as it stands there
	Sum   [32]byte
	Attrs []Xattr // by name; security.selinux, which is the host's own affair, is left out
	Mtime Time
	Ctime Time
	Inode uint64

	// Unread says why the file or folder could not be read; "" when it could.
	// It is not encoded.
	Unread string
}

// Tree is the measure of a tree.
type Tree struct {
	Deep    bool // Sum and Attrs are known
	Entries []Entry
}

// Files counts the entries, folders included, and Bytes what the files hold.
func (t *Tree) Files() int { return len(t.Entries) }

// Bytes is the size of all files together; one with several names counts under
// each.
func (t *Tree) Bytes() (n int64) {
	for i := range t.Entries {
		n += t.Entries[i].Size
	}
	return n
}

// Unread returns the first entry that could not be read, nil when all were.
func (t *Tree) Unread() *Entry {
	for i := range t.Entries {
		if t.Entries[i].Unread != "" {
			return &t.Entries[i]
		}
	}
	return nil
}

// Diff says what is wrong with one file.
type Diff struct {
	Path   string // as in Entry
	Detail string // e.g. "has 0 bytes, not 1234"
}

func (d Diff) String() string { return fmt.Sprintf("%q %s", d.Path, d.Detail) }

// Compare finds what is another in got than it was in want: files that are
// missing, added or of another kind, mode, owner, size, link target, time of
// modification (of folders, which carry no meaning, not), and, where both are
// deep, content and extended attributes. It returns the first most differences
// and how many there are in all.
func Compare(want, got *Tree, most int) (diffs []Diff, total int) {
	deep := want.Deep && got.Deep
	add := func(path, detail string) {
		if total++; total <= most {
			diffs = append(diffs, Diff{path, detail})
		}
	}
	a, b := want.Entries, got.Entries
	for len(a) > 0 || len(b) > 0 {
		c := -1
		switch {
		case len(a) == 0:
			c = 1
		case len(b) > 0:
			c = comparePaths(a[0].Path, b[0].Path)
		}
		switch {
		case c < 0:
			add(a[0].Path, "is missing")
			a = a[1:]
		case c > 0:
			add(b[0].Path, "was added")
			b = b[1:]
		default:
			if d := a[0].differs(&b[0], deep); d != "" {
				add(a[0].Path, d)
			}
			a, b = a[1:], b[1:]
		}
	}
	return diffs, total
}

// differs says in which way now is not what e was; "" when it is.
func (e *Entry) differs(now *Entry, deep bool) string {
	switch {
	case e.Kind != now.Kind:
		return fmt.Sprintf("is %v, not %v", now.Kind, e.Kind)
	case now.Unread != "":
		return "cannot be read: " + now.Unread
	case e.Size != now.Size:
		return fmt.Sprintf("has %d bytes, not %d", now.Size, e.Size)
	case e.Link != now.Link:
		return fmt.Sprintf("leads to %q, not %q", now.Link, e.Link)
	case e.Rdev != now.Rdev:
		return fmt.Sprintf("is device %#x, not %#x", now.Rdev, e.Rdev)
	case deep && e.Sum != now.Sum:
		return fmt.Sprintf("has other content (sha256 %.12x, not %.12x)", now.Sum[:6], e.Sum[:6])
	case e.Mode != now.Mode:
		return fmt.Sprintf("has mode %04o, not %04o", now.Mode, e.Mode)
	case e.UID != now.UID || e.GID != now.GID:
		return fmt.Sprintf("belongs to %d:%d, not %d:%d", now.UID, now.GID, e.UID, e.GID)
	case e.Kind != Dir && e.Mtime != now.Mtime:
		return fmt.Sprintf("was modified at %d.%09d, not %d.%09d", now.Mtime.Sec, now.Mtime.Nsec, e.Mtime.Sec, e.Mtime.Nsec)
	}
	if deep {
		return differentAttrs(e.Attrs, now.Attrs)
	}
	return ""
}

func differentAttrs(was, now []Xattr) string {
	for len(was) > 0 || len(now) > 0 {
		switch {
		case len(now) == 0 || len(was) > 0 && was[0].Name < now[0].Name:
			return fmt.Sprintf("lost its extended attribute %q", was[0].Name)
		case len(was) == 0 || now[0].Name < was[0].Name:
			return fmt.Sprintf("got an extended attribute %q", now[0].Name)
		case was[0].Value != now[0].Value:
			return fmt.Sprintf("has another extended attribute %q", was[0].Name)
		}
		was, now = was[1:], now[1:]
	}
	return ""
}

// Touched returns a path at which something was changed, be it only for a
// moment; ok is false when there is none. Both trees must come from the same
// disk: in a copy everything is touched, and only Compare on a deep scan can
// tell what that means.
func Touched(want, got *Tree) (path string, ok bool) {
	a, b := want.Entries, got.Entries
	for i := range a {
		if i >= len(b) {
			return a[i].Path, true
		}
		x, y := &a[i], &b[i]
		if x.Path != y.Path || x.Inode != y.Inode || x.Ctime != y.Ctime || x.Mtime != y.Mtime || x.differs(y, false) != "" {
			return x.Path, true
		}
	}
	if len(b) > len(a) {
		return b[len(a)].Path, true
	}
	return "", false
}

// comparePaths gives the order in which a walk meets paths: a folder, what it
// holds, then its next sibling.
func comparePaths(a, b string) int {
	if a == b {
		return 0
	}
	if a == "." {
		return -1
	}
	if b == "." {
		return 1
	}
	n := min(len(a), len(b))
	for i := range n {
		x, y := a[i], b[i]
		if x == y {
			continue
		}
		if x == '/' || y != '/' && x < y {
			return -1
		}
		return 1
	}
	return len(a) - len(b)
}

func join(dir, name string) string {
	if dir == "." {
		return name
	}
	return strings.Join([]string{dir, name}, "/")
}
