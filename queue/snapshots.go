package queue

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/graph"
	"github.com/Morphux/quarry/sched"
)

// ErrUnsurveyed is the error of Graph before the releases have been read once.
var ErrUnsurveyed = errors.New("the releases have not been read yet: ask again in a moment")

// releases is what git has, as last read by surveys, and the graphs of it. It has
// its own lock and never waits for the queue's owner, nor does that wait for a
// graph to be made.
type releases struct {
	graphOf func(channel string) graph.Options

	mu       sync.Mutex // guards the following
	packages map[string]*packageReleases
	all      bool  // everything has been read once
	changed  int64 // rises with every change
	channels map[string]*channelGraph
}

// packageReleases is a package as last read. It is replaced, never changed.
type packageReleases struct {
	ticket int64
	lines  map[Line]quarry.Release
}

// channelGraph is the newest graph of a channel, and what has changed since.
type channelGraph struct {
	making  sync.Mutex // held while the next one is made; taken before releases.mu
	graph   *graph.Graph
	pending map[string]int64 // packages, and the change that touched each last
}

// afreshAt is how many changed packages make a graph from nothing cheaper than
// one from the last.
const afreshAt = 300

func newReleases(graphOf func(string) graph.Options) *releases {
	return &releases{graphOf: graphOf, packages: map[string]*packageReleases{}, channels: map[string]*channelGraph{}}
}

