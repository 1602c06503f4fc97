package control

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/queue"
)

var colours = map[quarry.State]human.Colour{
	quarry.Waiting: human.Yellow, quarry.Queued: human.Cyan, quarry.Running: human.Blue, quarry.Recording: human.Blue,
	quarry.Succeeded: human.Green, quarry.Failed: human.Red, quarry.Errored: human.Red,
	quarry.Cancelled: human.Dim, quarry.Obsolete: human.Dim,
}

// Announce says in one line that a build is under way, for a pusher.
func Announce(b quarry.Build) string {
	s := fmt.Sprintf("build %d: %s %s for %s on %s, ", b.Number, b.Package, b.Version, b.Arch, b.Channel)
	if b.State == quarry.Running {
		return s + string(b.State)
	}
	return s + because(b, false)
}

// Verdict says in one line how a build stands or ended.
func Verdict(b quarry.Build, color bool) string {
	return fmt.Sprintf("build %d: %s %s %s ", b.Number, b.Package, b.Version, b.Arch) + because(b, color)
}

// because says how a build stands, and why. A reason that says the state itself
// ("waits for libfoo", "cancelled by alice") stands alone.
func because(b quarry.Build, color bool) string {
	reason, state := human.Safe(b.Reason, false), string(b.State)
	for state, word := range map[quarry.State]string{quarry.Waiting: "waits", quarry.Cancelled: "cancelled"} {
		if rest, ok := strings.CutPrefix(reason, word+" "); ok && b.State == state {
			return human.Paint(word, colours[state], color) + " " + rest
		}
	}
	s := human.Paint(state, colours[b.State], color)
	if b.State == quarry.Succeeded {
		s += " in " + human.Duration(b.Ended.Sub(b.Started))
	}
	if reason != "" {
		s += ": " + reason
	}
	return s
}

func pauseText(p queue.PauseStatus, color bool) string {
	where := "paused"
	if p.Environment != nil {
		where += " for " + p.Environment.String()
	}
	s := human.Paint(where, human.Yellow, color)
	if p.By != "" {
		s += " by " + human.Safe(p.By, false)
	}
	if p.Reason == "paused by "+p.By { // what the queue says for want of a reason
		return s
	}
	return s + ": " + human.Safe(p.Reason, false)
}

type statusJSON struct {
	Version string         `json:"version"`
	Started time.Time      `json:"started"`
	Queue   queue.Status   `json:"queue"`
	Live    []quarry.Build `json:"live"`
	Ended   []quarry.Build `json:"ended"`
	Cycles  []cycleJSON    `json:"cycles,omitempty"`
	Notify  []string       `json:"notify,omitempty"` // what keeps people and programs from being told
}

// cycleJSON is packages that need each other, so that none can be built first.
type cycleJSON struct {
	Channel string `json:"channel"`
	Text    string `json:"text"` // e.g. a 1.0 -> b 2.0 -> a 1.0 (x86_64)
	Size    int    `json:"size"` // releases times archs that need each other
}

// cycles lists those that got past the hooks: two pushes at once, or pushes while
// no daemon ran.
func (f *Farm) cycles() (list []cycleJSON) {
	for _, channel := range f.channelNames() {
		g, err := f.Queue.Graph(channel)
		if err != nil {
			continue // before the first plan, which status shows
		}
		for _, cycle := range g.Cycles() {
			list = append(list, cycleJSON{channel, cycleText(g, cycle), cycle.Size})
		}
	}
	return list
}

var ends = []quarry.State{quarry.Succeeded, quarry.Failed, quarry.Errored, quarry.Cancelled, quarry.Obsolete}

