package notes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/events"
	"github.com/Morphux/quarry/internal/testpkg"
	"github.com/Morphux/quarry/repos"
)

func built(number int64, arch, commit string, state quarry.State, reason string) quarry.Build {
	return quarry.Build{Number: number, Arch: arch, State: state, Reason: reason, Record: strings.Repeat("ab", 20),
		Ended:   time.Date(2026, 11, 21, 21, 18, 5, 0, time.UTC),
		Release: quarry.Release{Package: "hello", Version: "1.0", Channel: "testing", Commit: commit}}
}

func TestLineAndMerge(t *testing.T) {
	ok := Line(built(17, "x86_64", "", quarry.Succeeded, ""), "https://farm.example.org/builds/17")
	if want := "testing/x86_64 succeeded 2026-11-21T21:18:05Z build 17 record abababababab https://farm.example.org/builds/17"; ok != want {
		t.Errorf("%q", ok)
	}
	b := built(18, "aarch64", "", quarry.Failed, "make: \x1b[1mmissing\nheader zconf.h"+strings.Repeat("x", 1000))
	b.Group, b.Stage = "gnome-49", "s1"
	bad := Line(b, "")
	if !strings.HasPrefix(bad, "testing@gnome-49/aarch64 failed 2026-11-21T21:18:05Z build 18 record abababababab - make: ") ||
		strings.ContainsAny(bad, "\n\x1b") || len(bad) > 500 {
		t.Errorf("%q", bad)
	}
	note := Merge("", ok)
	note = Merge(note, bad)
	note = Merge(note, bad)
	if want := ok + "\n" + bad + "\n"; note != want {
		t.Errorf("the note is\n%s", note)
	}
	newer := Line(built(20, "x86_64", "", quarry.Succeeded, ""), "")
	note = Merge(note+"something of somebody's\n", newer)
	if want := newer + "\n" + bad + "\nsomething of somebody's\n"; note != want {
		t.Errorf("the note is\n%s", note)
	}
	if again := Merge(note, ok); again != note {
		t.Errorf("an older build has taken the place of a younger one:\n%s", again)
	}
}

type farm struct {
	t     *testing.T
	log   *events.Log
	repos *repos.Repos
	dir   string

	commit, repo string
}

func newFarm(t *testing.T) *farm {
	f := &farm{t: t, dir: t.TempDir()}
	log, err := events.Open(filepath.Join(f.dir, "events"), events.Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	f.log = log
	if f.repos, err = repos.Open(filepath.Join(f.dir, "repos"), nil); err != nil {
		t.Fatal(err)
	}
	dir := testpkg.Init(t, "hello")
	if f.repo, err = f.repos.Ensure("hello"); err != nil {
		t.Fatal(err)
	}
	testpkg.Git(t, dir, "push", "-q", f.repo, "HEAD:refs/heads/hello-1.0")
	f.commit = strings.TrimSpace(testpkg.Git(t, dir, "rev-parse", "HEAD"))
	return f
}

func (f *farm) note() string {
	f.t.Helper()
	return testpkg.Git(f.t, f.repo, "log", "--notes=quarry", "--format=%N", "-1", "hello-1.0")
}

// run runs a writer until a condition holds, or what it has to do is done.
func (f *farm) run(note func(context.Context, string, string, func(string) string) error, until func() bool) {
	f.t.Helper()
	ctx, stop := context.WithCancel(f.t.Context())
	w := &Writer{Events: f.log, Dir: filepath.Join(f.dir, "notes"), Note: note, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		RetryMin: time.Millisecond, RetryMax: 10 * time.Millisecond,
		Never: func(err error) bool { return errors.Is(err, repos.ErrNoCommit) }}
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	for end := time.Now().Add(2 * time.Minute); !until(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			f.t.Fatalf("it never comes; the note is %q", f.note())
		}
	}
	stop()
	if err := <-done; err != nil {
		f.t.Fatal(err)
	}
}

