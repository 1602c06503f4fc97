// Package graph answers questions about dependencies: which release meets a
// constraint, what has to be installed with it, what can be built and what keeps
// the rest from it, in which order, and what a push causes. It is pure: what
// there is comes in through arguments and functions.
//
// [Graph] is about releases, and what they need to be built. [Catalog] is about
// what is built already: what a build gets installed.
package graph

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/recipe"
)

// Provider tells what there is: the versions of a package that have an artifact
// for an arch (those of noarch count for every arch), in any order.
type Provider func(pkg, arch string) ([]quarry.DepUsed, error)

// Offer is a release that has an artifact and stands for a virtual package.
type Offer struct {
	quarry.DepUsed
	Provided string // version of the virtual package; "" if the recipe gives none
}

// Catalog tells what can be installed.
type Catalog struct {
	There Provider
	// Virtual tells who provides a name, in any order. nil: nobody provides any.
	Virtual func(name, arch string) ([]Offer, error)
}

// Resolve finds what meets a dependency as recipes write it. Of an entry
// without operator, the first reading whose package exists is meant, so that
// gtk-doc-1.33 is gtk-doc at 1.33 wherever there is no package of that whole
// name. Of several versions that fit the newest wins (see quarry.CompareVersions).
func Resolve(dep, arch string, there Provider) (quarry.DepUsed, bool, error) {
	return Catalog{There: there}.Resolve(dep, arch)
}

// Resolve is as the function of that name, and knows virtual packages: of a name
// that no package has, the first by name of those that provide it.
func (c Catalog) Resolve(dep, arch string) (quarry.DepUsed, bool, error) {
	found, err := c.resolve([]string{dep}, arch, nil)
	if err != nil || len(found[0].Missing) > 0 {
		return quarry.DepUsed{}, false, err
	}
	return found[0].DepUsed, true, nil
}

// Resolved is what a list of dependencies comes to: one for each name.
type Resolved struct {
	quarry.DepUsed
	// Missing are the entries of this name, if nothing meets all of them.
	Missing []string
}

// ResolveAll finds what meets several dependencies of one release: all that they
// say of one name has to hold at once. Those that no version whatever could meet
// are a *ContradictionError. What provides a virtual package is by preference
// something that the list needs by its own name.
func (c Catalog) ResolveAll(deps []string, arch string) ([]Resolved, error) {
	return c.resolve(deps, arch, nil)
}

// demand is all that is asked of one name.
type demand struct {
	name     string
	raw      []string
	want     []bound
	versions []quarry.DepUsed
	offers   []Offer
}

// resolve prefers what is chosen.
func (c Catalog) resolve(deps []string, arch string, chosen map[string]quarry.DepUsed) ([]Resolved, error) {
	var demands []*demand
	at := map[string]*demand{}
	for _, raw := range deps {
		d, err := recipe.SplitDependency(raw)
		if err != nil {
			return nil, err
		}
		found, version, err := c.reading(d, arch)
		if err != nil {
			return nil, err
		}
		known := at[found.name]
		if known == nil {
			known = found
			at[found.name] = known
			demands = append(demands, known)
		}
		known.raw = append(known.raw, raw)
		if version != "" {
			known.want = append(known.want, bound{d.Op, version})
		}
	}
	direct := map[string]bool{}
	for _, d := range demands {
		if len(d.versions) > 0 {
			direct[d.name] = true
		}
	}
	out := make([]Resolved, len(demands))
	for i, d := range demands {
		if contradicts(d.want) {
			return nil, &ContradictionError{Name: d.name, Entries: d.raw}
		}
		dep, ok := d.choose(chosen, direct)
		if ok {
			out[i].DepUsed = dep
		} else {
			out[i].Missing = d.raw
		}
	}
	return out, nil
}

// reading finds which of the ways to read an entry is meant: that of the first
// name that a package has or provides. If there is none it has no versions.
func (c Catalog) reading(d recipe.Dependency, arch string) (*demand, string, error) {
	candidates := d.Candidates()
	for _, cand := range candidates {
		versions, err := c.There(cand.Name, arch)
		if err != nil {
			return nil, "", err
		}
		if len(versions) > 0 {
			return &demand{name: cand.Name, versions: versions}, cand.Version, nil
		}
		if c.Virtual == nil {
			continue
		}
		offers, err := c.Virtual(cand.Name, arch)
		if err != nil {
			return nil, "", err
		}
		if len(offers) > 0 {
			return &demand{name: cand.Name, offers: offers}, cand.Version, nil
		}
	}
	return &demand{name: d.Raw}, "", nil
}

// choose takes what is chosen wherever that fits; else the newest version, or
// the first by name of those that provide it.
func (d *demand) choose(chosen map[string]quarry.DepUsed, direct map[string]bool) (quarry.DepUsed, bool) {
	isChosen := func(v quarry.DepUsed) bool {
		c, ok := chosen[v.Package]
		return ok && c.Version == v.Version
	}
	var fit []quarry.DepUsed
	for _, v := range d.versions {
		if meetsAll(v.Version, d.want) {
			fit = append(fit, v)
		}
	}
	for _, o := range d.offers {
		if meetsAll(o.Provided, d.want) {
			fit = append(fit, o.DepUsed)
		}
	}
	if len(fit) == 0 {
		return quarry.DepUsed{}, false
	}
	rank := func(v quarry.DepUsed) int {
		_, other := chosen[v.Package] // of another version: that could not be installed beside it
		switch {
		case isChosen(v):
			return 0
		case direct[v.Package] && !other:
			return 1
		case other:
			return 3
		}
		return 2
	}
	return slices.MinFunc(fit, func(a, b quarry.DepUsed) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), strings.Compare(a.Package, b.Package), quarry.CompareVersions(b.Version, a.Version))
	}), true
}

