package pages

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/livelog"
	"github.com/Morphux/quarry/internal/testbrowser"
)

// BenchmarkFollowers is 500 people who follow the log of one build: what each
// takes of memory (heap and stacks of the server, its own connection included),
// and how long a line takes to reach all.
func BenchmarkFollowers(b *testing.B) {
	const followers = 500
	w := newWorld(b, 1)
	d := tell(w)
	build := w.push("zlib", "1.3.1")[0]
	<-d.began
	d.say <- strings.Repeat("gcc -DHAVE_CONFIG_H -I. -O2 -g -c -o inflate.o inflate.c\n", 1000)
	addr := strings.TrimPrefix(w.srv.URL, "http://")
	var got atomic.Int64
	connect := func() net.Conn {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			b.Fatal(err)
		}
		fmt.Fprintf(c, "GET %s/live?from=1001 HTTP/1.1\r\nHost: x\r\n\r\n", buildURL(build.Number))
		return c
	}
	// Read raw, so that the readers cost next to nothing. A line that is waited for
	// ends with a mark.
	follow := func(c net.Conn, buf []byte) {
		for {
			n, err := c.Read(buf)
			got.Add(int64(strings.Count(string(buf[:n]), "§")))
			if err != nil {
				return
			}
		}
	}
	say := func(want int64) {
		d.say <- "§\n"
		for got.Load() < want {
			time.Sleep(time.Millisecond)
		}
	}
	first := connect()
	buf := make([]byte, 64<<10)
	go follow(first, buf)
	say(1)
	memory := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	files := func() int { list, _ := os.ReadDir("/proc/self/fd"); return len(list) }
	before, open := memory(), files()
	bufs := make([]byte, followers*4096)
	var conns []net.Conn
	for i := range followers {
		c := connect()
		conns = append(conns, c)
		go follow(c, bufs[i*4096:(i+1)*4096])
	}
	got.Store(0)
	want := int64(followers + 1)
	say(want)
	perFollower := float64(memory()-before-uint64(len(bufs))) / followers
	perFile := float64(files()-open) / followers
	for b.Loop() {
		want += followers + 1
		say(want)
	}
	b.ReportMetric(perFollower, "B/follower")
	b.ReportMetric(perFile, "fds/follower") // two: both ends of its connection are here
	for _, c := range append(conns, first) {
		c.Close()
	}
	d.say <- "END"
}

// BenchmarkReaders is 200 people who load the first page as fast as they can while
// a build runs, against a static file of the same bytes by net/http.
func BenchmarkReaders(b *testing.B) {
	const readers = 200
	w := newWorld(b, 1)
	w.does(func(context.Context, quarry.Build, *livelog.Log, func(string)) (*quarry.Failure, error) {
		return nil, nil
	})
	for i := range endedShown {
		w.end(w.push(fmt.Sprintf("lib%d", i), "1.0")[0].Number)
	}
	d := tell(w)
	w.push("gcc", "13.2")
	<-d.began
	_, page := w.get("/", "Accept-Encoding", "gzip")
	file := w.t.TempDir() + "/page"
	if err := os.WriteFile(file, []byte(page), 0o644); err != nil {
		b.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	plain := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) })}
	go plain.Serve(l)
	b.Cleanup(func() { plain.Close() })
	for _, of := range []struct{ name, url string }{{"static", "http://" + l.Addr().String() + "/page"}, {"now", w.srv.URL + "/"}} {
		b.Run(of.name, func(b *testing.B) {
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: readers, DisableCompression: true}}
			var wg sync.WaitGroup
			left := make(chan struct{}, 1024)
			took := make([][]time.Duration, readers)
			for i := range readers {
				wg.Go(func() {
					for range left {
						began := time.Now()
						req, _ := http.NewRequest("GET", of.url, nil)
						req.Header.Set("Accept-Encoding", "gzip")
						resp, err := client.Do(req)
						if err != nil {
							b.Error(err)
							return
						}
						io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
						took[i] = append(took[i], time.Since(began))
					}
				})
			}
			for b.Loop() {
				left <- struct{}{}
			}
			close(left)
			wg.Wait()
			all := slices.Concat(took...)
			slices.Sort(all)
			b.ReportMetric(float64(len(all))/b.Elapsed().Seconds(), "requests/s")
			b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "p99-ms")
		})
	}
	d.say <- "END"
}

// BenchmarkPaint is how long Chromium takes to show the first page, with nothing
// cached, and how many bytes come for it.
func BenchmarkPaint(b *testing.B) {
	w := newWorld(b, 1)
	w.does(func(context.Context, quarry.Build, *livelog.Log, func(string)) (*quarry.Failure, error) {
		return nil, nil
	})
	for i := range endedShown {
		w.end(w.push(fmt.Sprintf("lib%d", i), "1.0")[0].Number)
	}
	d := tell(w)
	w.push("gcc", "13.2")
	<-d.began
	browser := testbrowser.Start(b)
	var paints []float64
	var bytes int64
	for b.Loop() {
		tab := browser.Tab(b)
		tab.Go(w.srv.URL)
		tab.Wait("performance.getEntriesByName('first-contentful-paint').length")
		paints = append(paints, testbrowser.Eval[float64](tab, "performance.getEntriesByName('first-contentful-paint')[0].startTime"))
		bytes = 0
		for _, n := range tab.Loaded() {
			bytes += n
		}
	}
	slices.Sort(paints)
	b.ReportMetric(paints[len(paints)/2], "paint-ms")
	b.ReportMetric(float64(bytes), "B/page")
	d.say <- "END"
}

// BenchmarkLog reads a log of 64 MiB through for its last page.
func BenchmarkLog(b *testing.B) {
	w, build := logged(b, func(w io.Writer) {
		chunk := []byte(strings.Repeat("gcc -DHAVE_CONFIG_H -I. -O2 -g -c -o inflate.o inflate.c\n", 1000))
		for n := 0; n < 64<<20; n += len(chunk) {
			w.Write(chunk)
		}
	})
	for b.Loop() {
		r, err := w.logs.Open(build.Number)
		if err != nil {
			b.Fatal(err)
		}
		if e, err := readTail(b.Context(), r); err != nil || e.Size < 64<<20 {
			b.Fatal(e.Size, err)
		}
		r.Close()
	}
}
