package notify

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/human"
)

// Bounds of a letter: nobody reads more, and what comes from builds is hostile.
const (
	maxSubject   = 120 // characters
	maxLine      = 300 // bytes of a line that comes from elsewhere
	maxExcerpt   = 20
	maxExplained = 5   // failures with an excerpt; of others there is a line
	maxListed    = 100 // lines of a list
	maxSince     = 20
)

// writer writes the letters of one batch.
type writer struct {
	n       *Notifier
	ctx     context.Context
	batch   *batch
	now     time.Time
	people  map[string]Person
	origin  *quarry.Build // whose change broke the others; nil: none, or not known
	reports map[int64]*Report
}

func (w *writer) may(user string, k Kind) bool {
	p, ok := w.people[user]
	return ok && p.wants(k)
}

func (w *writer) report(b Build) *Report {
	r := w.reports[b.Number]
	if r == nil {
		r = w.n.report(w.ctx, b)
		w.reports[b.Number] = r
	}
	return r
}

// letter begins one.
func (w *writer) letter(k Kind, user, subject string, b Build) *Letter {
	l := &Letter{ID: w.n.letterID(k, w.batch, user), User: user, Kind: k, Made: w.now.UTC().Truncate(time.Second),
		Subject: "[quarry] " + subject, Channel: cmp.Or(w.batch.Cause.Channel, b.Channel),
		Package: b.Package, Version: b.Version, Arch: b.Arch, Build: b.Number}
	if b.Packager.User == user {
		l.Email = b.Packager.Email
	}
	l.Subject = oneLine(l.Subject)
	if n := utf8.RuneCountInString(l.Subject); n > maxSubject {
		l.Subject = string([]rune(l.Subject)[:maxSubject-3]) + "..."
	}
	return l
}

// page is the text of a letter.
type page struct{ strings.Builder }

// say adds a paragraph, wrapped.
func (p *page) say(format string, args ...any) {
	if p.Len() > 0 {
		p.WriteByte('\n')
	}
	used := 0
	for _, word := range strings.Fields(oneLine(fmt.Sprintf(format, args...))) {
		switch n := utf8.RuneCountInString(word); {
		case used == 0:
			used = n
		case used+1+n > 72:
			p.WriteByte('\n')
			used = n
		default:
			p.WriteByte(' ')
			used += 1 + n
		}
		p.WriteString(word)
	}
	p.WriteByte('\n')
}

// lines adds lines as they are, below a word on what they are.
func (p *page) lines(what string, list []string) {
	if len(list) == 0 {
		return
	}
	p.say("%s", what)
	for _, line := range list {
		p.WriteString("    " + safe(line) + "\n")
	}
}

// list adds lines as they are, below what was said.
func (p *page) list(list []string) {
	p.WriteByte('\n')
	for _, line := range list {
		p.WriteString("    " + safe(line) + "\n")
	}
}

// end adds who writes, why, and how to have less of it.
func (p *page) end(user, why string) string {
	p.WriteString("\n-- ")
	p.say("Written by the build farm Quarry, %s To get less of this, have an admin say quarry key add %s --mail failures, or none.", why, user)
	return p.String()
}

// oneLine makes text from elsewhere one line, with nothing in it that a terminal
// or a mail program obeys.
func oneLine(s string) string { return visible(strings.Join(strings.Fields(s), " ")) }

// bidi are characters that make text read otherwise than it is.
var bidi = regexp.MustCompile("[\u200e\u200f\u2028-\u202e\u2066-\u2069]")

func visible(s string) string {
	s = bidi.ReplaceAllStringFunc(strings.ToValidUTF8(s, "\ufffd"), func(r string) string { return fmt.Sprintf("\\u%04x", []rune(r)[0]) })
	return human.Safe(s, false)
}

// safe makes a line of a build's output fit for a letter.
func safe(s string) string {
	s = visible(strings.TrimRight(s, "\r\n \t"))
	if len(s) > maxLine {
		s = strings.ToValidUTF8(s[:maxLine], "") + " ..."
	}
	return s
}

// position is what compilers begin an error with.
var position = regexp.MustCompile(`^(\S+:\d+(:\d+)?: *|error: *|fatal error: *|\S*(gcc|cc1|ld|make|clang)\S*: *)+`)

var missing = regexp.MustCompile(`([^\s:]+): No such file or directory`)

// brief says what went wrong in a few words.
func brief(r *Report) string {
	f, what := r.Failure, safe(r.Failure.Error)
	if i := slices.IndexFunc(r.Log, func(line string) bool { return strings.Contains(line, "error: ") }); what == "" && i >= 0 {
		what = safe(r.Log[i]) // nobody has explained it
	}
	if m := missing.FindStringSubmatch(what); m != nil && f.Class == "missing-header" {
		return "missing header " + m[1]
	}
	if short := position.ReplaceAllString(what, ""); short != "" {
		what = short
	}
	if what = oneLine(cmp.Or(what, f.Message)); utf8.RuneCountInString(what) > 70 {
		what = string([]rune(what)[:67]) + "..."
	}
	return what
}

