package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/human"
)

// Kept is the workspace of a failed build that is kept for shells.
type Kept struct {
	Build int64 `json:"build"`
	quarry.Target
	Step    string    `json:"step"`              // that failed
	Message string    `json:"message"`           // how it failed, one line
	Command string    `json:"command,omitempty"` // that failed, as one would type it; the workspace's own word again runs it
	Dir     string    `json:"dir"`               // where the step ran, and shells begin
	Open    string    `json:"open"`              // what a person types to get a shell
	Ended   time.Time `json:"ended"`             // when the build did
	// Until is how long the workspace stays if nobody opens a shell in it any more;
	// zero while somebody has one.
	Until  time.Time     `json:"until,omitzero"`
	Keep   time.Duration `json:"keep"`             // how long it stays after the last shell
	Shells int           `json:"shells,omitempty"` // that are open
}

// ShellCall is one use of a shell.
type ShellCall struct {
	Who quarry.Identity
	// Args is a command with its arguments, one word a line for /bin/sh; none: a
	// shell to type into.
	Args []string
	// Term is the caller's terminal. With TTY there is a terminal in the workspace
	// too, to which Out's bytes are those of a terminal, and Err gets nothing.
	Term     Terminal
	In       io.Reader // nil: there is no input
	Out, Err io.Writer
}

// Shells keeps the workspaces of failed builds. Its methods may be used from
// several goroutines.
type Shells interface {
	// Kept lists the workspaces that are kept, that of the oldest build first.
	Kept() []Kept
	// Gone says why none is kept of a failed build; "" when it is not known.
	Gone(build int64) string
	// Open runs a shell to its end and gives its exit status, 128+n when signal n
	// ended it. An error says why there was none, or why it ended before its time.
	Open(ctx context.Context, build int64, call ShellCall) (status int, err error)
}

// Kept tells until when the workspace of a failed build is kept for shells, and
// ok whether it is. While somebody has a shell in it that is not known, and
// until is zero.
func (f *Farm) Kept(build int64) (until time.Time, ok bool) {
	k, ok := f.kept(build)
	return k.Until, ok
}

func (f *Farm) kept(build int64) (Kept, bool) {
	if f.Shells == nil {
		return Kept{}, false
	}
	for _, k := range f.Shells.Kept() {
		if k.Build == build {
			return k, true
		}
	}
	return Kept{}, false
}

// ShellHint says in one line how to get a shell where a build failed, and how
// long one can be had; "" when its workspace is not kept.
func (f *Farm) ShellHint(build int64) string {
	k, ok := f.kept(build)
	if !ok {
		return ""
	}
	return fmt.Sprintf("%s opens a shell in its workspace, which is kept %s", k.Open, k.left(time.Now()))
}

// left says how long a workspace is still kept.
func (k Kept) left(now time.Time) string {
	if k.Until.IsZero() {
		return "while a shell is open, and for " + human.Duration(k.Keep) + " after"
	}
	return "for " + human.Duration(max(0, k.Until.Sub(now)).Round(time.Second))
}

func (f *Farm) shellVerb() *Verb {
	return &Verb{Name: "shell", Args: "[BUILD [COMMAND...]]", MaxArgs: -1, Need: Push, Raw: true,
		Short: "Open a shell where a build failed",
		Long: "The workspace of a failed build is kept for a while, as it was when it failed: its\n" +
			"sources, what it has made of them, its dependencies and its environment, with the\n" +
			"build's limits and no network. The word again runs in there what failed. Without\n" +
			"BUILD: the workspaces that are kept. ssh needs -t for a shell to type into.\n\n" +
			"With COMMAND that is run instead, and its exit status is this verb's; an error of\n" +
			"the farm's own begins with \"quarry: \". One word is a line for /bin/sh, and so is\n" +
			"all of it over SSH; several are a command and its arguments.",
		Example: "shell\nshell 17\nshell 17 again\nshell 17 -- cat config.log\nshell 17 'tar -cz .' > sources.tar.gz",
		Run:     f.shell}
}

func (f *Farm) shell(ctx context.Context, c *Call) error {
	if len(c.Args) == 0 {
		return f.shells(c)
	}
	if c.JSON() {
		return usage("shell: --json goes without BUILD: a shell has no JSON form")
	}
	b, err := f.build(ctx, c.Args[0])
	if err != nil {
		return err
	}
	if err := f.forbidden(c, b.Target()); err != nil {
		return err
	}
	k, ok := f.kept(b.Number)
	if !ok {
		return notFound(f.notKept(b))
	}
	args := command(c.Args[1:])
	term := c.Term
	if len(args) == 0 {
		if err := k.greet(c); err != nil {
			return err
		}
	}
	status, err := f.Shells.Open(ctx, b.Number, ShellCall{Who: c.Who, Args: args, Term: term, In: c.In, Out: c.wire, Err: c.Err})
	switch {
	case err != nil:
		return err
	case status != 0:
		return &Error{Code: status, Err: errSaid}
	}
	return nil
}

