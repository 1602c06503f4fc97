package protocol

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
)

func TestLimits(t *testing.T) {
	f := newFarm(t, func(o *Options) {
		o.Limits.Rate, o.Limits.Burst = 1e-9, 10
		o.Limits.PerAddress, o.Limits.Strangers = 6, 3
		o.Limits.Running, o.Limits.PerUser = 3, 2
	}).listen(t)
	// Too long a line.
	c := f.dial(t)
	c.send(strings.Repeat("x", maxLine+1))
	c.want("200 ...", "500 line has more than 8258 bytes: goodbye")
	c.closed()
	f.left(t, 0)
	// Too many that show no token, and then too many altogether.
	var strangers []*talker
	for range 3 {
		c := f.dial(t)
		c.want("200 ...")
		strangers = append(strangers, c)
	}
	c = f.dial(t)
	c.want("421 too many connections that have shown no token: try again later")
	c.closed()
	for _, c := range strangers {
		c.send("AUTH alice\n")
		c.want("235 ...")
	}
	all := append(strangers, f.known(t), f.known(t), f.known(t))
	c = f.dial(t)
	c.want("421 too many connections from your address: try again later")
	c.closed()
	// Too much under way, of one person and of all.
	f.know("bob", "bob")
	all[5].send("AUTH bob\n")
	all[5].want("235 ...")
	for _, c := range all[:2] {
		c.send("wait\n")
		within(t, "the verb", f.began)
	}
	all[3].send("echo a\n")
	all[3].want("450 alice has too much going on already: ...")
	all[5].send("wait\n")
	within(t, "the verb", f.began)
	all[4].send("AUTH bob\necho a\n")
	all[4].want("235 ...", "450 too much is going on: ...")
	for range 3 {
		f.proceed <- struct{}{}
	}
	// Too fast: told so, and in the end no more.
	c = all[2]
	c.send(strings.Repeat("NOOP\n", 100))
	for range 9 { // and AUTH
		c.want("250 done")
	}
	for range 10 {
		c.want("450 too fast: ...")
	}
	c.want("421 far too fast: goodbye")
	c.closed()
}

// stalled is a connection on a machine that has no time between the setting of a
// deadline and what it is for.
type stalled struct{ *net.TCPConn }

func (s stalled) SetWriteDeadline(at time.Time) error {
	time.Sleep(time.Until(at))
	return s.TCPConn.SetWriteDeadline(at)
}

// Who is turned away is told why, however slow the machine is.
func TestTurnAway(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := (&farm{addr: l.Addr().String()}).dial(t)
	theirs, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	turnAway(stalled{theirs.(*net.TCPConn)}, "too many connections")
	c.want("421 too many connections: try again later")
	c.closed()
}

func TestConnections(t *testing.T) {
	f := newFarm(t, func(o *Options) { o.Limits.Connections = 2 }).listen(t)
	a, b := f.known(t), f.known(t)
	c := f.dial(t)
	c.want("421 too many connections: try again later")
	c.closed()
	a.Close()
	f.left(t, 1)
	f.known(t)
	b.send("NOOP\n")
	b.want("250 done")
}

// Those who say nothing are told why it ends.
func TestSilence(t *testing.T) {
	f := newFarm(t, func(o *Options) { o.Limits.AuthTime = 10 * time.Millisecond }).listen(t)
	c := f.dial(t)
	c.want("200 ...", "421 no token was shown in 10 ms: goodbye")
	c.closed()
	f = newFarm(t, func(o *Options) { o.Limits.Idle = 10 * time.Millisecond }).listen(t)
	c = f.dial(t)
	c.send("AUTH alice\nhalf a li")
	c.want("200 ...", "235 ...", "421 no line has come in 10 ms: goodbye")
	c.closed()
}

func TestShutdown(t *testing.T) {
	f := newFarm(t, nil).listen(t)
	idle, stranger, busy, owes, asker := f.known(t), f.dial(t), f.known(t), f.known(t), f.known(t)
	stranger.want("200 ...")
	busy.send("wait a\necho b\n")
	within(t, "the verb", f.began)
	asker.send("@x wait c\n")
	within(t, "the verb", f.began)
	owes.send("sum\n")
	owes.want("354 ...")
	if err := f.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	const down = "421 going down: connect again when the farm is back"
	idle.want(down)
	idle.closed()
	stranger.want(down)
	stranger.closed()
	busy.want("210 ...", "waiting", ".", down)
	busy.closed()
	owes.want(down)
	owes.closed()
	asker.want("210 ...", "waiting", ".", down)
	asker.closed()
}

