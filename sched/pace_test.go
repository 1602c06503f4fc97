package sched

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// amdahl is how a build goes whose work is alone one job at a time and shared so
// many as it may run, when it has n slots in the shared part.
func amdahl(alone, shared time.Duration, n float64) Ran {
	part := time.Duration(float64(shared) / n)
	return Ran{Took: alone + part, CPU: alone + shared, SlotTime: alone + shared, Width: n, Jobs: 64}
}

func within(got, want time.Duration, by float64) bool {
	return math.Abs(got.Seconds()-want.Seconds()) <= by*want.Seconds()+0.002
}

// TestPaceFollowsAmdahl: what one number of slots has shown tells the time with
// others, and of several numbers each tells the same.
func TestPaceFollowsAmdahl(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for i := range 500 {
		alone, shared := time.Duration(rnd.Int64N(int64(time.Hour))+1e9), time.Duration(rnd.Int64N(int64(10*time.Hour))+1e9)
		var e Estimator
		most := 0.0
		for range 1 + rnd.IntN(kept) {
			n := 1.3 + rnd.Float64()*14
			most = max(most, n)
			e.Observe("a", "x86_64", 0, amdahl(alone, shared, n))
		}
		for _, n := range []float64{1, 2, most, 2 * most, reach * most} {
			want := amdahl(alone, shared, n).Took
			if got := e.Expect("a", "x86_64", 0, n); !within(got, want, 0.01) {
				t.Fatalf("%d: %v and %v with %.1f slots: %v, want %v", i, alone, shared, n, got, want)
			}
		}
		if a, b := e.Expect("a", "x86_64", 0, 1e6), e.Expect("a", "x86_64", 0, (reach+0.1)*most); a < b-time.Second {
			t.Errorf("%d: slots that nobody has seen it use are believed to help: %v, %v", i, a, b)
		}
	}
}

// TestPaceOfOneSlot: what ran with one slot says nothing of more of them; others do.
func TestPaceOfOneSlot(t *testing.T) {
	alone := func(n int) Ran {
		return Ran{Took: secs(n), CPU: secs(n), SlotTime: secs(n), Width: 1, Jobs: 8}
	}
	var e Estimator
	e.Observe("a", "x86_64", 0, alone(100))
	if got := e.Expect("a", "x86_64", 0, 8); got != secs(100) {
		t.Errorf("with nothing to go by: %v", got)
	}
	for i := range 20 {
		e.Observe(fmt.Sprint(i), "x86_64", 0, amdahl(secs(20), secs(80), 4))
	}
	if got := e.Expect("a", "x86_64", 0, 4); !within(got, secs(40), 0.01) {
		t.Errorf("with others to go by: %v", got)
	}
	if got := e.Expect("a", "x86_64", 0, 0); !within(got, secs(100), 0.01) {
		t.Errorf("with as many slots as the last time: %v", got)
	}
	if got := e.Expect("new", "x86_64", 0, 4); !within(got, secs(40), 0.02) {
		t.Errorf("what nobody has built: %v", got)
	}
	// Of the package itself, built with more: that counts, and the median is of what
	// both come to.
	e.Observe("a", "x86_64", 0, amdahl(secs(90), secs(10), 2))
	if got := e.Expect("a", "x86_64", 0, 2); !within(got, secs(95), 0.01) {
		t.Errorf("with itself to go by: %v", got)
	}
	// Another arch: three times as slow, and as parallel.
	e.Observe("a", "aarch64", 0, amdahl(secs(270), secs(30), 2))
	for _, r := range []Ran{amdahl(secs(60), secs(240), 4), amdahl(secs(60), secs(240), 2)} {
		e.Observe("5", "aarch64", 0, r)
	}
	if got := e.Expect("6", "aarch64", 0, 4); !within(got, secs(120), 0.02) {
		t.Errorf("on another arch: %v", got)
	}
}

