package api

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"testing"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/bundle"
	"github.com/Morphux/quarry/control"
)

// Bundles that arrive at the same time have to find room beside each other.
func TestRoomForBundles(t *testing.T) {
	pusher, err := bundle.New(bundle.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	ts, err := openTasks(t.TempDir(), TaskLimits{Bytes: 10_000}, &control.Farm{Bundles: pusher}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	var tarred bytes.Buffer
	w := tar.NewWriter(&tarred)
	text := `{"package": {"name": "hello", "version": "1.0", "description": "Says hello"}, "compilation": {}, "dependencies": []}`
	if err := w.WriteHeader(&tar.Header{Name: "package.json", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text))}); err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, text)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	data := append(tarred.Bytes(), make([]byte, 6000-tarred.Len())...)
	alice := quarry.Identity{Packager: quarry.Packager{User: "alice"}, Role: quarry.RoleMaintainer}
	put := func(r io.Reader) error {
		made, err := ts.create(alice)
		if err != nil {
			return err
		}
		_, err = ts.change(alice, made.ID, func(t *task) error { return ts.bundle(t, r) })
		return err
	}
	full := func(err error) bool {
		exact := new(statusError)
		return errors.As(err, &exact) && exact.status == http.StatusInsufficientStorage
	}
	r, slow := io.Pipe()
	first := make(chan error)
	go func() { first <- put(r) }()
	slow.Write(data[:5000])
	slow.Write(data[5000:5001]) // taken up only once the others are counted
	if err := put(bytes.NewReader(data)); !full(err) {
		t.Errorf("beside one that arrives: %v", err)
	}
	slow.Write(data[5001:])
	slow.Close()
	if err := <-first; err != nil {
		t.Error(err)
	}
	if err := put(bytes.NewReader(data)); !full(err) {
		t.Errorf("beside one that is kept: %v", err)
	}
	if err := put(bytes.NewReader(data[:3584])); err != nil {
		t.Errorf("one that there is room for: %v", err)
	}
	if ts.arriving != 0 {
		t.Errorf("%d bytes arrive", ts.arriving)
	}
}
