package results

import (
	"strings"
	"time"
)

// Cost is what a build took besides its time. What is not known is 0.
type Cost struct {
	SourceSize int64         // bytes
	CPU        time.Duration // of all that ran in the workspace
	SlotTime   time.Duration // see quarry.Usage, as Width
	Width      float64
	Jobs, CPUs int // make's -j, and processors of the machine
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
	table("usage", func(key, value string) {
		switch key {
		case "user", "sys":
			c.CPU += seconds(value)
		case "source_size":
			c.SourceSize, _ = scanInt(value)
		case "slot_seconds":
			c.SlotTime = seconds(value)
		case "width":
			if n, _ := scanFloat(value); n >= 1 && n <= maxWidth {
				c.Width = n
			}
		}
	})
	table("host", func(key, value string) {
		n, _ := scanInt(value)
		switch {
		case n > maxWidth:
		case key == "jobs":
			c.Jobs = int(n)
		case key == "cpus":
			c.CPUs = int(n)
		}
	})
	return c
}
