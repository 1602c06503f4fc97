package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"github.com/Morphux/quarry/graph"
	"github.com/Morphux/quarry/internal/human"
	"github.com/spf13/pflag"
)

// Limits on what is drawn.
const (
	maxSVG     = 1500            // nodes and edges are laid out by dot, which is slow
	svgTimeout = 2 * time.Minute // of dot
	maxLines   = 500             // of text on a terminal
)

func (f *Farm) graphVerb() *Verb {
	return &Verb{Name: "graph", Looks: true, Args: "[PACKAGE|NAME-VERSION]", MaxArgs: 1, Short: "Show what needs what",
		Long: "Shows what a package needs, and what that needs in turn; without one, everything\n" +
			"from what nothing else needs on. Each is marked with how it stands: done, ready\n" +
			"to be built, waiting, building, failed, or blocked. A ^ stands for what was shown\n" +
			"above, and ... for what --depth leaves out.\n\n" +
			"--format svg needs Graphviz on the farm's machine; with --format dot you draw it\n" +
			"yourself: graph zlib --reverse --format dot | dot -Tsvg > zlib.svg",
		Example: "graph git\ngraph zlib --reverse --depth 2\ngraph --arch aarch64 --format dot",
		Flags: func(fs *pflag.FlagSet) {
			fs.BoolP("reverse", "r", false, "what needs it, instead of what it needs")
			fs.Int("depth", 0, "only so many steps away (0: all)")
			fs.String("arch", "", "only this arch (default: all in one picture)")
			fs.String("channel", "", "the channel (default: where pushes go that name none)")
			fs.String("format", "text", "text, dot, json or svg")
		},
		Run: f.graph}
}

func (f *Farm) graph(ctx context.Context, c *Call) error {
	channel, err := f.oneChannel(c)
	if err != nil {
		return err
	}
	format := c.string("format")
	if c.JSON() {
		if c.Flags.Changed("format") && format != "json" {
			return usage("graph: --json and --format %.20s are two answers: choose one", format)
		}
		format = "json"
	}
	depth := c.int("depth")
	if depth < 0 {
		return usage("graph: --depth counts steps: it may not be negative")
	}
	p, err := f.picture(ctx, channel)
	if err != nil {
		return err
	}
	q := graph.Query{Arch: c.string("arch"), Reverse: c.bool("reverse"), Depth: depth, Status: p.status, Word: p.word}
	if len(c.Args) > 0 {
		q.Package = c.Args[0]
	}
	sub, err := p.g.Select(q)
	if err != nil {
		return notFound(fmt.Errorf("%w; this is channel %s", err, channel))
	}
	switch format {
	case "text":
		return f.graphText(c, p, q.Package, sub)
	case "json":
		return sub.JSON(c.Out)
	case "dot":
		return sub.DOT(c.Out)
	case "svg":
		return f.svg(ctx, c, sub)
	}
	return usage("graph: --format %.20q is none: there is text, dot, json and svg", format)
}

func (f *Farm) graphText(c *Call, p *picture, pkg string, sub *graph.Sub) error {
	if len(sub.Nodes) == 0 {
		_, err := fmt.Fprintf(c.Out, "nothing is released on %s\n", p.channel)
		return err
	}
	sub.Paint = func(standing, text string) string {
		return human.Paint(text, standingColours[standing], c.Term.Color)
	}
	out := &head{w: c.Out}
	if c.Term.TTY {
		out.left = maxLines
	}
	if err := sub.Text(out); err != nil {
		return err
	}
	if out.more > 0 {
		fmt.Fprintf(c.Out, "... and %s: name a package, give --depth, or have it in a file\n", human.Count(out.more, "more line"))
	}
	cycles := p.g.Cycles()
	if pkg != "" {
		cycles = nil
		if cycle, ok := p.g.CycleThrough(sub.Nodes[sub.Roots[0]].Package); ok {
			cycles = []graph.Cycle{cycle}
		}
	}
	for i, cycle := range cycles {
		if i == maxCycles {
			fmt.Fprintf(c.Out, "... and %s\n", human.Count(len(cycles)-i, "more cycle"))
			break
		}
		fmt.Fprintln(c.Out, human.Paint("cycle", human.Red, c.Term.Color)+": "+human.Safe(cycleText(p.g, cycle), false))
	}
	return nil
}

// maxCycles is how many cycles are told.
const maxCycles = 5

// cycleText is e.g. a 1.0 -> b 2.0 -> a 1.0 (x86_64).
func cycleText(g *graph.Graph, c graph.Cycle) string {
	const ends = 10
	var names []string
	for i, n := range append(c.Path[:len(c.Path):len(c.Path)], c.Path[0]) {
		switch {
		case i < ends || i > len(c.Path)-ends:
			names = append(names, g.Release(n).Package+" "+g.Release(n).Version)
		case i == ends:
			names = append(names, fmt.Sprintf("(%d more)", len(c.Path)-2*ends+1))
		}
	}
	return fmt.Sprintf("%s (%s)", strings.Join(names, " -> "), strings.Join(c.Archs, ", "))
}

// head passes so many lines on and counts the rest. left 0 passes all.
type head struct {
	w          io.Writer
	left, more int
	full       bool
}

func (h *head) Write(p []byte) (int, error) {
	if h.left == 0 && !h.full {
		return h.w.Write(p)
	}
	whole := len(p)
	at := 0
	for at < len(p) && !h.full {
		i := bytes.IndexByte(p[at:], '\n')
		if i < 0 {
			at = len(p)
			break
		}
		at += i + 1
		if h.left--; h.left == 0 {
			h.full = true
		}
	}
	if _, err := h.w.Write(p[:at]); err != nil {
		return 0, err
	}
	h.more += bytes.Count(p[at:], []byte{'\n'})
	return whole, nil
}

// svg has Graphviz draw, one picture at a time: it takes a processor.
func (f *Farm) svg(ctx context.Context, c *Call, sub *graph.Sub) error {
	dot, err := exec.LookPath("dot")
	if err != nil {
		return errors.New("graph: no program dot is on the farm's machine to draw with: install graphviz there, or take --format dot and draw it yourself")
	}
	if n := len(sub.Nodes) + len(sub.Edges); n > maxSVG {
		return usage("graph: %d releases and what they need are too much for one picture: name a package, or give --depth or --arch; or take --format dot", len(sub.Nodes))
	}
	ctx, cancel := context.WithTimeout(ctx, svgTimeout)
	defer cancel()
	select {
	case f.drawing() <- struct{}{}:
		defer func() { <-f.drawing() }()
	case <-ctx.Done():
		return errors.New("graph: others are having pictures drawn: try again later, or take --format dot")
	}
	var in, errOut bytes.Buffer
	if err := sub.DOT(&in); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, dot, "-Tsvg")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = &in, c.Out, &errOut
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("graph: dot has not drawn it within %s: ask for less, or take --format dot", human.Duration(svgTimeout))
		}
		return fmt.Errorf("graph: dot cannot draw it: %w: %.300s", err, strings.TrimSpace(errOut.String()))
	}
	return nil
}

// drawing lets one picture be drawn at a time.
func (f *Farm) drawing() chan struct{} {
	f.drawOnce.Do(func() { f.draws = make(chan struct{}, 1) })
	return f.draws
}

// playing lets one plan be played at a time.
func (f *Farm) playing() chan struct{} {
	f.playOnce.Do(func() { f.plays = make(chan struct{}, 1) })
	return f.plays
}
