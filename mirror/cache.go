package mirror

import "sync"

// cache keeps what was made, up to about a size in bytes. What has not been asked
// for while half of that came goes.
type cache[K comparable] struct {
	max int

	mu       sync.Mutex
	now, old map[K][]byte
	size     int // of now
}

func (c *cache[K]) get(k K) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if v, ok := c.now[k]; ok {
		return v, true
	}
	v, ok := c.old[k]
	if ok {
		c.putLocked(k, v)
	}
	return v, ok
}

func (c *cache[K]) put(k K, v []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.putLocked(k, v)
}

func (c *cache[K]) putLocked(k K, v []byte) {
	const each = 200 // bytes that an entry takes besides
	if len(v) > c.max/8 {
		return
	}
	if _, there := c.now[k]; there {
		c.size -= len(c.now[k]) + each
	}
	if c.now == nil || c.size+len(v)+each > c.max/2 {
		c.now, c.old, c.size = map[K][]byte{}, c.now, 0
	}
	c.now[k] = v
	c.size += len(v) + each
}
