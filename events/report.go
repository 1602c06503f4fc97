package events

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/human"
)

// Reporter turns what the farm's parts see into events. It knows what the log
// last said of each thing, so that it can be told the same again: by a queue that
// was restarted, or by the next look at all that is pushed. So nothing goes
// unsaid that happened between the writing of a journal and that of the log; it is
// said late, or (rarely) twice. Its methods do not block and may be called by
// several goroutines at once, for what concerns one thing in order.
type Reporter struct {
	log     *Log
	channel string
	since   time.Time // what was over before is the past, and not told

	mu     sync.Mutex // guards the following
	builds map[int64]stand
	pushes map[string]pushed // by package and version
	pauses map[place]Pause
	mass   map[string]bool // by ID: whether it is over
	groups map[string]Event
	limit  limited
}

// limited is what was last said of how many slots builds may take; the zero value is
// all that there are.
type limited struct {
	slots       int
	by, because string
}

// stand is what was last said of a build.
type stand struct {
	state   quarry.State
	attempt int
	step    string
}

type pushed struct {
	commit string
	at     time.Time
}

// place tells pauses apart: those of a person from others, and of one environment
// from those of all.
type place struct {
	env quarry.Environment
	by  string
}

// Pause is why nothing is begun.
type Pause struct {
	Environment *quarry.Environment // nil: everywhere
	By          string              // a person; "": trouble
	Reason      string
}

// Mass is a mass rebuild.
type Mass struct {
	ID, By, Reason string
	Made, Ended    time.Time
	Cancelled      string // who called it off
}

// Report opens the log in a folder and says that the farm has started. channel is
// the one that texts need not mention.
func Report(dir string, opts Options, channel, version string) (*Log, *Reporter, error) {
	r := &Reporter{
		channel: channel, builds: map[int64]stand{}, pushes: map[string]pushed{}, pauses: map[place]Pause{},
		mass: map[string]bool{}, groups: map[string]Event{},
	}
	log, err := Open(dir, opts, r.read)
	if err != nil {
		return nil, nil, err
	}
	r.log, r.since = log, log.Began()
	started := Event{Kind: FarmStarted, At: now(), Text: "quarry " + version + " has started"}
	if r.since.IsZero() {
		r.since = started.At
	}
	log.Append(started)
	return log, r, nil
}

func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }

// read learns what the log has said.
func (r *Reporter) read(e *Event) {
	switch e.Kind {
	case Push:
		r.pushes[e.Package+" "+e.Version] = pushed{e.Commit, e.At}
	case Paused:
		r.pauses[e.place()] = Pause{Reason: e.Reason}
	case Resumed:
		delete(r.pauses, e.place())
	case JobsLimited:
		r.limit = limited{e.Slots, e.By, e.Reason}
	case MassBegun:
		r.mass[e.ID] = false
	case MassEnded:
		r.mass[e.ID] = true
	case GroupSubmitted:
		r.groups[e.ID] = *e
	case GroupLanded:
		delete(r.groups, e.ID)
	case GroupDropped:
		for id, g := range r.groups {
			if g.Group == e.Group && g.Channel == e.Channel {
				delete(r.groups, id)
			}
		}
	}
	if b := e.Build; b != nil {
		r.builds[b.Number] = stand{b.State, b.Attempt, b.Step}
	}
}

// place is that of an event about a pause.
func (e *Event) place() place {
	return place{quarry.Environment{Channel: e.Channel, Arch: e.Arch, Cross: e.Cross}, e.By}
}

// Build says how a build stands now, if that has not been said.
func (r *Reporter) Build(b quarry.Build) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.build(b)
}

func (r *Reporter) build(b quarry.Build) {
	said, known := r.builds[b.Number]
	stands := stand{b.State, b.Attempt, b.Step}
	news := !known || said.state != b.State || b.State == quarry.Running && said.attempt != b.Attempt
	if news {
		e := OfBuild(b, false, r.channel)
		switch {
		case b.State.Ended():
			e.At = b.Ended
		case b.State == quarry.Running:
			e.At = b.Started
		}
		e.At = e.At.UTC().Truncate(time.Millisecond)
		r.log.Append(e)
		said.step = ""
	}
	if b.State == quarry.Running && b.Step != "" && b.Step != said.step {
		r.log.Append(OfBuild(b, true, r.channel))
	}
	if r.builds[b.Number] = stands; b.State.Ended() {
		delete(r.builds, b.Number) // it changes no more
	}
}

