package sched

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// paceOf is the pace of a build of which so much is done alone and so much is
// shared among any number of slots.
func paceOf(alone, shared time.Duration) Pace {
	var e Estimator
	e.Observe("a", "x86_64", 0, amdahl(alone, shared, 1000))
	return e.Pace("a", "x86_64", 0)
}

// TestShared: builds that run beside others take longer, and those that are left
// the less.
func TestShared(t *testing.T) {
	job := func(alone, shared int, arrives int) Job {
		p := paceOf(secs(alone), secs(shared))
		return Job{Arch: "x86_64", Takes: p.At(2), Pace: p, Arrives: secs(arrives)} // four slots for two builds
	}
	for _, tt := range []struct {
		name string
		jobs []Job
		ends []float64
	}{
		{"one", []Job{job(0, 100, 0)}, []float64{25}},
		{"two alike", []Job{job(0, 100, 0), job(0, 100, 0)}, []float64{50, 50}},
		{"the longer one gets what is left", []Job{job(0, 100, 0), job(0, 40, 0)}, []float64{35, 20}},
		{"the second comes later", []Job{job(0, 100, 0), job(0, 40, 10)}, []float64{35, 30}},
		{"nobody can share", []Job{job(100, 1, 0), job(50, 1, 0)}, []float64{100.38, 50.5}},
		{"three for two places", []Job{job(0, 40, 0), job(0, 40, 0), job(0, 40, 0)}, []float64{20, 20, 30}},
		{"nothing is known", []Job{{Arch: "x86_64", Takes: secs(7)}, {Arch: "x86_64", Takes: secs(8)}}, []float64{7, 8}},
	} {
		builders := farm(1)
		builders[0].Slots, builders[0].Jobs = 2, 4
		r, err := Simulate(tt.jobs, builders, FIFO, 0)
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range tt.ends {
			if got := r.Ends[i].Seconds(); got < want-0.02 || got > want+0.02 {
				t.Errorf("%s: job %d ends at %v s, want %v", tt.name, i, got, want)
			}
		}
	}
	// With slots that are always full no schedule is quicker.
	builders := farm(1)
	builders[0].Slots, builders[0].Jobs = 2, 4
	if r, _ := Simulate([]Job{job(0, 100, 0), job(0, 40, 0)}, builders, FIFO, 0); r.Ratio() > 1.001 || r.Ratio() < 0.999 {
		t.Errorf("%.4f of the bound", r.Ratio())
	}
}

// TestReplay builds a distribution on a farm whose builds share slots, has an
// estimator watch, and asks it how long the same takes where others are shared
// among more and among fewer builds.
func TestReplay(t *testing.T) {
	play := func(jobs []Job, slots, share int) *Result {
		b := farm(1)
		b[0].Slots, b[0].Jobs = slots, share
		r, err := Simulate(jobs, b, CriticalPath, 1)
		if err != nil || len(r.Unbuilt) > 0 {
			t.Fatal(err, len(r.Unbuilt))
		}
		return r
	}
	jobs := distribution(1000)
	rnd := rand.New(rand.NewPCG(7, 7))
	truth, alone, shared := make([]Pace, len(jobs)), make([]time.Duration, len(jobs)), make([]time.Duration, len(jobs))
	for i := range jobs {
		part := 0.95 * rnd.Float64()
		alone[i] = max(time.Millisecond, time.Duration(float64(jobs[i].Takes)*(1-part)))
		shared[i] = max(time.Millisecond, jobs[i].Takes-alone[i])
		truth[i] = paceOf(alone[i], shared[i])
	}
	with := func(paces []Pace, slots, share int) []Job {
		b := Builder{Slots: slots, Jobs: share}
		list := make([]Job, len(jobs))
		for i := range jobs {
			list[i] = jobs[i]
			list[i].Pace = paces[i]
			list[i].Takes = paces[i].At(b.share(slots))
		}
		return list
	}
	seen := play(with(truth, 4, 8), 4, 8)
	known := make([]Pace, len(jobs))
	fixed := make([]Job, len(jobs)) // as if times were what they were
	for i := range jobs {
		took := seen.Ends[i] - seen.Starts[i]
		n := max(1, shared[i].Seconds()/max(1e-9, (took-alone[i]).Seconds()))
		// Jobs wait for disks now and then, and no time is ever the same.
		ran := Ran{Took: time.Duration(float64(took) * (0.95 + 0.1*rnd.Float64())), CPU: time.Duration(float64(alone[i]+shared[i]) * (0.85 + 0.15*rnd.Float64())),
			SlotTime: took * 2, Width: n, Jobs: 8}
		var one Estimator
		one.Observe("it", "x86_64", 0, ran)
		known[i] = one.Pace("it", "x86_64", 0)
		fixed[i] = jobs[i]
		fixed[i].Takes = took
	}
	for _, farm := range []struct{ slots, share int }{{4, 8}, {2, 8}, {8, 8}, {4, 16}, {1, 2}, {8, 32}} {
		really := play(with(truth, farm.slots, farm.share), farm.slots, farm.share)
		expected := play(with(known, farm.slots, farm.share), farm.slots, farm.share)
		blind := play(fixed, farm.slots, 0)
		off := math.Abs(expected.Makespan.Seconds()/really.Makespan.Seconds() - 1)
		without := math.Abs(blind.Makespan.Seconds()/really.Makespan.Seconds() - 1)
		t.Logf("%d slots among %d builds: %v, expected %v (%.1f%% off); by times alone %v (%.1f%% off)", farm.share, farm.slots, really.Makespan.Round(time.Minute),
			expected.Makespan.Round(time.Minute), 100*off, blind.Makespan.Round(time.Minute), 100*without)
		if off > 0.08 || farm.share/farm.slots != 2 && off > without {
			t.Errorf("%d slots among %d builds: expected %v, and it takes %v", farm.share, farm.slots, expected.Makespan, really.Makespan)
		}
	}
}
