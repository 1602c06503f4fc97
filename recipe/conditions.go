package recipe

import (
	"path"
	"slices"

	"github.com/Morphux/quarry"
)

// MaxClauses is how many entries "when" may have.
const MaxClauses = 100

// Conditions are what a recipe says of being built at all, and of what for. In
// a clause of "when" a nil field says nothing; a reason that is empty takes
// back what was said before.
type Conditions struct {
	Broken     *string // why it does not build
	Restricted *string // why the farm must not build it, e.g. its licence
	NoCross    *string // why only a machine of its own arch can build it
	Bootstrap  *bool   // can be built before what it needs, so that cycles are cut at it

	Needed []string // what it needs to be built and to run, beside the dependencies section
	Build  []string // needed only while it is built: for the machine that builds, and for the arch that it is built for
	Host   []string // the same for the machine that builds alone: tools that run
	Target []string // the same for the arch that it is built for alone: what it is linked with
}

// Clause is one entry of "when": conditions that hold for some archs, or for
// one way of building. Those of xbps-src, which dxpb reads, are its model.
type Clause struct {
	Archs []string // patterns as of path.Match that one has to fit; none: all
	Cross *bool    // true: only when cross building; false: only when not; nil: both
	Conditions
}

func (c Clause) holds(arch string, cross bool) bool {
	return (c.Cross == nil || *c.Cross == cross) &&
		(len(c.Archs) == 0 || slices.ContainsFunc(c.Archs, func(pattern string) bool {
			ok, err := path.Match(pattern, arch)
			return err == nil && ok
		}))
}

// Traits tells what the recipe says of an arch. The clauses of "when" that hold
// count from top to bottom: a later one replaces what an earlier one says, and
// adds to its lists.
func (r *Recipe) Traits(arch string, cross bool) quarry.Traits {
	t := quarry.Traits{}
	add := func(c Conditions) {
		reason := func(to *string, from *string) {
			if from != nil {
				*to = *from
			}
		}
		reason(&t.Broken, c.Broken)
		reason(&t.Restricted, c.Restricted)
		if c.NoCross != nil {
			t.NoCross = *c.NoCross != ""
		}
		if c.Bootstrap != nil {
			t.Bootstrap = *c.Bootstrap
		}
		more := func(to *[]string, lists ...[]string) {
			for _, s := range slices.Concat(lists...) {
				if !slices.Contains(*to, s) {
					*to = append(*to, s)
				}
			}
		}
		more(&t.Needs, c.Needed)
		more(&t.HostNeeds, c.Host, c.Build)
		more(&t.TargetNeeds, c.Target, c.Build)
	}
	add(r.Ext.Conditions)
	for _, c := range r.Ext.When {
		if c.holds(arch, cross) {
			add(c.Conditions)
		}
	}
	t.Memory = r.Ext.Memory
	return t
}

// Fill sets of a release what the recipe says: what it needs and provides, and,
// of the archs that its channel has, those that it is for and what holds there.
func (r *Recipe) Fill(rel *quarry.Release, channelArchs []string) {
	rel.Needs, rel.Provides = slices.Clone(r.Info.Needed), slices.Clone(r.Info.Provides)
	rel.Archs, rel.Traits, rel.Crossed = r.Archs(channelArchs), nil, nil
	onlyCross := slices.ContainsFunc(r.Ext.When, func(c Clause) bool { return c.Cross != nil })
	for _, arch := range rel.Archs {
		if t := r.Traits(arch, false); !t.IsZero() {
			if rel.Traits == nil {
				rel.Traits = map[string]quarry.Traits{}
			}
			rel.Traits[arch] = t
		}
		if onlyCross {
			if rel.Crossed == nil {
				rel.Crossed = map[string]quarry.Traits{}
			}
			rel.Crossed[arch] = r.Traits(arch, true)
		}
	}
}

