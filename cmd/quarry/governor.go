package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/Morphux/quarry/buildcontrol"
	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/durable"
	"github.com/Morphux/quarry/jobs"
	"github.com/Morphux/quarry/metrics"
	"github.com/Morphux/quarry/queue"
	"golang.org/x/sync/errgroup"
)

// slots shares this machine's among its builds, and tells of it.
type slots struct {
	*jobs.Governor
	cfg       *config.Config
	log       *slog.Logger
	control   *buildcontrol.Server
	listeners []net.Listener // of control
	changed   chan struct{}  // the limit has
	room      atomic.Int64   // see queue.Options.Room
}

// newSlots makes the governor of a configuration, for a daemon or else for one
// build without a farm.
func newSlots(c *config.Config, store *images.Store, daemon bool, log *slog.Logger) (*slots, error) {
	s := &slots{cfg: c, log: log, changed: make(chan struct{}, 1)}
	s.control = buildcontrol.New(buildcontrol.Options{Ceiling: c.Slots(), Control: daemon, Changed: s.told, Log: log})
	o := jobs.Options{
		Total: c.Slots(), Min: c.Jobs.Min, Max: c.MostSlots(), Enforce: c.Jobs.Enforce, Policy: c.Jobs.Policy(),
		Control: s.control, Own: store.CPUGroups, Limited: s.limited, Log: log,
	}
	if daemon {
		o.State = c.JobsSaid()
	}
	var err error
	if s.Governor, err = jobs.New(o); err != nil {
		return nil, err
	}
	s.makeRoom(s.Status().Limit)
	return s, nil
}

// limited is told of a new limit, by the governor, which may not be called.
func (s *slots) limited(_, is jobs.Limit) {
	s.makeRoom(is)
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// makeRoom notes how many builds have at least one slot, or jobs.min of them.
func (s *slots) makeRoom(l jobs.Limit) { s.room.Store(int64(max(1, l.Slots/max(1, s.cfg.Jobs.Min)))) }

// told is what a control connection of the protocol says of a token. Those of
// builds are the governor's.
func (s *slots) told(t *buildcontrol.Token, n int) (int, error) {
	build, ok := s.OfToken(t)
	if !ok {
		return n, nil // somebody else's build, which the farm knows nothing of
	}
	_, err := s.Set(build, max(1, n), "build control")
	return buildcontrol.Unset, err
}

// listen opens the doors of the protocol, and leaves the token of its control
// connections where only the daemon's user finds it.
func (s *slots) listen(ctx context.Context) error {
	l, err := control.Listen(s.cfg.JobsSocket(), "")
	if err != nil {
		return err
	}
	s.listeners = []net.Listener{l}
	if addr := s.cfg.Jobs.Listen; addr != "" {
		more, err := buildcontrol.Listen(ctx, addr)
		if err != nil {
			s.close()
			return fmt.Errorf("jobs.listen %s cannot be listened on: %w", addr, err)
		}
		s.listeners = append(s.listeners, more...)
	}
	if err := durable.WriteFile(s.cfg.JobsToken(), []byte(s.control.ControlToken()+"\n"), 0o600, ".jobs-*"); err != nil {
		s.close()
		return err
	}
	return nil
}

func (s *slots) close() {
	for _, l := range s.listeners {
		l.Close()
	}
}

// run shares slots out until ctx ends.
func (s *slots) run(ctx context.Context, st *stages, q *queue.Queue) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.Run(ctx) })
	for _, l := range s.listeners {
		group.Go(func() error { return s.control.Serve(ctx, l) })
	}
	group.Go(func() error { s.watch(ctx, st, q); return nil })
	return group.Wait()
}

// watch tells the queue and the log of events of each new limit.
func (s *slots) watch(ctx context.Context, st *stages, q *queue.Queue) {
	for {
		is := s.Status()
		// What others do, and memory, come and go by the second.
		if k := is.Limit.Kind; k != jobs.KindOthers && k != jobs.KindMemory {
			by := ""
			if is.Hand != nil {
				by = is.Hand.By
			}
			st.events.Limit(is.Limit.Slots, is.Total, by, is.Limit.Why)
		}
		q.Roomed()
		select {
		case <-s.changed:
		case <-s.handEnds(is.Hand):
		case <-ctx.Done():
			return
		}
	}
}

// handEnds tells when a limit is over that somebody has set: where nothing is
// built, nobody else looks.
func (s *slots) handEnds(h *jobs.Hand) <-chan time.Time {
	if h == nil || h.Until.IsZero() {
		return nil
	}
	return time.After(max(time.Until(h.Until), 0) + time.Second)
}

// metrics counts slots for Prometheus.
func (s *slots) metrics() (metrics.Jobs, bool) {
	st := s.Status()
	j := metrics.Jobs{Total: st.Total, Limit: st.Limit.Slots, Out: st.Out, Used: st.Used}
	for _, b := range st.Builds {
		if b.Waiting {
			j.Waiting++
		} else {
			j.Running++
		}
	}
	for _, t := range s.control.Tokens() {
		j.Clients += t.Clients
	}
	return j, true
}
