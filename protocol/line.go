package protocol

import (
	"fmt"
	"net"
	"sync"

	"github.com/Morphux/quarry/internal/words"
)

// maxLine is the bytes in a line of a client's: a command line, and a request id
// before it.
const maxLine = words.MaxLine + MaxID + 2

// lines takes what a client sends apart. LF, CRLF and CR end a line. An idle
// client costs it no more than the first of these arrays.
type lines struct {
	conn  net.Conn
	small [128]byte
	buf   []byte // from buffers, while there is something in it; else nil
	r     int    // where the unread part of buf begins
	seen  int    // bytes of the unread part that hold no line's end
	lf    bool   // an LF that comes now belongs to a CR that has ended a line
}

// buffers hold a whole line, and what came with it.
var buffers = sync.Pool{New: func() any { return new([2 * maxLine]byte) }}

type lineTooLong struct{}

func (lineTooLong) Error() string {
	return fmt.Sprintf("line has more than %d bytes", maxLine)
}

// next gives the next line that has come whole. The line is good until the next
// call of fill.
func (l *lines) next() (line []byte, ok bool, err error) {
	l.skipLF()
	unread := l.buf[l.r:]
	for i := l.seen; i < len(unread); i++ {
		if unread[i] != '\n' && unread[i] != '\r' {
			continue
		}
		if i > maxLine {
			break
		}
		l.lf = unread[i] == '\r'
		l.r, l.seen = l.r+i+1, 0
		return unread[:i], true, nil
	}
	if l.seen = len(unread); l.seen > maxLine {
		return nil, false, lineTooLong{}
	}
	return nil, false, nil
}

func (l *lines) skipLF() {
	if l.lf && l.r < len(l.buf) {
		if l.buf[l.r] == '\n' {
			l.r++
		}
		l.lf = false
	}
}

// take gives away n bytes of what is unread.
func (l *lines) take(n int) {
	l.r += n
	l.seen = 0
}

func (l *lines) unread() []byte { return l.buf[l.r:] }

// full reports whether there is no room to read more.
func (l *lines) full() bool { return len(l.buf)-l.r >= 2*maxLine }

// fill reads once. There must be room. Where it may take long, idle, an empty
// buffer is given back first.
func (l *lines) fill(idle bool) error {
	if idle && l.r == len(l.buf) {
		l.drop()
		n, err := l.conn.Read(l.small[:])
		if n > 0 {
			l.grow()
			l.buf = append(l.buf, l.small[:n]...)
			clear(l.small[:n]) // a token may have passed
		}
		return err
	}
	l.grow()
	if l.r > 0 {
		l.buf = l.buf[:copy(l.buf, l.buf[l.r:])]
		l.r = 0
	}
	n, err := l.conn.Read(l.buf[len(l.buf):cap(l.buf)])
	l.buf = l.buf[:len(l.buf)+n]
	return err
}

func (l *lines) grow() {
	if l.buf == nil {
		l.buf = buffers.Get().(*[2 * maxLine]byte)[:0]
	}
}

// drop gives the buffer back.
func (l *lines) drop() {
	if l.buf != nil {
		buffers.Put((*[2 * maxLine]byte)(l.buf[:2*maxLine]))
		l.buf, l.r, l.seen = nil, 0, 0
	}
}
