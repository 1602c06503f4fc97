package events

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"slices"
	"time"
)

// First is the number of the oldest event that is kept, and Last that of the
// newest; First is Last+1 while there is none.
func (l *Log) First() int64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.first()
}

func (l *Log) first() int64 {
	for _, s := range l.segs {
		if len(s.marks) > 0 {
			return s.marks[0].n
		}
	}
	return l.last + 1
}

// Last is the number of the newest event; 0 before the first ever.
func (l *Log) Last() int64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.last
}

// Began is when the oldest event that is kept happened; zero when there is none.
func (l *Log) Began() time.Time {
	l.mu.RLock()
	defer l.mu.RUnlock()
	for _, s := range l.segs {
		if len(s.marks) > 0 {
			return s.began
		}
	}
	return time.Time{}
}

const (
	maxRead   = 1000 // events that Read gives at once
	maxFollow = 128  // that one who follows holds at once
)

// Read gives the events after number since, oldest first and max at most (0: as
// many as it likes, and at least one if there is any). None means that there are
// none yet. Where some of those that follow since are not kept any more, or since is
// of a log that was before this one, the first of them is a [Gap].
func (l *Log) Read(since int64, max int) ([]Event, error) {
	if max <= 0 || max > maxRead {
		max = maxRead
	}
	list, _, err := l.readAgain(since, max)
	return list, err
}

func (l *Log) readAgain(since int64, most int) (list []Event, more chan struct{}, err error) {
	for {
		list, more, err = l.read(since, most)
		if errors.Is(err, fs.ErrNotExist) && l.First() > since+1 {
			continue // it was removed meanwhile: that is a gap now
		}
		return list, more, err
	}
}

// read also gives what is closed when there is more.
func (l *Log) read(since int64, most int) (list []Event, more chan struct{}, err error) {
	l.mu.RLock()
	more = l.more
	first, last := l.first(), l.last
	if since < first-1 || since > last {
		l.mu.RUnlock()
		return []Event{gap(since, first, last)}, more, nil
	}
	if since == last {
		l.mu.RUnlock()
		return nil, more, nil
	}
	if len(l.ring) > 0 && l.ring[0].N <= since+1 {
		i, _ := slices.BinarySearchFunc(l.ring, since+1, func(e Event, n int64) int { return cmp.Compare(e.N, n) })
		list = l.ring[i:min(i+most, len(l.ring))]
		list = list[:len(list):len(list)]
		l.mu.RUnlock()
		return list, more, nil
	}
	var files []stretch
	for i, s := range l.segs {
		if s.size > 0 && (i == len(l.segs)-1 || l.segs[i+1].first > since+1) {
			files = append(files, stretch{l.path(s), s.offset(since + 1), s.size})
		}
	}
	l.mu.RUnlock()
	// One file as a rule; the next where the rest of this is damaged.
	for _, f := range files {
		if list, err = f.read(since, most); err != nil || len(list) > 0 {
			return list, more, err
		}
	}
	return nil, more, fmt.Errorf("events after %d cannot be read: the files of the log are damaged", since)
}

// offset is where to begin to look for an event.
func (s *segment) offset(n int64) int64 {
	i, found := slices.BinarySearchFunc(s.marks, n, func(m mark, n int64) int { return cmp.Compare(m.n, n) })
	switch {
	case found:
		return s.marks[i].at
	case i > 0:
		return s.marks[i-1].at
	}
	return 0
}

// stretch is part of a segment's file.
type stretch struct {
	path   string
	at, to int64
}

func (f stretch) read(since int64, most int) (list []Event, err error) {
	file, err := os.Open(f.path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	lines := bufio.NewReaderSize(io.NewSectionReader(file, f.at, f.to-f.at), 64<<10)
	for len(list) < most {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		var e Event
		if json.Unmarshal(line, &e) != nil || e.N <= since {
			continue
		}
		e.line = line
		since = e.N
		list = append(list, e)
	}
	return list, nil
}

func gap(since, first, last int64) Event {
	e := Event{N: first - 1, At: time.Now().UTC().Truncate(time.Millisecond), Kind: Gap, First: first,
		Text: fmt.Sprintf("events %d to %d are not kept any more: what follows begins with %d", since+1, first-1, first)}
	if since > last {
		e.Text = fmt.Sprintf("event %d is not of this log, which ends with %d: what follows begins with %d", since, last, first)
	}
	return e
}

// Follow gives the events after number since, those that are there and then those
// that come, until ctx ends or the log is closed; gaps as Read does. Everybody
// reads at their own pace: one that stops for a while finds on disk what it has not
// read, or a gap where that is not kept any more. An error ends it.
func (l *Log) Follow(ctx context.Context, since int64) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for ctx.Err() == nil {
			l.mu.RLock()
			over := l.over
			l.mu.RUnlock()
			list, more, err := l.readAgain(since, maxFollow)
			if err != nil {
				yield(Event{}, err)
				return
			}
			for _, e := range list {
				if ctx.Err() != nil || !yield(e, nil) {
					return
				}
				since = e.N
			}
			if len(list) > 0 {
				continue
			}
			if over {
				return
			}
			select {
			case <-more:
			case <-ctx.Done():
			}
		}
	}
}
