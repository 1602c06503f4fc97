package control

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/queue"
	use "github.com/Morphux/quarry/usage"
)

// Builder is a machine that builds, as the verb builders shows it.
type Builder struct {
	Name    string              `json:"name"`
	Archs   []string            `json:"archs"`   // that it builds for
	Workers []WorkerStatus      `json:"workers"` // by which ways; none: each arch in a system of its own
	Slots   int                 `json:"slots"`   // builds at once
	Busy    int                 `json:"busy"`
	Builds  []BuilderBuild      `json:"builds"` // that it runs
	Machine use.Machine         `json:"machine"`
	Memory  int64               `json:"memory,omitempty"` // bytes for all builds together; 0: no bound
	Jobs    *BuilderJobs        `json:"jobs,omitempty"`   // that builds may run together; absent where nobody counts them
	Paused  []queue.PauseStatus `json:"paused"`           // why it begins none
}

// BuilderJobs is how many jobs, such as compilers, a builder runs at one time.
type BuilderJobs struct {
	Total   int    `json:"total"`   // that the machine has room for
	Limit   int    `json:"limit"`   // that builds may run now
	Why     string `json:"why"`     // they may run so many
	Granted int    `json:"granted"` // that builds have
	Used    int    `json:"used"`    // that they run
}

// WorkerStatus is one way in which a builder builds.
type WorkerStatus struct {
	Host   string `json:"host"`   // arch that the steps run on
	Target string `json:"target"` // arch that comes out
	Cost   int    `json:"cost"`
	Cross  bool   `json:"cross,omitempty"`
}

// BuilderBuild is a build that a builder runs.
type BuilderBuild struct {
	Build   int64     `json:"build"`
	Package string    `json:"package"`
	Version string    `json:"version"`
	Arch    string    `json:"arch"`
	Channel string    `json:"channel"`
	Step    string    `json:"step,omitempty"`
	Attempt int       `json:"attempt"`
	Started time.Time `json:"started,omitzero"`
}

func (f *Farm) buildersVerb() *Verb {
	return &Verb{Name: "builders", Looks: true, Short: "Show what builds here: its archs, load and builds under way",
		Example: "builders\nbuilders --json",
		Run:     func(_ context.Context, c *Call) error { return f.showBuilders(c) }}
}

// Builders lists what builds for the farm. It is never empty.
func (f *Farm) Builders() []Builder {
	st := f.Queue.Status()
	b := Builder{Name: f.Builder, Archs: []string{}, Workers: []WorkerStatus{}, Slots: st.Workers, Busy: st.Busy, Builds: []BuilderBuild{},
		Machine: use.ThisMachine(), Memory: f.Queue.Memory(), Paused: append([]queue.PauseStatus{}, st.Paused...)}
	for _, ch := range f.Channels {
		b.Archs = append(b.Archs, ch.Archs...)
	}
	for _, w := range f.Workers {
		b.Workers = append(b.Workers, WorkerStatus{w.Host, w.Target, w.Cost, w.Cross})
		b.Archs = append(b.Archs, w.Target)
	}
	if st, ok := f.JobsNow(); ok {
		b.Jobs = &BuilderJobs{st.Total, st.Limit.Slots, st.Limit.Why, st.Granted, st.Used}
	}
	slices.Sort(b.Archs)
	b.Archs = slices.Compact(b.Archs)
	for _, q := range f.Queue.List(queue.Filter{States: []quarry.State{quarry.Running, quarry.Recording}}) {
		b.Builds = append(b.Builds, BuilderBuild{q.Number, q.Package, q.Version, q.Arch, q.Channel, q.Step, q.Attempt, q.Started})
	}
	slices.Reverse(b.Builds)
	return []Builder{b}
}

func (f *Farm) showBuilders(c *Call) error {
	list := f.Builders()
	if c.JSON() {
		return c.emit(list)
	}
	now := time.Now()
	for _, b := range list {
		name := b.Name
		if name == "" {
			name = "this machine"
		}
		fmt.Fprintf(c.Out, "%s: %d of %s busy, for %s\n", human.Paint(name, human.Bold, c.Term.Color), b.Busy, human.Count(b.Slots, "place"), strings.Join(b.Archs, ", "))
		fmt.Fprintln(c.Out, machineText(b.Machine))
		if j := b.Jobs; j != nil {
			fmt.Fprintf(c.Out, "%d of %s in use", j.Used, human.Count(j.Total, "slot"))
			if j.Limit < j.Total {
				fmt.Fprintf(c.Out, ", %d may be: %s", j.Limit, human.Safe(j.Why, false))
			}
			fmt.Fprintln(c.Out)
		}
		for _, w := range b.Workers {
			how := "for itself"
			switch {
			case w.Cross:
				how = "cross"
			case w.Host != w.Target:
				how = "runs there"
			}
			fmt.Fprintf(c.Out, "worker %s for %s, %s, cost %d\n", w.Host, w.Target, how, w.Cost)
		}
		for _, p := range b.Paused {
			fmt.Fprintln(c.Out, pauseText(p, c.Term.Color))
		}
		if len(b.Builds) == 0 {
			continue
		}
		t := human.Table{Head: []string{"BUILD", "PACKAGE", "VERSION", "ARCH", "CHANNEL", "STEP", "SINCE"}, Color: c.Term.Color, Width: c.Term.Width}
		for _, q := range b.Builds {
			t.Row(q.Build, q.Package, q.Version, q.Arch, q.Channel, q.Step, human.Ago(q.Started, now))
		}
		fmt.Fprintln(c.Out)
		if _, err := t.WriteTo(c.Out); err != nil {
			return err
		}
	}
	return nil
}
