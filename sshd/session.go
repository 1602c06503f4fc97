package sshd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/words"
	"github.com/gliderlabs/ssh"
	gossh "golang.org/x/crypto/ssh"
)

// Exit statuses of what is refused here; those of verbs are the verbs' own.
const (
	exitError     = 1
	exitUsage     = 2
	exitNotFound  = 3
	exitForbidden = 4
)

// session is one command on a connection.
type session struct {
	server   *Server
	conn     *gossh.ServerConn
	ch       gossh.Channel
	protocol string    // GIT_PROTOCOL, checked
	pty      *Terminal // nil without a terminal
	resize   chan [2]int

	gone      context.Context // ends when the client is
	interrupt func()          // Ctrl-C, or a signal that the client sends on
	stopped   <-chan struct{} // closed by interrupt
}

// session handles a channel of type session (RFC 4254, 6).
func (s *Server) session(_ *ssh.Server, sc *gossh.ServerConn, nc gossh.NewChannel, ctx ssh.Context) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("a session panicked; this is a bug in quarry", "from", sc.RemoteAddr(), "panic", p)
			sc.Close()
		}
	}()
	c, ok := ctx.Value(connKey).(*conn)
	if !ok {
		nc.Reject(gossh.Prohibited, "quarry: this connection was not counted, which is a bug in quarry")
		return
	}
	defer c.sessions.Add(-1)
	if c.sessions.Add(1) > int64(s.opts.Limits.PerConn) {
		nc.Reject(gossh.ResourceShortage, "quarry: too many commands at once on one connection")
		return
	}
	ch, reqs, err := nc.Accept()
	if err != nil {
		return
	}
	defer ch.Close()
	gone, leave := context.WithCancel(context.Background())
	defer leave()
	stopped := make(chan struct{})
	se := &session{server: s, conn: sc, ch: ch, resize: make(chan [2]int, 1), gone: gone, stopped: stopped, interrupt: sync.OnceFunc(func() { close(stopped) })}
	started := false
	ended := make(chan struct{})
	for req := range reqs {
		ok := false
		switch req.Type {
		case "env":
			var kv struct{ Key, Value string }
			if gossh.Unmarshal(req.Payload, &kv) == nil && !started && kv.Key == "GIT_PROTOCOL" && gitProtocol.MatchString(kv.Value) {
				se.protocol, ok = kv.Value, true
			}
		case "pty-req":
			var pty struct {
				Term                         string
				Columns, Rows, Width, Height uint32
				Modes                        string
			}
			if gossh.Unmarshal(req.Payload, &pty) == nil && !started && se.pty == nil {
				se.pty, ok = &Terminal{TTY: true, Width: int(min(pty.Columns, 10_000)), Height: int(min(pty.Rows, 10_000)), Name: pty.Term, Resize: se.resize}, true
			}
		case "window-change":
			// Most verbs wrap their lines once, at the beginning.
			var size struct{ Columns, Rows, Width, Height uint32 }
			if ok = se.pty != nil && gossh.Unmarshal(req.Payload, &size) == nil; ok {
				select {
				case <-se.resize: // an older one that nobody wanted
				default:
				}
				se.resize <- [2]int{int(min(size.Columns, 10_000)), int(min(size.Rows, 10_000))}
			}
		case "signal":
			se.interrupt()
			ok = true
		case "exec", "shell":
			var cmd struct{ Line string }
			if started || req.Type == "exec" && gossh.Unmarshal(req.Payload, &cmd) != nil {
				break
			}
			started = true
			if req.WantReply { // before any output
				req.Reply(true, nil)
			}
			why := s.begin()
			go func() {
				defer close(ended)
				if why == "" {
					defer s.end()
				}
				defer ch.Close()
				se.run(cmd.Line, why)
			}()
			go se.keepAlive(ended)
			continue
		}
		if req.WantReply {
			req.Reply(ok, nil)
		}
	}
	leave()
	if started {
		<-ended // it counts until it has ended
	}
}

// keepAlive asks the client for a sign of life while a command runs, however
// long the command is silent: [conn] closes the connection when none comes.
func (se *session) keepAlive(ended <-chan struct{}) {
	tick := time.NewTicker(se.server.opts.Limits.Idle / 3)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			return
		case <-tick.C:
			// Blocks until there is an answer, or the connection is closed.
			if _, _, err := se.conn.SendRequest("keepalive@openssh.com", true, nil); err != nil {
				return
			}
		}
	}
}