// links says where more is to be found.
func (w *writer) links(b Build, f quarry.Failure) (list []string) {
	if w.n.opts.URL != "" {
		url := fmt.Sprintf("%s/builds/%d", w.n.opts.URL, b.Number)
		if f.Line > 0 {
			url += fmt.Sprintf("#L%d", f.Line)
		}
		list = append(list, url)
	}
	if w.n.opts.SSH != "" {
		list = append(list, fmt.Sprintf("%s log %d", w.n.opts.SSH, b.Number), fmt.Sprintf("%s why %d", w.n.opts.SSH, b.Number))
	}
	return list
}

// explain adds what is known of builds that fail alike: of one release, on
// several archs.
func (p *page) explain(w *writer, alike []Build, alone bool) {
	b := alike[0]
	r := w.report(b)
	f := r.Failure
	if !alone {
		var archs []string
		for _, b := range alike {
			archs = append(archs, b.Arch)
		}
		p.say("%s %s on %s:", b.Package, b.Version, joined(sortedUnique(archs)))
	}
	p.say("What happened: %s", sentence(oneLine(f.Message)))
	excerpt := f.Excerpt
	what := "From the log:"
	if f.Line > 0 {
		what = fmt.Sprintf("From the log, around line %d:", f.Line)
	}
	if len(excerpt) == 0 {
		excerpt, what = r.Log, "The end of the log:"
	}
	p.lines(what, excerpt[max(0, len(excerpt)-maxExcerpt):])
	if f.Hint != "" {
		p.say("%s", sentence(oneLine(f.Hint)))
	}
	switch since := r.Since; {
	case len(since) > maxSince:
		since = append(slices.Clone(since[:maxSince]), fmt.Sprintf("and %d more", len(since)-maxSince))
		fallthrough
	case len(since) > 0:
		p.lines("Changed since the last success ("+oneLine(r.Last)+"):", since)
	case r.Last != "":
		p.say("Nothing that the farm knows of has changed since the last success (%s).", r.Last)
	}
	if cmd := cmp.Or(r.Reproduce, f.Reproduce); cmd != "" {
		p.lines("To see it again:", []string{cmd})
	}
	var links []string
	for _, b := range alike {
		links = append(links, w.links(b, w.report(b).Failure)...)
	}
	p.lines("The whole log:", links)
}

func sentence(s string) string {
	if s == "" || strings.ContainsAny(s[len(s)-1:], ".!?:") {
		return s
	}
	return s + "."
}

// explainAll explains the first few, and names the others.
func (p *page) explainAll(w *writer, list []item) {
	var groups [][]Build
	for _, it := range list {
		i := slices.IndexFunc(groups, func(g []Build) bool {
			return g[0].Package == it.Build.Package && g[0].Version == it.Build.Version && brief(w.report(g[0])) == brief(w.report(it.Build))
		})
		if i < 0 {
			groups = append(groups, nil)
			i = len(groups) - 1
		}
		groups[i] = append(groups[i], it.Build)
	}
	for _, g := range groups[:min(len(groups), maxExplained)] {
		p.explain(w, g, len(groups) == 1)
	}
	var rest []string
	for _, g := range groups[min(len(groups), maxExplained):] {
		for _, b := range g {
			rest = append(rest, w.line(b))
		}
	}
	p.lines("Besides:", bounded(rest))
}

// bounded cuts a long list.
func bounded(list []string) []string {
	if len(list) <= maxListed {
		return list
	}
	return append(slices.Clone(list[:maxListed]), fmt.Sprintf("and %d more", len(list)-maxListed))
}

// line is a failure in a line.
func (w *writer) line(b Build) string {
	return fmt.Sprintf("build %d: %s %s %s: %s", b.Number, b.Package, b.Version, b.Arch, brief(w.report(b)))
}

// owned is each failure in a line, with who packages it.
func (w *writer) owned(list []item) []string {
	lines := make([]string, 0, min(len(list), maxListed+1))
	for i, it := range list {
		if i == maxListed { // each costs a look at a record
			return append(lines, fmt.Sprintf("and %d more", len(list)-i))
		}
		lines = append(lines, fmt.Sprintf("%s (%s)", w.line(it.Build), cmp.Or(it.Build.Packager.User, "nobody's")))
	}
	return lines
}

// same gives the archs, if all items are of one release.
func same(list []item) (archs []string, ok bool) {
	for _, it := range list {
		if b := it.Build; b.Package != list[0].Build.Package || b.Version != list[0].Build.Version || b.Channel != list[0].Build.Channel {
			return nil, false
		}
		archs = append(archs, it.Build.Arch)
	}
	return sortedUnique(archs), true
}

