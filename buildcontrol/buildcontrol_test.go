package buildcontrol

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience is how long a test waits for what must happen.
const patience = time.Minute

// farm is a server that is listened to.
type farm struct {
	*Server
	addr string
	log  *safeBuffer
	stop func() error // ends Serve and gives what came of it
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// newFarm serves a Unix socket.
func newFarm(t testing.TB, o Options) *farm {
	t.Helper()
	f := &farm{log: &safeBuffer{}}
	o.Control = true
	if o.AuthTime == 0 {
		o.AuthTime = time.Hour // however slow the machine is
	}
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(f.log, nil))
	}
	f.Server = New(o)
	f.quiet = time.Hour
	f.addr, f.stop = listen(t, filepath.Join(t.TempDir(), "s"), f.Serve)
	return f
}

// listen serves an address until the test ends.
func listen(t testing.TB, addr string, serve func(context.Context, net.Listener) error) (at string, stop func() error) {
	t.Helper()
	ls, err := Listen(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- serve(ctx, ls[0]) }()
	stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(patience):
			t.Error("the server does not end")
			return nil
		}
	})
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return ls[0].Addr().String(), stop
}

// raw is a connection of which every byte counts.
type raw struct {
	t testing.TB
	net.Conn
	r *bufio.Reader
}

func dial(t testing.TB, addr string) *raw {
	t.Helper()
	kind, address := network(addr)
	c, err := net.Dial(kind, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return &raw{t, c, bufio.NewReader(c)}
}

func (c *raw) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		c.t.Fatal(err)
	}
}

// want reads exactly this.
func (c *raw) want(s string) {
	c.t.Helper()
	b := make([]byte, len(s))
	n, err := io.ReadFull(c.r, b)
	if string(b[:n]) != s {
		c.t.Fatalf("got %q, %v; want %q", b[:n], err, s)
	}
}

func (c *raw) line() string {
	c.t.Helper()
	s, err := c.r.ReadString('\n')
	if err != nil {
		c.t.Fatalf("after %q: %v", s, err)
	}
	return s
}

// ends checks that the server has closed the connection without a further word.
func (c *raw) ends() {
	c.t.Helper()
	b := make([]byte, 100)
	n, err := c.r.Read(b)
	if ne, ok := err.(net.Error); n > 0 || err == nil || ok && ne.Timeout() {
		c.t.Fatalf("got %q, %v; want the end", b[:n], err)
	}
}

// control is a control connection.
func (f *farm) control(t testing.TB) *raw {
	t.Helper()
	c := dial(t, f.addr)
	c.send(f.ControlToken() + "\n")
	return c
}

// token has a control connection make a token.
func (c *raw) token() (said string, n int) {
	c.t.Helper()
	c.send("new\n")
	said = strings.TrimSuffix(c.line(), "\n")
	number, _, _ := strings.Cut(said, "-")
	n, err := strconv.Atoi(number)
	if err != nil {
		c.t.Fatalf("new gives %q", said)
	}
	return said, n
}

// until waits for a condition.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
	}
}

func (s *Server) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clients
}

func TestNumbers(t *testing.T) {
	f := newFarm(t, Options{Ceiling: 64})
	control := f.control(t)
	token, n := control.token()
	if hash := strings.TrimPrefix(token, "1-"); n != 1 || len(hash) != 24 || strings.Trim(hash, "0123456789abcdef") != "" {
		t.Fatalf("the token is %q", token)
	}
	early := dial(t, f.addr)
	early.send(token + "\r\n")
	until(t, "the client is known", func() bool { return f.Tokens()[0].Clients == 1 }) // and was told nothing
	control.send("1:4\n")
	early.want("4\r\n")
	late := dial(t, f.addr)
	late.send(token + "\r\n")
	late.want("4\r\n")
	// Told again as the original does, clamped, and never below nothing.
	control.send("1:4\n1:999999999999999999999999\n1:-3\n1:0\n1:many\n 1 : 7 \n")
	for _, c := range []*raw{early, late} {
		c.want("4\r\n64\r\n0\r\n7\r\n")
	}
	for _, odd := range []string{"1:-3", "1:many"} {
		control.want("I don't understand " + odd + "\n" + manual)
	}
	control.send("2:1\n0:1\nx:1\n-1:1\n\x1b[2J\n?\n")
	control.want("2: no such builder\n0: no such builder\nCouldn't find builder x\nCouldn't find builder -1\nI don't understand ?[2J\n" + manual + manual)
	if got := f.Tokens(); len(got) != 1 || got[0].Jobs != 7 || got[0].Clients != 2 || got[0].Private {
		t.Fatalf("%+v", got)
	}
	// Collected with the last connection, and the number is free again.
	early.Close()
	late.send("what a client says is not heard\n")
	control.send("1:8\n")
	late.want("8\r\n")
	late.Close()
	until(t, "the token is collected", func() bool { return len(f.Tokens()) == 0 })
	again := dial(t, f.addr)
	again.send(token + "\n")
	again.ends()
	if _, n := control.token(); n != 1 {
		t.Fatalf("the next number is %d", n)
	}
	if _, n := control.token(); n != 2 {
		t.Fatalf("the next number is %d", n)
	}
	control.send("quit\n")
	control.ends()
	if got := f.Tokens(); len(got) != 2 { // nobody has come yet: they stay
		t.Fatalf("%+v", got)
	}
}

