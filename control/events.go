package control

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/Morphux/quarry/events"
	"github.com/Morphux/quarry/internal/human"
	"github.com/spf13/pflag"
)

func (f *Farm) eventsVerb() *Verb {
	return &Verb{Name: "events", Looks: true, Short: "Say what has happened, and what happens",
		Long: "Without --since: the last few. With --since N: those after number N, so that who\n" +
			"notes the number of the last event that it has dealt with misses none, whatever\n" +
			"happened to the connection. With -f it goes on with what happens.\n\n" +
			"Lines for people leave out what build.step and build.recording tell, unless\n" +
			"--kind asks for them. --json gives all, one object a line. Where events are asked\n" +
			"for that are not kept any more, one of kind gap comes first and tells which.",
		Example: "events\nevents -f --kind 'build.failed' --package 'lib*'\nevents -f --json --since 4711",
		Flags: func(fs *pflag.FlagSet) {
			fs.BoolP("follow", "f", false, "go on with what happens")
			fs.Int64("since", 0, "those after this number (0: all that are kept)")
			fs.IntP("count", "n", 0, "how many at most, then it ends; without --since, how many of the last (10)")
			fs.String("kind", "", "only of these kinds, a pattern, e.g. 'build.*'")
			fs.String("package", "", "only about these packages, a pattern, e.g. 'lib*'")
		},
		Run: f.events}
}

func (f *Farm) events(ctx context.Context, c *Call) error {
	if f.Events == nil {
		return fmt.Errorf("events: this farm keeps none")
	}
	kind, pkg := c.string("kind"), c.string("package")
	for _, p := range []string{kind, pkg} {
		if err := events.CheckPattern(p); err != nil {
			return usage("events: pattern %.80q does not match names: write it like 'build.*' or 'lib*'", p)
		}
	}
	since, _ := c.Flags.GetInt64("since")
	count, follow := c.int("count"), c.bool("follow")
	given := c.Flags.Changed("since")
	switch {
	case given && since < 0:
		return usage("events: --since %d is no number of an event: use 0 for all that are kept", since)
	case count < 0:
		return usage("events: -n %d is no count", count)
	}
	wanted := func(e *events.Event) bool {
		if kind == "" && !c.JSON() && (e.Kind == events.Step || e.Kind == events.Recording) {
			return false
		}
		return e.Match(kind, pkg)
	}
	if !given {
		last := count
		if last == 0 {
			last = 10
		}
		list, end, err := f.lastEvents(last, wanted)
		if err != nil {
			return err
		}
		for i := range list {
			if err := c.event(&list[i]); err != nil {
				return err
			}
		}
		if !follow {
			return nil
		}
		since, count = end, 0
	}
	until := f.Events.Last()
	if !follow && since == until {
		return nil
	}
	told := 0
	for e, err := range f.Events.Follow(ctx, since) {
		if err != nil {
			return err
		}
		if wanted(&e) {
			if err := c.event(&e); err != nil {
				return err
			}
			if told++; told == count {
				return nil
			}
		}
		if !follow && e.N >= until {
			return nil
		}
	}
	return nil
}

// lastEvents gives the last events that are wanted, and the number up to which it
// has looked.
func (f *Farm) lastEvents(n int, wanted func(*events.Event) bool) (list []events.Event, end int64, err error) {
	first := f.Events.First()
	end = f.Events.Last()
	// Backwards in steps that grow, as what is wanted may be rare.
	for to, step := end, int64(4*n+64); to >= first && len(list) < n; step *= 2 {
		from := max(first-1, to-step)
		var some []events.Event
		for at := from; at < to; {
			part, err := f.Events.Read(at, int(min(to-at, 1000)))
			if err != nil {
				return nil, end, err
			}
			if len(part) == 0 {
				break
			}
			for _, e := range part {
				if at = e.N; e.N <= to && e.Kind != events.Gap && wanted(&e) {
					some = append(some, e)
				}
			}
		}
		list = append(some, list...)
		to = from
	}
	return list[max(0, len(list)-n):], end, nil
}

// event writes one event.
func (c *Call) event(e *events.Event) error {
	if c.JSON() {
		_, err := c.Out.Write(e.Line())
		return err
	}
	text := human.Safe(e.Text, false)
	if c.Term.Color {
		if colour, ok := eventColours[e.Kind]; ok {
			text = human.Paint(text, colour, true)
		}
	}
	head := fmt.Sprintf("%d  %s  ", e.N, e.At.Local().Format(time.DateTime))
	_, err := io.WriteString(c.Out, human.Paint(head, human.Dim, c.Term.Color)+text+"\n")
	return err
}

var eventColours = func() map[string]human.Colour {
	m := map[string]human.Colour{events.Paused: human.Yellow, events.Trouble: human.Red, events.Gap: human.Yellow, events.GroupLanded: human.Green}
	for state, colour := range colours {
		if state.Ended() {
			m["build."+string(state)] = colour
		}
	}
	return m
}()
