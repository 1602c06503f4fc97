package sched

import (
	"cmp"
	"container/heap"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/Morphux/quarry/graph"
)

// Job is a build to simulate.
type Job struct {
	Arch       string
	CanCross   bool // see graph.CanCross
	Takes      time.Duration
	Pace       Pace          // how Takes changes with the slots, on a builder that shares some; zero: it does not
	Expected   time.Duration // what the scheduler believes; 0: Takes
	Memory     int64
	Needs      []int32       // indexes of jobs that have to end first
	Arrives    time.Duration // when it is asked for, from the start
	Background bool
}

func (j *Job) expected() time.Duration {
	if j.Expected > 0 {
		return j.Expected
	}
	return j.Takes
}

// Builder is a machine to simulate.
type Builder struct {
	Name    string
	Workers []graph.Worker // ways in which it builds
	Slots   int            // builds at once; 0: one
	// Jobs are the slots that its builds share evenly, each at least one. Takes of a job
	// is for the part that it has when all Slots are taken. 0: builds take what
	// they take.
	Jobs   int
	Most   int   // of them for one build; 0: all
	Memory int64 // bytes for all of them; 0: no limit
}

// Policy is an order in which to start what could start.
type Policy string

// The policies. The first is what the queue does, the others are to compare with.
const (
	CriticalPath Policy = "critical-path"
	FIFO         Policy = "fifo" // the first in the list of jobs
	Random       Policy = "random"
)

// share is the part that one of so many builds has of the builder's jobs.
func (b *Builder) share(builds int) float64 {
	n := float64(b.Jobs) / float64(max(1, builds))
	if b.Most > 0 {
		n = min(n, float64(b.Most))
	}
	return max(1, n)
}

// takes is how long the job takes there with so many slots.
func (b *Builder) takes(j *Job, slots float64) time.Duration {
	if b.Jobs <= 0 || j.Pace == (Pace{}) {
		return j.Takes
	}
	usual := j.Pace.At(b.share(b.Slots))
	return time.Duration(float64(j.Takes) * j.Pace.At(slots).Seconds() / usual.Seconds())
}

// Result is how a simulation went.
type Result struct {
	Makespan time.Duration
	// No schedule can be faster than Bound, the greater of the longest chain and
	// the work divided by the builders that can do it.
	Bound, Longest, Share time.Duration
	Work                  time.Duration   // all jobs that were built
	Starts, Ends          []time.Duration // by job; -1 for one that was never built
	Builders              []int           // by job; -1
	Unbuilt               []int           // jobs that no builder fits, or that need such a one
	Decisions             int             // starts, and looks at the queue that started nothing
}

// Ratio is the makespan over the bound: 1 is as good as can be.
func (r *Result) Ratio() float64 {
	if r.Bound <= 0 {
		return 1
	}
	return float64(r.Makespan) / float64(r.Bound)
}

// event is the end of a job, or its arrival.
type event struct {
	at      time.Duration
	job     int32
	arrives bool
	turn    int32 // an end counts only if the job still goes at this pace
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].job < e[j].job
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	x := old[len(old)-1]
	*e = old[:len(old)-1]
	return x
}

// simulation is one at work.
type simulation struct {
	jobs     []Job
	builders []Builder
	policy   Policy
	rnd      *rand.Rand

	order   []int32 // what is needed first
	users   [][]int32
	left    []int32 // needs that are not built
	paths   []time.Duration
	classes []string         // by job: what decides who can build it
	can     map[string][]int // by class: builders that fit, the cheapest first
	free    []int            // by builder: slots
	room    map[string]int   // by class: free slots on builders that fit
	running []map[int32]Running

	share []float64 // by builder: slots that each of its builds has
	paces []progress

	queue  Queue[int32]
	events events
	now    time.Duration
	res    *Result
}

