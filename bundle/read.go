// Package bundle makes a release of a build bundle: a tar of a package
// repository, that is, a folder with package.json, srcs/, patches/ and scripts/.
//
// A bundle becomes what a push is. It is read strictly ([Read]), made a commit,
// and pushed with stock git to the package's own repository ([Pusher]), through
// the same hooks as a push over SSH: there is one way in.
package bundle

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/recipe"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Limits bound what is unpacked of one bundle. 0 stands for the default.
type Limits struct {
	Size    int64 // bytes of all files: 2 GiB
	Entries int   // files, folders and links: 20,000
}

const (
	maxPath   = 1024    // bytes in the path of an entry
	maxParts  = 64      // folders that one is in
	maxRecipe = 1 << 20 // bytes of package.json
)

func (l *Limits) defaults() {
	if l.Size == 0 {
		l.Size = 2 << 30
	}
	if l.Entries == 0 {
		l.Entries = 20_000
	}
}

// Bad is what is wrong with a bundle. Who made it can mend it.
type Bad struct{ msg string }

func (e *Bad) Error() string { return e.msg }

func bad(format string, args ...any) error {
	return &Bad{"bundle: " + fmt.Sprintf(format, args...)}
}

// The modes of files, as git has them.
const (
	ModeFile = "100644"
	ModeExec = "100755"
	ModeLink = "120000"
)

// File is a file of a bundle.
type File struct {
	Path string // within the package's folder, e.g. srcs/zlib.c
	Mode string
	ID   int // of its content, see [Read]
}

// Tree is all of a bundle.
type Tree struct {
	Package, Version string // as package.json says
	Files            []File // by path
	Size             int64  // bytes of all files
}

// Branch is the branch that releases what is in the bundle, e.g. zlib-1.3.1.
func (t *Tree) Branch() string { return quarry.Branch(t.Package, t.Version) }

// Read reads a bundle: a tar, plain or compressed with gzip or zstd, with the
// package's folder at its top or as its only folder. content is given the bytes
// of each file, or the target of each link, and says by which number they are
// known from then on. It may read less than there is.
//
// It is strict. An absolute path, one with .., a device, two files of the same
// path, or a link that leads out of the folder is a [Bad] bundle. What is in
// .git beside package.json is passed over.
func Read(r io.Reader, l Limits, content func(size int64, r io.Reader) (id int, err error)) (*Tree, error) {
	l.defaults()
	plain, end, err := unpack(r)
	if err != nil {
		return nil, err
	}
	defer end()
	rd := &reading{limits: l, content: content, kinds: map[string]bool{}, files: map[string]int{}, recipes: map[string][]byte{}, links: map[string]string{}}
	// What follows the end of the tar is not asked for: it has no limit of its own.
	tr := tar.NewReader(&bounded{r: plain, left: l.Size + int64(l.Entries)*4096 + 1<<20})
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return rd.tree()
		}
		if err != nil {
			return nil, broken(err)
		}
		if err := rd.entry(h, tr); err != nil {
			return nil, err
		}
	}
}

// unpack finds out how a bundle is compressed.
func unpack(r io.Reader) (plain io.Reader, end func(), err error) {
	b := bufio.NewReader(r)
	magic, err := b.Peek(6)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	is := func(s string) bool { return bytes.HasPrefix(magic, []byte(s)) }
	switch {
	case len(magic) == 0:
		return nil, nil, bad("it is empty: send a tar of the package's folder")
	case is("\x1f\x8b"):
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, nil, broken(err)
		}
		return z, func() { z.Close() }, nil
	case is("\x28\xb5\x2f\xfd"):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, nil, broken(err)
		}
		return z, z.Close, nil
	case is("\xfd7zXZ\x00"), is("BZh"), is("PK\x03\x04"):
		return nil, nil, bad("it is compressed in a way that is not taken: send a tar as it is, or with gzip or zstd")
	}
	return b, func() {}, nil
}

