package results

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/Morphux/quarry"
)

// Trailers of the commit with which a group lands.
const (
	TrailerGroup      = "Group"
	TrailerSubmission = "Submission"
)

// BackwardsError is the error for a group that cannot land because the channel has
// gone on without it.
type BackwardsError struct{ Reason string }

func (e *BackwardsError) Error() string { return e.Reason }

// Land writes all that a submitted group has built into its channel as one commit,
// and ends the submission. It returns the commit. The records are those that were
// staged, but for their revision, which counts what the channel has had. Every
// member has to have a success for each of its architectures.
//
// It is idempotent: called again after a crash it finds the commit, and only ends
// the submission. A group that is not submitted, or under another ID, is
// [ErrNoGroup]. Where a newer build or a newer version has come into the channel
// meanwhile it is a [BackwardsError], and nothing is written.
func (r *Repo) Land(ctx context.Context, channel, name, id string) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	g, err := r.group(channel, name)
	if err == nil && g.ID != id {
		err = fmt.Errorf("submission %s of group %s on %s: %w", id, name, channel, ErrNoGroup)
	}
	if err != nil {
		return "", err
	}
	list, err := r.staged(g, func(quarry.Member) bool { return true })
	if err == nil {
		err = complete(g, list)
	}
	if err != nil {
		return "", fmt.Errorf("group %s cannot land on %s: %w", name, channel, err)
	}
	h, err := r.attempt(ctx, channel, func(lock *refLock, tip plumbing.Hash) (plumbing.Hash, error) {
		return r.land(ctx, g, list, lock, tip)
	})
	if err != nil {
		return "", fmt.Errorf("group %s cannot land on %s: %w", name, channel, err)
	}
	return h.String(), r.dropRef(ctx, g.ref)
}

// complete reports what a group lacks.
func complete(g *group, list []stagedRecord) error {
	there := map[quarry.Target]bool{}
	for _, k := range list {
		there[k.rec.Target()] = true
	}
	for _, m := range g.Members {
		for _, arch := range m.Archs {
			if t := (quarry.Target{Channel: g.Channel, Package: m.Package, Version: m.Version, Arch: arch}); !there[t] {
				return fmt.Errorf("%s has not been built", t)
			}
		}
	}
	return nil
}

// land makes one attempt, see [Repo.attempt].
func (r *Repo) land(ctx context.Context, g *group, list []stagedRecord, lock *refLock, tip plumbing.Hash) (plumbing.Hash, error) {
	snap, err := r.odb.snapshot(g.Channel, tip)
	if err != nil {
		return tip, err
	}
	if h, err := r.landed(snap, g, list); err != nil || !h.IsZero() {
		return h, err
	}
	if err := forwards(snap, g, list); err != nil {
		return tip, err
	}
	var edits []edit
	for _, k := range list {
		rec := *k.rec
		// One that cannot be read is replaced, and counted as none.
		before, _, _ := snap.at(RecordPath(rec.Target()), rec.Target())
		rec.Revision = revision(&rec, before)
		some, err := recordEdits(&rec, k.files, k.proof)
		if err != nil {
			return tip, err
		}
		edits = append(edits, some...)
	}
	var set objectSet
	tree, err := r.odb.apply(snap.root, edits, &set)
	if err != nil {
		return tip, err
	}
	text, err := r.commitObject(tree, tip, signature(g.By.Name, g.By.Email, g.By.User, g.At), groupMessage(g, list))
	if err != nil {
		return tip, err
	}
	h := set.add(plumbing.CommitObject, text)
	return r.advance(ctx, g.Channel, lock, tip, h, &set)
}

// landed finds the commit with which the group has landed already: when the daemon
// ended before the submission was. While a submission stands, nobody else writes
// the records of its members.
func (r *Repo) landed(snap *Snapshot, g *group, list []stagedRecord) (found plumbing.Hash, err error) {
	for _, k := range list {
		t := k.rec.Target()
		if a, ok, _ := snap.at(RecordPath(t), t); !ok || a.Ref.Key != k.rec.Key {
			return plumbing.ZeroHash, nil
		}
	}
	found = snap.commit
	err = r.odb.walk(snap.commit, func(h plumbing.Hash, c *commit) bool {
		if strings.Contains(c.message, g.ID) && trailers(c.message)[TrailerSubmission] == g.ID {
			found = h
			return true
		}
		return false
	})
	return found, err
}

// LandedAs finds the commit with which a submission has landed on a channel; ok is
// false where it has not. It may read the whole history of the channel.
func (r *Repo) LandedAs(channel, id string) (string, bool, error) {
	var found plumbing.Hash
	tip, err := readRef(r.path, channel)
	if err != nil || tip.IsZero() {
		return "", false, err
	}
	ok := false
	err = r.odb.walk(tip, func(h plumbing.Hash, c *commit) bool {
		ok = strings.Contains(c.message, id) && trailers(c.message)[TrailerSubmission] == id
		if ok {
			found = h
		}
		return ok
	})
	return found.String(), ok, err
}

// forwards reports what in the channel is newer than the group.
func forwards(snap *Snapshot, g *group, list []stagedRecord) error {
	for _, k := range list {
		t := k.rec.Target()
		if ref, ok, err := snap.Lookup(t.Package, t.Version, t.Arch); err == nil && ok && ref.Build > k.rec.Build {
			return &BackwardsError{fmt.Sprintf("%s has the record of build %d, which is newer than the group's build %d: submit the group again", t, ref.Build, k.rec.Build)}
		}
	}
	for _, m := range g.Members {
		newest := m.Newest // the greatest that is no surprise
		for _, o := range g.Members {
			if o.Package == m.Package && (newest == "" || quarry.CompareVersions(o.Version, newest) > 0) {
				newest = o.Version
			}
		}
		versions, err := snap.Versions(m.Package, "")
		if err != nil {
			return err
		}
		if n := len(versions); n > 0 && quarry.CompareVersions(versions[n-1], newest) > 0 {
			return &BackwardsError{fmt.Sprintf("%s %s has landed meanwhile, which is newer than the group's %s: submit the group again if that is to land all the same", m.Package, versions[n-1], m.Branch())}
		}
	}
	return nil
}

// groupMessage is the text of the commit: a line for each record, and trailers.
func groupMessage(g *group, list []stagedRecord) string {
	var m strings.Builder
	last := int64(0)
	var names []string
	for _, mem := range g.Members {
		names = append(names, mem.Package+" "+mem.Version)
	}
	what := strings.Join(names, ", ")
	if len(what) > 100 {
		what = strconv.Itoa(len(names)) + " releases"
	}
	fmt.Fprintf(&m, "group %s: %s landed together\n\n", g.Group, what)
	for _, k := range list {
		m.WriteString("    " + subject(k.rec) + "\n")
		last = max(last, k.rec.Build)
	}
	by := g.By.User
	if g.By.Key != "" {
		by += " (" + g.By.Key + ")"
	}
	m.WriteString("\n")
	for _, t := range [][2]string{
		{TrailerGroup, g.Group}, {TrailerSubmission, g.ID}, {TrailerChannel, g.Channel}, {TrailerStatus, string(quarry.Succeeded)},
		{TrailerBuild, strconv.FormatInt(last, 10)}, {TrailerPushedBy, strings.TrimSpace(by)},
	} {
		if v := oneLine(t[1], 300); v != "" {
			m.WriteString(t[0] + ": " + v + "\n")
		}
	}
	return m.String()
}
