package notify

import (
	"strconv"
	"strings"
	"time"

	"github.com/Morphux/quarry"
)

// Build is a build that has ended with a record, as the record has it.
type Build struct {
	quarry.Target
	Number   int64           `json:"number"`
	Status   quarry.State    `json:"status"` // succeeded or failed
	Source   string          `json:"source"` // commit of the package that was built
	Nonce    string          `json:"nonce,omitempty"`
	Pushed   time.Time       `json:"pushed,omitzero"`
	Created  time.Time       `json:"created,omitzero"` // when the farm began to want it
	Packager quarry.Packager `json:"packager"`
	Record   string          `json:"record"` // commit of the results
}

// Standing is what was known of a version of the package on the arch before a
// build ended: its newest record.
type Standing struct {
	Status quarry.State
	Source string
	Pushed time.Time
	User   string // who pushed it
}

// History is what a decision looks back at. All of it is of the build's package,
// arch and channel.
type History struct {
	// Same is what stood of the build's own version; nil: nothing did.
	Same *Standing
	// Last is what stood of that of the other versions which was pushed last.
	Last *Standing
	// Told are the people who know of a failure and not yet of its end.
	Told []Told
}

// Told says that somebody was written to about a failure.
type Told struct {
	User    string    `json:"user"`
	Version string    `json:"version"`
	Pushed  time.Time `json:"pushed,omitzero"`
	Build   int64     `json:"build"`
	Message string    `json:"message"` // ID of the letter
	Subject string    `json:"subject"`
	At      time.Time `json:"at"`
}

// Kind is what somebody is told.
type Kind string

// What people are told of a build. Nothing is the most frequent.
const (
	Nothing Kind = ""
	Fails   Kind = "fails"  // a release starts failing
	Breaks  Kind = "breaks" // it fails because of another release
	Fixed   Kind = "fixed"
	Mass    Kind = "mass" // it is of a mass rebuild, of which its admin gets a report
)

// Decision is what is to be told of a build.
type Decision struct {
	Kind Kind
	// Cause is what builds share that are told of in one letter to each person.
	Cause Cause
	// Why says in a few words why there is nothing to be told.
	Why string
	// Users are those who are told that it is fixed.
	Users []string
}

// CauseKind is what set builds off.
type CauseKind string

// What sets builds off.
const (
	ByPush    CauseKind = "push"    // of the release itself, or a rebuild of it that somebody asked for
	ByChange  CauseKind = "change"  // of something that the release is built against
	ByMass    CauseKind = "mass"    // a mass rebuild
	ByBacklog CauseKind = "backlog" // an arch or a channel is new, or records were lost
)

// Cause is what set builds off; equal causes are the same.
type Cause struct {
	Kind    CauseKind `json:"kind"`
	Channel string    `json:"channel"`
	Package string    `json:"package,omitempty"` // of a push
	Version string    `json:"version,omitempty"`
	Source  string    `json:"source,omitempty"`
	Arch    string    `json:"arch,omitempty"`  // of a backlog
	Build   int64     `json:"build,omitempty"` // of a change: the build that it all came from; 0: not known
	ID      string    `json:"id,omitempty"`    // of a mass rebuild
}

func (c Cause) key() string {
	return strings.Join([]string{string(c.Kind), c.Channel, c.Package, c.Version, c.Source, c.Arch, strconv.FormatInt(c.Build, 10), c.ID}, " ")
}

// The beginnings of nonces, see doc/results.md.
const (
	changeNonce = "abi-"
	massNonce   = "mass-"
)

// backlog is how long before the farm wanted a build its release must have been
// pushed for the push not to be the cause; the queue has the same.
const backlog = 24 * time.Hour

// CauseOf says what set a build off.
func CauseOf(b Build) Cause {
	if id, ok := strings.CutPrefix(b.Nonce, massNonce); ok {
		return Cause{Kind: ByMass, ID: id} // of all channels
	}
	if change, ok := strings.CutPrefix(b.Nonce, changeNonce); ok {
		first, _, _ := strings.Cut(change, "-")
		number, _ := strconv.ParseInt(first, 10, 64)
		return Cause{Kind: ByChange, Channel: b.Channel, Build: number}
	}
	if b.Nonce == "" && !b.Pushed.IsZero() && b.Created.Sub(b.Pushed) > backlog {
		return Cause{Kind: ByBacklog, Channel: b.Channel, Arch: b.Arch}
	}
	return Cause{Kind: ByPush, Channel: b.Channel, Package: b.Package, Version: b.Version, Source: b.Source}
}

// Decide says what is to be told of a build, and to whom. It looks at nothing but
// its arguments.
func Decide(b Build, h History) Decision {
	d := Decision{Cause: CauseOf(b)}
	if b.Status == quarry.Succeeded {
		for _, t := range h.Told {
			// A rebuild of an older version that never failed mends nothing.
			if t.Version == b.Version || b.Pushed.After(t.Pushed) {
				d.Kind, d.Users = Fixed, append(d.Users, t.User)
			}
		}
		if d.Kind == Nothing {
			d.Why = "nobody waits to hear of a success"
		}
		return d
	}
	who := b.Packager.User
	switch same, last := h.Same, h.Last; {
	case b.Status != quarry.Failed:
		d.Why = "it has no verdict"
	case same != nil && same.Status == quarry.Failed && same.Source == b.Source:
		d.Why = "the same commit was failing already"
	case same != nil && same.Status == quarry.Failed && same.User == who:
		d.Why = "the version was failing already, by the same person"
	case d.Cause.Kind == ByMass:
		d.Kind = Mass
	case same == nil && last != nil && last.Status == quarry.Failed && last.User == who:
		d.Why = "the release before it failed already, by the same person"
	case same == nil && knows(h.Told, who):
		d.Why = "the person knows of a failure of the package that is not over"
	case d.Cause.Kind == ByChange:
		d.Kind = Breaks
	default:
		d.Kind = Fails
	}
	return d
}

func knows(told []Told, user string) bool {
	for _, t := range told {
		if t.User == user {
			return true
		}
	}
	return false
}
