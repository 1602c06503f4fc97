package control

import (
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/queue"
	"github.com/spf13/afero"
)

// shelf keeps mass rebuilds in memory.
type shelf struct {
	mu   sync.Mutex
	list map[string]queue.Campaign
}

func (s *shelf) List(context.Context) (list []queue.Campaign, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.list {
		list = append(list, c)
	}
	return list, nil
}

func (s *shelf) Save(_ context.Context, c queue.Campaign) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list[c.ID] = c
	return nil
}

// massFarm is a farm of one release that keeps records and mass rebuilds; builds
// are held while hold is closed to them.
func massFarm(t *testing.T, hold func(context.Context) error) *Farm {
	t.Helper()
	records := newRecorded()
	release := quarry.Release{Package: "zlib", Version: "1.3-p1", Channel: "testing", Commit: strings.Repeat("a", 40), Archs: []string{"x86_64"}, Time: time.Now()}
	q, err := queue.New(queue.Options{
		Fs: afero.NewMemMapFs(),
		Releases: func(context.Context, string) ([]quarry.Release, []queue.Problem, error) {
			return []quarry.Release{release}, nil, nil
		},
		Records: func(context.Context, string) (queue.Records, error) { return records, nil },
		Run: func(ctx context.Context, b quarry.Build, _ []quarry.DepUsed, _ func(string)) (*quarry.Outcome, error) {
			if err := hold(ctx); err != nil {
				return nil, err
			}
			return &quarry.Outcome{Build: b, Status: quarry.Succeeded}, nil
		},
		Record: records.record, Campaigns: &shelf{list: map[string]queue.Campaign{}},
		Workers: 1, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- q.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if _, err := q.Pushed(ctx, "zlib"); err != nil {
		t.Fatal(err)
	}
	return &Farm{Queue: q, Version: "test", Started: time.Now()}
}

// TestMassWords: who may begin mass rebuilds, what is said of wrong words, and
// how one is shown from its beginning to its end.
func TestMassWords(t *testing.T) {
	free := make(chan struct{})
	var later atomic.Bool
	farm := massFarm(t, func(ctx context.Context) error {
		if !later.Load() {
			return nil
		}
		select {
		case <-free:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	table := Verbs(farm)
	for _, tt := range []struct {
		who   quarry.Identity
		words string
		code  int
		says  string
	}{
		{alice, "rebuild --mass", ExitForbidden, "only an admin may begin a mass rebuild or call one off, and you are a maintainer"},
		{alice, "rebuild --mass --cancel x", ExitForbidden, "only an admin"},
		{reader, "rebuild --mass --list", ExitForbidden, "only maintainers"},
		{admin, "rebuild", ExitUsage, "rebuild takes BUILD or NAME-VERSION, or --mass"},
		{admin, "rebuild --match zlib", ExitUsage, "--match and --reason go with --mass"},
		{admin, "rebuild --mass zlib-1.3-p1", ExitUsage, `"zlib-1.3-p1" is one release`},
		{admin, "rebuild --mass --list --report x", ExitUsage, "choose one"},
		{admin, "rebuild --mass --list --match x", ExitUsage, "--match is for beginning a mass rebuild"},
		{admin, "rebuild --mass --report x", ExitNotFound, `no such mass rebuild: "x"; see quarry rebuild --mass --list`},
		{admin, "rebuild --mass --cancel x", ExitNotFound, "no such mass rebuild"},
		{admin, "rebuild --mass --match absent*", ExitError, "nothing matches"},
		{admin, "rebuild --mass --match [", ExitError, `pattern "[" does not match names`},
		{admin, "rebuild --mass --arch a/b", ExitError, "a/b"},
		{alice, "rebuild --mass --list", ExitOK, ""},
	} {
		_, errOut, code := call(t, table, tt.who, Terminal{}, strings.Fields(tt.words)...)
		if code != tt.code || !strings.Contains(errOut, tt.says) {
			t.Errorf("%s: exit %d, says %q; want exit %d and %q", tt.words, code, errOut, tt.code, tt.says)
		}
	}
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	for _, b := range farm.Queue.List(queue.Filter{}) {
		if _, err := farm.Queue.Wait(ctx, b.Number); err != nil {
			t.Fatal(err)
		}
	}
	later.Store(true)
	out, errOut, code := call(t, table, admin, Terminal{}, "rebuild", "--mass", "--match", "z*", "--reason", "a new\x1b[31m compiler")
	if code != ExitOK || !strings.HasPrefix(out, "mass rebuild ") || !strings.Contains(out, " of z*, by root at ") || strings.Contains(out, "\x1b") || !strings.Contains(out, "\nreason: a new") {
		t.Fatalf("begun: exit %d, %q %q", code, out, errOut)
	}
	id := strings.Fields(out)[2]
	out, _, code = call(t, table, alice, Terminal{}, "rebuild", "--mass", "--list")
	if code != ExitOK || !strings.Contains(out, id) || !strings.Contains(out, "z*") {
		t.Errorf("list: exit %d, %q", code, out)
	}
	close(free)
	var m massRebuild
	for ctx.Err() == nil && !m.Over() {
		if err := farm.Queue.Replan(ctx); err != nil {
			t.Fatal(err)
		}
		out, errOut, code = call(t, table, alice, Terminal{}, "rebuild", "--report", id, "--json")
		if err := json.Unmarshal([]byte(out), &m); code != ExitOK || err != nil {
			t.Fatalf("report: exit %d, %v, %q %q", code, err, out, errOut)
		}
	}
	if m.Report.Succeeded != m.Report.Total || m.Report.Total == 0 || m.Report.Failed+m.Report.Left() > 0 {
		t.Errorf("at the end: %+v", m)
	}
	out, _, _ = call(t, table, alice, Terminal{}, "rebuild", "--mass", "--report", id)
	if !strings.Contains(out, ": done\n") || !strings.Contains(out, " succeeded, 0 failed\n") {
		t.Errorf("the report of one that is done: %q", out)
	}
	if _, errOut, code = call(t, table, admin, Terminal{}, "rebuild", "--mass", "--cancel", id); code != ExitError || !strings.Contains(errOut, "over already") {
		t.Errorf("called off at the end: exit %d, %q", code, errOut)
	}
}
