package mpm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/extract"
	"github.com/Morphux/quarry/mirror"
)

// change is what is to happen to a root: all of it, or nothing.
type change struct {
	r       *Root
	ops     []op
	after   []op                       // when all files are in place: what goes
	there   map[string]string          // real path of what is laid in: the package, with a slash at its end for a folder
	owner   map[string]string          // real path of files of packages that stay: the package
	dirs    map[string]map[string]bool // real path of folders: packages that have it when all is done
	old     map[string]*Installed      // packages that are replaced or removed
	oldFile map[string]quarry.File     // their files, by real path
	made    map[string]bool            // Root.made, when all is done
	staged  string                     // the folder with what is laid in; on this system
	dev     uint64                     // of it

	Kept []string // for people: what was left as it is, and what lies beside it
}

// begin looks at what is installed, and at what of it will not be any more.
func (r *Root) begin(going map[string]bool) (*change, error) {
	c := &change{r: r, there: map[string]string{}, owner: map[string]string{}, dirs: map[string]map[string]bool{},
		old: map[string]*Installed{}, oldFile: map[string]quarry.File{}, made: map[string]bool{}, staged: r.path(stageDir)}
	for d := range r.made {
		c.made[d] = true
	}
	for name, i := range r.packages {
		files, err := r.Files(name)
		if err != nil {
			return nil, err
		}
		if going[name] {
			c.old[name] = i
		}
		for _, f := range files {
			real := f.Path[1:]
			switch {
			case going[name]:
				c.oldFile[real] = f
			case f.Kind == quarry.KindDir:
				c.hasDir(real, name)
			default:
				c.owner[real] = name
			}
		}
	}
	// What a program that was killed before its journal stood has left.
	if err := os.RemoveAll(c.staged); err != nil {
		return nil, err
	}
	if err := os.Mkdir(c.staged, 0o700); err != nil {
		return nil, err
	}
	st, err := os.Stat(c.staged)
	if err != nil {
		return nil, err
	}
	c.dev = uint64(st.Sys().(*unixStat).Dev)
	return c, nil
}

func (c *change) hasDir(real, pkg string) {
	if c.dirs[real] == nil {
		c.dirs[real] = map[string]bool{}
	}
	c.dirs[real][pkg] = true
}

// layer is one package's way into the root.
type layer struct {
	*change
	pkg   mirror.Package
	dir   string            // what it brings, on this system
	real  map[string]string // of its folders: where they lie in the root
	files []quarry.File     // what it has in the root
}

