package results

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry"
)

// Folders are the packages of which there are successes, as far as they differ
// between two commits: for each name, git's id of its folder in the later one, ""
// when it is gone.
type Folders map[string]string

// Folders lists the packages whose successes are others than in an earlier
// snapshot of the same repository; nil: all that there are. Folders that are the
// same are not looked into, and no record is read.
func (s *Snapshot) Folders(ctx context.Context, earlier *Snapshot) (Folders, error) {
	w := &indexer{odb: s.odb, view: emptyView(s.channel), places: map[string]*[2]plumbing.Hash{}, fetchers: make(chan *fetcher, runtime.GOMAXPROCS(0))}
	var from plumbing.Hash
	if earlier != nil {
		var err error
		if from, err = s.odb.lookup(earlier.root, packagesDir, true); err != nil {
			return nil, err
		}
	}
	to, err := s.odb.lookup(s.root, packagesDir, true)
	if err == nil {
		err = w.compare(ctx, 0, from, to)
	}
	if err != nil {
		return nil, err
	}
	out := make(Folders, len(w.places))
	for name, dirs := range w.places {
		out[name] = ""
		if !dirs[0].IsZero() {
			out[name] = dirs[0].String()
		}
	}
	return out, nil
}

// Names are the packages, sorted.
func (f Folders) Names() []string { return slices.Sorted(maps.Keys(f)) }

// Folder is git's id of a package's folder of successes: while it is the same, so
// are they. "" when there are none.
func (s *Snapshot) Folder(pkg string) (string, error) {
	if err := quarry.CheckName(pkg); err != nil {
		return "", err
	}
	h, err := s.odb.lookup(s.root, packagesDir+"/"+Spread(pkg), true)
	if err != nil || h.IsZero() {
		return "", err
	}
	return h.String(), nil
}

// Load reads the successes of packages, on all cores. A package without any has no
// entries; of records that cannot be read Problems tells. Records that stand in
// like, which may be nil or give nil, are not read again: packages as they were at
// another commit.
func (s *Snapshot) Load(ctx context.Context, names []string, like func(name string) *Package) ([]*Package, error) {
	w := &indexer{like: like, odb: s.odb, view: emptyView(s.channel), places: map[string]*[2]plumbing.Hash{}, fetchers: make(chan *fetcher, runtime.GOMAXPROCS(0))}
	for _, name := range names {
		if err := quarry.CheckName(name); err != nil {
			return nil, err
		}
		h, err := s.odb.lookup(s.root, packagesDir+"/"+Spread(name), true)
		if err != nil {
			return nil, err
		}
		w.places[name] = &[2]plumbing.Hash{h}
	}
	pairs, err := w.load(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]*Package, len(pairs))
	for i, p := range pairs {
		out[i] = p[1]
	}
	return out, nil
}

// AsOf is the channel at a commit, in full, that it is known to have had: that is
// not looked up in its history.
func (s *Snapshot) AsOf(commit string) (*Snapshot, error) {
	if !plumbing.IsHash(commit) {
		return nil, fmt.Errorf("%.70q is no commit", commit)
	}
	return s.odb.snapshot(s.channel, plumbing.NewHash(commit))
}

// Commits goes over the commits of the channel, the newest first, without an end.
func (s *Snapshot) Commits() iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for h := s.commit; !h.IsZero(); {
			c, err := s.odb.commit(h)
			if !yield(h.String(), err) || err != nil {
				return
			}
			h = c.parent
		}
	}
}

// Blob is the id of a file below packages/, e.g. zl/ib/zlib/1.3.1/x86_64.toml; ""
// when there is none.
func (s *Snapshot) Blob(at string) (string, error) {
	if at == "" || path.Clean("/"+at) != "/"+at {
		return "", nil
	}
	h, err := s.odb.lookup(s.root, packagesDir+"/"+at, false)
	if err != nil || h.IsZero() {
		return "", err
	}
	return h.String(), nil
}

// ReadBlob reads a file by its id, which must not be changed.
func (s *Snapshot) ReadBlob(id string) ([]byte, error) {
	return s.odb.get(plumbing.BlobObject, plumbing.NewHash(id))
}

// Beside lists the files of a package's folder, VERSION/FILE, with their ids. Names
// that no file of Quarry has are left out.
func (s *Snapshot) Beside(pkg string) (map[string]string, error) {
	versions, err := s.list(packagesDir + "/" + Spread(pkg))
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	var errs []error
	for _, v := range versions {
		if !v.dir || quarry.CheckVersion(v.name) != nil {
			continue
		}
		files, err := s.odb.tree(v.hash)
		errs = append(errs, err)
		for _, f := range files {
			// A word of the shape of a version can be a file's name anywhere.
			if !f.dir && quarry.CheckVersion(f.name) == nil {
				out[v.name+"/"+f.name] = f.hash.String()
			}
		}
	}
	return out, errors.Join(errs...)
}

// Newer is the channel as it is now; when it is what it was at the last time, that
// very snapshot, which may be nil.
func (r *Repo) Newer(channel string, last *Snapshot) (*Snapshot, error) {
	if err := quarry.CheckChannel(channel); err != nil {
		return nil, err
	}
	stamp := stampOf(filepath.Join(r.path, "refs", "heads", channel))
	if last != nil && stamp != (refStamp{}) && last.stamp == stamp {
		return last, nil
	}
	tip, err := readRef(r.path, channel)
	if err != nil {
		return nil, err
	}
	var s *Snapshot
	if last != nil && last.commit == tip {
		if last.stamp == stamp {
			return last, nil
		}
		again := *last
		s = &again
	} else if s, err = r.odb.snapshot(channel, tip); err != nil {
		return nil, err
	}
	s.stamp = stamp
	return s, nil
}

// refStamp tells a branch's file from the one before without reading it: it is
// another file after each move.
type refStamp struct {
	inode uint64
	ctime unix.Timespec
}

// stampOf is zero for a file that is not there, or has come so lately that one to
// come may look the same: clocks of file systems go by milliseconds.
func stampOf(path string) refStamp {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil || time.Since(time.Unix(st.Ctim.Unix())) < 100*time.Millisecond {
		return refStamp{}
	}
	return refStamp{st.Ino, st.Ctim}
}
