package notify

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/Morphux/quarry/events"
	"github.com/Morphux/quarry/internal/durable"
)

const hooksDir = "hooks"

// Hook is a place that is told of events by HTTP.
type Hook struct {
	Name       string // unique; what has been delivered is noted under it
	URL        string
	SecretFile string        // read anew for every delivery
	Events     []string      // kinds, as path.Match has them; none: all
	Packages   []string      // the same
	Timeout    time.Duration // of one delivery; 0: 20 s
	GiveUp     time.Duration // how long an event is tried; 0: 5 days
	Agent      string        // e.g. Quarry 1.2
	Farm       string
}

// HookStatus is how a webhook does.
type HookStatus struct {
	Name    string     `json:"name"`
	URL     string     `json:"url"`
	Cursor  int64      `json:"cursor"`          // the last event that it has been told of, or that is none of its
	Behind  int64      `json:"behind"`          // events after that, its own or not
	Tries   int        `json:"tries,omitempty"` // of the next one
	Next    *time.Time `json:"next,omitempty"`
	Failing *time.Time `json:"failing,omitempty"` // since when it takes nothing
	Error   string     `json:"error,omitempty"`
	// GivenUp is how many events it was not told of, and LastGivenUp the last.
	GivenUp     int64 `json:"given_up,omitempty"`
	LastGivenUp int64 `json:"last_given_up,omitempty"`
}

// hook delivers to one place, in the order of the events. What it is to be told
// yet is in the log of events: it only keeps how far it is.
type hook struct {
	Hook
	opts   *Options
	log    *slog.Logger
	client *http.Client
	path   string
	wake   chan struct{}

	mu     sync.Mutex // guards the following
	state  hookState
	next   time.Time
	passed int64 // events since the state was written
}

// hookState is kept in the hook's file.
type hookState struct {
	Begun       bool      `json:"begun"`
	Cursor      int64     `json:"cursor"`
	Tries       int       `json:"tries,omitempty"`
	Refusals    int       `json:"refusals,omitempty"` // of the next event, by who was reached
	Failing     time.Time `json:"failing,omitzero"`
	Error       string    `json:"error,omitempty"`
	GivenUp     int64     `json:"given_up,omitempty"`
	LastGivenUp int64     `json:"last_given_up,omitempty"`
}

