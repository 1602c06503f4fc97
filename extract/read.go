package extract

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"runtime"
	"sort"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry"
)

// Every file is read once, by several cores, though the archive is one sorted
// stream: the walk knows all sizes, so it is known where in the stream each
// byte will lie before any file is opened. The stream is cut into chunks of
// one size, whatever the number of cores; a worker takes the next chunk, fills
// it from the files that lie in it, hashes and inspects those, and compresses
// it as a zstd frame of its own. Frames are written in order. A file that
// spans chunks is hashed along the chain of them, each waiting for the one
// before. Memory is a few chunks for each worker, whatever the tree.

// chunkSize is how much of the tar stream one zstd frame holds. Smaller
// chunks compress worse, larger ones use more memory; see doc/artifact.md for
// the figures. It is part of what makes an artifact's bytes.
const chunkSize = 4 << 20

// maxWorkers bounds the memory: each worker has about 20 MB.
const maxWorkers = 16

// layout is where each entry begins in the stream.
type layout struct {
	tree  *tree
	tar   bool    // with headers, padding and the end of archive; else contents only
	begin []int64 // of entry i; begin[len(entries)] is where the last one ends
	total int64
}

func (t *tree) layout(withTar bool) (*layout, error) {
	l := &layout{tree: t, tar: withTar, begin: make([]int64, len(t.entries)+1)}
	var at int64
	for i := range t.entries {
		l.begin[i] = at
		if withTar {
			h, err := t.header(&t.entries[i])
			if err != nil {
				return nil, err
			}
			at += int64(len(h))
		}
		if size := t.entries[i].Size; size > 0 {
			at += size
			if withTar {
				at += padding(size)
			}
		}
	}
	l.begin[len(t.entries)] = at
	l.total = at
	if withTar {
		l.total += tarEnd
	}
	return l, nil
}

// big is a file that lies in more than one chunk.
type big struct {
	mu    sync.Mutex // guards fd, parts
	fd    int        // -1 until the first part opens it
	parts int        // that have not been read yet
	first int64      // number of the first chunk
	sum   hash.Hash  // owned by the part whose turn it is
	done  []chan struct{}
}

// reader is one reading of a tree.
type reader struct {
	*layout
	big  map[int]*big // by entry; only read once the workers run
	next atomic.Int64 // chunk to take
	text atomic.Int64
}

// chunk is one finished piece of the stream.
type chunk struct {
	number int64
	data   []byte
}

