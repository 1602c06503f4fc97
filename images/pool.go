package images

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"
)

// PoolOptions say how many clean workspaces are kept ready, and when none are.
type PoolOptions struct {
	// Max is how many are kept at most, over all environments and with those
	// that are being made. 0: none, every workspace is made when it is asked for.
	Max int
	// Idle is how long an environment that nobody uses keeps any. 0: an hour.
	Idle time.Duration
	// MinMemory and MinDisk are the bytes that the machine must have available
	// and the state folder's disk free; with less none are kept. 0: 512 MiB and
	// 2 GiB.
	MinMemory, MinDisk int64
	// MaxStall is the share of the last ten seconds, in percent, for which every
	// task may have stood still for want of memory; above it none are kept. 0: 10.
	MaxStall float64
}

func (o PoolOptions) or() PoolOptions {
	if o.Idle <= 0 {
		o.Idle = time.Hour
	}
	if o.MinMemory <= 0 {
		o.MinMemory = 512 << 20
	}
	if o.MinDisk <= 0 {
		o.MinDisk = 2 << 30
	}
	if o.MaxStall <= 0 {
		o.MaxStall = 10
	}
	return o
}

const (
	// poolEvery is how often the pool looks for workspaces that died, and for
	// memory and disk.
	poolEvery = 2 * time.Second
	// After a failure an environment rests, each time twice as long.
	restFirst, restMost = time.Second, 30 * time.Second
)

// pool keeps clean workspaces ready. It only ever makes and drops them; who
// takes one owns it, and none comes back.
type pool struct {
	s    *Store
	opts PoolOptions
	kick chan struct{} // something changed: look at once

	mu      sync.Mutex // guards the following
	envs    map[env]*shelf
	running bool
	making  int      // over all environments
	aside   int      // being made by builds that found none
	short   shortage // why nothing is kept; "" when there is enough
	// turned is closed and made anew whenever a shelf changes, for those who wait.
	turned chan struct{}
}

// env is an environment: what a build's workspace is made for.
type env struct{ channel, arch string }

func (e env) String() string { return e.channel + "/" + e.arch }

// shelf is what the pool has of one environment.
type shelf struct {
	env
	demand
	warm    []*Workspace        // oldest first
	making  map[*effort]bool    // under way
	waiting []chan<- *Workspace // takers who will get what is under way; nil sent: make one yourself
	busy    int                 // taken and not closed yet
	epoch   int                 // what was begun before its last change is not clean any more
	held    int                 // how many want none to be made
	why     string              // of the last of them

	fails   int
	again   time.Time // rests until then
	trouble error     // of the last effort
}

// effort is one workspace being made.
type effort struct {
	cancel context.CancelFunc
	done   chan struct{}
}

func newPool(s *Store, opts PoolOptions) *pool {
	return &pool{s: s, opts: opts.or(), kick: make(chan struct{}, 1), envs: map[env]*shelf{}, turned: make(chan struct{})}
}

// shelf returns an environment's shelf; nil when its channel is none of the
// configuration's. p.mu is held.
func (p *pool) shelf(e env) *shelf {
	sh := p.envs[e]
	if sh == nil && p.s.configured(e.channel) {
		sh = &shelf{env: e, making: map[*effort]bool{}}
		p.envs[e] = sh
		p.s.inst.wake() // its instance may be an old one
	}
	return sh
}

func (p *pool) nudge() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// changed tells those who wait. p.mu is held.
func (p *pool) changed() {
	close(p.turned)
	p.turned = make(chan struct{})
}

// take returns a workspace that was made ahead, with the limits of its build;
// nil when there is none, nor one that will be ready sooner than one made anew.
func (p *pool) take(ctx context.Context, e env, inst Instance, want Spec, l Limits) *Workspace {
	p.mu.Lock()
	sh := p.shelf(e)
	if sh == nil || p.opts.Max <= 0 {
		p.mu.Unlock()
		return nil
	}
	sh.use(time.Now())
	defer p.nudge()
	for len(sh.warm) > 0 {
		w := sh.warm[0]
		sh.warm = slices.Delete(sh.warm, 0, 1)
		p.mu.Unlock()
		if w.Instance.Image == inst.Image && w.handOver(want, l) {
			return w
		}
		p.discard(w)
		p.mu.Lock()
	}
	if !sh.stopped {
		sh.miss(time.Now(), p.opts.Max)
	}
	if !p.running || len(sh.making) <= len(sh.waiting) {
		p.mu.Unlock()
		return nil
	}
	ready := make(chan *Workspace, 1)
	sh.waiting = append(sh.waiting, ready)
	p.mu.Unlock()
	p.nudge() // somebody waits now
	var w *Workspace
	select {
	case w = <-ready:
	case <-ctx.Done():
		p.mu.Lock()
		sh.waiting = slices.DeleteFunc(sh.waiting, func(c chan<- *Workspace) bool { return c == ready })
		p.mu.Unlock()
		select {
		case w = <-ready:
			p.discard(w) // it came at the same moment
		default:
		}
		return nil
	}
	if w != nil && (w.Instance.Image != inst.Image || !w.handOver(want, l)) {
		p.discard(w)
		return nil
	}
	return w
}

