package results

import (
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/go-git/go-git/v5/plumbing"
	"golang.org/x/sync/errgroup"

	"github.com/Morphux/quarry"
)

// Index keeps in memory what is asked of all records at once: what was built
// last, what fails and why, what a package is needed by. It reads all records of
// a channel at the first question, and then what changed between one commit and
// the next. Readers never wait for that: while it is done they get the view that
// there is.
//
// An Index reads a repository that a [Repo] writes, or any bare clone of one that
// is kept up to date by other means.
type Index struct {
	path string
	odb  *odb
	own  bool

	ctx  context.Context
	stop context.CancelFunc

	mu       sync.Mutex // guards channels
	channels map[string]*indexed
}

// indexed is a channel in memory.
type indexed struct {
	turn chan struct{} // holds one token: who has it may replace cur
	cur  atomic.Pointer[View]
	past past
}

// Index is an index of the repository, which reads with it.
func (r *Repo) Index() *Index { return newIndex(r.path, r.odb, false) }

// OpenIndex opens a bare repository for an index of its own. A repository that is
// not there is [ErrNotFound].
func OpenIndex(repo string) (*Index, error) {
	repo, err := filepath.Abs(repo)
	if err != nil {
		return nil, err
	}
	if err := checkRepo(repo); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return newIndex(repo, openODB(repo), true), nil
}

func newIndex(path string, o *odb, own bool) *Index {
	x := &Index{path: path, odb: o, own: own, channels: map[string]*indexed{}}
	x.ctx, x.stop = context.WithCancel(context.Background())
	return x
}

// Close ends what is being read. Views that were given stay good.
func (x *Index) Close() error {
	x.stop()
	if x.own {
		return x.odb.Close()
	}
	return nil
}

// Channels lists the channels that have records, sorted.
func (x *Index) Channels() ([]string, error) { return channels(x.path) }

