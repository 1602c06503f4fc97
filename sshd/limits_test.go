package sshd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/hooks"
	"github.com/Morphux/quarry/hooks/hooktest"
	"github.com/Morphux/quarry/internal/testpkg"
	gossh "golang.org/x/crypto/ssh"
)

// TestStrangers: who shows no key keeps no place from others for long.
func TestStrangers(t *testing.T) {
	raw := func(f *farm) net.Conn {
		c, err := net.Dial("tcp", f.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetReadDeadline(time.Now().Add(patience))
		return c
	}
	first := func(c net.Conn) string {
		line, err := bufio.NewReader(c).ReadString('\n')
		if err != nil {
			t.Errorf("no greeting: %v", err)
		}
		return line
	}
	empty := func(f *farm) func() bool {
		return func() bool {
			f.gate.mu.Lock()
			defer f.gate.mu.Unlock()
			return f.gate.conns == 0 && f.gate.startups == 0 && len(f.gate.byAddr) == 0
		}
	}
	f := newFarm(t, func(o *Options) { o.Limits = Limits{PerAddress: 3, AuthTime: time.Hour} })
	var open []net.Conn
	for range 3 {
		c := raw(f)
		if line := first(c); line != "SSH-2.0-Quarry\r\n" {
			t.Errorf("server says %q", line)
		}
		open = append(open, c)
	}
	if line := first(raw(f)); !strings.Contains(line, "too many connections from your address") {
		t.Errorf("server says %q", line)
	}
	for _, c := range open {
		c.Close()
	}
	eventually(t, "counting down", empty(f))

	f = newFarm(t, func(o *Options) { o.Limits = Limits{PerAddress: 1, AuthTime: 10 * time.Millisecond} })
	if _, err := io.Copy(io.Discard, raw(f)); err != nil {
		t.Errorf("a silent connection is kept: %v", err)
	}
	eventually(t, "counting down", empty(f))
}

// stalled is a connection on a machine that has no time between the setting of a
// deadline and what it is for.
type stalled struct{ *net.TCPConn }

func (s stalled) SetDeadline(at time.Time) error {
	time.Sleep(time.Until(at))
	return s.TCPConn.SetDeadline(at)
}

// TestTurnAway: who is turned away is told why, however slow the machine is.
func TestTurnAway(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ours, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	theirs, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	go turnAway(stalled{theirs.(*net.TCPConn)}, "too many connections")
	if said, err := io.ReadAll(ours); string(said) != "quarry: too many connections: try again later\r\n" {
		t.Errorf("the client reads %q, %v", said, err)
	}
}

// TestLimits: there are only so many commands at once, on a connection and in all.
func TestLimits(t *testing.T) {
	block := make(chan bool)
	f := newFarm(t, func(o *Options) {
		o.Limits = Limits{Sessions: 2, PerConn: 2}
		o.Verbs = func(ctx context.Context, _ quarry.Identity, _ []string, _ io.Reader, _, _ io.Writer, _ Terminal) int {
			select {
			case <-block:
			case <-ctx.Done():
			}
			return 0
		}
	})
	alice := f.person("alice", quarry.RoleReader)
	c := f.dial(alice)
	var running []*gossh.Session
	for range 2 {
		se, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		if err := se.Start("wait"); err != nil {
			t.Fatal(err)
		}
		running = append(running, se)
	}
	if se, err := c.NewSession(); err == nil {
		se.Close()
		t.Error("more sessions than one connection may have")
	}
	eventually(t, "start", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.sessions == 2 })
	if se, err := f.dial(alice).NewSession(); err != nil {
		t.Error(err)
	} else {
		var errOut bytes.Buffer
		se.Stderr = &errOut
		if err := se.Run("wait"); err == nil || !strings.Contains(errOut.String(), "too much is going on") {
			t.Errorf("more sessions than all may have: %v, %s", err, errOut.String())
		}
	}
	close(block)
	for _, se := range running {
		if err := se.Wait(); err != nil {
			t.Error(err)
		}
	}
}

// TestPerUser: one who follows a thousand builds leaves room for others.
func TestPerUser(t *testing.T) {
	f := newFarm(t, func(o *Options) {
		o.Limits = Limits{PerUser: 3}
		o.Verbs = func(ctx context.Context, _ quarry.Identity, argv []string, _ io.Reader, _, _ io.Writer, _ Terminal) int {
			if argv[0] == "wait" {
				<-ctx.Done()
			}
			return 0
		}
	})
	alice, bob := f.person("alice", quarry.RoleReader), f.person("bob", quarry.RoleReader)
	run := func(c *gossh.Client) error {
		se, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		defer se.Close()
		var errOut bytes.Buffer
		se.Stderr = &errOut
		err = se.Run("status")
		return errors.Join(err, errors.New(errOut.String()))
	}
	c := f.dial(alice)
	for range 3 {
		se, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		if err := se.Start("wait"); err != nil {
			t.Fatal(err)
		}
	}
	mine := func(n int) func() bool {
		return func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.byUser["alice"] == n }
	}
	eventually(t, "start", mine(3))
	if err := run(f.dial(alice)); !strings.Contains(err.Error(), "alice has too much going on") {
		t.Errorf("a fourth command: %v", err)
	}
	if err := run(f.dial(bob)); strings.TrimSpace(err.Error()) != "" {
		t.Errorf("bob is kept out: %v", err)
	}
	c.Close()
	eventually(t, "end", mine(0))
	if err := run(f.dial(alice)); strings.TrimSpace(err.Error()) != "" {
		t.Errorf("alice is kept out: %v", err)
	}
}