// TestPaceOfTheSerial: what had slots and made no use of them gets no quicker by
// more, whatever others do.
func TestPaceOfTheSerial(t *testing.T) {
	var e Estimator
	for i := range 20 {
		e.Observe(fmt.Sprint(i), "x86_64", 0, amdahl(0, secs(100), 4))
	}
	e.Observe("had", "x86_64", 0, Ran{Took: secs(100), CPU: secs(100), SlotTime: secs(400), Width: 1, Jobs: 8})
	e.Observe("recipe", "x86_64", 0, Ran{Took: secs(100), CPU: secs(100), SlotTime: secs(100), Width: 1, Jobs: 1})
	e.Observe("three", "x86_64", 0, Ran{Took: secs(100), CPU: secs(300), SlotTime: secs(1600), Width: 3, Jobs: 16})
	for pkg, want := range map[string]time.Duration{"had": secs(100), "recipe": secs(100), "three": secs(100) * 2 / 3} {
		if got := e.Expect(pkg, "x86_64", 0, 16); !within(got, want, 0.001) {
			t.Errorf("%s: %v with 16 slots, want %v", pkg, got, want)
		}
	}
	if got := e.Expect("three", "x86_64", 0, 1); !within(got, secs(300), 0.001) {
		t.Errorf("three: %v with 1 slot", got)
	}
}

// TestPaceBeforeSharing: builds of before slots were shared out had make's -j all
// the time.
func TestPaceBeforeSharing(t *testing.T) {
	var e Estimator
	e.Observe("a", "x86_64", 0, Ran{Took: secs(60), CPU: secs(100), Jobs: 2}) // 20 and 80
	if p := e.Pace("a", "x86_64", 0); p.At(2) != secs(60) || !within(p.At(4), secs(40), 0.01) || p.Usual() != 2 {
		t.Errorf("%v, %v with %v slots", p.At(2), p.At(4), p.Usual())
	}
	e.Observe("b", "x86_64", 0, Ran{Took: secs(60)})
	if p := e.Pace("b", "x86_64", 0); p.At(0) != secs(60) {
		t.Errorf("of which nothing is known but the time: %v", p.At(0))
	}
}

// TestPaceOfTooManyJobs: slots beyond the processors make nothing quicker.
func TestPaceOfTooManyJobs(t *testing.T) {
	var e Estimator
	// 20 seconds alone, and 80 shared by the two processors that there are.
	e.Observe("a", "x86_64", 0, Ran{Took: secs(60), CPU: secs(100), SlotTime: secs(400), Width: 7.5, Jobs: 8, CPUs: 2})
	for n, want := range map[float64]int{1: 100, 2: 60, 4: 60, 100: 60} {
		if got := e.Expect("a", "x86_64", 0, n); !within(got, secs(want), 0.001) {
			t.Errorf("with %v slots: %v, want %d s", n, got, want)
		}
	}
}

func FuzzPace(f *testing.F) {
	f.Add(int64(1e9), int64(2e9), int64(2e9), 2.0, 4, 3.0, uint8(3))
	f.Add(int64(1), int64(-1), int64(1<<62), math.NaN(), -1, math.Inf(1), uint8(200))
	f.Add(int64(1<<62), int64(1<<62), int64(1), 1e300, 1, -1.0, uint8(1))
	f.Fuzz(func(t *testing.T, took, cpu, slots int64, width float64, jobs int, with float64, many uint8) {
		var e Estimator
		for i := range int(many%8) + 1 {
			e.Observe("a", fmt.Sprint("arch", i%2), took, Ran{time.Duration(took), time.Duration(cpu) / time.Duration(i+1), time.Duration(slots), width * float64(i), jobs, jobs / 2})
			e.Observe("b", "arch0", 0, Ran{Took: time.Minute, CPU: 2 * time.Minute, Jobs: 3})
		}
		for _, pkg := range []string{"a", "b", "c"} {
			p := e.Pace(pkg, "arch1", took)
			last := time.Duration(math.MaxInt64)
			for _, n := range []float64{1, 1.5, 2, 10, 1e9, math.Inf(1)} {
				d := p.At(n)
				if d < time.Millisecond || d > 30*24*time.Hour || d > last {
					t.Fatalf("%s with %v slots: %v after %v (%+v)", pkg, n, d, last, p)
				}
				last = d
			}
			if d := p.At(with); d < last || d > p.At(1) {
				t.Fatalf("%s with %v slots: %v", pkg, with, d)
			}
			if u := p.Usual(); !(u >= 1 && u <= maxSlots) {
				t.Fatalf("%s: usual %v", pkg, u)
			}
		}
	})
}
