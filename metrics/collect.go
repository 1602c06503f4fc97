package metrics

import (
	"io/fs"
	"path/filepath"
	"sync"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/queue"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("quarry_"+name, help, labels, nil)
}

func gauge(ch chan<- prometheus.Metric, d *prometheus.Desc, v float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

var (
	queueBuilds  = desc("queue_builds", "Builds under way, by state (running: and recording) and environment.", "state", "channel", "arch", "cross")
	queuePaused  = desc("queue_paused", "1 while no builds are begun.")
	envPaused    = desc("environment_paused", "1 while no builds of an environment are begun.", "channel", "arch", "cross")
	queueProblem = desc("queue_problems", "Branches and packages that cannot be planned.")
	queuePlanned = desc("queue_planned_timestamp_seconds", "When the last full plan ended; 0 before the first.")
	queueLast    = desc("queue_last_number", "The highest number of a build.")
	workers      = desc("workers", "Builds at once, by whether one runs.", "state")
	workspaces   = desc("pool_workspaces", "Clean workspaces, by state: warm (ready), making, busy (in use by a build).", "state", "channel", "arch")
	jobsSlots    = desc("jobs_slots", "Slots of the machine, by state: used (a job runs), unused (a build has it), free (any build may have it), withheld (by the limit).", "state")
	jobsLimit    = desc("jobs_limit", "Slots that builds may take now.")
	jobsBuilds   = desc("jobs_builds", "Builds that have slots (running), and that wait for their first (waiting).", "state")
	jobsClients  = desc("jobs_clients", "Connections of build programs that speak the build control protocol.")
	diskFree     = desc("state_disk_free_bytes", "What the state folder's disk has free.")
	diskSize     = desc("state_disk_size_bytes", "What the state folder's disk holds in all.")
	partSize     = desc("state_used_bytes", "What parts of the state folder take, as measured in the last minutes.", "part")
)

type queueCollector struct{ status func() queue.Status }

func (queueCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{queueBuilds, queuePaused, envPaused, queueProblem, queuePlanned, queueLast, workers} {
		ch <- d
	}
}

func (c queueCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.status()
	paused := 0.0
	envs := map[quarry.Environment]float64{}
	for _, e := range s.Envs {
		envs[e.Environment] = 0
		for state, n := range map[quarry.State]int{quarry.Waiting: e.Waiting, quarry.Queued: e.Queued, quarry.Running: e.Running} {
			gauge(ch, queueBuilds, float64(n), string(state), e.Channel, e.Arch, e.Cross)
		}
	}
	for _, p := range s.Paused {
		if p.Environment == nil {
			paused = 1
		} else {
			envs[*p.Environment] = 1
		}
	}
	for e, v := range envs {
		gauge(ch, envPaused, v, e.Channel, e.Arch, e.Cross)
	}
	gauge(ch, queuePaused, paused)
	gauge(ch, queueProblem, float64(len(s.Problems)))
	planned := 0.0
	if !s.Planned.IsZero() {
		planned = float64(s.Planned.UnixMilli()) / 1000
	}
	gauge(ch, queuePlanned, planned)
	gauge(ch, queueLast, float64(s.Last))
	gauge(ch, workers, float64(s.Busy), "busy")
	gauge(ch, workers, float64(max(0, s.Workers-s.Busy)), "idle")
}

type poolCollector struct{ pool func() []Pool }

func (poolCollector) Describe(ch chan<- *prometheus.Desc) { ch <- workspaces }

func (c poolCollector) Collect(ch chan<- prometheus.Metric) {
	for _, p := range c.pool() {
		for state, n := range map[string]int{"warm": p.Warm, "making": p.Making, "busy": p.Busy} {
			gauge(ch, workspaces, float64(n), state, p.Channel, p.Arch)
		}
	}
}

type jobsCollector struct{ jobs func() (Jobs, bool) }

func (jobsCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{jobsSlots, jobsLimit, jobsBuilds, jobsClients} {
		ch <- d
	}
}

func (c jobsCollector) Collect(ch chan<- prometheus.Metric) {
	j, ok := c.jobs()
	if !ok {
		return
	}
	// Builds that began under a higher limit may have more than the limit for a while.
	for state, n := range map[string]int{"used": j.Used, "unused": j.Out - j.Used, "free": j.Limit - j.Out, "withheld": j.Total - max(j.Limit, j.Out)} {
		gauge(ch, jobsSlots, float64(max(0, n)), state)
	}
	gauge(ch, jobsLimit, float64(j.Limit))
	gauge(ch, jobsBuilds, float64(j.Running), "running")
	gauge(ch, jobsBuilds, float64(j.Waiting), "waiting")
	gauge(ch, jobsClients, float64(j.Clients))
}

// measureEvery is how old the sizes of the state folder's parts may be: to measure
// them is to look at every file.
const measureEvery = 10 * time.Minute

type diskCollector struct {
	state string
	parts map[string]string

	mu        sync.Mutex // guards the following
	sizes     map[string]int64
	measured  time.Time
	measuring bool
}

func (*diskCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- diskFree
	ch <- diskSize
	ch <- partSize
}

func (c *diskCollector) Collect(ch chan<- prometheus.Metric) {
	var s unix.Statfs_t
	if err := unix.Statfs(c.state, &s); err == nil {
		gauge(ch, diskFree, float64(s.Bavail)*float64(s.Bsize))
		gauge(ch, diskSize, float64(s.Blocks)*float64(s.Bsize))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for part, n := range c.sizes {
		gauge(ch, partSize, float64(n), part)
	}
	if !c.measuring && time.Since(c.measured) > measureEvery {
		c.measuring = true
		go c.measure()
	}
}

// measure adds up what the parts take.
func (c *diskCollector) measure() {
	sizes := map[string]int64{}
	for part, dir := range c.parts {
		var n int64
		// What goes away meanwhile, or cannot be looked at, counts as nothing.
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil
			}
			var st unix.Stat_t
			if unix.Lstat(path, &st) == nil {
				n += st.Blocks * 512
			}
			return nil
		})
		sizes[part] = n
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sizes, c.measured, c.measuring = sizes, time.Now(), false
}
