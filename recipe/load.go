package recipe

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
)

// The other places of a package folder.
const (
	SourceDir    = "srcs"
	PatchDir     = "patches"
	BeforeScript = "scripts/before.sh"
	AfterScript  = "scripts/after.sh"
)

// Load reads the recipe of a package folder and checks that what it names is
// there: the patches, the scripts, the directory. It reads regular files only;
// a link in the place of one is refused, so that nothing outside of the folder
// is ever read. What the maintainer has to mend comes back as [Errors], trouble
// in reading fsys as another error.
//
// fsys should tell links from files (fs.ReadLinkFS, as os.DirFS and a commit
// do): where it does not, links are followed.
func Load(fsys fs.FS) (*Recipe, error) {
	data, err := readFile(fsys, FileName, MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, Errors{{File: FileName, Problem: "is missing: a package has it in its top folder"}}
	}
	if err != nil {
		return nil, err
	}
	r, doc, err := parse(data)
	if err != nil {
		return nil, err
	}
	l := &loader{fsys: fsys, data: data, doc: doc, r: r}
	for _, check := range []func() error{l.patches, l.scripts, l.sources} {
		if err := check(); err != nil {
			return nil, err
		}
	}
	if len(l.errs) > 0 {
		return nil, l.errs
	}
	return r, nil
}

type loader struct {
	fsys fs.FS
	data []byte
	doc  *node
	r    *Recipe
	errs Errors
}

// bad notes an error about a file, at the value that names it if there is one.
func (l *loader) bad(n *node, file, format string, args ...any) {
	if len(l.errs) >= maxErrors {
		return
	}
	problem := fmt.Sprintf(format, args...)
	if n == nil {
		l.errs = append(l.errs, &Error{File: file, Problem: problem})
		return
	}
	l.errs = append(l.errs, at(l.data, n.start, n.path(), "names %s, which %s", file, problem))
}

// value is the value at a path of keys in package.json, or nil.
func (l *loader) value(keys ...string) *node {
	n := l.doc
	for _, key := range keys {
		if n = n.get(key); n == nil {
			return nil
		}
	}
	return n
}

// kindOf says what is at a path, following no link in any part of it: "" when
// nothing is.
func kindOf(fsys fs.FS, name string) (string, error) {
	for i := 0; i < len(name); i++ {
		if name[i] != '/' {
			continue
		}
		// A link in the middle would lead elsewhere just as one at the end.
		if k, err := kindOf(fsys, name[:i]); k != "folder" || err != nil {
			return "", err
		}
	}
	info, err := fs.Lstat(fsys, name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("%s cannot be read: %w", name, err)
	}
	switch mode := info.Mode(); {
	case mode.IsRegular():
		return "file", nil
	case mode.IsDir():
		return "folder", nil
	case mode&fs.ModeSymlink != 0:
		return "link", nil
	}
	return "special file", nil
}

// readFile reads a regular file of at most limit bytes. What is wrong with it
// is the maintainer's fault, unless it cannot be read.
func readFile(fsys fs.FS, name string, limit int64) ([]byte, error) {
	kind, err := kindOf(fsys, name)
	if err != nil {
		return nil, err
	}
	switch kind {
	case "":
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	case "file":
	default:
		return nil, Errors{{File: name, Problem: fmt.Sprintf("is a %s: it must be a regular file", kind)}}
	}
	f, err := fsys.Open(name)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w", name, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w", name, err)
	}
	if int64(len(data)) > limit {
		return nil, Errors{{File: name, Problem: fmt.Sprintf("is too large: %d bytes is the most", limit)}}
	}
	return data, nil
}

func (l *loader) patches() error {
	kind, err := kindOf(l.fsys, PatchDir)
	if err != nil {
		return err
	}
	if kind != "" && kind != "folder" {
		l.bad(nil, PatchDir, "is a %s: it must be a folder", kind)
		return nil
	}
	if l.r.PatchesAbsent {
		if kind == "" {
			return nil
		}
		return l.allPatches()
	}
	given := l.value("compilation", "patches")
	for i, name := range l.r.Patches {
		file := path.Join(PatchDir, name)
		switch kind, err := kindOf(l.fsys, file); {
		case err != nil:
			return err
		case kind == "":
			l.bad(given.members[i], file, "is missing: add it, or take it off the list")
		case kind != "file":
			l.bad(given.members[i], file, "is a %s: it must be a regular file", kind)
		}
	}
	return nil
}

// allPatches is upstream's rule for a recipe without the list: every file in
// patches/, in the order of their names. Files that hide (.gitkeep) are none.
func (l *loader) allPatches() error {
	entries, err := fs.ReadDir(l.fsys, PatchDir) // sorted by name
	if err != nil {
		return fmt.Errorf("%s cannot be read: %w", PatchDir, err)
	}
	for _, e := range entries {
		name, file := e.Name(), path.Join(PatchDir, e.Name())
		switch {
		case strings.HasPrefix(name, "."):
			continue
		case e.Type() != 0:
			kind, err := kindOf(l.fsys, file)
			if err != nil {
				return err
			}
			l.bad(nil, fmt.Sprintf("%q", file), "is a %s: only regular files can be applied, or list the patches in package.json", kind)
		case badPatchName(name) != "":
			l.bad(nil, fmt.Sprintf("%q", file), "%s", badPatchName(name))
		default:
			l.r.Patches = append(l.r.Patches, name)
		}
	}
	if len(l.r.Patches) > MaxPatches {
		l.bad(nil, PatchDir, "holds %d files: %d is the most", len(l.r.Patches), MaxPatches)
	}
	return nil
}

func (l *loader) scripts() error {
	for _, s := range []struct {
		file string
		has  *bool
	}{{BeforeScript, &l.r.Before}, {AfterScript, &l.r.After}} {
		switch kind, err := kindOf(l.fsys, s.file); {
		case err != nil:
			return err
		case kind == "":
		case kind != "file":
			l.bad(nil, s.file, "is a %s: it must be a regular file", kind)
		default:
			*s.has = true
		}
	}
	// A link for the folder hides the scripts, which would then silently not run.
	if kind, err := kindOf(l.fsys, path.Dir(BeforeScript)); err != nil {
		return err
	} else if kind != "" && kind != "folder" {
		l.bad(nil, path.Dir(BeforeScript), "is a %s: it must be a folder", kind)
	}
	return nil
}

func (l *loader) sources() error {
	kind, err := kindOf(l.fsys, SourceDir)
	if err != nil {
		return err
	}
	if kind != "" && kind != "folder" {
		l.bad(nil, SourceDir, "is a %s: it must be a folder", kind)
	}
	dir := l.r.Ext.Directory
	if dir == "" {
		if kind == "" {
			// No error: a package may consist of its dependencies alone.
			l.r.Warnings = append(l.r.Warnings, SourceDir+": is missing, so the steps run in the package's top folder")
		}
		return nil
	}
	switch kind, err := kindOf(l.fsys, dir); {
	case err != nil:
		return err
	case kind == "folder":
	case kind == "" && strings.HasPrefix(dir, SourceDir+"/"):
		// May come out of the tarball that srcs/ holds; only the build can tell.
	case kind == "":
		l.bad(l.value("quarry", "directory"), dir, "is missing: name a folder of the repository")
	default:
		l.bad(l.value("quarry", "directory"), dir, "is a %s: name a folder of the repository", kind)
	}
	return nil
}
