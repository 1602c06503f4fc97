package jobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime"
	"slices"
	"sync"
	"time"
)

// How often is looked at what, while there are builds.
const (
	tick        = 100 * time.Millisecond // who uses what
	taskEvery   = 500 * time.Millisecond // processes, of builds that have no clients of the protocol
	signalEvery = time.Second            // the machine
)

// Governor shares the slots of a machine among builds. Its methods may be called
// by several goroutines.
type Governor struct {
	opts Options
	log  *slog.Logger
	now  func() time.Time
	kick chan struct{}

	sensing sync.Mutex // guards sensor; taken before mu
	sensor  *sensor

	telling sync.Mutex // has Limited called in order; taken before mu

	mu      sync.Mutex // guards the following, shares and their bridges
	core    core
	shares  []*Share // in the order in which they came
	decider decider
	signals Signals
	sensed  time.Time
	limit   Limit
	news    [][2]Limit // that Limited has to be told
	said    said
}

// New makes a governor. What was said by hand and kept in Options.State holds
// again.
func New(o Options) (*Governor, error) {
	cpus := runtime.NumCPU()
	if o.Total == 0 {
		o.Total = cpus
	}
	if o.Max == 0 || o.Max > o.Total {
		o.Max = o.Total
	}
	o.Min = max(o.Min, 1)
	switch o.Enforce {
	case "":
		o.Enforce = EnforceNone
	case EnforceNone, EnforceWeight, EnforceQuota:
	default:
		return nil, fmt.Errorf("jobs: %q is no way to enforce them: use none, weight or quota", o.Enforce)
	}
	switch {
	case o.Total < 1 || o.Total > MaxSlots:
		return nil, fmt.Errorf("jobs: a machine has 1 to %d slots, not %d", MaxSlots, o.Total)
	case o.Min > o.Max:
		return nil, fmt.Errorf("jobs: a build cannot have %d slots at least and %d at most", o.Min, o.Max)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	g := &Governor{
		opts: o, log: o.Log, now: o.Now, kick: make(chan struct{}, 1),
		sensor:  newSensor(o.Policy, o.Places, o.Own),
		decider: decider{policy: o.Policy, total: o.Total, cpus: cpus},
	}
	g.said = g.load()
	g.limit = g.decider.decide(g.now(), Signals{}, g.hand(g.now()))
	g.core.limit = g.limit.Slots
	return g, nil
}

// Run looks after the builds until ctx ends. Where there are none it waits.
func (g *Governor) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	defer func() {
		g.sensing.Lock()
		g.sensor.logind.close()
		g.sensing.Unlock()
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-g.kick:
		}
		wait, busy := g.round()
		if timer.Stop(); busy {
			timer.Reset(wait)
		}
	}
}

// wake has Run look at once.
func (g *Governor) wake() {
	select {
	case g.kick <- struct{}{}:
	default:
	}
}

// round does what is due, and says when to come again.
func (g *Governor) round() (wait time.Duration, busy bool) {
	g.mu.Lock()
	now := g.now()
	busy = g.core.busy()
	stale := busy && due(now, g.sensed, signalEvery)
	g.mu.Unlock()
	if stale {
		g.sense()
	}
	g.lookAtTasks()

	g.mu.Lock()
	now = g.now()
	g.turn(now)
	wait, busy = tick, g.core.busy()
	if t, ok := g.core.soon(); ok {
		wait = min(wait, max(t.Sub(now), time.Millisecond))
	}
	g.mu.Unlock()
	g.tell()
	return wait, busy
}

// due reports whether something is to be done again; clocks may be set back.
func due(now, last time.Time, every time.Duration) bool {
	d := now.Sub(last)
	return d < 0 || d >= every
}

// sense reads the machine, which may take a moment.
func (g *Governor) sense() {
	g.sensing.Lock()
	defer g.sensing.Unlock()
	sig := g.sensor.look(g.now())
	g.mu.Lock()
	defer g.mu.Unlock()
	g.signals, g.sensed = sig, g.now()
	g.decide(g.sensed)
}

// decide works the limit out anew. g.mu is held.
func (g *Governor) decide(now time.Time) {
	was := g.limit
	g.limit = g.decider.decide(now, g.signals, g.hand(now))
	g.core.limit = g.limit.Slots
	if g.limit != was {
		g.news = append(g.news, [2]Limit{was, g.limit})
		g.wake()
	}
}

// tell tells what is new to those who want to know. No lock is held.
func (g *Governor) tell() {
	g.telling.Lock()
	defer g.telling.Unlock()
	g.mu.Lock()
	news := g.news
	g.news = nil
	g.mu.Unlock()
	for _, n := range news {
		level := slog.LevelInfo
		if passing(n[0].Kind) && passing(n[1].Kind) {
			level = slog.LevelDebug
		}
		g.log.Log(context.Background(), level, "jobs limit", "slots", n[1].Slots, "was", n[0].Slots, "why", n[1].Why)
		if g.opts.Limited != nil {
			g.opts.Limited(n[0], n[1])
		}
	}
}

// passing reports whether a limit may come and go by the second.
func passing(kind string) bool { return kind == KindAll || kind == KindOthers || kind == KindMemory }

