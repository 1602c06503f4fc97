package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/bundle"
	"github.com/Morphux/quarry/events"
	"github.com/Morphux/quarry/graph"
	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/keys"
	"github.com/Morphux/quarry/queue"
	"github.com/Morphux/quarry/tokens"
	"github.com/spf13/pflag"
)

// Logs is what the verbs need of the store of build logs.
type Logs interface {
	// Open reads what there is of a build's log.
	Open(number int64) (io.ReadCloser, error)
	// Follow reads a build's log until the build has ended.
	Follow(ctx context.Context, number int64) (io.ReadCloser, error)
	// Tail gives the last lines of a log.
	Tail(number int64, lines int) ([]string, error)
}

// Farm is what the verbs act on.
type Farm struct {
	Queue   *queue.Queue
	Logs    Logs
	Events  *events.Log // nil: none are kept
	Version string
	Started time.Time
	// Usage keeps what builds use; nil: nobody does.
	Usage Usage
	// Shells keeps the workspaces of failed builds; nil: nobody does.
	Shells Shells
	// Images is the daemon's own store, which nobody else may open meanwhile.
	Images *images.Store
	// Channels are those of the configuration, by name.
	Channels []Channel
	// Default is the channel of a push that names none.
	Default string
	// Workers are what this farm builds with; none: each arch in its own system.
	Workers []graph.Worker
	// Confirm says how large a push has to be to need -o confirm.
	Confirm Confirm
	// Tokens are the farm's bearer tokens; nil: it keeps none.
	Tokens *tokens.Store
	// Why explains builds; nil: the farm cannot.
	Why Why
	// Past finds a build that the queue has forgotten, by its record; nil: nobody can.
	Past func(ctx context.Context, number int64) (quarry.Build, bool)
	// Notify tells people and programs what happens; nil: nobody does.
	Notify Notify
	// Bundles makes releases of tars; nil: nobody does.
	Bundles *bundle.Pusher
	// Keys are people's public keys; nil: the farm keeps none.
	Keys *keys.Store
	// Signers gives the keys that results are signed with, as allowed signers; nil:
	// they are not signed.
	Signers func() ([]byte, error)
	// Mover promotes and rolls back; nil: nobody does.
	Mover Mover
	// Verifier builds again what records say; nil: nobody does.
	Verifier Verifier
	// Pruner removes artifacts that nothing refers to; nil: nobody does.
	Pruner Pruner
	// Builder is the name of this machine, as in records.
	Builder string
	// Jobs shares the machine's slots among builds; nil: nobody does.
	Jobs Jobs

	drawOnce sync.Once
	draws    chan struct{} // see drawing
	playOnce sync.Once
	plays    chan struct{} // see playing
}

// Channel is a channel as the verbs know it.
type Channel struct {
	Name  string
	Archs []string
	Base  string   // name of the bases that it stands on; "" for the archs' own
	Push  []string // who may push to it; see [quarry.Identity.Among]
	// Promote are those who may take packages into it from another channel; empty:
	// whoever may push them to it.
	Promote []string
}

