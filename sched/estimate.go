package sched

import (
	"math"
	"slices"
	"time"
)

// kept is how many of the latest builds of a package on an arch count, and how
// many of all packages for the global median.
const (
	kept       = 5
	keptGlobal = 512
)

// FirstGuess is what a build is expected to take when nothing has been built yet.
const FirstGuess = 2 * time.Minute

// Estimator tells how long builds are expected to take, with so many slots (see
// [Pace]). The first of these that there is counts:
//
//  1. the median of the last five builds of the package on the arch;
//  2. the same on another arch, scaled by how the two archs compare over all
//     packages that were built on both;
//  3. what packages with sources of that size take (a line through the
//     logarithms of size and time), once thirty have told;
//  4. the median over all packages;
//  5. FirstGuess.
//
// All of them are of what a build would take with one slot: what it took with
// others is brought to that by the package's part that slots share, or, while no
// build of the package has told, by what that is in the mean over all packages.
//
// The zero value knows nothing. It is used by one goroutine at a time.
type Estimator struct {
	packages map[string]map[string]*ring // by package and arch
	ratios   map[[2]string]*mean         // of the logarithms: arch 0 over arch 1
	all      []float64                   // logarithms of seconds, the latest, as a ring
	allAt    int
	sizes    line2
	parts    mean // shared parts
	slots    mean // that builds had
}

// ring is the latest builds of a package on an arch.
type ring struct {
	runs [kept]run
	n    int // ever added
}

func (r *ring) add(b run) {
	r.runs[r.n%kept] = b
	r.n++
}

func (r *ring) all() []run { return r.runs[:min(r.n, kept)] }

// mean forgets: the last hundred or so count.
type mean struct {
	v float64
	n int
}

func (m *mean) add(v float64) {
	m.n = min(m.n+1, 100)
	m.v += (v - m.v) / float64(m.n)
}

// line2 is a straight line through points, by least squares.
type line2 struct{ n, x, y, xx, xy float64 }

func (l *line2) add(x, y float64) {
	l.n++
	l.x, l.y, l.xx, l.xy = l.x+x, l.y+y, l.xx+x*x, l.xy+x*y
}

func (l *line2) at(x float64) (float64, bool) {
	d := l.n*l.xx - l.x*l.x
	if l.n < 30 || d <= 1e-9*l.n*l.n {
		return 0, false
	}
	slope := (l.n*l.xy - l.x*l.y) / d
	return (l.y-slope*l.x)/l.n + slope*x, true
}

// Observe learns from a build that succeeded. size is that of the package's
// sources in bytes, 0 if it is not known. Times that are not positive, which a
// clock that was set back gives, teach nothing.
func (e *Estimator) Observe(pkg, arch string, size int64, b Ran) {
	if b.Took <= 0 {
		return
	}
	if e.packages == nil {
		e.packages, e.ratios = map[string]map[string]*ring{}, map[[2]string]*mean{}
	}
	archs := e.packages[pkg]
	if archs == nil {
		archs = map[string]*ring{}
		e.packages[pkg] = archs
	}
	r := archs[arch]
	if r == nil {
		r = &ring{}
		archs[arch] = r
	}
	told := b.run()
	r.add(told)
	if told.part >= 0 {
		e.parts.add(float64(told.part))
	}
	if told.slots > 0 {
		e.slots.add(float64(told.slots))
	}
	part := e.part(archs, arch)
	work := e.work(r, part)
	for other, o := range archs {
		if other != arch {
			d := math.Log(work) - math.Log(e.work(o, part))
			e.ratio(arch, other).add(d)
			e.ratio(other, arch).add(-d)
		}
	}
	one := math.Log(told.work(part, e.usual()))
	if len(e.all) < keptGlobal {
		e.all = append(e.all, one)
	} else {
		e.all[e.allAt%keptGlobal] = one
	}
	e.allAt++
	if size > 0 {
		e.sizes.add(math.Log(float64(size)), one)
	}
}

// part is the part of a package's work that slots share: the median of what its
// builds on the arch have told, else of those on others, else the mean over all
// packages.
func (e *Estimator) part(archs map[string]*ring, arch string) float64 {
	var says []float64
	hear := func(r *ring) {
		for _, b := range r.all() {
			if b.part >= 0 {
				says = append(says, float64(b.part))
			}
		}
	}
	if r := archs[arch]; r != nil {
		hear(r)
	}
	if len(says) == 0 {
		for _, r := range archs {
			hear(r)
		}
	}
	if len(says) == 0 {
		return e.parts.v
	}
	return middle(says)
}

// work is what a package's builds take with one slot, in seconds.
func (e *Estimator) work(r *ring, part float64) float64 {
	var list []float64
	for _, b := range r.all() {
		list = append(list, b.work(part, e.usual()))
	}
	return middle(list)
}

// usual is how many slots builds have, where nothing more is known.
func (e *Estimator) usual() float64 { return max(1, e.slots.v) }

func (e *Estimator) ratio(a, b string) *mean {
	m := e.ratios[[2]string{a, b}]
	if m == nil {
		m = &mean{}
		e.ratios[[2]string{a, b}] = m
	}
	return m
}

// Known reports whether a build of the package, on any arch, has told.
func (e *Estimator) Known(pkg string) bool { return len(e.packages[pkg]) > 0 }

// Expect tells how long a build is expected to take with so many slots; 0: as many
// as the last ones had. size is as for Observe. It is never less than a
// millisecond, nor more than a month.
func (e *Estimator) Expect(pkg, arch string, size int64, slots float64) time.Duration {
	return e.Pace(pkg, arch, size).At(slots)
}

// Pace tells how long a build is expected to take, for any number of slots.
func (e *Estimator) Pace(pkg, arch string, size int64) Pace {
	archs := e.packages[pkg]
	p := Pace{part: e.part(archs, arch), usual: e.usual(), most: e.usual() * reach}
	r := archs[arch]
	switch {
	case r != nil:
		p.work = e.work(r, p.part)
		p.bound(r.all())
	case len(archs) > 0:
		// The median of what the other archs say.
		var says []float64
		var runs []run
		for other, r := range archs {
			ratio := 0.0
			if m := e.ratios[[2]string{arch, other}]; m != nil {
				ratio = m.v
			}
			says = append(says, math.Log(e.work(r, p.part))+ratio)
			runs = append(runs, r.all()...)
		}
		p.work = math.Exp(middle(says))
		p.bound(runs)
	default:
		p.work = FirstGuess.Seconds()
		p.part = 0
		if size > 0 {
			if y, ok := e.sizes.at(math.Log(float64(size))); ok {
				p.work, p.part = math.Exp(y), e.parts.v
				return p
			}
		}
		if len(e.all) > 0 {
			p.work, p.part = math.Exp(middle(slices.Clone(e.all))), e.parts.v
		}
	}
	return p
}

// middle is the median; it sorts list.
func middle(list []float64) float64 {
	slices.Sort(list)
	mid := len(list) / 2
	if len(list)%2 == 1 {
		return list[mid]
	}
	return (list[mid-1] + list[mid]) / 2
}

func duration(secs float64) time.Duration {
	const most = 30 * 24 * time.Hour
	if !(secs < most.Seconds()) {
		return most
	}
	return max(time.Millisecond, time.Duration(math.Round(secs*float64(time.Second))))
}
