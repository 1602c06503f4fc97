package jobs

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// toy is a build in a world without clocks: a jobserver, and a make that takes
// a token for each job beyond the first.
type toy struct {
	m *member

	want   int // as Set had it
	issued int // tokens that are with the build
	jobs   []time.Time
	demand int // jobs that it would run, if it could

	phases []phase
	ends   time.Time // of the phase at hand
}

type phase struct {
	takes    time.Duration
	parallel bool
	demand   int
	job      time.Duration // a job takes so long, more or less
}

func (b *toy) Set(n int) {
	b.want = n
	if n < 1 {
		panic("less than one slot")
	}
	b.issued = max(b.issued, n-1)
	b.balance()
}

// balance takes back what lies unused of what is owed.
func (b *toy) balance() {
	for b.issued > b.want-1 && b.issued > b.held() {
		b.issued--
	}
}

func (b *toy) held() int { return max(0, len(b.jobs)-1) }

func (b *toy) Look() sight { return sight{Out: 1 + b.issued, Used: 1 + b.held()} }

// run starts and ends jobs, and reports whether a slot has come back.
func (b *toy) run(now time.Time, r *rand.Rand) (back bool) {
	was := b.issued
	for i := 0; i < len(b.jobs); {
		if !b.jobs[i].After(now) {
			b.jobs[i] = b.jobs[len(b.jobs)-1]
			b.jobs = b.jobs[:len(b.jobs)-1]
			b.balance()
			continue
		}
		i++
	}
	for len(b.jobs) < b.demand && (len(b.jobs) == 0 || b.held() < b.issued) {
		d := b.phases[0].job
		b.jobs = append(b.jobs, now.Add(d/2+time.Duration(r.Int64N(int64(d)))))
	}
	return b.issued < was
}

// world is a machine with toys on it.
type world struct {
	t     testing.TB
	r     *rand.Rand
	now   time.Time
	core  core
	toys  []*toy
	turns int
	last  time.Time // when it was looked though nothing had happened
	above int       // slots beyond the limit when last looked

	starved map[*toy]time.Time // since when one could have had more of what nobody had
}

func newWorld(t testing.TB, seed uint64, limit int) *world {
	return &world{t: t, r: rand.New(rand.NewPCG(seed, 7)), now: time.Unix(1_000_000, 0), core: core{limit: limit}, starved: map[*toy]time.Time{}}
}

func (w *world) add(b *toy, least, most int, weight float64) {
	b.m = newMember(least, most, weight)
	b.want = 1
	w.toys = append(w.toys, b)
	w.core.enter(b.m)
}

func (w *world) begun(b *toy) bool { return b.m.grant > 0 }

// turn has the core move slots, and looks whether the promise is kept.
func (w *world) turn() {
	for begun := true; begun; {
		w.turns++
		begun = false
		for _, m := range w.core.turn(w.now) {
			for _, b := range w.toys {
				if b.m == m {
					m.holder, begun = b, true
					w.check()
					b.next(w)
				}
			}
		}
		w.check()
	}
}

func (w *world) check() {
	w.t.Helper()
	out, n, granted, real := 0, 0, 0, 0
	for _, b := range w.toys {
		if w.begun(b) {
			out, n, granted, real = out+1+b.issued, n+1, granted+b.m.grant, real+max(1+b.issued, b.m.fixed)
			if b.m.grant < 1 || b.m.grant > b.m.max {
				w.t.Fatalf("turn %d: a build of %d at most may have %d", w.turns, b.m.max, b.m.grant)
			}
			if b.m.grant != b.want {
				w.t.Fatalf("turn %d: a build may have %d, and was told %d", w.turns, b.m.grant, b.want)
			}
			if !b.m.parallel && b.m.grant != 1 {
				w.t.Fatalf("turn %d: a serial step has %d slots", w.turns, b.m.grant)
			}
		}
	}
	above := w.beyond()
	if above > w.above {
		w.t.Fatalf("turn %d: %d slots are out with %d builds and a limit of %d, which are more above it than the %d before", w.turns, out, n, w.core.limit, w.above)
	}
	w.above = above
	if granted > max(w.core.limit, n) {
		w.t.Fatalf("turn %d: %d slots are granted with %d builds and a limit of %d", w.turns, granted, n, w.core.limit)
	}
	w.conserve(real)
}

