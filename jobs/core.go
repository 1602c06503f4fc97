package jobs

import (
	"slices"
	"time"
)

// The core decides who has what, and when a slot moves. It knows no clock, file
// or goroutine: it is told the time, and sees and moves slots through holders. So
// tests can drive it through anything.

// holder is where the slots of one build lie.
type holder interface {
	// Set says how many it may have, at least 1. More are there at once; fewer as
	// far as they lie unused, the rest when jobs end.
	Set(n int)
	// Look tells what it has now.
	Look() sight
}

// sight is what a holder has at one moment.
type sight struct {
	Out  int // slots that are with it; more than Set said while some are to come back
	Used int // of them those that jobs run in, at least 1
}

// How the core learns what a build could use.
const (
	// unused is how long slots lie unused before they are somebody else's to have.
	unused = 500 * time.Millisecond
	// A build that has just what it needs cannot show that it would like more. So
	// it gets one slot more at times, for long enough to be taken by whoever waits
	// for it, where nobody would give it one otherwise.
	probeEvery = time.Second
	probeFor   = 30 * time.Millisecond
)

// core is the state of a machine's slots.
type core struct {
	limit   int
	members []*member // in the order in which they began
	waiting []*member // for their first slot, in the order in which they came
}

// member is one build.
type member struct {
	min, max int // at least, where the limit allows, and at most
	weight   float64
	holder   holder // nil: it is not open yet, and has its one slot

	parallel bool
	hand     int // somebody has set that it gets so many; 0: nobody has
	fixed    int // it runs so many whatever it is given; 0: it does not

	grant  int   // what it may have
	target int   // what it is to have once there is so much
	seen   sight // when last looked at

	hungry   bool
	lastFull time.Time // when it last had a use for all it had
	need     int       // the most that it ran of late
	recent   peak

	probing bool          // it is to get one more
	trial   time.Duration // for how long
	probed  time.Time     // since when it has one more; zero: it has not yet
	rested  time.Time     // since when it has not been probed
}

func newMember(least, most int, weight float64) *member {
	return &member{min: min(least, most), max: max(most, 1), weight: weight, need: 1}
}

// step says that a step begins. A parallel one shows with one slot more whether it
// has work for many jobs, rather than have its whole share lie unused while it
// reads makefiles or configures. wide: it may well have, so that it need not wait
// until it can show it.
func (m *member) step(now time.Time, parallel, wide bool) {
	m.parallel = parallel
	m.hungry, m.lastFull = false, now
	m.need, m.recent = 1, peak{}
	m.probing, m.trial, m.probed, m.rested = parallel && wide, unused, time.Time{}, now
}

// busy reports whether there are builds.
func (c *core) busy() bool { return len(c.members)+len(c.waiting) > 0 }

// enter has a build wait for its first slot.
func (c *core) enter(m *member) { c.waiting = append(c.waiting, m) }

// leave takes a build out, and all its slots back.
func (c *core) leave(m *member) {
	is := func(o *member) bool { return o == m }
	c.members = slices.DeleteFunc(c.members, is)
	c.waiting = slices.DeleteFunc(c.waiting, is)
}

// out is how many slots builds have.
func (c *core) out() (n int) {
	for _, m := range c.members {
		n += m.seen.Out
	}
	return n
}

// turn looks at all builds, divides anew, takes slots back, and gives out those
// that are back. It returns the builds that have got their first slot.
//
// Slots are taken before they are given, and given only out of what is back. So
// what is out never grows beyond the limit (or one each, if that is more), and
// only falls while it is above.
func (c *core) turn(now time.Time) (begun []*member) {
	for _, m := range c.members {
		m.look(now)
	}
	// Whoever waits comes in when its least can be kept beside that of the others,
	// and then has the first claim on what comes back.
	claims, least := 0, 0
	for _, m := range c.members {
		least += m.least()
	}
	for _, m := range c.waiting {
		if least+m.least() > c.limit && least > 0 {
			break // nor may a smaller one overtake it
		}
		least += m.least()
		claims++
	}
	c.divide(claims)
	for _, m := range c.members {
		if m.target < m.grant {
			m.set(m.target)
			m.look(now)
		}
	}
	for ; claims > 0 && (c.out() < c.limit || len(c.members) == 0); claims-- {
		m := c.waiting[0]
		c.waiting = c.waiting[1:]
		c.members = append(c.members, m)
		m.grant, m.seen = 1, sight{1, 1}
		begun = append(begun, m)
	}
	if len(begun) > 0 {
		c.divide(claims)
	}
	c.raise(claims)
	return begun
}

// least is what a build has before others have more.
func (m *member) least() int { return max(1, min(m.min, m.max)) }

