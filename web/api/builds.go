package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/events"
	"github.com/Morphux/quarry/queue"
	"github.com/Morphux/quarry/web"
)

var states = []quarry.State{quarry.Waiting, quarry.Queued, quarry.Running, quarry.Recording,
	quarry.Succeeded, quarry.Failed, quarry.Errored, quarry.Cancelled, quarry.Obsolete}

func (a *API) buildRoutes() []route {
	number := param{"path", "number", "number of the build", integer(1, 0), true}
	return []route{
		{method: "GET", path: "/api/v1/builds", id: "listBuilds", tag: "builds", short: "List builds, newest first",
			long: "All under way, and those that ended lately. The header Link leads on.",
			params: []param{
				{"query", "package", "only of this package", text, false}, {"query", "version", "only of this version", text, false},
				{"query", "arch", "only for this arch", text, false}, {"query", "channel", "only on this channel", text, false},
				{"query", "commit", "only of this commit", text, false},
				{"query", "state", "only in these states", listOf(enum(states)), false},
				{"query", "live", "only those under way", boolean, false},
				{"query", "before", "only those with lower numbers", integer(1, 0), false},
				{"query", "limit", "how many at most", integer(1, 1000), false}},
			answers: []answer{{200, "the builds", jsonOf[[]quarry.Build](), []string{"Link", "ETag"}}}, errors: []int{400}, handle: a.listBuilds},
		{method: "GET", path: "/api/v1/builds/{number}", id: "getBuild", tag: "builds", short: "Show a build",
			params: []param{number}, answers: []answer{{200, "the build", jsonOf[quarry.Build](), []string{"ETag"}}}, errors: []int{404}, handle: a.getBuild},
		{method: "GET", path: "/api/v1/builds/{number}/log", id: "getLog", tag: "builds", short: "Get the log of a build",
			long: "As it was printed: escape sequences in it can do anything to a terminal. The verb\nlog makes them visible. Of a build that runs, it is what there is; with follow, it\ngoes on until the build has ended.",
			params: []param{number, {"query", "follow", "go on until the build has ended", boolean, false},
				{"header", "Range", "bytes=FIRST- or bytes=FIRST-LAST", text, false}},
			answers: []answer{{200, "the log", plain, nil}, {206, "a part of it", plain, []string{"Content-Range"}}}, errors: []int{400, 404, 416}, handle: a.getLog},
		{method: "GET", path: "/api/v1/builds/{number}/why", id: "explainBuild", tag: "builds", short: "Explain a build that has ended",
			params: []param{number}, answers: []answer{{200, "what happened, and what has changed since the last success", jsonOf[control.Report](), []string{"ETag"}}}, errors: []int{404}, handle: a.explain},
		{method: "GET", path: "/api/v1/events", id: "listEvents", tag: "events", short: "Read what has happened, or listen",
			long: "Lines of JSON, or server-sent events for those who accept text/event-stream, which\ngo on until the client leaves, and from Last-Event-ID where that is sent.",
			params: []param{
				{"query", "since", "events after this number; 0: all that are kept", integer(0, 0), false},
				{"query", "limit", "how many at most", integer(1, 10000), false},
				{"query", "kind", "only of these kinds, a pattern, e.g. build.*", text, false},
				{"query", "package", "only about these packages, a pattern", text, false},
				{"query", "follow", "go on until the client leaves", boolean, false},
				{"header", "Last-Event-ID", "as since", integer(0, 0), false}},
			answers: []answer{{200, "events, one a line", map[string]any{"application/jsonl": schemaOf[events.Event](), "text/event-stream": text}, nil}}, errors: []int{400, 404}, handle: a.listEvents},
	}
}

func (a *API) listBuilds(w http.ResponseWriter, r *http.Request) error {
	q, err := query(r, "package", "version", "arch", "channel", "commit", "state", "live", "before", "limit")
	if err != nil {
		return err
	}
	f := queue.Filter{Package: q.Get("package"), Version: q.Get("version"), Arch: q.Get("arch"), Channel: q.Get("channel"), Commit: q.Get("commit")}
	for _, s := range q["state"] {
		if !slices.Contains(states, quarry.State(s)) {
			return usage("state %.40q is none: there are %s", s, strings.Trim(fmt.Sprint(states), "[]"))
		}
		f.States = append(f.States, quarry.State(s))
	}
	if f.Live, err = truth(q, "live"); err != nil {
		return err
	}
	if f.Before, err = number(q, "before", 0, 1, 1<<53); err != nil {
		return err
	}
	limit, err := number(q, "limit", 100, 1, 1000)
	if err != nil {
		return err
	}
	f.Limit = int(limit) + 1 // to see whether more follow
	builds := a.farm.Queue.List(f)
	if len(builds) == f.Limit {
		builds = builds[:limit]
		next(w, r, "before", strconv.FormatInt(builds[limit-1].Number, 10))
	}
	if builds == nil {
		builds = []quarry.Build{}
	}
	return send(w, r, http.StatusOK, builds)
}

