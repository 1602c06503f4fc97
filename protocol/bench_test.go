package protocol

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
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

// idleEnv has this program connect so often, and do nothing.
const idleEnv = "QUARRY_TEST_IDLE"

func TestMain(m *testing.M) {
	if path := os.Getenv(idleEnv); path != "" {
		if err := beIdle(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const idlers = 10_000

// beIdle connects, has one line answered on each connection, and waits until
// standard input ends.
func beIdle(path string) error {
	for range idlers {
		c, err := net.Dial("unix", path)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := io.WriteString(c, "AUTH alice\necho last\n"); err != nil {
			return err
		}
		r := bufio.NewReaderSize(c, 16)
		for line := ""; line != "last\n"; {
			if line, err = r.ReadString('\n'); err != nil {
				return err
			}
		}
	}
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// BenchmarkIdle is what a connection costs that does nothing: of this protocol,
// after a token was shown and a line answered, and beside it of a goroutine that
// reads a bare connection into a buffer of 128 bytes. The clients are another
// process; they come over a Unix socket, so that no ports run out.
func BenchmarkIdle(b *testing.B) {
	open := func(b *testing.B, serve func(net.Listener)) {
		path := filepath.Join(b.TempDir(), "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			b.Fatal(err)
		}
		defer l.Close()
		go serve(l)
		before := memory()
		clients := exec.Command(os.Args[0])
		clients.Env = append(os.Environ(), idleEnv+"="+path)
		clients.Stderr = os.Stderr
		in, err := clients.StdinPipe()
		if err != nil {
			b.Fatal(err)
		}
		out, err := clients.StdoutPipe()
		if err != nil {
			b.Fatal(err)
		}
		if err := clients.Start(); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
			b.Fatal(err)
		}
		after := memory()
		used, began := cpu(), time.Now()
		time.Sleep(5 * time.Second)
		b.ReportMetric(float64(after-before)/idlers, "B/conn")
		b.ReportMetric(100*float64(cpu()-used)/float64(time.Since(began)), "%cpu")
		in.Close()
		if err := clients.Wait(); err != nil {
			b.Fatal(err)
		}
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
						io.WriteString(c, "last\n")
						buf := make([]byte, 128)
						for {
							if _, err := c.Read(buf); err != nil {
								return
							}
						}
					}()
				}
			})
		}
	})
	b.Run("protocol", func(b *testing.B) {
		for b.Loop() {
			f := newFarm(b, func(o *Options) { o.Limits.PerToken = idlers; o.Limits.Strangers = idlers })
			open(b, func(l net.Listener) { f.Serve(l) })
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
