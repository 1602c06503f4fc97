package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/graph"
	"github.com/Morphux/quarry/sched"
)

// maxPlanFile bounds what --file may hold, in bytes.
const maxPlanFile = 64 << 20

// planFile is a graph with durations, for plan --simulate. It is version 1 of its
// form, which doc/control.md writes down.
type planFile struct {
	Version  int           `json:"quarry_plan"`
	Builders []planBuilder `json:"builders,omitempty"`
	Jobs     []planJob     `json:"jobs"`
}

type planBuilder struct {
	Name    string   `json:"name,omitempty"`
	Workers []string `json:"workers"`          // hostarch:targetarch:cost[:iscross]
	Slots   int      `json:"slots,omitempty"`  // builds at once; absent: one
	Memory  int64    `json:"memory,omitempty"` // bytes for all of them; absent: no limit
	Jobs    int      `json:"jobs,omitempty"`   // that its builds share evenly; absent: each takes what it takes
}

type planJob struct {
	Name       string   `json:"name"` // any text, once in a file
	Arch       string   `json:"arch"`
	Seconds    float64  `json:"seconds"`              // that it takes
	Shared     float64  `json:"shared,omitempty"`     // part, 0 to 1, of what it takes with one job at a time, that is shared by more
	Expected   float64  `json:"expected,omitempty"`   // that the scheduler believes it takes; absent: the same
	Memory     int64    `json:"memory,omitempty"`     // bytes
	Needs      []string `json:"needs,omitempty"`      // names of what has to be built first
	Arrives    float64  `json:"arrives,omitempty"`    // seconds from the start until it is asked for
	Background bool     `json:"background,omitempty"` // mass work, which comes behind all other
	Cross      bool     `json:"cross,omitempty"`      // a cross builder may build it
}

func readJobs(c *Call) (*planFile, error) {
	if c.string("file") != "-" || c.In == nil {
		return nil, usage("plan: --file is read where you are: send it as standard input (plan --simulate --file - < FILE)")
	}
	var file planFile
	dec := json.NewDecoder(io.LimitReader(c.In, maxPlanFile))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&file); err != nil {
		return nil, fmt.Errorf("plan: the file cannot be read: %w: doc/control.md says what is in it, and plan --export writes one", err)
	}
	if file.Version != 1 {
		return nil, fmt.Errorf("plan: the file has \"quarry_plan\": %d, and 1 is known here", file.Version)
	}
	if len(file.Jobs) == 0 {
		return nil, errors.New("plan: the file has no jobs: plan --export writes some")
	}
	return &file, nil
}

