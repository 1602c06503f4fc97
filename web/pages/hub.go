package pages

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/Morphux/quarry/web"
)

// A hub makes what many people look at live once for all of them: parts of a
// page, and the lines of a log. It keeps the latest state of each part and the
// last lines, so that nobody is ever waited for: a slow reader gets the state that
// is true when it reads, and is told which lines it has missed.
type hub struct {
	mu      sync.Mutex // guards the following
	changed chan struct{}
	parts   []part
	seq     int64 // of the last change of a part
	first   int64 // line of rows[0], from 1
	rows    [][]byte
	size    int    // bytes of rows
	open    []byte // the line that has not ended yet
	opened  int64  // rises when that changes
	verdict string // how it ended; "" while it goes on

	users  int
	linger *time.Timer
}

// part is a piece of a page, found by its id.
type part struct {
	id   string
	html []byte
	seq  int64
}

// What a hub keeps of a log.
const (
	keepRows = 2000
	keepSize = 1 << 20
)

func newHub() *hub { return &hub{changed: make(chan struct{}), first: 1} }

// wake tells who waits; h.mu is held.
func (h *hub) wake() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// set replaces parts; those that are the same wake nobody.
func (h *hub) set(parts []part) {
	h.mu.Lock()
	defer h.mu.Unlock()
	changed := false
	for _, p := range parts {
		i := 0
		for i < len(h.parts) && h.parts[i].id != p.id {
			i++
		}
		if i == len(h.parts) {
			h.parts = append(h.parts, part{id: p.id})
		}
		if string(h.parts[i].html) != string(p.html) {
			h.seq++
			h.parts[i] = part{p.id, p.html, h.seq}
			changed = true
		}
	}
	if changed {
		h.wake()
	}
}

// add adds lines, and the beginning of one that has not ended.
func (h *hub) add(rows [][]byte, open []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range rows {
		h.size += len(r)
	}
	h.rows = append(h.rows, rows...)
	drop := 0
	for len(h.rows)-drop > keepRows || h.size > keepSize && len(h.rows)-drop > 1 {
		h.size -= len(h.rows[drop])
		drop++
	}
	if drop > 0 {
		// Copied, as who is just reading has the old ones.
		h.rows = append(make([][]byte, 0, keepRows+200), h.rows[drop:]...)
		h.first += int64(drop)
	}
	if len(rows) > 0 || string(open) != string(h.open) {
		h.open = open
		h.opened++
		h.wake()
	}
}

// end says how it all ended.
func (h *hub) end(verdict string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.verdict = verdict
	h.wake()
}

// hubs are those that somebody looks at.
type hubs struct {
	mu sync.Mutex // guards the following, and the users of each
	by map[string]*hub
}

// lingers is how long a hub goes on with nobody there: pages are loaded again.
const lingers = 5 * time.Second

// maxHubs is how many different things may be looked at live at one time: each has
// up to keepSize of a log.
const maxHubs = 256

// join gives the hub of a name, which run keeps up to date while anybody is
// there; nil when there are too many. leave has to be called.
func (s *hubs) join(name string, run func(ctx context.Context, h *hub)) (h *hub, leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by == nil {
		s.by = map[string]*hub{}
	}
	h = s.by[name]
	if h == nil && len(s.by) >= maxHubs {
		return nil, func() {}
	}
	if h == nil {
		h = newHub()
		ctx, stop := context.WithCancel(context.Background())
		h.linger = time.AfterFunc(time.Hour, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if h.users == 0 {
				stop()
				delete(s.by, name)
			}
		})
		s.by[name] = h
		go run(ctx, h)
	}
	h.linger.Stop()
	h.users++
	return h, sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if h.users--; h.users == 0 {
			h.linger.Reset(lingers)
		}
	})
}

// Times of a stream.
const (
	batch     = 200 * time.Millisecond // what comes within it is sent together
	heartbeat = 15 * time.Second
	maxBatch  = 256 << 10 // bytes sent at once
)

