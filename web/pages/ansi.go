package pages

import (
	"bytes"
	"fmt"
	"html"
	"strconv"
	"unicode/utf8"
)

// maxLine is how many bytes of one line of a log are shown: one may be endless.
// The raw log has them all.
const maxLine = 4 << 10

// style is what SGR sequences (ECMA-48, 8.3.117) have set. Colours are 1 to 6,
// red to cyan as terminals number them, 7 for what stands out from nothing, and 0
// for none: a page that can be read in light and dark has no more, so that 256
// colours and true ones become the nearest of these.
type style struct {
	fg, bg                                      uint8
	bold, faint, italic, under, strike, inverse bool
}

// class is the style's classes; "" for plain text.
func (s style) class() string {
	var b []byte
	add := func(on bool, name string) {
		if on {
			if len(b) > 0 {
				b = append(b, ' ')
			}
			b = append(b, name...)
		}
	}
	if s.inverse {
		add(true, "sv")
	} else {
		add(s.fg > 0 && s.fg < 7, "f"+strconv.Itoa(int(s.fg)))
		add(s.faint && s.fg == 0, "f0")
		add(s.bg > 0, "b"+strconv.Itoa(int(s.bg)))
	}
	add(s.bold, "sb")
	add(s.italic, "si")
	add(s.under && !s.strike, "su")
	add(s.strike, "ss")
	return string(b)
}

// appendLine adds a line of a log to dst as HTML. What it has of colours becomes
// spans with classes of ours; what else is no text is made visible, so that
// nothing hides and nothing is markup. Each line begins plain, so that it looks
// the same wherever a page begins. over is how many bytes of the line were left
// out already.
func appendLine(dst, line []byte, over int64) []byte {
	line = bytes.TrimSuffix(line, []byte("\r"))
	if len(line) > maxLine {
		cut := maxLine
		for cut > maxLine-utf8.UTFMax && !utf8.RuneStart(line[cut]) {
			cut--
		}
		over += int64(len(line) - cut)
		line = line[:cut]
	}
	var now style
	open := ""
	text := func(s []byte) {
		if class := now.class(); class != open {
			if open != "" {
				dst = append(dst, "</span>"...)
			}
			if class != "" {
				dst = append(append(append(dst, `<span class="`...), class...), `">`...)
			}
			open = class
		}
		dst = append(dst, s...)
	}
	odd := func(format string, args ...any) {
		text(fmt.Appendf(nil, `<span class="odd">`+format+`</span>`, args...))
	}
	plain := 0 // what from here on is text as it is has not been added yet
	for i := 0; i < len(line); {
		c := line[i]
		if c >= ' ' && c < 0x7f && c != '<' && c != '>' && c != '&' && c != '"' && c != '\'' || c == '\t' {
			i++
			continue
		}
		if plain < i {
			text(line[plain:i])
		}
		n := 1
		switch {
		case c == 0x1b:
			if n = sgr(line[i:], &now); n == 0 {
				if n = erases(line[i:]); n == 0 {
					n = 1
					odd(`\x1b`)
				}
			}
		case c == '\r': // a progress bar draws its line anew
			for i+n < len(line) && line[i+n] == '\r' {
				n++
			}
			if i > 0 && i+n < len(line) {
				text([]byte("&#10;"))
			}
		case c < ' ' || c == 0x7f:
			odd(`\x%02x`, c)
		case c < utf8.RuneSelf:
			text([]byte(html.EscapeString(string(c))))
		default:
			var r rune
			r, n = utf8.DecodeRune(line[i:])
			switch {
			case r == utf8.RuneError && n == 1:
				odd(`\x%02x`, c)
			case r >= 0x80 && r < 0xa0:
				odd(`\x%02x`, r)
			case turns(r):
				odd(`\u%04x`, r)
			default:
				text(line[i : i+n])
			}
		}
		i += n
		plain = i
	}
	if plain < len(line) {
		text(line[plain:])
	}
	if open != "" {
		dst = append(dst, "</span>"...)
	}
	if over > 0 {
		dst = fmt.Appendf(dst, ` <span class="odd">… %d more bytes</span>`, over)
	}
	return dst
}

// turns reports whether a character changes the order or the lines of text around
// it, so that a line may read as what it is not.
func turns(r rune) bool {
	switch {
	case r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0x200e, r == 0x200f, r == 0x061c, r == 0x2028, r == 0x2029, r == 0xfeff:
		return true
	}
	return false
}