// jobs gives what is to be simulated.
func (p *planFile) jobs() ([]sched.Job, []sched.Builder, error) {
	at := make(map[string]int32, len(p.Jobs))
	for i, j := range p.Jobs {
		if _, ok := at[j.Name]; ok || j.Name == "" {
			return nil, nil, fmt.Errorf("plan: jobs[%d] has the name %.80q, which is blank or there already: give each its own", i, j.Name)
		}
		at[j.Name] = int32(i)
	}
	jobs := make([]sched.Job, len(p.Jobs))
	archs := map[string]bool{}
	needed := make([]int32, len(p.Jobs)) // by whom last, from 1
	for i, j := range p.Jobs {
		if err := quarry.CheckArch(j.Arch); err != nil {
			return nil, nil, fmt.Errorf("plan: job %.80q: %w", j.Name, err)
		}
		if archs[j.Arch] = true; len(archs) > maxFileArchs {
			return nil, nil, fmt.Errorf("plan: the jobs are for more than %d archs: leave some out", maxFileArchs)
		}
		var times [3]time.Duration
		for k, s := range []float64{j.Seconds, j.Expected, j.Arrives} {
			if !(s >= 0 && s <= 1e8) { // no number is neither
				return nil, nil, fmt.Errorf("plan: job %.80q takes, or arrives after, %g seconds: 0 to 100000000 are taken", j.Name, s)
			}
			times[k] = time.Duration(s * float64(time.Second))
		}
		jobs[i] = sched.Job{Arch: j.Arch, CanCross: j.Cross, Takes: times[0], Expected: times[1], Arrives: times[2], Memory: j.Memory, Background: j.Background}
		if !(j.Shared >= 0 && j.Shared <= 1) {
			return nil, nil, fmt.Errorf("plan: job %.80q shares %g of its time: a part is 0 to 1", j.Name, j.Shared)
		}
		for _, need := range j.Needs {
			k, ok := at[need]
			if !ok {
				return nil, nil, fmt.Errorf("plan: job %.80q needs %.80q, which is no job of the file: name one, or leave it out as built", j.Name, need)
			}
			if needed[k] != int32(i)+1 {
				needed[k] = int32(i) + 1
				jobs[i].Needs = append(jobs[i].Needs, k)
			}
		}
	}
	var builders []sched.Builder
	slots := 0
	for i, b := range p.Builders {
		workers, err := graph.ParseWorkers(b.Workers)
		if err != nil {
			return nil, nil, fmt.Errorf("plan: builders[%d]: %w", i, err)
		}
		if slots += b.Slots; b.Slots < 0 || b.Slots > maxBuilders || slots > maxBuilders || i >= maxFileBuilders {
			return nil, nil, fmt.Errorf("plan: builders[%d]: at most %d builders with %d slots together are simulated", i, maxFileBuilders, maxBuilders)
		}
		if b.Jobs < 0 || b.Jobs > maxFileShared {
			return nil, nil, fmt.Errorf("plan: builders[%d]: its builds share %d jobs, and 0 to %d are taken", i, b.Jobs, maxFileShared)
		}
		builders = append(builders, sched.Builder{Name: b.Name, Workers: workers, Slots: b.Slots, Memory: b.Memory, Jobs: b.Jobs})
	}
	// Times are of the first builder that shares jobs, when all its places are taken.
	for _, b := range builders {
		if b.Jobs > 0 {
			for i := range jobs {
				jobs[i].Pace = sched.NewPace(jobs[i].Takes, float64(b.Jobs)/float64(max(1, b.Slots)), p.Jobs[i].Shared)
			}
			break
		}
	}
	return jobs, builders, nil
}

// Bounds on a file: each builder is looked at for each job, and so is each arch.
const (
	maxFileBuilders = 1000
	maxFileArchs    = 100
	maxFileShared   = 1024
)

// anyBuilders are so many places to build for every arch that the file has.
func (p *planFile) anyBuilders(slots int) []sched.Builder {
	var workers []graph.Worker
	for _, j := range p.Jobs {
		w := graph.Worker{Host: j.Arch, Target: j.Arch, Cost: graph.DefaultCost}
		if !slices.Contains(workers, w) {
			workers = append(workers, w)
		}
	}
	return []sched.Builder{{Workers: workers, Slots: slots}}
}

// export writes the channel's graph as a file for --simulate.
func (f *Farm) export(ctx context.Context, c *Call) error {
	channel, err := f.oneChannel(c)
	if err != nil {
		return err
	}
	jobs, nodes, g, err := f.whole(ctx, channel, 0)
	if err != nil {
		return err
	}
	file := planFile{Version: 1, Jobs: make([]planJob, len(jobs))}
	for _, b := range f.builders(0, []string{channel}) {
		out := planBuilder{Name: b.Name, Slots: b.Slots, Memory: b.Memory, Jobs: min(b.Jobs, maxFileShared)}
		for _, w := range b.Workers {
			out.Workers = append(out.Workers, w.String())
		}
		file.Builders = append(file.Builders, out)
	}
	for i, j := range jobs {
		file.Jobs[i] = planJob{Name: g.String(nodes[i]), Arch: j.Arch, Seconds: seconds(j.Takes), Shared: math.Round(j.Pace.Part()*1000) / 1000, Memory: j.Memory, Cross: j.CanCross}
		for _, d := range j.Needs {
			file.Jobs[i].Needs = append(file.Jobs[i].Needs, g.String(nodes[d]))
		}
	}
	return c.emit(file)
}
