package buildcontrol

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
)

// A client costs a descriptor and the struct below: one goroutine waits for all
// clients of a listener through an epoll of their own, and numbers are written
// by whoever sets them. A goroutine and a net.Conn each cost a few kilobytes
// more (see the benchmark).

// maxNoise is what a client may send once it has shown its token; there is
// nothing for it to say.
const maxNoise = 4096

// client is a connection. Its fields are guarded by Server.mu.
type client struct {
	l     *loop
	token *Token // nil: a stranger, or a control connection
	fd    int32
	place int32  // among its token's clients
	round uint32 // tells it from former clients with the same descriptor
	noise uint16 // bytes that it has sent for nothing
	late  bool   // it has to be told its token's number when it can be written to
	gone  bool
	more  *more // nil: an ordinary client with nothing under way
}

// more is what only some clients have, or only for a time.
type more struct {
	control  bool
	in, out  []byte        // a line that is not whole yet; what could not be written yet
	stranger *list.Element // in loop.strangers; nil once a token was shown
	until    time.Time     // to show it
}

// loop serves the clients of one listener.
type loop struct {
	s      *Server
	only   *Token // nil: any
	listen int    // descriptor of the listener, as dump shows it
	cancel context.CancelFunc

	poll  *os.File // the epoll
	raw   syscall.RawConn
	epoll int

	// The following is guarded by Server.mu.
	stopping bool // the deadline has passed for good
	clients  map[int32]*client
	round    uint32
	// strangers have shown no token yet, the oldest first.
	strangers list.List
}

func (s *Server) serve(ctx context.Context, l net.Listener, only *Token) error {
	defer l.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lp := &loop{s: s, only: only, cancel: cancel, clients: map[int32]*client{}}
	if err := lp.start(l); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() {
		l.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		lp.deadline(time.Unix(1, 0))
		lp.stopping = true
	})
	defer stop()
	accepted := make(chan error, 1)
	go func() {
		err := lp.accept(ctx, l)
		cancel()
		accepted <- err
	}()
	err := lp.run(ctx)
	cancel()
	err = errors.Join(err, <-accepted)
	lp.end()
	return err
}

// start opens the epoll, and makes the loop known.
func (l *loop) start(from net.Listener) error {
	if sys, ok := from.(syscall.Conn); ok {
		if raw, err := sys.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) { l.listen = int(fd) })
		}
	}
	var err error
	if l.epoll, err = syscall.EpollCreate1(syscall.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	// The runtime's own epoll watches this one, so that no thread has to wait in
	// the kernel, and deadlines work.
	if err := syscall.SetNonblock(l.epoll, true); err != nil {
		return err
	}
	l.poll = os.NewFile(uintptr(l.epoll), "epoll")
	if l.raw, err = l.poll.SyscallConn(); err == nil {
		err = l.poll.SetReadDeadline(time.Time{})
	}
	if err != nil {
		l.poll.Close()
		return fmt.Errorf("epoll: %w", err)
	}
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if t := l.only; t != nil {
		if t.closed {
			l.poll.Close()
			return fmt.Errorf("token %d is closed", t.number)
		}
		if t.stop == nil {
			t.stop = map[*loop]bool{}
		}
		t.stop[l] = true
	}
	l.s.loops[l] = true
	return nil
}

// end closes all clients of the loop.
func (l *loop) end() {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	for _, c := range l.clients {
		c.close()
	}
	delete(l.s.loops, l)
	if l.only != nil {
		delete(l.only.stop, l)
	}
	l.poll.Close()
}

// accept takes connections until the listener is closed.
func (l *loop) accept(ctx context.Context, from net.Listener) error {
	for {
		conn, err := from.Accept()
		fd := -1
		if err == nil {
			fd, err = descriptor(conn)
		}
		switch {
		case err == nil:
			l.take(fd)
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return nil
		case errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM):
			l.s.mu.Lock()
			l.s.warn("connections cannot be taken for now", "err", err)
			l.s.mu.Unlock()
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
		default:
			return fmt.Errorf("build control: a connection cannot be taken: %w", err)
		}
	}
}