// lay unpacks an artifact beside the root, and plans how it gets there.
func (c *change) lay(ctx context.Context, p mirror.Package, artifact string, entry *Installed) error {
	l := &layer{change: c, pkg: p, dir: filepath.Join(c.staged, "root", p.Name), real: map[string]string{".": ""}}
	if err := os.MkdirAll(l.dir, 0o755); err != nil {
		return err
	}
	f, err := os.Open(artifact)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := extract.Install(f, l.dir); err != nil {
		return fmt.Errorf("%s %s: %w", p.Name, p.Version, err)
	}
	crash()
	err = filepath.WalkDir(l.dir, func(file string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || file == l.dir {
			return err
		}
		rel, err := filepath.Rel(l.dir, file)
		if err != nil {
			return err
		}
		if err := l.entry(rel, file); err != nil {
			return fmt.Errorf("%s %s: /%s: %w", p.Name, p.Version, rel, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortFunc(l.files, func(a, b quarry.File) int { return strings.Compare(a.Path, b.Path) })
	return c.note(entry, l.files)
}

// entry plans one file or folder.
func (l *layer) entry(rel, file string) error {
	var st unix.Stat_t
	if err := unix.Lstat(file, &st); err != nil {
		return err
	}
	parent, ok := l.real[path.Dir(rel)]
	if !ok {
		return errors.New("its folder is a link of the package")
	}
	base := path.Base(rel)
	real := path.Join(parent, base)
	if real == l.r.db || strings.HasPrefix(real, l.r.db+"/") {
		return errors.New("that is where it is written what is installed: no package may have it")
	}
	f := quarry.File{Path: "/" + real, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid}
	if isKind(st, unix.S_IFDIR) {
		f.Kind = quarry.KindDir
		real, err := l.folder(rel, real, st)
		if err == nil {
			f.Path = "/" + real
			l.add(f)
		}
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		target, err := os.Readlink(file)
		if err != nil {
			return err
		}
		f.Kind, f.Target, f.Mode = quarry.KindSymlink, target, 0o777
	case unix.S_IFIFO:
		f.Kind = quarry.KindFIFO
	default:
		// Of several names of one file each is a file here: they may come to lie apart.
		f.Kind, f.Size = quarry.KindRegular, st.Size
		var err error
		if f.SHA256, err = sumFile(file); err != nil {
			return err
		}
	}
	return l.file(rel, real, file, f)
}

// add notes a file, once: two of the package's names may be one place here.
func (l *layer) add(f quarry.File) {
	if f.Kind == quarry.KindDir {
		l.hasDir(f.Path[1:], l.pkg.Name)
	}
	for i := range l.files {
		if l.files[i].Path == f.Path {
			l.files[i] = f
			return
		}
	}
	l.files = append(l.files, f)
}

// conflict says who else has a path.
func (l *layer) conflict(real string) error {
	if other := l.owner[real]; other != "" {
		return fmt.Errorf("%s has installed that: two packages cannot have one file, remove one of them", other)
	}
	if other := strings.TrimSuffix(l.there[real], "/"); other != "" && other != l.pkg.Name {
		return fmt.Errorf("%s has that as well: two packages cannot have one file, install one of them", other)
	}
	return nil
}

// folder plans a folder, and tells where it lies: a link that was in the root to
// begin with is followed, one of a package that goes away is replaced.
func (l *layer) folder(rel, real string, st unix.Stat_t) (string, error) {
	put := func(real string, ops ...op) (string, error) {
		l.ops = append(l.ops, ops...)
		l.there[real] = l.pkg.Name + "/"
		l.real[rel] = real
		return real, nil
	}
	if by, ok := l.there[real]; ok && (strings.HasSuffix(by, "/") || !l.unlink(real)) {
		if !strings.HasSuffix(by, "/") {
			return "", l.conflictOr(real, "a file is there, where a folder has to be")
		}
		return put(real)
	}
	made := op{Kind: opFolder, Path: real, Mode: st.Mode & 0o7777, UID: int(st.Uid), GID: int(st.Gid), Time: st.Mtim.Sec}
	now, exists, err := l.r.stat(real)
	switch {
	case err != nil:
		return "", err
	case !exists:
		l.made[real] = true
		return put(real, made)
	case isKind(now, unix.S_IFDIR):
		return put(real)
	}
	_, going := l.oldFile[real]
	if isKind(now, unix.S_IFLNK) && !going {
		if other := l.owner[real]; other != "" && other != l.pkg.Name {
			// Through the link of another package its files would become this one's.
			return "", l.conflict(real)
		}
		d, to, err := l.r.fs.Dir(real)
		if errors.Is(err, fs.ErrNotExist) {
			// As /run/lock behind /var/lock: where it leads is made.
			target, terr := l.r.readlink(real)
			if terr != nil {
				return "", terr
			}
			if !path.IsAbs(target) {
				target = path.Join("/", path.Dir(real), target)
			}
			parent, where, perr := l.r.fs.Dir(path.Dir(target)[1:])
			if perr != nil {
				return "", err
			}
			parent.Close()
			to = path.Join(where, path.Base(target))
			if _, ok := l.there[to]; !ok {
				l.made[to] = true
				l.ops = append(l.ops, op{Kind: opFolder, Path: to, Mode: 0o755, Time: st.Mtim.Sec})
			}
			return put(to)
		}
		if err != nil {
			return "", err
		}
		d.Close()
		return put(to)
	}
	if !going {
		return "", l.conflictOr(real, "a file is there already, where a folder has to be")
	}
	l.made[real] = true
	return put(real, op{Kind: opRemove, Path: real}, made)
}

// unlink takes a link of this package back from the plan: where it has /lib/x as a
// link to its folder /usr/lib/x and both are one place here, that is the folder.
func (l *layer) unlink(real string) bool {
	i := slices.IndexFunc(l.files, func(f quarry.File) bool { return f.Path == "/"+real && f.Kind == quarry.KindSymlink })
	if i < 0 {
		return false
	}
	l.files = slices.Delete(l.files, i, i+1)
	l.ops = slices.DeleteFunc(l.ops, func(o op) bool { return o.Kind == opPut && o.Path == real })
	return true
}

func (l *layer) conflictOr(real, what string) error {
	if err := l.conflict(real); err != nil {
		return err
	}
	return errors.New(what)
}

// file plans whatever is no folder.
func (l *layer) file(rel, real, file string, f quarry.File) error {
	if err := l.conflict(real); err != nil {
		return err
	}
	now, exists, err := l.r.stat(real)
	if err != nil {
		return err
	}
	if by, ok := l.there[real]; ok {
		// Two names of this package are one place: the folder or file wins over the
		// link, the later file over the earlier.
		if strings.HasSuffix(by, "/") || f.Kind == quarry.KindSymlink {
			if f.Kind != quarry.KindSymlink {
				return errors.New("a folder is there already")
			}
			return nil
		}
		exists = false
	}
	switch {
	case !exists:
	case isKind(now, unix.S_IFDIR):
		if f.Kind == quarry.KindSymlink {
			l.Kept = append(l.Kept, fmt.Sprintf("/%s stays a folder, and %s has a link there", real, l.pkg.Name))
			return nil
		}
		return errors.New("a folder is there already")
	case isKind(now, unix.S_IFLNK):
		_, going := l.oldFile[real]
		d, _, err := l.r.fs.Dir(real)
		if err == nil {
			d.Close()
		}
		switch {
		case going || err != nil:
		case f.Kind != quarry.KindSymlink:
			return errors.New("a link to a folder is there already")
		case extract.IsLayout(path.Dir("/" + real)[1:]):
			return nil
		}
	}
	from, err := filepath.Rel(l.staged, file)
	if err != nil {
		return err
	}
	to := real
	if f.Kind == quarry.KindRegular && isConfig(real) {
		keep, beside, err := l.changed(real, exists, f)
		if err != nil {
			return err
		}
		if keep {
			l.there[real] = l.pkg.Name
			l.add(f)
			if !beside {
				return nil
			}
			if st, ok, err := l.r.stat(real + newExt); err != nil || ok && isKind(st, unix.S_IFDIR) {
				return errors.Join(err, fmt.Errorf("/%s%s is a folder, and the new version of the file cannot be put there", real, newExt))
			}
			to = real + newExt
			l.Kept = append(l.Kept, fmt.Sprintf("/%s was changed here and stays, what %s has is /%s", real, l.pkg.Name, to))
			l.ops = append(l.ops, op{Kind: opPut, Path: to, From: from})
			return nil
		}
	}
	l.there[real] = l.pkg.Name
	l.add(f)
	l.ops = append(l.ops, op{Kind: opPut, Path: to, From: from})
	return l.device(real)
}

const newExt = ".new"

// changed reports whether a config file stays what it is, as somebody changed it,
// and whether what the package has is put beside it.
func (l *layer) changed(real string, exists bool, f quarry.File) (keep, beside bool, err error) {
	was, ours := l.oldFile[real]
	if !exists {
		// Somebody removed it; where it is new there is nothing to keep.
		return ours, ours && was.SHA256 != f.SHA256, nil
	}
	now, err := l.r.sum(real)
	if err != nil || now == f.SHA256 || ours && now == was.SHA256 {
		return false, false, err
	}
	return true, !ours || was.SHA256 != f.SHA256, nil
}

// device holds a path against the limits of rename.
func (l *layer) device(real string) error {
	for dir := path.Dir("/" + real); ; dir = path.Dir(dir) {
		st, ok, err := l.r.stat(dir[1:])
		if dir == "/" {
			d, derr := l.r.fs.Real("")
			if derr != nil {
				return derr
			}
			err, ok = unix.Fstat(int(d.Fd()), &st), true
			d.Close()
		}
		if err != nil {
			return err
		}
		if ok {
			if uint64(st.Dev) != l.dev {
				return fmt.Errorf("%s is on another file system than /%s: files are moved from there in one step, so that both have to be on one", dir, l.r.db)
			}
			return nil
		}
	}
}

// go away: what packages had, and nothing has any more, is removed.
func (c *change) leave() error {
	var dirs []string
	for _, real := range sortedKeys(c.oldFile) {
		f := c.oldFile[real]
		if _, ok := c.there[real]; ok {
			continue
		}
		if f.Kind == quarry.KindDir {
			if len(c.dirs[real]) == 0 && c.made[real] {
				dirs = append(dirs, real)
			}
			continue
		}
		st, exists, err := c.r.stat(real)
		if err != nil {
			return err
		}
		if !exists || isKind(st, unix.S_IFDIR) {
			continue
		}
		if isConfig(real) && f.Kind == quarry.KindRegular {
			now, err := c.r.sum(real)
			if err != nil {
				return err
			}
			if now != f.SHA256 {
				c.Kept = append(c.Kept, fmt.Sprintf("/%s was changed here and stays", real))
				continue
			}
		}
		c.after = append(c.after, op{Kind: opRemove, Path: real})
	}
	for _, real := range slices.Backward(dirs) {
		c.after = append(c.after, op{Kind: opRemoveFolder, Path: real})
		delete(c.made, real)
	}
	return nil
}

func sumFile(name string) (string, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return sumOf(f)
}

func sumOf(r io.Reader) (string, error) {
	sum := sha256.New()
	if _, err := io.Copy(sum, r); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
