package protocol

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/internal/words"
)

// session is one connection. One goroutine reads it, and waits there most of its
// life; each verb runs in one of its own.
type session struct {
	server *Server
	conn   net.Conn
	from   string // what counts as its address; "" for an admin on a Unix socket

	token    string // key of the identity that was shown; guarded by server.mu, as is the next
	stranger bool   // counted as one that has shown no token

	// The rest is the reading goroutine's.
	in    lines
	out   outlet
	who   func() (quarry.Identity, error) // asked for each line; nil: nobody knows yet
	term  Terminal
	tries int  // wrong tokens
	eof   bool // no more lines come
	// trouble is that input of a verb was out of order, after which nobody knows
	// where the next line begins.
	trouble error
	bucket
}

// bucket bounds a rate: a line costs one, and so many come back in a second.
type bucket struct {
	left  float64
	since time.Time
	over  int // lines turned away
}

func (b *bucket) take(rate float64, burst int) bool {
	now := time.Now()
	if b.since.IsZero() {
		b.left = float64(burst)
	} else {
		b.left = min(float64(burst), b.left+rate*now.Sub(b.since).Seconds())
	}
	b.since = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}

// handshake is how long one of TLS may take.
const handshake = 10 * time.Second

// maxTries is how many wrong tokens one connection may show.
const maxTries = 3

