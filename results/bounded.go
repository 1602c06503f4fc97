package results

import "github.com/go-git/go-git/v5/plumbing"

// bounded is a cache of what git objects say, which never changes, up to a
// total cost. The oldest goes first unless it was asked for since it came
// (second chance): a walk over everything then leaves the trees near the root.
// It is not safe for use by several goroutines.
type bounded[V any] struct {
	max, size int
	m         map[plumbing.Hash]*boundedItem[V]
	queue     []plumbing.Hash
}

type boundedItem[V any] struct {
	v    V
	cost int
	used bool
}

func (c *bounded[V]) get(h plumbing.Hash) (v V, ok bool) {
	it := c.m[h]
	if it == nil {
		return v, false
	}
	it.used = true
	return it.v, true
}

func (c *bounded[V]) put(h plumbing.Hash, v V, cost int) {
	if c.m[h] != nil || cost > c.max/4 {
		return
	}
	if c.m == nil {
		c.m = make(map[plumbing.Hash]*boundedItem[V])
	}
	c.m[h] = &boundedItem[V]{v: v, cost: cost}
	c.queue = append(c.queue, h)
	for c.size += cost; c.size > c.max; {
		old := c.queue[0]
		c.queue = c.queue[1:]
		it := c.m[old]
		if it.used {
			it.used = false
			c.queue = append(c.queue, old)
			continue
		}
		c.size -= it.cost
		delete(c.m, old)
	}
}
