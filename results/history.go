package results

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/Morphux/quarry"
)

// Commit is a commit of a channel, as its log has it.
type Commit struct {
	ID      string    `json:"commit"`
	Time    time.Time `json:"time"`
	Subject string    `json:"subject"`
}

// Since lists the commits of a channel after an earlier snapshot of it, up to this
// one, the oldest first.
func (s *Snapshot) Since(ctx context.Context, earlier *Snapshot) ([]Commit, error) {
	var list []Commit
	for h := s.commit; h != earlier.commit; {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		if h.IsZero() {
			return nil, fmt.Errorf("commit %.12s does not come before %.12s in channel %s: %w", earlier.commit, s.commit, s.channel, ErrNotFound)
		}
		c, err := s.odb.commit(h)
		if err != nil {
			return nil, err
		}
		subject, _, _ := strings.Cut(c.message, "\n")
		list = append(list, Commit{h.String(), c.when, oneLine(subject, 300)})
		h = c.parent
	}
	slices.Reverse(list)
	return list, nil
}

// Switch is the reader at another commit of its channel: see [Snapshot.At].
func (r *Reader) Switch(word string) error {
	s, err := r.At(word)
	if err == nil && s.commit == plumbing.ZeroHash {
		err = fmt.Errorf("channel %s had no records yet at %s: %w", r.channel, word, ErrNotFound)
	}
	if err == nil {
		r.Snapshot = s
	}
	return err
}

// Channels lists the channels of the repository, sorted.
func (r *Reader) Channels() ([]string, error) { return channels(r.path) }

// Other is another channel of the same repository.
func (r *Reader) Other(channel string) (*Snapshot, error) {
	s, err := snapshotOf(r.path, r.odb, channel)
	if err == nil && s.commit.IsZero() {
		err = fmt.Errorf("channel %s: %w", channel, ErrNotFound)
	}
	return s, err
}

// Path is the folder of the repository.
func (r *Reader) Path() string { return r.path }

// Targets goes over the places of all successes, or of all failures that no success
// has cleared, without reading the records: by package in the order of the tree,
// then by version, the oldest first, then by architecture.
func (s *Snapshot) Targets(ctx context.Context, failures bool) iter.Seq2[quarry.Target, error] {
	top := packagesDir
	if failures {
		top = failuresDir
	}
	return func(yield func(quarry.Target, error) bool) {
		for p, err := range s.places(ctx, top, nil) {
			if !yield(p.Target, err) {
				return
			}
		}
	}
}
