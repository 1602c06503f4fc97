package events

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
)

func report(t *testing.T, dir string) (*Log, *Reporter) {
	t.Helper()
	l, r, err := Report(dir, Options{Log: quiet}, "testing", "1.0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, r
}

// told gives what was said since a number, a line each: kind and text.
func told(t *testing.T, l *Log, since int64) string {
	t.Helper()
	flush(t, l)
	var s strings.Builder
	for _, e := range all(t, l, since, 0) {
		fmt.Fprintf(&s, "%s: %s\n", e.Kind, e.Text)
	}
	return s.String()
}

func want(t *testing.T, got string, lines ...string) {
	t.Helper()
	if w := strings.Join(append(lines, ""), "\n"); got != w {
		t.Errorf("told is\n%swanted\n%s", got, w)
	}
}

func build(number int64, state quarry.State) quarry.Build {
	return quarry.Build{Number: number, Arch: "x86_64", State: state, Release: quarry.Release{
		Package: "zlib", Version: "1.3.1", Channel: "testing", Packager: quarry.Packager{User: "alice"}, Needs: []string{"libc"}}}
}

func TestTexts(t *testing.T) {
	now := time.Now()
	b := build(17, quarry.Failed)
	b.Started, b.Ended = now, now.Add(12*time.Second)
	on := func(change func(*quarry.Build)) quarry.Build { c := b; change(&c); return c }
	for _, tt := range []struct {
		b    quarry.Build
		step bool
		kind string
		text string
	}{
		{on(func(b *quarry.Build) { b.Reason = "make: missing header zconf.h" }), false, Failed, "zlib 1.3.1 x86_64 failed in make: missing header zconf.h (build 17, alice)"},
		{on(func(b *quarry.Build) { b.Reason = "make ended with status 2" }), false, Failed, "zlib 1.3.1 x86_64 failed in make: make ended with status 2 (build 17, alice)"},
		{on(func(b *quarry.Build) { b.Reason = "make ended with status 2: a.c:5:40: error: expected ;" }), false, Failed, "zlib 1.3.1 x86_64 failed in make: a.c:5:40: error: expected ; (build 17, alice)"},
		{on(func(b *quarry.Build) { b.Reason = "makefile is missing" }), false, Failed, "zlib 1.3.1 x86_64 failed: makefile is missing (build 17, alice)"},
		{on(func(b *quarry.Build) { b.State, b.Channel = quarry.Succeeded, "stable" }), false, Succeeded, "zlib 1.3.1 x86_64 succeeded in 12 s (build 17 on stable, alice)"},
		{on(func(b *quarry.Build) { b.State, b.Reason = quarry.Waiting, "waits for libc" }), false, Waiting, "zlib 1.3.1 x86_64 waits for libc (build 17, alice)"},
		{on(func(b *quarry.Build) { b.State, b.Step, b.Attempt = quarry.Running, "make", 2 }), false, Started, "zlib 1.3.1 x86_64 is started, try 2 (build 17, alice)"},
		{on(func(b *quarry.Build) { b.State, b.Step = quarry.Running, "make" }), true, Step, "zlib 1.3.1 x86_64 is in make (build 17, alice)"},
		{on(func(b *quarry.Build) { b.State, b.Reason, b.Group = quarry.Cancelled, "cancelled by bob", "gnome-49" }), false, Cancelled, "zlib 1.3.1 x86_64 was cancelled by bob (build 17, group gnome-49, alice)"},
		{on(func(b *quarry.Build) { b.State, b.Reason = quarry.Queued, "put back: the daemon was stopped" }), false, Queued, "zlib 1.3.1 x86_64 is queued: put back: the daemon was stopped (build 17, alice)"},
		{on(func(b *quarry.Build) { b.Reason = "make: \x1b[31ma\r\nb\u202e\u2028" + strings.Repeat("é", 500) }), false, Failed, ""},
	} {
		e := OfBuild(tt.b, tt.step, "testing")
		if e.Kind != tt.kind || tt.text != "" && e.Text != tt.text {
			t.Errorf("%s: %s\nwanted %s: %s", e.Kind, e.Text, tt.kind, tt.text)
		}
		if len(e.Text) > maxText || strings.ContainsAny(e.Text, "\r\n\x1b\u202e\u2028") || !strings.HasSuffix(e.Text, ", alice)") {
			t.Errorf("%q is not fit for a line", e.Text)
		}
		if e.Build.Needs != nil || tt.b.Needs == nil {
			t.Errorf("the event holds what the build needs, or has changed the build")
		}
	}
}

// TestReporter: what is told again is said once, over restarts too.
func TestReporter(t *testing.T) {
	dir := t.TempDir()
	l, r := report(t, dir)
	env := quarry.Environment{Channel: "testing", Arch: "riscv64"}
	now := time.Now()
	for range 2 {
		r.Releases([]quarry.Release{
			{Package: "zlib", Version: "1.3.1", Channel: "testing", Commit: strings.Repeat("a", 40), Pushed: now.Truncate(time.Second), Packager: quarry.Packager{User: "alice"}},
			{Package: "old", Version: "1", Channel: "testing", Commit: strings.Repeat("b", 40), Pushed: now.Add(-time.Hour)},
		})
		b := build(1, quarry.Queued)
		r.Build(b)
		r.Pauses([]Pause{{Reason: "the disk is full"}, {Reason: "another farm-wide one"}, {By: "bob", Reason: "paused by bob"}, {Environment: &env, Reason: "no base"}})
		r.Mass(Mass{ID: "m1", By: "root", Reason: "new libc", Made: now})
	}
	b := build(1, quarry.Running)
	b.Attempt, b.Started = 1, now
	for _, b.Step = range []string{"", "prepare", "make", "make"} {
		r.Build(b)
	}
	r.Group(GroupSubmitted, quarry.Submission{Group: "gnome-49", Channel: "testing", ID: "g1"}, "")
	want(t, told(t, l, 0),
		"farm.started: quarry 1.0 has started",
		"push: alice released zlib 1.3.1 on testing (commit aaaaaaaaaaaa)",
		"build.queued: zlib 1.3.1 x86_64 is queued (build 1, alice)",
		"pause: no builds are begun: the disk is full",
		"pause: no builds are begun: paused by bob",
		"pause: no builds are begun for testing/riscv64: no base",
		"mass.begun: mass rebuild m1 has begun, by root: new libc",
		"build.started: zlib 1.3.1 x86_64 is started (build 1, alice)",
		"build.step: zlib 1.3.1 x86_64 is in prepare (build 1, alice)",
		"build.step: zlib 1.3.1 x86_64 is in make (build 1, alice)",
		"group.submitted: group gnome-49 was submitted to testing")
	last := l.Last()
	l.Close()

	// While nobody wrote events, build 1 succeeded and two came; the pauses but
	// bob's, the mass rebuild and the group ended.
	l, r = report(t, dir)
	b.State, b.Step, b.Ended = quarry.Succeeded, "", now.Add(2*time.Second)
	past := build(3, quarry.Failed)
	past.Ended = now.Add(-time.Hour)
	two := build(2, quarry.Waiting)
	two.Reason = "waits for libc"
	r.Builds([]quarry.Build{past, two, b})
	for range 2 {
		r.Build(two)
		r.Pauses([]Pause{{By: "bob", Reason: "paused by bob"}})
		r.Mass(Mass{ID: "m1", By: "root", Made: now, Ended: now})
		r.Mass(Mass{ID: "m0", By: "root", Made: now.Add(-time.Hour), Ended: now.Add(-time.Minute)})
		r.Releases([]quarry.Release{{Package: "zlib", Version: "1.3.1", Channel: "testing", Commit: strings.Repeat("a", 40), Pushed: now.Truncate(time.Second)}})
		for _, g := range r.OpenGroups() {
			r.Group(GroupLanded, quarry.Submission{Group: g.Group, Channel: g.Channel, ID: g.ID}, strings.Repeat("c", 40))
		}
	}
	got := told(t, l, last)
	for _, once := range []string{
		"farm.started: quarry 1.0 has started\n",
		"build.waiting: zlib 1.3.1 x86_64 waits for libc (build 2, alice)\n",
		"build.succeeded: zlib 1.3.1 x86_64 succeeded in 2.0 s (build 1, alice)\n",
		"resume: builds are begun again\n",
		"resume: builds are begun again for testing/riscv64\n",
		"mass.ended: mass rebuild m1 is done\n",
		"group.landed: group gnome-49 has landed on testing",
	} {
		if strings.Count(got, once) != 1 {
			t.Errorf("%q is not told once:\n%s", once, got)
		}
	}
	if n := strings.Count(got, "\n"); n != 7 {
		t.Errorf("%d events are told, not 7:\n%s", n, got)
	}
	if err := r.Stopped(); err != nil {
		t.Fatal(err)
	}
	l, _ = report(t, dir)
	flush(t, l)
	want(t, told(t, l, l.Last()-2), "farm.stopped: quarry is stopped", "farm.started: quarry 1.0 has started")
}

// TestLimit: what builds may take is said when it changes, and over restarts once.
func TestLimit(t *testing.T) {
	dir := t.TempDir()
	l, r := report(t, dir)
	r.Limit(8, 8, "", "all slots") // as ever
	r.Limit(2, 8, "", `schedule "09:00-18:00 2"`)
	r.Limit(2, 8, "", `schedule "09:00-18:00 2"`)
	r.Limit(8, 8, "alice", "by hand: alice")
	want(t, told(t, l, 1), `jobs.limit: builds may take 2 of 8 slots: schedule "09:00-18:00 2"`, "jobs.limit: builds may take 8 of 8 slots: by hand: alice")
	if err := r.Stopped(); err != nil {
		t.Fatal(err)
	}
	l, r = report(t, dir)
	flush(t, l)
	since := l.Last()
	r.Limit(8, 8, "alice", "by hand: alice") // still
	r.Limit(8, 8, "", "all slots")
	r.Limit(8, 8, "", "all slots")
	want(t, told(t, l, since), "jobs.limit: builds may take all 8 slots again")
	if err := r.Stopped(); err != nil {
		t.Fatal(err)
	}
	l, r = report(t, dir)
	flush(t, l)
	since = l.Last()
	r.Limit(8, 8, "", "all slots")
	want(t, told(t, l, since))
}
