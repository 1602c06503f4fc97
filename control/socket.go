package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/Morphux/quarry"
	"golang.org/x/sys/unix"
)

// The protocol of the Unix socket is one call per connection: a line of JSON
// that asks, then lines of JSON that answer, the last of which has exit.
type request struct {
	Args []string `json:"args"` // the verb and its arguments
	Term Terminal `json:"term"`
}

type reply struct {
	Out  []byte `json:"out,omitempty"` // standard output
	Err  []byte `json:"err,omitempty"` // standard error
	Exit *int   `json:"exit,omitempty"`
}

const maxRequest = 1 << 20 // bytes in a request line

// Listen opens the control socket. A socket left over by a daemon that was
// killed is taken over; one that answers is an error. The socket is for its
// owner, who could change the farm's files anyway; with a group (its name), for
// that too: its members may look, and hand pushes over as hooks do.
func Listen(path, group string) (*net.UnixListener, error) {
	if len(path) > 107 {
		return nil, fmt.Errorf("socket path %s is longer than the 107 bytes that Linux allows: choose a shorter state folder", path)
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("socket %s is answered: another quarry serves this state folder, stop it first", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("socket %s is left over and cannot be removed: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	old := syscall.Umask(0o077)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	syscall.Umask(old)
	if err != nil || group == "" {
		return l, err
	}
	g, err := user.LookupGroup(group)
	if err == nil {
		var gid int
		if gid, err = strconv.Atoi(g.Gid); err == nil {
			err = errors.Join(os.Chown(path, -1, gid), os.Chmod(path, 0o770))
		}
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("socket cannot be given to group %q: %w", group, err)
	}
	return l, nil
}

// Serve answers calls until ctx ends, then waits for those under way.
func Serve(ctx context.Context, l *net.UnixListener, verbs Table, log *slog.Logger) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var calls sync.WaitGroup
	defer calls.Wait()
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() || errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
				log.Warn("control socket cannot accept for now", "err", err)
				time.Sleep(100 * time.Millisecond)
				continue
			}
			return fmt.Errorf("control socket: %w", err)
		}
		calls.Go(func() {
			defer c.Close()
			answer(ctx, c, verbs, log)
		})
	}
}

func answer(ctx context.Context, c *net.UnixConn, verbs Table, log *slog.Logger) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("a verb panicked; this is a bug in quarry", "panic", p)
		}
	}()
	who, err := peer(c)
	if err != nil {
		log.Warn("control socket: caller is not known", "err", err)
		return
	}
	c.SetReadDeadline(time.Now().Add(30 * time.Second))
	in := bufio.NewReaderSize(io.LimitReader(c, maxRequest), 4096)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return
	}
	var req request
	out := &replies{enc: json.NewEncoder(c), c: c}
	exit := ExitUsage
	if err := json.Unmarshal(line, &req); err != nil {
		out.write(reply{Err: fmt.Appendf(nil, "quarry: request is not one line of JSON: %v\n", err)})
	} else {
		c.SetReadDeadline(time.Time{})
		sub, cancel := context.WithCancel(ctx)
		defer cancel()
		go func() { // the caller hanging up ends the verb
			io.Copy(io.Discard, c)
			cancel()
		}()
		exit = verbs.Run(sub, who, req.Args, outWriter{out, false}, outWriter{out, true}, req.Term)
	}
	out.write(reply{Exit: &exit})
}

// peer says who is at the other end by the kernel's word.
func peer(c *net.UnixConn) (quarry.Identity, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return quarry.Identity{}, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return quarry.Identity{}, err
	}
	if credErr != nil {
		return quarry.Identity{}, credErr
	}
	if cred.Uid == 0 || int(cred.Uid) == os.Geteuid() {
		return quarry.Identity{Packager: quarry.Packager{User: LocalUser, Key: socketKey}, Role: quarry.RoleAdmin}, nil
	}
	// Of the group that the socket was given to.
	return quarry.Identity{Packager: quarry.Packager{User: fmt.Sprintf("uid%d", cred.Uid), Key: socketKey}, Role: quarry.RoleReader}, nil
}

type replies struct {
	mu  sync.Mutex
	enc *json.Encoder
	c   *net.UnixConn
}

func (r *replies) write(v reply) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.c.SetWriteDeadline(time.Now().Add(time.Minute)) // a reader that sleeps holds up nobody but itself
	return r.enc.Encode(v)
}

type outWriter struct {
	r   *replies
	err bool
}

func (o outWriter) Write(p []byte) (int, error) {
	v := reply{Out: p}
	if o.err {
		v = reply{Err: p}
	}
	if err := o.r.write(v); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Client calls verbs of the daemon behind a socket.
type Client struct{ Socket string }

// ErrUnreachable says that no daemon answers.
var ErrUnreachable = errors.New("no quarry daemon answers: start it with quarry serve, or name its state folder with --state or --config")

// Call runs one verb and returns its exit code. An error means that no daemon
// answered, or that it went away in the middle.
func (cl Client) Call(ctx context.Context, args []string, term Terminal, out, errOut io.Writer) (int, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", cl.Socket)
	if errors.Is(err, fs.ErrPermission) {
		return ExitForbidden, &Error{ExitForbidden, fmt.Errorf("socket %s may not be opened by this user: be root or the daemon's user, or ask over SSH", cl.Socket)}
	}
	if err != nil {
		return ExitUnreachable, &Error{ExitUnreachable, fmt.Errorf("socket %s: %w", cl.Socket, ErrUnreachable)}
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if err := json.NewEncoder(c).Encode(request{Args: args, Term: term}); err != nil {
		return ExitUnreachable, &Error{ExitUnreachable, fmt.Errorf("socket %s: %w", cl.Socket, err)}
	}
	dec := json.NewDecoder(c)
	for {
		var r reply
		if err := dec.Decode(&r); err != nil {
			if ctx.Err() != nil {
				return ExitError, context.Cause(ctx)
			}
			return ExitUnreachable, &Error{ExitUnreachable, errors.New("the daemon went away before it had answered: ask again when it is back")}
		}
		if len(r.Out) > 0 {
			if _, err := out.Write(r.Out); err != nil {
				return ExitError, err
			}
		}
		if len(r.Err) > 0 {
			if _, err := errOut.Write(r.Err); err != nil {
				return ExitError, err
			}
		}
		if r.Exit != nil {
			return *r.Exit, nil
		}
	}
}
