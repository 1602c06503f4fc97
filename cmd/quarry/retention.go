package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/extract"
	"github.com/Morphux/quarry/queue"
	"github.com/Morphux/quarry/results"
)

// holds are artifacts that something needs that is under way. Its lock is held while
// some are removed, and by who brings records of artifacts back into a channel.
type holds struct {
	sync.RWMutex
	needed map[string]int
}

// hold keeps what the build of a record was made from, and made, from being removed
// until free.
func (f *stages) hold(t quarry.Target) (free func(), err error) {
	f.holds.Lock()
	defer f.holds.Unlock()
	snap, err := f.results.Snapshot(t.Channel)
	if err != nil {
		return nil, err
	}
	rec, err := snap.Get(t.Package, t.Version, t.Arch)
	if err != nil {
		return nil, err
	}
	list := []string{rec.Artifact}
	for _, d := range rec.Dependencies {
		list = append(list, d.Artifact)
	}
	if f.holds.needed == nil {
		f.holds.needed = map[string]int{}
	}
	for _, sha := range list {
		f.holds.needed[sha]++
	}
	return func() {
		f.holds.Lock()
		defer f.holds.Unlock()
		for _, sha := range list {
			if f.holds.needed[sha]--; f.holds.needed[sha] == 0 {
				delete(f.holds.needed, sha)
			}
		}
	}, nil
}

// pruner removes artifacts that nothing refers to.
type pruner struct {
	*stages
	queue *queue.Queue
	one   sync.Mutex // held while it is done
}

// The most that is removed before others who want the holds have a turn, and that is
// told of by name.
const (
	pruneBatch = 100
	pruneNames = 10_000
)

// marks are artifacts that may go, by digest, and which of them something refers to.
type marks struct {
	list   [][32]byte // sorted
	sizes  []int64
	linked []bool
	used   []bool
}

// see marks whatever a record names by 64 hex digits. Some of these are no
// artifacts, and then there is none of that name.
func (m *marks) see(record []byte) error {
	for i := 0; i < len(record); {
		n := i
		for n < len(record) && hexDigit(record[n]) {
			n++
		}
		if n-i == 64 {
			var sum [32]byte
			hex.Decode(sum[:], record[i:n])
			if at, ok := m.find(sum); ok {
				m.used[at] = true
			}
		}
		i = n + 1
	}
	return nil
}

