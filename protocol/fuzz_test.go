package protocol

import (
	"bytes"
	"context"
	"io"
	"net"
	"regexp"
	"testing"
	"time"
)

// Input comes out the same in whatever pieces it comes, and what the client makes
// of it is what went in.
func FuzzBody(f *testing.F) {
	for _, s := range []string{".\n", "a\r\nb\rc\n..d\n.\n", ".DATA 3\nabc.\r\n", ".DATA 2\r\n\n\n.\nNOOP", ".x\n", "..\r.\r\n"} {
		f.Add([]byte(s), 1)
	}
	f.Fuzz(func(t *testing.T, in []byte, pieces int) {
		pieces = max(1, min(pieces, 1000))
		var whole body
		want, used, wantErr := whole.decode(nil, in)
		if used > len(in) || !whole.done && wantErr == nil && used != len(in) || len(want) > len(in) {
			t.Fatalf("%q: %d bytes of %d were used for %q", in, used, len(in), want)
		}
		var b body
		var got []byte
		var err error
		at := 0
		for at < len(in) && !b.done && err == nil {
			var n int
			got, n, err = b.decode(got, in[at:min(len(in), at+pieces)])
			at += n
		}
		if !bytes.Equal(got, want) || b.done != whole.done || at != used || (err == nil) != (wantErr == nil) {
			t.Fatalf("%q is %q, %d, %v, and in pieces %q, %d, %v", in, want, used, wantErr, got, at, err)
		}
		// And what the client sends.
		here, there := net.Pipe()
		go func() {
			sendBody(there, bytes.NewReader(in))
			there.Close()
		}()
		sent, err := io.ReadAll(here)
		if err != nil {
			t.Fatal(err)
		}
		back := body{}
		if got, n, err := back.decode(nil, sent); err != nil || n != len(sent) || !back.done || !bytes.Equal(got, in) {
			t.Fatalf("%q comes back as %q, %v", in, got, err)
		}
	})
}

var replyForm = regexp.MustCompile(`^[1-5][0-9][0-9] [^\r\n]*\n$`)

// Whatever a client sends, each line that it gets is a reply or within a body, and
// the session ends when the client goes.
func FuzzSession(f *testing.F) {
	for _, s := range []string{"AUTH alice\r\necho a\rquit\n", "AUTH alice\n@a count x\n@a count x\n", "AUTH alice\ncat\n.DATA 3\nabc\n.\nNOOP\n",
		"AUTH alice\nsip\nabcdef\n.x\n", "\x00\xff\r\r\n", "AUTH alice\nsay 'out:a\\n.\\n' err:b out:c\nTERMINAL 1 1\nwhoami\n", "@@@\n@a\nhelp\nAUTH\n"} {
		f.Add([]byte(s), 3)
	}
	farm := newFarm(f, func(o *Options) { o.Requests = ""; o.Limits.AuthDelay = 1 })
	f.Fuzz(func(t *testing.T, in []byte, pieces int) {
		if bytes.Contains(in, []byte("much")) || bytes.Contains(in, []byte("wait")) {
			return // they would take for ever
		}
		pieces = max(1, min(pieces, 1000))
		client, server := net.Pipe()
		farm.take(server)
		go func() {
			defer client.Close()
			for len(in) > 0 {
				n, err := client.Write(in[:min(pieces, len(in))])
				if err != nil {
					return
				}
				in = in[n:]
			}
			// What was asked last may still be on its way; one more line says that
			// all of it was answered, unless it is taken for input.
			client.SetWriteDeadline(time.Now().Add(patience))
			io.WriteString(client, "\n.\nQUIT\n")
			client.SetReadDeadline(time.Now().Add(patience))
		}()
		var all []byte
		buf := make([]byte, 4096)
		for {
			n, err := client.Read(buf)
			if all = append(all, buf[:n]...); err != nil {
				break
			}
		}
		inBody := false
		for line := range bytes.Lines(all) {
			switch {
			case inBody && string(line) == ".\n":
				inBody = false
			case inBody:
				if line[0] == '.' && !bytes.HasPrefix(line, []byte("..")) {
					t.Fatalf("%q is not stuffed, in\n%s", line, all)
				}
			case line[len(line)-1] != '\n': // the connection has ended in it
			case !replyForm.Match(line):
				t.Fatalf("%q is no reply, in\n%s", line, all)
			default:
				inBody = bytes.HasPrefix(line, []byte("210 ")) || bytes.HasPrefix(line, []byte("211 "))
			}
		}
		if err := context.Cause(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}
