package queue

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/Morphux/quarry"
)

// board is what everybody may see: the state as it is in the journal. The
// owner writes it, after the journal; all others read it, so that status works
// while the disk does not.
type board struct {
	mu       sync.RWMutex
	builds   map[int64]*item // items are never changed, only replaced
	order    []int64         // numbers, rising
	counts   map[envState]int
	status   Status                       // without the counts
	declined map[string][]quarry.Declined // by package
	subs     map[*subscriber]struct{}
	waits    map[int64][]chan struct{}
	closed   bool
}

type envState struct {
	env   quarry.Environment
	state quarry.State
}

// Status is the queue at a glance.
type Status struct {
	Counts   map[quarry.State]int `json:"counts"`
	Envs     []EnvironmentStatus  `json:"environments"`
	Workers  int                  `json:"workers"` // builds at once
	Busy     int                  `json:"busy"`
	Paused   []PauseStatus        `json:"paused,omitempty"` // why nothing new is started; empty: it is not paused
	Problems []Problem            `json:"problems,omitempty"`
	Planned  time.Time            `json:"planned,omitzero"` // when the last full plan was finished
	Last     int64                `json:"last"`             // the highest build number used
	BadLines int                  `json:"bad_lines,omitempty"`
}

// EnvironmentStatus counts the builds of one environment under way.
type EnvironmentStatus struct {
	quarry.Environment
	Waiting int    `json:"waiting"`
	Queued  int    `json:"queued"`
	Running int    `json:"running"` // and recording
	Paused  string `json:"paused,omitempty"`
}

// PauseStatus is one reason why the queue, or one environment, starts no
// builds. They go away by themselves, except that of a person (By).
type PauseStatus struct {
	Environment *quarry.Environment `json:"environment,omitempty"` // nil: all
	Pause
}

func newBoard(workers int) *board {
	return &board{
		builds:   map[int64]*item{},
		counts:   map[envState]int{},
		status:   Status{Workers: workers},
		declined: map[string][]quarry.Declined{},
		subs:     map[*subscriber]struct{}{},
		waits:    map[int64][]chan struct{}{},
	}
}

// show makes the new states of builds visible and tells who listens. A nil item
// takes the build off the board.
func (b *board) show(number int64, it *item) {
	old := b.builds[number]
	if old != nil {
		k := envState{old.Environment(), old.State}
		if b.counts[k]--; b.counts[k] == 0 {
			delete(b.counts, k)
		}
	}
	if it == nil {
		delete(b.builds, number)
		if i, ok := slices.BinarySearch(b.order, number); ok {
			b.order = slices.Delete(b.order, i, i+1)
		}
	} else {
		b.builds[number] = it
		b.counts[envState{it.Environment(), it.State}]++
		if old == nil {
			if n := len(b.order); n == 0 || b.order[n-1] < number {
				b.order = append(b.order, number)
			} else if i, ok := slices.BinarySearch(b.order, number); !ok {
				b.order = slices.Insert(b.order, i, number)
			}
		}
	}
	for s := range b.subs {
		s.add(number)
	}
	if it == nil || it.State.Ended() {
		for _, c := range b.waits[number] {
			close(c)
		}
		delete(b.waits, number)
	}
}

// view is a copy of a build for the outside, which need not know where on this
// machine its repository is. A queued build that nothing else keeps says that the
// queue is paused. b.mu is held.
func (b *board) view(it *item) quarry.Build {
	out := it.Build
	out.Repo = ""
	out.Archs = slices.Clone(out.Archs)
	out.Needs = slices.Clone(out.Needs)
	if out.State == quarry.Queued {
		for _, p := range b.status.Paused {
			if p.Environment == nil || *p.Environment == out.Environment() {
				why := p.Reason
				if !strings.HasPrefix(why, "paused ") { // as one without a reason says itself
					why = "paused: " + why
				}
				// One that was put back for the very same says it once.
				if out.Reason != "" && !strings.Contains(out.Reason, p.Reason) {
					why = out.Reason + "; " + why
				}
				out.Reason = why
				break
			}
		}
	}
	return out
}

func (b *board) views(items []*item) (list []quarry.Build) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for _, it := range items {
		list = append(list, b.view(it))
	}
	return list
}

// Filter chooses builds. Empty fields choose all.
type Filter struct {
	Channel, Package, Version, Arch string
	Commit                          string
	States                          []quarry.State
	Live                            bool  // only those under way
	Before                          int64 // numbers below this, for paging; 0: from the newest
	Limit                           int   // 0: no limit
}

func (f *Filter) match(b *quarry.Build) bool {
	is := func(want, have string) bool { return want == "" || want == have }
	return is(f.Channel, b.Channel) && is(f.Package, b.Package) && is(f.Version, b.Version) &&
		is(f.Arch, b.Arch) && is(f.Commit, b.Commit) && (!f.Live || !b.State.Ended()) &&
		(len(f.States) == 0 || slices.Contains(f.States, b.State))
}

// List gives the builds that the queue knows, newest first: all under way, and
// those of the past that it keeps.
func (q *Queue) List(f Filter) []quarry.Build {
	b := q.board
	b.mu.RLock()
	defer b.mu.RUnlock()
	var list []quarry.Build
	for i := len(b.order) - 1; i >= 0 && (f.Limit <= 0 || len(list) < f.Limit); i-- {
		if f.Before > 0 && b.order[i] >= f.Before {
			continue
		}
		if it := b.builds[b.order[i]]; f.match(&it.Build) {
			list = append(list, b.view(it))
		}
	}
	return list
}

