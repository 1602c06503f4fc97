// Package livelog keeps the logs of builds: one writer each, any number of
// readers that see the whole from its beginning and then every byte as it
// comes.
//
// A growing log is a plain file (0000/17.log: folders of 1,000 builds); when it
// is closed it is added, compressed, to 0000/17.log.zst. A build that is tried
// again adds to what is there: the log of the failure is never written over. A
// full disk costs lines of log, never a build.
package livelog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/spf13/afero"
)

// Options bound what is kept. A zero means no bound.
type Options struct {
	MaxAge   time.Duration // of closed logs, since their last byte
	MaxBytes int64         // of all closed logs together, as on disk
}

// Store is a folder of logs. One process uses it at a time.
type Store struct {
	fs   afero.Fs
	opts Options

	mu      sync.Mutex // guards the following, and which files there are
	open    map[int64]*Log
	created chan struct{} // closed and replaced when a log is created
}

// markers that the store itself puts into a log begin like this.
const marker = "==> "

// Open opens a folder of logs, making it if need be. Logs that were not closed,
// because the daemon was killed or the disk was full, are closed here, with a
// line that says so.
func Open(fsys afero.Fs, opts Options) (*Store, error) {
	s := &Store{fs: fsys, opts: opts, open: map[int64]*Log{}, created: make(chan struct{})}
	if err := fsys.MkdirAll(".", 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the folder of logs: %w", err)
	}
	err := s.each(func(f file) {
		switch {
		case f.temp:
			fsys.Remove(f.path)
		case !f.packed:
			s.finish(f.number)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("cannot list the folder of logs: %w", err)
	}
	return s, nil
}

// finish closes a log that its writer did not. Errors (a full disk) leave it as
// it is: it can be read all the same, and Prune tries again.
func (s *Store) finish(number int64) {
	name := plainPath(number)
	if s.packedAlready(number) {
		s.fs.Remove(name)
		return
	}
	f, err := s.fs.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return
	}
	if tail, err := s.tailOf(name, 1); err != nil || len(tail) == 0 || !strings.HasPrefix(tail[0], marker+"the log was not closed") {
		fmt.Fprintf(f, "\n%sthe log was not closed: the daemon ended, or the disk was full\n", marker)
	}
	f.Close()
	s.pack(number)
}

// packedAlready reports whether a crash came between adding a log to the
// compressed ones and removing it: then it is the end of what is there.
func (s *Store) packedAlready(number int64) bool {
	f, err := s.fs.Open(plainPath(number))
	if err != nil {
		return false
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || fi.Size() == 0 {
		return err == nil
	}
	zf, err := s.fs.Open(packedPath(number))
	if err != nil {
		return false
	}
	defer zf.Close()
	count := func() (int64, error) {
		if _, err := zf.Seek(0, io.SeekStart); err != nil {
			return 0, err
		}
		d, err := decoder(zf)
		if err != nil {
			return 0, err
		}
		defer d.Close()
		return io.Copy(io.Discard, d)
	}
	total, err := count()
	if err != nil || total < fi.Size() {
		return false
	}
	if _, err := zf.Seek(0, io.SeekStart); err != nil {
		return false
	}
	d, err := decoder(zf)
	if err != nil {
		return false
	}
	defer d.Close()
	if _, err := io.CopyN(io.Discard, d, total-fi.Size()); err != nil {
		return false
	}
	return same(d, f)
}

func same(a, b io.Reader) bool {
	bufA, bufB := make([]byte, 32<<10), make([]byte, 32<<10)
	for {
		n, errA := io.ReadFull(a, bufA)
		m, errB := io.ReadFull(b, bufB)
		if n != m || !bytes.Equal(bufA[:n], bufB[:m]) {
			return false
		}
		if errA != nil || errB != nil {
			return errA != nil && errB != nil
		}
	}
}

func decoder(r io.Reader) (*zstd.Decoder, error) {
	return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(64<<20))
}

func plainPath(number int64) string {
	return fmt.Sprintf("%04d/%d.log", number/1000, number)
}

func packedPath(number int64) string { return plainPath(number) + ".zst" }

// Log is a log being written. It is an io.WriteCloser whose Write never fails.
type Log struct {
	s      *Store
	number int64

	mu      sync.Mutex // guards the following; no reader holds it while it reads
	f       afero.File // nil while the file cannot be made
	size    int64      // bytes in the file
	dropped int64      // bytes lost since the last one written
	err     error
	closed  bool
	waiting chan struct{} // closed when there is more; nil when nobody waits

	packed chan struct{} // closed when it is compressed and off Store.open
}

// Create begins a log, or goes on with one when the build is begun again; a
// line tells where. attempt counts from 1. It fails only when the log is being
// written already, or the number is not one.
func (s *Store) Create(number int64, attempt int) (*Log, error) {
	if number <= 0 {
		return nil, fmt.Errorf("there is no build %d to log", number)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.open[number] != nil {
		l := s.open[number]
		l.mu.Lock()
		closed := l.closed
		l.mu.Unlock()
		if !closed {
			return nil, fmt.Errorf("the log of build %d is being written already", number)
		}
		s.mu.Unlock()
		<-l.packed
		s.mu.Lock()
	}
	l := &Log{s: s, number: number, packed: make(chan struct{})}
	again := false
	if _, err := s.fs.Stat(packedPath(number)); err == nil {
		again = true
	}
	l.openFile()
	if l.size > 0 || again {
		l.write(fmt.Appendf(nil, "\n%sattempt %d begins at %s\n", marker, attempt, time.Now().UTC().Format(time.RFC3339)))
	}
	s.open[number] = l
	close(s.created)
	s.created = make(chan struct{})
	return l, nil
}

func (l *Log) openFile() {
	name := plainPath(l.number)
	err := l.s.fs.MkdirAll(path.Dir(name), 0o755)
	if err == nil {
		l.f, err = l.s.fs.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	}
	if err == nil {
		var fi fs.FileInfo
		if fi, err = l.f.Stat(); err == nil {
			l.size = fi.Size()
			return
		}
		l.f.Close()
	}
	l.f, l.err = nil, err
}

// Write adds to the log. It always takes all of p: what cannot be written is
// dropped, a line tells how much as soon as something can be, and Err why.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.write(p)
	return len(p), nil
}

// write needs l.mu, or a Log that nobody else has.
func (l *Log) write(p []byte) {
	if l.closed || len(p) == 0 {
		return
	}
	if l.f == nil {
		if l.openFile(); l.f == nil {
			l.dropped += int64(len(p))
			return
		}
	}
	if l.dropped > 0 {
		note := fmt.Appendf(nil, "\n%s%d bytes of the log are lost here: %v\n", marker, l.dropped, l.err)
		n, err := l.f.Write(note)
		if err != nil {
			// A part of a note would be puzzling: take it back.
			if n > 0 && l.f.Truncate(l.size) != nil {
				l.size += int64(n)
			}
			l.dropped += int64(len(p))
			l.err = err
			return
		}
		l.size += int64(n)
		l.dropped = 0
	}
	n, err := l.f.Write(p)
	l.size += int64(max(n, 0))
	if err != nil {
		l.dropped, l.err = int64(len(p)-max(n, 0)), err
	}
	l.wake()
}

func (l *Log) wake() {
	if l.waiting != nil {
		close(l.waiting)
		l.waiting = nil
	}
}

// Err is the last error that cost bytes of the log, or nil.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Size is how many bytes this attempt has logged so far (and an unclosed one
// before it).
func (l *Log) Size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.size
}

