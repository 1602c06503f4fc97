// Package buildcontrol is the protocol by which a controller tells running build
// programs how many jobs they may run: that of Marc Espie's build-control, which
// patched make, GNU make and ninja speak. doc/buildcontrol.md is its
// specification.
//
// A client says a token, number-hash, on a line; from then on it is told numbers
// of jobs, each on a line, always absolute. Token 0 is the control connection,
// whose lines make tokens and set their numbers.
//
// [Server] is the controller's side, [Client] that of a build program.
package buildcontrol

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// MaxJobs is the most jobs that a token can be given, whatever the ceiling.
const MaxJobs = 1 << 16

// Unset stands for the jobs of a token that was given none yet: its clients have
// been told nothing, and run as many as their own flags say.
const Unset = -1

// maxLine is what fits in a line of a client's, as in the original.
const maxLine = 1022

// Options are what a [Server] needs. The zero value of each stands for its
// default.
type Options struct {
	Ceiling     int           // the most jobs that a token is given; MaxJobs
	MaxClients  int           // connections at once, of all that is served; 16,384
	MaxPerToken int           // connections of one token at once; 512
	AuthTime    time.Duration // to show a token; 10 seconds
	Control     bool          // whether there is a token 0, for control connections
	// Changed is asked when a control connection says number:jobs, and gives what
	// the token gets; an error is what the connection reads. jobs is within
	// 0..Ceiling, and so is what comes of the answer. It must not wait for long:
	// the connections of the same listener wait with it. Unset: it has seen to the
	// token itself. nil: jobs, as they are.
	Changed func(t *Token, jobs int) (int, error)
	Log     *slog.Logger // nil: nowhere
}

// Server tells clients the number of jobs of their tokens. All its methods may be
// called at any time from anywhere.
type Server struct {
	opts    Options
	log     *slog.Logger
	control string        // the hash of token 0
	quiet   time.Duration // after trouble was logged, until it is again

	mu       sync.Mutex // guards the following, and all of tokens, loops and clients
	tokens   []*Token   // by number; there is none at 0
	loops    map[*loop]bool
	clients  int
	complain map[string]*complaint
}

// Token is what a build and its controller know each other by.
type Token struct {
	s       *Server
	number  int
	hash    string
	private bool // good at its own ServeToken only, and kept until Close
	opened  time.Time
	jobs    int
	clients []*client
	closed  bool
	stop    map[*loop]bool // those that serve it alone
}

// TokenInfo is a token as others may see it.
type TokenInfo struct {
	Number  int       `json:"number"`
	Jobs    int       `json:"jobs"`    // Unset: none given yet
	Clients int       `json:"clients"` // connections now
	Private bool      `json:"private"` // good at a socket of its own only
	Opened  time.Time `json:"opened"`
}

// New makes a server.
func New(o Options) *Server {
	if o.Ceiling <= 0 || o.Ceiling > MaxJobs {
		o.Ceiling = MaxJobs
	}
	if o.MaxClients <= 0 {
		o.MaxClients = 16_384
	}
	if o.MaxPerToken <= 0 {
		o.MaxPerToken = 512
	}
	if o.AuthTime <= 0 {
		o.AuthTime = 10 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{opts: o, log: o.Log, quiet: time.Minute, tokens: []*Token{nil}, loops: map[*loop]bool{}, complain: map[string]*complaint{}}
	if o.Control {
		s.control = newHash()
	}
	return s
}

// newHash gives 24 hex digits that nobody can guess.
func newHash() string {
	b := make([]byte, 12)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// ControlToken is what control connections say; blank when there are none.
func (s *Server) ControlToken() string {
	if s.control == "" {
		return ""
	}
	return "0-" + s.control
}

// Serve takes clients of any token that a control connection made, and control
// connections, until ctx ends or the listener is closed. It closes the listener
// and its clients. The listener must be one of the operating system's: TCP or
// Unix.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	return s.serve(ctx, l, nil)
}

// ServeToken is Serve for clients of t alone, without control connections. It
// ends with t, too. As everyone who gets to this listener means t, only the hash
// is looked at: any number before it will do (see [Token.Local]).
func (s *Server) ServeToken(ctx context.Context, l net.Listener, t *Token) error {
	return s.serve(ctx, l, t)
}

// Open makes a token that is kept until its Close, and is good at its own
// ServeToken only. A hash is made of letters and digits, at least 16 of them;
// blank: a random one.
func (s *Server) Open(hash string) (*Token, error) {
	if hash == "" {
		hash = newHash()
	}
	odd := func(r rune) bool { return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') }
	if len(hash) < 16 || len(hash) > 128 || strings.ContainsFunc(hash, odd) {
		return nil, errors.New("the hash of a token is made of 16 to 128 letters and digits")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.add(hash, true)
}

// add makes a token with the lowest number that is free, as the original does.
func (s *Server) add(hash string, private bool) (*Token, error) {
	n := 1
	for n < len(s.tokens) && s.tokens[n] != nil {
		n++
	}
	if n > MaxJobs {
		return nil, fmt.Errorf("there are %d tokens already, which is the most: wait until builds have ended", n-1)
	}
	t := &Token{s: s, number: n, hash: hash, private: private, opened: time.Now(), jobs: Unset}
	if n == len(s.tokens) {
		s.tokens = append(s.tokens, nil)
	}
	s.tokens[n] = t
	return t, nil
}

// remove forgets a token that has no clients any more.
func (s *Server) remove(t *Token) {
	t.closed = true
	s.tokens[t.number] = nil
	for n := len(s.tokens); n > 1 && s.tokens[n-1] == nil; n-- {
		s.tokens = s.tokens[:n-1]
	}
}

// Tokens lists the tokens by number, without what is secret about them.
func (s *Server) Tokens() []TokenInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]TokenInfo, 0, len(s.tokens)-1)
	for _, t := range s.tokens {
		if t != nil {
			list = append(list, TokenInfo{Number: t.number, Jobs: t.jobs, Clients: len(t.clients), Private: t.private, Opened: t.opened})
		}
	}
	return list
}