// run runs the command and tells the client its status. refused says why there
// is no room for it.
func (se *session) run(line, refused string) {
	s := se.server
	status := exitError
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("a command panicked; this is a bug in quarry", "command", line, "panic", p)
		}
		se.ch.CloseWrite()
		se.ch.SendRequest("exit-status", false, gossh.Marshal(struct{ Status uint32 }{uint32(status)}))
	}()
	if refused != "" {
		fmt.Fprintf(se.stderr(), "quarry: %s\n", refused)
		return
	}
	key, ok := verified(se.conn)
	if !ok {
		fmt.Fprintf(se.stderr(), "quarry: no key was proved on this connection\n")
		return
	}
	// Again, as the key may have been taken away since the connection began.
	id, err := s.opts.Keys.Lookup(key)
	if err != nil {
		status = exitForbidden
		fmt.Fprintf(se.stderr(), "quarry: %v\n", err)
		return
	}
	if !s.join(id.User) {
		fmt.Fprintf(se.stderr(), "quarry: %s has too much going on already: try again when some of it has ended\n", id.User)
		return
	}
	defer s.leave(id.User)
	start := time.Now()
	status, err = se.dispatch(id, line)
	if err != nil {
		fmt.Fprintf(se.stderr(), "quarry: %v\n", err)
	}
	s.log.Info("ssh command", "user", id.User, "from", se.conn.RemoteAddr(), "command", line, "status", status, "took", time.Since(start).Round(time.Millisecond))
}

// dispatch runs a command line for somebody. An error has not been told yet.
func (se *session) dispatch(id quarry.Identity, line string) (int, error) {
	if args, ok := se.server.splitRaw(line); ok {
		return se.runVerb(id, args, true), nil
	}
	args, err := words.Split(line)
	if err != nil {
		return exitUsage, err
	}
	g, isGit, err := parseGit(args)
	switch {
	case err != nil:
		return exitUsage, err
	case isGit:
		return se.serveGit(id, g)
	case len(args) == 0:
		return se.greet(id)
	}
	return se.runVerb(id, args, false), nil
}

func (s *Server) begin() (why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.draining:
		return "the server is stopping: try again when it is back"
	case s.sessions >= s.opts.Limits.Sessions:
		return "too much is going on: try again later"
	}
	s.sessions++
	s.running.Add(1)
	return ""
}

// Load counts the connections that are open, and the commands under way.
func (s *Server) Load() (connections, sessions int) {
	s.gate.mu.Lock()
	connections = s.gate.conns
	s.gate.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	return connections, s.sessions
}

func (s *Server) end() {
	s.mu.Lock()
	s.sessions--
	s.mu.Unlock()
	s.running.Done()
}

// join counts a command of somebody's. One person, or a script that forgot what
// it follows, must not keep all others from pushing.
func (s *Server) join(user string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byUser[user] >= s.opts.Limits.PerUser {
		return false
	}
	s.byUser[user]++
	return true
}

func (s *Server) leave(user string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byUser[user]--; s.byUser[user] == 0 {
		delete(s.byUser, user)
	}
}

// greet answers somebody who gave no command.
func (se *session) greet(id quarry.Identity) (int, error) {
	name := id.User
	if id.Name != "" {
		name = id.Name + " (" + id.User + ")"
	}
	may := "you may look, not push"
	switch {
	case id.Role == quarry.RoleAdmin || id.Role == quarry.RoleMaintainer && len(id.Packages) == 0:
		may = "you may push every package"
	case id.Role == quarry.RoleMaintainer:
		may = "you may push " + strings.Join(id.Packages, ", ")
	}
	fmt.Fprintf(se.stdout(), "Hello %s, this is Quarry. You are %s here: %s.\nThere is no shell; this is what there is:\n\n", name, id.Role, may)
	fmt.Fprintf(se.stdout(), "  git push %s/NAME.git HEAD:NAME-VERSION\n  %s VERB\n\n", se.url(), se.ssh())
	return se.runVerb(id, []string{"help"}, false), nil
}

