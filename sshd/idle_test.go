package sshd

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"io"
	"net"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Morphux/quarry"
	gossh "golang.org/x/crypto/ssh"
)

// everybody takes any key.
type everybody struct{}

func (everybody) Lookup(gossh.PublicKey) (quarry.Identity, error) {
	return quarry.Identity{Packager: quarry.Packager{User: "alice"}, Role: quarry.RoleReader}, nil
}

// queued is an end of a pipe that takes what is written at once, as a socket does.
type queued struct {
	net.Conn
	out chan []byte
}

func newQueued(c net.Conn) queued {
	q := queued{c, make(chan []byte, 1000)}
	go func() {
		for p := range q.out {
			c.Write(p)
		}
	}()
	return q
}

func (q queued) Write(p []byte) (int, error) {
	q.out <- bytes.Clone(p)
	return len(p), nil
}

// TestIdle: a command may be silent for hours, as its client answers when it is
// asked; with nothing under way the connection ends, and so does one that shows no
// key. The clock is the test's.
func TestIdle(t *testing.T) {
	hostKey, home := filepath.Join(t.TempDir(), "key"), t.TempDir()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := gossh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		end := make(chan struct{})
		s, err := New(Options{HostKey: hostKey, Home: home, Keys: everybody{},
			Verbs: func(ctx context.Context, _ quarry.Identity, _ []string, _ io.Reader, _, _ io.Writer, _ Terminal) int {
				select {
				case <-end:
				case <-ctx.Done():
				}
				return 0
			}})
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := net.Pipe()
		go s.ssh.HandleConn(theirs)
		began := time.Now()
		if _, err := io.Copy(io.Discard, ours); err != nil {
			t.Error(err)
		}
		if d := time.Since(began); d != s.opts.Limits.AuthTime {
			t.Errorf("a silent connection is kept for %v", d)
		}

		ours, theirs = net.Pipe()
		go s.ssh.HandleConn(theirs)
		conn := newQueued(ours)
		defer close(conn.out)
		c, channels, requests, err := gossh.NewClientConn(conn, "pipe", &gossh.ClientConfig{User: "git", Auth: []gossh.AuthMethod{gossh.PublicKeys(signer)}, HostKeyCallback: gossh.FixedHostKey(s.PublicKey())})
		if err != nil {
			t.Fatal(err)
		}
		client := gossh.NewClient(c, channels, requests)
		defer client.Close()
		se, err := client.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		if err := se.Start("wait"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Hour)
		close(end)
		if err := se.Wait(); err != nil {
			t.Errorf("a silent command was cut off: %v", err)
		}
		began = time.Now()
		client.Wait()
		if d, idle := time.Since(began), s.opts.Limits.Idle; d > idle || d < idle/2 {
			t.Errorf("an idle connection is kept for %v", d)
		}
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
