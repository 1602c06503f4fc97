package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/events"
)

const (
	loadReaders   = 200
	loadFollowers = 500
	loadPackages  = 12
	loadRounds    = 7
)

// BenchmarkLoad is a real daemon that builds while 500 people follow the log of a
// build that goes on and 200 others look at the first page and ask for the status,
// each once a second and then as fast as they can. The builds of a round are the
// same, and rounds with and without people alternate, as a machine that does
// something else besides changes from minute to minute. The people are in this
// process, so what they cost counts against the farm: on the same cores, a client
// that reads as fast as it can takes about as much as it asks for.
//
// It prints builds a second, how many of them are lost to those who look, requests
// a second with their 99th percentile, what a follower takes of the daemon's
// memory, and what either kind takes of one processor when nothing is built.
func BenchmarkLoad(b *testing.B) {
	if b.N > 1 {
		b.Skip("one run takes all the rounds that there are")
	}
	s := newServer(b, b.TempDir())
	s.writeConfig(b, "[build]\nworkers = 3\n[shell]\nkeep = \"0s\"\n")
	if err := s.start(); err != nil {
		b.Fatal(err)
	}
	defer func() { s.stop(syscall.SIGTERM) }()
	l := &load{b: b, addr: fmt.Sprintf("127.0.0.1:%d", s.web), token: strings.TrimSpace(s.quarry(b, "token", "add", "alice"))}
	l.packages(s)

	pid := s.cmd.Process.Pid
	talker := l.talk(s)
	without := rss(b, pid)
	_, leave := l.follow(talker, loadFollowers)
	memory := rss(b, pid) - without
	// While nothing is built but what talks, which costs something as well.
	followed := cpu(b, pid, 10*time.Second)
	leave()
	talks := cpu(b, pid, 5*time.Second)
	stop, slow := l.read(time.Second, &asked{}), &asked{}
	looked := cpu(b, pid, 10*time.Second)
	stop()
	l.round() // the first one is for caches
	var alone, human, flat []float64
	fast := &asked{}
	for range loadRounds {
		alone = append(alone, l.round())
		heard, away := l.follow(talker, loadFollowers)
		stop = l.read(time.Second, slow)
		human = append(human, l.round())
		stop()
		stop = l.read(0, fast)
		flat = append(flat, l.round())
		stop()
		if heard() == 0 {
			b.Error("no follower has heard anything")
		}
		away()
	}
	for _, v := range [][]float64{alone, human, flat} {
		slices.Sort(v)
	}
	mid := loadRounds / 2
	b.ReportMetric(alone[mid], "builds/s")
	b.ReportMetric(human[mid], "builds/s-human")
	b.ReportMetric(flat[mid], "builds/s-flat")
	b.ReportMetric(100*(1-human[mid]/alone[mid]), "%lost-human")
	b.ReportMetric(100*(1-flat[mid]/alone[mid]), "%lost-flat")
	b.ReportMetric(float64(memory)/1024/loadFollowers, "KiB/follower")
	b.ReportMetric(100*(followed-talks), "%core-followers")
	b.ReportMetric(100*(looked-talks), "%core-readers")
	for name, a := range map[string]*asked{"human": slow, "flat": fast} {
		page, status := a.p99(0), a.p99(1)
		b.ReportMetric(a.rate(), "req/s-"+name)
		b.ReportMetric(float64(page.Microseconds())/1000, "ms-p99-page-"+name)
		b.ReportMetric(float64(status.Microseconds())/1000, "ms-p99-status-"+name)
	}
	b.ReportMetric(0, "ns/op")
}

// load asks a daemon for work, and looks at it.
type load struct {
	b     *testing.B
	addr  string // of its web door
	token string
}

// packages pushes packages that are built in no time.
func (l *load) packages(s *server) {
	for i := range loadPackages {
		l.push(s, fmt.Sprintf("tiny-%d", i), "true")
	}
}

// push releases a package whose Makefile has this to do.
func (l *load) push(s *server, name, command string) {
	l.b.Helper()
	dir := filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Join(dir, "srcs"), 0o755); err != nil {
		l.b.Fatal(err)
	}
	for file, text := range map[string]string{
		"package.json":  fmt.Sprintf(`{"package": {"name": %q, "version": "1.0", "description": "Under load", "category": "demo"}, "compilation": {"make": "", "install": ""}, "dependencies": []}`, name),
		"srcs/Makefile": fmt.Sprintf("all:\n\t%s\ninstall:\n\tinstall -D Makefile $(DESTDIR)/usr/share/%s\n", command, name),
	} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			l.b.Fatal(err)
		}
	}
	for _, words := range [][]string{{"init", "-q", "-b", "master"}, {"add", "-A"}, {"commit", "-q", "-m", "Import"}, {"push", "-q", s.url(name), "HEAD:refs/heads/" + name + "-1.0"}} {
		s.mustIn(l.b, dir, "git", words...)
	}
}

