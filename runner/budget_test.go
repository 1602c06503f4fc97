package runner_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/buildcontrol"
	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/testbase"
	"github.com/Morphux/quarry/internal/testpkg"
	"github.com/Morphux/quarry/internal/testtools"
	"github.com/Morphux/quarry/jobs"
	"github.com/Morphux/quarry/recipe"
	"github.com/Morphux/quarry/runner"
)

// budget is a machine of a test's own: how many jobs it may run, and who shares
// them out.
type budget struct {
	*farm
	*jobs.Governor
}

func (f *farm) budget(t testing.TB, o jobs.Options) *budget {
	t.Helper()
	o.Control = buildcontrol.New(buildcontrol.Options{Ceiling: o.Total})
	g, err := jobs.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && ctx.Err() == nil {
			t.Error(err)
		}
	})
	return &budget{f, g}
}

// held is a build whose jobs end when the test says so.
type held struct {
	*testtools.Trace
	ws     *images.Workspace
	number int64
	log    *log
	over   chan struct{} // closed when its build is told that it runs more than it may
	end    func() ended
}

// overseen is a share of which is told when a build runs more than that.
type overseen struct {
	*jobs.Share
	over func()
}

func (o overseen) Open(p jobs.Place) error {
	tell := p.Over
	p.Over = func(what string) { tell(what); o.over() }
	return o.Share.Open(p)
}

type ended struct {
	res *runner.Result
	sum jobs.Summary
	err error
}

// wait waits until the build has succeeded.
func (h *held) wait(t testing.TB) (*runner.Result, jobs.Summary) {
	t.Helper()
	e := h.end()
	if e.err != nil || e.res.Failure != nil {
		t.Fatalf("build %d: %v, %+v\n%s", h.number, e.err, e.res, tail(h.log.String()))
	}
	return e.res, e.sum
}

// ready has a build wait until the test holds its jobs.
const ready = "until [ -p /quarry/gate ]; do sleep 0.02; done; "

// manyJobs is a makefile of more jobs than any test lets end, though of the tokens
// that are to come back make gets most for its next jobs.
const manyJobs = "N = 1500\nJOB = ./job /quarry/trace /quarry/gate\njobs := $(shell seq 1 $(N))\nall: $(jobs)\n$(jobs):\n\t@$(JOB)\n.PHONY: all $(jobs)\n"

// start begins a build of the package, with the program for jobs in it as ./job,
// and shares the budget with it.
func (b *budget) start(t testing.TB, p pkg, want jobs.Build) *held {
	t.Helper()
	src := p.fs(t).(fstest.MapFS)
	src["srcs/job"] = &fstest.MapFile{Data: testtools.Job(t), Mode: 0o755}
	executable(src)
	src["srcs/jobs.mk"] = &fstest.MapFile{Data: []byte(manyJobs), Mode: 0o644}
	return b.run(t, src, want)
}

func (b *budget) run(t testing.TB, src fs.FS, want jobs.Build) *held {
	t.Helper()
	rec, err := recipe.Load(src)
	if err != nil {
		t.Fatal(err)
	}
	want.Number = number()
	want.Name, want.Key, want.Attempt = fmt.Sprintf("%s-%s", rec.Package, rec.Version), fmt.Sprint("key of ", want.Number), 1
	if want.Max == 0 {
		want.Max = rec.Ext.Jobs
	}
	ws, err := b.store.Workspace(t.Context(), images.Spec{Name: fmt.Sprint(want.Number), Arch: testbase.Arch, Channel: "testing"})
	if err != nil {
		t.Fatal(err)
	}
	h := &held{Trace: testtools.Watch(t, ws.Dir, ws.UID), ws: ws, number: want.Number, log: &log{}, over: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan ended, 1)
	go func() {
		var e ended
		defer func() { over <- e }()
		share, err := b.Begin(ctx, want)
		if err != nil {
			e.err = err
			return
		}
		e.res, e.err = runner.Run(ctx, ws, runner.Job{
			Build: quarry.Build{Number: want.Number, Release: quarry.Release{
				Package: rec.Package, Version: rec.Version, Channel: "testing", Time: time.Unix(testpkg.Unix, 0),
			}, Arch: testbase.Arch},
			Recipe: rec, Source: src, Log: h.log, Limits: runner.Limits{Step: 10 * time.Minute}, Slots: overseen{share, sync.OnceFunc(func() { close(h.over) })},
			Reproduce: "quarry build .",
		})
		e.sum = share.End()
		if err := ws.Close(context.Background()); err != nil && e.err == nil {
			e.err = err
		}
	}()
	h.end = sync.OnceValue(func() ended { return <-over })
	t.Cleanup(func() { cancel(); h.end(); ws.Close(context.Background()) })
	return h
}

