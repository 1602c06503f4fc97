package mpm

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/extract"
	"github.com/Morphux/quarry/mirror"
	"github.com/Morphux/quarry/results"
)

// The folder of a root in which it is written what is installed.
const (
	dbDir       = "var/lib/quarry-mpm"
	installed   = "installed"    // in it, NAME.toml and NAME.files.toml
	foldersFile = "folders.toml" // in it, the folders that were made
	journalFile = "journal.toml" // in it, while something is under way
	stageDir    = "stage"        // in it, likewise: what is to be moved to its place
)

const rootSchema = 1

// Installed is what a root says of a package.
type Installed struct {
	Schema        int       `toml:"schema" json:"-"`
	Package       string    `toml:"package" json:"package"`
	Version       string    `toml:"version" json:"version"`
	Arch          string    `toml:"arch" json:"arch"`
	Revision      int64     `toml:"revision,omitempty" json:"revision,omitempty"`
	Description   string    `toml:"description,omitempty" json:"description,omitempty"`
	Channel       string    `toml:"channel" json:"channel"`
	Commit        string    `toml:"commit" json:"commit"` // of the channel
	Artifact      string    `toml:"artifact" json:"artifact"`
	InstalledSize int64     `toml:"installed_size,omitempty" json:"installed_size,omitempty"`
	Installed     time.Time `toml:"installed" json:"installed"`
	Asked         bool      `toml:"asked" json:"asked"` // by its name; else another package needs it
	Needed        []string  `toml:"needed,omitempty" json:"needed,omitempty"`
	Provides      []string  `toml:"provides,omitempty" json:"provides,omitempty"`

	files []quarry.File // by real path; read when it is needed
}

func (i *Installed) pkg() mirror.Package {
	return mirror.Package{Name: i.Package, Version: i.Version, Arch: i.Arch, Revision: i.Revision, Description: i.Description,
		Needed: i.Needed, Provides: i.Provides, Artifact: i.Artifact, InstalledSize: i.InstalledSize}
}

// Root is a system that packages are installed into. One at a time may change it.
type Root struct {
	dir      string
	fs       *extract.Root
	db       string // the database's folder: real, relative to the root
	lock     *os.File
	packages map[string]*Installed
	made     map[string]bool // folders that were made, by real path
}

// OpenRoot opens a root, which has to be a folder, and makes its database where
// there is none. What an earlier program left half done is finished, or taken back
// where it had not begun to change anything; finished tells which.
func OpenRoot(dir string) (r *Root, finished string, err error) {
	dir, err = filepath.Abs(dir)
	if err == nil {
		// The folder itself may be behind a link; what it holds is looked at as its own.
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return nil, "", fmt.Errorf("root cannot be opened: %w", err)
	}
	r = &Root{dir: dir}
	if r.fs, err = extract.OpenRoot(dir); err != nil {
		return nil, "", fmt.Errorf("root cannot be opened: %w", err)
	}
	defer func() {
		if err != nil {
			r.Close()
			r = nil
		}
	}()
	if r.db, err = r.makeDir(dbDir); err != nil {
		return r, "", err
	}
	if err := os.MkdirAll(r.path(installed), 0o755); err != nil {
		return r, "", err
	}
	if r.lock, err = flock(r.path("lock"), "root "+dir); err != nil {
		return r, "", err
	}
	if finished, err = r.recover(); err != nil {
		return r, "", fmt.Errorf("what was under way in root %s cannot be finished: %w", dir, err)
	}
	return r, finished, r.load()
}

// Close lets go of the root.
func (r *Root) Close() error {
	var err error
	if r.lock != nil {
		err = r.lock.Close()
	}
	return errors.Join(err, r.fs.Close())
}

// path is a file of the database, as this system sees it. The folder is the
// root's own, and was found through no link.
func (r *Root) path(parts ...string) string {
	return filepath.Join(append([]string{r.dir, r.db}, parts...)...)
}

// makeDir makes a folder with those above it, and returns where it really is.
func (r *Root) makeDir(name string) (string, error) {
	real := ""
	at := ""
	for part := range strings.SplitSeq(name, "/") {
		at = path.Join(at, part)
		d, found, err := r.fs.Dir(at)
		if errors.Is(err, fs.ErrNotExist) {
			parent, perr := r.fs.Real(real)
			if perr != nil {
				return "", perr
			}
			err = unix.Mkdirat(int(parent.Fd()), part, 0o755)
			parent.Close()
			if err == nil {
				d, found, err = r.fs.Dir(at)
			}
		}
		if err != nil {
			return "", fmt.Errorf("/%s cannot be made in root %s: %w", name, r.dir, err)
		}
		d.Close()
		real = found
	}
	return real, nil
}

// load reads what is installed.
func (r *Root) load() error {
	r.packages, r.made = map[string]*Installed{}, map[string]bool{}
	entries, err := os.ReadDir(r.path(installed))
	if err != nil {
		return err
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".toml")
		if !ok || strings.HasSuffix(name, ".files") {
			continue
		}
		var i Installed
		err := readTOML(r.path(installed, e.Name()), &i)
		switch {
		case err == nil && i.Schema != rootSchema:
			err = fmt.Errorf("it is of schema %d, and this reads %d: a newer version is needed", i.Schema, rootSchema)
		case err == nil && i.Package != name:
			err = fmt.Errorf("it is of %.80q", i.Package)
		}
		if err != nil {
			return fmt.Errorf("%s cannot be read: %w", r.path(installed, e.Name()), err)
		}
		r.packages[name] = &i
	}
	var f folders
	if err := readTOML(r.path(foldersFile), &f); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s cannot be read: %w", r.path(foldersFile), err)
	}
	for _, d := range f.Made {
		r.made[d] = true
	}
	return nil
}

