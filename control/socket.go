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
// that asks, then lines of JSON that answer, the last of which has exit. A
// request with input is followed by lines of it, the last of which has end: so
// that input that was cut off is none that has ended.
type request struct {
	Args  []string `json:"args"` // the verb and its arguments
	Term  Terminal `json:"term"`
	Input bool     `json:"input,omitempty"`
}

type input struct {
	In   []byte  `json:"in,omitempty"` // standard input
	End  bool    `json:"end,omitempty"`
	Size *[2]int `json:"size,omitempty"` // of the terminal from now on: columns and lines
}

type reply struct {
	Out  []byte `json:"out,omitempty"` // standard output
	Err  []byte `json:"err,omitempty"` // standard error
	Exit *int   `json:"exit,omitempty"`
}

const maxRequest = 1 << 20 // bytes in a line of a caller's

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
	// The socket has its mode before it has its name. The umask would be that of
	// everybody in this process who makes a file meanwhile.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var mode error
		err := c.Control(func(fd uintptr) { mode = unix.Fchmod(int(fd), 0o700) })
		return errors.Join(err, mode)
	}}
	opened, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	l := opened.(*net.UnixListener)
	if group == "" {
		return l, nil
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
	who, err := Peer(c)
	if err != nil {
		log.Warn("control socket: caller is not known", "err", err)
		return
	}
	c.SetReadDeadline(time.Now().Add(30 * time.Second))
	lines := bufio.NewScanner(c)
	lines.Buffer(nil, maxRequest)
	if !lines.Scan() {
		return
	}
	var req request
	out := &replies{enc: json.NewEncoder(c), c: c}
	exit := ExitUsage
	if err := json.Unmarshal(lines.Bytes(), &req); err != nil {
		out.write(reply{Err: fmt.Appendf(nil, "quarry: request is not one line of JSON: %v\n", err)})
	} else {
		c.SetReadDeadline(time.Time{})
		sub, cancel := context.WithCancel(ctx)
		defer cancel()
		var in io.Reader
		var feed *io.PipeWriter
		sizes := make(chan [2]int, 1)
		if req.Input {
			r, w := io.Pipe()
			defer r.Close() // what the verb does not read is thrown away
			in, feed = r, w
			req.Term.Resize = sizes
		}
		go func() { // the caller hanging up ends the verb
			listen(lines, feed, sizes)
			cancel()
		}()
		exit = verbs.Run(sub, who, req.Args, in, outWriter{out, false}, outWriter{out, true}, req.Term)
	}
	out.write(reply{Exit: &exit})
}

// listen reads what a caller sends after the request until it hangs up. Input
// goes to w, if there is any to come, and the size that a terminal has last to
// sizes.
func listen(lines *bufio.Scanner, w *io.PipeWriter, sizes chan [2]int) {
	for lines.Scan() {
		var in input
		if w == nil {
			continue
		}
		if err := json.Unmarshal(lines.Bytes(), &in); err != nil {
			w.CloseWithError(fmt.Errorf("standard input came in no lines of JSON: %w", err))
			return
		}
		if in.Size != nil {
			select {
			case <-sizes: // nobody has asked for it yet
			default:
			}
			sizes <- *in.Size
		}
		if len(in.In) > 0 { // else it would wait for somebody who reads
			w.Write(in.In)
		}
		if in.End {
			w.Close()
		}
	}
	if w != nil {
		w.CloseWithError(errors.New("standard input was cut off"))
	}
}

// Peer says who is at the other end of a Unix socket, by the kernel's word.
func Peer(c *net.UnixConn) (quarry.Identity, error) {
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
		return Owner(), nil
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
type Client struct {
	Socket string
	In     io.Reader // standard input for the verb; nil: none
}

// lineWriter writes whole messages, of several senders.
type lineWriter struct {
	mu  sync.Mutex
	enc *json.Encoder
}

func (l *lineWriter) send(v any) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.enc.Encode(v)
}

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
	if err := json.NewEncoder(c).Encode(request{Args: args, Term: term, Input: cl.In != nil}); err != nil {
		return ExitUnreachable, &Error{ExitUnreachable, fmt.Errorf("socket %s: %w", cl.Socket, err)}
	}
	sent := make(chan error, 1) // why the connection was closed from this end
	if cl.In != nil {
		to := &lineWriter{enc: json.NewEncoder(c)}
		go func() {
			if err := send(to, cl.In); err != nil {
				sent <- fmt.Errorf("standard input cannot be read: %w", err)
				c.Close()
			}
		}()
		ended := make(chan struct{})
		defer close(ended)
		go func() {
			for {
				select {
				case size := <-term.Resize:
					_ = to.send(input{Size: &size}) // that the call has ended, the reader below sees
				case <-ended:
					return
				}
			}
		}()
	}
	dec := json.NewDecoder(c)
	for {
		var r reply
		if err := dec.Decode(&r); err != nil {
			if ctx.Err() != nil {
				return ExitError, context.Cause(ctx)
			}
			select {
			case err := <-sent:
				return ExitError, err
			default:
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

// send sends standard input on. It is an error that it cannot be read to its
// end; that the verb has ended before is none.
func send(to *lineWriter, in io.Reader) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := in.Read(buf)
		if n > 0 && to.send(input{In: buf[:n]}) != nil {
			return nil
		}
		if err == io.EOF {
			_ = to.send(input{End: true}) // likewise
			return nil
		}
		if err != nil {
			return err
		}
	}
}
