package recipe

import (
	"fmt"
	"strings"

	"github.com/Morphux/quarry"
)

// Dependency is one entry of the dependencies section. Morphux has name and
// name-version; the others are those of dxpb.
type Dependency struct {
	Raw string // as the recipe writes it, e.g. zlib>=1.2

	// Op is >=, <=, > or <, and Name and Version are what stands beside it. All
	// three are empty for a bare name or name-version: what such an entry means
	// depends on which packages there are, see Candidates.
	Op      string
	Name    string
	Version string
}

// NameVersion is one way to read an entry. Version is empty for any version.
type NameVersion struct {
	Name, Version string
}

// SplitDependency takes an entry apart: name, name-version, name>=v, name<=v,
// name>v or name<v. What fits none of them is an error.
func SplitDependency(s string) (Dependency, error) {
	d := Dependency{Raw: s}
	i := strings.IndexAny(s, "<>=")
	if i < 0 {
		if len(d.Candidates()) > 0 {
			return d, nil
		}
		// A name of letters would have been a candidate, so this says why not.
		if err := quarry.CheckName(s); err != nil {
			return Dependency{}, fmt.Errorf("dependency %.120q: %w", s, err)
		}
		return Dependency{}, fmt.Errorf("dependency %.120q is neither a name nor name-version", s)
	}
	for _, op := range []string{">=", "<=", ">", "<"} {
		if version, ok := strings.CutPrefix(s[i:], op); ok {
			d.Op, d.Name, d.Version = op, s[:i], version
			break
		}
	}
	if d.Op == "" {
		return Dependency{}, fmt.Errorf("dependency %.120q has an operator that is not known: write name-version, or use one of >= <= > <", s)
	}
	if err := quarry.CheckName(d.Name); err != nil {
		return Dependency{}, fmt.Errorf("dependency %.120q: %w", s, err)
	}
	if err := quarry.CheckVersion(d.Version); err != nil {
		return Dependency{}, fmt.Errorf("dependency %.120q: %w", s, err)
	}
	return d, nil
}

// Candidates gives the ways to read an entry without operator, the longest name
// first: names and versions may both hold dashes, so that gtk-doc-1.33 is the
// package gtk-doc-1.33 at any version, gtk-doc at 1.33, or gtk at doc-1.33.
// The first one whose package exists is meant. A version has a digit, as in
// the branch of a release. An entry with an operator has the one candidate that
// its Name is.
func (d Dependency) Candidates() []NameVersion {
	if d.Op != "" {
		return []NameVersion{{d.Name, d.Version}}
	}
	var all []NameVersion
	if quarry.CheckName(d.Raw) == nil {
		all = append(all, NameVersion{Name: d.Raw})
	}
	for i := len(d.Raw) - 1; i > 0; i-- {
		if d.Raw[i] != '-' {
			continue
		}
		name, version := d.Raw[:i], d.Raw[i+1:]
		if strings.ContainsAny(version, "0123456789") && quarry.CheckName(name) == nil && quarry.CheckVersion(version) == nil {
			all = append(all, NameVersion{name, version})
		}
	}
	return all
}
