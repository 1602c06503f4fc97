package graph

import (
	"maps"
	"reflect"
	"slices"

	"github.com/Morphux/quarry"
)

// With gives the graph after a push: releases are then all that the package
// has, none when it is gone. Those of other packages are passed over. All that
// the push does not touch is shared with g, and releases that stay keep their
// nodes. What else has a dependency that now comes to something else follows.
func (g *Graph) With(pkg string, releases []quarry.Release) *Graph {
	fresh := map[string]*quarry.Release{}
	newArch := false
	for i := range releases {
		if r := releases[i]; r.Package == pkg {
			fresh[r.Version] = &r
			for _, a := range r.Archs {
				_, ok := g.archID[a]
				newArch = newArch || !ok
			}
		}
	}
	if newArch || len(g.names.extra) > maxExtra {
		return g.rebuilt(pkg, fresh)
	}
	next := &Graph{opts: g.opts, archs: g.archs, archID: g.archID, machine: g.machine, nodes: g.nodes}
	next.rels, next.noarch = slices.Clone(g.rels), slices.Clone(g.noarch)
	next.byName, next.provs, next.users = slices.Clone(g.byName), slices.Clone(g.provs), slices.Clone(g.users)
	next.names = names{list: slices.Clip(g.names.list), base: g.names.base, extra: maps.Clone(g.names.extra)}
	c := &change{builder: newBuilder(next), old: g, free: slices.Clone(g.free), affected: map[int32]bool{}, redo: map[int32]bool{},
		unused: map[int32]map[int32]bool{}, used: map[int32][]int32{}}
	c.replace(pkg, fresh)
	c.follow()
	next.free = append(c.free, c.freed...)
	return next
}

// rebuilt makes the graph from nothing.
func (g *Graph) rebuilt(pkg string, fresh map[string]*quarry.Release) *Graph {
	var all []quarry.Release
	for _, re := range g.rels {
		if re != nil && re.r.Package != pkg {
			all = append(all, *re.r)
		}
	}
	for _, v := range slices.Sorted(maps.Keys(fresh)) {
		all = append(all, *fresh[v])
	}
	return New(all, g.opts)
}

// change is the step from one graph to the next.
type change struct {
	*builder
	old      *Graph
	affected map[int32]bool // names that may come to something else
	redo     map[int32]bool // slots whose dependencies have to be read anew

	reshaped    bool    // a release came to be noarch, or no longer is: another node in the same slot
	free, freed []int32 // slots that were free before, and that came to be

	unused map[int32]map[int32]bool // by name: slots that do not mention it any more
	used   map[int32][]int32        // by name: slots that do now
}

// replace puts the releases of one package into the graph.
func (c *change) replace(pkg string, fresh map[string]*quarry.Release) {
	g := c.g
	id := c.intern(pkg)
	for _, slot := range g.byName[id] {
		re := g.rels[slot]
		r := fresh[re.r.Version]
		if r == nil {
			c.remove(slot)
			continue
		}
		delete(fresh, r.Version)
		if alike(r, re.r) {
			if !reflect.DeepEqual(r, re.r) { // pushed again: who and when
				same := *re
				same.r = r
				g.rels[slot] = &same
			}
			continue
		}
		c.affect(id)
		for _, p := range provided(re.r) {
			c.affect(c.intern(p.Name))
		}
		c.unprovide(slot, re.r)
		g.nodes -= len(re.archs)
		was := g.noarch[slot]
		c.put(slot, &rel{r: r, name: id, mentions: re.mentions})
		c.reshaped = c.reshaped || was != g.noarch[slot]
	}
	for _, v := range slices.Sorted(maps.Keys(fresh)) {
		// Not a slot that this step freed: what it means would change under those
		// that keep it.
		slot := int32(len(g.rels))
		if n := len(c.free); n > 0 {
			slot, c.free = c.free[n-1], c.free[:n-1]
		} else {
			g.rels, g.noarch = append(g.rels, nil), append(g.noarch, false)
		}
		c.affect(id)
		c.put(slot, &rel{r: fresh[v], name: id})
		g.byName[id] = append(slices.Clone(g.byName[id]), slot)
		g.sortReleases(g.byName[id])
	}
}

// alike reports whether two states of a release say the same to the graph.
func alike(a, b *quarry.Release) bool {
	return a.Commit == b.Commit && a.Channel == b.Channel && slices.Equal(a.Archs, b.Archs) && slices.Equal(a.Needs, b.Needs) &&
		slices.Equal(a.Provides, b.Provides) && reflect.DeepEqual(a.Traits, b.Traits)
}

