package pages

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

// page is what a handler shows.
type page struct {
	Title    string
	Section  string // the entry of the navigation that it belongs to, e.g. queue
	Template string // its file without .html
	Data     any
	Live     string // address of the event stream that keeps it up to date; "" when nothing does
	Feed     string // address of its Atom feed; "" when there is none
}

// Bounds of what is kept of made pages.
const (
	maxCached    = 32 << 20 // bytes of all
	maxCachedOne = 2 << 20
	maxMaking    = 30 * time.Second
)

// cache keeps what was made for as long as it may be shown, so that many readers
// cost what one does.
type cache struct {
	making singleflight.Group

	mu   sync.Mutex // guards the following
	kept map[string]*made
	size int
}

// made is a page as it is sent.
type made struct {
	body, packed []byte
	etag         string
	until        time.Time
}

func (m *made) size() int { return len(m.body) + len(m.packed) }

func (c *cache) get(key string, now time.Time) *made {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m := c.kept[key]; m != nil && now.Before(m.until) {
		return m
	}
	return nil
}

func (c *cache) put(key string, m *made, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kept == nil {
		c.kept = map[string]*made{}
	}
	if old := c.kept[key]; old != nil {
		c.size -= old.size()
		delete(c.kept, key)
	}
	if m.size() > maxCachedOne {
		return
	}
	if c.size+m.size() > maxCached {
		for k, old := range c.kept { // first what has gone off
			if !now.Before(old.until) {
				c.size -= old.size()
				delete(c.kept, k)
			}
		}
	}
	for k, old := range c.kept {
		if c.size+m.size() <= maxCached {
			break
		}
		c.size -= old.size()
		delete(c.kept, k)
	}
	c.kept[key] = m
	c.size += m.size()
}

// fetch gives what is kept under a key, or makes it: once for all who ask
// meanwhile, and also when the first of them goes away.
func (c *cache) fetch(ctx context.Context, key string, keep time.Duration, make func(context.Context) ([]byte, error)) (*made, error) {
	if m := c.get(key, time.Now()); m != nil {
		return m, nil
	}
	v, err, _ := c.making.Do(key, func() (any, error) {
		if m := c.get(key, time.Now()); m != nil {
			return m, nil
		}
		ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), maxMaking)
		defer stop()
		body, err := make(ctx)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(body)
		now := time.Now()
		m := &made{body: body, packed: pack(body), etag: `W/"` + hex.EncodeToString(sum[:12]) + `"`, until: now.Add(keep)}
		c.put(key, m, now)
		return m, nil
	})
	if err != nil {
		return nil, err
	}
	return v.(*made), nil
}

// page serves what make makes, kept for a moment and compared with what the
// browser has. keys are the parameters of the query that it looks at: others make
// no other page.
func (s *Site) page(keep time.Duration, make func(ctx context.Context, r *http.Request) (*page, error), keys ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := r.URL.Path
		query := r.URL.Query()
		for _, k := range keys {
			if v := query.Get(k); v != "" {
				key += "\x00" + k + "=" + v
			}
		}
		m, err := s.cache.fetch(r.Context(), key, keep, func(ctx context.Context) ([]byte, error) {
			p, err := make(ctx, r)
			if err != nil {
				return nil, err
			}
			return s.render(p)
		})
		if err != nil {
			s.fail(w, r, err)
			return
		}
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Cache-Control", "private, no-cache")
		h.Set("ETag", m.etag)
		if same(r, m.etag) {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		send(w, r, m.body, m.packed)
	})
}

// same reports whether the browser has it already.
func same(r *http.Request, etag string) bool {
	for _, have := range strings.Split(r.Header.Get("If-None-Match"), ",") {
		have = strings.TrimSpace(have)
		if have == "*" || strings.TrimPrefix(have, "W/") == strings.TrimPrefix(etag, "W/") {
			return true
		}
	}
	return false
}

// send writes a whole body, packed where that is understood and worth it.
func send(w http.ResponseWriter, r *http.Request, body, packed []byte) {
	h := w.Header()
	h.Add("Vary", "Accept-Encoding")
	if len(packed) > 0 && len(packed) < len(body) && acceptsGzip(r) {
		h.Set("Content-Encoding", "gzip")
		body = packed
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(body)
	}
}

func acceptsGzip(r *http.Request) bool {
	for _, part := range strings.Split(r.Header.Get("Accept-Encoding"), ",") {
		name, q, _ := strings.Cut(strings.TrimSpace(part), ";")
		if name = strings.TrimSpace(name); name == "gzip" || name == "*" {
			q = strings.ReplaceAll(q, " ", "")
			return q != "q=0" && q != "q=0.0" && q != "q=0.00" && q != "q=0.000"
		}
	}
	return false
}

func pack(body []byte) []byte {
	if len(body) < 512 {
		return nil
	}
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, 5)
	if err != nil {
		return nil
	}
	if _, err := w.Write(body); err != nil || w.Close() != nil {
		return nil
	}
	return b.Bytes()
}