func newHook(h Hook, opts *Options) (*hook, error) {
	if h.Timeout <= 0 {
		h.Timeout = 20 * time.Second
	}
	if h.GiveUp <= 0 {
		h.GiveUp = 5 * 24 * time.Hour
	}
	for _, p := range append(append([]string(nil), h.Events...), h.Packages...) {
		if err := events.CheckPattern(p); err != nil {
			return nil, fmt.Errorf("webhook %s: pattern %q: %w", h.Name, p, err)
		}
	}
	sum := sha256.Sum256([]byte(h.Name))
	k := &hook{Hook: h, opts: opts, log: opts.Log.With("webhook", h.Name), wake: make(chan struct{}, 1),
		path: filepath.Join(opts.Dir, hooksDir, hex.EncodeToString(sum[:8])+".json"),
		client: &http.Client{
			Timeout: h.Timeout,
			// One connection of its own: hooks share nothing that one could use up.
			Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, MaxConnsPerHost: 1, IdleConnTimeout: time.Minute,
				TLSHandshakeTimeout: h.Timeout, ResponseHeaderTimeout: h.Timeout, MaxResponseHeaderBytes: 64 << 10},
			// What is signed for one place is not for another.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}}
	data, err := os.ReadFile(k.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("webhook %s: %w", h.Name, err)
	default:
		if err := json.Unmarshal(data, &k.state); err != nil {
			return nil, fmt.Errorf("webhook %s: %s is damaged: remove it, and what it has not been told yet it will not be: %w", h.Name, k.path, err)
		}
	}
	return k, nil
}

// wants reports whether the hook is to be told of an event.
func (k *hook) wants(e *events.Event) bool {
	if e.Kind == events.Gap {
		return true
	}
	any := func(patterns []string, match func(string) bool) bool {
		for _, p := range patterns {
			if match(p) {
				return true
			}
		}
		return len(patterns) == 0
	}
	return any(k.Events, func(p string) bool { return e.Match(p, "") }) && any(k.Packages, func(p string) bool { return e.Match("", p) })
}

// run delivers until ctx ends.
func (k *hook) run(ctx context.Context) {
	defer k.client.CloseIdleConnections()
	if !k.state.Begun { // what is past is not news
		if k.opts.Events.Flush(ctx) != nil {
			return
		}
		k.change(func(s *hookState) { s.Begun, s.Cursor = true, k.opts.Events.Last() })
	}
	arrived := follow(ctx, k.opts.Events, k.log)
	for ctx.Err() == nil {
		list, err := k.opts.Events.Read(k.state.Cursor, 100)
		if err != nil {
			k.failed(fmt.Errorf("events cannot be read: %w", err))
		}
		passed := k.state.Cursor
		for i := range list {
			e := &list[i]
			if !k.wants(e) {
				passed = e.N
				continue
			}
			if err = k.deliver(ctx, e); err != nil {
				break
			}
			passed = e.N
		}
		k.pass(passed, ctx.Err() != nil)
		news, timer := arrived, (<-chan time.Time)(nil)
		switch {
		case err != nil:
			k.mu.Lock()
			news, timer = nil, time.After(time.Until(k.next))
			k.mu.Unlock()
		case len(list) > 0:
			continue
		}
		select {
		case <-ctx.Done():
		case <-news:
		case <-timer:
		case <-k.wake:
		}
	}
}

// refusals is how often a place that answers may refuse one event before that is
// given up, so that the others come through.
const refusals = 8

// deliver tells of one event, or gives it up. An error says that it is to be tried
// again, and has been noted.
func (k *hook) deliver(ctx context.Context, e *events.Event) error {
	status, err := k.post(ctx, e)
	if err == nil {
		k.change(func(s *hookState) {
			*s = hookState{Begun: true, Cursor: e.N, GivenUp: s.GivenUp, LastGivenUp: s.LastGivenUp}
		})
		return nil
	}
	if ctx.Err() != nil {
		return err
	}
	refused := status >= 400 && status < 500 && status != http.StatusRequestTimeout && status != http.StatusTooManyRequests
	k.mu.Lock()
	count := k.state.Refusals
	k.mu.Unlock()
	if refused && count+1 >= refusals || time.Since(e.At) > k.GiveUp {
		k.log.Error("a webhook is not told of an event, which is given up", "event", e.N, "err", err)
		k.change(func(s *hookState) {
			s.GivenUp, s.LastGivenUp = s.GivenUp+1, e.N
			s.Cursor, s.Tries, s.Refusals, s.Error = e.N, 0, 0, reason(err)
		})
		return nil
	}
	if refused {
		k.change(func(s *hookState) { s.Refusals++ })
	}
	k.failed(err)
	return err
}

// failed notes a try that did not go well, and when the next one is.
func (k *hook) failed(err error) {
	k.change(func(s *hookState) {
		if s.Failing.IsZero() {
			s.Failing = time.Now().UTC().Truncate(time.Second)
			k.log.Warn("a webhook takes nothing, which is tried again", "err", err)
		}
		s.Tries++
		s.Error = reason(err)
		k.next = time.Now().Add(k.opts.Backoff(s.Tries))
	})
}

// change notes how far the hook is. What cannot be written is told again after a
// restart, under the same id.
func (k *hook) change(f func(*hookState)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f(&k.state)
	k.passed = 0
	data, err := json.Marshal(k.state)
	if err == nil {
		err = durable.WriteFile(k.path, data, 0o600, ".new-*")
	}
	if err != nil {
		k.log.Warn("how far a webhook is cannot be noted", "err", err)
	}
}

// drop forgets what was given up.
func (k *hook) drop() int {
	k.mu.Lock()
	n := int(k.state.GivenUp)
	k.mu.Unlock()
	k.change(func(s *hookState) { s.GivenUp, s.LastGivenUp = 0, 0 })
	return n
}

// pass notes that there was nothing for the hook up to an event. That need not
// be on the disk: what is read again is still nothing.
func (k *hook) pass(n int64, now bool) {
	k.mu.Lock()
	before := k.state.Cursor
	k.state.Cursor = n
	k.passed += n - before
	now = now && k.passed > 0 || k.passed > 1000
	k.mu.Unlock()
	if now {
		k.change(func(*hookState) {})
	}
}

func (k *hook) retry() {
	k.mu.Lock()
	k.next = time.Time{}
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

func (k *hook) status() HookStatus {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := HookStatus{Name: k.Name, URL: k.URL, Cursor: k.state.Cursor, Tries: k.state.Tries, Error: k.state.Error,
		GivenUp: k.state.GivenUp, LastGivenUp: k.state.LastGivenUp}
	if k.state.Begun {
		s.Behind = max(0, k.opts.Events.Last()-k.state.Cursor)
	}
	if !k.state.Failing.IsZero() {
		failing := k.state.Failing
		s.Failing = &failing
	}
	if !k.next.IsZero() && s.Tries > 0 {
		next := k.next.UTC()
		s.Next = &next
	}
	return s
}

// delivery is the body of a delivery, in the form of standardwebhooks.com.
type delivery struct {
	Type      string          `json:"type"`
	Timestamp time.Time       `json:"timestamp"`
	Farm      string          `json:"farm,omitempty"`
	Data      json.RawMessage `json:"data"` // the event, as `events --json` has it
}

// post makes one delivery; status is that of the answer, 0 without one.
func (k *hook) post(ctx context.Context, e *events.Event) (status int, err error) {
	secret, err := secretOf(k.SecretFile)
	if err != nil {
		return 0, fmt.Errorf("its secret: %w", err)
	}
	body, err := json.Marshal(delivery{e.Kind, e.At, k.Farm, bytes.TrimSpace(e.Line())})
	if err != nil {
		return 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, k.URL, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	id, now := k.id(e), time.Now()
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", k.Agent)
	req.Header.Set("webhook-id", id)
	req.Header.Set("webhook-timestamp", strconv.FormatInt(now.Unix(), 10))
	req.Header.Set("webhook-signature", Sign(secret, id, now, body))
	answer, err := k.client.Do(req)
	if err != nil {
		// The address is often a secret, and everybody may read the status.
		if wrapped := new(url.Error); errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return 0, err
	}
	defer answer.Body.Close()
	io.Copy(io.Discard, io.LimitReader(answer.Body, 64<<10)) // so that the connection can be used again
	if answer.StatusCode < 200 || answer.StatusCode > 299 {
		return answer.StatusCode, fmt.Errorf("it answers %s", answer.Status)
	}
	return answer.StatusCode, nil
}

// id names a delivery: the same for the same event, however often it is tried.
func (k *hook) id(e *events.Event) string {
	at := e.At.UnixNano()
	if e.Kind == events.Gap { // made anew for each reading
		at = 0
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %s %d %d", k.Farm, k.Name, e.Kind, e.N, at))
	return "evt_" + hex.EncodeToString(sum[:12])
}

// Sign makes the header webhook-signature of a delivery, as standardwebhooks.com
// has it: HMAC-SHA256 over id, time and body. A secret that begins with whsec_ is
// base64 after that; any other is taken as it is.
func Sign(secret []byte, id string, at time.Time, body []byte) string {
	if text, ok := strings.CutPrefix(string(secret), "whsec_"); ok {
		if key, err := base64.StdEncoding.DecodeString(text); err == nil {
			secret = key
		}
	}
	mac := hmac.New(sha256.New, secret)
	fmt.Fprintf(mac, "%s.%d.", id, at.Unix())
	mac.Write(body)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}
