package results

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/Morphux/quarry"
)

// Rollback says what is to be taken back of a channel.
type Rollback struct {
	Channel string
	// Commit is the one to take back; with Restore, the one whose records the channel
	// is to have again, all of them. "" takes back the newest promotion.
	Commit  string
	Restore bool

	// Force lets the channel shrink (Restore) or be emptied, and lose what depends on
	// what goes.
	Force bool
	Dry   bool                                                                              // only look
	Check func(before, after *Snapshot, moves []Move) (never, unforced []string, err error) // as for a [Promotion]

	May func(moves []Move) error // likewise

	By     quarry.Packager // who asks
	Reason string          // one line; "" for none
}

// Rollback makes a commit that undoes what an earlier one did, or all that was done
// since; history is kept. Taking back a commit is refused with a [RefusedError]
// when what it wrote has been replaced since: that would have to be taken back
// first.
func (r *Repo) Rollback(ctx context.Context, b Rollback) (*Promoted, error) {
	if err := quarry.CheckChannel(b.Channel); err != nil {
		return nil, err
	}
	var done *Promoted
	err := r.change(ctx, b.Channel, func(now *Snapshot) (*proposal, error) {
		if now.commit.IsZero() {
			return nil, fmt.Errorf("it has no records: %w", ErrNotFound)
		}
		commit, err := b.commit(now)
		if err != nil {
			return nil, err
		}
		is, err := now.odb.snapshot(b.Channel, commit)
		if err != nil {
			return nil, err
		}
		source := is
		from, to := now, is // what differs goes back
		if !b.Restore {
			if source, err = is.Before(); err != nil {
				return nil, err
			}
			from, to = is, source
		}
		prop := &proposal{source: source, force: b.Force, dry: b.Dry, verify: b.Check, may: b.May, author: b.By, shrink: !b.Restore}
		err = diff(ctx, from, to, func(t quarry.Target, failure bool, old, want plumbing.Hash) error {
			t.Channel = b.Channel
			path := RecordPath(t)
			if failure {
				path = FailurePath(t)
			}
			have, err := now.blob(path)
			if err != nil || have == want {
				return err
			}
			if have != old {
				prop.never = append(prop.never, fmt.Sprintf("%s has another record since: take that back first", t))
				return nil
			}
			if failure {
				prop.edits = append(prop.edits, edit{path: path, hash: want})
				prop.others = append(prop.others, Move{Target: t})
				return nil
			}
			m, err := moveTo(now, t, want, have)
			prop.moves = append(prop.moves, m)
			return err
		})
		if err != nil {
			return nil, err
		}
		done = &Promoted{Channel: b.Channel, Old: now.Commit(), From: commit.String(), Moves: prop.moves}
		prop.message = func(time.Time) string { return b.message(commit, prop.moves) }
		return prop, nil
	}, func(h plumbing.Hash) { done.New = h.String() })
	if err != nil {
		return done, fmt.Errorf("channel %s is not rolled back: %w", b.Channel, err)
	}
	return done, nil
}

// commit finds the commit that is meant in the history of the channel.
func (b *Rollback) commit(now *Snapshot) (found plumbing.Hash, err error) {
	if b.Commit != "" && !isHex(b.Commit, 40) {
		return found, fmt.Errorf("commit %.60q is not 40 hex digits", b.Commit)
	}
	if b.Restore && b.Commit == "" {
		return found, errors.New("no commit is named to go back to")
	}
	err = now.odb.walk(now.commit, func(h plumbing.Hash, c *commit) bool {
		switch {
		case b.Commit != "" && h.String() != b.Commit:
			return false
		case b.Commit == "" && (!strings.Contains(c.message, TrailerFromCommit) || trailers(c.message)[TrailerFromCommit] == ""):
			return false
		}
		found = h
		return true
	})
	switch {
	case err != nil || !found.IsZero():
		return found, err
	case b.Commit == "":
		return found, fmt.Errorf("nothing was promoted to it: name a commit: %w", ErrNotFound)
	}
	return found, fmt.Errorf("commit %.12s is not in its history: %w", b.Commit, ErrNotFound)
}

// moveTo is what it takes for a target to have the record in a blob; the zero hash
// for none.
func moveTo(now *Snapshot, t quarry.Target, want, have plumbing.Hash) (m Move, err error) {
	m = Move{Target: t}
	if !have.IsZero() {
		m.Was = have.String()
	}
	if m.Newest, err = newestFor(now, t.Package, t.Arch); err != nil {
		return m, err
	}
	path := RecordPath(t)
	if want.IsZero() {
		if a, err := now.odb.head(have); err == nil {
			m.Artifact, m.Build = a.Artifact, a.Ref.Build
		}
		return m, nil
	}
	rec, err := now.readAt(want, path, t)
	if err != nil {
		return m, err
	}
	m.Blob, m.Artifact, m.Build, m.Packager = want.String(), rec.Artifact, rec.Build, rec.Packager
	return m, nil
}

func (b *Rollback) message(commit plumbing.Hash, moves []Move) string {
	var m strings.Builder
	what, trailer := "take back commit ", TrailerReverts
	if b.Restore {
		what, trailer = "go back to commit ", TrailerRestores
	}
	fmt.Fprintf(&m, "%s%.12s\n\n", what, commit)
	if reason := oneLine(b.Reason, 500); reason != "" {
		m.WriteString("    " + reason + "\n\n")
	}
	listMoves(&m, moves)
	writeTrailers(&m, [][2]string{{trailer, commit.String()}, {TrailerChannel, b.Channel}, {TrailerStatus, "rolled back"}, {TrailerRolledBackBy, person(b.By)}})
	return m.String()
}
