package podman

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containers/podman/v4/pkg/bindings"
	"github.com/containers/podman/v4/pkg/errorhandling"
	"github.com/sirupsen/logrus"
)

// ErrGone says that the podman service ended, or that what was asked of it was
// lost with it. It is the farm's fault, never a recipe's: the same work can be
// tried again.
var ErrGone = errors.New("the podman service is gone")

// Config says how to reach podman.
type Config struct {
	State  string // the daemon's state folder; everything goes below State/podman
	URI    string // e.g. unix:///run/podman/podman.sock; empty: run an own service
	Podman string // the program; empty: podman from PATH

	// Runtime is a name or path, e.g. runc. Empty: the first of crun and runc
	// that really runs a container on this machine.
	Runtime string
	// Driver is overlay, fuse-overlayfs or vfs. Empty: the first that works.
	Driver string
	// ImageStores are further storage folders, only read, whose images can be
	// used as if they were here.
	ImageStores []string
	Log         *slog.Logger // nil: nothing is logged
}

// Conn is a podman API service that is kept going. All its methods may be used
// from several goroutines.
type Conn struct {
	cfg   Config
	log   *slog.Logger
	dir   string   // State/podman
	dirFD *os.File // of dir: makes a short path to the socket
	lock  *os.File
	farm  string
	uri   string
	setup *setup // how the own service runs; nil with a given URI

	seccomp string // host path of the profile for workspaces

	done chan struct{} // closed when the keeper has ended
	quit chan struct{} // closed by Close

	mu     sync.Mutex // guards the following
	up     chan struct{}
	client context.Context // of the bindings; nil while down
	gen    int64           // rises with every service that came up
	pid    int             // of the own service's first process
	err    error           // why the service could not be started lately
	closed bool
}

var discard = slog.New(slog.DiscardHandler)