// divide says what each is to have beside claims of those that wait.
func (c *core) divide(claims int) {
	wants := make([]Want, len(c.members))
	for i, m := range c.members {
		wants[i] = m.want()
	}
	for i, n := range Divide(c.limit-claims, wants) {
		c.members[i].target = min(n, max(1, wants[i].Max)) // what runs by force is told no more than others
	}
}

// raise gives out what is back, always to the one that has the least of what it
// is to have.
func (c *core) raise(claims int) {
	free := c.limit - claims // slots
	idle := free             // of them those in which nothing runs by force
	has := make([]int, len(c.members))
	for i, m := range c.members {
		has[i] = m.grant
		free -= m.seen.Out
		idle -= max(m.seen.Out, m.fixed)
	}
	for {
		next, least := -1, 1.0
		for i, m := range c.members {
			part := float64(has[i]) / float64(m.target)
			// What is out anyway costs nothing, and what runs anyway is counted.
			if part < least && (has[i] < m.seen.Out || free > 0 && (has[i] < m.fixed || idle > 0)) {
				next, least = i, part
			}
		}
		if next < 0 {
			break
		}
		m := c.members[next]
		if has[next] >= m.seen.Out {
			free--
			if has[next] >= m.fixed {
				idle--
			}
		}
		has[next]++
	}
	for i, m := range c.members {
		if has[i] != m.grant {
			m.set(has[i])
			m.seen.Out = max(m.seen.Out, has[i])
		}
	}
}

// set moves what a build may have.
func (m *member) set(n int) {
	m.grant = n
	if m.holder != nil {
		m.holder.Set(n)
	}
}

// look sees what a build does, and what that says of what it could do.
func (m *member) look(now time.Time) {
	m.seen = sight{1, 1}
	if m.holder != nil {
		m.seen = m.holder.Look()
	}
	m.recent.add(now, m.seen.Used)
	if !m.parallel {
		m.hungry, m.need, m.probing = false, 1, false
		return
	}
	full := m.seen.Used >= m.grant
	switch settled := m.seen.Out <= m.grant; {
	case m.hungry && (full || !settled):
		m.lastFull = now
	case m.hungry && now.Sub(m.lastFull) >= unused:
		m.hungry = false
	case !m.hungry && full && settled && m.grant != m.need:
		// It has taken what lay there beyond its need, or would have more.
		m.hungry, m.lastFull = true, now
	}
	if !m.hungry {
		m.need = m.recent.max()
	}
	m.probe(now)
}

// probe has a build get one slot more at times, to see whether it takes it.
func (m *member) probe(now time.Time) {
	switch {
	case m.hungry || m.grant > m.need && !m.probing:
		m.probing, m.rested = false, now
	case !m.probing:
		if now.Sub(m.rested) >= probeEvery {
			m.probing, m.trial, m.probed = true, probeFor, time.Time{}
		}
	case m.grant <= m.need:
		m.probed = time.Time{} // it is still to come
	case m.probed.IsZero():
		m.probed = now
	case now.Sub(m.probed) >= m.trial:
		m.probing, m.rested = false, now
	}
}

// want is what the build has to say.
func (m *member) want() Want {
	w := Want{Min: m.least(), Max: m.max, Use: m.need, Hungry: m.hungry, Weight: m.weight, Fixed: m.fixed}
	if m.probing {
		w.Use++
	}
	if m.hand > 0 {
		w.Min = min(m.hand, m.max)
		w.Max = w.Min
	}
	if !m.parallel {
		w.Min, w.Max = 1, 1
	}
	return w
}

// soon is when a look is worth while though nothing is heard, and whether there
// is such a time.
func (c *core) soon() (time.Time, bool) {
	var next time.Time
	for _, m := range c.members {
		if m.probing && !m.probed.IsZero() {
			if t := m.probed.Add(m.trial); next.IsZero() || t.Before(next) {
				next = t
			}
		}
	}
	return next, !next.IsZero()
}

// peak is the highest of the values of the latest time, [unused].
type peak struct {
	at []time.Time // values fall from one to the next
	n  []int
}

func (p *peak) add(now time.Time, n int) {
	for len(p.n) > 0 && p.n[len(p.n)-1] <= n {
		p.at, p.n = p.at[:len(p.at)-1], p.n[:len(p.n)-1]
	}
	p.at, p.n = append(p.at, now), append(p.n, n)
	for len(p.at) > 1 && now.Sub(p.at[0]) >= unused {
		p.at, p.n = slices.Delete(p.at, 0, 1), slices.Delete(p.n, 0, 1)
	}
}

func (p *peak) max() int {
	if len(p.n) == 0 {
		return 1
	}
	return p.n[0]
}
