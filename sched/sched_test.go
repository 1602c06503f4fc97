package sched

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func secs(n int) time.Duration { return time.Duration(n) * time.Second }

func TestBefore(t *testing.T) {
	at := func(s int) time.Time { return epoch.Add(secs(s)) }
	rising := []Priority{ // each goes before the next
		{Path: secs(500), Since: at(0), Number: 9},
		{Path: secs(100), Since: at(0), Number: 7},
		{Path: secs(100), Since: at(0), Number: 8},
		{Path: secs(150), Since: at(60), Number: 1},
		{Path: secs(10), Since: at(0), Number: 2}, // has waited a minute longer than the next
		{Path: secs(60), Since: at(60), Number: 3},
		{Path: secs(0), Since: at(100), Number: 3},
		{Background: true, Path: secs(100000), Since: at(-100000)},
		{Background: true, Path: secs(10), Since: at(0)},
		{Background: true, Path: 0, Since: time.Unix(1<<40, 0)},
	}
	for i, p := range rising {
		for j, q := range rising {
			if p.Before(q) != (i < j) {
				t.Errorf("%d before %d: %v", i, j, p.Before(q))
			}
		}
	}
	if (Priority{}).Before(Priority{}) {
		t.Error("a priority is before itself")
	}
}

func FuzzBefore(f *testing.F) {
	f.Add(int64(1), int64(2), int64(3), int64(-1<<62), int64(1<<62), int64(0))
	f.Fuzz(func(t *testing.T, a, b, c, x, y, z int64) {
		ps := []Priority{{Path: time.Duration(a), Since: time.Unix(x, 0)}, {Path: time.Duration(b), Since: time.Unix(y, 0)}, {Path: time.Duration(c), Since: time.Unix(z, 0)}}
		for _, p := range ps {
			if p.Since.Year() < 0 || p.Since.Year() > 9999 {
				return
			}
		}
		for _, p := range ps {
			for _, q := range ps {
				for _, r := range ps {
					if p.Before(q) && q.Before(p) || p.Before(q) && q.Before(r) && !p.Before(r) {
						t.Fatalf("%v, %v, %v have no order", p, q, r)
					}
				}
			}
		}
	})
}

// The queue against a list that is sorted anew each time.
func TestQueue(t *testing.T) {
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var q Queue[int]
		type build struct {
			class string
			p     Priority
		}
		there := map[int]build{}
		picks := 0
		for range 400 {
			switch rnd.IntN(5) {
			case 0, 1, 2:
				k := rnd.IntN(60)
				b := build{fmt.Sprint("class", rnd.IntN(3)), Priority{Background: rnd.IntN(3) == 0, Path: secs(rnd.IntN(50)), Since: epoch.Add(secs(rnd.IntN(50))), Number: int64(k)}}
				there[k] = b
				q.Set(k, b.class, b.p)
			case 3:
				k := rnd.IntN(60)
				delete(there, k)
				q.Remove(k)
			case 4:
				shut, odd := fmt.Sprint("class", rnd.IntN(4)), rnd.IntN(2) == 0
				fits := func(k int) bool { return !odd || k%7 != 3 }
				var open []int
				kinds := [2]bool{}
				for k, b := range there {
					if b.class != shut {
						open = append(open, k)
						kinds[index(b.p.Background)] = true
					}
				}
				flip := kinds[0] && kinds[1] && picks+1 >= BackgroundShare
				slices.SortFunc(open, func(a, b int) int {
					p, r := there[a].p, there[b].p
					if flip && p.Background != r.Background {
						p, r = r, p
						p.Background, r.Background = false, false
						if there[a].p.Background {
							return -1
						}
						return 1
					}
					if p.Before(r) {
						return -1
					}
					return 1
				})
				want, found := 0, false
				for _, k := range open {
					if fits(k) {
						want, found = k, true
						break
					}
				}
				got, ok := q.Next(func(class string) bool { return class != shut }, fits)
				if ok != found || ok && got != want {
					t.Fatalf("seed %d: next is %d %v, want %d %v", seed, got, ok, want, found)
				}
				if ok {
					if there[got].p.Background {
						picks = 0
					} else if kinds[1] {
						picks++
					}
					delete(there, got)
				}
			}
			if q.Len() != len(there) {
				t.Fatalf("seed %d: %d in the queue, want %d", seed, q.Len(), len(there))
			}
		}
	}
}

// Background work goes on behind a farm that is always busy, and does not
// hold it up.
func TestBackgroundShare(t *testing.T) {
	var q Queue[int]
	for k := range 100 {
		q.Set(-1-k, "x", Priority{Background: true, Path: time.Hour, Number: int64(k)})
	}
	background := 0
	for k := range 80 {
		q.Set(k, "x", Priority{Since: epoch, Number: int64(k)})
		q.Set(1000+k, "x", Priority{Since: epoch, Number: int64(k)})
		if got, _ := q.Next(nil, nil); got < 0 {
			background++
		}
	}
	if background != 80/BackgroundShare {
		t.Errorf("%d of 80 picks were background work", background)
	}
}

