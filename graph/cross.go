package graph

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/Morphux/quarry"
)

// CanCross reports whether a package can be built for an arch on machines of
// another one. native and crossed are what its recipe says of the arch when it
// is built there and when it is cross built (recipe.Recipe.Traits).
//
// This is dxpb's rule: nocross forbids it, in either reading; else the recipe
// is read as for a cross build, and being broken counts if it comes of that.
//
//	broken  broken now  can cross
//	no      yes         no
//	no      no          yes
//	yes     yes         yes
//	yes     no          yes
func CanCross(native, crossed quarry.Traits) bool {
	if native.NoCross || crossed.NoCross {
		return false
	}
	return native.Broken != "" || crossed.Broken == ""
}

// DefaultCost is the cost of a worker that gives none.
const DefaultCost = 100

// MaxCost is the highest cost that a worker may have.
const MaxCost = 1_000_000

// Worker is one way in which a machine can build.
type Worker struct {
	Host   string // arch that the steps run on
	Target string // arch that comes out
	Cost   int    // the cheapest worker that fits is taken
	Cross  bool   // builds for Target with a cross compiler
}

// ParseWorker reads HOSTARCH:TARGETARCH[:COST[:ISCROSS]]. The cost is a whole
// number from 0 to MaxCost, by default (and where it is left blank) 100. ISCROSS
// is true or false; by default a worker crosses when its archs differ. One that
// does not (x86_64:i686:100:false) runs what it builds.
func ParseWorker(s string) (Worker, error) {
	bad := func(format string, args ...any) (Worker, error) {
		return Worker{}, fmt.Errorf("worker %.120q %s: write hostarch:targetarch:cost[:iscross], e.g. x86_64:aarch64:300", s, fmt.Sprintf(format, args...))
	}
	parts := strings.Split(s, ":")
	if len(parts) < 2 || len(parts) > 4 {
		return bad("has %d parts", len(parts))
	}
	for _, arch := range parts[:2] {
		if err := quarry.CheckArch(arch); err != nil {
			return bad("does not fit: %v", err)
		}
		if arch == quarry.Noarch {
			return bad("names noarch, which every worker builds")
		}
	}
	w := Worker{Host: parts[0], Target: parts[1], Cost: DefaultCost, Cross: parts[0] != parts[1]}
	if len(parts) > 2 && parts[2] != "" {
		cost, err := strconv.ParseUint(parts[2], 10, 32)
		if err != nil || cost > MaxCost {
			return bad("has the cost %.20q, and a cost is a whole number from 0 to %d", parts[2], MaxCost)
		}
		w.Cost = int(cost)
	}
	if len(parts) > 3 {
		switch parts[3] {
		case "true":
			w.Cross = true
		case "false":
			w.Cross = false
		default:
			return bad("ends in %.20q, which is neither true nor false", parts[3])
		}
	}
	return w, nil
}

// ParseWorkers reads several; there must be one at least.
func ParseWorkers(list []string) ([]Worker, error) {
	var all []Worker
	for _, s := range list {
		w, err := ParseWorker(s)
		if err != nil {
			return nil, err
		}
		all = append(all, w)
	}
	if len(all) == 0 {
		return nil, errors.New("there is no worker: name one as hostarch:targetarch:cost, e.g. x86_64:x86_64:100")
	}
	return all, nil
}

// String writes a worker so that ParseWorker reads it.
func (w Worker) String() string {
	s := fmt.Sprintf("%s:%s:%d", w.Host, w.Target, w.Cost)
	if w.Cross != (w.Host != w.Target) {
		s += fmt.Sprintf(":%t", w.Cross)
	}
	return s
}

// Fits reports whether a worker can build for an arch something that can or
// cannot be cross built: what is noarch fits every worker, all else those of its
// arch that do not cross, and those that do if it can be.
func (w Worker) Fits(arch string, canCross bool) bool {
	return arch == quarry.Noarch || arch == w.Target && (canCross || !w.Cross)
}

// Cheapest is the index of the worker that fits at the lowest cost, -1 if none
// does. Of those that cost the same one that does not cross wins, then the first.
func Cheapest(workers []Worker, arch string, canCross bool) int {
	best := -1
	for i, w := range workers {
		if !w.Fits(arch, canCross) {
			continue
		}
		if best < 0 || w.Cost < workers[best].Cost || w.Cost == workers[best].Cost && !w.Cross && workers[best].Cross {
			best = i
		}
	}
	return best
}