// descriptor takes the socket out of a connection, so that the rest of it can go.
// It does not block, as Go has made it so.
func descriptor(conn net.Conn) (fd int, err error) {
	defer conn.Close()
	sys, ok := conn.(syscall.Conn)
	if !ok {
		return -1, fmt.Errorf("a connection of type %T has no descriptor: listen on TCP or Unix sockets", conn)
	}
	raw, err := sys.SyscallConn()
	if err != nil {
		return -1, err
	}
	err2 := raw.Control(func(from uintptr) {
		to, _, errno := syscall.Syscall(syscall.SYS_FCNTL, from, syscall.F_DUPFD_CLOEXEC, 0)
		if fd = int(to); errno != 0 {
			err = os.NewSyscallError("dup", errno)
		}
	})
	return fd, errors.Join(err, err2)
}

// take makes a client of a connection.
func (l *loop) take(fd int) {
	// The patched make and ninja know the end by poll's POLLHUP, and turn in circles
	// at an end of file: over TCP only a reset gives the one without the other.
	_ = syscall.SetsockoptLinger(fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1})
	s := l.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.clients >= s.opts.MaxClients {
		syscall.Close(fd)
		s.warn("there are too many connections, more are closed", "max", s.opts.MaxClients)
		return
	}
	all := s.opts.MaxClients
	if l.only != nil { // a build can open as many as it likes
		all = min(all, s.opts.MaxPerToken)
	}
	if l.strangers.Len() >= max(16, all/4) { // whoever means it has shown a token by now
		l.strangers.Front().Value.(*client).close()
		s.warn("there are too many connections without a token, the oldest are closed")
	}
	l.round++
	c := &client{l: l, fd: int32(fd), round: l.round, more: &more{until: time.Now().Add(s.opts.AuthTime)}}
	event := c.event()
	if err := syscall.EpollCtl(l.epoll, syscall.EPOLL_CTL_ADD, fd, &event); err != nil {
		syscall.Close(fd)
		s.warn("a connection cannot be watched", "err", err)
		return
	}
	s.clients++
	l.clients[c.fd] = c
	c.more.stranger = l.strangers.PushBack(c)
	if l.strangers.Len() == 1 {
		l.deadline(c.more.until)
	}
}

// run reads from the clients, and writes to those that could not take a number
// at once, until ctx ends.
func (l *loop) run(ctx context.Context) error {
	events := make([]syscall.EpollEvent, 256)
	buffer := make([]byte, 4096)
	for ctx.Err() == nil {
		n, err := 0, error(nil)
		late := l.raw.Read(func(uintptr) bool {
			n, err = syscall.EpollWait(l.epoll, events, 0)
			return n != 0 || err != nil && err != syscall.EINTR
		})
		if err != nil && err != syscall.EINTR {
			return fmt.Errorf("build control: epoll: %w", err)
		}
		if late != nil {
			if !errors.Is(late, os.ErrDeadlineExceeded) {
				return fmt.Errorf("build control: epoll: %w", late)
			}
			l.expire()
			continue
		}
		for _, e := range events[:max(n, 0)] {
			l.happened(e, buffer)
		}
	}
	return nil
}

// expire closes those that have shown no token in time.
func (l *loop) expire() {
	s := l.s
	s.mu.Lock()
	defer s.mu.Unlock()
	var next time.Time
	for now := time.Now(); ; {
		first := l.strangers.Front()
		if first == nil {
			break
		}
		c := first.Value.(*client)
		if next = c.more.until; next.After(now) {
			break
		}
		next = time.Time{}
		c.close()
		s.warn("a connection has shown no token in time and is closed", "after", s.opts.AuthTime)
	}
	l.deadline(next)
}

// deadline has run look at the strangers, or at its end, at a time.
func (l *loop) deadline(t time.Time) {
	if !l.stopping {
		_ = l.poll.SetReadDeadline(t) // start has seen that it works
	}
}