func (c *change) affect(name int32) { c.affected[name] = true }

// put enters a release that is new or another than before.
func (c *change) put(slot int32, re *rel) {
	g := c.g
	g.rels[slot] = re
	c.place(slot, re)
	for _, p := range provided(re.r) {
		id := c.intern(p.Name)
		c.affect(id)
		g.provs[id] = append(slices.Clone(g.provs[id]), provider{slot, p.Version})
		g.sortProviders(g.provs[id])
	}
	c.redo[slot] = true
}

func (c *change) unprovide(slot int32, r *quarry.Release) {
	for _, p := range provided(r) {
		id := c.intern(p.Name)
		c.g.provs[id] = slices.DeleteFunc(slices.Clone(c.g.provs[id]), func(p provider) bool { return p.slot == slot })
	}
}

func (c *change) remove(slot int32) {
	g, re := c.g, c.g.rels[slot]
	c.affect(re.name)
	for _, p := range provided(re.r) {
		c.affect(c.intern(p.Name))
	}
	c.unprovide(slot, re.r)
	for _, id := range re.mentions {
		g.users[id] = without(g.users[id], slot) // at once: the slot may be used again
	}
	g.byName[re.name] = without(g.byName[re.name], slot)
	g.nodes -= len(re.archs)
	g.rels[slot], g.noarch[slot] = nil, false
	c.freed = append(c.freed, slot)
}

func without(list []int32, v int32) []int32 {
	return slices.DeleteFunc(slices.Clone(list), func(x int32) bool { return x == v })
}

// follow has everything looked at again that may come to something else.
func (c *change) follow() {
	g := c.g
	// Releases that use an affected name: most come to the same as before. Only
	// where a name came to be known, or no longer is, may an entry be read in
	// another way.
	look := map[int32]bool{}
	for name := range c.affected {
		was := int(name) < len(c.old.byName) && c.old.known(name)
		for _, slot := range g.users[name] {
			if was != g.known(name) {
				c.redo[slot] = true
			} else {
				look[slot] = true
			}
		}
	}
	for slot := range look {
		if !c.redo[slot] {
			c.again(slot)
		}
	}
	for _, slot := range slices.Sorted(maps.Keys(c.redo)) {
		re := g.rels[slot]
		before := re.mentions
		same := *re
		c.resolve(slot, &same)
		g.rels[slot] = &same
		c.mention(slot, before, same.mentions)
	}
	// One list may lose and win thousands at once, so each is changed once.
	for name, gone := range c.unused {
		g.users[name] = slices.DeleteFunc(slices.Clone(g.users[name]), func(s int32) bool { return gone[s] })
	}
	for name, more := range c.used {
		g.users[name] = append(slices.Clone(g.users[name]), more...)
	}
}

// mention notes how the names that a release mentions have changed.
func (c *change) mention(slot int32, before, after []int32) {
	for _, id := range before {
		if _, ok := slices.BinarySearch(after, id); !ok {
			if c.unused[id] == nil {
				c.unused[id] = map[int32]bool{}
			}
			c.unused[id][slot] = true
		}
	}
	for _, id := range after {
		if _, ok := slices.BinarySearch(before, id); !ok {
			c.used[id] = append(c.used[id], slot)
		}
	}
}

// again looks up what a release needs of the affected names, and makes another
// of it only if that has changed.
func (c *change) again(slot int32) {
	g := c.g
	re := g.rels[slot]
	changed := false
	for i := range re.classes {
		cl := &re.classes[i]
		for j := range cl.needs {
			n := &cl.needs[j]
			if n.to == unreadable || !c.affected[n.name] {
				continue
			}
			c.odds = c.odds[:0]
			to := c.find(slot, cl, int32(j))
			if !c.reshaped && to == n.to && (to != perArch || c.sameOdds(cl, int32(j))) {
				continue
			}
			changed = true
		}
	}
	if !changed {
		return
	}
	same := *re
	same.classes = slices.Clone(re.classes)
	for i := range same.classes {
		cl := &same.classes[i]
		cl.needs = slices.Clone(cl.needs)
		c.directOf = nil // the clone has another address
		c.aim(slot, cl)
	}
	c.link(&same)
	g.rels[slot] = &same
}

func (c *change) sameOdds(cl *class, need int32) bool {
	for _, o := range c.odds {
		if cl.oddFor(need, o.arch) != o.to {
			return false
		}
	}
	return true
}