// Builds compares all that a queue knows, before it runs, with what the log said
// last, and says the rest. It is called once, before Build.
func (r *Reporter) Builds(list []quarry.Build) {
	r.mu.Lock()
	defer r.mu.Unlock()
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b quarry.Build) int {
		return cmp.Or(changed(a).Compare(changed(b)), cmp.Compare(a.Number, b.Number))
	})
	for _, b := range list {
		said, known := r.builds[b.Number]
		switch {
		case b.State.Ended() && (b.Ended.Before(r.since) || known && said.state == b.State):
			delete(r.builds, b.Number)
		default:
			r.build(b)
		}
	}
	for n, s := range r.builds {
		if s.state.Ended() {
			delete(r.builds, n)
		}
	}
}

// changed is when a build came to the state that it is in, as far as that is known.
func changed(b quarry.Build) time.Time {
	switch {
	case b.State.Ended():
		return b.Ended
	case b.State == quarry.Running, b.State == quarry.Recording:
		return b.Started
	}
	return b.Created
}

// Releases says which releases were pushed that it has not said yet.
func (r *Reporter) Releases(list []quarry.Release) {
	r.mu.Lock()
	defer r.mu.Unlock()
	since := r.since.Truncate(time.Second) // what is noted of a push has no more
	for i := range list {
		rel := &list[i]
		if rel.Pushed.Before(since) {
			continue
		}
		key := rel.Package + " " + rel.Version
		said, ok := r.pushes[key]
		if ok && (said.commit == rel.Commit && said.at.Equal(rel.Pushed) || rel.Pushed.Before(said.at)) {
			continue
		}
		r.pushes[key] = pushed{rel.Commit, rel.Pushed}
		who := cmp.Or(rel.Packager.User, rel.Packager.Name, "somebody")
		e := Event{
			Kind: Push, At: rel.Pushed.UTC(), By: rel.Packager.User, Package: rel.Package, Version: rel.Version,
			Channel: rel.Channel, Group: rel.Group, Commit: rel.Commit,
			Text: fmt.Sprintf("%s released %s %s on %s (commit %.12s)", who, rel.Package, rel.Version, rel.Channel, rel.Commit),
		}
		if rel.Group != "" {
			e.Text = fmt.Sprintf("%s pushed %s %s, to land on %s with group %s (commit %.12s)", who, rel.Package, rel.Version, rel.Channel, rel.Group, rel.Commit)
		}
		r.append(e)
	}
}

// append makes a text safe.
func (r *Reporter) append(e Event) {
	e.Text = oneLine(e.Text, maxText)
	r.log.Append(e)
}

// Pauses says what pauses the farm now, where that has changed.
func (r *Reporter) Pauses(list []Pause) {
	r.mu.Lock()
	defer r.mu.Unlock()
	is := map[place]bool{}
	for _, p := range list {
		is[p.place()] = true
	}
	for at, was := range r.pauses {
		if is[at] {
			continue
		}
		delete(r.pauses, at)
		e := at.event(Resumed, was.Reason)
		e.Text = "builds are begun again" + at.where()
		r.append(e)
	}
	for _, p := range list { // in their order
		at := p.place()
		if _, ok := r.pauses[at]; ok {
			continue
		}
		r.pauses[at] = p
		e := at.event(Paused, p.Reason)
		e.Text = "no builds are begun" + at.where()
		if p.Reason != "" {
			e.Text += ": " + p.Reason
		}
		if p.By != "" && p.Reason != "paused by "+p.By {
			e.Text += " (" + p.By + ")"
		}
		r.append(e)
	}
}

func (p Pause) place() place {
	at := place{by: p.By}
	if p.Environment != nil {
		at.env = *p.Environment
	}
	return at
}

func (p place) event(kind, reason string) Event {
	return Event{Kind: kind, By: p.by, Channel: p.env.Channel, Arch: p.env.Arch, Cross: p.env.Cross, Reason: reason}
}

func (p place) where() string {
	if p.env == (quarry.Environment{}) {
		return ""
	}
	return " for " + p.env.String()
}

