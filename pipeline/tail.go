package pipeline

import (
	"bytes"
	"strings"
	"unicode/utf8"
)

// What a failure's record keeps of the log.
const (
	tailLines     = 200
	tailLineBytes = 2000
)

// tailWriter keeps the last lines of a log, in bounded memory whatever is
// written: a build may print without end and without a newline.
type tailWriter struct {
	ring  [tailLines]string
	next  int
	full  bool
	line  []byte
	shown bool // part of the line was cut off
}

func (t *tailWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		part := p
		if i >= 0 {
			part = p[:i]
		}
		if room := tailLineBytes - len(t.line); len(part) > room {
			t.line = append(t.line, part[:room]...)
			t.shown = true
		} else {
			t.line = append(t.line, part...)
		}
		if i < 0 {
			break
		}
		t.end()
		p = p[i+1:]
	}
	return n, nil
}

func (t *tailWriter) end() {
	line := strings.TrimSuffix(string(t.line), "\r")
	if t.shown {
		line += "…"
	}
	if !utf8.ValidString(line) {
		line = strings.ToValidUTF8(line, "\uFFFD")
	}
	t.ring[t.next] = line
	t.next = (t.next + 1) % tailLines
	t.full = t.full || t.next == 0
	t.line, t.shown = t.line[:0], false
}

// lines gives what is kept, oldest first.
func (t *tailWriter) lines() []string {
	if len(t.line) > 0 {
		t.end()
	}
	if !t.full {
		return append([]string(nil), t.ring[:t.next]...)
	}
	return append(append([]string(nil), t.ring[t.next:]...), t.ring[:t.next]...)
}
