package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/results"
	"github.com/spf13/pflag"
)

// Mover changes channels as a whole.
type Mover interface {
	// Find takes NAME-VERSION apart, where the channel has a success of it.
	Find(channel, release string) (pkg, version string, err error)
	// Commit finds a commit of a channel by its first digits, or by a time.
	Commit(channel, word string) (string, error)
	Promote(ctx context.Context, p results.Promotion) (*results.Promoted, error)
	Rollback(ctx context.Context, b results.Rollback) (*results.Promoted, error)
}

func (f *Farm) promoteVerbs() Table {
	common := func(fs *pflag.FlagSet) {
		fs.Bool("dry-run", false, "only say what would be done")
		fs.Bool("force", false, "even if the channel goes back or loses something")
		fs.StringP("message", "m", "", "why, one line for those who read the history")
	}
	return Table{
		{Name: "promote", Args: "[NAME-VERSION]... FROM TO", MinArgs: 2, MaxArgs: -1, Need: Push, Short: "Take releases from one channel into another",
			Long: "What was built for FROM lands on TO as it is, the same records and artifacts, as\n" +
				"one commit, or nothing does. All that a release needs has to be there, or to land\n" +
				"with it. The packager stays the author.\n\n" +
				"A channel does not go back to an older version, does not lose an arch of a package,\n" +
				"and does not get smaller or empty, unless --force says that this is meant.",
			Example: "promote zlib-1.3.1 testing stable\npromote zlib-1.3.1 git-2.40 testing stable --dry-run\npromote --all testing stable",
			Flags: func(fs *pflag.FlagSet) {
				common(fs)
				fs.Bool("all", false, "the newest success of every package")
				fs.Bool("prune", false, "with --all: take away what FROM does not have")
				fs.StringSlice("arch", nil, "only these archs")
			},
			Run: f.promote},
		{Name: "rollback", Args: "CHANNEL [COMMIT]", MinArgs: 1, MaxArgs: 2, Need: Push, Short: "Take back what was promoted to a channel",
			Long: "Without COMMIT the newest promotion. With it, what that commit of the results did:\n" +
				"a promotion, a group that landed, a single record. With --to the channel gets all\n" +
				"records again that it had at a commit or at a time. History is kept either way: it\n" +
				"is a new commit, which can be taken back as well.\n\n" +
				"A release that is pushed to the channel itself is built again when its record goes.",
			Example: "rollback stable\nrollback stable 3f9a0c12d\nrollback stable --to 2026-03-14 --dry-run",
			Flags: func(fs *pflag.FlagSet) {
				common(fs)
				fs.String("to", "", "a commit, or a time such as 2026-03-14, to go back to")
			},
			Run: f.rollback},
	}
}

// mayChange reports why the caller may not change packages of a channel: with a
// list of those who promote, it is theirs to say; without one it is whoever may
// push the package to the channel. A token goes no further than its packages.
func (f *Farm) mayChange(c *Call, channel string, moves []results.Move) error {
	for _, ch := range f.Channels {
		if ch.Name != channel {
			continue
		}
		if len(ch.Promote) > 0 {
			if !c.Who.Among(ch.Promote) {
				return &Error{ExitForbidden, fmt.Errorf("%s may not promote to %s: %s may", c.Who.User, channel, quarry.People(ch.Promote))}
			}
			for _, m := range moves {
				if !c.Who.Reaches(m.Package) {
					return &Error{ExitForbidden, fmt.Errorf("package %s is not among those of the token: show another, or ask over SSH", m.Package)}
				}
			}
			return nil
		}
		if !c.Who.Among(ch.Push) {
			return &Error{ExitForbidden, fmt.Errorf("%s may not push to %s: %s may", c.Who.User, channel, quarry.People(ch.Push))}
		}
		for _, m := range moves {
			if err := f.forbidden(c, m.Target); err != nil {
				return err
			}
		}
		return nil
	}
	return notFound(fmt.Errorf("channel %.40q is not there: there is %s", channel, strings.Join(f.channelNames(), ", ")))
}

func (f *Farm) promote(ctx context.Context, c *Call) error {
	n := len(c.Args) - 2
	names := c.Args[:n]
	archs, _ := c.Flags.GetStringSlice("arch")
	p := results.Promotion{
		From: c.Args[n], To: c.Args[n+1], Archs: archs, All: c.bool("all"), Prune: c.bool("prune"),
		Force: c.bool("force"), Dry: c.bool("dry-run"), By: c.Who.Packager, Reason: c.string("message"),
	}
	switch {
	case p.All && n > 0:
		return usage("promote takes releases, or --all, but not both: see help promote")
	case !p.All && n == 0:
		return usage("promote takes NAME-VERSION... FROM TO, or --all FROM TO: see help promote")
	case p.Prune && !p.All:
		return usage("promote: --prune goes with --all")
	}
	for _, name := range p.Archs {
		if err := quarry.CheckArch(name); err != nil {
			return &Error{ExitUsage, err}
		}
	}
	// Permission to change the channel at all comes first: who has none learns
	// nothing of what stands there.
	if err := f.mayChange(c, p.To, nil); err != nil {
		return err
	}
	for _, name := range names {
		pkg, version, err := f.Mover.Find(p.From, name)
		if err != nil {
			return changeError(err)
		}
		p.Releases = append(p.Releases, quarry.Release{Package: pkg, Version: version})
	}
	p.May = func(moves []results.Move) error { return f.mayChange(c, p.To, moves) }
	return f.changed(c, p.Dry, "promoted from "+p.From, func() (*results.Promoted, error) { return f.Mover.Promote(ctx, p) })
}

