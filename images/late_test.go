package images

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// Who looked a base up before another took its place, and hears of it late, does
// not bring the old one back.
func TestLateAnswer(t *testing.T) {
	s := &Store{bases: map[string]Base{}}
	old := Base{Arch: "x86_64", Image: "sha256:old"}
	since := s.looking()
	s.remember(since, old)
	if s.bases["x86_64"] != old {
		t.Error("what podman says is not remembered")
	}
	since = s.looking()
	s.forget("x86_64")
	s.remember(since, old)
	if b, ok := s.bases["x86_64"]; ok {
		t.Errorf("%+v is back", b)
	}
	since = s.looking()
	s.forgetAll()
	s.remember(since, old)
	if b, ok := s.bases["x86_64"]; ok {
		t.Errorf("%+v is back", b)
	}
}

// Who found no instance, and asks for one when another has just made it, gets that.
func TestMadeMeanwhile(t *testing.T) {
	s := &Store{}
	s.inst.init()
	e := env{"testing", "x86_64"}
	made := record{Instance: Instance{Channel: e.channel, Arch: e.arch, Image: "sha256:made"}}
	s.inst.known[e] = made
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // of nobody who waits
	if in, err := s.join(ctx, e, func(r record) bool { return r.Image != "" }, nil); err != nil || in != made.Instance {
		t.Errorf("%+v, %v", in, err)
	}
}

// Workspaces that were ready end with their environment, and are no builds that were
// ended, however long it takes to close them.
func TestTakeAwaySpare(t *testing.T) {
	e := env{"testing", "x86_64"}
	s := &Store{open: map[*Workspace]bool{}}
	w := &Workspace{Channel: e.channel, Arch: e.arch, store: s, pid: -1, initFD: -1, spare: true}
	s.open[w] = true
	if n := s.takeAway(t.Context(), []env{e}, "it was sanitized"); n != 0 || w.lost != "" {
		t.Errorf("%d builds were ended, %q, and there was none", n, w.lost)
	}
	w.spare = false // a build has it
	if n := s.takeAway(t.Context(), []env{e}, "it was sanitized"); n != 1 || w.lost == "" {
		t.Errorf("%d builds were ended, %q, of 1", n, w.lost)
	}
}

// A first process whose connection is broken is waited for until it is gone.
func TestEnded(t *testing.T) {
	t.Parallel()
	here, there, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	defer there.Close()
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer out.Close()
	cmd := exec.Command("sh", "-c", "read line; sleep 2")
	cmd.Stdin = in
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	w := &Workspace{initFD: fd, Conn: here}
	if known, dead := w.ended(); !known || dead {
		t.Errorf("it lives, but: %v, %v", known, dead)
	}
	there.Close()
	if _, err := out.WriteString("end\n"); err != nil {
		t.Fatal(err)
	}
	if known, dead := w.ended(); !known || !dead {
		t.Errorf("its end is not waited for: %v, %v", known, dead)
	}
	w.initFD = -1
	if known, dead := w.ended(); known || dead {
		t.Errorf("it cannot be seen, but: %v, %v", known, dead)
	}
}

// pair is a connection.
func pair() (here, there net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "end")
		c, cerr := net.FileConn(f)
		ends[i], err = c, errors.Join(err, cerr, f.Close())
	}
	return ends[0], ends[1], err
}