// stream sends what a hub has as server-sent events (HTML Living Standard, 9.2),
// until it ends or the reader is gone. next is the first line of the log that is
// wanted; 0: no log.
func stream(w http.ResponseWriter, r *http.Request, h *hub, next int64) {
	if h == nil {
		w.Header().Set("Retry-After", "30")
		web.Error(w, r, http.StatusServiceUnavailable, "too many builds are being looked at: try again in a moment")
		return
	}
	ctx, end, ok := web.Stream(w, r)
	if !ok {
		return
	}
	defer end()
	if id, err := strconv.ParseInt(r.Header.Get("Last-Event-ID"), 10, 64); err == nil && id >= 0 && next > 0 {
		next = id + 1
	}
	header := w.Header()
	header.Set("Content-Type", "text/event-stream")
	header.Set("Cache-Control", "no-store")
	header.Set("X-Accel-Buffering", "no") // nginx would wait for more
	rc := http.NewResponseController(w)
	var seq, opened int64
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	pause := time.NewTimer(0)
	defer pause.Stop()
	if _, err := fmt.Fprint(w, "retry: 2000\n\n"); err != nil {
		return
	}
	for {
		out, changed := h.collect(&seq, &opened, &next)
		for _, b := range out.events {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
		if err := rc.Flush(); err != nil {
			return
		}
		if out.over {
			return
		}
		if !out.more {
			select {
			case <-ctx.Done():
				return
			case <-changed:
			case <-beat.C:
				if _, err := fmt.Fprint(w, ":\n\n"); err != nil {
					return
				}
				continue
			}
		}
		pause.Reset(batch)
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
	}
}

// outgoing is what one reader is sent at once.
type outgoing struct {
	events [][]byte
	more   bool // there is more already
	over   bool // it was the last
}

// collect gives what a reader does not have yet, and a channel that is closed
// when there is more.
func (h *hub) collect(seq, opened, next *int64) (out outgoing, changed <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.parts {
		if p := &h.parts[i]; p.seq > *seq {
			out.events = append(out.events, []byte("event: part\n"), data(p.html), []byte("\n"))
		}
	}
	*seq = h.seq
	if *next > 0 {
		h.lines(&out, opened, next)
	}
	if h.verdict != "" && !out.more {
		out.events = append(out.events, []byte("event: end\n"), data([]byte(h.verdict)), []byte("\n"))
		out.over = true
	}
	return out, h.changed
}

// lines adds the lines of the log from *next on.
func (h *hub) lines(out *outgoing, opened, next *int64) {
	end := h.first + int64(len(h.rows)) // behind the last that is whole
	if *next < h.first {
		out.events = append(out.events, fmt.Appendf(nil, "event: gap\nid: %d\ndata: %d %d\n\n", h.first-1, *next, h.first-1))
		*next = h.first
	}
	if *next < end {
		rows := h.rows[*next-h.first:]
		size, n := 0, 0
		for n < len(rows) && (n == 0 || size+len(rows[n]) <= maxBatch) {
			size += len(rows[n])
			n++
		}
		*next += int64(n)
		out.events = append(out.events, fmt.Appendf(nil, "event: lines\nid: %d\ndata: ", *next-1))
		out.events = append(out.events, rows[:n]...)
		out.events = append(out.events, []byte("\n\n"))
		out.more = *next < end
	}
	if !out.more && h.opened != *opened {
		*opened = h.opened
		if len(h.open) > 0 && *next == end {
			out.events = append(out.events, []byte("event: lines\ndata: "), h.open, []byte("\n\n"))
		}
	}
}

// data is text as the data of an event.
func data(text []byte) []byte {
	return []byte("data: " + strings.ReplaceAll(strings.ReplaceAll(string(text), "\r", ""), "\n", "\ndata: ") + "\n")
}