// progress is how far a job is.
type progress struct {
	left  float64 // of 1, when the pace last changed
	since time.Duration
	takes time.Duration // all of it, at this pace
	turn  int32
}

// epoch is when simulations begin.
var epoch = time.Unix(0, 0)

// CycleError is of a job that needs itself, directly or through others, or needs
// one that does.
type CycleError struct{ Job int }

func (e *CycleError) Error() string {
	return fmt.Sprintf("job %d is in a cycle, or behind one: cut it first", e.Job)
}

// Simulate plays jobs on builders. A job that needs itself, in a cycle or
// directly, or an index that is out of range, is an error. seed is for Random.
func Simulate(jobs []Job, builders []Builder, policy Policy, seed uint64) (*Result, error) {
	s := &simulation{jobs: jobs, builders: builders, policy: policy, rnd: rand.New(rand.NewPCG(seed, 1)), res: &Result{}}
	if err := s.sort(); err != nil {
		return nil, err
	}
	s.prepare()
	s.bound()
	s.run()
	return s.res, nil
}

// sort finds an order without recursion, and the longest path of each job.
func (s *simulation) sort() error {
	n := len(s.jobs)
	s.users, s.left = make([][]int32, n), make([]int32, n)
	for i := range s.jobs {
		j := &s.jobs[i]
		if j.Takes < 0 || j.Arrives < 0 || j.Expected < 0 {
			return fmt.Errorf("job %d takes or arrives at less than nothing: give times from 0 on", i)
		}
		for _, d := range j.Needs {
			if d < 0 || int(d) >= n {
				return fmt.Errorf("job %d needs job %d, and there are only %d", i, d, n)
			}
			s.users[d] = append(s.users[d], int32(i))
			s.left[i]++
		}
	}
	left := slices.Clone(s.left)
	for i := range s.jobs {
		if left[i] == 0 {
			s.order = append(s.order, int32(i))
		}
	}
	for at := 0; at < len(s.order); at++ {
		for _, u := range s.users[s.order[at]] {
			if left[u]--; left[u] == 0 {
				s.order = append(s.order, u)
			}
		}
	}
	if len(s.order) < n {
		i := slices.IndexFunc(left, func(k int32) bool { return k > 0 })
		return &CycleError{Job: i}
	}
	s.paths = make([]time.Duration, n)
	for at := n - 1; at >= 0; at-- {
		i := s.order[at]
		var longest time.Duration
		for _, u := range s.users[i] {
			longest = max(longest, s.paths[u])
		}
		s.paths[i] = longest + s.jobs[i].expected()
	}
	return nil
}

// prepare finds who can build what.
func (s *simulation) prepare() {
	n := len(s.jobs)
	s.res.Starts, s.res.Ends, s.res.Builders = slices.Repeat([]time.Duration{-1}, n), slices.Repeat([]time.Duration{-1}, n), slices.Repeat([]int{-1}, n)
	s.classes, s.can, s.room = make([]string, n), map[string][]int{}, map[string]int{}
	s.free, s.running = make([]int, len(s.builders)), make([]map[int32]Running, len(s.builders))
	s.share, s.paces = make([]float64, len(s.builders)), make([]progress, n)
	for i := range s.builders {
		s.free[i], s.running[i] = max(1, s.builders[i].Slots), map[int32]Running{}
	}
	never := make([]bool, n)
	for _, i := range s.order {
		j := &s.jobs[i]
		class := j.Arch
		if j.CanCross {
			class += "+cross"
		}
		s.classes[i] = class
		if _, ok := s.can[class]; !ok {
			type offer struct{ builder, cost int }
			var offers []offer
			for k, b := range s.builders {
				if w := graph.Cheapest(b.Workers, j.Arch, j.CanCross); w >= 0 {
					offers = append(offers, offer{k, b.Workers[w].Cost})
				}
			}
			slices.SortStableFunc(offers, func(a, b offer) int { return cmp.Compare(a.cost, b.cost) })
			can := []int{}
			for _, o := range offers {
				can = append(can, o.builder)
				s.room[class] += s.free[o.builder]
			}
			s.can[class] = can
		}
		never[i] = len(s.can[class]) == 0 || slices.ContainsFunc(j.Needs, func(d int32) bool { return never[d] })
		if never[i] {
			s.res.Unbuilt = append(s.res.Unbuilt, int(i))
			s.left[i] = -1
		} else {
			s.res.Work += j.Takes
		}
	}
	slices.Sort(s.res.Unbuilt)
}

