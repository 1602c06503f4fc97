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

// Estimator tells how long builds are expected to take. The first of these that
// there is counts:
//
//  1. the median of the last five builds of the package on the arch;
//  2. the same on another arch, scaled by how the two archs compare over all
//     packages that were built on both;
//  3. what packages with sources of that size take (a line through the
//     logarithms of size and time), once thirty have told;
//  4. the median over all packages;
//  5. FirstGuess.
//
// The zero value knows nothing. It is used by one goroutine at a time.
type Estimator struct {
	packages map[string]map[string]*ring // by package and arch
	ratios   map[[2]string]*mean         // of the logarithms: arch 0 over arch 1
	all      []float64                   // logarithms of seconds, the latest, as a ring
	allAt    int
	sizes    line2
}

type ring struct {
	secs [kept]float32
	n    int // ever added
}

func (r *ring) add(s float64) {
	r.secs[r.n%kept] = float32(s)
	r.n++
}

func (r *ring) median() float64 {
	s := r.secs
	list := s[:min(r.n, kept)]
	slices.Sort(list)
	mid := len(list) / 2
	if len(list)%2 == 1 {
		return float64(list[mid])
	}
	return (float64(list[mid-1]) + float64(list[mid])) / 2
}

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
func (e *Estimator) Observe(pkg, arch string, size int64, took time.Duration) {
	if took <= 0 {
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
	secs := took.Seconds()
	r := archs[arch]
	if r == nil {
		r = &ring{}
		archs[arch] = r
	}
	r.add(secs)
	for other, o := range archs {
		if other != arch {
			d := math.Log(r.median()) - math.Log(o.median())
			e.ratio(arch, other).add(d)
			e.ratio(other, arch).add(-d)
		}
	}
	if len(e.all) < keptGlobal {
		e.all = append(e.all, math.Log(secs))
	} else {
		e.all[e.allAt%keptGlobal] = math.Log(secs)
	}
	e.allAt++
	if size > 0 {
		e.sizes.add(math.Log(float64(size)), math.Log(secs))
	}
}

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

// Expect tells how long a build is expected to take. size is as for Observe. It
// is never less than a millisecond, nor more than a month.
func (e *Estimator) Expect(pkg, arch string, size int64) time.Duration {
	archs := e.packages[pkg]
	if r := archs[arch]; r != nil {
		return duration(r.median())
	}
	if len(archs) > 0 {
		// The median of what the other archs say.
		var says []float64
		for other, r := range archs {
			ratio := 0.0
			if m := e.ratios[[2]string{arch, other}]; m != nil {
				ratio = m.v
			}
			says = append(says, math.Log(r.median())+ratio)
		}
		return duration(math.Exp(middle(says)))
	}
	if size > 0 {
		if y, ok := e.sizes.at(math.Log(float64(size))); ok {
			return duration(math.Exp(y))
		}
	}
	if len(e.all) > 0 {
		return duration(math.Exp(middle(slices.Clone(e.all))))
	}
	return FirstGuess
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
	if secs >= most.Seconds() {
		return most
	}
	return max(time.Millisecond, time.Duration(secs*float64(time.Second)))
}
