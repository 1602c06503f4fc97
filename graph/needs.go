package graph

import (
	"cmp"
	"slices"
	"strings"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/recipe"
)

// need is all that a release says of one name.
type need struct {
	raw  string // as the recipe writes it; several are joined by ", "
	want []bound
	name int32
	to   int32 // a slot for all archs of the class, or one of the following
	kind Kind
	away bool // of a cross build: for the machine that builds, see class.machine
}

// What a dependency may come to instead of a slot.
const (
	noPackage     int32 = -1 - iota // nobody has pushed it
	noVersion                       // only versions that do not fit
	notForArch                      // what fits is not built for the arch
	contradictory                   // no version whatever could fit
	unreadable                      // it is neither a name nor name-version
	perArch                         // see class.odd
)

// class are the archs of a release that have the same dependencies.
type class struct {
	archs []int32
	// Of one that is cross built, which has one arch: the arch of the machine, and
	// its name, as the channel need not have it (then it is noSuchArch).
	machine int32
	cross   string
	needs   []need
	odd     []odd // by need and arch
}

// noSuchArch is an arch that nothing is built for.
const noSuchArch int32 = -2

// archOf is the arch that a need of a node has to be met on.
func (c *class) archOf(n *need, arch int32) int32 {
	if n.away {
		return c.machine
	}
	return arch
}

// odd is what a need comes to on one arch, where archs differ.
type odd struct{ need, arch, to int32 }

func (c *class) oddFor(need, arch int32) int32 {
	i, ok := slices.BinarySearchFunc(c.odd, odd{need: need, arch: arch}, func(a, b odd) int {
		return cmp.Or(cmp.Compare(a.need, b.need), cmp.Compare(a.arch, b.arch))
	})
	if !ok {
		return noPackage
	}
	return c.odd[i].to
}

// to is the slot that need i comes to on an arch, or what it comes to instead.
func (c *class) to(i int, arch int32) int32 {
	if to := c.needs[i].to; to != perArch {
		return to
	}
	return c.oddFor(int32(i), arch)
}

// entry is one dependency as a recipe writes it, taken apart.
type entry struct {
	op         string
	candidates []candidate // none: unreadable
}

type candidate struct {
	name    int32
	version string
}

// builder makes a graph. Only it writes to one.
type builder struct {
	g      *Graph
	parsed map[string]entry
	group  map[int32]int // by name, the need of the class at hand
	odds   []odd
	slots  []int32

	direct   map[int32]bool // names that the class directOf needs
	directOf *class
}

func newBuilder(g *Graph) *builder {
	return &builder{g: g, parsed: map[string]entry{}, group: map[int32]int{}, direct: map[int32]bool{}}
}

// intern gives the number of a name, and room for it in what goes by name.
func (b *builder) intern(s string) int32 {
	n := &b.g.names
	if id, ok := n.find(s); ok {
		return id
	}
	id := int32(len(n.list))
	s = strings.Clone(s) // not to hold on to the text around it
	n.list = append(n.list, s)
	switch {
	case !n.owned: // With has seen to it that base may not be written
		if n.extra == nil {
			n.extra = map[string]int32{}
		}
		n.extra[s] = id
	default:
		n.base[s] = id
	}
	b.g.byName, b.g.provs, b.g.users = append(b.g.byName, nil), append(b.g.provs, nil), append(b.g.users, nil)
	return id
}

// place settles the archs of a release.
func (b *builder) place(slot int32, re *rel) {
	g := b.g
	re.archs = nil
	g.noarch[slot] = slices.Contains(re.r.Archs, quarry.Noarch)
	if g.noarch[slot] {
		re.archs = []int32{0}
	} else {
		for _, a := range re.r.Archs {
			if id := g.archID[a]; !slices.Contains(re.archs, id) {
				re.archs = append(re.archs, id)
			}
		}
		slices.Sort(re.archs)
	}
	g.nodes += len(re.archs)
}

// provide enters what a release stands for.
func (b *builder) provide(slot int32, r *quarry.Release) {
	for _, p := range provided(r) {
		id := b.intern(p.Name)
		b.g.provs[id] = append(b.g.provs[id], provider{slot, p.Version})
	}
}

// provided gives what a release provides.
func provided(r *quarry.Release) []recipe.NameVersion { return Provides(r.Package, r.Provides) }