// runVerb runs a verb; with raw it gets a terminal as it is.
func (se *session) runVerb(id quarry.Identity, args []string, raw bool) int {
	s := se.server
	if s.opts.Verbs == nil {
		fmt.Fprintf(se.stderr(), "quarry: %.40q is no git command, and nothing else is served here\n", args[0])
		return exitUsage
	}
	ctx, cancel := context.WithCancel(s.verbs)
	defer cancel()
	defer context.AfterFunc(se.gone, cancel)()
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-se.stopped:
			cancel()
		case <-ended:
		}
	}()
	var term Terminal
	var stdin io.Reader = se.ch
	if se.pty != nil {
		term = *se.pty
	}
	if se.pty != nil && !raw {
		stdin = newKeyboard(se.ch, se.interrupt)
	}
	// A client that is there but reads nothing would keep the verb for ever.
	give := func() {
		cancel()
		se.ch.Close()
	}
	var to, errTo io.Writer = se.ch, se.ch.Stderr()
	if !raw {
		to, errTo = se.terminal(to), se.terminal(errTo)
	}
	out := &patient{to, s.opts.Limits.Stall, give}
	errOut := &patient{errTo, s.opts.Limits.Stall, give}
	return s.opts.Verbs(ctx, id, args, stdin, out, errOut, term)
}

// patient is a writer that gives up when one write takes too long.
type patient struct {
	w     io.Writer
	limit time.Duration
	give  func() // up: has to end the write
}

func (p *patient) Write(b []byte) (int, error) {
	timer := time.AfterFunc(p.limit, p.give)
	defer timer.Stop()
	return p.w.Write(b)
}

func (se *session) stdout() io.Writer { return se.terminal(se.ch) }
func (se *session) stderr() io.Writer { return se.terminal(se.ch.Stderr()) }

// terminal makes line ends what a terminal in raw mode needs, if there is one:
// the kernel, which does it elsewhere, is not between us and the client.
func (se *session) terminal(w io.Writer) io.Writer {
	if se.pty == nil {
		return w
	}
	return crlf{w}
}

type crlf struct{ w io.Writer }

func (c crlf) Write(p []byte) (int, error) {
	text := strings.ReplaceAll(strings.ReplaceAll(string(p), "\r\n", "\n"), "\n", "\r\n")
	if _, err := io.WriteString(c.w, text); err != nil {
		return 0, err
	}
	return len(p), nil
}

// keyboard reads a terminal in raw mode, where Ctrl-C and Ctrl-D are bytes.
type keyboard struct {
	mu    sync.Mutex // guards the following
	wait  sync.Cond
	typed []byte
	err   error
}

// maxTyped is how much is kept for a verb that does not read; the rest is lost.
const maxTyped = 64 << 10

func newKeyboard(r io.Reader, interrupt func()) *keyboard {
	k := &keyboard{}
	k.wait.L = &k.mu
	go func() {
		// It reads on whether anybody wants the bytes or not: an interrupt may
		// be among them. It ends with the channel.
		buf := make([]byte, 1024)
		for {
			n, err := r.Read(buf)
			k.mu.Lock()
			for _, c := range buf[:n] {
				switch {
				case k.err != nil:
				case c == 3: // Ctrl-C
					interrupt()
					k.err = io.EOF
				case c == 4: // Ctrl-D
					k.err = io.EOF
				case c == '\r':
					c = '\n'
					fallthrough
				default:
					if len(k.typed) < maxTyped {
						k.typed = append(k.typed, c)
					}
				}
			}
			if err != nil && k.err == nil {
				k.err = err
			}
			k.wait.Broadcast()
			k.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return k
}

func (k *keyboard) Read(p []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for len(k.typed) == 0 {
		if k.err != nil {
			return 0, k.err
		}
		k.wait.Wait()
	}
	n := copy(p, k.typed)
	k.typed = k.typed[n:]
	return n, nil
}

// address is how people reach this server.
func (se *session) address() (host, port string) {
	host, port, err := net.SplitHostPort(se.conn.LocalAddr().String())
	if err != nil {
		host, port = "localhost", "22"
	}
	if se.server.opts.Host != "" {
		host = se.server.opts.Host
	}
	return host, port
}

// ssh is the command that reaches this server, e.g. ssh -p 2222 localhost.
func (se *session) ssh() string {
	host, port := se.address()
	if port == "22" {
		return "ssh " + host
	}
	return "ssh -p " + port + " " + host
}

func (se *session) url() string {
	host, port := se.address()
	if port == "22" {
		if strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
		return "ssh://" + host
	}
	return "ssh://" + net.JoinHostPort(host, port)
}

// activity is when something last happened.
type activity struct{ at atomic.Int64 }

func (a *activity) now()               { a.at.Store(time.Now().UnixNano()) }
func (a *activity) ago() time.Duration { return time.Duration(time.Now().UnixNano() - a.at.Load()) }

var errStalled = errors.New("nothing has moved for too long: the connection was given up")