// Tail gives the last lines of this attempt: see Store.Tail.
func (l *Log) Tail(n int) ([]string, error) {
	l.mu.Lock()
	size := l.size
	l.mu.Unlock()
	return l.s.tailTo(plainPath(l.number), n, size)
}

// Close ends the log: followers get what is left and then the end. Then it is
// compressed. An error of that loses nothing: the log stays as it is, readable,
// and Prune tries again. A second Close does nothing.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	if l.dropped > 0 { // the last chance to tell
		l.write([]byte("\n"))
	}
	l.closed = true
	f := l.f
	l.wake()
	l.mu.Unlock()
	if f != nil {
		f.Close()
	}
	err := l.s.pack(l.number)
	l.s.mu.Lock()
	delete(l.s.open, l.number)
	l.s.mu.Unlock()
	close(l.packed)
	if err != nil {
		return fmt.Errorf("cannot compress the log of build %d: %w", l.number, err)
	}
	return nil
}

// pack adds a plain log to the compressed ones before it. Zstandard's frames
// may follow one another, so the old ones are copied as they are.
func (s *Store) pack(number int64) error {
	src, err := s.fs.Open(plainPath(number))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer src.Close()
	temp := packedPath(number) + ".new"
	err = s.compress(temp, number, src)
	if err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		if err = s.fs.Rename(temp, packedPath(number)); err == nil {
			return s.fs.Remove(plainPath(number))
		}
	}
	s.fs.Remove(temp)
	return err
}

