package sshd

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Limits bound what clients can make the server do. The zero value of each
// stands for its default.
type Limits struct {
	Connections int           // at once; 512
	PerAddress  int           // connections of one address (of one /64 in IPv6) at once; 64
	Startups    int           // connections that have not proved a key yet; 100
	Sessions    int           // commands under way at once; 256
	PerUser     int           // commands of one person under way at once; 64
	PerConn     int           // commands under way at once on one connection; 10
	AuthTries   int           // keys tried on one connection; 10
	AuthTime    time.Duration // to prove a key; 1 minute
	Idle        time.Duration // without a sign of life; 5 minutes
	Stall       time.Duration // git without a byte in either direction, or a verb that cannot write one; 1 hour
}

func (l *Limits) defaults() {
	for _, v := range []struct {
		at  *int
		val int
	}{{&l.Connections, 512}, {&l.PerAddress, 64}, {&l.Startups, 100}, {&l.Sessions, 256}, {&l.PerUser, 64}, {&l.PerConn, 10}, {&l.AuthTries, 10}} {
		if *v.at == 0 {
			*v.at = v.val
		}
	}
	for _, v := range []struct {
		at  *time.Duration
		val time.Duration
	}{{&l.AuthTime, time.Minute}, {&l.Idle, 5 * time.Minute}, {&l.Stall, time.Hour}} {
		if *v.at == 0 {
			*v.at = v.val
		}
	}
}

// gate counts connections.
type gate struct {
	limits Limits

	mu       sync.Mutex // guards the following
	conns    int
	startups int
	byAddr   map[netip.Prefix]int
}

// admit wraps a new connection, or says why there is no room for it.
func (g *gate) admit(c net.Conn) (*conn, string) {
	from := source(c.RemoteAddr())
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.conns >= g.limits.Connections:
		return nil, "too many connections"
	case g.startups >= g.limits.Startups:
		return nil, "too many connections that have not shown a key"
	case g.byAddr[from] >= g.limits.PerAddress:
		return nil, "too many connections from your address"
	}
	if g.byAddr == nil {
		g.byAddr = map[netip.Prefix]int{}
	}
	g.conns++
	g.startups++
	g.byAddr[from]++
	wrapped := &conn{Conn: c, gate: g, from: from, idle: g.limits.Idle}
	wrapped.mu.Lock()
	wrapped.grace = time.AfterFunc(g.limits.AuthTime, func() { wrapped.Close() })
	wrapped.mu.Unlock()
	return wrapped, ""
}

// source is what counts as one address.
func source(a net.Addr) netip.Prefix {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Prefix{} // all that have none count as one
	}
	addr := ap.Addr().Unmap()
	bits := 64
	if addr.Is4() {
		bits = 32
	}
	p, err := addr.WithZone("").Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// conn is a counted connection. It ends when nothing was heard of the client
// for too long; what we send is no sign of life.
type conn struct {
	net.Conn
	gate *gate
	from netip.Prefix
	idle time.Duration
	set  atomic.Int64 // when the deadline was set last, Unix nanoseconds

	sessions atomic.Int64 // commands under way

	mu            sync.Mutex // guards the following
	grace         *time.Timer
	authenticated bool
	closed        bool
}

func (c *conn) Read(p []byte) (int, error) {
	// Setting it for each packet would cost more than the read.
	if now := time.Now(); now.UnixNano()-c.set.Load() > int64(c.idle/20) {
		c.set.Store(now.UnixNano())
		c.Conn.SetReadDeadline(now.Add(c.idle))
	}
	return c.Conn.Read(p)
}

// SetDeadline does nothing: gliderlabs/ssh, which is told of no timeout, would
// take away the one set here at every read and write.
func (c *conn) SetDeadline(time.Time) error { return nil }

// proved says that the client holds a known key.
func (c *conn) proved() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.authenticated || c.closed {
		return
	}
	c.authenticated = true
	c.grace.Stop()
	c.gate.mu.Lock()
	c.gate.startups--
	c.gate.mu.Unlock()
}

func (c *conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.closed = true
	c.grace.Stop()
	g := c.gate
	g.mu.Lock()
	g.conns--
	if !c.authenticated {
		g.startups--
	}
	if g.byAddr[c.from]--; g.byAddr[c.from] == 0 {
		delete(g.byAddr, c.from)
	}
	g.mu.Unlock()
	return c.Conn.Close()
}

// busy reports whether anybody is connected.
func (g *gate) busy() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.conns > 0
}

// turnAway tells a client before the SSH protocol begins, where RFC 4253 (4.2)
// lets a server write lines.
func turnAway(c net.Conn, why string) {
	io.WriteString(c, "quarry: "+why+": try again later\r\n") // the kernel takes that at once
	c.SetDeadline(time.Now().Add(500 * time.Millisecond))
	// What the client has sent must be read, or the kernel resets the
	// connection before the client has read the line.
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
		io.CopyN(io.Discard, c, 4<<10)
	}
	c.Close()
}
