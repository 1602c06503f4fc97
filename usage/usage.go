// Package usage keeps what each build used, as it went: a series of samples in
// a small file beside the build's log, and the latest of them for whoever wants
// to look on.
//
// One file holds the series of all attempts at a build (0000/17.usage: folders
// of 1,000 builds). It is appended to while the build runs, so that a daemon
// that is killed leaves what there was; doc/usage.md describes its bytes.
package usage

import (
	"time"

	"github.com/Morphux/quarry/internal/cgroup"
)

// DefaultEvery is the time between two samples where nobody says otherwise.
const DefaultEvery = 3 * time.Second

// Sample is what a build had used, and used, at one moment. In a series the
// values are rounded to the units of doc/usage.md.
type Sample struct {
	At   time.Time `json:"at"`
	Step string    `json:"step"` // that ran, or had just ended
	cgroup.Stat
	Disk cgroup.Count `json:"disk,omitzero"` // bytes of the workspace, when last measured
	Jobs cgroup.Count `json:"jobs,omitzero"` // slots that it has: jobs that it may run now
	Busy cgroup.Count `json:"busy,omitzero"` // jobs that it runs
}

// Build says whose series it is.
type Build struct {
	Number  int64
	Attempt int     // from 1 on
	Memory  int64   // limit in bytes; 0: none is known
	CPUs    float64 // limit; 0: none is known
	// Slots tells how many jobs it may run now and how many it runs; nil: nobody
	// shares out slots.
	Slots func() (jobs, busy int)
}

// Attempt is the series of one attempt at a build.
type Attempt struct {
	Attempt int           `json:"attempt"`
	Began   time.Time     `json:"began"`
	Every   time.Duration `json:"every"`            // nanoseconds; there are samples at the ends of steps besides
	Memory  int64         `json:"memory,omitempty"` // limit in bytes
	CPUs    float64       `json:"cpus,omitempty"`   // limit
	Ended   bool          `json:"ended"`            // in good order; else it runs, or its daemon was killed
	Samples []Sample      `json:"samples"`
}

// Total is what a whole series comes to. What no sample knows is not known.
type Total struct {
	Wall       time.Duration `json:"wall"` // nanoseconds
	User       cgroup.Count  `json:"user_us,omitzero"`
	Sys        cgroup.Count  `json:"sys_us,omitzero"`
	PeakMemory cgroup.Count  `json:"peak_memory,omitzero"`
	PeakAnon   cgroup.Count  `json:"peak_anon,omitzero"` // of the samples
	Read       cgroup.Count  `json:"read,omitzero"`
	Written    cgroup.Count  `json:"written,omitzero"`
	PeakProcs  cgroup.Count  `json:"peak_procs,omitzero"`
	PeakDisk   cgroup.Count  `json:"peak_disk,omitzero"` // of the samples
	OOMKills   cgroup.Count  `json:"oom_kills,omitzero"`
	PidsHits   cgroup.Count  `json:"pids_hits,omitzero"`
	PeakJobs   cgroup.Count  `json:"peak_jobs,omitzero"` // slots that it had; of the samples
	PeakBusy   cgroup.Count  `json:"peak_busy,omitzero"` // jobs that it ran; of the samples
}

// Total sums an attempt up.
func (a *Attempt) Total() Total {
	var t Total
	for i := range a.Samples {
		s := &a.Samples[i]
		t.Wall = max(t.Wall, s.At.Sub(a.Began))
		t.User, t.Sys = t.User.Max(s.User), t.Sys.Max(s.Sys)
		t.PeakMemory = t.PeakMemory.Max(s.PeakMemory).Max(s.Memory)
		t.PeakAnon = t.PeakAnon.Max(s.Anon)
		t.Read, t.Written = t.Read.Max(s.Read), t.Written.Max(s.Written)
		t.PeakProcs = t.PeakProcs.Max(s.PeakProcs).Max(s.Procs)
		t.PeakDisk = t.PeakDisk.Max(s.Disk)
		t.PeakJobs, t.PeakBusy = t.PeakJobs.Max(s.Jobs), t.PeakBusy.Max(s.Busy)
		t.OOMKills, t.PidsHits = t.OOMKills.Max(s.OOMKills), t.PidsHits.Max(s.PidsHits)
	}
	return t
}

// Rate is what happened in the time between two samples.
type Rate struct {
	CPU     cgroup.Count `json:"cpu_percent,omitzero"`        // of one processor: two that are busy are 200
	Read    cgroup.Count `json:"read_per_second,omitzero"`    // bytes
	Written cgroup.Count `json:"written_per_second,omitzero"` // bytes
}

// Between gives the rates from one sample to a later one. They are not known
// when the samples are of the same millisecond.
func Between(a, b *Sample) Rate {
	d := b.At.Sub(a.At)
	if d < time.Millisecond {
		return Rate{}
	}
	per := func(from, to cgroup.Count, scale float64) cgroup.Count {
		if !from.Known || !to.Known {
			return cgroup.Count{}
		}
		return cgroup.Of(int64(max(0, float64(to.N-from.N))*scale/d.Seconds() + 0.5))
	}
	cpu := func(s *Sample) cgroup.Count {
		return cgroup.Count{N: s.User.N + s.Sys.N, Known: s.User.Known && s.Sys.Known}
	}
	return Rate{
		CPU:  per(cpu(a), cpu(b), 1e-4), // µs a second to percent
		Read: per(a.Read, b.Read, 1), Written: per(a.Written, b.Written, 1),
	}
}
