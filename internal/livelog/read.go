package livelog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/afero"
)

// Await returns when a build has a log, be it closed or being written, so that
// it can be followed from its first byte.
func (s *Store) Await(ctx context.Context, number int64) error {
	for {
		s.mu.Lock()
		created := s.created
		there := s.open[number] != nil || s.exists(packedPath(number)) || s.exists(plainPath(number))
		s.mu.Unlock()
		if there {
			return nil
		}
		select {
		case <-created:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Has reports whether there is a log of a build, or one is being written.
func (s *Store) Has(number int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open[number] != nil || s.exists(packedPath(number)) || s.exists(plainPath(number))
}

func (s *Store) exists(name string) bool {
	_, err := s.fs.Stat(name)
	return err == nil
}

// Follow gives the whole log of a build, all attempts, then what is added while
// it is being written, then io.EOF when it is closed. Read fails with the
// context's error when that ends first. A build without a log (or whose log has
// been pruned) is an error that wraps fs.ErrNotExist.
func (s *Store) Follow(ctx context.Context, number int64) (io.ReadCloser, error) {
	return s.reader(ctx, number, true)
}

// Open gives the log of a build as far as it has been written.
func (s *Store) Open(number int64) (io.ReadCloser, error) {
	return s.reader(context.Background(), number, false)
}

func (s *Store) reader(ctx context.Context, number int64, follow bool) (*reader, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &reader{}
	r.ctx, r.cancel = context.WithCancel(ctx)
	fail := func(err error) (*reader, error) {
		r.Close()
		return nil, fmt.Errorf("cannot read the log of build %d: %w", number, err)
	}
	zf, err := s.fs.Open(packedPath(number))
	if err == nil {
		r.closers = append(r.closers, zf)
		dec, err := decoder(zf)
		if err != nil {
			return fail(err)
		}
		r.packed = dec
		r.closers = append(r.closers, dec.IOReadCloser())
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fail(err)
	}
	l := s.open[number]
	if l != nil {
		l.mu.Lock()
		if l.closed { // being compressed: all of it is in the file
			l.mu.Unlock()
			l = nil
		} else {
			defer l.mu.Unlock()
		}
	}
	r.plain, err = s.fs.Open(plainPath(number))
	switch {
	case err == nil:
		r.closers = append(r.closers, r.plain)
	case !errors.Is(err, fs.ErrNotExist):
		return fail(err)
	case r.packed == nil && l == nil:
		return fail(err)
	}
	if follow {
		r.log = l
	}
	return r, nil
}

// reader reads the closed attempts, then the plain file, then waits for more.
type reader struct {
	ctx     context.Context
	cancel  func()
	mu      sync.Mutex // held by Read, which cancel ends; guards the following
	packed  io.Reader  // nil when read to its end
	plain   afero.File // nil when there is none (yet)
	off     int64
	log     *Log // nil when nothing more will come
	closers []io.Closer
}

func (r *reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		if err := r.ctx.Err(); err != nil {
			return 0, context.Cause(r.ctx)
		}
		if r.packed != nil {
			n, err := r.packed.Read(p)
			if err == io.EOF {
				r.packed, err = nil, nil
			}
			if n > 0 || err != nil {
				return n, err
			}
			continue
		}
		size, live, more := r.state()
		if r.plain == nil && r.log != nil && size > 0 {
			// The disk had no room for the file when this reader came.
			f, err := r.log.s.fs.Open(plainPath(r.log.number))
			if err != nil {
				return 0, err
			}
			r.plain, r.closers = f, append(r.closers, f)
		}
		if r.plain != nil && (r.log == nil || r.off < size) {
			if r.log != nil && int64(len(p)) > size-r.off {
				p = p[:size-r.off]
			}
			n, err := r.plain.ReadAt(p, r.off)
			r.off += int64(n)
			if n > 0 {
				return n, nil
			}
			if err != nil && err != io.EOF {
				return 0, err
			}
			if r.log == nil || !live {
				return 0, io.EOF
			}
			return 0, io.ErrUnexpectedEOF // somebody cut the file
		}
		if !live {
			return 0, io.EOF
		}
		select {
		case <-more:
		case <-r.ctx.Done():
		}
	}
}

// state tells how much there is, whether more may come, and what to wait for.
func (r *reader) state() (size int64, live bool, more <-chan struct{}) {
	l := r.log
	if l == nil {
		return 0, false, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed && l.size <= r.off {
		if l.waiting == nil {
			l.waiting = make(chan struct{})
		}
		more = l.waiting
	}
	return l.size, !l.closed, more
}

// Close may be called while a Read waits, which then fails.
func (r *reader) Close() error {
	r.cancel()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.closers {
		c.Close()
	}
	r.closers = nil
	return nil
}

// Bounds of Tail: a log may be one endless line.
const (
	maxTail     = 1 << 20 // bytes looked at
	maxTailLine = 4 << 10 // bytes of one line
)

// Tail gives the last n lines of a build's log as text for records and people:
// valid UTF-8, long lines cut. It looks at the last MiB at most, and costs as
// much where the log is not compressed yet.
func (s *Store) Tail(number int64, n int) ([]string, error) {
	r, err := s.reader(context.Background(), number, false)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var window []byte
	if r.plain != nil {
		fi, err := r.plain.Stat()
		if err != nil {
			return nil, err
		}
		if window, err = tailBytes(r.plain, fi.Size()); err != nil {
			return nil, err
		}
		if bytes.Count(window, []byte("\n")) > n || len(window) >= maxTail {
			return lastLines(window, n), nil
		}
	}
	if r.packed != nil {
		before, err := lastOf(r.packed, maxTail)
		if err != nil {
			return nil, fmt.Errorf("cannot read the log of build %d: %w", number, err)
		}
		window = append(before, window...)
	}
	return lastLines(window, n), nil
}

// lastOf reads everything and keeps the end.
func lastOf(r io.Reader, size int) ([]byte, error) {
	var window []byte
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		window = append(window, buf[:n]...)
		if len(window) > 2*size {
			window = append(window[:0], window[len(window)-size:]...)
		}
		if err == io.EOF {
			return window[max(0, len(window)-size):], nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func (s *Store) tailOf(name string, n int) ([]string, error) {
	fi, err := s.fs.Stat(name)
	if err != nil {
		return nil, err
	}
	return s.tailTo(name, n, fi.Size())
}

func (s *Store) tailTo(name string, n int, size int64) ([]string, error) {
	f, err := s.fs.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	window, err := tailBytes(f, size)
	return lastLines(window, n), err
}

func tailBytes(f io.ReaderAt, size int64) ([]byte, error) {
	from := max(0, size-maxTail)
	window := make([]byte, size-from)
	m, err := f.ReadAt(window, from)
	if err == io.EOF {
		err = nil
	}
	return window[:m], err
}

func lastLines(window []byte, n int) []string {
	window = bytes.TrimSuffix(window, []byte("\n"))
	if len(window) == 0 || n <= 0 {
		return nil
	}
	var lines []string
	for len(lines) < n {
		i := bytes.LastIndexByte(window, '\n')
		line := bytes.TrimSuffix(window[i+1:], []byte("\r"))
		text := ""
		if len(line) > maxTailLine {
			line, text = line[:maxTailLine], "..."
		}
		lines = append(lines, strings.ToValidUTF8(string(line), "\uFFFD")+text)
		if i < 0 {
			break
		}
		window = window[:i]
	}
	slices.Reverse(lines)
	return lines
}
