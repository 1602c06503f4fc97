package runner_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/podman"
	"github.com/Morphux/quarry/internal/testbase"
	"github.com/Morphux/quarry/internal/testpkg"
	"github.com/Morphux/quarry/layers"
	"github.com/Morphux/quarry/recipe"
	"github.com/Morphux/quarry/runner"
)

// farm is what a test builds with: real containers on a podman service of the
// test's own.
type farm struct {
	conn  *podman.Conn
	store *images.Store
}

func newFarm(t testing.TB) *farm {
	t.Helper()
	return farmOn(t, testbase.Podman(t))
}

func farmOn(t testing.TB, conn *podman.Conn) *farm {
	t.Helper()
	store, err := images.New(conn, images.Options{
		WorkDir:  filepath.Join(t.TempDir(), "work"),
		Guest:    testbase.Guest(t, "github.com/Morphux/quarry/runner/testdata/guest"),
		Channels: []images.Channel{{Name: "testing", Archs: []string{testbase.Arch}}},
		// Whatever this machine has: the pool is only at work where a test says so.
		Pool: images.PoolOptions{Max: 4, MinMemory: 1, MinDisk: 1, MaxStall: 100},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		if err := store.Close(ctx); err != nil {
			t.Errorf("workspaces are left: %v", err)
		}
	})
	return &farm{conn, store}
}

