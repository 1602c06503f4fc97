package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/hooks"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/queue"
	"github.com/spf13/pflag"
)

// groupVerbs are those of releases that land together.
func (f *Farm) groupVerbs() Table {
	channel := func(fs *pflag.FlagSet) {
		fs.String("channel", "", "the group on this channel, instead of the default one")
	}
	return Table{
		{Name: "group list", Looks: true, Short: "List the groups of releases that are to land together",
			Long:    "A group is made by pushing releases with git push -o group=NAME. It is there\nuntil it has landed, or its branches are gone.",
			Example: "group list\ngroup list --channel testing",
			Flags:   func(fs *pflag.FlagSet) { fs.String("channel", "", "only this channel") },
			Run:     f.groupList},
		{Name: "group show", Looks: true, Args: "NAME", MinArgs: 1, MaxArgs: 1, Short: "Show a group, and what keeps it from landing",
			Long:    "The exit code is 6 when the group is submitted and does not land as it stands: a\nbuild of it has failed, its members have changed, or the channel has gone on.",
			Example: "group show gnome-49", Flags: channel, Run: f.groupShow},
		{Name: "group submit", Plain: Followed, Args: "NAME", MinArgs: 1, MaxArgs: 1, Need: Push, Short: "Build a group, and land it when all of it succeeds",
			Long: "Its releases are built against each other, in order, and nobody sees any of them\n" +
				"until all have succeeded; then they land on the channel as one commit. Submitting\n" +
				"again, after a failure or a further push, builds what is new and what failed.",
			Example: "group submit gnome-49\ngroup submit --follow gnome-49",
			Flags: func(fs *pflag.FlagSet) {
				channel(fs)
				fs.BoolP("follow", "f", false, "stay until it has landed, or does not")
			},
			Run: f.groupSubmit},
		{Name: "group drop", Args: "NAME", MinArgs: 1, MaxArgs: 1, Need: Push, Short: "Take a submitted group back",
			Long: "Its builds are called off, and what they made is thrown away. Its releases are\n" +
				"held again, as before it was submitted: delete their branches to be rid of them,\n" +
				"or push them anew without a group to have each built by itself.",
			Example: "group drop gnome-49", Flags: channel, Run: f.groupDrop},
	}
}

func (f *Farm) groupChannel(c *Call) (string, error) {
	channel := c.string("channel")
	if channel == "" {
		return f.Default, nil
	}
	if !f.isChannel(channel) {
		return "", notFound(fmt.Errorf("channel %.40q is not there: there is %s", channel, quarry.People(f.channelNames())))
	}
	return channel, nil
}

func (f *Farm) groupList(ctx context.Context, c *Call) error {
	if name := c.string("channel"); name != "" {
		if _, err := f.groupChannel(c); err != nil {
			return err
		}
	}
	list, err := f.Queue.Groups(ctx, c.string("channel"))
	if err != nil {
		return err
	}
	if c.JSON() {
		return c.emit(append([]queue.Group{}, list...))
	}
	if len(list) == 0 {
		_, err := fmt.Fprintln(c.Out, "there are no groups: git push -o group=NAME makes one")
		return err
	}
	t := human.Table{Head: []string{"GROUP", "CHANNEL", "STATE", "MEMBERS", "BY", "WHY"}, Color: c.Term.Color, Width: c.Term.Width}
	for _, g := range list {
		branches := map[string]bool{}
		for _, m := range g.Members {
			branches[quarry.Branch(m.Package, m.Version)] = true
		}
		t.Row(g.Name, g.Channel, human.Cell(string(g.State), groupColours[g.State]), len(branches), g.By, human.Safe(g.Reason, false))
	}
	_, err = t.WriteTo(c.Out)
	return err
}

var groupColours = map[queue.GroupState]human.Colour{
	queue.GroupHeld: human.Yellow, queue.GroupBuilding: human.Blue, queue.GroupLanding: human.Blue,
	queue.GroupFailed: human.Red, queue.GroupChanged: human.Red, queue.GroupRefused: human.Red,
}

// stuck reports whether a group does not land as it stands.
func stuck(g queue.Group) bool {
	return g.State == queue.GroupFailed || g.State == queue.GroupChanged || g.State == queue.GroupRefused
}

func (f *Farm) group(ctx context.Context, c *Call) (queue.Group, error) {
	channel, err := f.groupChannel(c)
	if err != nil {
		return queue.Group{}, err
	}
	g, err := f.Queue.Group(ctx, channel, c.Args[0])
	if errors.Is(err, queue.ErrNoGroup) {
		return g, notFound(err)
	}
	return g, err
}

func (f *Farm) groupShow(ctx context.Context, c *Call) error {
	g, err := f.group(ctx, c)
	if err != nil {
		return err
	}
	if err := f.showGroup(c, g); err != nil {
		return err
	}
	if stuck(g) {
		return ErrBuild
	}
	return nil
}

// groupLine says in one line how a group stands.
func groupLine(c *Call, g queue.Group) string {
	s := fmt.Sprintf("group %s on %s: %s", g.Name, g.Channel, human.Paint(string(g.State), groupColours[g.State], c.Term.Color))
	if g.Reason != "" {
		s += ": " + human.Safe(g.Reason, false)
	}
	return s
}

