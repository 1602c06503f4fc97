package queue

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Morphux/quarry"
)

// massNonce begins the nonce of a build that a mass rebuild wants; the rest is
// the ID of that.
const massNonce = "mass-"

func isMass(b *quarry.Build) bool { return strings.HasPrefix(b.Nonce, massNonce) }

// Campaign is a mass rebuild: all that matches is built again, once. It is kept
// where the records are. What is left of it follows from these: a target has had
// its turn when its newest record is of a build that began after the campaign did.
// Build numbers tell which that are, not clocks.
type Campaign struct {
	ID      string   `json:"id" toml:"id"`                               // e.g. 20260314-3f9a; never used twice
	Match   []string `json:"match,omitempty" toml:"match,omitempty"`     // package names, as path.Match has them; none: all
	Arch    string   `json:"arch,omitempty" toml:"arch,omitempty"`       // "": all
	Channel string   `json:"channel,omitempty" toml:"channel,omitempty"` // "": all
	Reason  string   `json:"reason,omitempty" toml:"reason,omitempty"`
	By      string   `json:"by" toml:"by"`

	Made  time.Time `json:"made" toml:"made"`
	First int64     `json:"first" toml:"first"` // builds with this number and those after came later than the campaign
	// Shared are the numbers before First of builds that had not begun then, e.g.
	// 17 or 20-25: they will do.
	Shared []string `json:"shared,omitempty" toml:"shared,multiline,omitempty"`
	// Failing are the targets whose newest record was a failure then.
	Failing []string `json:"failing,omitempty" toml:"failing,multiline,omitempty"`

	Ended     time.Time `json:"ended,omitzero" toml:"ended,omitzero"`
	Cancelled string    `json:"cancelled,omitempty" toml:"cancelled,omitempty"` // who called it off
	Report    *Report   `json:"report,omitempty" toml:"report,omitempty"`       // at its end
}

// Campaigns is where mass rebuilds are kept.
type Campaigns interface {
	// List gives all that there are, in any order.
	List(ctx context.Context) ([]Campaign, error)
	// Save writes one, new or over what stands of it. It is on the disk when
	// Save returns without an error.
	Save(ctx context.Context, c Campaign) error
}

func (c *Campaign) nonce() string { return massNonce + c.ID }

// Over reports whether nothing more is built for it.
func (c *Campaign) Over() bool { return !c.Ended.IsZero() }

// check reports what is wrong with a campaign that somebody asks for, or that
// was read.
func (c *Campaign) check() error {
	for _, m := range c.Match {
		if _, err := path.Match(m, ""); err != nil || m == "" {
			return fmt.Errorf("pattern %.80q does not match names: write it like 'lib*' or '[a-d]*'", m)
		}
	}
	if c.Arch != "" {
		if err := quarry.CheckArch(c.Arch); err != nil {
			return err
		}
	}
	if c.Channel != "" {
		return quarry.CheckChannel(c.Channel)
	}
	return nil
}

// covers reports whether a target is to be built again.
func (c *Campaign) covers(t quarry.Target) bool {
	if c.Arch != "" && t.Arch != c.Arch || c.Channel != "" && t.Channel != c.Channel {
		return false
	}
	return len(c.Match) == 0 || slices.ContainsFunc(c.Match, func(m string) bool {
		ok, _ := path.Match(m, t.Package)
		return ok
	})
}

// counts reports whether a build is one that began after the campaign did.
func (c *Campaign) counts(build int64) bool {
	if build >= c.First {
		return true
	}
	_, found := slices.BinarySearchFunc(c.Shared, build, func(s string, n int64) int {
		from, to := span(s)
		switch {
		case to < n:
			return -1
		case from > n:
			return 1
		}
		return 0
	})
	return found
}

// span reads 17 or 20-25. What is neither holds no number.
func span(s string) (from, to int64) {
	a, b, ok := strings.Cut(s, "-")
	if !ok {
		b = a
	}
	from, err := strconv.ParseInt(a, 10, 64)
	if to, err2 := strconv.ParseInt(b, 10, 64); err == nil && err2 == nil {
		return from, to
	}
	return 0, -1
}

// spans writes rising numbers as span reads them.
func spans(numbers []int64) (list []string) {
	for i := 0; i < len(numbers); {
		j := i
		for j+1 < len(numbers) && numbers[j+1] == numbers[j]+1 {
			j++
		}
		s := strconv.FormatInt(numbers[i], 10)
		if j > i {
			s += "-" + strconv.FormatInt(numbers[j], 10)
		}
		list = append(list, s)
		i = j + 1
	}
	return list
}