// set is what somebody says by hand.
func (b *budget) set(t testing.TB, h *held, n int) {
	t.Helper()
	if _, err := b.Set(h.number, n, "test"); err != nil {
		t.Fatal(err)
	}
}

// out tells how many slots are out in all, which may never be more than limit.
func (b *budget) out(t testing.TB, limit int) int {
	t.Helper()
	s := b.Status()
	if s.Out > limit {
		t.Errorf("%d slots are out, and there are %d: %+v", s.Out, limit, s)
	}
	return s.Out
}

// of tells what a build has.
func (b *budget) of(h *held) (of jobs.BuildStatus) {
	for _, s := range b.Status().Builds {
		if s.Number == h.number {
			of = s
		}
	}
	return of
}

// down lets jobs of a build end, one after the other, until n run and no further
// slot of it is to come back.
func (b *budget) down(t testing.TB, h *held, n int) {
	t.Helper()
	let := 0
	testtools.Until(t, func() string {
		out := b.of(h).Out
		running, ended := h.Running(t), h.Ended(t)
		if running == n && out == n {
			return ""
		}
		// One that ends may be followed by the next before its slot is taken back.
		if let <= ended && max(running, out) > n {
			h.End(t, 1)
			let = ended + 1
		}
		return fmt.Sprintf("%d jobs run in %d slots, not %d, though %d have ended\n%s", running, out, n, ended, tail(h.log.String()))
	})
}

// turn lets a job end, and waits until the next one has begun in its place.
func (h *held) turn(t testing.TB) {
	t.Helper()
	before := len(h.Events(t))
	h.End(t, 1)
	testtools.Until(t, func() string {
		if len(h.Events(t)) < before+2 {
			return "no job follows on one that ended\n" + tail(h.log.String())
		}
		return ""
	})
}

// tool is a program that runs jobs: how a package has it run those of jobs.mk.
type tool struct {
	name  string
	files map[string][]byte
	lines string // of make
	// idle says that it looks for further tokens only when one of its jobs ends.
	idle bool
}

// raised lets a tool see what it was given more, and waits until n jobs run.
func (tl tool) raised(t testing.TB, h *held, n int) {
	t.Helper()
	if tl.idle {
		h.End(t, 1)
	}
	h.Wait(t, n)
}

// tools are those that can be had here.
func tools(t testing.TB) []tool {
	t.Helper()
	all := []tool{{name: "make of the base", lines: "make -f jobs.mk"}}
	newer, ok := testtools.Make(t)
	if !ok {
		return all
	}
	files := map[string][]byte{"srcs/make": testtools.Program(t, newer)}
	all = append(all, tool{name: "make 4.4", files: files, lines: "make -f jobs.mk"})
	if ninja, ok := testtools.Ninja(t); ok {
		all = append(all, tool{name: "ninja", idle: true, files: map[string][]byte{"srcs/make": files["srcs/make"], "srcs/ninja": testtools.Program(t, ninja)},
			lines: `{ printf 'rule job\n  command = ./job /quarry/trace /quarry/gate\n'; for i in $(seq 1 1500); do echo "build $i: job"; done; } > build.ninja; ./ninja`})
	}
	return all
}

