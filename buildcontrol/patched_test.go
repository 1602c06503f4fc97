package buildcontrol

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// patched is a build program with one of build-control's patches, as far as it
// can be seen from the server: which system calls it makes with which bytes, and
// what it makes of the answers. The comments quote nothing of it; the patches are
// in github.com/marcespie/build-control.
type patched struct {
	t    testing.TB
	fd   int // -1: closed
	jobs int
	once bool // GNU make's closes the connection after the first reading
	eofs int
}

func newPatched(t testing.TB, addr, token string, once bool) *patched {
	t.Helper()
	kind, address := network(addr)
	var fd int
	var err error
	if kind == "unix" {
		fd, err = syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
		if err == nil {
			err = syscall.Connect(fd, &syscall.SockaddrUnix{Name: address})
		}
	} else {
		tcp, e := net.ResolveTCPAddr("tcp", address)
		if e != nil {
			t.Fatal(e)
		}
		fd, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
		if err == nil {
			err = syscall.Connect(fd, &syscall.SockaddrInet4{Port: tcp.Port, Addr: [4]byte(tcp.IP.To4())})
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	p := &patched{t: t, fd: fd, jobs: -1, once: once}
	t.Cleanup(p.close)
	// Two writes; who is told no by the first does not hear of it.
	syscall.Write(fd, []byte(token))
	syscall.Write(fd, []byte("\r\n"))
	return p
}

func (p *patched) close() {
	if p.fd >= 0 {
		syscall.Close(p.fd)
		p.fd = -1
	}
}

// poll is poll(2) with POLLIN and POLLHUP on the connection.
func (p *patched) poll(ms int) (n int, hup bool) {
	fd := struct {
		fd              int32
		events, revents int16
	}{fd: int32(p.fd), events: 0x1 | 0x10}
	timeout := syscall.NsecToTimespec(int64(ms) * 1e6)
	r, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&fd)), 1, uintptr(unsafe.Pointer(&timeout)), 0, 0, 0)
	if errno != 0 {
		return -1, false
	}
	return int(r), fd.revents&0x10 != 0
}

// strtol is C's with base 10: the value, and how many bytes it is made of. The
// string ends at the first 0.
func strtol(s []byte) (value, end int) {
	i := 0
	for i < len(s) && strings.IndexByte(" \t\n\v\f\r", s[i]) >= 0 {
		i++
	}
	from := i
	if i < len(s) && (s[i] == '-' || s[i] == '+') {
		i++
	}
	digits := i
	for i < len(s) && s[i] >= '0' && s[i] <= '9' {
		i++
	}
	if i == digits {
		return 0, 0
	}
	v, _ := strconv.Atoi(string(s[from:i]))
	return v, i
}

// adjust is what the program does before each job: it takes in what there is,
// without waiting.
func (p *patched) adjust() {
	buffer, filled := make([]byte, 1024), 0
	for p.fd >= 0 {
		n, hup := p.poll(0)
		if n != 1 {
			return
		}
		if hup {
			p.close()
			return
		}
		n, err := syscall.Read(p.fd, buffer[filled:1023])
		if err != nil {
			p.close()
			return
		}
		if n == 0 {
			p.eofs++
		}
		if p.eofs > 10 {
			p.t.Fatal("a patched make would turn in circles")
		}
		filled += n
		for filled > 0 {
			value, end := strtol(buffer[:filled])
			if value < 0 {
				p.close()
				return
			}
			if end == filled {
				break // the end of the line is still to come
			}
			for end < filled && (buffer[end] == '\r' || buffer[end] == '\n') {
				end++
			}
			p.jobs = value
			filled = copy(buffer, buffer[end:filled])
		}
		if p.once {
			p.close()
		}
	}
}

// Both kinds of patch, over both kinds of socket.
func TestPatched(t *testing.T) {
	for _, addr := range []string{"unix", "tcp"} {
		t.Run(addr, func(t *testing.T) {
			f := newFarm(t, Options{})
			at := f.addr
			if addr == "tcp" {
				at, _ = listen(t, "127.0.0.1:0", f.Serve)
			}
			control := f.control(t)
			token, _ := control.token()
			bsd, ninja := newPatched(t, at, token, false), newPatched(t, at, token, false)
			gnu := newPatched(t, at, token, true)
			until(t, "all are known", func() bool { return f.Tokens()[0].Clients == 3 })
			for _, p := range []*patched{bsd, ninja, gnu} {
				if p.adjust(); p.jobs != -1 {
					t.Fatalf("told %d before any was set", p.jobs)
				}
			}
			control.send("1:16\n")
			for _, p := range []*patched{bsd, ninja, gnu} {
				until(t, "told of 16", func() bool { p.adjust(); return p.jobs == 16 })
			}
			if gnu.fd >= 0 {
				t.Error("this is not how GNU make's patch behaves")
			}
			control.send("1:2\r\n1:300\r\n1:3\r\n")
			for _, p := range []*patched{bsd, ninja} {
				until(t, "told of 3", func() bool { p.adjust(); return p.jobs == 3 })
			}
			// A make of its own below the first is told at once.
			below := newPatched(t, at, token, false)
			until(t, "told of 3", func() bool { below.adjust(); return below.jobs == 3 })
			// Tokens that are not known, and the end of the server.
			wrong := newPatched(t, at, "1-0123456789abcdef01234567", false)
			until(t, "the wrong one is closed", func() bool { wrong.adjust(); return wrong.fd < 0 })
			if err := f.stop(); err != nil {
				t.Fatal(err)
			}
			for _, l := range f.listeners() {
				l.cancel()
			}
			for _, p := range []*patched{bsd, ninja, below} {
				until(t, "closed", func() bool { p.adjust(); return p.fd < 0 })
				if p.jobs != 3 {
					t.Errorf("after the end there are %d jobs", p.jobs)
				}
			}
		})
	}
}