// Verbs makes the table for a farm.
func Verbs(f *Farm) Table {
	var t Table
	t = Table{
		{Name: "status", Looks: true, Args: "[BUILD|PACKAGE]", MaxArgs: 1, Short: "Show what the farm does, or one build, or a package's builds",
			Long: "Without an argument: what is under way and what ended last. The exit code is 6\n" +
				"when one build was asked for and it ended without success.\n\n" +
				"With --blocked: what nothing can build and why, and what blocks most of it.",
			Example: "status\nstatus 17\nstatus zlib --json\nstatus --blocked\nstatus --blocked git",
			Flags: func(fs *pflag.FlagSet) {
				fs.IntP("limit", "n", 10, "how many ended (or blocked) builds to show")
				fs.Bool("blocked", false, "what nothing can build, and why")
				fs.String("channel", "", "with --blocked: only this channel")
			},
			Run: f.status},
		f.topVerb(),
		f.buildersVerb(),
		f.shellVerb(),
		f.graphVerb(),
		f.planVerb(),
		{Name: "log", Looks: true, Args: "BUILD", MinArgs: 1, MaxArgs: 1, Short: "Print a build's log",
			Long: "With -f it goes on until the build has ended, prints the verdict, and the exit\n" +
				"code is 6 when the build did not succeed. It can be called again after a lost\n" +
				"connection.\n\nWith --usage it prints what the build used over its time instead: -n is then how\n" +
				"many lines that may take, and --json gives every sample.",
			Example: "log 17\nlog -f 17\nlog -n 50 17\nlog --usage 17",
			Plain: func(fs *pflag.FlagSet) bool {
				usage, err := fs.GetBool("usage")
				return err == nil && !usage
			},
			Flags: func(fs *pflag.FlagSet) {
				fs.BoolP("follow", "f", false, "go on until the build has ended")
				fs.IntP("lines", "n", 0, "only the last lines")
				fs.Bool("usage", false, "what it used instead, while it runs and after")
				fs.Bool("raw", false, "as it was printed, with escape sequences that can do anything to a terminal")
			},
			Run: f.log},
		f.eventsVerb(),
		f.notifyVerb(),
		f.buildVerb(),
		f.whyVerb(),
		{Name: "rebuild", Args: "[BUILD|NAME-VERSION]", MaxArgs: 1, Need: Push, Short: "Build again what has a record",
			Long: rebuildHelp, Example: rebuildExample, Flags: rebuildFlags, Run: f.rebuild},
		{Name: "cancel", Args: "BUILD", MinArgs: 1, MaxArgs: 1, Need: Push, Short: "Call a build off",
			Long:    "It is not planned again until its branch is pushed anew or somebody asks for a\nrebuild.",
			Example: "cancel 17", Run: f.cancel},
		{Name: "pause", Args: "[REASON]", MaxArgs: -1, Need: Admin, Short: "Start no new builds until resume",
			Long:    "What runs goes on. A pause lasts over restarts; status shows it with its reason.",
			Example: "pause moving the disks", Run: f.pause},
		{Name: "resume", Need: Admin, Short: "End a pause", Example: "resume", Run: f.resume},
		{Name: "replan", Need: Admin, Short: "Look for wanted builds now",
			Long:    "The farm does this by itself at its start, after each push and every few minutes.",
			Example: "replan", Run: f.replan},
		{Name: "whoami", Looks: true, Short: "Say who you are here and what you may do", Example: "whoami", Run: f.whoami},
		{Name: "help", Looks: true, Args: "[VERB]", MaxArgs: 2, Text: true, Short: "List the verbs, or explain one", Example: "help log\nhelp images load",
			Run: func(_ context.Context, c *Call) error {
				if len(c.Args) == 0 {
					return t.list(c.Out)
				}
				v, rest := t.Find(c.Args...)
				of := t.topic(c.Args[0])
				if len(c.Args) > 1 {
					of = nil
				}
				switch {
				case v == nil && of != nil:
					return of.list(c.Out)
				case v == nil || len(rest) > 0:
					return t.unknown(c.Args)
				}
				if err := t.help(c.Out, v); err != nil || of == nil {
					return err
				}
				fmt.Fprintln(c.Out)
				return of.list(c.Out)
			}},
		{Name: "pushed", Args: "PACKAGE [BRANCH]...", MinArgs: 1, MaxArgs: -1, Need: Local, Hidden: true, Run: f.pushed,
			Short: "Say that a package was pushed; the hooks do this"},
		{Name: "impact", Need: Local, Hidden: true, Run: f.impact,
			Short: "Say what a push would cause; the hooks ask"},
	}
	// Before help and the hidden ones.
	at := slices.IndexFunc(t, func(v *Verb) bool { return v.Name == "whoami" })
	t = slices.Insert(t, at, slices.Concat(Table{f.signersVerb(), f.pruneVerb()}, f.jobsVerbs(), f.promoteVerbs(), f.verifyVerbs(), f.groupVerbs(), f.imageVerbs(), f.tokenVerbs(), f.keysVerbs())...)
	for _, v := range t {
		v.Long = fill(v.Long)
	}
	return t
}

// number reads a build number.
func number(s string) (int64, error) {
	n, err := strconv.ParseInt(strings.TrimPrefix(s, "#"), 10, 64)
	if err != nil || n <= 0 {
		return 0, usage("build %.40q is no number: status lists the builds with theirs", s)
	}
	return n, nil
}

// Build gives a build that the queue knows or that, as the queue forgets what is
// long over, has a record. The error wraps [queue.ErrUnknown] where there is neither.
func (f *Farm) Build(ctx context.Context, n int64) (quarry.Build, error) {
	b, err := f.Queue.Get(n)
	if errors.Is(err, queue.ErrUnknown) && f.Past != nil {
		if past, ok := f.Past(ctx, n); ok {
			return past, nil
		}
	}
	return b, err
}

func (f *Farm) build(ctx context.Context, s string) (quarry.Build, error) {
	n, err := number(s)
	if err != nil {
		return quarry.Build{}, err
	}
	b, err := f.Build(ctx, n)
	if err != nil {
		return b, notFound(err)
	}
	return b, nil
}

