package control

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/Morphux/quarry/internal/human"
	"github.com/spf13/pflag"
)

// liveFlags are those of a verb that shows how things stand, again and again.
func liveFlags(fs *pflag.FlagSet) {
	fs.IntP("count", "n", 0, "how often to print (default: once, on a terminal until q)")
	fs.Duration("every", 2*time.Second, "time between two looks")
}

// leastEvery is how often somebody may look: what is seen is up to half a
// second old anyway.
const leastEvery = 500 * time.Millisecond

// view is what one look is for.
type view struct {
	draw   bool // it takes a terminal's whole screen
	height int  // of that, in lines
	every  time.Duration
}

// note says behind the first line of a screen when that was, and how to leave.
func (v view) note(now time.Time, color bool) string {
	if !v.draw {
		return ""
	}
	return human.Paint(fmt.Sprintf("   %s, every %s, q ends", now.Format(time.TimeOnly), human.Duration(v.every)), human.Dim, color)
}

// live shows what look writes: on a terminal anew until q or ^C, elsewhere as often
// as the flags say.
func (c *Call) live(ctx context.Context, look func(c *Call, w io.Writer, v view) error) error {
	every, _ := c.Flags.GetDuration("every")
	count := c.int("count")
	switch {
	case every < leastEvery:
		return usage("%s: --every takes a time of %v at least, such as 5s", c.Verb.Name, leastEvery)
	case count < 0:
		return usage("%s: -n counts looks: it may not be negative", c.Verb.Name)
	}
	v := view{draw: c.Term.TTY && !c.JSON() && count == 0, height: c.Term.Height, every: every}
	if !v.draw {
		count = max(count, 1)
	}
	quit, stop := context.WithCancel(ctx)
	defer stop()
	if v.height <= 0 {
		v.height = 24
	}
	if v.draw {
		if c.In != nil {
			go watchKeys(c.In, stop)
		}
		// What is on the screen goes up, and is not lost. Nothing else of the
		// terminal's is changed for longer than one frame, so that a connection
		// that breaks leaves a terminal that works.
		if _, err := io.WriteString(c.Out, strings.Repeat("\n", v.height)); err != nil {
			return nil
		}
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for i := 1; ; i++ {
		var b bytes.Buffer
		if err := look(c, &b, v); err != nil {
			return err
		}
		text := b.Bytes()
		if v.draw {
			text = screen(b.String(), v.height)
		} else if i > 1 && !c.JSON() {
			text = append([]byte("\n"), text...)
		}
		if _, err := c.Out.Write(text); err != nil {
			return nil // whoever looked has gone
		}
		if i == count {
			return nil
		}
		select {
		case <-quit.Done():
			if v.draw {
				fmt.Fprintln(c.Out)
			}
			return nil
		case <-tick.C:
		}
	}
}

// screen puts a text in the place of what a terminal shows: from its upper left
// corner, lines cut at the right and below, the rest wiped.
func screen(text string, height int) []byte {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	lines = lines[:min(len(lines), max(1, height-1))]
	var b bytes.Buffer
	b.WriteString("\x1b[H\x1b[?7l")
	for _, l := range lines {
		b.WriteString(l + "\x1b[K\n")
	}
	b.WriteString("\x1b[J\x1b[?7h")
	return b.Bytes()
}

// watchKeys ends a live view when somebody types q. ^C comes as a byte where no
// kernel stands between the terminal and us.
func watchKeys(in io.Reader, quit func()) {
	for b := make([]byte, 64); ; {
		n, err := in.Read(b)
		if bytes.ContainsAny(b[:n], "qQ\x03\x04") {
			quit()
			return
		}
		if err != nil { // ^D, or the terminal has gone
			quit()
			return
		}
	}
}
