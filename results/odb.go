package results

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"unique"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/objfile"

	"github.com/Morphux/quarry"
)

// maxObject is the largest object that is read, in bytes. Lists of files are
// the largest that Quarry writes; what is larger is not ours.
const maxObject = 256 << 20

// odb reads objects. go-git's own storage is not used because it takes the list
// of packs once, and here stock git repacks while the daemon runs and every
// commit brings a pack. This one looks again when it misses something, and
// loads only the packs that are new.
type odb struct {
	dir string // objects/

	mu    sync.Mutex // guards the following
	packs map[string]*pack
	order []*pack                  // the pack that last had something stands first
	bases bounded[baseKey, packed] // what deltas build on
	fresh bounded[plumbing.Hash, []byte]
	trees bounded[plumbing.Hash, tree]
	heads bounded[plumbing.Hash, Available]

	against bounded[plumbing.Hash, []unique.Handle[quarry.DepUsed]]

	provided bounded[plumbing.Hash, offers]   // by folder
	provide  bounded[plumbing.Hash, []string] // by record
}

func openODB(repo string) *odb {
	return &odb{
		dir:   filepath.Join(repo, "objects"),
		packs: make(map[string]*pack),
		bases: bounded[baseKey, packed]{max: 16 << 20},
		fresh: bounded[plumbing.Hash, []byte]{max: 8 << 20},
		trees: bounded[plumbing.Hash, tree]{max: 1 << 20},
		heads: bounded[plumbing.Hash, Available]{max: 1 << 18},

		against: bounded[plumbing.Hash, []unique.Handle[quarry.DepUsed]]{max: 1 << 20},

		provided: bounded[plumbing.Hash, offers]{max: 1 << 18},
		provide:  bounded[plumbing.Hash, []string]{max: 1 << 18},
	}
}

func (o *odb) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var errs []error
	for _, p := range o.packs {
		errs = append(errs, p.file.Close())
	}
	o.packs, o.order = make(map[string]*pack), nil
	return errors.Join(errs...)
}

// get returns an object's content, which the caller must not change.
func (o *odb) get(typ plumbing.ObjectType, h plumbing.Hash) ([]byte, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.getLocked(typ, h)
}

func (o *odb) getLocked(typ plumbing.ObjectType, h plumbing.Hash) ([]byte, error) {
	if b, ok := o.fresh.get(h); ok {
		return b, nil
	}
	b, err := o.find(typ, h)
	// A repack may run several times while we look, and a pack may vanish
	// between listing and opening it.
	for try := 0; err != nil && try < 3; try++ {
		if e := o.rescan(); e != nil {
			return nil, e
		}
		b, err = o.find(typ, h)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s cannot be read from %s: %w", typ, h, o.dir, err)
	}
	return b, nil
}

// tree returns a tree, which the caller must not change.
func (o *odb) tree(h plumbing.Hash) (tree, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if t, ok := o.trees.get(h); ok {
		return t, nil
	}
	b, err := o.getLocked(plumbing.TreeObject, h)
	if err != nil {
		return nil, err
	}
	t, err := parseTree(b)
	if err != nil {
		return nil, fmt.Errorf("tree %s is damaged: %w", h, err)
	}
	o.trees.put(h, t, len(t)+1)
	return t, nil
}

func (o *odb) find(typ plumbing.ObjectType, h plumbing.Hash) ([]byte, error) {
	for i, p := range o.order {
		at, ok := p.offset(h)
		if !ok {
			continue
		}
		copy(o.order[1:i+1], o.order[:i])
		o.order[0] = p
		obj, err := p.read(at, 0, &o.bases)
		if err != nil {
			return nil, err
		}
		if obj.typ != typ {
			return nil, fmt.Errorf("it is a %s", obj.typ)
		}
		return obj.data, nil
	}
	return o.loose(typ, h)
}

func (o *odb) loose(typ plumbing.ObjectType, h plumbing.Hash) ([]byte, error) {
	hex := h.String()
	f, err := os.Open(filepath.Join(o.dir, hex[:2], hex[2:]))
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, plumbing.ErrObjectNotFound
		}
		return nil, err
	}
	defer f.Close()
	r, err := objfile.NewReader(f)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	t, size, err := r.Header()
	if err != nil {
		return nil, err
	}
	if t != typ {
		return nil, fmt.Errorf("it is a %s", t)
	}
	if size < 0 || size > maxObject {
		return nil, fmt.Errorf("it has %d bytes: %d is the most", size, int64(maxObject))
	}
	b, err := readSized(r, size)
	if err == nil && r.Hash() != h {
		err = fmt.Errorf("its content is damaged: its hash is %s", r.Hash())
	}
	return b, err
}

func readSized(r io.Reader, size int64) ([]byte, error) {
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	return b, nil
}

// rescan takes in the packs that have come and lets go of those that have
// gone.
func (o *odb) rescan() error {
	dir := filepath.Join(o.dir, "pack")
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	seen := make(map[string]bool)
	var newest []*pack
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".idx")
		if !ok || !strings.HasPrefix(name, "pack-") {
			continue
		}
		seen[name] = true
		if o.packs[name] != nil {
			continue
		}
		p, err := openPack(dir, name)
		if errors.Is(err, os.ErrNotExist) {
			continue // repacked just now
		}
		if err != nil {
			return fmt.Errorf("%s of %s cannot be read: %w", name, dir, err)
		}
		o.packs[name] = p
		newest = append(newest, p)
	}
	kept := newest
	for _, p := range o.order {
		if seen[p.name] {
			kept = append(kept, p)
			continue
		}
		p.file.Close()
		delete(o.packs, p.name)
	}
	o.order = kept
	return nil
}

// keep remembers objects that were written just now, since the next commit
// reads most of them, before any pack is listed again.
func (o *odb) keep(h plumbing.Hash, b []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.fresh.put(h, b, len(b))
}
