package notify

import (
	"crypto/hmac"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Morphux/quarry/events"
	"github.com/Morphux/quarry/internal/testport"
)

const hookSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// listener is a real HTTP server that checks what it is told as a reader of
// standardwebhooks.com would.
type listener struct {
	t    *testing.T
	addr string
	srv  *http.Server
	done chan struct{}

	mu     sync.Mutex // guards the following
	got    []told1
	answer func(n int64) int // status for an event; nil: 204
}

type told1 struct {
	id string
	n  int64
}

func newListener(t *testing.T) *listener {
	l := &listener{t: t, addr: fmt.Sprintf("127.0.0.1:%d", testport.Free(t, 1)[0])}
	l.start()
	t.Cleanup(l.kill)
	return l
}

func (l *listener) url() string { return "http://" + l.addr + "/quarry" }

// start listens, on the port that it had before.
func (l *listener) start() {
	l.t.Helper()
	ln, err := net.Listen("tcp", l.addr)
	if err != nil {
		l.t.Fatal(err)
	}
	l.srv, l.done = &http.Server{Handler: l}, make(chan struct{})
	go func(srv *http.Server, done chan struct{}) { defer close(done); srv.Serve(ln) }(l.srv, l.done)
}

// kill ends it with all connections.
func (l *listener) kill() {
	l.srv.Close()
	<-l.done
}

func (l *listener) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil { // cut off
		return
	}
	seconds, _ := strconv.ParseInt(r.Header.Get("webhook-timestamp"), 10, 64)
	id := r.Header.Get("webhook-id")
	key, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(hookSecret, "whsec_"))
	if want := Sign(key, id, time.Unix(seconds, 0), body); !hmac.Equal([]byte(want), []byte(r.Header.Get("webhook-signature"))) {
		l.t.Errorf("delivery %s is signed %q, want %q", id, r.Header.Get("webhook-signature"), want)
	}
	if age := time.Since(time.Unix(seconds, 0)); age < -time.Minute || age > 5*time.Minute {
		l.t.Errorf("delivery %s is of %s ago", id, age)
	}
	if r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" || r.URL.Path != "/quarry" {
		l.t.Errorf("the delivery is %s %s of %s", r.Method, r.URL, r.Header.Get("Content-Type"))
	}
	var d struct {
		Type      string
		Timestamp time.Time
		Data      events.Event
	}
	if err := json.Unmarshal(body, &d); err != nil || d.Type != d.Data.Kind || !d.Timestamp.Equal(d.Data.At) || d.Data.N == 0 {
		l.t.Errorf("delivery %s says %s (%v)", id, body, err)
	}
	l.mu.Lock()
	status := http.StatusNoContent
	if l.answer != nil {
		status = l.answer(d.Data.N)
	}
	if status < 300 {
		l.got = append(l.got, told1{id, d.Data.N})
	}
	l.mu.Unlock()
	if status >= 300 && status < 400 {
		w.Header().Set("Location", "http://127.0.0.1:1/elsewhere")
	}
	w.WriteHeader(status)
}

// numbers are the events that it was told of, each once.
func (l *listener) numbers() (out []int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ids := map[string]int64{}
	for _, g := range l.got {
		if n, again := ids[g.id]; again && n != g.n {
			l.t.Errorf("id %s is that of events %d and %d", g.id, n, g.n)
		} else if !again {
			out = append(out, g.n)
		}
		ids[g.id] = g.n
	}
	return out
}

// hook adds a webhook.
func (f *farm) hook(name, url string, change func(*Hook)) {
	f.t.Helper()
	secret := filepath.Join(f.dir, name+".secret")
	if err := os.WriteFile(secret, []byte(hookSecret+"\n"), 0o600); err != nil {
		f.t.Fatal(err)
	}
	h := Hook{Name: name, URL: url, SecretFile: secret, Agent: "Quarry/test", Farm: "test"}
	if change != nil {
		change(&h)
	}
	f.opts.Hooks = append(f.opts.Hooks, h)
}

func (f *farm) hooked() {
	f.t.Helper()
	f.until("the webhooks have begun", func() bool {
		files, _ := filepath.Glob(filepath.Join(f.opts.Dir, hooksDir, "*.json"))
		return len(files) == len(f.opts.Hooks)
	})
}

