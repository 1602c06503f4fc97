package images

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Environment is what builds of one channel on one arch are made in.
type Environment struct {
	Channel  string   `json:"channel"`
	Arch     string   `json:"arch"`
	Base     Base     `json:"base"`     // zero while there is none
	Instance Instance `json:"instance"` // zero while there is none

	Warm    int    `json:"warm"`             // workspaces that are ready
	Making  int    `json:"making"`           // and under way
	Busy    int    `json:"busy"`             // and in use by builds
	Target  int    `json:"target"`           // how many should be ready now
	Started bool   `json:"started"`          // one is kept ready however idle
	Stopped bool   `json:"stopped"`          // none is kept ready until it is started
	Paused  string `json:"paused,omitempty"` // why nothing is kept ready although it is wanted; one line

	// Memory and Disk are the bytes that the workspaces that are ready take
	// together: memory of their processes, disk of their layers and folders.
	Memory int64 `json:"memory"`
	Disk   int64 `json:"disk"`
}

// Name is CHANNEL/ARCH.
func (e Environment) Name() string { return env{e.Channel, e.Arch}.String() }

// named lists the environments that a name means: CHANNEL/ARCH is one, CHANNEL
// all of its.
func (s *Store) named(name string) ([]env, error) {
	channel, arch, one := strings.Cut(name, "/")
	c, ok := s.channels[channel]
	switch {
	case !ok:
		return nil, fmt.Errorf("no environment %.100q: give CHANNEL or CHANNEL/ARCH, with a channel of the configuration (%s)", name,
			strings.Join(slices.Sorted(maps.Keys(s.channels)), ", "))
	case one && !slices.Contains(c.Archs, arch):
		return nil, fmt.Errorf("no environment %.100q: channel %s is built for %s", name, channel, strings.Join(c.Archs, ", "))
	case one:
		return []env{{channel, arch}}, nil
	case len(c.Archs) == 0:
		return nil, fmt.Errorf("channel %s is built for no arch: give it some in the configuration", channel)
	}
	var all []env
	for _, arch := range c.Archs {
		all = append(all, env{channel, arch})
	}
	return all, nil
}

