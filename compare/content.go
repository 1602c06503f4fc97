package compare

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// deepest is how far files in files are looked into: a gzip in an archive in a
// package, and what that holds.
const deepest = 3

// look says how two contents differ that are not the same. depth counts the files
// that they are in.
func look(was, is []byte, depth int) []string {
	if depth < deepest {
		for _, kind := range []func(was, is []byte, depth int) ([]string, bool){elfs, gzips, archives, pycs} {
			if lines, ok := kind(was, is, depth); ok {
				return lines
			}
		}
	}
	if isText(was) && isText(is) {
		return texts(was, is)
	}
	return raw(was, is)
}

// indented puts lines below one that says what they are of.
func indented(head string, lines []string) []string {
	out := []string{head}
	for _, l := range lines {
		out = append(out, "  "+l)
	}
	return out
}

func isText(b []byte) bool {
	b = b[:min(len(b), 64<<10)]
	for i := 0; len(b) > 0 && i < utf8.UTFMax && !utf8.Valid(b); i++ {
		b = b[:len(b)-1] // a character cut in two
	}
	return !bytes.ContainsRune(b, 0) && utf8.Valid(b)
}

// maxTextLines is how many lines of each side are shown.
const maxTextLines = 6

// texts shows the lines that differ between the first and the last that do.
func texts(was, is []byte) []string {
	a, b := strings.SplitAfter(string(was), "\n"), strings.SplitAfter(string(is), "\n")
	first := 0
	for first < min(len(a), len(b)) && a[first] == b[first] {
		first++
	}
	end := 0
	for end < min(len(a), len(b))-first && a[len(a)-1-end] == b[len(b)-1-end] {
		end++
	}
	a, b = a[first:len(a)-end], b[first:len(b)-end]
	out := []string{fmt.Sprintf("text, from line %d on%s", first+1, natureOf(strings.Join(a, ""), strings.Join(b, "")))}
	for _, side := range []struct {
		sign string
		of   []string
	}{{"- ", a}, {"+ ", b}} {
		for i, l := range side.of {
			if i == maxTextLines {
				out = append(out, fmt.Sprintf("%s(and %d more)", side.sign, len(side.of)-i))
				break
			}
			if l == "" {
				continue
			}
			out = append(out, side.sign+strings.TrimSuffix(l, "\n"))
		}
	}
	return out
}

// window is how many bytes around a difference are shown.
const window = 24

// raw shows where bytes differ, how many, and the first of them.
func raw(was, is []byte) []string {
	n, first, last := 0, -1, 0
	for i := range max(len(was), len(is)) {
		if i >= len(was) || i >= len(is) || was[i] != is[i] {
			if first < 0 {
				first = i
			}
			n, last = n+1, i
		}
	}
	// With a little of what stands before, to be known again by.
	cut := func(b []byte) []byte { return b[min(len(b), max(0, first-window/3)):min(len(b), first+window)] }
	out := []string{fmt.Sprintf("%d of %d bytes differ, from byte %d to %d%s", n, max(len(was), len(is)), first, last, natureOfBytes(was, is, first, last))}
	return append(out, "- "+show(cut(was)), "+ "+show(cut(is)))
}

// show writes bytes as hex, and as the text that is in them.
func show(b []byte) string {
	text := make([]byte, len(b))
	for i, c := range b {
		if c < 0x20 || c > 0x7e {
			c = '.'
		}
		text[i] = c
	}
	return fmt.Sprintf("% x  %s", b, text)
}

var gzipMagic = []byte{0x1f, 0x8b, 8}

// gzips compares the headers of two gzip files, and what is in them.
func gzips(was, is []byte, depth int) ([]string, bool) {
	if !bytes.HasPrefix(was, gzipMagic) || !bytes.HasPrefix(is, gzipMagic) || len(was) < 10 || len(is) < 10 {
		return nil, false
	}
	var out []string
	at := func(b []byte) string {
		if n := binary.LittleEndian.Uint32(b[4:]); n != 0 {
			return stamp(time.Unix(int64(n), 0))
		}
		return "none"
	}
	if !bytes.Equal(was[4:8], is[4:8]) {
		out = append(out, fmt.Sprintf("gzip: the header's time is %s, rebuilt %s (gzip -n leaves it out)", at(was), at(is)))
	}
	a, errA := inflate(was)
	b, errB := inflate(is)
	switch {
	case errA != nil || errB != nil:
		out = append(out, raw(was, is)...)
	case a.name != b.name:
		out = append(out, fmt.Sprintf("gzip: the header's name is %q, rebuilt %q", a.name, b.name))
		fallthrough
	default:
		if bytes.Equal(a.data, b.data) {
			if len(out) == 0 {
				out = append(out, "gzip: what is packed is the same, and packed otherwise")
			}
		} else {
			out = append(out, indented("gzip: what is packed differs", look(a.data, b.data, depth+1))...)
		}
	}
	return out, true
}

type inflated struct {
	name string
	data []byte
}

func inflate(b []byte) (inflated, error) {
	r, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return inflated{}, err
	}
	data, err := io.ReadAll(io.LimitReader(r, maxHeld+1))
	if err == nil && len(data) > maxHeld {
		err = fmt.Errorf("more than %d bytes are packed", maxHeld)
	}
	return inflated{r.Name, data}, err
}

// pycs compares the headers of two files of compiled Python (PEP 552): a magic
// number that ends in \r\n, flags, and where these are 0 a time and a size.
func pycs(was, is []byte, _ int) ([]string, bool) {
	if len(was) < 16 || len(is) < 16 || was[2] != '\r' || was[3] != '\n' || !bytes.Equal(was[:8], is[:8]) || binary.LittleEndian.Uint32(was[4:]) != 0 || bytes.Equal(was[8:12], is[8:12]) {
		return nil, false
	}
	at := func(b []byte) string { return stamp(time.Unix(int64(binary.LittleEndian.Uint32(b[8:])), 0)) }
	out := []string{fmt.Sprintf("compiled Python: the time of the source is %s, rebuilt %s", at(was), at(is))}
	if !bytes.Equal(was[12:], is[12:]) {
		out = append(out, raw(was[12:], is[12:])...)
	}
	return out, true
}
