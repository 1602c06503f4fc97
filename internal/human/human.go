// Package human writes sizes, times and tables for people.
package human

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Size writes a number of bytes, e.g. 312 B, 4.0 KiB, 1.2 GiB.
func Size(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n)/1024, 0
	for v >= 1023.95 && unit < 4 {
		v, unit = v/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTP"[unit])
}

// Duration writes a span of time with two figures that matter, e.g. 12 ms,
// 4.2 s, 41 s, 3 m 05 s, 2 h 10 m, 3 d 4 h.
func Duration(d time.Duration) string {
	switch s := d.Seconds(); {
	case d < 0:
		return "-" + Duration(-d)
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < time.Second-500*time.Microsecond:
		return fmt.Sprintf("%d ms", (d + 500*time.Microsecond).Milliseconds())
	case s < 9.95:
		return fmt.Sprintf("%.1f s", s)
	case s < 59.5:
		return fmt.Sprintf("%.0f s", s)
	case s < 3599.5:
		n := int(s + 0.5)
		return fmt.Sprintf("%d m %02d s", n/60, n%60)
	case s < 24*3600:
		n := int(s) / 60
		return fmt.Sprintf("%d h %02d m", n/60, n%60)
	default:
		n := int(s) / 3600
		return fmt.Sprintf("%d d %d h", n/24, n%24)
	}
}

// Ago writes how long before now a time was; "-" for the zero time.
func Ago(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := now.Sub(t).Truncate(time.Second)
	if d <= 0 {
		return "just now"
	}
	return Duration(d) + " ago"
}

// Count writes how many there are of something, e.g. 1 build, 3 builds.
func Count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// JSON writes v as every --json does: indented, and with < and > as they are.
func JSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// Colour is a terminal colour.
type Colour int

// The colours in use; Plain is none.
const (
	Plain  Colour = 0
	Bold   Colour = 1
	Dim    Colour = 2
	Red    Colour = 31
	Green  Colour = 32
	Yellow Colour = 33
	Blue   Colour = 34
	Cyan   Colour = 36
)

// Paint colours a text; nothing is added when on is false or c is Plain.
func Paint(s string, c Colour, on bool) string {
	if !on || c == Plain || s == "" {
		return s
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", c, s)
}

// Safe makes text that came from outside fit for a terminal: control
// characters, escape sequences among them, and broken UTF-8 become visible.
// It keeps tabs; newlines too when lines is true.
func Safe(s string, lines bool) string {
	ok := func(r rune) bool {
		return r == '\t' || r == '\n' && lines || r >= ' ' && r != 0x7f && !(r >= 0x80 && r < 0xa0) && r != utf8.RuneError
	}
	if strings.IndexFunc(s, func(r rune) bool { return !ok(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		case ok(r):
			b.WriteRune(r)
		case r == utf8.RuneError:
			_, n := utf8.DecodeRuneInString(s[i:])
			if n == 1 {
				fmt.Fprintf(&b, `\x%02x`, s[i])
			} else {
				b.WriteRune(r)
			}
		default:
			fmt.Fprintf(&b, `\x%02x`, r)
		}
	}
	return b.String()
}

// Table collects rows and writes them in columns. Cells may be painted.
type Table struct {
	Head  []string
	Right []int // columns, from 0, whose cells stand at their right edge: numbers
	Color bool
	// Width is of the terminal: with a head, the last column is cut where lines
	// would be longer, but not below 20. Where that would leave less than 40 of it,
	// it stands below each row instead, if it gets more room there: what is said
	// last, such as why a build failed, tells most. 0: nothing is cut.
	Width int
	rows  [][]cell
}

type cell struct {
	text  string
	paint Colour
}

// Cell is a table cell with a colour of its own.
func Cell(text string, c Colour) any { return cell{text, c} }

// Row adds a row of strings, numbers or Cells.
func (t *Table) Row(cells ...any) {
	row := make([]cell, len(cells))
	for i, c := range cells {
		if painted, ok := c.(cell); ok {
			row[i] = painted
		} else {
			row[i].text = fmt.Sprint(c)
		}
		row[i].text = Safe(row[i].text, false)
	}
	t.rows = append(t.rows, row)
}

// Len is the number of rows.
func (t *Table) Len() int { return len(t.rows) }

const indent = "    " // of what stands below its row

// cut leaves the first n characters of a text, and says so.
func cut(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

// WriteTo writes the table: two blanks between columns, none at a line's end.
func (t *Table) WriteTo(w io.Writer) (int64, error) {
	var widths []int
	measure := func(i int, s string) {
		for len(widths) <= i {
			widths = append(widths, 0)
		}
		widths[i] = max(widths[i], utf8.RuneCountInString(s))
	}
	for i, h := range t.Head {
		measure(i, h)
	}
	for _, row := range t.rows {
		for i, c := range row {
			measure(i, c.text)
		}
	}
	last, room, below := len(t.Head)-1, 0, false
	if t.Width > 0 && last >= 0 {
		room = t.Width
		for _, w := range widths[:last] {
			room -= w + 2
		}
		under := t.Width - len(indent)
		if below = last > 0 && room < min(40, widths[last]) && under >= room+20; below {
			room = under
		}
		room = max(room, 20)
	}
	var b strings.Builder
	var line func(row []cell)
	line = func(row []cell) {
		if below && len(row) > last {
			line(row[:last])
			if text := cut(row[last].text, room); text != "" {
				b.WriteString(indent + Paint(text, row[last].paint, t.Color) + "\n")
			}
			return
		}
		if room > 0 && len(row) > last {
			row = append([]cell{}, row...)
			row[last].text = cut(row[last].text, room)
		}
		for len(row) > 0 && strings.TrimSpace(row[len(row)-1].text) == "" {
			row = row[:len(row)-1]
		}
		for i, c := range row {
			fill := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text))
			if slices.Contains(t.Right, i) {
				b.WriteString(fill)
				fill = ""
			}
			b.WriteString(Paint(c.text, c.paint, t.Color))
			if i < len(row)-1 {
				b.WriteString(fill + "  ")
			}
		}
		b.WriteByte('\n')
	}
	if len(t.Head) > 0 {
		head := make([]cell, len(t.Head))
		for i, h := range t.Head {
			head[i] = cell{h, Dim}
		}
		if below {
			head = head[:last]
		}
		line(head)
	}
	for _, row := range t.rows {
		line(row)
	}
	n, err := io.WriteString(w, b.String())
	return int64(n), err
}
