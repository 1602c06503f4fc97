package control

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/human"
	"github.com/schollz/progressbar/v3"
)

// minBar is the narrowest terminal that a bar fits into, in columns: the library
// takes 80 where it cannot ask the terminal, which is elsewhere as a rule.
const minBar = 80

// progress shows how far long work is: a bar on a terminal, plain lines every
// few seconds elsewhere.
type progress struct {
	out  io.Writer
	live bool

	mu   sync.Mutex // guards the following
	bar  *progressbar.ProgressBar
	step string
	line string // last that the tool said
	said time.Time
}

// newProgress shows progress beside a call's answer. Whoever asks for it ends it.
func newProgress(c *Call) *progress {
	return &progress{out: c.Err, live: c.Term.Live && (c.Term.Width == 0 || c.Term.Width >= minBar)}
}

func (p *progress) show(now images.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fresh := now.Step != p.step
	p.step = now.Step
	if fresh {
		p.line = ""
	}
	if now.Line != "" {
		p.line = human.Safe(now.Line, false)
	}
	if !p.live {
		p.plain(now, fresh)
		return
	}
	if fresh || p.bar == nil {
		p.finish()
		total := now.Total
		if total <= 0 || now.Done >= total {
			total = -1 // all is read and podman works on it: a spinner
		}
		// Not the library's own figures of bytes: its rate jumps by powers of
		// ten where progress comes five times a second.
		p.bar = progressbar.NewOptions64(total, progressbar.OptionSetWriter(p.out), progressbar.OptionSetDescription(now.Step),
			progressbar.OptionFullWidth(), progressbar.OptionClearOnFinish(),
			progressbar.OptionSetPredictTime(false), progressbar.OptionSetElapsedTime(true), progressbar.OptionSpinnerType(14))
	}
	if now.Done > 0 && now.Done < now.Total {
		p.bar.Set64(now.Done)
		p.bar.Describe(fmt.Sprintf("%s %s of %s", now.Step, human.Size(now.Done), human.Size(now.Total)))
		return
	}
	if p.line != "" {
		p.bar.Describe(shorten(now.Step+": "+p.line, minBar-18)) // the rest is the time, and what turns
	}
	p.bar.Add(1)
}

// plain writes a line now and then: those of a tool are many, and one shows that
// it is alive.
func (p *progress) plain(now images.Progress, fresh bool) {
	if !fresh && time.Since(p.said) < 5*time.Second {
		return
	}
	p.said = time.Now()
	switch {
	case now.Total > 0:
		fmt.Fprintf(p.out, "%s: %s of %s\n", now.Step, human.Size(now.Done), human.Size(now.Total))
	case now.Done > 0:
		fmt.Fprintf(p.out, "%s: %s\n", now.Step, human.Size(now.Done))
	case p.line != "":
		fmt.Fprintf(p.out, "%s: %s\n", now.Step, p.line)
	default:
		fmt.Fprintf(p.out, "%s ...\n", now.Step)
	}
}

func (p *progress) finish() {
	if p.bar != nil {
		p.bar.Finish()
		p.bar = nil
	}
}

// end takes the bar away, before anything else is written.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finish()
}