func (s *Server) listeners() (all []*loop) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range s.loops {
		all = append(all, l)
	}
	return all
}

// A make that compiles for minutes reads nothing meanwhile. It must find the
// newest number at the end of so little that it takes it apart rightly, and
// nobody waits for it.
func TestAsleep(t *testing.T) {
	f := newFarm(t, Options{})
	token, err := f.Open("")
	if err != nil {
		t.Fatal(err)
	}
	addr, _ := listen(t, filepath.Join(t.TempDir(), "s"), func(ctx context.Context, l net.Listener) error { return f.ServeToken(ctx, l, token) })
	var all []*patched
	for range 5 {
		all = append(all, newPatched(t, addr, token.String(), false))
	}
	awake := newPatched(t, addr, token.String(), false)
	until(t, "known", func() bool { return token.Clients() == 6 })
	for round := range 20 {
		for i := range 2000 {
			token.Set(10000 + round*2000 + i)
		}
		last := 10000 + round*2000 + 1999
		until(t, "who is awake hears the newest number", func() bool { awake.adjust(); return awake.jobs == last })
		for _, p := range all {
			var unread int32
			if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(p.fd), syscall.TIOCINQ, uintptr(unsafe.Pointer(&unread))); errno != 0 {
				t.Fatal(errno)
			}
			if unread == 0 || unread > 500 {
				t.Fatalf("%d bytes wait for a sleeper", unread)
			}
			until(t, "the newest number", func() bool {
				p.adjust()
				if p.jobs != last && p.jobs < 10000+round*2000 {
					t.Fatalf("%d is a number that was never set in this round", p.jobs)
				}
				return p.jobs == last
			})
		}
	}
}

// A control connection that asks and does not read holds up nobody.
func TestSlowReader(t *testing.T) {
	f := newFarm(t, Options{})
	slow, control := f.control(t), f.control(t)
	for range 200 {
		control.token()
	}
	const dumps = 200
	sent := make(chan error, 1)
	go func() {
		_, err := fmt.Fprint(slow, strings.Repeat("dump\n", dumps)+"new\n")
		sent <- err
	}()
	// All that its socket takes has been written when this is so.
	until(t, "the answer waits", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		for l := range f.loops {
			for _, c := range l.clients {
				if c.more != nil && len(c.more.out) > 0 {
					return true
				}
			}
		}
		return false
	})
	token, n := control.token()
	fast := dial(t, f.addr)
	fast.send(token + "\n")
	control.send(fmt.Sprintf("%d:6\n", n))
	fast.want("6\r\n")
	whole := 0
	for whole < dumps {
		if strings.HasPrefix(slow.line(), "Build number 200, ") {
			whole++
		}
	}
	for !strings.HasPrefix(slow.line(), "202-") { // the rest of the last dump, with 201
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

// Clients that come and go while numbers change: none is told what was not set,
// and none is left behind.
func TestStorm(t *testing.T) {
	f := newFarm(t, Options{Ceiling: 50})
	control := f.control(t)
	token, _ := control.token()
	stays := dial(t, f.addr)
	stays.send(token + "\n")
	control.send("1:1\n")
	stays.want("1\r\n")
	done := make(chan error, 8)
	for range 8 {
		go func() {
			for i := range 100 {
				c, err := Dial(t.Context(), f.addr, token)
				if err != nil {
					done <- err
					return
				}
				if i%3 > 0 {
					select {
					case n := <-c.Jobs():
						if n < 1 || n > 50 {
							err = fmt.Errorf("told %d", n)
						}
					case <-time.After(patience):
						err = fmt.Errorf("told nothing")
					}
				}
				if c.Close(); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for left := 8; left > 0; {
		select {
		case err := <-done:
			if left--; err != nil {
				t.Error(err)
			}
		default:
			f.tokens[1].Set(1 + int(time.Now().UnixNano()%99))
		}
	}
	f.tokens[1].Set(50)
	f.tokens[1].Set(42)
	for stays.line() != "42\r\n" {
	}
	until(t, "only two are left", func() bool { return f.connections() == 2 })
}
