package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/queue"
	"github.com/spf13/pflag"
)

const rebuildHelp = "A new build is made at the commit where the branch is now; the old record stays\n" +
	"until the new one is written.\n\n" +
	"With --mass everything that matches is built again, in the order of its needs and\n" +
	"each once, behind all other work. It outlasts restarts. What needs something that\n" +
	"is rebuilt and does not match is built only where it has to be. Only an admin may\n" +
	"begin one and call it off; --list and --report tell how far they are."

const rebuildExample = "rebuild 17\nrebuild zlib-1.3.1 --arch x86_64\nrebuild --mass --reason 'gcc 15'\n" +
	"rebuild --mass --match 'lib*' --arch x86_64\nrebuild --mass --list\nrebuild --mass --report 20260314-3f9a0c11"

func rebuildFlags(fs *pflag.FlagSet) {
	fs.String("arch", "", "only this arch")
	fs.String("channel", "", "only this channel")
	fs.Bool("mass", false, "everything, or all that --match says")
	fs.StringArray("match", nil, "packages of a mass rebuild, such as 'lib*'; several times")
	fs.String("reason", "", "why, for those who see the builds")
	fs.Bool("list", false, "list mass rebuilds")
	fs.String("report", "", "tell how far this mass rebuild is, and what has failed")
	fs.String("cancel", "", "call this mass rebuild off: what runs goes on, nothing more is begun")
}

// massAsked reports whether a call of rebuild is about mass rebuilds.
func massAsked(c *Call) bool {
	return slices.ContainsFunc([]string{"mass", "match", "reason", "list", "report", "cancel"}, c.Flags.Changed)
}

// massRebuild is a mass rebuild as it is shown. What a campaign keeps for the
// planner only is left out.
type massRebuild struct {
	queue.Campaign
	Report queue.Report `json:"report"`
}

func (f *Farm) mass(ctx context.Context, c *Call) error {
	match, _ := c.Flags.GetStringArray("match")
	asked := queue.Campaign{Match: match, Arch: c.string("arch"), Channel: c.string("channel"), Reason: human.Safe(c.string("reason"), false), By: c.Who.User}
	ways := 0
	for _, flag := range []string{"list", "report", "cancel"} {
		if c.Flags.Changed(flag) {
			ways++
		}
	}
	begins := ways == 0
	for _, flag := range []string{"match", "reason", "arch", "channel"} {
		if !begins && c.Flags.Changed(flag) {
			return usage("rebuild: --%s is for beginning a mass rebuild: leave it out, or --list, --report and --cancel", flag)
		}
	}
	switch {
	case len(c.Args) > 0:
		return usage("rebuild: %.80q is one release, and a mass rebuild takes what --match says: leave one of the two out", c.Args[0])
	case ways > 1:
		return usage("rebuild: --list, --report and --cancel each stand alone: choose one")
	case begins && !c.bool("mass"):
		return usage("rebuild: --match and --reason go with --mass")
	case (begins || c.Flags.Changed("cancel")) && c.Who.Role != quarry.RoleAdmin:
		return &Error{ExitForbidden, fmt.Errorf("rebuild: only an admin may begin a mass rebuild or call one off, and you are a %s", c.Who.Role)}
	}
	switch {
	case c.Flags.Changed("report"):
		return f.massReport(ctx, c, c.string("report"))
	case c.bool("list"):
		return f.massList(ctx, c)
	case c.Flags.Changed("cancel"):
		made, err := f.Queue.CancelMass(ctx, c.string("cancel"), c.Who.User)
		if err != nil {
			return noMass(err)
		}
		return f.massReport(ctx, c, made.ID)
	}
	made, err := f.Queue.Mass(ctx, asked)
	if err != nil {
		return err
	}
	return f.massReport(ctx, c, made.ID)
}

func noMass(err error) error {
	if errors.Is(err, queue.ErrNoMass) {
		return notFound(err)
	}
	return err
}

// shown gives a mass rebuild with how far it is.
func (f *Farm) shown(ctx context.Context, m queue.Campaign) (massRebuild, error) {
	r, err := f.Queue.Report(ctx, m.ID)
	m.Shared, m.Failing, m.Report = nil, nil, nil
	return massRebuild{m, r}, err
}

