package results

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/Morphux/quarry"
)

// Trailers of the commits that promote and roll back. A promotion has TrailerFrom,
// the channel, and TrailerFromCommit, its commit; a roll-back has TrailerReverts,
// the commit that it takes back, or TrailerRestores, the one that it goes back to.
const (
	TrailerFrom         = "From"
	TrailerFromCommit   = "From-Commit"
	TrailerPromotedBy   = "Promoted-By"
	TrailerReverts      = "Reverts"
	TrailerRestores     = "Restores"
	TrailerRolledBackBy = "Rolled-Back-By"
)

// ErrNothing is wrapped by the error for a promotion or roll-back that would change
// nothing.
var ErrNothing = errors.New("nothing would change")

// RefusedError is the error for a change of a channel that may not be made.
type RefusedError struct {
	// Never are the reasons that hold whoever asks; Unforced are those that Force
	// overrides. One line each.
	Never, Unforced []string
}

func (e *RefusedError) Error() string {
	all := slices.Concat(e.Never, e.Unforced)
	text := all[0]
	if n := len(all) - 1; n > 0 {
		text += fmt.Sprintf(", and %d more reasons", n)
	}
	if len(e.Never) == 0 {
		text += ": use --force if that is meant"
	}
	return text
}

// Promotion says what is to be taken from one channel into another. The records are
// the very same ones, blob for blob, and so are the artifacts that they name.
type Promotion struct {
	From, To string
	// Releases are taken on all architectures that From has a success for, and that
	// Archs names, if it names any.
	Releases []quarry.Release // Package and Version count
	Archs    []string
	// All takes the newest success of every package on every architecture that To
	// does not have the like of, instead of Releases. With Prune, what From has no
	// success of any more leaves To.
	All, Prune bool

	// Force has To go back in version, shrink, or lose what depends on it.
	Force bool
	Dry   bool // only look
	// Check looks at the channel as it would be. What it reports never holds, or is
	// let through by Force. nil: nothing more is asked. It has to tell whether all
	// that is needed would be there, which this package does not know the rules of.
	Check func(before, after *Snapshot, moves []Move) (never, unforced []string, err error)

	// May reports why what would move, or would lose or get the record of a failure,
	// may not be changed by who asks; nil: it may.
	May func(moves []Move) error

	By     quarry.Packager // who promotes
	Reason string          // one line; "" for none
}

// Move is a target that a promotion or a roll-back gives another record.
type Move struct {
	quarry.Target        // in the channel that is changed
	Blob          string // id of the record; "" when it is taken away
	Was           string // id of the record that stood there; "" for none
	Newest        string // newest version of the package that the channel had for the architecture; "" for none
	Artifact      string // SHA-256, hex
	Build         int64  // that made it
	Packager      quarry.Packager
}

// Promoted is what came of a promotion or a roll-back, or would.
type Promoted struct {
	Channel string // that was changed
	Old     string // its commit before, "" for none
	New     string // and after; "" when nothing was written
	From    string // commit of the channel that it came from; of a roll-back, the commit that was taken back or restored
	Moves   []Move
}

// Promote takes successes from one channel into another with one commit, and
// returns what it has done. A success of the same target in To is replaced, and a
// failure there is cleared. What To has already is passed over; when that is all,
// the error is [ErrNothing]. The author of the commit is the packager, if all has
// one; else who promotes.
//
// A [RefusedError] says that it may not be done: without Force, when To would go
// back to an older version or an older build, when a package would be there for
// fewer architectures in its newest version than before, or when it would be left
// with fewer packages; and for what Check finds.
func (r *Repo) Promote(ctx context.Context, p Promotion) (*Promoted, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	from, err := r.Snapshot(p.From)
	if err != nil {
		return nil, err
	}
	if from.commit.IsZero() {
		return nil, fmt.Errorf("channel %s has no records: nothing can be taken from it: %w", p.From, ErrNotFound)
	}
	var done *Promoted
	err = r.change(ctx, p.To, func(to *Snapshot) (*proposal, error) {
		moves, err := p.moves(ctx, from, to)
		if err != nil {
			return nil, err
		}
		done = &Promoted{Channel: p.To, Old: to.Commit(), From: from.Commit(), Moves: moves}
		prop := &proposal{moves: moves, source: from, force: p.Force, dry: p.Dry, verify: p.Check, may: p.May, author: p.By}
		prop.unforced, err = backwards(to, moves)
		if who, ok := packager(moves); ok {
			prop.author = who
		}
		prop.message = func(now time.Time) string { return p.message(from, moves) }
		return prop, err
	}, func(h plumbing.Hash) { done.New = h.String() })
	if err != nil {
		return done, fmt.Errorf("nothing is promoted from %s to %s: %w", p.From, p.To, err)
	}
	return done, nil
}

