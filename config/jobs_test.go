package config

import (
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestJobs(t *testing.T) {
	def := Default()
	d := def.Jobs
	if def.Slots() != max(runtime.NumCPU(), def.Build.Workers) || def.MostSlots() != def.Slots() || d.Min != 1 || d.Enforce != "none" || !d.Others || d.Listen != "" {
		t.Errorf("default is %+v", d)
	}
	if p := d.Policy(); len(p.Schedule) != 0 || p.AwayAfter != 10*time.Minute || p.Present != 0 || p.Battery != 0 || p.MemoryStall != 10 {
		t.Errorf("default policy is %+v", p)
	}
	c, err := Parse([]byte(`[jobs]
total = 16
min = 2
max = 12
enforce = "quota"
schedule = ["22:00-07:00 all", "Mon-Fri 09:00-18:00 4", "else 8"]
present = 2
away_after = "5m"
others = false
battery = 1
memory_stall = 0
listen = ":6695"
`), "q.toml")
	if err != nil {
		t.Fatal(err)
	}
	p := c.Jobs.Policy()
	if c.Slots() != 16 || c.MostSlots() != 12 || c.Jobs.Min != 2 || len(p.Schedule) != 3 || p.Schedule[1].Slots != 4 || p.Present != 2 ||
		p.AwayAfter != 5*time.Minute || p.Others || p.Battery != 1 || p.MemoryStall != 0 {
		t.Errorf("%+v, %+v", c.Jobs, p)
	}
	if c, err := Parse([]byte("[build]\nworkers = 500\n"), "q.toml"); err != nil || c.Slots() != 500 {
		t.Errorf("500 workers have %d slots (%v): some would stand idle", c.Slots(), err)
	}
	for in, want := range map[string]string{
		"[build]\njobs = 4\n":                            `q.toml:2: key "build.jobs" is no more, as builds share the machine's jobs: remove it, or use jobs.max`,
		"[jobs]\ntotal = -1\n":                           "jobs.total is -1",
		"[jobs]\ntotal = 5000\n":                         "use 1 to 4096 slots, or 0 for all",
		"[jobs]\nmin = 0\n":                              "jobs.min is 0",
		"[jobs]\nmin = 5\ntotal = 4\n":                   "use 1 to 4, which is the most that a build has",
		"[jobs]\nmax = 2\nmin = 3\ntotal = 4\n":          "use 1 to 2",
		"[jobs]\nenforce = 'yes'\n":                      `jobs.enforce "yes" is not known`,
		"[jobs]\nschedule = ['nights all']\n":            `jobs.schedule: "nights all" has days that are none of`,
		"[jobs]\nschedule = ['else 2', '22:00-07:00 4']": `"else 2" always fits`,
		"[jobs]\nschedule = '22:00-07:00 all'\n":         `takes a list`,
		"[jobs]\npresent = 1\naway_after = '0s'\n":       "jobs.away_after must be more than 0",
		"[jobs]\nmemory_stall = 101\n":                   "jobs.memory_stall is 101",
		"[jobs]\nlisten = 'localhost'\n":                 `jobs.listen "localhost" is no address`,
		"[jobs]\nothers = 1\n":                           "true or false",
	} {
		if _, err := Parse([]byte(in), "q.toml"); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: error %v, want %q in it", in, err, want)
		}
	}
}