func (f *Farm) massList(ctx context.Context, c *Call) error {
	all, err := f.Queue.MassRebuilds(ctx)
	if err != nil {
		return err
	}
	list := []massRebuild{} // never null
	for _, m := range all {
		s, err := f.shown(ctx, m)
		if err != nil {
			return err
		}
		s.Report.Failures = nil
		list = append(list, s)
	}
	if c.JSON() {
		return c.emit(list)
	}
	if len(list) == 0 {
		fmt.Fprintln(c.Out, "there has been no mass rebuild")
		return nil
	}
	t := human.Table{Head: []string{"ID", "OF", "DONE", "FAILED", "LEFT", "STATE", "BY", "REASON"}, Right: []int{2, 3, 4}, Color: c.Term.Color, Width: c.Term.Width}
	for _, m := range list {
		t.Row(m.ID, of(m.Campaign), fmt.Sprintf("%d/%d", m.Report.Succeeded+m.Report.Failed, m.Report.Total), m.Report.Failed, m.Report.Left(),
			massState(m), m.By, m.Reason)
	}
	_, err = t.WriteTo(c.Out)
	return err
}

// of says in words what a mass rebuild is of.
func of(m queue.Campaign) string {
	s := "everything"
	if len(m.Match) > 0 {
		s = strings.Join(m.Match, " ")
	}
	if m.Arch != "" {
		s += " for " + m.Arch
	}
	if m.Channel != "" {
		s += " on " + m.Channel
	}
	return s
}

func massState(m massRebuild) string {
	switch {
	case m.Cancelled != "":
		return "called off by " + m.Cancelled
	case m.Over():
		return "done"
	case m.Report.Expected > 0:
		return "about " + human.Duration(time.Duration(m.Report.Expected*float64(time.Second))) + " to go"
	}
	return "under way"
}

func (f *Farm) massReport(ctx context.Context, c *Call, id string) error {
	all, err := f.Queue.MassRebuilds(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(m queue.Campaign) bool { return m.ID == id })
	if i < 0 {
		return notFound(fmt.Errorf("%w: %.40q; see quarry rebuild --mass --list", queue.ErrNoMass, id))
	}
	m, err := f.shown(ctx, all[i])
	if err != nil {
		return noMass(err)
	}
	if c.JSON() {
		return c.emit(m)
	}
	return printMass(c.Out, m, c.Term.Color)
}

func printMass(w io.Writer, m massRebuild, color bool) error {
	head := fmt.Sprintf("mass rebuild %s of %s, by %s at %s: %s", m.ID, of(m.Campaign), m.By, m.Made.UTC().Format(time.DateTime), massState(m))
	fmt.Fprintln(w, human.Safe(head, false))
	if m.Reason != "" {
		fmt.Fprintln(w, "reason: "+human.Safe(m.Reason, false))
	}
	r := m.Report
	if m.Cancelled != "" {
		fmt.Fprint(w, "by then ") // what was under way is not followed any more
	}
	fmt.Fprintf(w, "%d of %d built: %d succeeded, %d failed", r.Succeeded+r.Failed, r.Total, r.Succeeded, r.Failed)
	for _, part := range []struct {
		n    int
		what string
	}{{r.Running, "running"}, {r.Queued, "queued"}, {r.Waiting, "waiting"}, {r.Planned, "not begun"}, {r.Lost, "given up or called off"}} {
		if part.n > 0 {
			fmt.Fprintf(w, ", %d %s", part.n, part.what)
		}
	}
	fmt.Fprintln(w)
	if len(r.Failures) == 0 {
		return nil
	}
	t := human.Table{Head: []string{"FAILED", "VERSION", "ARCH", "CHANNEL", "BUILD", "SINCE ITS LAST SUCCESS"}, Right: []int{4}, Color: color}
	for _, f := range r.Failures {
		since := "has failed before"
		switch {
		case f.New && len(f.Since) == 0:
			since = "new, with all as it was"
		case f.New:
			since = "new: " + strings.Join(f.Since, "; ")
		}
		t.Row(human.Cell(f.Package, human.Red), f.Version, f.Arch, f.Channel, f.Build, since)
	}
	_, err := t.WriteTo(w)
	return err
}