func (f *Farm) rollback(ctx context.Context, c *Call) error {
	b := results.Rollback{
		Channel: c.Args[0], Force: c.bool("force"), Dry: c.bool("dry-run"), By: c.Who.Packager, Reason: c.string("message"),
	}
	if err := f.mayChange(c, b.Channel, nil); err != nil {
		return err
	}
	word := c.string("to")
	b.Restore = word != ""
	if len(c.Args) > 1 {
		if b.Restore {
			return usage("rollback takes a commit to take back, or --to one to go back to, but not both")
		}
		word = c.Args[1]
	}
	if word != "" {
		commit, err := f.Mover.Commit(b.Channel, word)
		if err != nil {
			return changeError(err)
		}
		b.Commit = commit
	}
	b.May = func(moves []results.Move) error { return f.mayChange(c, b.Channel, moves) }
	return f.changed(c, b.Dry, "taken back", func() (*results.Promoted, error) { return f.Mover.Rollback(ctx, b) })
}

func changeError(err error) error {
	if errors.Is(err, results.ErrNotFound) {
		return notFound(err)
	}
	return err
}

// changed makes a change of a channel and says what came of it.
func (f *Farm) changed(c *Call, dry bool, what string, make func() (*results.Promoted, error)) error {
	done, err := make()
	if refused := new(results.RefusedError); errors.As(err, &refused) {
		// All of the reasons, not only the first.
		for _, why := range slices.Concat(refused.Never, refused.Unforced) {
			fmt.Fprintf(c.Err, "  %s\n", human.Safe(why, false))
		}
		hint := ""
		if len(refused.Never) == 0 {
			hint = ": --force does it all the same"
		}
		n := len(refused.Never) + len(refused.Unforced)
		return fmt.Errorf("nothing was changed, for %s%s", human.Count(n, "reason"), hint)
	}
	if errors.Is(err, results.ErrNothing) {
		err = nil
		done = &results.Promoted{Channel: done.Channel, Old: done.Old, From: done.From}
	}
	if err != nil {
		return changeError(err)
	}
	if c.JSON() {
		return c.emit(changeJSON(done, dry))
	}
	if len(done.Moves) == 0 {
		_, err := fmt.Fprintf(c.Out, "%s has it all already\n", done.Channel)
		return err
	}
	t := human.Table{Head: []string{"PACKAGE", "VERSION", "ARCH", "BUILD", "WAS", "BY"}, Color: c.Term.Color, Width: c.Term.Width}
	for _, m := range done.Moves {
		was := m.Newest
		if was == "" {
			was = "-"
		}
		build := any(m.Build)
		if m.Blob == "" {
			build = human.Cell("taken away", human.Yellow)
		}
		t.Row(m.Package, m.Version, m.Arch, build, was, human.Safe(m.Packager.User, false))
	}
	if _, err := t.WriteTo(c.Out); err != nil {
		return err
	}
	if dry {
		_, err = fmt.Fprintf(c.Out, "%s would be %s; nothing was changed\n", human.Count(len(done.Moves), "record"), what)
	} else {
		_, err = fmt.Fprintf(c.Out, "%s %s: %s is at %.12s, was at %.12s\n", human.Count(len(done.Moves), "record"), what, done.Channel, done.New, orNone(done.Old))
	}
	return err
}

func orNone(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}

// Changed is what promote and rollback answer with, as JSON.
type Changed struct {
	Channel string  `json:"channel"`
	Dry     bool    `json:"dry_run,omitempty"`
	Old     string  `json:"old,omitempty"`  // commit before; absent for none
	New     string  `json:"new,omitempty"`  // and after; absent when nothing was written
	From    string  `json:"from,omitempty"` // commit that it came from, was taken back or gone back to
	Moves   []Moved `json:"moves"`
}

// Moved is a record that was set or taken away.
type Moved struct {
	Package  string `json:"package"`
	Version  string `json:"version"`
	Arch     string `json:"arch"`
	Build    int64  `json:"build,omitempty"`
	Artifact string `json:"artifact,omitempty"`
	Record   string `json:"record,omitempty"` // git id of the record; absent when it was taken away
	Was      string `json:"was,omitempty"`    // git id of the one that it replaces
	Newest   string `json:"newest,omitempty"` // version that the channel had
	Packager string `json:"packager,omitempty"`
}

func changeJSON(p *results.Promoted, dry bool) Changed {
	c := Changed{Channel: p.Channel, Dry: dry, Old: p.Old, New: p.New, From: p.From, Moves: []Moved{}}
	for _, m := range p.Moves {
		c.Moves = append(c.Moves, Moved{m.Package, m.Version, m.Arch, m.Build, m.Artifact, m.Blob, m.Was, m.Newest, m.Packager.User})
	}
	return c
}
