package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/graph"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/sched"
	"github.com/spf13/pflag"
)

// maxBuilders bounds what --builders may ask for.
const maxBuilders = 100_000

func (f *Farm) planVerb() *Verb {
	return &Verb{Name: "plan", Looks: true, MaxArgs: 0, Short: "Show what will be built, in which order and until when",
		Long: "Shows the builds that are wanted now, each with when it is expected to begin and\n" +
			"how long it is expected to take, going by past builds.\n\n" +
			"--simulate plays a whole channel instead, as if everything in it were to be built\n" +
			"at once: in the farm's order (the longest chain first), in the order of the\n" +
			"packages (fifo) and in a random one, and compares each with what no order can\n" +
			"beat: the longest chain, and the work shared among the builders. --file plays a\n" +
			"graph from a file instead (- is standard input; doc/control.md says what is in\n" +
			"it), and --export writes the channel's as such a file.",
		Example: "plan\nplan --simulate --builders 10\nplan --export > farm.json\nplan --simulate --file farm.json",
		Send:    "file",
		Flags: func(fs *pflag.FlagSet) {
			fs.Bool("simulate", false, "play a whole channel in several orders")
			fs.Int("builders", 0, "as if so many builds ran at once (0: as many as here)")
			fs.String("order", "", "with --simulate: only path, fifo or random")
			fs.String("file", "", "with --simulate: a graph and its durations instead of a channel")
			fs.Bool("export", false, "write the channel's graph and durations for --file")
			fs.String("channel", "", "the channel of --simulate and --export (default: where pushes go that name none); else only this one")
			fs.IntP("limit", "n", 20, "how many builds to show")
		},
		Run: f.plan}
}

func (f *Farm) plan(ctx context.Context, c *Call) error {
	simulate, export := c.bool("simulate"), c.bool("export")
	builders := c.int("builders")
	switch {
	case builders < 0 || builders > maxBuilders:
		return usage("plan: --builders is 1 to %d", maxBuilders)
	case simulate && export:
		return usage("plan: --simulate and --export are two things: choose one")
	case !simulate && (c.string("order") != "" || c.string("file") != ""):
		return usage("plan: --order and --file go with --simulate")
	case export && builders > 0:
		return usage("plan: --builders goes with --simulate, or with neither: in a file it is yours to write")
	case c.int("limit") < 0:
		return usage("plan: -n counts builds: it may not be negative")
	}
	switch {
	case export:
		return f.export(ctx, c)
	case simulate:
		return f.simulate(ctx, c, builders)
	}
	return f.wanted(ctx, c, builders)
}

// builders are so many places to build for every arch of some channels; with 0
// those that there are, and their memory. They share this machine's slots.
func (f *Farm) builders(n int, channels []string) []sched.Builder {
	slots := f.Queue.Slots()
	var memory int64
	if n == 0 {
		n, memory = f.Queue.Status().Workers, f.Queue.Memory()
	}
	var workers []graph.Worker
	for _, channel := range channels {
		for _, a := range f.channelArchs(channel) {
			workers = append(workers, graph.Worker{Host: a, Target: a, Cost: graph.DefaultCost})
		}
	}
	return []sched.Builder{{Name: "here", Workers: workers, Slots: n, Memory: memory, Jobs: slots.All, Most: slots.Most}}
}

// Planned is a build that is wanted, and when it is expected.
type Planned struct {
	Build  int64        `json:"build"`
	State  quarry.State `json:"state"`
	Reason string       `json:"reason,omitempty"`
	quarry.Target
	Starts  float64 `json:"starts"`            // seconds from now
	Takes   float64 `json:"takes"`             // seconds; of one that runs, what is left
	Path    float64 `json:"path"`              // seconds, with the longest chain of what waits for it
	Guessed bool    `json:"guessed,omitempty"` // no build of the package has told yet
}

// Plan is what is wanted, in the order in which it is expected to begin. It is a
// forecast and binds nobody.
type Plan struct {
	Builders int       `json:"builders"`
	Builds   []Planned `json:"builds"`  // in the order in which they are expected to begin
	Wanted   int       `json:"wanted"`  // how many there are
	Blocked  int       `json:"blocked"` // wanted, and nothing can build them: they are not among builds
	Seconds  float64   `json:"seconds"` // until all are built
	Work     float64   `json:"work"`    // seconds, one after the other
	Guessed  int       `json:"guessed"`
	Paused   []string  `json:"paused,omitempty"` // why nothing begins just now
}

// afterRunning has what runs come first, whatever its path.
const afterRunning = time.Nanosecond

