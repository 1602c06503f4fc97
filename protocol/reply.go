package protocol

import (
	"bytes"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The codes of replies. Those from 550 on, and 250 and 455, end in the exit code
// of the verb.
const (
	codeBeat      = 100 // nothing new: the verb is still under way
	codeErr       = 110 // a line of the verb's standard error
	codeReplay    = 141 // what follows is what was answered before
	codeCut       = 142 // the rest of the answer was not kept
	codeGreeting  = 200
	codeBye       = 205
	codeBody      = 210 // lines of output follow
	codePart      = 211 // a line of output follows, the end of which is none of its own
	codeKnown     = 235 // the token is taken
	codeDone      = 250
	codeInput     = 354 // send the input
	codeClosing   = 421
	codeBusy      = 450
	codeLine      = 500 // this is no line
	codeSyntax    = 501
	codeStranger  = 530
	codeToken     = 535 // the token is not taken
	codeOther     = 540 // the request id stands for something else
	codeUncertain = 541 // nobody knows how the request ended
	codeUnkept    = 542 // the answer may not be kept
)

// exitCodes gives the code of a reply for the exit code of a verb: see
// control.ExitOK and its likes.
func replyCode(exit int) int {
	switch exit {
	case 0:
		return codeDone
	case exitUnreachable:
		return 455
	case exitUsage, exitNotFound, exitForbidden, exitBuild:
		return 550 + exit
	}
	return 550 + exitError
}

// The exit codes of verbs: a promise of control's, which this package does not
// import.
const (
	exitError       = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitForbidden   = 4
	exitUnreachable = 5
	exitBuild       = 6
)

var saying = map[int]string{
	codeDone: "done", 550 + exitBuild: "the build did not succeed", 550 + exitError: "it went wrong",
	550 + exitUsage: "the words are off", 550 + exitNotFound: "there is no such thing", 550 + exitForbidden: "this is not allowed",
	455: "it cannot be reached",
}

// outlet is where replies go: the client, by way of a buffer, for which nobody
// waits longer than stall.
type outlet struct {
	conn  net.Conn
	stall time.Duration
	give  func() // up: the client is gone, or does not read

	mu    sync.Mutex // guards the following
	buf   []byte
	eager bool // nothing is kept back
	err   error
}

// outletSize is from how many bytes on a buffer is sent.
const outletSize = 4 << 10

var outlets = sync.Pool{New: func() any { b := make([]byte, 0, 2*outletSize); return &b }}

func (o *outlet) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return 0, o.err
	}
	if o.buf == nil {
		o.buf = *outlets.Get().(*[]byte)
	}
	o.buf = append(o.buf, p...)
	if o.eager || len(o.buf) >= outletSize {
		o.send()
	}
	return len(p), o.err
}

// send sends what is in the buffer. mu is held.
func (o *outlet) send() {
	if o.err != nil || o.buf == nil {
		return
	}
	o.conn.SetWriteDeadline(time.Now().Add(o.stall))
	if _, o.err = o.conn.Write(o.buf); o.err != nil {
		o.conn.Close()
		o.give()
	}
	if cap(o.buf) <= 16*outletSize {
		b := o.buf[:0]
		outlets.Put(&b)
	}
	o.buf = nil
}

func (o *outlet) flush() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.send()
	return o.err
}

// setGive says what is to be done when the client is gone.
func (o *outlet) setGive(give func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.give = give; o.err != nil {
		give()
	}
}

// setEager says whether what is written waits for more.
func (o *outlet) setEager(on bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.eager = on; on {
		o.send()
	}
}

// line writes a reply of one line.
func (o *outlet) line(code int, format string, args ...any) {
	o.Write(appendReply(nil, code, fmt.Sprintf(format, args...)))
}

// appendReply appends one line, whatever the text holds.
func appendReply(dst []byte, code int, text string) []byte {
	dst = append(strconv.AppendInt(dst, int64(code), 10), ' ')
	if strings.ContainsAny(text, "\r\n") {
		text = strings.NewReplacer("\r\n", "; ", "\n", "; ", "\r", " ").Replace(text)
	}
	return append(append(dst, text...), '\n')
}

// reply turns what a verb writes into lines.
type reply struct {
	to    *outlet
	keep  *keeper // of the outcome; nil: nobody asks again
	whole bool    // an unfinished line waits for its end, as no person waits for it

	mu      sync.Mutex // guards the following
	body    bool       // a body is open
	out     []byte     // a line of output without its end
	errOut  []byte     // a line of standard error without its end
	held    []byte     // a line of standard error that may be the last word; nil: none
	scratch []byte
	wrote   time.Time
	ended   bool
}

// maxPart is from how many bytes on an unfinished line of output is sent.
const maxPart = 64 << 10

// prefix begins the line of standard error that says what went wrong.
const prefix = "quarry: "

