package jobs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/Morphux/quarry/buildcontrol"
	"github.com/Morphux/quarry/jobserver"
)

// What a build finds in the folder of its own.
const (
	fifoName   = ".jobs"
	socketName = ".buildcontrol"
)

// Share is what one build has of the slots. Its methods may be called by several
// goroutines.
type Share struct {
	g       *Governor
	build   Build
	ceiling int
	since   time.Time
	begun   chan struct{} // closed when it has its first slot
	done    chan struct{} // closed at the end

	env  []string
	fifo string

	// The following is guarded by Governor.mu.
	m      *member
	place  Place
	bridge *bridge
	stop   func() // ends the socket
	by     string // who has set its slots
	cpu    int    // slots that its processor time was set for
	forced string
	over   watch
	tasked time.Time // when its processes were last looked at

	began    time.Time
	counted  time.Time // until when the following is
	slotTime time.Duration
	wide     time.Duration // in which more than one job ran
	widely   time.Duration // slots that jobs ran in, times how long, in that time
	peak     int
	repaired int
	ended    bool
}

// Open makes the jobserver and the protocol's socket in the place where the build
// runs. It is called once, before anything of the build runs.
func (s *Share) Open(p Place) error {
	b := &bridge{n: 1, told: 1, lent: 1}
	stop := func() {}
	if s.ceiling > 1 {
		pool, err := jobserver.New(jobserver.Options{Dir: p.Dir, Name: fifoName, UID: p.UID, GID: p.GID, Log: s.g.log.With("build", s.build.Number)})
		if err != nil {
			return err
		}
		b.pool = pool
		s.fifo = p.Inside + "/" + fifoName
		go s.follow(pool)
	}
	if s.g.opts.Control != nil {
		var err error
		if b.token, stop, err = s.listen(p); err != nil {
			if b.pool != nil {
				b.pool.Close()
			}
			return fmt.Errorf("build control of %s cannot be set up: %w", s.build.Name, err)
		}
		inside := p.Inside + "/" + socketName
		s.env = []string{"BUILDCONTROLADDR=" + inside, "BUILDSOCKET=" + inside, "BUILDTOKEN=" + b.token.Local()}
	}
	late := false
	s.g.change(func(time.Time) {
		if late = s.ended || s.bridge != nil; late {
			return
		}
		s.place, s.bridge, s.stop = p, b, stop
		s.m.holder = b
		b.Set(s.m.grant)
	})
	if late {
		b.close()
		stop()
		return fmt.Errorf("%s has ended, or is open already", s.build.Name)
	}
	return nil
}

// listen has a socket in the build's folder answer for its token.
func (s *Share) listen(p Place) (*buildcontrol.Token, func(), error) {
	sum := sha256.Sum256([]byte("quarry jobs token\x00" + s.build.Key))
	token, err := s.g.opts.Control.Open(hex.EncodeToString(sum[:12]))
	if err != nil {
		return nil, nil, err
	}
	token.Set(1)
	l, err := listenIn(p)
	if err != nil {
		token.Close()
		return nil, nil, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := s.g.opts.Control.ServeToken(context.Background(), l, token); err != nil {
			s.g.log.Warn("build control of a build has ended early", "build", s.build.Number, "error", err)
		}
	}()
	return token, func() {
		token.Close()
		<-ended
		_ = os.Remove(filepath.Join(p.Dir, socketName)) // whatever has that name by now
	}, nil
}

