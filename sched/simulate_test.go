package sched

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry/graph"
	"github.com/Morphux/quarry/graph/graphtest"
)

func farm(n int, workers ...string) []Builder {
	if len(workers) == 0 {
		workers = []string{"x86_64:x86_64"}
	}
	ws, err := graph.ParseWorkers(workers)
	if err != nil {
		panic(err)
	}
	var list []Builder
	for i := range n {
		list = append(list, Builder{Name: fmt.Sprint("b", i), Workers: ws})
	}
	return list
}

func TestSimulate(t *testing.T) {
	job := func(s int, needs ...int32) Job { return Job{Arch: "x86_64", Takes: secs(s), Needs: needs} }
	for _, tt := range []struct {
		name     string
		jobs     []Job
		builders []Builder
		fifo, cp int
		bound    int
	}{
		{"one", []Job{job(5)}, farm(1), 5, 5, 5},
		{"none", nil, farm(1), 0, 0, 0},
		// The chain of three tens has to begin at once.
		{"chain last", []Job{job(10), job(10), job(10), job(10), job(10, 5), job(10)}, farm(2), 40, 30, 30},
		{"chain", []Job{job(1), job(2, 0), job(3, 1)}, farm(5), 6, 6, 6},
		{"work", []Job{job(3), job(3), job(3), job(3)}, farm(2), 6, 6, 6},
	} {
		for policy, want := range map[Policy]int{FIFO: tt.fifo, CriticalPath: tt.cp} {
			r, err := Simulate(tt.jobs, tt.builders, policy, 1)
			if err != nil || r.Makespan != secs(want) || r.Bound != secs(tt.bound) {
				t.Errorf("%s, %s: %v (bound %v, %v), want %d s", tt.name, policy, r.Makespan, r.Bound, err, want)
			}
		}
	}
	for _, tt := range []struct{ jobs, want string }{
		{"self", "is in a cycle"}, {"range", "needs job 7, and there are only 1"}, {"time", "less than nothing"},
	} {
		j := map[string]Job{"self": job(1, 0), "range": job(1, 7), "time": job(-1)}[tt.jobs]
		if _, err := Simulate([]Job{j}, farm(1), FIFO, 0); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.jobs, err)
		}
	}
}

func TestSimulateArchs(t *testing.T) {
	builders := append(farm(1, "x86_64:x86_64:10", "x86_64:aarch64:300"), farm(1, "aarch64:aarch64:100")...)
	jobs := []Job{
		{Arch: "aarch64", Takes: secs(10), CanCross: true},
		{Arch: "aarch64", Takes: secs(10)},
		{Arch: "x86_64", Takes: secs(30)},
		{Arch: "noarch", Takes: secs(5)},
		{Arch: "riscv64", Takes: secs(5)},
		{Arch: "noarch", Takes: secs(5), Needs: []int32{4}},
		{Arch: "noarch", Takes: secs(5), Arrives: secs(100)},
	}
	r, err := Simulate(jobs, builders, CriticalPath, 0)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(r.Unbuilt, []int{4, 5}) || r.Builders[1] != 1 || r.Builders[2] != 0 || r.Starts[6] != secs(100) || r.Makespan != secs(105) {
		t.Errorf("%+v", r)
	}
	if r.Bound != secs(105) || r.Longest != secs(105) || r.Work != secs(60) {
		t.Errorf("%+v", r)
	}
}

// Whatever is played, the rules hold: nothing before what it needs or before it
// is asked for, no more at once than there is room for, nothing left out, and
// nothing faster than the bound.
func TestSimulateRules(t *testing.T) {
	archs := []string{"x86_64", "aarch64", "noarch", "riscv64"}
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		jobs := make([]Job, 1+rnd.IntN(120))
		for i := range jobs {
			jobs[i] = Job{Arch: archs[rnd.IntN(len(archs))], CanCross: rnd.IntN(2) == 0, Takes: secs(rnd.IntN(50)),
				Expected: secs(rnd.IntN(50)), Memory: int64(rnd.IntN(120)), Arrives: secs(rnd.IntN(2) * rnd.IntN(100)), Background: rnd.IntN(4) == 0}
			if rnd.IntN(2) == 0 {
				jobs[i].Pace = paceOf(secs(1+rnd.IntN(50)), secs(1+rnd.IntN(200)))
			}
			for range rnd.IntN(3) {
				if i > 0 {
					jobs[i].Needs = append(jobs[i].Needs, int32(rnd.IntN(i)))
				}
			}
		}
		builders := append(farm(1+rnd.IntN(3), "x86_64:x86_64", "x86_64:aarch64:300"), farm(rnd.IntN(3), "aarch64:aarch64:50")...)
		for i := range builders {
			builders[i].Slots, builders[i].Memory, builders[i].Jobs = rnd.IntN(4), int64(rnd.IntN(2)*100), rnd.IntN(2)*rnd.IntN(9)
			builders[i].Most = rnd.IntN(5)
		}
		for _, policy := range []Policy{CriticalPath, FIFO, Random} {
			r, err := Simulate(jobs, builders, policy, seed)
			if err != nil {
				t.Fatal(err)
			}
			checkRules(t, fmt.Sprintf("seed %d, %s", seed, policy), jobs, builders, r)
		}
	}
}

