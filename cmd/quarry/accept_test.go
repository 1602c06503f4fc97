package main

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// troubled is a listener of a machine in trouble.
type troubled struct {
	net.Listener
	errs []error
}

func (t *troubled) Accept() (net.Conn, error) {
	if len(t.errs) == 0 {
		return t.Listener.Accept()
	}
	err := &net.OpError{Op: "accept", Net: "unix", Err: os.NewSyscallError("accept4", t.errs[0])}
	t.errs = t.errs[1:]
	return nil, err
}

// A door stays open over trouble of the machine's, and closes when it is closed.
func TestPatientListener(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	door := patient{&troubled{l, []error{syscall.ENOBUFS, syscall.ENOMEM, syscall.EMFILE, syscall.EPROTO}}, slog.New(slog.DiscardHandler)}
	client, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	c, err := door.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := door.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := door.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed door: %v", err)
	}
}
