package queue

import (
	"slices"
	"strings"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/graph"
)

// Packages that need each other can be built when one of them is declared as
// bootstrap: it is built without what it needs in the circle, then the others
// with it, and then it once more, with everything, as its record says what it was
// built without (see Records.Stale).

// cutting is records, and the graph that says what a build may go without.
type cutting struct {
	Records
	graph func() (*graph.Graph, error)
}

// ResolveAll is of AllRecords; it is what the records themselves have of it.
func (c cutting) ResolveAll(needs []string, arch string) (deps []quarry.DepUsed, missing []string, err error) {
	return resolveAll(c.Records, needs, arch)
}

// Pending is of GroupRecords, in the same way.
func (c cutting) Pending(pkg, arch string) (bool, error) {
	if g, ok := c.Records.(GroupRecords); ok {
		return g.Pending(pkg, arch)
	}
	return false, nil
}

// spare takes from what a release lacks on an arch that which its build may go
// without: what needs the release in turn, if it is declared as bootstrap.
func spare(recs Records, r quarry.Release, arch string, missing []string) (still, without []string) {
	c, ok := recs.(cutting)
	if !ok || len(missing) == 0 || !r.Traits[arch].Bootstrap {
		return missing, nil
	}
	g, err := c.graph()
	if err != nil {
		return missing, nil // not everything is read yet: the next look knows
	}
	n, ok := g.Node(r.Package, r.Version, arch)
	if !ok || g.Release(n).Commit != r.Commit {
		return missing, nil
	}
	waits := g.WaitsFor(n)
	var cut []string
	for _, need := range g.Needs(n) {
		if need.To != graph.None && !slices.Contains(waits, need.To) {
			cut = append(cut, strings.Split(need.Raw, ", ")...)
		}
	}
	for _, need := range missing {
		if slices.Contains(cut, need) {
			without = append(without, need)
		} else {
			still = append(still, need)
		}
	}
	return still, without
}
