package jobserver

import (
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// collector waits for the tokens of all pools that are owed some. It has to be
// quick about it: the make that has just written a token wants it back for its
// next job, and gets it if it comes first. Then the next job's end is another
// chance.
type collector struct {
	mu    sync.Mutex
	epoll int // 0: not begun
	pools map[int32]*Pool
}

var theCollector = &collector{pools: map[int32]*Pool{}}

// eager is the niceness of the thread that waits. On a machine full of
// compilers tokens come back in half the time that they take with 0.
const eager = -15

// add begins to wait for tokens of p. The caller holds p.
func (c *collector) add(p *Pool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.epoll == 0 {
		fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		if err != nil {
			return os.NewSyscallError("epoll_create", err)
		}
		c.epoll = fd
		go c.run(fd)
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
	_ = unix.EpollCtl(c.epoll, unix.EPOLL_CTL_DEL, p.fd, nil) // the kernel forgets a closed one by itself
	delete(c.pools, int32(p.fd))
}

// run waits in the kernel, where nothing happens while nothing is owed. Go's own
// poller would wake up for each token of each build.
func (c *collector) run(epoll int) {
	runtime.LockOSThread() // the niceness is the thread's
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), eager)
	events := make([]unix.EpollEvent, 64)
	for {
		n, err := unix.EpollWait(epoll, events, -1)
		if err != nil && err != unix.EINTR {
			panic(os.NewSyscallError("epoll_wait", err)) // nobody closes it
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
