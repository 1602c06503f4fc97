package graph

import (
	"cmp"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strings"
)

// Blocker is something that stands against nodes: a release that nothing can
// build, a cycle, or a dependency that nobody has pushed.
type Blocker struct {
	Name   string   `json:"name"` // e.g. zlib 1.3.1, libfoo>=2, a -> b -> a
	Nodes  []Node   `json:"-"`    // of a release: those that are blocked for a reason of their own
	Archs  []string `json:"archs"`
	Why    string   `json:"why"`    // the first reason, of the first arch
	Blocks int      `json:"blocks"` // nodes that it stands against, directly or through others; not those in Nodes
}

// maxExact is how many blockers are counted exactly. Of more than these, those
// that seem to block most are.
const maxExact = 512

// subject is what a blocker is about.
type subject struct {
	Blocker
	seeds    []Node
	counts   bool // its seeds are blocked by it, and are not it
	estimate float64
}

// Blockers lists what blocks most, that which blocks most first; at most limit,
// 0 for all. Counting takes time in proportion to the blocked part of the graph,
// and not to its square: where there are thousands, all but the largest few
// hundred are left out, by a good guess.
func (s *Status) Blockers(limit int) []Blocker {
	t := s.g.topology()
	var blocked []Node
	var list []*subject
	at := map[string]*subject{}
	c := &naming{s, map[int32]string{}}
	for _, n := range t.order {
		if s.standing[n] != Blocked {
			continue
		}
		blocked = append(blocked, n)
		if s.own[n] {
			list = c.subjects(list, at, t, n)
		}
	}
	if len(list) > maxExact {
		s.guess(t, blocked, list)
		slices.SortStableFunc(list, func(a, b *subject) int { return cmp.Compare(b.estimate, a.estimate) })
		list = list[:maxExact]
	}
	mask := make([]uint64, s.g.Size())
	for from := 0; from < len(list); from += 64 {
		s.count(t, blocked, list[from:min(from+64, len(list))], mask)
	}
	out := make([]Blocker, len(list))
	for i, sub := range list {
		slices.Sort(sub.Archs)
		out[i] = sub.Blocker
	}
	slices.SortFunc(out, func(a, b Blocker) int {
		return cmp.Or(cmp.Compare(b.Blocks, a.Blocks), strings.Compare(a.Name, b.Name), strings.Compare(a.Why, b.Why))
	})
	if limit > 0 && len(out) > limit {
		out = out[:limit]
	}
	return out
}

// naming is a Status whose subjects get names.
type naming struct {
	*Status
	knots map[int32]string
}

// subjects adds what a node that is blocked for reasons of its own stands for.
func (s *naming) subjects(list []*subject, at map[string]*subject, t *topo, n Node) []*subject {
	g := s.g
	arch := g.Arch(n)
	add := func(key, name, why string, counts bool) {
		sub := at[key]
		if sub == nil {
			sub = &subject{Blocker: Blocker{Name: name, Why: why}, counts: counts}
			at[key] = sub
			list = append(list, sub)
		}
		sub.seeds = append(sub.seeds, n)
		if !counts {
			sub.Nodes = append(sub.Nodes, n)
		}
		if !slices.Contains(sub.Archs, arch) {
			sub.Archs = append(sub.Archs, arch)
		}
	}
	if k, ok := t.knot[n]; ok {
		// Named by its first package, which is looked for once a knot.
		name, known := s.knots[k]
		if !known {
			nodes := t.cycles[k]
			name = fmt.Sprintf("cycle of %s and %d more", g.label(slices.MinFunc(nodes, func(a, b Node) int {
				return strings.Compare(g.label(a), g.label(b))
			})), len(nodes)-1)
			s.knots[k] = name
		}
		add("cycle "+name, name, "they need each other, and none is declared as bootstrap: see quarry graph", false)
		return list
	}
	whole := false
	for _, r := range s.plainReasons(n) {
		switch r.Kind {
		case Missing, WrongVersion, WrongArch:
			add(string(r.Kind)+" "+r.Need, r.Need, strings.TrimPrefix(r.Text, fmt.Sprintf("needs %.200s: ", r.Need)), true)
		default:
			if !whole {
				whole = true
				r0 := g.Release(n)
				add("release "+r0.Package+" "+r0.Version, r0.Package+" "+r0.Version, r.Text, false)
			}
		}
	}
	return list
}

// count sets how much each of up to 64 subjects blocks: one bit each, handed on
// from what is needed to what needs it.
func (s *Status) count(t *topo, blocked []Node, list []*subject, mask []uint64) {
	for _, n := range blocked {
		mask[n] = 0
	}
	own := map[Node]uint64{}
	for i, sub := range list {
		for _, n := range sub.seeds {
			mask[n] |= 1 << i
			if !sub.counts {
				own[n] |= 1 << i
			}
		}
	}
	var buf []Node
	for _, n := range blocked {
		m := mask[n]
		buf = s.g.waitsFor(t, buf[:0], n)
		for _, d := range buf {
			if s.standing[d] == Blocked {
				m |= mask[d]
			}
		}
		mask[n] = m
		if m != 0 {
			for m &^= own[n]; m != 0; m &= m - 1 {
				list[bits.TrailingZeros64(m)].Blocks++
			}
		}
	}
}

// guess estimates how much each subject blocks, all in one pass, by the least of
// random numbers that everything above it has (Cohen, Size-Estimation Framework
// with Applications to Transitive Closure and Reachability, 1997).
func (s *Status) guess(t *topo, blocked []Node, list []*subject) {
	const k = 16
	at := make([]int32, s.g.Size())
	least := make([][k]float32, len(blocked))
	for i, n := range blocked {
		at[n] = int32(i)
		x := uint64(n) + 1
		for j := range k {
			x += 0x9e3779b97f4a7c15 // splitmix64: the same guess every time
			z := (x ^ x>>30) * 0xbf58476d1ce4e5b9
			z = (z ^ z>>27) * 0x94d049bb133111eb
			z ^= z >> 31
			least[i][j] = float32(-math.Log((float64(z>>11) + 0.5) / (1 << 53)))
		}
	}
	var buf []Node
	for i := len(blocked) - 1; i >= 0; i-- {
		buf = s.g.waitsFor(t, buf[:0], blocked[i])
		for _, d := range buf {
			if s.standing[d] == Blocked {
				to := &least[at[d]]
				for j, v := range least[i] {
					to[j] = min(to[j], v)
				}
			}
		}
	}
	for _, sub := range list {
		all := least[at[sub.seeds[0]]]
		for _, n := range sub.seeds[1:] {
			for j, v := range least[at[n]] {
				all[j] = min(all[j], v)
			}
		}
		var sum float64
		for _, v := range all {
			sum += float64(v)
		}
		sub.estimate = (k - 1) / sum
	}
}
