package protocol

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Morphux/quarry"
)

// farm is a server with verbs that a test can look into.
type farm struct {
	*Server
	addr string

	mu      sync.Mutex
	tokens  map[string]quarry.Identity
	count   map[string]int // how often the verb count ran, by its word
	began   chan string    // verbs that wait
	ended   chan error     // why those ended that waited for their context
	proceed chan struct{}
}

// patience is how long anything may take on a slow machine that is busy.
const patience = 5 * time.Minute

// within gives what comes from a channel, and fails the test when nothing does.
func within[T any](t testing.TB, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatalf("%s: nothing happened in %v", what, patience)
	}
	return v
}

func newFarm(t testing.TB, change func(*Options)) *farm {
	t.Helper()
	f := &farm{tokens: map[string]quarry.Identity{}, count: map[string]int{}, began: make(chan string, 100), ended: make(chan error, 100), proceed: make(chan struct{})}
	f.know("alice", "alice")
	o := Options{Version: "1", Verbs: f.run, Lookup: f.lookup, Requests: filepath.Join(t.TempDir(), "requests"), Limits: Limits{AuthDelay: time.Millisecond}}
	o.Secret = func(argv []string) bool { return argv[0] == "secret" }
	if change != nil {
		change(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	f.Server = s
	t.Cleanup(func() {
		ctx, stop := context.WithTimeout(context.Background(), patience)
		defer stop()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	})
	return f
}

// left waits until the server has seen all connections go but n.
func (f *farm) left(t testing.TB, n int) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		have, _ := f.Load()
		if have == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("there are %d connections, and %d were to be left", have, n)
		}
	}
}

func (f *farm) know(token, user string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tokens[token] = quarry.Identity{Packager: quarry.Packager{User: user, Key: "token " + token}, Role: quarry.RoleMaintainer}
}

func (f *farm) forget(token string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.tokens, token)
}

func (f *farm) lookup(token string) (quarry.Identity, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	who, ok := f.tokens[token]
	if !ok {
		return who, errors.New("token is unknown here")
	}
	return who, nil
}

func (f *farm) times(word string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count[word]
}

func (f *farm) run(ctx context.Context, who quarry.Identity, argv []string, in io.Reader, out, errOut io.Writer, term Terminal) int {
	arg := func(i int) string {
		if i < len(argv) {
			return argv[i]
		}
		return ""
	}
	fail := func(code int, err error) int {
		fmt.Fprintf(errOut, "quarry: %s: %v\n", argv[0], err)
		return code
	}
	switch argv[0] {
	case "whoami":
		fmt.Fprintf(out, "%s %+v\n", who.User, term)
	case "echo":
		for _, w := range argv[1:] {
			fmt.Fprintln(out, w)
		}
	case "say": // out:TEXT and err:TEXT
		for _, w := range argv[1:] {
			to, text, _ := strings.Cut(w, ":")
			text = strings.ReplaceAll(text, `\n`, "\n")
			w := map[string]io.Writer{"out": out, "err": errOut}[to]
			if _, err := io.WriteString(w, text); err != nil {
				return exitError
			}
		}
	case "much":
		n, _ := strconv.Atoi(arg(1))
		for i := range n {
			if _, err := fmt.Fprintf(out, "%07d %s\n", i, strings.Repeat(".", 91)); err != nil {
				f.ended <- err
				return fail(exitError, err)
			}
		}
	case "fail":
		code, _ := strconv.Atoi(arg(1))
		return fail(code, errors.New("as asked"))
	case "silent":
		code, _ := strconv.Atoi(arg(1))
		return code
	case "count":
		f.mu.Lock()
		f.count[arg(1)]++
		n := f.count[arg(1)]
		f.mu.Unlock()
		fmt.Fprintln(out, n)
	case "wait": // until somebody lets it, or its context ends
		f.mu.Lock()
		f.count[arg(1)]++
		f.mu.Unlock()
		fmt.Fprintln(out, "waiting")
		f.began <- arg(1)
		select {
		case <-f.proceed:
			fmt.Fprintln(out, "waited")
		case <-ctx.Done():
			f.ended <- ctx.Err()
			return fail(exitError, ctx.Err())
		}
	case "cat":
		if in == nil {
			return fail(exitUsage, errors.New("there is no input"))
		}
		if _, err := io.Copy(out, in); err != nil {
			return fail(exitError, err)
		}
	case "sum":
		h := sha256.New()
		n, err := io.Copy(h, in)
		if err != nil {
			return fail(exitError, err)
		}
		fmt.Fprintf(out, "%d %x\n", n, h.Sum(nil))
	case "sip": // reads little of its input
		io.ReadFull(in, make([]byte, 3))
		fmt.Fprintln(out, "enough")
	case "panic":
		panic("as asked")
	case "secret":
		fmt.Fprintln(out, "s3cr3t")
	default:
		return fail(exitUsage, errors.New("unknown"))
	}
	return 0
}