// TestWriter: notes follow the events, are tried again, and a restart goes on where
// the last writer was.
func TestWriter(t *testing.T) {
	f := newFarm(t)
	now := time.Now() // what ended long ago is given up, and not tried again
	ended := func(number int64, arch, commit string, state quarry.State, reason string) events.Event {
		b := built(number, arch, commit, state, reason)
		b.Ended = now
		return events.OfBuild(b, false, "")
	}
	f.log.Append(ended(1, "x86_64", f.commit, quarry.Succeeded, ""),
		ended(2, "aarch64", strings.Repeat("d", 40), quarry.Failed, ""), // a commit that is gone
		ended(3, "aarch64", f.commit, quarry.Failed, "make: it is broken"))
	var mu sync.Mutex
	tries := map[string]int{}
	f.run(func(ctx context.Context, pkg, commit string, edit func(string) string) error {
		mu.Lock()
		tries[commit]++
		n := tries[commit]
		mu.Unlock()
		if n < 5 && commit == f.commit {
			return errors.New("the disk is full")
		}
		return f.repos.Note(ctx, pkg, commit, edit)
	}, func() bool { s := f.note(); return strings.Contains(s, "build 1 ") && strings.Contains(s, "build 3 ") })
	if tries[strings.Repeat("d", 40)] != 1 {
		t.Errorf("a note that can never be written was tried %d times", tries[strings.Repeat("d", 40)])
	}
	if s := f.note(); strings.Count(s, "\n") > 3 || !strings.Contains(s, "testing/aarch64 failed") || !strings.Contains(s, "- make: it is broken") {
		t.Errorf("the note is\n%s", s)
	}

	// Nothing is written while it fails, and a stop in the middle forgets nothing.
	f.log.Append(ended(4, "x86_64", f.commit, quarry.Succeeded, ""), ended(5, "riscv64", f.commit, quarry.Succeeded, ""))
	failed := make(chan struct{}, 1000)
	f.run(func(context.Context, string, string, func(string) string) error {
		select {
		case failed <- struct{}{}:
		default:
		}
		return errors.New("the repository cannot be written")
	}, func() bool { return len(failed) > 3 })
	// It has ended once it has written down how far it has come, which is after the notes.
	f.run(f.repos.Note, func() bool { return (&Writer{Dir: filepath.Join(f.dir, "notes")}).load() == 5 })
	if s := f.note(); !strings.Contains(s, "build 4 ") || !strings.Contains(s, "build 5 ") {
		t.Errorf("the note is\n%s", s)
	}
	before := testpkg.Git(t, f.repo, "rev-parse", repos.NotesRef)
	n := 0
	f.log.Append(events.Event{Kind: events.Push}, ended(5, "riscv64", f.commit, quarry.Succeeded, "")) // told twice
	f.run(func(ctx context.Context, pkg, commit string, edit func(string) string) error {
		err := f.repos.Note(ctx, pkg, commit, edit)
		mu.Lock()
		n++
		mu.Unlock()
		return err
	}, func() bool { mu.Lock(); defer mu.Unlock(); return n > 0 })
	if after := testpkg.Git(t, f.repo, "rev-parse", repos.NotesRef); after != before || n != 1 {
		t.Errorf("what stands was written again: %d notes were asked for", n)
	}
}

// TestConcurrent: nobody's notes are lost when several write.
func TestConcurrent(t *testing.T) {
	f := newFarm(t)
	var work sync.WaitGroup
	for i := range 8 {
		work.Add(1)
		go func() {
			defer work.Done()
			line := Line(built(int64(i+1), fmt.Sprintf("arch%d", i), f.commit, quarry.Succeeded, ""), "")
			for try := 0; ; try++ {
				err := f.repos.Note(t.Context(), "hello", f.commit, func(old string) string { return Merge(old, line) })
				if err == nil {
					return
				}
				if !strings.Contains(err.Error(), "others moved") || try > 100 {
					t.Error(err)
					return
				}
			}
		}()
	}
	work.Wait()
	if s := f.note(); strings.Count(s, "testing/arch") != 8 {
		t.Errorf("the note is\n%s", s)
	}
}
