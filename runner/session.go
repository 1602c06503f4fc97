package runner

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/runner/guest"
	"golang.org/x/sys/unix"
)

const (
	helloWithin = 30 * time.Second
	// backstop is how much later than the guest the runner itself ends a step.
	// The guest may need half a minute to see the last process go.
	backstop = 90 * time.Second
)

// session is the conversation with one guest.
type session struct {
	ws   *images.Workspace
	conn *net.UnixConn
	r    *guest.Reader
	log  *logWriter
	id   uint32
	stop func() bool
}

// newSession hears the guest's hello.
func newSession(ctx context.Context, ws *images.Workspace, log *logWriter) (*session, error) {
	conn, ok := ws.Conn.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("workspace %s is not connected by a Unix socket: artifacts could not be handed in", ws.Name)
	}
	s := &session{ws: ws, conn: conn, r: guest.NewReader(bufio.NewReaderSize(conn, 128<<10)), log: log}
	// An end of ctx interrupts whatever is being read or written.
	s.stop = context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	if err := s.deadline(ctx, helloWithin); err != nil {
		return nil, err
	}
	kind, payload, err := s.r.Next()
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("workspace %s: %w", ws.Name, ctx.Err())
	case err != nil:
		return nil, fmt.Errorf("workspace %s does not say hello: %w", ws.Name, err)
	case kind != guest.KindHello:
		return nil, fmt.Errorf("workspace %s: kind %v instead of a hello", ws.Name, kind)
	}
	if _, err := guest.DecodeHello(payload); err != nil {
		return nil, fmt.Errorf("workspace %s: %w", ws.Name, err)
	}
	return s, nil
}

// close lets go of ctx. The connection is the workspace's.
func (s *session) close() { s.stop() }

// kill ends everything in the workspace.
func (s *session) kill() {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	s.conn.Close() // by this alone a sane guest ends at once
	_ = s.ws.Kill(ctx)
}

func (s *session) deadline(ctx context.Context, d time.Duration) error {
	if err := s.conn.SetDeadline(time.Now().Add(d)); err != nil {
		return fmt.Errorf("workspace %s: %w", s.ws.Name, err)
	}
	// AfterFunc may have come first.
	return ctx.Err()
}

// output is what a step may print and has printed.
type output struct {
	left int64
	to   io.Writer    // nil: the log
	form func(string) // gets the form of the step's jobserver; nil: it has none
}

// ask has the guest do something and waits for its answer, for as long as
// within at most. What the step prints goes to the log; out is nil where there
// is nothing to print. file goes along as a descriptor.
func (s *session) ask(ctx context.Context, q guest.Request, file *os.File, within time.Duration, out *output) (guest.Reply, error) {
	s.id++
	q.ID = s.id
	payload, err := json.Marshal(q)
	if err != nil {
		return guest.Reply{}, err
	}
	if len(payload) > guest.MaxRequest {
		return guest.Reply{}, fmt.Errorf("a request of %d bytes is more than the guest takes", len(payload))
	}
	if err := s.deadline(ctx, within); err != nil {
		return guest.Reply{}, err
	}
	frame := guest.AppendFrame(nil, guest.KindRequest, payload)
	if file != nil {
		// The descriptor travels with the first byte.
		rights := unix.UnixRights(int(file.Fd()))
		n, _, err := s.conn.WriteMsgUnix(frame, rights, nil)
		if err != nil {
			return guest.Reply{}, err
		}
		frame = frame[n:]
	}
	if _, err := s.conn.Write(frame); err != nil && len(frame) > 0 {
		return guest.Reply{}, err
	}
	for {
		kind, payload, err := s.r.Next()
		if err != nil {
			return guest.Reply{}, err
		}
		switch {
		case kind == guest.KindReply:
			r, err := guest.DecodeReply(payload)
			if err == nil && r.ID != s.id {
				err = fmt.Errorf("%w: an answer to request %d, not %d", guest.ErrFrame, r.ID, s.id)
			}
			return r, err
		case kind == guest.KindOutput && out != nil:
			// The guest keeps the limit; this end only sees that it does.
			if out.left -= int64(len(payload)); out.left < 0 {
				return guest.Reply{}, fmt.Errorf("%w: more output than the step may have", guest.ErrFrame)
			}
			to := out.to
			if to == nil {
				to = s.log
			}
			if _, err := to.Write(payload); err != nil {
				return guest.Reply{}, fmt.Errorf("the build's log cannot be written: %w", err)
			}
		case kind == guest.KindForm && out != nil && out.form != nil:
			form, err := guest.DecodeForm(payload)
			if err != nil {
				return guest.Reply{}, err
			}
			out.form(form)
			out.form = nil // it comes once
		default:
			return guest.Reply{}, fmt.Errorf("%w: kind %v here", guest.ErrFrame, kind)
		}
	}
}

// ended reports errors that mean that the other end of the socket is gone.
func ended(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}