// Provides gives what a recipe provides, in every reading: names and versions
// may both hold dashes, so java-runtime-17 is the virtual package of that whole
// name, and java-runtime at 17. A version begins with a digit here, or everything
// with a dash would provide its first word. A package does not provide itself.
func Provides(pkg string, provides []string) []recipe.NameVersion {
	var list []recipe.NameVersion
	for _, s := range provides {
		d, err := recipe.SplitDependency(s)
		if err != nil || d.Op != "" {
			continue
		}
		for _, c := range d.Candidates() {
			first := c.Version == "" || c.Version[0] >= '0' && c.Version[0] <= '9'
			if first && c.Name != pkg && !slices.Contains(list, c) {
				list = append(list, c)
			}
		}
	}
	return list
}

func (b *builder) parse(raw string) entry {
	e, ok := b.parsed[raw]
	if ok {
		return e
	}
	if d, err := recipe.SplitDependency(raw); err == nil {
		e.op = d.Op
		for _, c := range d.Candidates() {
			e.candidates = append(e.candidates, candidate{b.intern(c.Name), c.Version})
		}
	}
	b.parsed[strings.Clone(raw)] = e
	return e
}

// known reports whether a name means something: a package, or a virtual one.
func (g *Graph) known(name int32) bool { return len(g.byName[name]) > 0 || len(g.provs[name]) > 0 }

// resolve finds what all dependencies of a release mean, on all its archs.
func (b *builder) resolve(slot int32, re *rel) {
	g := b.g
	re.classes, re.mentions, re.succ = nil, nil, nil
	rest := class{}
	for _, a := range re.archs {
		t := re.r.Traits[g.archs[a]]
		if len(t.Needs)+len(t.HostNeeds)+len(t.TargetNeeds) == 0 {
			rest.archs = append(rest.archs, a)
			continue
		}
		c := class{archs: []int32{a}}
		if t.Cross != "" {
			id, ok := g.archID[t.Cross]
			if !ok {
				id = noSuchArch
			}
			c.cross, c.machine = t.Cross, id
		}
		re.classes = append(re.classes, c)
		b.fill(&re.classes[len(re.classes)-1], re, t)
	}
	if len(rest.archs) > 0 {
		if len(rest.archs) == len(re.archs) {
			rest.archs = re.archs
		}
		b.fill(&rest, re, quarry.Traits{})
		re.classes = append(re.classes, rest)
	}
	for i := range re.classes {
		b.aim(slot, &re.classes[i])
	}
	b.link(re)
	slices.Sort(re.mentions)
	re.mentions = slices.Clip(slices.Compact(re.mentions))
}

// fill groups the dependencies of a class by the name that they mean.
func (b *builder) fill(c *class, re *rel, t quarry.Traits) {
	clear(b.group)
	n := len(re.r.Needs) + len(t.Needs) + len(t.HostNeeds) + len(t.TargetNeeds)
	if n == 0 {
		return
	}
	c.needs = make([]need, 0, n)
	b.add(c, re, Needed, re.r.Needs)
	b.add(c, re, Needed, t.Needs)
	b.add(c, re, TargetNeed, t.TargetNeeds)
	if c.cross != "" {
		// On another arch, and so by itself: its versions need not be the same.
		clear(b.group)
	}
	b.add(c, re, HostNeed, t.HostNeeds)
	c.needs = slices.Clip(c.needs)
}

func (b *builder) add(c *class, re *rel, kind Kind, raws []string) {
	g := b.g
	for _, raw := range raws {
		e := b.parse(raw)
		if len(e.candidates) == 0 {
			c.needs = append(c.needs, need{raw: raw, name: -1, to: unreadable, kind: kind})
			continue
		}
		meant := 0
		for i, cand := range e.candidates {
			if re != nil {
				re.mentions = append(re.mentions, cand.name)
			}
			if g.known(cand.name) {
				meant = i
				break
			}
		}
		cand := e.candidates[meant]
		if !g.known(cand.name) && len(e.candidates) > 1 {
			// Nobody knows it. What begins with a digit was most likely meant to be
			// a version.
			for _, c := range e.candidates {
				if c.version != "" && c.version[0] >= '0' && c.version[0] <= '9' {
					cand = c
					break
				}
			}
		}
		i, ok := b.group[cand.name]
		if !ok {
			i = len(c.needs)
			b.group[cand.name] = i
			c.needs = append(c.needs, need{raw: raw, name: cand.name, away: kind == HostNeed && c.cross != ""})
		}
		n, want := &c.needs[i], bound{e.op, cand.version}
		n.kind |= kind
		if cand.version == "" || slices.Contains(n.want, want) {
			continue // says nothing more
		}
		n.want = append(n.want, want)
		if ok {
			n.raw += ", " + raw
		}
	}
}

// aim finds the releases that the needs of a class come to.
func (b *builder) aim(slot int32, c *class) {
	c.odd = nil
	for i := range c.needs {
		n := &c.needs[i]
		if n.to == unreadable {
			continue
		}
		b.odds = b.odds[:0]
		n.to = b.find(slot, c, int32(i))
		c.odd = append(c.odd, b.odds...)
	}
}

