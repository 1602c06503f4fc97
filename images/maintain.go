package images

import (
	"context"
	"errors"
	"time"
)

// maintainEvery is how often Maintain looks even when nothing seems due: the
// clock may have been set, or the machine have slept.
const maintainEvery = 5 * time.Minute

// Maintain is the daemon's care for what builds stand on, after VerifyAtStart and until ctx ends: it
// makes missing instances and updates old ones before builds need them, one
// after the other, and keeps workspaces ready. What is broken in one
// environment is logged, shown in [Instance].Trouble, tried again later and
// later, and does not keep it from the others. It returns nil when ctx ended.
func (s *Store) Maintain(ctx context.Context) error {
	pool := make(chan struct{})
	go func() {
		defer close(pool)
		s.pool.run(ctx)
	}()
	defer func() { <-pool }()
	for ctx.Err() == nil {
		wait := time.NewTimer(s.updateDue(ctx))
		select {
		case <-ctx.Done():
		case <-s.inst.nudge:
		case <-wait.C:
		}
		wait.Stop()
	}
	return nil
}

// updateDue updates the instances that are due, and returns how long until
// another one may be.
func (s *Store) updateDue(ctx context.Context) time.Duration {
	next := time.Now().Add(maintainEvery)
	s.tidy(ctx) // what workspaces stood on until lately
	for _, e := range s.liveEnvs() {
		setup := s.channels[e.channel].Setup
		if setup.Empty() || ctx.Err() != nil {
			continue
		}
		base, err := s.base(ctx, s.baseOf(e))
		var none *NoBaseError
		if errors.As(err, &none) {
			continue // loading one wakes
		}
		var r record
		if err == nil {
			r, err = s.recorded(ctx, e)
		}
		if err != nil {
			s.log.Warn("whether an instance must be updated is not known", "environment", e.String(), "error", err)
			continue
		}
		now := time.Now()
		if why := r.due(base, setup, now); why != "" && !now.Before(r.again(base, setup)) {
			s.log.Info("updating an instance", "environment", e.String(), "why", why)
			s.join(ctx, e, func(r record) bool { return r.due(base, setup, time.Now()) == "" }, nil) // what fails is logged and recorded there
			if r, err = s.recorded(ctx, e); err != nil {
				continue
			}
		}
		at := r.again(base, setup)
		if r.due(base, setup, now) == "" {
			at = r.Checked.Add(setup.maxAge())
		}
		if at.Before(next) {
			next = at
		}
	}
	return max(time.Until(next), time.Second)
}

// baseChanged is told when a ref names another base than before, or none.
func (s *Store) baseChanged(ref string) {
	for _, e := range s.liveEnvs() {
		if s.channels[e.channel].Setup.Empty() && s.baseOf(e) == ref {
			s.dropWarm(e.channel, e.arch)
		}
	}
	s.inst.wake()
}

// OnTrouble names who is told, beside the log, what of bases and instances is not
// well. channel and arch are "" where it is not about one environment. f must not
// block.
func (s *Store) OnTrouble(f func(channel, arch, what string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.troubled = f
}

func (s *Store) trouble(channel, arch, what string) {
	s.mu.Lock()
	f := s.troubled
	s.mu.Unlock()
	if f != nil {
		f(channel, arch, what)
	}
}
