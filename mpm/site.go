package mpm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// site is files by name: a farm's web door, a mirror, a folder.
type site interface {
	// get reads a file of max bytes at most. A file that is still what etag says comes
	// back as errSame.
	get(ctx context.Context, name, etag string, max int64) (data []byte, newTag string, err error)
	// open reads a file from an offset on; from says from where it really begins, 0 or
	// the offset. Names that are not there wrap fs.ErrNotExist.
	open(ctx context.Context, name string, offset int64) (r io.ReadCloser, from int64, err error)
}

// errSame says that a file is still the one that was had before.
var errSame = errors.New("the file is the same")

// site is the place at an address or of a folder. The token goes to the host that
// the channel is from, and to no other.
func (o *Options) site(base string) site {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" {
		return dirSite(base)
	}
	w := &webSite{base: strings.TrimRight(base, "/"), client: o.HTTP}
	if from, err := url.Parse(o.From); err == nil && from.Scheme == u.Scheme && from.Host == u.Host {
		w.token = o.Token
	}
	return w
}

// silence is how long a server may say nothing in the middle of an answer.
const silence = time.Minute

// newHTTPClient gives up on servers that do not answer, and not on slow ones.
func newHTTPClient() *http.Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = silence
	t.DialContext = (&net.Dialer{Timeout: 30 * time.Second}).DialContext
	return &http.Client{Transport: t}
}

type webSite struct {
	base   string
	client *http.Client
	token  string
}

func (w *webSite) do(ctx context.Context, name string, header map[string]string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.base+"/"+name, nil)
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	if w.token != "" {
		req.Header.Set("Authorization", "Bearer "+w.token)
	}
	resp, err := w.client.Do(req)
	if err != nil {
		return nil, err
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusPartialContent, http.StatusNotModified, http.StatusRequestedRangeNotSatisfiable:
		return resp, nil
	}
	resp.Body.Close()
	err = fmt.Errorf("%s answers %s", req.URL.Redacted(), resp.Status)
	if resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusGone {
		err = fmt.Errorf("%w: %w", err, fs.ErrNotExist)
	}
	return nil, err
}

func (w *webSite) get(ctx context.Context, name, etag string, max int64) ([]byte, string, error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	header := map[string]string{}
	if etag != "" {
		header["If-None-Match"] = etag
	}
	resp, err := w.do(ctx, name, header)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotModified && etag != "" {
		return nil, etag, errSame
	}
	if resp.StatusCode != http.StatusOK {
		return nil, "", fmt.Errorf("%s/%s answers %s", w.base, name, resp.Status)
	}
	data, err := io.ReadAll(io.LimitReader(watch(resp.Body, stop), max+1))
	if err == nil && int64(len(data)) > max {
		err = fmt.Errorf("%s/%s has more than %d bytes", w.base, name, max)
	}
	return data, resp.Header.Get("ETag"), errors.Join(err, context.Cause(ctx))
}

func (w *webSite) open(ctx context.Context, name string, offset int64) (io.ReadCloser, int64, error) {
	ctx, stop := context.WithCancelCause(ctx)
	header := map[string]string{"Accept-Encoding": "identity"}
	if offset > 0 {
		header["Range"] = fmt.Sprintf("bytes=%d-", offset)
	}
	resp, err := w.do(ctx, name, header)
	if err == nil && resp.StatusCode == http.StatusRequestedRangeNotSatisfiable && offset > 0 {
		// What is here is as long as the file, or longer: it is none of it.
		resp.Body.Close()
		delete(header, "Range")
		resp, err = w.do(ctx, name, header)
	}
	if err != nil {
		stop(nil)
		return nil, 0, err
	}
	from := int64(0)
	switch {
	case resp.StatusCode == http.StatusOK:
	case resp.StatusCode == http.StatusPartialContent && strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", offset)):
		from = offset
	default:
		resp.Body.Close()
		stop(nil)
		return nil, 0, fmt.Errorf("%s/%s answers %s %s", w.base, name, resp.Status, resp.Header.Get("Content-Range"))
	}
	return struct {
		io.Reader
		io.Closer
	}{watch(resp.Body, stop), closer(func() error { stop(nil); return resp.Body.Close() })}, from, nil
}

type closer func() error

func (c closer) Close() error { return c() }

// watched ends a download that has fallen silent.
type watched struct {
	r    io.Reader
	stop context.CancelCauseFunc
}

func watch(r io.Reader, stop context.CancelCauseFunc) io.Reader { return &watched{r, stop} }

func (w *watched) Read(p []byte) (int, error) {
	timer := time.AfterFunc(silence, func() { w.stop(fmt.Errorf("the server has said nothing for %v", silence)) })
	defer timer.Stop()
	return w.r.Read(p)
}

// dirSite is a folder that was exported.
type dirSite string

func (d dirSite) get(ctx context.Context, name, etag string, max int64) ([]byte, string, error) {
	r, _, err := d.open(ctx, name, 0)
	if err != nil {
		return nil, "", err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, max+1))
	if err == nil && int64(len(data)) > max {
		err = fmt.Errorf("%s has more than %d bytes", filepath.Join(string(d), name), max)
	}
	return data, "", err
}

func (d dirSite) open(_ context.Context, name string, offset int64) (io.ReadCloser, int64, error) {
	f, err := os.Open(filepath.Join(string(d), filepath.FromSlash(name)))
	if err != nil {
		return nil, 0, err
	}
	if offset > 0 {
		if _, err := f.Seek(offset, io.SeekStart); err != nil {
			f.Close()
			return nil, 0, err
		}
	}
	return f, offset, nil
}