func (f *farm) pushes(packages ...string) {
	f.t.Helper()
	for _, p := range packages {
		f.events.Append(events.Event{Kind: events.Push, Package: p, Text: p + " was pushed"})
	}
	if err := f.events.Flush(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
}

// TestSign: the example of the specification at standardwebhooks.com.
func TestSign(t *testing.T) {
	got := Sign([]byte(hookSecret), "msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`))
	if want := "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; got != want {
		t.Errorf("the signature is %s, want %s", got, want)
	}
}

// TestHooks: each is told of its events, in order.
func TestHooks(t *testing.T) {
	f := newFarm(t)
	all, some, none := newListener(t), newListener(t), newListener(t)
	f.hook("all", all.url(), nil)
	f.hook("some", some.url(), func(h *Hook) { h.Events, h.Packages = []string{"pu*", "build.*"}, []string{"zlib", "lib*"} })
	f.hook("none", none.url(), func(h *Hook) { h.Events = []string{"build.failed"} })
	f.pushes("past")
	f.start()
	f.hooked()
	f.pushes("zlib", "ed", "libz")
	f.events.Append(events.Event{Kind: events.Paused, Text: "paused"})
	f.pushes("libfoo")
	f.until("all are told", func() bool { return len(all.numbers()) >= 5 && len(some.numbers()) >= 3 })
	f.until("they know it", func() bool {
		for _, h := range f.notifier.Status().Hooks {
			if h.Behind > 0 {
				return false
			}
		}
		return true
	})
	if got := all.numbers(); !slices.Equal(got, []int64{2, 3, 4, 5, 6}) {
		t.Errorf("all was told of %v", got)
	}
	if got := some.numbers(); !slices.Equal(got, []int64{2, 4, 6}) {
		t.Errorf("some was told of %v", got)
	}
	if got := none.numbers(); len(got) > 0 {
		t.Errorf("none was told of %v", got)
	}
}

// TestHookAway kills the listener and the notifier in the middle: every event
// comes, in order, and one that comes twice has one id. A hook that is dead for
// good delays nobody.
func TestHookAway(t *testing.T) {
	f := newFarm(t)
	l := newListener(t)
	dead, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer dead.Close()
	f.hook("dead", "http://"+dead.Addr().String(), func(h *Hook) { h.Timeout = time.Hour })
	f.hook("here", l.url(), nil)
	f.start()
	f.hooked()
	const n = 60
	for i := range n {
		f.pushes(fmt.Sprint("p", i))
		switch i {
		case 10, 30:
			l.kill()
		case 20, 40:
			l.start()
		case 15, 45:
			f.stop()
			f.start()
		}
	}
	f.until("all are told", func() bool { return len(l.numbers()) >= n })
	got := l.numbers()
	for i, number := range got {
		if number != int64(i+1) {
			t.Fatalf("told of %v", got)
		}
	}
}

// TestHookRefuses: a redirect is not followed, what is refused again and again is
// given up so that the rest comes through, and the status says so.
func TestHookRefuses(t *testing.T) {
	f := newFarm(t)
	l := newListener(t)
	var redirected, busy int
	l.answer = func(n int64) int {
		switch {
		case n == 1 && redirected < 3:
			redirected++
			return http.StatusTemporaryRedirect
		case n == 2:
			return http.StatusBadRequest
		case n == 3 && busy < 20: // longer than a refusal is taken
			busy++
			return http.StatusServiceUnavailable
		}
		return http.StatusOK
	}
	f.hook("here", l.url(), nil)
	f.opts.Backoff = func(int) time.Duration { return time.Millisecond }
	f.start()
	f.hooked()
	f.pushes("one", "two", "three")
	f.until("the others are told", func() bool { return slices.Equal(l.numbers(), []int64{1, 3}) })
	f.until("that is noted", func() bool { return f.notifier.Status().Hooks[0].Behind == 0 })
	s := f.notifier.Status().Hooks[0]
	if s.GivenUp != 1 || s.LastGivenUp != 2 || s.Failing != nil || redirected != 3 || busy != 20 {
		t.Errorf("its status is %+v, after %d redirects and %d times busy", s, redirected, busy)
	}
	if p := strings.Join(f.notifier.Problems(), "\n"); !strings.Contains(p, "webhook here was not told of 1 event, the last one of them event 2") {
		t.Errorf("problems are %q", p)
	}
	if f.notifier.Drop() != 1 || len(f.notifier.Problems()) > 0 {
		t.Errorf("problems are left: %q", f.notifier.Problems())
	}
}

// TestHookOld: what could not be told for too long is given up.
func TestHookOld(t *testing.T) {
	f := newFarm(t)
	l := newListener(t)
	l.kill()
	f.hook("here", l.url(), func(h *Hook) { h.GiveUp = time.Millisecond })
	f.start()
	f.hooked()
	f.pushes("one")
	f.until("it is given up", func() bool { return f.notifier.Status().Hooks[0].GivenUp == 1 })
	if s := f.notifier.Status().Hooks[0]; strings.Contains(s.Error, "/quarry") || !strings.Contains(s.Error, "connection refused") {
		t.Errorf("its error is %q", s.Error)
	}
	l.start()
}

// TestHookSecret: without its secret nothing is sent, and nothing is lost.
func TestHookSecret(t *testing.T) {
	f := newFarm(t)
	l := newListener(t)
	f.hook("here", l.url(), nil)
	secret := f.opts.Hooks[0].SecretFile
	if err := os.Rename(secret, secret+".away"); err != nil {
		t.Fatal(err)
	}
	f.start()
	f.hooked()
	f.pushes("one")
	f.until("it is said", func() bool { return strings.Contains(f.notifier.Status().Hooks[0].Error, "its secret") })
	if got := l.numbers(); len(got) > 0 {
		t.Errorf("told of %v without a secret", got)
	}
	if err := os.Rename(secret+".away", secret); err != nil {
		t.Fatal(err)
	}
	f.until("it is told", func() bool { return slices.Equal(l.numbers(), []int64{1}) })
}