// run serves the connection to its end.
func (s *session) run() {
	defer func() {
		if p := recover(); p != nil {
			s.server.log.Error("a text session panicked; this is a bug in quarry", "from", s.from, "panic", p)
		}
		s.conn.Close()
		s.in.drop()
	}()
	l := s.server.opts.Limits
	s.in.conn = s.conn
	s.out.conn, s.out.stall, s.out.give = s.conn, l.Stall, func() {}
	opened := time.Now()
	if c, ok := s.conn.(*tls.Conn); ok {
		// The server speaks first, so who does not know of TLS waits, too.
		c.SetDeadline(opened.Add(min(l.AuthTime, handshake)))
		if err := c.Handshake(); err != nil {
			s.server.log.Debug("a text connection has no TLS", "from", s.from, "err", err)
			return
		}
		c.SetDeadline(time.Time{})
	}
	s.conn.SetReadDeadline(opened.Add(l.AuthTime))
	s.out.line(codeGreeting, "quarry %s ready", s.server.opts.Version)
	for {
		line, ok, err := s.in.next()
		if err != nil {
			s.out.line(codeLine, "%v: goodbye", err)
			s.linger()
			return
		}
		if ok && !s.server.isStopping() {
			if !s.command(string(line)) {
				if s.server.isStopping() {
					s.goingDown()
				}
				s.linger()
				return
			}
			continue
		}
		if s.out.flush() != nil || s.eof && !s.server.isStopping() {
			return
		}
		if s.who == nil {
			s.conn.SetReadDeadline(opened.Add(l.AuthTime))
		} else {
			s.conn.SetReadDeadline(time.Now().Add(l.Idle))
		}
		if s.server.isStopping() { // after the deadline: Shutdown sets one, too
			err = os.ErrDeadlineExceeded
		} else {
			err = s.in.fill(true)
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			s.eof = true
		case s.server.isStopping():
			s.goingDown()
			return
		case isTimeout(err) && s.who == nil:
			s.out.line(codeClosing, "no token was shown in %s: goodbye", human.Duration(l.AuthTime))
			s.out.flush()
			return
		case isTimeout(err):
			s.out.line(codeClosing, "no line has come in %s: goodbye", human.Duration(l.Idle))
			s.out.flush()
			return
		default:
			return
		}
	}
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

func (s *session) goingDown() {
	s.out.line(codeClosing, "going down: connect again when the farm is back")
	s.out.flush()
}

// lingers is how long a client may take to end the connection from its side.
var lingers = time.Second

// linger ends the connection such that the client gets the last reply: where
// something of its own was unread, the kernel would throw away what it has not
// read either.
func (s *session) linger() {
	if s.out.flush() != nil {
		return
	}
	if half, ok := s.conn.(interface{ CloseWrite() error }); ok && !s.eof && half.CloseWrite() == nil {
		s.conn.SetReadDeadline(time.Now().Add(lingers))
		io.CopyN(io.Discard, s.conn, 1<<20)
	}
}

// command answers one line. goOn is false when it was the last.
func (s *session) command(line string) (goOn bool) {
	l := s.server.opts.Limits
	if !s.take(l.Rate, l.Burst) {
		if s.over++; s.over > l.Burst {
			s.out.line(codeClosing, "far too fast: goodbye")
			return false
		}
		s.out.line(codeBusy, "too fast: %g lines a second are the most; this one was not looked at, send it again", l.Rate)
		return true
	}
	line = strings.Trim(line, " \t")
	if line == "" {
		return true
	}
	id := ""
	if line[0] == '@' {
		first, rest, _ := strings.Cut(line[1:], " ")
		if !idForm.MatchString(first) {
			s.out.line(codeSyntax, "request id is none: write @ and at most %d of letters, digits, dots, dashes and underscores", MaxID)
			return true
		}
		id, line = first, rest
	}
	argv, err := words.Split(line)
	switch {
	case err != nil:
		s.out.line(codeSyntax, "%v", err)
		return true
	case len(argv) == 0:
		s.out.line(codeSyntax, "there is a request id and nothing that is asked: put a verb behind it")
		return true
	}
	own := s.own(argv)
	switch {
	case own != nil && id != "":
		s.out.line(codeSyntax, "a request id goes with verbs, and %s is none", strings.ToUpper(argv[0]))
		return true
	case own != nil:
		return own(argv)
	case s.who == nil:
		s.out.line(codeStranger, "show a token first: AUTH TOKEN")
		return true
	}
	return s.verb(id, argv)
}

// own gives what answers a word that is the protocol's and no verb; nil when it
// is none.
func (s *session) own(argv []string) func([]string) bool {
	switch word := strings.ToUpper(argv[0]); {
	case word == "AUTH":
		return s.auth
	case word == "QUIT":
		return func([]string) bool {
			s.out.line(codeBye, "goodbye")
			return false
		}
	case word == "NOOP":
		return func([]string) bool {
			s.out.line(codeDone, "done")
			return true
		}
	case word == "CAPABILITIES":
		return func([]string) bool {
			return s.text("quarry 1\nversion " + s.server.opts.Version + "\nauth token\nrequest-id\ninput lines data\nterminal\nmax-line " + strconv.Itoa(maxLine) + "\n")
		}
	case word == "TERMINAL":
		return s.terminal
	case argv[0] == "HELP", word == "HELP" && s.who == nil: // help is a verb
		return func([]string) bool { return s.text(helpText) }
	}
	return nil
}

const helpText = `A line is a verb with its words, as after quarry on the farm's machine:
  status 17 --json
help lists the verbs, once a token was shown. Besides there are
  AUTH TOKEN           show who you are; quarry token add makes one
  @ID VERB WORDS       asked again with the same ID, it is not done again, but answered again
  TERMINAL WIDTH HEIGHT [color]
                       answers are for a person who has no input to give
  CAPABILITIES         what this server can do, for programs
  NOOP, QUIT
Replies begin with three digits: 1xx is progress, 2xx is well, 354 asks for input, 4xx is for
another time, 5xx is no. After 210 and 211 lines follow up to one with a single dot; one that
begins with a dot has one more before it.
`

// text answers with lines.
func (s *session) text(text string) bool {
	r := &reply{to: &s.out, whole: true}
	io.WriteString(stdout{r}, text)
	r.end(0)
	return true
}

func (s *session) auth(argv []string) bool {
	if len(argv) != 2 {
		s.out.line(codeSyntax, "AUTH takes a token: AUTH qry_...")
		return true
	}
	secret := argv[1]
	err := errors.New("no tokens are taken here")
	var who quarry.Identity
	if s.server.opts.Lookup != nil {
		who, err = s.server.opts.Lookup(secret)
	}
	if err != nil {
		if s.tries++; s.tries == 1 {
			s.server.log.Warn("a token was not taken", "door", "text", "from", s.from, "err", err)
		}
		s.out.flush()
		select {
		case <-time.After(s.server.opts.Limits.AuthDelay):
		case <-s.server.stopping:
		}
		s.out.line(codeToken, "%v", err)
		if s.tries >= maxTries {
			s.out.line(codeClosing, "too many wrong tokens: goodbye")
			return false
		}
		return true
	}
	if !s.server.known(s, who.Key) {
		s.out.line(codeClosing, "too many connections with this token: goodbye")
		return false
	}
	s.who = func() (quarry.Identity, error) { return s.server.opts.Lookup(secret) }
	s.out.line(codeKnown, "%s, %s", who.User, who.Role)
	return true
}

func (s *session) terminal(argv []string) bool {
	size := func(i int) int {
		n, err := strconv.Atoi(argv[i])
		if err != nil || n < 0 || n > 10_000 {
			return -1
		}
		return n
	}
	if len(argv) < 3 || len(argv) > 4 || size(1) < 0 || size(2) < 0 || len(argv) == 4 && !strings.EqualFold(argv[3], "color") {
		s.out.line(codeSyntax, "TERMINAL takes columns and lines, 0 where not known, and color: TERMINAL 80 24 color")
		return true
	}
	s.term = Terminal{TTY: true, Width: size(1), Height: size(2), Color: len(argv) == 4}
	s.out.line(codeDone, "done")
	return true
}