func meets(version, op, want string) bool {
	if want == "" {
		return true
	}
	switch c := quarry.CompareVersions(version, want); op {
	case ">=":
		return c >= 0
	case "<=":
		return c <= 0
	case ">":
		return c > 0
	case "<":
		return c < 0
	}
	return version == want // exact means to the letter: 1.0 is not 1.00
}

// Closure gives all that has to be installed for the direct dependencies to
// work: them, what they need, and so on, each package once, whatever is needed
// before what needs it. needs tells what a release needs; a release that is
// chosen already is taken wherever it will do, the direct ones before all. A
// cycle is cut where it closes: both packages are there in the end. Two versions
// of one package cannot be installed together; that is a *ConflictError.
func Closure(direct []quarry.DepUsed, arch string, needs func(quarry.DepUsed) ([]string, error), there Provider) ([]quarry.DepUsed, error) {
	return Catalog{There: there}.Closure(direct, arch, needs)
}

// Closure is as the function of that name, and knows virtual packages.
func (c Catalog) Closure(direct []quarry.DepUsed, arch string, needs func(quarry.DepUsed) ([]string, error)) ([]quarry.DepUsed, error) {
	var order []quarry.DepUsed
	chosen := map[string]quarry.DepUsed{}
	choose := func(d quarry.DepUsed, by string) error {
		other, ok := chosen[d.Package]
		if ok && other.Version != d.Version {
			return &ConflictError{By: by, Wanted: d, Chosen: other}
		}
		chosen[d.Package] = d
		return nil
	}
	for _, d := range direct {
		if err := choose(d, "the recipe"); err != nil {
			return nil, err
		}
	}
	// No recursion: a chain may be as long as it likes.
	type step struct {
		d    quarry.DepUsed
		rest [][]string // dependencies that are still to be chosen, by name
	}
	seen := map[string]bool{}
	var stack []step
	visit := func(d quarry.DepUsed) error {
		if seen[d.Package] {
			return nil
		}
		seen[d.Package] = true
		list, err := needs(d)
		if err != nil {
			return err
		}
		groups, err := c.byName(list, arch)
		if err != nil {
			return err
		}
		stack = append(stack, step{d: d, rest: groups})
		return nil
	}
	for _, d := range direct {
		if err := visit(d); err != nil {
			return nil, err
		}
		for len(stack) > 0 {
			top := &stack[len(stack)-1]
			if len(top.rest) == 0 {
				order = append(order, top.d)
				stack = stack[:len(stack)-1]
				continue
			}
			by, group := top.d, top.rest[0]
			top.rest = top.rest[1:]
			found, err := c.resolve(group, arch, chosen)
			if err != nil {
				return nil, fmt.Errorf("%s %s: %w", by.Package, by.Version, err)
			}
			next := found[0]
			if len(next.Missing) > 0 {
				return nil, fmt.Errorf("%s %s needs %s, which has no record: build that again first", by.Package, by.Version, strings.Join(next.Missing, ", "))
			}
			if err := choose(next.DepUsed, by.Package); err != nil {
				return nil, err
			}
			if err := visit(next.DepUsed); err != nil {
				return nil, err
			}
		}
	}
	return order, nil
}

// byName puts the dependencies of one release together that are about the same
// name.
func (c Catalog) byName(list []string, arch string) ([][]string, error) {
	if len(list) == 1 {
		return [][]string{list}, nil
	}
	var groups [][]string
	at := map[string]int{}
	for _, raw := range list {
		d, err := recipe.SplitDependency(raw)
		if err != nil {
			return nil, err
		}
		found, _, err := c.reading(d, arch)
		if err != nil {
			return nil, err
		}
		i, ok := at[found.name]
		if !ok {
			i = len(groups)
			at[found.name] = i
			groups = append(groups, nil)
		}
		groups[i] = append(groups[i], raw)
	}
	return groups, nil
}

// ConflictError says that two versions of one package would have to be
// installed together. It is the packagers' to mend.
type ConflictError struct {
	By             string // who wants the second
	Wanted, Chosen quarry.DepUsed
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("%s needs %s %s, but %s is wanted beside it: loosen one of the two", e.By, e.Wanted.Package, e.Wanted.Version, e.Chosen.Version)
}

// ContradictionError says that a recipe asks of one name what no version can be.
type ContradictionError struct {
	Name    string   // e.g. zlib
	Entries []string // e.g. zlib>=2 and zlib<1.3
}

func (e *ContradictionError) Error() string {
	return fmt.Sprintf("dependencies %s contradict each other: no version of %s can be all of it, loosen one of them", strings.Join(e.Entries, " and "), e.Name)
}

// CheckNeeds finds contradictions in a list of dependencies without knowing
// what packages there are: of entries with an operator, which name their package.
func CheckNeeds(needs []string) error {
	type said struct {
		raw  []string
		want []bound
	}
	by := map[string]*said{}
	var errs []error
	for _, raw := range needs {
		d, err := recipe.SplitDependency(raw)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if d.Op == "" {
			continue
		}
		s := by[d.Name]
		if s == nil {
			s = &said{}
			by[d.Name] = s
		}
		was := contradicts(s.want)
		s.raw, s.want = append(s.raw, raw), append(s.want, bound{d.Op, d.Version})
		if !was && contradicts(s.want) {
			errs = append(errs, &ContradictionError{Name: d.Name, Entries: slices.Clone(s.raw)})
		}
	}
	return errors.Join(errs...)
}