// wanted shows the builds that are under way.
func (f *Farm) wanted(ctx context.Context, c *Call, builders int) error {
	channels, err := f.someChannels(c)
	if err != nil {
		return err
	}
	out, err := f.forecast(ctx, channels, builders)
	if err != nil {
		return err
	}
	jobs := len(out.Builds)
	if most := c.int("limit"); !c.JSON() || c.Flags.Changed("limit") {
		out.Builds = out.Builds[:min(jobs, most)]
	}
	if c.JSON() {
		return c.emit(out)
	}
	return out.show(c, jobs)
}

// Plan plays the builds of some channels that are under way; of all channels when
// none is named. It fails before everything has been planned once.
func (f *Farm) Plan(ctx context.Context, channels ...string) (*Plan, error) {
	if len(channels) == 0 {
		channels = f.channelNames()
	}
	return f.forecast(ctx, channels, 0)
}

// forecast plays builds under way with so many builders; with 0 those there are.
func (f *Farm) forecast(ctx context.Context, channels []string, slots int) (*Plan, error) {
	out := &Plan{Builds: []Planned{}}
	var jobs []sched.Job
	var builds []quarry.Build
	now := time.Now()
	list := f.builders(slots, channels)
	each := f.Queue.Slots().Each(list[0].Slots)
	for _, channel := range channels {
		p, err := f.picture(ctx, channel)
		if err != nil {
			return nil, err
		}
		for n := range p.live {
			if p.status.Of(n) == graph.Blocked {
				out.Blocked++
			}
		}
		from := int32(len(jobs))
		in := func(n graph.Node) bool { _, ok := p.live[n]; return ok && p.status.Of(n) != graph.Blocked }
		more, nodes := sched.FromGraph(p.g, in, func(n graph.Node, j *sched.Job) {
			b := p.live[n]
			j.Pace = f.Queue.Pace(b.Package, b.Arch)
			j.Takes, j.Arrives = j.Pace.At(each), afterRunning
			j.Memory = f.Queue.MemoryOf(j.Memory)
			if b.State == quarry.Running || b.State == quarry.Recording {
				left := 1 - now.Sub(b.Started).Seconds()/f.Queue.ExpectedOf(b).Seconds()
				j.Takes, j.Arrives, j.Needs = time.Duration(max(left, 0.05)*float64(j.Takes)), 0, nil
			}
			for i := range j.Needs {
				j.Needs[i] += from
			}
		})
		jobs = append(jobs, more...)
		for _, n := range nodes {
			builds = append(builds, p.live[n])
		}
	}
	res, err := sched.Simulate(jobs, list, sched.CriticalPath, 1)
	if err != nil {
		return nil, err
	}
	paths := longest(jobs)
	order := make([]int, len(jobs))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(res.Starts[a], res.Starts[b]), cmp.Compare(paths[b], paths[a]), cmp.Compare(builds[a].Number, builds[b].Number))
	})
	out.Builders, out.Seconds, out.Work = list[0].Slots, seconds(res.Makespan), seconds(res.Work)
	out.Wanted = len(jobs) + out.Blocked
	for _, p := range f.Queue.Status().Paused {
		if p.Environment == nil || slices.Contains(channels, p.Environment.Channel) {
			out.Paused = append(out.Paused, pauseText(p, false))
		}
	}
	for _, i := range order {
		b := builds[i]
		guessed := !f.Queue.Known(b.Package)
		if guessed {
			out.Guessed++
		}
		starts := res.Starts[i]
		if starts <= afterRunning {
			starts = 0
		}
		takes := jobs[i].Takes
		if res.Ends[i] >= 0 {
			takes = res.Ends[i] - res.Starts[i]
		}
		out.Builds = append(out.Builds, Planned{Build: b.Number, State: b.State, Reason: b.Reason, Target: b.Target(),
			Starts: seconds(starts), Takes: seconds(takes), Path: seconds(paths[i]), Guessed: guessed})
	}
	return out, nil
}

// longest gives each job's path: its time and that of the longest chain of jobs
// that wait for it. The jobs are in no cycle.
func longest(jobs []sched.Job) []time.Duration {
	users, left := make([][]int32, len(jobs)), make([]int, len(jobs))
	for i := range jobs {
		for _, d := range jobs[i].Needs {
			users[d] = append(users[d], int32(i))
			left[i]++
		}
	}
	var order []int32
	for i := range jobs {
		if left[i] == 0 {
			order = append(order, int32(i))
		}
	}
	for at := 0; at < len(order); at++ {
		for _, u := range users[order[at]] {
			if left[u]--; left[u] == 0 {
				order = append(order, u)
			}
		}
	}
	paths := make([]time.Duration, len(jobs))
	for _, i := range slices.Backward(order) {
		for _, u := range users[i] {
			paths[i] = max(paths[i], paths[u])
		}
		paths[i] += jobs[i].Takes
	}
	return paths
}

