package control

import (
	"context"
	"time"

	"github.com/Morphux/quarry"
)

// Why explains builds.
type Why interface {
	// Why explains a build that has ended, from its record. One without a record is
	// an error that wraps [ErrUnexplained].
	Why(ctx context.Context, b quarry.Build) (*Report, error)
	// Last gives the newest build that a target has a record of; false when it
	// has none. The queue may have forgotten it.
	Last(ctx context.Context, t quarry.Target) (quarry.Build, bool, error)
}

// Report is a build explained: what happened, what is different from when the
// package was last built with success, and how to see it again. Text in it is
// safe to show, and bounded.
type Report struct {
	Build     quarry.Build    `json:"build"`
	Failure   *quarry.Failure `json:"failure,omitempty"`   // nil: it did not fail
	Log       []string        `json:"log,omitempty"`       // the last lines, 200 at most
	Since     *Since          `json:"since,omitempty"`     // nil: the package has no success to compare with
	Reproduce string          `json:"reproduce,omitempty"` // a command that shows the failure again
}

// Since is what has changed since the last success of a package on an arch and
// a channel: that of the same version or else of the newest other one. The
// lists are empty where nothing has.
type Since struct {
	Build   int64     `json:"build"`
	Version string    `json:"version"`
	Commit  string    `json:"commit"`           // source that was built
	Record  string    `json:"record,omitempty"` // results commit that the record is read from
	Ended   time.Time `json:"ended"`

	Recipe       []FileDiff `json:"recipe"`
	Dependencies []string   `json:"dependencies"`       // one line each, e.g. "zlib 1.3 is now 1.3.1"
	Base         string     `json:"base,omitempty"`     // one line, "" when it is the same
	Instance     string     `json:"instance,omitempty"` // likewise
	Builder      []string   `json:"builder"`            // one line each: the machine, its kernel, limits, Quarry itself
	// Note says why something could not be compared, e.g. as the source is gone.
	Note string `json:"note,omitempty"`
}

// Changed reports whether anything is different.
func (s *Since) Changed() bool {
	return len(s.Recipe)+len(s.Dependencies)+len(s.Builder) > 0 || s.Base != "" || s.Instance != ""
}

// FileDiff is a file of the package's repository that has changed.
type FileDiff struct {
	Path string `json:"path"`
	What string `json:"what"` // added, removed or changed; with sizes and digests for sources
	// Diff is a unified diff, without the lines that name the files; "" for sources
	// and for what is not text.
	Diff []string `json:"diff,omitempty"`
}
