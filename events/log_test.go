package events

import (
	"context"
	"testing"
)

func TestRoundtrip(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	l.Append(Event{Kind: Push, Text: "a"}, Event{Kind: Push, Text: "b"})
	if err := l.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	list, err := l.Read(0, 0)
	if err != nil || len(list) != 2 || list[1].N != 2 {
		t.Fatalf("read %v, %v", list, err)
	}
	l.Close()
	n := 0
	if l, err = Open(dir, Options{}, func(*Event) { n++ }); err != nil || n != 2 || l.Last() != 2 || l.First() != 1 {
		t.Fatalf("opened again: %v, %d events", err, n)
	}
	l.Close()
}
