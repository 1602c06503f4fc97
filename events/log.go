package events

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/Morphux/quarry/internal/durable"
)

// Options bound the log.
type Options struct {
	Max     int64         // bytes on disk; the oldest go first. 0: 64 MiB
	Keep    time.Duration // how long at most; 0: 30 days
	Segment int64         // bytes of one file; 0: a sixteenth of Max, 4 MiB at most

	Log *slog.Logger // nil: slog.Default()
}

const (
	suffix   = ".jsonl" // of a segment, after the number of its first event
	ringSize = 1024     // events kept in memory for those who follow
	stride   = 64       // events between two entries of a segment's index
	// maxPending is how many events wait for a disk that takes none, before the
	// oldest are given up.
	maxPending = 100_000
)

// ErrClosed is the error of a log that has been closed.
var ErrClosed = errors.New("the log of events is closed: the farm is being stopped")

// Log is the open log. Its methods may be called by several goroutines at once.
type Log struct {
	dir  string
	opts Options

	wakeWriter chan struct{}
	closing    chan struct{}
	done       chan struct{}

	pendMu  sync.Mutex // guards the following
	pending []Event
	lost    int // given up, and not told yet
	closed  bool

	mu   sync.RWMutex // guards the following: what is on the disk, and shown
	segs []*segment   // oldest first; the last one is written to
	last int64
	ring []Event       // the newest, in order
	more chan struct{} // closed when there are new events
	over bool

	file *os.File // of the last segment; only the writer's
	bad  bool     // the last segment's end cannot be trusted: begin another
}

// segment is one file.
type segment struct {
	first  int64 // number in its name
	size   int64 // bytes that are shown
	began  time.Time
	newest time.Time // time of its last event
	marks  []mark
}

// mark tells where in a segment an event begins.
type mark struct{ n, at int64 }

func (l *Log) path(s *segment) string {
	return filepath.Join(l.dir, fmt.Sprintf("%016d%s", s.first, suffix))
}

// Open opens the log in a folder, which is made if it is not there, and calls
// each with every event that it holds. What a crash left at its end is cut off.
func Open(dir string, opts Options, each func(*Event)) (*Log, error) {
	if opts.Max <= 0 {
		opts.Max = 64 << 20
	}
	if opts.Keep <= 0 {
		opts.Keep = 30 * 24 * time.Hour
	}
	if opts.Segment <= 0 {
		opts.Segment = min(4<<20, max(opts.Max/16, 4<<10))
	}
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	l := &Log{
		dir: dir, opts: opts, more: make(chan struct{}),
		wakeWriter: make(chan struct{}, 1), closing: make(chan struct{}), done: make(chan struct{}),
	}
	if err := l.load(each); err != nil {
		return nil, fmt.Errorf("log of events in %s cannot be opened: %w", dir, err)
	}
	go l.write()
	return l, nil
}

// load reads what is there.
func (l *Log) load(each func(*Event)) error {
	if err := os.MkdirAll(l.dir, 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), suffix)
		n, err := strconv.ParseInt(name, 10, 64)
		if !ok || err != nil || n <= 0 || e.Name() != filepath.Base(l.path(&segment{first: n})) {
			continue
		}
		l.segs = append(l.segs, &segment{first: n})
	}
	slices.SortFunc(l.segs, func(a, b *segment) int { return cmp.Compare(a.first, b.first) })
	bad := 0
	for i, s := range l.segs {
		next := int64(math.MaxInt64)
		if i < len(l.segs)-1 {
			next = l.segs[i+1].first
		}
		n, err := l.loadSegment(s, next, each)
		if err != nil {
			return err
		}
		bad += n
	}
	if bad > 0 {
		l.opts.Log.Error("the log of events is damaged: lines that cannot be read are passed over", "lines", bad)
	}
	if len(l.segs) == 0 {
		return nil
	}
	return l.reopen()
}

