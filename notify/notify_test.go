package notify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/mail"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/events"
	"github.com/Morphux/quarry/internal/testmail"
	"github.com/Morphux/quarry/results"
)

// farm is a real log of events and a real results repository, with a notifier.
type farm struct {
	t       *testing.T
	dir     string
	events  *events.Log
	results *results.Repo
	opts    Options

	mu     sync.Mutex // guards the following
	people []Person
	last   int64

	notifier *Notifier
	stop     func()
}

func newFarm(t *testing.T) *farm {
	f := &farm{t: t, dir: t.TempDir(), people: []Person{
		{User: "alice", Name: "Alice Liddell", Email: "alice@example.org"},
		{User: "bob", Email: "bob@example.org"},
		{User: "carol", Email: "carol@example.org", Admin: true},
		{User: "quiet", Email: "quiet@example.org", Mail: "none"},
		{User: "gruff", Email: "gruff@example.org", Mail: "failures"},
	}}
	var err error
	if f.events, err = events.Open(filepath.Join(f.dir, "events"), events.Options{}, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.events.Close() })
	if f.results, err = results.Open(filepath.Join(f.dir, "results.git"), results.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.results.Close() })
	f.opts = Options{
		Dir: filepath.Join(f.dir, "notify"), Events: f.events, Results: f.results, Settle: 100 * time.Millisecond,
		People: func() ([]Person, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			return slices.Clone(f.people), nil
		},
		URL: "https://farm.example.org", SSH: "ssh -p 2222 farm.example.org",
		Backoff: func(int) time.Duration { return 50 * time.Millisecond },
		Log:     slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	return f
}

// mail has letters sent through a server.
func (f *farm) mail(s *testmail.Server) {
	password := filepath.Join(f.dir, "password")
	if err := os.WriteFile(password, []byte(testmail.Password+"\n"), 0o600); err != nil {
		f.t.Fatal(err)
	}
	f.opts.Mail = &Mail{Server: s.Addr, TLS: "starttls", CA: s.CA, User: testmail.User, PasswordFile: password,
		From: mail.Address{Name: "Quarry", Address: "quarry@example.org"}, Farm: "test", Agent: "Quarry/test"}
}

// start runs a notifier, as a daemon would that is started.
func (f *farm) start() {
	f.t.Helper()
	n, err := New(f.opts)
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	f.notifier = n
	f.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			f.t.Error(err)
		}
	})
	f.t.Cleanup(f.stop)
	// What happens before that is not news to it.
	f.until("the notifier has begun", func() bool {
		s, err := loadState(f.opts.Dir)
		begun := err == nil && (s.Begun || f.opts.Mail == nil)
		for _, h := range n.hooks {
			h.mu.Lock()
			begun = begun && h.state.Begun
			h.mu.Unlock()
		}
		return begun
	})
}

func (f *farm) until(what string, ok func() bool) {
	f.t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			f.t.Fatalf("in three minutes it did not come to this: %s", what)
		}
	}
}

