package gittend

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry/internal/runnable"
)

func git(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=A", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=A", "GIT_COMMITTER_EMAIL=a@b")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// repo is a bare repository that grows with grow.
func repo(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.git")
	git(t, "init", "-q", "--bare", "-b", "master", path)
	git(t, "-C", path, "config", "gc.auto", "0")
	return path
}

// grow puts a commit with n files on the branch, as a pack of its own.
func grow(t testing.TB, path, name string, n int) {
	t.Helper()
	var in strings.Builder
	fmt.Fprintf(&in, "commit refs/heads/master\ncommitter A <a@b> 1700000000 +0000\ndata 1\nx\n")
	if exec.Command("git", "-C", path, "rev-parse", "-q", "--verify", "master").Run() == nil {
		in.WriteString("from refs/heads/master^0\n")
	}
	for i := range n {
		text := fmt.Sprintf("%s %d", name, i)
		for range 5 { // that does not pack well
			text += fmt.Sprintf("%x", sha256.Sum256([]byte(text)))
		}
		fmt.Fprintf(&in, "M 100644 inline %s/%d\ndata %d\n%s\n", name, i, len(text), text)
	}
	cmd := exec.Command("git", "-C", path, "-c", "fastimport.unpackLimit=0", "fast-import", "--quiet")
	cmd.Stdin = strings.NewReader(in.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func tend(t testing.TB, path, program string) {
	t.Helper()
	if err := Run(t.Context(), path, Options{Git: program, Lock: filepath.Join(path, "lock")}); err != nil {
		t.Fatal(err)
	}
}

func packs(t testing.TB, path string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(path, "objects", "pack", "*.pack"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func bitmap(t testing.TB, path string) []string {
	t.Helper()
	kept, err := covered(filepath.Join(path, "objects", "pack"))
	if err != nil {
		t.Fatal(err)
	}
	return kept
}

func TestTend(t *testing.T) {
	path := repo(t)
	tend(t, path, "git") // of nothing
	grow(t, path, "first", 1000)
	objects := func() string { return git(t, "-C", path, "cat-file", "--batch-all-objects", "--batch-check") }
	all := objects()
	tend(t, path, "git")
	first := bitmap(t, path)
	if len(first) != 1 || objects() != all {
		t.Fatalf("the bitmap is of %v", first)
	}
	// What is a little is melted together, and the bitmap stays.
	for i := range 20 {
		grow(t, path, fmt.Sprintf("little%d", i), 1)
	}
	all = objects()
	tend(t, path, "git")
	if n := len(packs(t, path)); n != 2 || !slices.Equal(bitmap(t, path), first) || objects() != all {
		t.Errorf("there are %d packs, and the bitmap is of %v and not of %v", n, bitmap(t, path), first)
	}
	// More than a tenth: a new bitmap, of all.
	grow(t, path, "much", 200)
	all = objects()
	tend(t, path, "git")
	if n := len(packs(t, path)); len(bitmap(t, path)) != n || slices.Equal(bitmap(t, path), first) || objects() != all {
		t.Errorf("there are %d packs, and the bitmap is of %v", n, bitmap(t, path))
	}
	git(t, "-C", path, "fsck", "--strict")
	if got := git(t, "-C", path, "rev-list", "--test-bitmap", "master"); strings.Contains(got, "mismatch") {
		t.Error(got)
	}
	// Loose objects, reachable or not, come into packs.
	git(t, "-C", path, "hash-object", "-w", "--stdin", "--path=x", "-t", "blob", filepath.Join(path, "config"))
	loose := git(t, "-C", path, "hash-object", "-w", filepath.Join(path, "config"))
	tend(t, path, "git")
	if n := git(t, "-C", path, "count-objects"); !strings.HasPrefix(n, "0 objects") {
		t.Error(n)
	}
	git(t, "-C", path, "cat-file", "-e", loose)
	// Stock git may do its own, and what it leaves is taken up from there.
	git(t, "-C", path, "gc", "-q")
	grow(t, path, "more", 5)
	tend(t, path, "git")
	git(t, "-C", path, "fsck", "--strict")
	if bitmap(t, path) == nil {
		t.Error("there is no bitmap after git gc")
	}
}

// A damaged index of packs is no reason to stop: git writes it anew.
func TestDamaged(t *testing.T) {
	path := repo(t)
	grow(t, path, "first", 10)
	tend(t, path, "git")
	midx := filepath.Join(path, "objects", "pack", "multi-pack-index")
	whole, err := os.ReadFile(midx)
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n < len(whole); n += 7 {
		os.Remove(midx)
		if err := os.WriteFile(midx, whole[:n], 0o644); err != nil {
			t.Fatal(err)
		}
		if kept, err := covered(filepath.Dir(midx)); err != nil || len(kept) > 1 {
			t.Fatalf("of %d bytes: %v, %v", n, kept, err)
		}
	}
	if err := os.WriteFile(midx, whole, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(packs(t, path)[0]); err != nil {
		t.Fatal(err)
	}
	if kept := bitmap(t, path); kept != nil {
		t.Errorf("the bitmap is of a pack that is gone: %v", kept)
	}
}

// Git and its children stand back, and two processes never tend at one time.
func TestNiceAndAlone(t *testing.T) {
	path := repo(t)
	grow(t, path, "first", 10)
	program := filepath.Join(t.TempDir(), "git")
	out := filepath.Join(t.TempDir(), "out")
	started := filepath.Join(t.TempDir(), "started")
	// It is told to end once it has started, and is over with all that it began,
	// which holds the lock too.
	script := fmt.Sprintf("#!/bin/sh\nnice >>%s\n(nice) >>%s\nsleep 1000 >/dev/null 2>&1 & child=$!\ntrap 'kill $child; wait $child; exit 1' TERM\n>%s\nwait\n", out, out, started)
	if err := runnable.WriteFile(program, []byte(script)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	o := Options{Git: program, Lock: filepath.Join(path, "lock")}
	go func() { done <- Run(ctx, path, o) }()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(started); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("git does not start")
		}
	}
	if err := Run(t.Context(), path, o); err != nil { // the first goes on
		t.Error(err)
	}
	cancel()
	if err := <-done; err != context.Canceled {
		t.Errorf("ended with %v", err)
	}
	said, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	mine, err := exec.Command("nice").Output()
	if err != nil {
		t.Fatal(err)
	}
	before := 0
	fmt.Sscan(string(mine), &before)
	want := fmt.Sprint(min(19, max(before, niceness)))
	if got := strings.Fields(string(said)); !slices.Equal(got, []string{want, want}) {
		t.Errorf("git runs at the niceness %v, and not at %s, once", got, want)
	}
	tend(t, path, "git")
	if bitmap(t, path) == nil {
		t.Error("there is no bitmap afterwards")
	}
}

// A process that is killed takes git with it, and the next begins where it was.
func TestKilled(t *testing.T) {
	if path := os.Getenv("QUARRY_TEST_CHILD"); path != "" {
		_ = Run(context.Background(), path, Options{Git: os.Getenv("QUARRY_TEST_GIT"), Lock: filepath.Join(path, "lock")})
		return
	}
	path := repo(t)
	grow(t, path, "first", 10)
	program, pid := filepath.Join(t.TempDir(), "git"), filepath.Join(t.TempDir(), "pid")
	script := fmt.Sprintf("#!/bin/sh\necho $$ >%s.new && mv %s.new %s\nexec sleep 1000\n", pid, pid, pid)
	if err := runnable.WriteFile(program, []byte(script)); err != nil {
		t.Fatal(err)
	}
	child := exec.Command(os.Args[0], "-test.run=^TestKilled$")
	child.Env = append(os.Environ(), "QUARRY_TEST_CHILD="+path, "QUARRY_TEST_GIT="+program)
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: not after two minutes", what)
			}
		}
	}
	until("git starts", func() bool { _, err := os.Stat(pid); return err == nil })
	child.Process.Kill()
	child.Wait()
	number, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	// Of one that has ended and nobody has asked after there is no command line, and
	// its number may be another's.
	until("git ends", func() bool {
		line, _ := os.ReadFile("/proc/" + strings.TrimSpace(string(number)) + "/cmdline")
		return string(line) != "sleep\x001000\x00"
	})
	until("the lock is free", func() bool { tend(t, path, "git"); return bitmap(t, path) != nil })
}
