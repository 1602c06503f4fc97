package buildcontrol

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestTranscript replays what doc/buildcontrol.md shows, byte for byte.
func TestTranscript(t *testing.T) {
	doc, err := os.ReadFile("../doc/buildcontrol.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)```transcript\n(.*?)```").FindSubmatch(doc)
	if m == nil {
		t.Fatal("doc/buildcontrol.md has no transcript")
	}
	f := newFarm(t, Options{})
	hash := ""
	conns := map[string]*raw{}
	lines := 0
	for line := range strings.Lines(string(m[1])) {
		lines++
		line = strings.TrimSuffix(line, "\n")
		c := conns[line[:1]]
		if c == nil {
			c = dial(t, f.addr)
			conns[line[:1]] = c
		}
		text := strings.TrimPrefix(line[1:], "S: ")
		switch {
		case line[1:] == " ends" && (c == conns["1"] || c == conns["2"]): // by itself
			c.Close()
		case line[1:] == " ends":
			c.ends()
		case strings.HasPrefix(line[1:], "C: "):
			text = strings.Replace(line[4:], "0-HASH", f.ControlToken(), 1)
			c.send(strings.Replace(text, "HASH1", hash, 1) + "\r\n")
		case text == "1-HASH1" && hash == "":
			hash = strings.TrimSpace(strings.TrimPrefix(c.line(), "1-"))
		case text != line[1:] && c == conns["0"]:
			c.want(text + "\n")
		case text != line[1:]:
			c.want(text + "\r\n")
		default:
			t.Fatalf("doc/buildcontrol.md has the line %q", line)
		}
		// What one says is to be done before another speaks.
		switch {
		case line == "1C: 1-HASH1" && len(conns) == 2:
			until(t, "the first client is known", func() bool { return f.Tokens()[0].Clients == 1 })
		case line == "2 ends":
			until(t, "the clients are gone", func() bool { return len(f.Tokens()) == 0 })
		}
	}
	if lines < 30 || len(conns) != 4 {
		t.Errorf("%d lines on %d connections", lines, len(conns))
	}
}
