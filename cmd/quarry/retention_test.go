package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/extract"
	"github.com/Morphux/quarry/internal/testpkg"
	"github.com/Morphux/quarry/pipeline"
	"github.com/Morphux/quarry/queue"
	"github.com/Morphux/quarry/results"
	"github.com/spf13/afero"
)

func sha(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text))) }

// age has a file be of days ago.
func age(t testing.TB, path string, days int) {
	t.Helper()
	old := time.Now().AddDate(0, 0, -days)
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
}

// TestRetention removes what nothing refers to from a real farm, and nothing else.
func TestRetention(t *testing.T) {
	s := newServer(t, t.TempDir())
	arch := config.HostArch()
	s.writeConfig(t, fmt.Sprintf("[retention]\nartifacts = \"1d\"\n[channel.testing]\narchs = [%q]\n[channel.stable]\narchs = [%q]\n", arch, arch))
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	defer func() { s.stop(syscall.SIGTERM) }()
	prune := func(args ...string) control.Pruned {
		t.Helper()
		var p control.Pruned
		if err := json.Unmarshal([]byte(s.quarry(t, append([]string{"prune", "--json"}, args...)...)), &p); err != nil {
			t.Fatal(err)
		}
		return p
	}
	if p := prune("--now"); p.All.Count != 0 || p.Removed.Count != 0 {
		t.Errorf("an empty farm has %+v", p)
	}
	for _, name := range []string{"libgreet", "greeter", "hello"} {
		s.mustIn(t, testpkg.Init(t, name), "git", "push", "-o", "follow", s.url(name), "HEAD:refs/heads/"+name+"-1.0")
	}
	s.quarry(t, "promote", "hello-1.0", "testing", "stable")
	lib, greeter, hello := s.artifact(t, "libgreet"), s.artifact(t, "greeter"), s.artifact(t, "hello")
	stray := filepath.Join(s.state("artifacts"), "00", strings.Repeat("0", 64)+".tar.zst")
	young := filepath.Join(s.state("artifacts"), "00", strings.Repeat("0", 63)+"1.tar.zst")
	os.MkdirAll(filepath.Dir(stray), 0o755)
	for _, path := range []string{stray, young} {
		if err := os.WriteFile(path, []byte("stray"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{lib, greeter, hello, stray} {
		age(t, path, 400)
	}
	there := func(path string) bool { _, err := os.Stat(path); return err == nil }

	p := prune("--list")
	if !p.Dry || p.All.Count != 5 || p.Recent.Count != 1 || p.Referenced.Count != 3 || p.Unused.Count != 1 || p.Unused.Bytes != 5 || p.Removed.Count != 0 || len(p.Artifacts) != 1 || !there(stray) {
		t.Errorf("it would remove %+v", p)
	}
	if out := s.quarry(t, "prune", "--list"); !strings.Contains(out, strings.Repeat("0", 64)) || !strings.Contains(out, "nothing was removed: prune --now does it") {
		t.Errorf("it says\n%s", out)
	}
	if p := prune("--now"); p.Removed.Count != 1 || there(stray) || !there(young) || !there(lib) || !there(greeter) || !there(hello) {
		t.Errorf("it removed %+v", p)
	}
	// What was taken back lately can be promoted again; what a record was built with
	// stays as long as the record.
	s.quarry(t, "rollback", "stable", "--force")
	if p := prune("--now"); p.Removed.Count != 0 || !there(hello) {
		t.Errorf("it removed %+v", p)
	}
	// Who may not, does not; who writes nonsense, neither.
	for _, wrong := range []struct {
		args []string
		code int
	}{{[]string{"-c", s.config, "prune", "--now", "--dry-run"}, control.ExitUsage}} {
		_, errOut, err := s.run(s.dir, s.bin, wrong.args...)
		if exit := new(exec.ExitError); !asExit(err, exit) || exit.ExitCode() != wrong.code {
			t.Errorf("%v: %v\n%s", wrong.args, err, errOut)
		}
	}
	if _, errOut, err := s.run(s.dir, "sh", "-c", "$SSH prune"); err == nil || !strings.Contains(errOut, "only an admin") {
		t.Errorf("alice got %v\n%s", err, errOut)
	}
}

// queueAtRest is a queue that has not begun to run.
func queueAtRest(t *testing.T) *queue.Queue {
	t.Helper()
	none := func() error { return errors.New("not in this test") }
	q, err := queue.New(queue.Options{Fs: afero.NewMemMapFs(),
		Releases: func(context.Context, string) ([]quarry.Release, []queue.Problem, error) { return nil, nil, none() },
		Records:  func(context.Context, string) (queue.Records, error) { return nil, none() },
		Run: func(context.Context, quarry.Build, []quarry.DepUsed, func(string)) (*quarry.Outcome, error) {
			return nil, none()
		},
		Record: func(context.Context, *quarry.Outcome) (string, error) { return "", none() },
	})
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// TestPruneHistory removes by what records say and said, on a clock of its own.
func TestPruneHistory(t *testing.T) {
	dir := t.TempDir()
	now := time.Now().AddDate(0, 0, -100)
	repo, err := results.Open(filepath.Join(dir, "results.git"), results.Options{Now: func() time.Time { return now }, MaxPacks: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	store, err := extract.OpenArtifacts(filepath.Join(dir, "artifacts"))
	if err != nil {
		t.Fatal(err)
	}
	q := queueAtRest(t)
	cfg := config.Default()
	cfg.Retain.Artifacts = config.Duration(30 * 24 * time.Hour)
	st := &stages{cfg: cfg, log: slog.New(slog.DiscardHandler), results: repo, pipeline: &pipeline.Pipeline{Artifacts: store}}
	p := &pruner{stages: st, queue: q}

	n := int64(0)
	made := map[string]quarry.DepUsed{}
	build := func(pkg, text string, deps ...string) string {
		t.Helper()
		n++
		art, err := store.Put(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		age(t, store.Path(art.SHA256), 200)
		b := quarry.Build{Number: n, Release: quarry.Release{Package: pkg, Version: "1", Channel: "testing", Commit: strings.Repeat("a", 40), Time: time.Unix(1, 0)}, Arch: "x86_64", Nonce: fmt.Sprint(n)}
		b.Key = quarry.BuildKey(b.Target(), b.Commit, b.Nonce)
		o := &quarry.Outcome{Build: b, Status: quarry.Succeeded, Started: time.Unix(n, 0), Ended: time.Unix(n+1, 0), Facts: &quarry.Facts{}, Artifact: &art}
		for _, d := range deps {
			o.Deps = append(o.Deps, made[d])
		}
		if _, err := repo.Record(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		made[pkg] = quarry.DepUsed{Package: pkg, Version: "1", Artifact: art.SHA256, Direct: true}
		return art.SHA256
	}
	there := func(want string, list map[string]string) {
		t.Helper()
		var got []string
		for name, sha := range list {
			if store.Verify(sha) == nil {
				got = append(got, name)
			}
		}
		slices.Sort(got)
		if strings.Join(got, " ") != want {
			t.Errorf("there are %v, want %s", got, want)
		}
	}
	prune := func() *control.Pruned {
		t.Helper()
		out, err := p.Prune(t.Context(), true)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	all := map[string]string{}
	all["lib1"] = build("lib", "lib1")
	all["app"] = build("app", "app", "lib") // built with lib1, and not again
	all["tool1"] = build("tool", "tool1")
	now = time.Now().AddDate(0, 0, -60)
	all["lib2"], all["tool2"] = build("lib", "lib2"), build("tool", "tool2") // tool1 has not stood for 60 days
	now = time.Now().AddDate(0, 0, -20)
	all["tool3"] = build("tool", "tool3") // tool2 stood until 20 days ago
	now = time.Now()

	// What somebody verifies stays, whatever records say.
	free, err := st.hold(quarry.Target{Channel: "testing", Package: "tool", Version: "1", Arch: "x86_64"})
	if err != nil {
		t.Fatal(err)
	}
	st.holds.needed[all["tool1"]]++
	if out := prune(); out.Removed.Count != 0 {
		t.Errorf("it removed %+v", out)
	}
	delete(st.holds.needed, all["tool1"])
	free()
	if len(st.holds.needed) != 0 {
		t.Errorf("it is still held: %v", st.holds.needed)
	}
	if out := prune(); out.Removed.Count != 1 || out.Referenced.Count != 5 {
		t.Errorf("it removed %+v", out)
	}
	there("app lib1 lib2 tool2 tool3", all)

	// A record that cannot be read, or a database that is empty, is no leave to remove.
	if _, err := store.Put(strings.NewReader("stray")); err != nil {
		t.Fatal(err)
	}
	stray := sha("stray")
	age(t, store.Path(stray), 200)
	empty, err := results.Open(filepath.Join(dir, "empty.git"), results.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer empty.Close()
	lost := &pruner{stages: &stages{cfg: cfg, log: st.log, results: empty, pipeline: st.pipeline}, queue: q}
	if _, err := lost.Prune(t.Context(), true); err == nil || !strings.Contains(err.Error(), "restore results.git first") || store.Verify(stray) != nil {
		t.Errorf("without a record: %v", err)
	}
}

// TestPruneLate has a record come, and an artifact be made again, between the look
// and the removal.
func TestPruneLate(t *testing.T) {
	dir := t.TempDir()
	repo, err := results.Open(filepath.Join(dir, "results.git"), results.Options{MaxPacks: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	store, err := extract.OpenArtifacts(filepath.Join(dir, "artifacts"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := config.Default()
	st := &stages{cfg: cfg, log: slog.New(slog.DiscardHandler), results: repo, pipeline: &pipeline.Pipeline{Artifacts: store}}
	p := &pruner{stages: st}
	put := func(text string) quarry.Artifact {
		t.Helper()
		art, err := store.Put(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		return art
	}
	record := func(pkg string, n int64, art quarry.Artifact) {
		t.Helper()
		b := quarry.Build{Number: n, Release: quarry.Release{Package: pkg, Version: "1", Channel: "testing", Commit: strings.Repeat("a", 40), Time: time.Unix(1, 0)}, Arch: "x86_64"}
		b.Key = quarry.BuildKey(b.Target(), b.Commit, "")
		if _, err := repo.Record(t.Context(), &quarry.Outcome{Build: b, Status: quarry.Succeeded, Started: time.Unix(n, 0), Ended: time.Unix(n+1, 0), Facts: &quarry.Facts{}, Artifact: &art}); err != nil {
			t.Fatal(err)
		}
	}
	var list []quarry.Artifact
	for i, text := range []string{"stands", "late", "again", "gone"} {
		list = append(list, put(text))
		age(t, store.Path(list[i].SHA256), 200)
	}
	record("stands", 1, list[0])
	since := time.Now().AddDate(0, 0, -30)
	out := &control.Pruned{}
	m, err := p.old(t.Context(), since, out)
	if err != nil || len(m.list) != 4 {
		t.Fatalf("%d are old, %v", len(m.list), err)
	}
	refs, err := repo.References(t.Context(), since, m.see)
	if err != nil {
		t.Fatal(err)
	}
	record("late", 2, list[1])
	put("again")
	if err := p.remove(t.Context(), refs, m, []int{0, 1, 2, 3}, since, out); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, true, true, false} {
		if got := store.Verify(list[i].SHA256) == nil; got != want {
			t.Errorf("artifact %d is there: %v", i, got)
		}
	}
	if out.Removed.Count != 1 {
		t.Errorf("it removed %+v", out)
	}
}
