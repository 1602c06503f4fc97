// Package gitfs shows a commit of a bare git repository as a file system: read
// only, without a checkout, without running git.
//
// It is the packager's tree, so nothing in it is trusted. Links are never
// followed, names that could lead out of a folder are an error
// ([BadTreeError]), and [FS.Measure] tells how much the whole would be before
// anybody writes it out.
package gitfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
)

// FS is the tree of one commit. Paths are those of [fs.FS], but that they may
// hold bytes that are no UTF-8, as git's may. Files have mode 0644 or 0755,
// folders 0755, and all of them the time of the commit. A link is there as a
// link: [FS.Open] refuses it and [FS.ReadLink] tells where it points. A
// submodule is an empty folder.
//
// An FS may be used by several goroutines at once. Close it after use.
type FS struct {
	store *store
	owner bool // of store
	info  Info
	root  plumbing.Hash

	mu    sync.Mutex // guards the following
	trees map[plumbing.Hash][]entry
}

var (
	_ fs.ReadDirFS  = (*FS)(nil)
	_ fs.ReadFileFS = (*FS)(nil)
	_ fs.ReadLinkFS = (*FS)(nil)
	_ fs.StatFS     = (*FS)(nil)
	_ io.Closer     = (*FS)(nil)
)

// BadTreeError is a tree that git itself would not have made, or that is too
// much. It is the packager's fault.
type BadTreeError struct {
	Path   string // of the folder, or the name in it; any bytes
	Reason string
}

func (e *BadTreeError) Error() string {
	return fmt.Sprintf("%.200q in the commit %s", e.Path, e.Reason)
}

// ErrLink is why a link cannot be opened.
var ErrLink = errors.New("is a symbolic link, which is not followed")

// Open gives the tree of a commit (40 hex digits) in the bare repository at
// path.
func Open(path, commit string) (*FS, error) {
	r, err := OpenRepo(path)
	if err != nil {
		return nil, err
	}
	f, err := r.Tree(commit)
	if err != nil {
		r.Close()
		return nil, err
	}
	f.owner = true
	return f, nil
}

// Commit is what the commit says of itself.
func (f *FS) Commit() Info { return f.info }

// Close lets go of the repository's files, unless the FS came from a [Repo],
// which does that. Small files that were opened before can still be read.
func (f *FS) Close() error {
	if !f.owner {
		return nil
	}
	return f.store.close()
}

// Modes as git has them in a tree.
const (
	gitType    = 0o170000
	gitDir     = 0o040000
	gitFile    = 0o100000
	gitSymlink = 0o120000
	gitModule  = 0o160000
)

// entry is one name in a folder.
type entry struct {
	name string
	mode fs.FileMode
	hash plumbing.Hash
	sub  bool // a submodule: its hash is a commit elsewhere
}

// tree reads a folder, sorted by name. dir is its path, for errors.
func (f *FS) tree(hash plumbing.Hash, dir string) ([]entry, error) {
	f.mu.Lock()
	entries, ok := f.trees[hash]
	f.mu.Unlock()
	if ok {
		return entries, nil
	}
	data, err := f.store.whole(plumbing.TreeObject, hash)
	if err != nil {
		return nil, err
	}
	if entries, err = parseTree(data, dir); err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.trees[hash] = entries
	f.mu.Unlock()
	return entries, nil
}

// parseTree takes a tree object apart: "MODE NAME\0" and a binary hash for each
// entry.
func parseTree(data []byte, dir string) ([]entry, error) {
	bad := func(name, format string, args ...any) ([]entry, error) {
		return nil, &BadTreeError{path.Join(dir, name), fmt.Sprintf(format, args...)}
	}
	var entries []entry
	for len(data) > 0 {
		space := bytes.IndexByte(data, ' ')
		nul := bytes.IndexByte(data, 0)
		if space < 1 || space > 7 || nul < space || len(data) < nul+1+len(plumbing.Hash{}) {
			return bad("", "is a folder whose object is broken: git fsck tells more")
		}
		var mode uint32
		for _, c := range data[:space] {
			if c < '0' || c > '7' {
				return bad("", "is a folder whose object is broken: git fsck tells more")
			}
			mode = mode<<3 | uint32(c-'0')
		}
		e := entry{name: string(data[space+1 : nul])}
		data = data[nul+1:]
		copy(e.hash[:], data)
		data = data[len(e.hash):]
		switch {
		case e.name == "" || e.name == "." || e.name == ".." || strings.EqualFold(e.name, ".git"):
			return nil, &BadTreeError{dir + "/" + e.name, "is a name that git refuses: remove it"}
		case strings.Contains(e.name, "/"):
			return nil, &BadTreeError{dir + "/" + e.name, "has a slash in a name: remove it"}
		case len(e.name) > 255:
			return bad(e.name, "has a name of %d bytes: 255 is the most that a file can have", len(e.name))
		}
		switch mode & gitType {
		case gitDir:
			e.mode = fs.ModeDir | 0o755
		case gitModule:
			e.mode, e.sub = fs.ModeDir|0o755, true
		case gitSymlink:
			e.mode = fs.ModeSymlink | 0o777
		case gitFile:
			e.mode = 0o644
			if mode&0o100 != 0 {
				e.mode = 0o755
			}
		default:
			return bad(e.name, "has the mode %o, which is none of git's: remove it", mode)
		}
		entries = append(entries, e)
	}
	// Git sorts a folder as if its name ended in a slash; an fs.FS does not.
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	for i := 1; i < len(entries); i++ {
		if entries[i].name == entries[i-1].name {
			return bad(entries[i].name, "is there twice: remove one")
		}
	}
	return entries, nil
}