// InfoFor is what goes into the record of a build for an arch, one that is cross
// built or one that is not: Info, with what the package needs there.
func (r *Recipe) InfoFor(arch string, cross bool) quarry.Info {
	info := r.Info
	for _, n := range r.Traits(arch, cross).Needs {
		if !slices.Contains(info.Needed, n) {
			info.Needed = append(slices.Clip(info.Needed), n)
		}
	}
	return info
}

// conditions are the fields that the quarry object and a clause share.
func (rd *reader) conditions(c *Conditions) []field {
	return []field{
		{"broken", rd.reason(&c.Broken)},
		{"restricted", rd.reason(&c.Restricted)},
		{"nocross", rd.reason(&c.NoCross)},
		{"bootstrap", func(n *node) {
			if rd.want(n, boolean) {
				c.Bootstrap = &n.truth
			}
		}},
		{"dependencies", func(n *node) {
			rd.fields(n, field{"needed", rd.needs(&c.Needed)}, field{"build", rd.needs(&c.Build)},
				field{"host", rd.needs(&c.Host)}, field{"target", rd.needs(&c.Target)})
		}},
	}
}

// reason reads true, false, or text that stands for true and says why.
func (rd *reader) reason(to **string) func(*node) {
	return func(n *node) {
		var why string
		switch n.kind {
		case boolean:
			if n.truth {
				why = "no reason is given"
			}
		case text:
			s, ok := rd.str(n, MaxText)
			switch {
			case !ok:
				return
			case s == "":
				rd.fail(n, "is blank: say why, or give true or false")
				return
			}
			why = s
		default:
			rd.fail(n, "is %s: give true or false, or the reason in quotes", n.kind)
			return
		}
		*to = &why
	}
}

func (rd *reader) when(n *node) {
	rd.items(n, MaxClauses, func(n *node) {
		var c Clause
		ok := rd.fields(n, append(rd.conditions(&c.Conditions),
			field{"arch", rd.patterns(&c.Archs)},
			field{"cross", func(n *node) {
				if rd.want(n, boolean) {
					c.Cross = &n.truth
				}
			}})...)
		if !ok {
			return
		}
		if c.Archs == nil && c.Cross == nil && n.get("arch") == nil && n.get("cross") == nil {
			rd.fail(n, "has no condition: give arch or cross, or say it in the quarry object itself")
			return
		}
		rd.r.Ext.When = append(rd.r.Ext.When, c)
	})
}

// patterns reads one pattern for names of archs, or a list of them.
func (rd *reader) patterns(to *[]string) func(*node) {
	one := func(n *node) {
		s, ok := rd.str(n, MaxText)
		if !ok {
			return
		}
		if _, err := path.Match(s, ""); err != nil || s == "" {
			rd.fail(n, "is %q, which is no pattern for archs: write a name, or one such as arm* or i?86", shorten(s))
			return
		}
		*to = append(*to, s)
	}
	return func(n *node) {
		if n.kind == text {
			one(n)
		} else if rd.items(n, MaxArchs, one) && len(n.members) == 0 {
			rd.fail(n, "is empty, so the entry would hold for all archs: name one, or leave it out")
		}
	}
}

// provides reads the virtual packages that the package stands for.
func (rd *reader) provides(n *node) {
	rd.items(n, MaxDeps, func(n *node) {
		s, ok := rd.str(n, MaxText)
		if !ok {
			return
		}
		d, err := SplitDependency(s)
		switch {
		case err != nil:
			rd.fail(n, "does not fit: %v", err)
		case d.Op != "":
			rd.fail(n, "is %q: a package provides a name, or name-version, and no range", shorten(s))
		case s == rd.r.Package:
			rd.warn(n, "names the package itself, which it provides anyway")
		case slices.Contains(rd.r.Info.Provides, s):
			rd.warn(n, "names %s again", s)
		default:
			rd.r.Info.Provides = append(rd.r.Info.Provides, s)
		}
	})
}