// find gives the slot that need i of a class comes to. Where archs differ it is
// perArch, and b.odds has them.
func (b *builder) find(slot int32, c *class, i int32) int32 {
	g, n := b.g, &c.needs[i]
	if contradicts(n.want) {
		return contradictory
	}
	fit, none := b.fitting(slot, c, n)
	if len(fit) == 0 {
		return none
	}
	if n.away {
		return g.best(fit, c.machine)
	}
	if g.servesAll(fit[0], c.archs) {
		return fit[0]
	}
	same := true
	first := g.best(fit, c.archs[0])
	for _, a := range c.archs {
		to := g.best(fit, a)
		same = same && to == first
		b.odds = append(b.odds, odd{i, a, to})
	}
	if same {
		b.odds = b.odds[:0]
		return first
	}
	return perArch
}

// fitting gives the releases that meet a need, the best first. A package of that
// name is meant if there is one: the newest version that fits. Else it is what
// provides the name: something that the release needs by its own name as well;
// then by name of package, the newest first; the release's own package last.
func (b *builder) fitting(slot int32, c *class, n *need) (fit []int32, none int32) {
	g := b.g
	fit = b.slots[:0]
	defer func() { b.slots = fit[:0] }()
	if slots := g.byName[n.name]; len(slots) > 0 {
		for _, s := range slots {
			if meetsAll(g.rels[s].r.Version, n.want) {
				fit = append(fit, s)
			}
		}
		return fit, noVersion
	}
	provs := g.provs[n.name]
	if len(provs) == 0 {
		return fit, noPackage
	}
	own := int32(-1)
	if slot >= 0 {
		own = g.rels[slot].name
	}
	if b.directOf != c && len(provs) > 1 {
		b.directOf = c
		clear(b.direct)
		for i := range c.needs {
			b.direct[c.needs[i].name] = true
		}
	}
	for rank := range 3 {
		for _, p := range provs {
			name := g.rels[p.slot].name
			is := 1
			if name == own {
				is = 2
			} else if b.direct[name] && len(provs) > 1 {
				is = 0
			}
			// What provides several versions of a name stands side by side.
			if is == rank && meetsAll(p.version, n.want) && (len(fit) == 0 || fit[len(fit)-1] != p.slot) {
				fit = append(fit, p.slot)
			}
		}
	}
	return fit, noVersion
}

// serves reports whether a release is built for an arch; well, whether nothing
// stands against that.
func (g *Graph) serves(slot, arch int32) (there, well bool) {
	re := g.rels[slot]
	if g.noarch[slot] {
		arch = 0
	} else if arch == 0 {
		arch = g.machine
	}
	if !slices.Contains(re.archs, arch) {
		return false, false
	}
	return true, len(re.r.Traits) == 0 || re.r.Declined(g.archs[arch]) == ""
}

func (g *Graph) servesAll(slot int32, archs []int32) bool {
	re := g.rels[slot]
	if len(re.r.Traits) == 0 && (g.noarch[slot] || len(archs) > 0 && archs[0] != 0 && slices.Equal(archs, re.archs)) {
		return true
	}
	for _, a := range archs {
		if _, well := g.serves(slot, a); !well {
			return false
		}
	}
	return true
}

// best is the first release that is built for an arch: one that is broken or
// restricted there only if there is no other.
func (g *Graph) best(fit []int32, arch int32) int32 {
	found := notForArch
	for _, s := range fit {
		there, well := g.serves(s, arch)
		if well {
			return s
		}
		if there && found < 0 {
			found = s
		}
	}
	return found
}

// link sums up what the needs come to.
func (b *builder) link(re *rel) {
	re.plain, re.cross = len(re.classes) == 1, false
	b.slots = b.slots[:0]
	for i := range re.classes {
		c := &re.classes[i]
		re.plain = re.plain && len(c.odd) == 0 && c.cross == ""
		re.cross = re.cross || c.cross != ""
		for j := range c.needs {
			if c.needs[j].to >= 0 {
				b.slots = append(b.slots, c.needs[j].to)
			}
		}
		for _, o := range c.odd {
			if o.to >= 0 {
				b.slots = append(b.slots, o.to)
			}
		}
	}
	if len(b.slots) > 50 {
		slices.Sort(b.slots)
		re.succ = slices.Clone(slices.Compact(b.slots))
		return
	}
	seen := b.slots[:0]
	for _, s := range b.slots {
		if !slices.Contains(seen, s) {
			seen = append(seen, s)
		}
	}
	re.succ = slices.Clone(seen)
}
