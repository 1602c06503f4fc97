package extract

import (
	"context"
	"crypto/sha256"
	"hash"
	"sort"
	"sync"
	"sync/atomic"

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

// chunkSize is how much of the tar stream one zstd frame holds. It is part of
// what makes an artifact's bytes. Over 300 MB of programs and text, 1 MiB packs
// 1.2% worse than 4 MiB; but most packages are a few MB, which larger chunks
// would leave to one core, and a worker needs a quarter of the memory.
const chunkSize = 1 << 20

// layout is where each entry begins in the stream.
type layout struct {
	begin []int64 // of entry i; begin[len(entries)] is where the last one ends
	total int64
}

func (t *tree) layout() (*layout, error) {
	l := &layout{begin: make([]int64, len(t.entries)+1)}
	var at int64
	for i := range t.entries {
		l.begin[i] = at
		h, err := t.header(&t.entries[i])
		if err != nil {
			return nil, err
		}
		at += int64(len(h)) + t.entries[i].Size + padding(t.entries[i].Size)
	}
	l.begin[len(t.entries)] = at
	l.total = at + tarEnd
	return l, nil
}

// big is a file that lies in more than one chunk.
type big struct {
	mu    sync.Mutex // guards fd
	fd    int        // -1 until the first part opens it
	first int64      // number of the first chunk
	sum   hash.Hash  // owned by the part whose turn it is
	done  []chan struct{}
}

// archiver is a reading that writes the archive.
type archiver struct {
	*reader
	*layout
	out    *pending
	chunks int64
	big    map[int]*big // by entry; only read once the workers run
	next   atomic.Int64 // chunk to take

	// A worker holds a slot from taking a chunk until it has been written, so
	// that none runs far ahead of a slow one.
	slots    chan struct{}
	finished chan chunk
	buffers  chan []byte // of written chunks, to be used again
}

// chunk is one finished piece of the stream.
type chunk struct {
	number int64
	data   []byte
}

// archive reads every file and writes the archive.
func (r *reader) archive(ctx context.Context, out *pending) error {
	l, err := r.layout()
	if err != nil {
		return err
	}
	a := &archiver{reader: r, layout: l, out: out, big: map[int]*big{}}
	for i := range r.entries {
		if e := &r.entries[i]; e.Kind == quarry.KindRegular {
			if first, last := l.begin[i]/chunkSize, (l.begin[i+1]-1)/chunkSize; first != last {
				b := &big{fd: -1, first: first, sum: sha256.New()}
				for range last - first + 1 {
					b.done = append(b.done, make(chan struct{}))
				}
				a.big[i] = b
			}
		}
	}
	defer a.closeBig()

	a.chunks = (l.total + chunkSize - 1) / chunkSize
	workers := int(min(int64(r.workers), a.chunks))
	a.slots = make(chan struct{}, 3*workers)
	a.finished = make(chan chunk, 3*workers)
	a.buffers = make(chan []byte, 3*workers)
	group, ctx := errgroup.WithContext(ctx)
	var running sync.WaitGroup
	for range workers {
		running.Add(1)
		group.Go(func() error {
			defer running.Done()
			return a.work(ctx)
		})
	}
	go func() { running.Wait(); close(a.finished) }()
	group.Go(func() error { return a.write(ctx) })
	return group.Wait()
}

func (a *archiver) closeBig() {
	for _, b := range a.big {
		if b.fd >= 0 {
			unix.Close(b.fd)
		}
	}
}

// write writes chunks as their turn comes.
func (a *archiver) write(ctx context.Context) error {
	waiting := map[int64][]byte{}
	for next := int64(0); ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case c, ok := <-a.finished:
			if !ok {
				return nil
			}
			waiting[c.number] = c.data
		}
		for data, ok := waiting[next]; ok; data, ok = waiting[next] {
			if _, err := a.out.Write(data); err != nil {
				return err
			}
			delete(waiting, next)
			next++
			select {
			case a.buffers <- data:
			default:
			}
			<-a.slots
		}
	}
}

// work takes chunk after chunk.
func (a *archiver) work(ctx context.Context) error {
	enc, err := newEncoder()
	if err != nil {
		return err
	}
	defer enc.Close()
	cursor := newDirCursor(a.root)
	defer cursor.close()
	buf := make([]byte, min(chunkSize, a.total))
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case a.slots <- struct{}{}:
		}
		k := a.next.Add(1) - 1
		if k >= a.chunks {
			<-a.slots
			return nil
		}
		from := k * chunkSize
		data := buf[:min(chunkSize, a.total-from)]
		parts, err := a.fill(cursor, data, from)
		if err != nil {
			return err
		}
		var packed []byte
		select {
		case packed = <-a.buffers:
		default:
		}
		// Before the parts, which wait for those of other workers.
		packed = enc.EncodeAll(data, packed[:0])
		select {
		case <-ctx.Done():
			return ctx.Err()
		case a.finished <- chunk{k, packed}:
		}
		for _, p := range parts {
			if err := a.part(ctx, p, k); err != nil {
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
// it as a whole are done; the others come back as parts, one for every chunk
// that holds any of the file's header, contents or padding.
func (a *archiver) fill(cursor *dirCursor, data []byte, from int64) (parts []part, err error) {
	end := from + int64(len(data))
	// The last entry that begins at or before the chunk.
	i := max(0, sort.Search(len(a.entries), func(i int) bool { return a.begin[i] > from })-1)
	at := from
	for ; i < len(a.entries) && at < end; i++ {
		e := &a.entries[i]
		if a.begin[i+1] <= at {
			continue // the last entry, and only the end of the archive is left
		}
		h, err := a.header(e)
		if err != nil {
			return nil, err
		}
		if pos := a.begin[i]; at < pos+int64(len(h)) {
			at += int64(copy(data[at-from:], h[at-pos:]))
		}
		if e.Kind != quarry.KindRegular {
			continue
		}
		off := min(max(at-a.begin[i]-int64(len(h)), 0), e.Size)
		piece := data[at-from : at-from+min(e.Size-off, end-at)]
		if b := a.big[i]; b != nil {
			if err := a.openBig(cursor, e, b); err != nil {
				return nil, err
			}
			if err := a.readPiece(b.fd, e, piece, off); err != nil {
				return nil, err
			}
			parts = append(parts, part{i, piece})
		} else if err := a.whole(cursor, e, piece); err != nil {
			return nil, err
		}
		at += int64(len(piece))
		// The padding: what is left of it, in what is left of the chunk.
		if stop := min(a.begin[i+1], end); at < stop {
			clear(data[at-from : stop-from])
			at = stop
		}
	}
	clear(data[at-from:]) // the end of the archive
	return parts, nil
}

func (a *archiver) openBig(cursor *dirCursor, e *entry, b *big) (err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fd < 0 {
		b.fd, err = a.open(cursor, e)
	}
	return err
}

// part hashes one piece of a file after those before it; the last one
// describes and closes the file.
func (a *archiver) part(ctx context.Context, p part, k int64) error {
	b, e := a.big[p.entry], &a.entries[p.entry]
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
	err := a.describe(e, fdReader(b.fd), [sha256.Size]byte(b.sum.Sum(nil)))
	unix.Close(b.fd)
	b.fd = -1
	return err
}