// listen serves on TCP.
func (f *farm) listen(t testing.TB) *farm {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.addr = l.Addr().String()
	done := make(chan error, 1)
	go func() { done <- f.Serve(l) }()
	t.Cleanup(func() {
		f.Shutdown(context.Background())
		if err := within(t, "the server", done); err != nil {
			t.Error(err)
		}
	})
	return f
}

// talker is a client by hand.
type talker struct {
	t testing.TB
	net.Conn
	r *bufio.Reader
}

func (f *farm) dial(t testing.TB) *talker {
	t.Helper()
	c, err := net.Dial("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return &talker{t, c, bufio.NewReader(c)}
}

// known is a client that has shown alice's token.
func (f *farm) known(t testing.TB) *talker {
	t.Helper()
	c := f.dial(t)
	c.want("200 quarry 1 ready")
	c.send("AUTH alice\n")
	c.want("235 alice, maintainer")
	return c
}

func (c *talker) send(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		c.t.Fatal(err)
	}
}

func (c *talker) line() string {
	c.t.Helper()
	line, err := c.r.ReadString('\n')
	if err != nil {
		c.t.Fatalf("after %q: %v", line, err)
	}
	return strings.TrimSuffix(line, "\n")
}

// want reads lines, but signs of life, and compares them.
func (c *talker) want(lines ...string) {
	c.t.Helper()
	for _, want := range lines {
		got := c.line()
		for strings.HasPrefix(got, "100 ") {
			got = c.line()
		}
		if prefix, ok := strings.CutSuffix(want, "..."); got != want && !(ok && strings.HasPrefix(got, prefix)) {
			c.t.Fatalf("got %q, want %q", got, want)
		}
	}
}

// closed wants the connection to end.
func (c *talker) closed() {
	c.t.Helper()
	if line, err := c.r.ReadString('\n'); err == nil {
		c.t.Fatalf("the connection says %q and should have ended", line)
	} else if errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatal("the connection stays open")
	}
	c.Close()
}

// Any of LF, CRLF and CR ends a line, in any mixture and in whatever pieces.
func TestLineEnds(t *testing.T) {
	was := lingers
	lingers = patience // what follows the last word may be late
	t.Cleanup(func() { lingers = was })
	f := newFarm(t, nil).listen(t)
	script := []string{"AUTH alice", "", "echo a 'b  c'", "  echo \t d  ", "@x1 echo e", "cat", "f", "..g", ".", "NOOP", "quit"}
	want := "200 quarry 1 ready\n235 alice, maintainer\n210 output follows\na\nb  c\n.\n250 done\n210 output follows\nd\n.\n250 done\n"
	for i, end := range [][]string{{"\n"}, {"\r\n"}, {"\r"}, {"\n", "\r\n", "\r"}, {"\r", "\n", "\r\n", "\r\r", "\n\r"}} {
		for _, pieces := range []int{1 << 20, 7, 1} {
			c := f.dial(t)
			var text strings.Builder
			for j, line := range script {
				if j == 4 {
					line = fmt.Sprintf("@x%d-%d echo e", i, pieces)
				}
				eol := end[j%len(end)]
				if j > 4 && j < 9 { // a blank line is input
					eol = strings.Replace(strings.Replace(eol, "\r\r", "\r", 1), "\n\r", "\n", 1)
				}
				text.WriteString(line + eol)
			}
			rest := text.String()
			for len(rest) > 0 {
				n := min(pieces, len(rest))
				c.send(rest[:n])
				rest = rest[n:]
			}
			got, err := io.ReadAll(c.r)
			if err != nil {
				t.Fatal(err)
			}
			if want := want + "210 output follows\ne\n.\n250 done\n354 send the input, and a line with a single dot after it\n210 output follows\nf\n..g\n.\n250 done\n250 done\n205 goodbye\n"; string(got) != want {
				t.Fatalf("lines that end in %q, in pieces of %d: got\n%s\nwant\n%s", end, pieces, got, want)
			}
		}
	}
}