// bound works out how fast any schedule could be.
func (s *simulation) bound() {
	ends := make([]time.Duration, len(s.jobs))
	work := map[string]time.Duration{}
	for _, i := range s.order {
		if s.left[i] < 0 {
			continue
		}
		j := &s.jobs[i]
		from := j.Arrives
		for _, d := range j.Needs {
			from = max(from, ends[d])
		}
		// Alone it is quickest, and beside others it takes least of the builder.
		quickest, least := j.Takes, j.Takes
		for k, b := range s.can[s.classes[i]] {
			b := &s.builders[b]
			alone, beside := b.takes(j, b.share(1)), b.takes(j, 1)
			if k == 0 {
				quickest, least = alone, beside
			}
			quickest, least = min(quickest, alone), min(least, beside)
		}
		ends[i] = from + quickest
		s.res.Longest = max(s.res.Longest, ends[i])
		work[s.classes[i]] += least
	}
	// For each set of builders that fits some class: the work that nobody else
	// can do, shared among them.
	room := func(b int) int { return max(s.free[b], s.builders[b].Jobs) }
	for _, can := range s.can {
		in := map[int]bool{}
		slots := 0
		for _, b := range can {
			in[b] = true
			slots += room(b)
		}
		var sum time.Duration
		for class, w := range work {
			if !slices.ContainsFunc(s.can[class], func(b int) bool { return !in[b] }) {
				sum += w
			}
		}
		if slots > 0 {
			s.res.Share = max(s.res.Share, sum/time.Duration(slots))
		}
	}
	all := 0
	for b := range s.free {
		all += room(b)
	}
	if all > 0 {
		var sum time.Duration
		for _, w := range work {
			sum += w
		}
		s.res.Share = max(s.res.Share, sum/time.Duration(all))
	}
	s.res.Bound = max(s.res.Longest, s.res.Share)
}

func (s *simulation) run() {
	for _, i := range s.order {
		if s.left[i] == 0 {
			s.ready(i)
		}
	}
	s.dispatch()
	for len(s.events) > 0 {
		s.now = s.events[0].at
		for len(s.events) > 0 && s.events[0].at == s.now {
			e := heap.Pop(&s.events).(event)
			switch {
			case e.arrives:
				s.enqueue(e.job)
			case e.turn == s.paces[e.job].turn:
				s.end(e.job)
			}
		}
		s.dispatch()
	}
}

func (s *simulation) ready(i int32) {
	if a := s.jobs[i].Arrives; a > s.now {
		heap.Push(&s.events, event{at: a, job: i, arrives: true})
		return
	}
	s.enqueue(i)
}

func (s *simulation) enqueue(i int32) {
	p := Priority{Number: int64(i)}
	switch s.policy {
	case Random:
		p.Number = s.rnd.Int64()
	case CriticalPath:
		p.Path, p.Since, p.Background = s.paths[i], epoch.Add(s.jobs[i].Arrives), s.jobs[i].Background
	}
	s.queue.Set(i, s.classes[i], p)
}

func (s *simulation) end(i int32) {
	b := s.res.Builders[i]
	delete(s.running[b], i)
	s.take(b, -1)
	s.res.Ends[i], s.res.Makespan = s.now, max(s.res.Makespan, s.now)
	for _, u := range s.users[i] {
		if s.left[u] > 0 {
			if s.left[u]--; s.left[u] == 0 {
				s.ready(u)
			}
		}
	}
}