// broken tells trouble of what is read from trouble of reading: the former is
// the bundle's.
func broken(err error) error {
	var is *Bad
	var trouble *source
	switch {
	case errors.As(err, &is), errors.As(err, &trouble):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return bad("it is cut off: send all of it")
	}
	return bad("it is no tar that can be read (%v): make it with tar -c", err)
}

// source is an error of who gives the bundle, such as a client that has gone.
type source struct{ error }

func (e *source) Unwrap() error { return e.error }

// From marks the errors of a reader as not being the bundle's.
func From(r io.Reader) io.Reader { return from{r} }

type from struct{ io.Reader }

func (f from) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	if err != nil && err != io.EOF {
		err = &source{err}
	}
	return n, err
}

// bounded ends a bundle that unpacks to more than it may.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, bad("it unpacks to more than is taken: leave out what is no part of the package")
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// reading is a bundle while it is read. All paths in it are as the tar has them,
// cleaned.
type reading struct {
	limits  Limits
	content func(int64, io.Reader) (int, error)

	entries int
	size    int64
	list    []File
	files   map[string]int    // place in list
	kinds   map[string]bool   // what is there: true is a folder
	recipes map[string][]byte // package.json at the top, and one below
	below   bool              // there is one below
	links   map[string]string // target of each symbolic link
}

// entry takes one entry of the tar.
func (rd *reading) entry(h *tar.Header, r io.Reader) error {
	if rd.entries++; rd.entries > rd.limits.Entries {
		return bad("it has more than %d entries: leave out what is no part of the package", rd.limits.Entries)
	}
	if h.Typeflag == tar.TypeXGlobalHeader { // git archive writes one
		return nil
	}
	name, err := cleanPath(h.Name)
	if err != nil || name == "" {
		return err
	}
	for i, part := range strings.Split(name, "/") {
		switch {
		case part == ".git" && i < 2: // a working copy's own
			return nil
		case strings.EqualFold(part, ".git"):
			return bad("%.100q is within another .git: leave it out", name)
		}
	}
	if h.Typeflag == tar.TypeDir {
		return rd.place(name, true)
	}
	if err := rd.place(name, false); err != nil {
		return err
	}
	f := File{Path: name, Mode: ModeFile}
	size := h.Size
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		if h.Mode&0o100 != 0 {
			f.Mode = ModeExec
		}
		if path.Base(name) == recipe.FileName && strings.Count(name, "/") < 2 {
			data, err := io.ReadAll(io.LimitReader(r, maxRecipe+1))
			if err != nil {
				return broken(err)
			}
			if len(data) > maxRecipe {
				return bad("%s has more than %d bytes", name, maxRecipe)
			}
			// That of a second folder is of no use: there may be only one.
			if below := strings.Contains(name, "/"); !below || !rd.below {
				rd.recipes[name], rd.below = data, rd.below || below
			}
			r = bytes.NewReader(data)
		}
	case tar.TypeSymlink:
		f.Mode, size, r = ModeLink, int64(len(h.Linkname)), strings.NewReader(h.Linkname)
		rd.links[name] = h.Linkname
	case tar.TypeLink:
		target, err := cleanPath(h.Linkname)
		if err != nil {
			return err
		}
		at, ok := rd.files[target]
		if !ok || rd.list[at].Mode == ModeLink {
			return bad("%.100q is a link to %.100q, and no such file comes before it", name, h.Linkname)
		}
		f.Mode, f.ID = rd.list[at].Mode, rd.list[at].ID
		rd.files[name] = len(rd.list)
		rd.list = append(rd.list, f)
		return nil
	default:
		return bad("%.100q is neither a file, a folder nor a link: a package has nothing else", name)
	}
	if rd.size += size; size < 0 || rd.size > rd.limits.Size {
		return bad("it unpacks to more than %d bytes: leave out what is no part of the package", rd.limits.Size)
	}
	if f.ID, err = rd.content(size, &exact{r, size}); err != nil {
		return broken(err)
	}
	rd.files[name] = len(rd.list)
	rd.list = append(rd.list, f)
	return nil
}

