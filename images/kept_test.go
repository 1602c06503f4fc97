package images_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/testbase"
)

// gone waits for the reason why a workspace is kept no longer.
func gone(t *testing.T, c <-chan string) string {
	t.Helper()
	select {
	case why := <-c:
		return why
	case <-time.After(3 * time.Minute):
		t.Fatal("it is kept for ever")
		return ""
	}
}

// TestKeep keeps workspaces until each of the things happens that ends them.
func TestKeep(t *testing.T) {
	f := pooled(t, testbase.Podman(t), images.Options{Pool: images.PoolOptions{Max: 1}, Keep: images.KeepOptions{For: time.Hour, Max: 3}})
	keep := func(w *images.Workspace) (*images.Kept, <-chan string) {
		t.Helper()
		why := make(chan string, 1)
		k, ok := f.store.Keep(w, func(s string) { why <- s })
		if !ok {
			t.Fatal("it is not kept")
		}
		return k, why
	}
	dead := f.workspace(t, images.Limits{})
	if err := dead.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, ok := f.store.Keep(dead, nil); ok {
		t.Error("a dead one is kept")
	}
	dead.Close(t.Context())

	a, aGone := keep(f.workspace(t, images.Limits{}))
	_, bGone := keep(f.workspace(t, images.Limits{}))
	c, cGone := keep(f.workspace(t, images.Limits{}))
	if e := f.store.Environments(t.Context())[0]; e.Busy != 0 {
		t.Errorf("%d count as builds'", e.Busy)
	}
	if users, until := a.State(); users != 0 || until.Before(time.Now().Add(50*time.Minute)) {
		t.Errorf("%d users, until %v", users, until)
	}
	leave, err := a.Enter()
	if err != nil {
		t.Fatal(err)
	}
	if users, until := a.State(); users != 1 || !until.IsZero() {
		t.Errorf("%d users, until %v", users, until)
	}
	// One more than may be: the oldest that nobody uses goes.
	_, dGone := keep(f.workspace(t, images.Limits{}))
	if why := gone(t, bGone); !strings.Contains(why, "a newer one took its place") {
		t.Errorf("%s", why)
	}
	// One that dies goes, in use or not.
	left, err := c.Enter()
	if err != nil {
		t.Fatal(err)
	}
	defer left()
	if err := c.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if why := gone(t, cGone); !strings.Contains(why, "its first process has ended") {
		t.Errorf("%s", why)
	}
	if _, err := c.Enter(); err == nil {
		t.Error("it is used all the same")
	}
	// In want of memory the unused go at once, the others when they are left.
	images.SetMinMemory(f.store, 1<<60)
	if why := gone(t, dGone); !strings.Contains(why, "memory is short") {
		t.Errorf("%s", why)
	}
	if users, _ := a.State(); users != 1 {
		t.Errorf("%d users", users)
	}
	leave()
	leave() // twice is once
	if why := gone(t, aGone); !strings.Contains(why, "memory is short") {
		t.Errorf("%s", why)
	}
	images.SetMinMemory(f.store, 1)

	// Sanitizing leaves them be; the store's end does not.
	e, eGone := keep(f.workspace(t, images.Limits{}))
	if rep, err := f.store.Sanitize(t.Context(), images.SanitizeOptions{Running: true}, nil); err != nil || rep.Killed != 0 {
		t.Errorf("%d ended, %v", rep.Killed, err)
	}
	if leave, err := e.Enter(); err != nil {
		t.Error(err)
	} else {
		leave()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	if err := f.store.Close(ctx); err != nil {
		t.Error(err)
	}
	if why := gone(t, eGone); why != "the daemon was stopped" {
		t.Errorf("%s", why)
	}
	if f.store.Relieve("x") {
		t.Error("there is one left")
	}
}
