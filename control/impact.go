package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/graph"
	"github.com/Morphux/quarry/hooks"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/queue"
	"github.com/Morphux/quarry/recipe"
)

// Confirm says from where on a push needs -o confirm; 0 is never.
type Confirm struct {
	Builds int           // made and made again by it
	Time   time.Duration // that they are expected to take
}

// Limits on what is said of a push.
const (
	maxProposal = 16 << 20 // bytes of a proposal
	maxNames    = 10       // entries of a list
)

// impact answers the hook what a push would cause, as JSON. It looks at one
// snapshot and changes nothing, so that any number of pushes can ask at once.
func (f *Farm) impact(ctx context.Context, c *Call) error {
	if c.In == nil {
		return usage("impact: the push is given as standard input")
	}
	var p hooks.Proposal
	if err := json.NewDecoder(io.LimitReader(c.In, maxProposal)).Decode(&p); err != nil {
		return fmt.Errorf("the push cannot be read: %w", err)
	}
	if err := quarry.CheckName(p.Package); err != nil {
		return err
	}
	channel := p.Channel
	if channel == "" {
		channel = f.Default
	}
	if !f.isChannel(channel) {
		return json.NewEncoder(c.Out).Encode(hooks.Impact{}) // post-receive tells of it
	}
	pushed, err := f.proposed(p, channel)
	if err != nil {
		return err
	}
	out := hooks.Impact{Channels: []hooks.ChannelImpact{}}
	if out.Refuse, err = f.grouped(p, channel); err != nil {
		return err
	}
	builds, longest := 0, 0.0
	for _, name := range f.channelNames() {
		// A branch that goes to another channel leaves the one where it was.
		var here []quarry.Release
		if name == channel {
			here = pushed
		}
		im, err := f.impactOn(ctx, name, p, pushed, here)
		switch {
		case errors.Is(err, queue.ErrUnsurveyed):
			return fmt.Errorf("the farm has just begun, and still reads what there is")
		case err != nil:
			return err
		case im != nil:
			if p.Group != "" { // nothing is built yet
				im.Builds, im.Archs, im.Rebuilds, im.Rebuilt, im.Freed, im.Frees = 0, nil, 0, hooks.Names{}, 0, hooks.Names{}
				im.Seconds, im.Work, im.Guessed, im.Unmet, im.Broken = 0, 0, 0, hooks.Names{}, hooks.Names{}
			}
			out.Channels = append(out.Channels, *im)
			builds += im.Builds + im.Rebuilds
			longest = max(longest, im.Seconds)
		}
	}
	switch limit := f.Confirm; {
	case limit.Builds > 0 && builds > limit.Builds:
		out.Confirm = fmt.Sprintf("it would make up to %s, and more than %d have to be confirmed here", human.Count(builds, "build"), limit.Builds)
	case limit.Time > 0 && longest > limit.Time.Seconds():
		out.Confirm = fmt.Sprintf("it would take %s or more, and more than %s has to be confirmed here",
			human.Duration(time.Duration(longest*float64(time.Second))), human.Duration(limit.Time))
	}
	return json.NewEncoder(c.Out).Encode(out)
}

// proposed makes the releases of a push.
func (f *Farm) proposed(p hooks.Proposal, channel string) ([]quarry.Release, error) {
	var list []quarry.Release
	for _, r := range p.Releases {
		if len(r.Recipe) > recipe.MaxSize {
			return nil, fmt.Errorf("the recipe of version %.80q has more than %d bytes", r.Version, recipe.MaxSize)
		}
		loaded, err := recipe.Parse(r.Recipe)
		if err != nil {
			return nil, fmt.Errorf("the recipe of version %.80q cannot be read: %w", r.Version, err)
		}
		rel := quarry.Release{Package: p.Package, Version: r.Version, Channel: channel, Commit: r.Commit}
		if err := quarry.CheckVersion(rel.Version); err != nil {
			return nil, err
		}
		loaded.Fill(&rel, f.channelArchs(channel))
		graph.Assign(f.Workers, &rel)
		list = append(list, rel)
	}
	return list, nil
}

// change is a push as one channel sees it.
type change struct {
	*Farm
	before, after *graph.Graph
	recs          queue.Records
	live          map[quarry.Target]bool // builds that run or are queued
	built         map[graph.Node]bool    // by node of after
	im            *graph.Impact
	out           hooks.ChannelImpact
}

