package results

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/Morphux/quarry"
)

// ErrNotFound is wrapped by the error for a record, package or channel that
// does not exist.
var ErrNotFound = errors.New("not found")

// maxRecord is the largest record that is written or read, in bytes.
const maxRecord = 16 << 20

// Snapshot answers from one commit of one channel, whatever is written
// meanwhile. It costs nothing to make or to keep, and is safe for use by
// several goroutines.
type Snapshot struct {
	odb     *odb
	channel string
	commit  plumbing.Hash // zero for a channel without a record
	root    plumbing.Hash
	when    time.Time

	stamp refStamp // see Repo.Newer

	// Of a group's view: its own records, which go before the channel's.
	submission *quarry.Submission
	stage      plumbing.Hash
}

func (o *odb) snapshot(channel string, tip plumbing.Hash) (*Snapshot, error) {
	s := &Snapshot{odb: o, channel: channel, commit: tip}
	if tip.IsZero() {
		return s, nil
	}
	c, err := o.commit(tip)
	if err != nil {
		return nil, err
	}
	s.root, s.when = c.tree, c.when
	return s, nil
}

// Snapshot is the channel as it is now. A channel that has no record yet is
// empty.
func (r *Repo) Snapshot(channel string) (*Snapshot, error) { return snapshotOf(r.path, r.odb, channel) }

func snapshotOf(repo string, o *odb, channel string) (*Snapshot, error) {
	if err := quarry.CheckChannel(channel); err != nil {
		return nil, err
	}
	tip, err := readRef(repo, channel)
	if err != nil {
		return nil, err
	}
	return o.snapshot(channel, tip)
}

// Channel is the channel's name.
func (s *Snapshot) Channel() string { return s.channel }

// Commit is the id of the commit that answers, "" for an empty channel.
func (s *Snapshot) Commit() string {
	if s.commit.IsZero() {
		return ""
	}
	return s.commit.String()
}

// Time is when that commit was made.
func (s *Snapshot) Time() time.Time { return s.when }

// Available is a success as dependency resolution wants it.
type Available struct {
	Package, Version, Arch string
	Artifact               string // SHA-256 of the archive, hex; "" if there is none
	ArtifactSize           int64  // bytes
	ABI                    string // quarry.Facts.ABI
	Revision               int64
	Ended                  time.Time
	Took                   time.Duration // from the start of the attempt to its end
	Cost                   Cost
	Ref                    quarry.RecordRef
}

// head reads what stands before the first table of the record in a blob, and
// what the build cost, once.
func (o *odb) head(h plumbing.Hash) (Available, error) {
	o.mu.Lock()
	a, ok := o.heads.get(h)
	o.mu.Unlock()
	if ok {
		return a, nil
	}
	var cost Cost
	rec, err := o.record(h, func(data []byte) (*Record, error) {
		cost = costOf(string(data))
		return parseHead(data)
	})
	if err != nil {
		return Available{}, err
	}
	a = Available{rec.Package, rec.Version, rec.Arch, rec.Artifact, rec.ArtifactSize, rec.ABI, rec.Revision, rec.Ended, 0, cost, rec.Ref()}
	if !rec.Started.IsZero() {
		a.Took = max(0, rec.Ended.Sub(rec.Started))
	}
	o.mu.Lock()
	o.heads.put(h, a, 1)
	o.mu.Unlock()
	return a, nil
}

func (o *odb) record(h plumbing.Hash, parse func([]byte) (*Record, error)) (*Record, error) {
	b, err := o.get(plumbing.BlobObject, h)
	if err != nil {
		return nil, err
	}
	if len(b) > maxRecord {
		return nil, fmt.Errorf("it has %d bytes: %d is the most a record may have", len(b), maxRecord)
	}
	return parse(b)
}

// at reads the head of the record at a path; false when there is none.
func (s *Snapshot) at(path string, t quarry.Target) (Available, bool, error) {
	h, err := s.blob(path)
	if err != nil || h.IsZero() {
		return Available{}, false, err
	}
	a, err := s.odb.head(h)
	if err == nil {
		err = misplaced(t, a.Package, a.Version, a.Arch)
	}
	if err != nil {
		return Available{}, false, s.bad(path, err)
	}
	return a, true, nil
}

func misplaced(t quarry.Target, pkg, version, arch string) error {
	if pkg != t.Package || version != t.Version || arch != t.Arch {
		return fmt.Errorf("it says that it is of %s %s %s", pkg, version, arch)
	}
	return nil
}

func (s *Snapshot) bad(path string, err error) error {
	return fmt.Errorf("%s in channel %s at commit %.12s cannot be read: %w", path, s.channel, s.commit, err)
}

func (s *Snapshot) target(pkg, version, arch string) quarry.Target {
	return quarry.Target{Channel: s.channel, Package: pkg, Version: version, Arch: arch}
}

// Lookup says what a planner needs of the newest record of a target, success or
// failure: the one of the higher build number. false, without an error, says
// that there is none.
func (s *Snapshot) Lookup(pkg, version, arch string) (quarry.RecordRef, bool, error) {
	if err := checkPlace(pkg, version, arch); err != nil {
		return quarry.RecordRef{}, false, err
	}
	t := s.target(pkg, version, arch)
	good, ok, err := s.at(RecordPath(t), t)
	if err != nil {
		return quarry.RecordRef{}, false, err
	}
	bad, failed, err := s.at(FailurePath(t), t)
	if err != nil {
		return quarry.RecordRef{}, false, err
	}
	if failed && (!ok || bad.Ref.Build > good.Ref.Build) {
		return bad.Ref, true, nil
	}
	return good.Ref, ok, nil
}