// Lines may come in any pieces, and end as they like.
func TestLines(t *testing.T) {
	f := newFarm(t, Options{})
	for _, end := range []string{"\n", "\r\n", "\r", "\n\n\r", " \t\r\n"} {
		for _, size := range []int{1, 2, 3, 7, 4096} {
			text := "\r\n \n" + f.ControlToken() + end + "new" + end + " new" + end + "dump" + end + "quit" + end
			c := dial(t, f.addr)
			for i := 0; i < len(text); i += size {
				if _, err := io.WriteString(c, text[i:min(len(text), i+size)]); err != nil {
					break // it has read quit; what comes after is for nobody
				}
			}
			all, err := io.ReadAll(c.r)
			if err != nil && !strings.Contains(err.Error(), "reset") {
				t.Fatal(err)
			}
			if got := strings.Count(string(all), "\n"); !bytes.Contains(all, []byte("Build number 2, hash ")) || got < 6 {
				t.Fatalf("%q by %d: %d lines\n%s", end, size, got, all)
			}
			for _, info := range f.Tokens() {
				f.tokens[info.Number].Close()
			}
		}
	}
}

func TestStrangers(t *testing.T) {
	f := newFarm(t, Options{})
	control := f.control(t)
	token, _ := control.token()
	_, hash, _ := strings.Cut(token, "-")
	kept, err := f.Open("")
	if err != nil {
		t.Fatal(err)
	}
	for _, said := range []string{"x", "1-", "-", "0-", "0", "1", "1-" + hash[1:], "1-" + hash + "0", "2-" + hash, "-1-" + hash, hash,
		"0-" + hash, "1 " + hash, kept.String(), "1-" + strings.ToUpper(hash[:23]) + "!", "99999999999999999999-" + hash, "new", strings.Repeat("1", maxLine+1), "\x00\xff"} {
		c := dial(t, f.addr)
		c.send(said + "\r\n")
		c.ends()
	}
	long := dial(t, f.addr)
	io.WriteString(long, strings.Repeat("1", 3*maxLine)) // without an end
	long.ends()
	good := dial(t, f.addr)
	good.send(token + "\n")
	control.send("1:3\n")
	good.want("3\r\n")
	until(t, "the strangers are gone", func() bool { return f.connections() == 2 })
	if got := strings.Count(f.log.String(), "unknown token"); got != 1 {
		t.Errorf("unknown tokens are logged %d times:\n%s", got, f.log)
	}
	if got := strings.Count(f.log.String(), "too long"); got != 1 {
		t.Errorf("long lines are logged %d times:\n%s", got, f.log)
	}
	if strings.Contains(f.log.String(), hash) {
		t.Errorf("the log tells a hash:\n%s", f.log)
	}
}

// Who says nothing has to go, unless he has shown a token.
func TestSilence(t *testing.T) {
	f := newFarm(t, Options{AuthTime: 30 * time.Millisecond})
	token, err := f.Open("")
	if err != nil {
		t.Fatal(err)
	}
	addr, _ := listen(t, filepath.Join(t.TempDir(), "s"), func(ctx context.Context, l net.Listener) error { return f.ServeToken(ctx, l, token) })
	token.Set(1)
	good := dial(t, addr)
	for { // this machine may be too slow for so little time
		io.WriteString(good, token.String()+"\n")
		if s, err := good.r.ReadString('\n'); err == nil && s == "1\r\n" {
			break
		}
		good = dial(t, addr)
	}
	for range 3 {
		silent := dial(t, addr)
		silent.ends()
	}
	half := dial(t, addr)
	io.WriteString(half, "1-") // and never more
	half.ends()
	token.Set(2)
	good.want("2\r\n")
	if got := strings.Count(f.log.String(), "no token in time"); got != 1 {
		t.Errorf("silence is logged %d times:\n%s", got, f.log)
	}
}

