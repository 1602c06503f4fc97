// Package protocol is the text protocol: the table of verbs for any program that
// can open a connection and write lines. doc/protocol.md is its specification.
//
// A line holds a verb and its words, as they are typed on the command line. The
// answer is made of lines that begin with three digits, and of bodies that end in
// a single dot. A line may begin with a request id; who was cut off sends the
// same line again and learns the outcome (see requests.go).
//
// [Server] is the farm's side, [Client] the other.
package protocol

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/Morphux/quarry"
	"golang.org/x/sys/unix"
)

// Terminal says what stands at the other end of the output.
type Terminal struct {
	TTY           bool
	Width, Height int // columns and lines; 0: not known
	Color         bool
}

// Options are what a [Server] needs.
type Options struct {
	Version string
	// Verbs runs a verb and returns its exit code. in gives what the client sends
	// when the verb asks for it; it is nil when the client has none to give.
	Verbs func(ctx context.Context, who quarry.Identity, argv []string, in io.Reader, out, errOut io.Writer, term Terminal) int
	// Secret reports whether the answer to a call must not be kept. nil: none is.
	Secret func(argv []string) bool
	// Lookup says who shows a token. It is asked again for every line.
	Lookup func(token string) (quarry.Identity, error)
	// Peer says who is at the other end of a Unix socket.
	Peer func(*net.UnixConn) (quarry.Identity, error)
	// Requests is the folder in which outcomes are kept for those that ask again.
	Requests string
	Limits   Limits
	Log      *slog.Logger // nil: nowhere
}

// Limits bound what clients can make the server do. The zero value of each stands
// for its default.
type Limits struct {
	Connections int           // at once; 20,000
	PerAddress  int           // connections of one address (one /64 in IPv6, one user on a Unix socket) at once; 256
	PerToken    int           // connections of one token at once; 256
	Strangers   int           // connections that have shown no token yet; 1,024
	Running     int           // verbs under way at once; 256
	PerUser     int           // verbs of one person under way at once; 64
	Rate        float64       // lines a second of one connection in the long run; 100
	Burst       int           // lines of one connection at once; 1,000
	AuthTime    time.Duration // to show a token; 1 minute
	AuthDelay   time.Duration // the answer to a wrong token waits so long; 1 second
	Idle        time.Duration // without a line; 24 hours
	Stall       time.Duration // a client that does not read for so long is given up; 1 minute
	Input       time.Duration // a client that owes input and sends none for so long is given up; 1 hour
	Beat        time.Duration // between signs of life while a verb is silent; 30 seconds
	KeepAge     time.Duration // that outcomes are kept; 24 hours
	KeepCount   int           // outcomes kept of one person; 1,000
	KeepBytes   int           // of one answer; 256 KiB
}

func orDefault[T int | float64 | time.Duration](at *T, val T) {
	if *at == 0 {
		*at = val
	}
}

func (l *Limits) defaults() {
	orDefault(&l.Connections, 20_000)
	orDefault(&l.PerAddress, 256)
	orDefault(&l.PerToken, 256)
	orDefault(&l.Strangers, 1024)
	orDefault(&l.Running, 256)
	orDefault(&l.PerUser, 64)
	orDefault(&l.Rate, 100)
	orDefault(&l.Burst, 1000)
	orDefault(&l.AuthTime, time.Minute)
	orDefault(&l.AuthDelay, time.Second)
	orDefault(&l.Idle, 24*time.Hour)
	orDefault(&l.Stall, time.Minute)
	orDefault(&l.Input, time.Hour)
	orDefault(&l.Beat, 30*time.Second)
	orDefault(&l.KeepAge, 24*time.Hour)
	orDefault(&l.KeepCount, 1000)
	orDefault(&l.KeepBytes, 256<<10)
}

// Server answers lines.
type Server struct {
	opts     Options
	log      *slog.Logger
	requests *requests

	verbs     context.Context // of everything that runs; ends with Shutdown
	stopVerbs context.CancelFunc
	stopping  chan struct{} // closed by Shutdown

	mu        sync.Mutex // guards the following
	draining  bool
	listeners map[net.Listener]bool
	sessions  map[*session]bool
	strangers int
	counts    map[string]int // connections by address and by token
	running   int
	byUser    map[string]int // verbs under way

	group sync.WaitGroup // sessions, and verbs that outlive theirs
}

// New makes a server.
func New(o Options) (*Server, error) {
	o.Limits.defaults()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	kept, err := openRequests(o.Requests, o.Limits)
	if err != nil {
		return nil, err
	}
	s := &Server{opts: o, log: o.Log, requests: kept, stopping: make(chan struct{}), listeners: map[net.Listener]bool{},
		sessions: map[*session]bool{}, counts: map[string]int{}, byUser: map[string]int{}}
	s.verbs, s.stopVerbs = context.WithCancel(context.Background())
	return s, nil
}

// Serve takes connections until Shutdown. It may be called for several listeners.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.draining {
		s.mu.Unlock()
		return l.Close()
	}
	s.listeners[l] = true
	s.mu.Unlock()
	for {
		c, err := l.Accept()
		if err != nil {
			select {
			case <-s.stopping:
				return nil
			default:
			}
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() || errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ECONNABORTED) {
				s.log.Warn("the text protocol cannot accept for now", "err", err)
				time.Sleep(100 * time.Millisecond)
				continue
			}
			return fmt.Errorf("text protocol: %w", err)
		}
		s.take(c)
	}
}