func (p *Plan) show(c *Call, jobs int) error {
	duration := func(s float64) string { return human.Duration(time.Duration(s * float64(time.Second))) }
	switch {
	case p.Wanted == 0:
		_, err := fmt.Fprintln(c.Out, "nothing is wanted: everything that is released has its record")
		return err
	case jobs == 0:
		_, err := fmt.Fprintf(c.Out, "%s wanted, and nothing can build any of them: status --blocked says why\n", human.Count(p.Blocked, "build"))
		return err
	}
	fmt.Fprintf(c.Out, "%s, %s of work: through in about %s with %s\n", human.Count(jobs, "build"), duration(p.Work), duration(p.Seconds), human.Count(p.Builders, "builder"))
	if p.Guessed > 0 {
		fmt.Fprintf(c.Out, "the times of %d are guesses (~), as nothing of their packages was built before\n", p.Guessed)
	}
	if p.Blocked > 0 {
		fmt.Fprintf(c.Out, "nothing can build %d more: status --blocked says why\n", p.Blocked)
	}
	for _, why := range p.Paused {
		fmt.Fprintf(c.Out, "%s\n", human.Safe(why, false))
	}
	fmt.Fprintln(c.Out)
	t := human.Table{Head: []string{"BEGINS", "BUILD", "PACKAGE", "VERSION", "ARCH", "CHANNEL", "STATE", "TAKES", "CHAIN"}, Right: []int{1}, Color: c.Term.Color, Width: c.Term.Width}
	for _, b := range p.Builds {
		begins := "in " + duration(b.Starts)
		switch {
		case b.State == quarry.Running || b.State == quarry.Recording:
			begins = "runs"
		case b.Starts == 0:
			begins = "now"
		}
		takes := duration(b.Takes)
		if b.Guessed {
			takes = "~" + takes
		}
		t.Row(begins, b.Build, b.Package, b.Version, b.Arch, b.Channel, human.Cell(string(b.State), colours[b.State]), takes, duration(b.Path))
	}
	if _, err := t.WriteTo(c.Out); err != nil {
		return err
	}
	if rest := jobs - len(p.Builds); rest > 0 {
		_, err := fmt.Fprintf(c.Out, "... and %s: -n shows more\n", human.Count(rest, "more build"))
		return err
	}
	return nil
}

// orders are those that a simulation plays, by what --order calls them.
var orders = []order{{"path", sched.CriticalPath}, {"fifo", sched.FIFO}, {"random", sched.Random}}

type order struct {
	name   string
	policy sched.Policy
}

// simulationJSON is how a simulation went.
type simulationJSON struct {
	What     string      `json:"what"` // the channel, or the file
	Jobs     int         `json:"jobs"`
	Left     int         `json:"left"` // what nothing can build, and what needs that: not simulated
	Guessed  int         `json:"guessed"`
	Builders int         `json:"builders"` // builds at once
	Work     float64     `json:"work"`     // seconds
	Longest  float64     `json:"longest"`  // seconds of the longest chain
	Share    float64     `json:"share"`    // seconds, the work shared among the builders that can do it
	Bound    float64     `json:"bound"`    // the greater of the two: no order is faster
	Orders   []orderJSON `json:"orders"`
}

type orderJSON struct {
	Order    string  `json:"order"`
	Makespan float64 `json:"makespan"` // seconds from the first begin to the last end
	Ratio    float64 `json:"ratio"`    // of it to the bound
}

