package githttp

import (
	"context"
	"testing"
)

// One client gets its part, and others go ahead of what it asks beyond.
func TestPlaces(t *testing.T) {
	p := &places{max: 3, each: 2, waiting: 10}
	now, cancel := context.WithCancel(t.Context())
	cancel()
	enter := func(client string) func() {
		t.Helper()
		release, ok := p.enter(t.Context(), client)
		if !ok {
			t.Fatal("no place")
		}
		return release
	}
	first := enter("192.0.2.1")
	enter("192.0.2.1")
	if _, ok := p.enter(now, "192.0.2.1"); ok {
		t.Error("a client has three of three places")
	}
	other := enter("192.0.2.2")
	if _, ok := p.enter(now, "192.0.2.2"); ok {
		t.Error("there are more than three places")
	}
	turn := make(chan func())
	go func() {
		release, _ := p.enter(context.Background(), "192.0.2.1")
		turn <- release
	}()
	other()
	other() // a second time is nothing
	enter("192.0.2.3")
	first()
	release := <-turn
	release()
	if running, waiting := p.load(); running != 2 || waiting != 0 {
		t.Errorf("%d run, %d wait", running, waiting)
	}
	mine := &places{max: 3, each: 1, waiting: 10}
	for range 3 { // others ask through this machine
		if _, ok := mine.enter(now, "127.0.0.1"); !ok {
			t.Error("this machine gets no place")
		}
	}
}