func (f *Farm) showGroup(c *Call, g queue.Group) error {
	if c.JSON() {
		return c.emit(g)
	}
	fmt.Fprintln(c.Out, groupLine(c, g))
	if g.ID != "" {
		fmt.Fprintf(c.Out, "submitted by %s %s\n", human.Safe(g.By, false), human.Ago(g.At, time.Now()))
	}
	if len(g.Members) == 0 {
		return nil
	}
	t := human.Table{Head: []string{"PACKAGE", "VERSION", "ARCH", "STATE", "BUILD", "WHY"}, Color: c.Term.Color, Width: c.Term.Width}
	for _, m := range g.Members {
		build := "-"
		if m.Build > 0 {
			build = fmt.Sprint(m.Build)
		}
		t.Row(m.Package, m.Version, m.Arch, human.Cell(m.State, colours[quarry.State(m.State)]), build, human.Safe(m.Reason, false))
	}
	_, err := t.WriteTo(c.Out)
	return err
}

// mayGroup reports why a package of a group is not the caller's to touch.
func (f *Farm) mayGroup(c *Call, channel string) func(pkg string) error {
	return func(pkg string) error { return f.forbidden(c, quarry.Target{Channel: channel, Package: pkg}) }
}

func (f *Farm) groupSubmit(ctx context.Context, c *Call) error {
	channel, err := f.groupChannel(c)
	if err != nil {
		return err
	}
	if c.JSON() && c.bool("follow") {
		return usage("group submit: --follow tells people what happens: leave out --json")
	}
	g, err := f.Queue.Submit(ctx, channel, c.Args[0], c.Who.Packager, f.mayGroup(c, channel))
	if errors.Is(err, queue.ErrNoGroup) {
		return notFound(err)
	}
	if err != nil {
		return err
	}
	if !c.bool("follow") {
		return f.showGroup(c, g)
	}
	return f.followGroup(ctx, c, g)
}

// followGroup tells what becomes of a submission until it has landed or does not.
func (f *Farm) followGroup(ctx context.Context, c *Call, g queue.Group) error {
	sub, stop := context.WithCancel(ctx)
	defer stop()
	changes := f.Queue.Subscribe(sub)
	id, said := g.ID, map[string]string{}
	tell := func(m queue.GroupMember) {
		line := fmt.Sprintf("%s: %s", m.Target, human.Paint(m.State, colours[quarry.State(m.State)], c.Term.Color))
		if m.Build > 0 {
			line += fmt.Sprintf(" (build %d)", m.Build)
		}
		if m.Reason != "" {
			line += ": " + human.Safe(m.Reason, false)
		}
		if said[m.String()] != line {
			said[m.String()] = line
			fmt.Fprintln(c.Out, line)
		}
	}
	last := g.Members
	for {
		if commit, ok := f.Queue.LandedGroup(id); ok {
			for _, m := range last { // it may have been quicker than we have looked
				if m.State == "declined" {
					continue
				}
				m.State, m.Reason = string(quarry.Succeeded), ""
				if b := f.Queue.List(queue.Filter{Channel: m.Channel, Package: m.Package, Version: m.Version, Arch: m.Arch, Limit: 1}); len(b) > 0 {
					m.Build = b[0].Number
				}
				tell(m)
			}
			_, err := fmt.Fprintf(c.Out, "group %s on %s: %s as %s\n", g.Name, g.Channel, human.Paint("landed", human.Green, c.Term.Color), commit)
			return err
		}
		now, err := f.Queue.Group(ctx, g.Channel, g.Name)
		switch {
		case errors.Is(err, queue.ErrNoGroup), err == nil && now.ID != id:
			if _, ok := f.Queue.LandedGroup(id); ok {
				continue // between the two questions
			}
			fmt.Fprintf(c.Out, "group %s on %s was taken back, or submitted again\n", g.Name, g.Channel)
			return ErrBuild
		case err != nil:
			return err
		}
		last = now.Members
		for _, m := range last {
			tell(m)
		}
		if stuck(now) {
			fmt.Fprintln(c.Out, groupLine(c, now))
			return ErrBuild
		}
		if err := nextChange(ctx, changes); err != nil {
			return err
		}
	}
}

func (f *Farm) groupDrop(ctx context.Context, c *Call) error {
	channel, err := f.groupChannel(c)
	if err != nil {
		return err
	}
	g, err := f.Queue.Drop(ctx, channel, c.Args[0], f.mayGroup(c, channel))
	if errors.Is(err, queue.ErrNoGroup) {
		return notFound(err)
	}
	if err != nil {
		return err
	}
	return f.showGroup(c, g)
}

// grouped reports why a push may not be made because of the groups that there are:
// a package is in one group of a channel at a time.
func (f *Farm) grouped(p hooks.Proposal, channel string) (string, error) {
	if p.Group == "" {
		return "", nil
	}
	if err := quarry.CheckGroup(p.Group); err != nil {
		return "", err
	}
	if branch, group := f.Queue.GroupOf(channel, p.Package, p.Group, p.Gone...); group != "" {
		return fmt.Sprintf("%s is in group %s, which has not landed: push it to that one, or delete the branch first (git push --delete)", branch, group), nil
	}
	return "", nil
}
