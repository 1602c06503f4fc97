package extract

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry"
)

// Install lays an artifact into a root file system and returns the paths that
// it wrote, as they really lie there: with /lib a link to usr/lib, the
// artifact's /lib/libz.so.1 is /usr/lib/libz.so.1. Folders that were there
// before are not among them, and keep their owner and mode.
//
// The artifact is taken for hostile. It has to be of exactly the form that
// Tree writes (doc/artifact.md): sorted, no name twice, every folder before
// what is in it, nothing absolute and no "..". A link that was in the root
// before is followed, as it would be by a process whose root this is, and
// never out of it; a link that the artifact brought is not. Files and links are
// replaced, never written through; folders, and links to folders where the
// artifact has a folder, stay what they are.
//
// Owners are set when this runs as root, in whatever user namespace. File
// capabilities are set where the system lets it and else left out. Nothing is
// synced to disk.
//
// On an error the root is left as far as it got: it is a workspace to be
// thrown away.
func Install(r io.Reader, root string) ([]string, error) {
	return install(r, root, DefaultLimits, 1, nil)
}

// InstallSeen is Install for a root over which what the artifact brings comes to
// lie as a layer. It returns what it met on its way that is no folder: the
// real paths of links and files that it left, and of names that led nowhere. Over
// a root with further layers of the kind, the artifact makes the same
// layer if they have nothing at these paths, and at those of the layer
// nothing of another kind.
//
// Limits of zero are DefaultLimits; threads is how many unpack, one at least.
func InstallSeen(r io.Reader, root string, limits Limits, threads int) (seen []string, err error) {
	met := map[string]bool{}
	if _, err := install(r, root, limits.or(DefaultLimits), max(threads, 1), func(real string) { met["/"+real] = true }); err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Keys(met)), nil
}

func install(r io.Reader, root string, limits Limits, threads int, saw func(string)) ([]string, error) {
	dec, err := newDecoder(threads)
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	if err := dec.Reset(r); err != nil {
		return nil, fmt.Errorf("cannot read the artifact: %w", err)
	}
	return installSeen(dec, root, limits, saw)
}

// maxTime is the latest time that an entry may have, in the year 2242:
// nanoseconds since 1970 still fit a number then.
const maxTime = 1 << 33

// errForm is what is wrong with an artifact that Tree did not write.
func errForm(name, format string, a ...any) error {
	return fmt.Errorf("the artifact's %.200s %s", quotePath(name), fmt.Sprintf(format, a...))
}

// installer lays one artifact in.
type installer struct {
	rootfs
	limits    Limits
	chown     bool
	installed []string
	placed    map[string]quarry.FileKind // what this artifact brought, by real path
	names     map[string]string          // real path of each regular file, by name in the archive
	dirs      []madeDir
	buf       []byte
	temp      int

	// The folder of the last entry; the next one is mostly in it too.
	parent     place
	parentName string
}

// countingReader counts what is read. The tar library reads no byte ahead.
type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// madeDir is a folder whose time is set when all is in it.
type madeDir struct {
	real string
	time time.Time
}

func installTar(r io.Reader, root string, limits Limits) ([]string, error) {
	return installSeen(r, root, limits, nil)
}

func installSeen(r io.Reader, root string, limits Limits, saw func(string)) ([]string, error) {
	fd, err := openRoot(root)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	in := &installer{
		rootfs: rootfs{root: fd, mkdir: true, saw: saw}, limits: limits, chown: os.Geteuid() == 0,
		placed: map[string]quarry.FileKind{}, names: map[string]string{},
		buf: make([]byte, 256<<10), parent: place{fd: -1},
	}
	in.refuse = func(real string) error {
		if _, ours := in.placed[real]; ours {
			return errForm("/"+real, "is a link, and other entries lead through it")
		}
		return nil
	}
	defer func() { in.setParent(place{fd: -1}, "") }()

	counted := &countingReader{r: r}
	archive := tar.NewReader(counted)
	last := ""
	var bytes int64
	for n := 0; ; n++ {
		read := counted.n
		h, err := archive.Next()
		if err == io.EOF {
			// The library also takes the end of the stream for the end of the
			// archive, and a stream cut between two frames looks whole.
			if counted.n-read < tarEnd {
				return in.installed, errors.New("the artifact is cut short: make it again")
			}
			break
		}
		if err != nil {
			return in.installed, fmt.Errorf("cannot read the artifact: %w", err)
		}
		name, err := in.check(h)
		switch {
		case err != nil:
			return in.installed, err
		case name <= last:
			return in.installed, errForm(name, "comes after %s: entries have to be sorted and different", quotePath(last))
		case n >= limits.Files:
			return in.installed, errForm(name, "is one of more than %d entries", limits.Files)
		}
		last = name
		if bytes += h.Size; bytes > limits.Bytes {
			return in.installed, errForm(name, "makes it larger than %d bytes", limits.Bytes)
		}
		if err := in.entry(archive, h, name); err != nil {
			return in.installed, err
		}
	}
	// The rest of the stream holds its checksum, and nothing else.
	if n, err := io.Copy(io.Discard, io.LimitReader(r, 1)); err != nil {
		return in.installed, fmt.Errorf("cannot read the artifact: %w", err)
	} else if n > 0 {
		return in.installed, errors.New("the artifact goes on after its end: make it again")
	}
	return in.installed, in.finish()
}

