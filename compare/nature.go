package compare

import (
	"encoding/binary"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// What bytes that differ from one build to the next mostly are.
var (
	clock    = regexp.MustCompile(`\b[0-2]?\d:[0-5]\d(:[0-6]\d(\.\d+)?)?\b`)
	day      = regexp.MustCompile(`\b(19|20)\d\d[-/.][01]?\d[-/.][0-3]?\d\b|\b[0-3]?\d[-/. ](Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)|(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]* +[0-3]?\d\b|\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun)\b`)
	digits   = regexp.MustCompile(`\b\d{9,13}\b`)
	hex      = regexp.MustCompile(`\b[0-9a-fA-F]{16,}\b|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	tempPath = regexp.MustCompile(`/(tmp|build|quarry|root|home)/[^\s"]*|\b(tmp|cc)[A-Za-z0-9_.]{6,}`)
)

// natureOf guesses what two texts differ in, as the end of a sentence; "" when
// nothing is known.
func natureOf(was, is string) string {
	was, is = was[:min(len(was), 4<<10)], is[:min(len(is), 4<<10)]
	differ := func(re *regexp.Regexp) bool {
		a, b := re.FindAllString(was, 20), re.FindAllString(is, 20)
		return len(a) > 0 && len(b) > 0 && !slices.Equal(a, b)
	}
	switch {
	case differ(clock), differ(day):
		return ": it looks like a date or a time of the build"
	case differ(digits) && isClock(digits.FindString(was)) && isClock(digits.FindString(is)):
		return ": it looks like the time of the build, in seconds since 1970"
	case differ(hex):
		return ": it looks like a hash or an id made at random"
	case differ(tempPath):
		return ": it looks like the path of a folder of the build"
	case sorted(was) != "" && sorted(was) == sorted(is):
		return ": the same words in another order"
	}
	return ""
}

// isClock reports whether digits are seconds (or milliseconds) since 1970, of the
// years 2001 to 2100.
func isClock(s string) bool {
	if len(s) == 13 {
		s = s[:10]
	}
	return len(s) == 10 && s > "1000000000" && s < "4102444800"
}

func sorted(s string) string {
	words := strings.Fields(s)
	if len(words) < 2 {
		return ""
	}
	slices.Sort(words)
	return strings.Join(words, " ")
}

// natureOfBytes is natureOf for bytes that differ from first to last.
func natureOfBytes(was, is []byte, first, last int) string {
	around := func(b []byte) []byte { return b[max(0, min(len(b), first-window)):min(len(b), last+1+window)] }
	if s := natureOf(words(around(was)), words(around(is))); s != "" {
		return s
	}
	// A number of four or eight bytes, at any place that holds all that differs.
	// Of several, the two that are closest together.
	if last-first < 8 && len(was) == len(is) {
		var a, b uint64
		apart := uint64(10 * 365 * 24 * 3600)
		for size := 4; size <= 8; size += 4 {
			for at := max(0, last+1-size); at <= first && at+size <= len(was); at++ {
				for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
					x, y := number(order, was[at:at+size]), number(order, is[at:at+size])
					if x > 1e9 && y > 1e9 && x < 4102444800 && y < 4102444800 && max(x, y)-min(x, y) < apart {
						a, b, apart = x, y, max(x, y)-min(x, y)
					}
				}
			}
		}
		if a != 0 {
			return fmt.Sprintf(": it looks like the time of the build (%s, rebuilt %s)", stamp(time.Unix(int64(a), 0)), stamp(time.Unix(int64(b), 0)))
		}
	}
	if last-first >= 7 && last-first < 64 {
		return ": it looks like a hash or something made at random"
	}
	return ""
}

func number(order binary.ByteOrder, b []byte) uint64 {
	if len(b) == 4 {
		return uint64(order.Uint32(b))
	}
	return order.Uint64(b)
}

// words are the texts among bytes, each at least four characters long.
func words(b []byte) string {
	var out, word strings.Builder
	for i := range min(len(b), 4<<10) + 1 {
		if i < len(b) && i < 4<<10 && b[i] >= 0x20 && b[i] <= 0x7e {
			word.WriteByte(b[i])
			continue
		}
		if word.Len() >= 4 {
			out.WriteString(word.String() + "\n")
		}
		word.Reset()
	}
	return out.String()
}
