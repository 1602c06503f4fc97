// Package web is the door for browsers and for programs that speak HTTP.
//
// This room is what all of its pages and calls have in common: connections and
// their limits, TLS, who asks, errors, compression, and an orderly end. What is
// shown and done comes in as handlers: the calls for programs (room web/api),
// the pages for people (room web/pages), metrics and health.
//
// A handler asks [Who] for its caller, answers errors with [Error], and calls
// [Stream] before an answer without an end. Every write has its own time limit,
// so that a client that does not read is dropped and holds nothing.
package web

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"time"

	"github.com/Morphux/quarry"
)

// Limits bound what clients together, and one client alone, can take. A client
// is an IPv4 address, or the first half of an IPv6 address. 0 stands for the
// default.
type Limits struct {
	Conns, ConnsEach       int           // connections: 4096, 1024. Behind a proxy the second does not count
	Requests, RequestsEach int           // answered at one time: 1024, 256
	Streams, StreamsEach   int           // answers without an end: 4096, 1024
	Body                   int64         // bytes of a request that is no upload: 1 MiB
	Upload                 int64         // bytes of one that is: 2 GiB
	Stall                  time.Duration // in which a client takes or sends something: 30 s
	Stop                   time.Duration // that requests get to end when the server does: 20 s
}

func (l *Limits) defaults() {
	for _, v := range []struct {
		to *int
		n  int
	}{{&l.Conns, 4096}, {&l.ConnsEach, 1024}, {&l.Requests, 1024}, {&l.RequestsEach, 256}, {&l.Streams, 4096}, {&l.StreamsEach, 1024}} {
		if *v.to == 0 {
			*v.to = v.n
		}
	}
	if l.Body == 0 {
		l.Body = 1 << 20
	}
	if l.Upload == 0 {
		l.Upload = 2 << 30
	}
	if l.Stall == 0 {
		l.Stall = 30 * time.Second
	}
	if l.Stop == 0 {
		l.Stop = 20 * time.Second
	}
}

// Options say what a server serves, and to whom. Handlers that are nil are not
// there.
type Options struct {
	API     http.Handler // /api/..., /task..., /builder/...
	Pages   http.Handler // all other paths
	Metrics http.Handler // /metrics
	Health  http.Handler // /healthz and /readyz, which everybody may ask
	Git     http.Handler // /NAME.git/...
	DB      http.Handler // /db/... and /artifacts/...

	// Identify says whose a token is. Without it no token is good.
	Identify func(token string) (quarry.Identity, error)
	Public   bool // who has no token may look
	// MetricsPublic lets them see metrics though they may not look.
	MetricsPublic bool
	// Observe is told of each answer: the pattern of its route ("" where there was
	// none), and how long it took; stream says that it was one without an end.
	Observe func(route, method string, status int, took time.Duration, stream bool)
	// Proxy says that all connections come from a proxy, which can be believed
	// about its clients (X-Forwarded-For, X-Forwarded-Proto).
	Proxy bool
	// InsecureTokens has tokens taken that came readable over the network.
	InsecureTokens bool
	URL            string       // how people reach the server, e.g. https://farm.example.org
	TLS            *Certificate // nil: plain HTTP

	// ErrorPage answers a browser with an error; nil: a plain page.
	ErrorPage func(w http.ResponseWriter, r *http.Request, p Problem)
	Limits    Limits
	Log       *slog.Logger
}

// Server is an HTTP server.
type Server struct {
	opts     Options
	log      *slog.Logger
	handler  http.Handler
	origin   *http.CrossOriginProtection
	conns    gate
	requests gate
	streams  gate

	stopping context.Context // ends at once when the server is to end
	stop     context.CancelFunc
}

