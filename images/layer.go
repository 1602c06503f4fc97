package images

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// layer is what a container wrote over its image, to be made into a layer of
// another image. podman's own commit is of no use here: where the storage maps
// ids by mounting, as it does on new kernels, it stores the host's ids of the
// user namespace, which the next container shows as nobody's.
type layer struct {
	upper    string          // the container's writable folder on the host; its processes have ended
	uid, gid int             // host ids that stand for 0 inside
	count    int             // of ids
	ctx      context.Context // ends the reading; a file may seem to have exabytes
}

// until reads until ctx ends.
type until struct {
	ctx context.Context
	r   io.Reader
}

func (u until) Read(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.r.Read(p)
}

// left are the places whose content is no part of a layer: what is mounted
// there while a container runs, what podman itself makes there, and what does
// not survive a start of a machine either. A folder of them that the base has
// stays as the base has it.
var left = []string{"dev", "proc", "sys", "run", "tmp", "var/tmp", "etc/resolv.conf", "etc/hostname", "etc/mtab"}

// fleeting are the places that an update may write without anything having
// changed for builds: logs, caches, and the lists of packages that apt can
// fetch, which are of no use without network.
var fleeting = []string{"var/log", "var/cache", "var/lib/apt/lists", "var/lib/apt/periodic"}

func within(name string, places []string) bool {
	return slices.ContainsFunc(places, func(p string) bool { return name == p || strings.HasPrefix(name, p+"/") })
}

// layerSum is what a layer's content comes to.
type layerSum struct {
	DiffID  string // digest of the tar: the layer's name in an image
	Size    int64  // of the tar
	Content string // digest of all that builds can see of it, times and fleeting places left out
}

// sum reads the layer once.
func (l layer) sum() (layerSum, error) {
	h := sha256.New()
	n := &counter{w: h}
	content := sha256.New()
	if err := l.write(n, content); err != nil {
		return layerSum{}, err
	}
	return layerSum{digestOf(h), n.n, digestOf(content)}, nil
}

func digestOf(h hash.Hash) string { return "sha256:" + hex.EncodeToString(h.Sum(nil)) }

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// write writes the layer as the OCI image specification wants it: sorted, with
// the ids as they are inside, deleted files as .wh. entries. content, which may
// be nil, gets what counts for whether two layers are the same.
func (l layer) write(w io.Writer, content io.Writer) error {
	if content == nil {
		content = io.Discard
	}
	tw := tar.NewWriter(w)
	links := map[inode]string{}
	err := filepath.WalkDir(l.upper, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(l.upper, p)
		if err != nil {
			return err
		}
		if within(name, left) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		return l.entry(tw, content, p, name, links)
	})
	if err != nil {
		return fmt.Errorf("what the update wrote cannot be read: %w", err)
	}
	return tw.Close()
}

