package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/testpkg"
)

type statusOut struct {
	Queue struct {
		Planned time.Time
		Paused  []struct {
			Reason string
		}
	}
	Live  []quarry.Build
	Ended []quarry.Build
}

func (s *server) status(t testing.TB) statusOut {
	t.Helper()
	var st statusOut
	if err := json.Unmarshal([]byte(s.quarry(t, "status", "--json", "-n", "1000")), &st); err != nil {
		t.Fatal(err)
	}
	return st
}

// settled reports whether all that is wanted was found and nothing is under way.
func (st statusOut) settled() bool { return !st.Queue.Planned.IsZero() && len(st.Live) == 0 }

// settle waits until all that is wanted was found and nothing is under way.
func (s *server) settle(t testing.TB, limit time.Duration) statusOut {
	t.Helper()
	return waitWithin(t, limit, s, "nothing under way", statusOut.settled)
}

// waitFor waits until the status is as it has to be.
func waitFor(t testing.TB, s *server, what string, ok func(statusOut) bool) statusOut {
	t.Helper()
	return waitWithin(t, 5*time.Minute, s, what, ok)
}

// waitWithin is waitFor with another limit.
func waitWithin(t testing.TB, limit time.Duration, s *server, what string, ok func(statusOut) bool) statusOut {
	t.Helper()
	var st statusOut
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if st = s.status(t); ok(st) {
			return st
		}
	}
	t.Fatalf("waited %v for %s: %+v\n%s", limit, what, st, s.logText())
	return st
}

// held is a package whose build goes on until it is let go, see [server.letGo].
func held(t testing.TB, name, version string) (dir string) {
	t.Helper()
	return testpkg.Make(t, name, map[string]string{
		"package.json": fmt.Sprintf(`{"package": {"name": %q, "version": %q, "description": "A test"}, "compilation": {"make": ""}}`, name, version),
		"srcs/Makefile": "all:\n\tuntil [ -e /quarry/go ]; do echo tick; sleep 0.1; done\n" +
			fmt.Sprintf("install:\n\tmkdir -p $(DESTDIR)/usr/share\n\techo %s-%s > $(DESTDIR)/usr/share/%s\n", name, version, name),
	})
}

// letGo has the builds of held packages end that run now.
func (s *server) letGo() {
	found, _ := filepath.Glob(s.state("work", "*", "src"))
	for _, src := range found {
		_ = os.WriteFile(filepath.Join(filepath.Dir(src), "go"), nil, 0o644) // it may be gone already
	}
}

// finish waits as settle does, and lets builds of held packages go meanwhile.
func (s *server) finish(t testing.TB) statusOut {
	t.Helper()
	return waitFor(t, s, "nothing under way", func(st statusOut) bool {
		s.letGo()
		return st.settled()
	})
}
