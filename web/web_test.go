package web

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
)

// alice is who has the token good.
var alice = quarry.Identity{Packager: quarry.Packager{User: "alice"}, Role: quarry.RoleMaintainer}

func identify(token string) (quarry.Identity, error) {
	if token == "good" {
		return alice, nil
	}
	return quarry.Identity{}, errors.New("token is unknown here")
}

// serve runs a server, and gives its address. It has ended well by the end of
// the test.
func serve(t *testing.T, o Options) (addr string, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- New(o).Serve(ctx, l) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the server ended with %v", err)
		}
	}
	t.Cleanup(stop)
	return l.Addr().String(), stop
}

// ask makes a request with a connection of its own. header comes in pairs.
func ask(t *testing.T, method, url string, body io.Reader, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	tr := &http.Transport{DisableKeepAlives: true, DisableCompression: true}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(data)
}

func pages() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /who", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", Who(r.Context()).User, Who(r.Context()).Role)
	})
	mux.HandleFunc("GET /long", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		if NotModified(w, r, `"tag"`) {
			return
		}
		io.WriteString(w, strings.Repeat("long ", 1000))
	})
	mux.HandleFunc("GET /short", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "short") })
	mux.HandleFunc("GET /panic", func(http.ResponseWriter, *http.Request) { panic("a test of panics") })
	mux.HandleFunc("GET /late-panic", func(w http.ResponseWriter, r *http.Request) {
		w.Write(bytes.Repeat([]byte{1}, 1<<20))
		panic("a test of panics")
	})
	read := func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			Error(w, r, http.StatusRequestEntityTooLarge, "too large")
			return
		}
		fmt.Fprintln(w, n, err)
	}
	mux.HandleFunc("POST /read", read)
	mux.HandleFunc("POST /upload", func(w http.ResponseWriter, r *http.Request) { Upload(r); read(w, r) })
	return Routes(mux)
}

func TestWho(t *testing.T) {
	open, _ := serve(t, Options{Pages: pages(), Identify: identify, Public: true, Health: http.NotFoundHandler()})
	closed, _ := serve(t, Options{Pages: pages(), Identify: identify, Health: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "well") })})
	for _, tt := range []struct {
		url    string
		header []string
		status int
		body   string
	}{
		{open + "/who", nil, 200, " reader"},
		{open + "/who", []string{"Authorization", "Bearer good"}, 200, "alice maintainer"},
		{open + "/who", []string{"Authorization", "bearer  good"}, 200, "alice maintainer"},
		{open + "/who", []string{"Authorization", "Bearer bad"}, 401, "token is unknown here"},
		{open + "/who", []string{"Authorization", "Bearer"}, 401, "Bearer TOKEN"},
		{open + "/who", []string{"Authorization", "Basic Z29vZDpnb29k"}, 401, "Bearer TOKEN"},
		{open + "/who", []string{"Authorization", "Bearer good", "Authorization", "Bearer good"}, 401, "Bearer TOKEN"},
		{open + "/who", []string{"X-Forwarded-For", "1.2.3.4", "Authorization", "Bearer good"}, 200, "alice maintainer"},
		{open + "/who", []string{"Sec-Fetch-Site", "cross-site"}, 200, " reader"},
		{closed + "/who", nil, 401, "only to those with a token"},
		{closed + "/who", []string{"Authorization", "Bearer good"}, 200, "alice maintainer"},
		{closed + "/healthz", nil, 200, "well"},
		{closed + "/nothing", nil, 401, ""},
	} {
		resp, body := ask(t, "GET", "http://"+tt.url, nil, tt.header...)
		if resp.StatusCode != tt.status || !strings.Contains(body, tt.body) {
			t.Errorf("%s %q: %d, %s", tt.url, tt.header, resp.StatusCode, body)
		}
		if (resp.StatusCode == 401) != strings.HasPrefix(resp.Header.Get("WWW-Authenticate"), "Bearer ") {
			t.Errorf("%s %q: %d with WWW-Authenticate %q", tt.url, tt.header, resp.StatusCode, resp.Header.Get("WWW-Authenticate"))
		}
	}
	resp, _ := ask(t, "POST", "http://"+open+"/read", nil, "Sec-Fetch-Site", "cross-site")
	if resp.StatusCode != 403 {
		t.Errorf("a POST from another site's page: %d", resp.StatusCode)
	}
}

