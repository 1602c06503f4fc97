package queue

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/events"
)

// TestObserve kills the queue at every operation on its disk, and each time the
// log of events with it, before it has written what it was told last: after the
// next start all ends that the journal tells are in the log.
func TestObserve(t *testing.T) {
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	for at := 1; ; at++ {
		w := newWorld(t)
		fsys, dir := folder(t), t.TempDir()
		w.push("a", "1", "1", archs2)
		w.push("bad", "1", "2", archs2[:1])
		w.push("b", "1", "3", archs2, "a-1")
		f := newFate(fsys, at)
		w.tick = f.act
		life := func(opts Options, sudden bool) {
			log, r, err := events.Report(dir, events.Options{Log: quiet}, "testing", "test")
			if err != nil {
				t.Fatal(err)
			}
			defer log.Close()
			q, err := New(opts)
			if err != nil {
				t.Fatal(err)
			}
			r.Builds(q.List(Filter{}))
			q.opts.Observe = func(b quarry.Build) {
				// In a sudden death the last is what the log has not got.
				if sudden && f.isDead() {
					return
				}
				r.Build(b)
			}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- q.Run(ctx) }()
			for end := time.Now().Add(2 * time.Minute); !w.settled() && !f.isDead() || !sudden && len(q.List(Filter{Live: true})) > 0; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("it never settles: %+v", q.Status())
				}
			}
			cancel()
			if err := <-done; err != nil && !sudden {
				t.Fatal(err)
			}
		}
		opts := w.options(mortal{fsys, f})
		life(opts, true)
		died := f.isDead()
		if !died {
			f.at = 0
		}
		w.tick = func(string) error { return nil }
		if died {
			f = newFate(fsys, 0)
			life(w.options(fsys), false)
		}
		log, err := events.Open(dir, events.Options{Log: quiet}, nil)
		if err != nil {
			t.Fatal(err)
		}
		q, err := New(w.options(fsys))
		if err != nil {
			t.Fatal(err)
		}
		ends := map[string]int{}
		last := int64(0)
		for since := int64(0); ; since = last {
			list, err := log.Read(since, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range list {
				if e.N != last+1 {
					t.Fatalf("event %d comes after %d", e.N, last)
				}
				last = e.N
				if e.Ended() {
					ends[fmt.Sprint(e.Build.Number, e.Build.State)]++
				}
			}
			if len(list) == 0 {
				break
			}
		}
		log.Close()
		for _, b := range q.List(Filter{States: []quarry.State{quarry.Succeeded, quarry.Failed, quarry.Errored, quarry.Cancelled, quarry.Obsolete}}) {
			if ends[fmt.Sprint(b.Number, b.State)] == 0 {
				t.Errorf("dead at %d (%s): the log does not tell that %s %s: %v", at, f.where, b, b.State, ends)
			}
		}
		if t.Failed() || !died {
			break
		}
	}
}

// TestObservePauses: who observes is told of none at the start, and of each change.
func TestObservePauses(t *testing.T) {
	w := newWorld(t)
	opts := w.options(folder(t))
	told := make(chan []PauseStatus, 100)
	opts.ObservePauses = func(list []PauseStatus) { told <- list }
	q := start(t, opts)
	next := func(n int) {
		t.Helper()
		for end := time.After(2 * time.Minute); ; {
			select {
			case list := <-told:
				if len(list) == n {
					return
				}
			case <-end:
				t.Fatalf("nobody is told that there are %d pauses", n)
			}
		}
	}
	next(0)
	if err := q.Pause(t.Context(), "alice", "moving"); err != nil {
		t.Fatal(err)
	}
	next(1)
	if err := q.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	next(0)
}

// TestAnswersAreSeen: who was answered sees what it has come to.
func TestAnswersAreSeen(t *testing.T) {
	w := newWorld(t)
	opts := w.options(folder(t))
	var seen atomic.Int32
	opts.ObservePauses = func(list []PauseStatus) {
		time.Sleep(20 * time.Millisecond) // the answer comes after that, or too soon
		seen.Store(int32(len(list)))
	}
	q := start(t, opts)
	for i := range 3 {
		if err := q.Pause(t.Context(), "bob", fmt.Sprint("tidying up ", i)); err != nil {
			t.Fatal(err)
		}
		if p := q.Status().Paused; seen.Load() != 1 || len(p) != 1 || p[0].Reason != fmt.Sprint("tidying up ", i) {
			t.Errorf("%d pauses were observed, and the queue says %+v", seen.Load(), p)
		}
		if err := q.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		if p := q.Status().Paused; seen.Load() != 0 || len(p) != 0 {
			t.Errorf("%d pauses were observed, and the queue says %+v", seen.Load(), p)
		}
	}
}
