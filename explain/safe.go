package explain

import (
	"bytes"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits on what is looked at and kept of a line. Errors stand at the beginning
// of a line; what is longer was not written for people.
const (
	maxLine  = 2048 // bytes that are looked at
	maxShown = 300  // bytes that are kept
)

// plain takes out of a line what is only for a terminal: sequences that set
// colours and move the cursor, and what a progress bar has drawn over. It writes
// to buf, which it may return, where anything had to be taken out.
func plain(line, buf []byte) []byte {
	line = bytes.TrimRight(line, "\r")
	if i := bytes.LastIndexByte(line, '\r'); i >= 0 {
		line = line[i+1:]
	}
	if bytes.IndexByte(line, 0x1b) < 0 {
		return line
	}
	buf = buf[:0]
	for len(line) > 0 {
		i := bytes.IndexByte(line, 0x1b)
		if i < 0 {
			buf = append(buf, line...)
			break
		}
		buf = append(buf, line[:i]...)
		line = line[i+escape(line[i:]):]
	}
	return buf
}

// escape gives the length of the escape sequence (ECMA-48) that text begins with.
func escape(text []byte) int {
	if len(text) < 2 {
		return len(text)
	}
	switch text[1] {
	case '[': // ends with a letter or @[\]^_`{|}~
		for i := 2; i < len(text); i++ {
			if text[i] >= 0x40 && text[i] <= 0x7e {
				return i + 1
			}
			if text[i] < 0x20 {
				return i
			}
		}
		return len(text)
	case ']': // a title or a link, to BEL or ESC \
		for i := 2; i < len(text); i++ {
			if text[i] == 0x07 {
				return i + 1
			}
			if text[i] == 0x1b {
				return min(i+2, len(text))
			}
		}
		return len(text)
	}
	return 2
}

// safe makes a line fit to be shown anywhere: valid, short, one line, nothing
// that a terminal obeys or that turns the direction of text round.
func safe(line []byte) string {
	long := len(line) > maxShown
	if long {
		line = line[:maxShown]
		for len(line) > 0 && !utf8.RuneStart(line[len(line)-1]) {
			line = line[:len(line)-1]
		}
		if n := len(line); n > 0 && line[n-1] >= utf8.RuneSelf {
			line = line[:n-1]
		}
	}
	text := strings.TrimRight(string(line), " \t")
	if strings.IndexFunc(text, unsafe) >= 0 || !utf8.ValidString(text) {
		text = strings.Map(func(r rune) rune {
			if unsafe(r) {
				return utf8.RuneError
			}
			return r
		}, strings.ToValidUTF8(text, "\uFFFD"))
	}
	if long {
		text += "…"
	}
	return text
}

func unsafe(r rune) bool {
	return r != '\t' && (unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp))
}
