package api

import (
	"bufio"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/events"
	"github.com/Morphux/quarry/web"
)

// A stream of events gives a sign of life while nothing happens, and goes on after
// it.
func TestQuietEvents(t *testing.T) {
	log, err := events.Open(t.TempDir(), events.Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	a := &API{farm: &control.Farm{Events: log}, log: slog.New(slog.DiscardHandler), beat: time.Millisecond}
	srv := httptest.NewServer(web.New(web.Options{Public: true, API: a.serve(route{handle: a.listEvents})}))
	defer srv.Close()
	req, err := http.NewRequestWithContext(t.Context(), "GET", srv.URL+"/api/v1/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	wait := func(want string) {
		t.Helper()
		for lines.Scan() {
			if lines.Text() == want {
				return
			}
		}
		t.Fatalf("the stream ends before there is %q: %v", want, lines.Err())
	}
	wait("retry: 2000")
	wait(":")
	log.Append(events.Event{Kind: events.Resumed, Text: "builds are started"})
	wait("id: 1")
	wait("event: " + events.Resumed)
	wait(":")
}