func TestLimits(t *testing.T) {
	f := newFarm(t, Options{MaxClients: 40, MaxPerToken: 3})
	control := f.control(t)
	token, _ := control.token()
	control.send("1:5\n")
	for range 3 {
		c := dial(t, f.addr)
		c.send(token + "\n")
		c.want("5\r\n")
	}
	fourth := dial(t, f.addr)
	fourth.send(token + "\n")
	fourth.ends()
	// Of strangers the oldest has to go, so that nobody can keep others out.
	oldest := dial(t, f.addr)
	until(t, "the oldest is there", func() bool { return f.connections() == 5 })
	for range 16 {
		dial(t, f.addr)
	}
	oldest.ends()
	// A flood of what nobody wants to hear.
	other, n := control.token()
	flood := dial(t, f.addr)
	flood.send(other + "\n")
	until(t, "known", func() bool { return f.Tokens()[n-1].Clients == 1 })
	noise := bytes.Repeat([]byte("noise\n"), 1000)
	for err := error(nil); err == nil; {
		_, err = flood.Write(noise)
	}
	until(t, "the token is collected", func() bool { return len(f.Tokens()) == 1 })
	// As many as there may be, and not one more.
	for range 40 {
		c := dial(t, f.addr)
		third, n := control.token()
		io.WriteString(c, third+"\n")
		until(t, "known or closed", func() bool { return f.Tokens()[n-1].Clients == 1 || f.connections() == 40 })
	}
	if got := f.connections(); got > 40 {
		t.Errorf("%d connections are kept", got)
	}
	for _, what := range []string{"token has too many", "without a token", "nothing to say"} {
		if got := strings.Count(f.log.String(), what); got != 1 {
			t.Errorf("%q is logged %d times:\n%s", what, got, f.log)
		}
	}
}

// Who gets to a build's own socket takes no connections from anybody else.
func TestLimitsOfOne(t *testing.T) {
	f := newFarm(t, Options{MaxClients: 400, MaxPerToken: 8})
	token, err := f.Open("")
	if err != nil {
		t.Fatal(err)
	}
	addr, _ := listen(t, filepath.Join(t.TempDir(), "s"), func(ctx context.Context, l net.Listener) error { return f.ServeToken(ctx, l, token) })
	oldest := dial(t, addr)
	for range 16 {
		dial(t, addr)
	}
	oldest.ends()
	if got := f.connections(); got > 16 {
		t.Errorf("%d connections are kept", got)
	}
}

