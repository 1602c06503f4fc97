package quarry

import "time"

// Submission is a group of releases that has been handed in: they are built
// against each other, and land on their channel together or not at all.
type Submission struct {
	Group   string    `json:"group" toml:"group"`
	Channel string    `json:"channel" toml:"channel"`
	ID      string    `json:"id" toml:"id"` // e.g. 20260314-3f9a0c12; another one each time the group is submitted
	By      Packager  `json:"by" toml:"by"`
	At      time.Time `json:"at" toml:"at"`
	Members []Member  `json:"members" toml:"members"`
}

// Member is a release of a submission.
type Member struct {
	Package string   `json:"package" toml:"package"`
	Version string   `json:"version" toml:"version"`
	Commit  string   `json:"commit" toml:"commit"`
	Archs   []string `json:"archs" toml:"archs"` // that it is built for
	// Newest is the newest version of the package that the channel had when the
	// group was submitted; "" for none.
	Newest string `json:"newest,omitempty" toml:"newest,omitempty"`
}

// Branch is the branch of the member, e.g. zlib-1.3.1.
func (m Member) Branch() string { return Branch(m.Package, m.Version) }

// Is reports whether a release is the member, at the commit that was submitted.
func (m Member) Is(r Release) bool {
	return m.Package == r.Package && m.Version == r.Version && m.Commit == r.Commit
}

// Has reports whether a release is a member, at the commit that was submitted.
func (s *Submission) Has(r Release) bool {
	if s.Channel != r.Channel || s.Group != r.Group {
		return false
	}
	for _, m := range s.Members {
		if m.Is(r) {
			return true
		}
	}
	return false
}
