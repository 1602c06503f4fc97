package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Exit statuses of Main.
const (
	exitDone  = 0 // the runner closed the connection
	exitUsage = 2 // started in the wrong place
	exitLost  = 3 // the connection broke
)

// errGone is the end of the connection, which is how a workspace ends.
var errGone = errors.New("the runner is gone")

// Main is the life of a guest: it connects to the socket and serves the
// runner until that closes the connection, then ends everything in the
// container by ending itself. It refuses to be anything but process 1, for it
// kills all other processes between steps.
func Main(socketPath string) int {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "quarry guest: this is not process 1 of a workspace: quarry runs this command by itself, inside the containers that it makes")
		return exitUsage
	}
	// Personality and the score for the killer of the hungry belong to threads
	// and are inherited from the one that forks.
	runtime.LockOSThread()
	if err := fortify(); err != nil {
		fmt.Fprintf(os.Stderr, "quarry guest: %v\n", err)
		return exitLost
	}
	g, err := connect(socketPath)
	if err != nil {
		fmt.Fprintf(os.Stderr, "quarry guest: %v\n", err)
		return exitLost
	}
	err = g.serve()
	killAll()
	if !errors.Is(err, errGone) {
		fmt.Fprintf(os.Stderr, "quarry guest: %v\n", err)
		return exitLost
	}
	return exitDone
}

// guest is one connection to a runner. One goroutine owns all of it.
type guest struct {
	conn   int // the socket, not blocking
	null   int // /dev/null, for children
	oom    oomScore
	slim   slim
	calmed bool
	shells [MaxShells]*shell // those that are over are used again

	in  []byte // read from the socket, not yet taken apart
	fds []int  // that came with it

	// out[outR:outW] waits to be written to the socket. Of its room reserve is
	// for replies; output is only read from a step while there is more.
	out        []byte
	outR, outW int
}

const (
	outSize = 512 << 10
	reserve = MaxReply + MaxHello + 2*headerSize
)

func connect(socketPath string) (*guest, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socketPath}); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", socketPath, err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/null: %w: the base has none", err)
	}
	g := &guest{conn: fd, null: null, oom: openOOMScore(), slim: openSlim(), in: make([]byte, 0, 64<<10), out: make([]byte, outSize)}
	return g, g.send(KindHello, Hello{Version: Version})
}

// serve answers requests until the connection ends.
func (g *guest) serve() error {
	for {
		kind, payload, err := g.next()
		if err != nil {
			return err
		}
		switch kind {
		case KindCancel: // it crossed the reply of the step it meant
			continue
		case KindRequest:
		default:
			return fmt.Errorf("%w: a runner does not send kind %v", ErrFrame, kind)
		}
		var q Request
		if err := decode(payload, &q); err != nil {
			return err
		}
		r, err := g.do(&q)
		if err != nil {
			return err
		}
		r.ID = q.ID
		if err := g.send(KindReply, r); err != nil {
			return err
		}
	}
}

// do does one operation. An error ends the guest; what went wrong with the
// operation itself is in the reply.
func (g *guest) do(q *Request) (Reply, error) {
	switch {
	case q.Op == OpShell && q.Shell != nil && len(g.fds) > 0:
		conn := g.fds[0]
		g.fds = g.fds[1:]
		return answer(g.openShell(q.Shell, conn), Reply{}), nil
	case g.anyShell():
		return Reply{Error: fmt.Sprintf("the guest cannot do %.20q while there are shells", q.Op)}, nil
	case q.Op == OpRun && q.Run != nil:
		return g.run(q.Run)
	case q.Op == OpPlace && q.Place != nil:
		dir, err := place(q.Place)
		return answer(err, Reply{Dir: dir}), nil
	case q.Op == OpInstall && len(g.fds) > 0:
		f := os.NewFile(uintptr(g.fds[0]), q.Name)
		g.fds = g.fds[1:]
		err := install(f, q.Root)
		f.Close()
		return answer(err, Reply{}), nil
	}
	return Reply{Error: fmt.Sprintf("the guest cannot do %.20q with what came along", q.Op)}, nil
}

// problem is an error that is the package's fault.
type problem struct{ error }

func (p problem) Unwrap() error { return p.error }

func problemf(format string, args ...any) error { return problem{fmt.Errorf(format, args...)} }

// answer makes a reply of an error.
func answer(err error, r Reply) Reply {
	var p problem
	switch {
	case err == nil:
	case errors.As(err, &p) && !isFull(err):
		r.Problem = cut(err.Error())
	default:
		r.Error = cut(err.Error())
	}
	return r
}

