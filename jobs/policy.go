package jobs

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Policy says how many of a machine's slots builds may take, and when. The
// smallest of what it comes to counts.
type Policy struct {
	Schedule    []Rule        // the first that fits counts; none: all slots
	Present     int           // slots while somebody works at the machine; 0: all
	AwayAfter   time.Duration // how long after the last sign somebody is still there
	Others      bool          // a processor that others' processes take is no slot
	Battery     int           // slots without mains; 0: all
	MemoryStall float64       // percent of the time that something waits for memory, from which on slots are taken away; 0: never
}

// MaxSlots is the most that a machine may be said to have.
const MaxSlots = 4096

// Rule is one line of a schedule.
type Rule struct {
	Days     [7]bool       // by time.Weekday: those on which it begins
	From, To time.Duration // by the clock on the wall; To <= From: it ends on the day after
	Slots    int           // 0: all
	Text     string        // as it was written
}

var weekdays = map[string]time.Weekday{"sun": time.Sunday, "mon": time.Monday, "tue": time.Tuesday,
	"wed": time.Wednesday, "thu": time.Thursday, "fri": time.Friday, "sat": time.Saturday}

// ParseRule reads days, hours and slots, of which only the last must be there:
// "22:00-07:00 all", "Mon-Fri 09:00-18:00 2", "Sat,Sun all". Instead of days and
// hours there may be "else".
func ParseRule(text string) (Rule, error) {
	r := Rule{To: 24 * time.Hour, Text: strings.Join(strings.Fields(text), " ")}
	bad := func(what string) (Rule, error) {
		return Rule{}, fmt.Errorf(`%.80q %s: write it as "22:00-07:00 all", "Mon-Fri 09:00-18:00 2" or "else 2"`, text, what)
	}
	words := strings.Fields(strings.ToLower(text))
	if len(words) == 0 {
		return bad("is blank")
	}
	last := words[len(words)-1]
	words = words[:len(words)-1]
	if last != "all" {
		n, err := strconv.Atoi(last)
		if err != nil || n < 1 || n > MaxSlots {
			return bad(fmt.Sprintf("does not end in a number of slots from 1 to %d, or in all", MaxSlots))
		}
		r.Slots = n
	}
	r.Days = [7]bool{true, true, true, true, true, true, true}
	if len(words) == 1 && words[0] == "else" {
		return r, nil
	}
	if len(words) > 0 && words[0][0] >= 'a' && words[0][0] <= 'z' {
		r.Days = [7]bool{}
		for part := range strings.SplitSeq(words[0], ",") {
			from, to, span := strings.Cut(part, "-")
			a, ok := weekdays[from]
			b := a
			if span && ok {
				b, ok = weekdays[to]
			}
			if !ok {
				return bad("has days that are none of Mon, Tue, Wed, Thu, Fri, Sat, Sun")
			}
			for d := a; ; d = (d + 1) % 7 {
				r.Days[d] = true
				if d == b {
					break
				}
			}
		}
		words = words[1:]
	}
	if len(words) > 0 {
		from, to, ok := strings.Cut(words[0], "-")
		var ok1, ok2 bool
		r.From, ok1 = clock(from)
		r.To, ok2 = clock(to)
		if !ok || !ok1 || !ok2 || r.From == 24*time.Hour {
			return bad("has hours that are not of the form 09:00-18:00")
		}
		words = words[1:]
	}
	if len(words) > 0 {
		return bad("has more than days, hours and slots")
	}
	return r, nil
}

func clock(s string) (time.Duration, bool) {
	if len(s) != 5 || s[2] != ':' {
		return 0, false
	}
	h, err1 := strconv.ParseUint(s[:2], 10, 8)
	m, err2 := strconv.ParseUint(s[3:], 10, 8)
	d := time.Duration(h)*time.Hour + time.Duration(m)*time.Minute
	return d, err1 == nil && err2 == nil && m < 60 && d <= 24*time.Hour
}

// Always reports whether the rule is in force at any time.
func (r Rule) Always() bool {
	return r.Days == [7]bool{true, true, true, true, true, true, true} && (r.From == r.To || r.To-r.From == 24*time.Hour)
}

// Fits reports whether the rule is in force.
func (r Rule) Fits(t time.Time) bool {
	day := t.Weekday()
	at := time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute + time.Duration(t.Second())*time.Second
	if r.From < r.To {
		return r.Days[day] && at >= r.From && at < r.To
	}
	return r.Days[day] && at >= r.From || r.Days[(day+6)%7] && at < r.To
}

