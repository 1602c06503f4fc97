package images_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/podman"
	"github.com/Morphux/quarry/layers"
)

// guestProgram builds testdata/guest once.
var guestProgram = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "quarry-guest-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "guest")
	cmd := exec.Command("go", "build", "-o", path, "./testdata/guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, os.Chmod(dir, 0o755)
})

func TestMain(m *testing.M) {
	layers.Unpacker()
	if v := strings.Split(os.Getenv("QUARRY_TEST_VICTIM"), "\n"); len(v) == 3 {
		fmt.Fprintln(os.Stderr, victim(v[0], v[1], v[2]))
		os.Exit(1)
	}
	code := m.Run()
	if path, err := guestProgram(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

func guest(t testing.TB) string {
	t.Helper()
	path, err := guestProgram()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

type request struct {
	Shell  string
	Action string
	N      int
}

type answer struct {
	Output string
	Status int
	Error  string
}

// ask has the guest do something. It fails the test when the guest is gone.
func ask(t testing.TB, w *images.Workspace, r request) answer {
	t.Helper()
	a, err := try(w, r)
	if err != nil {
		t.Fatalf("guest: %v", err)
	}
	return a
}

func try(w *images.Workspace, r request) (a answer, err error) {
	w.Conn.SetDeadline(time.Now().Add(2 * time.Minute))
	if err := json.NewEncoder(w.Conn).Encode(r); err != nil {
		return a, err
	}
	return a, json.NewDecoder(w.Conn).Decode(&a)
}

func sh(t testing.TB, w *images.Workspace, line string) string {
	t.Helper()
	a := ask(t, w, request{Shell: line})
	if a.Error != "" {
		t.Fatalf("%s: %s: %s", line, a.Error, a.Output)
	}
	return strings.TrimSpace(a.Output)
}

func startPodman(t testing.TB, cfg podman.Config) *podman.Conn {
	t.Helper()
	if cfg.State == "" {
		cfg.State = t.TempDir()
	}
	conn, err := podman.Start(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func newStore(t testing.TB, conn *podman.Conn, opts images.Options) *images.Store {
	t.Helper()
	if opts.WorkDir == "" {
		opts.WorkDir = filepath.Join(t.TempDir(), "work")
	}
	if opts.Guest == "" {
		opts.Guest = guest(t)
	}
	s, err := images.New(conn, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Errorf("store: %v", err)
		}
	})
	return s
}
