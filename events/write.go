package events

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/Morphux/quarry/internal/durable"
)

// write is the writer's goroutine: it takes all that waits and writes it with one
// sync, again and again.
func (l *Log) write() {
	defer close(l.done)
	defer l.end()
	for try := 0; ; {
		l.pendMu.Lock()
		batch := slices.Clone(l.pending)
		lost := l.lost
		l.pendMu.Unlock()
		if lost > 0 {
			batch = append([]Event{{At: time.Now().UTC(), Kind: Trouble, Reason: "events were given up",
				Text: fmt.Sprintf("%d events could not be written and were given up: make room for the state folder", lost)}}, batch...)
		}
		if len(batch) == 0 {
			select {
			case <-l.wakeWriter:
				continue
			case <-l.closing:
			}
			// Nothing comes any more, but something may have come right before.
			l.pendMu.Lock()
			over := l.closed && len(l.pending) == 0
			l.pendMu.Unlock()
			if over {
				return
			}
			continue
		}
		n, err := l.commit(batch)
		if err == nil {
			l.pendMu.Lock()
			if lost > 0 {
				n--
			}
			// What was given up meanwhile was the oldest: it has been written.
			gone := l.lost - lost
			l.lost = max(0, gone-n)
			if l.pending = l.pending[max(0, n-gone):]; len(l.pending) == 0 {
				l.pending = nil
			}
			l.pendMu.Unlock()
			l.show()
			try = 0
			continue
		}
		if try == 0 {
			l.opts.Log.Warn("events cannot be written, which is tried again", "err", err, "waiting", len(batch))
		}
		select {
		case <-l.closing:
			l.opts.Log.Warn("events are lost: those of builds are made up for at the next start", "err", err, "events", len(batch))
			return
		case <-time.After(min(time.Second<<min(try, 5), 30*time.Second)):
		}
		try++
	}
}

// commit writes events, as many of them as a segment takes, and takes them into
// what is shown; show tells the others.
func (l *Log) commit(batch []Event) (n int, err error) {
	s := l.current()
	if s == nil || l.bad || l.file == nil || s.size >= l.opts.Segment || len(s.marks) > 0 && time.Since(s.began) > l.opts.Keep/4 {
		if s, err = l.begin(); err != nil {
			return 0, err
		}
	}
	var buf []byte
	for ; n < len(batch) && s.size+int64(len(buf)) < l.opts.Segment; n++ {
		e := &batch[n]
		e.N = l.last + 1 + int64(n)
		line, err := json.Marshal(e)
		if err != nil {
			e.Build, e.Text, e.At = nil, "an event that could not be written down: "+err.Error(), time.Now().UTC()
			line, _ = json.Marshal(e)
		}
		e.line = append(line, '\n')
		buf = append(buf, e.line...)
	}
	_, err = l.file.Write(buf)
	if err == nil {
		err = l.file.Sync()
	}
	if err != nil {
		// A failed sync may have dropped what was written, and the next would
		// not tell: go on in another file, without what is not known to stand.
		if cut := l.file.Truncate(s.size); cut != nil {
			err = errors.Join(err, cut)
		}
		l.bad = true
		return 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range batch[:n] {
		s.note(&e, s.size)
		s.size += int64(len(e.line))
		l.keep(e)
		l.last = e.N
	}
	l.prune()
	return n, nil
}

// current is the segment that is written to; nil: there is none.
func (l *Log) current() *segment {
	if len(l.segs) == 0 {
		return nil
	}
	return l.segs[len(l.segs)-1]
}

// begin begins a new segment.
func (l *Log) begin() (*segment, error) {
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
	s := &segment{first: l.last + 1, began: time.Now(), newest: time.Now()}
	// One of this name holds nothing that was ever shown.
	f, err := os.OpenFile(l.path(s), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	if err := durable.SyncDir(l.dir); err != nil {
		f.Close()
		return nil, err
	}
	l.file, l.bad = f, false
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.current(); c != nil && c.first == s.first {
		l.segs = l.segs[:len(l.segs)-1]
	}
	l.segs = append(l.segs, s)
	return s, nil
}

// prune removes the oldest segments beyond the bounds. l.mu is held.
func (l *Log) prune() {
	var total int64
	for _, s := range l.segs {
		total += s.size
	}
	for len(l.segs) > 1 && (total > l.opts.Max || time.Since(l.segs[0].newest) > l.opts.Keep) {
		if err := os.Remove(l.path(l.segs[0])); err != nil && !errors.Is(err, os.ErrNotExist) {
			l.opts.Log.Warn("old events cannot be removed", "err", err)
			return
		}
		total -= l.segs[0].size
		l.segs = l.segs[1:]
	}
}

// show wakes all who wait for events.
func (l *Log) show() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.more)
	l.more = make(chan struct{})
}

func (l *Log) end() {
	if l.file != nil {
		l.file.Close()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	close(l.more)
}
