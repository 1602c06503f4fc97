package web

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// gate counts who is inside.
type gate struct {
	max, each int

	mu     sync.Mutex // guards the following
	inside int
	by     map[string]int
}

// enter takes a place for a client. leave gives it back, and may be called more
// than once.
func (g *gate) enter(client string) (leave func(), ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside >= g.max || g.by[client] >= g.each {
		return nil, false
	}
	if g.by == nil {
		g.by = map[string]int{}
	}
	g.inside++
	g.by[client]++
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.inside--
		if g.by[client]--; g.by[client] == 0 {
			delete(g.by, client)
		}
	}), true
}

// limited closes connections that are too many. To leave them waiting instead
// would let one client keep all others out.
type limited struct {
	net.Listener
	gate *gate
	log  *slog.Logger
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		leave, ok := l.gate.enter(client(host))
		if !ok {
			l.log.Debug("a web connection is refused, as there are too many", "from", host)
			c.Close()
			continue
		}
		return &counted{Conn: c, leave: leave}, nil
	}
}

type counted struct {
	net.Conn
	leave func()
}

func (c *counted) Close() error {
	c.leave()
	return c.Conn.Close()
}

// ReadFrom lets the connection send a file without it passing through here.
func (c *counted) ReadFrom(r io.Reader) (int64, error) { return io.Copy(c.Conn, r) }

// body is the body of a request: bounded, and each part of it has to come in
// time.
type body struct {
	io.ReadCloser
	rc    *http.ResponseController
	left  int64
	limit int64
	stall time.Duration
	set   time.Time
}

func (b *body) Read(p []byte) (int, error) {
	if now := time.Now(); now.Sub(b.set) > b.stall/8 {
		b.set = now
		b.rc.SetReadDeadline(now.Add(b.stall))
	}
	// One more than is left, to see whether there is more.
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.ReadCloser.Read(p)
	if int64(n) > b.left {
		n, err = int(b.left), &http.MaxBytesError{Limit: b.limit}
	}
	b.left -= int64(n)
	if err != nil {
		// The server listens on for the client to go: that has no time limit.
		b.set = time.Time{}
		b.rc.SetReadDeadline(time.Time{})
	}
	return n, err
}
