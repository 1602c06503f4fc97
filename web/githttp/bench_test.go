package githttp_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/Morphux/quarry/results/resultstest"
	"github.com/Morphux/quarry/web"
	"github.com/Morphux/quarry/web/githttp"
)

// BenchmarkAsk is what a client asks that finds nothing new: first what the server
// can do, then where the branch is; and git run alone, which is the limit.
func BenchmarkAsk(b *testing.B) {
	s := newSite(b, func(o *githttp.Options, _ *web.Options) { o.Find = only(resultstest.Copy(b, resultstest.Small)) })
	lines := []string{"command=ls-refs\n", "object-format=sha1", "0001", "ref-prefix refs/heads/testing\n", "0000"}
	var body []byte
	for _, l := range lines {
		if len(l) > 4 {
			l = fmt.Sprintf("%04x%s", len(l)+4, l)
		}
		body = append(body, l...)
	}
	ask := func(b *testing.B, method, path string, body []byte) {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				req, err := http.NewRequest(method, s.url+path, bytes.NewReader(body))
				if err != nil {
					b.Error(err)
					return
				}
				req.Header.Set("Git-Protocol", "version=2")
				req.Header.Set("Content-Type", "application/x-git-upload-pack-request")
				res, err := http.DefaultClient.Do(req)
				if err != nil {
					b.Error(err)
					return
				}
				text, _ := io.ReadAll(res.Body)
				res.Body.Close()
				if res.StatusCode != 200 {
					b.Errorf("%s: %s", res.Status, text)
				}
			}
		})
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
	}
	b.Run("capabilities", func(b *testing.B) { ask(b, "GET", "/results.git/info/refs?service=git-upload-pack", nil) })
	b.Run("refs", func(b *testing.B) { ask(b, "POST", "/results.git/git-upload-pack", body) })
	b.Run("git-alone", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if err := exec.Command("git", "version").Run(); err != nil {
					b.Error(err)
				}
			}
		})
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
	})
}

func only(path string) func(string) (string, error) {
	return func(string) (string, error) { return path, nil }
}

// BenchmarkClone is a clone over HTTP, beside one of the same folder without a
// server.
func BenchmarkClone(b *testing.B) {
	path := resultstest.Copy(b, resultstest.Small)
	s := newSite(b, func(o *githttp.Options, _ *web.Options) { o.Find = only(path) })
	for _, from := range []struct{ name, url string }{{"http", s.url + "/results.git"}, {"file", "file://" + path}} {
		b.Run(from.name, func(b *testing.B) {
			for b.Loop() {
				into := filepath.Join(b.TempDir(), "clone")
				s.must("git", "clone", "-q", "--bare", from.url, into)
				os.RemoveAll(into)
			}
		})
	}
}
