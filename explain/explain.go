// Package explain finds out of the log of a failed build what went wrong: which
// kind of trouble, on which line, and what to do about it. It is pure: text in,
// a [Finding] out. The log is read once, in bounded memory and linear time,
// whatever a build has printed.
//
// A line explains a failure when it fits one of the rules. Most lines are never
// looked at closely: a rule has words, of which one is in each line that fits,
// and one pass finds the words of all rules. Logs of parallel makes are mixed:
// what counts is the first error of the most telling kind before the first job
// of make that failed, in the step that failed.
package explain

import (
	"cmp"
	"fmt"
	"io"
	"strings"

	"github.com/Morphux/quarry"
)

// Input is a failed attempt.
type Input struct {
	Failure *quarry.Failure // what the farm knows of it
	Log     io.Reader       // the build's log
	From    int64           // lines of it that are of earlier attempts
}

// Finding is what the log says. Its text is fit to be shown, each line of it 300
// bytes long at most.
type Finding struct {
	Class   string   // e.g. missing-header: see [Classes]
	Error   string   // first error line
	Line    int64    // of it, from 1; 0 when there is none
	Excerpt []string // lines around it, 20 at most
	Hint    string   // what to do, one sentence
}

// Into fills what a failure says of itself.
func (f Finding) Into(to *quarry.Failure) {
	to.Class, to.Error, to.Line, to.Excerpt, to.Hint = f.Class, f.Error, f.Line, f.Excerpt, f.Hint
}

// Classify explains a failure. A log that cannot be read to its end is explained
// as far as it goes.
func Classify(in Input) Finding {
	s := newScanner(in.Failure.Step, in.From)
	// What cannot be read is not there.
	_, _ = io.Copy(s, in.Log)
	return s.Finding(in.Failure)
}

// NewScanner makes a scanner for a log as it is written, of one attempt.
func NewScanner() *Scanner { return newScanner("", 0) }

// Finding explains a failure, at the end of the log.
func (s *Scanner) Finding(f *quarry.Failure) Finding {
	s.end()
	s.number++ // the line after the last
	s.takeLast()
	cause := f.Cause
	switch cause {
	case quarry.CauseTime, quarry.CauseSilence, quarry.CauseLog:
		// What it printed last says what it was at.
		return s.finding(string(cause), &s.last, classHints[string(cause)])
	case quarry.CauseMemory, quarry.CauseProcs, quarry.CauseDisk:
		for i, r := range rules {
			if c := s.found[i].best(); r.class == string(cause) && c != nil {
				return s.finding(r.class, c, classHints[r.class])
			}
		}
		return s.finding(string(cause), &s.last, classHints[string(cause)])
	case quarry.CauseEscape, quarry.CauseOutput, quarry.CauseRecipe:
		class := string(cause)
		if cause == quarry.CauseEscape && f.Step == quarry.StepInstall && installed(f.Paths) {
			class = "destdir"
		}
		out := s.finding(class, &s.verdict, classHints[class])
		out.Error = safe([]byte(f.Message))
		return out
	}
	r, c := s.choose(f.Status)
	if c == nil {
		return s.unknown(f)
	}
	hint := r.expand(c.text)
	if n := s.sighted("network"); r.class != "network" && n > 0 && n < c.line {
		hint += fmt.Sprintf(" Before, on line %d, it tried to reach the network, which no build has.", n)
	}
	return s.finding(r.class, c, hint)
}

// unknown is about a log in which nothing is known.
func (s *Scanner) unknown(f *quarry.Failure) Finding {
	c := &s.last
	if s.lastJob.line > 0 {
		c = &s.lastJob
	}
	class := Unknown
	if c.line == 0 { // nothing was printed: it was not even begun
		c = &s.verdict
		switch f.Status {
		case 126:
			class = "not-executable"
		case 127:
			class = "missing-program"
		}
	}
	return s.finding(class, c, classHints[class])
}

// sighted gives the line where a class was seen first; 0: nowhere.
func (s *Scanner) sighted(class string) (line int64) {
	for i := range s.found {
		if c := s.found[i].best(); c != nil && rules[i].class == class && (line == 0 || c.line < line) {
			line = c.line
		}
	}
	return line
}

// installed reports whether paths outside of the staging folder are those of an
// install that does not know of it.
func installed(paths []string) bool {
	for _, p := range paths {
		for _, dir := range []string{"/usr/", "/etc/", "/opt/", "/bin/", "/sbin/", "/lib/", "/lib64/", "/var/lib/", "/include/", "/share/"} {
			if strings.HasPrefix(strings.TrimLeft(p, `"`), dir) {
				return true
			}
		}
	}
	return false
}

func (s *Scanner) finding(class string, c *candidate, hint string) Finding {
	f := Finding{Class: class, Hint: hint}
	if c.line == 0 {
		return f
	}
	f.Line, f.Error = c.line, strings.TrimLeft(safe(c.text), " \t")
	for i := range c.n {
		f.Excerpt = append(f.Excerpt, safe(c.around[i]))
	}
	for len(f.Excerpt) > 0 && strings.TrimSpace(f.Excerpt[len(f.Excerpt)-1]) == "" {
		f.Excerpt = f.Excerpt[:len(f.Excerpt)-1]
	}
	return f
}

// expand writes a rule's hint for a line.
func (r *rule) expand(text []byte) string {
	if r.fits == nil || r.hint == "" {
		return cmp.Or(r.hint, classHints[r.class])
	}
	at := r.fits.FindSubmatchIndex(text)
	named := false
	for i := 3; i < len(at); i += 2 {
		named = named || at[i] > at[i-1]
	}
	if at == nil || !named && strings.Contains(r.hint, "$1") {
		return classHints[r.class]
	}
	return safe(r.fits.Expand(nil, []byte(r.hint), text, at))
}