// The Unix socket knows its callers.
func TestUnix(t *testing.T) {
	f := newFarm(t, func(o *Options) {
		o.Peer = func(*net.UnixConn) (quarry.Identity, error) {
			return quarry.Identity{Packager: quarry.Packager{User: "local", Key: "local socket"}, Role: quarry.RoleAdmin}, nil
		}
	})
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- f.Serve(l) }()
	c, err := Dial(t.Context(), "unix://"+path, "", Terminal{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var out strings.Builder
	if exit, err := c.Do(t.Context(), Call{Words: []string{"whoami"}, Out: &out}); exit != 0 || err != nil || !strings.HasPrefix(out.String(), "local ") {
		t.Errorf("exit %d, %v: %s", exit, err, out.String())
	}
	// It may become somebody else.
	d, err := Dial(t.Context(), "unix://"+path, "alice", Terminal{TTY: true, Width: 7, Color: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	out.Reset()
	if exit, err := d.Do(t.Context(), Call{Words: []string{"whoami"}, Out: &out}); exit != 0 || err != nil || out.String() != "alice {TTY:true Width:7 Height:0 Color:true}\n" {
		t.Errorf("exit %d, %v: %s", exit, err, out.String())
	}
	if err := f.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := within(t, "the server", done); err != nil {
		t.Error(err)
	}
}

// The same line with the same id is done once, whatever becomes of the connection.
func TestRequests(t *testing.T) {
	f := newFarm(t, nil).listen(t)
	c := f.known(t)
	first := []string{"210 output follows", "1", ".", "250 done"}
	c.send("@a count x\n")
	c.want(first...)
	c.send("@a count x\n")
	c.want(append([]string{"141 this was asked before, ..."}, first...)...)
	c.send("@a   'count' x\n") // the same words
	c.want(append([]string{"141 ..."}, first...)...)
	c.send("@a count y\n@b count x\n@f fail 3\n@f fail 3\n")
	c.want("540 request id was used for other words: ...", "210 ...", "2", ".", "250 done", "553 fail: as asked", "141 ...", "553 fail: as asked")
	// Another token knows nothing of it.
	f.know("other", "alice")
	c.send("AUTH other\n@a count x\n")
	c.want("235 ...", "210 ...", "3", ".", "250 done")
	// Cut off in the middle, it goes on; who asks again waits for it.
	c = f.known(t)
	c.send("@w wait w\n")
	c.want("210 ...", "waiting")
	within(t, "the verb", f.began)
	c.Close()
	d, e := f.known(t), f.known(t)
	d.send("@w wait w\n")
	e.send("@w wait other\n")
	e.want("540 ...")
	f.proceed <- struct{}{}
	d.want("141 ...", "210 ...", "waiting", "waited", ".", "250 done")
	if n := f.times("w"); n != 1 {
		t.Errorf("it ran %d times", n)
	}
	// Input is asked for once.
	e.send("@i cat\n")
	e.want("354 ...")
	e.send("abc\n.\n@i cat\n")
	e.want("210 ...", "abc", ".", "250 done", "141 ...", "210 ...", "abc", ".", "250 done")
	// Too long to be kept whole: the status is all the same.
	e.send("@m much 10000\n")
	for line := e.line(); line != "250 done"; line = e.line() {
	}
	e.send("@m much 10000\n")
	e.want("141 ...")
	kept, last := 0, ""
	for line := e.line(); line != "250 done"; line = e.line() {
		kept, last = kept+len(line)+1, line
	}
	if kept > 256<<10+200 || kept < 64<<10 || !strings.HasPrefix(last, "142 ") {
		t.Errorf("%d bytes are kept, and the last line is %q", kept, last)
	}
	for _, id := range []string{"-x", ".x", "x y", "x/y", "é", strings.Repeat("x", 65), `'x'`} {
		e.send("@" + id + " count z\n")
		if line := e.line(); id != "x y" && !strings.HasPrefix(line, "501 ") || id == "x y" && line != "552 y: unknown" {
			t.Errorf("request id %q: %s", id, line)
		}
	}
}

// The outcome is known after a restart, and what was under way is known not to be.
func TestRequestsRestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "requests")
	f := newFarm(t, func(o *Options) { o.Requests = dir }).listen(t)
	c := f.known(t)
	c.send("@a count x\n")
	c.want("210 ...", "1", ".", "250 done")
	c.send("@w wait w\n")
	within(t, "the verb", f.began)
	if err := f.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := os.WriteFile(filepath.Join(dir, ".new-123"), []byte("half"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	f = newFarm(t, func(o *Options) { o.Requests = dir }).listen(t)
	c = f.known(t)
	c.send("@a count x\n@w wait w\n@w wait x\n")
	c.want("141 ...", "210 ...", "1", ".", "250 done", "541 the farm was stopped in the middle of this, ...", "540 ...")
	if f.times("x") != 0 || f.times("w") != 0 {
		t.Error("something was done again")
	}
	if _, err := os.Stat(filepath.Join(dir, ".new-123")); err == nil {
		t.Error("a file of a write that was cut off is still there")
	}
	files, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	if err != nil || len(files) != 2 {
		t.Errorf("files %q, %v", files, err)
	}
	for _, file := range files { // nobody else reads what was answered
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, info.Mode(), err)
		}
		if err := os.WriteFile(file, []byte("damaged"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.send("@a count x\n")
	c.want("541 ...")
}

// What is old, or too much, is forgotten.
func TestRequestsForgotten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "requests")
	change := func(o *Options) { o.Requests, o.Limits.KeepCount = dir, 3 }
	f := newFarm(t, change).listen(t)
	c := f.known(t)
	c.send("@w wait w\n")
	within(t, "the verb", f.began)
	d := f.known(t)
	for i := range 5 {
		d.send(fmt.Sprintf("@a%d count x\n", i))
		d.want("210 ...", fmt.Sprint(i+1), ".", "250 done")
	}
	count := func() int {
		files, err := filepath.Glob(filepath.Join(dir, "*", "*.json"))
		if err != nil {
			t.Fatal(err)
		}
		return len(files)
	}
	if n := count(); n > 4 { // and the one under way
		t.Errorf("%d outcomes are kept", n)
	}
	f.proceed <- struct{}{}
	c.want("210 ...", "waiting", "waited", ".", "250 done")
	d.send("@a4 count x\n@a0 count x\n")
	d.want("141 ...", "210 ...", "5", ".", "250 done", "210 ...", "6", ".", "250 done")
	files, err := filepath.Glob(filepath.Join(dir, "*", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		old := time.Now().Add(-25 * time.Hour)
		if err := os.Chtimes(file, old, old); err != nil {
			t.Fatal(err)
		}
	}
	newFarm(t, change)
	if n := count(); n != 0 {
		t.Errorf("%d outcomes of the day before are kept", n)
	}
}

// A client that was cut off learns the outcome, also from a farm that was killed
// meanwhile.
func TestReconnect(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "requests")
	change := func(o *Options) { o.Requests = dir }
	path := filepath.Join(t.TempDir(), "s")
	serve := func() *farm {
		f := newFarm(t, change)
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		go f.Serve(l)
		return f
	}
	f := serve()
	c, err := Dial(t.Context(), "unix://"+path, "alice", Terminal{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	type result struct {
		exit int
		err  error
		out  string
	}
	do := func(words ...string) chan result {
		done := make(chan result, 1)
		go func() {
			var out strings.Builder
			exit, err := c.Do(t.Context(), Call{Words: words, ID: NewID(), Out: &out})
			done <- result{exit, err, out.String()}
		}()
		return done
	}
	done := do("wait", "w")
	within(t, "the verb", f.began)
	for cut := false; !cut; time.Sleep(time.Millisecond) {
		f.Server.mu.Lock()
		for se := range f.sessions {
			se.conn.Close()
			cut = true
		}
		f.Server.mu.Unlock()
	}
	f.proceed <- struct{}{}
	if r := within(t, "the call", done); r.exit != 0 || r.err != nil || r.out != "waiting\nwaited\n" || f.times("w") != 1 {
		t.Errorf("%+v, and it ran %d times", r, f.times("w"))
	}
	// The farm goes down in the middle, and comes back at the same address.
	done = do("wait", "v")
	within(t, "the verb", f.began)
	if err := f.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := serve()
	reply := new(Reply)
	if r := within(t, "the call", done); !errors.As(r.err, &reply) || reply.Code != codeUncertain || r.out != "waiting\n" || again.times("v") != 0 {
		t.Errorf("%+v", r)
	}
	if r := within(t, "the call", do("count", "x")); r.exit != 0 || r.err != nil || r.out != "1\n" {
		t.Errorf("%+v", r)
	}
	// It does not come back.
	again.Shutdown(context.Background())
	c.Patience = time.Millisecond
	gone := new(Unreachable)
	if r := within(t, "the call", do("count", "x")); !errors.As(r.err, &gone) {
		t.Errorf("%+v", r)
	}
}
