package guest

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"
)

// place finds the directory in which the steps of a package run: the recipe's
// own choice; else srcs/, or the one folder that srcs/ holds and nothing else.
// A tarball that is all there is in srcs/ is unpacked first, and counts as what
// it holds.
func place(p *Place) (string, error) {
	root, err := os.OpenRoot(p.Root)
	if err != nil {
		return "", err
	}
	defer root.Close()
	if p.Dir != "" {
		if err := unpackLone(root, "srcs", p.Time); err != nil {
			return "", err
		}
		if st, err := root.Stat(p.Dir); err != nil || !st.IsDir() {
			return "", problemf("the recipe's directory %s is not a folder in the package", clean(p.Dir, 200))
		}
		return filepath.Join(p.Root, p.Dir), nil
	}
	st, err := root.Lstat("srcs")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return p.Root, nil // a package of scripts alone
	case err != nil:
		return "", err
	case !st.IsDir():
		return "", problemf("srcs is not a folder")
	}
	if err := unpackLone(root, "srcs", p.Time); err != nil {
		return "", err
	}
	entries, err := readDir(root, "srcs")
	if err != nil {
		return "", err
	}
	folder := ""
	for _, e := range entries {
		switch {
		case isTarball(e.Name()) && e.Type().IsRegular() && len(entries) > 1:
			// the one that was just unpacked, beside what came out of it
		case e.IsDir() && folder == "":
			folder = e.Name()
		default:
			return filepath.Join(p.Root, "srcs"), nil
		}
	}
	return filepath.Join(p.Root, "srcs", folder), nil
}

func readDir(root *os.Root, name string) ([]fs.DirEntry, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.ReadDir(-1)
}

// tarballs are the names that archives of sources have. What is in them is
// found by looking.
var tarballs = []string{".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst"}

func isTarball(name string) bool {
	for _, suffix := range tarballs {
		if len(name) > len(suffix) && strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return false
}

// unpackLone unpacks the tarball that is the only entry of dir.
func unpackLone(root *os.Root, dir string, at time.Time) error {
	entries, err := readDir(root, dir)
	if err != nil || len(entries) != 1 || !entries[0].Type().IsRegular() || !isTarball(entries[0].Name()) {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	name := path.Join(dir, entries[0].Name())
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	below, err := root.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer below.Close()
	if err := unpack(f, below, at); err != nil {
		return fmt.Errorf("unpack %s: %w", clean(name, 300), err)
	}
	return nil
}

// decompress finds out by its first bytes how a stream is compressed.
func decompress(r io.Reader) (io.Reader, func(), error) {
	b := bufio.NewReaderSize(r, 128<<10)
	head, _ := b.Peek(6)
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(b)
		return z, func() {}, err
	case bytes.HasPrefix(head, []byte("BZh")):
		return bzip2.NewReader(b), func() {}, nil
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		z, err := xz.NewReader(b)
		return z, func() {}, err
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return b, func() {}, nil
}

// unpack lays a tar archive of sources below root. Owners and times in it are
// not taken over, and neither are devices.
func unpack(r io.Reader, root *os.Root, at time.Time) error {
	stream, done, err := decompress(r)
	if err != nil {
		return problem{err}
	}
	defer done()
	// Directories get their mode and time at the end: one without its write bit
	// could not be filled.
	dirs := map[string]fs.FileMode{}
	made := map[string]bool{".": true}
	mkdir := func(name string) error {
		if made[name] {
			return nil
		}
		if err := root.MkdirAll(name, 0o755); err != nil {
			return err
		}
		for d := name; d != "." && !made[d]; d = path.Dir(d) {
			made[d] = true
			dirs[d] = 0o755
		}
		return nil
	}
	archive := tar.NewReader(stream)
	for {
		h, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return problem{err}
		}
		name := path.Clean(strings.TrimLeft(h.Name, "/"))
		if !filepath.IsLocal(name) {
			return problemf("it holds %s, which lies outside of it", clean(h.Name, 200))
		}
		if name == "." || h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := entry(root, archive, h, name, at, mkdir, dirs); err != nil {
			// Wherever the archive leads, os.Root does not follow it out.
			return problemf("%s: %w", clean(h.Name, 200), err)
		}
	}
	for name, mode := range dirs {
		if err := root.Chmod(name, mode); err != nil {
			return problem{err}
		}
	}
	for name := range dirs {
		if err := root.Chtimes(name, at, at); err != nil {
			return problem{err}
		}
	}
	return nil
}

// entry makes one entry of an archive.
func entry(root *os.Root, r io.Reader, h *tar.Header, name string, at time.Time, mkdir func(string) error, dirs map[string]fs.FileMode) error {
	if h.Typeflag == tar.TypeDir {
		if err := mkdir(name); err != nil {
			return err
		}
		dirs[name] = fs.FileMode(h.Mode)&0o777 | 0o700
		return nil
	}
	if err := mkdir(path.Dir(name)); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeSymlink, tar.TypeLink:
		// A later entry takes the place of an earlier one, as tar has it.
		if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeReg:
		mode := fs.FileMode(h.Mode)&0o777 | 0o600
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		if e := f.Chmod(mode); err == nil { // whatever the umask
			err = e
		}
		if e := futimes(f, at); err == nil {
			err = e
		}
		if e := f.Close(); err == nil {
			err = e
		}
		return err
	case tar.TypeSymlink:
		if err := root.Symlink(h.Linkname, name); err != nil {
			return err
		}
		return lutimes(root, name, at)
	case tar.TypeLink:
		return root.Link(path.Clean(strings.TrimLeft(h.Linkname, "/")), name)
	default:
		return fmt.Errorf("it is of type %q: sources are files, folders and links", h.Typeflag)
	}
}

func futimes(f *os.File, at time.Time) error {
	tv := unix.NsecToTimeval(at.UnixNano())
	return os.NewSyscallError("futimes", unix.Futimes(int(f.Fd()), []unix.Timeval{tv, tv}))
}

// lutimes sets the time of a link itself.
func lutimes(root *os.Root, name string, at time.Time) error {
	dir, err := root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	ts := unix.NsecToTimespec(at.UnixNano())
	return os.NewSyscallError("utimensat", unix.UtimesNanoAt(int(dir.Fd()), path.Base(name), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
}