// entry writes one file.
func (l layer) entry(tw *tar.Writer, content io.Writer, p, name string, links map[inode]string) error {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: p, Err: err}
	}
	h := &tar.Header{
		Name: name, Mode: int64(st.Mode & 0o7777), Uid: l.inside(st.Uid, l.uid), Gid: l.inside(st.Gid, l.gid),
		ModTime: time.Unix(st.Mtim.Sec, 0), Format: tar.FormatPAX,
	}
	put := func(h *tar.Header, sum []byte) error {
		if !within(strings.TrimSuffix(h.Name, "/"), fleeting) {
			fmt.Fprintf(content, "%q %c %o %d %d %d %q %x %q\n", h.Name, h.Typeflag, h.Mode, h.Uid, h.Gid, h.Size, h.Linkname, sum, sortedRecords(h.PAXRecords))
		}
		return tw.WriteHeader(h)
	}
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFCHR && st.Rdev == 0 {
		return put(&tar.Header{Name: path.Join(path.Dir(name), ".wh."+path.Base(name)), Typeflag: tar.TypeReg, ModTime: h.ModTime, Format: tar.FormatPAX}, nil)
	}
	if kind == unix.S_IFSOCK {
		return nil // of a process that is gone
	}
	if strings.HasPrefix(path.Base(name), ".wh.") {
		return fmt.Errorf("%s has a name that stands for a deleted file in images: the update must not leave it", oneWord(name))
	}
	opaque, err := l.attributes(p, h)
	if err != nil {
		return err
	}
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		id := inode{uint64(st.Dev), st.Ino}
		if first, ok := links[id]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			h.PAXRecords = nil
			return put(h, nil)
		}
		links[id] = name
	}
	switch kind {
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
		h.Name += "/"
		if err := put(h, nil); err != nil || !opaque {
			return err
		}
		return put(&tar.Header{Name: path.Join(name, ".wh..wh..opq"), Typeflag: tar.TypeReg, ModTime: h.ModTime, Format: tar.FormatPAX}, nil)
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = os.Readlink(p); err != nil {
			return err
		}
		return put(h, nil)
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
		return put(h, nil)
	case unix.S_IFREG:
	default:
		return fmt.Errorf("%s is neither file, folder, link nor pipe: the update must not leave it", name)
	}
	f, err := os.OpenFile(p, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	h.Typeflag, h.Size = tar.TypeReg, st.Size
	sum := sha256.New()
	if content != io.Discard {
		// Of the content too the digest comes before it: read once more.
		if _, err := io.Copy(sum, until{l.ctx, f}); err != nil {
			return err
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
	if err := put(h, sum.Sum(nil)); err != nil {
		return err
	}
	_, err = io.Copy(tw, until{l.ctx, f})
	return err
}

func sortedRecords(m map[string]string) []string {
	var list []string
	for k, v := range m {
		list = append(list, k+"="+v)
	}
	slices.Sort(list)
	return list
}

// inside turns an id of the host's into the container's. What belongs to
// nobody in there (only the layer's top folder does, with some drivers) is its
// root's.
func (l layer) inside(id uint32, first int) int {
	if n := int(id) - first; n >= 0 && n < l.count {
		return n
	}
	return 0
}

// attributes reads a file's extended attributes into its header, and what
// overlay noted of it.
func (l layer) attributes(p string, h *tar.Header) (opaque bool, err error) {
	list := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Llistxattr(p, list)
	if errors.Is(err, unix.ENOTSUP) {
		return false, nil
	}
	if err != nil {
		return false, &os.PathError{Op: "llistxattr", Path: p, Err: err}
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10) // XATTR_SIZE_MAX
		n, err := unix.Lgetxattr(p, name, value)
		if err != nil {
			return false, &os.PathError{Op: "lgetxattr " + name, Path: p, Err: err}
		}
		value = value[:n]
		switch space, attr := overlayAttribute(name); {
		case space && attr == "opaque":
			opaque = string(value) == "y"
		case space && (attr == "redirect" || attr == "metacopy"):
			return false, fmt.Errorf("%s is not all there, because overlay uses %s on this machine: switch it off (echo N >/sys/module/overlay/parameters/redirect_dir; echo N >/sys/module/overlay/parameters/metacopy)", p, attr)
		case space:
			// origin, impure and the like: overlay's own bookkeeping
		case name == "security.capability":
			h.PAXRecords = withRecord(h.PAXRecords, name, l.capability(value))
		case strings.HasPrefix(name, "user."):
			h.PAXRecords = withRecord(h.PAXRecords, name, value)
		}
	}
	return opaque, nil
}

func overlayAttribute(name string) (ok bool, attr string) {
	for _, prefix := range []string{"trusted.overlay.", "user.overlay.", "user.fuseoverlayfs."} {
		if attr, ok := strings.CutPrefix(name, prefix); ok {
			return true, attr
		}
	}
	return false, ""
}

func withRecord(m map[string]string, name string, value []byte) map[string]string {
	if m == nil {
		m = map[string]string{}
	}
	m["SCHILY.xattr."+name] = string(value)
	return m
}

// capability turns capabilities of a user namespace's root, as setcap inside
// one makes them, into those of any root: version 3 of the attribute into
// version 2, which lacks the id (linux/capability.h).
func (l layer) capability(v []byte) []byte {
	const revision, version2, version3 = 0xff000000, 0x02000000, 0x03000000
	if len(v) != 24 {
		return v
	}
	magic := binary.LittleEndian.Uint32(v)
	if magic&revision != version3 || int64(binary.LittleEndian.Uint32(v[20:])) != int64(l.uid) {
		return v
	}
	v = slices.Clone(v[:20])
	binary.LittleEndian.PutUint32(v, magic&^revision|version2)
	return v
}

// imageOver says which image a layer is to be laid upon.
type imageOver struct {
	Arch, Variant string   // as the OCI image specification names them
	DiffIDs       []string // of the base's layers
	Labels        map[string]string
	Created       time.Time
}

// archive writes an image of the base's layers and this one as an OCI archive.
// The base's layers are only named: podman has them, finds them by their
// digests, and asks for no more.
func (l layer) archive(w io.Writer, over imageOver, sum layerSum, name string) error {
	type m = map[string]any
	blob := func(v any) (digest string, data []byte, err error) {
		if data, err = json.Marshal(v); err != nil {
			return "", nil, err
		}
		s := sha256.Sum256(data)
		return "sha256:" + hex.EncodeToString(s[:]), data, nil
	}
	conf := m{
		"created": over.Created.UTC().Format(time.RFC3339), "architecture": over.Arch, "os": "linux",
		"config": m{"Labels": over.Labels},
		"rootfs": m{"type": "layers", "diff_ids": append(slices.Clone(over.DiffIDs), sum.DiffID)},
	}
	if over.Variant != "" {
		conf["variant"] = over.Variant
	}
	confDigest, confData, err := blob(conf)
	if err != nil {
		return err
	}
	const layerType = "application/vnd.oci.image.layer.v1.tar"
	var layers []m
	for _, d := range over.DiffIDs {
		layers = append(layers, m{"mediaType": layerType, "digest": d, "size": 0})
	}
	layers = append(layers, m{"mediaType": layerType, "digest": sum.DiffID, "size": sum.Size})
	manifestDigest, manifestData, err := blob(m{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": m{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": confDigest, "size": len(confData)},
		"layers": layers,
	})
	if err != nil {
		return err
	}
	_, index, err := blob(m{"schemaVersion": 2, "manifests": []m{{
		"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifestDigest, "size": len(manifestData),
		"annotations": m{"org.opencontainers.image.ref.name": name},
	}}})
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	put := func(name string, size int64, data io.Reader) error {
		if err := tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size}); err != nil || data == nil {
			return err
		}
		_, err := io.Copy(tw, data)
		return err
	}
	blobName := func(digest string) string { return "blobs/" + strings.Replace(digest, ":", "/", 1) }
	for _, f := range []struct {
		name string
		data []byte
	}{
		{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)}, {"index.json", index},
		{blobName(manifestDigest), manifestData}, {blobName(confDigest), confData},
	} {
		if err := put(f.name, int64(len(f.data)), bytes.NewReader(f.data)); err != nil {
			return err
		}
	}
	if err := put(blobName(sum.DiffID), sum.Size, nil); err != nil {
		return err
	}
	if err := l.write(tw, nil); err != nil {
		return err
	}
	return tw.Close()
}
