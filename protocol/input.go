package protocol

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// body takes the input of a verb apart, as it comes: lines, those that begin with
// a dot with one more before it; chunks, which a line .DATA N announces, of N
// bytes as they are; and a single dot at the end.
type body struct {
	inLine  bool   // within a line of text
	control []byte // a line that begins with a dot, as far as it has come
	chunk   int64  // bytes that are left of a chunk
	lf      bool   // an LF that comes now belongs to a CR that has ended a line
	done    bool
}

// maxChunk is the most bytes that one chunk may announce.
const maxChunk = 1 << 30

// decode appends to dst what src holds of the input, and says how much of src it
// used. It uses all unless the body ends in it.
func (b *body) decode(dst, src []byte) ([]byte, int, error) {
	for i := 0; i < len(src); i++ {
		c := src[i]
		if b.lf {
			b.lf = false
			if c == '\n' {
				continue
			}
		}
		switch {
		case b.chunk > 0:
			n := int(min(b.chunk, int64(len(src)-i)))
			dst = append(dst, src[i:i+n]...)
			b.chunk -= int64(n)
			i += n - 1
		case len(b.control) == 0 && !b.inLine && c == '.':
			b.control = append(b.control, c)
		case len(b.control) == 1 && c == '.':
			dst = append(dst, '.')
			b.control, b.inLine = b.control[:0], true
		case len(b.control) > 0 && c != '\n' && c != '\r':
			if b.control = append(b.control, c); len(b.control) > 40 {
				return dst, i, errControl
			}
		case len(b.control) > 0:
			b.lf = c == '\r'
			line := string(b.control)
			b.control = b.control[:0]
			if line == "." {
				b.done = true
				return dst, i + 1, nil
			}
			size, ok := strings.CutPrefix(strings.ToUpper(line), ".DATA ")
			n, err := strconv.ParseInt(size, 10, 64)
			if !ok || err != nil || n < 0 || size[0] == '+' || size[0] == '-' {
				return dst, i, errControl
			}
			if n > maxChunk {
				return dst, i, fmt.Errorf("input has a chunk of %d bytes: %d is the most, so send several", n, maxChunk)
			}
			b.chunk = n
		case c == '\n' || c == '\r':
			dst = append(dst, '\n')
			b.lf, b.inLine = c == '\r', false
		default:
			dst = append(dst, c)
			b.inLine = true
		}
	}
	return dst, len(src), nil
}

var errControl = errors.New("input has a line that begins with one dot and is neither the end nor .DATA LENGTH: send text lines that begin with a dot with one more")