// TestShutdown: a push that is under way may end; one that only follows, and
// verbs, are let go.
func TestShutdown(t *testing.T) {
	var cancelled atomic.Bool
	f := newFarm(t, func(o *Options) {
		o.Verbs = func(ctx context.Context, _ quarry.Identity, _ []string, _ io.Reader, out, _ io.Writer, _ Terminal) int {
			fmt.Fprintln(out, "begun")
			<-ctx.Done()
			cancelled.Store(true)
			return 0
		}
	})
	alice := f.person("alice", quarry.RoleMaintainer)
	following := make(chan bool, 2)
	f.daemon.OnPush(func(hooks.Push) ([]quarry.Build, error) { return []quarry.Build{build(7, "x86_64")}, nil })
	f.daemon.OnFollow(func(ctx context.Context, _ int64, _ io.Writer) error {
		following <- true
		<-ctx.Done()
		return nil
	})
	dir := testpkg.Init(t, "hello")
	push := make(chan string, 1)
	go func() {
		out, err := f.git(alice, dir, "push", "-o", "follow", f.url("hello"), "HEAD:hello-1.0")
		push <- fmt.Sprintf("%v\n%s", err, out)
	}()
	within(t, "following", following)
	se, err := f.dial(alice).NewSession()
	if err != nil {
		t.Fatal(err)
	}
	out, _ := se.StdoutPipe()
	if err := se.Start("wait"); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := f.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if !cancelled.Load() {
		t.Error("the verb goes on")
	}
	if got := within(t, "the push", push); !strings.HasPrefix(got, "<nil>") || !strings.Contains(got, "not followed any longer: the builds go on") {
		t.Errorf("the push ended with %s", got)
	}
	if _, err := f.l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the port is still open: %v", err)
	}
}

// TestShutdownFirst: a server that is stopped before it has begun does not begin.
func TestShutdownFirst(t *testing.T) {
	s, err := New(Options{HostKey: filepath.Join(t.TempDir(), "key"), Home: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	if err := within(t, "the end of the server", served); err != nil {
		t.Error(err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the port is still open: %v", err)
	}
}

// TestShutdownKills: git that does not end is ended.
func TestShutdownKills(t *testing.T) {
	f := newFarm(t, nil)
	c := f.dial(f.person("alice", quarry.RoleMaintainer))
	se, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	out, _ := se.StdoutPipe()
	in, _ := se.StdinPipe() // held open
	defer in.Close()
	if err := se.Start("git-receive-pack hello.git"); err != nil {
		t.Fatal(err)
	}
	if _, err := readPkts(bufio.NewReader(out)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // it has had its time
	if err := f.Shutdown(ctx); err == nil || !strings.Contains(err.Error(), "must be pushed again") {
		t.Errorf("shutdown: %v", err)
	}
	if list := hooktest.Working(t, f.dir); len(list) > 0 {
		t.Errorf("left: %v", list)
	}
}

// TestStall: git that moves nothing is ended, although its client is there.
func TestStall(t *testing.T) {
	f := newFarm(t, func(o *Options) { o.Limits.Stall = 300 * time.Millisecond })
	c := f.dial(f.person("alice", quarry.RoleMaintainer))
	se, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	in, _ := se.StdinPipe()
	defer in.Close()
	var errOut bytes.Buffer
	se.Stderr = &errOut
	done := make(chan error, 1)
	go func() { done <- se.Run("git-receive-pack hello.git") }()
	if err := within(t, "end of git", done); err == nil || !strings.Contains(errOut.String(), "nothing has moved for too long") {
		t.Errorf("%v, %s", err, errOut.String())
	}
}

// TestVerbStall: a verb whose client reads nothing is ended.
func TestVerbStall(t *testing.T) {
	ended := make(chan error, 1)
	f := newFarm(t, func(o *Options) {
		o.Limits.Stall = 300 * time.Millisecond
		o.Verbs = func(ctx context.Context, _ quarry.Identity, _ []string, _ io.Reader, out, _ io.Writer, _ Terminal) int {
			var err error
			for err == nil {
				_, err = out.Write(make([]byte, 1<<16))
			}
			ended <- err
			return 0
		}
	})
	client := f.dial(f.person("alice", quarry.RoleReader))
	session, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := session.StdoutPipe(); err != nil { // and nobody reads it
		t.Fatal(err)
	}
	if err := session.Start("status"); err != nil {
		t.Fatal(err)
	}
	within(t, "the end of a verb that waits for its client", ended)
}