// limit changes what there is. What is out above it is a lowering under way.
func (w *world) limit(n int) {
	w.core.limit = n
	w.above = w.beyond()
}

// beyond is how many slots are out above the limit, or one for each build.
func (w *world) beyond() int {
	out, n := 0, 0
	for _, b := range w.toys {
		if w.begun(b) {
			out, n = out+1+b.issued, n+1
		}
	}
	return max(0, out-max(w.core.limit, n))
}

// conserve sees to it that nobody wants for what nobody has.
func (w *world) conserve(out int) {
	w.t.Helper()
	for _, b := range w.toys {
		if !w.begun(b) || !b.m.parallel || b.m.hand > 0 || b.m.fixed > 0 || out >= w.core.limit || b.demand <= b.m.grant || b.m.grant >= b.m.max || len(w.core.waiting) > 0 {
			delete(w.starved, b)
			continue
		}
		since, ok := w.starved[b]
		if !ok {
			w.starved[b] = w.now
		} else if w.now.Sub(since) > time.Second {
			w.t.Fatalf("turn %d: a build that would run %d jobs has %d slots for %v, and %d of %d are out (%+v)", w.turns, b.demand, b.m.grant, w.now.Sub(since), out, w.core.limit, *b.m)
		}
	}
}

// next begins a build's next step.
func (b *toy) next(w *world) {
	p := b.phases[0]
	b.jobs, b.demand = nil, p.demand
	b.issued = b.want - 1 // Reset
	b.ends = w.now.Add(p.takes)
	b.m.step(w.now, p.parallel, w.r.IntN(4) > 0)
}

// run lets time pass.
func (w *world) run(d time.Duration) {
	const grain = 5 * time.Millisecond
	for end := w.now.Add(d); w.now.Before(end); {
		w.now = w.now.Add(grain)
		look := due(w.now, w.last, tick)
		if t, ok := w.core.soon(); ok && !t.After(w.now) {
			look = true
		}
		var gone []*toy
		for _, b := range w.toys {
			if !w.begun(b) {
				continue
			}
			if w.now.After(b.ends) {
				b.phases = b.phases[1:]
				look = true
				if len(b.phases) == 0 {
					gone = append(gone, b)
					continue
				}
				b.next(w)
			}
			if b.run(w.now, w.r) {
				look = true
			}
		}
		for _, b := range gone {
			w.remove(b)
		}
		if look {
			w.last = w.now
			w.turn()
		}
	}
}

func (w *world) remove(b *toy) {
	w.core.leave(b.m)
	delete(w.starved, b)
	for i, o := range w.toys {
		if o == b {
			w.toys = append(w.toys[:i:i], w.toys[i+1:]...)
			return
		}
	}
}

