package results

import (
	"context"
	"fmt"
	"iter"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/Morphux/quarry"
)

// Entry reads what an [Index] keeps of a target's success, at a fraction of what
// [Snapshot.Get] takes.
func (s *Snapshot) Entry(pkg, version, arch string) (*Entry, error) {
	if err := checkPlace(pkg, version, arch); err != nil {
		return nil, err
	}
	return s.entry(s.target(pkg, version, arch))
}

func (s *Snapshot) entry(t quarry.Target) (*Entry, error) {
	h, err := s.blob(RecordPath(t))
	if err != nil {
		return nil, err
	}
	if h.IsZero() {
		return nil, fmt.Errorf("%s in channel %s: %w", t, s.channel, ErrNotFound)
	}
	b, err := s.odb.get(plumbing.BlobObject, h)
	if err != nil {
		return nil, err
	}
	e, err := newEntry(b, h, t)
	if err != nil {
		return nil, s.bad(RecordPath(t), err)
	}
	return e, nil
}

// Entries goes over the successes for some architectures, in the order of
// [Snapshot.Targets]. A record that cannot be read comes as an error in its place
// and the rest goes on; when ctx ends, its error comes last.
func (s *Snapshot) Entries(ctx context.Context, of func(arch string) bool) iter.Seq2[*Entry, error] {
	return func(yield func(*Entry, error) bool) {
		for t, err := range s.Targets(ctx, false) {
			var e *Entry
			if err == nil {
				if !of(t.Arch) {
					continue
				}
				e, err = s.entry(t)
			}
			if !yield(e, err) {
				return
			}
		}
	}
}
