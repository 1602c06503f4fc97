package results

// bounded is a cache of what never changes, as git objects do, up to a total
// cost. The oldest goes first unless it was asked for since it came
// (second chance): a walk over everything then leaves the trees near the root.
// It is not safe for use by several goroutines.
type bounded[K comparable, V any] struct {
	max, size int
	m         map[K]*boundedItem[V]
	queue     []K
}

type boundedItem[V any] struct {
	v    V
	cost int
	used bool
}

func (c *bounded[K, V]) get(k K) (v V, ok bool) {
	it := c.m[k]
	if it == nil {
		return v, false
	}
	it.used = true
	return it.v, true
}

func (c *bounded[K, V]) put(k K, v V, cost int) {
	if c.m[k] != nil || cost > c.max/4 {
		return
	}
	if c.m == nil {
		c.m = make(map[K]*boundedItem[V])
	}
	c.m[k] = &boundedItem[V]{v: v, cost: cost}
	c.queue = append(c.queue, k)
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