// Limit is how many slots there are for all builds together, and why.
type Limit struct {
	Slots int    `json:"slots"`
	Kind  string `json:"kind"` // one of the kinds below
	Why   string `json:"why"`  // e.g. `schedule "Mon-Fri 09:00-18:00 2"`
}

// What a limit comes from.
const (
	KindAll      = "all"
	KindHand     = "hand"
	KindSchedule = "schedule"
	KindPresence = "presence"
	KindBattery  = "battery"
	KindOthers   = "others" // may change every second
	KindMemory   = "memory" // likewise
)

// Hand is a limit that somebody has set.
type Hand struct {
	Slots int       `json:"slots"`
	By    string    `json:"by"`
	At    time.Time `json:"at"`
	Until time.Time `json:"until,omitzero"` // zero: until it is taken back
}

// decider makes a limit of policy and signals. It remembers what it said, so that
// what lies on the border between two numbers does not change them all the time.
type decider struct {
	policy Policy
	total  int // slots
	cpus   int // processors

	taken int       // processors, in slots, that others are said to take
	cap   int       // while memory is short, or was of late; 0: it is not
	moved time.Time // when cap last changed, or memory was last short
}

// How memory that is short moves the limit.
const (
	squeezeEvery = time.Second     // while it is short, a quarter of the slots goes as often
	reliefAfter  = 5 * time.Second // without, one slot comes back as often
)

// decide tells the limit, which is at least 1. What somebody has set by hand
// stands for schedule, presence, battery and others; nobody can want a machine
// that has no memory left.
func (d *decider) decide(now time.Time, s Signals, hand *Hand) Limit {
	l := Limit{Slots: d.total, Kind: KindAll, Why: "all slots"}
	bound := func(n int, kind, why string) {
		if n < l.Slots {
			l = Limit{Slots: max(1, n), Kind: kind, Why: why}
		}
	}
	taken := d.others(s)
	if hand != nil {
		l = Limit{Slots: min(max(1, hand.Slots), d.total), Kind: KindHand, Why: "by hand: " + hand.By}
		if !hand.Until.IsZero() {
			layout := "15:04"
			if u := hand.Until.In(now.Location()); u.YearDay() != now.YearDay() || u.Year() != now.Year() {
				layout = "2006-01-02 15:04"
			}
			l.Why += ", until " + hand.Until.In(now.Location()).Format(layout)
		}
	} else {
		for _, r := range d.policy.Schedule {
			if r.Fits(now) {
				if r.Slots > 0 {
					bound(r.Slots, KindSchedule, fmt.Sprintf("schedule %q", r.Text))
				}
				break
			}
		}
		if d.policy.Present > 0 && s.Person && s.Idle < d.policy.AwayAfter {
			bound(d.policy.Present, KindPresence, "somebody is at this machine")
		}
		if d.policy.Battery > 0 && s.Battery {
			bound(d.policy.Battery, KindBattery, "on battery")
		}
		if taken > 0 {
			bound(d.total-taken, KindOthers, "others' processes take the rest")
		}
	}
	if n := d.squeeze(now, s, l.Slots); n > 0 {
		bound(n, KindMemory, "memory is short")
	}
	return l
}

// others is how many slots others' processes take: one more from three quarters
// of it on, one less when not half of it is left.
func (d *decider) others(s Signals) int {
	if !d.policy.Others || d.cpus < 1 {
		return 0
	}
	x := s.Others * float64(d.total) / float64(d.cpus)
	for x >= float64(d.taken)+0.75 && d.taken < d.total {
		d.taken++
	}
	for d.taken > 0 && x < float64(d.taken)-0.5 {
		d.taken--
	}
	return d.taken
}

// squeeze is the number of slots that memory leaves, 0 for any. now is the number
// that there would be without.
func (d *decider) squeeze(now time.Time, s Signals, slots int) int {
	since := now.Sub(d.moved)
	switch short := d.policy.MemoryStall > 0 && s.Stall >= d.policy.MemoryStall; {
	case short && d.cap == 0:
		d.cap, d.moved = slots-(slots+3)/4, now
	case short && since >= squeezeEvery:
		d.cap, d.moved = d.cap-(d.cap+3)/4, now
	case !short && d.cap > 0 && since >= reliefAfter:
		d.cap, d.moved = d.cap+1, now
		if d.cap >= d.total {
			d.cap = 0
		}
	}
	if d.cap == 0 && s.Stall < d.policy.MemoryStall || d.policy.MemoryStall <= 0 {
		return 0
	}
	d.cap = max(1, d.cap)
	return d.cap
}
