package jobs

import (
	"strings"
	"testing"
	"time"
)

func rules(t testing.TB, texts ...string) (list []Rule) {
	t.Helper()
	for _, s := range texts {
		r, err := ParseRule(s)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, r)
	}
	return list
}

// on is a time in the week of Monday, 2 November 2026.
func on(t testing.TB, s string) time.Time {
	t.Helper()
	at, err := time.ParseInLocation("Mon 2 15:04:05", s, time.UTC)
	if err != nil {
		t.Fatal(err)
	}
	at = time.Date(2026, 11, at.Day(), at.Hour(), at.Minute(), at.Second(), 0, time.UTC)
	if got := at.Format("Mon"); !strings.HasPrefix(s, got) {
		t.Fatalf("%s is a %s", s, got)
	}
	return at
}

func TestRules(t *testing.T) {
	for _, tt := range []struct {
		rule string
		in   []string
		out  []string
	}{
		{"22:00-07:00 all", []string{"Mon 2 22:00:00", "Tue 3 06:59:59", "Tue 3 00:00:00"}, []string{"Mon 2 21:59:59", "Mon 2 07:00:00", "Mon 2 12:00:00"}},
		{"Mon-Fri 09:00-18:00 2", []string{"Mon 2 09:00:00", "Fri 6 17:59:59"}, []string{"Sat 7 12:00:00", "Sun 8 12:00:00", "Mon 2 08:59:59", "Mon 2 18:00:00"}},
		{"fri 22:00-07:00 4", []string{"Fri 6 23:00:00", "Sat 7 06:00:00"}, []string{"Fri 6 06:00:00", "Sat 7 23:00:00", "Sun 8 06:00:00"}},
		{"Sat,Sun all", []string{"Sat 7 00:00:00", "Sun 8 23:59:59"}, []string{"Fri 6 23:59:59", "Mon 9 00:00:00"}},
		{"Sat-Mon 3", []string{"Sat 7 12:00:00", "Sun 8 12:00:00", "Mon 9 12:00:00"}, []string{"Fri 6 12:00:00", "Tue 3 12:00:00"}},
		{"Mon-Mon,Wed 3", []string{"Mon 2 12:00:00", "Wed 4 12:00:00"}, []string{"Tue 3 12:00:00", "Sun 8 12:00:00"}},
		{"else 2", []string{"Mon 2 00:00:00", "Sun 8 23:59:59"}, nil},
		{"5", []string{"Mon 2 00:00:00"}, nil},
		{"00:00-24:00 5", []string{"Mon 2 00:00:00", "Mon 2 23:59:59"}, nil},
		{"12:00-12:00 5", []string{"Mon 2 00:00:00", "Mon 2 12:00:00", "Mon 2 13:00:00"}, nil},
		{"Mon 18:00-24:00 5", []string{"Mon 2 23:59:59"}, []string{"Tue 3 00:00:00"}},
	} {
		r := rules(t, tt.rule)[0]
		for _, s := range tt.in {
			if !r.Fits(on(t, s)) {
				t.Errorf("%q does not fit %s", tt.rule, s)
			}
		}
		for _, s := range tt.out {
			if r.Fits(on(t, s)) {
				t.Errorf("%q fits %s", tt.rule, s)
			}
		}
		if want := len(tt.out) == 0; r.Always() != want {
			t.Errorf("%q always: %v", tt.rule, r.Always())
		}
	}
	for _, bad := range []string{"", " ", "all night", "22:00-07:00", "22:00-07:00 0", "22:00-07:00 -1", "22:00-07:00 5000", "25:00-07:00 2", "22:60-07:00 2",
		"24:00-07:00 2", "22-7 2", "22:00 2", "22:00-07:00 2 3", "Mo 2", "Mon- 2", "Mon,, 2", "-Mon 2", "else 22:00-07:00 2", "1e3", "22:00-07:00-08:00 2", "+2:00-07:00 2", "else"} {
		_, err := ParseRule(bad)
		if err == nil || !strings.Contains(err.Error(), "write it as") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzParseRule(f *testing.F) {
	for _, s := range []string{"22:00-07:00 all", "Mon-Fri 09:00-18:00 2", "else 2", "Sat,Sun-Tue 4"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRule(s)
		if err != nil {
			return
		}
		again, err := ParseRule(r.Text)
		if err != nil || again != r {
			t.Errorf("%q is %+v, and what it is written as %+v (%v)", s, r, again, err)
		}
		if r.Slots < 0 || r.Slots > MaxSlots {
			t.Errorf("%q gives %d slots", s, r.Slots)
		}
		r.Fits(time.Now())
	})
}

func TestDecide(t *testing.T) {
	p := Policy{
		Schedule: rules(t, "22:00-07:00 all", "Mon-Fri 09:00-18:00 4", "else 8"),
		Present:  3, AwayAfter: 10 * time.Minute, Others: true, Battery: 2, MemoryStall: 10,
	}
	day, night, evening := on(t, "Mon 2 12:00:00"), on(t, "Mon 2 23:00:00"), on(t, "Mon 2 20:00:00")
	for _, tt := range []struct {
		name  string
		now   time.Time
		sig   Signals
		hand  *Hand
		slots int
		kind  string
		why   string
	}{
		{"night", night, Signals{}, nil, 16, KindAll, "all slots"},
		{"day", day, Signals{}, nil, 4, KindSchedule, `schedule "Mon-Fri 09:00-18:00 4"`},
		{"evening", evening, Signals{}, nil, 8, KindSchedule, `schedule "else 8"`},
		{"somebody", night, Signals{Person: true, Idle: time.Minute}, nil, 3, KindPresence, "somebody is at this machine"},
		{"nobody any more", night, Signals{Person: true, Idle: 10 * time.Minute}, nil, 16, KindAll, "all slots"},
		{"nobody knows", night, Signals{Idle: 0}, nil, 16, KindAll, "all slots"},
		{"battery", day, Signals{Battery: true, Person: true}, nil, 2, KindBattery, "on battery"},
		{"others", night, Signals{Others: 5}, nil, 11, KindOthers, "others' processes take the rest"},
		{"others take all", night, Signals{Others: 50}, nil, 1, KindOthers, "others' processes take the rest"},
		{"others, less than the schedule", day, Signals{Others: 5}, nil, 4, KindSchedule, `schedule "Mon-Fri 09:00-18:00 4"`},
		{"by hand", day, Signals{Battery: true, Person: true, Others: 9}, &Hand{Slots: 12, By: "anna"}, 12, KindHand, "by hand: anna"},
		{"by hand for a time", day, Signals{}, &Hand{Slots: 2, By: "anna", Until: day.Add(2 * time.Hour)}, 2, KindHand, "by hand: anna, until 14:00"},
		{"by hand for long", day, Signals{}, &Hand{Slots: 2, By: "anna", Until: day.Add(20 * time.Hour)}, 2, KindHand, "by hand: anna, until 2026-11-03 08:00"},
		{"by hand, too much", day, Signals{}, &Hand{Slots: 100, By: "anna"}, 16, KindHand, "by hand: anna"},
		{"memory", night, Signals{Stall: 30}, nil, 12, KindMemory, "memory is short"},
		{"memory, by hand", night, Signals{Stall: 30}, &Hand{Slots: 8, By: "anna"}, 6, KindMemory, "memory is short"},
	} {
		d := decider{policy: p, total: 16, cpus: 16}
		if got := d.decide(tt.now, tt.sig, tt.hand); got.Slots != tt.slots || got.Kind != tt.kind || got.Why != tt.why {
			t.Errorf("%s: %+v, want %d (%s: %s)", tt.name, got, tt.slots, tt.kind, tt.why)
		}
	}
	free := decider{total: 16, cpus: 16}
	if got := free.decide(day, Signals{Others: 9, Stall: 99, Battery: true, Person: true}, nil); got.Slots != 16 {
		t.Errorf("without a policy: %+v", got)
	}
}

// TestOthers: a load about half a processor does not move the limit all the time.
func TestOthers(t *testing.T) {
	d := decider{policy: Policy{Others: true}, total: 4, cpus: 4}
	now := time.Unix(0, 0)
	want := func(load float64, slots int) {
		t.Helper()
		if got := d.decide(now, Signals{Others: load}, nil); got.Slots != slots {
			t.Errorf("with %.2f processors taken there are %d slots, want %d", load, got.Slots, slots)
		}
	}
	want(0.7, 4)
	want(0.8, 3)
	want(0.6, 3)
	want(0.51, 3)
	want(0.4, 4)
	want(0.7, 4)
	want(3.9, 1)
	want(4.2, 1)
	want(0, 4)
	// Slots are not processors.
	d = decider{policy: Policy{Others: true}, total: 8, cpus: 4}
	want(1, 6)
}

// TestSqueeze: memory that is short takes slots away quickly, and gives them back
// slowly.
func TestSqueeze(t *testing.T) {
	d := decider{policy: Policy{MemoryStall: 10}, total: 16, cpus: 16}
	now := time.Unix(0, 0)
	var got []int
	look := func(stall float64, after time.Duration) {
		now = now.Add(after)
		got = append(got, d.decide(now, Signals{Stall: stall}, nil).Slots)
	}
	look(0, 0)
	look(50, time.Second)
	look(50, 300*time.Millisecond)
	for range 12 {
		look(50, time.Second)
	}
	if s := got[len(got)-1]; got[0] != 16 || got[1] != 12 || got[2] != 12 || got[3] != 9 || s != 1 {
		t.Errorf("slots went %v", got)
	}
	got = nil
	for range 40 {
		look(9, 2500*time.Millisecond)
	}
	if got[0] != 1 || got[1] != 2 || got[3] != 3 || got[39] != 16 {
		t.Errorf("slots came back %v", got)
	}
	look(10, time.Second)
	if got[40] != 12 {
		t.Errorf("and then %v", got[40])
	}
	// One slot is the least, on any machine.
	small := decider{policy: Policy{MemoryStall: 10}, total: 1, cpus: 1}
	for i := range 20 {
		stall := float64(99 * (i / 10 % 2))
		if l := small.decide(now.Add(time.Duration(i)*6*time.Second), Signals{Stall: stall}, nil); l.Slots != 1 {
			t.Errorf("one slot became %+v", l)
		}
	}
}
