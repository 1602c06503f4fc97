package hooks

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/Morphux/quarry"
)

// Limits on the tree of a release. Linux has 90,000 files, 6,000 folders and
// is 11 folders deep.
const (
	maxFiles    = 500_000
	maxDepth    = 100
	maxPath     = 3000      // bytes; PATH_MAX less room for where it is unpacked
	maxTree     = 64 << 20  // bytes in one tree object
	maxBlob     = 1 << 20   // bytes read of one file; recipe.MaxSize is a quarter
	maxCommit   = 1 << 20   // bytes in a commit
	maxTreeRead = 512 << 20 // bytes in all trees of a commit
)

// entry is one name in a tree.
type entry struct {
	name string
	mode fs.FileMode
	git  uint32 // mode as git has it, e.g. 0o100644
	oid  string
}

const gitlink = 0o160000

func (e entry) Name() string               { return e.name }
func (e entry) IsDir() bool                { return e.mode.IsDir() }
func (e entry) Type() fs.FileMode          { return e.mode.Type() }
func (e entry) Info() (fs.FileInfo, error) { return info{e, 0}, nil }

// info describes an entry. Its size is right only for opened files: nobody
// here asks before, and git would have to be asked for each.
type info struct {
	entry
	size int64
}

func (i info) Size() int64        { return i.size }
func (i info) Mode() fs.FileMode  { return i.mode }
func (i info) ModTime() time.Time { return time.Time{} }
func (i info) Sys() any           { return nil }

// parseTree reads the content of a tree object.
func parseTree(data []byte, oidLen int) ([]entry, error) {
	var list []entry
	for len(data) > 0 {
		space, nul := bytes.IndexByte(data, ' '), bytes.IndexByte(data, 0)
		if space < 1 || space > 6 || nul < space+1 || nul+1+oidLen > len(data) {
			return nil, errors.New("tree object is broken")
		}
		var mode uint32
		for _, c := range data[:space] {
			if c < '0' || c > '7' {
				return nil, errors.New("tree object is broken")
			}
			mode = mode<<3 | uint32(c-'0')
		}
		e := entry{name: string(data[space+1 : nul]), git: mode, oid: hex.EncodeToString(data[nul+1 : nul+1+oidLen])}
		switch mode &^ 0o7777 {
		case 0o040000:
			e.mode = fs.ModeDir | 0o755
		case 0o120000:
			e.mode = fs.ModeSymlink | 0o777
		case 0o100000:
			e.mode = 0o644
			if mode&0o100 != 0 {
				e.mode = 0o755
			}
		default: // gitlink among them
			e.mode = fs.ModeIrregular
		}
		list = append(list, e)
		data = data[nul+1+oidLen:]
	}
	return list, nil
}

// commitFS is the tree of a commit as a file system, links not followed.
type commitFS struct {
	objs  *objects
	root  string             // tree of the commit
	trees map[string][]entry // read already, sorted by name
	read  int64              // bytes of trees read
}

// openCommit finds the tree of a commit.
func openCommit(objs *objects, oid string) (*commitFS, error) {
	kind, size, data, err := objs.get(oid, maxCommit)
	switch {
	case err != nil:
		return nil, fmt.Errorf("commit %.12s: %w", oid, err)
	case kind != "commit":
		return nil, refusal{fmt.Sprintf("is a %s, not a commit: push a commit", kind)}
	case size > maxCommit:
		return nil, refusal{fmt.Sprintf("has a commit of %d bytes: %d is the most, so shorten its message", size, maxCommit)}
	}
	line, _, _ := strings.Cut(string(data), "\n")
	tree, ok := strings.CutPrefix(line, "tree ")
	if !ok || !isOID(tree) {
		return nil, refusal{"has a commit that git cannot have made: it names no tree"}
	}
	when, err := committed(string(data))
	if err != nil {
		return nil, refusal{err.Error()}
	}
	if err := quarry.CheckTime(when); err != nil {
		return nil, refusal{err.Error()}
	}
	return &commitFS{objs: objs, root: tree, trees: map[string][]entry{}}, nil
}