// pool has workspaces kept ready from now on.
func (f *farm) pool(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.store.Maintain(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	if err := f.store.Start(t.Context(), "testing"); err != nil {
		t.Fatal(err)
	}
}

func TestMain(m *testing.M) {
	layers.Unpacker()
	code := m.Run()
	testbase.Clean()
	os.Exit(code)
}

// log is a log that a test may read while a build writes it.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// has waits until the log holds a text.
func (l *log) has(t testing.TB, text string) {
	t.Helper()
	for until := time.Now().Add(2 * time.Minute); !strings.Contains(l.String(), text); {
		if time.Now().After(until) {
			t.Fatalf("the log never says %q:\n%s", text, tail(l.String()))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func tail(s string) string {
	if len(s) > 4000 {
		s = "..." + s[len(s)-4000:]
	}
	return s
}

// pkg describes a package in a few words: the values of compilation, and
// files. A name ending in ".sh" is executable.
type pkg struct {
	compilation map[string]any
	quarry      map[string]any
	files       map[string]string
	source      fs.FS // instead of all that
}

func (p pkg) fs(t testing.TB) fs.FS {
	t.Helper()
	if p.source != nil {
		return p.source
	}
	doc := map[string]any{
		"package":      map[string]any{"name": "probe", "version": "1.0", "description": "A package of a test"},
		"compilation":  map[string]any{"patches": []string{}, "make": "true", "test": "", "install": "true"},
		"dependencies": []string{},
	}
	// A bare word is a target of make; these are lines.
	doc["compilation"].(map[string]any)["make"] = "true ;"
	doc["compilation"].(map[string]any)["install"] = "true ;"
	maps.Copy(doc["compilation"].(map[string]any), p.compilation)
	if p.quarry != nil {
		doc["quarry"] = p.quarry
	}
	text, err := json.MarshalIndent(doc, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	m := fstest.MapFS{"package.json": {Data: text, Mode: 0o644}, "srcs/README": {Data: []byte("read me\n"), Mode: 0o600}}
	for name, content := range p.files {
		f := &fstest.MapFile{Data: []byte(content), Mode: 0o644}
		if strings.HasSuffix(name, ".sh") {
			f.Mode = 0o755
		}
		if target, ok := strings.CutPrefix(content, "->"); ok {
			f.Data, f.Mode = []byte(target), fs.ModeSymlink|0o777
		}
		m[name] = f
	}
	return m
}

// attempt is one build of a test.
type attempt struct {
	pkg
	spec   images.Spec
	limits runner.Limits
	deps   []runner.Dep
	jobs   int
	cmd    string
	change func(*runner.Job)
	ctx    context.Context
	began  func(*images.Workspace, *log) // in a goroutine of its own
	look   func(*images.Workspace)       // after the build, before the workspace goes
	after  func(*runner.Scene)           // likewise, once look is done, with where it stands
}

var number = func() func() int64 {
	var mu sync.Mutex
	n := int64(0)
	return func() int64 { mu.Lock(); defer mu.Unlock(); n++; return n }
}()

// try makes a build.
func (f *farm) try(t testing.TB, a attempt) (*runner.Result, string, error) {
	t.Helper()
	ctx := a.ctx
	if ctx == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
	}
	src := a.fs(t)
	rec, err := recipe.Load(src)
	if err != nil {
		t.Fatal(err)
	}
	n := number()
	a.spec.Name, a.spec.Channel = fmt.Sprint(n), "testing"
	if a.spec.Arch == "" {
		a.spec.Arch = testbase.Arch
	}
	ws, err := f.store.Workspace(context.Background(), a.spec)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := ws.Close(context.Background()); err != nil && !errors.Is(err, podman.ErrGone) {
			t.Errorf("close: %v", err)
		}
	}()
	out := &log{}
	if a.began != nil {
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { a.began(ws, out) })
	}
	if a.limits.Step == 0 {
		a.limits.Step = 2 * time.Minute
	}
	job := runner.Job{
		Build: quarry.Build{Number: n, Release: quarry.Release{
			Package: rec.Package, Version: rec.Version, Channel: "testing", Time: time.Unix(testpkg.Unix, 0),
		}, Arch: a.spec.Arch},
		Recipe: rec, Source: src, Deps: a.deps, Limits: a.limits, Jobs: a.jobs, Command: a.cmd,
		Reproduce: "quarry build --arch " + a.spec.Arch + " .", Log: out,
	}
	if a.change != nil {
		a.change(&job)
	}
	res, err := runner.Run(ctx, ws, job)
	if a.look != nil {
		a.look(ws)
	}
	if a.after != nil && err == nil {
		a.after(res.Scene)
	}
	return res, out.String(), err
}

// build makes a build that the farm can make.
func (f *farm) build(t testing.TB, a attempt) (*runner.Result, string) {
	t.Helper()
	res, out, err := f.try(t, a)
	if err != nil {
		t.Fatalf("the farm failed: %v\n%s", err, tail(out))
	}
	return res, out
}

// succeed makes a build that must succeed.
func (f *farm) succeed(t testing.TB, a attempt) (*runner.Result, string) {
	t.Helper()
	res, out := f.build(t, a)
	if res.Failure != nil {
		t.Fatalf("it failed: %+v\n%s", *res.Failure, tail(out))
	}
	return res, out
}

// fails makes a build that must fail in a step for a cause.
func (f *farm) fails(t testing.TB, a attempt, step string, cause quarry.Cause) (*quarry.Failure, string) {
	t.Helper()
	res, out := f.build(t, a)
	if res.Failure == nil {
		t.Fatalf("it succeeded\n%s", tail(out))
	}
	if res.Failure.Step != step || res.Failure.Cause != cause {
		t.Errorf("it failed in %s (%s), want %s (%s): %s\n%s", res.Failure.Step, res.Failure.Cause, step, cause, res.Failure.Message, tail(out))
	}
	if !strings.HasPrefix(res.Failure.Reproduce, "quarry build ") || strings.Contains(res.Failure.Message, "\n") {
		t.Errorf("failure %+v", *res.Failure)
	}
	return res.Failure, out
}

func names(steps []quarry.Step) string {
	var s []string
	for _, st := range steps {
		s = append(s, st.Name)
	}
	return strings.Join(s, " ")
}

// staged lists what was installed.
func staged(t testing.TB, res *runner.Result, check func(string)) {
	t.Helper()
	var found []string
	err := filepath.WalkDir(res.Staged, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			found = append(found, strings.TrimPrefix(p, res.Staged))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(found)
	check(strings.Join(found, " "))
}

// withLog makes a build whose log goes to w.
func (f *farm) withLog(t testing.TB, p pkg, w io.Writer) error {
	t.Helper()
	src := p.fs(t)
	rec, err := recipe.Load(src)
	if err != nil {
		t.Fatal(err)
	}
	ws, err := f.store.Workspace(t.Context(), images.Spec{Name: fmt.Sprint(number()), Arch: testbase.Arch, Channel: "testing"})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close(context.Background())
	_, err = runner.Run(t.Context(), ws, runner.Job{Recipe: rec, Source: src, Log: w, Limits: runner.Limits{Step: time.Minute}})
	return err
}
