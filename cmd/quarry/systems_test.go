package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/testbase"
	"golang.org/x/sys/unix"
)

// TestStorageTroubles alters and deletes podman's storage under a farm, as a
// loss of power and people do, and has it sanitized. Each time the next build
// stands on the same clean system as the first, and none is blamed.
func TestStorageTroubles(t *testing.T) {
	arch, tarball := testbase.Second(t)
	s := newServer(t, t.TempDir())
	s.writeConfig(t, fmt.Sprintf("[channel.testing]\narchs = [%q]\n", arch))
	s.quarry(t, "images", "load", arch, tarball)
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	number := 0
	var first string // digests that the first record names
	build := func(after string) {
		t.Helper()
		number++
		version := fmt.Sprint(number)
		if err := s.push(tiny(t, "steady", version, 0), "steady", version); err != nil {
			t.Fatal(err)
		}
		s.settle(t, 4*time.Minute)
		var b quarry.Build
		for _, ended := range s.status(t).Ended {
			if ended.Version == version {
				b = ended
			}
		}
		if b.State != quarry.Succeeded || b.Attempt != 1 {
			t.Fatalf("after %s the build is %s at attempt %d: %s\n%s", after, b.State, b.Attempt, b.Reason, s.logText())
		}
		record := s.must(t, "git", "-C", s.state("results.git"), "show", "testing:packages/st/ea/steady/"+version+"/"+arch+".toml")
		var digests []string
		for line := range strings.Lines(record) {
			if strings.HasPrefix(line, "base = ") || strings.HasPrefix(line, "instance = ") {
				digests = append(digests, strings.TrimSpace(line))
			}
		}
		switch now := strings.Join(digests, ", "); {
		case len(digests) != 2 || strings.Count(now, "sha256:") != 2:
			t.Errorf("the record names %q", now)
		case first == "":
			first = now
		case now != first:
			t.Errorf("after %s the build stood on %s, the first on %s", after, now, first)
		}
	}
	build("loading")

	again := func(what string, trouble func(), says string) {
		t.Helper()
		if err := s.stop(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		s.noPodman(t)
		trouble()
		before := len(s.wholeLog(t))
		if err := s.start(); err != nil {
			t.Fatal(err)
		}
		build(what)
		if log := s.wholeLog(t)[before:]; !strings.Contains(log, says) {
			t.Errorf("after %s the log does not say %q:\n%s", what, says, log)
		}
	}
	again("a program was emptied", func() {
		made := ""
		err := filepath.WalkDir(s.state("podman", "root", "overlay"), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && strings.HasSuffix(path, "/diff/usr/bin/make") {
				made = path
				return fs.SkipAll
			}
			return nil
		})
		if err != nil || made == "" {
			t.Fatalf("the base's make was not found: %v", err)
		}
		if err := os.Truncate(made, 0); err != nil {
			t.Fatal(err)
		}
	}, "podman's storage is damaged")
	again("podman's whole storage was deleted", func() {
		if err := os.RemoveAll(s.state("podman")); err != nil {
			t.Fatal(err)
		}
	}, "made again from its clean copy")

	if out := s.quarry(t, "sanitize"); !strings.HasPrefix(out, "sanitized in ") {
		t.Errorf("sanitize says %q", out)
	}
	build("sanitize")
	s.checkResults(t, arch)
	if err := s.stop(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	s.checkClean(t)
}

// noPodman waits until the podman of a daemon that was killed has ended with all
// that it runs: they hold a lock together, and write until then.
func (s *server) noPodman(t testing.TB) {
	t.Helper()
	f, err := os.Open(s.state("podman", "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s.until(t, "podman ends", func() bool { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil })
}

// wholeLog is all that the daemons of a server have logged.
func (s *server) wholeLog(t testing.TB) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(s.dir, "daemon.log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
