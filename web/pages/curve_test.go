package pages

import (
	"testing"
	"time"

	"github.com/Morphux/quarry/internal/cgroup"
	"github.com/Morphux/quarry/usage"
)

// Jobs are drawn where there may be more than one.
func TestCurvesOfJobs(t *testing.T) {
	began := time.Now()
	a := &usage.Attempt{Began: began, CPUs: 2}
	for i, n := range []int64{1, 4, 2} {
		var s usage.Sample
		s.At, s.Jobs, s.Busy = began.Add(time.Duration(i)*time.Minute), cgroup.Of(4), cgroup.Of(n)
		a.Samples = append(a.Samples, s)
	}
	list := curves(a, true)
	if len(list) != 1 || list[0].Label() != "Jobs: 2 of 4, at most 4 of 4" || list[0].Limit != "0.0,2.0 150.0,2.0 300.0,2.0" {
		t.Errorf("%+v", list)
	}
	if label := curves(a, false)[0].Label(); label != "Jobs: 3.0 in the mean, at most 4 of 4" {
		t.Errorf("after its end: %q", label)
	}
	a.Samples[1].Busy = cgroup.Of(8)
	if label := curves(a, true)[0].Label(); label != "Jobs: 2 of 4, at most 8" {
		t.Errorf("with more than it was given: %q", label)
	}
	for i := range a.Samples {
		a.Samples[i].Jobs, a.Samples[i].Busy = cgroup.Of(1), cgroup.Of(1)
	}
	if list := curves(a, true); len(list) != 0 {
		t.Errorf("one job is drawn: %+v", list)
	}
}

// Of an attempt that was over at once no share of the processors can be told: what
// it used goes back to before its first step.
func TestCurvesOfAnInstant(t *testing.T) {
	began := time.Now()
	of := func(took time.Duration) string {
		a := &usage.Attempt{Began: began, CPUs: 2, Ended: true}
		for i, us := range []int64{0, 66_000} {
			var s usage.Sample
			s.At, s.User, s.Sys = began.Add(took*time.Duration(i)), cgroup.Of(us), cgroup.Of(0)
			a.Samples = append(a.Samples, s)
		}
		return curves(a, false)[0].Label()
	}
	for took, want := range map[time.Duration]string{
		20 * time.Millisecond: "CPU: 66 ms in all, at most 2.0 of 2.0",
		10 * time.Second:      "CPU: 0.0 in the mean, at most 0.0 of 2.0",
	} {
		if got := of(took); got != want {
			t.Errorf("%v: %q, want %q", took, got, want)
		}
	}
}