// Tokens are not taken where everybody could have read them, and a proxy is
// believed only where there is one.
func TestReadableTokens(t *testing.T) {
	for _, tt := range []struct {
		o      Options
		from   string
		header map[string]string
		who    string // "": refused
		client string
	}{
		{Options{}, "192.0.2.7:1000", nil, "", "192.0.2.7"},
		{Options{}, "127.0.0.1:1000", nil, "alice", "127.0.0.1"},
		{Options{}, "[::1]:1000", nil, "alice", "::1"},
		{Options{}, "192.0.2.7:1000", map[string]string{"X-Forwarded-Proto": "https", "X-Forwarded-For": "127.0.0.1"}, "", "192.0.2.7"},
		{Options{InsecureTokens: true}, "192.0.2.7:1000", nil, "alice", "192.0.2.7"},
		{Options{Proxy: true}, "127.0.0.1:1000", map[string]string{"X-Forwarded-Proto": "https", "X-Forwarded-For": "127.0.0.1, 192.0.2.7"}, "alice", "192.0.2.7"},
		{Options{Proxy: true}, "127.0.0.1:1000", map[string]string{"X-Forwarded-Proto": "http", "X-Forwarded-For": "192.0.2.7"}, "", "192.0.2.7"},
		{Options{Proxy: true}, "127.0.0.1:1000", map[string]string{"X-Forwarded-Proto": "https, http", "X-Forwarded-For": "nonsense"}, "alice", "127.0.0.1"},
	} {
		tt.o.Identify, tt.o.Public = identify, true
		s := New(tt.o)
		r, err := http.NewRequest("GET", "/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.RemoteAddr = tt.from
		for k, v := range tt.header {
			r.Header.Set(k, v)
		}
		rq := &request{from: s.from(r)}
		if rq.from != tt.client {
			t.Errorf("%+v: the client is %s", tt, rq.from)
		}
		r.Header.Set("Authorization", "Bearer good")
		refused := s.identify(r, rq)
		if (refused != nil) != (tt.who == "") || rq.who.User != tt.who {
			t.Errorf("%+v: %q, %+v", tt, rq.who.User, refused)
		}
	}
	for addr, want := range map[string]string{"192.0.2.7": "192.0.2.7", "2001:db8:1:2:3::4": "2001:db8:1:2::/64", "::1": "::1", "::ffff:1.2.3.4": "1.2.3.4", "pipe": "pipe"} {
		if got := client(addr); got != want {
			t.Errorf("%s counts as %s, and should as %s", addr, got, want)
		}
	}
}

func TestErrors(t *testing.T) {
	api := http.NewServeMux()
	api.HandleFunc("PUT /api/v1/x/{y}", func(w http.ResponseWriter, r *http.Request) { Error(w, r, http.StatusConflict, "it is too late") })
	addr, _ := serve(t, Options{Pages: pages(), API: Routes(api), Public: true})
	for _, tt := range []struct {
		method, path, accept string
		status               int
		html                 bool
		detail, allow        string
	}{
		{"GET", "/nothing", "text/html,*/*;q=0.8", 404, true, "nothing at this path", ""},
		{"GET", "/nothing", "*/*", 404, false, "nothing at this path", ""},
		{"GET", "/api/v1/nothing", "text/html", 404, false, "nothing at this path", ""},
		{"POST", "/who", "text/html", 405, true, "GET, HEAD", "GET, HEAD"},
		{"GET", "/api/v1/x/1", "", 405, false, "takes PUT", "PUT"},
		{"PUT", "/api/v1/x/a%20b", "", 409, false, "it is too late", ""},
		{"GET", "/panic", "", 500, false, "fault of the farm's", ""},
		{"GET", "/metrics", "", 404, false, "", ""},
	} {
		resp, body := ask(t, tt.method, "http://"+addr+tt.path, nil, "Accept", tt.accept)
		kind := resp.Header.Get("Content-Type")
		if resp.StatusCode != tt.status || !strings.Contains(body, tt.detail) || resp.Header.Get("Allow") != tt.allow || strings.HasPrefix(kind, "text/html") != tt.html {
			t.Errorf("%s %s: %d, %s, %s", tt.method, tt.path, resp.StatusCode, resp.Header, body)
		}
		if tt.html {
			continue
		}
		var p Problem
		if err := json.Unmarshal([]byte(body), &p); err != nil || kind != "application/problem+json" || p.Status != tt.status || p.Type != "about:blank" ||
			p.Title != http.StatusText(tt.status) || p.Instance != tt.path {
			t.Errorf("%s %s: %v, %s, %+v", tt.method, tt.path, err, kind, p)
		}
	}
	resp, _ := ask(t, "GET", "http://"+addr+"/who", nil)
	for name, want := range map[string]string{"Content-Security-Policy": "default-src 'self'", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"} {
		if !strings.Contains(resp.Header.Get(name), want) {
			t.Errorf("%s: %q", name, resp.Header.Get(name))
		}
	}
	// What was cut short must not pass for the whole.
	late, err := http.Get("http://" + addr + "/late-panic")
	if err != nil {
		t.Fatal(err)
	}
	defer late.Body.Close()
	if _, err := io.Copy(io.Discard, late.Body); err == nil {
		t.Error("an answer that broke off looks whole")
	}
}

func TestCompression(t *testing.T) {
	addr, _ := serve(t, Options{Pages: pages(), Public: true})
	want := strings.Repeat("long ", 1000)
	for _, tt := range []struct {
		path   string
		header []string
		zipped bool
		tag    string
	}{
		{"/long", nil, false, `"tag"`},
		{"/long", []string{"Accept-Encoding", "br, gzip"}, true, `W/"tag"`},
		{"/long", []string{"Accept-Encoding", "gzip;q=0"}, false, `"tag"`},
		{"/long", []string{"Accept-Encoding", "*"}, true, `W/"tag"`},
		{"/long", []string{"Accept-Encoding", "*, gzip;q=0"}, false, `"tag"`},
		{"/long", []string{"Accept-Encoding", "gzip", "Range", "bytes=0-1"}, false, `"tag"`},
		{"/short", []string{"Accept-Encoding", "gzip"}, false, ""},
	} {
		resp, body := ask(t, "GET", "http://"+addr+tt.path, nil, tt.header...)
		if (resp.Header.Get("Content-Encoding") == "gzip") != tt.zipped || resp.Header.Get("ETag") != tt.tag || resp.Header.Get("Vary") != "Accept-Encoding" {
			t.Errorf("%s %q: %s", tt.path, tt.header, resp.Header)
		}
		if tt.zipped {
			z, err := gzip.NewReader(strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(z)
			if err != nil {
				t.Fatal(err)
			}
			body = string(data)
		}
		if tt.path == "/long" && body != want || tt.path == "/short" && body != "short" {
			t.Errorf("%s %q: %d bytes", tt.path, tt.header, len(body))
		}
	}
	for _, tag := range []string{`"tag"`, `W/"tag"`, `"other", W/"tag"`, "*"} {
		if resp, body := ask(t, "GET", "http://"+addr+"/long", nil, "If-None-Match", tag); resp.StatusCode != 304 || body != "" {
			t.Errorf("If-None-Match %s: %d", tag, resp.StatusCode)
		}
	}
	if resp, _ := ask(t, "GET", "http://"+addr+"/long", nil, "If-None-Match", `"other"`); resp.StatusCode != 200 {
		t.Errorf("another tag: %d", resp.StatusCode)
	}
	if resp, body := ask(t, "HEAD", "http://"+addr+"/long", nil, "Accept-Encoding", "gzip"); resp.StatusCode != 200 || body != "" {
		t.Errorf("HEAD: %d, %s", resp.StatusCode, body)
	}
}

func TestBodies(t *testing.T) {
	addr, _ := serve(t, Options{Pages: pages(), Public: true, Limits: Limits{Body: 100, Upload: 1000}})
	for _, tt := range []struct {
		path   string
		n      int
		status int
	}{{"/read", 100, 200}, {"/read", 101, 413}, {"/upload", 1000, 200}, {"/upload", 1001, 413}, {"/upload", 300_000, 413}} {
		// Without its length, as a client may send it. The last is more than the server
		// reads to keep the connection, and little enough to be on its way whole by then.
		resp, body := ask(t, "POST", "http://"+addr+tt.path, struct{ io.Reader }{strings.NewReader(strings.Repeat("x", tt.n))})
		if resp.StatusCode != tt.status || tt.status == 200 && body != fmt.Sprintln(tt.n, nil) {
			t.Errorf("%s of %d bytes: %d, %s", tt.path, tt.n, resp.StatusCode, body)
		}
	}
}

// hold answers when it is told to.
func hold(entered chan<- struct{}, leave <-chan struct{}) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stream" {
			ctx, end, ok := Stream(w, r)
			if !ok {
				return
			}
			defer end()
			io.WriteString(w, "begun\n")
			http.NewResponseController(w).Flush()
			entered <- struct{}{}
			<-ctx.Done()
			io.WriteString(w, "ended\n")
			return
		}
		entered <- struct{}{}
		<-leave
		io.WriteString(w, "held")
	})
}

