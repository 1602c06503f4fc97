package runner_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/testtools"
	"github.com/Morphux/quarry/jobs"
	"github.com/Morphux/quarry/jobserver"
	"github.com/Morphux/quarry/runner"
)

// steered gives a build a jobserver whose number is the test's.
type steered struct {
	t       testing.TB
	ceiling int
	over    string // what it notices of each parallel step

	mu     sync.Mutex
	place  jobs.Place
	pool   *jobserver.Pool
	steps  []bool
	forced []string
}

func steer(t testing.TB, ceiling int) *steered {
	s := &steered{t: t, ceiling: ceiling}
	t.Cleanup(func() {
		if s.pool != nil {
			s.pool.Close()
		}
	})
	return s
}

func (s *steered) Open(p jobs.Place) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.place = p
	if s.ceiling == 1 {
		return nil
	}
	var err error
	s.pool, err = jobserver.New(jobserver.Options{Dir: p.Dir, Name: ".jobs", UID: p.UID, GID: p.GID})
	if err == nil {
		s.pool.Set(s.ceiling)
	}
	return err
}

func (s *steered) Env() []string {
	return []string{"BUILDCONTROLADDR=/quarry/.control", "BUILDSOCKET=/quarry/.control", "BUILDTOKEN=1-abc"}
}

func (s *steered) Fifo() string {
	if s.ceiling == 1 {
		return ""
	}
	return s.place.Inside + "/.jobs"
}

func (s *steered) Ceiling() int { return s.ceiling }

func (s *steered) Step(parallel bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps = append(s.steps, parallel)
	if is, err := s.place.Tasks(); err == nil && is.Leaves > 0 {
		s.t.Errorf("a step begins or ends, and %+v of the build still run", is)
	}
	if s.pool != nil {
		s.pool.Reset()
	}
	if parallel && s.over != "" {
		s.place.Over(s.over)
		s.place.Over("something else")
	}
}

func (s *steered) Forced(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forced = append(s.forced, what)
}

// told has a build steered.
func (s *steered) told(job *runner.Job) { job.Slots = s }

// many is a package whose make line runs jobs that a test holds in its hands
// (testtools.Job), and prints what it is told of them. There are more than can be
// used up, however often make has a token back before anybody else.
func many(t testing.TB, line string, files map[string]string) pkg {
	mk := "all:"
	for i := range 800 {
		mk += fmt.Sprintf(" t%d", i)
	}
	p := inMake("echo make has $MAKEFLAGS; until [ -p gate ]; do sleep 0.01; done; " + line)
	p.files = map[string]string{"srcs/job.sh": string(testtools.Job(t)), "srcs/jobs.mk": mk + "\nt%:\n\t@./job.sh trace gate\n"}
	for name, text := range files {
		p.files[name] = text
	}
	return p
}

// TestSlots has the jobs of builds in workspaces follow a number, with the makes
// that there are.
func TestSlots(t *testing.T) {
	f := newFarm(t)
	type make_ struct {
		name, told string
		files      map[string]string
	}
	makes := []make_{{"Debian's", "-j8 --jobserver-auth=3,3", nil}}
	if path, ok := testtools.Make(t); ok {
		makes = append(makes, make_{"4.4", "-j8 --jobserver-auth=fifo:/quarry/.jobs", map[string]string{
			"scripts/before.sh": "cp /quarry/src/srcs/make.sh /usr/local/bin/make", "srcs/make.sh": string(testtools.Program(t, path)),
		}})
	}
	for _, m := range makes {
		t.Run(m.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
			defer cancel()
			s := steer(t, 8)
			_, out := f.succeed(t, attempt{ctx: ctx, limits: runner.Limits{Step: 30 * time.Minute}, pkg: many(t, "exec make -f jobs.mk", m.files), change: s.told, began: func(ws *images.Workspace, out *log) {
				out.has(t, "make has ")
				trace := testtools.Watch(t, filepath.Join(ws.Dir, "src/srcs"), ws.UID)
				defer trace.Open(t) // whatever comes, the build has to end
				for _, n := range []int{8, 3, 1, 5} {
					s.pool.Set(n)
					for s.pool.State().Out > n {
						ended := trace.Ended(t)
						trace.End(t, 1)
						testtools.Until(t, func() string {
							if is := s.pool.State(); trace.Ended(t) == ended || trace.Running(t) != is.Held+1 {
								return fmt.Sprintf("%d jobs run with %+v", trace.Running(t), is)
							}
							return ""
						})
					}
					trace.Wait(t, n)
					testtools.Until(t, func() string {
						is, err := s.place.Tasks()
						if err != nil || is.Leaves != n || is.Running < 0 || is.Running > n+2 {
							return fmt.Sprintf("with %d jobs the workspace has %+v (%v)", n, is, err)
						}
						return ""
					})
				}
			}})
			if want := "make has " + m.told + "\n"; !strings.Contains(out, want) {
				t.Errorf("the log does not say %q:\n%s", want, tail(out))
			}
			if strings.Contains(out, "warning") || len(s.forced) > 0 {
				t.Errorf("%q, and the log:\n%s", s.forced, tail(out))
			}
			if is, want := s.pool.State(), (jobserver.State{Want: 5, Out: 5, Free: 4}); is != want {
				t.Errorf("at the end %+v, not %+v", is, want)
			}
		})
	}
}