// campaigns are the mass rebuilds as they are kept. Surveys look at them, the
// queue's owner does not.
type campaigns struct {
	store Campaigns
	first atomic.Int64 // the greatest First of all

	mu     sync.Mutex // guards the following; held while the store is read and written
	list   []Campaign // oldest first
	loaded bool
}

// all gives those that there are, read anew if fresh.
func (s *campaigns) all(ctx context.Context, fresh bool) ([]Campaign, error) {
	if s.store == nil {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.loaded && !fresh {
		return s.list, nil
	}
	list, err := s.store.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot read the mass rebuilds: %w", err)
	}
	s.take(list)
	return s.list, nil
}

// take replaces the list. s.mu is held; lists that were given out stay as they are.
func (s *campaigns) take(list []Campaign) {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b Campaign) int {
		if a.First != b.First {
			return int(min(1, max(-1, a.First-b.First)))
		}
		return strings.Compare(a.ID, b.ID)
	})
	s.list, s.loaded = list, true
	for _, c := range list {
		if c.First > s.first.Load() {
			s.first.Store(c.First)
		}
	}
}

// update has f change one, or make one with a new ID, and saves it.
func (s *campaigns) update(ctx context.Context, id string, f func(*Campaign) error) (Campaign, error) {
	if _, err := s.all(ctx, false); err != nil {
		return Campaign{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	list := slices.Clone(s.list)
	i := slices.IndexFunc(list, func(c Campaign) bool { return c.ID == id })
	if i < 0 {
		list = append(list, Campaign{ID: id})
		i = len(list) - 1
	}
	c := list[i]
	if err := f(&c); err != nil {
		return c, err
	}
	if err := s.store.Save(ctx, c); err != nil {
		return c, fmt.Errorf("mass rebuild %s cannot be kept: %w", c.ID, err)
	}
	list[i] = c
	s.take(list)
	return c, nil
}

var errOver = errors.New("it is over already")

// ErrNoMass is wrapped by the error for a mass rebuild that does not exist.
var ErrNoMass = errors.New("no such mass rebuild")

func (q *Queue) campaign(ctx context.Context, id string) (Campaign, error) {
	list, err := q.campaigns.all(ctx, false)
	if err != nil {
		return Campaign{}, err
	}
	for _, c := range list {
		if c.ID == id {
			return c, nil
		}
	}
	return Campaign{}, fmt.Errorf("%w: %.40q; see quarry rebuild --mass --list", ErrNoMass, id)
}

// mass looks whether mass rebuilds want what has a record, and says so in the
// view. Of several the youngest one has it built: that serves the others too.
func (v *View) mass(recs Records, w Want, newest quarry.RecordRef, list []Campaign) error {
	for i := range list {
		c := &list[i]
		if c.Over() || !c.covers(w.Target()) || c.counts(newest.Build) {
			continue
		}
		if v.Mass == nil {
			v.Mass = map[quarry.Target][]string{}
		}
		v.Mass[w.Target()] = append(v.Mass[w.Target()], c.ID)
		w.Nonce, w.Why, w.mass = c.nonce(), "mass rebuild "+c.ID, c
		if c.Reason != "" {
			w.Why += ": " + c.Reason
		}
	}
	if w.Nonce == "" {
		return nil
	}
	var err error
	if w.Unmet, err = unmet(recs, w.Release, w.Arch); err == nil {
		v.Wants = append(v.Wants, w)
	}
	return err
}

// rebuilt reports whether a target has a record and no mass rebuild wants another.
func (v *View) rebuilt(t quarry.Target) bool {
	_, ok := v.Recorded[t]
	return ok && len(v.Mass[t]) == 0
}

// Mass begins a mass rebuild of what c says with Match, Arch, Channel, Reason and
// By; the rest of c is filled in. It fails when nothing matches. What is under
// way and has not begun is not made twice.
func (q *Queue) Mass(ctx context.Context, c Campaign) (Campaign, error) {
	if q.campaigns.store == nil {
		return c, errors.New("mass rebuilds have no place to be kept in: set Options.Campaigns")
	}
	if err := c.check(); err != nil {
		return c, err
	}
	views, _, err := q.survey(ctx, "")
	if err != nil {
		return c, err
	}
	matching := 0
	for t, ref := range targets(views, &c) {
		matching++
		if ref.Status == quarry.Failed {
			c.Failing = append(c.Failing, name(t))
		}
	}
	if matching == 0 {
		return c, errors.New("nothing matches: see quarry status for the packages there are, and quarry replan after a push past the doors")
	}
	slices.Sort(c.Failing)
	var shared []int64
	err = q.ask(ctx, func(o *owner) error {
		o.last = max(o.last, q.campaigns.first.Load()-1)
		c.First = o.last + 1
		for _, list := range o.live {
			for n, it := range list {
				if (it.State == quarry.Waiting || it.State == quarry.Queued) && c.covers(it.Target()) {
					shared = append(shared, n)
				}
			}
		}
		return nil
	})
	if err != nil {
		return c, err
	}
	slices.Sort(shared)
	c.Shared = spans(shared)
	c.Made = time.Now().UTC().Truncate(time.Second)
	var random [4]byte
	rand.Read(random[:])
	c.ID = fmt.Sprintf("%s-%x", c.Made.Format("20060102"), random)
	made, err := q.campaigns.update(ctx, c.ID, func(to *Campaign) error { *to = c; return nil })
	if err != nil {
		return c, err
	}
	q.replanned(ctx)
	return made, nil
}

// CancelMass calls a mass rebuild off: what has not begun is not built, unless
// another one wants it. by is who asks.
func (q *Queue) CancelMass(ctx context.Context, id, by string) (Campaign, error) {
	return q.finish(ctx, id, by)
}

// finish ends a campaign, called off by somebody or (by empty) because all is done.
func (q *Queue) finish(ctx context.Context, id, by string) (Campaign, error) {
	c, err := q.campaign(ctx, id)
	if err != nil {
		return c, err
	}
	report, err := q.Report(ctx, id)
	if err != nil {
		return c, err
	}
	c, err = q.campaigns.update(ctx, id, func(c *Campaign) error {
		if c.Over() {
			return fmt.Errorf("%w: mass rebuild %s, since %s", errOver, id, c.Ended.Format(time.DateTime))
		}
		c.Ended, c.Cancelled = time.Now().UTC().Truncate(time.Second), by
		report.Expected = 0
		c.Report = &report
		return nil
	})
	if err == nil && by != "" {
		q.replanned(ctx)
	}
	return c, err
}

// replanned has the queue take up what has changed. It is no error where that
// cannot be at once: the queue does it by itself.
func (q *Queue) replanned(ctx context.Context) {
	if err := q.Replan(ctx); err != nil {
		q.opts.Log.Warn("the plan could not follow a mass rebuild at once: the next one does", "error", err)
	}
}

// MassRebuilds lists all mass rebuilds, the youngest first.
func (q *Queue) MassRebuilds(ctx context.Context) ([]Campaign, error) {
	list, err := q.campaigns.all(ctx, true)
	list = slices.Clone(list)
	slices.Reverse(list)
	return list, err
}

// conclude ends the mass rebuilds of which nothing is left to be done, when a full
// plan has been made of views.
func (o *owner) conclude(views map[string]*View, list []Campaign) {
	if views[""] != nil {
		return // packages may be missing
	}
	open := map[string]bool{}
	for i := range list {
		open[list[i].ID] = !list[i].Over()
	}
	by := map[string]*Campaign{}
	for i := range list {
		by[list[i].ID] = &list[i]
	}
	for _, v := range views {
		for t, ids := range v.Mass {
			for _, id := range ids {
				if open[id] && !o.lost(t, v.Releases[Line{t.Channel, t.Package, t.Version}].Commit, by[id]) {
					open[id] = false
				}
			}
		}
		for _, w := range v.Wants {
			if w.Nonce != "" || !o.underWay(w.Target()) {
				continue // what has no record has its turn without a mass rebuild, or waits in vain
			}
			for i := range list {
				if list[i].covers(w.Target()) {
					open[list[i].ID] = false
				}
			}
		}
	}
	for id, over := range open {
		if !over {
			continue
		}
		ctx := o.workCtx
		o.aside(func() func(*owner) {
			_, err := o.q.finish(ctx, id, "")
			return func(o *owner) {
				if err != nil && !o.stopping && !errors.Is(err, errOver) {
					o.q.opts.Log.Warn("a mass rebuild is done, and could not be ended: the next plan does", "id", id, "error", err)
				}
			}
		})
	}
}

// underWay reports whether a target is being built, or will be.
func (o *owner) underWay(t quarry.Target) bool {
	for _, it := range o.targets[t] {
		if !it.State.Ended() && o.goesOn(it, map[int64]bool{}) {
			return true
		}
	}
	return false
}

// lost reports whether what a mass rebuild wants has been given up or called off,
// so that no record will come of it.
func (o *owner) lost(t quarry.Target, commit string, c *Campaign) bool {
	lost := false
	for _, it := range o.targets[t] {
		if !it.State.Ended() {
			return false
		}
		if it.Commit == commit && isMass(&it.Build) && c.counts(it.Number) {
			lost = lost || it.State == quarry.Errored || it.State == quarry.Cancelled
		}
	}
	return lost
}
