package sshd

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/Morphux/quarry"
	gossh "golang.org/x/crypto/ssh"
)

// TestRaw has a verb take the terminal as it is: what is typed, written and said
// of its size.
func TestRaw(t *testing.T) {
	sizes := make(chan [2]int)
	f := newFarm(t, func(o *Options) {
		o.Raw = func(argv []string) bool { return argv[0] == "raw" && !strings.HasPrefix(argv[1], "-") }
		o.Verbs = func(_ context.Context, _ quarry.Identity, argv []string, in io.Reader, out, _ io.Writer, term Terminal) int {
			fmt.Fprintf(out, "%q %v %d %d %s\n", argv, term.TTY, term.Width, term.Height, term.Name)
			if argv[0] != "raw" || !term.TTY {
				return 0
			}
			sizes <- <-term.Resize
			typed := make([]byte, 4)
			io.ReadFull(in, typed)
			fmt.Fprintf(out, "%q\n", typed)
			return 42
		}
	})
	alice := f.person("alice", quarry.RoleMaintainer)
	c := f.dial(alice)
	session := func() *gossh.Session {
		t.Helper()
		se, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { se.Close() })
		return se
	}
	for line, want := range map[string]string{
		`raw 1 ls *.c | wc "a  b" $X; 'x`: `["raw" "1" "ls *.c | wc \"a  b\" $X; 'x"]`,
		`raw   1   -- cat x `:             `["raw" "1" "-- cat x"]`,
		"raw 1 a\nb":                      `["raw" "1" "a\nb"]`,
		`raw 1`:                           `["raw" "1"]`,
		`raw --json 1`:                    `["raw" "--json" "1"]`,
		`raw`:                             `["raw"]`,
		`plain 'a b'`:                     `["plain" "a b"]`,
	} {
		out, err := session().Output(line)
		if got, _, _ := strings.Cut(string(out), "] "); err != nil || got+"]" != want {
			t.Errorf("%q: %q, %v, want %q", line, got, err, want)
		}
	}
	for _, line := range []string{`plain *.c`, `raw '1' *.c`, `"raw" 1 | x`, "raw \xff *"} {
		if out, err := session().Output(line); err == nil {
			t.Errorf("%q was taken: %q", line, out)
		}
	}

	se := session()
	if err := se.RequestPty("xterm-odd", 25, 80, gossh.TerminalModes{}); err != nil {
		t.Fatal(err)
	}
	in, err := se.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	se.Stdout = &out
	if err := se.Start("raw 1 x"); err != nil {
		t.Fatal(err)
	}
	// Nobody asks for the first.
	for _, size := range [][2]int{{50, 100}, {60, 120}, {1 << 30, 1 << 30}} {
		if err := se.WindowChange(size[0], size[1]); err != nil {
			t.Fatal(err)
		}
	}
	within(t, "a size", sizes)
	io.WriteString(in, "\x03\x04\r\n")
	var exit *gossh.ExitError
	if err := se.Wait(); err == nil || !asExit(err, &exit) || exit.ExitStatus() != 42 {
		t.Errorf("%v", err)
	}
	if want := "[\"raw\" \"1\" \"x\"] true 80 25 xterm-odd\n\"\\x03\\x04\\r\\n\"\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

func asExit(err error, to **gossh.ExitError) (ok bool) {
	*to, ok = err.(*gossh.ExitError)
	return ok
}