// handOver makes a workspace that waited into a build's. It reports false when
// it cannot be one: it died, or does not take the limits.
func (w *Workspace) handOver(want Spec, l Limits) bool {
	if !w.alive() {
		return false
	}
	if err := w.grant(l); err != nil {
		w.log.With(want.About...).Warn("a ready workspace cannot be given its build's limits, and is thrown away", "workspace", want.Name, "error", err)
		return false
	}
	w.Name, w.Warm, w.log = want.Name, true, w.log.With(want.About...)
	w.mu.Lock()
	w.spare = false
	w.mu.Unlock()
	return w.alive()
}

// discard ends a workspace that no build had.
func (p *pool) discard(w *Workspace) {
	if w == nil {
		return
	}
	p.s.pending.add()
	go func() {
		defer p.s.pending.done()
		w.Close(context.Background())
	}()
}

// run keeps the pool filled until ctx ends, then drops all of it.
func (p *pool) run(ctx context.Context) {
	if p.opts.Max <= 0 {
		<-ctx.Done()
		return
	}
	p.mu.Lock()
	p.running = true
	p.mu.Unlock()
	defer p.shut(context.Background())
	woken := make(chan struct{})
	go func() {
		defer close(woken)
		p.wake(ctx)
		p.nudge()
	}()
	defer func() { <-woken }()
	tick := time.NewTicker(poolEvery)
	defer tick.Stop()
	p.look()
	for {
		p.turn(ctx)
		select {
		case <-ctx.Done():
			return
		case <-p.kick:
		case <-tick.C:
			p.look()
		}
	}
}

// wake counts the start of a farm as a use of every environment of the
// configuration that has a system: the first build finds a workspace ready too.
func (p *pool) wake(ctx context.Context) {
	p.mu.Lock()
	all := p.known()
	p.mu.Unlock()
	for _, e := range all {
		if _, ok, err := p.s.present(ctx, e); ok && err == nil {
			p.used(e)
		}
	}
}

// used counts a use of an environment.
func (p *pool) used(e env) {
	p.mu.Lock()
	if sh := p.shelf(e); sh != nil {
		sh.use(time.Now())
	}
	p.mu.Unlock()
	p.nudge()
}

// shut ends what is under way and drops what is ready. It waits for the first
// until ctx ends.
func (p *pool) shut(ctx context.Context) {
	p.mu.Lock()
	p.running = false
	p.mu.Unlock()
	p.clear(ctx, matching("", ""), true)
}