// build finds the build that a path names.
func (a *API) build(r *http.Request) (quarry.Build, error) {
	n, err := buildNumber(r)
	if err != nil {
		return quarry.Build{}, err
	}
	b, err := a.farm.Build(r.Context(), n)
	if err != nil {
		return b, notFound("%w", err)
	}
	return b, nil
}

func buildNumber(r *http.Request) (int64, error) {
	n, err := strconv.ParseInt(r.PathValue("number"), 10, 64)
	if err != nil || n <= 0 {
		return 0, notFound("build %.40q is no number", r.PathValue("number"))
	}
	return n, nil
}

func (a *API) getBuild(w http.ResponseWriter, r *http.Request) error {
	b, err := a.build(r)
	if err != nil {
		return err
	}
	return send(w, r, http.StatusOK, b)
}

func (a *API) explain(w http.ResponseWriter, r *http.Request) error {
	b, err := a.build(r)
	switch {
	case err != nil:
		return err
	case a.farm.Why == nil:
		return notFound("this farm explains no builds")
	}
	rep, err := a.farm.Why.Why(r.Context(), b)
	if err != nil {
		if !b.State.Ended() || b.Record == "" { // there is nothing to explain it by
			return notFound("%w", err)
		}
		return err
	}
	return send(w, r, http.StatusOK, rep)
}