// impactOn tells what a push causes on a channel: here are the releases that it
// makes there, pushed all of its releases. nil: nothing changes there.
func (f *Farm) impactOn(ctx context.Context, channel string, p hooks.Proposal, pushed, here []quarry.Release) (*hooks.ChannelImpact, error) {
	g, err := f.Queue.Graph(channel)
	if err != nil {
		return nil, err
	}
	var next []quarry.Release
	changed := len(here) > 0
	seen := map[string]bool{}
	for _, n := range g.Of(p.Package) {
		r := g.Release(n)
		if seen[r.Version] {
			continue
		}
		seen[r.Version] = true
		if slices.Contains(p.Gone, r.Version) || slices.ContainsFunc(pushed, func(o quarry.Release) bool { return o.Version == r.Version }) {
			changed = true
			continue
		}
		next = append(next, *r)
	}
	if !changed {
		return nil, nil
	}
	recs, err := f.Queue.Look(ctx, channel)
	if err != nil {
		return nil, err
	}
	ch := &change{Farm: f, before: g, after: g.With(p.Package, append(next, here...)), recs: recs, live: map[quarry.Target]bool{}, built: map[graph.Node]bool{}}
	for _, b := range f.Queue.List(queue.Filter{Channel: channel, States: []quarry.State{quarry.Queued, quarry.Running, quarry.Recording}}) {
		ch.live[b.Target()] = true
	}
	ch.im = graph.Compare(ch.before, ch.after, nil)
	ch.out.Channel = channel
	ch.work()
	ch.needs()
	ch.cycles(p.Package)
	if ch.out.Cycles.All == 0 {
		ch.cuts(p.Package)
	}
	return &ch.out, ctx.Err()
}

// has reports whether there is an artifact of a node of after.
func (ch *change) has(n graph.Node) bool {
	is, ok := ch.built[n]
	if !ok {
		r := ch.after.Release(n)
		ref, there, err := ch.recs.Lookup(r.Package, r.Version, ch.after.Arch(n))
		is = err == nil && there && ref.Status == quarry.Succeeded
		ch.built[n] = is
	}
	return is
}

// work counts the builds and their time. Of what needs what is pushed, that
// which was built is built again; that which was not was going to be built
// anyway, or waits for this push.
func (ch *change) work() {
	const again, frees = 1, 2
	g, out := ch.after, &ch.out
	what := map[graph.Node]int{}
	can := map[graph.Node]bool{} // will be built, as far as its needs go
	archs := map[string]int{}
	rebuilt, freed := map[string]bool{}, map[string]bool{}
	met := func(g *graph.Graph, n graph.Node, there func(graph.Node) bool) bool {
		waits := g.WaitsFor(n)
		for _, need := range g.Needs(n) {
			if need.To == graph.None || slices.Contains(waits, need.To) && !there(need.To) {
				return false
			}
		}
		return true
	}
	there := func(n graph.Node) bool { return can[n] || ch.has(n) || ch.live[g.Target(n)] }
	for _, n := range ch.im.Builds {
		archs[g.Arch(n)]++
		can[n] = met(g, n, there)
		what[n] = again
	}
	for _, n := range ch.im.Rebuilds {
		switch {
		case ch.has(n):
			what[n], can[n] = again, true
			out.Rebuilds++
			addPackage(&out.Rebuilt, rebuilt, g.Release(n).Package)
		case !met(g, n, there) || ch.live[g.Target(n)]:
		default:
			can[n] = true
			if !ch.could(n) {
				what[n] = frees
				out.Freed++
				addPackage(&out.Frees, freed, g.Release(n).Package)
			}
		}
	}
	out.Builds = len(ch.im.Builds)
	for _, a := range slices.Sorted(maps.Keys(archs)) {
		if archs[a] > 0 {
			out.Archs = append(out.Archs, hooks.ArchBuilds{Arch: a, Builds: archs[a]})
		}
	}
	if len(what) == 0 {
		return
	}
	var sum, longest time.Duration
	took := func(n graph.Node) time.Duration { return ch.Queue.Expected(g.Release(n).Package, g.Arch(n)) }
	for n := range what {
		sum += took(n)
		if !ch.Queue.Known(g.Release(n).Package) {
			out.Guessed++
		}
	}
	for _, d := range g.Paths(func(n graph.Node) time.Duration {
		if what[n] == 0 {
			return -1
		}
		return took(n)
	}) {
		longest = max(longest, d)
	}
	out.Builders = max(1, ch.Queue.Status().Workers)
	out.Work, out.Seconds = seconds(sum), seconds(max(longest, sum/time.Duration(out.Builders)))
}