// Nothing starves: a build with a short path is taken before those that are
// asked for so much later that their paths do not make up for it.
func TestAging(t *testing.T) {
	var q Queue[int]
	q.Set(-1, "x", Priority{Path: secs(1), Since: epoch})
	for k := range 1000 {
		q.Set(k, "x", Priority{Path: secs(100), Since: epoch.Add(secs(k)), Number: int64(k)})
		got, _ := q.Next(nil, nil)
		if got == -1 {
			if k != 99 {
				t.Errorf("taken after %d seconds", k)
			}
			return
		}
	}
	t.Error("starved")
}

func TestGate(t *testing.T) {
	now := epoch
	g := NewGate(100, []Running{{60, now.Add(secs(50))}, {20, now.Add(secs(10))}}, now)
	for i, tt := range []struct {
		memory int64
		takes  int
		want   bool
	}{
		{10, 1000, true}, // 90 used
		{70, 100, false}, // a giant: it can start when the 60 have ended; then 10 + 70 run and 20 are spare
		{5, 40, true},    // over by then
		{10, 60, false},  // does not fit now
		{5, 60, true},    // not over by then, but spare
		{80, 1, false},   // another giant waits too
		{0, 9999, true},
	} {
		if got := g.Admit(tt.memory, secs(tt.takes)); got != tt.want {
			t.Errorf("%d: %d for %d s: %v", i, tt.memory, tt.takes, got)
		}
	}
	// Without the one that waits this would fit: it would put that off.
	g = NewGate(100, []Running{{50, now.Add(secs(10))}}, now)
	if g.Admit(80, secs(5)) || g.Admit(30, secs(60)) || !g.Admit(30, secs(10)) {
		t.Error("the place of a giant is not kept")
	}
	// More than there is: alone, and not never.
	g = NewGate(100, nil, now)
	if !g.Admit(1000, secs(1)) || g.Admit(1, secs(1)) {
		t.Error("one that wants more than there is does not run alone")
	}
	g = NewGate(0, nil, now)
	if first := g.Admit(1<<60, 0); !first || !g.Admit(1<<60, 0) {
		t.Error("no limit is one")
	}
}

func TestEstimator(t *testing.T) {
	var e Estimator
	near := func(what string, got, want time.Duration) {
		t.Helper()
		if got < want*9/10 || got > want*11/10 {
			t.Errorf("%s: %v, want about %v", what, got, want)
		}
	}
	near("nothing known", e.Expect("a", "x86_64", 1000, 0), FirstGuess)
	e.Observe("a", "x86_64", 0, Ran{Took: -time.Hour})
	near("a clock set back", e.Expect("a", "x86_64", 0, 0), FirstGuess)
	for _, s := range []int{1000, 10, 11, 500, 12, 10, 10} { // the last five: 11 500 12 10 10
		e.Observe("a", "x86_64", 0, Ran{Took: secs(s)})
	}
	near("median of five", e.Expect("a", "x86_64", 0, 0), secs(11))
	near("another arch, nothing to compare", e.Expect("a", "aarch64", 0, 0), secs(11))
	for i := range 20 {
		pkg := fmt.Sprint("b", i)
		e.Observe(pkg, "x86_64", 0, Ran{Took: secs(10 + i)})
		e.Observe(pkg, "aarch64", 0, Ran{Took: 3 * secs(10+i)})
	}
	near("three times as slow", e.Expect("a", "aarch64", 0, 0), secs(33))
	near("and the other way", e.Expect("a", "x86_64", 0, 0), secs(11))
	near("none of the package: all", e.Expect("new", "x86_64", 1<<20, 0), secs(28))
	for i := range 40 { // a second for each 100 kB
		e.Observe(fmt.Sprint("c", i), "x86_64", int64(i+1)*1e6, Ran{Took: secs(10 * (i + 1))})
	}
	near("by size", e.Expect("new", "x86_64", 5e6, 0), secs(50))
	near("by size, small", e.Expect("new", "x86_64", 1e5, 0), secs(1))
	if got := e.Expect("new", "x86_64", 1<<62, 0); got <= 0 || got > 30*24*time.Hour {
		t.Errorf("a hostile size: %v", got)
	}
	if got := e.Expect("new", "x86_64", -5, 0); got <= 0 {
		t.Errorf("a negative size: %v", got)
	}
	var flat Estimator // all of one size: no line goes through that
	for i := range 50 {
		flat.Observe(fmt.Sprint(i), "x86_64", 1000, Ran{Took: secs(20)})
	}
	near("one size", flat.Expect("new", "x86_64", 99, 0), secs(20))
}
