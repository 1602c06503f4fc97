package sched

import "time"

// Ran is how a build that succeeded went.
type Ran struct {
	Took time.Duration // from the start of the attempt to its end
	CPU  time.Duration // of all its processes; 0: not known
	// SlotTime is the slots that it had, times the time; 0 where none were shared
	// out. Width is how many jobs there were at one time in the mean, while there were
	// more than one. See quarry.Usage.
	SlotTime time.Duration
	Width    float64
	Jobs     int // the most jobs that it could ever have run; 0: not known
	CPUs     int // processors of the machine; 0: not known
}

// run is what an [Estimator] keeps of a build.
type run struct {
	secs  float32
	slots float32 // 0: not known
	most  float32 // more slots would have been of no use, as far as can be told
	part  float32 // of its work with one slot, that slots share; -1: it has not told
}

const (
	// reach is how many times the slots that a build had it is believed to make use
	// of. Nobody has seen it with more.
	reach = 4
	// idle is how many times the jobs that it ran a build must have had slots, for
	// more to be of no use to it.
	idle = 1.5
	// told is how many jobs at one time say something of the part that they share.
	told     = 1.25
	maxSlots = 1 << 16
)

// run takes the shared part of a build from what it took: with n slots the time
// is a + b/n and the processors' time a + b. So of that time
//
//	b/n / (a + b/n) = (CPU/time - 1) / (n - 1)
//
// went by in the shared part. Jobs that wait for disks make it look smaller than
// it is.
func (b Ran) run() run {
	r := run{secs: float32(b.Took.Seconds()), part: -1}
	shared := b.SlotTime > 0 && b.Width >= 1
	n := b.Width
	if !shared {
		n = float64(b.Jobs) // all the time
	}
	if !(n >= 1) {
		return r
	}
	n = min(n, maxSlots)
	most := n * reach
	if b.CPUs > 0 { // more jobs than that make nothing quicker
		n, most = min(n, float64(b.CPUs)), min(most, float64(b.CPUs))
	}
	r.slots, r.most = float32(n), float32(most)
	if had := b.SlotTime.Seconds() / b.Took.Seconds(); shared && (b.Jobs == 1 || had > n*idle) {
		r.most = float32(min(n*idle, most))
		if n < told { // it had slots, and was one job all the same
			r.most, r.part = float32(n), 0
		}
	}
	if n >= told && b.CPU > 0 {
		f := min(max((b.CPU.Seconds()/b.Took.Seconds()-1)/(n-1), 0), 1)
		r.part = float32(f * n / (1 - f + f*n))
	}
	return r
}

// work is what it would have taken with one slot, in seconds, when slots share so
// much of that. usual counts where nobody knows how many it had.
func (r run) work(part, usual float64) float64 {
	n := float64(r.slots)
	if n == 0 {
		n = usual
	}
	return float64(r.secs) / (1 - part + part/n)
}

// Pace is how long a build is expected to take, for any number of slots: a part is
// done one after the other, and the rest is shared among them (Amdahl's law).
type Pace struct {
	work  float64 // seconds with one slot
	part  float64 // of that, that slots share
	usual float64 // slots that such builds had of late
	most  float64 // more are of no use
}

// NewPace is the pace of a build that takes so long with so many slots, when they
// share that part (0 to 1) of what it takes with one.
func NewPace(takes time.Duration, slots, part float64) Pace {
	n := max(1, min(slots, maxSlots))
	part = max(0, min(part, 1))
	return Pace{work: takes.Seconds() / (1 - part + part/n), part: part, usual: n, most: maxSlots}
}

// Part is how much of its time with one slot is shared among more, 0 to 1.
func (p Pace) Part() float64 { return p.part }

// bound takes how many slots builds had, and could use.
func (p *Pace) bound(runs []run) {
	var had []float64
	most := 0.0
	for _, b := range runs {
		if b.slots > 0 {
			had = append(had, float64(b.slots))
			most = max(most, float64(b.most))
		}
	}
	if len(had) > 0 {
		p.usual, p.most = middle(had), most
	}
}

// At is the time with so many slots; 0: as many as [Pace.Usual].
func (p Pace) At(slots float64) time.Duration {
	if !(slots > 0) {
		slots = p.usual
	}
	n := max(1, min(slots, max(p.most, p.usual)))
	return duration(p.work * (1 - p.part + p.part/n))
}

// Usual is how many slots such builds made use of of late.
func (p Pace) Usual() float64 { return max(1, p.usual) }