// could reports whether a node had all that it needs before, built or to be
// built. It looks at its needs only: what these need has its own builds.
func (ch *change) could(n graph.Node) bool {
	r := ch.after.Release(n)
	m, ok := ch.before.Node(r.Package, r.Version, ch.after.Arch(n))
	if !ok {
		return false
	}
	for _, need := range ch.before.Needs(m) {
		if need.To == graph.None {
			return false
		}
		t := ch.before.Target(need.To)
		ref, there, err := ch.recs.Lookup(t.Package, t.Version, t.Arch)
		if !ch.live[t] && !(err == nil && there && ref.Status == quarry.Succeeded) {
			return false
		}
	}
	return true
}

// needs tells what nothing offers, of what is pushed and of what others need.
func (ch *change) needs() {
	ch.unmet(&ch.out.Unmet, ch.im.Unmet)
	ch.unmet(&ch.out.Broken, ch.im.Broken)
}

// unmet tells each need once, with the archs that have it.
func (ch *change) unmet(to *hooks.Names, list []graph.BrokenNeed) {
	g := ch.after
	archs := map[string][]string{}
	var order []string
	for _, b := range list {
		if g.Release(b.Node).Declined(g.Arch(b.Node)) != "" {
			continue
		}
		r := g.Release(b.Node)
		text := r.Package + " " + r.Version + strings.TrimPrefix(b.Text, g.String(b.Node))
		if archs[text] == nil {
			order = append(order, text)
		}
		archs[text] = append(archs[text], g.Arch(b.Node))
	}
	for _, text := range order {
		add(to, fmt.Sprintf("%s (%s)", text, archList(archs[text])))
	}
}

// cycles tells those that the push closes, and those that it would close were
// it not for a declaration.
func (ch *change) cycles(pkg string) {
	g := ch.after
	through := false // one of them leads through the package itself
	for _, c := range ch.im.Cycles {
		if ch.closes(c.Path) {
			add(&ch.out.Cycles, cycleText(g, c))
			through = through || slices.ContainsFunc(c.Path, func(n graph.Node) bool { return g.Release(n).Package == pkg })
		}
	}
	if c, ok := g.CycleThrough(pkg); ok && !through && ch.closes(c.Path) {
		add(&ch.out.Cycles, cycleText(g, c))
	}
}

// cuts tells the cycles through the package that a declaration cuts, on any arch.
func (ch *change) cuts(pkg string) {
	g := ch.after
	any := false
	for n := range g.Nodes() {
		if any = g.Release(n).Traits[g.Arch(n)].Bootstrap; any {
			break
		}
	}
	if !any {
		return
	}
	seen := map[string]bool{}
	for _, n := range g.Of(pkg) {
		path := around(g, n)
		if len(path) == 0 {
			continue
		}
		text := cycleText(g, graph.Cycle{Path: path, Archs: []string{g.Arch(n)}})
		for i, m := range path {
			if to := path[(i+1)%len(path)]; !slices.Contains(g.WaitsFor(m), to) && !seen[text] {
				seen[text] = true
				add(&ch.out.Cut, fmt.Sprintf("%s is cut at %s, which is built without %s first, and again when that is there",
					text, g.Release(m).Package, g.Release(to).Package))
			}
		}
	}
}

// around finds a shortest way from a node back to it, over all that is needed.
func around(g *graph.Graph, start graph.Node) []graph.Node {
	from := map[graph.Node]graph.Node{}
	queue := []graph.Node{start}
	for len(queue) > 0 {
		n := queue[0]
		queue = queue[1:]
		for _, d := range g.Deps(n) {
			if d == start {
				path := []graph.Node{n}
				for n != start {
					n = from[n]
					path = append(path, n)
				}
				slices.Reverse(path)
				return path
			}
			if _, seen := from[d]; !seen {
				from[d] = n
				queue = append(queue, d)
			}
		}
	}
	return nil
}

// closes reports whether any step of a way around is new.
func (ch *change) closes(path []graph.Node) bool {
	for i, n := range path {
		to := ch.after.Target(path[(i+1)%len(path)])
		t := ch.after.Target(n)
		m, ok := ch.before.Node(t.Package, t.Version, t.Arch)
		if !ok || !slices.ContainsFunc(ch.before.WaitsFor(m), func(d graph.Node) bool { return ch.before.Target(d) == to }) {
			return true
		}
	}
	return false
}

// add adds a name to a list that tells the first few.
func add(n *hooks.Names, s string) {
	n.All++
	if len(n.List) < maxNames {
		n.List = append(n.List, s)
	}
}

// addPackage adds a package once.
func addPackage(n *hooks.Names, seen map[string]bool, pkg string) {
	if !seen[pkg] {
		seen[pkg] = true
		add(n, pkg)
	}
}