// read fills in the facts that need the contents, and writes the archive to
// out unless that is nil.
func (t *tree) read(ctx context.Context, out *pending) error {
	l, err := t.layout(out != nil)
	if err != nil {
		return err
	}
	r := &reader{layout: l, big: map[int]*big{}}
	r.text.Store(t.text)
	for i := range t.entries {
		if e := &t.entries[i]; e.Kind == quarry.KindRegular && e.Size > 0 {
			end := l.begin[i+1]
			if first, last := l.begin[i]/chunkSize, (end-1)/chunkSize; first != last {
				b := &big{fd: -1, first: first, parts: int(last - first + 1), sum: sha256.New()}
				for range b.parts {
					b.done = append(b.done, make(chan struct{}))
				}
				r.big[i] = b
			}
		}
	}
	defer r.closeBig()

	chunks := (l.total + chunkSize - 1) / chunkSize
	if l.total == 0 {
		return r.empty(t.entries)
	}
	workers := t.Workers
	if workers <= 0 {
		workers = min(runtime.GOMAXPROCS(0), maxWorkers)
	}
	workers = int(min(int64(workers), chunks))

	// A worker holds a slot from taking a chunk until it has been written, so
	// that none runs far ahead of a slow one.
	slots := make(chan struct{}, 2*workers)
	finished := make(chan chunk, 2*workers)
	buffers := make(chan []byte, 2*workers) // of written chunks, to be used again
	group, ctx := errgroup.WithContext(ctx)
	var running sync.WaitGroup
	for range workers {
		running.Add(1)
		group.Go(func() error {
			defer running.Done()
			return r.work(ctx, chunks, out != nil, slots, finished, buffers)
		})
	}
	go func() { running.Wait(); close(finished) }()
	if out != nil {
		group.Go(func() error { return writeInOrder(ctx, out, slots, finished, buffers) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return r.empty(t.entries)
}

// empty gives files without content their facts: no chunk holds them.
func (r *reader) empty(entries []entry) error {
	for i := range entries {
		if e := &entries[i]; e.Kind == quarry.KindRegular && e.Size == 0 {
			if err := r.describe(e, bytes.NewReader(nil), sha256.Sum256(nil)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *reader) closeBig() {
	for _, b := range r.big {
		if b.fd >= 0 {
			unix.Close(b.fd)
		}
	}
}

// writeInOrder writes chunks as their turn comes.
func writeInOrder(ctx context.Context, out io.Writer, slots chan struct{}, finished chan chunk, buffers chan []byte) error {
	waiting := map[int64][]byte{}
	for next := int64(0); ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case c, ok := <-finished:
			if !ok {
				return nil
			}
			waiting[c.number] = c.data
		}
		for data, ok := waiting[next]; ok; data, ok = waiting[next] {
			if _, err := out.Write(data); err != nil {
				return err
			}
			delete(waiting, next)
			next++
			select {
			case buffers <- data:
			default:
			}
			<-slots
		}
	}
}

// work takes chunk after chunk.
func (r *reader) work(ctx context.Context, chunks int64, compress bool, slots chan struct{}, finished chan chunk, buffers chan []byte) error {
	var enc *zstd.Encoder
	if compress {
		var err error
		if enc, err = newEncoder(); err != nil {
			return err
		}
		defer enc.Close()
	}
	cursor := newDirCursor(r.tree.root)
	defer cursor.close()
	buf := make([]byte, min(chunkSize, r.total))
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case slots <- struct{}{}:
		}
		k := r.next.Add(1) - 1
		if k >= chunks {
			<-slots
			return ctx.Err()
		}
		from := k * chunkSize
		data := buf[:min(chunkSize, r.total-from)]
		parts, err := r.fill(cursor, data, from)
		if err != nil {
			return err
		}
		if compress {
			var dst []byte
			select {
			case dst = <-buffers:
			default:
				dst = make([]byte, 0, len(buf)+len(buf)/64)
			}
			// Before the parts, which wait for those of other workers.
			dst = enc.EncodeAll(data, dst[:0])
			select {
			case <-ctx.Done():
				return ctx.Err()
			case finished <- chunk{k, dst}:
			}
		} else {
			<-slots
		}
		for _, p := range parts {
			if err := r.part(ctx, p, k); err != nil {
				return err
			}
		}
	}
}

// part is a piece of a file that spans chunks.
type part struct {
	entry int
	data  []byte
}

// fill writes the stream's bytes from an offset into data. Files that lie in
// it as a whole are done; the others come back as parts.
func (r *reader) fill(cursor *dirCursor, data []byte, from int64) (parts []part, err error) {
	entries := r.tree.entries
	end := from + int64(len(data))
	// The last entry that begins at or before the chunk.
	i := max(0, sort.Search(len(entries), func(i int) bool { return r.begin[i] > from })-1)
	at := from
	for ; i < len(entries) && at < end; i++ {
		e := &entries[i]
		pos := r.begin[i]
		if pos < r.begin[i+1] && r.begin[i+1] <= at {
			continue // the last entry, in a chunk that holds the end of the archive only
		}
		if r.tar {
			h, err := r.tree.header(e)
			if err != nil {
				return nil, err
			}
			if n := int64(len(h)); at < pos+n {
				at += int64(copy(data[at-from:], h[at-pos:]))
			}
			pos += int64(len(h))
		}
		if e.Kind != quarry.KindRegular || e.Size == 0 {
			continue
		}
		// Also the part of a file that has its header, but no content, or its
		// padding only, in this chunk has to be counted.
		off := min(max(at-pos, 0), e.Size)
		piece := data[at-from : at-from+min(e.Size-off, end-at)]
		if b := r.big[i]; b != nil {
			if err := r.openBig(cursor, e, b); err != nil {
				return nil, err
			}
			if err := r.readPiece(b.fd, e, piece, off); err != nil {
				return nil, err
			}
			parts = append(parts, part{i, piece})
		} else if err := r.whole(cursor, e, piece); err != nil {
			return nil, err
		}
		if at += int64(len(piece)); r.tar {
			// The padding: what is left of it, in what is left of the chunk.
			for stop := min(r.begin[i+1], end); at < stop; at++ {
				data[at-from] = 0
			}
		}
	}
	clear(data[at-from:]) // the end of the archive
	return parts, nil
}

// whole reads and describes a file that lies in one chunk.
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

func (r *reader) openBig(cursor *dirCursor, e *entry, b *big) (err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fd < 0 {
		b.fd, err = r.open(cursor, e)
	}
	return err
}

// part hashes one piece of a file after those before it; the last one
// describes and closes the file.
func (r *reader) part(ctx context.Context, p part, k int64) error {
	b, e := r.big[p.entry], &r.tree.entries[p.entry]
	n := k - b.first
	if n > 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-b.done[n-1]:
		}
	}
	b.sum.Write(p.data)
	close(b.done[n])
	if int(n) < len(b.done)-1 {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := unchanged(b.fd, e); err != nil {
		return err
	}
	err := r.describe(e, fdReader(b.fd), [sha256.Size]byte(b.sum.Sum(nil)))
	unix.Close(b.fd)
	b.fd = -1
	return err
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
	if in.warning != "" {
		e.warn = append(e.warn, "cannot be read as what it seems to be: "+in.warning)
	}
	if r.text.Add(elfText(in)) > r.tree.Limits.Text {
		return r.tree.tooMuchText(e.Path)
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