// What a verb writes arrives as it was written.
func TestAnswers(t *testing.T) {
	f := newFarm(t, nil).listen(t)
	c := f.known(t)
	for _, tt := range []struct{ words, want string }{
		{`say`, "250 done\n"},
		{`say 'out:a\n.\n..b\n\n'`, "210 output follows\na\n..\n...b\n\n.\n250 done\n"},
		{`say out:a out:b 'out:c\nd\n'`, "210 output follows\nabc\nd\n.\n250 done\n"},
		{`say out:.`, "211 output follows, without a line's end\n..\n.\n250 done\n"},
		{`say 'out:a\nb'`, "210 output follows\na\n.\n211 output follows, without a line's end\nb\n.\n250 done\n"},
		{`say 'out:a\n' 'err:half\nand half' 'out:b\n'`, "210 output follows\na\n.\n110 half\n210 output follows\nb\n.\n110 and half\n250 done\n"},
		{`say 'err:quarry: a warning\n' 'out:a\n'`, "110 quarry: a warning\n210 output follows\na\n.\n250 done\n"},
		{`say 'err:quarry: a warning\n'`, "110 quarry: a warning\n250 done\n"},
		{`fail 1`, "551 fail: as asked\n"}, {`fail 2`, "552 fail: as asked\n"}, {`fail 3`, "553 fail: as asked\n"}, {`fail 4`, "554 fail: as asked\n"},
		{`fail 5`, "455 fail: as asked\n"}, {`silent 6`, "556 the build did not succeed\n"}, {`silent 77`, "551 it went wrong\n"},
		{`panic`, "551 the verb failed by a bug in quarry: its log has more\n"},
		{`echo 'x`, "501 command has a ' without an end: close the quotation\n"},
		{"echo \x00", "501 command holds control characters or no UTF-8: type it on one line\n"},
		{`@`, "501 request id is none: write @ and at most 64 of letters, digits, dots, dashes and underscores\n"},
		{`@x`, "501 there is a request id and nothing that is asked: put a verb behind it\n"},
		{`@x NOOP`, "501 a request id goes with verbs, and NOOP is none\n"},
		{`@x secret`, "542 what this answers is secret and is not kept: leave out the request id\n"},
		{`TERMINAL x 1`, "501 TERMINAL takes columns and lines, 0 where not known, and color: TERMINAL 80 24 color\n"},
		{`TERMINAL 80 24 color`, "250 done\n"},
		{`whoami`, "210 output follows\nalice {TTY:true Width:80 Height:24 Color:true}\n.\n250 done\n"},
		{`cat`, "552 cat: there is no input\n"},
	} {
		c.send(tt.words + "\n")
		got := ""
		for !strings.HasSuffix(got, tt.want) && len(got) <= len(tt.want) {
			got += c.line() + "\n"
		}
		if got != tt.want {
			t.Fatalf("%s: got\n%s\nwant\n%s", tt.words, got, tt.want)
		}
	}
	c.send("HELP\nCAPABILITIES\nquit\n")
	rest, err := io.ReadAll(c.r)
	if err != nil || !strings.Contains(string(rest), "\nquarry 1\nversion 1\n") || !strings.Contains(string(rest), "AUTH TOKEN") {
		t.Errorf("got %s, %v", rest, err)
	}
}

func TestAuth(t *testing.T) {
	f := newFarm(t, func(o *Options) { o.Limits.PerToken = 2 }).listen(t)
	c := f.dial(t)
	c.send("echo\n@x echo\nNOOP\nhelp\n")
	c.want("200 ...", "530 ...", "530 ...", "250 done", "210 ...")
	for c.line() != "250 done" {
	}
	c.send("AUTH\nAUTH a b\nAUTH wrong\nAUTH alice\n")
	c.want("501 ...", "501 ...", "535 token is unknown here", "235 alice, maintainer")
	// Taken away on an open connection.
	c.send("echo a\n")
	c.want("210 ...", "a", ".", "250 done")
	f.forget("alice")
	c.send("echo b\necho c\n")
	c.want("535 token is unknown here")
	c.closed()
	f.know("alice", "alice")
	// Three wrong ones end it.
	c = f.dial(t)
	c.send("AUTH a\nAUTH b\nAUTH c\nAUTH alice\n")
	c.want("200 ...", "535 ...", "535 ...", "535 ...", "421 too many wrong tokens: goodbye")
	c.closed()
	// No more than two at once with one token; showing it again does not count.
	f.left(t, 0)
	a, b := f.known(t), f.known(t)
	b.send("AUTH alice\n")
	b.want("235 ...")
	c = f.dial(t)
	c.send("AUTH alice\n")
	c.want("200 ...", "421 too many connections with this token: goodbye")
	c.closed()
	a.send("quit\n")
	a.want("205 goodbye")
	a.closed()
	f.left(t, 1)
	f.known(t)
}

