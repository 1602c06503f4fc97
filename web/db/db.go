// Package db shows the database at the web door: /db/ and /artifacts/, whose files
// room mirror makes. See doc/mirror.md.
package db

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/Morphux/quarry/mirror"
	"github.com/Morphux/quarry/web"
)

// stream is from how many bytes on a client may take so long that it must not
// count among the requests under way.
const stream = 1 << 20

// New serves a site.
func New(site *mirror.Site, log *slog.Logger) http.Handler {
	h := &handler{site, log}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /db/{name...}", h.get)
	mux.HandleFunc("GET /artifacts/{name...}", h.get)
	return web.Routes(mux)
}

type handler struct {
	site *mirror.Site
	log  *slog.Logger
}

func (h *handler) get(w http.ResponseWriter, r *http.Request) {
	a, err := h.site.Get(r.Context(), strings.TrimPrefix(r.URL.Path, "/"))
	if err == nil {
		err = h.send(w, r, a)
	}
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrNotExist):
		web.Fail(w, r, web.Problem{Status: http.StatusNotFound, Detail: "the database has nothing of this name", Cache: shared(r) + "max-age=10"})
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		w.Header().Set("Retry-After", "5")
		web.Error(w, r, http.StatusServiceUnavailable, "the database is not ready: try again in a moment")
	default:
		h.log.Error("the database cannot be read", "path", r.URL.Path, "err", err)
		web.Error(w, r, http.StatusInternalServerError, "the database cannot be read: tell an admin to look into the farm's log")
	}
}

// shared lets caches keep for all what everybody may see.
func shared(r *http.Request) string {
	if web.Who(r.Context()).User == "" {
		return "public, "
	}
	return "private, "
}

// send answers, or returns an error while nothing has been said.
func (h *handler) send(w http.ResponseWriter, r *http.Request, a *mirror.Answer) error {
	head := w.Header()
	if a.File != nil {
		defer a.File.Close()
	}
	cache := shared(r) + "no-cache"
	if a.Forever {
		cache = shared(r) + "max-age=31536000, immutable"
	}
	head.Set("Cache-Control", cache)
	head.Set("Content-Type", a.Type)
	if a.File == nil {
		head.Set("Vary", "Accept-Encoding")
	}
	if web.NotModified(w, r, `"`+a.Tag+`"`) {
		return nil
	}
	if a.File != nil {
		info, err := a.File.Stat()
		if err != nil {
			return err
		}
		if info.Size() > stream {
			_, end, ok := web.Stream(w, r)
			if !ok {
				return nil
			}
			defer end()
		}
		http.ServeContent(w, r, "", time.Time{}, a.File)
		return nil
	}
	// Parts are parts of what it is unpacked.
	if r.Header.Get("Range") != "" {
		data, err := a.Text("")
		if err != nil {
			return err
		}
		tag(head, "", a)
		head.Del("Vary") // the server says so itself of what it may compress
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		return nil
	}
	data, coding, err := text(r, a)
	if err != nil {
		return err
	}
	if coding != "" {
		head.Set("Content-Encoding", coding)
		tag(head, "W/", a)
	} else {
		tag(head, "", a)
		head.Del("Vary")
	}
	head.Set("Accept-Ranges", "bytes")
	head.Set("Content-Length", strconv.Itoa(len(data)))
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(data) // a client that is gone is none of our errors
	}
	return nil
}

// text is an answer's text in an encoding that the client takes, if that is worth
// it.
func text(r *http.Request, a *mirror.Answer) (data []byte, coding string, err error) {
	for _, coding := range []string{"zstd", "gzip"} {
		if web.Takes(r, coding) {
			if data, err = a.Text(coding); data != nil || err != nil {
				return data, coding, err
			}
			break
		}
	}
	data, err = a.Text("")
	return data, "", err
}

// tag sets the tag that the content has proved to have.
func tag(h http.Header, weak string, a *mirror.Answer) {
	if a.Tag == "" {
		h.Del("ETag")
		return
	}
	h.Set("ETag", weak+`"`+a.Tag+`"`)
}
