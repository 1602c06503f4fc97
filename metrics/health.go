package metrics

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Check tells what keeps the farm from working; nil when nothing does.
type Check func(context.Context) error

const (
	checkTime = 5 * time.Second // that all checks get together
	checkKeep = 2 * time.Second // that their answer is good for: anybody may ask
)

// Health answers /healthz (200 while the process answers) and /readyz: 200 when no
// check finds anything, else 503, with JSON that says what each has found.
func Health(checks map[string]Check) http.Handler {
	h := &health{checks: checks}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]any{"status": "ok"})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		found := h.look(r.Context())
		status, word := http.StatusOK, "ready"
		for _, what := range found {
			if what != "ok" {
				status, word = http.StatusServiceUnavailable, "not ready"
			}
		}
		answer(w, status, map[string]any{"status": word, "checks": found})
	})
	return mux
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	data, _ := json.MarshalIndent(v, "", "  ") // of strings: cannot fail
	w.WriteHeader(status)
	_, _ = w.Write(append(data, '\n'))
}

type health struct {
	checks map[string]Check

	mu    sync.Mutex // held while it is checked: who asks meanwhile gets that answer
	found map[string]string
	at    time.Time
}

// look makes all checks at once.
func (h *health) look(ctx context.Context) map[string]string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Since(h.at) < checkKeep {
		return h.found
	}
	// The answer is for others, too: it does not end with this request.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTime)
	defer cancel()
	type answer struct{ name, what string }
	answers := make(chan answer, len(h.checks))
	names := slices.Sorted(maps.Keys(h.checks))
	for _, name := range names {
		go func() {
			what := "ok"
			if err := h.checks[name](ctx); err != nil {
				what = err.Error()
			}
			answers <- answer{name, what}
		}()
	}
	found := map[string]string{}
	for _, name := range names {
		found[name] = "does not answer: it hangs"
	}
	for range names {
		select {
		case a := <-answers:
			found[a.name] = a.what
		case <-ctx.Done():
			h.found, h.at = found, time.Now()
			return found
		}
	}
	h.found, h.at = found, time.Now()
	return found
}
