package control

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/graph"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/queue"
)

// picture is a channel's graph with what has become of its nodes, at one moment.
type picture struct {
	channel string
	g       *graph.Graph
	status  *graph.Status
	live    map[graph.Node]quarry.Build // under way
	ended   map[graph.Node]quarry.Build // errored or cancelled, of the release's commit, and nothing since
	failed  map[graph.Node]int64        // number of the build that failed
}

// oneChannel is the channel that --channel names; the default one where it does
// not.
func (f *Farm) oneChannel(c *Call) (string, error) {
	name := c.string("channel")
	if name == "" {
		name = f.Default
	}
	if !f.isChannel(name) {
		return "", notFound(fmt.Errorf("channel %.80q is not there: there is %s", name, strings.Join(f.channelNames(), ", ")))
	}
	return name, nil
}

// someChannels are the one that --channel names, or all.
func (f *Farm) someChannels(c *Call) ([]string, error) {
	if c.string("channel") == "" {
		return f.channelNames(), nil
	}
	name, err := f.oneChannel(c)
	return []string{name}, err
}

func (f *Farm) channelNames() []string {
	var names []string
	for _, ch := range f.Channels {
		names = append(names, ch.Name)
	}
	return names
}

func (f *Farm) channelArchs(name string) []string {
	for _, ch := range f.Channels {
		if ch.Name == name {
			return ch.Archs
		}
	}
	return nil
}

// picture looks at a channel: one look at the record of every node.
func (f *Farm) picture(ctx context.Context, channel string) (*picture, error) {
	g, err := f.Queue.Graph(channel)
	if err != nil {
		return nil, err
	}
	p := &picture{channel: channel, g: g, live: map[graph.Node]quarry.Build{}, ended: map[graph.Node]quarry.Build{}, failed: map[graph.Node]int64{}}
	p.builds(f.Queue.List(queue.Filter{Channel: channel, Live: true}), f.Queue.List(queue.Filter{Channel: channel, States: ends}))
	recs, err := f.Queue.Look(ctx, channel)
	if err != nil {
		return nil, err
	}
	states := make([]graph.State, g.Size())
	for n := range g.Nodes() {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		states[n] = p.state(recs, n)
	}
	paused := map[string]string{}
	for _, e := range f.Queue.Status().Paused {
		if e.Environment != nil && e.Environment.Channel == channel {
			paused[e.Environment.Arch] = e.Reason
		}
	}
	p.status = g.Status(graph.StatusOptions{
		State: func(n graph.Node) graph.State { return states[n] },
		Builder: func(n graph.Node) string {
			if b, ok := p.ended[n]; ok {
				return fmt.Sprintf("build %d %s", b.Number, stopped(b))
			}
			if why := paused[g.Arch(n)]; why != "" {
				return "builds for " + g.Arch(n) + " are paused: " + why
			}
			return ""
		},
	})
	return p, nil
}

// stopped says how a build ended that never became a record.
func stopped(b quarry.Build) string {
	s := "was cancelled"
	if b.State == quarry.Errored {
		s = "was given up by the farm"
	}
	if b.Reason != "" && !strings.HasPrefix(b.Reason, "cancelled") {
		s += " (" + b.Reason + ")"
	}
	return s + ", rebuild starts another"
}

// builds notes what the queue knows; the newest comes first in both lists.
func (p *picture) builds(live, ended []quarry.Build) {
	for _, b := range slices.Backward(live) {
		if n, ok := p.node(b); ok {
			p.live[n] = b
		}
	}
	seen := map[graph.Node]bool{}
	for _, b := range ended {
		n, ok := p.node(b)
		if !ok || seen[n] || b.Commit != p.g.Release(n).Commit {
			continue
		}
		seen[n] = true
		_, underWay := p.live[n]
		if !underWay && (b.State == quarry.Errored || b.State == quarry.Cancelled) {
			p.ended[n] = b
		}
	}
}

func (p *picture) node(b quarry.Build) (graph.Node, bool) {
	n, ok := p.g.Node(b.Package, b.Version, b.Arch)
	return n, ok && p.g.Arch(n) == b.Arch
}

// state is what the records say of a node. One that has an artifact is built for
// those that need it, though its newest build may have failed. A record that
// cannot be read counts as none: the planner reports it as a problem.
func (p *picture) state(recs queue.Records, n graph.Node) graph.State {
	r, arch := p.g.Release(n), p.g.Arch(n)
	ref, ok, err := recs.Lookup(r.Package, r.Version, arch)
	switch {
	case err != nil || !ok:
		return graph.Unbuilt
	case ref.Status == quarry.Succeeded:
		return graph.Built
	}
	if used, ok, err := recs.Resolve(quarry.Branch(r.Package, r.Version), arch); err == nil && ok && used.Package == r.Package && used.Version == r.Version {
		return graph.Built
	}
	if _, underWay := p.live[n]; underWay || ref.Source != r.Commit {
		return graph.Unbuilt
	}
	p.failed[n] = ref.Build
	return graph.BuildFailed
}

// standings are the words that say how releases stand, the worst first.
var standings = []string{"failed", "blocked", "building", "waiting", "ready", "done"}

var standingColours = map[string]human.Colour{
	"failed": human.Red, "blocked": human.Red, "building": human.Blue, "waiting": human.Yellow, "ready": human.Cyan, "done": human.Green,
}

// word says how nodes stand: as the worst of them.
func (p *picture) word(nodes []graph.Node) string {
	worst := len(standings) - 1
	for _, n := range nodes {
		word := p.status.Of(n).String()
		if b, ok := p.live[n]; ok && (b.State == quarry.Running || b.State == quarry.Recording) {
			word = "building"
		} else if _, ok := p.failed[n]; ok {
			word = "failed"
		}
		if i := slices.Index(standings, word); i >= 0 {
			worst = min(worst, i)
		}
	}
	return standings[worst]
}

// why tells why a node is blocked, with the number of the build that failed.
func (p *picture) why(n graph.Node) string {
	chain := p.status.Chain(n)
	if len(chain) == 0 {
		return ""
	}
	return p.numbered(p.status.Explain(n), chain[len(chain)-1])
}

// numbered adds to what is said of a failed build its number.
func (p *picture) numbered(why string, n graph.Node) string {
	if number := p.failed[n]; number > 0 {
		return strings.Replace(why, "its build failed", fmt.Sprintf("its build failed (build %d)", number), 1)
	}
	return why
}

func seconds(d time.Duration) float64 { return d.Round(time.Millisecond).Seconds() }