func (f *Farm) status(ctx context.Context, c *Call) error {
	limit := 10
	if n := c.int("limit"); n > 0 {
		limit = n
	}
	switch {
	case c.bool("blocked"):
		return f.blocked(ctx, c, limit)
	case c.string("channel") != "":
		return usage("status: --channel goes with --blocked")
	}
	if len(c.Args) == 1 {
		if _, err := strconv.ParseInt(strings.TrimPrefix(c.Args[0], "#"), 10, 64); err == nil {
			b, err := f.build(ctx, c.Args[0])
			if err != nil {
				return err
			}
			if c.JSON() {
				err = c.emit(b)
			} else if err = f.one(c, b); err == nil {
				f.explain(ctx, c, b)
			}
			if err != nil {
				return err
			}
			return verdict(b)
		}
		return f.ofPackage(c, c.Args[0], limit)
	}
	st := f.Queue.Status()
	live := f.Queue.List(queue.Filter{Live: true})
	ended := f.Queue.List(queue.Filter{States: ends, Limit: limit})
	if c.JSON() {
		if st.Envs == nil {
			st.Envs = []queue.EnvironmentStatus{} // a list, and never null
		}
		return c.emit(statusJSON{f.Version, f.Started, st, nonNil(live), nonNil(ended), f.cycles(), f.untold(c)})
	}
	now := time.Now()
	fmt.Fprintf(c.Out, "quarry %s, up %s: %d running of %d at once, %d queued, %d waiting\n", f.Version,
		human.Duration(now.Sub(f.Started)), st.Counts[quarry.Running]+st.Counts[quarry.Recording], st.Workers,
		st.Counts[quarry.Queued], st.Counts[quarry.Waiting])
	if st.Planned.IsZero() {
		fmt.Fprintln(c.Out, "planning: what is wanted is still being found, so there may be more to build than is shown")
	}
	slots, ok := f.JobsNow()
	if ok && slots.Bounded() {
		fmt.Fprintln(c.Out, slots.LimitText())
	}
	for i, b := range live {
		if has, ok := slots.OfBuild(b.Number); ok && has.Waiting {
			live[i].Step = has.Text() // none has begun
		}
	}
	for _, p := range st.Paused {
		fmt.Fprintln(c.Out, pauseText(p, c.Term.Color))
	}
	for _, p := range st.Problems {
		fmt.Fprintln(c.Out, human.Paint("problem", human.Red, c.Term.Color)+": "+human.Safe(p.Error(), false))
	}
	for _, p := range f.untold(c) {
		fmt.Fprintln(c.Out, human.Paint("problem", human.Red, c.Term.Color)+": "+human.Safe(p, false))
	}
	cycles := f.cycles()
	for i, cycle := range cycles {
		line := fmt.Sprintf("%s is in a cycle: %s, so that none can be built first: take out a dependency, or declare one as bootstrap", cycle.Channel, cycle.Text)
		if i == maxCycles {
			line = fmt.Sprintf("and %s", human.Count(len(cycles)-i, "more cycle"))
		}
		fmt.Fprintln(c.Out, human.Paint("problem", human.Red, c.Term.Color)+": "+human.Safe(line, false))
		if i == maxCycles {
			break
		}
	}
	if len(live) > 0 {
		fmt.Fprintln(c.Out, "\nUnder way")
		if err := table(c, live, now); err != nil {
			return err
		}
	}
	if len(ended) > 0 {
		fmt.Fprintln(c.Out, "\nEnded")
		return table(c, ended, now)
	}
	return nil
}

func nonNil(b []quarry.Build) []quarry.Build {
	if b == nil {
		return []quarry.Build{}
	}
	return b
}

func table(c *Call, builds []quarry.Build, now time.Time) error {
	t := human.Table{Head: []string{"BUILD", "PACKAGE", "VERSION", "ARCH", "CHANNEL", "STATE", "TOOK", "WHEN", "WHY"}, Color: c.Term.Color, Width: c.Term.Width}
	for _, b := range builds {
		took, when := "-", human.Ago(b.Created, now)
		end := now
		if b.State.Ended() {
			end, when = b.Ended, human.Ago(b.Ended, now)
		}
		// One that was put back has no try that counts, and took nothing.
		if b.Attempt > 0 && !b.Started.IsZero() {
			took = human.Duration(end.Sub(b.Started))
		}
		why := b.Reason
		switch {
		case b.State == quarry.Running:
			why = b.Step
		case why == "":
			why = b.Why // of a success: what it was built again for
		}
		t.Row(b.Number, b.Package, b.Version, b.Arch, b.Channel, human.Cell(string(b.State), colours[b.State]), took, when, why)
	}
	_, err := t.WriteTo(c.Out)
	return err
}