// pkg is a package that runs jobs with the tool. A make of its own is installed
// before the step that uses it.
func (tl tool) pkg() pkg {
	p := pkg{compilation: map[string]any{"make": ready + tl.lines}, files: map[string]string{}}
	for name, data := range tl.files {
		p.files[name] = string(data)
	}
	if _, ok := tl.files["srcs/make"]; ok {
		p.files["scripts/before.sh"] = "#!/bin/sh\ninstall -m 755 make /usr/local/bin/make\n"
	}
	return p
}

// executable gives the programs among a package's files their mode.
func executable(src fstest.MapFS) {
	for _, name := range []string{"srcs/make", "srcs/ninja"} {
		if f := src[name]; f != nil {
			f.Mode = 0o755
		}
	}
}

// How many jobs run follows what is set, up at once and down as jobs end, with
// every program that takes part in a jobserver.
func TestJobsFollow(t *testing.T) {
	f := newFarm(t)
	for _, tl := range tools(t) {
		t.Run(tl.name, func(t *testing.T) {
			b := f.budget(t, jobs.Options{Total: 6})
			h := b.start(t, tl.pkg(), jobs.Build{})
			h.Wait(t, 6) // nobody else wants any
			b.set(t, h, 2)
			b.out(t, 6)
			b.down(t, h, 2)
			testtools.Until(t, func() string {
				if n := b.out(t, 6); n != 2 {
					return fmt.Sprintf("%d slots are out of a build that has 2", n)
				}
				return ""
			})
			settled := testtools.Clock()
			for range 5 {
				h.turn(t)
				h.Wait(t, 2)
			}
			if n := testtools.Peak(settled, h.Events(t)); n != 2 {
				t.Errorf("%d jobs ran at one time where 2 may", n)
			}
			for _, n := range []int{5, 3, 4, 1, 6} {
				b.set(t, h, n)
				if h.Running(t) > n {
					b.down(t, h, n)
				} else {
					tl.raised(t, h, n)
				}
			}
			b.set(t, h, 0)
			h.Open(t)
			res, sum := h.wait(t)
			if sum.Peak < 6 || sum.Forced != "" || sum.Repaired != 0 {
				t.Errorf("it is told of it: %+v", sum)
			}
			if n := testtools.Peak(0, h.Events(t)); n != 6 {
				t.Errorf("%d jobs ran at one time of 6", n)
			}
			for _, w := range res.Warnings {
				t.Errorf("warning: %s", w)
			}
			if s := b.Status(); s.Out != 0 || len(s.Builds) != 0 {
				t.Errorf("of an ended build is left %+v", s)
			}
			if strings.Contains(h.log.String(), "warning") {
				t.Errorf("it warns:\n%s", tail(h.log.String()))
			}
		})
	}
}

