// Package api is the calls for programs that speak HTTP: /task and /builder, as
// they were asked for, and /api/v1 for all else.
//
// One list of routes makes the handlers and the OpenAPI document that describes
// them (/api/v1/openapi.json); those of the verbs are made from the table of
// verbs. doc/rest.md is for people.
package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/web"
)

// Artifacts is the store of what builds have made.
type Artifacts interface {
	// Open opens an artifact by its SHA-256 in hex. The error wraps fs.ErrNotExist
	// where there is none.
	Open(sha string) (*os.File, error)
}

// Options say what the calls act on.
type Options struct {
	Farm      *control.Farm
	Verbs     control.Table // of the farm
	Results   *results.Repo
	Index     *results.Index
	Artifacts Artifacts
	Tasks     string // folder of tasks; made
	Limits    TaskLimits
	URL       string // how people reach the door, for the document
	Log       *slog.Logger
}

// API answers the calls.
type API struct {
	opts   Options
	farm   *control.Farm
	log    *slog.Logger
	tasks  *tasks
	routes []route
	doc    []byte // the OpenAPI document
	docTag string
	beat   time.Duration // between signs of life on a quiet stream of events
	http.Handler
}

// New makes the calls, and reads the tasks there are.
func New(o Options) (*API, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	a := &API{opts: o, farm: o.Farm, log: o.Log, beat: 15 * time.Second}
	var err error
	if a.tasks, err = openTasks(o.Tasks, o.Limits, o.Farm, o.Log); err != nil {
		return nil, err
	}
	a.routes = slices.Concat(a.taskRoutes(), a.buildRoutes(), a.recordRoutes(), a.farmRoutes(), a.verbRoutes())
	mux := http.NewServeMux()
	for _, rt := range a.routes {
		mux.HandleFunc(rt.method+" "+rt.path, a.serve(rt))
	}
	if a.doc, err = a.document(); err != nil {
		return nil, err
	}
	a.docTag = web.Tag(a.doc)
	a.Handler = web.Routes(mux)
	return a, nil
}

// route is one call: what answers it, and all that the document says of it.
type route struct {
	method, path string // e.g. GET /api/v1/builds/{number}
	id           string // in the document, e.g. getBuild
	tag          string // under which it stands there
	short, long  string
	need         control.Permission // what the caller has to be; the handler may ask for more
	params       []param
	body         *body
	answers      []answer // besides errors
	errors       []int    // statuses of problem+json
	handle       func(w http.ResponseWriter, r *http.Request) error
}

// param is a parameter of a call.
type param struct {
	in, name string // path, query or header
	about    string
	schema   any // JSON Schema
	required bool
}

// body is what is sent.
type body struct {
	types    map[string]any // JSON Schema by content type; nil: bytes
	required bool
}

// answer is what comes back.
type answer struct {
	status  int
	about   string
	types   map[string]any // JSON Schema by content type; nil: bytes
	headers []string       // names, of those in headerAbout
}

// serve checks who asks, and answers the errors of a call.
func (a *API) serve(rt route) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := permit(web.Who(r.Context()), rt.need); err != nil {
			fail(w, r, err)
			return
		}
		for _, p := range rt.params {
			if p.in == "path" {
				if err := checkPart(p.name, r.PathValue(p.name)); err != nil {
					fail(w, r, err)
					return
				}
			}
		}
		if err := rt.handle(w, r); err != nil {
			if fail(w, r, err) == http.StatusInternalServerError {
				a.log.Error("a call met trouble of ours", "path", r.URL.Path, "err", err)
			}
		}
	}
}

// permit reports whether somebody may make a call. Verbs ask themselves.
func permit(who quarry.Identity, need control.Permission) error {
	switch {
	case !who.MayRead():
		return forbidden("you have no role here: ask an admin for one")
	case need == control.Admin && who.Role != quarry.RoleAdmin:
		return forbidden("only an admin may do this, and you are a %s", who.Role)
	case need == control.Push && who.Role != quarry.RoleAdmin && who.Role != quarry.RoleMaintainer:
		return forbidden("only maintainers may do this, and you are a %s", who.Role)
	}
	return nil
}

func usage(format string, args ...any) error {
	return &control.Error{Code: control.ExitUsage, Err: fmt.Errorf(format, args...)}
}

func notFound(format string, args ...any) error {
	return &control.Error{Code: control.ExitNotFound, Err: fmt.Errorf(format, args...)}
}

func forbidden(format string, args ...any) error {
	return &control.Error{Code: control.ExitForbidden, Err: fmt.Errorf(format, args...)}
}

// statusError is an error with a status that no exit code stands for.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

func conflict(format string, args ...any) error {
	return &statusError{http.StatusConflict, fmt.Errorf(format, args...)}
}

// statusOf gives an exit code of the verbs the status that stands for it. That a
// build did not succeed is no error of the call.
func statusOf(code int) int {
	switch code {
	case control.ExitOK, control.ExitBuild:
		return http.StatusOK
	case control.ExitUsage:
		return http.StatusBadRequest
	case control.ExitNotFound:
		return http.StatusNotFound
	case control.ExitForbidden:
		return http.StatusForbidden
	case control.ExitUnreachable:
		return http.StatusServiceUnavailable
	}
	return http.StatusUnprocessableEntity
}