// Get gives one build, or ErrUnknown.
func (q *Queue) Get(number int64) (quarry.Build, error) {
	b := q.board
	b.mu.RLock()
	defer b.mu.RUnlock()
	if it := b.builds[number]; it != nil {
		return b.view(it), nil
	}
	return quarry.Build{Number: number}, unknown(number)
}

// Status gives the queue at a glance. It answers while the disk hangs.
func (q *Queue) Status() Status {
	b := q.board
	b.mu.RLock()
	defer b.mu.RUnlock()
	s := b.status
	s.Paused = slices.Clone(s.Paused)
	s.Problems = slices.Clone(s.Problems)
	s.Counts = map[quarry.State]int{}
	envs := map[quarry.Environment]*EnvironmentStatus{}
	for k, n := range b.counts {
		s.Counts[k.state] += n
		if k.state.Ended() {
			continue
		}
		e := envs[k.env]
		if e == nil {
			e = &EnvironmentStatus{Environment: k.env}
			envs[k.env] = e
		}
		switch k.state {
		case quarry.Waiting:
			e.Waiting += n
		case quarry.Queued:
			e.Queued += n
		default:
			e.Running += n
		}
	}
	for _, p := range s.Paused {
		if p.Environment == nil {
			continue
		}
		if e := envs[*p.Environment]; e != nil {
			e.Paused = p.Reason
		}
	}
	for _, e := range envs {
		s.Envs = append(s.Envs, *e)
	}
	slices.SortFunc(s.Envs, func(a, b EnvironmentStatus) int { return a.Compare(b.Environment) })
	return s
}

// Declined lists what of a package, or of all for "", is not built because its
// recipes say so.
func (q *Queue) Declined(pkg string) []quarry.Declined {
	b := q.board
	b.mu.RLock()
	defer b.mu.RUnlock()
	var list []quarry.Declined
	if pkg != "" {
		list = slices.Clone(b.declined[pkg])
	} else {
		for _, d := range b.declined {
			list = append(list, d...)
		}
	}
	slices.SortFunc(list, func(a, b quarry.Declined) int {
		return cmp.Or(strings.Compare(a.String(), b.String()), strings.Compare(a.Channel, b.Channel))
	})
	return list
}

// Wait returns the build once it has ended. It fails with ErrUnknown for a
// build that the queue does not know, with ErrStopped when the queue stops
// first, and with the context's error.
func (q *Queue) Wait(ctx context.Context, number int64) (quarry.Build, error) {
	for {
		b := q.board
		b.mu.Lock()
		it := b.builds[number]
		if it == nil {
			b.mu.Unlock()
			return quarry.Build{Number: number}, unknown(number)
		}
		if it.State.Ended() {
			defer b.mu.Unlock()
			return b.view(it), nil
		}
		if b.closed {
			b.mu.Unlock()
			return it.Build, ErrStopped
		}
		ended := make(chan struct{})
		b.waits[number] = append(b.waits[number], ended)
		b.mu.Unlock()
		select {
		case <-ended:
		case <-ctx.Done():
			b.mu.Lock()
			b.waits[number] = slices.DeleteFunc(b.waits[number], func(c chan struct{}) bool { return c == ended })
			if len(b.waits[number]) == 0 {
				delete(b.waits, number)
			}
			b.mu.Unlock()
			return it.Build, context.Cause(ctx)
		}
	}
}

// Subscribe gives builds as they change, until ctx ends or the queue stops;
// then the channel is closed. It begins with all builds under way. A reader is
// never waited for: what it has not read yet is kept as the set of builds that
// changed, so that a slow one misses states in between but always gets the
// last one of every build.
func (q *Queue) Subscribe(ctx context.Context) <-chan quarry.Build {
	s := &subscriber{wake: make(chan struct{}, 1), pending: map[int64]struct{}{}}
	out := make(chan quarry.Build, 16)
	b := q.board
	b.mu.Lock()
	for _, n := range b.order {
		if !b.builds[n].State.Ended() {
			s.add(n)
		}
	}
	if b.closed {
		s.close()
	} else {
		b.subs[s] = struct{}{}
	}
	b.mu.Unlock()
	go func() {
		defer close(out)
		defer func() {
			b.mu.Lock()
			delete(b.subs, s)
			b.mu.Unlock()
		}()
		for {
			number, ok, closed := s.next()
			if !ok {
				if closed {
					return
				}
				select {
				case <-s.wake:
				case <-ctx.Done():
					return
				}
				continue
			}
			b.mu.RLock()
			it := b.builds[number]
			var build quarry.Build
			if it != nil {
				build = b.view(it)
			}
			b.mu.RUnlock()
			if it == nil {
				continue
			}
			select {
			case out <- build:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// subscriber holds the numbers of builds that a reader has not been told of.
// It is bounded by the number of builds on the board.
type subscriber struct {
	mu      sync.Mutex
	queue   []int64
	pending map[int64]struct{}
	closed  bool
	wake    chan struct{}
}

func (s *subscriber) add(number int64) {
	s.mu.Lock()
	if _, ok := s.pending[number]; !ok {
		s.pending[number] = struct{}{}
		s.queue = append(s.queue, number)
	}
	s.mu.Unlock()
	s.nudge()
}

func (s *subscriber) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.nudge()
}

func (s *subscriber) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *subscriber) next() (number int64, ok, closed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		return 0, false, s.closed
	}
	number = s.queue[0]
	s.queue = s.queue[1:]
	delete(s.pending, number)
	return number, true, false
}

// close ends every subscription and wait.
func (b *board) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for s := range b.subs {
		s.close()
	}
	for n, list := range b.waits {
		for _, c := range list {
			close(c)
		}
		delete(b.waits, n)
	}
}
