package jobs

import (
	"math"
	"testing"
	"time"
)

func TestMeter(t *testing.T) {
	at := time.Unix(1_700_000_000, 0)
	var m meter
	if m.to(at); m.width() != 0 || m.slots != 0 {
		t.Errorf("before anything: %+v", m)
	}
	m.set(at, 1, 1) // configure: a minute
	if m.to(at.Add(time.Minute)); m.width() != 1 || m.slots != time.Minute || m.busy != time.Minute {
		t.Errorf("one job at a time: %+v", m)
	}
	m.set(at.Add(time.Minute), 5, 4)    // make: half a minute
	m.set(at.Add(90*time.Second), 2, 2) // half a minute
	m.set(at.Add(80*time.Second), 2, 2) // the clock is set back
	m.set(at.Add(110*time.Second), 1, 0)
	m.to(at.Add(140 * time.Second))
	if m.slots != 60*time.Second+150*time.Second+60*time.Second+30*time.Second || m.busy != (60+120+60)*time.Second || m.peak != 4 {
		t.Errorf("in all: %+v", m)
	}
	if want := (3*4*30.0 + 1*2*30) / (3*30 + 1*30); math.Abs(m.width()-want) > 1e-9 {
		t.Errorf("width %v, want %v", m.width(), want)
	}
}

// What a meter says of a build that does its work a alone and b with n jobs at a
// time is n, however the two take turns.
func TestMeterFindsTheJobs(t *testing.T) {
	for n := 2; n < 40; n++ {
		var m meter
		now := time.Unix(1_700_000_000, 0)
		for i := range 20 {
			m.set(now, n+1, 1+(n-1)*(i%2))
			now = now.Add(time.Duration(i+1) * time.Second)
		}
		if m.to(now); math.Abs(m.width()-float64(n)) > 1e-9 || m.peak != n {
			t.Errorf("%d jobs: width %v, at most %d", n, m.width(), m.peak)
		}
	}
}