// find walks to a path. Links on the way are not followed, so that what is
// behind one is not there.
func (f *FS) find(op, name string) (entry, error) {
	fail := func(err error) (entry, error) { return entry{}, &fs.PathError{Op: op, Path: name, Err: err} }
	e := entry{name: ".", mode: fs.ModeDir | 0o755, hash: f.root}
	if name == "." {
		return e, nil
	}
	if !validPath(name) {
		return fail(fs.ErrInvalid)
	}
	for at := 0; at < len(name); {
		end := strings.IndexByte(name[at:], '/')
		if end < 0 {
			end = len(name) - at
		}
		end += at
		if !e.mode.IsDir() || e.sub {
			return fail(fs.ErrNotExist)
		}
		entries, err := f.tree(e.hash, strings.TrimSuffix(name[:at], "/"))
		if err != nil {
			return fail(err)
		}
		i, ok := slices.BinarySearchFunc(entries, name[at:end], func(e entry, s string) int { return strings.Compare(e.name, s) })
		if !ok {
			return fail(fs.ErrNotExist)
		}
		e = entries[i]
		at = end + 1
	}
	return e, nil
}

// validPath is fs.ValidPath for any bytes.
func validPath(name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return strings.IndexByte(name, 0) < 0
}

// Open opens a file or folder.
func (f *FS) Open(name string) (fs.File, error) {
	e, err := f.find("open", name)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (fs.File, error) { return nil, &fs.PathError{Op: "open", Path: name, Err: err} }
	switch {
	case e.mode&fs.ModeSymlink != 0:
		return fail(ErrLink)
	case e.mode.IsDir():
		list, err := f.list(e, name)
		if err != nil {
			return fail(err)
		}
		return &openDir{info: fileInfo{entry: e, time: f.info.Committer.Time}, path: name, rest: list}, nil
	}
	r, size, err := f.store.blob(e.hash)
	if err != nil {
		return fail(err)
	}
	return &openFile{info: fileInfo{e, size, f.info.Committer.Time}, path: name, r: r}, nil
}

// ReadFile reads a whole file, however large.
func (f *FS) ReadFile(name string) ([]byte, error) {
	e, err := f.find("read", name)
	if err != nil {
		return nil, err
	}
	fail := func(err error) ([]byte, error) { return nil, &fs.PathError{Op: "read", Path: name, Err: err} }
	switch {
	case e.mode&fs.ModeSymlink != 0:
		return fail(ErrLink)
	case e.mode.IsDir():
		return fail(errIsDir)
	}
	return f.content(e, fail)
}

func (f *FS) content(e entry, fail func(error) ([]byte, error)) ([]byte, error) {
	r, size, err := f.store.blob(e.hash)
	if err != nil {
		return fail(err)
	}
	defer r.Close()
	// The size is what a stranger's object claims; what is there may be less.
	data := bytes.NewBuffer(make([]byte, 0, min(size, streamAbove)+bytes.MinRead))
	if _, err := data.ReadFrom(r); err != nil {
		return fail(err)
	}
	if int64(data.Len()) != size {
		return fail(fmt.Errorf("object %s has %d bytes and claims %d: run git fsck", e.hash, data.Len(), size))
	}
	return data.Bytes(), nil
}

// ReadDir lists a folder, sorted by name.
func (f *FS) ReadDir(name string) ([]fs.DirEntry, error) {
	e, err := f.find("readdir", name)
	if err != nil {
		return nil, err
	}
	if !e.mode.IsDir() {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: errNotDir}
	}
	list, err := f.list(e, name)
	if err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: err}
	}
	return list, nil
}

var (
	errIsDir  = errors.New("is a folder")
	errNotDir = errors.New("is no folder")
)

func (f *FS) list(dir entry, name string) ([]fs.DirEntry, error) {
	if dir.sub {
		return []fs.DirEntry{}, nil
	}
	if name == "." {
		name = ""
	}
	entries, err := f.tree(dir.hash, name)
	if err != nil {
		return nil, err
	}
	list := make([]fs.DirEntry, len(entries))
	for i, e := range entries {
		list[i] = dirEntry{e, f}
	}
	return list, nil
}

