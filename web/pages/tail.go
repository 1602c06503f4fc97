package pages

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/control"
)

// look is how often a build that somebody looks at is looked at.
const look = time.Second

// watchBuild keeps a hub up to date with a build: the parts of its page and its
// log, over all attempts, until it has ended. One reader of the log serves all who
// look on.
func (s *Site) watchBuild(ctx context.Context, number int64, h *hub) {
	read := make(chan struct{})
	go func() {
		defer close(read)
		s.followLog(ctx, number, h)
	}()
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		b, err := s.Queue.Get(number)
		if err != nil {
			h.end("the build is not kept any more")
			return
		}
		if b.State.Ended() {
			select { // what the log has left comes first
			case <-read:
			case <-ctx.Done():
				return
			}
		}
		if parts, err := s.buildParts(ctx, b); err == nil {
			h.set(parts)
		} else if ctx.Err() == nil {
			s.Log.Warn("a build's page cannot be kept up to date", "build", number, "err", err)
		}
		if b.State.Ended() {
			h.end(control.Verdict(b, false))
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// followLog hands a hub the log of a build until the build has ended.
func (s *Site) followLog(ctx context.Context, number int64, h *hub) {
	t := &tail{h: h}
	for {
		b, err := s.Queue.Get(number)
		ended := err != nil || b.State.Ended()
		if ended || b.State == quarry.Running || b.State == quarry.Recording {
			if err := t.read(ctx, s, number, ended); err != nil && ctx.Err() == nil && !errors.Is(err, fs.ErrNotExist) {
				s.Log.Warn("a log cannot be followed", "build", number, "err", err)
			}
		}
		if ended {
			t.close()
			return
		}
		select {
		case <-time.After(look / 2): // between attempts, or before the first
		case <-ctx.Done():
			return
		}
	}
}

// tail is where somebody is in a growing log.
type tail struct {
	h   *hub
	s   splitter
	off int64
}

// read reads what has come since, to the end of the attempt. What has ended may be
// asked for of many builds at once, and is read of some at a time.
func (t *tail) read(ctx context.Context, s *Site, number int64, ended bool) error {
	if ended {
		if err := s.takeReader(ctx); err != nil {
			return err
		}
		defer s.giveReader()
	}
	r, err := s.Logs.Follow(ctx, number)
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := io.CopyN(io.Discard, r, t.off); err != nil {
		return fmt.Errorf("its beginning is gone: %w", err)
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		t.off += int64(n)
		if n > 0 {
			t.take(buf[:n])
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (t *tail) take(p []byte) {
	var rows [][]byte
	add := func(n int64, text []byte, over int64) {
		rows = append(rows, appendRow(nil, n, text, over))
	}
	t.s.write(p, add)
	var open []byte
	if len(t.s.rest) > 0 {
		open = appendRow(nil, t.s.n+1, t.s.rest, t.s.over)
	}
	t.h.add(rows, open)
}

func (t *tail) close() {
	var rows [][]byte
	t.s.end(func(n int64, text []byte, over int64) { rows = append(rows, appendRow(nil, n, text, over)) })
	if len(rows) > 0 {
		t.h.add(rows, nil)
	}
}