// exact is a reader of so many bytes: fewer are an error.
type exact struct {
	r    io.Reader
	left int64
}

func (e *exact) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n, err := e.r.Read(p[:min(int64(len(p)), e.left)])
	e.left -= int64(n)
	if err == io.EOF && e.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// place notes that something is at a path, and folders above it.
func (rd *reading) place(name string, dir bool) error {
	if was, there := rd.kinds[name]; there {
		if dir && was {
			return nil
		}
		return bad("%.100q is there twice", name)
	}
	for up := path.Dir(name); up != "."; up = path.Dir(up) {
		was, there := rd.kinds[up]
		if there && !was {
			return bad("%.100q is within %.100q, which is no folder", name, up)
		}
		if there {
			break
		}
		rd.kinds[up] = true
	}
	rd.kinds[name] = dir
	return nil
}

// cleanPath reads a path of a tar; it is "" for the top itself.
func cleanPath(name string) (string, error) {
	switch {
	case len(name) > maxPath:
		return "", bad("%.60q... has more than %d bytes", name, maxPath)
	case strings.HasPrefix(name, "/"):
		return "", bad("%.100q is an absolute path: make the tar with tar -c -C DIR .", name)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
		return "", bad("%.100q is no path in UTF-8 without control characters", name)
	}
	parts := strings.Split(name, "/")
	if slices.Contains(parts, "..") {
		return "", bad("%.100q leads out of the folder", name)
	}
	parts = slices.DeleteFunc(parts, func(s string) bool { return s == "" || s == "." })
	if len(parts) > maxParts {
		return "", bad("%.100q is more than %d folders deep", name, maxParts)
	}
	return strings.Join(parts, "/"), nil
}

// tree finds the package's folder, and takes it out.
func (rd *reading) tree() (*Tree, error) {
	top := ""
	text, ok := rd.recipes[recipe.FileName]
	if !ok {
		for name := range rd.kinds {
			first, _, _ := strings.Cut(name, "/")
			if top != "" && first != top {
				return nil, bad("there is no %s at its top, and more than one folder", recipe.FileName)
			}
			top = first
		}
		if text, ok = rd.recipes[top+"/"+recipe.FileName]; !ok {
			return nil, bad("there is no %s: send a tar of the package's folder", recipe.FileName)
		}
	}
	r, err := recipe.Parse(text)
	if err != nil {
		var lines []string // as a push would say them
		for _, p := range recipe.Problems(err) {
			lines = append(lines, p.Error())
		}
		if len(lines) == 0 {
			lines = []string{err.Error()}
		}
		return nil, &Bad{strings.Join(lines, "; ")}
	}
	t := &Tree{Package: r.Package, Version: r.Version, Files: rd.list, Size: rd.size}
	for i := range t.Files {
		f := &t.Files[i]
		if target, ok := rd.links[f.Path]; ok && leadsOut(f.Path, target, top) {
			return nil, bad("the link %.100q leads out of the folder, to %.100q", f.Path, target)
		}
		if top != "" {
			f.Path = f.Path[len(top)+1:]
		}
	}
	slices.SortFunc(t.Files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return t, nil
}

// leadsOut reports whether a link leads out of the top folder ("" for that of
// the tar). Its way through other links is not followed: git makes none of them
// more than text, and what reads a commit looks again.
func leadsOut(name, target, top string) bool {
	if target == "" || strings.HasPrefix(target, "/") || !utf8.ValidString(target) || strings.ContainsRune(target, 0) {
		return true
	}
	if top != "" {
		name = strings.TrimPrefix(name, top+"/")
	}
	to := path.Join(path.Dir(name), target)
	return to == ".." || strings.HasPrefix(to, "../")
}