// sgr takes an SGR sequence that p begins with, and gives its length; 0 when it
// is none.
func sgr(p []byte, s *style) int {
	if len(p) < 3 || p[1] != '[' {
		return 0
	}
	var nums [24]int
	n, have := 0, false
	for i := 2; i < len(p) && i < 100; i++ {
		c := p[i]
		switch {
		case c >= '0' && c <= '9':
			if n < len(nums) {
				nums[n] = min(nums[n]*10+int(c-'0'), 9999)
			}
			have = true
		case c == ';' || c == ':':
			n = min(n+1, len(nums))
		case c == 'm':
			if n < len(nums) {
				n++
			}
			if !have {
				*s = style{}
				return i + 1
			}
			s.set(nums[:n])
			return i + 1
		default:
			return 0
		}
	}
	return 0
}

func (s *style) set(nums []int) {
	for i := 0; i < len(nums); i++ {
		switch v := nums[i]; {
		case v == 0:
			*s = style{}
		case v == 1:
			s.bold = true
		case v == 2:
			s.faint = true
		case v == 3:
			s.italic = true
		case v == 4 || v == 21:
			s.under = true
		case v == 7:
			s.inverse = true
		case v == 9:
			s.strike = true
		case v == 22:
			s.bold, s.faint = false, false
		case v == 23:
			s.italic = false
		case v == 24:
			s.under = false
		case v == 27:
			s.inverse = false
		case v == 29:
			s.strike = false
		case v >= 30 && v <= 37:
			s.fg = uint8(v - 30)
		case v >= 90 && v <= 97:
			s.fg = uint8(v - 90)
		case v >= 40 && v <= 47:
			s.bg = uint8(v - 40)
		case v >= 100 && v <= 107:
			s.bg = uint8(v - 100)
		case v == 39:
			s.fg = 0
		case v == 49:
			s.bg = 0
		case v == 38 || v == 48:
			colour, used := extended(nums[i+1:])
			i += used
			if v == 38 {
				s.fg = colour
			} else {
				s.bg = colour
			}
		}
	}
}

// extended reads what follows 38 or 48: 5;N or 2;R;G;B.
func extended(nums []int) (colour uint8, used int) {
	switch {
	case len(nums) >= 2 && nums[0] == 5:
		n := nums[1]
		switch {
		case n < 16:
			return uint8(n % 8), 2
		case n < 232: // a cube of six steps each way
			n -= 16
			return nearest(n/36*51, n/6%6*51, n%6*51), 2
		}
		return 0, 2
	case len(nums) >= 4 && nums[0] == 2:
		return nearest(nums[1], nums[2], nums[3]), 4
	}
	return 0, len(nums)
}

// nearest is the one of the six colours whose parts stand out the same.
func nearest(r, g, b int) (colour uint8) {
	top, low := max(r, g, b), min(r, g, b)
	if top-low < 40 {
		return 0
	}
	for i, v := range []int{r, g, b} {
		if v-low > (top-low)/2 {
			colour |= 1 << i
		}
	}
	return colour
}

// erases is the length of a sequence that p begins with and that is of no use on a
// page: to wipe a line, or to link a text (OSC 8). 0: it is none.
func erases(p []byte) int {
	for _, s := range []string{"\x1b[K", "\x1b[0K", "\x1b[1K", "\x1b[2K", "\x1b(B"} {
		if bytes.HasPrefix(p, []byte(s)) {
			return len(s)
		}
	}
	if !bytes.HasPrefix(p, []byte("\x1b]8;")) {
		return 0
	}
	for i := 4; i < len(p); i++ {
		switch {
		case p[i] == 0x07:
			return i + 1
		case p[i] == 0x1b && i+1 < len(p) && p[i+1] == '\\':
			return i + 2
		case p[i] < ' ' || p[i] == 0x7f:
			return 0
		}
	}
	return 0
}

// appendBare adds a line without what colours it, for searches.
func appendBare(dst, line []byte) []byte {
	for {
		i := bytes.IndexByte(line, 0x1b)
		if i < 0 {
			return append(dst, line...)
		}
		dst = append(dst, line[:i]...)
		var s style
		n := max(sgr(line[i:], &s), erases(line[i:]))
		if n == 0 {
			dst, n = append(dst, 0x1b), 1
		}
		line = line[i+n:]
	}
}
