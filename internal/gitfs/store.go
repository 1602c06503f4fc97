package gitfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/go-git/go-billy/v5"
	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/storage/filesystem"
)

const (
	cacheSize   = 16 << 20 // bytes of objects kept; bases of deltas are the ones used again
	streamAbove = 1 << 20  // bytes; larger blobs are never held whole
	maxObject   = 64 << 20 // bytes in a commit or tree object, which are held whole
)

// store reads objects. go-git's own is not safe for concurrent use and knows
// the packs that were there when it first looked, while git gc may replace them
// at any time: so calls take turns, and one that finds nothing looks once more
// with fresh eyes.
type store struct {
	path string

	mu  sync.Mutex            // guards the following
	git []*filesystem.Storage // of the repository and of those it borrows from
}

func openStore(path string) (*store, error) {
	// go-git creates what it does not find; a wrong path must not become a repository.
	if info, err := os.Stat(filepath.Join(path, "objects")); err != nil || !info.IsDir() {
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%s is no bare git repository: it has no objects folder", path)
		}
		return nil, err
	}
	s := &store{path: path}
	s.mu.Lock()
	s.reopen()
	s.mu.Unlock()
	return s, nil
}

// reopen wants mu.
func (s *store) reopen() {
	s.closeAll()
	for _, path := range lenders(s.path) {
		git := filesystem.NewStorageWithOptions(indexed{osfs.New(path)}, cache.NewObjectLRU(cacheSize),
			filesystem.Options{KeepDescriptors: true, LargeObjectThreshold: streamAbove})
		// Whoever forgets to close a commit must not run the daemon out of files.
		runtime.AddCleanup(s, func(git *filesystem.Storage) { git.ObjectStorage.Close() }, git)
		s.git = append(s.git, git)
	}
}

// indexed hides packs that have no index: git puts it there last, and takes it away
// first, and what was killed in between leaves the pack alone for ever. go-git would
// read nothing of a repository that has one; stock git passes over it.
type indexed struct{ billy.Filesystem }

func (x indexed) ReadDir(path string) ([]os.FileInfo, error) {
	list, err := x.Filesystem.ReadDir(path)
	if err != nil || filepath.Base(path) != "pack" {
		return list, err
	}
	there := make(map[string]bool, len(list))
	for _, f := range list {
		there[f.Name()] = true
	}
	return slices.DeleteFunc(list, func(f os.FileInfo) bool {
		stem, ok := strings.CutSuffix(f.Name(), ".pack")
		return ok && !there[stem+".idx"]
	}), nil
}

// closeAll wants mu.
func (s *store) closeAll() error {
	var errs []error
	for _, git := range s.git {
		errs = append(errs, git.ObjectStorage.Close())
	}
	s.git = nil
	return errors.Join(errs...)
}

// lenders are a repository and those that lend it objects, as forks on large
// git servers have it (gitrepository-layout, objects/info/alternates). go-git
// has its own way to them, which does not tell the size of an object.
func lenders(path string) []string {
	const most = 20 // git itself stops at chains of five
	paths := []string{filepath.Clean(path)}
	for i := 0; i < len(paths); i++ {
		objects := filepath.Join(paths[i], "objects")
		data, err := os.ReadFile(filepath.Join(objects, "info", "alternates"))
		if err != nil {
			continue // none; objects that are missed for it are reported as such
		}
		for line := range strings.Lines(string(data)) {
			line = strings.TrimSuffix(line, "\n")
			if line == "" || line[0] == '#' {
				continue
			}
			if !filepath.IsAbs(line) {
				line = filepath.Join(objects, line)
			}
			if dir := filepath.Dir(line); filepath.Base(line) == "objects" && !slices.Contains(paths, dir) && len(paths) < most {
				paths = append(paths, dir)
			}
		}
	}
	return paths
}

func (s *store) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closeAll()
}

// do runs f on each storage until one has the object. It is run a second time,
// on the packs as they are now, when it fails: what looks like a broken
// repository may be one that git gc is just repacking.
func (s *store) do(hash plumbing.Hash, f func(*filesystem.Storage) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	try := func() error {
		err := plumbing.ErrObjectNotFound
		for _, git := range s.git {
			if err = guard(f, git); !errors.Is(err, plumbing.ErrObjectNotFound) {
				return err
			}
		}
		return err
	}
	err := try()
	if err != nil {
		s.reopen()
		err = try()
	}
	if err != nil {
		return fmt.Errorf("object %s of %s cannot be read: %w", hash, s.path, err)
	}
	return nil
}

// guard keeps a pack that was made to break go-git from taking the farm down.
func guard(f func(*filesystem.Storage) error, git *filesystem.Storage) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the pack is broken: %v", r)
		}
	}()
	return f(git)
}

// whole reads a commit or tree.
func (s *store) whole(t plumbing.ObjectType, hash plumbing.Hash) (data []byte, err error) {
	err = s.do(hash, func(git *filesystem.Storage) error {
		// Asked before it is read: a few bytes of zlib can be gigabytes.
		size, err := git.EncodedObjectSize(hash)
		if err != nil {
			return err
		}
		if size > maxObject {
			return fmt.Errorf("a %s of %d bytes: %d is the most", t, size, maxObject)
		}
		data, err = read(git, t, hash)
		return err
	})
	return data, err
}

func read(git *filesystem.Storage, t plumbing.ObjectType, hash plumbing.Hash) ([]byte, error) {
	r, size, err := reader(git, t, hash)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data := make([]byte, size)
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, err
	}
	return data, nil
}

func reader(git *filesystem.Storage, t plumbing.ObjectType, hash plumbing.Hash) (io.ReadCloser, int64, error) {
	o, err := git.EncodedObject(t, hash)
	if err != nil {
		return nil, 0, err
	}
	r, err := o.Reader()
	if err != nil {
		return nil, 0, err
	}
	return r, o.Size(), nil
}

// blob opens a blob. Reading from it may go on without the lock: a small one is
// in memory, a large one has a file of its own.
func (s *store) blob(hash plumbing.Hash) (r io.ReadCloser, size int64, err error) {
	err = s.do(hash, func(git *filesystem.Storage) error {
		r, size, err = reader(git, plumbing.BlobObject, hash)
		return err
	})
	return r, size, err
}

func (s *store) size(hash plumbing.Hash) (size int64, err error) {
	err = s.do(hash, func(git *filesystem.Storage) error {
		size, err = git.EncodedObjectSize(hash)
		return err
	})
	return size, err
}
