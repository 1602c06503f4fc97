package results

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/pelletier/go-toml/v2"

	"github.com/Morphux/quarry"
)

// groupRefs is where the submitted groups are: the ref of one, CHANNEL/NAME below
// it, is a commit whose tree holds the submission (group.toml) and, where they
// would stand in the channel, the records of what has been built of it. It is one
// ref, so that submission and records are never apart; the daemon is the only
// writer. No clone fetches it unless it is asked to.
const groupRefs = "refs/quarry/group/"

const groupFile = "group.toml"

// maxGroup is the most bytes of a submission that are read or written.
const maxGroup = 4 << 20

// ErrNoGroup is wrapped by the error for a group that is not submitted, or not any
// more.
var ErrNoGroup = errors.New("the group is not submitted")

func groupRef(channel, group string) (string, error) {
	return groupRefs + channel + "/" + group, errors.Join(quarry.CheckChannel(channel), quarry.CheckGroup(group))
}

// group is a submission as it stands, and its records.
type group struct {
	quarry.Submission
	ref       string
	tip, root plumbing.Hash
}

// Groups lists the submissions that there are. Those that cannot be read are told
// of in the error; the others are there all the same. A nil list says that nothing
// could be read.
func (r *Repo) Groups() ([]quarry.Submission, error) {
	refs := map[string]bool{}
	if err := eachPackedRef(r.path, func(name, _ string) { refs[name] = true }); err != nil {
		return nil, err
	}
	top := filepath.Join(r.path, filepath.FromSlash(groupRefs))
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // removed meanwhile
		case err != nil:
			return err
		case d.Type().IsRegular():
			name, err := filepath.Rel(r.path, path)
			refs[filepath.ToSlash(name)] = true
			return err
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	list := []quarry.Submission{} // never nil where there is an answer
	var errs []error
	for name := range refs {
		channel, group, ok := strings.Cut(strings.TrimPrefix(name, groupRefs), "/")
		if _, err := groupRef(channel, group); !ok || err != nil || !strings.HasPrefix(name, groupRefs) {
			continue // nothing of ours
		}
		g, err := r.group(channel, group)
		switch {
		case err == nil:
			list = append(list, g.Submission)
		case !errors.Is(err, ErrNoGroup):
			errs = append(errs, err)
		}
	}
	slices.SortFunc(list, func(a, b quarry.Submission) int { return strings.Compare(a.Channel+" "+a.Group, b.Channel+" "+b.Group) })
	return list, errors.Join(errs...)
}

// group reads a submission.
func (r *Repo) group(channel, name string) (*group, error) {
	ref, err := groupRef(channel, name)
	if err != nil {
		return nil, err
	}
	tip, err := readRefName(r.path, ref)
	if err != nil {
		return nil, err
	}
	if tip.IsZero() {
		return nil, fmt.Errorf("group %s on %s: %w", name, channel, ErrNoGroup)
	}
	g := &group{ref: ref, tip: tip}
	err = func() error {
		c, err := r.odb.commit(tip)
		if err != nil {
			return err
		}
		g.root = c.tree
		h, err := r.odb.lookup(g.root, groupFile, false)
		if err != nil {
			return err
		}
		if h.IsZero() {
			return errors.New("it has no " + groupFile)
		}
		text, err := r.odb.get(plumbing.BlobObject, h)
		if err != nil {
			return err
		}
		g.Submission, err = parseGroup(text)
		if err == nil && (g.Channel != channel || g.Group != name) {
			err = fmt.Errorf("it says that it is %s on %s", g.Group, g.Channel)
		}
		return err
	}()
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w: remove it with git update-ref -d, and submit the group again", ref, err)
	}
	return g, nil
}

type groupText struct {
	Schema int `toml:"schema"`
	quarry.Submission
}