// Start has workspaces kept ready for an environment, CHANNEL/ARCH, or for all
// those of a CHANNEL, one at least however idle, until Stop. That outlives the
// daemon. It returns when one is ready in each, or with why that is not to be:
// a *NoBaseError, or that memory or disk is short, or that making one failed;
// the pool goes on trying then. When ctx ends before, the environments stay
// started.
func (s *Store) Start(ctx context.Context, name string) error {
	if s.pool.opts.Max <= 0 {
		return errors.New("no workspaces are kept ready by this farm: set pool.max in the configuration")
	}
	envs, err := s.named(name)
	if err != nil {
		return err
	}
	for _, e := range envs {
		if _, _, err := s.ground(ctx, e.channel, e.arch); err != nil {
			return err
		}
	}
	if err := s.pool.set(envs, func(d *demand) { d.started, d.stopped = true, false }); err != nil {
		return err
	}
	for _, e := range envs {
		if err := s.pool.await(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

// Stop drops the workspaces that are ready in an environment, CHANNEL/ARCH, or
// in all those of a CHANNEL, and has none kept ready there until Start; that
// outlives the daemon. Builds go on: theirs are made when they begin.
func (s *Store) Stop(ctx context.Context, name string) error {
	envs, err := s.named(name)
	if err != nil {
		return err
	}
	if err := s.pool.set(envs, func(d *demand) { d.started, d.stopped = false, true }); err != nil {
		return err
	}
	s.pool.clear(ctx, func(e env) bool { return slices.Contains(envs, e) }, true)
	return ctx.Err()
}

// Expect tells how many builds wait for an environment at this moment, so that
// workspaces can be made ready before they begin.
func (s *Store) Expect(channel, arch string, n int) {
	p := s.pool
	p.mu.Lock()
	sh := p.shelf(env{channel, arch})
	if sh == nil || sh.queued == n {
		p.mu.Unlock()
		return
	}
	if sh.queued = n; n > 0 {
		sh.use(time.Now())
	}
	p.mu.Unlock()
	p.nudge()
}

// dropWarm drops the workspaces that are ready for a channel and arch ("" for
// all of them), because what they were made from is replaced. Those under way
// are not used either. Call it after the replacement.
func (s *Store) dropWarm(channel, arch string) {
	s.pool.clear(context.Background(), matching(channel, arch), false)
}

// holdWarm drops the workspaces that are ready or under way for a channel and
// arch ("" for all of them), and has none made until release is called. why is
// shown meanwhile. Nothing is begun any more when it returns; Drain waits until
// the containers are removed.
func (s *Store) holdWarm(channel, arch, why string) (release func()) {
	p, which := s.pool, matching(channel, arch)
	p.mu.Lock()
	var held []*shelf
	for _, e := range p.known() {
		if sh := p.shelf(e); which(e) {
			sh.held++
			sh.why = why
			held = append(held, sh)
		}
	}
	p.mu.Unlock()
	p.clear(context.Background(), which, true)
	return func() {
		p.mu.Lock()
		for _, sh := range held {
			sh.held--
		}
		p.mu.Unlock()
		p.nudge()
	}
}

func matching(channel, arch string) func(env) bool {
	return func(e env) bool {
		return (channel == "" || e.channel == channel) && (arch == "" || e.arch == arch)
	}
}

// known lists the environments of the configuration, and those besides that
// builds have used (noarch packages on an arch that the channel has not). p.mu
// is held.
func (p *pool) known() []env {
	all := slices.Collect(maps.Keys(p.envs))
	for _, c := range p.s.channels {
		for _, arch := range c.Archs {
			if e := (env{c.Name, arch}); p.envs[e] == nil {
				all = append(all, e)
			}
		}
	}
	slices.SortFunc(all, func(a, b env) int { return cmp.Or(cmp.Compare(a.channel, b.channel), cmp.Compare(a.arch, b.arch)) })
	return all
}

// Workspaces counts the workspaces of each environment: of what it tells only the
// name, and Warm, Making and Busy are set. It asks nobody but the pool.
func (s *Store) Workspaces() (list []Environment) {
	p := s.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.known() {
		sh := p.shelf(e)
		list = append(list, Environment{Channel: e.channel, Arch: e.arch, Warm: len(sh.warm), Making: len(sh.making), Busy: sh.busy})
	}
	return list
}

// Environments lists the environments with what is ready in them. Where there
// is no base or instance yet, that is empty and Paused says why.
func (s *Store) Environments(ctx context.Context) []Environment {
	p := s.pool
	p.mu.Lock()
	now := time.Now()
	targets := p.targets(now)
	var list []Environment
	warm := map[int][]*Workspace{}
	for _, e := range p.known() {
		sh := p.shelf(e)
		v := Environment{Channel: e.channel, Arch: e.arch, Warm: len(sh.warm), Making: len(sh.making), Busy: sh.busy,
			Target: targets[sh], Started: sh.started, Stopped: sh.stopped}
		switch wanted := sh.ready(now, p.opts.Idle) > 0; {
		case sh.held > 0:
			v.Paused = sh.why
		case wanted && p.short != "":
			v.Paused = string(p.short)
		case wanted && sh.trouble != nil:
			v.Paused = fmt.Sprintf("none could be made: %v", sh.trouble)
		}
		warm[len(list)] = slices.Clone(sh.warm)
		list = append(list, v)
	}
	p.mu.Unlock()
	for i := range list {
		v := &list[i]
		for _, w := range warm[i] {
			memory, disk := w.weigh()
			v.Memory += memory
			v.Disk += disk
		}
		r, ok, err := s.present(ctx, env{v.Channel, v.Arch})
		switch {
		case err != nil:
			v.Paused = cmp.Or(v.Paused, err.Error())
		case !ok:
			v.Paused = cmp.Or(v.Paused, r.Trouble, "its instance is not made yet")
		default:
			v.Base, v.Instance = r.Base, r.Instance
		}
	}
	return list
}

// set changes what is wanted of environments, and keeps it for the next start.
func (p *pool) set(envs []env, change func(*demand)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range envs {
		sh := p.shelf(e)
		change(&sh.demand)
		sh.fails, sh.again = 0, time.Time{} // somebody looks: try at once
	}
	var k kept
	for _, e := range p.known() {
		switch sh := p.envs[e]; {
		case sh == nil:
		case sh.started:
			k.Started = append(k.Started, e.String())
		case sh.stopped:
			k.Stopped = append(k.Stopped, e.String())
		}
	}
	p.changed()
	p.nudge()
	return k.write(p.keptPath())
}

// await waits until one is ready, or cannot be made.
func (p *pool) await(ctx context.Context, e env) error {
	for {
		p.mu.Lock()
		sh, turned := p.shelf(e), p.turned
		var err error
		switch {
		case len(sh.warm) > 0:
			p.mu.Unlock()
			return nil
		case sh.stopped:
			err = fmt.Errorf("%s was stopped again", e)
		case p.short != "":
			err = fmt.Errorf("%s is started, but %s", e, p.short)
		case sh.held > 0:
			err = fmt.Errorf("%s is started, but gets no workspace yet: %s", e, sh.why)
		case sh.trouble != nil && sh.fails > 0:
			err = fmt.Errorf("%s is started, but no workspace could be made ready: %w", e, sh.trouble)
		}
		p.mu.Unlock()
		if err != nil {
			return err
		}
		select {
		case <-turned:
		case <-ctx.Done():
			return fmt.Errorf("%s is started, and its first workspace is not ready yet: %w", e, ctx.Err())
		}
	}
}

// kept is what is remembered of the pool: what people asked for.
type kept struct {
	Started []string `json:"started,omitempty"` // CHANNEL/ARCH
	Stopped []string `json:"stopped,omitempty"`
}

func (p *pool) keptPath() string { return filepath.Join(p.s.conn.Dir(), "environments.json") }

func (k kept) write(path string) error {
	data, err := json.Marshal(k)
	if err == nil {
		if err = os.WriteFile(path+".new", append(data, '\n'), 0o644); err == nil {
			err = os.Rename(path+".new", path)
		}
	}
	if err != nil {
		return fmt.Errorf("it holds until the daemon ends, but cannot be written down: %w", err)
	}
	return nil
}

// recall reads what people asked for of an earlier daemon. What is not in the
// configuration any more is passed over.
func (p *pool) recall() {
	data, err := os.ReadFile(p.keptPath())
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var k kept
	if err == nil {
		err = json.Unmarshal(data, &k)
	}
	if err != nil {
		p.s.log.Warn("which environments were started and stopped is not known any more: start and stop them again", "error", err)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	put := func(names []string, change func(*demand)) {
		for _, name := range names {
			if envs, err := p.s.named(name); err == nil && len(envs) == 1 {
				change(&p.shelf(envs[0]).demand)
			}
		}
	}
	put(k.Started, func(d *demand) { d.started = true })
	put(k.Stopped, func(d *demand) { d.started, d.stopped = false, true })
}