func TestLimits(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	addr, _ := serve(t, Options{Pages: hold(entered, leave), Public: true, Limits: Limits{RequestsEach: 1, StreamsEach: 1}})
	type result struct {
		resp *http.Response
		body string
	}
	first := make(chan result)
	go func() {
		resp, body := ask(t, "GET", "http://"+addr+"/", nil)
		first <- result{resp, body}
	}()
	<-entered
	if resp, body := ask(t, "GET", "http://"+addr+"/", nil); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("one request too many: %d, %s", resp.StatusCode, body)
	}
	leave <- struct{}{}
	if r := <-first; r.resp.StatusCode != 200 || r.body != "held" {
		t.Errorf("%d, %s", r.resp.StatusCode, r.body)
	}
	// A stream counts as no request any more.
	stream, err := http.Get("http://" + addr + "/stream")
	if err != nil {
		t.Fatal(err)
	}
	<-entered
	go func() {
		resp, body := ask(t, "GET", "http://"+addr+"/", nil)
		first <- result{resp, body}
	}()
	<-entered
	leave <- struct{}{}
	<-first
	if resp, _ := ask(t, "GET", "http://"+addr+"/stream", nil); resp.StatusCode != 503 {
		t.Errorf("one stream too many: %d", resp.StatusCode)
	}
	stream.Body.Close()
	// Its place is free once the server has seen that its client is gone.
	for deadline := time.Now().Add(5 * time.Minute); ; {
		resp, err := http.Get("http://" + addr + "/stream")
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode == 200 {
			<-entered
			resp.Body.Close()
			break
		}
		resp.Body.Close()
		if time.Now().After(deadline) {
			t.Fatal("the place of a stream is never free again")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestConnections(t *testing.T) {
	addr, _ := serve(t, Options{Pages: pages(), Public: true, Limits: Limits{ConnsEach: 2}})
	var open []net.Conn
	for range 2 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(c, "GET /short HTTP/1.1\r\nHost: x\r\n\r\n")
		if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || !strings.Contains(line, "200") {
			t.Fatalf("%q, %v", line, err)
		}
		open = append(open, c)
	}
	third, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	if n, err := third.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Error("one connection too many is let in")
	}
	open[0].Close()
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		resp, err := http.Get("http://" + addr + "/short")
		if err == nil {
			resp.Body.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the place of a connection is never free again")
		}
	}
}

