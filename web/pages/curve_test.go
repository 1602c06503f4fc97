package pages

import (
	"testing"
	"time"

	"github.com/Morphux/quarry/internal/cgroup"
	"github.com/Morphux/quarry/usage"
)

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