// listenIn makes a socket that only the build's root can reach.
func listenIn(p Place) (net.Listener, error) {
	dir, err := os.Open(p.Dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	// The folder's path may be longer than the 107 bytes of a socket's.
	short := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketName)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: short})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // that path is no longer true by then
	path := filepath.Join(p.Dir, socketName)
	err = os.Chmod(path, 0o600)
	if err == nil && (p.UID != os.Getuid() || p.GID != os.Getgid()) {
		err = os.Lchown(path, p.UID, p.GID)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// follow has slots that come back go to others at once.
func (s *Share) follow(pool *jobserver.Pool) {
	for {
		select {
		case <-pool.Changed():
			s.g.wake()
		case <-s.done:
			return
		}
	}
}

// Env is what the environment of every step has besides its own.
func (s *Share) Env() []string { return s.env }

// Fifo is the name of the jobserver as the build sees it; blank where no more than
// one job ever runs.
func (s *Share) Fifo() string { return s.fifo }

// Ceiling is the most jobs that the build is ever granted. It follows from the
// machine's settings and the recipe alone.
func (s *Share) Ceiling() int { return s.ceiling }

// Step says that a step begins, and nothing of the build runs at this moment. Only
// a parallel one gets more than one slot.
func (s *Share) Step(parallel bool) {
	s.g.change(func(now time.Time) {
		if s.ended {
			return
		}
		if s.bridge != nil && s.bridge.pool != nil {
			s.bridge.pool.Reset()
		}
		// Who hardly used two slots last time can wait until it may show more.
		s.m.step(now, parallel && s.ceiling > 1, s.build.Width == 0 || s.build.Width >= 1.5)
	})
}

// Forced says that something in the build runs a number of jobs of its own, e.g.
// "make -j8". From then on it counts with what it really runs.
func (s *Share) Forced(what string) {
	s.g.change(func(time.Time) {
		if s.forced == "" {
			s.forced = what
		}
	})
}

// Now tells what the build has and uses at this moment.
func (s *Share) Now() Stat {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	if s.ended {
		return Stat{SlotTime: s.slotTime}
	}
	s.account(s.g.now())
	seen := s.m.seen
	if s.bridge != nil {
		seen = s.bridge.Look()
	}
	return Stat{Granted: s.m.grant, Used: max(seen.Used, s.m.fixed), SlotTime: s.slotTime}
}

// End gives all slots back. Nothing of the build may run any more. It may be
// called again, and tells the same.
func (s *Share) End() Summary {
	var sum Summary
	var end func()
	s.g.change(func(now time.Time) {
		if !s.ended {
			s.account(now)
			s.ended = true
			close(s.done)
			s.g.core.leave(s.m)
			for i, o := range s.g.shares {
				if o == s {
					s.g.shares = append(s.g.shares[:i:i], s.g.shares[i+1:]...)
					break
				}
			}
			if b := s.bridge; b != nil {
				s.repaired = b.state().Repaired
				end = s.shut
			}
		}
		sum = Summary{SlotTime: s.slotTime, Peak: s.peak, Width: 1, Forced: s.forced, Repaired: s.repaired}
		if s.wide > 0 {
			sum.Width = s.widely.Seconds() / s.wide.Seconds()
		}
	})
	if end != nil {
		end()
	}
	return sum
}

// shut takes away what Open has made. The place may be kept for people to look
// around in.
func (s *Share) shut() {
	s.bridge.close()
	s.stop()
	if s.g.opts.Enforce != EnforceNone && s.place.CPU != nil {
		_ = s.place.CPU(float64(runtime.NumCPU()), 100) // as a rule it is gone
	}
}

func (b *bridge) close() {
	if b.pool != nil {
		b.pool.Close()
	}
}

// account adds up what the build has had since it was last done. g.mu is held.
func (s *Share) account(now time.Time) {
	if s.began.IsZero() {
		return
	}
	used := max(s.m.seen.Used, s.m.fixed)
	if d := now.Sub(s.counted); d > 0 {
		s.slotTime += time.Duration(s.m.grant) * d
		if used > 1 {
			s.wide += d
			s.widely += time.Duration(used) * d
		}
	}
	s.counted, s.peak = now, max(s.peak, used)
}

// enforce sets the build's processor time when its slots have changed, where that
// is wanted. g.mu is held.
func (s *Share) enforce(g *Governor) {
	if s.cpu == s.m.grant || s.bridge == nil || s.ended {
		return
	}
	s.cpu = s.m.grant
	if g.opts.Enforce == EnforceNone || s.place.CPU == nil {
		return
	}
	cpus := 0.0
	if g.opts.Enforce == EnforceQuota {
		cpus = float64(s.m.grant) * float64(runtime.NumCPU()) / float64(g.opts.Total)
	}
	weight := math.Round(100 * float64(s.m.grant) * max(1, s.build.Weight))
	if err := s.place.CPU(cpus, int(min(max(weight, 1), 10_000))); err != nil {
		g.log.Warn("processor time of a build cannot be set", "build", s.build.Number, "error", err)
	}
}

// status is the build's line of Status. g.mu is held.
func (s *Share) status() BuildStatus {
	m := s.m
	b := BuildStatus{
		Number: s.build.Number, Attempt: s.build.Attempt, Name: s.build.Name, Since: s.since, Waiting: s.began.IsZero(),
		Parallel: m.parallel, Granted: m.grant, Out: m.seen.Out, Used: max(m.seen.Used, m.fixed), Want: max(m.need, m.fixed), Hungry: m.hungry,
		Ceiling: s.ceiling, Weight: m.weight, Hand: m.hand, By: s.by, Forced: s.forced,
	}
	if m.hungry {
		b.Want = m.max
	}
	if s.bridge != nil {
		if s.bridge.token != nil {
			b.Clients = s.bridge.token.Clients()
		}
		b.Repaired = s.bridge.state().Repaired
	}
	return b
}
