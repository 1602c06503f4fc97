package protocol

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// settle is how long a verb may take before anybody looks after its client. Most
// take less, and their answers go out together when they were asked together.
const settle = 20 * time.Millisecond

// verb runs a verb, and returns when the next line may be looked at.
func (s *session) verb(id string, argv []string) (goOn bool) {
	who, err := s.who()
	if err != nil { // it was taken away since
		s.out.line(codeToken, "%v", err)
		return false
	}
	if why := s.server.begin(who.User); why != "" {
		s.out.line(codeBusy, "%s", why)
		return true
	}
	running := false
	defer func() {
		if !running {
			s.server.end(who.User)
		}
	}()
	var keep *keeper
	if id != "" {
		if s.server.opts.Secret != nil && s.server.opts.Secret(argv) {
			s.out.line(codeUnkept, "what this answers is secret and is not kept: leave out the request id")
			return true
		}
		k, isNew, err := s.server.requests.open(who, id, argv)
		switch {
		case errors.Is(err, errOther):
			s.out.line(codeOther, "%v", err)
			return true
		case errors.Is(err, errUncertain):
			s.out.line(codeUncertain, "%v", err)
			return true
		case err != nil:
			s.server.log.Error("text protocol", "err", err)
			s.out.line(550+exitError, "%v", err)
			return true
		case !isNew:
			return s.replay(k)
		}
		keep = k
	}

	ctx, cancel := context.WithCancel(s.server.verbs)
	r := &reply{to: &s.out, keep: keep, whole: !s.term.TTY, wrote: time.Now()}
	in := newInput(ctx, r)
	var stdin io.Reader = in
	if s.term.TTY {
		stdin = nil
	}
	if keep == nil { // else who asks again wants to know how it ended
		s.out.setGive(cancel)
	}
	s.conn.SetReadDeadline(time.Time{})
	w := newWait()
	running = true
	go func() {
		defer s.server.end(who.User)
		defer cancel()
		start := time.Now()
		exit := s.call(func() int {
			return s.server.opts.Verbs(ctx, who, argv, stdin, stdout{r}, stderr{r}, s.term)
		}, r)
		in.r.Close() // what nobody reads is thrown away
		if exit != 0 && s.server.isStopping() {
			r.drop() // the verb was cut off, and what it says of that is no outcome
		} else if err := r.end(exit); err != nil {
			s.server.log.Error("the outcome of a request cannot be kept", "request", id, "user", who.User, "err", err)
		}
		s.server.log.Debug("text command", "user", who.User, "from", s.from, "command", argv, "exit", exit, "took", time.Since(start))
		w.over(s)
	}()
	goOn = s.watch(w, r, in, cancel, keep != nil)
	s.out.setGive(func() {})
	if s.trouble != nil {
		s.out.line(codeLine, "%v: goodbye", s.trouble)
	}
	return goOn
}

// call calls a verb. That it panics ends nothing but the verb.
func (s *session) call(run func() int, r *reply) (exit int) {
	defer func() {
		if p := recover(); p != nil {
			s.server.log.Error("a verb panicked; this is a bug in quarry", "panic", p)
			fmt.Fprintln(stderr{r}, "quarry: the verb failed by a bug in quarry: its log has more")
			exit = exitError
		}
	}()
	return run()
}

// replay answers a request that was asked before.
func (s *session) replay(k *keeper) (goOn bool) {
	r := &reply{to: &s.out, wrote: time.Now()}
	select {
	case <-k.done:
	default:
		s.conn.SetReadDeadline(time.Time{})
		w := newWait()
		go func() {
			<-k.done
			w.over(s)
		}()
		if !s.watch(w, r, nil, nil, true) {
			return false
		}
	}
	r.silence()
	if len(k.file.Reply) == 0 {
		if !s.server.isStopping() { // else the next line says so
			s.out.line(codeUncertain, "%v", errUncertain)
		}
		return true
	}
	s.out.line(codeReplay, "this was asked before, at %s: here is its answer again", k.file.At.Format(time.RFC3339))
	s.out.Write(k.file.Reply)
	return true
}

// wait is how the goroutine that reads the connection learns that a verb is over,
// also while it reads.
type wait struct {
	done   chan struct{} // it is over
	kicked chan struct{} // and the reader was told
}

func newWait() *wait { return &wait{make(chan struct{}), make(chan struct{})} }