// Available says whether a version has a success for an architecture, or for
// noarch, which serves all. A later failure of the same version takes nothing
// away: what was built can still be installed.
func (s *Snapshot) Available(pkg, version, arch string) (Available, bool, error) {
	if err := checkPlace(pkg, version, arch); err != nil {
		return Available{}, false, err
	}
	t := s.target(pkg, version, arch)
	a, ok, err := s.at(RecordPath(t), t)
	if !ok && err == nil && arch != quarry.Noarch {
		t.Arch = quarry.Noarch
		a, ok, err = s.at(RecordPath(t), t)
	}
	return a, ok, err
}

// Versions lists the versions of a package that have a success for an
// architecture or for noarch, the oldest first; for arch "" those that have one
// for any. None is an empty list and no error.
func (s *Snapshot) Versions(pkg, arch string) ([]string, error) {
	if err := quarry.CheckName(pkg); err != nil {
		return nil, err
	}
	dirs, err := s.list(packagesDir + "/" + Spread(pkg))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, d := range dirs {
		if !d.dir || quarry.CheckVersion(d.name) != nil {
			continue
		}
		archs, err := s.Archs(pkg, d.name)
		if err != nil {
			return nil, err
		}
		if len(archs) > 0 && (arch == "" || slices.Contains(archs, arch) || slices.Contains(archs, quarry.Noarch)) {
			out = append(out, d.name)
		}
	}
	sortVersions(out)
	return out, nil
}

func sortVersions(vs []string) {
	slices.Sort(vs) // so that those of the same age are in one order too
	slices.SortStableFunc(vs, quarry.CompareVersions)
}

// Archs lists the architectures that a version has a success for, sorted.
func (s *Snapshot) Archs(pkg, version string) ([]string, error) {
	if err := checkPlace(pkg, version, quarry.Noarch); err != nil {
		return nil, err
	}
	entries, err := s.list(packagesDir + "/" + Spread(pkg) + "/" + version)
	if err != nil {
		return nil, err
	}
	return archsOf(entries), nil
}

func archsOf(t tree) []string {
	var out []string
	for _, e := range t {
		if arch, ok := archOf(e.name); ok && !e.dir {
			out = append(out, arch)
		}
	}
	return out
}

// list is a folder of the snapshot; empty when there is none.
func (s *Snapshot) list(path string) (tree, error) {
	var t, own tree
	h, err := s.odb.lookup(s.root, path, true)
	if err == nil && !h.IsZero() {
		t, err = s.odb.tree(h)
	}
	if err != nil || s.submission == nil {
		return t, err
	}
	h, err = s.odb.lookup(s.stage, path, true)
	if err == nil && !h.IsZero() {
		own, err = s.odb.tree(h)
	}
	return merged(own, t), err
}

// Get reads the record of a target's success. The architecture is taken as it
// is: for a package that is built for noarch, ask for noarch.
func (s *Snapshot) Get(pkg, version, arch string) (*Record, error) {
	return s.read(pkg, version, arch, RecordPath)
}

// Failure reads the record of a target's failure, which there is when the
// latest build of the target failed.
func (s *Snapshot) Failure(pkg, version, arch string) (*Record, error) {
	return s.read(pkg, version, arch, FailurePath)
}

func (s *Snapshot) read(pkg, version, arch string, path func(quarry.Target) string) (*Record, error) {
	if err := checkPlace(pkg, version, arch); err != nil {
		return nil, err
	}
	t := s.target(pkg, version, arch)
	h, err := s.blob(path(t))
	if err != nil {
		return nil, err
	}
	if h.IsZero() {
		return nil, fmt.Errorf("%s in channel %s: %w", t, s.channel, ErrNotFound)
	}
	return s.readAt(h, path(t), t)
}

func (s *Snapshot) readAt(h plumbing.Hash, path string, t quarry.Target) (*Record, error) {
	rec, err := s.odb.record(h, Parse)
	if err == nil {
		err = misplaced(t, rec.Package, rec.Version, rec.Arch)
	}
	if err != nil {
		return nil, s.bad(path, err)
	}
	return rec, nil
}

// Latest reads the record of the newest version, as [quarry.CompareVersions]
// has it, that has a success for an architecture, or else for noarch.
func (s *Snapshot) Latest(pkg, arch string) (*Record, error) {
	if err := checkPlace(pkg, "0", arch); err != nil {
		return nil, err
	}
	vs, err := s.Versions(pkg, arch)
	if err != nil {
		return nil, err
	}
	if len(vs) == 0 {
		return nil, fmt.Errorf("%s for %s in channel %s: %w", pkg, arch, s.channel, ErrNotFound)
	}
	a, ok, err := s.Available(pkg, vs[len(vs)-1], arch)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("%s for %s in channel %s: %w", pkg, arch, s.channel, ErrNotFound)
	}
	return s.Get(pkg, a.Version, a.Arch)
}

// Files reads the list of files that a target installs, sorted by path.
func (s *Snapshot) Files(pkg, version, arch string) ([]quarry.File, error) {
	if err := checkPlace(pkg, version, arch); err != nil {
		return nil, err
	}
	t := s.target(pkg, version, arch)
	path := FilesPath(t)
	h, err := s.blob(path)
	if err != nil {
		return nil, err
	}
	if h.IsZero() {
		return nil, fmt.Errorf("files of %s in channel %s: %w", t, s.channel, ErrNotFound)
	}
	b, err := s.odb.get(plumbing.BlobObject, h)
	if err != nil {
		return nil, err
	}
	return s.filesIn(b, path, t)
}

func (s *Snapshot) filesIn(b []byte, path string, t quarry.Target) ([]quarry.File, error) {
	l, files, err := parseFiles(b)
	if err == nil {
		err = misplaced(t, l.Package, l.Version, l.Arch)
	}
	if err != nil {
		return nil, s.bad(path, err)
	}
	return files, nil
}