// Lines are answered in order; a long verb holds back those behind it.
func TestPipeline(t *testing.T) {
	f := newFarm(t, func(o *Options) { o.Limits.Rate = 1e9 }).listen(t)
	c := f.known(t)
	var text, want strings.Builder
	for i := range 500 {
		fmt.Fprintf(&text, "echo %d\nfail 3\n", i)
		fmt.Fprintf(&want, "210 output follows\n%d\n.\n250 done\n553 fail: as asked\n", i)
	}
	c.send("wait a\n" + text.String())
	c.want("210 output follows", "waiting")
	within(t, "the verb", f.began)
	d := f.known(t) // does not wait for it
	d.send("echo b\n")
	d.want("210 ...", "b", ".", "250 done")
	f.proceed <- struct{}{}
	for line := c.line(); line != "250 done"; line = c.line() {
	}
	got := make([]byte, want.Len())
	if _, err := io.ReadFull(c.r, got); err != nil || string(got) != want.String() {
		t.Errorf("answers differ (%v)", err)
	}
	// Half closed, it is answered to the end.
	c.send("echo a\nwait b\necho c\necho half a line")
	c.Conn.(*net.TCPConn).CloseWrite()
	within(t, "the verb", f.began)
	f.proceed <- struct{}{}
	rest, err := io.ReadAll(c.r)
	if text := string(rest); err != nil || !strings.Contains(text, "\nwaited\n.\n250 done\n210 output follows\nc\n.\n250 done\n") || strings.Contains(text, "half") {
		t.Errorf("got %q, %v", rest, err)
	}
}

// A client that goes ends what it has asked for.
func TestGone(t *testing.T) {
	f := newFarm(t, func(o *Options) { o.Limits.Beat = 10 * time.Millisecond }).listen(t)
	c := f.known(t)
	c.send("wait a\n")
	within(t, "the verb", f.began)
	for line := c.line(); !strings.HasPrefix(line, "100 "); line = c.line() { // signs of life
	}
	c.Close()
	if err := within(t, "the end of the verb", f.ended); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	c = f.known(t)
	c.send("wait b\n")
	within(t, "the verb", f.began)
	c.Conn.(*net.TCPConn).SetLinger(0) // with a reset
	c.Close()
	within(t, "the end of the verb", f.ended)
}

// A client that does not read holds up nobody else, and is given up.
func TestSlowReader(t *testing.T) {
	f := newFarm(t, func(o *Options) { o.Limits.Stall = 5 * time.Second }).listen(t)
	c := f.known(t)
	c.send("much 10000000\n") // 1 GB
	c.want("210 ...")
	d := f.known(t)
	for i := range 50 {
		d.send("echo a\n")
		d.want("210 ...", "a", ".", "250 done")
		if i == 0 {
			within(t, "the end of who does not read", f.ended)
		}
	}
}

func TestInput(t *testing.T) {
	f := newFarm(t, func(o *Options) { o.Limits.Rate = 1e9 }).listen(t)
	c := f.known(t)
	ask := "354 send the input, and a line with a single dot after it"
	for _, tt := range []struct{ input, want string }{
		{".\n", "250 done\n"},
		{"a\n..\n...b\n\n.\n", "210 output follows\na\n..\n...b\n\n.\n250 done\n"},
		{".DATA 3\na\nb.data 0\n.DATA 2\r\n\n\nc\n.DATA 1\n.\n.\n", "210 output follows\na\nb\n\nc\n..\n.\n250 done\n"},
		{".DATA 1\n..\n", "211 output follows, without a line's end\n..\n.\n250 done\n"},
	} {
		c.send("cat\n")
		c.want(ask)
		c.send(tt.input)
		for _, want := range strings.SplitAfter(strings.TrimSuffix(tt.want, "\n"), "\n") {
			c.want(strings.TrimSuffix(want, "\n"))
		}
	}
	// What comes after the verb has ended is thrown away.
	c.send("sip\n")
	c.want(ask)
	c.send("abcd")
	c.want("210 ...", "enough", ".", "250 done")
	c.send("efgh\n.\necho z\n")
	c.want("210 ...", "z", ".", "250 done")
	// However much it is.
	c.send("sip\n")
	c.want(ask)
	c.send("abcd" + strings.Repeat("echo x\n", 100_000) + ".\necho y\n")
	c.want("210 ...", "enough", ".", "250 done", "210 ...", "y", ".", "250 done")
	// Cut off.
	c.send("sum\n")
	c.want(ask)
	c.send("abc\n.DATA 100\nabc")
	c.Conn.(*net.TCPConn).CloseWrite()
	c.want("551 sum: standard input was cut off")
	c.closed()
	for _, bad := range []string{".x\n", ".DATA\n", ".DATA -1\n", ".DATA +1\n", ".DATA 99999999999999999999\n", ".DATA 1073741825\n", "." + strings.Repeat("a", 100)} {
		c = f.known(t)
		c.send("sum\n")
		c.want(ask)
		c.send(bad)
		c.want("551 sum: input has a ...", "500 input has a ...")
		c.closed()
	}
}

