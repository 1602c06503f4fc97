package explain

import (
	"bytes"
	"math/bits"
	"regexp"
	"slices"
	"strconv"

	"github.com/Morphux/quarry"
)

// How many lines an excerpt has around the error.
const (
	linesBefore = 5
	linesAfter  = 14
)

// maxClosely bounds the bytes of a log that one rule's regular expression sees,
// whatever is printed: they are a hundred times slower than the rest.
const maxClosely = 2 << 20

// near is how many lines before a job of make ended its reason may stand.
const near = 50

// forgiven is how many lines before make said that it ignores a job's status
// are not held against the build.
const forgiven = 10

// candidate is a line that may explain the failure, with those around it. Its
// memory is used again when a later line takes its place.
type candidate struct {
	line   int64 // 0: there is none
	text   []byte
	around [linesBefore + 1 + linesAfter][]byte
	n      int // of around that are filled
}

// sighting is what has been seen of one rule.
type sighting struct {
	before *candidate // before the first job of make that failed
	after  *candidate
	sure   bool // before is what that job ended of, by its status
}

func (s *sighting) best() *candidate {
	if s.before != nil {
		return s.before
	}
	return s.after
}

// Scanner reads the log of an attempt. It is an io.Writer, whose Write never fails.
type Scanner struct {
	step string // whose output counts; "": whichever is last
	skip int64  // lines yet to be passed over

	begun  []byte // of the line that has not ended, maxLine at most
	number int64  // of the line that is read, from 1
	buf    []byte // for plain

	recent [linesBefore][]byte // the lines before, a ring by number
	fresh  bool                // a program has printed since last was taken

	found  []sighting   // by rule
	closed ruleSet      // rules that need not be looked for
	open   []*candidate // that want lines after them
	job    int64        // line where the first job of make has failed; 0: none has
	seen   []int        // by rule: bytes that were looked at closely

	last    candidate // the last line that a program has printed
	lastJob candidate // the same before the first job that failed
	verdict candidate // what the farm says of the failure
}

func newScanner(step string, from int64) *Scanner {
	return &Scanner{step: step, skip: max(0, from), found: make([]sighting, len(rules)), seen: make([]int, len(rules)+1)}
}

// Write takes a part of the log.
func (s *Scanner) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		switch {
		case s.skip > 0:
			if i < 0 {
				return n, nil
			}
			s.skip--
			s.number++
		case i < 0:
			s.keep(p)
			return n, nil
		case len(s.begun) == 0 && i <= maxLine:
			s.read(p[:i])
		default:
			s.keep(p[:i])
			s.end()
		}
		p = p[i+1:]
	}
	return n, nil
}

// keep keeps a part of a line, as much as there is room for; what a progress bar
// has drawn over makes room.
func (s *Scanner) keep(p []byte) {
	if len(s.begun)+len(p) > maxLine {
		if i := bytes.LastIndexByte(p[:len(p)-1], '\r'); i >= 0 {
			s.begun, p = s.begun[:0], p[i+1:]
		}
	}
	s.begun = append(s.begun, p[:min(len(p), maxLine-len(s.begun))]...)
}

// end ends the line that was begun.
func (s *Scanner) end() {
	if len(s.begun) > 0 {
		s.read(s.begun)
		s.begun = s.begun[:0]
	}
}

var (
	farmMark    = []byte("==> ")
	farmVerdict = []byte("==> failed: ")
	farmSays    = []byte("==> quarry: ")
	stepEnds    = []byte("ended with status ")
)

// read takes one line.
func (s *Scanner) read(line []byte) {
	s.number++
	text := line
	if bytes.IndexByte(line, 0x1b) >= 0 || bytes.IndexByte(line, '\r') >= 0 {
		s.buf = plain(line, s.buf)
		text = s.buf
	}
	ours := bytes.HasPrefix(text, farmMark)
	if len(s.open) > 0 {
		s.open = slices.DeleteFunc(s.open, func(c *candidate) bool {
			if ours && c != &s.verdict {
				return true
			}
			c.around[c.n] = copyOf(c.around[c.n], text, maxShown+1)
			c.n++
			return c.n == len(c.around)
		})
	}
	switch {
	case ours:
		s.takeLast()
		s.farm(text)
	case len(text) > 0:
		s.fresh = true
		s.look(text)
	}
	r := &s.recent[s.number%linesBefore]
	*r = copyOf(*r, text, maxShown+1)
}