func parseGroup(text []byte) (quarry.Submission, error) {
	var t groupText
	if len(text) > maxGroup {
		return t.Submission, fmt.Errorf("it has %d bytes: %d is the most", len(text), maxGroup)
	}
	if err := toml.Unmarshal(text, &t); err != nil {
		return t.Submission, err
	}
	if t.Schema != Schema {
		return t.Submission, fmt.Errorf("it has schema %d, and this Quarry knows %d: use a newer Quarry", t.Schema, Schema)
	}
	return t.Submission, checkGroup(&t.Submission)
}

func checkGroup(s *quarry.Submission) error {
	if _, err := groupRef(s.Channel, s.Group); err != nil {
		return err
	}
	if err := quarry.CheckName(s.ID); err != nil { // it becomes part of a nonce
		return fmt.Errorf("its ID is not fit: %w", err)
	}
	if len(s.Members) == 0 {
		return errors.New("it has no members")
	}
	for _, m := range s.Members {
		if !isHex(m.Commit, 40) || len(m.Archs) == 0 {
			return fmt.Errorf("member %s has no commit of 40 hex digits, or no architecture", m.Branch())
		}
		for _, arch := range m.Archs {
			if err := checkPlace(m.Package, m.Version, arch); err != nil {
				return err
			}
		}
	}
	return nil
}