func shorten(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

func (f *Farm) ofPackage(c *Call, what string, limit int) error {
	var builds []quarry.Build
	var declined []quarry.Declined
	if quarry.CheckName(what) == nil {
		builds = f.Queue.List(queue.Filter{Package: what, Limit: limit})
		declined = f.Queue.Declined(what)
	}
	if len(builds) == 0 {
		for _, nv := range f.known(what) {
			builds = append(builds, f.Queue.List(queue.Filter{Package: nv[0], Version: nv[1], Limit: limit})...)
		}
	}
	if len(builds) == 0 && len(declined) == 0 {
		return notFound(fmt.Errorf("no build of %.80q is kept: the records say what was built before (quarry db show)", what))
	}
	if c.JSON() {
		for _, d := range declined {
			// No build, and has no number; in its form, so that the list stays one of builds.
			builds = append(builds, quarry.Build{
				Release: quarry.Release{Package: d.Package, Version: d.Version, Channel: d.Channel}, Arch: d.Arch, State: "declined", Reason: d.Reason,
			})
		}
		return c.emit(nonNil(builds))
	}
	for _, d := range declined {
		fmt.Fprintf(c.Out, "%s %s is not built for %s on %s: %s\n", d.Package, d.Version, d.Arch, d.Channel, human.Safe(d.Reason, false))
	}
	if len(builds) == 0 {
		return nil
	}
	return table(c, builds, time.Now())
}

// one shows a build in full.
func (f *Farm) one(c *Call, b quarry.Build) error {
	fmt.Fprintln(c.Out, Verdict(b, c.Term.Color))
	t := human.Table{Color: c.Term.Color}
	row := func(k, v string) {
		if v != "" {
			t.Row(human.Cell("  "+k, human.Dim), v)
		}
	}
	row("channel", b.Channel)
	row("commit", b.Commit)
	who := b.Packager.User
	if b.Packager.Name != "" {
		who = fmt.Sprintf("%s <%s>", b.Packager.Name, b.Packager.Email)
	}
	row("packager", who)
	row("push signed", b.Packager.Signed)
	if b.State == quarry.Running {
		row("step", b.Step)
		row("jobs", f.jobsOf(b.Number))
		if f.Queue.Known(b.Package) {
			row("expected", "to take "+human.Duration(f.Queue.ExpectedOf(b))+" in all")
		}
	}
	if b.Attempt > 0 {
		row("attempt", strconv.Itoa(b.Attempt))
	}
	if on := b.Environment().Cross; on != "" {
		row("cross built", "on "+on)
	}
	if b.Why != b.Reason {
		row("why", b.Why)
	}
	row("needs", strings.Join(b.Needs, ", "))
	row("without", strings.Join(b.Without, ", "))
	if g, err := f.Queue.Graph(b.Channel); err == nil && b.State == quarry.Waiting {
		if cycle, ok := g.CycleThrough(b.Package); ok {
			row("in a cycle", cycleText(g, cycle))
		}
	}
	when := func(k string, at time.Time) {
		if !at.IsZero() {
			row(k, at.UTC().Format(time.RFC3339)+" ("+human.Ago(at, time.Now())+")")
		}
	}
	when("created", b.Created)
	when("started", b.Started)
	when("ended", b.Ended)
	row("record", b.Record)
	if f.Verifier != nil && b.State == quarry.Succeeded {
		row("verified", f.Verifier.Reproduced(b))
	}
	row("key", b.Key)
	row("shell", f.ShellHint(b.Number))
	_, err := t.WriteTo(c.Out)
	return err
}

// safeWriter makes escape sequences visible on their way to a terminal. Bytes
// of a rune that a write cut in two wait for the next one.
type safeWriter struct {
	w    io.Writer
	rest []byte
}

func (s *safeWriter) Write(p []byte) (int, error) {
	buf := append(s.rest, p...)
	cut := len(buf)
	for i := 1; i <= 3 && i <= len(buf); i++ {
		if c := buf[len(buf)-i]; c >= 0xC0 { // a leading byte near the end: is its rune whole?
			need := 2
			if c >= 0xE0 {
				need++
			}
			if c >= 0xF0 {
				need++
			}
			if need > i {
				cut = len(buf) - i
			}
			break
		} else if c < 0x80 {
			break
		}
	}
	s.rest = append([]byte(nil), buf[cut:]...)
	// Progress bars end their lines with a bare CR; a terminal may have those.
	text := strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(string(buf[:cut]))
	if _, err := io.WriteString(s.w, human.Safe(text, true)); err != nil {
		return 0, err
	}
	return len(p), nil
}
