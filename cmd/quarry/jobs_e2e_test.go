package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/internal/testtools"
)

// A farm that is pushed to shares its slots among the real makes of two builds,
// does what people say over its doors meanwhile, and goes on after it was killed.
func TestJobsOfFarm(t *testing.T) {
	s := newServer(t, t.TempDir())
	s.writeConfig(t, "[build]\nworkers = 2\n[shell]\nkeep = \"0s\"\n[jobs]\ntotal = 4\nothers = false\nmemory_stall = 0\n")
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.stop(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	})
	look := func() control.JobsStatus {
		t.Helper()
		var st control.JobsStatus
		if err := json.Unmarshal([]byte(s.quarry(t, "jobs", "--json")), &st); err != nil {
			t.Fatal(err)
		}
		if st.Out > max(4, st.Granted) {
			t.Errorf("more slots are out than there are: %+v", st)
		}
		return st
	}
	pushHeld(t, s, "one")
	one := holdJobs(t, s, "one")
	one.Wait(t, 4)
	pushHeld(t, s, "two")
	// As jobs of the first end, the second gets a slot, and then its half.
	testtools.Until(t, func() string {
		if st := look(); len(st.Builds) == 2 && !st.Builds[1].Waiting {
			return ""
		}
		before := len(one.Events(t))
		one.End(t, 1)
		testtools.Until(t, func() string {
			if len(one.Events(t)) == before {
				return "no job ends that was let"
			}
			return ""
		})
		return "the second build gets no slot of the first"
	})
	two := holdJobs(t, s, "two")
	balance := func(a, b int) {
		t.Helper()
		let := 0
		// Nothing slow in here: a make wins back most tokens that it gives away, and on a
		// busy machine it takes many ends of jobs until it does not.
		testtools.Until(t, func() string {
			running, ended := count(t, one)
			other, more := count(t, two)
			switch {
			case running == a && other == b:
				return ""
			case let > ended+more: // one that was let go is yet to end
			case running > a:
				one.End(t, 1)
				let = ended + more + 1
			case other > b:
				two.End(t, 1)
				let = ended + more + 1
			}
			return fmt.Sprintf("the builds run %d and %d jobs, not %d and %d", running, other, a, b)
		})
		look()
	}
	balance(2, 2)
	// How real makes come down is tested with the runner, job by job.
	s.quarry(t, "jobs", "set", "2", "3")
	if st := look(); len(st.Builds) != 2 || st.Builds[1].Hand != 3 {
		t.Errorf("build 2 was set to 3 jobs: %+v", st.Builds)
	}
	s.quarry(t, "jobs", "limit", "2", "--for", "10h")
	if st := look(); st.Limit.Slots != 2 {
		t.Errorf("the limit was set to 2 and is %+v", st.Limit)
	}
	s.quarry(t, "jobs", "set", "2", "auto")
	s.quarry(t, "jobs", "limit", "off")
	balance(2, 2)
	if n := testtools.Peak(0, one.Events(t), two.Events(t)); n != 4 {
		t.Errorf("together they ran %d jobs at one time of 4", n)
	}

	// Killed, it knows what was said by hand, and begins its builds anew.
	s.quarry(t, "jobs", "limit", "2")
	if err := s.stop(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	if st := look(); st.Hand == nil || st.Limit.Slots != 2 {
		t.Errorf("the limit was 2 by hand, and is %+v", st.Limit)
	}
	one, two = holdJobs(t, s, "one"), holdJobs(t, s, "two")
	one.Wait(t, 1)
	two.Wait(t, 1)
	s.quarry(t, "jobs", "limit", "off")
	one.Wait(t, 2)
	two.Wait(t, 2)
	one.Open(t)
	s.quarry(t, "log", "-f", "1")
	two.Wait(t, 4) // alone again
	if n := testtools.Peak(0, two.Events(t)); n != 4 {
		t.Errorf("it ran %d jobs at one time of 4", n)
	}
	two.Open(t)
	s.quarry(t, "log", "-f", "2")
	testtools.Until(t, func() string {
		if st := look(); len(st.Builds) != 0 || st.Out != 0 {
			return fmt.Sprintf("of builds that have ended is left %+v", st)
		}
		return ""
	})
	if said := s.must(t, "git", "-C", s.state("results.git"), "grep", "-h", "peak_jobs", "testing", "--", "packages/*/two/1.0/*"); !strings.HasSuffix(strings.TrimSpace(said), "= 4") {
		t.Errorf("its record says of the most jobs that it ran, which were 4: %s", said)
	}
}

// pushHeld pushes a package whose jobs end when the test says so.
func pushHeld(t *testing.T, s *server, name string) {
	t.Helper()
	dir := filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Join(dir, "srcs"), 0o755); err != nil {
		t.Fatal(err)
	}
	for file, data := range map[string][]byte{
		"package.json": fmt.Appendf(nil, `{"package": {"name": %q, "version": "1.0", "description": "Held"}, "compilation": {"make": "until [ -p /quarry/gate ]; do sleep 0.02; done; make", "install": "install"}, "dependencies": []}`, name),
		"srcs/Makefile": []byte("jobs := $(shell seq 1 3000)\nall: $(jobs)\n$(jobs):\n\t@./job /quarry/trace /quarry/gate\n" +
			"install:\n\tinstall -D Makefile $(DESTDIR)/usr/share/held\n"),
		"srcs/job": testtools.Job(t),
	} {
		if err := os.WriteFile(filepath.Join(dir, file), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, words := range [][]string{{"init", "-q", "-b", "master"}, {"add", "-A"}, {"commit", "-q", "-m", "Import"}, {"push", "-q", s.url(name), "HEAD:refs/heads/" + name + "-1.0"}} {
		s.mustIn(t, dir, "git", words...)
	}
}

// holdJobs takes the jobs of the package's running build in hand.
func holdJobs(t *testing.T, s *server, name string) (held *testtools.Trace) {
	t.Helper()
	testtools.Until(t, func() string {
		found, _ := filepath.Glob(s.state("work", "*", "src", "package.json"))
		for _, file := range found {
			var pkg struct{ Package struct{ Name string } }
			data, err := os.ReadFile(file)
			if err != nil || json.Unmarshal(data, &pkg) != nil || pkg.Package.Name != name {
				continue // not yet, not any more, or another's
			}
			dir := filepath.Dir(filepath.Dir(file))
			st, err := os.Stat(dir)
			if err != nil {
				continue
			}
			held = testtools.Watch(t, dir, int(st.Sys().(*syscall.Stat_t).Uid))
			return ""
		}
		return name + " is not being built:\n" + s.quarry(t, "status") + s.logText()
	})
	return held
}

// count tells how many jobs run and how many have ended.
func count(t *testing.T, h *testtools.Trace) (running, ended int) {
	for _, e := range h.Events(t) {
		if e.Begin {
			running++
		} else {
			running--
			ended++
		}
	}
	return running, ended
}
