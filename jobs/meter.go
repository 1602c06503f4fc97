package jobs

import "time"

// meter adds up, over time, what a build has and uses. The zero value has not
// begun.
type meter struct {
	since         time.Time
	granted, used int
	slots, busy   time.Duration
	peak          int
	// extra is how long there was how much of more than one job, and wide the same
	// times all jobs that there were meanwhile. So a step that can have but one job
	// does not count, and one that has many counts by what it is worth.
	extra, wide float64
}

// set notes what the build has and uses from now on.
func (m *meter) set(now time.Time, granted, used int) {
	m.to(now)
	m.granted, m.used = max(0, granted), max(0, used)
	m.peak = max(m.peak, m.used)
}

// to adds up what there was until now. A clock that was set back costs time, and
// never gives any.
func (m *meter) to(now time.Time) {
	if d := now.Sub(m.since); !m.since.IsZero() && d > 0 {
		m.slots += d * time.Duration(m.granted)
		m.busy += d * time.Duration(m.used)
		if more := float64(m.used - 1); more > 0 {
			m.extra += more * d.Seconds()
			m.wide += more * float64(m.used) * d.Seconds()
		}
	}
	m.since = now
}

// width is how many jobs there were at one time in the mean, while there were
// more than one; 1 if there never were, 0 before there was one.
func (m *meter) width() float64 {
	switch {
	case m.extra > 0:
		return m.wide / m.extra
	case m.busy > 0:
		return 1
	}
	return 0
}