// New makes a server.
func New(o Options) *Server {
	o.Limits.defaults()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	l := o.Limits
	s := &Server{opts: o, log: o.Log, origin: http.NewCrossOriginProtection(),
		conns: gate{max: l.Conns, each: l.ConnsEach}, requests: gate{max: l.Requests, each: l.RequestsEach}, streams: gate{max: l.Streams, each: l.StreamsEach}}
	if o.Proxy {
		s.conns.each = l.Conns
	}
	if u, err := url.Parse(o.URL); err == nil && u.Host != "" {
		// One that is no origin is refused by the configuration.
		_ = s.origin.AddTrustedOrigin(u.Scheme + "://" + u.Host)
	}
	s.stopping, s.stop = context.WithCancel(context.Background())
	mux := http.NewServeMux()
	for _, v := range []struct {
		h     http.Handler
		paths []string
	}{
		{o.API, []string{"/api/", "/task", "/task/", "/builder/"}}, {o.Metrics, []string{"/metrics"}},
		{o.Health, []string{"/healthz", "/readyz"}}, {o.DB, []string{"/db/", "/artifacts/"}}, {o.Pages, []string{"/"}},
	} {
		for _, path := range v.paths {
			if v.h != nil {
				mux.Handle(path, v.h)
			}
		}
	}
	s.handler = Routes(mux)
	if routes := s.handler; o.Git != nil {
		s.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if isGit(r.URL.Path) {
				o.Git.ServeHTTP(w, r)
			} else {
				routes.ServeHTTP(w, r)
			}
		})
	}
	return s
}

