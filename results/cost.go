package results

import (
	"strings"
	"time"
)

// Cost is what is known of what a build took besides its time.
type Cost struct {
	SourceSize int64         // bytes
	CPU        time.Duration // of all that ran in the workspace
	// Slots is how many jobs it could run at one time: its width in the record, see
	// quarry.Usage, else make's -j. 0: nobody knows.
	Slots float64
}

// costOf reads the cost out of a record's text, in the form that Marshal gives
// it: a hundred thousand records are looked at when a farm starts. What stands
// there in another form is not known.
func costOf(data string) (c Cost) {
	table := func(name string, set func(key, value string)) {
		_, rest, ok := strings.Cut(data, "\n["+name+"]\n")
		for ok && rest != "" && rest[0] != '[' {
			var line string
			line, rest, _ = strings.Cut(rest, "\n")
			if key, value, pair := strings.Cut(line, " = "); pair {
				set(key, value)
			}
		}
	}
	seconds := func(value string) time.Duration {
		f, _ := scanFloat(value)
		return time.Duration(min(f, 1e9) * float64(time.Second))
	}
	var jobs int64
	table("usage", func(key, value string) {
		switch key {
		case "user", "sys":
			c.CPU += seconds(value)
		case "source_size":
			c.SourceSize, _ = scanInt(value)
		case "width":
			c.Slots, _ = scanFloat(value)
		}
	})
	table("host", func(key, value string) {
		if key == "jobs" {
			jobs, _ = scanInt(value)
		}
	})
	if c.Slots < 1 || c.Slots > maxWidth {
		c.Slots = 0
		if jobs > 0 && jobs <= maxWidth {
			c.Slots = float64(jobs)
		}
	}
	return c
}
