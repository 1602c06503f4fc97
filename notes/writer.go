package notes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/events"
	"github.com/Morphux/quarry/internal/durable"
)

// Writer writes notes as builds end.
type Writer struct {
	Events *events.Log
	Dir    string // its own folder, which remembers how far it has come
	// Note replaces the note on a commit of a package by what edit makes of it.
	Note func(ctx context.Context, pkg, commit string, edit func(old string) string) error
	// Never reports whether an error is one that trying again does not mend.
	Never func(error) bool
	URL   func(build int64) string // of a build's page; "" for none
	Log   *slog.Logger

	// RetryMin and RetryMax bound the pause before a note is tried again; it
	// doubles. 0: 10 s and 1 h.
	RetryMin, RetryMax time.Duration
}

const (
	noteTime = time.Minute // that writing one note may take
	// maxWaiting is how many notes may wait to be tried again, before no more
	// events are taken.
	maxWaiting = 1000
	// giveUp is how old an event may get whose note cannot be written.
	giveUp = 7 * 24 * time.Hour
)

// waiting is a note that could not be written.
type waiting struct {
	build quarry.Build
	n     int64 // of its event
	at    time.Time
	tries int
}

// Run goes on until ctx ends.
func (w *Writer) Run(ctx context.Context) error {
	if w.RetryMin <= 0 {
		w.RetryMin = 10 * time.Second
	}
	if w.RetryMax <= 0 {
		w.RetryMax = time.Hour
	}
	if err := os.MkdirAll(w.Dir, 0o755); err != nil {
		return fmt.Errorf("folder of the notes' place cannot be made: %w", err)
	}
	seen := w.load()
	saved := seen
	// What is read ahead is what the channel holds.
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	next := make(chan events.Event, 64)
	failed := make(chan error, 1)
	go func() {
		defer close(next)
		for e, err := range w.Events.Follow(ctx, seen) {
			if err != nil {
				failed <- err
				return
			}
			select {
			case next <- e:
			case <-ctx.Done():
				return
			}
		}
	}()
	var again []waiting // by number
	for {
		// The place is that of the first event whose note is not written.
		place := seen
		if len(again) > 0 {
			place = again[0].n - 1
		}
		if place != saved && (len(next) == 0 || place > saved+100) {
			if err := durable.WriteFile(w.path(), []byte(strconv.FormatInt(place, 10)+"\n"), 0o644, ".place-*"); err != nil {
				w.Log.Warn("how far notes have come cannot be written down", "err", err)
			}
			saved = place
		}
		var retry <-chan time.Time
		var timer *time.Timer
		if i := soonest(again); i >= 0 {
			timer = time.NewTimer(time.Until(again[i].at))
			retry = timer.C
		}
		source := next
		if len(again) >= maxWaiting {
			source = nil
		}
		select {
		case e, ok := <-source:
			switch {
			case !ok:
				select {
				case err := <-failed:
					return fmt.Errorf("events cannot be read for notes: %w", err)
				default:
					return nil
				}
			case e.Kind == events.Gap:
				seen = e.N
			default:
				seen = e.N
				if e.Kind == events.Succeeded || e.Kind == events.Failed {
					if again = w.try(ctx, again, waiting{build: *e.Build, n: e.N}); ctx.Err() != nil {
						return nil
					}
				}
			}
		case <-retry:
			i := soonest(again)
			one := again[i]
			again = append(again[:i:i], again[i+1:]...)
			if again = w.try(ctx, again, one); ctx.Err() != nil {
				return nil
			}
		case <-ctx.Done():
			return nil
		}
		if timer != nil {
			timer.Stop()
		}
	}
}

func soonest(list []waiting) int {
	found := -1
	for i := range list {
		if found < 0 || list[i].at.Before(list[found].at) {
			found = i
		}
	}
	return found
}

// try writes one note. What failed is among those that wait then, in order.
func (w *Writer) try(ctx context.Context, again []waiting, one waiting) []waiting {
	b := one.build
	log := w.Log.With(b.LogAttrs()...)
	call, stop := context.WithTimeout(ctx, noteTime)
	defer stop()
	url := ""
	if w.URL != nil {
		url = w.URL(b.Number)
	}
	line := Line(b, url)
	err := w.Note(call, b.Package, b.Commit, func(old string) string { return Merge(old, line) })
	switch {
	case err == nil, ctx.Err() != nil:
		return again
	case w.Never != nil && w.Never(err), errors.Is(err, fs.ErrNotExist):
		log.Debug("no note of the build is written", "err", err)
		return again
	case time.Since(b.Ended) > giveUp:
		log.Warn("the note of the build is given up", "err", err)
		return again
	}
	if one.tries == 0 {
		log.Warn("the note of the build cannot be written, which is tried again", "err", err)
	}
	one.at = time.Now().Add(min(w.RetryMin<<min(one.tries, 20), w.RetryMax))
	one.tries++
	for i := range again {
		if again[i].n > one.n {
			return append(again[:i:i], append([]waiting{one}, again[i:]...)...)
		}
	}
	return append(again, one)
}

func (w *Writer) path() string { return filepath.Join(w.Dir, "place") }

// load tells up to which event all notes are written. Where that is not known it
// begins with the oldest event: notes that stand are not written again.
func (w *Writer) load() int64 {
	data, err := os.ReadFile(w.path())
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	if err != nil || n < 0 {
		return 0
	}
	return n
}