// talk begins a build that prints a line five times a second, and gives its number.
func (l *load) talk(s *server) int64 {
	l.push(s, "talker", "i=0; while [ $$i -lt 20000 ]; do i=$$((i + 1)); echo \"cc -O2 -c -o file$$i.o file$$i.c\"; sleep 0.2; done")
	for {
		var builds []quarry.Build
		l.get("/api/v1/builds?package=talker", &builds)
		if len(builds) == 1 && builds[0].Step == "make" {
			return builds[0].Number
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (l *load) get(path string, to any) {
	l.b.Helper()
	resp, err := http.Get("http://" + l.addr + path)
	if err != nil {
		l.b.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(to); err != nil || resp.StatusCode != http.StatusOK {
		l.b.Fatalf("%s: %s, %v", path, resp.Status, err)
	}
}

// round has every package built again, and gives builds a second.
func (l *load) round() float64 {
	ctx, cancel := context.WithTimeout(l.b.Context(), 10*time.Minute)
	defer cancel()
	var last struct {
		Queue struct {
			Last int64 `json:"last"`
		} `json:"queue"`
	}
	l.get("/api/v1/status", &last)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+l.addr+"/api/v1/events?follow=true&kind=build.succeeded&package=tiny-*", nil)
	if err != nil {
		l.b.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		l.b.Fatal(err)
	}
	defer resp.Body.Close()
	begin := time.Now()
	for i := range loadPackages {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("http://%s/api/v1/verbs/rebuild?arg=tiny-%d-1.0", l.addr, i), nil)
		if err != nil {
			l.b.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+l.token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			l.b.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			l.b.Fatalf("rebuild: %s %s", resp.Status, text)
		}
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for done := 0; done < loadPackages; {
		if !lines.Scan() {
			l.b.Fatalf("the events ended: %v", lines.Err())
		}
		var e events.Event
		if json.Unmarshal(lines.Bytes(), &e) == nil && e.Build != nil && e.Build.Number > last.Queue.Last {
			done++
		}
	}
	return loadPackages / time.Since(begin).Seconds()
}

// follow has many people follow a build's log, waits until each has heard
// something, and gives what says how much all of them have heard since, and what
// has them go. They read raw, so that they cost next to nothing.
func (l *load) follow(build int64, people int) (heard func() int64, leave func()) {
	var all, bytes atomic.Int64
	var conns []net.Conn
	for range people {
		c, err := net.Dial("tcp", l.addr)
		if err != nil {
			l.b.Fatal(err)
		}
		conns = append(conns, c)
		fmt.Fprintf(c, "GET /builds/%d/live?from=1 HTTP/1.1\r\nHost: x\r\n\r\n", build)
		go func() {
			buf := make([]byte, 2048)
			first := true
			for {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				if bytes.Add(int64(n)); first && strings.Contains(string(buf[:n]), "file") {
					all.Add(1)
					first = false
				}
			}
		}()
	}
	for end := time.Now().Add(5 * time.Minute); all.Load() < int64(people); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			l.b.Fatalf("only %d of %d followers hear something", all.Load(), people)
		}
	}
	bytes.Store(0)
	return bytes.Load, func() {
		for _, c := range conns {
			c.Close()
		}
	}
}

// asked is what readers have asked for, and how long answers took.
type asked struct {
	mu   sync.Mutex
	took [2][]time.Duration // of the first page, and of the status
	time time.Duration
}

func (a *asked) rate() float64 { return float64(len(a.took[0])+len(a.took[1])) / a.time.Seconds() }

func (a *asked) p99(of int) time.Duration {
	slices.Sort(a.took[of])
	return a.took[of][len(a.took[of])*99/100]
}

// read has people look, half of them at the first page and half at the status,
// every so often, until it is called off.
func (l *load) read(every time.Duration, a *asked) (stop func()) {
	ctx, cancel := context.WithCancel(l.b.Context())
	var all sync.WaitGroup
	begin := time.Now()
	for i := range loadReaders {
		all.Go(func() {
			var took []time.Duration
			of, path := i%2, []string{"/", "/api/v1/status"}[i%2]
			c, err := net.Dial("tcp", l.addr)
			if err != nil {
				l.b.Error(err)
				return
			}
			defer c.Close()
			r := bufio.NewReader(c)
			at := begin.Add(every * time.Duration(i) / loadReaders) // not all at once
			for {
				select {
				case <-time.After(time.Until(at)):
				case <-ctx.Done():
					a.mu.Lock()
					a.took[of] = append(a.took[of], took...)
					if i == 0 {
						a.time += time.Since(begin)
					}
					a.mu.Unlock()
					return
				}
				// From when it was due: an answer that is late makes the next one late.
				sent := at
				if every == 0 {
					sent = time.Now()
				}
				fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n", path)
				resp, err := http.ReadResponse(r, nil)
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
				}
				if err != nil || resp.StatusCode != http.StatusOK {
					l.b.Errorf("%s: %v, %v", path, resp, err)
					return
				}
				took = append(took, time.Since(sent))
				at = at.Add(every)
			}
		})
	}
	return func() { cancel(); all.Wait() }
}

// rss is what a process takes of memory, in bytes.
func rss(b *testing.B, pid int) int64 {
	b.Helper()
	time.Sleep(2 * time.Second) // for what was just begun
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		b.Fatal(err)
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(text), &size, &resident); err != nil {
		b.Fatal(err)
	}
	return resident * int64(os.Getpagesize())
}

// cpu is what a process takes of one processor, over a time.
func cpu(b *testing.B, pid int, over time.Duration) float64 {
	b.Helper()
	ticks := func() (n float64) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			b.Fatal(err)
		}
		f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		for _, s := range f[11:13] { // of the program, and of the kernel for it
			v, err := strconv.ParseFloat(s, 64)
			if err != nil {
				b.Fatal(err)
			}
			n += v
		}
		return n
	}
	from, at := ticks(), time.Now()
	time.Sleep(over)
	return (ticks() - from) / 100 / time.Since(at).Seconds() // 100 ticks a second, on every Linux
}