// A client that takes nothing is dropped, and frees what it held.
func TestSlowReader(t *testing.T) {
	gone := make(chan error, 1)
	addr, _ := serve(t, Options{Public: true, Limits: Limits{Stall: 300 * time.Millisecond}, Pages: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, end, ok := Stream(w, r)
		if !ok {
			return
		}
		defer end()
		w.Header().Set("Content-Type", "text/event-stream")
		for chunk := bytes.Repeat([]byte("data: x\n\n"), 8<<10); ; {
			if _, err := w.Write(chunk); err != nil {
				gone <- err
				return
			}
		}
	})})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	select {
	case <-gone:
	case <-time.After(2 * time.Minute):
		t.Error("who does not read is never given up")
	}
}

// At the end streams end at once, and a request that is under way is answered.
func TestStop(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	addr, stop := serve(t, Options{Pages: hold(entered, leave), Public: true})
	stream, err := http.Get("http://" + addr + "/stream")
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	<-entered
	answered := make(chan string)
	go func() {
		_, body := ask(t, "GET", "http://"+addr+"/", nil)
		answered <- body
	}()
	<-entered
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	if data, err := io.ReadAll(stream.Body); err != nil || string(data) != "begun\nended\n" {
		t.Errorf("%q, %v", data, err)
	}
	leave <- struct{}{}
	if body := <-answered; body != "held" {
		t.Errorf("%q", body)
	}
	<-stopped
}
