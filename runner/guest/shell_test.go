package guest

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// shell has a guest start a shell, and gives its socket and the reply.
func (h *host) shell(q Shell) (net.Conn, Reply) {
	h.t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { conn.Close() })
	if _, _, err := h.conn.WriteMsgUnix([]byte{byte(KindRequest)}, unix.UnixRights(int(theirs.Fd())), nil); err != nil {
		h.t.Fatal(err)
	}
	q.Dir, q.Env = "/", []string{"PATH=" + os.Getenv("PATH")}
	h.id++
	frame := AppendFrame(nil, KindRequest, mustJSON(h.t, Request{ID: h.id, Op: OpShell, Shell: &q}))
	if _, err := h.conn.Write(frame[1:]); err != nil {
		h.t.Fatal(err)
	}
	kind, payload, err := h.next()
	if err != nil || kind != KindReply {
		h.t.Fatalf("kind %v, %v", kind, err)
	}
	r, err := DecodeReply(payload)
	if err != nil || r.ID != h.id {
		h.t.Fatalf("%+v, %v", r, err)
	}
	_ = conn.SetDeadline(time.Now().Add(2 * time.Minute))
	return conn, r
}

// TestShellFrames says to a shell's socket what no runner says.
func TestShellFrames(t *testing.T) {
	h := start(t)
	long := binary.BigEndian.AppendUint32([]byte{byte(KindInput)}, MaxInput+1)
	for name, bytes := range map[string][]byte{
		"unknown kind": {'?', 0, 0, 0, 0}, "too long": long, "a request": AppendFrame(nil, KindRequest, []byte("{}")),
		"a cancel": AppendFrame(nil, KindCancel, nil), "an exit": AppendFrame(nil, KindExit, []byte(`{"status":0}`)),
	} {
		conn, r := h.shell(Shell{Try: [][]string{{"/nowhere"}, {"sleep", "1000"}}})
		if r.Error+r.Problem != "" {
			t.Fatalf("%s: %+v", name, r)
		}
		if _, err := conn.Write(bytes); err != nil {
			t.Fatal(err)
		}
		// It is hung up, and the guest lives.
		if _, _, err := NewReader(conn).Next(); err == nil {
			t.Errorf("%s: it goes on", name)
		}
	}
	conn, r := h.shell(Shell{Try: [][]string{{"sh"}}})
	if r.Error+r.Problem != "" {
		t.Fatalf("%+v", r)
	}
	// A size without a terminal, half a size, and frames in single bytes.
	frames := AppendSize(nil, 1, 2)
	frames = AppendFrame(frames, KindSize, []byte{1})
	frames = AppendFrame(frames, KindInput, []byte("echo one; exit "))
	frames = AppendFrame(frames, KindInput, []byte("7\n"))
	for i := range frames {
		if _, err := conn.Write(frames[i : i+1]); err != nil {
			t.Fatal(err)
		}
	}
	reader := NewReader(bufio.NewReader(conn))
	for _, want := range []struct {
		kind Kind
		text string
	}{{KindOutput, "one\n"}, {KindExit, `{"status":7}`}} {
		kind, payload, err := reader.Next()
		if err != nil || kind != want.kind || string(payload) != want.text {
			t.Fatalf("%v %q, %v; want %v %q", kind, payload, err, want.kind, want.text)
		}
	}
	if _, _, err := reader.Next(); err != io.EOF {
		t.Errorf("after the exit: %v", err)
	}
}

// TestShellSlots uses all the shells there may be, many times over, and steps
// beside them are refused.
func TestShellSlots(t *testing.T) {
	h := start(t)
	for range 3 {
		var conns []net.Conn
		for range MaxShells {
			conn, r := h.shell(Shell{Try: [][]string{{"cat"}}})
			if r.Error+r.Problem != "" {
				t.Fatalf("%+v", r)
			}
			conns = append(conns, conn)
		}
		if _, r := h.shell(Shell{Try: [][]string{{"cat"}}}); r.Problem == "" {
			t.Errorf("one too many: %+v", r)
		}
		for i, conn := range conns {
			// Half of them end, half are left.
			if i%2 == 0 {
				conn.Close()
				continue
			}
			if _, err := conn.Write(AppendFrame(AppendFrame(nil, KindInput, []byte("back")), KindInput, nil)); err != nil {
				t.Fatal(err)
			}
			reader := NewReader(conn)
			if kind, payload, err := reader.Next(); err != nil || kind != KindOutput || string(payload) != "back" {
				t.Errorf("%v %q, %v", kind, payload, err)
			}
			if kind, payload, err := reader.Next(); err != nil || kind != KindExit {
				t.Errorf("%v %q, %v", kind, payload, err)
			}
		}
	}
}

// FuzzExit reads what may come out of a workspace.
func FuzzExit(f *testing.F) {
	for _, s := range []string{`{"status":0}`, `{"status":256}`, `{"status":-1}`, `{}`, `[]`, `{"status":1}{}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if e, err := DecodeExit(data); err == nil && (e.Status < 0 || e.Status > 255) {
			t.Errorf("%q: %+v", data, e)
		}
	})
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