// happened does what an event asks for.
func (l *loop) happened(e syscall.EpollEvent, buffer []byte) {
	s := l.s
	s.mu.Lock()
	defer s.mu.Unlock()
	c := l.clients[e.Fd]
	if c == nil || c.round != uint32(e.Pad) {
		return
	}
	if e.Events&syscall.EPOLLOUT != 0 {
		c.flush()
	}
	if !c.gone && e.Events&^syscall.EPOLLOUT != 0 {
		c.read(buffer)
	}
}

// event is what the client waits for.
func (c *client) event() syscall.EpollEvent {
	e := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: c.fd, Pad: int32(c.round)}
	if c.more != nil && len(c.more.out) > 0 {
		e.Events = syscall.EPOLLOUT // and it says nothing until it has read
	} else if c.late {
		e.Events |= syscall.EPOLLOUT
	}
	return e
}

// watch has the epoll know what the client waits for now.
func (c *client) watch() {
	e := c.event()
	if err := syscall.EpollCtl(c.l.epoll, syscall.EPOLL_CTL_MOD, int(c.fd), &e); err != nil {
		c.close()
	}
}

// close ends the connection, and the token with the last one. It may be called
// twice.
func (c *client) close() {
	if c.gone {
		return
	}
	c.gone = true
	l := c.l
	syscall.Close(int(c.fd)) // and with that it leaves the epoll
	delete(l.clients, c.fd)
	l.s.clients--
	if c.more != nil && c.more.stranger != nil {
		l.strangers.Remove(c.more.stranger)
	}
	t := c.token
	if t == nil {
		return
	}
	last := len(t.clients) - 1
	t.clients[c.place] = t.clients[last]
	t.clients[c.place].place = c.place
	t.clients[last] = nil
	if t.clients = t.clients[:last]; last == 0 {
		t.clients = nil
		if !t.private {
			l.s.remove(t)
		}
	}
}

// tell writes the number of the client's token, now or when it can be.
func (c *client) tell(line []byte) {
	if c.late {
		return // what is told then is the newest
	}
	if !c.write(line) && !c.gone {
		c.watch()
	}
}

// write sends a line, and reports whether it is sent. What is left of it is kept;
// when nothing of it went, it is left to c.late.
func (c *client) write(line []byte) bool {
	n, err := syscall.Write(int(c.fd), line)
	for err == syscall.EINTR {
		n, err = syscall.Write(int(c.fd), line)
	}
	switch {
	case err == syscall.EAGAIN:
		c.late = true
		return false
	case err != nil:
		c.close()
		return false
	case n < len(line):
		if c.more == nil {
			c.more = &more{}
		}
		c.more.out = append(c.more.out, line[n:]...)
		return false
	}
	return true
}

// flush writes what could not be written before.
func (c *client) flush() {
	if m := c.more; m != nil && len(m.out) > 0 {
		n, err := syscall.Write(int(c.fd), m.out)
		if err == syscall.EAGAIN || err == syscall.EINTR {
			return
		}
		if err != nil {
			c.close()
			return
		}
		if m.out = m.out[n:]; len(m.out) > 0 {
			return
		}
		m.out = nil
		if m.control {
			c.lines()
		} else {
			c.more = nil
		}
		if c.gone {
			return
		}
	}
	if c.late {
		c.late = false
		c.write(c.token.line())
	}
	if !c.gone {
		c.watch()
	}
}

// read takes what the client has sent.
func (c *client) read(buffer []byte) {
	n, err := syscall.Read(int(c.fd), buffer)
	if err == syscall.EAGAIN || err == syscall.EINTR {
		return
	}
	if err != nil || n == 0 {
		c.close()
		return
	}
	if c.token != nil {
		if c.noise += uint16(n); c.noise > maxNoise {
			c.l.s.warn("a client that had nothing to say sent too much and is closed", "token", c.token.number)
			c.close()
		}
		return
	}
	c.more.in = append(c.more.in, buffer[:n]...)
	c.lines()
	if !c.gone && c.more != nil && len(c.more.out) > 0 {
		c.watch()
	}
}
