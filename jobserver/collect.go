package jobserver

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// collector waits for the tokens of all pools that are owed some. What comes
// back is fought for: the make that has just written a token wants it for its
// next job. So the wait is a thread's own, in the kernel.
type collector struct {
	mu    sync.Mutex
	epoll int // 0: not begun
	pools map[int32]*Pool
}

var theCollector = &collector{pools: map[int32]*Pool{}}

// add begins to wait for tokens of p.
func (c *collector) add(p *Pool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.epoll == 0 {
		fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		if err != nil {
			return os.NewSyscallError("epoll_create", err)
		}
		c.epoll = fd
		go c.run()
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(p.fd)}
	if err := unix.EpollCtl(c.epoll, unix.EPOLL_CTL_ADD, p.fd, &ev); err != nil {
		return os.NewSyscallError("epoll_ctl", err)
	}
	c.pools[int32(p.fd)] = p
	return nil
}

// remove ends it. The caller holds p.
func (c *collector) remove(p *Pool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = unix.EpollCtl(c.epoll, unix.EPOLL_CTL_DEL, p.fd, nil)
	delete(c.pools, int32(p.fd))
}

func (c *collector) run() {
	events := make([]unix.EpollEvent, 64)
	for {
		n, err := unix.EpollWait(c.epoll, events, -1)
		if err != nil && err != unix.EINTR {
			return // there is no such error: the descriptor is never closed
		}
		for _, e := range events[:max(n, 0)] {
			c.mu.Lock()
			p := c.pools[e.Fd]
			c.mu.Unlock()
			if p != nil {
				p.collect()
			}
		}
	}
}
