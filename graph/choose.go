package graph

import (
	"fmt"
	"maps"
	"slices"

	"github.com/Morphux/quarry"
)

// Choose finds the worker that builds a package for an arch: the cheapest that
// fits and for which the recipe does not say that the package is broken. Where
// there is none of these, the cheapest that fits, so that it is the recipe's word
// that stands against the build. native and crossed are what the recipe says of
// the arch, as for [CanCross]. Without a worker that fits, why says what is missing.
func Choose(workers []Worker, arch string, native, crossed quarry.Traits) (w Worker, why string) {
	canCross := CanCross(native, crossed)
	var sound []Worker
	for _, w := range workers {
		says := native
		if w.crosses() {
			says = crossed
		}
		if says.Broken == "" {
			sound = append(sound, w)
		}
	}
	for _, list := range [][]Worker{sound, workers} {
		if i := Cheapest(list, arch, canCross); i >= 0 {
			return list[i], ""
		}
	}
	switch crossing := slices.ContainsFunc(workers, func(w Worker) bool { return w.Fits(arch, true) }); {
	case crossing && (native.NoCross || crossed.NoCross):
		return Worker{}, fmt.Sprintf("no worker can build it: nocross, and there is no native worker for %s", arch)
	case crossing:
		return Worker{}, fmt.Sprintf("no worker can build it: broken when it is cross built (%.200s), and there is no native worker for %s", crossed.Broken, arch)
	}
	return Worker{}, fmt.Sprintf("no worker builds for %s: there is none for it in build.workers_for", arch)
}

// crosses reports whether what the worker builds comes out of another arch's system.
func (w Worker) crosses() bool { return w.Cross && w.Host != w.Target }

// Assign decides of a release, for each of its archs, which worker builds it,
// and leaves in Traits what then holds. Without workers each arch is built in a
// system of its own; what is noarch always is.
func Assign(workers []Worker, r *quarry.Release) {
	crossed := r.Crossed
	r.Crossed = nil
	if len(workers) == 0 {
		return
	}
	r.Traits = maps.Clone(r.Traits)
	for _, arch := range r.Archs {
		if arch == quarry.Noarch {
			continue
		}
		native := r.Traits[arch]
		cross, ok := crossed[arch]
		if !ok {
			cross = native
		}
		t := native
		switch w, why := Choose(workers, arch, native, cross); {
		case why != "":
			t.NoWorker = why
		case w.crosses():
			t = cross
			t.Cross = w.Host
		default:
			continue
		}
		if r.Traits == nil {
			r.Traits = map[string]quarry.Traits{}
		}
		r.Traits[arch] = t
	}
}
