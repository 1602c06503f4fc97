package pages

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/livelog"
	"github.com/Morphux/quarry/internal/testbrowser"
)

// event is a server-sent event.
type event struct{ kind, id, data string }

// events reads a stream until it ends.
func (w *world) events(ctx context.Context, path, last string) <-chan event {
	w.t.Helper()
	req, err := http.NewRequestWithContext(ctx, "GET", w.srv.URL+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	if last != "" {
		req.Header.Set("Last-Event-ID", last)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	if ct := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || ct != "text/event-stream" {
		w.t.Fatalf("%s: %s, %q", path, resp.Status, ct)
	}
	out := make(chan event)
	go func() {
		defer close(out)
		defer resp.Body.Close()
		var e event
		for r := bufio.NewReader(resp.Body); ; {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
			switch name {
			case "event":
				e.kind = value
			case "id":
				e.id = value
			case "data":
				e.data += value + "\n"
			case "":
				if e.kind != "" {
					select {
					case out <- e:
					case <-ctx.Done():
						return
					}
				}
				e = event{}
			}
		}
	}()
	return out
}

// lines are the numbers of the lines in an event.
func (e event) lines() (list []string) {
	for _, m := range lineID.FindAllStringSubmatch(e.data, -1) {
		list = append(list, m[1])
	}
	return list
}

// told is a build that logs what it is told and ends when it is told to.
type told struct {
	w     *world
	say   chan string
	began chan struct{}
}

var errLost = errors.New("the farm lost it")

func tell(w *world) *told {
	d := &told{w: w, say: make(chan string), began: make(chan struct{}, 10)}
	w.does(func(ctx context.Context, _ quarry.Build, log *livelog.Log, step func(string)) (*quarry.Failure, error) {
		step(quarry.StepMake)
		d.began <- struct{}{}
		for {
			select {
			case s := <-d.say:
				switch s {
				case "END":
					return nil, nil
				case "LOST":
					return nil, errLost
				}
				io.WriteString(log, s)
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	})
	return d
}

// TestStream: who follows gets every line once and in order, over a connection that
// is cut and over attempts, and the verdict at the end.
func TestStream(t *testing.T) {
	w := newWorld(t, 1)
	d := tell(w)
	b := w.push("zlib", "1.3.1")[0]
	<-d.began
	ctx, stop := context.WithCancel(t.Context())
	at := buildURL(b.Number) + "/live"
	stream := w.events(ctx, at+"?from=1", "")
	next, last := 1, ""
	read := func(until string) {
		t.Helper()
		for e := range stream {
			if e.kind == until {
				return
			}
			if e.kind != "lines" {
				continue
			}
			for _, n := range e.lines() {
				if n != fmt.Sprint(next) && !(e.id == "" && n == fmt.Sprint(next)) {
					t.Fatalf("line %s comes, and %d was to: %q", n, next, e.data)
				}
				if e.id != "" { // it has ended
					next++
				}
			}
			if e.id != "" {
				last = e.id
			}
			if until != "" && strings.Contains(e.data, until) {
				return
			}
		}
		if until != "" {
			t.Fatalf("the stream ends before %q", until)
		}
	}
	d.say <- "one\ntwo\nbegun"
	read(">begun<") // though it has no end
	d.say <- " and ended\nthree\n"
	read("begun and ended")
	stop()
	for range stream {
	}
	d.say <- "four\nfive\n"
	ctx, stop = context.WithCancel(t.Context())
	defer stop()
	stream = w.events(ctx, at+"?from=1", last)
	read("five")
	d.say <- "LOST"
	<-d.began // the second attempt, in the same log
	d.say <- "six\n"
	read(">six<")
	d.say <- "last, without an end"
	d.say <- "END"
	read("last, without an end")
	read("end")
	w.end(b.Number)
	// Who comes late gets the verdict and what belongs to it.
	stream = w.events(t.Context(), at, "")
	var kinds []string
	for e := range stream {
		kinds = append(kinds, e.kind)
		if e.kind == "end" && !strings.Contains(e.data, "succeeded") {
			t.Errorf("the verdict is %q", e.data)
		}
	}
	if len(kinds) < 2 || kinds[len(kinds)-1] != "end" || kinds[0] != "part" {
		t.Errorf("a build that has ended gives %q", kinds)
	}
	// The page itself has them all.
	_, text := w.get(buildURL(b.Number) + "?from=1")
	if first, end, n := shown(text); first != "1" || fmt.Sprint(n) != end || !strings.Contains(text, "attempt 2 begins") {
		t.Errorf("the page has lines %s to %s, %d of them", first, end, n)
	}
}

// TestGap: who is too slow, or comes late, is told what it has missed, and nobody
// keeps it.
func TestGap(t *testing.T) {
	w := newWorld(t, 1)
	d := tell(w)
	b := w.push("zlib", "1.3.1")[0]
	<-d.began
	d.say <- strings.Repeat("a line\n", 3*keepRows)
	d.say <- "the last\n"
	stream := w.events(t.Context(), buildURL(b.Number)+"/live?from=1", "")
	got, missed := 0, 0
	for e := range stream {
		switch e.kind {
		case "gap":
			var first, last int
			if _, err := fmt.Sscanf(e.data, "%d %d", &first, &last); err != nil || first != got+missed+1 || last < first || e.id != fmt.Sprint(last) {
				t.Fatalf("a gap of %q after line %d", e.data, got+missed)
			}
			missed += last - first + 1
		case "lines":
			if first := e.lines()[0]; first != fmt.Sprint(got+missed+1) {
				t.Fatalf("line %s comes after %d", first, got+missed)
			}
			got += len(e.lines())
		}
		if got+missed == 3*keepRows+1 {
			break
		}
	}
	if got > keepRows+10*perPage && missed == 0 {
		t.Errorf("%d lines came, %d were missed", got, missed)
	}
	d.say <- "END"
}

// TestHub: a hub keeps a bounded part of a log, and the last state of each part.
func TestHub(t *testing.T) {
	h := newHub()
	row := []byte(strings.Repeat("x", 1000))
	for range 5000 {
		h.add([][]byte{row}, nil)
	}
	if len(h.rows) > keepRows || h.size > keepSize || h.first+int64(len(h.rows)) != 5001 {
		t.Errorf("%d rows of %d bytes are kept, from %d on", len(h.rows), h.size, h.first)
	}
	h.set([]part{{id: "a", html: []byte("1")}, {id: "b", html: []byte("1")}})
	var seq, opened, next int64
	out, _ := h.collect(&seq, &opened, &next)
	if len(out.events) != 6 {
		t.Errorf("two parts are %q", out.events)
	}
	h.set([]part{{id: "a", html: []byte("1")}, {id: "b", html: []byte("2\n3")}})
	h.set([]part{{id: "b", html: []byte("4\n5")}})
	if out, _ = h.collect(&seq, &opened, &next); len(out.events) != 3 || string(out.events[1]) != "data: 4\ndata: 5\n" {
		t.Errorf("what has changed is %q", out.events)
	}
	if out, _ = h.collect(&seq, &opened, &next); len(out.events) != 0 || out.over {
		t.Errorf("nothing has changed, and that is %q", out.events)
	}
	h.end("it succeeded")
	if out, _ = h.collect(&seq, &opened, &next); !out.over {
		t.Error("it has no end")
	}
}

// TestTooManyHubs: nobody has the farm keep the logs of all builds at once.
func TestTooManyHubs(t *testing.T) {
	var s hubs
	idle := func(ctx context.Context, _ *hub) { <-ctx.Done() }
	var leave []func()
	for i := range maxHubs {
		h, l := s.join(fmt.Sprint(i), idle)
		if h == nil {
			t.Fatalf("there is no room for hub %d", i)
		}
		leave = append(leave, l)
	}
	if h, _ := s.join("more", idle); h != nil {
		t.Error("there is room for more than there is")
	}
	if h, l := s.join("7", idle); h == nil {
		t.Error("one that is there cannot be joined")
	} else {
		l()
	}
	for _, l := range leave {
		l()
	}
}

// TestOnce: what many ask for is made once.
func TestOnce(t *testing.T) {
	var c cache
	var mu sync.Mutex
	made := 0
	gate := make(chan struct{})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			m, err := c.fetch(t.Context(), "k", patience, func(context.Context) ([]byte, error) {
				mu.Lock()
				defer mu.Unlock()
				made++
				<-gate
				return []byte("x"), nil
			})
			if err != nil || string(m.body) != "x" {
				t.Error(m, err)
			}
		})
	}
	close(gate)
	wg.Wait()
	if made != 1 {
		t.Errorf("it was made %d times", made)
	}
	for i := range 90 {
		if _, err := c.fetch(t.Context(), fmt.Sprint(i), patience, func(context.Context) ([]byte, error) { return make([]byte, 400<<10), nil }); err != nil {
			t.Fatal(err)
		}
	}
	if c.size > maxCached {
		t.Errorf("%d bytes are kept, more than %d", c.size, maxCached)
	}
	if _, err := c.fetch(t.Context(), "bad", patience, func(context.Context) ([]byte, error) { return nil, io.ErrUnexpectedEOF }); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
}

// TestLiveInBrowser: a page shows a log as it grows, and what becomes of its
// build, without being loaded again.
func TestLiveInBrowser(t *testing.T) {
	w := newWorld(t, 1)
	d := tell(w)
	b := w.push("zlib", "1.3.1")[0]
	<-d.began
	d.say <- "first\n"
	w.until("the page has the first line", func() bool { // who comes to an empty log does not follow it
		_, text := w.get(buildURL(b.Number))
		return strings.Contains(text, ">first<")
	})
	browser := testbrowser.Start(t)
	tab := browser.Tab(t)
	tab.Go(w.srv.URL + buildURL(b.Number))
	testbrowser.Eval[int](tab, "window.same = 1")
	now := browser.Tab(t)
	now.Go(w.srv.URL)
	now.Wait(fmt.Sprintf("document.querySelector('#run-%d progress')", b.Number))
	testbrowser.Eval[int](now, "window.same = 1")
	tab.Wait("document.querySelector('#log').innerText.includes('first')")
	// What has no end yet is shown, and then ended.
	d.say <- "checking for zlib.h... "
	tab.Wait("document.querySelector('#log').innerText.includes('zlib.h...')")
	d.say <- "yes\n" + hostile + "\n"
	tab.Wait("document.querySelector('#log').innerText.includes('... yes') && document.querySelector('#L3')")
	d.say <- strings.Repeat("more\n", 300)
	tab.Wait("document.querySelector('#L303')")
	// It is followed, until somebody scrolls up.
	tab.Wait("innerHeight + scrollY >= document.documentElement.scrollHeight - 50")
	testbrowser.Eval[int](tab, "scrollTo(0, 100), 1")
	tab.Wait("document.querySelector('.tools button[aria-pressed=false]')")
	d.say <- "below\n"
	tab.Wait("document.querySelector('#L304')")
	if y := testbrowser.Eval[float64](tab, "scrollY"); y != 100 {
		t.Errorf("the page moves to %v by itself", y)
	}
	if n := testbrowser.Eval[int](tab, "new Set([...document.querySelectorAll('#log .l')].map(e => e.id)).size - document.querySelectorAll('#log .l').length"); n != 0 {
		t.Errorf("%d lines are there twice", -n)
	}
	d.say <- "END"
	w.end(b.Number)
	tab.Wait("document.querySelector('#part-head .badge.succeeded')")
	tab.Wait("document.querySelector('#end').innerText.includes('succeeded')")
	tab.Wait("!document.querySelector('#part-facts').hidden")
	now.Wait(fmt.Sprintf("document.querySelector('#end-%d .badge.succeeded') && !document.querySelector('#run-%d')", b.Number, b.Number))
	for _, x := range []*testbrowser.Tab{tab, now} {
		if testbrowser.Eval[int](x, "window.same ?? 0") != 1 {
			t.Error("the page was loaded again")
		}
		x.Check()
		x.Audit()
	}
}

// TestLinkToLine: a link to a line leads there, wherever in the log it is.
func TestLinkToLine(t *testing.T) {
	w, b := logged(t, func(w io.Writer) {
		for i := range 9000 {
			fmt.Fprintf(w, "line %d\n", i+1)
		}
	})
	tab := testbrowser.Start(t).Tab(t)
	tab.Go(w.srv.URL + buildURL(b.Number) + "#L4321")
	tab.Wait("document.querySelector('#L4321:target')")
	if y := testbrowser.Eval[float64](tab, "document.querySelector('#L4321').getBoundingClientRect().top"); y < 0 || y > 900 {
		t.Errorf("the line is at %v of the window", y)
	}
	// A search marks what it finds, and its links lead to the lines.
	tab.Go(w.srv.URL + buildURL(b.Number))
	tab.Key("/")
	tab.Wait("document.activeElement.id === 'lq'")
	tab.Key("LINE 777\r")
	tab.Wait("document.querySelectorAll('.hit mark').length === 11") // and 7770 to 7779
	tab.Click(".hit a")
	tab.Wait("document.querySelector('#L777:target')")
	tab.Script(false)
	tab.Go(w.srv.URL + buildURL(b.Number) + "?line=4321#L4321")
	tab.Wait("document.querySelector('#L4321:target')")
	tab.Check()
}