// take begins a session on a connection.
func (s *Server) take(c net.Conn) {
	se := &session{server: s, conn: c, from: origin(c)}
	if u, ok := c.(*net.UnixConn); ok && s.opts.Peer != nil {
		who, err := s.opts.Peer(u)
		if err != nil {
			s.log.Warn("text protocol: caller is not known", "err", err)
			c.Close()
			return
		}
		se.who = func() (quarry.Identity, error) { return who, nil }
		if who.Role != quarry.RoleAdmin {
			se.from = "user " + who.User
		}
	}
	if why := s.admit(se); why != "" {
		s.log.Debug("a text connection is refused", "from", se.from, "why", why)
		turnAway(c, why)
		return
	}
	go func() {
		defer s.group.Done()
		defer s.release(se)
		se.run()
	}()
}

// turnAway tells a client that there is no room. What does not fit into the
// kernel's buffer at once is not worth waiting for; a deadline could be over before
// the write.
func turnAway(c net.Conn, why string) {
	if plain, ok := c.(syscall.Conn); ok { // no handshake for those with TLS
		if raw, err := plain.SyscallConn(); err == nil {
			line := appendReply(nil, codeClosing, why+": try again later")
			_ = raw.Write(func(fd uintptr) bool {
				_, _ = unix.Write(int(fd), line) // who does not get it is turned away all the same
				return true
			})
		}
	}
	c.Close()
}

func (s *Server) admit(se *session) (why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.draining:
		return "going down"
	case len(s.sessions) >= s.opts.Limits.Connections:
		return "too many connections"
	case se.from != "" && s.counts[se.from] >= s.opts.Limits.PerAddress:
		return "too many connections from your address"
	case se.who == nil && s.strangers >= s.opts.Limits.Strangers:
		return "too many connections that have shown no token"
	}
	if se.who == nil {
		s.strangers++
		se.stranger = true
	}
	s.sessions[se] = true
	s.count(se.from, 1)
	s.group.Add(1)
	return ""
}

// count counts a connection of an address or a token. mu is held.
func (s *Server) count(whose string, n int) {
	if whose == "" {
		return
	}
	if s.counts[whose] += n; s.counts[whose] == 0 {
		delete(s.counts, whose)
	}
}

// known says that a session has shown whose it is; token is the identity's key.
func (s *Server) known(se *session, token string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if token != se.token && s.counts[token] >= s.opts.Limits.PerToken {
		return false
	}
	s.count(se.token, -1)
	s.count(token, 1)
	se.token = token
	if se.stranger {
		se.stranger = false
		s.strangers--
	}
	return true
}

func (s *Server) release(se *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, se)
	s.count(se.from, -1)
	s.count(se.token, -1)
	if se.stranger {
		s.strangers--
	}
}

// begin takes a place for a verb of somebody's, or says why there is none. end
// gives it back.
func (s *Server) begin(user string) (why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.running >= s.opts.Limits.Running:
		return "too much is going on: try again later"
	case s.byUser[user] >= s.opts.Limits.PerUser:
		return user + " has too much going on already: try again when some of it has ended"
	}
	s.running++
	s.byUser[user]++
	s.group.Add(1)
	return ""
}

func (s *Server) end(user string) {
	s.mu.Lock()
	s.running--
	if s.byUser[user]--; s.byUser[user] == 0 {
		delete(s.byUser, user)
	}
	s.mu.Unlock()
	s.group.Done()
}

// Load counts the connections that are open, and the verbs under way.
func (s *Server) Load() (connections, verbs int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions), s.running
}

// isStopping reports whether Shutdown was called.
func (s *Server) isStopping() bool {
	select {
	case <-s.stopping:
		return true
	default:
		return false
	}
}

// Shutdown ends what runs, tells every client that the farm goes down, and waits
// until all are gone, or cuts them off when ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	if !s.draining {
		s.draining = true
		close(s.stopping)
	}
	for l := range s.listeners {
		l.Close()
	}
	s.stopVerbs()
	for se := range s.sessions {
		se.conn.SetReadDeadline(past) // whoever waits for a line looks up
	}
	s.mu.Unlock()
	gone := make(chan struct{})
	go func() {
		s.group.Wait()
		close(gone)
	}()
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	for se := range s.sessions {
		se.conn.Close()
	}
	n := len(s.sessions)
	s.mu.Unlock()
	if n == 0 {
		return nil // a verb that does not end is not this door's trouble
	}
	return fmt.Errorf("text protocol: %d connections had to be cut off", n)
}

// past is a deadline that is over.
var past = time.Unix(1, 0)

// origin is what counts as one address; "" on a Unix socket.
func origin(c net.Conn) string {
	ap, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return ""
	}
	addr := ap.Addr().Unmap().WithZone("")
	if addr.Is6() {
		if p, err := addr.Prefix(64); err == nil {
			return p.String()
		}
	}
	return addr.String()
}
