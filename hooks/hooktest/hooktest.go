// Package hooktest lets a test binary be the program that installed hooks run,
// and has a daemon for it to talk to: the far side of [hooks.Daemon], without a
// farm behind it.
package hooktest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/hooks"
)

// Main makes the process a hook, if it was started as one, and does not return
// then. TestMain calls it first.
func Main() {
	if len(os.Args) < 3 || os.Args[1] != "hook" {
		return
	}
	var s hooks.Settings
	fs := flag.NewFlagSet("hook", flag.ExitOnError)
	fs.StringVar(&s.Package, "package", "", "")
	fs.StringVar(&s.Socket, "socket", "", "")
	fs.StringVar(&s.Spool, "spool", "", "")
	fs.StringVar(&s.Channel, "channel", "", "")
	fs.Parse(os.Args[3:])
	os.Exit(hooks.Run(context.Background(), os.Args[2], s, os.Stdin, os.Stderr, dial))
}

// Binary is the path of this test binary.
func Binary(t testing.TB) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Working lists the processes that work in a folder or below it: git, and hooks.
func Working(t testing.TB, dir string) (list []string) {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		if cwd, err := os.Readlink(filepath.Join(p, "cwd")); err == nil && strings.HasPrefix(cwd, dir) {
			cmd, _ := os.ReadFile(filepath.Join(p, "cmdline"))
			list = append(list, strings.ReplaceAll(string(cmd), "\x00", " "))
		}
	}
	return list
}

type request struct {
	Push   *hooks.Push     `json:"push,omitempty"`
	Impact *hooks.Proposal `json:"impact,omitempty"`
	Follow int64           `json:"follow,omitempty"`
}

type reply struct {
	Log     []byte         `json:"log,omitempty"`
	Builds  []quarry.Build `json:"builds,omitempty"`
	Impact  hooks.Impact   `json:"impact,omitzero"`
	Refused string         `json:"refused,omitempty"`
	End     bool           `json:"end,omitempty"`
}

// Daemon answers hooks on a Unix socket, with nothing until it is told more.
type Daemon struct {
	Socket string

	l  net.Listener
	wg sync.WaitGroup
	mu sync.Mutex // guards the following
	// pushes are those that hooks told of.
	pushes []hooks.Push
	push   func(hooks.Push) ([]quarry.Build, error)
	impact func(context.Context, hooks.Proposal) (hooks.Impact, error)
	follow func(ctx context.Context, number int64, w io.Writer) error
}

// OnPush says how to answer pushes.
func (d *Daemon) OnPush(f func(hooks.Push) ([]quarry.Build, error)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.push = f
}

// OnImpact says how to answer those who ask what a push would cause. Until then
// it is nothing.
func (d *Daemon) OnImpact(f func(context.Context, hooks.Proposal) (hooks.Impact, error)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.impact = f
}

// OnFollow says how to answer those who follow a build.
func (d *Daemon) OnFollow(f func(ctx context.Context, number int64, w io.Writer) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.follow = f
}

// Listen starts a daemon that ends with the test.
func Listen(t testing.TB) *Daemon {
	t.Helper()
	// The folder of a test may be too long for a socket.
	dir, err := os.MkdirTemp("", "quarry")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d := &Daemon{Socket: filepath.Join(dir, "s")}
	if d.l, err = net.Listen("unix", d.Socket); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		d.Close()
		d.wg.Wait()
	})
	d.wg.Go(func() {
		for {
			c, err := d.l.Accept()
			if err != nil {
				return
			}
			d.wg.Go(func() { d.serve(ctx, c) })
		}
	})
	return d
}

// Close stops listening.
func (d *Daemon) Close() { d.l.Close() }

// Pushes are the pushes told of so far.
func (d *Daemon) Pushes() []hooks.Push {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]hooks.Push(nil), d.pushes...)
}

func (d *Daemon) serve(ctx context.Context, c net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	in, enc := bufio.NewReader(c), json.NewEncoder(c)
	line, err := in.ReadBytes('\n')
	var req request
	if err != nil || json.Unmarshal(line, &req) != nil {
		return
	}
	go func() { // the hook is gone
		io.Copy(io.Discard, in)
		cancel()
	}()
	r := reply{End: true}
	d.mu.Lock()
	onPush, onFollow, onImpact := d.push, d.follow, d.impact
	d.mu.Unlock()
	switch {
	case req.Push != nil:
		d.mu.Lock()
		d.pushes = append(d.pushes, *req.Push)
		d.mu.Unlock()
		if onPush != nil {
			if r.Builds, err = onPush(*req.Push); err != nil {
				r.Refused = err.Error()
			}
		}
	case req.Impact != nil:
		if onImpact != nil {
			if r.Impact, err = onImpact(ctx, *req.Impact); err != nil {
				r.Refused = err.Error()
			}
		}
	case onFollow != nil:
		if err := onFollow(ctx, req.Follow, writer{enc}); err != nil {
			r.Refused = err.Error()
		}
	}
	enc.Encode(r)
}

type writer struct{ enc *json.Encoder }

func (w writer) Write(p []byte) (int, error) { return len(p), w.enc.Encode(reply{Log: p}) }

type client struct{ socket string }

func dial(ctx context.Context, socket string) (hooks.Daemon, error) {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	return client{socket}, c.Close()
}

func (c client) Close() error { return nil }

func (c client) Pushed(ctx context.Context, p hooks.Push) (hooks.Answer, error) {
	r, err := c.call(ctx, request{Push: &p}, io.Discard)
	return hooks.Answer{Builds: r.Builds}, err
}

func (c client) Impact(ctx context.Context, p hooks.Proposal) (hooks.Impact, error) {
	r, err := c.call(ctx, request{Impact: &p}, io.Discard)
	return r.Impact, err
}

func (c client) Follow(ctx context.Context, number int64, w io.Writer) error {
	_, err := c.call(ctx, request{Follow: number}, w)
	return err
}

func (c client) call(ctx context.Context, req request, w io.Writer) (reply, error) {
	conn, err := net.Dial("unix", c.socket)
	if err != nil {
		return reply{}, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := json.NewEncoder(conn).Encode(req); err != nil {
		return reply{}, err
	}
	for dec := json.NewDecoder(conn); ; {
		var r reply
		if err := dec.Decode(&r); err != nil {
			return reply{}, fmt.Errorf("the daemon went away: %w", err)
		}
		if _, err := w.Write(r.Log); err != nil {
			return reply{}, err
		}
		switch {
		case r.Refused != "":
			return reply{}, &hooks.Refused{Err: errors.New(r.Refused)}
		case r.End:
			return r, nil
		}
	}
}