// forbidden reports why a package's builds on a channel are not the caller's to
// touch. Without a channel only the package counts.
func (f *Farm) forbidden(c *Call, t quarry.Target) error {
	if !c.Who.MayPush(t.Package) {
		return &Error{ExitForbidden, fmt.Errorf("package %s is not among those of %s: ask an admin for it", t.Package, c.Who.User)}
	}
	for _, ch := range f.Channels {
		if ch.Name == t.Channel && !c.Who.Among(ch.Push) {
			return &Error{ExitForbidden, fmt.Errorf("%s may not push to %s: %s may", c.Who.User, ch.Name, quarry.People(ch.Push))}
		}
	}
	return nil
}

// channels gives those that the caller may push to, and those that there are
// besides.
func (f *Farm) channels(c *Call) (may, others []string) {
	for _, ch := range f.Channels {
		if c.Who.Among(ch.Push) {
			may = append(may, ch.Name)
		} else {
			others = append(others, ch.Name)
		}
	}
	return may, others
}

func verdict(b quarry.Build) error {
	if b.State.Ended() && b.State != quarry.Succeeded {
		return ErrBuild
	}
	return nil
}

func (f *Farm) log(ctx context.Context, c *Call) error {
	n, err := number(c.Args[0])
	if err != nil {
		return err
	}
	lines := c.int("lines")
	switch {
	case c.bool("usage") && (c.bool("follow") || c.bool("raw")):
		return usage("log: --usage prints no log: leave out -f and --raw")
	case c.JSON() && !c.bool("usage"):
		return usage("log: --json goes with --usage: a log itself is text")
	case lines < 0:
		return usage("log: -n counts lines: it may not be negative")
	case lines > 0 && c.bool("follow"):
		return usage("log: -f shows a log from its start: leave out -n")
	}
	if c.bool("usage") {
		return f.used(c, n, lines)
	}
	if lines > 0 {
		tail, err := f.Logs.Tail(n, lines)
		if err != nil {
			return f.noLog(n, err)
		}
		for _, l := range tail {
			if _, err := fmt.Fprintln(c.Out, f.clean(c, l)); err != nil {
				return err
			}
		}
		return nil
	}
	if !c.bool("follow") {
		r, err := f.Logs.Open(n)
		if err != nil {
			return f.noLog(n, err)
		}
		defer r.Close()
		_, err = io.Copy(c.writer(), r)
		return err
	}
	return f.follow(ctx, c, n)
}

// noLog says why there is no log, without the paths of this machine.
func (f *Farm) noLog(n int64, err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	b, gone := f.Queue.Get(n)
	switch {
	case gone != nil:
		return notFound(fmt.Errorf("log of build %d is not kept: see quarry status for the builds that are", n))
	case b.State == quarry.Waiting || b.State == quarry.Queued:
		return notFound(fmt.Errorf("build %d has not begun, so it has no log yet: follow it with log -f %d", n, n))
	}
	return notFound(fmt.Errorf("build %d has no log: it never began, or its log was old and is gone", n))
}

// follow prints a log over all attempts until the build has ended.
func (f *Farm) follow(ctx context.Context, c *Call, n int64) error {
	b, err := f.Queue.Get(n)
	if err != nil {
		return notFound(err)
	}
	// Who watches a build that stands still is told why, and when that changes.
	said := ""
	standing := func(b quarry.Build) {
		line := Verdict(b, c.Term.Color)
		if (b.State == quarry.Waiting || b.State == quarry.Queued) && line != said {
			fmt.Fprintln(c.Out, line)
			said = line
		}
	}
	standing(b)
	sub, stop := context.WithCancel(ctx)
	defer stop()
	changes := f.Queue.Subscribe(sub)
	out := c.writer()
	var done int64 // bytes printed; each attempt goes on in the same log
	for {
		r, err := f.Logs.Follow(ctx, n)
		if err == nil {
			if _, err = io.CopyN(io.Discard, r, done); err == nil {
				var more int64
				more, err = io.Copy(out, r)
				done += more
			}
			r.Close()
			if err != nil && err != io.EOF {
				return err
			}
		}
		b, err := f.Queue.Get(n)
		if err != nil {
			return notFound(err)
		}
		if b.State.Ended() {
			fmt.Fprintln(c.Out, Verdict(b, c.Term.Color))
			f.explain(ctx, c, b)
			if hint := f.ShellHint(n); hint != "" {
				fmt.Fprintln(c.Out, hint)
			}
			return verdict(b)
		}
		standing(b)
		// The attempt is over or has not begun: wait for the next change.
		if err := nextChange(ctx, changes); err != nil {
			return err
		}
	}
}