// look sees whether memory and disk suffice, and buries the dead.
func (p *pool) look() {
	p.mu.Lock()
	was, opts := p.short, p.opts
	p.mu.Unlock()
	now := p.s.shortage(opts, was)
	if was == "" && now != "" && p.s.Relieve(string(now)) {
		now = "" // that may have been enough: the next look sees
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch was := p.short; {
	case was == "" && now != "":
		p.s.log.Warn("no workspaces are kept ready for a while", "why", now)
	case was != "" && now == "":
		p.s.log.Info("workspaces are kept ready again")
	}
	p.short = now
	t := time.Now()
	for _, sh := range p.envs {
		sh.calm(t, p.opts.Idle)
		sh.warm = slices.DeleteFunc(sh.warm, func(w *Workspace) bool {
			if w.alive() {
				return false
			}
			p.discard(w)
			return true
		})
	}
}

// turn drops what is too much and begins what is missing.
func (p *pool) turn(ctx context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	targets := p.targets(now)
	for _, sh := range p.envs {
		for len(sh.warm) > targets[sh] {
			p.discard(sh.warm[0])
			sh.warm = slices.Delete(sh.warm, 0, 1)
		}
	}
	for p.running && ctx.Err() == nil && p.making+p.aside < p.hands() {
		sh := poorest(targets, now)
		if sh == nil {
			break
		}
		ctx, cancel := context.WithCancel(ctx)
		ef := &effort{cancel: cancel, done: make(chan struct{})}
		sh.making[ef] = true
		p.making++
		go p.make(ctx, sh, ef)
	}
	p.changed()
}

// hands is how many workspaces may be under way, those that builds make for
// themselves included, for another one to be begun: one while nobody waits, so
// that builds have the machine, and as many as there are processors when
// somebody does. p.mu is held.
func (p *pool) hands() int {
	for _, sh := range p.envs {
		if len(sh.waiting) > 0 {
			return runtime.NumCPU()
		}
	}
	return 1
}

// make makes one workspace and puts it on the shelf, or gives it to who waits.
func (p *pool) make(ctx context.Context, sh *shelf, ef *effort) {
	w, epoch, err := p.prepare(ctx, sh)
	dropped := ctx.Err() != nil
	ef.cancel()
	p.mu.Lock()
	delete(sh.making, ef)
	p.making--
	close(ef.done)
	now := time.Now()
	switch {
	case err == nil && (!p.running || sh.epoch != epoch || sh.stopped || sh.held > 0):
		// What it was made from is gone, or nobody wants any now.
		p.discard(w)
	case err == nil:
		if sh.trouble != nil {
			p.s.log.Info("workspaces are made ready again", "environment", sh.String())
		}
		sh.fails, sh.trouble = 0, nil
		if len(sh.waiting) > 0 {
			sh.waiting[0] <- w
			sh.waiting = slices.Delete(sh.waiting, 0, 1)
		} else {
			sh.warm = append(sh.warm, w)
		}
	case dropped: // not failed
	default:
		if sh.trouble == nil { // once, until one is made: Environments has the latest
			p.s.log.Warn("no workspace can be made ready: builds that need one try by themselves", "environment", sh.String(), "error", err)
		}
		sh.trouble = err
		sh.again = now.Add(min(restFirst<<min(sh.fails, 10), restMost))
		sh.fails++
	}
	for len(sh.waiting) > len(sh.making) {
		last := len(sh.waiting) - 1
		sh.waiting[last] <- nil
		sh.waiting = sh.waiting[:last]
	}
	p.changed()
	p.mu.Unlock()
	p.nudge()
}

// prepare makes a workspace for nobody yet.
func (p *pool) prepare(ctx context.Context, sh *shelf) (*Workspace, int, error) {
	var base Base
	var inst Instance
	var epoch int
	for range 3 {
		p.mu.Lock()
		epoch = sh.epoch
		p.mu.Unlock()
		var err error
		if base, inst, err = p.s.ground(ctx, sh.channel, sh.arch); err != nil {
			return nil, 0, err
		}
		p.mu.Lock()
		same := epoch == sh.epoch
		p.mu.Unlock()
		if same {
			break
		}
	}
	emulation, err := Emulation(sh.arch)
	if err != nil {
		return nil, 0, err
	}
	w := p.s.blank(sh.env, base, inst, emulation)
	w.Name, w.Limits, w.spare = sh.String(), p.s.wide(), true
	if err := p.s.create(ctx, w, false); err != nil {
		return nil, 0, err
	}
	if w.initFD < 0 {
		w.Close(context.WithoutCancel(ctx))
		return nil, 0, fmt.Errorf("%s: first process of a workspace cannot be seen from here, so none can be kept ready: run podman in this process namespace", sh)
	}
	return w, epoch, nil
}

// clear drops what is ready of the environments, and has what is under way
// dropped when it is done; with cancel it is broken off, and has ended when
// clear returns, unless ctx ended before.
func (p *pool) clear(ctx context.Context, which func(env) bool, cancel bool) {
	p.mu.Lock()
	var ends []*effort
	for _, sh := range p.envs {
		if !which(sh.env) {
			continue
		}
		sh.epoch++
		sh.fails, sh.again, sh.trouble = 0, time.Time{}, nil
		for _, w := range sh.warm {
			p.discard(w)
		}
		sh.warm = nil
		if cancel {
			for ef := range sh.making {
				ef.cancel()
				ends = append(ends, ef)
			}
		}
	}
	p.changed()
	p.mu.Unlock()
	p.nudge()
	for _, ef := range ends {
		select {
		case <-ef.done:
		case <-ctx.Done():
			return
		}
	}
}

// count tells how many workspaces of an environment are ready or under way.
func (p *pool) count(e env) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	sh := p.envs[e]
	if sh == nil {
		return 0
	}
	return len(sh.warm) + len(sh.making)
}

// makeAside makes a workspace that is not the pool's.
func (p *pool) makeAside(ctx context.Context, w *Workspace, network bool) error {
	count := func(n int) {
		p.mu.Lock()
		p.aside += n
		p.mu.Unlock()
	}
	count(1)
	err := p.s.create(ctx, w, network)
	count(-1)
	p.nudge()
	return err
}

// closed is told when a build gives its workspace up, be it to be kept.
func (p *pool) closed(w *Workspace) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w.counted {
		w.counted = false
		p.envs[env{w.Channel, w.Arch}].busy--
		p.changed()
	}
}

// opened is told when a build has got its workspace.
func (p *pool) opened(w *Workspace) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if sh := p.shelf(env{w.Channel, w.Arch}); sh != nil {
		sh.busy++
		w.counted = true
		p.changed()
	}
}
