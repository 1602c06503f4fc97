package runner_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/testbase"
	"github.com/Morphux/quarry/internal/testtools"
	"github.com/Morphux/quarry/jobs"
	"github.com/Morphux/quarry/recipe"
	"github.com/Morphux/quarry/runner"
)

// BenchmarkFollow measures how long it takes from setting a build's jobs from 1
// to 8 until the first further job runs, and until all do, as they write it down
// themselves; and how many jobs more than need be have to end until a build that
// is set from 8 to 1 runs one. Jobs wait and take no processor. ninja sees what it is
// given when a job ends, which it is let at once. Beside it, turn
// by turn in the same run: seven tokens written by hand into the jobserver of a
// make on this machine, without a workspace or a governor. Times are medians, and
// the worst, in milliseconds.
func BenchmarkFollow(b *testing.B) {
	const most = 8
	f := newFarm(b)
	bare := newBare(b, most)
	for _, tl := range tools(b) {
		b.Run(tl.name, func(b *testing.B) {
			m := f.budget(b, jobs.Options{Total: most})
			h := m.start(b, tl.pkg(), jobs.Build{})
			h.Wait(b, most)
			var first, all, hand []time.Duration
			late := 0
			for b.Loop() {
				m.set(b, h, 1)
				before := ends(b, h.Trace)
				m.down(b, h, 1)
				late += ends(b, h.Trace) - before - (most - 1)
				at := testtools.Clock()
				m.set(b, h, most)
				tl.raised(b, h, most)
				one, last := since(b, h.Trace, at)
				first, all = append(first, one), append(all, last)
				hand = append(hand, bare(b))
				if ends(b, h.Trace) > 1000 { // its 1500 jobs come to an end
					h.Open(b)
					h.wait(b)
					h = m.start(b, tl.pkg(), jobs.Build{})
					h.Wait(b, most)
				}
			}
			h.Open(b)
			h.wait(b)
			for what, v := range map[string][]time.Duration{"first": first, "all": all, "by-hand": hand} {
				slices.Sort(v)
				b.ReportMetric(ms(v[len(v)/2]), "ms-"+what)
				b.ReportMetric(ms(v[len(v)-1]), "ms-"+what+"-worst")
			}
			b.ReportMetric(float64(late)/float64(len(first)*(most-1)), "late-ends/slot")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func ends(b *testing.B, r *testtools.Trace) (n int) {
	for _, e := range r.Events(b) {
		if !e.Begin {
			n++
		}
	}
	return n
}

// since tells when the first and the last of the jobs began that did so after at.
func since(b *testing.B, r *testtools.Trace, at time.Duration) (first, last time.Duration) {
	for _, e := range r.Events(b) {
		if e.Begin && e.At > at {
			if first == 0 {
				first = e.At - at
			}
			last = e.At - at
		}
	}
	return first, last
}

// newBare returns a function that has a make on this machine go from 1 to n jobs,
// by bytes that are written into its jobserver, and tells how long that took.
func newBare(b *testing.B, n int) func(*testing.B) time.Duration {
	dir := b.TempDir()
	for name, data := range map[string][]byte{"job": testtools.Job(b), "Makefile": []byte("jobs := $(shell seq 1 " + fmt.Sprint(n) + ")\nall: $(jobs)\n$(jobs):\n\t@./job trace gate\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o755); err != nil {
			b.Fatal(err)
		}
	}
	return func(b *testing.B) time.Duration {
		for _, name := range []string{"trace", "gate", "gate.open"} {
			os.Remove(filepath.Join(dir, name))
		}
		h := testtools.Watch(b, dir, os.Getuid())
		fifo, server, err := os.Pipe()
		if err != nil {
			b.Fatal(err)
		}
		defer fifo.Close()
		defer server.Close()
		cmd := exec.Command("make")
		cmd.Dir, cmd.ExtraFiles = dir, []*os.File{fifo, server}
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "MAKEFLAGS=-j --jobserver-auth=3,4"}
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		h.Wait(b, 1)
		at := testtools.Clock()
		if _, err := server.Write(make([]byte, n-1)); err != nil {
			b.Fatal(err)
		}
		h.Wait(b, n)
		_, last := since(b, h, at)
		h.Open(b)
		if err := cmd.Wait(); err != nil {
			b.Fatal(err)
		}
		return last
	}
}

// BenchmarkShare is what a share of the machine's slots costs a build that does
// nothing: the same package with a number of jobs that is fixed and with a share,
// turn by turn in the same run, in workspaces that are made for it. Times are
// medians in milliseconds, of what the slots have a part in: from asking for the
// share until the build has ended, without the workspace.
func BenchmarkShare(b *testing.B) {
	f := newFarm(b)
	m := f.budget(b, jobs.Options{Total: 2})
	src := pkg{compilation: map[string]any{"make": "true ;", "test": "true ;", "install": "true ;"}}.fs(b)
	rec, err := recipe.Load(src)
	if err != nil {
		b.Fatal(err)
	}
	build := func(shared bool) time.Duration {
		n := number()
		ws, err := f.store.Workspace(b.Context(), images.Spec{Name: fmt.Sprint(n), Arch: testbase.Arch, Channel: "testing"})
		if err != nil {
			b.Fatal(err)
		}
		defer ws.Close(context.Background())
		job := runner.Job{Recipe: rec, Source: src, Jobs: 2}
		began := time.Now()
		if shared {
			share, err := m.Begin(b.Context(), jobs.Build{Number: n, Attempt: 1, Name: "probe-1.0", Key: fmt.Sprint(n)})
			if err != nil {
				b.Fatal(err)
			}
			defer share.End()
			job.Slots = share
		}
		res, err := runner.Run(b.Context(), ws, job)
		if err != nil || res.Failure != nil {
			b.Fatal(res, err)
		}
		return time.Since(began)
	}
	build(true)
	var with, without []time.Duration
	for b.Loop() {
		without = append(without, build(false))
		with = append(with, build(true))
	}
	slices.Sort(with)
	slices.Sort(without)
	b.ReportMetric(ms(without[len(without)/2]), "ms-fixed")
	b.ReportMetric(ms(with[len(with)/2]), "ms-shared")
	b.ReportMetric(ms(with[len(with)/2])-ms(without[len(without)/2]), "ms-more")
	b.ReportMetric(0, "ns/op")
}