// Two builds never run more jobs together than the machine may, and as many
// whenever both have work; what one has no use for the other gets.
func TestSharedBudget(t *testing.T) {
	const total = 4
	b := newFarm(t).budget(t, jobs.Options{Total: total})
	p := pkg{compilation: map[string]any{"make": ready + "make -f jobs.mk", "install": "./job /quarry/trace /quarry/gate; mkdir -p $DESTDIR/usr; echo done > $DESTDIR/usr/done"}}
	one := b.start(t, p, jobs.Build{})
	one.Wait(t, total)
	two := b.start(t, p, jobs.Build{})
	// The second is there as soon as a slot is: the first gives up half of its own.
	let := 0
	testtools.Until(t, func() string {
		b.out(t, total)
		ended := one.Ended(t)
		if n := two.Running(t); n == total/2 && one.Running(t) == total/2 {
			return ""
		}
		// While the second is not ready for a slot none of the first's is to come back.
		if s := b.of(one); let <= ended && s.Out > s.Granted {
			one.End(t, 1)
			let = ended + 1
		}
		return fmt.Sprintf("after %d jobs of the first build it runs %d, and the second %d", ended, one.Running(t), two.Running(t))
	})
	for i := range 60 { // in no order that they could learn
		h := []*held{one, two}[i*i%7%2]
		before := len(one.Events(t)) + len(two.Events(t))
		h.End(t, 1)
		testtools.Until(t, func() string {
			b.out(t, total)
			if n := len(one.Events(t)) + len(two.Events(t)); n < before+2 { // an end, and a begin
				return "no job follows on one that ended"
			}
			if a, c := one.Running(t), two.Running(t); a+c != total || a == 0 || c == 0 {
				return fmt.Sprintf("the builds run %d and %d jobs, and %d could run", a, c, total)
			}
			return ""
		})
	}
	// The second has all of it when the first has ended.
	one.Open(t)
	one.wait(t)
	two.Wait(t, total)
	b.out(t, total)
	// A build that installs runs one job, and the other one keeps the rest.
	three := b.start(t, pkg{compilation: map[string]any{"install": ready + "./job /quarry/trace /quarry/gate"}}, jobs.Build{})
	b.down(t, two, total-1)
	three.Wait(t, 1)
	for range 5 {
		two.turn(t)
		two.Wait(t, total-1)
	}
	b.out(t, total)
	three.Open(t)
	three.wait(t)
	two.Wait(t, total)
	two.Open(t)
	two.wait(t)
	if n := testtools.Peak(0, one.Events(t), two.Events(t), three.Events(t)); n != total {
		t.Errorf("together they ran %d jobs at one time of %d", n, total)
	}
}

