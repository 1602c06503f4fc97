package images

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"testing"

	"github.com/containers/podman/v4/pkg/errorhandling"

	"github.com/Morphux/quarry/internal/podman"
)

// What a service refuses is the farm's loss when it does not answer any more, whether
// somebody has noticed its end yet or not.
func TestBlame(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "podman.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Libpod-API-Version", "4.3.1")
		fmt.Fprint(w, "{}")
	})}
	go srv.Serve(l)
	defer srv.Close()
	conn, err := podman.Start(t.Context(), podman.Config{State: t.TempDir(), URI: "unix://" + socket})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s := &Store{conn: conn}
	refusal := &errorhandling.ErrorModel{Message: "the helper was killed", ResponseCode: http.StatusInternalServerError}
	if err := s.blame(conn.Generation(), refusal); errors.Is(err, podman.ErrGone) || !errors.Is(err, refusal) {
		t.Errorf("of one that answers: %v", err)
	}
	srv.Close()
	if err := s.blame(conn.Generation(), refusal); !errors.Is(err, podman.ErrGone) {
		t.Errorf("of one that does not answer any more: %v", err)
	}
}
