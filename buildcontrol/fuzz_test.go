package buildcontrol

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"
)

// chosen is what two servers choose for themselves, each its own.
var chosen = regexp.MustCompile(`[0-9a-f]{24}|fd [0-9]+`)

// Whatever a control connection says, in whatever pieces, the answers are the
// same and fit for a terminal, clients are told what they may be, and the server
// is as well as before.
func FuzzControl(f *testing.F) {
	for _, s := range []string{"new\r\nnew\r1:4\n2:5\r\ndump\nquit\n", "?\nhelp\n1:-1\n1:99999999999999999999\n1:+3\n:\n1:\n:1\n", "\x00\xff\r\r\n1:1:1\n\x1b]0;x\a\n",
		"new", strings.Repeat("x", maxLine+5) + "\n", strings.Repeat("dump\n", 100), " 1 : 2 \t\n01:002\n1:0x4\n1:1_0\n"} {
		f.Add([]byte(s), 3)
	}
	f.Fuzz(func(t *testing.T, in []byte, pieces int) {
		if len(in) > 16<<10 {
			return
		}
		var got [2]string
		for i, size := range []int{max(1, len(in)), max(1, min(pieces, 1000))} {
			s := New(Options{Control: true, Ceiling: 77, AuthTime: time.Hour})
			path := filepath.Join(t.TempDir(), strconv.Itoa(i))
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- s.Serve(ctx, l) }()
			var watched strings.Builder
			if _, err := s.Console(strings.NewReader("new\n"), &watched); err != nil {
				t.Fatal(err)
			}
			watch, err := Dial(ctx, path, strings.TrimSpace(watched.String()))
			if err != nil {
				t.Fatal(err)
			}
			c := dial(t, path)
			go func() {
				io.WriteString(c, s.ControlToken()+"\n")
				for rest := in; len(rest) > 0; {
					n, err := c.Write(rest[:min(size, len(rest))])
					if rest = rest[n:]; err != nil {
						return
					}
				}
				c.Conn.(*net.UnixConn).CloseWrite()
			}()
			var all []byte
			for b := make([]byte, 4096); err == nil; {
				var n int
				n, err = c.r.Read(b)
				all = append(all, b[:n]...)
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("the connection does not end")
			}
			got[i] = chosen.ReplaceAllString(string(all), "*")
			for _, r := range string(all) {
				if r != '\n' && r != '\t' && !unicode.IsPrint(r) {
					t.Fatalf("%q holds %q", all, r)
				}
			}
			// It still does as it is told.
			if !bytes.Contains(in, []byte("1")) { // or the token may have a number
				if set := s.tokens[1].Jobs(); set != Unset {
					t.Fatalf("%q sets %d", in, set)
				}
			}
			s.tokens[1].Set(76)
			s.tokens[1].Set(77)
			for n := -1; n != 77; {
				select {
				case n = <-watch.Jobs():
					if n < 0 || n > 77 || watch.Err() != nil {
						t.Fatalf("a client is told %d, %v", n, watch.Err())
					}
				case <-time.After(patience):
					t.Fatal("a client is told nothing")
				}
			}
			watch.Close()
			cancel()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if s.clients != 0 {
				t.Fatalf("%d connections are left", s.clients)
			}
		}
		// dump shows who was there yet, which is a matter of time.
		if got[0] != got[1] && !bytes.Contains(in, []byte("dump")) {
			t.Fatalf("%q gives %q, and in pieces %q", in, got[0], got[1])
		}
	})
}

// Nobody gets in with what is not the token, and nothing is said to him.
func FuzzStranger(f *testing.F) {
	const hash = "0123456789abcdef01234567"
	for _, s := range []string{"1-" + hash, "0-" + hash, "1-" + hash[1:] + "\n", "\r\n\r1-" + hash + "\r", "2-" + hash + "\nnew\n", "-\n", "1-\n", "1 - \x00\n"} {
		f.Add([]byte(s))
	}
	s := New(Options{Control: true, AuthTime: time.Hour}) // however slow the machine is
	token, err := s.Open(hash)
	if err != nil {
		f.Fatal(err)
	}
	token.Set(5)
	all, _ := listen(f, filepath.Join(f.TempDir(), "all"), s.Serve)
	own, _ := listen(f, filepath.Join(f.TempDir(), "own"), func(ctx context.Context, l net.Listener) error { return s.ServeToken(ctx, l, token) })
	right := regexp.MustCompile(`^[ \t\r\n]*\+?[0-9]+[ \t]*-` + hash + `[ \t]*[\r\n]`)
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, at := range []string{all, own} {
			c := dial(t, at)
			go func() {
				c.Write(in)
				c.Conn.(*net.UnixConn).CloseWrite()
			}()
			got, err := io.ReadAll(c.r)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("the connection does not end")
			}
			want := ""
			if at == own && right.Match(in) {
				want = "5\r\n"
			}
			if string(got) != want {
				t.Fatalf("%q is told %q, not %q", in, got, want)
			}
		}
	})
}

// A client takes numbers from whatever a server sends, and nothing else.
func FuzzClient(f *testing.F) {
	for _, s := range []string{"4\r\n", "4\r5\n\n6\r\n", "-1\r\n", "999999999999999999\r\n", "x", "1 2\n", strings.Repeat("1", 5000), "\x00\n"} {
		f.Add([]byte(s), 1)
	}
	f.Fuzz(func(t *testing.T, in []byte, pieces int) {
		here, there := net.Pipe()
		c := &Client{conn: here, jobs: make(chan int, 1)}
		go c.read()
		go func() {
			for size := max(1, min(pieces, 1000)); len(in) > 0; {
				n, err := there.Write(in[:min(size, len(in))])
				if in = in[n:]; err != nil {
					break
				}
			}
			there.Close()
		}()
		last := time.After(patience)
		for {
			select {
			case n, ok := <-c.Jobs():
				if !ok {
					if c.Err() == nil {
						t.Fatal("the end has no reason")
					}
					return
				}
				if n < 0 || n > MaxJobs {
					t.Fatalf("%q sets %d", in, n)
				}
			case <-last:
				t.Fatal("the client does not end")
			}
		}
	})
}