func TestTokens(t *testing.T) {
	var asked []string
	f := newFarm(t, Options{Ceiling: 16, Changed: func(t *Token, jobs int) (int, error) {
		asked = append(asked, fmt.Sprint(t.Number(), ":", jobs))
		switch jobs {
		case 13:
			return 0, fmt.Errorf("13 is\nunlucky")
		case 14:
			t.Set(2) // must not wait for itself
			return 1000, nil
		}
		return jobs / 2, nil
	}})
	for _, odd := range []string{"short", "with-dashes-with-dashes", strings.Repeat("a", 129), "line\nline\nline\nline\n"} {
		if _, err := f.Open(odd); err == nil {
			t.Errorf("%q is a hash", odd)
		}
	}
	const hash = "0123456789abcdef01234567"
	a, err := f.Open(hash)
	if err != nil {
		t.Fatal(err)
	}
	b, err := f.Open("")
	if err != nil {
		t.Fatal(err)
	}
	if a.String() != "1-"+hash || b.Local() != "1"+strings.TrimPrefix(b.String(), "2") || b.Number() != 2 || a.Jobs() != Unset {
		t.Fatalf("%v %v %v", a, b, b.Local())
	}
	serve := func(token *Token) func(context.Context, net.Listener) error {
		return func(ctx context.Context, l net.Listener) error { return f.ServeToken(ctx, l, token) }
	}
	atA, stopA := listen(t, filepath.Join(t.TempDir(), "a"), serve(a))
	atB, stopB := listen(t, "127.0.0.1:0", serve(b))
	a.Set(100)
	b.Set(-100)
	for _, c := range []struct {
		addr, said, want string
	}{{atA, a.String(), "16\r\n"}, {atA, a.Local(), "16\r\n"}, {atA, "77-" + hash, "16\r\n"}, {atA, b.String(), ""}, {atA, f.ControlToken(), ""},
		{atB, b.String(), "0\r\n"}, {atB, b.Local(), "0\r\n"}, {atB, a.String(), ""}, {atB, f.ControlToken(), ""}, {f.addr, a.String(), ""}, {f.addr, b.String(), ""}} {
		conn := dial(t, c.addr)
		conn.send(c.said + "\n")
		if conn.want(c.want); c.want == "" {
			conn.ends()
		}
		conn.Close()
	}
	until(t, "all have gone", func() bool { return a.Clients()+b.Clients() == 0 })
	if len(f.Tokens()) != 2 {
		t.Fatalf("tokens that were opened are kept: %+v", f.Tokens())
	}
	client := dial(t, atA)
	client.send(a.String() + "\n")
	client.want("16\r\n")
	control := f.control(t)
	control.send("1:8\n1:13\n1:14\n1:-1\n3:1\n?\n")
	client.want("4\r\n2\r\n16\r\n")
	control.want("1: 13 is?unlucky\n")
	control.want("I don't understand 1:-1\n" + manual + "3: no such builder\n")
	if got := strings.Join(asked, " "); got != "1:8 1:13 1:14" {
		t.Errorf("asked of %s", got)
	}
	// Set tells what is new.
	a.Set(16)
	a.Set(5)
	a.Set(5)
	a.Set(6)
	client.want("5\r\n6\r\n")
	// The end of a token is that of its clients, and of its own listener.
	a.Close()
	a.Close()
	a.Set(9)
	client.ends()
	if err := stopA(); err != nil {
		t.Fatal(err)
	}
	if got := f.Tokens(); len(got) != 1 || got[0].Number != 2 || !got[0].Private {
		t.Fatalf("%+v", got)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.ServeToken(t.Context(), l, a); err == nil {
		t.Error("a token that is closed is served")
	}
	// The end of a listener is that of its clients, not of the token.
	client = dial(t, atB)
	client.send(b.String() + "\n")
	client.want("0\r\n")
	if err := stopB(); err != nil {
		t.Fatal(err)
	}
	client.ends()
	if b.Clients() != 0 || len(f.Tokens()) != 1 {
		t.Errorf("%+v", f.Tokens())
	}
}

// A listener that somebody closes ends its Serve, and leaves others alone.
func TestListeners(t *testing.T) {
	f := newFarm(t, Options{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- f.Serve(t.Context(), l) }()
	far := dial(t, l.Addr().String())
	far.send(f.ControlToken() + "\nnew\n")
	token := strings.TrimSpace(far.line())
	near := dial(t, f.addr)
	near.send(token + "\n")
	far.send("1:2\n")
	near.want("2\r\n")
	l.Close()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(patience):
		t.Fatal("Serve goes on without its listener")
	}
	far.ends()
	control := f.control(t)
	control.send("1:3\n")
	near.want("3\r\n")
	if err := f.stop(); err != nil {
		t.Fatal(err)
	}
	near.ends()
	if f.connections() != 0 || len(f.loops) != 0 {
		t.Errorf("%d connections and %d listeners are left", f.connections(), len(f.loops))
	}
}

// The console is a control connection, but that quit is for the caller.
func TestConsole(t *testing.T) {
	s := New(Options{})
	var out bytes.Buffer
	quit, err := s.Console(strings.NewReader("new\r\n\n 1:7\t\nhelp\nquit\nnew\n"), &out)
	if !quit || err != nil || s.tokens[1].Jobs() != 7 || out.String() != s.tokens[1].String()+"\n"+manual {
		t.Errorf("%v, %v, %q", quit, err, &out)
	}
	if quit, err := s.Console(strings.NewReader("dump"), &out); quit || err != nil {
		t.Errorf("%v, %v", quit, err)
	}
	if len(s.Tokens()) != 1 || s.ControlToken() != "" {
		t.Errorf("%+v, %q", s.Tokens(), s.ControlToken())
	}
}