// stdout and stderr are the verb's ends of a reply.
type (
	stdout struct{ *reply }
	stderr struct{ *reply }
)

func (w stdout) Write(p []byte) (int, error) {
	r := w.reply
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(p) == 0 || r.ended {
		return len(p), nil
	}
	b := r.release(r.scratch[:0])
	for rest := p; len(rest) > 0; {
		line, after, end := bytes.Cut(rest, []byte{'\n'})
		rest = after
		if !end {
			r.out = append(r.out, line...)
			if r.whole && len(r.out) < maxPart {
				break
			}
			b = r.part(b)
			break
		}
		if !r.body {
			b = append(b, "210 output follows\n"...)
			r.body = true
		}
		if first := r.out; len(first) > 0 && first[0] == '.' || len(first) == 0 && len(line) > 0 && line[0] == '.' {
			b = append(b, '.')
		}
		b = append(append(append(b, r.out...), line...), '\n')
		r.out = r.out[:0]
		if len(b) >= maxPart {
			if err := r.emit(b); err != nil {
				return 0, err
			}
			b = r.scratch[:0]
		}
	}
	if err := r.emit(b); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (w stderr) Write(p []byte) (int, error) {
	r := w.reply
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return len(p), nil
	}
	b := r.scratch[:0]
	for rest := p; len(rest) > 0; {
		line, after, end := bytes.Cut(rest, []byte{'\n'})
		rest = after
		r.errOut = append(r.errOut, line...)
		if !end && len(r.errOut) < maxPart {
			break
		}
		b = r.release(b)
		if bytes.HasPrefix(r.errOut, []byte(prefix)) {
			r.held = bytes.Clone(r.errOut)
		} else {
			b = appendReply(r.shut(b), codeErr, string(r.errOut))
		}
		r.errOut = r.errOut[:0]
	}
	if err := r.emit(b); err != nil {
		return 0, err
	}
	return len(p), nil
}

// release appends the line that was held, as it was not the last. mu is held, as
// in the following.
func (r *reply) release(b []byte) []byte {
	if r.held != nil {
		b = appendReply(r.shut(b), codeErr, string(r.held))
		r.held = nil
	}
	return b
}

// shut appends the end of the body that is open.
func (r *reply) shut(b []byte) []byte {
	if r.body {
		b = append(b, ".\n"...)
		r.body = false
	}
	return b
}

// part appends an unfinished line of output.
func (r *reply) part(b []byte) []byte {
	if len(r.out) == 0 {
		return b
	}
	b = append(r.shut(b), "211 output follows, without a line's end\n"...)
	if r.out[0] == '.' {
		b = append(b, '.')
	}
	b = append(append(b, r.out...), "\n.\n"...)
	r.out = r.out[:0]
	return b
}

// emit sends. When somebody may ask again, that the client is gone is no error
// of the verb's.
func (r *reply) emit(b []byte) error {
	r.scratch = b[:0]
	if cap(b) > 2*maxPart {
		r.scratch = nil
	}
	if len(b) == 0 {
		return nil
	}
	r.wrote = time.Now()
	_, err := r.to.Write(b)
	if r.keep != nil {
		r.keep.add(b, r.body)
		return nil
	}
	return err
}

// beat says that the verb is still under way, unless it has said something itself
// since a time.
func (r *reply) beat(since time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended || r.wrote.After(since) {
		return
	}
	// Not kept: it is no part of the answer. The body that is open has to be shut
	// all the same.
	if b := r.shut(nil); len(b) > 0 && r.emit(b) != nil {
		return
	}
	r.to.line(codeBeat, "still under way")
	r.to.flush()
}

// ask tells the client to send the input.
func (r *reply) ask() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return
	}
	b := r.shut(r.release(nil))
	if len(b) > 0 {
		r.emit(b)
	}
	r.to.line(codeInput, "send the input, and a line with a single dot after it")
	r.to.flush()
}

// end ends the answer with the verb's exit code. The error is that it cannot be
// kept.
func (r *reply) end(exit int) (err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	code := replyCode(exit)
	text := saying[code]
	if exit != 0 && r.held != nil && len(r.errOut) == 0 {
		text = string(r.held[len(prefix):])
		r.held = nil
	}
	b := r.part(r.release(nil))
	if len(r.errOut) > 0 {
		b = appendReply(r.shut(b), codeErr, string(r.errOut))
	}
	r.emit(r.shut(b))
	r.ended = true
	line := appendReply(nil, code, text)
	if r.keep != nil {
		err = r.keep.finish(line) // first: whoever is told can rely on it
	}
	r.to.Write(line)
	return err
}

// silence ends an answer that is given elsewhere.
func (r *reply) silence() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
}

// drop ends an answer that the client is not to have, nor anybody who asks again.
func (r *reply) drop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.emit(r.shut(nil))
	r.ended = true
	if r.keep != nil {
		r.keep.abandon()
	}
}