// committed reads the committer's time from the header of a commit, whose line
// ends in seconds since 1970 and a time zone.
func committed(commit string) (time.Time, error) {
	for line := range strings.Lines(commit) {
		if line == "\n" {
			break
		}
		who, ok := strings.CutPrefix(line, "committer ")
		if !ok {
			continue
		}
		if f := strings.Fields(who[strings.LastIndexByte(who, '>')+1:]); len(f) == 2 {
			if s, err := strconv.ParseInt(f[0], 10, 64); err == nil {
				return time.Unix(s, 0), nil
			}
		}
		break
	}
	return time.Time{}, errors.New("has a commit without the time of its committer: git fsck tells more")
}

// refusal is what a maintainer has to mend, in words that follow the name of
// the branch.
type refusal struct{ msg string }

func (r refusal) Error() string { return r.msg }

func (c *commitFS) tree(oid string) ([]entry, error) {
	if t, ok := c.trees[oid]; ok {
		return t, nil
	}
	kind, size, data, err := c.objs.get(oid, maxTree)
	switch {
	case err != nil:
		return nil, fmt.Errorf("tree %.12s: %w", oid, err)
	case kind != "tree":
		return nil, refusal{fmt.Sprintf("has a %s where a folder should be: git fsck tells more", kind)}
	case size > maxTree || c.read+size > maxTreeRead:
		return nil, refusal{"has folders with too many files: release less in one package"}
	}
	c.read += size
	list, err := parseTree(data, len(oid)/2)
	if err != nil {
		return nil, refusal{"has a broken tree object: git fsck tells more"}
	}
	// Git sorts folders as if they ended in a slash; an fs.FS does not.
	slices.SortFunc(list, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	c.trees[oid] = list
	return list, nil
}

func (c *commitFS) find(op, name string) (entry, error) {
	bad := func(err error) (entry, error) { return entry{}, &fs.PathError{Op: op, Path: name, Err: err} }
	if !fs.ValidPath(name) {
		return bad(fs.ErrInvalid)
	}
	at := entry{name: ".", mode: fs.ModeDir | 0o755, git: 0o040000, oid: c.root}
	if name == "." {
		return at, nil
	}
	for part := range strings.SplitSeq(name, "/") {
		if !at.IsDir() {
			return bad(fs.ErrNotExist)
		}
		list, err := c.tree(at.oid)
		if err != nil {
			return bad(err)
		}
		i, ok := slices.BinarySearchFunc(list, part, func(e entry, s string) int { return strings.Compare(e.name, s) })
		if !ok {
			return bad(fs.ErrNotExist)
		}
		at = list[i]
	}
	return at, nil
}

// Open opens a file or folder; a link is an error, as nothing here follows one.
func (c *commitFS) Open(name string) (fs.File, error) {
	e, err := c.find("open", name)
	if err != nil {
		return nil, err
	}
	if e.IsDir() {
		list, err := c.ReadDir(name)
		if err != nil {
			return nil, err
		}
		return &openDir{openFile{info{e, 0}, bytes.NewReader(nil), name, nil}, list}, nil
	}
	if !e.mode.IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errors.New("is no regular file")}
	}
	kind, size, data, err := c.objs.get(e.oid, maxBlob)
	if err == nil && kind != "blob" {
		err = refusal{fmt.Sprintf("has a %s where a file should be", kind)}
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	f := &openFile{info: info{e, size}, r: bytes.NewReader(data), path: name, end: io.EOF}
	if size > int64(len(data)) {
		f.end = &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("has %d bytes: the hook reads %d", size, maxBlob)}
	}
	return f, nil
}

// ReadDir lists a folder by name.
func (c *commitFS) ReadDir(name string) ([]fs.DirEntry, error) {
	e, err := c.find("readdir", name)
	if err != nil {
		return nil, err
	}
	if !e.IsDir() {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: errors.New("is no folder")}
	}
	list, err := c.tree(e.oid)
	if err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: err}
	}
	out := make([]fs.DirEntry, len(list))
	for i, e := range list {
		out[i] = e
	}
	return out, nil
}

