// Package compare shows how two artifacts of one build differ: which files, in
// what, and what kind of bytes it is that a build does not make the same twice.
//
// Artifacts hold whatever a build has put into them. All that is said of them is
// bounded, safe to print and read without trust; what is too large to be looked
// into is compared all the same, and only told of in less detail.
package compare

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/Morphux/quarry/internal/human"
	"github.com/klauspost/compress/zstd"
)

// Limits on what is said and held.
const (
	maxFiles   = 200      // files of which a difference is told
	maxDetails = 20       // lines on one file
	maxLine    = 300      // bytes of a line
	maxHeld    = 32 << 20 // bytes of one file that are looked into
	maxEntries = 1 << 20  // entries of an archive
)

// Difference is a file that is not the same in both.
type Difference struct {
	Path string `json:"path"` // absolute, as installed, safe to print
	// What says in a few words what differs, e.g. "content, mode" or "only in the
	// recorded artifact".
	What string `json:"what"`
	// Details are lines on it: bytes that differ and what they look like, sections
	// of an ELF file, members of an archive, lines of text.
	Details []string `json:"details,omitempty"`
}

// Report is how two artifacts differ.
type Report struct {
	Same        bool         `json:"same"`                  // in all that is in them
	Files       int          `json:"files"`                 // paths in either
	Differ      int          `json:"differ"`                // paths that differ
	Differences []Difference `json:"differences,omitempty"` // the first of them
}

// entry is a path of an archive. The content is to be read before the next one.
type entry struct {
	*tar.Header
	r io.Reader
}

func (e *entry) path() string {
	return strings.TrimSuffix("/"+strings.TrimPrefix(e.Name, "./"), "/")
}

// archive reads an artifact.
type archive struct {
	what string
	zr   *zstd.Decoder
	tr   *tar.Reader
	n    int
	last string
}

func open(what string, r io.Reader) (*archive, error) {
	// Frames of artifacts are of 1 MiB, and need no window of more.
	zr, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w", what, err)
	}
	return &archive{what: what, zr: zr, tr: tar.NewReader(zr)}, nil
}

// next is the next entry, nil at the end.
func (a *archive) next() (*entry, error) {
	h, err := a.tr.Next()
	if errors.Is(err, io.EOF) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w", a.what, err)
	}
	e := &entry{h, a.tr}
	// Both are gone through side by side, which needs their order.
	if a.n++; a.n > maxEntries || a.n > 1 && e.path() <= a.last {
		return nil, fmt.Errorf("%s is no artifact: its paths are not in order, or there are too many", a.what)
	}
	a.last = e.path()
	return e, nil
}

// Artifacts compares two artifacts of one build, the recorded one and another that
// was made from the same. An error says that one of them cannot be read.
func Artifacts(ctx context.Context, recorded, rebuilt io.Reader) (*Report, error) {
	old, err := open("the recorded artifact", recorded)
	if err != nil {
		return nil, err
	}
	defer old.zr.Close()
	now, err := open("the rebuilt artifact", rebuilt)
	if err != nil {
		return nil, err
	}
	defer now.zr.Close()
	rep := &Report{}
	a, err := old.next()
	if err != nil {
		return nil, err
	}
	b, err := now.next()
	if err != nil {
		return nil, err
	}
	for a != nil || b != nil {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		rep.Files++
		var d *Difference
		var left, right bool // which are done with
		switch {
		case b == nil || a != nil && a.path() < b.path():
			d, left = &Difference{What: "only in the recorded artifact", Details: []string{describe(a)}}, true
			d.Path = a.path()
		case a == nil || b.path() < a.path():
			d, right = &Difference{What: "only in the rebuilt artifact", Details: []string{describe(b)}}, true
			d.Path = b.path()
		default:
			left, right = true, true
			if d, err = files(a, b, rep.Differ < maxFiles); err != nil {
				return nil, err
			}
		}
		if d != nil {
			rep.Differ++
			if len(rep.Differences) < maxFiles {
				rep.Differences = append(rep.Differences, d.safe())
			}
		}
		if left {
			if a, err = old.next(); err != nil {
				return nil, err
			}
		}
		if right {
			if b, err = now.next(); err != nil {
				return nil, err
			}
		}
	}
	rep.Same = rep.Differ == 0
	return rep, nil
}