// The client sends what it is given, and gets what is sent, byte for byte.
func TestClient(t *testing.T) {
	f := newFarm(t, nil).listen(t)
	c, err := Dial(t.Context(), "tcp://"+f.addr, "alice", Terminal{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	big := bytes.Repeat([]byte("line\r\n.\n..x\x00\xff"), 200_000)
	for _, in := range [][]byte{nil, []byte("a"), []byte(".\n"), []byte("\r"), []byte("\n\n"), big} {
		var out, errOut bytes.Buffer
		exit, err := c.Do(t.Context(), Call{Words: []string{"cat"}, In: bytes.NewReader(in), Out: &out, Err: &errOut})
		if exit != 0 || err != nil || !bytes.Equal(out.Bytes(), in) || errOut.Len() > 0 {
			t.Errorf("%d bytes come back as %d, exit %d, %v, %q", len(in), out.Len(), exit, err, errOut.String())
		}
	}
	for _, tt := range []struct {
		words       []string
		exit        int
		out, errOut string
	}{
		{[]string{"say", `out:a\n`, `err:b\nc`, "out:d"}, 0, "a\nd", "b\nc\n"},
		{[]string{"fail", "3"}, 3, "", "quarry: fail: as asked\n"},
		{[]string{"fail", "5"}, 5, "", "quarry: fail: as asked\n"},
		{[]string{"silent", "6"}, 6, "", ""},
		{[]string{"echo", "a b", "", "it's", `"\`, "$x"}, 0, "a b\n\nit's\n\"\\\n$x\n", ""},
	} {
		var out, errOut bytes.Buffer
		exit, err := c.Do(t.Context(), Call{Words: tt.words, Out: &out, Err: &errOut})
		if exit != tt.exit || err != nil || out.String() != tt.out || errOut.String() != tt.errOut {
			t.Errorf("%q: exit %d, %v, %q, %q", tt.words, exit, err, out.String(), errOut.String())
		}
	}
	var reply *Reply
	if _, err := c.Do(t.Context(), Call{Words: []string{"@x"}}); !errors.As(err, &reply) || reply.ExitCode() != exitUsage {
		t.Errorf("a line that is none: %v", err)
	}
	if _, err := c.Do(t.Context(), Call{Words: []string{"echo", strings.Repeat("x", maxLine)}}); !errors.As(err, &reply) || reply.ExitCode() != exitUsage {
		t.Errorf("a line that is too long: %v", err)
	}
	ctx, stop := context.WithCancel(t.Context())
	go func() {
		<-f.began
		stop()
	}()
	if _, err := c.Do(ctx, Call{Words: []string{"wait"}}); !errors.Is(err, context.Canceled) {
		t.Errorf("a call that is given up: %v", err)
	}
	within(t, "the end of the verb", f.ended)
	f.forget("alice")
	if _, err := Dial(t.Context(), "tcp://"+f.addr, "alice", Terminal{}); !errors.As(err, &reply) || reply.ExitCode() != exitForbidden {
		t.Errorf("a token that is unknown: %v", err)
	}
	gone := new(Unreachable)
	if _, err := Dial(t.Context(), "unix://"+filepath.Join(t.TempDir(), "none"), "", Terminal{}); !errors.As(err, &gone) || gone.ExitCode() != exitUnreachable {
		t.Errorf("no farm: %v", err)
	}
	for _, bad := range []string{"", "localhost:1", "http://localhost:1", "tcp://localhost", "tcp://localhost:1/x", "unix://x/y", "tcp://localhost:1?pin=x",
		"tls://localhost:1?ca=/none", "tls://localhost:1?x=y", "tcp://192.0.2.1:6694", "tcp://farm.example.org:6694"} {
		if _, err := Dial(t.Context(), bad, "alice", Terminal{}); !errors.As(err, &reply) || reply.ExitCode() != exitUsage {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
