package web

import (
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
)

// worthIt is from how many bytes on an answer is compressed: less goes into one
// packet either way.
const worthIt = 1200

// writer is the answer to a request: it gives each write its time, compresses
// what is worth it and counts.
type writer struct {
	http.ResponseWriter
	rc    *http.ResponseController
	head  bool
	gzip  bool // the client takes it
	stall time.Duration
	set   time.Time // when the time limit was set last

	status int
	bytes  int64
	held   []byte // until there is enough to be worth compressing
	holds  bool
	packed *gzip.Writer
}

var packers = sync.Pool{New: func() any {
	z, _ := gzip.NewWriterLevel(io.Discard, 3) // the only error is of a level that is none
	return z
}}

func newWriter(w http.ResponseWriter, r *http.Request, stall time.Duration) *writer {
	return &writer{ResponseWriter: w, rc: http.NewResponseController(w), head: r.Method == http.MethodHead, stall: stall,
		// Parts of something are parts of what it is uncompressed.
		gzip: Takes(r, "gzip") && r.Header.Get("Range") == ""}
}

// Takes reports whether the client takes a content coding, as its Accept-Encoding
// says (RFC 9110, 12.5.3).
func Takes(r *http.Request, want string) bool {
	takes, other := false, false
	for part := range strings.SplitSeq(strings.Join(r.Header.Values("Accept-Encoding"), ","), ",") {
		coding, params, err := mime.ParseMediaType(strings.TrimSpace(part))
		if err != nil {
			continue
		}
		q := 1.0
		if s, ok := params["q"]; ok {
			if q, err = strconv.ParseFloat(s, 64); err != nil {
				q = 0
			}
		}
		switch strings.TrimPrefix(coding, "x-") {
		case want:
			takes, other = q > 0, true
		case "*":
			if !other {
				takes = q > 0
			}
		}
	}
	return takes
}

// compressible reports whether a content type is text of some kind.
func compressible(contentType string) bool {
	t, _, _ := mime.ParseMediaType(contentType)
	switch t {
	case "text/event-stream":
		return false
	case "application/json", "application/javascript", "application/xml", "image/svg+xml", "application/jsonl", "application/toml", "application/openapi+json":
		return true
	}
	return strings.HasPrefix(t, "text/") || strings.HasSuffix(t, "+json") || strings.HasSuffix(t, "+xml")
}

// Unwrap is for [http.ResponseController].
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *writer) touch(now time.Time) {
	if now.Sub(w.set) > w.stall/8 {
		w.set = now
		w.rc.SetWriteDeadline(now.Add(w.stall))
	}
}

func (w *writer) WriteHeader(status int) {
	if status >= 100 && status < 200 && status != http.StatusSwitchingProtocols {
		w.ResponseWriter.WriteHeader(status)
		return
	}
	if w.status != 0 {
		return
	}
	w.status = status
	h := w.Header()
	if !compressible(h.Get("Content-Type")) || h.Get("Content-Encoding") != "" {
		w.send()
		return
	}
	h.Add("Vary", "Accept-Encoding")
	n, err := strconv.Atoi(h.Get("Content-Length"))
	switch {
	case !w.gzip, w.head, err == nil && n < worthIt, status == http.StatusNoContent, status == http.StatusNotModified, status == http.StatusPartialContent:
		w.send()
	case err == nil:
		w.compress()
	default:
		w.holds = true
	}
}

// send sends the headers as they are.
func (w *writer) send() {
	w.touch(time.Now())
	w.ResponseWriter.WriteHeader(w.status)
}

// compress sends the headers of a compressed answer.
func (w *writer) compress() {
	h := w.Header()
	h.Set("Content-Encoding", "gzip")
	h.Del("Content-Length")
	h.Del("Accept-Ranges")
	// These are other bytes than those that the tag was made for.
	if tag := h.Get("ETag"); tag != "" && !strings.HasPrefix(tag, "W/") {
		h.Set("ETag", "W/"+tag)
	}
	w.packed = packers.Get().(*gzip.Writer)
	w.packed.Reset(plain{w})
	w.send()
}

// plain writes what is compressed already.
type plain struct{ w *writer }

func (p plain) Write(b []byte) (int, error) {
	p.w.touch(time.Now())
	n, err := p.w.ResponseWriter.Write(b)
	p.w.bytes += int64(n)
	return n, err
}

func (w *writer) Write(b []byte) (int, error) {
	if w.status == 0 {
		if h := w.Header(); h.Get("Content-Type") == "" && h.Get("Content-Encoding") == "" {
			h.Set("Content-Type", http.DetectContentType(b))
		}
		w.WriteHeader(http.StatusOK)
	}
	if w.holds {
		w.held = append(w.held, b...)
		if len(w.held) < worthIt {
			return len(b), nil
		}
		w.holds = false
		w.compress()
		held := w.held
		w.held = nil
		if _, err := w.packed.Write(held); err != nil {
			return 0, err
		}
		return len(b), nil
	}
	if w.packed != nil {
		return w.packed.Write(b)
	}
	return plain{w}.Write(b)
}

// some is how much of a file is sent within one time limit.
const some = 256 << 10

// ReadFrom sends a file without a way through our memory, where the connection can.
func (w *writer) ReadFrom(src io.Reader) (total int64, err error) {
	to, ok := w.ResponseWriter.(io.ReaderFrom)
	if !ok || w.status == 0 || w.holds || w.packed != nil {
		return io.Copy(struct{ io.Writer }{w}, src)
	}
	// The connection looks for a file behind one limit, not behind two.
	whole, limited := src.(*io.LimitedReader)
	for {
		part := &io.LimitedReader{R: src, N: some}
		if limited {
			part.R, part.N = whole.R, min(whole.N, some)
		}
		want := part.N
		w.touch(time.Now())
		n, err := to.ReadFrom(part)
		total += n
		w.bytes += n
		if limited {
			whole.N -= n
		}
		if err != nil || n < want || limited && whole.N == 0 {
			return total, err
		}
	}
}

// release sends what was held, uncompressed.
func (w *writer) release() error {
	if !w.holds {
		return nil
	}
	w.holds = false
	w.send()
	held := w.held
	w.held = nil
	_, err := plain{w}.Write(held)
	return err
}

// Flush sends what there is; see [http.ResponseController].
func (w *writer) Flush() { _ = w.FlushError() }

// FlushError sends what there is, and says when that fails.
func (w *writer) FlushError() error {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if err := w.release(); err != nil {
		return err
	}
	if w.packed != nil {
		if err := w.packed.Flush(); err != nil {
			return err
		}
	}
	w.touch(time.Now())
	return w.rc.Flush()
}

// finish ends the answer.
func (w *writer) finish() {
	if w.holds && w.Header().Get("Content-Length") == "" {
		w.Header().Set("Content-Length", strconv.Itoa(len(w.held)))
	}
	_ = w.release()
	if w.packed != nil {
		_ = w.packed.Close()
		packers.Put(w.packed)
		w.packed = nil
	}
	if w.status == 0 {
		w.status = http.StatusOK
	}
	w.set = time.Time{}
	w.touch(time.Now()) // for what the server still has to send
}