// packages names the releases of items, each once.
func packages(list []item) (out []string) {
	for _, it := range list {
		out = append(out, it.Build.Package+" "+it.Build.Version)
	}
	return sortedUnique(out)
}

// since names the release whose change is the cause.
func (w *writer) since() string {
	if w.origin == nil {
		return "a dependency has changed"
	}
	return w.origin.Package + " " + w.origin.Version
}

// fails writes to the packager of what fails.
func (w *writer) fails(user string, list []item) *Letter {
	kind := list[0].Kind
	after := ""
	if kind == Breaks {
		after = " since " + w.since()
	}
	subject := fmt.Sprintf("%d releases fail%s: %s", len(packages(list)), after, names(packages(list), 3))
	if archs, ok := same(list); ok {
		b := list[0].Build
		subject = fmt.Sprintf("%s %s fails on %s%s: %s", b.Package, b.Version, joined(archs), after, brief(w.report(b)))
	}
	l := w.letter(kind, user, subject, list[0].Build)
	if archs, ok := same(list); ok {
		l.Arch = strings.Join(archs, " ")
	}
	var p page
	switch archs, one := same(list); {
	case one && kind == Breaks:
		p.say("%s %s was fine on %s (channel %s) and is not any more. %s", list[0].Build.Package, list[0].Build.Version, joined(archs), list[0].Build.Channel, w.because(false))
	case one:
		p.say("%s %s, which you have released to %s, fails on %s.", list[0].Build.Package, list[0].Build.Version, list[0].Build.Channel, joined(archs))
	case kind == Breaks:
		p.say("%s of yours were fine (channel %s) and are not any more. %s", count(len(packages(list)), "release"), list[0].Build.Channel, w.because(true))
	default:
		p.say("%s of yours fail on %s.", count(len(packages(list)), "release"), list[0].Build.Channel)
	}
	p.explainAll(w, list)
	l.Body = p.end(user, "once, and again when this is fixed, as you are the packager.")
	return l
}

// because says what led to the rebuild of one package, or of several.
func (w *writer) because(several bool) string {
	again, same := "It was built again", "Your package has not changed."
	if several {
		again, same = "They were built again", "Your packages have not changed."
	}
	if w.origin == nil {
		return again + " as a dependency has changed. " + same
	}
	o := w.origin
	who := cmp.Or(o.Packager.Name, o.Packager.User, "somebody")
	return fmt.Sprintf("%s as %s %s (build %d, by %s) offers something else to build against than before. %s %s has been told of it too.",
		again, o.Package, o.Version, o.Number, who, same, who)
}

// culprit writes to whose release broke others.
func (w *writer) culprit(user string, list []item) *Letter {
	o := w.origin
	pkgs := packages(list)
	l := w.letter(Breaks, user, fmt.Sprintf("%s %s broke %s: %s", o.Package, o.Version, count(len(pkgs), "package"), names(pkgs, 4)),
		Build{Target: o.Target(), Number: o.Number, Packager: o.Packager})
	var p page
	p.say("%s %s, which you have released to %s (build %d), offers something else to build against than before. What is built with it was built again, and of that %s any more:",
		o.Package, o.Version, o.Channel, o.Number, map[bool]string{true: "one release does not build", false: fmt.Sprintf("%d releases do not build", len(pkgs))}[len(pkgs) == 1])
	p.list(w.owned(list))
	whose := "Its packager has"
	if len(pkgs) > 1 {
		whose = "Their packagers have"
	}
	p.say("%s been told as well. Either what you have changed can be taken back, or they have to follow.", whose)
	p.explainAll(w, list[:min(len(list), 2)])
	l.Body = p.end(user, "once, as the change was yours.")
	return l
}

// crowd writes of what concerns more people than may be told: to the admins, and
// to whose release was the cause.
func (w *writer) crowd(list []item, culprit string, people int) (out []written) {
	to := map[string]bool{}
	for user, p := range w.people {
		if p.Admin && p.wants(Breaks) {
			to[user] = true
		}
	}
	if culprit != "" {
		to[culprit] = true
	}
	pkgs := packages(list)
	what := "the farm has built much anew"
	var b Build
	if w.origin != nil {
		what = "after " + w.origin.Package + " " + w.origin.Version
		b = Build{Target: w.origin.Target(), Number: w.origin.Number, Packager: w.origin.Packager}
	} else if w.batch.Cause.Arch != "" {
		what = "on " + w.batch.Cause.Arch
	}
	for _, user := range slices.Sorted(maps.Keys(to)) {
		l := w.letter(Breaks, user, fmt.Sprintf("%s fail %s, of %d people", count(len(pkgs), "release"), what, people), b)
		var p page
		p.say("%s of %d people concern one cause (%s, channel %s), and no more than %d are written to for one (mail.max_recipients). So only the admins know of it, and who caused it, if that is known.",
			count(len(w.batch.Items), "build"), people, what, w.batch.Cause.Channel, w.n.opts.MaxRecipients)
		p.lines("What fails now and did not before:", w.owned(list))
		l.Body = p.end(user, map[bool]string{true: "once, as the change was yours.", false: "once, as you are an admin."}[user == culprit])
		out = append(out, written{l, nil})
	}
	return out
}

