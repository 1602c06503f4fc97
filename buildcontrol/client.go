package buildcontrol

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Client is a build program's side of a connection.
type Client struct {
	conn net.Conn
	jobs chan int
	once sync.Once

	mu  sync.Mutex
	err error
}

// network takes an address apart as BUILDCONTROLADDR has it: what has a slash, or
// no colon, is the path of a Unix socket; the rest is host:service.
func network(addr string) (network, address string) {
	if strings.Contains(addr, "/") || !strings.Contains(addr, ":") {
		return "unix", addr
	}
	return "tcp", addr
}

// Dial connects to a server and shows it a token. A token that the server does
// not know ends the connection without a word.
func Dial(ctx context.Context, addr, token string) (*Client, error) {
	if addr == "" || token == "" || strings.ContainsAny(token, "\r\n") {
		return nil, errors.New("build control needs the address of a server and a token, number-hash")
	}
	var d net.Dialer
	net, address := network(addr)
	conn, err := d.DialContext(ctx, net, address)
	if err != nil {
		return nil, fmt.Errorf("build control: %w", err)
	}
	conn.SetWriteDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(conn, token+"\r\n"); err != nil {
		conn.Close()
		return nil, fmt.Errorf("build control: the token cannot be sent: %w", err)
	}
	c := &Client{conn: conn, jobs: make(chan int, 1)}
	go c.read()
	return c, nil
}

// Jobs gives the numbers of jobs that the server sets, none below 0 and none
// above MaxJobs. One that was not taken yet is replaced by the next. The channel
// is closed with the connection.
func (c *Client) Jobs() <-chan int { return c.jobs }

// Err says why Jobs was closed; nil while it is not, and after Close.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection.
func (c *Client) Close() error {
	var err error
	c.once.Do(func() { err = c.conn.Close() })
	return err
}

func (c *Client) read() {
	defer close(c.jobs)
	defer c.Close()
	var kept []byte
	buffer := make([]byte, 512)
	for {
		n, err := c.conn.Read(buffer)
		kept = append(kept, buffer[:n]...)
		for {
			line, rest, ok := cut(kept)
			if !ok {
				break
			}
			kept = rest
			if len(line) > 0 && !c.take(string(line)) {
				c.fail(errors.New("build control: the server sends something else than numbers of jobs"))
				return
			}
		}
		switch {
		case err == nil && len(kept) <= maxLine:
			continue
		case err == nil:
			err = errors.New("the server sends lines without end")
		case errors.Is(err, net.ErrClosed):
			return
		case errors.Is(err, io.EOF):
			err = errors.New("the server has closed the connection")
		}
		c.fail(fmt.Errorf("build control: %w", err))
		return
	}
}

// take hands on a number; only the newest waits.
func (c *Client) take(line string) bool {
	n, ok := parse(line)
	if !ok || n < 0 {
		return false
	}
	select {
	case <-c.jobs:
	default:
	}
	c.jobs <- min(n, MaxJobs) // has room: nobody else sends
	return true
}

func (c *Client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
}

// Listen opens an address as BUILDCONTROLADDR has it: a path, host:service, or
// :service for all interfaces. A host with several addresses is listened to at
// each. A Unix socket is its owner's alone; one left over by a server that was
// killed is taken over, one that answers is an error.
func Listen(ctx context.Context, addr string) ([]net.Listener, error) {
	kind, address := network(addr)
	if kind == "unix" {
		l, err := listenUnix(ctx, address)
		return []net.Listener{l}, err
	}
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("address %q: write a path with a slash, or host:service: %w", addr, err)
	}
	hosts := []string{""}
	if host != "" {
		if hosts, err = net.DefaultResolver.LookupHost(ctx, host); err != nil {
			return nil, err
		}
	}
	var all []net.Listener
	var errs []error
	var c net.ListenConfig
	for _, h := range hosts {
		l, err := c.Listen(ctx, "tcp", net.JoinHostPort(h, service))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, l)
	}
	if len(all) == 0 {
		return nil, errors.Join(errs...)
	}
	return all, nil
}

func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	if len(path) > 107 {
		return nil, fmt.Errorf("socket path %s is longer than the 107 bytes that Linux allows: choose a shorter one", path)
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("socket %s is answered: another server has it, stop it first", path)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("%s is there and no socket: choose another path, or remove it", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("socket %s is left over and cannot be removed: %w", path, err)
	}
	// The socket's own mode is that of its name: umask(2) would be that of all
	// files that are made meanwhile.
	own := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) }); cerr != nil {
			return cerr
		}
		return err
	}}
	return own.Listen(ctx, "unix", path)
}
