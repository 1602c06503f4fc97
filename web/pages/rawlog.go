package pages

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"time"
)

// rawLog is a log as it is, for programs, whole or in part.
func (s *Site) rawLog(w http.ResponseWriter, r *http.Request) {
	number, err := buildNumber(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	f, err := s.openLog(r.Context(), number)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = notFound("build %d has no log: it has not begun, or its log was old and is gone", number)
		}
		s.fail(w, r, err)
		return
	}
	defer f.Close()
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; sandbox")
	h.Set("Cache-Control", "private, no-cache")
	// Each part would have what lies before it read through once more, and a header
	// has room for thousands. Whoever asks for several gets all (RFC 9110, 14.2).
	if strings.Contains(r.Header.Get("Range"), ",") {
		r.Header.Del("Range")
	}
	// Logs only grow: what is as long is the same.
	h.Set("ETag", fmt.Sprintf(`"%d-%d"`, number, f.size))
	http.ServeContent(w, r, "", time.Time{}, f)
}

// logFile is a log that can be read from any byte on. What comes before is read
// through, as logs are compressed.
type logFile struct {
	open func() (io.ReadCloser, error)
	size int64
	pos  int64
	r    io.ReadCloser // nil while none is open
	at   int64         // where r is
}

// openLog opens a log as far as it is written, and finds how long it is.
func (s *Site) openLog(ctx context.Context, number int64) (*logFile, error) {
	if err := s.takeReader(ctx); err != nil {
		return nil, err
	}
	defer s.giveReader()
	f := &logFile{open: func() (io.ReadCloser, error) { return s.Logs.Open(number) }}
	r, err := f.open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	f.size, err = io.Copy(io.Discard, r)
	return f, err
}

func (f *logFile) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += f.pos
	case io.SeekEnd:
		offset += f.size
	}
	if offset < 0 {
		return 0, errors.New("a log begins at 0")
	}
	f.pos = offset
	return offset, nil
}

func (f *logFile) Read(p []byte) (int, error) {
	if f.pos >= f.size { // it may have grown since
		return 0, io.EOF
	}
	if f.r != nil && f.at > f.pos {
		f.Close()
	}
	if f.r == nil {
		var err error
		if f.r, err = f.open(); err != nil {
			return 0, err
		}
		f.at = 0
	}
	if f.at < f.pos {
		n, err := io.CopyN(io.Discard, f.r, f.pos-f.at)
		f.at += n
		if err != nil {
			return 0, err
		}
	}
	n, err := f.r.Read(p[:min(int64(len(p)), f.size-f.pos)])
	f.at += int64(n)
	f.pos = f.at
	return n, err
}

// Close lets go of the log.
func (f *logFile) Close() error {
	if f.r == nil {
		return nil
	}
	err := f.r.Close()
	f.r = nil
	return err
}

// takeReader waits until a log may be read through: it may have 64 MiB, and many
// may ask.
func (s *Site) takeReader(ctx context.Context) error {
	select {
	case s.reading <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *Site) giveReader() { <-s.reading }