// Lstat describes what is at a path.
func (f *FS) Lstat(name string) (fs.FileInfo, error) { return f.stat("lstat", name) }

// Stat is Lstat, but that it refuses links.
func (f *FS) Stat(name string) (fs.FileInfo, error) {
	info, err := f.stat("stat", name)
	if err == nil && info.Mode()&fs.ModeSymlink != 0 {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: ErrLink}
	}
	return info, err
}

func (f *FS) stat(op, name string) (fs.FileInfo, error) {
	e, err := f.find(op, name)
	if err != nil {
		return nil, err
	}
	info, err := f.describe(e)
	if err != nil {
		return nil, &fs.PathError{Op: op, Path: name, Err: err}
	}
	return info, nil
}

func (f *FS) describe(e entry) (fs.FileInfo, error) {
	info := fileInfo{entry: e, time: f.info.Committer.Time}
	if !e.mode.IsDir() {
		var err error
		if info.size, err = f.store.size(e.hash); err != nil {
			return nil, err
		}
	}
	return info, nil
}

// maxTarget is the longest target that Linux takes for a link, in bytes.
const maxTarget = 4095

// ReadLink tells where a link points, which may be anywhere.
func (f *FS) ReadLink(name string) (string, error) {
	e, err := f.find("readlink", name)
	if err != nil {
		return "", err
	}
	fail := func(err error) (string, error) { return "", &fs.PathError{Op: "readlink", Path: name, Err: err} }
	if e.mode&fs.ModeSymlink == 0 {
		return fail(fs.ErrInvalid)
	}
	size, err := f.store.size(e.hash)
	if err != nil {
		return fail(err)
	}
	if size == 0 || size > maxTarget {
		return fail(&BadTreeError{name, fmt.Sprintf("is a link with a target of %d bytes: 1 to %d is what Linux takes", size, maxTarget)})
	}
	data, err := f.content(e, func(err error) ([]byte, error) { return nil, err })
	if err != nil {
		return fail(err)
	}
	if bytes.IndexByte(data, 0) >= 0 {
		return fail(&BadTreeError{name, "is a link with a NUL byte in its target: remove it"})
	}
	return string(data), nil
}

type fileInfo struct {
	entry
	size int64
	time time.Time
}

func (i fileInfo) Name() string       { return i.name }
func (i fileInfo) Size() int64        { return i.size }
func (i fileInfo) Mode() fs.FileMode  { return i.mode }
func (i fileInfo) ModTime() time.Time { return i.time }
func (i fileInfo) IsDir() bool        { return i.mode.IsDir() }

// Sys is the hash of the file's content, as a [plumbing.Hash].
func (i fileInfo) Sys() any { return i.hash }

// dirEntry finds its size only when asked: a walk needs none.
type dirEntry struct {
	entry
	fs *FS
}

func (d dirEntry) Name() string               { return d.name }
func (d dirEntry) IsDir() bool                { return d.mode.IsDir() }
func (d dirEntry) Type() fs.FileMode          { return d.mode.Type() }
func (d dirEntry) Info() (fs.FileInfo, error) { return d.fs.describe(d.entry) }
func (d dirEntry) String() string             { return fs.FormatDirEntry(d) }

type openFile struct {
	info fileInfo
	path string
	r    io.ReadCloser
	done bool
}

func (o *openFile) Stat() (fs.FileInfo, error) { return o.info, nil }

func (o *openFile) Read(p []byte) (int, error) {
	if o.done {
		return 0, &fs.PathError{Op: "read", Path: o.path, Err: fs.ErrClosed}
	}
	n, err := o.r.Read(p)
	if err != nil && err != io.EOF {
		err = &fs.PathError{Op: "read", Path: o.path, Err: err}
	}
	return n, err
}

func (o *openFile) Close() error {
	if o.done {
		return &fs.PathError{Op: "close", Path: o.path, Err: fs.ErrClosed}
	}
	o.done = true
	return o.r.Close()
}

type openDir struct {
	info fileInfo
	path string
	rest []fs.DirEntry
}

func (o *openDir) Stat() (fs.FileInfo, error) { return o.info, nil }
func (o *openDir) Close() error               { return nil }
func (o *openDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: o.path, Err: errIsDir}
}

func (o *openDir) ReadDir(n int) ([]fs.DirEntry, error) {
	if n > 0 && len(o.rest) == 0 {
		return nil, io.EOF
	}
	if n <= 0 || n > len(o.rest) {
		n = len(o.rest)
	}
	list := slices.Clone(o.rest[:n])
	o.rest = o.rest[n:]
	return list, nil
}