// loadSegment reads a file up to the event with which the next begins. The end of
// the last one may be half written.
func (l *Log) loadSegment(s *segment, next int64, each func(*Event)) (bad int, err error) {
	data, err := os.ReadFile(l.path(s))
	if err != nil {
		return 0, err
	}
	l.last = max(l.last, s.first-1)
	var good, tail int64 // end of the last good line; bad lines after it
	for at := int64(0); at < int64(len(data)); {
		end := bytes.IndexByte(data[at:], '\n')
		if end < 0 {
			break
		}
		line := data[at : at+int64(end)+1]
		at += int64(len(line))
		var e Event
		if json.Unmarshal(line, &e) != nil || e.N <= l.last {
			tail++
			continue
		}
		if e.N >= next {
			break // it could not be cut off when writing failed, and was never shown
		}
		bad, tail = bad+int(tail), 0
		s.note(&e, at-int64(len(line)))
		l.last, good = e.N, at
		e.line = bytes.Clone(line)
		l.keep(e)
		if each != nil {
			each(&e)
		}
	}
	s.size = good
	if s.newest.IsZero() {
		s.began, s.newest = time.Now(), time.Now()
	}
	if next != math.MaxInt64 {
		return bad + int(tail), nil
	}
	// What has no end of line was never shown. Whole lines may have been: their
	// numbers are not given out again.
	l.last += tail
	l.bad = tail > 0
	if good < int64(len(data)) {
		l.opts.Log.Info("the end of the log of events was half written, and is cut off", "bytes", int64(len(data))-good)
		if err := os.Truncate(l.path(s), good); err != nil {
			return bad, err
		}
	}
	return bad + int(tail), nil
}

// reopen opens the last segment for writing, with all that is in it on the disk.
func (l *Log) reopen() error {
	f, err := os.OpenFile(l.path(l.segs[len(l.segs)-1]), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), durable.SyncDir(l.dir)); err != nil {
		f.Close()
		return err
	}
	l.file = f
	return nil
}

// note takes an event into the segment's index.
func (s *segment) note(e *Event, at int64) {
	if len(s.marks) == 0 {
		s.began = e.At
	}
	if len(s.marks) == 0 || e.N >= s.marks[len(s.marks)-1].n+stride {
		s.marks = append(s.marks, mark{e.N, at})
	}
	s.newest = e.At
}

// keep takes an event into the ring.
func (l *Log) keep(e Event) {
	if len(l.ring) >= 2*ringSize { // a new array: who reads the old one goes on with it
		l.ring = slices.Clone(l.ring[ringSize:])
	}
	l.ring = append(l.ring, e)
}

// Append hands events to the log, which gives them their numbers, and the time
// where they have none. It does not wait for the disk: see Flush. Events that the
// disk does not take are kept and written as soon as it does.
func (l *Log) Append(list ...Event) {
	now := time.Now().UTC().Truncate(time.Millisecond)
	l.pendMu.Lock()
	defer l.pendMu.Unlock()
	if l.closed {
		return
	}
	for _, e := range list {
		if e.At.IsZero() {
			e.At = now
		}
		l.pending = append(l.pending, e)
	}
	if over := len(l.pending) - maxPending; over > 0 {
		l.pending, l.lost = l.pending[over:], l.lost+over
	}
	select {
	case l.wakeWriter <- struct{}{}:
	default:
	}
}

// Flush returns when all that was appended before is on the disk.
func (l *Log) Flush(ctx context.Context) error {
	for {
		l.mu.RLock()
		more, over := l.more, l.over
		l.mu.RUnlock()
		l.pendMu.Lock()
		// The writer takes events out of pending when they are shown.
		idle := len(l.pending) == 0
		l.pendMu.Unlock()
		switch {
		case idle:
			return nil
		case over:
			return ErrClosed
		}
		select {
		case <-more:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Close writes what is still to be written, if the disk takes it, and ends all
// who follow.
func (l *Log) Close() error {
	l.pendMu.Lock()
	again := l.closed
	l.closed = true
	l.pendMu.Unlock()
	if !again {
		close(l.closing)
	}
	<-l.done
	return nil
}
