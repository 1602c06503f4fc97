package web

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"html/template"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// Problem is an error as programs are told it (RFC 9457).
type Problem struct {
	Type     string `json:"type"`               // about:blank: the status says what kind it is
	Title    string `json:"title"`              // e.g. Not Found
	Status   int    `json:"status"`             // e.g. 404
	Detail   string `json:"detail,omitempty"`   // one sentence: what is wrong, and what to do
	Instance string `json:"instance,omitempty"` // the path that was asked for
	Exit     int    `json:"exit,omitempty"`     // exit code of the verb, where one was called

	Cache string `json:"-"` // Cache-Control; blank: no-store
}

// Error answers with an error, as a program or a browser takes it. detail is one
// sentence in lower case; the title is the status's.
func Error(w http.ResponseWriter, r *http.Request, status int, detail string) {
	Fail(w, r, Problem{Status: status, Detail: detail})
}

// Fail answers with a problem, of which Status has to be given.
func Fail(w http.ResponseWriter, r *http.Request, p Problem) {
	if p.Type == "" {
		p.Type = "about:blank"
	}
	if p.Title == "" {
		p.Title = http.StatusText(p.Status)
	}
	if p.Instance == "" {
		p.Instance = r.URL.EscapedPath()
	}
	h := w.Header()
	for _, name := range []string{"Content-Length", "Content-Encoding", "ETag", "Last-Modified", "Content-Disposition", "Accept-Ranges"} {
		h.Del(name)
	}
	h.Set("Cache-Control", cmp.Or(p.Cache, "no-store"))
	if p.Status == http.StatusRequestEntityTooLarge {
		h.Set("Connection", "close") // the rest is not waited for
	}
	if isGit(r.URL.Path) { // which shows its user what is text
		h.Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(p.Status)
		_, _ = io.WriteString(w, p.Detail+"\n")
		return
	}
	if wantsHTML(r) {
		h.Set("Content-Type", "text/html; charset=utf-8")
		if rq := of(r.Context()); rq != nil && rq.server != nil && rq.server.opts.ErrorPage != nil {
			rq.server.opts.ErrorPage(w, r, p)
			return
		}
		w.WriteHeader(p.Status)
		_ = errorPage.Execute(w, p)
		return
	}
	data, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		panic(err) // strings and numbers always can be
	}
	h.Set("Content-Type", "application/problem+json")
	h.Set("Content-Length", strconv.Itoa(len(data)+1))
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(data, '\n'))
}

var errorPage = template.Must(template.New("").Parse(`<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{.Status}} {{.Title}}</title>
<h1>{{.Title}}</h1>
<p>{{.Detail}}
<p><a href="/">The farm</a>
</html>
`))

// Routes serves a mux, and answers as [Error] does what it does not know: 404,
// or 405 with the methods that there are.
func Routes(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h, pattern := mux.Handler(r); pattern == "" {
			var s status
			h.ServeHTTP(&s, r)
			switch s.code {
			case http.StatusMethodNotAllowed:
				allow := s.Header().Get("Allow")
				w.Header().Set("Allow", allow)
				Error(w, r, s.code, "the method "+r.Method+" is not for this path: it takes "+allow)
			case http.StatusNotFound:
				Error(w, r, s.code, "there is nothing at this path")
			default:
				h.ServeHTTP(w, r) // e.g. of a path that has to be cleaned
			}
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// status is an answer of which only the head matters.
type status struct {
	code   int
	header http.Header
}

func (s *status) Header() http.Header {
	if s.header == nil {
		s.header = http.Header{}
	}
	return s.header
}
func (s *status) WriteHeader(code int) { s.code = code }
func (s *status) Write(b []byte) (int, error) {
	if s.code == 0 {
		s.code = http.StatusOK
	}
	return len(b), nil
}

// Tag is an ETag for some bytes.
func Tag(data []byte) string {
	sum := sha256.Sum256(data)
	return `"` + base64.RawURLEncoding.EncodeToString(sum[:15]) + `"`
}

// NotModified sets the tag of what is asked for (with its quotes), and answers
// with 304 and true when the client has that already.
func NotModified(w http.ResponseWriter, r *http.Request, tag string) bool {
	h := w.Header()
	h.Set("ETag", tag)
	if h.Get("Cache-Control") == "" {
		h.Set("Cache-Control", "no-cache") // to be kept, and asked about each time
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	for part := range strings.SplitSeq(strings.Join(r.Header.Values("If-None-Match"), ","), ",") {
		// The weak comparison (RFC 9110, 13.1.2): what is compressed is as good.
		if part = strings.TrimPrefix(strings.TrimSpace(part), "W/"); part == "*" || part != "" && part == strings.TrimPrefix(tag, "W/") {
			h.Del("Content-Type")
			w.WriteHeader(http.StatusNotModified)
			return true
		}
	}
	return false
}