// TestSimulation runs random builds on random machines under random limits: the
// promise is kept at every turn, and everybody comes to an end.
func TestSimulation(t *testing.T) {
	seeds := 60
	for seed := range uint64(seeds) {
		w := newWorld(t, seed, 1)
		total := 1 + w.r.IntN(64)
		w.core.limit = total
		builds := 10 + w.r.IntN(20)
		for i := 0; i < builds || len(w.toys) > 0; {
			if i < builds && len(w.toys) < 12 {
				i++
				b := &toy{}
				for range 1 + w.r.IntN(5) {
					p := phase{takes: time.Duration(1+w.r.IntN(3000)) * time.Millisecond, demand: 1, job: time.Duration(10+w.r.IntN(800)) * time.Millisecond}
					if w.r.IntN(2) == 0 {
						p.parallel, p.demand = true, 1+w.r.IntN(2*total)
					}
					b.phases = append(b.phases, p)
				}
				w.add(b, 1+w.r.IntN(3), 1+w.r.IntN(total), []float64{1, 1, 0.25, 3}[w.r.IntN(4)])
			}
			switch w.r.IntN(8) {
			case 0:
				w.limit(1 + w.r.IntN(total))
			case 1:
				if len(w.toys) > 0 {
					w.toys[w.r.IntN(len(w.toys))].m.hand = w.r.IntN(total + 2)
				}
			case 2:
				if len(w.toys) > 0 { // the demand changes within the step
					b := w.toys[w.r.IntN(len(w.toys))]
					if w.begun(b) && b.m.parallel {
						b.demand = 1 + w.r.IntN(2*total)
					}
				}
			case 3:
				if len(w.toys) > 0 && w.r.IntN(5) == 0 { // one is cancelled
					w.remove(w.toys[w.r.IntN(len(w.toys))])
				}
			}
			w.turn()
			w.run(time.Duration(1+w.r.IntN(700)) * time.Millisecond)
			if w.turns > 2_000_000 {
				t.Fatalf("seed %d: builds do not come to an end: %d left, %d wait", seed, len(w.toys), len(w.core.waiting))
			}
		}
		if len(w.core.members)+len(w.core.waiting) > 0 {
			t.Fatalf("seed %d: the core remembers builds that have ended", seed)
		}
	}
}

func long(demand int, job time.Duration) *toy {
	return &toy{phases: []phase{{takes: time.Hour, parallel: true, demand: demand, job: job}}}
}

func serial() *toy { return &toy{phases: []phase{{takes: time.Hour, demand: 1, job: time.Second}}} }

func (w *world) grants() string {
	s := ""
	for _, b := range w.toys {
		s += fmt.Sprintf("%d ", b.m.grant)
	}
	return s
}

func (w *world) expect(want string) {
	w.t.Helper()
	if got := w.grants(); got != want {
		w.t.Errorf("slots are %s, want %s", got, want)
	}
}

// TestSlack: who has no use for slots gives them to those that have, within a
// second, and gets them back when it has.
func TestSlack(t *testing.T) {
	w := newWorld(t, 1, 8)
	a, b := long(100, 50*time.Millisecond), long(100, 50*time.Millisecond)
	w.add(a, 1, 8, 1)
	w.turn()
	w.expect("8 ") // at once
	w.run(time.Second)
	w.add(b, 1, 8, 1)
	w.turn()
	w.run(time.Second)
	w.expect("4 4 ")

	a.demand = 1 // a long link
	w.run(time.Second)
	if b.m.grant < 6 {
		t.Errorf("a second after one needs only 1 slot slots are %s", w.grants())
	}
	busy := 0
	for range 100 {
		w.run(50 * time.Millisecond)
		busy += min(len(b.jobs), 8)
	}
	if busy < 665 { // of 700, which a probe takes some of
		t.Errorf("the other ran %.2f jobs on average beside a serial one", float64(busy)/100)
	}

	a.demand = 100
	w.run(2500 * time.Millisecond)
	w.expect("4 4 ")

	a.phases[0].parallel = false // and now it is in a serial step
	a.next(w)
	w.turn()
	w.run(100 * time.Millisecond)
	w.expect("1 7 ")
	w.remove(b)
	w.turn()
	w.expect("1 ")
}

// TestBeginning: a build that begins a step takes nothing from others until it has
// shown that it has use for it, and then at once.
func TestBeginning(t *testing.T) {
	w := newWorld(t, 1, 8)
	a, b := long(100, 20*time.Millisecond), long(1, 20*time.Millisecond)
	w.add(a, 1, 8, 1)
	w.turn()
	w.run(time.Second)
	w.add(b, 1, 8, 1)
	w.turn()
	busy := 0
	for range 50 {
		w.run(20 * time.Millisecond)
		busy += len(a.jobs)
	}
	if busy < 6*50 {
		t.Errorf("while another configures a build ran %.2f of 8 jobs on average", float64(busy)/50)
	}
	b.phases[0].demand = 100 // make
	b.next(w)
	b.m.step(w.now, true, true)
	w.turn()
	w.run(300 * time.Millisecond)
	w.expect("4 4 ")
}

