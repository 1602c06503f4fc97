package mirror

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/Morphux/quarry/results"
)

// form is what a value looks like.
type form string

const (
	isNumber form = "a whole number"
	isString form = "a string"
	isList   form = "a list of strings"
	isTime   form = "a time"
	isOther  form = "something else"
)

// value is what stands behind a key.
type value struct {
	form   form
	number int64
	text   string
	list   []string
	time   time.Time
}

func (v value) is(f form) error {
	if v.form != f {
		return fmt.Errorf("it is %s, and must be %s", v.form, f)
	}
	return nil
}

// parseValue reads what may stand behind a key; see doc/mirror.md. What keys to
// come may hold besides is of the form isOther.
func parseValue(s string) (v value, err error) {
	switch {
	case s == "":
		return v, errors.New("it has no value")
	case s[0] == '\'' || s[0] == '"':
		text, rest, err := parseString(s)
		if err == nil && rest != "" {
			err = fmt.Errorf("there is more behind the string: %.40q", rest)
		}
		return value{form: isString, text: text}, err
	case s[0] == '[':
		v.form = isList
		v.list, err = parseStrings(s)
		return v, err
	case s[0] >= '0' && s[0] <= '9':
		if n, err := strconv.ParseInt(s, 10, 64); err == nil && (s[0] != '0' || s == "0") {
			return value{form: isNumber, number: n}, nil
		}
		if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
			return value{form: isTime, time: t.UTC()}, nil
		}
	}
	return value{form: isOther}, nil
}

// parseString reads a string at the beginning of s.
func parseString(s string) (text, rest string, err error) {
	quote := s[0]
	end := strings.IndexByte(s[1:], quote)
	if quote == '"' && strings.IndexByte(s, '\\') >= 0 {
		return parseEscaped(s)
	}
	if end < 0 {
		return "", "", fmt.Errorf("the string has no end: %.40q", s)
	}
	text, rest = s[1:end+1], s[end+2:]
	return strings.Clone(text), rest, checkText(text)
}

func parseEscaped(s string) (text, rest string, err error) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			text = b.String()
			return text, s[i+1:], checkText(text)
		case c != '\\':
			b.WriteByte(c)
		case i+1 == len(s):
			return "", "", errors.New("the string ends within an escape")
		case s[i+1] == '"' || s[i+1] == '\\':
			i++
			b.WriteByte(s[i])
		case s[i+1] == 'u' && i+5 < len(s):
			n, err := strconv.ParseUint(s[i+2:i+6], 16, 16)
			if err != nil || !utf8.ValidRune(rune(n)) {
				return "", "", fmt.Errorf("\\%.5s is no escape", s[i+1:])
			}
			b.WriteRune(rune(n))
			i += 5
		default:
			return "", "", fmt.Errorf("\\%.1s is no escape", s[i+1:])
		}
	}
	return "", "", fmt.Errorf("the string has no end: %.40q", s)
}

// checkText holds what comes from elsewhere to what may be shown on a terminal.
func checkText(s string) error {
	for i := 0; i < len(s); i++ {
		if s[i] < 0x20 || s[i] == 0x7f {
			return fmt.Errorf("a control character is in %.40q", s)
		}
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("%.40q is not UTF-8", s)
	}
	return nil
}

func parseStrings(s string) (list []string, err error) {
	for rest := s[1:]; ; {
		if rest == "]" {
			return list, nil
		}
		if len(list) > 0 {
			var ok bool
			if rest, ok = strings.CutPrefix(rest, ", "); !ok {
				return nil, fmt.Errorf("the list goes wrong at %.40q", rest)
			}
		}
		if rest == "" || rest[0] != '\'' && rest[0] != '"' {
			return nil, fmt.Errorf("the list goes wrong at %.40q", rest)
		}
		var item string
		if item, rest, err = parseString(rest); err != nil {
			return nil, err
		}
		list = append(list, item)
	}
}

// writer makes a list's text.
type writer struct{ b []byte }

func (w *writer) string(key, s string) {
	if s != "" {
		w.b = append(append(w.b, key...), " = "...)
		w.quoted(s)
		w.b = append(w.b, '\n')
	}
}

func (w *writer) number(key string, n int64) {
	if n != 0 {
		w.b = append(append(w.b, key...), " = "...)
		w.b = append(strconv.AppendInt(w.b, n, 10), '\n')
	}
}

func (w *writer) list(key string, list []string) {
	if len(list) == 0 {
		return
	}
	w.b = append(append(w.b, key...), " = ["...)
	for i, s := range list {
		if i > 0 {
			w.b = append(w.b, ", "...)
		}
		w.quoted(s)
	}
	w.b = append(w.b, "]\n"...)
}

// quoted writes a string. Control characters are none of what a record's words
// can have, but where one came through all the same it becomes a blank.
func (w *writer) quoted(s string) {
	if checkText(s) != nil {
		s = strings.Map(func(r rune) rune {
			if r < 0x20 || r == 0x7f {
				return ' '
			}
			return r
		}, strings.ToValidUTF8(s, "\ufffd"))
	}
	if strings.IndexByte(s, '\'') < 0 {
		w.b = append(append(append(w.b, '\''), s...), '\'')
		return
	}
	w.b = append(w.b, '"')
	for i := 0; i < len(s); i++ {
		if s[i] == '"' || s[i] == '\\' {
			w.b = append(w.b, '\\')
		}
		w.b = append(w.b, s[i])
	}
	w.b = append(w.b, '"')
}

// head is what stands before the entries of a list.
func (l *List) head() string {
	w := writer{b: []byte("schema = 1\n")}
	w.string("channel", l.Channel)
	w.string("arch", l.Arch)
	w.b = append(w.b, '\n')
	return string(w.b)
}

// head is what stands before the entries of a delta.
func (d *Delta) head() string {
	w := writer{b: []byte("schema = 1\n")}
	w.string("channel", d.Channel)
	w.string("arch", d.Arch)
	w.string("kind", string(d.Kind))
	w.string("old", d.Old)
	w.string("new", d.New)
	w.list("removed", d.Removed)
	w.b = append(w.b, '\n')
	return string(w.b)
}

// entry writes a package into the list of an arch, or with arch "" into its
// package's file, which says more.
func (w *writer) entry(e *results.Entry, arch string) {
	w.b = append(w.b, entryLine+"\n"...)
	w.string("name", e.Package)
	w.string("version", e.Version)
	if e.Arch != arch {
		w.string("arch", e.Arch)
	}
	w.number("revision", e.Revision)
	w.string("description", e.Description())
	w.string("category", e.Category())
	w.list("needed", e.Needed())
	w.list("recommended", e.Recommended())
	w.list("optional", e.Optional())
	w.list("provides", e.Provides())
	w.string("artifact", e.Artifact())
	w.number("artifact_size", e.ArtifactSize)
	w.number("installed_size", e.Size)
	if arch == "" {
		w.string("abi", e.ABI())
		w.number("build", e.Build)
		if t := e.Ended(); !t.IsZero() {
			w.b = append(w.b, "ended = "...)
			w.b = append(t.AppendFormat(w.b, "2006-01-02T15:04:05.999Z07:00"), '\n')
		}
		w.string("source", e.Source())
		w.string("record", e.Blob())
	}
	w.b = append(w.b, '\n')
}