func (w *wait) over(s *session) {
	close(w.done)
	s.conn.SetReadDeadline(past)
	close(w.kicked)
}

// watch looks after the client until the verb is over: gives it the input that it
// wants, and reads on, to see the client go. goOn is false when it has. An
// unwatched verb goes on then. in is nil where there is none to give.
func (s *session) watch(w *wait, r *reply, in *input, cancel func(), unwatched bool) (goOn bool) {
	var wanted chan struct{}
	if in != nil {
		wanted = in.wanted
	}
	timer := time.NewTimer(settle)
	defer timer.Stop()
	select {
	case <-w.done:
		<-w.kicked
		return true
	case <-wanted:
	case <-timer.C:
	}
	s.out.setEager(true)
	defer s.out.setEager(false)
	hurry := make(chan struct{})
	if s.eof {
		close(hurry)
	}
	go beats(r, w.done, hurry, s.server.opts.Limits.Beat)
	goOn = true
	for {
		select {
		case <-w.done:
			<-w.kicked
			return goOn
		case <-wanted:
			wanted = nil
			var err error
			if goOn, err = s.feed(in, w); err != nil && !unwatched {
				cancel()
			}
			s.conn.SetReadDeadline(time.Time{}) // before done is looked at, so that it takes no kick away
			continue
		default:
		}
		if s.eof || s.in.full() || !goOn {
			select {
			case <-w.done:
			case <-wanted: // seen above, as it stays closed
			}
			continue
		}
		err := s.in.fill(true)
		switch {
		case err == nil:
		case isTimeout(err): // told to look up
			<-w.done
		case errors.Is(err, io.EOF):
			// The client may still listen. What it is told more often now finds out.
			s.eof = true
			close(hurry)
		default:
			if unwatched {
				return false
			}
			cancel()
			<-w.done
			return false
		}
	}
}

// beats gives a client signs of life until done.
func beats(r *reply, done, hurry <-chan struct{}, most time.Duration) {
	every := most
	for {
		select {
		case <-done:
			return
		case <-hurry:
			hurry, every = nil, min(time.Second, most)
		case <-time.After(every):
			r.beat(time.Now().Add(-every))
			if hurry == nil {
				every = min(2*every, most)
			}
		}
	}
}

// input is what a verb reads. Its first reading has the client asked for it.
type input struct {
	ctx    context.Context // of the verb
	r      *io.PipeReader
	w      *io.PipeWriter
	reply  *reply
	once   sync.Once
	wanted chan struct{}
}

func newInput(ctx context.Context, r *reply) *input {
	in := &input{ctx: ctx, reply: r, wanted: make(chan struct{})}
	in.r, in.w = io.Pipe()
	return in
}

func (in *input) Read(p []byte) (int, error) {
	in.once.Do(func() {
		context.AfterFunc(in.ctx, func() { in.w.CloseWithError(context.Cause(in.ctx)) }) // at the latest when the verb ends
		close(in.wanted)                                                                 // first: what answers the question must find somebody who knows of it
		in.reply.ask()
	})
	return in.r.Read(p)
}

var errCutOff = errors.New("standard input was cut off")

// feed reads the input of a verb from the client to its end, also when the verb
// does not. goOn is false when nobody knows where the next line begins; the error
// is that the client is gone.
func (s *session) feed(in *input, w *wait) (goOn bool, err error) {
	b, over := body{lf: s.in.lf}, false
	s.in.lf = false
	var buf []byte
	for {
		if data := s.in.unread(); len(data) > 0 {
			out, n, err := b.decode(buf[:0], data)
			buf = out
			s.in.take(n)
			in.w.Write(out) // an error: the verb wants no more
			if err != nil {
				in.w.CloseWithError(err)
				s.trouble = err
				return false, nil
			}
			if b.done {
				in.w.Close()
				s.in.lf = b.lf
				return true, nil
			}
		}
		s.conn.SetReadDeadline(time.Now().Add(s.server.opts.Limits.Input))
		if s.server.isStopping() {
			return false, nil
		}
		if err := s.in.fill(false); err != nil {
			if isTimeout(err) && !over {
				// It may be no more than word that the verb is over.
				select {
				case <-w.done:
					<-w.kicked
					over = true
					continue
				default:
				}
			}
			in.w.CloseWithError(errCutOff)
			if errors.Is(err, io.EOF) {
				s.eof = true
				return true, nil
			}
			return false, err
		}
	}
}