// fail answers with an error.
func fail(w http.ResponseWriter, r *http.Request, err error) (status int) {
	p := web.Problem{Detail: human.Safe(strings.ReplaceAll(err.Error(), "\n", "; "), false)}
	var exact *statusError
	var large *http.MaxBytesError
	var coded *control.Error
	switch {
	case errors.As(err, &large):
		p.Status, p.Detail = http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has more than %d bytes, which is all that is taken here", large.Limit)
	case errors.As(err, &exact):
		p.Status = exact.status
	case errors.As(err, &coded):
		p.Status = statusOf(coded.Code)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, results.ErrNotFound):
		p.Status = http.StatusNotFound
	default:
		p.Status = http.StatusInternalServerError
	}
	if code := control.Code(err); coded != nil {
		p.Exit = code
	}
	deny(w, r, &p)
	web.Fail(w, r, p)
	return p.Status
}

// deny asks those for a token who may not do something as nobody.
func deny(w http.ResponseWriter, r *http.Request, p *web.Problem) {
	if who := web.Who(r.Context()); p.Status == http.StatusForbidden && who.User == "" {
		p.Status = http.StatusUnauthorized
		w.Header().Set("WWW-Authenticate", `Bearer realm="quarry"`)
	}
}

// send answers with JSON, or with 304 when the client has it.
func send(w http.ResponseWriter, r *http.Request, status int, v any) error {
	var b bytes.Buffer
	if err := human.JSON(&b, v); err != nil {
		return err
	}
	return sendBytes(w, r, status, "application/json", b.Bytes())
}

func sendBytes(w http.ResponseWriter, r *http.Request, status int, kind string, data []byte) error {
	if status == http.StatusOK && (r.Method == http.MethodGet || r.Method == http.MethodHead) && web.NotModified(w, r, web.Tag(data)) {
		return nil
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	w.WriteHeader(status)
	_, _ = w.Write(data) // whoever asked has gone
	return nil
}

// part is what a part of a path that names something is made of, at most.
var part = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9+._~:-]{0,255}$`)

// checkPart refuses names that are none, and keeps them out of messages.
func checkPart(name, value string) error {
	if !part.MatchString(value) {
		return notFound("%s %.40q is none", name, value)
	}
	return nil
}

// query reads the query of a call, of which all keys have to be known.
func query(r *http.Request, known ...string) (url.Values, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, usage("the query cannot be read: write it as ?key=value&key=value, with %%xx for other bytes")
	}
	for key := range q {
		if !slices.Contains(known, key) {
			return nil, usage("the query has the key %.40q, which is unknown here: there is %s", key, strings.Join(known, ", "))
		}
	}
	return q, nil
}

// number reads a number of a query; what is not there is the default.
func number(q url.Values, key string, standard, least, most int64) (int64, error) {
	s := q.Get(key)
	if s == "" {
		return standard, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < least || n > most {
		return 0, usage("%s is %.40q: give a number from %d to %d", key, s, least, most)
	}
	return n, nil
}

// truth reads a switch of a query.
func truth(q url.Values, key string) (bool, error) {
	if !q.Has(key) {
		return false, nil
	}
	v, err := strconv.ParseBool(q.Get(key))
	if err != nil && q.Get(key) != "" {
		return false, usage("%s is %.40q: give true or false", key, q.Get(key))
	}
	return v || q.Get(key) == "", nil
}

// next links to what comes after a page (RFC 8288).
func next(w http.ResponseWriter, r *http.Request, set ...string) {
	q := r.URL.Query()
	for i := 0; i+1 < len(set); i += 2 {
		q.Set(set[i], set[i+1])
	}
	w.Header().Add("Link", fmt.Sprintf(`<%s?%s>; rel="next"`, r.URL.EscapedPath(), q.Encode()))
}

// prefers reports whether the client wants one content type rather than another,
// which it gets when it does not say.
func prefers(r *http.Request, kind, standard string) bool {
	accept := strings.Join(r.Header.Values("Accept"), ",")
	return quality(accept, kind) > quality(accept, standard)
}

// quality is how much a client wants a content type (RFC 9110, 12.5.1).
func quality(accept, kind string) float64 {
	if strings.TrimSpace(accept) == "" {
		return 1
	}
	best, exact := 0.0, -1
	main, _, _ := strings.Cut(kind, "/")
	for one := range strings.SplitSeq(accept, ",") {
		t, params, _ := strings.Cut(one, ";")
		fit := -1
		switch strings.ToLower(strings.TrimSpace(t)) {
		case kind:
			fit = 2
		case main + "/*":
			fit = 1
		case "*/*":
			fit = 0
		}
		if fit <= exact {
			continue
		}
		exact, best = fit, 1
		for p := range strings.SplitSeq(params, ";") {
			if s, ok := strings.CutPrefix(strings.TrimSpace(p), "q="); ok {
				if best, _ = strconv.ParseFloat(s, 64); best < 0 || best > 1 {
					best = 0
				}
			}
		}
	}
	return best
}

// decode reads a body of JSON, strictly.
func decode(r *http.Request, v any) error {
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	if large := (*http.MaxBytesError)(nil); errors.As(err, &large) {
		return err
	}
	if err == nil && dec.More() {
		err = errors.New("more follows it")
	}
	if err != nil {
		return usage("the body is no JSON that is taken here: %w", err)
	}
	return nil
}
