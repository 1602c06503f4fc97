package queue

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/Morphux/quarry"
)

// TestRoom: no more builds begin than there is room for, those that run go on when
// it shrinks, and what waits begins when there is more.
func TestRoom(t *testing.T) {
	w := newWorld(t)
	end := make(chan struct{})
	w.onRun = func(ctx context.Context, _ quarry.Build, _ func(string)) (*quarry.Outcome, error) {
		select {
		case <-end:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		return nil, nil
	}
	var room atomic.Int64
	room.Store(1)
	opts := w.options(folder(t))
	opts.Workers, opts.Room = 3, func() int { return int(room.Load()) }
	q := start(t, opts)
	var last int64
	for _, pkg := range []string{"a", "b", "c", "d"} {
		w.push(pkg, "1", pkg, archs2[:1])
		last = q.first(pkg).Number
	}
	running := func(n int) {
		t.Helper()
		q.until("builds that run", func() bool { return q.Status().Counts[quarry.Running] == n })
		// Nothing more comes of looking again.
		if err := q.ask(t.Context(), func(*owner) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if got := q.Status().Counts[quarry.Running]; got != n {
			t.Fatalf("%d builds run where there is room for %d", got, n)
		}
	}
	running(1)
	room.Store(2)
	q.Roomed()
	running(2)
	room.Store(1)
	q.Roomed()
	running(2)
	room.Store(100) // no more than workers
	q.Roomed()
	running(3)
	room.Store(0)
	end <- struct{}{}
	running(2)
	room.Store(1)
	end <- struct{}{}
	end <- struct{}{}
	q.untilState(last, quarry.Running)
	close(end)
	q.until("all ended", func() bool { return q.Status().Counts[quarry.Succeeded] == 4 })
}
