// Package graphtest makes channels that look like a distribution's, for tests and
// benchmarks, and reads a real one from Debian's index of sources.
package graphtest

import (
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry"
)

// Archs are ten archs, as a channel may have.
var Archs = []string{"x86_64", "aarch64", "armv7l", "i686", "loongarch64", "mips64el", "ppc64le", "riscv64", "s390x", "sparc64"}

// Options say what to generate.
type Options struct {
	Packages int
	Archs    []string // empty: Archs
	Seed     uint64
}

// Distribution is a generated channel. The same options always give the same.
type Distribution struct {
	Releases []quarry.Release // by name
	seed     uint64
	base     map[string]time.Duration
}

// Generate makes a distribution with the shape of Debian's: a small core that
// nearly everything needs, libraries on top of each other, and many leaves.
//
//   - Layers: a package needs those that come before it in a hidden order, which
//     its name does not tell. The core (1 %, at least 10) is dense.
//   - Who is needed follows Zipf's law, so that a few have thousands of users; how
//     much is needed is log-normal, about eight on average and dozens at most.
//   - One need in seven is of something near in the hidden order: families of
//     packages, and the long chains between them.
//   - Cycles are few, all in the core, and each is cut by a bootstrap package.
//   - One package in five is noarch, one in thirty is not built for all archs, one
//     in a hundred has a virtual name; some needs have versions.
//   - Times are log-normal with a median of a minute; the longest take hours.
func Generate(o Options) *Distribution {
	if len(o.Archs) == 0 {
		o.Archs = Archs
	}
	n := o.Packages
	rnd := rand.New(rand.NewPCG(o.Seed, 0x9e3779b97f4a7c15))
	d := &Distribution{seed: o.Seed, base: make(map[string]time.Duration, n)}
	d.Releases = make([]quarry.Release, n)
	core := min(n, max(10, n/100))
	provided := map[string]bool{} // on all archs
	stamp := time.Unix(1_700_000_000, 0).UTC()
	for i := range d.Releases {
		r := &d.Releases[i]
		r.Package = name(rnd, i)
		r.Version = fmt.Sprintf("%d.%d.%d", rnd.IntN(9), rnd.IntN(30), rnd.IntN(20))
		r.Channel, r.Commit = "testing", fmt.Sprintf("%040x", rnd.Uint64())
		r.Time, r.Pushed = stamp, stamp
		r.Archs = o.Archs
		switch {
		case i >= core && rnd.IntN(5) == 0:
			r.Archs = []string{quarry.Noarch}
		case i >= n/2 && rnd.IntN(15) == 0 && len(o.Archs) > 1:
			r.Archs = slices.Clone(o.Archs[:1+rnd.IntN(len(o.Archs)-1)])
		}
		d.base[r.Package] = takes(rnd, i < core)
		r.Needs = needs(rnd, d.Releases[:i], i, core)
		// Virtual packages of the lower half are needed in the upper one.
		virtual := fmt.Sprintf("virtual-%d", rnd.IntN(1+n/300))
		switch {
		case i >= core && i < n/2 && rnd.IntN(50) == 0:
			r.Provides = []string{fmt.Sprintf("%s-%d", virtual, 1+rnd.IntN(3))}
			provided[virtual] = provided[virtual] || len(r.Archs) == len(o.Archs)
		case i >= n/2 && rnd.IntN(30) == 0 && provided[virtual]:
			r.Needs = append(r.Needs, virtual+">=1")
		}
	}
	// In the core some need each other: what came first is built without the
	// other at first.
	at := make(map[string]int, core)
	for i := range core {
		at[d.Releases[i].Package] = i
	}
	var pairs [][2]int // what needs, and what it needs
	for b := range core {
		for _, need := range d.Releases[b].Needs {
			if a, ok := at[need]; ok {
				pairs = append(pairs, [2]int{a, b})
			}
		}
	}
	for range min(len(pairs), max(2, core/15)) {
		pair := pairs[rnd.IntN(len(pairs))]
		a, b := pair[0], pair[1]
		r := &d.Releases[a]
		r.Needs = append(r.Needs, d.Releases[b].Package)
		r.Traits = map[string]quarry.Traits{}
		for _, arch := range o.Archs {
			r.Traits[arch] = quarry.Traits{Bootstrap: true}
		}
	}
	slices.SortFunc(d.Releases, func(a, b quarry.Release) int { return strings.Compare(a.Package, b.Package) })
	return d
}

// name makes a name that sorts anywhere.
func name(rnd *rand.Rand, i int) string {
	const syllables = "bacedifoguhajekilomunapeqiruso"
	var b strings.Builder
	if rnd.IntN(4) == 0 {
		b.WriteString("lib")
	}
	for range 2 + rnd.IntN(3) {
		at := rnd.IntN(len(syllables)/2) * 2
		b.WriteString(syllables[at : at+2])
	}
	fmt.Fprintf(&b, "-%d", i)
	if rnd.IntN(5) == 0 {
		b.WriteString("-dev")
	}
	return b.String()
}

func takes(rnd *rand.Rand, core bool) time.Duration {
	sigma := 1.4
	if core {
		sigma = 1.8
	}
	secs := 60 * math.Exp(sigma*rnd.NormFloat64())
	return time.Duration(min(max(secs, 2), 8*3600) * float64(time.Second))
}

func needs(rnd *rand.Rand, before []quarry.Release, i, core int) []string {
	if i == 0 {
		return nil
	}
	count := int(math.Exp(1.8 + 0.8*rnd.NormFloat64()))
	if i < core {
		count = min(count, 1+i/3)
	}
	count = min(count, 60, i)
	zipf := rand.NewZipf(rnd, 1.25, 8, uint64(i-1))
	seen := map[int]bool{}
	var list []string
	for range count {
		var at int
		if rnd.IntN(7) == 0 {
			at = max(0, i-1-rnd.IntN(50))
		} else {
			at = int(zipf.Uint64())
		}
		if seen[at] {
			continue
		}
		seen[at] = true
		r := &before[at]
		// What is not built for all archs would keep this from being built there.
		if len(r.Archs) == 1 && r.Archs[0] != quarry.Noarch {
			continue
		}
		s := r.Package
		switch rnd.IntN(12) {
		case 0:
			s += ">=" + r.Version
		case 1:
			s += ">=0.0.1"
		case 2:
			s += "-" + r.Version
		}
		list = append(list, s)
	}
	return list
}

// Takes tells how long a package builds on an arch: archs differ by a factor, and
// packages on them by a little.
func (d *Distribution) Takes(pkg, arch string) time.Duration {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d %s", d.seed, arch)
	speed := 0.7 + float64(h.Sum64()%1000)/1000*2
	fmt.Fprintf(h, " %s", pkg)
	jitter := 0.9 + float64(h.Sum64()%1000)/1000*0.2
	if arch == quarry.Noarch {
		speed = 0.7
	}
	return time.Duration(float64(d.base[pkg]) * speed * jitter)
}
