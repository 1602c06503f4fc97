// Package events is the farm's log of what has happened: numbered events in
// order, one JSON object a line, in a few files that are only ever appended to.
//
// An event is shown when it is on the disk, and its number is never given to
// another, so that whoever notes the number of the last event that it has dealt
// with misses none: it asks for those since. [Log.Read] and [Log.Follow] give
// them; doc/events.md is the format.
package events

import (
	"encoding/json"
	"path"
	"strings"
	"time"

	"github.com/Morphux/quarry"
)

// Kinds of events. There may be others: pass over what you do not know.
const (
	// Builds, by the state that they have come to. Build is set, and says why.
	Waiting   = "build.waiting" // for dependencies
	Queued    = "build.queued"  // can begin, or was put back
	Started   = "build.started" // an attempt
	Step      = "build.step"    // the attempt has come to Build.Step
	Recording = "build.recording"
	Succeeded = "build.succeeded" // Build.Record is the commit in the results
	Failed    = "build.failed"    // the same; the recipe's fault
	Errored   = "build.errored"   // given up: the farm's fault
	Cancelled = "build.cancelled"
	Obsolete  = "build.obsolete"

	Push           = "push"            // a release was accepted: Package, Version, Channel, Commit, By; Group if it is to land with one
	GroupSubmitted = "group.submitted" // Group, Channel, ID, By
	GroupLanded    = "group.landed"    // Group, Channel, ID, By, Commit in the results
	GroupDropped   = "group.dropped"   // Group, Channel
	Promoted       = "promoted"        // records were taken into Channel from another, by By; Commit in the results
	RolledBack     = "rolledback"      // records of Channel were taken back, likewise
	MassBegun      = "mass.begun"      // ID, By, Reason
	MassEnded      = "mass.ended"      // ID; By who called it off
	Paused         = "pause"           // nothing is begun, for Reason; Channel and Arch where it is one environment; By where it is a person's
	Resumed        = "resume"          // the end of a pause; all else as at its beginning
	JobsLimited    = "jobs.limit"      // builds may take Slots of the machine's slots together, for Reason; By where somebody has set it
	Shell          = "shell"           // By opened a shell, or ran a command, where the build failed that ID numbers
	Trouble        = "trouble"         // of the farm: a damaged base, an instance that cannot be updated; Reason
	FarmStarted    = "farm.started"
	FarmStopped    = "farm.stopped"

	// Gap stands for events that are not kept any more: those before First. Its
	// number is First-1 (which makes it a number to go on from), and it is not in
	// the log.
	Gap = "gap"
)

// Event is one thing that has happened. Fields that do not apply are empty.
type Event struct {
	N    int64     `json:"n"`  // its number; rises
	At   time.Time `json:"at"` // by the farm's clock, which may be set back: N is the order
	Kind string    `json:"kind"`
	Text string    `json:"text"` // one line for people, of 400 bytes at most and fit for a terminal

	By      string `json:"by,omitempty"`      // who did it, e.g. alice
	Package string `json:"package,omitempty"` // what it is about, e.g. zlib
	Version string `json:"version,omitempty"`
	Arch    string `json:"arch,omitempty"`
	Cross   string `json:"cross,omitempty"` // arch of the machine, of an environment where it is another
	Channel string `json:"channel,omitempty"`
	Group   string `json:"group,omitempty"`
	ID      string `json:"id,omitempty"`     // of a submission or a mass rebuild; of a shell, its build's number
	Commit  string `json:"commit,omitempty"` // pushed, or made in the results
	Reason  string `json:"reason,omitempty"`
	Slots   int    `json:"slots,omitempty"` // that builds may take
	First   int64  `json:"first,omitempty"` // of a gap: the first event kept

	// Build is the build as it stood then, without what its recipe says of archs
	// and dependencies.
	Build *quarry.Build `json:"build,omitempty"`

	line []byte // as it is in the log, with the newline
}

// Line is the event as one line of JSON, with its newline. Do not change it.
func (e *Event) Line() []byte {
	if e.line != nil {
		return e.line
	}
	line, err := json.Marshal(e)
	if err != nil { // a time after the year 9999 is all that cannot be written
		line = []byte("{}")
	}
	return append(line, '\n')
}

// Ended reports whether it is the end of a build.
func (e *Event) Ended() bool {
	return e.Build != nil && e.Kind == "build."+string(e.Build.State) && e.Build.State.Ended()
}

// Match reports whether an event is of a kind and about a package, both patterns
// as of path.Match, e.g. build.* and lib*; "" matches all. Gaps match always: who
// filters has to know of them too.
func (e *Event) Match(kind, pkg string) bool {
	if e.Kind == Gap {
		return true
	}
	is := func(pattern, s string) bool {
		ok, _ := path.Match(pattern, s)
		return pattern == "" || ok
	}
	return is(kind, e.Kind) && is(pkg, e.Package)
}

// CheckPattern reports what is wrong with a pattern for Match.
func CheckPattern(pattern string) error {
	_, err := path.Match(pattern, "")
	return err
}

// OfBuild makes the event of a build that has come to a state; step says that it
// has only come to another step of it. channel is the one that needs no mention.
func OfBuild(b quarry.Build, step bool, channel string) Event {
	e := Event{
		Kind: "build." + string(b.State), Text: text(b, step, channel), Reason: b.Reason,
		By: b.Packager.User, Package: b.Package, Version: b.Version, Arch: b.Arch, Channel: b.Channel, Group: b.Group,
	}
	switch {
	case step:
		e.Kind = Step
	case b.State == quarry.Running:
		e.Kind = Started
	}
	cross := b.Traits[b.Arch].Cross
	b.Needs, b.Provides, b.Traits, b.Crossed, b.Repo = nil, nil, nil, nil, ""
	if cross != "" {
		b.Traits = map[string]quarry.Traits{b.Arch: {Cross: cross}}
	}
	if b.Archs == nil {
		b.Archs = []string{}
	}
	e.Build = &b
	return e
}

// maxText is how long a text may be: what fits a line of IRC beside who says it.
const maxText = 400

// oneLine makes words from outside fit for a text.
func oneLine(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || 0x80 <= r && r < 0xa0 || r == '\u2028' || r == '\u2029' || 0x202a <= r && r <= 0x202e || 0x2066 <= r && r <= 0x2069 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most-3], "") + "..."
	}
	return s
}