func checkRules(t *testing.T, name string, jobs []Job, builders []Builder, r *Result) {
	t.Helper()
	if r.Makespan < r.Bound-time.Microsecond && r.Makespan > 0 { // paces are rounded
		t.Errorf("%s: %v is faster than %v", name, r.Makespan, r.Bound)
	}
	never := map[int]bool{}
	for _, i := range r.Unbuilt {
		never[i] = true
	}
	for i, j := range jobs {
		start := r.Starts[i]
		if (start < 0) != never[i] {
			t.Fatalf("%s: job %d starts at %v, unbuilt %v", name, i, start, never[i])
		}
		if start < 0 {
			reason := false
			for _, d := range j.Needs {
				reason = reason || never[int(d)]
			}
			for _, b := range builders {
				if graph.Cheapest(b.Workers, j.Arch, j.CanCross) >= 0 && !reason {
					t.Fatalf("%s: job %d could have been built", name, i)
				}
			}
			continue
		}
		b := builders[r.Builders[i]]
		took := r.Ends[i] - start
		if quick, slow := b.takes(&j, b.share(1)), b.takes(&j, b.share(b.Slots)); took < quick-time.Microsecond || took > slow+time.Microsecond {
			t.Fatalf("%s: job %d takes %v, and there are %v to %v", name, i, took, quick, slow)
		}
		if graph.Cheapest(b.Workers, j.Arch, j.CanCross) < 0 || start < j.Arrives {
			t.Fatalf("%s: job %d on %s at %v", name, i, b.Name, start)
		}
		for _, d := range j.Needs {
			if r.Ends[d] > start {
				t.Fatalf("%s: job %d does not wait for %d", name, i, d)
			}
		}
		running, memory := 0, int64(0)
		for k, o := range jobs {
			if r.Builders[k] == r.Builders[i] && r.Starts[k] <= start && start < r.Ends[k] {
				running++
				memory += min(o.Memory, b.Memory)
			}
		}
		if running > max(1, b.Slots) || memory > b.Memory && b.Memory > 0 {
			t.Fatalf("%s: %d builds with %d bytes on %s with %d slots and %d bytes", name, running, memory, b.Name, b.Slots, b.Memory)
		}
	}
}

// distribution makes jobs of a generated distribution on one arch.
func distribution(packages int) []Job {
	d := graphtest.Generate(graphtest.Options{Packages: packages, Archs: []string{"x86_64"}, Seed: 3})
	g := graph.New(d.Releases, graph.Options{Archs: []string{"x86_64"}})
	s := g.Status(graph.StatusOptions{})
	jobs, _ := FromGraph(g, func(n graph.Node) bool { return s.Of(n) != graph.Blocked }, func(n graph.Node, j *Job) {
		j.Takes = d.Takes(g.Release(n).Package, g.Arch(n))
	})
	return jobs
}

// A whole distribution is built nearly as fast as can be, and faster than in the
// order of its names or of dice. There is no luck in it: all is given by seeds.
func TestDistribution(t *testing.T) {
	jobs := distribution(2000)
	for _, n := range []int{2, 10, 100} {
		ratio := map[Policy]float64{}
		for _, p := range []Policy{CriticalPath, FIFO, Random} {
			r, err := Simulate(jobs, farm(n), p, 1)
			if err != nil || len(r.Unbuilt) > 0 {
				t.Fatal(err, len(r.Unbuilt))
			}
			ratio[p] = r.Ratio()
		}
		t.Logf("%d builders: %.3f of the bound, first in first out %.3f, random %.3f", n, ratio[CriticalPath], ratio[FIFO], ratio[Random])
		if ratio[CriticalPath] > 1.05 || ratio[CriticalPath] > ratio[FIFO] || ratio[CriticalPath] > ratio[Random] {
			t.Errorf("%d builders: %v", n, ratio)
		}
	}
}

func BenchmarkMakespan(b *testing.B) {
	for _, packages := range []int{1_000, 10_000} {
		jobs := distribution(packages)
		for _, n := range []int{2, 10, 100} {
			for _, p := range []Policy{CriticalPath, FIFO, Random} {
				b.Run(fmt.Sprintf("%d/%d/%s", packages, n, p), func(b *testing.B) {
					var r *Result
					for b.Loop() {
						r, _ = Simulate(jobs, farm(n), p, 1)
					}
					b.ReportMetric(r.Ratio(), "x-bound")
					b.ReportMetric(r.Makespan.Hours(), "makespan-h")
					b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)/float64(r.Decisions)*1e9, "ns/decision")
				})
			}
		}
	}
}

// BenchmarkNext is what a decision costs beside so many builds that wait, of ten
// environments.
func BenchmarkNext(b *testing.B) {
	for _, n := range []int{1_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var q Queue[int]
			set := func(k int) {
				q.Set(k, graphtest.Archs[k%10], Priority{Path: time.Duration(k*7919%100003) * time.Second, Number: int64(k)})
			}
			for k := range n {
				set(k)
			}
			for b.Loop() {
				k, _ := q.Next(nil, nil)
				set(k)
			}
		})
	}
}
