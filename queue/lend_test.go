package queue

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/Morphux/quarry"
)

// TestLend lends a worker: only what no build wants, and only until one does.
func TestLend(t *testing.T) {
	w := newWorld(t)
	block := make(chan struct{})
	w.onRun = func(ctx context.Context, b quarry.Build, _ func(string)) (*quarry.Outcome, error) {
		if b.Package == "slow" {
			select {
			case <-block:
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
		return nil, nil
	}
	opts := w.options(folder(t))
	opts.Workers = 1
	q := start(t, opts)
	w.push("slow", "1", "a", archs2[:1])
	slow := q.first("slow")
	q.untilState(slow.Number, quarry.Running)

	// The worker builds: who asks waits, and may go away again.
	ctx, cancel := context.WithCancel(t.Context())
	asked := make(chan error, 1)
	go func() {
		_, _, err := q.Lend(ctx, 0)
		asked <- err
	}()
	waiting := func(n int) {
		t.Helper()
		q.until("borrowers in line", func() bool {
			var have int
			if err := q.ask(t.Context(), func(o *owner) error { have = len(o.borrowers); return nil }); err != nil {
				t.Fatal(err)
			}
			return have == n
		})
	}
	waiting(1)
	cancel()
	if err := <-asked; !errors.Is(err, context.Canceled) {
		t.Errorf("a borrower that went away got %v", err)
	}
	waiting(0)

	type got struct {
		ctx  context.Context
		done func()
	}
	given := make(chan got, 1)
	borrow := func() {
		go func() {
			ctx, done, err := q.Lend(t.Context(), 0)
			if err != nil {
				t.Error(err)
			}
			given <- got{ctx, done}
		}()
	}
	borrow()
	waiting(1)
	close(block)
	q.wait(slow.Number)
	first := <-given
	if err := first.ctx.Err(); err != nil {
		t.Fatal(err)
	}

	// A push takes it back; its build begins when the worker is there.
	w.push("fast", "1", "b", archs2[:1])
	fast := q.first("fast")
	select {
	case <-first.ctx.Done():
	case <-time.After(2 * time.Minute):
		t.Fatal("the worker is not recalled")
	}
	if err := context.Cause(first.ctx); !errors.Is(err, ErrRecalled) {
		t.Errorf("it ended with %v", err)
	}
	if b, _ := q.Get(fast.Number); b.State != quarry.Queued {
		t.Errorf("the build is %s while the worker is lent", b.State)
	}
	borrow() // the same work, to be begun again
	waiting(1)
	first.done()
	if b := q.wait(fast.Number); b.State != quarry.Succeeded {
		t.Errorf("got %+v", plain(b))
	}
	second := <-given

	// A pause lends no further, and a stop waits for what is lent.
	second.done()
	if err := q.Pause(t.Context(), "alice", "disks"); err != nil {
		t.Fatal(err)
	}
	borrow()
	waiting(1)
	if err := q.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	third := <-given
	stopped := make(chan struct{})
	go func() { q.stop(); close(stopped) }()
	<-third.ctx.Done()
	select {
	case <-stopped:
		t.Error("it stopped with a worker lent")
	default:
	}
	third.done()
	<-stopped
	if _, _, err := q.Lend(t.Context(), 0); !errors.Is(err, ErrStopped) {
		t.Errorf("a stopped queue said %v", err)
	}
}

// TestLendMemory lends within the memory of builds, and takes back what a build
// needs of it.
func TestLendMemory(t *testing.T) {
	w := newWorld(t)
	opts := w.options(folder(t))
	opts.Workers, opts.Memory, opts.BuildMemory = 3, 10, 10
	q := start(t, opts)
	ctx, done, err := q.Lend(t.Context(), 6)
	if err != nil {
		t.Fatal(err)
	}
	short, stop := context.WithCancel(t.Context())
	second := make(chan error, 1)
	go func() { _, _, err := q.Lend(short, 6); second <- err }()
	w.pushAs(func(r *quarry.Release) { r.Traits = map[string]quarry.Traits{archs2[0]: {Memory: 8}} }, "big", "1", "a", archs2[:1])
	big := q.first("big")
	select {
	case <-ctx.Done():
	case <-time.After(2 * time.Minute):
		t.Fatal("the memory is not recalled")
	}
	select {
	case err := <-second:
		t.Errorf("a second loan was given beside the first: %v", err)
	default:
	}
	stop()
	<-second
	done()
	if b := q.wait(big.Number); b.State != quarry.Succeeded {
		t.Errorf("got %+v", plain(b))
	}
}
