package config

import (
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"time"

	"github.com/Morphux/quarry/jobs"
)

// Jobs says how the machine's slots are shared: the jobs that all builds together
// run at one time. doc/jobs.md tells all of it.
type Jobs struct {
	Total   int    `toml:"total"`   // slots; 0: one for each processor, or for each of build.workers if these are more
	Min     int    `toml:"min"`     // that each build has at least, where the limit allows
	Max     int    `toml:"max"`     // that a build has at most; 0: all
	Enforce string `toml:"enforce"` // none, weight or quota: whether processor time follows slots

	Schedule    []string `toml:"schedule"`     // e.g. ["Mon-Fri 09:00-18:00 2", "else all"]; the first that fits counts
	Present     int      `toml:"present"`      // slots while somebody works at the machine; 0: all
	AwayAfter   Duration `toml:"away_after"`   // without a sign of anybody
	Others      bool     `toml:"others"`       // what others' processes take is not the builds'
	Battery     int      `toml:"battery"`      // slots without mains; 0: all
	MemoryStall int      `toml:"memory_stall"` // percent of the time waited for memory, from which on there are fewer; 0: never

	Listen string `toml:"listen"` // address of the build control protocol, e.g. 127.0.0.1:6695; blank: only Unix sockets
}

func defaultJobs() Jobs {
	return Jobs{Min: 1, Enforce: jobs.EnforceNone, AwayAfter: Duration(10 * time.Minute), Others: true, MemoryStall: 10}
}

// Slots is the number of jobs of all builds together.
func (c *Config) Slots() int {
	if c.Jobs.Total > 0 {
		return c.Jobs.Total
	}
	// Who asks for more builds at once than there are processors means it.
	return max(runtime.NumCPU(), c.Build.Workers)
}

// MostSlots is the number of jobs of one build at most.
func (c *Config) MostSlots() int {
	if c.Jobs.Max > 0 {
		return min(c.Jobs.Max, c.Slots())
	}
	return c.Slots()
}

// Policy is when there are fewer slots.
func (j Jobs) Policy() jobs.Policy {
	p := jobs.Policy{
		Present: j.Present, AwayAfter: time.Duration(j.AwayAfter), Others: j.Others, Battery: j.Battery, MemoryStall: float64(j.MemoryStall),
	}
	for _, text := range j.Schedule {
		if r, err := jobs.ParseRule(text); err == nil { // check has seen to it
			p.Schedule = append(p.Schedule, r)
		}
	}
	return p
}

func (j Jobs) check(most int) error {
	for _, n := range []struct {
		key string
		n   int
	}{{"total", j.Total}, {"max", j.Max}, {"present", j.Present}, {"battery", j.Battery}} {
		if n.n < 0 || n.n > jobs.MaxSlots {
			return fmt.Errorf("jobs.%s is %d: use 1 to %d slots, or 0 for all", n.key, n.n, jobs.MaxSlots)
		}
	}
	if j.Min < 1 || j.Min > most {
		return fmt.Errorf("jobs.min is %d: use 1 to %d, which is the most that a build has (jobs.max)", j.Min, most)
	}
	switch j.Enforce {
	case jobs.EnforceNone, jobs.EnforceWeight, jobs.EnforceQuota:
	default:
		return fmt.Errorf("jobs.enforce %q is not known: use \"none\", \"weight\" or \"quota\"", j.Enforce)
	}
	if len(j.Schedule) > 1000 {
		return fmt.Errorf("jobs.schedule has %d lines, more than 1000", len(j.Schedule))
	}
	for i, text := range j.Schedule {
		r, err := jobs.ParseRule(text)
		if err != nil {
			return fmt.Errorf("jobs.schedule: %w", err)
		}
		if r.Always() && i < len(j.Schedule)-1 {
			return fmt.Errorf("jobs.schedule: %q always fits, so that the lines after it never count: put it last", text)
		}
	}
	if j.Present > 0 && j.AwayAfter <= 0 {
		return fmt.Errorf("jobs.away_after must be more than 0, such as \"10m\", where jobs.present is set")
	}
	if j.MemoryStall < 0 || j.MemoryStall > 100 {
		return fmt.Errorf("jobs.memory_stall is %d: use 1 to 100 percent, or 0 for never", j.MemoryStall)
	}
	if j.Listen != "" {
		if _, port, err := net.SplitHostPort(j.Listen); err != nil || port == "" {
			return fmt.Errorf("jobs.listen %q is no address: write it as \"127.0.0.1:6695\", or leave it blank", j.Listen)
		}
	}
	return nil
}

// The places in the state folder that are about jobs.
func (c *Config) JobsSocket() string { return filepath.Join(c.State, "jobs.sock") }  // of the build control protocol
func (c *Config) JobsToken() string  { return filepath.Join(c.State, "jobs.token") } // that its control connections say
func (c *Config) JobsSaid() string   { return filepath.Join(c.State, "jobs.json") }  // what people have said of jobs
