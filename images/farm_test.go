package images_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containers/podman/v4/pkg/bindings/containers"
	bindings "github.com/containers/podman/v4/pkg/bindings/images"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/podman"
	"github.com/Morphux/quarry/internal/testbase"
)

// tool builds testdata/tool and returns it as a file of a setup.
func tool(t testing.TB) images.SetupFile {
	t.Helper()
	data, err := toolProgram()
	if err != nil {
		t.Fatal(err)
	}
	return images.SetupFile{Path: "/usr/local/bin/tool", Mode: 0o755, Data: data}
}

var toolProgram = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "quarry-tool-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", filepath.Join(dir, "tool"), "./testdata/tool")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	// Under the most that a setup's file may have: see setup.go.
	return os.ReadFile(filepath.Join(dir, "tool"))
})

// site is what a mirror on this machine would be.
type site struct {
	URL  string // as a container sees it that may
	n    atomic.Int64
	busy atomic.Int64 // requests that are not over yet
	down atomic.Bool  // answers nothing
	ask  chan string  // when not nil: gets what is asked for, before it is answered
	ok   chan bool    // and then one to answer
}

func newSite(t testing.TB) *site {
	t.Helper()
	s := &site{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.n.Add(1)
		s.busy.Add(1)
		defer s.busy.Add(-1)
		if s.down.Load() {
			panic(http.ErrAbortHandler)
		}
		if s.ask != nil {
			select {
			case s.ask <- r.URL.Path:
			case <-r.Context().Done():
				return
			}
			select {
			case <-s.ok:
			case <-r.Context().Done():
				return
			}
		}
		fmt.Fprintf(w, "this is %s\n", r.URL.Path)
	}))
	t.Cleanup(srv.Close)
	_, port, _ := strings.Cut(strings.TrimPrefix(srv.URL, "http://"), ":")
	s.URL = "http://10.0.2.2:" + port // libslirp's name for the host
	return s
}

// await waits until something is so.
func await(t testing.TB, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !so(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it does not come to be that %s", what)
		}
	}
}

// book is a log that can be looked into.
type book struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *book) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *book) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *book) count(text string) int { return strings.Count(b.String(), text) }

func (b *book) logger() *slog.Logger { return slog.New(slog.NewTextHandler(b, nil)) }

// channel is a channel testing for the test's arch with a setup.
func channel(u images.Setup) []images.Channel {
	return []images.Channel{{Name: "testing", Archs: []string{testbase.Arch}, Setup: u}}
}

// setupFarm is a farm on the test's base with a channel.
func setupFarm(t testing.TB, u images.Setup) (farm, *book) {
	t.Helper()
	return farmWith(t, testbase.Podman(t), channel(u))
}

func farmWith(t testing.TB, conn *podman.Conn, channels []images.Channel) (farm, *book) {
	t.Helper()
	b := new(book)
	work := filepath.Join(t.TempDir(), "work")
	return farm{conn, newStore(t, conn, images.Options{WorkDir: work, Channels: channels, Log: b.logger()}), work}, b
}

// smallFarm is a farm with the smallest base that there is, which runs nothing.
func smallFarm(t testing.TB, channels []images.Channel) (farm, *book) {
	t.Helper()
	f, b := farmWith(t, startPodman(t, podman.Config{}), channels)
	f.load(t, "first")
	return f, b
}

// load gives a farm another small base, with a mark in it.
func (f farm) load(t testing.TB, mark string) images.Base {
	t.Helper()
	b, err := f.store.Load(t.Context(), testbase.Arch, file(t, mark+".tar", small(t, testbase.Arch,
		entry{name: "./etc/", kind: '5'}, entry{name: "./etc/mark", data: mark})), nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (f farm) update(t testing.TB, force bool) images.Instance {
	t.Helper()
	in, err := f.store.Update(t.Context(), "testing", testbase.Arch, force, nil)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// nothingHalf fails the test when a container, a draft, a nameless image or
// a temporary file of an update is left.
func (f farm) nothingHalf(t testing.TB) {
	t.Helper()
	call, err := f.conn.Context(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	list, err := containers.List(call, new(containers.ListOptions).WithAll(true).WithExternal(true))
	if err != nil || len(list) > 0 {
		t.Errorf("containers: %v, %v", list, err)
	}
	for _, name := range imageNames(t, f.conn) {
		if strings.Contains(name, "draft") || name == "" {
			t.Errorf("image %q is left", name)
		}
	}
	entries, err := os.ReadDir(filepath.Join(filepath.Dir(f.conn.Dir()), "instances"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); ext != ".json" && ext != ".log" {
			t.Errorf("%s is left", e.Name())
		}
	}
}

func imageNames(t testing.TB, conn *podman.Conn) (names []string) {
	t.Helper()
	call, err := conn.Context(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	list, err := bindings.List(call, new(bindings.ListOptions).WithAll(true))
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range list {
		if len(img.RepoTags) == 0 {
			names = append(names, "")
		}
		names = append(names, img.RepoTags...)
	}
	slices.Sort(names)
	return names
}

// layerOf lists what an instance's own layer holds, from podman's storage.
func (f farm) layerOf(t testing.TB, in images.Instance) (files []string) {
	t.Helper()
	call, err := f.conn.Context(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	img, err := bindings.GetImage(call, strings.TrimPrefix(in.Image, "sha256:"), nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := f.conn.HostPath(img.GraphDriver.Data["UpperDir"])
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if rel, _ := filepath.Rel(dir, p); rel != "." {
			files = append(files, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
