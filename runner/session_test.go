package runner

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/runner/guest"
	"golang.org/x/sys/unix"
)

// pair is the two ends of a guest's socket.
func pair(t testing.TB) (host, other *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
	}
	return ends[0], ends[1]
}

// talk has a runner hear exactly what a guest says, which is not to be
// trusted, and ask it to run something.
func talk(t testing.TB, says []byte, most int64) (guest.Reply, *bytes.Buffer, error) {
	t.Helper()
	mine, its := pair(t)
	go func() {
		// The guest's words may be more than the socket holds.
		_, _ = its.Write(says)
		its.CloseWrite()
		_, _ = io.Copy(io.Discard, its)
	}()
	var log bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	s, err := newSession(ctx, &images.Workspace{Name: "1", Conn: mine}, &logWriter{w: &log})
	if err != nil {
		return guest.Reply{}, &log, err
	}
	defer s.close()
	r, err := s.ask(ctx, guest.Request{Op: guest.OpRun}, nil, time.Minute, &output{left: most})
	return r, &log, err
}

func frame(kind guest.Kind, v any) []byte {
	b, ok := v.([]byte)
	if !ok {
		b, _ = json.Marshal(v)
	}
	return guest.AppendFrame(nil, kind, b)
}

func TestGuestIsNotTrusted(t *testing.T) {
	hello := frame(guest.KindHello, guest.Hello{Version: guest.Version})
	reply := frame(guest.KindReply, guest.Reply{ID: 1, Status: 3})
	out := frame(guest.KindOutput, bytes.Repeat([]byte("x"), 1000))
	for _, tt := range []struct {
		name string
		says [][]byte
		want error // nil: an answer
	}{
		{"all well", [][]byte{hello, out, out, reply}, nil},
		{"nothing", nil, io.EOF},
		{"no hello", [][]byte{reply}, errors.New("instead of a hello")},
		{"another version", [][]byte{frame(guest.KindHello, guest.Hello{Version: 77})}, errors.New("version 77")},
		{"hello again", [][]byte{hello, hello}, guest.ErrFrame},
		{"a request", [][]byte{hello, frame(guest.KindRequest, guest.Request{})}, guest.ErrFrame},
		{"a cancel", [][]byte{hello, frame(guest.KindCancel, []byte{})}, guest.ErrFrame},
		{"the answer to something else", [][]byte{hello, frame(guest.KindReply, guest.Reply{ID: 2})}, guest.ErrFrame},
		{"numbers that cannot be", [][]byte{hello, frame(guest.KindReply, guest.Reply{ID: 1, RSS: -1})}, guest.ErrFrame},
		{"more output than it may have", [][]byte{hello, out, out, out, out, out, out}, guest.ErrFrame},
		{"a form where there is no jobserver", [][]byte{hello, frame(guest.KindForm, []byte("fifo"))}, guest.ErrFrame},
		{"a giant frame", [][]byte{hello, {'O', 0x7f, 0xff, 0xff, 0xff}}, guest.ErrFrame},
		{"half a frame", [][]byte{hello, out[:500]}, io.ErrUnexpectedEOF},
		{"hangs up", [][]byte{hello, out}, io.EOF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, log, err := talk(t, bytes.Join(tt.says, nil), 5000)
			switch {
			case tt.want == nil:
				if err != nil || r.Status != 3 || log.Len() != 2000 {
					t.Errorf("%+v, %v, log of %d bytes", r, err, log.Len())
				}
			case err == nil || !errors.Is(err, tt.want) && !strings.Contains(err.Error(), tt.want.Error()):
				t.Errorf("error %v, want %v", err, tt.want)
			}
			if log.Len() > 5000 {
				t.Errorf("the log has %d bytes", log.Len())
			}
		})
	}
}

func TestGuestIsSilent(t *testing.T) {
	mine, its := pair(t)
	if _, err := its.Write(frame(guest.KindHello, guest.Hello{Version: guest.Version})); err != nil {
		t.Fatal(err)
	}
	s, err := newSession(t.Context(), &images.Workspace{Conn: mine}, &logWriter{w: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if _, err := s.ask(t.Context(), guest.Request{Op: guest.OpRun}, nil, 50*time.Millisecond, nil); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("error %v, want a deadline", err)
	}
}

// FuzzSession hears whatever a guest might say.
func FuzzSession(f *testing.F) {
	hello := frame(guest.KindHello, guest.Hello{Version: guest.Version})
	f.Add(append(hello, frame(guest.KindOutput, []byte("out"))...))
	f.Add(append(hello, frame(guest.KindReply, guest.Reply{ID: 1, Status: 2, Problem: "p"})...))
	f.Add([]byte("H\x00\x00\x00\x02{}"))
	f.Fuzz(func(t *testing.T, says []byte) {
		_, log, err := talk(t, says, 1000)
		if log.Len() > 1000 {
			t.Fatalf("%d bytes in the log, 1000 is the most", log.Len())
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("it hangs on %q", says)
		}
	})
}
