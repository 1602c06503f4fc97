package jobs

import "time"

// Policy says how many of a machine's slots builds may take, and when.
type Policy struct {
	Schedule    []Rule        // the first that fits counts
	Present     int           // slots while somebody works at the machine; 0: all
	AwayAfter   time.Duration // without a key pressed somebody is away
	Others      bool          // the processors that others' processes take are not ours
	Battery     int           // slots without mains; 0: all
	MemoryStall float64       // percent of the time that something waits for memory, above which there are fewer slots; 0: never
}

// Rule is one line of a schedule.
type Rule struct {
	Days     [7]bool       // by time.Weekday, on which it begins
	From, To time.Duration // since midnight; To <= From: it ends on the next day
	Slots    int           // 0: all
	Text     string        // as it was written
}

// ParseRule reads "22:00-07:00 all", "Mon-Fri 09:00-18:00 2", "Sat,Sun all" or
// "else 2".
func ParseRule(text string) (Rule, error) {
	return Rule{}, nil
}

// Limit is how many slots there are for all builds, and why.
type Limit struct {
	Slots int    `json:"slots"`
	Why   string `json:"why"` // e.g. "all processors", "schedule Mon-Fri 09:00-18:00 2"
}

// Hand is a limit that somebody has set.
type Hand struct {
	Slots int       `json:"slots"`
	By    string    `json:"by"`
	At    time.Time `json:"at"`
	Until time.Time `json:"until,omitzero"` // zero: until it is taken back
}
