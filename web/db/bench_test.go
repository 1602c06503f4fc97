package db

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Morphux/quarry/mirror"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/results/resultstest"
	"github.com/Morphux/quarry/web"
)

// childEnv has this test's program be a server of its own: the repository and the
// cache, one a line; or, of one line, of the files in a folder, as bare as can be.
const childEnv = "QUARRY_TEST_DB"

func TestMain(m *testing.M) {
	if words := os.Getenv(childEnv); words != "" {
		if err := child(strings.Split(words, "\n")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func child(words []string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		io.Copy(io.Discard, os.Stdin) // until whoever began it is gone
		stop()
	}()
	if len(words) == 1 {
		fmt.Println(l.Addr())
		go http.Serve(l, http.FileServer(http.Dir(words[0])))
		<-ctx.Done()
		return nil
	}
	repo, err := results.Open(words[0], results.Options{})
	if err != nil {
		return err
	}
	defer repo.Close()
	site, err := mirror.NewSite(mirror.SiteOptions{Results: repo, Dir: words[1], Default: resultstest.Channel})
	if err != nil {
		return err
	}
	defer site.Close()
	if err := site.Warm(ctx); err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return web.New(web.Options{DB: New(site, slog.Default()), Public: true}).Serve(ctx, l)
}

// serve starts a server beside this process and returns its address and its id.
func serve(b *testing.B, words ...string) (addr string, pid int) {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+strings.Join(words, "\n"))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { in.Close(); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(line), cmd.Process.Pid
}

// nginx serves a folder, if there is one on this machine.
func nginx(b *testing.B, dir string) (addr string, ok bool) {
	b.Helper()
	bin, err := exec.LookPath("nginx")
	if err != nil {
		return "", false
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	addr = l.Addr().String()
	l.Close()
	tmp := b.TempDir()
	conf := filepath.Join(tmp, "nginx.conf")
	text := fmt.Sprintf(`daemon off; worker_processes 2; pid %[1]s/pid; error_log stderr crit; user root;
events { worker_connections 4096; }
http { access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000; open_file_cache max=1000;
client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
server { listen %[2]s; root %[3]s; } }`, tmp, addr, dir)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(bin, "-p", tmp, "-c", conf)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { cmd.Process.Signal(os.Interrupt); cmd.Wait() })
	for range 500 {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			return addr, true
		}
		time.Sleep(10 * time.Millisecond)
	}
	b.Fatal("nginx does not answer")
	return "", false
}

// BenchmarkOnePackage asks for the file of one package, over 64 connections that
// are kept open, of the web door, of a bare net/http file server, and of nginx where
// there is one. The client does next to nothing but count bytes.
func BenchmarkOnePackage(b *testing.B) {
	repo := resultstest.Copy(b, resultstest.Small)
	r, err := results.OpenReader(repo, "")
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	dir := b.TempDir()
	if _, err := mirror.Export(b.Context(), mirror.ExportOptions{Dir: dir, Results: r, Now: time.Now()}); err != nil {
		b.Fatal(err)
	}
	name := mirror.PackageName(resultstest.Channel, resultstest.Name(7))
	quarry, _ := serve(b, repo, b.TempDir())
	bare, _ := serve(b, dir)
	servers := []struct{ name, addr string }{{"quarry", quarry}, {"net http", bare}}
	if addr, ok := nginx(b, dir); ok {
		servers = append(servers, struct{ name, addr string }{"nginx", addr})
	}
	for _, s := range servers {
		resp, err := http.Get("http://" + s.addr + "/" + name)
		if err != nil {
			b.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		tag := resp.Header.Get("ETag")
		since := resp.Header.Get("Last-Modified")
		for _, c := range []struct{ name, headers string }{{"whole", ""}, {"zstd", "Accept-Encoding: zstd\r\n"}, {"not modified", "If-None-Match: " + tag + "\r\nIf-Modified-Since: " + since + "\r\n"}} {
			if c.name == "zstd" && s.name != "quarry" {
				continue
			}
			b.Run(s.name+"/"+c.name, func(b *testing.B) { load(b, s.addr, "GET /"+name+" HTTP/1.1\r\nHost: x\r\n"+c.headers+"\r\n") })
		}
	}
}

// load sends a request b.N times over 64 connections.
func load(b *testing.B, addr, request string) {
	const conns = 64
	var left atomic.Int64
	left.Store(int64(b.N))
	took := make([][]time.Duration, conns)
	var wg sync.WaitGroup
	b.ResetTimer()
	for i := range conns {
		wg.Go(func() {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				b.Error(err)
				return
			}
			defer c.Close()
			r := bufio.NewReaderSize(c, 64<<10)
			for left.Add(-1) >= 0 {
				began := time.Now()
				_, err := io.WriteString(c, request)
				if err == nil {
					err = skipAnswer(r)
				}
				if err != nil {
					b.Error(err)
					return
				}
				took[i] = append(took[i], time.Since(began))
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	all := slices.Concat(took...)
	slices.Sort(all)
	b.ReportMetric(float64(len(all))/b.Elapsed().Seconds(), "req/s")
	if len(all) > 0 {
		b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "p99-ms")
	}
}

// skipAnswer reads one answer, without a copy of it.
func skipAnswer(r *bufio.Reader) error {
	length, status := 0, ""
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if status == "" {
			status = string(line[9:12])
		}
		if len(line) <= 2 {
			break
		}
		if v, ok := strings.CutPrefix(string(line), "Content-Length: "); ok {
			length, _ = strconv.Atoi(strings.TrimSpace(v))
		}
	}
	switch status {
	case "304":
		return nil
	case "200":
		_, err := r.Discard(length)
		return err
	}
	return fmt.Errorf("status %s", status)
}

// BenchmarkUpdates has 1,000 clients, of 100 addresses, update at the same time:
// each opens a connection, gets the head and then the delta from one of the last
// 100 commits.
func BenchmarkUpdates(b *testing.B) {
	for _, size := range []resultstest.Size{resultstest.Small, resultstest.Medium, resultstest.Large} {
		b.Run(fmt.Sprintf("packages=%d", size.Packages), func(b *testing.B) { benchUpdates(b, size) })
	}
}

func benchUpdates(b *testing.B, size resultstest.Size) {
	path := resultstest.Copy(b, size)
	r, err := results.OpenReader(path, "")
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	var past []string
	for id, err := range r.Commits() {
		if err != nil {
			b.Fatal(err)
		}
		if past = append(past, id); len(past) == 101 {
			break
		}
	}
	addr, pid := serve(b, path, b.TempDir())
	const clients = 1000
	var took []time.Duration
	var errs, bytes atomic.Int64
	b.ResetTimer()
	for range b.N {
		out := make([]time.Duration, clients)
		var wg sync.WaitGroup
		for i := range clients {
			wg.Go(func() {
				began := time.Now()
				n, err := update(addr, fmt.Sprintf("127.0.1.%d", i%100+1), past[1+i%100])
				out[i] = time.Since(began)
				bytes.Add(n)
				if err != nil && errs.Add(1) == 1 {
					b.Error(err)
				}
			})
		}
		wg.Wait()
		took = append(took, out...)
	}
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(took[len(took)*99/100].Seconds(), "p99-s")
	b.ReportMetric(float64(errs.Load()), "errors")
	b.ReportMetric(float64(bytes.Load())/float64(len(took)), "bytes/client")
	b.ReportMetric(peak(b, pid), "peak-MB")
}

// update is what a package manager does for news.
func update(addr, from, old string) (n int64, err error) {
	dial := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: time.Minute}
	t := &http.Transport{DialContext: dial.DialContext}
	defer t.CloseIdleConnections()
	client := &http.Client{Transport: t, Timeout: 2 * time.Minute}
	get := func(name string) ([]byte, error) {
		resp, err := client.Get("http://" + addr + "/" + name)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		n += int64(len(data))
		if resp.StatusCode != 200 {
			return nil, fmt.Errorf("%s: %s: %s", name, resp.Status, data)
		}
		return data, err
	}
	data, err := get(mirror.HeadName(resultstest.Channel))
	if err != nil {
		return n, err
	}
	h, err := mirror.ParseHead(data)
	if err != nil {
		return n, err
	}
	if data, err = get(mirror.DeltaName(resultstest.Channel, mirror.Newest, resultstest.Archs[0], old, h.Commit)); err == nil {
		if data, err = mirror.Unpack(data, mirror.MaxText); err == nil {
			_, err = mirror.ParseDelta(data)
		}
	}
	return n, err
}

// peak is the most memory that a process had, in MB.
func peak(b *testing.B, pid int) float64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmHWM:" {
			kb, _ := strconv.ParseFloat(f[1], 64)
			return kb / 1000
		}
	}
	return 0
}
