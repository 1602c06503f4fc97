package results

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/Morphux/quarry"
)

// proposal is a change of a channel that makes no record of its own: what a
// promotion or a roll-back comes to.
type proposal struct {
	moves    []Move
	edits    []edit    // besides those of the moves
	others   []Move    // that may has to let through besides: what edits is about
	source   *Snapshot // where the records of the moves stand
	never    []string  // reasons against it, see [RefusedError]
	unforced []string
	shrink   bool // it may, but to nothing
	force    bool
	dry      bool
	verify   func(before, after *Snapshot, moves []Move) (never, unforced []string, err error)
	may      func(moves []Move) error
	author   quarry.Packager
	message  func(now time.Time) string
}

// change makes a change of a channel as one commit. propose is called with the
// channel as it is, and again when somebody has moved it meanwhile. The error is
// [ErrNothing] when there is nothing to change and a [RefusedError] when there are
// reasons against it; done is called with the commit, unless the change is dry.
func (r *Repo) change(ctx context.Context, channel string, propose func(*Snapshot) (*proposal, error), done func(plumbing.Hash)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	dry := false
	h, err := r.attempt(ctx, channel, func(lock *refLock, tip plumbing.Hash) (plumbing.Hash, error) {
		snap, err := r.odb.snapshot(channel, tip)
		if err != nil {
			return tip, err
		}
		p, err := propose(snap)
		if err != nil {
			return tip, err
		}
		dry = p.dry
		return r.carryOut(ctx, p, snap, lock, tip)
	})
	if err == nil && !dry {
		done(h)
	}
	return err
}

// carryOut makes one attempt at a change.
func (r *Repo) carryOut(ctx context.Context, p *proposal, snap *Snapshot, lock *refLock, tip plumbing.Hash) (plumbing.Hash, error) {
	edits := slices.Clone(p.edits)
	for _, m := range p.moves {
		some, err := p.editsOf(m)
		if err != nil {
			return tip, err
		}
		edits = append(edits, some...)
	}
	if p.may != nil {
		if err := p.may(slices.Concat(p.moves, p.others)); err != nil {
			return tip, err
		}
	}
	if len(edits) == 0 && len(p.never) == 0 {
		return tip, ErrNothing
	}
	var set objectSet
	root, err := r.odb.apply(snap.root, edits, &set)
	if err != nil {
		return tip, err
	}
	if root == snap.root && len(p.never) == 0 {
		return tip, ErrNothing
	}
	if root.IsZero() {
		root = set.add(plumbing.TreeObject, nil)
	}
	// Whoever checks reads the channel as it would be, so that the folders that it
	// would get have to be there before anybody refers to them.
	drop := func() {}
	if len(set.list) > 0 {
		if drop, err = r.store(&set); err != nil {
			return tip, err
		}
	}
	after := &Snapshot{odb: r.odb, channel: snap.channel, commit: tip, root: root, when: snap.when}
	if err := p.allowed(snap, after); err != nil || p.dry {
		drop()
		return tip, err
	}
	now := r.opts.Now()
	var commits objectSet
	text, err := r.commitObject(root, tip, signature(p.author.Name, p.author.Email, p.author.User, now), p.message(now))
	if err != nil {
		drop()
		return tip, err
	}
	h := commits.add(plumbing.CommitObject, text)
	return r.advance(ctx, snap.channel, lock, tip, h, &commits, drop)
}

// editsOf puts a move's record and list of files where they belong.
func (p *proposal) editsOf(m Move) ([]edit, error) {
	list := []edit{{path: RecordPath(m.Target)}, {path: FilesPath(m.Target)}}
	if m.Blob == "" {
		return append(list, Provenance{}.edits(m.Target)...), nil
	}
	list[0].hash = plumbing.NewHash(m.Blob)
	h, err := p.source.blob(FilesPath(m.Target))
	if err != nil {
		return nil, err
	}
	if h.IsZero() {
		return nil, fmt.Errorf("%s has no list of files in %s: build it again: %w", m.Target, p.source.channel, ErrNotFound)
	}
	list[1].hash = h
	for _, path := range provenancePaths {
		// The zero hash takes away what is there of another build.
		if h, err = p.source.blob(path(m.Target)); err != nil {
			return nil, err
		}
		list = append(list, edit{path: path(m.Target), hash: h})
	}
	return append(list, edit{path: FailurePath(m.Target)}), nil
}

// allowed looks for reasons against a change.
func (p *proposal) allowed(before, after *Snapshot) error {
	refused := &RefusedError{Never: slices.Clone(p.never), Unforced: slices.Clone(p.unforced)}
	why, err := shrinks(before, after, p.moves, p.shrink)
	if err != nil {
		return err
	}
	refused.Unforced = append(refused.Unforced, why...)
	if p.verify != nil {
		never, unforced, err := p.verify(before, after, p.moves)
		if err != nil {
			return err
		}
		refused.Never = append(refused.Never, never...)
		refused.Unforced = append(refused.Unforced, unforced...)
	}
	if p.force {
		refused.Unforced = nil
	}
	if len(refused.Never)+len(refused.Unforced) > 0 {
		return refused
	}
	return nil
}

// shrinks tells what a channel would have less of: packages, and architectures
// that the newest version of a package is there for. Where less is fine, only that
// nothing would be left.
func shrinks(before, after *Snapshot, moves []Move, fine bool) (why []string, err error) {
	seen := map[string]bool{}
	var lost []string
	for _, m := range moves {
		if seen[m.Package] {
			continue
		}
		seen[m.Package] = true
		was, err := newestArchs(before, m.Package)
		if err != nil {
			return nil, err
		}
		is, err := newestArchs(after, m.Package)
		if err != nil {
			return nil, err
		}
		switch {
		case was.version == "":
		case is.version == "":
			lost = append(lost, m.Package)
		case fine, slices.Contains(is.archs, quarry.Noarch):
		default:
			for _, arch := range was.archs {
				if !slices.Contains(is.archs, arch) && arch != quarry.Noarch {
					why = append(why, fmt.Sprintf("%s %s is not there for %s, which %s is", m.Package, is.version, arch, was.version))
				}
			}
		}
	}
	n := len(lost)
	if n == 0 {
		return why, nil
	}
	empty, err := after.empty()
	switch {
	case err != nil:
		return nil, err
	case empty:
		why = append(why, before.channel+" would be empty")
	case fine:
	case n == 1:
		why = append(why, fmt.Sprintf("%s would lose the package %s", before.channel, lost[0]))
	default:
		if n > 5 {
			lost = append(lost[:5], "...")
		}
		why = append(why, fmt.Sprintf("%s would lose %d packages (%s)", before.channel, n, strings.Join(lost, ", ")))
	}
	return why, nil
}

type versionArchs struct {
	version string
	archs   []string
}

// newestArchs is the newest version of a package with the architectures that it is
// there for.
func newestArchs(s *Snapshot, pkg string) (v versionArchs, err error) {
	versions, err := s.Versions(pkg, "")
	if err != nil || len(versions) == 0 {
		return v, err
	}
	v.version = versions[len(versions)-1]
	v.archs, err = s.Archs(pkg, v.version)
	return v, err
}

// empty reports whether nothing of the channel can be installed.
func (s *Snapshot) empty() (bool, error) {
	for _, err := range s.places(context.Background(), packagesDir, nil) {
		return false, err
	}
	return true, nil
}