func (a *API) getLog(w http.ResponseWriter, r *http.Request) error {
	q, err := query(r, "follow")
	if err != nil {
		return err
	}
	follow, err := truth(q, "follow")
	if err != nil {
		return err
	}
	n, err := buildNumber(r)
	if err != nil {
		return err
	}
	gone := func(err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return notFound("build %d has no log: it has not begun, or its log was old and is gone", n)
		}
		return err
	}
	w.Header().Set("Cache-Control", "no-cache")
	if follow {
		if _, err := a.farm.Queue.Get(n); err == nil {
			return a.followLog(w, r, n)
		}
	}
	log, err := a.farm.Logs.Open(n)
	if err != nil {
		return gone(err)
	}
	defer log.Close()
	w.Header().Set("Accept-Ranges", "bytes")
	first, last, part := byteRange(r.Header.Get("Range"))
	if !part {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.Copy(w, log)
		return nil
	}
	if _, err := io.CopyN(io.Discard, log, first); err != nil && err != io.EOF {
		return err
	}
	// How long the log is shows only at its end: a part is read before it is
	// announced, so at most this much of it is given.
	data, err := io.ReadAll(io.LimitReader(log, min(last-first+1, maxPart)))
	if err != nil {
		return err
	}
	if len(data) == 0 {
		w.Header().Set("Content-Range", "bytes */*")
		return &statusError{http.StatusRequestedRangeNotSatisfiable, fmt.Errorf("the log of build %d has no more than %d bytes", n, first)}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/*", first, first+int64(len(data))-1))
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	w.WriteHeader(http.StatusPartialContent)
	_, _ = w.Write(data)
	return nil
}

// maxPart is how many bytes of a log one range gives.
const maxPart = 8 << 20

// byteRange reads a range of bytes with a beginning. Others are passed over, as
// they may be (RFC 9110, 14.2).
func byteRange(s string) (first, last int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes=")
	from, to, dash := strings.Cut(s, "-")
	if !ok || !dash {
		return 0, 0, false
	}
	first, err := strconv.ParseInt(from, 10, 64)
	if err != nil || first < 0 || first > 1<<53 {
		return 0, 0, false
	}
	last = 1 << 53
	if to != "" {
		if last, err = strconv.ParseInt(to, 10, 64); err != nil || last < first {
			return 0, 0, false
		}
	}
	return first, min(last, 1<<53), true
}

// followLog sends the log of a build over all attempts, until the build has
// ended and is recorded.
func (a *API) followLog(w http.ResponseWriter, r *http.Request, n int64) error {
	ctx, end, ok := web.Stream(w, r)
	if !ok {
		return nil
	}
	defer end()
	changes := a.farm.Queue.Subscribe(ctx)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	rc := http.NewResponseController(w)
	_ = rc.Flush() // it may be long until there is something
	var done int64 // bytes sent; each attempt goes on in the same log
	for {
		if log, err := a.farm.Logs.Follow(ctx, n); err == nil {
			gone := false
			if _, err := io.CopyN(io.Discard, log, done); err == nil {
				more, err := io.Copy(flushed{w, rc}, log)
				done += more
				gone = err != nil
			}
			log.Close()
			if gone {
				return nil
			}
		}
		b, err := a.farm.Queue.Get(n)
		if err != nil || b.State.Ended() || ctx.Err() != nil {
			return nil
		}
		select {
		case _, ok := <-changes:
			if !ok {
				return nil
			}
		case <-time.After(time.Second):
		case <-ctx.Done():
			return nil
		}
	}
}

// flushed sends each write at once.
type flushed struct {
	w  io.Writer
	rc *http.ResponseController
}

func (f flushed) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	if err == nil {
		err = f.rc.Flush()
	}
	return n, err
}

func (a *API) listEvents(w http.ResponseWriter, r *http.Request) error {
	q, err := query(r, "since", "limit", "kind", "package", "follow")
	switch {
	case err != nil:
		return err
	case a.farm.Events == nil:
		return notFound("this farm keeps no events")
	}
	log := a.farm.Events
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		q.Set("since", id) // newer than the address, which stays the same
	}
	since, err := number(q, "since", max(0, log.Last()-100), 0, 1<<53)
	if err != nil {
		return err
	}
	follow, err := truth(q, "follow")
	if err != nil {
		return err
	}
	sse := prefers(r, "text/event-stream", "application/jsonl")
	standard := int64(1000)
	if follow || sse {
		follow, standard = true, 1<<53
	}
	limit, err := number(q, "limit", standard, 1, 10000)
	if err != nil {
		return err
	}
	kind, pkg := q.Get("kind"), q.Get("package")
	for _, p := range []string{kind, pkg} {
		if events.CheckPattern(p) != nil {
			return usage("pattern %.40q does not match names: write it like build.* or lib*", p)
		}
	}
	ctx, end, ok := web.Stream(w, r)
	if !ok {
		return nil
	}
	defer end()
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "application/jsonl")
	if sse {
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, "retry: 2000\n\n")
	}
	rc := http.NewResponseController(w)
	if follow {
		_ = rc.Flush()
	}
	return a.writeEvents(ctx, w, rc, since, limit, kind, pkg, follow, sse)
}

func (a *API) writeEvents(ctx context.Context, w io.Writer, rc *http.ResponseController, since, limit int64, kind, pkg string, follow, sse bool) error {
	log := a.farm.Events
	until := log.Last()
	if !follow && since >= until {
		return nil
	}
	send := func(b []byte) bool {
		_, err := w.Write(b)
		return err == nil && (!follow || rc.Flush() == nil)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	happens := make(chan happened)
	go func() {
		defer close(happens)
		for e, err := range log.Follow(ctx, since) {
			select {
			case happens <- happened{e, err}:
			case <-ctx.Done():
				return
			}
		}
	}()
	// A proxy takes a stream that is quiet for one that is dead.
	var beat <-chan time.Time
	if sse {
		t := time.NewTicker(a.beat)
		defer t.Stop()
		beat = t.C
	}
	for {
		select {
		case <-beat:
			if !send([]byte(":\n\n")) {
				return nil
			}
		case h, ok := <-happens:
			switch {
			case !ok:
				return nil
			case h.err != nil:
				if ctx.Err() == nil {
					a.log.Warn("events cannot be read", "err", h.err)
				}
				return nil
			case h.Match(kind, pkg):
				line := h.Line()
				if sse {
					line = fmt.Appendf(nil, "id: %d\nevent: %s\ndata: %s\n", h.N, h.Kind, line)
				}
				if !send(line) {
					return nil
				}
				if limit--; limit == 0 {
					return nil
				}
			}
			if !follow && h.N >= until {
				return nil
			}
		}
	}
}

// happened is an event, or why there is none.
type happened struct {
	events.Event
	err error
}
