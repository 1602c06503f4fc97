package runner_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/testbase"
	"github.com/Morphux/quarry/runner"
)

// probe runs a recipe that writes down all that a build can see of its
// workspace, and returns that with the container in which it ran.
func (f *farm) probe(t *testing.T, since time.Time) (seen, container string, warm bool) {
	t.Helper()
	f.succeed(t, attempt{
		ctx: t.Context(), limits: runner.Limits{Step: time.Hour},
		pkg: pkg{compilation: map[string]any{"make": "sh probe.sh", "env": []any{map[string]string{"SINCE": fmt.Sprint(since.Unix())}}},
			files: sources(t, "probe")},
		look: func(ws *images.Workspace) {
			data, err := os.ReadFile(filepath.Join(ws.Dir, "home/probe"))
			if err != nil {
				t.Fatal(err)
			}
			seen, container, warm = string(data), ws.ContainerID, ws.Warm
		},
	})
	if !strings.HasSuffix(seen, "== end\n") || len(seen) < 100_000 {
		t.Fatalf("the probe did not come to its end:\n%s", tail(seen))
	}
	return seen, container, warm
}

// sources reads the files of a package in testdata.
func sources(t *testing.T, name string) map[string]string {
	t.Helper()
	files := map[string]string{}
	root := os.DirFS(filepath.Join("testdata", name))
	err := fs.WalkDir(root, ".", func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			var data []byte
			data, err = fs.ReadFile(root, p)
			files[strings.TrimSuffix(p, "x")] = string(data)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// different lists lines that are in one text only.
func different(want, got string) string {
	in := func(s string) map[string]int {
		m := map[string]int{}
		for line := range strings.Lines(s) {
			m[line]++
		}
		return m
	}
	a, b := in(want), in(got)
	var out []string
	for line, n := range a {
		if b[line] != n {
			out = append(out, "- "+line)
		}
	}
	for line, n := range b {
		if a[line] != n {
			out = append(out, "+ "+line)
		}
	}
	slices.SortFunc(out, func(a, b string) int { return strings.Compare(a[2:]+a[:1], b[2:]+b[:1]) })
	if len(out) > 40 {
		out = append(out[:40], fmt.Sprintf("and %d more\n", len(out)-40))
	}
	return strings.Join(out, "")
}

// What a build does to its workspace is not seen by any other build: whether
// its workspace was ready before, made ready while the dirt was there, or made
// when it was asked for, at the same time or afterwards.
func TestCleanWorkspaces(t *testing.T) {
	virgin := newFarm(t)
	since := time.Now().Add(-time.Minute)
	want, _, _ := virgin.probe(t, since)
	again, _, _ := virgin.probe(t, since)
	if diff := different(want, again); diff != "" {
		t.Fatalf("two clean workspaces differ, so nothing can be said:\n%s", diff)
	}

	f := newFarm(t)
	f.pool(t)
	ready := func(n int) {
		t.Helper()
		f.store.Expect("testing", testbase.Arch, n)
		for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
			e := f.store.Environments(t.Context())[0]
			if e.Warm >= n && e.Warm == e.Target && e.Making == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d workspaces never were ready: %+v", n, e)
			}
		}
	}
	used := map[string]string{}
	clean := func(when string, wantWarm bool) {
		t.Helper()
		seen, container, warm := f.probe(t, since)
		if warm != wantWarm {
			t.Errorf("%s: warm is %v", when, warm)
		}
		if diff := different(want, seen); diff != "" {
			t.Errorf("%s: the workspace is not as a clean one is:\n%s", when, diff)
		}
		if was := used[container]; was != "" {
			t.Errorf("%s: the workspace is the one of %s", when, was)
		}
		used[container] = when
	}

	ready(2)
	_, out := f.succeed(t, attempt{
		ctx: t.Context(), limits: runner.Limits{Step: time.Hour},
		pkg: pkg{compilation: map[string]any{"make": "sh soil.sh", "test": "true ;"}, files: sources(t, "soil")},
		began: func(ws *images.Workspace, out *log) {
			used[ws.ContainerID] = "the dirt"
			defer os.WriteFile(filepath.Join(ws.Dir, "go"), nil, 0o644)
			for deadline := time.Now().Add(10 * time.Minute); !strings.Contains(out.String(), "\nsoiled all\n"); time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Errorf("the dirt is not complete:\n%s", tail(out.String()))
					return
				}
			}
			ready(4)
			clean("ready before the dirt, used beside it", true)
			// The next may have been made ready while it was being soiled, the one
			// after it was made beside all the dirt.
			clean("made ready meanwhile, used beside the dirt", true)
			clean("made ready beside the dirt, used beside it", true)
			if err := f.store.Stop(t.Context(), "testing"); err != nil {
				t.Error(err)
			}
			clean("made beside the dirt", false)
			if err := f.store.Start(t.Context(), "testing"); err != nil {
				t.Error(err)
			}
			ready(2)
		},
	})
	clean("made ready beside the dirt, used after it", true)
	if err := f.store.Stop(t.Context(), "testing"); err != nil {
		t.Fatal(err)
	}
	clean("made after the dirt", false)

	// The dirt must have been there for all this to say something.
	did := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^(did|refused) ([^:\n]*)`).FindAllStringSubmatch(out, -1) {
		did[m[2]] = m[1] == "did"
	}
	for _, what := range []string{"files", "user", "cron", "start", "deleted", "times", "modes", "links", "libraries", "hosts", "shm", "sem", "msg", "mqueue", "devshm",
		"lock files", "abstract socket", "leave a process", "xattr", "oom score", "ulimit", "make", "sh", "preload", "trace"} {
		if !did[what] {
			t.Errorf("the workspace could not be soiled with %s", what)
		}
	}
	for _, what := range []string{"mount", "bind mount", "unmount", "namespace", "hostname", "clock", "cgroup", "cgroup of its own", "guest", "device", "remount", "core pattern",
		"sysctl kernel.shmmax", "sysctl kernel.msgmnb", "sysctl kernel.sem", "sysctl fs.mqueue", "sysctl net", "sysctl net.ipv4"} {
		if done, known := did[what]; done || !known {
			t.Errorf("%s was not refused", what)
		}
	}
	if t.Failed() {
		t.Logf("the dirt:\n%s", tail(out))
	}
}
