// Package graph answers questions about dependencies: which release meets a
// constraint, and what has to be installed with it. It is pure: what there is
// comes in through functions.
package graph

import (
	"fmt"
	"slices"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/recipe"
)

// Provider tells what there is: the versions of a package that have an artifact
// for an arch (those of noarch count for every arch), in any order.
type Provider func(pkg, arch string) ([]quarry.DepUsed, error)

// Resolve finds what meets a dependency as recipes write it. Of an entry
// without operator, the first reading whose package exists is meant, so that
// gtk-doc-1.33 is gtk-doc at 1.33 wherever there is no package of that whole
// name. Of several versions that fit the newest wins (see quarry.CompareVersions).
func Resolve(dep, arch string, there Provider) (quarry.DepUsed, bool, error) {
	return resolve(dep, arch, there, nil)
}

// resolve prefers what is chosen.
func resolve(dep, arch string, there Provider, chosen map[string]quarry.DepUsed) (quarry.DepUsed, bool, error) {
	d, err := recipe.SplitDependency(dep)
	if err != nil {
		return quarry.DepUsed{}, false, err
	}
	for _, c := range d.Candidates() {
		versions, err := there(c.Name, arch)
		if err != nil {
			return quarry.DepUsed{}, false, err
		}
		fit := slices.DeleteFunc(slices.Clone(versions), func(v quarry.DepUsed) bool { return !meets(v.Version, d.Op, c.Version) })
		if i := slices.IndexFunc(fit, func(v quarry.DepUsed) bool { return v.Version == chosen[v.Package].Version }); i >= 0 {
			return fit[i], true, nil
		}
		if len(fit) > 0 {
			return slices.MaxFunc(fit, func(a, b quarry.DepUsed) int { return quarry.CompareVersions(a.Version, b.Version) }), true, nil
		}
		if len(versions) > 0 {
			return quarry.DepUsed{}, false, nil // this package is meant, at a version that is not there
		}
	}
	return quarry.DepUsed{}, false, nil
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
	seen := map[string]bool{}
	var visit func(d quarry.DepUsed) error
	visit = func(d quarry.DepUsed) error {
		if seen[d.Package] {
			return nil
		}
		seen[d.Package] = true
		list, err := needs(d)
		if err != nil {
			return err
		}
		for _, n := range list {
			next, ok, err := resolve(n, arch, there, chosen)
			if err != nil {
				return err
			}
			if !ok {
				return fmt.Errorf("%s %s needs %s, which has no record: build that again first", d.Package, d.Version, n)
			}
			if err := choose(next, d.Package); err != nil {
				return err
			}
			if err := visit(next); err != nil {
				return err
			}
		}
		order = append(order, d)
		return nil
	}
	for _, d := range direct {
		if err := visit(d); err != nil {
			return nil, err
		}
	}
	return order, nil
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
