// Package words takes command lines apart, for the doors to which people send
// them as one text.
package words

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits on a command line.
const (
	MaxLine  = 8 << 10 // bytes
	MaxWords = 100
)

// Split takes a command line apart as a shell would, and does nothing else that
// a shell does: what would be expanded, piped or redirected is refused, so that
// nobody believes it happened.
func Split(line string) ([]string, error) {
	if len(line) > MaxLine {
		return nil, fmt.Errorf("command has %d bytes: %d is the most", len(line), MaxLine)
	}
	if !utf8.ValidString(line) || strings.ContainsFunc(line, func(r rune) bool { return unicode.IsControl(r) && r != '\t' }) {
		return nil, errors.New("command holds control characters or no UTF-8: type it on one line")
	}
	var args []string
	var word strings.Builder
	inWord := false
	end := func() {
		if inWord {
			args = append(args, word.String())
			word.Reset()
			inWord = false
		}
	}
	for i := 0; i < len(line); i++ {
		c := line[i]
		switch {
		case c == ' ' || c == '\t':
			end()
		case c == '\'':
			j := strings.IndexByte(line[i+1:], '\'')
			if j < 0 {
				return nil, errors.New("command has a ' without an end: close the quotation")
			}
			word.WriteString(line[i+1 : i+1+j])
			inWord = true
			i += j + 1
		case c == '"':
			inWord = true
			for i++; ; i++ {
				if i >= len(line) {
					return nil, errors.New("command has a \" without an end: close the quotation")
				}
				if line[i] == '"' {
					break
				}
				if line[i] == '$' || line[i] == '`' {
					return nil, noShell(line[i])
				}
				if line[i] == '\\' && i+1 < len(line) && strings.IndexByte("\"\\$`", line[i+1]) >= 0 {
					i++
				}
				word.WriteByte(line[i])
			}
		case c == '\\':
			if i++; i >= len(line) {
				return nil, errors.New("command ends in a backslash: remove it")
			}
			word.WriteByte(line[i])
			inWord = true
		case strings.IndexByte("$`|&;<>(){}*?", c) >= 0:
			return nil, noShell(c)
		default:
			word.WriteByte(c)
			inWord = true
		}
	}
	end()
	if len(args) > MaxWords {
		return nil, fmt.Errorf("command has %d words: %d are the most", len(args), MaxWords)
	}
	return args, nil
}

func noShell(c byte) error {
	return fmt.Errorf("command holds a %q, and there is no shell here: quote it if it is meant as it is", c)
}

// Quote writes words as a line that [Split] takes apart again, as long as none
// holds control characters.
func Quote(list []string) string {
	var b strings.Builder
	for i, w := range list {
		if i > 0 {
			b.WriteByte(' ')
		}
		if w != "" && !strings.ContainsAny(w, " \t'\"\\$`|&;<>(){}*?") {
			b.WriteString(w)
			continue
		}
		b.WriteString("'" + strings.ReplaceAll(w, "'", `'\''`) + "'")
	}
	return b.String()
}