func cut(s string) string {
	if len(s) > maxText {
		s = s[:maxText]
	}
	return s
}

// next waits for a frame from the runner.
func (g *guest) next() (Kind, []byte, error) {
	for {
		kind, payload, ok, err := g.take()
		if ok || err != nil {
			return kind, payload, err
		}
		if g.anyShell() {
			heard, err := g.attend()
			if err != nil {
				return 0, nil, err
			}
			if !heard {
				continue
			}
		} else if err := g.wait(unix.POLLIN, -1); err != nil {
			return 0, nil, err
		}
		if err := g.fill(); err != nil {
			return 0, nil, err
		}
	}
}

// take removes one whole frame from what was read. The payload is good until
// the next fill.
func (g *guest) take() (kind Kind, payload []byte, ok bool, err error) {
	if len(g.in) < headerSize {
		return 0, nil, false, nil
	}
	kind, n, err := checkHeader([headerSize]byte(g.in))
	if err != nil {
		return 0, nil, false, err
	}
	if len(g.in) < headerSize+n {
		return 0, nil, false, nil
	}
	payload = append([]byte(nil), g.in[headerSize:headerSize+n]...)
	g.in = append(g.in[:0], g.in[headerSize+n:]...)
	return kind, payload, true, nil
}

// fill reads what the socket has. File descriptors may come along.
func (g *guest) fill() error {
	var buf [32 << 10]byte
	oob := make([]byte, unix.CmsgSpace(4*4))
	n, oobn, _, _, err := unix.Recvmsg(g.conn, buf[:], oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return nil
	case err != nil:
		return fmt.Errorf("%w: %v", errGone, err)
	case n == 0:
		return errGone
	}
	g.in = append(g.in, buf[:n]...)
	if oobn == 0 {
		return nil
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return fmt.Errorf("read a descriptor from the socket: %w", err)
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return fmt.Errorf("read a descriptor from the socket: %w", err)
		}
		g.fds = append(g.fds, fds...)
	}
	return nil
}

// send puts a message behind the output that waits and writes all of it.
func (g *guest) send(kind Kind, message any) error {
	payload, err := json.Marshal(message)
	if err != nil {
		return err
	}
	return g.sendRaw(kind, payload)
}

func (g *guest) sendRaw(kind Kind, payload []byte) error {
	if len(payload) > kind.max() {
		return fmt.Errorf("%w: kind %v of %d bytes", ErrFrame, kind, len(payload))
	}
	g.compact()
	if len(g.out)-g.outW < headerSize+len(payload) {
		return fmt.Errorf("%w: no room to send it", ErrFrame)
	}
	putHeader(g.out[g.outW:], kind, len(payload))
	copy(g.out[g.outW+headerSize:], payload)
	g.outW += headerSize + len(payload)
	for g.outR < g.outW {
		if err := g.flush(); err != nil {
			return err
		}
		if g.outR < g.outW {
			if err := g.wait(unix.POLLOUT, -1); err != nil {
				return err
			}
		}
	}
	return nil
}

// compact moves what waits to the front.
func (g *guest) compact() {
	if g.outR > 0 {
		g.outW = copy(g.out, g.out[g.outR:g.outW])
		g.outR = 0
	}
}

// flush writes as much of the waiting output as the socket takes now.
func (g *guest) flush() error {
	for g.outR < g.outW {
		n, err := unix.SendmsgN(g.conn, g.out[g.outR:g.outW], nil, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return nil
		case err != nil:
			return fmt.Errorf("%w: %v", errGone, err)
		}
		g.outR += n
	}
	g.outR, g.outW = 0, 0
	return nil
}

// wait waits for the socket.
func (g *guest) wait(events int16, timeout time.Duration) error {
	fds := [1]unix.PollFd{{Fd: int32(g.conn), Events: events}}
	_, err := poll(fds[:], timeout)
	return err
}

// poll is poll(2); a negative timeout waits for ever. An interruption counts
// as a time-out that came early.
func poll(fds []unix.PollFd, timeout time.Duration) (int, error) {
	ms := -1
	if timeout >= 0 {
		ms = int((timeout + time.Millisecond - 1) / time.Millisecond)
	}
	n, err := unix.Poll(fds, ms)
	if err == unix.EINTR {
		for i := range fds {
			fds[i].Revents = 0
		}
		return 0, nil
	}
	if err != nil {
		return 0, os.NewSyscallError("poll", err)
	}
	return n, nil
}