func copyOf(to, text []byte, most int) []byte {
	return append(to[:0], text[:min(len(text), most)]...)
}

// farm takes a line that the farm has written, or a build that plays farm: it
// only fools itself.
func (s *Scanner) farm(text []byte) {
	switch {
	case bytes.HasPrefix(text, farmVerdict), bytes.HasPrefix(text, farmSays):
		s.take(&s.verdict, text)
		s.follow(&s.verdict)
	case bytes.HasPrefix(s.verdict.text, farmVerdict):
		// It is over: what comes is the paths of an escape.
	case s.begins(text):
		// What other steps have printed is no reason.
		clear(s.found)
		s.closed, s.open, s.job = ruleSet{}, nil, 0
		s.last.line, s.lastJob.line, s.fresh = 0, 0, false
	}
}

// begins reports whether a line says that the step begins: "==> make: make -j2".
func (s *Scanner) begins(text []byte) bool {
	name, rest, ok := bytes.Cut(text[len(farmMark):], []byte(": "))
	if !ok || bytes.HasPrefix(rest, stepEnds) {
		return false
	}
	if s.step != "" {
		return string(name) == s.step
	}
	switch string(name) {
	case quarry.StepBefore, quarry.StepPatches, quarry.StepConfigure, quarry.StepMake, quarry.StepTest, quarry.StepInstall, quarry.StepAfter:
		return true
	}
	return false
}

// look looks what a program's line says.
func (s *Scanner) look(text []byte) {
	if text = said(text); len(text) == 0 {
		return
	}
	set := table.find(text)
	if set.empty() {
		return
	}
	if set.has(len(rules)) && s.ofJob(text) {
		return
	}
	set = set.without(s.closed)
	for w := range set {
		for set[w] != 0 {
			i := w*64 + bits.TrailingZeros64(set[w])
			set[w] &= set[w] - 1
			if i < len(rules) {
				s.try(i, text)
			}
		}
	}
}

var (
	checking  = []byte("checking ")
	dots      = []byte("... ")
	status    = []byte("-- ")
	wentRight = [][]byte{[]byte("PASS: "), []byte("PASSED "), []byte("ok "), []byte("SKIP: "), []byte("XFAIL: "), []byte("Passed")}
)

// said takes from a line what is no word of the program's own: what a check
// looks for (what comes of it may be an error), source that a compiler shows,
// and tests that went right.
func said(text []byte) []byte {
	switch c := text[0]; {
	case c == 'c' && bytes.HasPrefix(text, checking):
		i := bytes.LastIndex(text, dots)
		if i < 0 {
			return nil
		}
		return text[i+len(dots):]
	case c == '-' && bytes.HasPrefix(text, status):
		return nil
	case c == ' ' || c >= '0' && c <= '9':
		i := 0 // "   12 | int x;"
		for i < len(text) && (text[i] == ' ' || text[i] >= '0' && text[i] <= '9') {
			i++
		}
		if i < len(text) && text[i] == '|' {
			return nil
		}
	case c == 'P' || c == 'o' || c == 'S' || c == 'X':
		for _, p := range wentRight {
			if bytes.HasPrefix(text, p) {
				return nil
			}
		}
	}
	return text
}

// Make says how its jobs end, and with a status of which it goes on, too.
var (
	jobWords   = words("] error ", "*** [")
	jobFailed  = regexp.MustCompile(`^\S*make(?:\[\d+\])?: \*\*\* \[.*\] (?:Error (\d+)|[A-Z])`)
	jobIgnored = regexp.MustCompile(`^\S*make(?:\[\d+\])?: \[.*\] Error \d+ \(ignored\)`)
)

// ofJob takes what make says of a job; false when the line may be more than that.
func (s *Scanner) ofJob(text []byte) bool {
	if !s.closely(len(rules), text) {
		return false
	}
	if jobIgnored.Match(text) {
		s.forgive()
		return true
	}
	m := jobFailed.FindSubmatch(text)
	if m == nil || s.job > 0 {
		return false
	}
	s.takeLast()
	s.job = s.number
	s.last.copyTo(&s.lastJob)
	code, _ := strconv.Atoi(string(m[1]))
	s.blame(code)
	return code != 0 // "Killed" is a reason, "Error 1" is none
}

