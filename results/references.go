package results

import (
	"context"
	"maps"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"golang.org/x/sync/errgroup"
)

// References goes over the records of successes, as text, for who has to know what
// they refer to. It remembers how far it got, so that what is recorded meanwhile can
// be looked at afterwards.
type References struct {
	repo *Repo
	see  func(text []byte) error
	tips map[string]plumbing.Hash // of refs, as they were looked at

	mu sync.Mutex // see is called by one goroutine at a time
}

// References calls see for the text of each record of a success that stands in a
// channel or in a submitted group, and of each that has stood in a channel at some
// time since; of a few more than once. Nothing is remembered of records, so that the
// memory it takes is the same for any number of them. A record that cannot be read
// ends it: who looks for what nobody refers to must not overlook one.
func (r *Repo) References(ctx context.Context, since time.Time, see func(text []byte) error) (*References, error) {
	x := &References{repo: r, see: see, tips: map[string]plumbing.Hash{}}
	tips, err := x.now()
	if err != nil {
		return nil, err
	}
	w := &indexer{odb: r.odb, fetchers: make(chan *fetcher, runtime.GOMAXPROCS(0))}
	// What is promoted stands in several channels: of each, what is not in the one
	// before.
	var before plumbing.Hash
	for _, ref := range slices.Sorted(maps.Keys(tips)) {
		tip := tips[ref]
		root, _, err := x.packages(tip.tip)
		if err == nil {
			err = x.standing(ctx, w, root, before)
		}
		if err == nil && tip.channel {
			before = root
			err = x.replaced(ctx, w, tip.tip, since)
		}
		if err != nil {
			return nil, err
		}
		x.tips[ref] = tip.tip
	}
	return x, nil
}

// More calls see for what has come since References or the last More.
func (x *References) More(ctx context.Context) error {
	tips, err := x.now()
	if err != nil {
		return err
	}
	w := &indexer{odb: x.repo.odb, fetchers: make(chan *fetcher, 1)}
	for ref, tip := range tips {
		last := x.tips[ref]
		if last == tip.tip {
			continue
		}
		if !tip.channel || last.IsZero() {
			var root plumbing.Hash
			if root, _, err = x.packages(tip.tip); err == nil {
				err = x.standing(ctx, w, root, plumbing.ZeroHash)
			}
		} else {
			err = x.come(ctx, w, tip.tip, last)
		}
		if err != nil {
			return err
		}
		x.tips[ref] = tip.tip
	}
	return nil
}

type refTip struct {
	tip     plumbing.Hash
	channel bool
}

func (x *References) now() (map[string]refTip, error) {
	tips := map[string]refTip{}
	chs, err := x.repo.Channels()
	if err != nil {
		return nil, err
	}
	for _, ch := range chs {
		h, err := readRef(x.repo.path, ch)
		if err != nil {
			return nil, err
		}
		tips["refs/heads/"+ch] = refTip{h, true}
	}
	groups, err := x.repo.Groups()
	if err != nil {
		return nil, err
	}
	for _, s := range groups {
		ref, err := groupRef(s.Channel, s.Group)
		if err != nil {
			return nil, err
		}
		h, err := readRefName(x.repo.path, ref)
		if err != nil {
			return nil, err
		}
		if !h.IsZero() { // else it has landed meanwhile
			tips[ref] = refTip{h, false}
		}
	}
	return tips, nil
}

func (x *References) packages(tip plumbing.Hash) (plumbing.Hash, *commit, error) {
	if tip.IsZero() {
		return plumbing.ZeroHash, nil, nil
	}
	c, err := x.repo.odb.commit(tip)
	if err != nil {
		return plumbing.ZeroHash, nil, err
	}
	h, err := x.repo.odb.lookup(c.tree, packagesDir, true)
	return h, c, err
}

// standing sees the records of a folder that are not the same in another.
func (x *References) standing(ctx context.Context, w *indexer, in, without plumbing.Hash) error {
	top := &fetcher{odb: x.repo.odb}
	entries, err := top.tree(in)
	if err != nil {
		return err
	}
	others, err := top.tree(without)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, d := range differences(others, entries) {
		if d.dir && !d.now.IsZero() {
			g.Go(func() error {
				f, giveBack := w.fetcher()
				defer giveBack()
				return x.changed(ctx, f, f.tree, d.now, d.old, 1)
			})
		}
	}
	return g.Wait()
}

func (x *References) record(f *fetcher, h plumbing.Hash) error {
	text, err := f.get(plumbing.BlobObject, h)
	if err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.see(text)
}

// replaced sees the records that commits since a time have replaced or taken away:
// they stood until then.
func (x *References) replaced(ctx context.Context, w *indexer, tip plumbing.Hash, since time.Time) error {
	f, giveBack := w.fetcher()
	defer giveBack()
	now, c, err := x.packages(tip)
	for err == nil && c != nil && !c.when.Before(since) {
		var old plumbing.Hash
		var parent *commit
		if old, parent, err = x.packages(c.parent); err == nil {
			err = x.changed(ctx, f, x.tree, old, now, 0)
			now, c = old, parent
		}
	}
	return err
}

// come sees the records that commits after last have brought. A history that does
// not have last is seen as it stands.
func (x *References) come(ctx context.Context, w *indexer, tip, last plumbing.Hash) error {
	f, giveBack := w.fetcher()
	defer giveBack()
	for at := tip; at != last; {
		now, c, err := x.packages(at)
		if err != nil {
			return err
		}
		if c == nil {
			return nil // all of it has been seen
		}
		old, _, err := x.packages(c.parent)
		if err == nil {
			err = x.changed(ctx, f, x.tree, now, old, 0)
		}
		if err != nil {
			return err
		}
		at = c.parent
	}
	return nil
}

// tree reads a folder, and remembers it for a while: from commit to commit the
// folders on the way to a record are most of the reading.
func (x *References) tree(h plumbing.Hash) (tree, error) {
	if h.IsZero() {
		return nil, nil
	}
	return x.repo.odb.tree(h)
}

// changed sees the records of one folder that are not the same in another.
func (x *References) changed(ctx context.Context, f *fetcher, read func(plumbing.Hash) (tree, error), in, without plumbing.Hash, depth int) error {
	if in == without || depth > deepest {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	entries, err := read(in)
	if err != nil {
		return err
	}
	others, err := read(without)
	if err != nil {
		return err
	}
	for _, d := range differences(others, entries) {
		_, record := archOf(d.name)
		switch {
		case d.now.IsZero():
		case d.dir:
			err = x.changed(ctx, f, read, d.now, d.old, depth+1)
		case record:
			err = x.record(f, d.now)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
