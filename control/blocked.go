package control

import (
	"context"
	"fmt"
	"slices"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/graph"
	"github.com/Morphux/quarry/internal/human"
)

// maxBlocked is how many blocked builds are listed as JSON unless -n says more:
// what blocks them is told of all.
const maxBlocked = 1000

// blockedJSON is what nothing can build on a channel, and why.
type blockedJSON struct {
	Channel  string          `json:"channel"`
	Releases int             `json:"releases"` // releases times archs
	Done     int             `json:"done"`
	Ready    int             `json:"ready"`
	Waiting  int             `json:"waiting"`
	Blocked  int             `json:"blocked"`
	Blockers []graph.Blocker `json:"blockers"` // what blocks most first
	Builds   []blockedBuild  `json:"builds"`   // what is needed first comes first
}

// blockedBuild is a release on an arch that nothing can build.
type blockedBuild struct {
	quarry.Target
	Why     string         `json:"why"`             // one line, down to the first cause
	Reasons []graph.Reason `json:"reasons"`         // all that stand against it itself
	Chain   []string       `json:"chain,omitempty"` // what leads to the first cause, which comes last
	Build   int64          `json:"build,omitempty"` // that failed
}

// maxChain is how much of a chain is listed.
const maxChain = 50

func (f *Farm) blocked(ctx context.Context, c *Call, limit int) error {
	channels, err := f.someChannels(c)
	if err != nil {
		return err
	}
	most := limit
	if c.JSON() && !c.Flags.Changed("limit") {
		limit, most = maxBlocked, 0
	}
	list := []blockedJSON{}
	found := len(c.Args) == 0
	for _, channel := range channels {
		p, err := f.picture(ctx, channel)
		if err != nil {
			return err
		}
		b := p.summary()
		nodes := p.status.List(graph.Blocked)
		if len(c.Args) > 0 {
			of := p.of(c.Args[0])
			found = found || len(of) > 0
			nodes = of[:0]
			for _, n := range of {
				if p.status.Of(n) == graph.Blocked {
					nodes = append(nodes, n)
				}
			}
		} else {
			b.Blockers = append(b.Blockers, p.status.Blockers(most)...)
			for i := range b.Blockers {
				p.explain(&b.Blockers[i])
			}
			if !c.JSON() {
				nodes = besides(nodes, b.Blockers)
			}
		}
		for _, n := range nodes[:min(len(nodes), limit)] {
			b.Builds = append(b.Builds, p.blockedBuild(n))
		}
		if !c.JSON() {
			if err := b.show(c, len(nodes)); err != nil {
				return err
			}
		}
		list = append(list, b)
	}
	switch {
	case !found:
		return notFound(fmt.Errorf("no package or release is called %.80q: see graph", c.Args[0]))
	case c.JSON():
		return c.emit(list)
	}
	return nil
}

func (p *picture) summary() blockedJSON {
	s := p.status
	b := blockedJSON{Channel: p.channel, Done: s.Count(graph.Done), Ready: s.Count(graph.Ready), Waiting: s.Count(graph.Waiting),
		Blocked: s.Count(graph.Blocked), Blockers: []graph.Blocker{}, Builds: []blockedBuild{}}
	b.Releases = b.Done + b.Ready + b.Waiting + b.Blocked
	return b
}

// of gives the nodes of a package, or of a release.
func (p *picture) of(what string) []graph.Node {
	if list := p.g.Of(what); len(list) > 0 {
		return list
	}
	var list []graph.Node
	for i := range what {
		if what[i] == '-' {
			for _, n := range p.g.Of(what[:i]) {
				if p.g.Release(n).Version == what[i+1:] {
					list = append(list, n)
				}
			}
		}
	}
	return list
}

// explain adds what the graph does not know, or does not say in short.
func (p *picture) explain(b *graph.Blocker) {
	if len(b.Nodes) == 0 {
		return
	}
	b.Why = p.numbered(b.Why, b.Nodes[0])
	if cycle, ok := p.g.CycleThrough(p.g.Release(b.Nodes[0]).Package); ok {
		b.Why = "in a cycle: " + cycleText(p.g, cycle)
	}
}

// besides leaves those that are not told of as blockers.
func besides(nodes []graph.Node, blockers []graph.Blocker) []graph.Node {
	told := map[graph.Node]bool{}
	for _, b := range blockers {
		for _, n := range b.Nodes {
			told[n] = true
		}
	}
	return slices.DeleteFunc(nodes, func(n graph.Node) bool { return told[n] })
}

func (p *picture) blockedBuild(n graph.Node) blockedBuild {
	b := blockedBuild{Target: p.g.Target(n), Why: p.why(n), Reasons: p.status.Reasons(n), Build: p.failed[n]}
	chain := p.status.Chain(n)
	for i, m := range chain {
		if i > 0 && (i < maxChain || i == len(chain)-1) {
			b.Chain = append(b.Chain, p.g.String(m))
		}
	}
	return b
}

func (b *blockedJSON) show(c *Call, all int) error {
	if b.Releases == 0 {
		_, err := fmt.Fprintf(c.Out, "%s: nothing is released\n", human.Safe(b.Channel, false))
		return err
	}
	fmt.Fprintf(c.Out, "%s: %s, %d of them built, %d can be built now, %d wait for these, ", human.Safe(b.Channel, false),
		human.Count(b.Releases, "build"), b.Done, b.Ready, b.Waiting)
	if b.Blocked == 0 {
		_, err := fmt.Fprintln(c.Out, "none is blocked")
		return err
	}
	fmt.Fprintln(c.Out, human.Paint(fmt.Sprintf("nothing can build %d", b.Blocked), human.Red, c.Term.Color))
	if len(b.Blockers) > 0 {
		fmt.Fprintln(c.Out, "\nWhat blocks most")
		t := human.Table{Head: []string{"BLOCKS", "WHAT", "ARCHS", "WHY"}, Right: []int{0}, Color: c.Term.Color, Width: c.Term.Width}
		for _, x := range b.Blockers {
			t.Row(x.Blocks, x.Name, archList(x.Archs), fit(c, x.Why, 60))
		}
		if _, err := t.WriteTo(c.Out); err != nil {
			return err
		}
	}
	if len(b.Builds) == 0 {
		return nil
	}
	if all > len(b.Builds) {
		fmt.Fprintf(c.Out, "\nBlocked besides: %d of %d, -n shows more\n", len(b.Builds), all)
	} else if len(c.Args) == 0 {
		fmt.Fprintln(c.Out, "\nBlocked besides")
	} else {
		fmt.Fprintln(c.Out)
	}
	t := human.Table{Head: []string{"PACKAGE", "VERSION", "ARCH", "WHY"}, Color: c.Term.Color, Width: c.Term.Width}
	for _, x := range b.Builds {
		t.Row(x.Package, x.Version, x.Arch, fit(c, x.Why, 45))
	}
	_, err := t.WriteTo(c.Out)
	return err
}

// fit shortens what stands last in a line, beside so many columns of others, to
// what a terminal has.
func fit(c *Call, s string, beside int) string {
	if w := c.Term.Width; w > 0 && len(c.Args) == 0 {
		return shorten(s, max(30, w-beside))
	}
	return s
}

func archList(archs []string) string {
	const most = 3
	s := ""
	for i, a := range archs {
		if i == most {
			return fmt.Sprintf("%s and %d more", s, len(archs)-most)
		}
		if i > 0 {
			s += ", "
		}
		s += a
	}
	return s
}