// forgive forgets what a job has printed of which make has ignored the status.
func (s *Scanner) forgive() {
	for i := range s.found {
		c := s.found[i].before
		if s.job == 0 && c != nil && c.line > s.number-forgiven && rules[i].class != "network" {
			s.open = slices.DeleteFunc(s.open, func(o *candidate) bool { return o == c })
			s.found[i].before = nil
		}
	}
}

// blame makes sure of what a shell's exit status stands for.
func (s *Scanner) blame(code int) {
	for i := range s.found {
		r := &rules[i]
		if c := s.found[i].before; c != nil && r.status != 0 && r.ends(code) && c.line > s.number-near {
			s.found[i].sure = true
		}
	}
}

// ends reports whether a status is what comes after the rule's lines.
func (r *rule) ends(code int) bool {
	if r.status == byItself { // SIGILL, SIGABRT, SIGBUS, SIGFPE, SIGSEGV
		return code == 132 || code >= 134 && code <= 136 || code == 139
	}
	return r.status == code
}

// closely reports whether a rule may look closely at one more line.
func (s *Scanner) closely(rule int, text []byte) bool {
	s.seen[rule] += len(text)
	return s.seen[rule] <= maxClosely
}

// try looks whether a line fits a rule.
func (s *Scanner) try(i int, text []byte) {
	r := &rules[i]
	if r.fits != nil {
		if !s.closely(i, text) || !r.fits.Match(text) {
			return
		}
	}
	place := &s.found[i].before
	if s.job > 0 {
		place = &s.found[i].after
	}
	switch {
	case *place == nil:
		*place = new(candidate)
	case !r.latest():
		return
	}
	s.take(*place, text)
	s.follow(*place)
	if s.job > 0 && !r.latest() {
		s.closed.add(i)
	}
}

// latest reports whether of lines that fit the last counts, and not the first.
func (r *rule) latest() bool { return r.status != 0 || r.worth == weak }

// take makes a candidate of the line that is read, with those before it.
func (s *Scanner) take(c *candidate, text []byte) {
	c.line, c.n = s.number, 0
	c.text = copyOf(c.text, text, maxLine)
	for i := max(1, s.number-linesBefore); i < s.number; i++ {
		c.around[c.n] = copyOf(c.around[c.n], s.recent[i%linesBefore], maxShown+1)
		c.n++
	}
	c.around[c.n] = copyOf(c.around[c.n], text, maxShown+1)
	c.n++
}

// follow has a candidate get the lines after it.
func (s *Scanner) follow(c *candidate) {
	if !slices.Contains(s.open, c) {
		s.open = append(s.open, c)
	}
}

// takeLast keeps the last line that a program has printed, where there is a new one.
func (s *Scanner) takeLast() {
	if !s.fresh {
		return
	}
	s.fresh = false
	c := &s.last
	c.line, c.n = 0, 0
	for i := max(1, s.number-linesBefore); i < s.number; i++ {
		text := s.recent[i%linesBefore]
		c.around[c.n] = copyOf(c.around[c.n], text, maxShown+1)
		c.n++
		if len(bytes.TrimSpace(text)) > 0 && !bytes.HasPrefix(text, farmMark) {
			c.line, c.text = i, copyOf(c.text, text, maxLine)
		}
	}
}

func (c *candidate) copyTo(to *candidate) {
	to.line, to.n, to.text = c.line, c.n, copyOf(to.text, c.text, maxLine)
	for i := range c.n {
		to.around[i] = copyOf(to.around[i], c.around[i], maxShown+1)
	}
}

// choose gives the line that explains the failure, and its rule; nil when there
// is none. code is the exit status of the step.
func (s *Scanner) choose(code int) (*rule, *candidate) {
	if s.job == 0 {
		s.blame(code)
	}
	var best *candidate
	var rule *rule
	most := 0
	for i := range s.found {
		r := &rules[i]
		for _, c := range []*candidate{s.found[i].before, s.found[i].after} {
			if c == nil {
				continue
			}
			worth := r.worth
			if s.found[i].sure && c == s.found[i].before {
				worth = certain + 2
			}
			if r.class == "test" && s.step == quarry.StepTest && worth >= likely {
				worth += 5 // tests print errors that they expect
			}
			if c == s.found[i].after {
				worth -= certain - likely + 2
			}
			if worth > most || worth == most && c.line < best.line {
				most, best, rule = worth, c, r
			}
		}
	}
	return rule, best
}
