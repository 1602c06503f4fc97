package extract

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry"
)

// readSize is how much of a file is read at once.
const readSize = 1 << 20

// maxWorkers bounds what is used of a large machine.
const maxWorkers = 16

// reader is one reading of a tree: it fills in the facts that need the
// contents. Every file is described once, by the worker that read it.
type reader struct {
	*tree
	workers int
	text    atomic.Int64 // bytes of names so far
}

// read reads every file of the tree, and writes the archive to out unless that
// is nil.
func (t *tree) read(ctx context.Context, out *pending) error {
	r := &reader{tree: t, workers: t.Workers}
	if r.workers <= 0 {
		r.workers = min(runtime.GOMAXPROCS(0), maxWorkers)
	}
	r.text.Store(t.text)
	if out != nil {
		return r.archive(ctx, out)
	}
	return r.files(ctx)
}

// files reads the files alone, the largest first, so that no worker is left
// with one when the others are done.
func (r *reader) files(ctx context.Context) error {
	var order []*entry
	for i := range r.entries {
		if e := &r.entries[i]; e.Kind == quarry.KindRegular {
			order = append(order, e)
		}
	}
	slices.SortStableFunc(order, func(a, b *entry) int { return cmp.Compare(b.Size, a.Size) })
	var next atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	for range r.workers {
		group.Go(func() error {
			cursor := newDirCursor(r.root)
			defer cursor.close()
			buf := make([]byte, readSize)
			for i := next.Add(1) - 1; i < int64(len(order)); i = next.Add(1) - 1 {
				if err := r.file(ctx, cursor, order[i], buf); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// file reads and describes a file of any size, by pieces.
func (r *reader) file(ctx context.Context, cursor *dirCursor, e *entry, buf []byte) error {
	if e.Size <= int64(len(buf)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		return r.whole(cursor, e, buf[:e.Size])
	}
	fd, err := r.open(cursor, e)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	sum := sha256.New()
	for off := int64(0); off < e.Size; off += int64(len(buf)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		piece := buf[:min(int64(len(buf)), e.Size-off)]
		if err := r.readPiece(fd, e, piece, off); err != nil {
			return err
		}
		sum.Write(piece)
	}
	if err := unchanged(fd, e); err != nil {
		return err
	}
	return r.describe(e, fdReader(fd), [sha256.Size]byte(sum.Sum(nil)))
}

// whole reads and describes a file in one piece.
func (r *reader) whole(cursor *dirCursor, e *entry, data []byte) error {
	fd, err := r.open(cursor, e)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := r.readPiece(fd, e, data, 0); err != nil {
		return err
	}
	if err := unchanged(fd, e); err != nil {
		return err
	}
	return r.describe(e, bytes.NewReader(data), sha256.Sum256(data))
}

// open opens the file that the walk found at this path, and no other.
func (r *reader) open(cursor *dirCursor, e *entry) (int, error) {
	fd, err := cursor.open(e.rel())
	if err != nil {
		return -1, fmt.Errorf("cannot open the staged file %s: %w", quotePath(e.Path), err)
	}
	if err := unchanged(fd, e); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// unchanged reports whether an open file is still what the walk saw.
func unchanged(fd int, e *entry) error {
	st, err := fstat(fd)
	if err == nil && (fileID{uint64(st.Dev), st.Ino} != e.id || st.Size != e.Size ||
		st.Ctim != e.ctime || st.Mode&unix.S_IFMT != unix.S_IFREG) {
		err = errChanged
	}
	if err != nil {
		return fmt.Errorf("the staged file %s changed while it was read: %w", quotePath(e.Path), err)
	}
	return nil
}

func (r *reader) readPiece(fd int, e *entry, data []byte, off int64) error {
	n, err := readFull(fd, data, off)
	if err == nil && n < len(data) {
		err = errChanged
	}
	if err != nil {
		return fmt.Errorf("cannot read the staged file %s: %w", quotePath(e.Path), err)
	}
	return nil
}

// fdReader reads a descriptor at offsets.
type fdReader int

func (fd fdReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := readFull(int(fd), p, off)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// describe notes what a file's contents say.
func (r *reader) describe(e *entry, f io.ReaderAt, sum [sha256.Size]byte) error {
	e.SHA256 = hex.EncodeToString(sum[:])
	in := inspect(e.Path, f, e.Size)
	e.Class, e.ELF, e.Interpreter = in.class, in.elf, in.interpreter
	if r.Cross != nil && in.class == quarry.ClassStatic {
		e.objects = archiveArch(f, e.Size)
	}
	if in.warning != "" {
		e.warn = append(e.warn, "cannot be read as what it seems to be: "+in.warning)
	}
	if r.text.Add(elfText(in)) > r.Limits.Text {
		return r.tooMuchText(e.Path)
	}
	return nil
}

// elfText is how many bytes of names an inspection brought.
func elfText(in inspection) int64 {
	n := len(in.interpreter) + len(in.warning)
	if e := in.elf; e != nil {
		n += len(e.Interpreter) + len(e.Soname)
		for _, list := range [][]string{e.Needed, e.RPath, e.RunPath} {
			for _, s := range list {
				n += len(s) + 16
			}
		}
	}
	return int64(n)
}