// folders is foldersFile.
type folders struct {
	Schema int      `toml:"schema"`
	Made   []string `toml:"made,multiline"`
}

// List gives what is installed, by name.
func (r *Root) List() []Installed {
	out := make([]Installed, 0, len(r.packages))
	for _, i := range r.packages {
		out = append(out, *i)
	}
	slices.SortFunc(out, func(a, b Installed) int { return strings.Compare(a.Package, b.Package) })
	return out
}

// Arch is what the root's packages are for; "" where that is not known yet.
func (r *Root) Arch() string {
	for _, i := range r.List() {
		if i.Arch != quarry.Noarch {
			return i.Arch
		}
	}
	return ""
}

// Files lists what a package has installed, at real paths.
func (r *Root) Files(name string) ([]quarry.File, error) {
	i := r.packages[name]
	if i == nil {
		return nil, fmt.Errorf("%s is not installed: %w", name, ErrNotFound)
	}
	if i.files == nil {
		data, err := os.ReadFile(r.path(installed, name+".files.toml"))
		if err == nil {
			i.files, err = results.ParseFiles(data)
		}
		if err != nil {
			return nil, fmt.Errorf("%s cannot be read: %w", r.path(installed, name+".files.toml"), err)
		}
	}
	return i.files, nil
}

// stat looks at a real path; exists is false where nothing is.
func (r *Root) stat(real string) (st unix.Stat_t, exists bool, err error) {
	d, err := r.fs.Real(path.Dir("/" + real)[1:])
	if err == nil {
		err = unix.Fstatat(int(d.Fd()), path.Base(real), &st, unix.AT_SYMLINK_NOFOLLOW)
		d.Close()
	}
	// A file or a link where a folder was is nothing at this path either.
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return st, false, nil
	}
	return st, err == nil, err
}

func isKind(st unix.Stat_t, kind uint32) bool { return st.Mode&unix.S_IFMT == kind }

// open opens a regular file by its real path.
func (r *Root) open(real string) (*os.File, error) {
	d, err := r.fs.Real(path.Dir("/" + real)[1:])
	if err != nil {
		return nil, err
	}
	defer d.Close()
	fd, err := unix.Openat(int(d.Fd()), path.Base(real), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/" + real, Err: err}
	}
	return os.NewFile(uintptr(fd), "/"+real), nil
}

func (r *Root) readlink(real string) (string, error) {
	d, err := r.fs.Real(path.Dir("/" + real)[1:])
	if err != nil {
		return "", err
	}
	defer d.Close()
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(d.Fd()), path.Base(real), buf)
	if err != nil {
		return "", &os.PathError{Op: "read link", Path: "/" + real, Err: err}
	}
	return string(buf[:n]), nil
}

// sum is the digest of a regular file; "" for what is none, or not there.
func (r *Root) sum(real string) (string, error) {
	st, ok, err := r.stat(real)
	if err != nil || !ok || !isKind(st, unix.S_IFREG) {
		return "", err
	}
	f, err := r.open(real)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return sumOf(f)
}

// Difference is a file that is not as its package installed it.
type Difference struct {
	Package string `json:"package"`
	Path    string `json:"path"`
	What    string `json:"what"`             // e.g. missing, or: changed
	Config  bool   `json:"config,omitempty"` // under /etc, where people change files
}

// Verify holds what is installed against what packages have installed: all for
// no names. Times are not looked at.
func (r *Root) Verify(names ...string) ([]Difference, error) {
	if len(names) == 0 {
		for _, i := range r.List() {
			names = append(names, i.Package)
		}
	}
	var out []Difference
	for _, name := range names {
		files, err := r.Files(name)
		if err != nil {
			return nil, err
		}
		for i := range files {
			what, err := r.differs(&files[i])
			if err != nil {
				return nil, err
			}
			if what != "" {
				out = append(out, Difference{name, files[i].Path, what, isConfig(files[i].Path[1:])})
			}
		}
	}
	return out, nil
}

// differs says in words what is not as it was installed; "" for nothing.
func (r *Root) differs(f *quarry.File) (string, error) {
	real := f.Path[1:]
	st, ok, err := r.stat(real)
	if err != nil || !ok {
		return "missing", err
	}
	kind := map[quarry.FileKind]uint32{quarry.KindDir: unix.S_IFDIR, quarry.KindSymlink: unix.S_IFLNK, quarry.KindFIFO: unix.S_IFIFO}[f.Kind]
	if !isKind(st, cmp.Or(kind, unix.S_IFREG)) {
		return "something else is there", nil
	}
	switch f.Kind {
	case quarry.KindSymlink:
		target, err := r.readlink(real)
		if err != nil || target != f.Target {
			return "leads elsewhere", err
		}
		return "", nil
	case quarry.KindDir:
		if !r.made[real] { // another's before us, with its own owner and mode
			return "", nil
		}
	case quarry.KindFIFO:
	default:
		sum, err := r.sum(real)
		if err != nil || sum != f.SHA256 {
			return "changed", err
		}
	}
	switch {
	case st.Mode&0o7777 != f.Mode:
		return fmt.Sprintf("has the mode %04o, and was installed with %04o", st.Mode&0o7777, f.Mode), nil
	case os.Geteuid() == 0 && (st.Uid != f.UID || st.Gid != f.GID):
		return fmt.Sprintf("belongs to %d:%d, and was installed as %d:%d", st.Uid, st.Gid, f.UID, f.GID), nil
	}
	return "", nil
}

// isConfig reports whether a file is one that people change.
func isConfig(real string) bool { return strings.HasPrefix(real, "etc/") }

func marshal(v any) ([]byte, error) { return toml.Marshal(v) }