// TestFull: while builds have work, next to no slot is idle, however they begin and
// end beside each other.
func TestFull(t *testing.T) {
	w := newWorld(t, 1, 8)
	had, could := 0, 0
	for i := range 400 {
		if i%20 == 0 {
			b := long(100, 200*time.Millisecond)
			b.phases = append([]phase{{takes: 700 * time.Millisecond, parallel: true, demand: 1, job: 50 * time.Millisecond}}, b.phases...)
			b.phases[1].takes = 4 * time.Second
			w.add(b, 1, 8, 1)
			w.turn()
		}
		w.run(50 * time.Millisecond)
		work := 0
		for _, b := range w.toys {
			if w.begun(b) {
				had, work = had+len(b.jobs), work+b.demand
			}
		}
		could += min(8, work)
	}
	if part := float64(had) / float64(could); part < 0.95 {
		t.Errorf("%.1f%% of the slots that builds had work for were used", 100*part)
	} else {
		t.Logf("%.1f%% of the slots that builds had work for were used", 100*part)
	}
}

// TestExact: a build that runs just as many jobs as it has slots is not thought
// to want more for long, as else two of them would push each other about.
func TestExact(t *testing.T) {
	w := newWorld(t, 1, 8)
	a, b := long(3, 100*time.Millisecond), long(100, 100*time.Millisecond)
	w.add(a, 1, 8, 1)
	w.add(b, 1, 8, 1)
	w.turn()
	w.run(3 * time.Second)
	had := [2]int{}
	for range 200 {
		w.run(50 * time.Millisecond)
		had[0] += a.m.grant
		had[1] += b.m.grant
	}
	if had[0] < 600 || had[0] > 660 || had[1] < 940 {
		t.Errorf("one that runs 3 jobs had %.2f slots on average, and one that would run 100 had %.2f of 8", float64(had[0])/200, float64(had[1])/200)
	}
}

// TestWeights: bulk work gets its part, and all that is left.
func TestWeights(t *testing.T) {
	w := newWorld(t, 1, 10)
	a, b := long(100, 50*time.Millisecond), long(100, 50*time.Millisecond)
	w.add(a, 1, 10, 1)
	w.add(b, 1, 10, 0.25)
	w.turn()
	w.run(time.Second)
	w.expect("8 2 ")
	a.demand = 4
	w.run(1200 * time.Millisecond)
	if b.m.grant < 5 {
		t.Errorf("slots are %s", w.grants())
	}
}

// TestFirstSlots: a build waits while every slot is a build's only one, and takes
// the first that comes back else.
func TestFirstSlots(t *testing.T) {
	w := newWorld(t, 1, 2)
	a, b, c := long(100, 100*time.Millisecond), serial(), serial()
	w.add(a, 1, 2, 1)
	w.turn()
	w.run(time.Second)
	w.expect("2 ")
	w.add(b, 1, 2, 1)
	w.add(c, 1, 2, 1)
	w.turn()
	if w.begun(b) {
		t.Fatal("a build began on a slot that another still has")
	}
	w.run(time.Second)
	if !w.begun(b) || w.begun(c) {
		t.Errorf("begun: %v and %v", w.begun(b), w.begun(c))
	}
	w.expect("1 1 0 ")
	w.remove(b)
	w.turn()
	w.expect("1 1 ")
	// Less than one each nobody has.
	w.limit(1)
	w.turn()
	w.run(time.Second)
	w.expect("1 1 ")
	w.remove(c)
	w.turn()
	d := serial()
	w.add(d, 1, 2, 1)
	w.turn()
	w.run(5 * time.Second)
	if w.begun(d) {
		t.Error("a second build began under a limit of 1")
	}
	// One that wants more than there is begins if it is alone.
	w.remove(a)
	w.remove(d)
	w.add(serial(), 5, 5, 1)
	w.turn()
	w.expect("1 ")
}

