package usage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	gopath "path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/afero"
)

// Store is a folder of series: the one that holds the logs. One process uses it
// at a time.
type Store struct {
	fs afero.Fs

	mu   sync.Mutex // guards the following, and which files there are
	live map[int64]*Recorder
}

// Open gives the store in a folder. It touches nothing.
func Open(fsys afero.Fs) *Store { return &Store{fs: fsys, live: map[int64]*Recorder{}} }

// Read gives the series of all attempts at a build, the oldest first, while it
// runs and after. The error is fs.ErrNotExist when it has none.
func (s *Store) Read(number int64) ([]Attempt, error) {
	data, err := s.read(number)
	if err != nil {
		return nil, err
	}
	list, _, err := decode(data)
	if err == nil && len(list) == 0 {
		err = fs.ErrNotExist // nothing was written any more
	}
	if err != nil {
		return nil, fmt.Errorf("usage of build %d cannot be read: %w", number, err)
	}
	return list, nil
}

func (s *Store) read(number int64) ([]byte, error) {
	f, err := s.fs.Open(path(number))
	if err != nil {
		return nil, fmt.Errorf("usage of build %d cannot be read: %w", number, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, fmt.Errorf("usage of build %d cannot be read: %w", number, err)
	}
	return data, nil
}

// Prune removes the series of builds that kept says no to, such as those whose
// logs are gone; a build that is being sampled keeps its own.
func (s *Store) Prune(ctx context.Context, kept func(number int64) bool) (removed []int64, err error) {
	dirs, err := afero.ReadDir(s.fs, ".")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("folder of series cannot be listed: %w", err)
	}
	for _, d := range dirs {
		if _, err := strconv.ParseUint(d.Name(), 10, 63); err != nil || !d.IsDir() {
			continue
		}
		entries, derr := afero.ReadDir(s.fs, d.Name())
		if derr != nil {
			continue // one bad folder hides its own series only
		}
		for _, e := range entries {
			if err := ctx.Err(); err != nil {
				return removed, err
			}
			base, ok := strings.CutSuffix(e.Name(), ".usage")
			n, perr := strconv.ParseInt(base, 10, 64)
			if !ok || perr != nil || n <= 0 || path(n) != gopath.Join(d.Name(), e.Name()) || kept(n) {
				continue
			}
			s.mu.Lock()
			if s.live[n] == nil {
				switch rerr := s.fs.Remove(path(n)); {
				case rerr == nil:
					removed = append(removed, n)
				case !errors.Is(rerr, fs.ErrNotExist):
					err = rerr
				}
				if rest, rerr := afero.ReadDir(s.fs, d.Name()); rerr == nil && len(rest) == 0 {
					s.fs.Remove(d.Name())
				}
			}
			s.mu.Unlock()
		}
	}
	slices.Sort(removed)
	return removed, err
}

// file is the end of a build's file, where frames are added. What cannot be
// written is left out: a series is never worth a build.
type file struct {
	f    afero.File
	size int64
	err  error // the last that cost a frame
}

// open opens a build's file behind its last whole frame.
func (s *Store) open(number int64) (*file, error) {
	name := path(number)
	good := 0
	if data, err := s.read(number); err == nil {
		// One that is none of ours is written over: it tells nobody anything.
		_, good, _ = decode(data)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := s.fs.MkdirAll(gopath.Dir(name), 0o755); err != nil {
		return nil, err
	}
	f, err := s.fs.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	w := &file{f: f, size: int64(good)}
	if err = f.Truncate(w.size); err == nil {
		if _, err = f.Seek(w.size, io.SeekStart); err == nil && good == 0 {
			if !w.add([]byte(magic)) {
				err = w.err
			}
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return w, nil
}

// add adds whole frames, or nothing at all.
func (w *file) add(p []byte) bool {
	if w.f == nil || w.size+int64(len(p)) > maxFile {
		return false
	}
	n, err := w.f.Write(p)
	if err == nil {
		w.size += int64(n)
		return true
	}
	w.err = err
	if n > 0 { // else what follows could not be read
		if err = w.f.Truncate(w.size); err == nil {
			_, err = w.f.Seek(w.size, io.SeekStart)
		}
		if err != nil {
			w.close()
		}
	}
	return false
}

func (w *file) close() {
	if w.f != nil {
		if err := w.f.Close(); err != nil {
			w.err = err
		}
		w.f = nil
	}
}
