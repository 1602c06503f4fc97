package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/queue"
	"github.com/spf13/pflag"
)

// Why explains builds.
type Why interface {
	// Why explains a build that has ended, from its record. One that has not ended,
	// or whose record is not there, is an error.
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
// a channel: that of the same version or else of the newest older one. The
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

// Summary says in one line what there is to compare with and what has changed.
func (s *Since) Summary(version string, now time.Time) string {
	what := fmt.Sprintf("build %d", s.Build)
	if s.Version != version {
		what += " of " + s.Version
	}
	if !s.Ended.IsZero() {
		what += ", " + human.Ago(s.Ended, now)
	}
	switch {
	case s.Changed():
		return "changed since the last success (" + what + ")"
	case s.Note != "":
		return "the last success (" + what + ") cannot be compared: " + s.Note
	}
	return "nothing has changed since the last success (" + what + "): it may be flaky, or depend on time"
}

// Lines lists what has changed, one line each. The differences of files are
// among them when diffs is true, further in.
func (s *Since) Lines(diffs bool) []string {
	var out []string
	for _, f := range s.Recipe {
		line := f.Path + ": " + f.What
		if add, del := f.count(); !diffs && add+del > 0 {
			line += fmt.Sprintf(" (+%d -%d)", add, del)
		}
		out = append(out, line)
		if diffs {
			for _, d := range f.Diff {
				out = append(out, "    "+d)
			}
		}
	}
	out = append(out, s.Dependencies...)
	for _, line := range append([]string{s.Base, s.Instance}, s.Builder...) {
		if line != "" {
			out = append(out, line)
		}
	}
	if s.Note != "" && s.Changed() {
		out = append(out, "not compared: "+s.Note)
	}
	return out
}

// FileDiff is a file of the package's repository that has changed.
type FileDiff struct {
	Path string `json:"path"`
	What string `json:"what"` // added, removed or changed; with sizes and digests for sources
	// Diff is a unified diff, without the lines that name the files; empty for
	// sources and for what is not text.
	Diff []string `json:"diff,omitempty"`
}

func (f FileDiff) count() (added, removed int) {
	for _, line := range f.Diff {
		switch {
		case strings.HasPrefix(line, "+"):
			added++
		case strings.HasPrefix(line, "-"):
			removed++
		}
	}
	return added, removed
}

// WriteFailure writes what a failure's log says: the class and the line, the
// excerpt with the error marked, and what to do. lines is how many lines of the
// excerpt to show around the error; 0: all.
func WriteFailure(w io.Writer, f *quarry.Failure, lines int, color bool) {
	if f.Class == "" {
		return
	}
	head := human.Paint(f.Class, human.Bold, color) + " in " + human.Safe(f.Step, false)
	if f.Line > 0 {
		head += fmt.Sprintf(", line %d of the log", f.Line)
	}
	if len(f.Excerpt) > 0 {
		head += ":"
	}
	fmt.Fprintln(w, head)
	at := slices.IndexFunc(f.Excerpt, func(line string) bool { return f.Error != "" && strings.TrimLeft(line, " \t") == f.Error })
	for i, line := range f.Excerpt {
		if lines > 0 && at >= 0 && (i < at-1 || i > at+lines) {
			continue
		}
		if i == at {
			fmt.Fprintln(w, "  > "+human.Paint(human.Safe(line, false), human.Red, color))
		} else {
			fmt.Fprintln(w, strings.TrimRight("    "+human.Safe(line, false), " "))
		}
	}
	if f.Hint != "" {
		fmt.Fprintln(w, "What to do: "+human.Safe(f.Hint, false))
	}
}

// writeReport writes all that a report says but the verdict. Where the log has
// just gone by, brief leaves out what stands there.
func writeReport(w io.Writer, r *Report, brief, color bool) {
	if r.Failure == nil {
		return
	}
	around := 0
	if brief {
		around = 3
	}
	WriteFailure(w, r.Failure, around, color)
	switch s := r.Since; {
	case s == nil:
		fmt.Fprintf(w, "There is no success of %s for %s on %s to compare with.\n", r.Build.Package, r.Build.Arch, r.Build.Channel)
	default:
		text := human.Safe(s.Summary(r.Build.Version, time.Now()), false)
		lines := s.Lines(!brief)
		if !s.Changed() {
			lines = nil
		}
		end := "."
		if len(lines) > 0 {
			end = ":"
		}
		fmt.Fprintln(w, strings.ToUpper(text[:1])+text[1:]+end)
		for _, line := range lines {
			paint := human.Plain
			switch line := strings.TrimPrefix(line, "    "); {
			case strings.HasPrefix(line, "+"):
				paint = human.Green
			case strings.HasPrefix(line, "-"):
				paint = human.Red
			case strings.HasPrefix(line, "@@"):
				paint = human.Cyan
			}
			fmt.Fprintln(w, "  "+human.Paint(human.Safe(line, false), paint, color))
		}
	}
	if r.Reproduce != "" {
		fmt.Fprintln(w, "To see it again:\n  "+human.Safe(r.Reproduce, false))
	}
}

// explain writes in a few lines why a build has failed, if it has and that is known.
func (f *Farm) explain(ctx context.Context, c *Call, b quarry.Build) {
	if f.Why == nil || b.State != quarry.Failed {
		return
	}
	r, err := f.Why.Why(ctx, b)
	if err != nil {
		return // the verdict says what is known
	}
	writeReport(c.Out, r, true, c.Term.Color)
	fmt.Fprintf(c.Out, "why %d says more.\n", b.Number)
}

func (f *Farm) whyVerb() *Verb {
	return &Verb{Name: "why", Looks: true, Args: "BUILD|NAME-VERSION", MinArgs: 1, MaxArgs: 1, Short: "Explain why a build failed",
		Long: "Says what kind of trouble it was, shows the lines of the log around the first\n" +
			"error, says what to do, lists what has changed since the package was last built\n" +
			"with success (recipe, dependencies, base, builder), and gives a command that\n" +
			"shows the failure again. Of a release, its newest build is explained: one that\n" +
			"failed, if there is one.",
		Example: "why 17\nwhy zlib-1.3.1\nwhy zlib-1.3.1 --arch aarch64 --json",
		Flags: func(fs *pflag.FlagSet) {
			fs.String("arch", "", "of a release: only for this arch")
			fs.String("channel", "", "of a release: only on this channel")
		},
		Run: f.why}
}

func (f *Farm) why(ctx context.Context, c *Call) error {
	if f.Why == nil {
		return notFound(errors.New("this farm explains no builds"))
	}
	b, err := f.meant(ctx, c)
	if err != nil {
		return err
	}
	if !b.State.Ended() {
		return notFound(fmt.Errorf("build %d has not ended, it is %s: follow it with log -f %d", b.Number, because(b, false), b.Number))
	}
	r, err := f.Why.Why(ctx, b)
	if err != nil {
		return err
	}
	if c.JSON() {
		return c.emit(r)
	}
	fmt.Fprintln(c.Out, Verdict(b, c.Term.Color))
	writeReport(c.Out, r, false, c.Term.Color)
	if r.Failure == nil && b.State != quarry.Succeeded && len(r.Log) > 0 {
		fmt.Fprintln(c.Out, "The end of its log:")
		for _, line := range r.Log[max(0, len(r.Log)-20):] {
			fmt.Fprintln(c.Out, strings.TrimRight("    "+human.Safe(line, false), " "))
		}
	}
	if hint := f.ShellHint(b.Number); hint != "" {
		fmt.Fprintln(c.Out, hint)
	}
	return nil
}

// meant gives the build that the call names, by number or as the newest of a
// release; one that failed goes before others.
func (f *Farm) meant(ctx context.Context, c *Call) (quarry.Build, error) {
	word, arch, channel := c.Args[0], c.string("arch"), c.string("channel")
	if _, err := strconv.ParseInt(strings.TrimPrefix(word, "#"), 10, 64); err == nil {
		if arch != "" || channel != "" {
			return quarry.Build{}, usage("why: --arch and --channel go with a release, and %s is one build", word)
		}
		b, err := f.build(ctx, word)
		if err != nil {
			err = notFound(fmt.Errorf("%w; the records know it by its release (why NAME-VERSION)", err))
		}
		return b, err
	}
	readings := f.known(word)
	if len(readings) == 0 {
		return quarry.Build{}, usage("release %.80q has not the form NAME-VERSION: write it as its branch is named, or give a build's number", word)
	}
	var found []quarry.Build
	for _, nv := range readings {
		for _, b := range f.Queue.List(queue.Filter{Package: nv[0], Version: nv[1], States: ends}) {
			if (arch == "" || b.Arch == arch) && (channel == "" || b.Channel == channel) && b.Record != "" {
				found = append(found, b)
			}
		}
		for _, t := range f.targets(nv[0], nv[1], arch, channel) {
			b, ok, err := f.Why.Last(ctx, t)
			if err != nil {
				return b, err
			}
			if ok && !slices.ContainsFunc(found, func(o quarry.Build) bool { return o.Number >= b.Number && o.Target() == t }) {
				found = append(found, b)
			}
		}
	}
	if len(found) == 0 {
		return quarry.Build{}, notFound(fmt.Errorf("no build of %.80q has ended%s: status %.80s shows those under way", word, where(arch, channel), word))
	}
	// Only the newest of each target counts: what it has failed of before is over.
	newest := map[quarry.Target]quarry.Build{}
	for _, b := range found {
		if b.Number > newest[b.Target()].Number {
			newest[b.Target()] = b
		}
	}
	var best quarry.Build
	for _, b := range newest {
		bad, worse := b.State == quarry.Failed, best.State == quarry.Failed
		if best.Number == 0 || bad && !worse || bad == worse && b.Number > best.Number {
			best = b
		}
	}
	return best, nil
}

func where(arch, channel string) string {
	s := ""
	if arch != "" {
		s += " for " + arch
	}
	if channel != "" {
		s += " on " + channel
	}
	return s
}

// targets are the places where a release may have a record.
func (f *Farm) targets(pkg, version, arch, channel string) (list []quarry.Target) {
	for _, ch := range f.Channels {
		if channel != "" && ch.Name != channel {
			continue
		}
		for _, a := range append(slices.Clone(ch.Archs), quarry.Noarch) {
			if arch == "" || a == arch {
				list = append(list, quarry.Target{Channel: ch.Name, Package: pkg, Version: version, Arch: a})
			}
		}
	}
	return list
}
