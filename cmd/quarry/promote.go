package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/events"
	"github.com/Morphux/quarry/queue"
	"github.com/Morphux/quarry/results"
)

// mover promotes and rolls back for the verbs.
type mover struct {
	*stages
	queue *queue.Queue
}

func (m mover) Find(channel, release string) (pkg, version string, err error) {
	s, err := m.results.Snapshot(channel)
	if err != nil {
		return "", "", err
	}
	return s.Find(release)
}

func (m mover) Commit(channel, word string) (string, error) {
	s, err := m.results.Snapshot(channel)
	if err == nil {
		s, err = s.At(word)
	}
	if err != nil {
		return "", err
	}
	if s.Commit() == "" {
		return "", fmt.Errorf("channel %s had no records yet at %.40s: %w", channel, word, results.ErrNotFound)
	}
	return s.Commit(), nil
}

func (m mover) Promote(ctx context.Context, p results.Promotion) (*results.Promoted, error) {
	p.Check = m.checker(ctx)
	m.holds.RLock() // what is checked to be there stays until it is referred to
	defer m.holds.RUnlock()
	done, err := m.results.Promote(ctx, p)
	m.after(ctx, done, err, events.Promoted, p.From, p.By.User)
	return done, err
}

func (m mover) Rollback(ctx context.Context, b results.Rollback) (*results.Promoted, error) {
	b.Check = m.checker(ctx)
	m.holds.RLock()
	defer m.holds.RUnlock()
	done, err := m.results.Rollback(ctx, b)
	m.after(ctx, done, err, events.RolledBack, "", b.By.User)
	return done, err
}

// after has the rest of the farm know of a change.
func (m mover) after(ctx context.Context, done *results.Promoted, err error, kind, from, by string) {
	if err != nil || done.New == "" {
		return
	}
	m.events.Moved(kind, done.Channel, from, done.New, by, len(done.Moves))
	for _, move := range done.Moves {
		if move.Blob == "" || move.Artifact == "" {
			continue
		}
		if err := publish(m.cfg, m.pipeline.Artifacts, move.Target, move.Artifact); err != nil {
			m.log.Warn("a promoted artifact does not appear in the output folder", "artifact", move.Artifact, "err", err)
		}
	}
	// What waits for something on the channel can begin now, and what was pushed to
	// it and lost its record is wanted again.
	if err := m.queue.Replan(ctx); err != nil && ctx.Err() == nil {
		m.log.Warn("the queue was not planned anew after a promotion; it is before long", "err", err)
	}
}

// checker looks whether all that a channel's packages need would be there: of those
// that move, whoever asks; of those that stay and need what moves, unless force
// says otherwise.
func (m mover) checker(ctx context.Context) func(before, after *results.Snapshot, moves []results.Move) (never, unforced []string, err error) {
	return func(before, after *results.Snapshot, moves []results.Move) (never, unforced []string, err error) {
		type place struct{ pkg, arch string }
		moved, touched := map[quarry.Target]bool{}, map[place]bool{}
		for _, mv := range moves {
			touched[place{mv.Package, mv.Arch}] = true
			if mv.Blob == "" {
				continue
			}
			moved[mv.Target] = true
			why, err := lacks(after, mv.Target)
			if err != nil {
				return nil, nil, err
			}
			never = append(never, why...)
			// A rollback may go back further than artifacts are kept.
			if _, err := os.Stat(m.pipeline.Artifacts.Path(mv.Artifact)); mv.Artifact != "" && errors.Is(err, fs.ErrNotExist) {
				never = append(never, fmt.Sprintf("%s: its artifact %.12s is not kept any more (retention.artifacts): build it again", mv.Target, mv.Artifact))
			}
		}
		if before.Commit() == "" {
			return never, nil, nil
		}
		view, err := m.index.View(ctx, before.Channel())
		if err != nil {
			return nil, nil, err
		}
		users := map[string]bool{}
		for p := range touched {
			for _, name := range view.Users(p.pkg, 0) {
				users[name] = true
			}
		}
		for name := range users {
			archs := map[string]bool{}
			for p := range touched {
				archs[p.arch] = true
			}
			for arch := range archs {
				// Only what would be installed counts: its newest version.
				versions, err := after.Versions(name, arch)
				if err != nil || len(versions) == 0 {
					continue
				}
				a, ok, err := after.Available(name, versions[len(versions)-1], arch)
				if err != nil || !ok {
					continue
				}
				t := quarry.Target{Channel: after.Channel(), Package: name, Version: a.Version, Arch: a.Arch}
				if moved[t] {
					continue
				}
				why, err := lacks(after, t)
				if err != nil {
					return nil, nil, err
				}
				if len(why) == 0 {
					continue
				}
				was, err := lacks(before, t)
				if err != nil {
					return nil, nil, err
				}
				for _, w := range why {
					if !slices.Contains(was, w) && !slices.Contains(unforced, w) {
						unforced = append(unforced, w)
					}
				}
			}
		}
		slices.Sort(unforced)
		return never, unforced, nil
	}
}

// lacks tells what a success needs that its channel does not have: packages that
// its recipe names, and libraries that its files were linked with.
func lacks(s *results.Snapshot, t quarry.Target) (why []string, err error) {
	rec, err := s.Get(t.Package, t.Version, t.Arch)
	if err != nil {
		return nil, err
	}
	r := records{s}
	needs := slices.DeleteFunc(slices.Clone(rec.Recipe.Needed), func(need string) bool { return slices.Contains(rec.Without, need) })
	deps, missing, err := r.ResolveAll(needs, t.Arch)
	if err != nil {
		return nil, err
	}
	for _, need := range missing {
		why = append(why, fmt.Sprintf("%s needs %s, which %s does not have: promote that as well", t, need, s.Channel()))
	}
	for _, lib := range rec.Libraries {
		if lib.From != "dependency" || lib.Owner == "" {
			continue
		}
		owner, ok := quarry.DepUsed{}, false
		if i := slices.IndexFunc(deps, func(d quarry.DepUsed) bool { return d.Package == lib.Owner }); i >= 0 {
			owner, ok = deps[i], true
		} else if owner, ok, err = r.Resolve(lib.Owner, t.Arch); err != nil {
			return nil, err
		}
		if !ok {
			if !strings.Contains(strings.Join(missing, " "), lib.Owner) {
				why = append(why, fmt.Sprintf("%s needs %s of %s, which %s does not have: promote that as well", t, lib.Soname, lib.Owner, s.Channel()))
			}
			continue
		}
		a, ok, err := s.Available(owner.Package, owner.Version, t.Arch)
		if err != nil || !ok {
			return nil, err
		}
		offers, err := s.Get(owner.Package, owner.Version, a.Arch)
		if err != nil {
			return nil, err
		}
		if offers.Contents != nil && !slices.Contains(offers.Contents.Sonames, lib.Soname) {
			why = append(why, fmt.Sprintf("%s needs %s of %s, and %s %s has no such library: promote what it was built with, or what was built with that",
				t, lib.Soname, lib.Owner, owner.Package, owner.Version))
		}
	}
	return why, nil
}