// TestStepsAndSlots says which steps may use more than one job, and what all of
// them find in their environment.
func TestStepsAndSlots(t *testing.T) {
	f := newFarm(t)
	say := func(step string) string {
		return "echo " + step + " $MAKEFLAGS $BUILDCONTROLADDR $BUILDSOCKET $BUILDTOKEN; if [ -e /proc/$$/fd/3 ]; then echo 3 is open; fi"
	}
	p := pkg{
		compilation: map[string]any{"configure": []any{"x"}, "make": say("in make") + " ;", "test": say("in test") + " ;", "install": say("in install") + " ;"},
		files: map[string]string{
			"srcs/configure": say("in configure") + "\n", "scripts/before.sh": say("in before") + "\n", "scripts/after.sh": say("in after") + "\n",
		},
	}
	const auth, env = " -j4 --jobserver-auth=3,3", " /quarry/.control /quarry/.control 1-abc\n"
	for _, tt := range []struct {
		name    string
		ceiling int
		wish    int
		want    []string
	}{
		{"shared", 4, 0, []string{"in before" + env, "in configure" + auth + env, "in make" + auth + env + "3 is open\n", "in test" + auth + env, "in install" + env, "in after" + env}},
		{"the recipe wants less", 9, 4, []string{"in make" + auth + env}},
		{"one", 1, 0, []string{"in configure" + env, "in make" + env, "in test" + env}},
		{"the recipe wants one", 4, 1, []string{"in configure" + env, "in make" + env, "in test" + env}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := p
			if tt.wish > 0 {
				p.quarry = map[string]any{"jobs": tt.wish}
			}
			s := steer(t, tt.ceiling)
			_, out := f.succeed(t, attempt{pkg: p, jobs: 7, change: s.told})
			for _, want := range tt.want {
				if !strings.Contains(out, want) {
					t.Errorf("the log does not say %q:\n%s", want, out)
				}
			}
			opened := 0
			if tt.ceiling > 1 && tt.wish != 1 {
				opened = 3 // configure, make and test
			}
			if n := strings.Count(out, "\n3 is open\n"); n != opened {
				t.Errorf("%d steps have the jobserver, not %d", n, opened)
			}
			if want := []bool{false, true, true, true, false, false, false}; !slices.Equal(s.steps, want) {
				t.Errorf("steps %v, not %v", s.steps, want)
			}
			if s.place.Inside != "/quarry" || len(s.forced) > 0 {
				t.Errorf("%+v, forced %q", s.place, s.forced)
			}
		})
	}
}

// TestForced notices builds that do not keep to their share.
func TestForced(t *testing.T) {
	f := newFarm(t)
	const obey = "true: ; @true\n"
	for _, tt := range []struct {
		name  string
		pkg   pkg
		files map[string]string
		env   []any
		over  string
		said  string // by MAKEFLAGS in make
		want  string
	}{
		{name: "a makefile that obeys", said: "-j4 --jobserver-auth=3,3"},
		{name: "-j1", pkg: inMake("make -j1"), said: "-j4 --jobserver-auth=3,3"},
		{name: "-j3", pkg: inMake("make -j3"), want: "forces 3 jobs on make's command line"},
		{name: "-j", pkg: inMake("make -j"), want: "forces any number of jobs on make's command line"},
		{name: "in the makefile", pkg: inMake("make"), files: map[string]string{"srcs/Makefile": "MAKEFLAGS += -j5\n" + obey}, want: "forces 5 jobs in its makefile"},
		{name: "in the recipe", env: []any{map[string]string{"MAKEFLAGS": "-k -j6"}}, said: "-k -j6", want: "has MAKEFLAGS of the recipe's own, which ask for 6 jobs"},
		{name: "nothing of the sort in the recipe", env: []any{map[string]string{"MAKEFLAGS": "-k -j1"}}, said: "-k -j1"},
		{name: "another make", files: map[string]string{"scripts/before.sh": "cp /bin/true /usr/local/bin/make"}, said: "-j4",
			want: "has a make that takes no jobserver (GNU make does from 4.2)"},
		{name: "a script around make", files: map[string]string{"scripts/before.sh": "printf '#!/bin/sh\\nexec /usr/bin/make \"$@\"\\n' >/usr/local/bin/make; chmod +x /usr/local/bin/make"},
			said: "-j4 --jobserver-auth=3,3"},
		{name: "no make", files: map[string]string{"scripts/before.sh": "rm -f /usr/bin/make"}, said: "-j4 --jobserver-auth=fifo:/quarry/.jobs"},
		{name: "no jobserver", files: map[string]string{"scripts/before.sh": "rm /quarry/.jobs"}, said: "-j4", want: "has lost its jobserver"},
		{name: "a link in its place", files: map[string]string{"scripts/before.sh": "cd /quarry; mv .jobs elsewhere; ln -s elsewhere .jobs"}, said: "-j4", want: "has lost its jobserver"},
		{name: "a file in its place", files: map[string]string{"scripts/before.sh": "rm /quarry/.jobs; echo ++++ >/quarry/.jobs"}, said: "-j4", want: "has lost its jobserver"},
		{name: "a make that never ends", files: map[string]string{"scripts/before.sh": "mkfifo /usr/local/bin/make; chmod +x /usr/local/bin/make"}, said: "-j4 --jobserver-auth=3,3"},
		{name: "seen from outside", over: "ran 9 processes at one time where 2 may run", said: "-j4 --jobserver-auth=3,3", want: "ran 9 processes at one time where 2 may run"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := tt.pkg
			if p.compilation == nil {
				p = inMake("true")
			}
			line := p.compilation["make"].(string)
			p.compilation = map[string]any{"make": "echo told $MAKEFLAGS; " + line, "test": line}
			if tt.env != nil {
				p.compilation["env"] = tt.env
			}
			p.files = map[string]string{"srcs/Makefile": obey}
			for name, text := range tt.files {
				p.files[name] = text
			}
			s := steer(t, 4)
			s.over = tt.over
			res, out := f.succeed(t, attempt{pkg: p, change: s.told})
			if tt.said != "" && !strings.Contains(out, "told "+tt.said+"\n") {
				t.Errorf("the log does not say %q:\n%s", tt.said, out)
			}
			var forced, warned []string
			if tt.want != "" {
				forced = []string{tt.want}
				warned = []string{"in make the build " + tt.want + ", and so does not keep to its share of the machine's jobs"}
			}
			if !slices.Equal(s.forced, forced) || !slices.Equal(res.Warnings, warned) {
				t.Errorf("forced %q, warnings %q; not %q, %q\n%s", s.forced, res.Warnings, forced, warned, tail(out))
			}
		})
	}
}

