package images

import (
	"fmt"
	"testing"
	"time"
)

func TestTargets(t *testing.T) {
	now := time.Now()
	const idle = time.Hour
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for _, tt := range []struct {
		name string
		max  int
		d    []demand // of the environments 0, 1, ...
		want string
	}{
		{"nothing is wanted", 4, []demand{{}, {}}, "[0 0]"},
		{"used", 4, []demand{{used: ago(time.Minute)}, {}}, "[1 0]"},
		{"used long ago", 4, []demand{{used: ago(2 * idle), want: 3}}, "[0]"},
		{"missed", 4, []demand{{used: now, want: 3}}, "[3]"},
		{"more than there is room for", 4, []demand{{used: now, want: 9}}, "[4]"},
		{"builds are waiting", 4, []demand{{used: now, queued: 2}, {used: now, queued: 100}}, "[2 2]"},
		{"started", 4, []demand{{started: true}, {}}, "[1 0]"},
		{"started first", 1, []demand{{used: now, queued: 5, want: 5}, {started: true}}, "[0 1]"},
		{"waiting before used", 1, []demand{{used: now}, {used: ago(time.Minute), queued: 1}}, "[0 1]"},
		{"used last", 2, []demand{{used: ago(3 * time.Minute)}, {used: ago(time.Minute)}, {used: ago(2 * time.Minute)}}, "[0 1 1]"},
		{"one for each first", 4, []demand{{used: now, queued: 100}, {used: ago(time.Minute)}, {started: true}}, "[2 1 1]"},
		{"stopped", 4, []demand{{used: now, queued: 3, stopped: true}, {used: now}}, "[0 1]"},
	} {
		p := &pool{opts: PoolOptions{Max: tt.max, Idle: idle}, envs: map[env]*shelf{}}
		for i, d := range tt.d {
			e := env{"c", fmt.Sprint(i)}
			p.envs[e] = &shelf{env: e, demand: d}
		}
		got := func() string {
			targets := p.targets(now)
			var n []int
			for i := range tt.d {
				n = append(n, targets[p.envs[env{"c", fmt.Sprint(i)}]])
			}
			return fmt.Sprint(n)
		}
		if g := got(); g != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, g, tt.want)
		}
		for _, sh := range p.envs {
			sh.held = 1
		}
		none := fmt.Sprint(make([]int, len(tt.d)))
		if g := got(); g != none {
			t.Errorf("%s: %s while they are held", tt.name, g)
		}
		for _, sh := range p.envs {
			sh.held = 0
		}
		p.short = "memory"
		if g := got(); g != none {
			t.Errorf("%s: %s while memory is short", tt.name, g)
		}
	}
}

func TestDemandFades(t *testing.T) {
	now := time.Now()
	const idle = 80 * time.Minute
	var d demand
	for range 7 {
		d.use(now)
		d.miss(now, 5)
	}
	if d.want != 5 {
		t.Fatalf("%d are wanted after 7 misses, with room for 5", d.want)
	}
	// It is used all the time, and finds a workspace each time.
	for minute := range 60 {
		at := now.Add(time.Duration(minute) * time.Minute)
		d.use(at)
		d.calm(at, idle)
	}
	if d.want != 1 || d.ready(now.Add(time.Hour), idle) != 1 {
		t.Errorf("%d are wanted after an hour of peace", d.want)
	}
	if n := d.ready(now.Add(4*time.Hour), idle); n != 0 {
		t.Errorf("%d are kept although nobody wants them", n)
	}
}

func TestPoorest(t *testing.T) {
	now := time.Now()
	rich := &shelf{env: env{"c", "rich"}, warm: make([]*Workspace, 2)}
	poor := &shelf{env: env{"c", "poor"}, warm: make([]*Workspace, 1)}
	ill := &shelf{env: env{"c", "ill"}, again: now.Add(time.Minute)}
	targets := map[*shelf]int{rich: 3, poor: 3, ill: 1}
	if got := poorest(targets, now); got != poor {
		t.Errorf("%v", got)
	}
	// Those who wait will take what is there.
	rich.waiting = make([]chan<- *Workspace, 2)
	if got := poorest(targets, now); got != rich {
		t.Errorf("%v", got)
	}
	if got := poorest(map[*shelf]int{rich: 0, poor: 1, ill: 1}, now); got != nil {
		t.Errorf("%v", got)
	}
}