// learn takes what a survey has read, of one package or (pkg empty) of all.
// Packages, and branches, that could not be read stay as they were known.
func (s *releases) learn(pkg string, list []quarry.Release, problems []Problem, ticket int64) {
	views := map[string]*View{}
	view := func(name string) *View {
		if views[name] == nil {
			views[name] = &View{Package: name, Releases: map[Line]quarry.Release{}}
		}
		return views[name]
	}
	if pkg != "" {
		view(pkg)
	}
	whole := pkg == ""
	for _, p := range problems {
		if p.Package == "" {
			whole = false // packages may be missing only because of it
		} else if pkg == "" || p.Package == pkg {
			v := view(p.Package)
			v.Problems = append(v.Problems, p)
		}
	}
	for _, r := range list {
		if pkg != "" && r.Package != pkg {
			continue
		}
		if v := view(r.Package); checkRelease(r) == nil {
			v.Releases[lineOf(r)] = r
		} else {
			v.Problems = append(v.Problems, Problem{Package: r.Package, Branch: quarry.Branch(r.Package, r.Version)})
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if whole {
		for name := range s.packages {
			view(name)
		}
	}
	for name, v := range views {
		s.replace(name, v, ticket)
	}
	s.all = s.all || pkg == ""
}

// replace enters one package. s.mu is held.
func (s *releases) replace(name string, v *View, ticket int64) {
	old := s.packages[name]
	if old == nil {
		old = &packageReleases{}
	}
	if old.ticket > ticket {
		return
	}
	for l, r := range old.lines {
		if _, ok := v.Releases[l]; !ok && v.unsure(l) {
			v.Releases[l] = r
		}
	}
	next := &packageReleases{ticket: ticket, lines: v.Releases}
	s.packages[name] = next // kept when it is gone too: an older survey may still come
	touched := map[string]bool{}
	for l, r := range next.lines {
		if was, ok := old.lines[l]; !ok || !sameRelease(was, r) {
			touched[l.Channel] = true
		}
	}
	for l := range old.lines {
		if _, ok := next.lines[l]; !ok {
			touched[l.Channel] = true
		}
	}
	if len(touched) == 0 {
		return
	}
	s.changed++
	for channel := range touched {
		s.channel(channel).pending[name] = s.changed
	}
}

// sameRelease reports whether two readings of a branch say the same. The recipe
// is the commit's, and archs are the only other thing that may change.
func sameRelease(a, b quarry.Release) bool {
	return a.Commit == b.Commit && a.Pushed.Equal(b.Pushed) && a.Group == b.Group && a.Stage == b.Stage && slices.Equal(a.Archs, b.Archs)
}

// channel gives the entry of a channel. s.mu is held.
func (s *releases) channel(name string) *channelGraph {
	c := s.channels[name]
	if c == nil {
		c = &channelGraph{pending: map[string]int64{}}
		s.channels[name] = c
	}
	return c
}

// of lists the releases of a channel in some packages. s.mu is held.
func (s *releases) of(channel, pkg string) (list []quarry.Release) {
	p := s.packages[pkg]
	if p == nil {
		return nil
	}
	for l, r := range p.lines {
		if l.Channel == channel {
			list = append(list, r)
		}
	}
	slices.SortFunc(list, func(a, b quarry.Release) int { return strings.Compare(a.Version, b.Version) })
	return list
}

// snapshot gives the graph of a channel as it is now, which is made if anything
// has changed since the last one.
func (s *releases) snapshot(channel string) (*graph.Graph, error) {
	s.mu.Lock()
	if !s.all {
		s.mu.Unlock()
		return nil, ErrUnsurveyed
	}
	c := s.channel(channel)
	if g := c.graph; g != nil && len(c.pending) == 0 {
		s.mu.Unlock()
		return g, nil
	}
	s.mu.Unlock()

	c.making.Lock() // others who want the same wait for this one
	defer c.making.Unlock()
	s.mu.Lock()
	g := c.graph
	if g != nil && len(c.pending) == 0 {
		s.mu.Unlock()
		return g, nil
	}
	afresh := g == nil || len(c.pending) > afreshAt
	names := slices.Sorted(maps.Keys(c.pending))
	if afresh {
		names = slices.Sorted(maps.Keys(s.packages))
	}
	changes := make(map[string][]quarry.Release, len(names))
	total := 0
	for _, name := range names {
		changes[name] = s.of(channel, name)
		total += len(changes[name])
	}
	seen := maps.Clone(c.pending)
	s.mu.Unlock()

	if afresh {
		all := make([]quarry.Release, 0, total)
		for _, name := range names {
			all = append(all, changes[name]...)
		}
		g = graph.New(all, s.graphOf(channel))
	} else {
		for _, name := range names {
			g = g.With(name, changes[name])
		}
	}
	s.mu.Lock()
	c.graph = g
	for name, change := range seen {
		if c.pending[name] == change { // else it has changed again meanwhile
			delete(c.pending, name)
		}
	}
	s.mu.Unlock()
	return g, nil
}

// providedNames are the virtual names that a list of provides may mean.
func providedNames(provides []string) (names []string) {
	for _, p := range graph.Provides("", provides) {
		names = append(names, p.Name)
	}
	return names
}

// Graph is what the releases of a channel need, on each arch, as git was last
// read: an immutable snapshot. It costs nothing when nothing has changed, and
// after a push what that has changed; who asks does that work, never the queue.
// It fails with ErrUnsurveyed before everything has been read once.
func (q *Queue) Graph(channel string) (*graph.Graph, error) {
	if err := quarry.CheckChannel(channel); err != nil {
		return nil, err
	}
	return q.releases.snapshot(channel)
}

// durations knows how long builds take, from those of the past.
type durations struct {
	mu       sync.Mutex // guards the following
	est      sched.Estimator
	observed int64 // rises with every build that has told
}

func (d *durations) observe(p Past) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.est.Observe(p.Package, p.Arch, p.Size, p.Ran)
	d.observed++
}

// Past is a build of the past that succeeded.
type Past struct {
	Package, Arch string
	Size          int64 // of its sources, in bytes; 0: not known
	sched.Ran
}

// pastOf is what an outcome teaches.
func pastOf(o *quarry.Outcome) Past {
	return Past{Package: o.Build.Package, Arch: o.Build.Arch, Size: o.Usage.SourceSize, Ran: sched.Ran{
		Took: o.Ended.Sub(o.Started), CPU: o.Usage.User + o.Usage.Sys,
		SlotTime: o.Usage.SlotTime, Width: o.Usage.Width, Jobs: o.Host.Jobs, CPUs: o.Host.CPUs,
	}}
}

// Slots is how the slots of this machine are shared just now: the right to run one
// job each.
type Slots struct {
	All  int // that there are for all builds; 0: nobody shares them out
	Most int // that one build has at most; 0: All
	// Of is how many of them each build that runs may count on while it has a use for
	// them.
	Of map[int64]float64
}

// Each is how many slots a build may count on where so many run at one time; 0
// where nobody shares them out.
func (s Slots) Each(builds int) float64 {
	if s.All <= 0 {
		return 0
	}
	n := float64(s.All) / float64(max(1, builds))
	if s.Most > 0 {
		n = min(n, float64(s.Most))
	}
	return max(1, n)
}

// Slots tells how the machine's slots are shared just now.
func (q *Queue) Slots() Slots {
	if q.opts.Slots == nil {
		return Slots{}
	}
	return q.opts.Slots()
}

// Pace is how long a build of a package on an arch will take, with so many slots,
// going by the builds of the past; see [sched.Estimator].
func (q *Queue) Pace(pkg, arch string) sched.Pace {
	q.durations.mu.Lock()
	defer q.durations.mu.Unlock()
	return q.durations.est.Pace(pkg, arch, 0)
}

// Expected is how long a build of a package on an arch will take when all workers
// are at work and the machine's slots are shared among them.
func (q *Queue) Expected(pkg, arch string) time.Duration {
	return q.Pace(pkg, arch).At(q.Slots().Each(q.opts.Workers))
}

// ExpectedOf is how long a build will take, all in all: one that runs with the slots
// that it may count on just now, any other as Expected says.
func (q *Queue) ExpectedOf(b quarry.Build) time.Duration {
	slots := q.Slots()
	n := slots.Each(q.opts.Workers)
	if of := slots.Of[b.Number]; of > 0 && b.State == quarry.Running {
		n = of
	}
	return q.Pace(b.Package, b.Arch).At(n)
}

// Width is how many jobs at one time the builds of a package on an arch had a use
// for, of late; 0 before one has told.
func (q *Queue) Width(pkg, arch string) float64 {
	if !q.Known(pkg) {
		return 0
	}
	return q.Pace(pkg, arch).Usual()
}

// remember reads the builds of the past, beside all else.
func (q *Queue) remember(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("reading the builds of the past panicked: %v", p)
		}
	}()
	if q.opts.Past == nil {
		return nil
	}
	return q.opts.Past(ctx, func(p Past) { q.durations.observe(p) })
}
