package results

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Raw is a string of any bytes, such as a path or the soname in an ELF file.
// TOML holds only text, so in a file it is escaped: \xHH is one byte, \\ is one
// backslash, everything else stands for itself. Bytes are escaped when they are
// no UTF-8 or are control characters, so that a value never breaks a line.
//
// It has no text methods: go-toml does not call those of a type whose kind is
// string. Records are escaped and unescaped as a whole, see mapStrings.
type Raw string

func plain(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c == 0x7f || c == '\\' {
			return false
		}
	}
	return utf8.ValidString(s)
}

func escape(s string) string {
	if plain(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == '\\':
			b.WriteString(`\\`)
		case r == utf8.RuneError && n == 1, r < 0x20, r == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		default:
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

func unescape(s string) (string, error) {
	if strings.IndexByte(s, '\\') < 0 {
		return s, nil
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		rest := s[i+1:]
		switch {
		case strings.HasPrefix(rest, `\`):
			b.WriteByte('\\')
			i++
		case len(rest) >= 3 && rest[0] == 'x' && hexDigit(rest[1]) >= 0 && hexDigit(rest[2]) >= 0:
			b.WriteByte(byte(hexDigit(rest[1])<<4 | hexDigit(rest[2])))
			i += 3
		default:
			return "", fmt.Errorf(`text %.60q has an unknown escape at byte %d: only \\ and \xHH are`, s, i)
		}
	}
	return b.String(), nil
}

func hexDigit(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

func raws(ss []string) []Raw {
	if len(ss) == 0 {
		return nil
	}
	out := make([]Raw, len(ss))
	for i, s := range ss {
		out[i] = Raw(s)
	}
	return out
}

func escapeAll(ss []string) []string {
	var out []string
	for _, s := range ss {
		out = append(out, escape(s))
	}
	return out
}

// oneLine makes text of unknown origin fit for one line of a record, a commit
// or a terminal: valid UTF-8, no control characters, at most max bytes.
func oneLine(s string, max int) string {
	s = strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0x2028 || r == 0x2029 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	return cut(strings.TrimSpace(s), max)
}

// cut shortens to at most max bytes, at the edge of a character, and shows
// that it did.
func cut(s string, max int) string {
	if len(s) <= max {
		return s
	}
	const more = "..."
	n := max - len(more)
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + more
}
