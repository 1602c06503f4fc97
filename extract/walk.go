package extract

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry"
)

// Limits bounds what a staged tree may hold. They are far above what packages
// are (a kernel's sources have 90,000 files) and below what would hurt a farm.
type Limits struct {
	Files int   // paths of all kinds
	Depth int   // folders one in another
	Path  int   // bytes of one path; a system call takes 4095
	Bytes int64 // apparent size of all regular files
	Text  int64 // bytes of paths, link targets and names out of ELF headers together
}

// DefaultLimits are the limits that hold where Options gives none.
var DefaultLimits = Limits{Files: 500_000, Depth: 100, Path: 2048, Bytes: 16 << 30, Text: 128 << 20}

// or fills the limits that are not set.
func (l Limits) or(d Limits) Limits {
	return Limits{cmp.Or(l.Files, d.Files), cmp.Or(l.Depth, d.Depth), cmp.Or(l.Path, d.Path),
		cmp.Or(l.Bytes, d.Bytes), cmp.Or(l.Text, d.Text)}
}

// idRange is how many ids a workspace has: container ids 0 to 65535.
const idRange = 65536

// entry is one path of the tree, as the walk found it.
type entry struct {
	quarry.File
	id     fileID
	nlink  uint64
	blocks int64 // of 512 bytes
	mtime  int64 // seconds, not yet clamped
	ctime  unix.Timespec
	caps   []byte // plainCaps
	warn   []string

	objects string // arch of what a static library holds, where that matters
}

type fileID struct{ dev, ino uint64 }

// rel is the path relative to the root, as openat and tar want it.
func (e *entry) rel() string { return e.Path[1:] }

// tree is a staged tree that has been walked: its entries sorted by path, its
// root still open.
type tree struct {
	Options
	root    int
	entries []entry
	bytes   int64
	text    int64
	refused refusals
}

func (t *tree) close() { unix.Close(t.root) }

// walk lists the tree. It opens folders only, and reads no file.
func walk(ctx context.Context, root string, o Options) (*tree, error) {
	fd, err := openRoot(root)
	if err != nil {
		return nil, err
	}
	t := &tree{Options: o, root: fd}
	dir, err := openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err == nil {
		err = t.folder(ctx, dir, "", 1)
	}
	if err == nil {
		err = t.refused.err()
	}
	if err != nil {
		t.close()
		return nil, err
	}
	slices.SortFunc(t.entries, func(a, b entry) int { return cmp.Compare(a.Path, b.Path) })
	t.hardlinks()
	return t, nil
}

