// Package pages is what people look at in a browser: what is being built, the
// queue, each build with its log as it grows, what has been recorded, and the
// builders. All of it is read only; acting goes through the other doors.
//
// Every page is whole without JavaScript. The script that comes with it keeps
// pages up to date in place, and adds keys. Nothing comes from another host, and
// nothing stands inline, so that the strictest policy for content holds.
//
// A page is made at most once a second, however many look at it.
package pages

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/graph"
	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/livelog"
	"github.com/Morphux/quarry/queue"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/usage"
	"github.com/Morphux/quarry/web"
)

// Source is where the pages read what they show. Queue and Logs must be set;
// what else is nil is left out of the pages.
type Source struct {
	Farm    string // name of the farm, e.g. farm1
	URL     string // where people reach the pages, without a slash at its end, e.g. https://farm.example.org
	Version string
	Started time.Time

	Queue *queue.Queue
	Logs  *livelog.Store
	Usage control.Usage // what builds use

	// Plan tells in which order the builds of some channels are expected to begin;
	// of all channels when none is named.
	Plan func(ctx context.Context, channels ...string) (*control.Plan, error)
	// Why explains builds that have ended; nil: nobody does.
	Why control.Why
	// Record finds what was recorded of a build; nil when nothing was, or something
	// newer stands in its place.
	Record func(ctx context.Context, b quarry.Build) (*results.Record, error)
	// Past finds a build that the queue has forgotten, by what was recorded of it.
	Past func(ctx context.Context, number int64) (quarry.Build, bool)

	Records // what was recorded

	Environments func(ctx context.Context) []images.Environment
	Disk         func() (free, size int64, err error) // bytes, where the farm keeps its state
	Machine      func() usage.Machine                 // nil: this one
	Workers      []graph.Worker                       // what builds for what; none: each arch in a system of its own
	// Jobs tells which build has how many of the machine's slots; ok is false, or
	// Jobs nil, where nobody shares them out.
	Jobs func() (st control.JobsStatus, ok bool)

	Log *slog.Logger // nil: slog.Default()
}

//go:embed templates/*.html
var templateFiles embed.FS

//go:embed static
var staticFiles embed.FS

// route is a page, or something that pages load.
type route struct {
	pattern string // as http.ServeMux takes it, e.g. GET /queue
	handler http.Handler
}

// routes lists everything there is.
func (s *Site) routes() []route {
	return slices.Concat(
		s.staticRoutes(),
		s.nowRoutes(),
		s.recordedRoutes(),
		s.buildRoutes(),
		s.queueRoutes(),
		s.builderRoutes(),
	)
}

// section is an entry of the navigation.
type section struct{ ID, Name, URL string }

// Sections are the navigation's entries.
func (s *Site) Sections() []section {
	return []section{
		{"now", "Now", "/"},
		{"queue", "Queue", "/queue"},
		{"results", "Results", "/results"},
		{"failures", "Failures", "/failures"},
		{"grid", "Grid", "/grid"},
		{"builders", "Builders", "/builders"},
	}
}

// Site is the pages of one farm.
type Site struct {
	Source
	mux       *http.ServeMux
	templates map[string]*template.Template // by the file's name without .html
	static    map[string]asset              // by the path that it is served at
	address   map[string]string             // of static files, by name
	cache     cache
	recorded  recorded
	hubs      hubs
	plan      planned
	reading   chan struct{} // has room for those that read logs through
}

// New makes the handler of all pages.
func New(src Source) *Site {
	if src.Log == nil {
		src.Log = slog.Default()
	}
	if src.Machine == nil {
		src.Machine = usage.ThisMachine
	}
	s := &Site{Source: src, reading: make(chan struct{}, readers)}
	s.loadStatic()
	s.loadTemplates()
	mux := http.NewServeMux()
	for _, r := range s.routes() {
		mux.Handle(r.pattern, r.handler)
	}
	mux.Handle("/", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, notFound("there is no page %.80q", r.URL.Path))
	}))
	s.mux = mux
	return s
}

