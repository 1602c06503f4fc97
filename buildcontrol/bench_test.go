package buildcontrol

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// idleEnv has this program be the clients of a benchmark.
const idleEnv = "QUARRY_TEST_IDLE"

func TestMain(m *testing.M) {
	if path := os.Getenv(idleEnv); path != "" {
		if err := beMany(path, os.Getenv("BUILDTOKEN")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const many = 10_000

// beMany connects so often, and says a line each time that all connections have
// been told a number, until standard input ends.
func beMany(path, token string) error {
	var told atomic.Int64
	all := make(chan error, 1)
	for range many {
		c, err := net.Dial("unix", path)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := io.WriteString(c, token+"\r\n"); err != nil {
			return err
		}
		go func() {
			b := make([]byte, 16)
			for {
				n, err := c.Read(b)
				if err != nil {
					return
				}
				for _, r := range b[:n] {
					if r == '\n' && told.Add(1)%many == 0 {
						all <- nil
					}
				}
			}
		}()
	}
	go func() {
		io.Copy(io.Discard, os.Stdin)
		all <- io.EOF
	}()
	for err := range all {
		if err != nil {
			break
		}
		fmt.Println("told")
	}
	return nil
}

func memory() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// BenchmarkClients is what 10,000 clients cost the server in memory, how long it
// takes to tell all of them a number (set: until Set returns; told: until the
// last has read it, in a process of its own on the same machine), and to tell one
// client of another token beside them. bare is the same with a goroutine and a
// net.Conn for each.
func BenchmarkClients(b *testing.B) {
	const rounds = 20
	run := func(b *testing.B, path, token string, set func(int)) {
		before := memory()
		clients := exec.Command(os.Args[0])
		clients.Env = append(os.Environ(), idleEnv+"="+path, "BUILDTOKEN="+token)
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
		lines := bufio.NewReader(out)
		told := func() {
			if _, err := lines.ReadString('\n'); err != nil {
				b.Fatal(err)
			}
		}
		told() // the number that was set before they came
		b.ReportMetric(float64(memory()-before)/many, "B/client")
		var sets, tolds []time.Duration
		for i := range rounds {
			began := time.Now()
			set(2 + i)
			sets = append(sets, time.Since(began))
			told()
			tolds = append(tolds, time.Since(began))
		}
		report(b, sets, "ms-set")
		report(b, tolds, "ms-told")
		in.Close()
		if err := clients.Wait(); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("bare", func(b *testing.B) {
		for b.Loop() {
			l, err := net.Listen("unix", filepath.Join(b.TempDir(), "s"))
			if err != nil {
				b.Fatal(err)
			}
			var mu sync.Mutex
			var conns []net.Conn
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go func() {
						defer c.Close()
						b := make([]byte, 128)
						for first := true; ; first = false {
							if _, err := c.Read(b); err != nil {
								return
							}
							if first {
								mu.Lock()
								conns = append(conns, c)
								mu.Unlock()
								io.WriteString(c, "1\r\n")
							}
						}
					}()
				}
			}()
			run(b, l.Addr().String(), "1-x", func(n int) {
				line := fmt.Appendf(nil, "%d\r\n", n)
				mu.Lock()
				defer mu.Unlock()
				for _, c := range conns {
					c.Write(line)
				}
			})
			l.Close()
		}
	})
	b.Run("buildcontrol", func(b *testing.B) {
		for b.Loop() {
			f := newFarm(b, Options{MaxClients: many + 10, MaxPerToken: many})
			token, err := f.Open("")
			if err != nil {
				b.Fatal(err)
			}
			other, err := f.Open("")
			if err != nil {
				b.Fatal(err)
			}
			addr, stop := listen(b, filepath.Join(b.TempDir(), "a"), func(ctx context.Context, l net.Listener) error { return f.ServeToken(ctx, l, token) })
			single, _ := listen(b, filepath.Join(b.TempDir(), "b"), func(ctx context.Context, l net.Listener) error { return f.ServeToken(ctx, l, other) })
			token.Set(1)
			run(b, addr, token.String(), func(n int) {
				token.Set(n)
				if n < 21 {
					return
				}
				c := dial(b, single)
				c.send(other.String() + "\n")
				other.Set(1)
				c.want("1\r\n")
				var times []time.Duration
				for i := range 1000 {
					began := time.Now()
					other.Set(2 + i%2)
					c.line()
					times = append(times, time.Since(began))
				}
				report(b, times, "ms-one")
			})
			stop()
		}
	})
}

// report gives the median.
func report(b *testing.B, times []time.Duration, unit string) {
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2])/1e6, unit)
}