func hexDigit(c byte) bool { return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' }

func (m *marks) find(sum [32]byte) (int, bool) {
	return slices.BinarySearchFunc(m.list, sum, func(a, b [32]byte) int { return bytes.Compare(a[:], b[:]) })
}

// Prune looks for artifacts that nothing refers to, in two steps: which of the old
// ones no record names, and then, some at a time and with nobody changing channels,
// whether that still holds. What is made again meanwhile is not old any more.
func (p *pruner) Prune(ctx context.Context, now bool) (*control.Pruned, error) {
	p.one.Lock()
	defer p.one.Unlock()
	since := time.Now().Add(-time.Duration(p.cfg.Retain.Artifacts))
	// What waits to be recorded for so long refers to what looks old by now.
	for _, b := range p.queue.List(queue.Filter{States: []quarry.State{quarry.Recording}}) {
		if b.Started.Before(since.Add(time.Hour)) {
			return nil, fmt.Errorf("%v waits to be recorded since %s: nothing is removed before that has been mended", b, b.Started.UTC().Format(time.DateOnly))
		}
	}
	out := &control.Pruned{Dry: !now, Since: since, Artifacts: []string{}}
	m, err := p.old(ctx, since, out)
	if err != nil || len(m.list) == 0 {
		return out, err
	}
	records := 0
	refs, err := p.results.References(ctx, since, func(text []byte) error { records++; return m.see(text) })
	if err != nil {
		return nil, fmt.Errorf("nothing is removed, as not all records can be read: %w", err)
	}
	if records == 0 {
		return nil, errors.New("nothing is removed, as there is no record at all: restore results.git first")
	}
	var unused []int
	for i, sum := range m.list {
		if m.used[i] || p.held(sum) {
			out.Referenced.Add(m.sizes[i])
			continue
		}
		unused = append(unused, i)
		out.Unused.Add(m.sizes[i])
		if m.linked[i] {
			out.Linked.Add(m.sizes[i])
		}
		if len(out.Artifacts) < pruneNames {
			out.Artifacts = append(out.Artifacts, hex.EncodeToString(sum[:]))
		}
	}
	if !now {
		return out, nil
	}
	out.Linked = control.Amount{}
	for batch := range slices.Chunk(unused, pruneBatch) {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		if err := p.remove(ctx, refs, m, batch, since, out); err != nil {
			return nil, err
		}
	}
	if out.Removed.Count > 0 {
		p.log.Info("artifacts were removed that nothing refers to", "artifacts", out.Removed.Count, "bytes", out.Removed.Bytes)
	}
	return out, nil
}

// old lists the artifacts that were not made since.
func (p *pruner) old(ctx context.Context, since time.Time, out *control.Pruned) (*marks, error) {
	type stored struct {
		sum    [32]byte
		size   int64
		linked bool
	}
	var list []stored
	err := p.pipeline.Artifacts.Each(ctx, func(a extract.Stored) error {
		out.All.Add(a.Size)
		if !a.Used.Before(since) {
			out.Recent.Add(a.Size)
			return nil
		}
		list = append(list, stored{a.SHA256, a.Size, a.Linked})
		return nil
	})
	slices.SortFunc(list, func(a, b stored) int { return bytes.Compare(a.sum[:], b.sum[:]) })
	m := &marks{used: make([]bool, len(list))}
	for _, s := range list {
		m.list, m.sizes, m.linked = append(m.list, s.sum), append(m.sizes, s.size), append(m.linked, s.linked)
	}
	return m, err
}

func (p *pruner) held(sum [32]byte) bool {
	p.holds.RLock()
	defer p.holds.RUnlock()
	return p.holds.needed[hex.EncodeToString(sum[:])] > 0
}

// remove removes some, if still nothing refers to them.
func (p *pruner) remove(ctx context.Context, refs *results.References, m *marks, some []int, since time.Time, out *control.Pruned) error {
	p.holds.Lock()
	defer p.holds.Unlock()
	if err := refs.More(ctx); err != nil {
		return fmt.Errorf("no more is removed, as not all records can be read: %w", err)
	}
	for _, i := range some {
		sha := hex.EncodeToString(m.list[i][:])
		if m.used[i] || p.holds.needed[sha] > 0 {
			continue
		}
		gone, err := p.pipeline.Artifacts.RemoveUnused(sha, since)
		if err != nil {
			return err
		}
		if gone {
			out.Removed.Add(m.sizes[i])
			if m.linked[i] {
				out.Linked.Add(m.sizes[i])
			}
		}
	}
	return nil
}

// daily prunes once a day until ctx ends, the first time when the start is over.
func (p *pruner) daily(ctx context.Context) {
	for wait := time.Hour; ; wait = 24 * time.Hour {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if _, err := p.Prune(ctx, true); err != nil && ctx.Err() == nil {
			p.log.Warn("artifacts that nothing refers to are not removed", "err", err)
		}
	}
}

// spoken tells which builds have a record that stands in a channel, so that their
// logs are kept.
func (f *stages) spoken(ctx context.Context) func(numbers []int64) (map[int64]bool, error) {
	return func(numbers []int64) (map[int64]bool, error) {
		want := make(map[int64]bool, len(numbers))
		for _, n := range numbers {
			want[n] = false
		}
		channels, err := f.index.Channels()
		if err != nil {
			return nil, err
		}
		for _, channel := range channels {
			view, err := f.index.View(ctx, channel)
			if err != nil {
				return nil, err
			}
			for e := range view.Recent(results.Place{}) {
				if _, ok := want[e.Build]; ok {
					want[e.Build] = true
				}
			}
		}
		return want, nil
	}
}