func (p *Promotion) check() error {
	if err := errors.Join(quarry.CheckChannel(p.From), quarry.CheckChannel(p.To)); err != nil {
		return err
	}
	switch {
	case p.From == p.To:
		return fmt.Errorf("channel %s cannot be promoted to itself: name two channels", p.From)
	case p.All == (len(p.Releases) > 0):
		return errors.New("a promotion is of releases, or of all: name the one or the other")
	case p.Prune && !p.All:
		return errors.New("only a promotion of all can take away what the other channel does not have")
	}
	for _, rel := range p.Releases {
		if err := checkPlace(rel.Package, rel.Version, quarry.Noarch); err != nil {
			return err
		}
	}
	return nil
}

// moves lists what is to change in a channel.
func (p *Promotion) moves(ctx context.Context, from, to *Snapshot) (list []Move, err error) {
	wanted := map[quarry.Target]bool{}
	add := func(pkg, version, arch string) error {
		t := to.target(pkg, version, arch)
		m, ok, err := moveOf(from, to, t)
		if err == nil && ok && !wanted[t] {
			wanted[t] = true
			list = append(list, m)
		}
		return err
	}
	fits := func(arch string) bool { return len(p.Archs) == 0 || slices.Contains(p.Archs, arch) }
	for _, rel := range p.Releases {
		archs, err := from.Archs(rel.Package, rel.Version)
		if err != nil {
			return nil, err
		}
		any := false
		for _, arch := range archs {
			if fits(arch) {
				any = true
				if err := add(rel.Package, rel.Version, arch); err != nil {
					return nil, err
				}
			}
		}
		if !any {
			return nil, fmt.Errorf("%s %s has no success on %s%s: build it there first: %w", rel.Package, rel.Version, p.From, only(p.Archs), ErrNotFound)
		}
	}
	if !p.All {
		return list, nil
	}
	newest := map[[2]string]string{} // by package and arch
	for pl, err := range from.places(ctx, packagesDir, nil) {
		if err != nil {
			return nil, err
		}
		if k := [2]string{pl.Package, pl.Arch}; fits(pl.Arch) && (newest[k] == "" || quarry.CompareVersions(pl.Version, newest[k]) > 0) {
			newest[k] = pl.Version
		}
	}
	keys := make([][2]string, 0, len(newest))
	for k := range newest {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b [2]string) int { return cmp.Or(cmp.Compare(a[0], b[0]), cmp.Compare(a[1], b[1])) })
	for _, k := range keys {
		if err := add(k[0], newest[k], k[1]); err != nil {
			return nil, err
		}
	}
	if p.Prune {
		for pl, err := range to.places(ctx, packagesDir, nil) {
			if err != nil {
				return nil, err
			}
			if !fits(pl.Arch) {
				continue
			}
			h, err := from.blob(pl.path)
			if err != nil {
				return nil, err
			}
			if h.IsZero() {
				m, err := moveTo(to, pl.Target, plumbing.ZeroHash, pl.hash)
				if err != nil {
					return nil, err
				}
				list = append(list, m)
			}
		}
	}
	return list, nil
}

func only(archs []string) string {
	if len(archs) == 0 {
		return ""
	}
	return " for " + strings.Join(archs, ", ")
}

// moveOf is what it takes to have a success of one channel in another; false when
// it is there already.
func moveOf(from, to *Snapshot, t quarry.Target) (m Move, ok bool, err error) {
	path := RecordPath(t)
	h, err := from.blob(path)
	if err != nil {
		return m, false, err
	}
	was, err := to.blob(path)
	if err != nil {
		return m, false, err
	}
	if h == was {
		return m, false, nil
	}
	m, err = moveTo(to, t, h, was)
	return m, true, err
}

