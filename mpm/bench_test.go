package mpm

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Morphux/quarry/mirror"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/results/resultstest"
)

// counted counts the bytes that pass through a port, both ways.
type counted struct{ atomic.Int64 }

func (c *counted) between(tb testing.TB, to string) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			pipe := func(w, r net.Conn) {
				n, _ := io.Copy(w, r)
				c.Add(n)
				w.(*net.TCPConn).CloseWrite()
			}
			go pipe(in, out)
			go pipe(out, in)
		}
	}()
	return l.Addr().String()
}

// gitDaemon serves a folder of repositories as git does by itself.
func gitDaemon(tb testing.TB, base string) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	cmd := exec.Command("git", "daemon", "--reuseaddr", "--export-all", "--listen=127.0.0.1", "--port="+port, "--base-path="+base, base)
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	addr := "127.0.0.1:" + port
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			return addr
		}
		if time.Now().After(deadline) {
			tb.Fatal("git daemon does not begin")
		}
	}
}

func exportFarm(tb testing.TB, repo, dir string) {
	tb.Helper()
	r, err := results.OpenReader(repo, resultstest.Channel)
	if err != nil {
		tb.Fatal(err)
	}
	defer r.Close()
	if _, err := mirror.Export(tb.Context(), mirror.ExportOptions{Dir: dir, Results: r, Default: resultstest.Channel, Now: time.Now(), Force: true}); err != nil {
		tb.Fatal(err)
	}
}

// BenchmarkUpdate is what a client gets, and how long it takes, to know of 100 new
// records among 10,000 packages on two archs with ten versions each, and of all
// for the first time.
func BenchmarkUpdate(b *testing.B) {
	size := resultstest.Medium
	repo := resultstest.Copy(b, size)
	if out, err := exec.Command("git", "-C", repo, "config", "uploadpack.allowFilter", "true").CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	dir := filepath.Join(b.TempDir(), "mirror")
	exportFarm(b, repo, dir)
	srv := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer srv.Close()
	var count counted
	web := "http://" + count.between(b, srv.Listener.Addr().String())
	git := "git://" + count.between(b, gitDaemon(b, filepath.Dir(repo))) + "/" + filepath.Base(repo)
	ways := []struct {
		name string
		o    Options
	}{
		{"index", Options{From: web}}, {"sparse", Options{From: web, By: BySparse}},
		{"git-shallow", Options{From: git}}, {"git-partial", Options{From: git, Git: GitPartial}}, {"git-full", Options{From: git, Git: GitFull}},
	}
	caches := b.TempDir()
	measure := func(b *testing.B, o Options, cache string) {
		o.Arch, o.Cache = resultstest.Archs[0], cache
		before, start := count.Load(), time.Now()
		c, err := Open(o)
		if err == nil {
			_, err = c.Update(b.Context())
		}
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(time.Since(start).Milliseconds()), "ms")
		c.o.HTTP.CloseIdleConnections()
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
		for last := int64(-1); last != count.Load(); { // until all was counted
			last = count.Load()
			time.Sleep(50 * time.Millisecond)
		}
		b.ReportMetric(float64(count.Load()-before)/1e3, "kB/op")
	}
	for _, w := range ways {
		b.Run("first/"+w.name, func(b *testing.B) {
			measure(b, w.o, filepath.Join(caches, w.name))
		})
	}
	r, err := results.Open(repo, results.Options{})
	if err != nil {
		b.Fatal(err)
	}
	for _, o := range resultstest.Next(size, 100) {
		if _, err := r.Record(b.Context(), o); err != nil {
			b.Fatal(err)
		}
	}
	if err := r.Close(); err != nil {
		b.Fatal(err)
	}
	exportFarm(b, repo, dir)
	for _, w := range ways {
		b.Run("100-records/"+w.name, func(b *testing.B) { measure(b, w.o, filepath.Join(caches, w.name)) })
	}
}

// BenchmarkDepends finds what a package with 200 others below it needs.
func BenchmarkDepends(b *testing.B) {
	size := resultstest.Medium
	repo := resultstest.Farm(b, size)
	dir := filepath.Join(b.TempDir(), "mirror")
	exportFarm(b, repo, dir)
	for name, from := range map[string]string{"index": dir, "git": repo} {
		cache := b.TempDir()
		open := func() *Client {
			c, err := Open(Options{From: from, Arch: resultstest.Archs[0], Cache: cache})
			if err != nil {
				b.Fatal(err)
			}
			return c
		}
		c := open()
		if _, err := c.Update(b.Context()); err != nil {
			b.Fatal(err)
		}
		which, n := "", 0
		for i := size.Packages - 1; i >= 0 && n < 200; i -= 7 {
			if list, err := c.Depends(b.Context(), resultstest.Name(i)); err == nil && len(list) > n {
				which, n = resultstest.Name(i), len(list)
			}
			if i < size.Packages-700 {
				break
			}
		}
		b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
			for b.Loop() {
				if _, err := c.Depends(b.Context(), which); err != nil {
					b.Fatal(err)
				}
			}
		})
		c.Close()
		b.Run(fmt.Sprintf("%s-cold/%d", name, n), func(b *testing.B) {
			for b.Loop() {
				c := open()
				if _, err := c.Depends(b.Context(), which); err != nil {
					b.Fatal(err)
				}
				c.Close()
			}
		})
	}
}