// Tokens that a make and its jobs took to their grave are there for the next one.
func TestLostTokens(t *testing.T) {
	b := newFarm(t).budget(t, jobs.Options{Total: 4})
	h := b.start(t, pkg{compilation: map[string]any{"make": ready + `setsid make -f jobs.mk & first=$!
until [ -e /quarry/kill ]; do sleep 0.02; done
kill -9 -$first
make -f jobs.mk`}}, jobs.Build{})
	h.Wait(t, 4)
	dead := map[int]bool{}
	for _, e := range h.Events(t) {
		dead[e.PID] = true
	}
	if err := os.WriteFile(filepath.Join(h.ws.Dir, "kill"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	alive := func() (n int) {
		for _, e := range h.Events(t) {
			if e.Begin && !dead[e.PID] {
				n++
			} else if !dead[e.PID] {
				n--
			}
		}
		return n
	}
	testtools.Until(t, func() string {
		b.out(t, 4)
		if n := alive(); n != 4 {
			return fmt.Sprintf("%d jobs run of the 4 that may: %+v", n, b.Status())
		}
		return ""
	})
	h.Open(t)
	if _, sum := h.wait(t); sum.Repaired == 0 {
		t.Errorf("no token was made again: %+v", sum)
	}
	if n := alive(); n != 0 {
		t.Errorf("%d jobs are left", n)
	}
}

// A package that runs as many jobs as it likes is found out, and counts with
// those.
func TestForcedJobs(t *testing.T) {
	const busy = "./job /quarry/trace -- sh -c 'until [ -e /quarry/gate.open ]; do :; done'"
	for name, line := range map[string]string{
		"on the command line": "make -j10 -f jobs.mk N=10 JOB=\"$JOB\"",
		"by another program":  "for i in 1 2 3 4 5 6 7 8 9 10; do eval \"$JOB\" & done; wait",
	} {
		line = ready + "JOB=" + `"` + busy + `"; ` + line
		t.Run(name, func(t *testing.T) {
			b := newFarm(t).budget(t, jobs.Options{Total: 2})
			h := b.start(t, pkg{compilation: map[string]any{"make": line}}, jobs.Build{})
			h.Wait(t, 10)
			testtools.Until(t, func() string {
				if s := b.Status(); s.Used < 7 {
					return fmt.Sprintf("it runs 10 jobs, and counts as %+v", s)
				}
				return ""
			})
			if name == "by another program" { // a make says so itself
				select {
				case <-h.over:
				case <-time.After(5 * time.Minute):
					t.Error("the build is not told of it")
				}
			}
			h.Open(t)
			res, sum := h.wait(t)
			if sum.Forced == "" || sum.Peak < 7 || !strings.Contains(strings.Join(res.Warnings, "\n"), "share of the machine's jobs") {
				t.Errorf("warnings %q, and it is told of it: %+v", res.Warnings, sum)
			}
		})
	}
}

// A build program that speaks the protocol is told its number by it, over the
// socket that is in its workspace. When it is gone the jobserver has the slots.
func TestProtocolInside(t *testing.T) {
	b := newFarm(t).budget(t, jobs.Options{Total: 5})
	h := b.start(t, pkg{compilation: map[string]any{"make": ready + `setsid ./job /quarry/trace /quarry/gate 500 & first=$!
until [ -e /quarry/kill ]; do sleep 0.02; done
kill -9 -$first
echo "killed $first" >> /quarry/killed
make -f jobs.mk`}}, jobs.Build{})
	h.Wait(t, 5)
	b.set(t, h, 2)
	b.down(t, h, 2)
	b.out(t, 5)
	settled := testtools.Clock()
	for range 5 {
		h.turn(t)
		h.Wait(t, 2)
	}
	if n := testtools.Peak(settled, h.Events(t)); n != 2 {
		t.Errorf("%d jobs ran at one time where 2 may", n)
	}
	b.set(t, h, 3)
	h.Wait(t, 3)
	if s := b.Status(); len(s.Builds) != 1 || s.Builds[0].Clients != 1 {
		t.Errorf("of a client of the protocol is told: %+v", s)
	}
	dead := map[int]bool{}
	for _, e := range h.Events(t) {
		dead[e.PID] = true
	}
	if err := os.WriteFile(filepath.Join(h.ws.Dir, "kill"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	testtools.Until(t, func() string {
		if _, err := os.Stat(filepath.Join(h.ws.Dir, "killed")); err != nil {
			return "its client is not killed"
		}
		return ""
	})
	b.set(t, h, 4)
	testtools.Until(t, func() string {
		b.out(t, 5)
		n := 0
		for _, e := range h.Events(t) {
			switch {
			case dead[e.PID]:
			case e.Begin:
				n++
			default:
				n--
			}
		}
		if n != 4 {
			return fmt.Sprintf("%d jobs of make run, not 4: %+v\n%s", n, b.Status(), tail(h.log.String()))
		}
		return ""
	})
	if s := b.Status(); len(s.Builds) != 1 || s.Builds[0].Clients != 0 {
		t.Errorf("of no client of the protocol is told: %+v", s)
	}
	h.Open(t)
	h.wait(t)
}

// The optimizer of gcc's linker is a client of the jobserver as well.
func TestLinkTimeOptimizer(t *testing.T) {
	b := newFarm(t).budget(t, jobs.Options{Total: 3})
	h := b.start(t, pkg{
		compilation: map[string]any{"make": ready + "make -f lto.mk && ./both"},
		files: map[string]string{
			"srcs/one.c":  "int two(void);\nint main(void) { return two() - 2; }\n",
			"srcs/two.c":  "int two(void) { return 2; }\n",
			"srcs/lto.mk": "both: one.o two.o\n\t+gcc -O1 -flto=jobserver -flto-partition=1to1 -o $@ $^\n%.o: %.c\n\tgcc -O1 -flto -c $<\n",
		},
	}, jobs.Build{})
	if _, sum := h.wait(t); sum.Forced != "" || sum.Repaired != 0 {
		t.Errorf("it is told of it: %+v", sum)
	}
	if strings.Contains(h.log.String(), "jobserver is not available") {
		t.Errorf("its linker finds no jobserver:\n%s", tail(h.log.String()))
	}
}