// Start finds the service of a given URI, or starts one of its own and keeps
// it going until Close. It returns when the service answers.
func Start(ctx context.Context, cfg Config) (_ *Conn, err error) {
	// The bindings log through logrus; what matters comes back as errors.
	logrus.SetOutput(io.Discard)

	c := &Conn{cfg: cfg, log: cfg.Log, up: make(chan struct{}), quit: make(chan struct{}), done: make(chan struct{})}
	if c.log == nil {
		c.log = discard
	}
	state, err := filepath.Abs(cfg.State)
	if err != nil {
		return nil, fmt.Errorf("state folder %s: %w", cfg.State, err)
	}
	c.dir = filepath.Join(state, "podman")
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return nil, fmt.Errorf("podman's folder cannot be made: %w: give a state folder that may be written", err)
	}
	defer func() {
		if err != nil {
			c.release()
		}
	}()
	if c.farm, err = farmID(c.dir); err != nil {
		return nil, err
	}
	if c.seccomp, err = writeSeccomp(c.dir); err != nil {
		return nil, err
	}
	if c.seccomp == "" {
		c.log.Warn("there is no seccomp profile in /usr/share/containers or /etc/containers: podman's built-in one is used, which lets builds make namespaces")
	}
	if cfg.URI != "" {
		if !strings.HasPrefix(cfg.URI, "unix://") {
			return nil, fmt.Errorf("podman URI %q is not a Unix socket: give unix:///PATH, since workspaces are folders of this machine", cfg.URI)
		}
		c.uri = cfg.URI
		close(c.done)
		if err := c.connect(ctx); err != nil {
			return nil, fmt.Errorf("podman at %s does not answer: %w: start it with podman system service -t 0 %s", cfg.URI, err, cfg.URI)
		}
		return c, nil
	}
	if err := c.takeLock(ctx); err != nil {
		return nil, err
	}
	if c.dirFD, err = os.OpenFile(c.dir, os.O_RDONLY|syscall.O_DIRECTORY, 0); err != nil {
		return nil, fmt.Errorf("podman's folder cannot be opened: %w", err)
	}
	// A Unix socket's path has 107 bytes at most and the state folder's may be
	// longer; a path through the open folder is always short.
	c.uri = fmt.Sprintf("unix:///proc/self/fd/%d/%s", c.dirFD.Fd(), socketName)
	if c.setup, err = prepare(ctx, c); err != nil {
		return nil, err
	}
	first := make(chan error, 1)
	go c.keep(first)
	select {
	case err = <-first:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// keep runs the own service and starts it again when it dies.
func (c *Conn) keep(first chan<- error) {
	defer close(c.done)
	wait := 100 * time.Millisecond
	for {
		began := time.Now()
		svc, err := c.launch()
		if err != nil && first != nil {
			svc, err = c.relaunch(svc, err)
		}
		if first != nil {
			first <- err
			first = nil
			if err != nil {
				return
			}
		}
		if err == nil {
			select {
			case <-c.quit:
				svc.stop(5 * time.Second)
				return
			case <-svc.done:
			}
			c.down(nil)
			c.log.Warn("the podman service ended by itself: starting it again", "status", svc.status(), "last words", svc.tail())
		} else {
			c.down(err)
			c.log.Error("the podman service does not start: trying again", "error", err, "in", wait)
		}
		switch {
		case time.Since(began) > 10*time.Second:
			wait = 100 * time.Millisecond
		case err == nil:
			// It can start, so somebody or something kills it.
			wait = min(wait, 500*time.Millisecond)
		}
		select {
		case <-c.quit:
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, 5*time.Second)
	}
}

// await waits until the service that was just started answers.
func (c *Conn) await(svc *service) error {
	deadline := time.After(30 * time.Second)
	for {
		conn, err := net.Dial("unix", strings.TrimPrefix(c.uri, "unix://"))
		if err == nil {
			conn.Close()
			break
		}
		select {
		case <-svc.done:
			return fmt.Errorf("podman ended before it answered (%s): %s: run quarry doctor", svc.status(), svc.tail())
		case <-deadline:
			svc.stop(0)
			return fmt.Errorf("podman does not answer after 30 s: %s: run quarry doctor", svc.tail())
		case <-c.quit:
			svc.stop(0)
			return ErrGone
		case <-time.After(3 * time.Millisecond):
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := c.connect(ctx); err != nil {
		svc.stop(0)
		return fmt.Errorf("podman does not answer: %w: %s", err, svc.tail())
	}
	c.mu.Lock()
	c.pid = svc.cmd.Process.Pid
	c.mu.Unlock()
	return nil
}

func (c *Conn) connect(ctx context.Context) error {
	cl, err := bindings.NewConnection(ctx, c.uri)
	if err != nil {
		return err
	}
	// ctx ends with the caller; the client outlives it.
	cl = context.WithoutCancel(cl)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.client, c.err = cl, nil
	c.gen++
	close(c.up)
	return nil
}

func (c *Conn) down(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
	if c.client != nil {
		c.client, c.pid = nil, 0
		c.up = make(chan struct{})
	}
}

// Context returns a context for calls of podman's bindings, which ends with
// ctx. While the service is being started again it waits, 15 s at most.
func (c *Conn) Context(ctx context.Context) (context.Context, error) {
	timeout := time.NewTimer(15 * time.Second)
	defer timeout.Stop()
	for {
		c.mu.Lock()
		client, up, closed, last := c.client, c.up, c.closed, c.err
		c.mu.Unlock()
		if closed {
			return nil, fmt.Errorf("%w: it was shut down", ErrGone)
		}
		if client != nil {
			return &callContext{ctx, client}, nil
		}
		select {
		case <-up:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-c.quit:
		case <-timeout.C:
			if last != nil {
				return nil, fmt.Errorf("%w: %w", ErrGone, last)
			}
			return nil, ErrGone
		}
	}
}

// callContext ends with the caller's context and has the bindings' values.
type callContext struct {
	context.Context
	client context.Context
}

func (c *callContext) Value(key any) any {
	if v := c.client.Value(key); v != nil {
		return v
	}
	return c.Context.Value(key)
}

// Generation counts the services that came up. What ran under an earlier
// generation of an own service ended with it. With a given URI it stays 1.
func (c *Conn) Generation() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gen
}

// Lost reports whether a container that was started under the generation is
// gone because its service is.
func (c *Conn) Lost(gen int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.setup != nil && (c.gen != gen || c.client == nil)
}

// Farm is the name of this state folder's farm: letters and digits, made at
// random once. What podman keeps for it is labelled with it.
func (c *Conn) Farm() string { return c.farm }

// Own reports whether the service is run by this Conn.
func (c *Conn) Own() bool { return c.setup != nil }

// Runtime is the OCI runtime in use, e.g. runc, or empty with a given URI.
func (c *Conn) Runtime() string {
	if c.setup == nil {
		return ""
	}
	return filepath.Base(c.setup.runtime)
}

// Driver is the storage driver of the own service: overlay, fuse-overlayfs or
// vfs; empty with a given URI.
func (c *Conn) Driver() string {
	if c.setup == nil {
		return ""
	}
	return c.setup.driver
}

// ImageStores are the further storage folders of the own service, as the host
// sees them.
func (c *Conn) ImageStores() []string {
	if c.setup == nil {
		return nil
	}
	return slices.Clone(c.setup.stores)
}

// CgroupParent is where containers' groups belong.
func (c *Conn) CgroupParent() string {
	cg, _ := DetectCgroups()
	return cg.parent(c.farm)
}

// PID is the process id of the own service's first process, 0 while there is
// none. Killing it ends the service and all its containers.
func (c *Conn) PID() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pid
}

// HostPath turns a path as the own service sees it into the host's.
func (c *Conn) HostPath(path string) string {
	if c.setup == nil {
		return path
	}
	return c.setup.hostPath(path)
}

// Close ends the own service and with it every container that still runs. It
// may be called again.
func (c *Conn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		<-c.done
		return nil
	}
	c.closed = true
	c.mu.Unlock()
	close(c.quit)
	<-c.done
	c.release()
	return nil
}

func (c *Conn) release() {
	// Containers' monitors end a moment after them, and only with an own service
	// is it certain that they are gone by now.
	if cg, err := DetectCgroups(); err == nil {
		for range 20 {
			if cg.Sweep(c.farm); c.setup != nil || !cg.left(c.farm) {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	for _, f := range []*os.File{c.dirFD, c.lock} {
		if f != nil {
			f.Close()
		}
	}
}

// IsGone reports whether an error means that the podman service went away or
// cannot be reached, rather than that it answered with a refusal.
func IsGone(err error) bool {
	var model *errorhandling.ErrorModel
	var conflict *errorhandling.PodConflictErrorModel
	switch {
	case err == nil:
		return false
	case errors.Is(err, ErrGone):
		return true
	case errors.As(err, &model), errors.As(err, &conflict):
		return false
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return false
	}
	// No answer at all. What the error says need not be true: the bindings
	// repeat a request whose connection broke, with a body that is used up.
	var transport *url.Error
	if errors.As(err, &transport) {
		return true
	}
	var op *net.OpError
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &op) ||
		errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// Code is the HTTP status with which the service refused, 0 when err is no
// refusal of it.
func Code(err error) int {
	var model *errorhandling.ErrorModel
	if errors.As(err, &model) {
		return model.ResponseCode
	}
	return 0
}

// Dir is the folder of everything that podman keeps for this farm.
func (c *Conn) Dir() string { return c.dir }
