package usage

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/Morphux/quarry/internal/cgroup"
)

// Read reads what a build uses at this moment, and its disk as last measured.
type Read func() (now cgroup.Stat, disk cgroup.Count)

// Recorder samples one attempt at a build and keeps the series. Its methods may
// be called by several goroutines.
type Recorder struct {
	s     *Store
	build Build
	began time.Time
	every time.Duration
	read  Read
	timer *time.Timer
	stop  chan struct{}
	done  chan struct{}

	mu     sync.Mutex // guards the following
	file   *file      // nil when none could be made
	enc    encoder
	step   string
	since  time.Time
	recent []Sample // the latest ones, for rates; the last may have been taken for [Store.Live] alone
	err    error
	ended  bool
}

// Recent samples that are kept: those of the last minute or so.
const keepRecent = 32

// Begin begins to sample an attempt: now, every so often (0: [DefaultEvery]),
// at the end of each step and at the end. It always gives a recorder; Err says
// why nothing is kept.
func (s *Store) Begin(b Build, step string, every time.Duration, read Read) *Recorder {
	if every <= 0 {
		every = DefaultEvery
	}
	every = max(every, 10*time.Millisecond)
	now := time.Now()
	r := &Recorder{
		s: s, build: b, began: now, every: every, read: read, step: step, since: now,
		timer: time.NewTimer(every), stop: make(chan struct{}), done: make(chan struct{}),
	}
	s.mu.Lock()
	if old := s.live[b.Number]; old != nil {
		r.err = fmt.Errorf("build %d is being sampled already", b.Number)
	} else {
		s.live[b.Number] = r
		r.file, r.err = s.open(b.Number)
	}
	s.mu.Unlock()
	r.mu.Lock()
	r.add(r.enc.attempt(b, now, every))
	r.add(r.enc.step(step))
	r.sample()
	r.mu.Unlock()
	go r.run()
	return r
}

// run samples until the end. Nothing ticks when nothing is built.
func (r *Recorder) run() {
	defer close(r.done)
	for {
		select {
		case <-r.stop:
			return
		case <-r.timer.C:
			r.mu.Lock()
			if !r.ended {
				r.sample()
			}
			r.mu.Unlock()
		}
	}
}

// add adds a frame; it needs r.mu.
func (r *Recorder) add(frame []byte) bool {
	if r.file == nil {
		return false
	}
	ok := r.file.add(frame)
	if !ok && r.file.err != nil {
		r.err = r.file.err
	}
	return ok
}

// sample takes a sample and keeps it; it needs r.mu.
func (r *Recorder) sample() {
	s := r.take()
	before := r.enc
	if !r.add(r.enc.sample(&s)) {
		r.enc = before // what is not there can be no sample's predecessor
	}
	r.timer.Reset(r.every)
}

// take takes a sample; it needs r.mu.
func (r *Recorder) take() Sample {
	s := Sample{At: time.Now(), Step: r.step}
	s.Stat, s.Disk = r.read()
	if r.build.Slots != nil {
		jobs, busy := r.build.Slots()
		s.Jobs, s.Busy = cgroup.Of(int64(max(0, jobs))), cgroup.Of(int64(max(0, busy)))
	}
	if len(r.recent) == keepRecent {
		r.recent = slices.Delete(r.recent, 0, keepRecent/2)
	}
	r.recent = append(r.recent, s)
	return s
}

// Step says that a step begins: what went before is the end of the last one.
func (r *Recorder) Step(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended || name == r.step {
		return
	}
	r.sample()
	r.step, r.since = name, time.Now()
	r.add(r.enc.step(name))
}

// End takes the last sample and ends the series. It may be called again.
func (r *Recorder) End() {
	r.mu.Lock()
	if r.ended {
		r.mu.Unlock()
		return
	}
	r.sample()
	r.add(r.enc.end())
	r.ended = true
	r.timer.Stop()
	if r.file != nil {
		r.file.close()
	}
	r.mu.Unlock()
	close(r.stop)
	<-r.done
	r.s.mu.Lock()
	if r.s.live[r.build.Number] == r {
		delete(r.s.live, r.build.Number)
	}
	r.s.mu.Unlock()
}

// Err is the last error that cost samples, or nil.
func (r *Recorder) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return fmt.Errorf("usage of build %d cannot be kept: %w", r.build.Number, r.err)
	}
	return nil
}

// Live is a build that is being sampled, as it stands.
type Live struct {
	Build     int64     `json:"build"`
	Attempt   int       `json:"attempt"`
	Began     time.Time `json:"began"`
	StepBegan time.Time `json:"step_began"`
	Memory    int64     `json:"memory_limit,omitempty"` // bytes
	CPUs      float64   `json:"cpu_limit,omitempty"`
	Now       Sample    `json:"now"`
	Rate      Rate      `json:"rate"` // of the last second or more
}

// A look at a running build is no older than this, and rates are of a second at
// least: of less they say little.
const (
	fresh    = 500 * time.Millisecond
	rateOver = time.Second
)

// Live gives the builds that are being sampled, by number.
func (s *Store) Live() []Live {
	s.mu.Lock()
	var all []*Recorder
	for _, r := range s.live {
		all = append(all, r)
	}
	s.mu.Unlock()
	list := []Live{} // never null
	for _, r := range all {
		if l, ok := r.look(); ok {
			list = append(list, l)
		}
	}
	slices.SortFunc(list, func(a, b Live) int { return int(a.Build - b.Build) })
	return list
}

func (r *Recorder) look() (Live, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended || len(r.recent) == 0 { // or it has not begun yet
		return Live{}, false
	}
	if time.Since(r.recent[len(r.recent)-1].At) > fresh {
		r.take()
	}
	now := &r.recent[len(r.recent)-1]
	from := &r.recent[0]
	for i := range r.recent {
		if s := &r.recent[i]; now.At.Sub(s.At) >= rateOver {
			from = s
		}
	}
	l := Live{
		Build: r.build.Number, Attempt: r.build.Attempt, Began: r.began, StepBegan: r.since,
		Memory: r.build.Memory, CPUs: r.build.CPUs, Now: *now, Rate: Between(from, now),
	}
	l.Now.Step = r.step // which may just have begun
	return l, true
}