// nextChange waits for the next change of a build, and looks again each second all
// the same. An error says that there is nothing more to wait for.
func nextChange(ctx context.Context, changes <-chan quarry.Build) error {
	select {
	case _, ok := <-changes:
		if !ok {
			return queue.ErrStopped
		}
	case <-time.After(time.Second):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// clean makes log text fit for a terminal: a build's output is hostile.
func (f *Farm) clean(c *Call, s string) string {
	if c.bool("raw") {
		return s
	}
	return human.Safe(s, true)
}

// writer is the call's output. Escape sequences in what is written are made
// visible, since a build's output is hostile. That it goes to no terminal as far
// as is known here says little: ssh asks for none when it runs a verb, and
// prints on one all the same.
func (c *Call) writer() io.Writer {
	if c.bool("raw") {
		return c.Out
	}
	return &safeWriter{w: c.Out}
}

func (f *Farm) rebuild(ctx context.Context, c *Call) error {
	if massAsked(c) {
		return f.mass(ctx, c)
	}
	if len(c.Args) == 0 {
		return usage("rebuild takes BUILD or NAME-VERSION, or --mass: see help rebuild")
	}
	t := quarry.Target{Channel: c.string("channel"), Arch: c.string("arch")}
	var ways [][2]string // to read the argument
	if _, err := strconv.ParseInt(c.Args[0], 10, 64); err == nil {
		b, err := f.build(ctx, c.Args[0])
		if err != nil {
			return err
		}
		if t.Arch != "" && t.Arch != b.Arch || t.Channel != "" && t.Channel != b.Channel {
			return usage("%s is one build for %s on %s: leave out --arch and --channel, or name the release", b, b.Arch, b.Channel)
		}
		t, ways = b.Target(), [][2]string{{b.Package, b.Version}}
	} else if ways = f.known(c.Args[0]); len(ways) == 0 {
		return usage("release %.80q has not the form NAME-VERSION: write it as its branch is named, or give a build's number", c.Args[0])
	}
	var builds []quarry.Build
	var first error // the most likely reading's
	for _, w := range ways {
		t.Package, t.Version = w[0], w[1]
		err := f.forbidden(c, t)
		if err == nil {
			builds, err = f.rebuildTarget(ctx, c, t)
		}
		if err == nil {
			first = nil
			break
		}
		if first == nil {
			first = err
		}
	}
	if first != nil {
		return first
	}
	if c.JSON() {
		return c.emit(builds)
	}
	for _, b := range builds {
		fmt.Fprintln(c.Out, Announce(b))
	}
	return nil
}

// rebuildTarget builds a target again: without a channel, on all channels that
// the caller may push to.
func (f *Farm) rebuildTarget(ctx context.Context, c *Call, t quarry.Target) ([]quarry.Build, error) {
	may, others := f.channels(c)
	if t.Channel != "" || len(others) == 0 {
		return f.Queue.RebuildTarget(ctx, t, c.Who.User)
	}
	var builds []quarry.Build
	var first error
	for _, t.Channel = range may {
		some, err := f.Queue.RebuildTarget(ctx, t, c.Who.User)
		if err != nil && first == nil {
			first = err
		}
		builds = append(builds, some...)
	}
	if len(builds) == 0 {
		if first == nil {
			return nil, &Error{ExitForbidden, fmt.Errorf("%s may push to none of the channels (%s): ask an admin for one", c.Who.User, strings.Join(others, ", "))}
		}
		return nil, fmt.Errorf("%w; or it is on %s, to which %s may not push", first, strings.Join(others, ", "), c.Who.User)
	}
	return builds, nil
}

// known takes NAME-VERSION apart at each dash: names and versions may both hold
// some. Only the splits that the farm has builds of count, if there are any.
func (f *Farm) known(s string) [][2]string {
	var fit, seen [][2]string
	for i := range s {
		if s[i] != '-' {
			continue
		}
		name, version := s[:i], s[i+1:]
		if quarry.CheckName(name) != nil || quarry.CheckVersion(version) != nil {
			continue
		}
		fit = append(fit, [2]string{name, version})
		if len(f.Queue.List(queue.Filter{Package: name, Version: version, Limit: 1})) > 0 {
			seen = append(seen, [2]string{name, version})
		}
	}
	if len(seen) > 0 {
		return seen
	}
	return fit
}

func (f *Farm) cancel(ctx context.Context, c *Call) error {
	b, err := f.build(ctx, c.Args[0])
	if err != nil {
		return err
	}
	if err := f.forbidden(c, b.Target()); err != nil {
		return err
	}
	if err := f.Queue.Cancel(ctx, b.Number, c.Who.User); errors.Is(err, queue.ErrUnknown) {
		return fmt.Errorf("%v has ended long ago: it is %s", b, b.State)
	} else if err != nil {
		return err
	}
	wait, stop := context.WithTimeout(ctx, 30*time.Second)
	defer stop()
	if done, err := f.Queue.Wait(wait, b.Number); err == nil {
		b = done
	}
	if c.JSON() {
		return c.emit(b)
	}
	_, err = fmt.Fprintln(c.Out, Verdict(b, c.Term.Color))
	return err
}

func (f *Farm) pause(ctx context.Context, c *Call) error {
	if err := f.Queue.Pause(ctx, c.Who.User, human.Safe(strings.Join(c.Args, " "), false)); err != nil {
		return err
	}
	return f.pauses(c)
}

func (f *Farm) resume(ctx context.Context, c *Call) error {
	if err := f.Queue.Resume(ctx); err != nil {
		return err
	}
	return f.pauses(c)
}

// pauses says what keeps builds from being started, be it a person or trouble.
func (f *Farm) pauses(c *Call) error {
	paused := f.Queue.Status().Paused
	if c.JSON() {
		return c.emit(append([]queue.PauseStatus{}, paused...)) // never null
	}
	if len(paused) == 0 {
		fmt.Fprintln(c.Out, "builds are started")
	}
	for _, p := range paused {
		fmt.Fprintln(c.Out, pauseText(p, c.Term.Color))
	}
	return nil
}

func (f *Farm) replan(ctx context.Context, c *Call) error {
	if err := f.Queue.Replan(ctx); err != nil {
		return err
	}
	return f.status(ctx, c)
}

func (f *Farm) whoami(_ context.Context, c *Call) error {
	w := c.Who
	push := w.Role == quarry.RoleAdmin || w.Role == quarry.RoleMaintainer
	var may []string
	if push {
		may, _ = f.channels(c)
	}
	if c.JSON() {
		return c.emit(struct {
			quarry.Identity
			Channels []string `json:"channels"` // that may be pushed to
		}{w, append([]string{}, may...)})
	}
	name := w.User
	if w.Name != "" {
		name = fmt.Sprintf("%s (%s <%s>)", w.User, w.Name, w.Email)
	}
	if name == "" { // who gave no token where everybody may look
		name = "anonymous"
	}
	fmt.Fprintf(c.Out, "%s, %s\n", human.Safe(name, false), w.Role)
	if id, ok := tokens.ID(w); ok {
		fmt.Fprintf(c.Out, "token %s\n", id)
	} else if w.Key != "" && !isLocal(w) {
		fmt.Fprintf(c.Out, "key %s\n", w.Key)
	}
	switch {
	case !push:
		fmt.Fprintln(c.Out, "may look, not push")
		return nil
	case w.Role == quarry.RoleAdmin, len(w.Packages) == 0:
		fmt.Fprintln(c.Out, "may push every package")
	default:
		fmt.Fprintf(c.Out, "may push %s\n", strings.Join(w.Packages, ", "))
	}
	if len(w.Only) > 0 {
		fmt.Fprintf(c.Out, "of these, the token lets push %s\n", strings.Join(w.Only, ", "))
	}
	switch {
	case len(f.Channels) == 0:
	case len(may) == 0:
		fmt.Fprintln(c.Out, "to no channel: ask an admin for one")
	default:
		fmt.Fprintf(c.Out, "to %s\n", strings.Join(may, ", "))
	}
	return nil
}

// Pushed is what the verb pushed answers with, as JSON.
type Pushed struct {
	Builds   []quarry.Build    `json:"builds"`   // under way, of the whole package
	Declined []quarry.Declined `json:"declined"` // what its recipes say not to build
}

// pushed plans a package and answers the hook with its builds, as JSON. What
// keeps the branches that were pushed from being built is the error besides.
func (f *Farm) pushed(ctx context.Context, c *Call) error {
	builds, err := f.Queue.Pushed(ctx, c.Args[0])
	if err != nil && !errors.As(err, new(queue.Problem)) {
		return err
	}
	if err := json.NewEncoder(c.Out).Encode(Pushed{nonNil(builds), append([]quarry.Declined{}, f.Queue.Declined(c.Args[0])...)}); err != nil {
		return err
	}
	var told []error
	if list, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range list.Unwrap() {
			if p := new(queue.Problem); errors.As(err, p) && (p.Branch == "" || slices.Contains(c.Args[1:], p.Branch)) {
				told = append(told, err)
			}
		}
	}
	return errors.Join(told...)
}