// TestSlotsCannotBeMade is the farm's failure.
func TestSlotsCannotBeMade(t *testing.T) {
	f := newFarm(t)
	_, _, err := f.try(t, attempt{pkg: inMake("true"), change: func(job *runner.Job) {
		job.Slots = refuses{steer(t, 4)}
	}})
	if err == nil || !strings.Contains(err.Error(), "gets no slots: no room") {
		t.Errorf("error %v", err)
	}
}

type refuses struct{ *steered }

func (refuses) Open(jobs.Place) error { return fmt.Errorf("no room") }

// TestCancelledWithSlots: the slots of a build that is stopped are not free while
// its jobs run.
func TestCancelledWithSlots(t *testing.T) {
	f := newFarm(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s := steer(t, 4)
	_, _, err := f.try(t, attempt{ctx: ctx, pkg: inMake("trap '' TERM; echo up; while :; do :; done"), change: s.told,
		began: func(_ *images.Workspace, out *log) {
			out.has(t, "\nup\n")
			cancel()
		}})
	if !errors.Is(err, context.Canceled) || len(s.steps) == 0 || !s.steps[len(s.steps)-1] {
		t.Errorf("steps %v, error %v", s.steps, err)
	}
}

// TestSceneWithoutSlots stands in a build whose jobserver is gone.
func TestSceneWithoutSlots(t *testing.T) {
	f := newFarm(t)
	s := steer(t, 4)
	f.fails(t, attempt{pkg: inMake("make"), change: s.told, look: func(ws *images.Workspace) {
		s.pool.Close()
		if _, err := os.Lstat(filepath.Join(ws.Dir, ".jobs")); !os.IsNotExist(err) {
			t.Errorf("the jobserver is still there: %v", err)
		}
	}, after: func(sc *runner.Scene) {
		got := said(t, sc, line("echo $MAKEFLAGS,$BUILDSOCKET,$BUILDTOKEN,$BUILDCONTROLADDR; again; printf 'b: a; @echo b\\na:; @echo a\\n' | make -f -"))
		if want := "-j4,,,\na\nb\nE make: *** No targets specified and no makefile found.  Stop.\n0"; got != want {
			t.Errorf("it says %q", got)
		}
	}}, "make", quarry.CauseExit)
}

// TestTasksAfterwards says that nothing runs in a workspace that has ended.
func TestTasksAfterwards(t *testing.T) {
	f := newFarm(t)
	f.succeed(t, attempt{pkg: inMake("true"), look: func(ws *images.Workspace) {
		if is, err := ws.Tasks(); err != nil || is != (images.Tasks{}) {
			t.Errorf("after the build: %+v, %v", is, err)
		}
		if err := ws.Kill(context.Background()); err != nil {
			t.Error(err)
		}
		if is, err := ws.Tasks(); err != nil || is != (images.Tasks{}) {
			t.Errorf("after its end: %+v, %v", is, err)
		}
	}})
}