// check holds an entry against the format and returns its name without the
// slash that folders have.
func (in *installer) check(h *tar.Header) (string, error) {
	name := h.Name
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo:
	case tar.TypeDir:
		name = strings.TrimSuffix(name, "/")
	default:
		return "", errForm(name, "is of the kind %q: only files, folders, links and FIFOs can be installed", h.Typeflag)
	}
	badName := func(s string) bool {
		return !fitText(s, in.limits.Path) || s != path.Clean(s) || s == "." || s == ".." ||
			strings.HasPrefix(s, "/") || strings.HasPrefix(s, "../")
	}
	switch {
	case badName(name):
		return "", errForm(name, "has a name that leads elsewhere or cannot be shown")
	case strings.Count(name, "/") > in.limits.Depth:
		return "", errForm(name, "is more than %d folders deep", in.limits.Depth)
	case h.Mode&^0o7777 != 0:
		return "", errForm(name, "has the mode %o, which has unknown bits", h.Mode)
	case h.Uid < 0 || h.Uid >= idRange || h.Gid < 0 || h.Gid >= idRange:
		return "", errForm(name, "belongs to %d:%d: owners are 0 to %d", h.Uid, h.Gid, idRange-1)
	case h.ModTime.Unix() < 0 || h.ModTime.Unix() > maxTime:
		return "", errForm(name, "has the time %d, which is not between 0 and %d", h.ModTime.Unix(), int64(maxTime))
	case h.Size < 0 || h.Size > 0 && h.Typeflag != tar.TypeReg:
		return "", errForm(name, "has the size %d, which its kind cannot have", h.Size)
	case h.Typeflag == tar.TypeSymlink && !fitText(h.Linkname, unix.PathMax-1):
		return "", errForm(name, "is a link to %.40q, which cannot be shown", h.Linkname)
	case h.Typeflag == tar.TypeLink && badName(h.Linkname):
		return "", errForm(name, "is a hard link to %.40q, which leads elsewhere", h.Linkname)
	}
	for key, value := range h.PAXRecords {
		switch {
		case key == paxCaps:
			if _, err := plainCaps([]byte(value), 0); err != nil || h.Typeflag != tar.TypeReg {
				return "", errForm(name, "has capabilities of an unknown form")
			}
		case strings.HasPrefix(key, "SCHILY."), strings.HasPrefix(key, "GNU."):
			return "", errForm(name, "has the unknown extended header %.40q", key)
		}
	}
	return name, nil
}

// setParent keeps a folder for the entries to come.
func (in *installer) setParent(p place, name string) {
	if in.parent.fd >= 0 {
		unix.Close(in.parent.fd)
	}
	in.parent, in.parentName = p, name
}

// entry lays one entry in.
func (in *installer) entry(archive io.Reader, h *tar.Header, name string) error {
	fail := func(err error) error { return fmt.Errorf("cannot install %s: %w", quotePath("/"+name), err) }
	dir, base := path.Split(name)
	if dir != in.parentName || in.parent.fd < 0 {
		p, err := in.lookupDir(dir)
		if errors.Is(err, unix.ENOENT) {
			return errForm(name, "is in a folder that neither it nor the root has")
		}
		if err != nil {
			return fail(err)
		}
		in.setParent(p, dir)
	}
	n := node{base: base, real: path.Join(in.parent.real, base), h: h}
	var err error
	if n.there, err = lstat(in.parent.fd, base); err != nil && err != unix.ENOENT {
		return fail(err)
	}
	n.exists = err == nil
	n.ours = in.placed[n.real]

	var kind quarry.FileKind
	switch h.Typeflag {
	case tar.TypeDir:
		kind, err = quarry.KindDir, in.folder(&n)
	case tar.TypeSymlink:
		kind, err = quarry.KindSymlink, in.symlink(&n)
	case tar.TypeLink:
		kind, err = quarry.KindHardlink, in.hardlink(&n)
	case tar.TypeFifo:
		kind, err = quarry.KindFIFO, in.fifo(&n)
	default:
		kind, err = quarry.KindRegular, in.regular(&n, archive)
		in.names[name] = n.real
	}
	if err != nil {
		return fail(err)
	}
	if !n.kept {
		in.placed[n.real] = kind
		in.installed = append(in.installed, "/"+n.real)
	}
	return nil
}