// Mass says that a mass rebuild has begun or ended, if that has not been said.
func (r *Reporter) Mass(m Mass) {
	r.mu.Lock()
	defer r.mu.Unlock()
	over, known := r.mass[m.ID]
	ended := !m.Ended.IsZero()
	since := r.since.Truncate(time.Second)
	if !known && !m.Made.Before(since) {
		text := "mass rebuild " + m.ID + " has begun"
		if m.By != "" {
			text += ", by " + m.By
		}
		if m.Reason != "" {
			text += ": " + m.Reason
		}
		r.append(Event{Kind: MassBegun, At: m.Made.UTC(), ID: m.ID, By: m.By, Reason: m.Reason, Text: text})
	}
	if ended && !over && (known || !m.Ended.Before(since)) {
		text := "mass rebuild " + m.ID + " is done"
		if m.Cancelled != "" {
			text = "mass rebuild " + m.ID + " was called off by " + m.Cancelled
		}
		r.append(Event{Kind: MassEnded, At: m.Ended.UTC(), ID: m.ID, By: m.Cancelled, Reason: m.Reason, Text: text})
	}
	r.mass[m.ID] = ended
}

// Group says that a group was submitted, landed (with a commit in the results) or
// was dropped: kind.
func (r *Reporter) Group(kind string, s quarry.Submission, commit string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	text := map[string]string{
		GroupSubmitted: fmt.Sprintf("group %s was submitted to %s", s.Group, s.Channel),
		GroupLanded:    fmt.Sprintf("group %s has landed on %s", s.Group, s.Channel),
		GroupDropped:   fmt.Sprintf("group %s was taken back from %s", s.Group, s.Channel),
	}[kind]
	if n := len(s.Members); kind == GroupLanded && n > 0 {
		text += ": " + human.Count(n, "release") + " at once"
	}
	by := cmp.Or(s.By.User, s.By.Name)
	if by != "" && kind == GroupSubmitted {
		text += " by " + by
	}
	e := Event{Kind: kind, Group: s.Group, Channel: s.Channel, ID: s.ID, By: s.By.User, Commit: commit, Text: text}
	r.append(e)
	r.read(&e)
}

// Moved says that somebody has promoted to a channel, or rolled it back. It is said
// once; the results have it all.
func (r *Reporter) Moved(kind, channel, from, commit, by string, records int) {
	what := "1 record was"
	if records != 1 {
		what = fmt.Sprintf("%d records were", records)
	}
	text := fmt.Sprintf("%s promoted from %s to %s", what, from, channel)
	if kind == RolledBack {
		text = fmt.Sprintf("%s taken back on %s", what, channel)
	}
	if by != "" {
		text += " by " + by
	}
	r.append(Event{Kind: kind, Channel: channel, By: by, Commit: commit, Text: text})
}

// Shell says that somebody has opened a shell, or run a command, where a build
// failed.
func (r *Reporter) Shell(build int64, t quarry.Target, by string) {
	r.append(Event{Kind: Shell, ID: fmt.Sprint(build), By: by, Package: t.Package, Version: t.Version, Arch: t.Arch, Channel: t.Channel,
		Text: fmt.Sprintf("%s opened a shell where %s failed (build %d)", by, t, build)})
}

// OpenGroups are the submissions of which the log has told no end, as their events.
func (r *Reporter) OpenGroups() (list []Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.groups {
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b Event) int { return cmp.Compare(a.N, b.N) })
	return list
}

// Limit says how many of a machine's slots builds may take together, and why, if
// that is not what was said last. by is who has set it, if anybody has. Where they
// may take all and nobody has set it, that is no news but as the end of something
// else.
func (r *Reporter) Limit(slots, total int, by, because string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	is := limited{slots, by, because}
	if slots >= total && by == "" {
		is = limited{}
	}
	if is == r.limit {
		return
	}
	r.limit = is
	text := fmt.Sprintf("builds may take %d of %s: %s", slots, human.Count(total, "slot"), because)
	if is == (limited{}) {
		text = "builds may take all " + human.Count(total, "slot") + " again"
	}
	r.append(Event{Kind: JobsLimited, By: by, Slots: is.slots, Reason: is.because, Text: text})
}

// Trouble says that something of the farm is not well, e.g. an instance that
// cannot be updated. channel and arch are "" where it is not about one environment.
func (r *Reporter) Trouble(channel, arch, reason string) {
	e := Event{Kind: Trouble, Channel: channel, Arch: arch, Reason: oneLine(reason, 1000), Text: reason}
	if channel != "" {
		e.Text = channel + "/" + arch + ": " + reason
	}
	r.append(e)
}

// Stopped says that the farm is being stopped, and closes the log.
func (r *Reporter) Stopped() error {
	r.log.Append(Event{Kind: FarmStopped, Text: "quarry is stopped"})
	return r.log.Close()
}
