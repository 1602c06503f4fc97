package protocol

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// cpu is the processor time that this process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func memory() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// BenchmarkIdle is what a connection costs that does nothing: of this protocol,
// after a token was shown and a line answered, and beside it of a goroutine that
// reads a bare connection into a buffer of 128 bytes. Unix sockets, so that ports do not run out; both
// ends are in this process, and the client's end costs the same in both.
func BenchmarkIdle(b *testing.B) {
	const n = 10_000
	open := func(b *testing.B, serve func(net.Listener), hello func(net.Conn)) {
		path := filepath.Join(b.TempDir(), "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			b.Fatal(err)
		}
		defer l.Close()
		go serve(l)
		conns := make([]net.Conn, 0, n)
		before := memory()
		for range n {
			c, err := net.Dial("unix", path)
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			hello(c)
			conns = append(conns, c)
		}
		time.Sleep(time.Second) // until all are at rest
		after := memory()
		used, began := cpu(), time.Now()
		time.Sleep(5 * time.Second)
		b.ReportMetric(float64(after-before)/n, "B/conn")
		b.ReportMetric(100*float64(cpu()-used)/float64(time.Since(began)), "%cpu")
		runtime.KeepAlive(conns)
	}
	b.Run("bare", func(b *testing.B) {
		for b.Loop() {
			open(b, func(l net.Listener) {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go func() {
						defer c.Close()
						io.WriteString(c, "hello\n")
						buf := make([]byte, 128)
						for {
							if _, err := c.Read(buf); err != nil {
								return
							}
						}
					}()
				}
			}, func(c net.Conn) { io.ReadFull(c, make([]byte, 6)) })
		}
	})
	b.Run("protocol", func(b *testing.B) {
		for b.Loop() {
			f := newFarm(b, func(o *Options) { o.Limits.PerToken = n; o.Limits.Strangers = n })
			want := []byte("200 quarry 1 ready\n235 alice, maintainer\n210 output follows\na\n.\n250 done\n")
			open(b, func(l net.Listener) { f.Serve(l) }, func(c net.Conn) {
				io.WriteString(c, "AUTH alice\necho a\n")
				if _, err := io.ReadFull(c, make([]byte, len(want))); err != nil {
					b.Fatal(err)
				}
			})
		}
	})
}

// BenchmarkLines is lines answered over the loopback.
func BenchmarkLines(b *testing.B) {
	f := newFarm(b, func(o *Options) { o.Limits.Rate = 1e12 }).listen(b)
	const answer = 4 // lines
	read := func(b *testing.B, r *bufio.Reader, n int) {
		for range n * answer {
			if _, err := r.ReadSlice('\n'); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("one", func(b *testing.B) {
		c := f.known(b)
		c.SetDeadline(time.Time{})
		for b.Loop() {
			c.send("echo a\n")
			read(b, c.r, 1)
		}
	})
	b.Run("pipelined", func(b *testing.B) {
		c := f.known(b)
		c.SetDeadline(time.Time{})
		const batch = 100
		text := strings.Repeat("echo a\n", batch)
		for b.Loop() {
			c.send(text)
			read(b, c.r, batch)
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch), "ns/line")
	})
	b.Run("request-id", func(b *testing.B) {
		c := f.known(b)
		c.SetDeadline(time.Time{})
		i := 0
		for b.Loop() {
			i++
			c.send(fmt.Sprintf("@%d-%d echo a\n", os.Getpid(), i))
			read(b, c.r, 1)
		}
	})
}