// folder lists one folder, of which it takes the descriptor over.
func (t *tree) folder(ctx context.Context, fd int, at string, depth int) error {
	f := os.NewFile(uintptr(fd), at)
	defer f.Close()
	for {
		names, err := f.Readdirnames(1024)
		for _, name := range names {
			if err := t.name(ctx, fd, at, name, depth); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot read the staged folder %s: %w", quotePath(at+"/"), err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// name takes one name of a folder in, and what is below it.
func (t *tree) name(ctx context.Context, dir int, at, name string, depth int) error {
	p := at + "/" + name
	st, err := lstat(dir, name)
	if err != nil {
		return fmt.Errorf("cannot look at the staged file %s: %w", quotePath(p), err)
	}
	if len(t.entries) >= t.Limits.Files {
		return refuse(p, "it installs more than %d files: split the package", t.Limits.Files)
	}
	e := entry{
		File: quarry.File{Path: p, Mode: st.Mode & 0o7777},
		id:   fileID{uint64(st.Dev), st.Ino}, nlink: uint64(st.Nlink),
		blocks: st.Blocks, mtime: int64(st.Mtim.Sec), ctime: st.Ctim,
	}
	t.text += int64(len(p))
	switch {
	case len(p) > t.Limits.Path:
		// Neither shown whole nor gone into: the name may be one of thousands.
		t.refused.add(refuseLong, p[:min(len(p), 100)]+"...")
		return nil
	case !fitText(p, t.Limits.Path):
		t.refused.add(refuseName, p)
	case t.inBuild(p):
		// One for the whole folder: below it the tree is there a second time.
		t.refused.add(refuseBuild, p)
		return nil
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Kind, e.Size = quarry.KindRegular, st.Size
	case unix.S_IFDIR:
		e.Kind = quarry.KindDir
	case unix.S_IFLNK:
		e.Kind, e.Mode = quarry.KindSymlink, 0o777
		if e.Target, err = readlink(dir, name, unix.PathMax); err != nil {
			return fmt.Errorf("cannot read the staged link %s: %w", quotePath(p), err)
		}
		if t.text += int64(len(e.Target)); !fitText(e.Target, unix.PathMax) {
			t.refused.add(refuseTarget, p)
		}
	case unix.S_IFIFO:
		// qmail ships one (queue/lock/trigger): a name without content.
		e.Kind = quarry.KindFIFO
	case unix.S_IFCHR, unix.S_IFBLK:
		t.refused.add(refuseDevice, p)
		return nil
	case unix.S_IFSOCK:
		t.refused.add(refuseSocket, p)
		return nil
	default:
		t.refused.add(refuseKind, p)
		return nil
	}
	if !t.owner(&e, st) {
		t.refused.add(refuseOwner, p)
	}
	if t.text > t.Limits.Text {
		return t.tooMuchText(p)
	}
	if e.Kind == quarry.KindRegular || e.Kind == quarry.KindDir {
		var left []string
		if e.caps, left, err = xattrs(dir, name, uint32(t.UIDBase)); err == errCapForm {
			t.refused.add(refuseCaps, p)
		} else if err != nil {
			return fmt.Errorf("cannot read the attributes of the staged file %s: %w", quotePath(p), err)
		}
		t.warnings(&e, left)
	}
	t.entries = append(t.entries, e)
	if e.Kind != quarry.KindDir {
		return nil
	}
	if depth >= t.Limits.Depth {
		t.refused.add(refuseDepth, p)
		return nil
	}
	fd, err := openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("cannot open the staged folder %s: %w", quotePath(p), err)
	}
	if now, err := fstat(fd); err != nil || now.Ino != st.Ino || now.Dev != st.Dev {
		unix.Close(fd)
		return fmt.Errorf("the staged folder %s changed while it was read: %w", quotePath(p), cmp.Or(err, errChanged))
	}
	return t.folder(ctx, fd, p, depth+1)
}

// errChanged: nothing of a build runs any more when its tree is read, so this
// is the farm's trouble, and worth another try.
var errChanged = fmt.Errorf("something writes to it, build again")

func (t *tree) tooMuchText(p string) error {
	return refuse(p, "its paths, link targets and ELF names are longer than %d bytes together: split the package", t.Limits.Text)
}

// owner shifts the owner back to what it is inside the workspace.
func (t *tree) owner(e *entry, st unix.Stat_t) bool {
	uid, gid := int64(st.Uid)-int64(t.UIDBase), int64(st.Gid)-int64(t.GIDBase)
	if uid < 0 || uid >= idRange || gid < 0 || gid >= idRange {
		return false
	}
	e.UID, e.GID = uint32(uid), uint32(gid)
	return true
}

// warnings notes what a reviewer should see.
func (t *tree) warnings(e *entry, left []string) {
	warn := func(format string, a ...any) { e.warn = append(e.warn, fmt.Sprintf(format, a...)) }
	regular := e.Kind == quarry.KindRegular
	if regular && e.Mode&unix.S_ISUID != 0 {
		warn("is setuid (user %d, mode %04o)", e.UID, e.Mode)
	}
	if regular && e.Mode&unix.S_ISGID != 0 {
		warn("is setgid (group %d, mode %04o)", e.GID, e.Mode)
	}
	if e.Mode&0o002 != 0 && (regular || e.Mode&unix.S_ISVTX == 0) {
		warn("can be written by everybody (mode %04o)", e.Mode)
	}
	if e.caps != nil {
		warn("has the file capabilities %s", showCaps(e.caps))
	}
	if len(left) > 0 { // one warning: a file may have hundreds
		warn("has %s, the first %.80q, which the artifact does not keep", plural(len(left), "extended attribute"), left[0])
	}
}

// hardlinks makes every further name of a file refer to its first one.
func (t *tree) hardlinks() {
	first := map[fileID]*entry{}
	for i := range t.entries {
		e := &t.entries[i]
		if e.Kind != quarry.KindRegular || e.nlink < 2 {
			continue
		}
		if of := first[e.id]; of != nil {
			e.Kind, e.Target, e.Size, e.blocks, e.caps, e.warn = quarry.KindHardlink, of.Path, 0, 0, nil, nil
			continue
		}
		first[e.id] = e
	}
}