// caughtUp waits until all events have been dealt with and nothing is gathered.
func (f *farm) caughtUp() {
	f.t.Helper()
	if err := f.events.Flush(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
	last := f.events.Last()
	f.until("all is told", func() bool {
		s := f.notifier.Status()
		return s.Event >= last && s.Gathered == 0 && len(s.Letters) == 0
	})
}

// outcome is a build of this farm: p says what it is, as "alice zlib 1.3 x86_64",
// with the commit after an @ where it matters.
func (f *farm) outcome(p string, change func(*quarry.Outcome)) *quarry.Outcome {
	f.t.Helper()
	var user, pkg, version, arch string
	if _, err := fmt.Sscan(p, &user, &pkg, &version, &arch); err != nil {
		f.t.Fatal(err)
	}
	commit := strings.Repeat("a", 40)
	if v, c, ok := strings.Cut(version, "@"); ok {
		version, commit = v, strings.Repeat(c, 40)
	}
	f.mu.Lock()
	f.last++
	number := f.last
	f.mu.Unlock()
	now := time.Now().UTC().Truncate(time.Millisecond)
	target := quarry.Target{Channel: "testing", Package: pkg, Version: version, Arch: arch}
	o := &quarry.Outcome{
		Build: quarry.Build{Number: number, Arch: arch, Attempt: 1, Created: now,
			Release: quarry.Release{Package: pkg, Version: version, Channel: "testing", Commit: commit, Time: now, Pushed: now.Add(-time.Second), Archs: []string{arch},
				Packager: quarry.Packager{User: user, Email: user + "@example.org"}}},
		Status: quarry.Succeeded, Started: now, Ended: now.Add(time.Second),
	}
	if change != nil {
		change(o)
	}
	o.Build.Key = quarry.BuildKey(target, o.Build.Commit, o.Build.Nonce)
	if o.Status == quarry.Succeeded {
		o.Facts, o.Artifact = &quarry.Facts{}, &quarry.Artifact{SHA256: strings.Repeat("45", 32), Size: 1}
	}
	return o
}

func broken(o *quarry.Outcome) {
	o.Status = quarry.Failed
	o.Failure = &quarry.Failure{Step: "make", Cause: quarry.CauseExit, Status: 2, Message: "make ended with status 2", Command: "make",
		Class: "missing-header", Error: "gz.c:3:10: fatal error: zconf.h: No such file or directory", Line: 123,
		Excerpt:   []string{"cc -c gz.c", "gz.c:3:10: fatal error: zconf.h: No such file or directory", "    3 | #include <zconf.h>"},
		Hint:      "Name the package that has zconf.h under dependencies.",
		Reproduce: "git clone -b zlib-1.3 ssh://farm.example.org:2222/zlib.git && quarry build zlib"}
}

func rebuild(nonce string) func(*quarry.Outcome) {
	return func(o *quarry.Outcome) { o.Build.Nonce = nonce }
}

// end records a build and says so in an event.
func (f *farm) end(p string, changes ...func(*quarry.Outcome)) {
	f.t.Helper()
	f.events.Append(f.ended(p, changes...))
}

// ended records a build, and gives the event that says so.
func (f *farm) ended(p string, changes ...func(*quarry.Outcome)) events.Event {
	f.t.Helper()
	o := f.outcome(p, func(o *quarry.Outcome) {
		for _, c := range changes {
			c(o)
		}
	})
	commit, err := f.results.Record(f.t.Context(), o)
	if err != nil {
		f.t.Fatal(err)
	}
	b := o.Build
	b.State, b.Record, b.Started, b.Ended = o.Status, commit, o.Started, o.Ended
	return events.OfBuild(b, false, "testing")
}

func subjects(list []testmail.Letter) (out []string) {
	for _, l := range list {
		out = append(out, l.To+": "+l.Subject())
	}
	slices.Sort(out)
	return out
}

func wantLetters(t *testing.T, got []testmail.Letter, want ...string) {
	t.Helper()
	slices.Sort(want)
	if s := subjects(got); !slices.Equal(s, want) {
		t.Fatalf("letters are\n%s\nwant\n%s", strings.Join(s, "\n"), strings.Join(want, "\n"))
	}
}

// TestLetters walks through a package's life.
func TestLetters(t *testing.T) {
	server := testmail.New(t)
	server.Start(t)
	f := newFarm(t)
	f.mail(server)
	f.end("alice past 1.0 x86_64", broken) // before anybody listens
	f.start()

	// What comes at once is gathered at once, however slow the machine is.
	f.events.Append(f.ended("alice zlib 1.3 x86_64", broken), f.ended("alice zlib 1.3 aarch64", broken))
	f.end("bob ed 1.0 x86_64")
	f.end("quiet shy 1.0 x86_64", broken)
	f.end("stranger odd 1.0 x86_64", broken)
	first := server.Wait(t, 1)
	f.caughtUp()
	wantLetters(t, first, "alice@example.org: [quarry] zlib 1.3 fails on aarch64 and x86_64: missing header zconf.h")

	// Nothing new: the same again, another commit, the next release.
	f.end("alice zlib 1.3 x86_64", broken, rebuild("f00d"))
	f.end("alice zlib 1.3@b x86_64", broken)
	f.end("alice zlib 1.4 x86_64", broken)
	f.end("alice zlib 1.4 aarch64", broken)
	// Somebody else's try is theirs to hear of.
	f.end("bob zlib 1.5 x86_64", broken)
	server.Wait(t, 2)
	f.caughtUp()

	f.end("bob zlib 1.6 x86_64")
	server.Wait(t, 4)
	f.end("bob zlib 1.7 x86_64")
	f.caughtUp()
	all := server.Letters(t)
	wantLetters(t, all,
		"alice@example.org: [quarry] zlib 1.3 fails on aarch64 and x86_64: missing header zconf.h",
		"bob@example.org: [quarry] zlib 1.5 fails on x86_64: missing header zconf.h",
		"alice@example.org: [quarry] zlib 1.6 builds again on x86_64",
		"bob@example.org: [quarry] zlib 1.6 builds again on x86_64")

	for _, l := range all {
		t.Logf("a letter:\n%s", l.Raw)
		if l.Header.Get("Auto-Submitted") != "auto-generated" || l.Header.Get("List-Id") == "" || l.Header.Get("X-Quarry-Package") != "zlib" || l.Header.Get("From") != `"Quarry" <quarry@example.org>` {
			t.Errorf("headers of %q: %v", l.Subject(), l.Header)
		}
		if strings.Contains(l.Subject(), "builds again") && l.To == "alice@example.org" && l.Header.Get("In-Reply-To") != first[0].ID() {
			t.Errorf("%q answers %s, want %s", l.Subject(), l.Header.Get("In-Reply-To"), first[0].ID())
		}
	}
	for _, want := range []string{"#include <zconf.h>", "https://farm.example.org/builds/2#L123", "ssh -p 2222 farm.example.org log 2", "git clone -b zlib-1.3", "around line 123", "Name the package that has zconf.h"} {
		if !strings.Contains(first[0].Body, want) {
			t.Errorf("the first letter lacks %q:\n%s", want, first[0].Body)
		}
	}
}

// TestBreaks: a release breaks what is built with it.
func TestBreaks(t *testing.T) {
	server := testmail.New(t)
	server.Start(t)
	f := newFarm(t)
	f.mail(server)
	f.opts.Origin = func(_ context.Context, channel string, n int64) (quarry.Build, bool) {
		return quarry.Build{Number: n, Release: quarry.Release{Package: "libz", Version: "2.0", Channel: channel, Packager: quarry.Packager{User: "alice", Name: "Alice Liddell"}}}, n == 41
	}
	for _, p := range []string{"alice own", "bob one", "bob two", "gruff three", "bob sick"} {
		f.end(p + " 1.0 x86_64")
	}
	f.end("bob sick 1.0 x86_64", broken, rebuild("f00d"))
	f.start()
	var list []events.Event
	for _, p := range []string{"alice own", "bob one", "bob two", "gruff three", "bob sick"} {
		list = append(list, f.ended(p+" 1.0 x86_64", broken, rebuild("abi-41-ff")))
	}
	f.events.Append(list...)
	server.Wait(t, 3)
	f.caughtUp()
	wantLetters(t, server.Letters(t),
		"alice@example.org: [quarry] libz 2.0 broke 4 packages: one 1.0, own 1.0, three 1.0 and two 1.0",
		"bob@example.org: [quarry] 2 releases fail since libz 2.0: one 1.0 and two 1.0",
		"gruff@example.org: [quarry] three 1.0 fails on x86_64 since libz 2.0: missing header zconf.h")
	for _, l := range server.Letters(t) {
		t.Logf("a letter:\n%s\n%s", l.Subject(), l.Body)
	}
	// It is mended for all of them by another change; gruff wants no such letters.
	list = nil
	for _, p := range []string{"alice own", "bob one", "bob two", "gruff three"} {
		list = append(list, f.ended(p+" 1.0 x86_64", rebuild("abi-51-ee")))
	}
	f.events.Append(list...)
	server.Wait(t, 5)
	f.caughtUp()
	again := slices.DeleteFunc(server.Letters(t), func(l testmail.Letter) bool { return !strings.Contains(l.Subject(), "again") })
	wantLetters(t, again,
		"alice@example.org: [quarry] own 1.0 builds again on x86_64",
		"bob@example.org: [quarry] 2 releases build again: one 1.0 and two 1.0")
}

// TestBreaksItself: what is built again for its own sake has no culprit.
func TestBreaksItself(t *testing.T) {
	server := testmail.New(t)
	server.Start(t)
	f := newFarm(t)
	f.mail(server)
	f.opts.Origin = func(_ context.Context, channel string, n int64) (quarry.Build, bool) {
		return quarry.Build{Number: n, Release: quarry.Release{Package: "gcc", Version: "15", Channel: channel, Packager: quarry.Packager{User: "alice"}}}, true
	}
	f.end("alice gcc 15 x86_64")
	f.start()
	f.end("alice gcc 15 x86_64", broken, rebuild("abi-1-ff"))
	f.caughtUp()
	wantLetters(t, server.Wait(t, 1), "alice@example.org: [quarry] gcc 15 fails on x86_64 since a dependency has changed: missing header zconf.h")
}

// TestCrowd: what concerns too many people goes to who caused it and to the admins.
func TestCrowd(t *testing.T) {
	server := testmail.New(t)
	server.Start(t)
	f := newFarm(t)
	f.mail(server)
	f.opts.MaxRecipients = 3
	f.opts.Origin = func(_ context.Context, channel string, n int64) (quarry.Build, bool) {
		return quarry.Build{Number: n, Release: quarry.Release{Package: "libc", Version: "3", Channel: channel, Packager: quarry.Packager{User: "alice"}}}, true
	}
	for i := range 5 {
		user := fmt.Sprintf("user%d", i)
		f.people = append(f.people, Person{User: user, Email: user + "@example.org"})
		f.end(fmt.Sprintf("%s p%d 1.0 x86_64", user, i))
	}
	f.start()
	var ended []events.Event
	for i := range 5 {
		ended = append(ended, f.ended(fmt.Sprintf("user%d p%d 1.0 x86_64", i, i), broken, rebuild("abi-41-ff")))
	}
	f.events.Append(ended...)
	server.Wait(t, 2)
	f.caughtUp()
	list := server.Letters(t)
	wantLetters(t, list, "alice@example.org: [quarry] 5 releases fail after libc 3, of 6 people", "carol@example.org: [quarry] 5 releases fail after libc 3, of 6 people")
	for _, l := range list {
		if !strings.Contains(l.Body, "p4 1.0 x86_64") || !strings.Contains(l.Body, "mail.max_recipients") {
			t.Errorf("the letter says:\n%s", l.Body)
		}
	}
	t.Logf("a letter:\n%s", list[0].Body)
}

// TestMass: a mass rebuild is reported once, to who began it.
func TestMass(t *testing.T) {
	server := testmail.New(t)
	server.Start(t)
	f := newFarm(t)
	f.mail(server)
	f.opts.Campaign = func(_ context.Context, id string) (*Campaign, error) {
		return &Campaign{ID: id, By: map[string]string{"20260303-aa": "carol", "20260303-bb": "local"}[id], Reason: "gcc 15", Over: true, Total: 3, Succeeded: 1, Failed: 2,
			New: []Broken{{quarry.Target{Channel: "testing", Package: "one", Version: "1.0", Arch: "x86_64"}, 7, []string{"gcc 15, was 14"}}}}, nil
	}
	f.end("bob one 1.0 x86_64")
	f.start()
	for _, id := range []string{"20260303-aa", "20260303-bb"} {
		f.end("bob one 1.0 x86_64", broken, rebuild("mass-"+id))
		f.events.Append(events.Event{Kind: events.MassEnded, ID: id, Text: "over"})
	}
	server.Wait(t, 2)
	f.caughtUp()
	list := server.Letters(t)
	wantLetters(t, list, "carol@example.org: [quarry] mass rebuild 20260303-aa: 1 of 3 built, 1 newly fail", "carol@example.org: [quarry] mass rebuild 20260303-bb: 1 of 3 built, 1 newly fail")
	t.Logf("a letter:\n%s", list[0].Body)
}

// TestTakenBack: who was never told of a failure does not hear of its end, and who
// was about to hear of its end does not when it is none.
func TestTakenBack(t *testing.T) {
	server := testmail.New(t)
	server.Start(t)
	f := newFarm(t)
	f.mail(server)
	f.start()
	f.events.Append(f.ended("alice zlib 1.3 x86_64", broken), f.ended("alice zlib 1.3@b x86_64"))
	f.end("alice last 1.0 x86_64", broken)
	f.caughtUp()
	wantLetters(t, server.Wait(t, 1), "alice@example.org: [quarry] last 1.0 fails on x86_64: missing header zconf.h")

	f.events.Append(f.ended("alice last 1.0@b x86_64"), f.ended("alice last 1.0@c x86_64", broken))
	f.end("bob done 1.0 x86_64", broken)
	f.caughtUp()
	if list := server.Wait(t, 2); len(list) != 2 {
		t.Errorf("letters are %q", subjects(list))
	}
	// That it failed all the time is known: its end is told.
	f.end("alice last 1.0@d x86_64")
	f.caughtUp()
	list := server.Wait(t, 3)
	wantLetters(t, list, "alice@example.org: [quarry] last 1.0 builds again on x86_64", "alice@example.org: [quarry] last 1.0 fails on x86_64: missing header zconf.h", "bob@example.org: [quarry] done 1.0 fails on x86_64: missing header zconf.h")
}

// TestDue: what waits for the archs of a release, and for how long.
func TestDue(t *testing.T) {
	now := time.Now()
	live := false
	n := &Notifier{opts: Options{Settle: time.Minute, Live: func(Cause) bool { return live }}}
	for _, c := range []struct {
		name      string
		kind      CauseKind
		age, idle time.Duration
		live      bool
		over      bool
		want      bool
	}{
		{"all archs have ended", ByPush, 10 * time.Second, 10 * time.Second, false, false, true},
		{"right after the end of one", ByPush, time.Second, time.Second, false, false, false},
		{"another arch is under way", ByPush, 10 * time.Second, 10 * time.Second, true, false, false},
		{"another arch takes long", ByPush, time.Minute, time.Minute, true, false, true},
		{"one arch after the other", ByPush, 10 * time.Minute, time.Second, true, false, true},
		{"rebuilds are under way", ByChange, 5 * time.Hour, time.Hour, true, false, false},
		{"rebuilds have ended", ByChange, 5 * time.Hour, time.Minute, false, false, true},
		{"a rebuild may lead to another", ByChange, 5 * time.Hour, 10 * time.Second, false, false, false},
		{"rebuilds have no end", ByChange, 6 * time.Hour, 0, true, false, true},
		{"a new arch", ByBacklog, time.Hour, time.Minute, false, false, true},
		{"a mass rebuild goes on", ByMass, 100 * time.Hour, 100 * time.Hour, false, false, false},
		{"a mass rebuild is over", ByMass, time.Hour, 0, false, true, true},
	} {
		live = c.live
		b := &batch{Cause: Cause{Kind: c.kind}, First: now.Add(-c.age), Last: now.Add(-c.idle), Over: c.over}
		if got := n.due(t.Context(), b, now); got != c.want {
			t.Errorf("%s: due is %v", c.name, got)
		}
	}
}

// TestLater: mail that is switched off for a while and on again tells nothing of
// the time between.
func TestLater(t *testing.T) {
	server := testmail.New(t)
	server.Start(t)
	f := newFarm(t)
	f.mail(server)
	f.start()
	f.end("alice a 1.0 x86_64", broken)
	server.Wait(t, 1)
	f.caughtUp()
	f.stop()
	m := f.opts.Mail
	f.opts.Mail = nil
	f.start()
	f.end("alice b 1.0 x86_64", broken)
	if err := f.events.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.until("the place is forgotten", func() bool { s, err := loadState(f.opts.Dir); return err == nil && !s.Begun })
	f.stop()
	f.opts.Mail = m
	f.start()
	f.end("alice c 1.0 x86_64", broken)
	server.Wait(t, 2)
	f.caughtUp()
	wantLetters(t, server.Letters(t), "alice@example.org: [quarry] a 1.0 fails on x86_64: missing header zconf.h", "alice@example.org: [quarry] c 1.0 fails on x86_64: missing header zconf.h")
}
