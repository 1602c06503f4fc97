package pages

import (
	"bytes"
	"fmt"
	"html/template"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/cgroup"
	"github.com/Morphux/quarry/internal/human"
)

// view is what a template gets.
type view struct {
	*page
	Site *Site
	Now  time.Time
}

// render makes a page into HTML.
func (s *Site) render(p *page) ([]byte, error) { return s.renderPart(p, "layout.html") }

// renderPart makes one of the templates that a page's file, or the parts of all,
// define.
func (s *Site) renderPart(p *page, name string) ([]byte, error) {
	t := s.templates[p.Template]
	if t == nil {
		return nil, fmt.Errorf("page %q has no template", p.Template)
	}
	var b bytes.Buffer
	if err := t.ExecuteTemplate(&b, name, view{p, s, time.Now()}); err != nil {
		return nil, fmt.Errorf("page %q cannot be made: %w", p.Title, err)
	}
	return b.Bytes(), nil
}

// funcs are what templates may call.
func (s *Site) funcs() template.FuncMap {
	return template.FuncMap{
		"static":   func(name string) string { return s.address[name] },
		"when":     when,
		"duration": human.Duration,
		"seconds":  func(f float64) string { return human.Duration(time.Duration(f * float64(time.Second))) },
		"size":     human.Size,
		"known":    known,
		"count":    human.Count,
		"number":   number,
		"safe":     visible,
		"telling":  telling,
		"short":    short,
		"stand":    stand,
		"said":     said,
		"tail":     func(list []string, n int) []string { return list[max(0, len(list)-n):] },
		"badge":    badge,
		"build":    buildURL,
		"package":  packageURL,
		"record":   s.recordURL,
		"list":     func(v ...any) []any { return v },
		"add":      func(a, b int64) int64 { return a + b },
		"sub":      func(a, b int64) int64 { return a - b },
		"plus":     func(a, b int) int { return a + b },
		"mod":      func(a, b int) int { return a % b },
		"int":      func(n int64) int { return int(n) },
		"state":    func(s string) quarry.State { return quarry.State(s) },
		"lower":    strings.ToLower,
		"millis":   time.Duration.Milliseconds,
		"stamp":    func(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) },
		"clock":    clock,
		"took":     took,
		"cpu":      func(s quarry.Step) time.Duration { return s.User + s.Sys },
	}
}

// when shows a time: how long ago it was, and in its title which time it is.
// The script keeps the text true.
func when(t time.Time) template.HTML {
	if t.IsZero() {
		return "–"
	}
	t = t.UTC().Truncate(time.Second)
	iso := t.Format(time.RFC3339)
	//nolint:gosec // nothing in it comes from outside
	return template.HTML(`<time datetime="` + iso + `" title="` + t.Format("2006-01-02 15:04:05") + ` UTC">` + ago(t, time.Now()) + `</time>`)
}

// clock shows how long something has been going on. The script has it tick.
func clock(since time.Time) template.HTML {
	//nolint:gosec // nothing in it comes from outside
	return template.HTML(`<span class="clock" data-since="` + since.UTC().Format(time.RFC3339Nano) + `">` + human.Duration(max(0, time.Since(since))) + `</span>`)
}

// took is how long a build that has ended took; one that was put back has no try
// that counts, and took nothing.
func took(b quarry.Build) string {
	if b.Attempt == 0 || b.Started.IsZero() || b.Ended.Before(b.Started) {
		return "–"
	}
	return human.Duration(b.Ended.Sub(b.Started))
}

// ago is coarser than [human.Ago]: a page that says the same need not be sent
// again. The script says it in the same words.
func ago(t, now time.Time) string {
	d := now.Sub(t)
	future := d < 0
	if future {
		d = -d
	}
	var s string
	switch {
	case d < time.Minute:
		if future {
			return "in a moment"
		}
		return "just now"
	case d < time.Hour:
		s = fmt.Sprintf("%d min", d/time.Minute)
	case d < 48*time.Hour:
		s = fmt.Sprintf("%d h", d/time.Hour)
	case d < 60*24*time.Hour:
		s = fmt.Sprintf("%d days", d/(24*time.Hour))
	default:
		return t.Format("2006-01-02")
	}
	if future {
		return "in " + s
	}
	return s + " ago"
}

// known shows a number of bytes that may not be known.
func known(n cgroup.Count) string {
	if !n.Known {
		return "–"
	}
	return human.Size(n.N)
}

// number groups the digits of a number by three.
func number(n any) string {
	s := fmt.Sprint(n)
	sign := ""
	if rest, ok := strings.CutPrefix(s, "-"); ok {
		sign, s = "-", rest
	}
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "\u202f" + s[i:]
	}
	return sign + s
}

// visible shows text from outside in one line, with nothing in it that hides or
// turns other text around.
func visible(s string) string {
	s = human.Safe(s, false)
	if strings.IndexFunc(s, turns) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if turns(r) {
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// short is the beginning of a hash.
func short(s string) string {
	s = strings.TrimPrefix(s, "sha256:")
	return s[:min(len(s), 12)]
}

// shapes tell states apart without colours.
var shapes = map[quarry.State]string{
	quarry.Waiting: "◌", quarry.Queued: "○", quarry.Running: "▶", quarry.Recording: "▶",
	quarry.Succeeded: "✓", quarry.Failed: "✗", quarry.Errored: "!", quarry.Cancelled: "–", quarry.Obsolete: "↷",
}

// badge shows a state by its word, a shape and a colour.
func badge(state any) template.HTML {
	st := quarry.State(fmt.Sprint(state))
	shape, ok := shapes[st]
	if !ok {
		shape = "·"
	}
	class := "other"
	if ok {
		class = string(st)
	}
	//nolint:gosec // the word is escaped, the rest is ours
	return template.HTML(`<span class="badge ` + class + `"><i aria-hidden="true">` + shape + `</i> ` + template.HTMLEscapeString(string(st)) + `</span>`)
}

func buildURL(number int64) string { return "/builds/" + strconv.FormatInt(number, 10) }

func packageURL(name string) string { return "/packages/" + url.PathEscape(name) }

// recordURL is the page of one release on one arch. The default channel is not
// named.
func (s *Site) recordURL(t quarry.Target) string {
	return s.on(t.Channel, packageURL(t.Package)+"/"+url.PathEscape(t.Version)+"/"+url.PathEscape(t.Arch))
}

// telling reports whether a line of an excerpt is the one that explains a failure.
func telling(line, failure string) bool {
	return failure != "" && strings.TrimLeft(line, " \t") == failure
}