// command is what comes after BUILD, without the -- that may stand before it.
func command(words []string) []string {
	if len(words) == 1 { // a door has passed on the line as it was typed
		if rest, ok := strings.CutPrefix(words[0], "--"); ok && (rest == "" || rest[0] == ' ') {
			words = []string{strings.TrimLeft(rest, " ")}
		}
	} else if len(words) > 1 && words[0] == "--" {
		words = words[1:]
	}
	if len(words) == 1 && words[0] == "" {
		return nil
	}
	return words
}

// notKept says why there is no workspace of a build to open.
func (f *Farm) notKept(b quarry.Build) error {
	why := ""
	if f.Shells != nil {
		why = f.Shells.Gone(b.Number)
	}
	switch {
	case why != "":
	case b.State != quarry.Failed && b.State.Ended():
		why = fmt.Sprintf("it is %s, and only those of failed builds are kept", b.State)
	case !b.State.Ended():
		why = fmt.Sprintf("it is %s, and is kept only if it fails: watch it with log -f %d", b.State, b.Number)
	case f.Shells == nil:
		why = "this farm keeps none (shell.keep)"
	default:
		why = "its time is over"
	}
	hint := ""
	if b.State == quarry.Failed {
		hint = fmt.Sprintf(": rebuild %d makes another", b.Number)
	}
	return fmt.Errorf("workspace of build %d is not kept: %s%s", b.Number, why, hint)
}

// greet says where somebody is who gets a shell.
func (k Kept) greet(c *Call) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", human.Paint(fmt.Sprintf("build %d: %s %s for %s on %s", k.Build, k.Package, k.Version, k.Arch, k.Channel), human.Bold, c.Term.Color))
	fmt.Fprintf(&b, "%s in %s: %s\n", human.Paint("failed", human.Red, c.Term.Color), k.Step, human.Safe(k.Message, false))
	if k.Command != "" {
		line, _, _ := strings.Cut(k.Command, "\n")
		fmt.Fprintf(&b, "again   runs what failed: %s\n", shorten(human.Safe(line, false), 120))
	}
	fmt.Fprintf(&b, "All is as it was then, with the build's limits and without network. It is kept for\n%s after the last shell. log %d shows what the build printed.\n", human.Duration(k.Keep), k.Build)
	if !c.Term.TTY {
		b.WriteString("This shell has no terminal and reads commands: ssh -t gives it one.\n")
	}
	_, err := io.WriteString(c.Err, b.String())
	return err
}

// shells lists what is kept.
func (f *Farm) shells(c *Call) error {
	kept := []Kept{} // never null
	if f.Shells != nil {
		kept = append(kept, f.Shells.Kept()...)
	}
	if c.JSON() {
		return c.emit(kept)
	}
	if len(kept) == 0 {
		_, err := fmt.Fprintln(c.Out, "no workspace of a failed build is kept")
		return err
	}
	now := time.Now()
	t := human.Table{Head: []string{"BUILD", "PACKAGE", "VERSION", "ARCH", "CHANNEL", "KEPT", "SHELLS", "WHY"}, Right: []int{0, 6}, Color: c.Term.Color, Width: c.Term.Width}
	for _, k := range kept {
		left := "while open"
		if !k.Until.IsZero() {
			left = human.Duration(max(0, k.Until.Sub(now)).Round(time.Second))
		}
		t.Row(k.Build, k.Package, k.Version, k.Arch, k.Channel, left, k.Shells, k.Message)
	}
	_, err := t.WriteTo(c.Out)
	return err
}

// errSaid ends a verb with an exit code when all has been said.
var errSaid = errors.New("the command ended with this status")

// Raw reports whether a call takes the terminal as it is: each key as it is
// typed, and what is written unchanged. argv begins with the verb's name.
func (t Table) Raw(argv []string) bool {
	v, words := t.Find(argv...)
	if v == nil || !v.Raw {
		return false
	}
	fs := v.NewFlags()
	return fs.Parse(words) == nil && len(fs.Args()) > 0
}

// lineEnds writes text to a terminal that does nothing to it.
type lineEnds struct{ w io.Writer }

func (l lineEnds) Write(p []byte) (int, error) {
	if _, err := l.w.Write(bytes.ReplaceAll(p, []byte("\n"), []byte("\r\n"))); err != nil {
		return 0, err
	}
	return len(p), nil
}