// fixed writes to those who know of failures that are over.
func (w *writer) fixed() (out []written) {
	list := map[string][]item{}
	for _, it := range w.batch.Items {
		if it.Kind != Fixed {
			continue
		}
		for _, u := range it.Users {
			list[u] = append(list[u], it)
		}
	}
	if len(list) > w.n.opts.MaxRecipients {
		return nil
	}
	for _, user := range slices.Sorted(maps.Keys(list)) {
		items := list[user]
		if !w.may(user, Fixed) {
			continue
		}
		b := items[0].Build
		subject := fmt.Sprintf("%d releases build again: %s", len(packages(items)), names(packages(items), 4))
		archs, one := same(items)
		if one {
			subject = fmt.Sprintf("%s %s builds again on %s", b.Package, b.Version, joined(archs))
		}
		l := w.letter(Fixed, user, subject, b)
		if one {
			l.Arch = strings.Join(archs, " ")
		}
		var p page
		if one {
			p.say("%s %s is built on %s (channel %s).", b.Package, b.Version, joined(archs), b.Channel)
		} else {
			p.say("%s are built again (channel %s).", count(len(packages(items)), "release"), b.Channel)
		}
		var lines []string
		for _, it := range items {
			line := fmt.Sprintf("build %d: %s %s %s", it.Build.Number, it.Build.Package, it.Build.Version, it.Build.Arch)
			if t, ok := w.knew(it.Build, user); ok {
				line += fmt.Sprintf(", after build %d of %s had failed", t.Build, t.Version)
				if l.Reply == "" {
					l.Reply = t.Message
				}
			}
			lines = append(lines, line)
		}
		p.list(bounded(lines))
		if w.n.opts.URL != "" && one {
			p.lines("More:", []string{fmt.Sprintf("%s/builds/%d", w.n.opts.URL, b.Number)})
		}
		l.Body = p.end(user, "as it told you of the failure.")
		out = append(out, written{l, items})
	}
	return out
}

func (w *writer) knew(b Build, user string) (Told, bool) {
	for _, t := range w.n.state.told(b.Target) {
		if t.User == user {
			return t, true
		}
	}
	return Told{}, false
}

// campaign writes the report of a mass rebuild to who began it or, where that is
// nobody who can be written to, to the admins.
func (w *writer) campaign() (out []written) {
	if w.n.opts.Campaign == nil {
		return nil
	}
	c, err := w.n.opts.Campaign(w.ctx, w.batch.Cause.ID)
	if err != nil {
		w.n.log.Warn("a mass rebuild cannot be reported", "id", w.batch.Cause.ID, "err", err)
		return nil
	}
	to := []string{c.By}
	if !w.may(c.By, Mass) {
		to = nil
		for user, p := range w.people {
			if p.Admin && p.wants(Mass) {
				to = append(to, user)
			}
		}
		slices.Sort(to)
	}
	for _, user := range to {
		l := w.letter(Mass, user, fmt.Sprintf("mass rebuild %s: %d of %d built, %d newly fail", c.ID, c.Succeeded, c.Total, len(c.New)), Build{})
		var p page
		how := "is over"
		if c.Cancelled != "" {
			how = "was called off by " + c.Cancelled
		}
		p.say("The mass rebuild %s %s: of %s, %d succeeded and %d failed.", c.ID, how, count(c.Total, "build"), c.Succeeded, c.Failed)
		if c.Reason != "" {
			p.say("It was begun by %s: %s", c.By, sentence(c.Reason))
		}
		var lines []string
		for _, f := range c.New {
			line := fmt.Sprintf("build %d: %s (%s)", f.Build, f.Target, f.Channel)
			if len(f.Since) > 0 {
				line += ", since " + names(f.Since, 3)
			}
			lines = append(lines, line)
		}
		if len(lines) > 0 {
			p.lines("These did not fail before. Their packagers have not been told:", bounded(lines))
		} else {
			p.say("Nothing fails that did not fail before.")
		}
		if w.n.opts.SSH != "" {
			p.lines("All of it:", []string{w.n.opts.SSH + " rebuild --mass --report " + c.ID})
		}
		l.Body = p.end(user, "once, as mass rebuilds are reported to who begins them.")
		out = append(out, written{l, nil})
	}
	return out
}