// Submit writes a submission, over an earlier one of the same group. Of what that
// has built, the successes at the commits of the members are kept, unless something
// newer stands at their place; failures are not, as what they were built against
// may be another now. Newest of the members
// is filled in. It is on disk when Submit returns without an error.
func (r *Repo) Submit(ctx context.Context, s quarry.Submission) error {
	s.At = s.At.UTC()
	s.Members = slices.Clone(s.Members)
	if err := checkGroup(&s); err != nil {
		return fmt.Errorf("group %.40q cannot be submitted: %w", s.Group, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	snap, err := r.Snapshot(s.Channel)
	if err != nil {
		return err
	}
	for i := range s.Members {
		versions, err := snap.Versions(s.Members[i].Package, "")
		if err != nil {
			return err
		}
		if len(versions) > 0 {
			s.Members[i].Newest = versions[len(versions)-1]
		}
	}
	text, err := toml.Marshal(groupText{Schema, s})
	if err == nil && len(text) > maxGroup {
		err = fmt.Errorf("it takes %d bytes, and %d is the most", len(text), maxGroup)
	}
	if err != nil {
		return fmt.Errorf("group %s cannot be submitted: %w", s.Group, err)
	}
	edits := []edit{{path: groupFile, blob: text}}
	old, err := r.group(s.Channel, s.Group)
	if err == nil {
		kept, err := r.staged(old, func(m quarry.Member) bool {
			return slices.ContainsFunc(s.Members, func(n quarry.Member) bool {
				return n.Package == m.Package && n.Version == m.Version && n.Commit == m.Commit
			})
		})
		if err != nil {
			return err
		}
		own := &Snapshot{odb: r.odb, channel: s.Channel, commit: old.tip, root: old.root}
		for _, k := range kept {
			// One that has failed since, or over which the channel has something newer,
			// could not land.
			t, newer := k.rec.Target(), false
			for _, at := range []*Snapshot{own, snap} {
				ref, ok, err := at.Lookup(t.Package, t.Version, t.Arch)
				newer = newer || err != nil || ok && ref.Build > k.rec.Build
			}
			if newer {
				continue
			}
			edits = append(edits, edit{path: RecordPath(k.rec.Target()), blob: k.text}, edit{path: FilesPath(k.rec.Target()), blob: k.files})
			edits = append(edits, k.proof.edits(k.rec.Target())...)
		}
	} else if !errors.Is(err, ErrNoGroup) {
		r.opts.Logger.Warn("an earlier submission cannot be read and is replaced", "group", s.Group, "error", err)
	}
	ref, _ := groupRef(s.Channel, s.Group)
	_, err = r.commitGroup(ctx, ref, plumbing.ZeroHash, plumbing.ZeroHash, edits, s.By, "group "+s.Group+": submitted\n\nSubmission: "+s.ID+"\n")
	return err
}

// stagedRecord is a success of a group.
type stagedRecord struct {
	rec         *Record
	text, files []byte
	proof       Provenance
}

// staged reads the successes of the members that are wanted, in the order of their
// places.
func (r *Repo) staged(g *group, want func(quarry.Member) bool) (list []stagedRecord, err error) {
	s := &Snapshot{odb: r.odb, channel: g.Channel, commit: g.tip, root: g.root}
	for _, m := range g.Members {
		if !want(m) {
			continue
		}
		archs, err := s.Archs(m.Package, m.Version)
		if err != nil {
			return nil, err
		}
		for _, arch := range archs {
			rec, err := s.Get(m.Package, m.Version, arch)
			if err != nil {
				return nil, err
			}
			if rec.Source != m.Commit {
				continue
			}
			k := stagedRecord{rec: rec}
			if k.proof, err = s.Provenance(m.Package, m.Version, arch); err != nil && !errors.Is(err, ErrNotFound) {
				return nil, err
			}
			for path, to := range map[string]*[]byte{RecordPath(rec.Target()): &k.text, FilesPath(rec.Target()): &k.files} {
				h, err := r.odb.lookup(g.root, path, false)
				if err == nil && h.IsZero() {
					err = fmt.Errorf("%s of group %s is missing", path, g.Group)
				}
				if err == nil {
					*to, err = r.odb.get(plumbing.BlobObject, h)
				}
				if err != nil {
					return nil, err
				}
			}
			list = append(list, k)
		}
	}
	slices.SortFunc(list, func(a, b stagedRecord) int { return strings.Compare(a.rec.Target().String(), b.rec.Target().String()) })
	return list, nil
}

// commitGroup puts a commit of edits onto a group's ref. r.mu is held.
func (r *Repo) commitGroup(ctx context.Context, ref string, root, parent plumbing.Hash, edits []edit, by quarry.Packager, message string) (h plumbing.Hash, err error) {
	if err := ctx.Err(); err != nil {
		return h, err
	}
	var set objectSet
	tree, err := r.odb.apply(root, edits, &set)
	if err != nil {
		return h, err
	}
	now := r.opts.Now()
	text, err := r.commitObject(tree, parent, signature(by.Name, by.Email, by.User, now), message)
	if err != nil {
		return h, err
	}
	h = set.add(plumbing.CommitObject, text)
	drop, err := r.store(&set)
	if err != nil {
		return h, err
	}
	r.stored()
	path := filepath.Join(r.path, filepath.FromSlash(ref))
	dir := filepath.Dir(path)
	tmp := filepath.Join(r.own.dir, "group")
	if err = os.MkdirAll(dir, 0o777); err == nil {
		err = writeSynced(tmp, []byte(h.String()+"\n"), 0o666)
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		drop()
		return h, err
	}
	for range strings.Count(strings.TrimPrefix(ref, "refs/"), "/") + 1 { // the folders may be new
		if err := syncDir(dir); err != nil {
			return h, err
		}
		dir = filepath.Dir(dir)
	}
	return h, nil
}

// DropGroup takes a submission back, with all that was built of it. That there is
// none is no error.
func (r *Repo) DropGroup(ctx context.Context, channel, name string) error {
	ref, err := groupRef(channel, name)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dropRef(ctx, ref)
}

// dropRef removes a group's ref. r.mu is held.
func (r *Repo) dropRef(ctx context.Context, ref string) error {
	if h, err := readPackedRef(r.path, ref); err != nil || !h.IsZero() {
		if err != nil {
			return err
		}
		// Somebody has packed it. Git rewrites that file.
		cmd := exec.CommandContext(ctx, r.opts.Git, "-C", r.path, "update-ref", "-d", ref)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s cannot be removed: %w: %s", ref, err, bytes.TrimSpace(out))
		}
		return nil
	}
	path := filepath.Join(r.path, filepath.FromSlash(ref))
	if err := os.Remove(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return syncDir(filepath.Dir(path))
}

// Stage writes the outcome of a build of a group and returns the commit. A success
// waits with the group. A failure is written to the channel as well, as [Repo.Record]
// does, for it is what reviewers read. Like Record it is idempotent by the build's
// key. When the group has been taken back, or submitted anew, the outcome is
// refused with [ErrObsolete].
func (r *Repo) Stage(ctx context.Context, o *quarry.Outcome) (string, error) {
	b := o.Build
	stands := func() (*group, error) {
		g, err := r.group(b.Channel, b.Group)
		if err != nil && !errors.Is(err, ErrNoGroup) {
			return nil, err
		}
		if err != nil || g.ID != b.Stage || !g.Has(b.Release) {
			return nil, fmt.Errorf("%w: group %s has been taken back or submitted anew", ErrObsolete, b.Group)
		}
		return g, nil
	}
	if _, err := stands(); err != nil {
		return "", err
	}
	public := ""
	if o.Status == quarry.Failed {
		var err error
		if public, err = r.Record(ctx, o); err != nil && !errors.Is(err, ErrObsolete) {
			return "", err
		}
	}
	rec, err := NewRecord(o, r.opts.SBU)
	if err != nil {
		return "", err
	}
	list, err := filesText(rec, o)
	var proof Provenance
	if err == nil {
		proof, err = r.prove(rec)
	}
	if err != nil {
		return "", fmt.Errorf("%v cannot be recorded: %w", b, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	g, err := stands()
	if err != nil {
		return "", err
	}
	own := &Snapshot{odb: r.odb, channel: g.Channel, commit: g.tip, root: g.root}
	h, err := r.already(own, rec)
	if err == nil && h.IsZero() {
		var snap *Snapshot
		if snap, err = r.Snapshot(b.Channel); err != nil {
			return "", err
		}
		before, _, _ := snap.at(RecordPath(rec.Target()), rec.Target())
		rec.Revision = revision(rec, before)
		var edits []edit
		if edits, err = recordEdits(rec, list, proof); err == nil {
			h, err = r.commitGroup(ctx, g.ref, g.root, g.tip, edits, rec.Packager, r.message(rec, b))
		}
	}
	if err != nil {
		return "", fmt.Errorf("%v cannot be recorded in %s: %w", b, r.path, err)
	}
	if public != "" {
		return public, nil
	}
	return h.String(), nil
}

// Staged is a channel as the builds of a submitted group see it: the group's own
// records go before the channel's, and of failures there are only its own.
func (r *Repo) Staged(channel, name string) (*Snapshot, error) {
	g, err := r.group(channel, name)
	if err != nil {
		return nil, err
	}
	s, err := r.Snapshot(channel)
	if err != nil {
		return nil, err
	}
	c := *s
	c.stage, c.submission = g.root, &g.Submission
	return &c, nil
}

// Submission is that of the group whose view this is; nil for a channel's own.
func (s *Snapshot) Submission() *quarry.Submission { return s.submission }

// Pending reports whether the group whose view this is has yet to build a release
// of a package for an architecture.
func (s *Snapshot) Pending(pkg, arch string) (bool, error) {
	if s.submission == nil {
		return false, nil
	}
	own := &Snapshot{odb: s.odb, channel: s.channel, root: s.stage}
	for _, m := range s.submission.Members {
		if m.Package != pkg {
			continue
		}
		for _, a := range m.Archs {
			if a != arch && a != quarry.Noarch {
				continue
			}
			t := own.target(pkg, m.Version, a)
			if got, ok, err := own.at(RecordPath(t), t); err != nil || !ok || got.Ref.Source != m.Commit {
				return true, err
			}
		}
	}
	return false, nil
}

// blob finds what stands at a path, zero for nothing.
func (s *Snapshot) blob(path string) (plumbing.Hash, error) {
	if s.submission != nil {
		h, err := s.odb.lookup(s.stage, path, false)
		if err != nil || !h.IsZero() || strings.HasPrefix(path, failuresDir+"/") {
			return h, err
		}
	}
	return s.odb.lookup(s.root, path, false)
}

// merged is a folder of the channel with the group's over it.
func merged(stage, channel tree) tree {
	for _, e := range stage {
		channel = channel.with(e)
	}
	return channel
}