func (f *Farm) simulate(ctx context.Context, c *Call, slots int) error {
	only := c.string("order")
	if only != "" && !slices.ContainsFunc(orders, func(o order) bool { return o.name == only }) {
		return usage("plan: --order %.20q is none: there is path, fifo and random", only)
	}
	out := simulationJSON{Orders: []orderJSON{}}
	var jobs []sched.Job
	var builders []sched.Builder
	var file *planFile
	if c.string("file") != "" && c.Who.User == "" {
		// Such a file may have millions of jobs, and anybody may be on the network.
		return &Error{ExitForbidden, errors.New("plan: files are played for those who say who they are")}
	}
	select {
	case f.playing() <- struct{}{}:
		defer func() { <-f.playing() }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if c.string("file") != "" {
		var err error
		if file, err = readJobs(c); err != nil {
			return err
		}
		if jobs, builders, err = file.jobs(); err != nil {
			return err
		}
		out.What = "the file"
		if slots > 0 || len(builders) == 0 {
			builders = file.anyBuilders(max(1, slots))
		}
	} else {
		channel, err := f.oneChannel(c)
		if err != nil {
			return err
		}
		all, nodes, g, err := f.whole(ctx, channel, slots)
		if err != nil {
			return err
		}
		jobs, builders, out.What = all, f.builders(slots, []string{channel}), channel
		out.Left = g.Len() - len(nodes)
		for _, n := range nodes {
			if !f.Queue.Known(g.Release(n).Package) {
				out.Guessed++
			}
		}
	}
	for _, b := range builders {
		out.Builders += max(1, b.Slots)
	}
	for _, o := range orders {
		if only != "" && o.name != only {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		res, err := sched.Simulate(jobs, builders, o.policy, 1)
		if cycle := (*sched.CycleError)(nil); file != nil && errors.As(err, &cycle) {
			return fmt.Errorf("plan: job %.80q is in a cycle of needs, or behind one: leave one of them out", file.Jobs[cycle.Job].Name)
		}
		if err != nil {
			return err
		}
		out.Jobs = len(jobs) - len(res.Unbuilt)
		if len(out.Orders) == 0 {
			out.Left += len(res.Unbuilt)
		}
		out.Work, out.Longest, out.Share, out.Bound = seconds(res.Work), seconds(res.Longest), seconds(res.Share), seconds(res.Bound)
		out.Orders = append(out.Orders, orderJSON{o.name, seconds(res.Makespan), res.Ratio()})
	}
	if c.JSON() {
		return c.emit(out)
	}
	return out.show(c)
}

// whole makes jobs of all that could be built on a channel if nothing was built
// yet, by so many builders; with 0 those that there are.
func (f *Farm) whole(ctx context.Context, channel string, builders int) ([]sched.Job, []graph.Node, *graph.Graph, error) {
	g, err := f.Queue.Graph(channel)
	if err != nil {
		return nil, nil, nil, err
	}
	status := g.Status(graph.StatusOptions{})
	each := f.Queue.Slots().Each(f.builders(builders, nil)[0].Slots)
	jobs, nodes := sched.FromGraph(g, func(n graph.Node) bool { return status.Of(n) != graph.Blocked }, func(n graph.Node, j *sched.Job) {
		j.Pace = f.Queue.Pace(g.Release(n).Package, j.Arch)
		j.Takes = j.Pace.At(each)
		j.Memory = f.Queue.MemoryOf(j.Memory)
	})
	return jobs, nodes, g, ctx.Err()
}

func (s *simulationJSON) show(c *Call) error {
	if s.Jobs == 0 {
		_, err := fmt.Fprintf(c.Out, "%s has nothing that could be built\n", human.Safe(s.What, false))
		return err
	}
	duration := func(s float64) string { return human.Duration(time.Duration(s * float64(time.Second))) }
	fmt.Fprintf(c.Out, "%s: %s with %s of work, on %s\n", human.Safe(s.What, false), human.Count(s.Jobs, "build"), duration(s.Work), human.Count(s.Builders, "builder"))
	if s.Guessed > 0 {
		fmt.Fprintf(c.Out, "the times of %d are guesses, as nothing of their packages was built before\n", s.Guessed)
	}
	if s.Left > 0 {
		fmt.Fprintf(c.Out, "%d more are left out, as nothing can build them\n", s.Left)
	}
	fmt.Fprintln(c.Out)
	slowest := s.Bound
	for _, o := range s.Orders {
		slowest = max(slowest, o.Makespan)
	}
	t := human.Table{Head: []string{"ORDER", "TAKES", "TO BOUND", ""}, Right: []int{2}, Color: c.Term.Color, Width: c.Term.Width}
	row := func(name string, takes, ratio float64, colour human.Colour) {
		over := "-"
		if ratio > 0 {
			over = fmt.Sprintf("%.3f", ratio)
		}
		t.Row(name, duration(takes), over, human.Cell(strings.Repeat("█", max(1, int(takes/slowest*32+0.5))), colour))
	}
	row("longest chain", s.Longest, 0, human.Dim)
	row("shared work", s.Share, 0, human.Dim)
	for _, o := range s.Orders {
		row(o.Order, o.Makespan, o.Ratio, human.Plain)
	}
	_, err := t.WriteTo(c.Out)
	return err
}