// String is the token as clients say it: number-hash.
func (t *Token) String() string { return strconv.Itoa(t.number) + "-" + t.hash }

// Local is the token as clients may say it at its own ServeToken, where the
// number does not count: it depends on the hash alone, so that builds whose
// results hold their environment are the same twice.
func (t *Token) Local() string { return "1-" + t.hash }

// Number is what control connections call the token.
func (t *Token) Number() int { return t.number }

// Jobs is the number that was set last; Unset when none was.
func (t *Token) Jobs() int {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	return t.jobs
}

// Clients is the number of connections that have shown the token.
func (t *Token) Clients() int {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	return len(t.clients)
}

// Set tells all clients of the token, and those to come, how many jobs they may
// run: 0 up to the ceiling. It waits for none of them; one that does not read
// gets the newest number when it does. A number that is set already is not told
// again.
func (t *Token) Set(jobs int) { t.set(jobs, false) }

// set does as Set; again: also when the number is the same.
func (t *Token) set(jobs int, again bool) {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	jobs = min(max(jobs, 0), t.s.opts.Ceiling)
	if t.closed || t.jobs == jobs && !again {
		return
	}
	t.jobs = jobs
	line := t.line()
	for i := len(t.clients) - 1; i >= 0; i-- { // backwards: one that is gone is replaced by the last
		t.clients[i].tell(line)
	}
}

// line is what clients of the token read.
func (t *Token) line() []byte {
	return append(strconv.AppendInt(nil, int64(t.jobs), 10), '\r', '\n')
}

// Close ends the token: its clients are closed, and no more come.
func (t *Token) Close() {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	if t.closed {
		return
	}
	for l := range t.stop {
		l.cancel()
	}
	t.private = true // or the last client that goes would collect it
	for i := len(t.clients) - 1; i >= 0; i-- {
		t.clients[i].close()
	}
	t.s.remove(t)
}

// lookup finds the token that a client says. control: it is token 0. It takes as
// long for a wrong hash as for a right one.
func (s *Server) lookup(said string, only *Token) (t *Token, control, ok bool) {
	number, hash, _ := strings.Cut(said, "-")
	n, known := parse(number)
	want := ""
	switch {
	case !known || n < 0:
	case only != nil:
		t, want = only, only.hash
	case n == 0 && s.control != "":
		want, control = s.control, true
	case n > 0 && n < len(s.tokens) && s.tokens[n] != nil && !s.tokens[n].private:
		t, want = s.tokens[n], s.tokens[n].hash
	}
	same := subtle.ConstantTimeCompare([]byte(hash), []byte(want)) == 1
	return t, control, same && want != ""
}

// parse reads a number as the original does, but says when there is none. What
// is enormous becomes the largest or smallest int32.
func parse(s string) (n int, ok bool) {
	v, err := strconv.ParseInt(strings.Trim(s, " \t"), 10, 32)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return 0, false
	}
	return int(v), true
}

// complaint is a kind of trouble that clients make.
type complaint struct {
	last   time.Time
	unsaid int
}

// warn logs trouble of a kind once, and then at most once a minute, however often
// clients make it. s.mu is held.
func (s *Server) warn(what string, args ...any) {
	c := s.complain[what]
	if c == nil {
		c = &complaint{}
		s.complain[what] = c
	}
	now := time.Now()
	if !c.last.IsZero() && now.Sub(c.last) < s.quiet {
		c.unsaid++
		return
	}
	if c.unsaid > 0 {
		args = append(args, "before", c.unsaid)
	}
	c.last, c.unsaid = now, 0
	s.log.Warn("build control: "+what, args...)
}
