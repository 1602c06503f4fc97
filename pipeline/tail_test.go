package pipeline

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

func TestTail(t *testing.T) {
	var w tailWriter
	for i := range 1000 {
		fmt.Fprintf(&w, "line %d\r\n", i)
	}
	w.Write([]byte("no newline \xff"))
	got := w.lines()
	if len(got) != tailLines || got[0] != "line 801" || got[tailLines-1] != "no newline \uFFFD" {
		t.Fatalf("%d lines from %q to %q", len(got), got[0], got[len(got)-1])
	}
}

func TestTailShort(t *testing.T) {
	var w tailWriter
	w.Write([]byte("one\ntw"))
	w.Write([]byte("o\n"))
	if got := strings.Join(w.lines(), "|"); got != "one|two" {
		t.Fatal(got)
	}
}

// TestTailEndless: a build that prints one line for ever costs bounded memory.
func TestTailEndless(t *testing.T) {
	var w tailWriter
	chunk := bytes.Repeat([]byte("x"), 1<<16)
	for range 100 {
		w.Write(chunk)
	}
	if len(w.line) > tailLineBytes || cap(w.line) > 4*tailLineBytes {
		t.Fatalf("%d bytes are kept", cap(w.line))
	}
	if got := w.lines(); len(got) != 1 || !strings.HasSuffix(got[0], "…") {
		t.Fatalf("%d lines", len(got))
	}
}