// View is the channel as it is now; while another call brings it up to date, as
// it was before. Only before the first one there is nothing to give, and the call
// waits until ctx ends. A channel that has no record is empty.
func (x *Index) View(ctx context.Context, channel string) (*View, error) {
	if err := quarry.CheckChannel(channel); err != nil {
		return nil, err
	}
	tip, err := readRef(x.path, channel)
	if err != nil {
		return nil, err
	}
	c := x.channel(channel, !tip.IsZero())
	if c == nil {
		return emptyView(channel), nil
	}
	cur := c.cur.Load()
	if cur != nil && cur.commit == tip {
		return cur, nil
	}
	if cur != nil {
		select {
		case <-c.turn:
		default:
			return cur, nil
		}
	} else {
		select {
		case <-c.turn:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	defer func() { c.turn <- struct{}{} }()
	cur = c.cur.Load()
	// Whoever had the turn before may have got further than the tip that was read.
	if tip, err = readRef(x.path, channel); err != nil {
		return nil, err
	}
	if cur != nil && cur.commit == tip {
		return cur, nil
	}
	if cur == nil {
		cur = emptyView(channel)
	}
	// Not the caller's context: what is read serves all, also when he goes away.
	next, err := x.advance(x.ctx, cur, tip)
	if err != nil {
		return nil, fmt.Errorf("channel %s at commit %.12s cannot be read: %w", channel, tip, err)
	}
	c.cur.Store(next)
	return next, nil
}

// channel is where a channel is kept; nil for one that is not and has nothing to
// keep, so that asking for made-up names takes no memory.
func (x *Index) channel(name string, keep bool) *indexed {
	x.mu.Lock()
	defer x.mu.Unlock()
	c := x.channels[name]
	if c == nil && keep {
		c = &indexed{turn: make(chan struct{}, 1)}
		c.turn <- struct{}{}
		x.channels[name] = c
	}
	return c
}

// advance makes the view of a commit out of that of another.
func (x *Index) advance(ctx context.Context, old *View, tip plumbing.Hash) (*View, error) {
	if tip.IsZero() {
		return emptyView(old.channel), nil
	}
	c, err := x.odb.commit(tip)
	if err != nil {
		return nil, err
	}
	w := &indexer{odb: x.odb, view: old, places: map[string]*[2]plumbing.Hash{}, fetchers: make(chan *fetcher, runtime.GOMAXPROCS(0))}
	for half, top := range []string{packagesDir, failuresDir} {
		var from, to plumbing.Hash
		if from, err = x.odb.lookup(old.root, top, true); err == nil {
			to, err = x.odb.lookup(c.tree, top, true)
		}
		if err == nil {
			err = w.compare(ctx, half, from, to)
		}
		if err != nil {
			if old.commit.IsZero() {
				return nil, err
			}
			// What it was made of is gone: somebody put another repository here.
			return x.advance(ctx, emptyView(old.channel), tip)
		}
	}
	pairs, err := w.load(ctx)
	if err != nil {
		return nil, err
	}
	n := old.changed(pairs)
	n.commit, n.root, n.when = tip, c.tree, c.when
	return n, nil
}

// indexer finds the packages that differ between two trees, and reads them.
type indexer struct {
	odb      *odb
	view     *View
	like     func(name string) *Package // instead of the view's packages; nil: those
	fetchers chan *fetcher              // that nobody uses just now

	mu     sync.Mutex
	places map[string]*[2]plumbing.Hash // of the packages that differ: their folders in the new tree
}

// fetcher is one that nobody else uses until it is given back. What it has of the
// bases of deltas is worth keeping: packs have long chains of them.
func (w *indexer) fetcher() (f *fetcher, giveBack func()) {
	select {
	case f = <-w.fetchers:
	default:
		f = &fetcher{odb: w.odb, bases: bounded[baseKey, packed]{max: 16 << 20}}
	}
	return f, func() {
		select {
		case w.fetchers <- f:
		default:
		}
	}
}

// found notes that a half of a package is another one.
func (w *indexer) found(half int, name string, h plumbing.Hash) {
	w.mu.Lock()
	defer w.mu.Unlock()
	dirs := w.places[name]
	if dirs == nil {
		dirs = new([2]plumbing.Hash)
		if old := w.view.Package(name); old != nil {
			*dirs = old.dirs
		}
		w.places[strings.Clone(name)] = dirs
	}
	dirs[half] = h
}

// compare finds the packages that differ in one half of the tree. Only folders
// that differ are read.
func (w *indexer) compare(ctx context.Context, half int, from, to plumbing.Hash) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	top := &fetcher{odb: w.odb}
	err := w.walk(ctx, top, half, "", 0, from, to, func(at string, from, to plumbing.Hash) {
		g.Go(func() error {
			f, giveBack := w.fetcher()
			defer giveBack()
			return w.walk(ctx, f, half, at, 1, from, to, nil)
		})
	})
	return errors.Join(err, g.Wait())
}

// walk compares two folders that are depth below that of the half. below is called
// for the folders in them that are not packages; nil: they are walked at once.
func (w *indexer) walk(ctx context.Context, f *fetcher, half int, at string, depth int, from, to plumbing.Hash, below func(at string, from, to plumbing.Hash)) error {
	if from == to {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	old, err := f.tree(from)
	if err != nil {
		return err
	}
	now, err := f.tree(to)
	if err != nil {
		return err
	}
	for _, d := range differences(old, now) {
		if !d.dir {
			continue
		}
		p := path.Join(at, d.name)
		switch {
		case quarry.CheckName(d.name) == nil && Spread(d.name) == p:
			w.found(half, d.name, d.now)
		case depth >= 2:
		case below != nil:
			below(p, d.old, d.now)
		default:
			if err := w.walk(ctx, f, half, p, depth+1, d.old, d.now, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// load reads the packages that were found: pairs of what was there and what is.
func (w *indexer) load(ctx context.Context) ([][2]*Package, error) {
	names := make([]string, 0, len(w.places))
	for name := range w.places {
		names = append(names, name)
	}
	slices.Sort(names)
	pairs := make([][2]*Package, len(names))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	const some = 64
	for first := 0; first < len(names); first += some {
		g.Go(func() error {
			f, giveBack := w.fetcher()
			defer giveBack()
			for i := first; i < min(first+some, len(names)); i++ {
				if err := ctx.Err(); err != nil {
					return err
				}
				old := w.view.Package(names[i])
				if w.like != nil {
					old = w.like(names[i])
				}
				pairs[i] = [2]*Package{old, f.pkg(names[i], old, *w.places[names[i]])}
			}
			return nil
		})
	}
	return pairs, g.Wait()
}

// pkg reads a package. Records that are the same as before are not read again,
// and one that cannot be read is a problem of the package and of nothing else.
func (f *fetcher) pkg(name string, old *Package, dirs [2]plumbing.Hash) *Package {
	p := &Package{Name: name, dirs: dirs}
	if old != nil {
		p.Name = old.Name
	}
	for half, top := range []string{packagesDir, failuresDir} {
		at := top + "/" + Spread(name)
		versions, err := f.tree(dirs[half])
		if err != nil {
			p.problem(at, err)
		}
		for _, v := range versions {
			if !v.dir || quarry.CheckVersion(v.name) != nil {
				continue
			}
			files, err := f.tree(v.hash)
			if err != nil {
				p.problem(at+"/"+v.name, err)
			}
			for _, file := range files {
				arch, ok := archOf(file.name)
				if !ok || file.dir {
					continue
				}
				e, err := f.entry(old, half, quarry.Target{Package: p.Name, Version: v.name, Arch: arch}, file.hash)
				if err != nil {
					p.problem(at+"/"+v.name+"/"+file.name, err)
					continue
				}
				p.Entries = append(p.Entries, e)
			}
		}
	}
	slices.SortFunc(p.Entries, compareTargets)
	return p
}

// maxProblems bounds what is kept of what is wrong with one package.
const maxProblems = 20

func (p *Package) problem(at string, err error) {
	if len(p.Problems) < maxProblems {
		p.Problems = append(p.Problems, fmt.Sprintf("%s cannot be read: %v", at, err))
	}
}

func (f *fetcher) entry(old *Package, half int, t quarry.Target, blob plumbing.Hash) (*Entry, error) {
	if old != nil {
		if e := old.Find(t.Version, t.Arch, half == 1); e != nil && e.blob == blob {
			return e, nil
		}
	}
	data, err := f.get(plumbing.BlobObject, blob)
	if err != nil {
		return nil, err
	}
	if len(data) > maxRecord {
		return nil, fmt.Errorf("it has %d bytes: %d is the most a record may have", len(data), maxRecord)
	}
	e, err := newEntry(data, blob, t)
	if err != nil {
		return nil, err
	}
	if (e.Fault != nil) != (half == 1) {
		return nil, fmt.Errorf("it says that the build has %s, and lies among the others", e.Status())
	}
	return e, nil
}

// fetcher reads objects beside other goroutines: only where an object is has to
// be asked of all, and reading and unpacking it, which takes longer, goes on
// without anybody waiting. What it read is not kept, so that going over everything
// leaves in memory what the writer needs. It is for use by one goroutine.
type fetcher struct {
	odb   *odb
	bases bounded[baseKey, packed]
}

func (f *fetcher) get(typ plumbing.ObjectType, h plumbing.Hash) ([]byte, error) {
	o := f.odb
	o.mu.Lock()
	b, ok := o.fresh.get(h)
	var in *pack
	var at int64
	if !ok {
		for _, p := range o.order {
			if a, ok := p.offset(h); ok {
				in, at = p, a
				break
			}
		}
	}
	o.mu.Unlock()
	if ok {
		return b, nil
	}
	if in != nil {
		// A pack that is taken away meanwhile is closed: then it is looked for again.
		if obj, err := in.read(at, 0, &f.bases); err == nil && obj.typ == typ {
			return obj.data, nil
		}
	}
	return o.get(typ, h)
}

// tree reads a folder; the zero hash is an empty one.
func (f *fetcher) tree(h plumbing.Hash) (tree, error) {
	if h.IsZero() {
		return nil, nil
	}
	b, err := f.get(plumbing.TreeObject, h)
	if err != nil {
		return nil, err
	}
	t, err := parseTree(b)
	if err != nil {
		return nil, fmt.Errorf("tree %s is damaged: %w", h, err)
	}
	return t, nil
}
