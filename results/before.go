package results

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/Morphux/quarry"
)

// SnapshotAt is a channel as a commit of its branch, or of a submitted group's
// ref, has it. A commit that is not there is [ErrNotFound].
func (r *Repo) SnapshotAt(channel, commit string) (*Snapshot, error) {
	if err := quarry.CheckChannel(channel); err != nil {
		return nil, err
	}
	if !isHex(commit, 40) {
		return nil, fmt.Errorf("commit %.60q of the results is not 40 hex digits", commit)
	}
	s, err := r.odb.snapshot(channel, plumbing.NewHash(commit))
	if errors.Is(err, plumbing.ErrObjectNotFound) {
		err = fmt.Errorf("commit %s of the results: %w", commit, ErrNotFound)
	}
	return s, err
}

// Before is the channel as it was one commit earlier; empty before the first.
func (s *Snapshot) Before() (*Snapshot, error) {
	if s.commit.IsZero() {
		return s, nil
	}
	c, err := s.odb.commit(s.commit)
	if err != nil {
		return nil, err
	}
	return s.odb.snapshot(s.channel, c.parent)
}

// Newest reads, of each version of a package that has a record for an
// architecture, the newest one, success or failure, the oldest version first. A
// record that cannot be read is left out.
func (s *Snapshot) Newest(pkg, arch string) ([]*Record, error) {
	if err := checkPlace(pkg, "0", arch); err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	var versions []string
	for _, top := range []string{packagesDir, failuresDir} {
		entries, err := s.list(top + "/" + Spread(pkg))
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.dir && !seen[e.name] && quarry.CheckVersion(e.name) == nil {
				seen[e.name] = true
				versions = append(versions, e.name)
			}
		}
	}
	sortVersions(versions)
	var out []*Record
	for _, v := range versions {
		if rec, err := s.newest(pkg, v, arch); err == nil {
			out = append(out, rec)
		}
	}
	return out, nil
}

func (s *Snapshot) newest(pkg, version, arch string) (*Record, error) {
	good, err := s.Get(pkg, version, arch)
	bad, failed := s.Failure(pkg, version, arch)
	if failed == nil && (err != nil || bad.Build > good.Build) {
		return bad, nil
	}
	return good, err
}

// TargetOf finds what a build was of, by its number, among the last ten thousand
// commits of a channel; false when it is not there.
func (r *Repo) TargetOf(channel string, build int64) (t quarry.Target, at string, ok bool, err error) {
	s, err := r.Snapshot(channel)
	if err != nil {
		return t, "", false, err
	}
	want := strconv.FormatInt(build, 10)
	err = r.odb.walk(s.commit, func(h plumbing.Hash, c *commit) bool {
		words := trailers(c.message)
		if words[TrailerBuild] != want || words[TrailerPackage] == "" {
			return false
		}
		t = quarry.Target{Channel: channel, Package: words[TrailerPackage], Version: words[TrailerVersion], Arch: words[TrailerArch]}
		at, ok = h.String(), true
		return true
	})
	if ok && CheckTarget(t) != nil { // written by hand
		return quarry.Target{}, "", false, err
	}
	return t, at, ok, err
}