// ServeHTTP serves the pages. The server sets the headers that all answers have,
// see room web.
func (s *Site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		web.Error(w, r, http.StatusMethodNotAllowed, "pages are only looked at: acting goes through the other doors")
		return
	}
	s.mux.ServeHTTP(w, r)
}

// pageError is an error with the status that a browser gets.
type pageError struct {
	status int
	err    error
}

func (e *pageError) Error() string { return e.err.Error() }

// Unwrap gives the error itself.
func (e *pageError) Unwrap() error { return e.err }

func notFound(format string, args ...any) error {
	return &pageError{http.StatusNotFound, fmt.Errorf(format, args...)}
}

func badRequest(format string, args ...any) error {
	return &pageError{http.StatusBadRequest, fmt.Errorf(format, args...)}
}

func (s *Site) loadTemplates() {
	layout := template.Must(template.New("layout.html").Funcs(s.funcs()).ParseFS(templateFiles, "templates/layout.html", "templates/parts.html"))
	s.templates = map[string]*template.Template{}
	files, err := fs.Glob(templateFiles, "templates/*.html")
	if err != nil {
		panic(err)
	}
	for _, f := range files {
		name := strings.TrimSuffix(path.Base(f), ".html")
		if name == "layout" || name == "parts" {
			continue
		}
		s.templates[name] = template.Must(template.Must(layout.Clone()).ParseFS(templateFiles, f))
	}
}

// asset is a file that never changes: another version has another address.
type asset struct {
	body, packed []byte // packed by gzip
	kind         string
}

var kinds = map[string]string{".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}

func (s *Site) loadStatic() {
	s.static, s.address = map[string]asset{}, map[string]string{}
	files, err := fs.ReadDir(staticFiles, "static")
	if err != nil {
		panic(err)
	}
	for _, f := range files {
		body, err := fs.ReadFile(staticFiles, "static/"+f.Name())
		if err != nil {
			panic(err)
		}
		sum := sha256.Sum256(body)
		ext := path.Ext(f.Name())
		at := "/static/" + strings.TrimSuffix(f.Name(), ext) + "." + hex.EncodeToString(sum[:6]) + ext
		s.static[at] = asset{body, pack(body), kinds[ext]}
		s.address[f.Name()] = at
	}
}

func (s *Site) staticRoutes() []route {
	return []route{
		{"GET /static/", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			a, ok := s.static[r.URL.Path]
			if !ok {
				s.fail(w, r, notFound("there is no file %.80q: it may be that of another version, load the page again", r.URL.Path))
				return
			}
			w.Header().Set("Content-Type", a.kind)
			w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
			send(w, r, a.body, a.packed)
		})},
		{"GET /favicon.ico", http.RedirectHandler(s.address["icon.svg"], http.StatusFound)},
		{"GET /robots.txt", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			fmt.Fprint(w, "User-agent: *\nDisallow: /\n")
		})},
	}
}

// fail answers with what is wrong.
func (s *Site) fail(w http.ResponseWriter, r *http.Request, err error) {
	status, say := http.StatusInternalServerError, "this is a fault of the farm's: tell an admin to look into its log"
	var known *pageError
	switch {
	case errors.As(err, &known):
		status, say = known.status, err.Error()
	case errors.Is(err, queue.ErrUnknown), errors.Is(err, fs.ErrNotExist), errors.Is(err, results.ErrNotFound):
		status, say = http.StatusNotFound, err.Error()
	case r.Context().Err() != nil:
		return // whoever asked has gone
	default:
		s.Log.Error("a page cannot be shown", "path", r.URL.Path, "err", err)
	}
	web.Error(w, r, status, say)
}

// ErrorPage shows a browser what is wrong, as [web.Options] takes it.
func (s *Site) ErrorPage(w http.ResponseWriter, _ *http.Request, p web.Problem) {
	body, err := s.render(&page{Title: p.Title, Template: "error", Data: p})
	if err != nil {
		http.Error(w, p.Detail, p.Status)
		return
	}
	w.WriteHeader(p.Status)
	_, _ = w.Write(body)
}