// newestFor is the newest version that has a success for the architecture itself.
func newestFor(s *Snapshot, pkg, arch string) (string, error) {
	versions, err := s.Versions(pkg, arch)
	if err != nil {
		return "", err
	}
	for _, v := range slices.Backward(versions) {
		h, err := s.blob(RecordPath(s.target(pkg, v, arch)))
		if err != nil || !h.IsZero() {
			return v, err
		}
	}
	return "", nil
}

// backwards tells what goes back by moves.
func backwards(to *Snapshot, moves []Move) (why []string, err error) {
	type at struct{ pkg, arch string }
	best := map[at]string{}
	for _, m := range moves {
		if k := (at{m.Package, m.Arch}); m.Blob != "" && (best[k] == "" || quarry.CompareVersions(m.Version, best[k]) > 0) {
			best[k] = m.Version
		}
	}
	for _, m := range moves {
		switch {
		case m.Blob == "":
		case m.Newest != "" && best[at{m.Package, m.Arch}] == m.Version && quarry.CompareVersions(m.Version, m.Newest) < 0:
			why = append(why, fmt.Sprintf("%s: %s has %s, which is newer", m.Target, m.Channel, m.Newest))
		case m.Was != "":
			a, ok, err := to.at(RecordPath(m.Target), m.Target)
			if err != nil {
				continue // one that cannot be read is replaced
			}
			if ok && a.Ref.Build > m.Build {
				why = append(why, fmt.Sprintf("%s: %s has build %d, which is newer than build %d", m.Target, m.Channel, a.Ref.Build, m.Build))
			}
		}
	}
	return why, nil
}

// packager is who released all that moves; false when these are several.
func packager(moves []Move) (who quarry.Packager, ok bool) {
	for _, m := range moves {
		switch {
		case m.Blob == "":
			return who, false
		case !ok:
			who, ok = m.Packager.Person(), true
		case m.Packager.Person() != who:
			return who, false
		}
	}
	return who, ok
}

// maxListed is how many moves the message of a commit lists.
const maxListed = 2000

func (p *Promotion) message(from *Snapshot, moves []Move) string {
	var m strings.Builder
	fmt.Fprintf(&m, "promote %s from %s\n\n", summary(moves), p.From)
	if reason := oneLine(p.Reason, 500); reason != "" {
		m.WriteString("    " + reason + "\n\n")
	}
	listMoves(&m, moves)
	writeTrailers(&m, [][2]string{
		{TrailerFrom, p.From}, {TrailerFromCommit, from.Commit()}, {TrailerChannel, p.To}, {TrailerStatus, "promoted"}, {TrailerPromotedBy, person(p.By)},
	})
	return m.String()
}

// summary names what moves, or counts it.
func summary(moves []Move) string {
	var names []string
	for _, m := range moves {
		if name := m.Package + " " + m.Version; !slices.Contains(names, name) {
			names = append(names, name)
		}
		if len(names) > 5 {
			break
		}
	}
	if len(names) > 5 {
		seen := map[[2]string]bool{}
		for _, m := range moves {
			seen[[2]string{m.Package, m.Version}] = true
		}
		return strconv.Itoa(len(seen)) + " releases"
	}
	return strings.Join(names, ", ")
}

func listMoves(w *strings.Builder, moves []Move) {
	for i, m := range moves {
		if i == maxListed {
			fmt.Fprintf(w, "    and %d more\n", len(moves)-i)
			break
		}
		switch {
		case m.Blob == "":
			fmt.Fprintf(w, "    %s: taken away\n", m.Target)
		case m.Newest == "":
			fmt.Fprintf(w, "    %s: build %d, new\n", m.Target, m.Build)
		case m.Newest == m.Version:
			fmt.Fprintf(w, "    %s: build %d\n", m.Target, m.Build)
		default:
			fmt.Fprintf(w, "    %s: build %d, was %s\n", m.Target, m.Build, m.Newest)
		}
	}
	w.WriteString("\n")
}

func person(p quarry.Packager) string {
	by := p.User
	if p.Key != "" {
		by += " (" + p.Key + ")"
	}
	return strings.TrimSpace(by)
}

// writeTrailers writes the last paragraph of a message.
func writeTrailers(w *strings.Builder, list [][2]string) {
	for _, t := range list {
		if v := oneLine(t[1], 300); v != "" {
			w.WriteString(t[0] + ": " + v + "\n")
		}
	}
}