// TestLeast: builds that are given two at least come in only as far as that can
// be kept.
func TestLeast(t *testing.T) {
	w := newWorld(t, 1, 5)
	for range 4 {
		w.add(long(100, 100*time.Millisecond), 2, 5, 1)
	}
	w.turn()
	w.run(time.Second)
	w.expect("3 2 0 0 ")
}

// TestHand: what somebody sets holds, whatever the build does, but within the
// limit.
func TestHand(t *testing.T) {
	w := newWorld(t, 1, 8)
	a, b := long(1, 50*time.Millisecond), long(100, 50*time.Millisecond)
	w.add(a, 1, 8, 1)
	w.add(b, 1, 8, 1)
	a.m.hand = 6
	w.turn()
	w.run(2 * time.Second)
	w.expect("6 2 ")
	w.limit(4)
	w.turn()
	w.run(time.Second)
	w.expect("3 1 ")
	a.m.hand = 0
	w.run(3 * time.Second)
	if a.m.grant > 2 || b.m.grant < 2 {
		t.Errorf("slots are %s", w.grants())
	}
}

// TestFixed: what runs by force is counted, and leaves the others their one.
func TestFixed(t *testing.T) {
	w := newWorld(t, 1, 8)
	a, b := long(100, 50*time.Millisecond), long(100, 50*time.Millisecond)
	w.add(a, 1, 8, 1)
	w.add(b, 1, 8, 1)
	w.turn()
	a.m.fixed = 6
	w.run(time.Second)
	w.expect("6 2 ")
	a.m.fixed = 60
	w.run(time.Second)
	w.expect("7 1 ")
	a.m.fixed = 0
	w.run(2 * time.Second)
	w.expect("4 4 ")
}

// FuzzCore lets bytes say what happens: nothing makes the core break its promise.
func FuzzCore(f *testing.F) {
	f.Add([]byte{4, 0, 8, 1, 0, 8, 1, 7, 50, 2, 3, 7, 100, 0, 8, 2, 7, 20})
	f.Add([]byte{2, 0, 2, 1, 0, 2, 1, 0, 2, 1, 7, 255, 3, 1, 7, 90, 4, 1, 7, 10, 5, 1, 9, 6, 3, 40, 7, 255})
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 300 {
			return
		}
		at := 0
		next := func() int {
			if at >= len(data) {
				return 0
			}
			at++
			return int(data[at-1])
		}
		w := newWorld(t, 1, 1+next()%32)
		pick := func() *toy {
			if len(w.toys) == 0 {
				return nil
			}
			return w.toys[next()%len(w.toys)]
		}
		for at < len(data) {
			switch next() % 9 {
			case 0:
				if len(w.toys) < 20 {
					b := long(1+next()%40, time.Duration(1+next())*time.Millisecond)
					w.add(b, next()%4, next()%40, float64(next())/64)
				}
			case 1:
				if b := pick(); b != nil {
					w.remove(b)
				}
			case 2:
				w.limit(1 + next()%32)
			case 3:
				if b := pick(); b != nil {
					b.demand = 1 + next()%40
				}
			case 4:
				if b := pick(); b != nil {
					b.m.hand = next()%50 - 5
				}
			case 5:
				if b := pick(); b != nil {
					b.m.fixed = next() % 50
				}
			case 6:
				if b := pick(); b != nil && w.begun(b) {
					b.phases[0].parallel = !b.phases[0].parallel
					b.next(w)
				}
			case 7:
				w.run(time.Duration(next()) * 5 * time.Millisecond)
			case 8:
				w.now = w.now.Add(time.Duration(next()-128) * time.Minute) // clocks are set
				clear(w.starved)
			}
			w.turn()
		}
	})
}
