package githttp

import (
	"context"
	"net/netip"
	"slices"
	"sync"
)

// places are what upload-packs run in. Who comes first gets one first, unless a
// client has its part already: then those behind it go ahead.
type places struct {
	max, each, waiting int

	mu      sync.Mutex // guards the following
	running int
	by      map[string]int // of them, by client
	queue   []*waiter
}

type waiter struct {
	client string
	turn   chan struct{} // closed when it has a place
}

// enter waits for a place until ctx ends. ok is false when there is none by then,
// or too many wait already.
func (p *places) enter(ctx context.Context, client string) (release func(), ok bool) {
	p.mu.Lock()
	w := &waiter{client, make(chan struct{})}
	p.queue = append(p.queue, w)
	p.next()
	if n := len(p.queue); n > p.waiting && p.queue[n-1] == w {
		p.queue = p.queue[:n-1]
		p.mu.Unlock()
		return nil, false
	}
	p.mu.Unlock()
	select {
	case <-w.turn:
	case <-ctx.Done():
		p.mu.Lock()
		i := slices.Index(p.queue, w)
		if i >= 0 {
			p.queue = slices.Delete(p.queue, i, i+1)
		}
		p.mu.Unlock()
		if i >= 0 {
			return nil, false
		}
		<-w.turn // it came at the same moment
	}
	return sync.OnceFunc(func() { p.leave(client) }), true
}

func (p *places) leave(client string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running--
	if p.by[client]--; p.by[client] == 0 {
		delete(p.by, client)
	}
	p.next()
}

// next gives free places to those who wait. mu is held.
func (p *places) next() {
	for i := 0; i < len(p.queue) && p.running < p.max; {
		w := p.queue[i]
		if p.by[w.client] >= p.each && !own(w.client) {
			i++
			continue
		}
		if p.by == nil {
			p.by = map[string]int{}
		}
		p.running++
		p.by[w.client]++
		p.queue = slices.Delete(p.queue, i, i+1)
		close(w.turn)
	}
}

// own reports whether a client is this machine, for whom others may ask.
func own(client string) bool {
	ip, err := netip.ParseAddr(client)
	return err == nil && ip.IsLoopback()
}

func (p *places) load() (running, waiting int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running, len(p.queue)
}