func (s *Store) compress(temp string, number int64, src io.Reader) error {
	dst, err := s.fs.Create(temp)
	if err != nil {
		return err
	}
	defer dst.Close()
	old, err := s.fs.Open(packedPath(number))
	if err == nil {
		_, err = io.Copy(dst, old)
		old.Close()
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	enc, err := zstd.NewWriter(dst, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return err
	}
	if _, err := io.Copy(enc, src); err != nil {
		enc.Close()
		return err
	}
	if err := enc.Close(); err != nil {
		return err
	}
	return dst.Sync()
}

// file is one file of the store.
type file struct {
	path   string
	number int64
	packed bool
	temp   bool
	size   int64
	mod    time.Time
}

// each calls fn for every file of the store, in no order. Other files are none
// of its business.
func (s *Store) each(fn func(file)) error {
	dirs, err := afero.ReadDir(s.fs, ".")
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if _, err := strconv.ParseUint(d.Name(), 10, 63); err != nil || !d.IsDir() {
			continue
		}
		infos, err := afero.ReadDir(s.fs, d.Name())
		if err != nil {
			continue // one bad folder hides its own logs only
		}
		for _, fi := range infos {
			f := file{path: path.Join(d.Name(), fi.Name()), size: fi.Size(), mod: fi.ModTime()}
			base, temp := strings.CutSuffix(fi.Name(), ".new")
			base, packed := strings.CutSuffix(base, ".zst")
			base, ok := strings.CutSuffix(base, ".log")
			n, err := strconv.ParseInt(base, 10, 64)
			f.number, f.packed, f.temp = n, packed, temp
			if ok && err == nil && n > 0 && path.Dir(plainPath(n)) == d.Name() && fi.Mode().IsRegular() {
				fn(f)
			}
		}
	}
	return nil
}

// Last is the highest build number that has a log, 0 without any.
func (s *Store) Last() (last int64, err error) {
	err = s.each(func(f file) { last = max(last, f.number) })
	return last, err
}

// Prune removes closed logs that are too old, keeps of the others, from the
// newest on, what fits, and compresses any that a full disk has left plain. It gives the
// numbers of the builds whose logs are gone. still tells which of some builds are
// still spoken of, nil: none. However old their logs are, they go last, and only when
// there is no room.
func (s *Store) Prune(ctx context.Context, still func(numbers []int64) (map[int64]bool, error)) (removed []int64, err error) {
	var files []file
	if err := s.each(func(f file) { files = append(files, f) }); err != nil {
		return nil, fmt.Errorf("cannot list the folder of logs: %w", err)
	}
	var spoken map[int64]bool
	if still != nil && len(files) > 0 {
		numbers := make([]int64, len(files))
		for i, f := range files {
			numbers[i] = f.number
		}
		if spoken, err = still(numbers); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(files, func(a, b file) int { // those first, then the newest
		if spoken[a.number] != spoken[b.number] {
			if spoken[a.number] {
				return -1
			}
			return 1
		}
		return b.mod.Compare(a.mod)
	})
	var total int64
	now := time.Now()
	for _, f := range files {
		if err := ctx.Err(); err != nil {
			return removed, err
		}
		s.mu.Lock()
		busy := s.open[f.number] != nil
		if !busy && !f.temp {
			old := s.opts.MaxAge > 0 && now.Sub(f.mod) > s.opts.MaxAge && !spoken[f.number]
			if old || s.opts.MaxBytes > 0 && total+f.size > s.opts.MaxBytes {
				if rerr := s.fs.Remove(f.path); rerr == nil {
					removed = append(removed, f.number)
				} else if !errors.Is(rerr, fs.ErrNotExist) {
					err = rerr
				}
				if rest, err := afero.ReadDir(s.fs, path.Dir(f.path)); err == nil && len(rest) == 0 {
					s.fs.Remove(path.Dir(f.path))
				}
				s.mu.Unlock()
				continue
			}
			total += f.size
			// Held, so that it is not begun again meanwhile.
			if !f.packed {
				l := &Log{s: s, number: f.number, closed: true, packed: make(chan struct{})}
				s.open[f.number] = l
				s.mu.Unlock()
				if !s.packedAlready(f.number) {
					s.pack(f.number)
				} else {
					s.fs.Remove(f.path)
				}
				s.mu.Lock()
				delete(s.open, f.number)
				close(l.packed)
			}
		}
		s.mu.Unlock()
	}
	slices.Sort(removed)
	return slices.Compact(removed), err
}
