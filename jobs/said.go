package jobs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/Morphux/quarry/internal/durable"
)

// said is what people have said by hand, as Options.State keeps it.
type said struct {
	Limit  *Hand          `json:"limit,omitempty"`
	Builds map[int64]Hand `json:"builds,omitempty"` // by number
}

// What was said of a build is kept for its further attempts, but not for ever.
const (
	saidKept  = 7 * 24 * time.Hour
	saidMost  = 10_000
	saidBytes = 4 << 20
)

// set notes what somebody said of a build, 0 for nothing any more.
func (s *said) set(number int64, n int, by string, now time.Time) {
	for b, h := range s.Builds {
		if now.Sub(h.At) > saidKept {
			delete(s.Builds, b)
		}
	}
	if n == 0 {
		delete(s.Builds, number)
		return
	}
	if s.Builds == nil {
		s.Builds = map[int64]Hand{}
	}
	if len(s.Builds) < saidMost {
		s.Builds[number] = Hand{Slots: n, By: by, At: now}
	}
}

// load reads what was said before a restart. What cannot be read was not said.
func (g *Governor) load() said {
	var s said
	if g.opts.State == "" {
		return s
	}
	st, err := os.Stat(g.opts.State)
	if errors.Is(err, fs.ErrNotExist) {
		return s
	}
	var data []byte
	if err == nil && st.Size() > saidBytes {
		err = fmt.Errorf("it has %d bytes", st.Size())
	}
	if err == nil {
		data, err = os.ReadFile(g.opts.State)
	}
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil {
		g.log.Warn("what was said by hand of jobs is lost", "file", g.opts.State, "error", err)
		return said{}
	}
	if h := s.Limit; h != nil && (h.Slots < 1 || h.Slots > MaxSlots) {
		s.Limit = nil
	}
	for b, h := range s.Builds {
		if h.Slots < 1 || h.Slots > MaxSlots {
			delete(s.Builds, b)
		}
	}
	return s
}

// save keeps what was said. g.mu is held: nobody says something so often that it
// mattered.
func (g *Governor) save() error {
	if g.opts.State == "" {
		return nil
	}
	data, err := json.Marshal(g.said)
	if err == nil {
		err = durable.WriteFile(g.opts.State, append(data, '\n'), 0o600, ".jobs-*")
	}
	if err != nil {
		return fmt.Errorf("it holds, but not after a restart: %w", err)
	}
	return nil
}

// hand is the limit that somebody has set, if it holds still. g.mu is held.
func (g *Governor) hand(now time.Time) *Hand {
	h := g.said.Limit
	if h != nil && !h.Until.IsZero() && !now.Before(h.Until) {
		return nil
	}
	return h
}
