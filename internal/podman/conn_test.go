package podman_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containers/podman/v4/pkg/bindings/system"

	"github.com/Morphux/quarry/internal/podman"
)

func start(t *testing.T, cfg podman.Config) *podman.Conn {
	t.Helper()
	if cfg.State == "" {
		cfg.State = t.TempDir()
	}
	c, err := podman.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func answers(t *testing.T, c *podman.Conn) {
	t.Helper()
	ctx, err := c.Context(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	v, err := system.Version(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if v.Server == nil || v.Server.Version == "" {
		t.Fatalf("no server version in %+v", v)
	}
}

// The service answers from a state folder whose path is longer than a Unix
// socket allows and holds what mount options and TOML take for punctuation; it
// leaves the folders above as closed as they were, and no mount on the host.
func TestStart(t *testing.T) {
	closed := filepath.Join(t.TempDir(), "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(closed, strings.Repeat("long-", 30), `a "b", c:d=e`)
	c := start(t, podman.Config{State: state})
	answers(t, c)
	if c.Runtime() == "" || c.Driver() == "" || c.Farm() == "" {
		t.Errorf("runtime %q, driver %q, farm %q", c.Runtime(), c.Driver(), c.Farm())
	}
	st, err := os.Stat(closed)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm() != 0o700 {
		t.Errorf("the folder above the state is now open: %v", st.Mode())
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, closed) || strings.Contains(line, " /run/quarry") { // others are other tests'
			t.Errorf("the host sees a mount: %s", line)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Context(t.Context()); !errors.Is(err, podman.ErrGone) {
		t.Errorf("after Close: %v", err)
	}
}

func TestRestart(t *testing.T) {
	c := start(t, podman.Config{})
	answers(t, c)
	gen, pid := c.Generation(), c.PID()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(2 * time.Minute); !c.Lost(gen); {
		if time.Now().After(deadline) {
			t.Fatal("the death of the service is not seen")
		}
		time.Sleep(time.Millisecond)
	}
	answers(t, c) // waits for the next one
	if c.Generation() != gen+1 || c.PID() == pid {
		t.Errorf("generation %d after %d, pid %d after %d", c.Generation(), gen, c.PID(), pid)
	}
}

func TestSecondDaemon(t *testing.T) {
	state := t.TempDir()
	start(t, podman.Config{State: state})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if c, err := podman.Start(ctx, podman.Config{State: state}); err == nil {
		c.Close()
		t.Fatal("two services on one state folder")
	}
}

// A start clears away what a doctor that was killed has left in the state folder, and
// leaves alone the one that looks at the farm at this moment.
func TestBesideDoctor(t *testing.T) {
	state := t.TempDir()
	doctor := start(t, podman.Config{State: filepath.Join(state, "podman", "tmp-doctor-1")})
	left := filepath.Join(state, "podman", "tmp-doctor-2", "podman")
	if err := os.MkdirAll(left, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(left, "lock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	answers(t, start(t, podman.Config{State: state}))
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("what was left is there still: %v", err)
	}
	answers(t, doctor)
	if _, err := os.Stat(filepath.Join(doctor.Dir(), "farm")); err != nil {
		t.Errorf("a doctor at work lost its folder: %v", err)
	}
}

// A given socket is used as it is.
func TestURI(t *testing.T) {
	state := t.TempDir()
	own := start(t, podman.Config{State: state})
	socket := filepath.Join(state, "podman", "podman.sock")
	c := start(t, podman.Config{URI: "unix://" + socket})
	answers(t, c)
	if c.Own() || c.Farm() == own.Farm() {
		t.Errorf("own %v, farm %q, the other's %q", c.Own(), c.Farm(), own.Farm())
	}
	if _, err := podman.Start(t.Context(), podman.Config{State: t.TempDir(), URI: "unix:///nowhere/podman.sock"}); err == nil || !strings.Contains(err.Error(), "podman system service") {
		t.Errorf("no cure in: %v", err)
	}
	if _, err := podman.Start(t.Context(), podman.Config{State: t.TempDir(), URI: "tcp://localhost:1"}); err == nil {
		t.Error("a TCP address was taken")
	}
}

func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		cfg  podman.Config
		says string
	}{
		"podman":  {podman.Config{Podman: "/nowhere/podman"}, "apt-get install podman"},
		"runtime": {podman.Config{Runtime: "/bin/false"}, "false does not work here"},
		"driver":  {podman.Config{Driver: "btrfs"}, "use overlay, fuse-overlayfs or vfs"},
		"store":   {podman.Config{ImageStores: []string{"/etc"}}, "overlay-images"},
	} {
		t.Run(name, func(t *testing.T) {
			c.cfg.State = t.TempDir()
			conn, err := podman.Start(t.Context(), c.cfg)
			if err == nil {
				conn.Close()
				t.Fatal("started")
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("%q does not say %q", err, c.says)
			}
		})
	}
}