// take takes slots of a builder, or gives them back.
func (s *simulation) take(builder, slots int) {
	s.free[builder] -= slots
	for class, can := range s.can {
		if slices.Contains(can, builder) {
			s.room[class] -= slots
		}
	}
}

// dispatch starts all that can start now.
func (s *simulation) dispatch() {
	gates := make([]*Gate, len(s.builders))
	for {
		to := -1
		s.res.Decisions++
		i, ok := s.queue.Next(func(class string) bool { return s.room[class] > 0 }, func(i int32) bool {
			j := &s.jobs[i]
			for _, b := range s.can[s.classes[i]] {
				if s.free[b] == 0 {
					continue
				}
				if s.builders[b].Memory > 0 {
					if gates[b] == nil {
						gates[b] = s.gate(b)
					}
					if !gates[b].Admit(j.Memory, j.expected()) {
						continue
					}
				}
				to = b
				return true
			}
			return false
		})
		if !ok {
			s.repace()
			return
		}
		j := &s.jobs[i]
		s.res.Starts[i], s.res.Builders[i] = s.now, to
		s.running[to][i] = Running{j.Memory, epoch.Add(s.now + j.expected())}
		s.take(to, 1)
		if s.share[to] == 0 {
			s.share[to] = s.builders[to].share(1)
		}
		s.paces[i] = progress{left: 1}
		s.goOn(i, to)
	}
}

// goOn has a job go on at the pace of its builder's builds.
func (s *simulation) goOn(i int32, builder int) {
	p := &s.paces[i]
	p.since, p.takes = s.now, s.builders[builder].takes(&s.jobs[i], s.share[builder])
	p.turn++
	rest := p.takes
	if p.left < 1 {
		rest = time.Duration(p.left * float64(p.takes))
	}
	heap.Push(&s.events, event{at: s.now + rest, job: i, turn: p.turn})
}

// repace changes the pace of builds that share slots with more or fewer others
// than before.
func (s *simulation) repace() {
	for b := range s.builders {
		n := s.builders[b].share(len(s.running[b]))
		if s.builders[b].Jobs <= 0 || n == s.share[b] || len(s.running[b]) == 0 {
			continue
		}
		s.share[b] = n
		for i := range s.running[b] {
			p := &s.paces[i]
			if p.takes > 0 {
				p.left = max(0, p.left-float64(s.now-p.since)/float64(p.takes))
			}
			s.goOn(i, b)
		}
	}
}

func (s *simulation) gate(b int) *Gate {
	var list []Running
	for _, r := range s.running[b] {
		list = append(list, r)
	}
	return NewGate(s.builders[b].Memory, list, epoch.Add(s.now))
}

// FromGraph makes jobs of a graph's nodes, in the order in which the graph was
// given their releases: those that in takes, nil for all. The
// second result are the nodes, by job. What is needed and not among them counts
// as built; edges that bootstrap cuts do not count. fill sets what the graph does
// not know: Takes above all.
func FromGraph(g *graph.Graph, in func(graph.Node) bool, fill func(graph.Node, *Job)) ([]Job, []graph.Node) {
	var jobs []Job
	var nodes []graph.Node
	at := make(map[graph.Node]int32, g.Len())
	for n := range g.Nodes() {
		if in == nil || in(n) {
			at[n] = int32(len(nodes))
			nodes = append(nodes, n)
		}
	}
	jobs = make([]Job, len(nodes))
	for i, n := range nodes {
		j := &jobs[i]
		j.Arch = g.Arch(n)
		j.Memory = g.Release(n).Traits[j.Arch].Memory
		for _, d := range g.WaitsFor(n) {
			if k, ok := at[d]; ok {
				j.Needs = append(j.Needs, k)
			}
		}
		fill(n, j)
	}
	return jobs, nodes
}