// safe bounds a difference, and makes it fit to be printed.
func (d *Difference) safe() Difference {
	out := Difference{Path: line(d.Path), What: line(d.What)}
	for i, s := range d.Details {
		if i == maxDetails {
			out.Details = append(out.Details, fmt.Sprintf("and %s", human.Count(len(d.Details)-i, "more line")))
			break
		}
		out.Details = append(out.Details, line(s))
	}
	return out
}

func line(s string) string {
	if len(s) > maxLine {
		s = strings.ToValidUTF8(s[:maxLine], "") + "..."
	}
	return human.Safe(s, false)
}

var kinds = map[byte]string{tar.TypeReg: "file", tar.TypeDir: "folder", tar.TypeSymlink: "link", tar.TypeLink: "hard link", tar.TypeFifo: "FIFO"}

func describe(e *entry) string {
	s := kinds[e.Typeflag]
	if s == "" {
		s = "entry of an unknown kind"
	}
	s += fmt.Sprintf(", mode %04o", e.Mode&0o7777)
	switch e.Typeflag {
	case tar.TypeReg:
		s += ", " + human.Size(e.Size)
	case tar.TypeSymlink, tar.TypeLink:
		s += ", to " + e.Linkname
	}
	return s
}

// files compares two entries of one path; nil says that they are the same. Without
// detail it is only found out that they differ.
func files(a, b *entry, detail bool) (*Difference, error) {
	d := &Difference{Path: a.path()}
	var what []string
	differ := func(name, was, is string) {
		if was != is {
			what = append(what, name)
			d.Details = append(d.Details, fmt.Sprintf("%s %s, rebuilt %s", name, was, is))
		}
	}
	differ("kind", kinds[a.Typeflag], kinds[b.Typeflag])
	differ("mode", fmt.Sprintf("%04o", a.Mode&0o7777), fmt.Sprintf("%04o", b.Mode&0o7777))
	differ("owner", fmt.Sprintf("%d:%d", a.Uid, a.Gid), fmt.Sprintf("%d:%d", b.Uid, b.Gid))
	differ("time", stamp(a.ModTime), stamp(b.ModTime))
	differ("target", a.Linkname, b.Linkname)
	differ("capabilities", fmt.Sprintf("%x", a.PAXRecords["SCHILY.xattr.security.capability"]), fmt.Sprintf("%x", b.PAXRecords["SCHILY.xattr.security.capability"]))
	if a.Typeflag == tar.TypeReg && b.Typeflag == tar.TypeReg {
		if a.Size != b.Size {
			what = append(what, "size")
			d.Details = append(d.Details, fmt.Sprintf("size %d bytes, rebuilt %d", a.Size, b.Size))
		}
		lines, same, err := contents(a, b, detail)
		if err != nil {
			return nil, err
		}
		if !same {
			what = append(what, "content")
			d.Details = append(d.Details, lines...)
		}
	}
	if len(what) == 0 {
		return nil, nil
	}
	d.What = strings.Join(what, ", ")
	return d, nil
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") }

// contents compares what two files hold.
func contents(a, b *entry, detail bool) (details []string, same bool, err error) {
	if a.Size > maxHeld || b.Size > maxHeld || !detail {
		at, err := firstDifference(a.r, b.r)
		if err != nil || at < 0 {
			return nil, at < 0, err
		}
		s := fmt.Sprintf("differs from byte %d on", at)
		if a.Size > maxHeld || b.Size > maxHeld {
			s += "; it is too large to be looked into"
		}
		return []string{s}, false, nil
	}
	was, err := io.ReadAll(a.r)
	if err != nil {
		return nil, false, err
	}
	is, err := io.ReadAll(b.r)
	if err != nil {
		return nil, false, err
	}
	if bytes.Equal(was, is) {
		return nil, true, nil
	}
	return look(was, is, 0), false, nil
}

// firstDifference reads both to where they differ; -1 when they do not.
func firstDifference(a, b io.Reader) (int64, error) {
	bufA, bufB := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := int64(0); ; {
		n, errA := io.ReadFull(a, bufA)
		m, errB := io.ReadFull(b, bufB)
		for i := range min(n, m) {
			if bufA[i] != bufB[i] {
				return at + int64(i), nil
			}
		}
		if n != m {
			return at + int64(min(n, m)), nil
		}
		at += int64(n)
		for _, err := range []error{errA, errB} {
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				return 0, err
			}
		}
		if errA != nil || errB != nil {
			return -1, nil
		}
	}
}