// Lstat describes a name without following a link.
func (c *commitFS) Lstat(name string) (fs.FileInfo, error) {
	e, err := c.find("lstat", name)
	if err != nil {
		return nil, err
	}
	return info{e, 0}, nil
}

// ReadLink is the target of a link.
func (c *commitFS) ReadLink(name string) (string, error) {
	e, err := c.find("readlink", name)
	if err == nil && e.mode&fs.ModeSymlink == 0 {
		err = &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
	}
	if err != nil {
		return "", err
	}
	_, _, data, err := c.objs.get(e.oid, maxPath)
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: err}
	}
	return string(data), nil
}

type openFile struct {
	info info
	r    *bytes.Reader
	path string
	end  error // what comes after the last byte
}

func (f *openFile) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *openFile) Close() error               { return nil }
func (f *openFile) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err == io.EOF && f.end != nil {
		err = f.end
	}
	return n, err
}

type openDir struct {
	openFile
	rest []fs.DirEntry
}

func (d *openDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.path, Err: errors.New("is a folder")}
}

func (d *openDir) ReadDir(n int) ([]fs.DirEntry, error) {
	if n <= 0 {
		out := d.rest
		d.rest = nil
		return out, nil
	}
	if len(d.rest) == 0 {
		return nil, io.EOF
	}
	n = min(n, len(d.rest))
	out := d.rest[:n]
	d.rest = d.rest[n:]
	return out, nil
}

// sane walks the whole tree of a commit for what no builder should have to
// unpack. It gives what to refuse and what to warn about, a few of each.
func (c *commitFS) sane() (refused, warnings []string, err error) {
	files := 0 // counted anew for a folder that is there twice, so that a few trees cannot unfold into billions of files
	enough := func() bool { return len(refused) >= maxTold }
	var walk func(oid, dir string, depth int) error
	walk = func(oid, dir string, depth int) error {
		list, err := c.tree(oid)
		if err != nil {
			return err
		}
		if files += len(list); files > maxFiles {
			return refusal{fmt.Sprintf("holds more than %d files: release less in one package", maxFiles)}
		}
		if depth > maxDepth {
			refused = append(refused, fmt.Sprintf("%.60q... is more than %d folders deep: flatten it", dir, maxDepth))
			return nil
		}
		prev := ""
		for _, e := range list {
			if enough() {
				return nil
			}
			full := path.Join(dir, e.name)
			if dir == "" {
				full = e.name
			}
			switch {
			case e.name == "" || e.name == "." || e.name == ".." || strings.Contains(e.name, "/") || dotGit(e.name):
				refused = append(refused, fmt.Sprintf("%q has a name that git itself would not check out: rename it", dir+"/"+e.name))
				continue
			case e.name == prev:
				refused = append(refused, fmt.Sprintf("%q is there twice: git fsck tells more", full))
				continue
			case len(e.name) > 255 || len(full) > maxPath:
				refused = append(refused, fmt.Sprintf("%.60q... is too long for a file system: rename it", full))
				continue
			case e.git == gitlink:
				refused = append(refused, fmt.Sprintf("%s is a submodule: commit its files instead, as the farm fetches nothing", show(full)))
				continue
			case e.mode&fs.ModeIrregular != 0:
				refused = append(refused, fmt.Sprintf("%s has the mode %o: only files, folders and links are taken", show(full), e.git))
				continue
			case odd(e.name) && len(warnings) < maxTold:
				warnings = append(warnings, fmt.Sprintf("%q has an odd name: is it meant?", full))
			}
			prev = e.name
			if e.IsDir() {
				if err := walk(e.oid, full, depth+1); err != nil {
					return err
				}
			}
		}
		return nil
	}
	err = walk(c.root, "", 0)
	return refused, warnings, err
}

// dotGit reports whether a name is .git to some file system (git's
// verify_path: HFS+ ignores case, NTFS knows git~1 and trailing dots).
func dotGit(name string) bool {
	n := strings.TrimRight(strings.ToLower(name), ". ")
	return n == ".git" || n == "git~1"
}

// odd reports whether a name would not print as it is.
func odd(name string) bool { return show(name) != name }