// Serve takes connections until ctx ends. Then streams end at once, and other
// requests get a while to.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	l = &limited{Listener: l, gate: &s.conns, log: s.log}
	hs := &http.Server{
		Handler: s, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: 128},
		ErrorLog: slog.NewLogLogger(s.log.With("door", "web").Handler(), slog.LevelDebug),
	}
	if s.opts.TLS != nil {
		hs.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: s.opts.TLS.get, NextProtos: []string{"h2", "http/1.1"}}
	}
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		s.stop()
		end, cancel := context.WithTimeout(context.Background(), s.opts.Limits.Stop)
		defer cancel()
		err := hs.Shutdown(end)
		if errors.Is(err, context.DeadlineExceeded) {
			err = hs.Close() // who still reads is cut off
		}
		stopped <- err
	})
	var err error
	if s.opts.TLS != nil {
		err = hs.ServeTLS(l, "", "")
	} else {
		err = hs.Serve(l)
	}
	if !stop() {
		err = <-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// request is what is known of a request besides what it says.
type request struct {
	server *Server
	who    quarry.Identity
	from   string // the client's address
	body   *body
	leave  func() // gives back its place among the requests, or the streams
	stream bool
}

type requestKey struct{}

func of(ctx context.Context) *request {
	rq, _ := ctx.Value(requestKey{}).(*request)
	return rq
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	rq := &request{server: s, from: s.from(r)}
	r = r.WithContext(context.WithValue(r.Context(), requestKey{}, rq))
	rw := newWriter(w, r, s.opts.Limits.Stall)
	rq.body = &body{ReadCloser: r.Body, rc: rw.rc, left: s.opts.Limits.Body, limit: s.opts.Limits.Body, stall: s.opts.Limits.Stall}
	if r.Body != http.NoBody {
		r.Body = rq.body
	}
	defer func() {
		p := recover()
		if p != nil && p != http.ErrAbortHandler {
			s.log.Error("a request met a fault of ours", "method", r.Method, "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
			if rw.status == 0 {
				Error(rw, r, http.StatusInternalServerError, "this is a fault of the farm's: tell an admin to look into its log")
				p = nil
			}
		}
		if p == nil {
			rw.finish()
		}
		if rq.leave != nil {
			rq.leave()
		}
		s.access(r, rq, rw, began)
		if p != nil {
			panic(http.ErrAbortHandler) // what was written so far must not pass for the whole
		}
	}()
	secure(rw.Header())
	var ok bool
	if rq.leave, ok = s.requests.enter(client(rq.from)); !ok {
		rw.Header().Set("Retry-After", "5")
		Error(rw, r, http.StatusServiceUnavailable, "too many requests are under way: try again in a moment")
		return
	}
	if !s.open(r.URL.Path) {
		if err := s.identify(r, rq); err != nil {
			err.answer(rw, r)
			return
		}
		if err := s.origin.Check(r); err != nil {
			Error(rw, r, http.StatusForbidden, "the request comes from another site's page: pages of other sites may not act here")
			return
		}
	}
	s.handler.ServeHTTP(rw, r)
}

// open reports whether a path asks for nobody's identity.
func (s *Server) open(path string) bool {
	return s.opts.Health != nil && (path == "/healthz" || path == "/readyz") || s.opts.MetricsPublic && s.opts.Metrics != nil && path == "/metrics"
}

// access writes the line of a request. Looking around without a token is only
// said with -v.
func (s *Server) access(r *http.Request, rq *request, rw *writer, began time.Time) {
	if s.opts.Observe != nil {
		s.opts.Observe(r.Pattern, r.Method, rw.status, time.Since(began), rq.stream)
	}
	level := slog.LevelInfo
	if rq.who.User == "" && (r.Method == http.MethodGet || r.Method == http.MethodHead) && rw.status < 500 {
		level = slog.LevelDebug
	}
	s.log.Log(context.WithoutCancel(r.Context()), level, "web", "user", rq.who.User, "from", rq.from, "method", r.Method, "path", r.URL.Path,
		"status", rw.status, "bytes", rw.bytes, "took", time.Since(began).Round(time.Microsecond))
}

// secure sets the headers that keep a browser from doing what no page of ours
// asks for.
func secure(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
}

// Who is the caller of a request; nobody, who may do nothing, in a context that
// is of no request.
func Who(ctx context.Context) quarry.Identity {
	if rq := of(ctx); rq != nil {
		return rq.who
	}
	return quarry.Identity{}
}

// Client is the address of a request's client, e.g. 192.0.2.7: of IPv6 the network,
// e.g. 2001:db8::/64.
func Client(ctx context.Context) string {
	if rq := of(ctx); rq != nil {
		return client(rq.from)
	}
	return ""
}

// isGit reports whether a path is one that git asks for: of a repository, which no
// page's first part is.
func isGit(path string) bool {
	name, _, ok := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return ok && strings.HasSuffix(name, ".git")
}

// WithWho is a context of a request by id, for tests of single handlers.
func WithWho(ctx context.Context, id quarry.Identity) context.Context {
	return context.WithValue(ctx, requestKey{}, &request{who: id})
}

// Stream makes of an answer one that goes on until its client has had enough: it
// no longer counts as a request under way, and ctx ends when the client is gone or
// the server stops. The handler writes, flushes, and returns at the first error.
// When there are too many streams that is answered, and ok is false.
func Stream(w http.ResponseWriter, r *http.Request) (ctx context.Context, end context.CancelFunc, ok bool) {
	rq := of(r.Context())
	if rq == nil || rq.server == nil {
		ctx, end = context.WithCancel(r.Context())
		return ctx, end, true
	}
	leave, ok := rq.server.streams.enter(client(rq.from))
	if !ok {
		w.Header().Set("Retry-After", "30")
		Error(w, r, http.StatusServiceUnavailable, "too many streams are open: close some, or try again later")
		return nil, nil, false
	}
	if rq.leave != nil {
		rq.leave()
	}
	rq.leave, rq.stream = leave, true
	ctx, cancel := context.WithCancel(r.Context())
	unhook := context.AfterFunc(rq.server.stopping, cancel)
	return ctx, func() { unhook(); cancel() }, true
}

// Upload lets the body of a request be as large as an upload may be.
func Upload(r *http.Request) {
	if rq := of(r.Context()); rq != nil && rq.body != nil {
		rq.body.left, rq.body.limit = rq.server.opts.Limits.Upload, rq.server.opts.Limits.Upload
	}
}

// Listen opens the address that a server is to serve on.
func Listen(addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("web.listen %s cannot be listened on: %w", addr, err)
	}
	return l, nil
}

// wantsHTML reports whether who asks is a browser that would show the answer.
func wantsHTML(r *http.Request) bool {
	for _, prefix := range []string{"/api/", "/task", "/builder/", "/metrics", "/healthz", "/readyz", "/db/", "/artifacts/"} {
		if strings.HasPrefix(r.URL.Path, prefix) {
			return false
		}
	}
	return strings.Contains(r.Header.Get("Accept"), "text/html")
}