// turn has the core move slots, and does what comes of it. g.mu is held.
func (g *Governor) turn(now time.Time) {
	for _, s := range g.shares {
		s.account(now)
	}
	for _, m := range g.core.turn(now) {
		for _, s := range g.shares {
			if s.m == m {
				s.began, s.counted = now, now
				close(s.begun)
			}
		}
	}
	for _, s := range g.shares {
		s.enforce(g)
		s.peak = max(s.peak, s.m.seen.Used)
	}
}

// Begin waits until there is a slot for the build. Only ctx makes it fail. The
// share is to be ended.
func (g *Governor) Begin(ctx context.Context, b Build) (*Share, error) {
	ceiling := g.opts.Max
	if b.Max > 0 {
		ceiling = min(ceiling, b.Max)
	}
	b.Weight = weight(b.Weight)
	s := &Share{g: g, build: b, ceiling: ceiling, begun: make(chan struct{}), done: make(chan struct{})}
	s.m = newMember(g.opts.Min, ceiling, b.Weight)

	g.mu.Lock()
	first := !g.core.busy()
	g.mu.Unlock()
	if first {
		g.sense() // nobody has looked for a while
	}
	g.mu.Lock()
	now := g.now()
	s.since = now
	if h, ok := g.said.Builds[b.Number]; ok {
		s.m.hand, s.by = h.Slots, h.By
	}
	g.shares = append(g.shares, s)
	g.core.enter(s.m)
	g.turn(now)
	g.mu.Unlock()
	g.tell()
	g.wake()
	select {
	case <-s.begun:
		return s, nil
	case <-ctx.Done():
		s.End()
		return nil, fmt.Errorf("%s waited for a slot to run in: %w", b.Name, ctx.Err())
	}
}

// change does something to the state, and has everybody get what comes of it
// before it returns.
func (g *Governor) change(do func(now time.Time)) {
	g.mu.Lock()
	now := g.now()
	do(now)
	g.turn(now)
	g.mu.Unlock()
	g.tell()
	g.wake()
}

// ErrNotRunning is that there is no such build among those that have slots, or
// wait for one.
var ErrNotRunning = errors.New("it is not running on this machine")

// find is the share of a build, the newest first. What has no number, such as a
// verification, is nobody's to find.
func (g *Governor) find(number int64) *Share {
	if number <= 0 {
		return nil
	}
	for _, s := range slices.Backward(g.shares) {
		if s.build.Number == number {
			return s
		}
	}
	return nil
}

// Set fixes how many slots a build has, as far as its ceiling and the limit allow;
// 0 leaves it to the governor again. It tells how many it may have now, as others'
// may have to come back first. It holds for the build's next attempts too.
func (g *Governor) Set(number int64, n int, by string) (granted int, err error) {
	if n < 0 || n > MaxSlots {
		return 0, fmt.Errorf("a build has 1 to %d slots, or 0 for what comes of itself", MaxSlots)
	}
	g.change(func(now time.Time) {
		s := g.find(number)
		if s == nil {
			err = fmt.Errorf("build %d: %w", number, ErrNotRunning)
			return
		}
		s.m.hand, s.by = min(n, s.ceiling), by
		if n == 0 {
			s.by = ""
		}
		g.said.set(number, s.m.hand, by, now)
		err = g.save()
	})
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.find(number); s != nil {
		granted = s.m.grant
	}
	return granted, err
}

// Limit sets how many slots there are for all builds, until a time, or for good
// when that is zero; 0 takes it back. It stands for schedule, presence, battery
// and others' load, but not for memory.
func (g *Governor) Limit(n int, until time.Time, by string) (err error) {
	switch {
	case n < 0 || n > MaxSlots:
		return fmt.Errorf("a limit is 1 to %d slots, or 0 for none", MaxSlots)
	case n > 0 && !until.IsZero() && !until.After(g.now()):
		return fmt.Errorf("a limit until %s is over already", until.Format(time.DateTime))
	}
	g.change(func(now time.Time) {
		g.said.Limit = nil
		if n > 0 {
			g.said.Limit = &Hand{Slots: n, By: by, At: now, Until: until}
		}
		g.decide(now)
		err = g.save()
	})
	return err
}

// Status tells who has what, and how much there is.
func (g *Governor) Status() Status {
	g.mu.Lock()
	stale := due(g.now(), g.sensed, 2*signalEvery)
	g.mu.Unlock()
	if stale { // nothing is built
		g.sense()
		g.tell()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	st := Status{
		Total: g.opts.Total, Limit: g.limit, Min: g.opts.Min, Max: g.opts.Max, Enforce: g.opts.Enforce,
		Signals: g.signals, Builds: make([]BuildStatus, 0, len(g.shares)),
	}
	if h := g.hand(now); h != nil {
		h := *h
		st.Hand = &h
	}
	st.Signals.Others = math.Round(st.Signals.Others*100) / 100
	st.Signals.Stall = math.Round(st.Signals.Stall*10) / 10
	for _, s := range g.shares {
		b := s.status()
		st.Granted, st.Used, st.Out = st.Granted+b.Granted, st.Used+b.Used, st.Out+b.Out
		st.Builds = append(st.Builds, b)
	}
	slices.SortStableFunc(st.Builds, func(a, b BuildStatus) int {
		switch {
		case a.Waiting == b.Waiting:
			return 0
		case a.Waiting:
			return 1
		}
		return -1
	})
	return st
}
