package events

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Morphux/quarry/internal/testdisk"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func open(t testing.TB, dir string, o Options) *Log {
	t.Helper()
	if o.Log == nil {
		o.Log = quiet
	}
	l, err := Open(dir, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func say(n int) Event { return Event{Kind: Push, Text: fmt.Sprintf("event %d", n), Package: "zlib"} }

// fill appends events so that event N says N, and waits until they are there.
func fill(t testing.TB, l *Log, from, to int) {
	t.Helper()
	for n := from; n <= to; n++ {
		l.Append(say(n))
	}
	flush(t, l)
}

func flush(t testing.TB, l *Log) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := l.Flush(ctx); err != nil {
		t.Fatal(err)
	}
}

// all reads everything after since, in portions of size.
func all(t testing.TB, l *Log, since int64, size int) (list []Event) {
	t.Helper()
	for {
		part, err := l.Read(since, size)
		if err != nil {
			t.Fatal(err)
		}
		if len(part) == 0 {
			return list
		}
		list = append(list, part...)
		since = part[len(part)-1].N
	}
}

// check reports unless a list is the events from one to another.
func check(t testing.TB, list []Event, from, to int64) {
	t.Helper()
	if int64(len(list)) != to-from+1 {
		t.Fatalf("there are %d events, not %d to %d", len(list), from, to)
	}
	for i, e := range list {
		n := from + int64(i)
		var read Event
		if err := json.Unmarshal(e.Line(), &read); err != nil {
			t.Fatal(err)
		}
		if e.N != n || e.Text != fmt.Sprintf("event %d", n) || read.N != n || read.Text != e.Text || e.At.IsZero() || !bytes.HasSuffix(e.Line(), []byte("}\n")) {
			t.Fatalf("event %d is %+v, as a line %s", n, e, e.Line())
		}
	}
}

// TestRead reads from memory and from disk, from everywhere, before and after a
// restart.
func TestRead(t *testing.T) {
	dir := t.TempDir()
	const n = 3*ringSize + 17
	l := open(t, dir, Options{Segment: 20_000})
	if l.First() != 1 || l.Last() != 0 {
		t.Errorf("an empty log has events %d to %d", l.First(), l.Last())
	}
	if list, err := l.Read(0, 10); err != nil || len(list) != 0 {
		t.Errorf("an empty log gives %v, %v", list, err)
	}
	fill(t, l, 1, n)
	for again := range 2 {
		if l.First() != 1 || l.Last() != n {
			t.Fatalf("events %d to %d are kept", l.First(), l.Last())
		}
		if len(l.segs) < 5 {
			t.Fatalf("all is in %d files", len(l.segs))
		}
		check(t, all(t, l, 0, 100), 1, n)
		for since := int64(0); since < n; since += 1 + since/7 {
			list, err := l.Read(since, 3)
			if err != nil {
				t.Fatal(err)
			}
			check(t, list, since+1, min(since+3, n))
		}
		l.Close()
		if again == 0 {
			l = open(t, dir, Options{Segment: 20_000})
		}
	}
}

// TestTorn cuts the log off at every byte of its last events, as a crash does: what
// was whole is kept, the rest is gone, and no number is given twice.
func TestTorn(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{})
	fill(t, l, 1, 4)
	l.Close()
	name := l.path(l.segs[0])
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	ends := []int{0}
	for i, b := range whole {
		if b == '\n' {
			ends = append(ends, i+1)
		}
	}
	for cut := 0; cut <= len(whole); cut++ {
		if err := os.WriteFile(name, whole[:cut], 0o644); err != nil {
			t.Fatal(err)
		}
		kept := slices.IndexFunc(ends, func(e int) bool { return e > cut })
		if kept--; kept < 0 {
			kept = 4
		}
		l := open(t, dir, Options{})
		if l.Last() != int64(kept) {
			t.Fatalf("cut at byte %d, %d events are left, not %d", cut, l.Last(), kept)
		}
		fill(t, l, kept+1, 5)
		check(t, all(t, l, 0, 0), 1, 5)
		l.Close()
		if files, _ := filepath.Glob(filepath.Join(dir, "*")); len(files) != 1 {
			t.Fatalf("cut at byte %d, there are files %v", cut, files)
		}
	}
}

// TestDamaged: what cannot be read is passed over, numbers that may have been shown
// are not given out again, and all else is there.
func TestDamaged(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{Segment: 10_000})
	const n = 1000
	fill(t, l, 1, n)
	l.Close()
	second := l.path(l.segs[1])
	data, err := os.ReadFile(second)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(data, []byte("\n"))
	lines[3] = []byte("\x00\x00 rubbish {\n")
	lines[7] = append(bytes.TrimSuffix(lines[7], []byte("\n")), lines[8]...) // the end of a line is gone
	lines[8] = nil
	if err := os.WriteFile(second, bytes.Join(lines, nil), 0o644); err != nil {
		t.Fatal(err)
	}
	third := l.segs[2]
	fifth := l.path(l.segs[4]) // a failed write that could not be undone
	if data, err = os.ReadFile(fifth); err != nil {
		t.Fatal(err)
	}
	data = fmt.Appendf(data, "{\"n\":%d,\"at\":\"2026-01-01T00:00:00Z\",\"kind\":\"push\",\"text\":\"never shown\"}\n", l.segs[5].first)
	if err := os.WriteFile(fifth, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.path(third), bytes.Repeat([]byte("x"), 500), 0o644); err != nil { // all of a file
		t.Fatal(err)
	}
	last := l.path(l.segs[len(l.segs)-1])
	f, err := os.OpenFile(last, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString("{\"n\":1001\n\x00\x00\x00\n{\"n\":10") // two whole lines, which may have been shown, and a torn one
	f.Close()

	var said bytes.Buffer
	l = open(t, dir, Options{Segment: 10_000, Log: slog.New(slog.NewTextHandler(&said, nil))})
	if l.Last() != n+2 {
		t.Errorf("the last event is %d", l.Last())
	}
	if !strings.Contains(said.String(), "the log of events is damaged") {
		t.Errorf("nobody is told of the damage: %s", said.String())
	}
	l.Append(Event{Kind: Push, Text: "after"})
	flush(t, l)
	for _, size := range []int{0, 7} {
		list := all(t, l, 0, size)
		next, seen := int64(1), 0
		for _, e := range list {
			if e.Kind == Gap || e.N < next || e.Text == "never shown" {
				t.Fatalf("event %d comes after %d: %s", e.N, next-1, e.Line())
			}
			next = e.N + 1
			seen++
		}
		lost := int(l.segs[3].first-third.first) + 3
		if seen != n-lost+1 || list[len(list)-1].N != n+3 {
			t.Errorf("%d events are read, of %d with %d lost; the last is %d", seen, n, lost, list[len(list)-1].N)
		}
	}
}

// TestGap: who asks for what is not kept any more is told so.
func TestGap(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{Max: 50_000, Segment: 5_000})
	fill(t, l, 1, 500)
	fill(t, l, 501, 3000)
	first, last := l.First(), l.Last()
	if first < 2 || last != 3000 {
		t.Fatalf("events %d to %d are kept", first, last)
	}
	var size int64
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, f := range files {
		fi, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		size += fi.Size()
	}
	if size > 50_000+1000 || len(files) != len(l.segs) {
		t.Errorf("%d files take %d bytes", len(files), size)
	}
	gaps := func(since int64) {
		t.Helper()
		list, err := l.Read(since, 1)
		if err != nil || len(list) != 1 || list[0].Kind != Gap || list[0].First != l.First() || list[0].N != l.First()-1 {
			t.Fatalf("since %d there are %v, %v", since, list, err)
		}
	}
	gaps(0)
	gaps(first - 2)
	gaps(last + 1) // of another log
	check(t, all(t, l, first-1, 0), first, last)
	list := all(t, l, 3, 0)
	if list[0].Kind != Gap {
		t.Fatalf("the first is %s", list[0].Line())
	}
	check(t, list[1:], first, last)
}

// TestAge: what is old goes, though the log is small.
func TestAge(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{Keep: time.Hour})
	old := time.Now().Add(-2 * time.Hour)
	for n := 1; n <= 10; n++ {
		e := say(n)
		e.At = old
		l.Append(e)
	}
	flush(t, l)
	fill(t, l, 11, 12)
	if l.First() != 11 || l.Last() != 12 {
		t.Errorf("events %d to %d are kept", l.First(), l.Last())
	}
}

// TestFollow has many follow at their own pace while events come: nobody misses
// one, and one who does not read keeps nobody.
func TestFollow(t *testing.T) {
	l := open(t, t.TempDir(), Options{Segment: 50_000})
	const n, followers = 3000, 200
	fill(t, l, 1, 100)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	stuck, release := make(chan struct{}), make(chan struct{})
	var work sync.WaitGroup
	follow := func(since int64, each func(Event)) {
		work.Add(1)
		go func() {
			defer work.Done()
			next := since + 1
			for e, err := range l.Follow(ctx, since) {
				if err != nil || e.N != next || e.Text != fmt.Sprintf("event %d", next) {
					t.Errorf("after %d comes %s, %v", next-1, e.Line(), err)
					return
				}
				if each != nil {
					each(e)
				}
				if next++; e.N == n {
					return
				}
			}
			t.Errorf("it ended at %d", next-1)
		}()
	}
	for i := range followers {
		follow(int64(i%100), nil)
	}
	follow(0, func(e Event) {
		if e.N == 5 {
			close(stuck)
			<-release // until all others have read everything
		}
	})
	<-stuck
	for m := 101; m <= n; m++ {
		l.Append(say(m))
		if m%50 == 0 {
			flush(t, l)
		}
	}
	flush(t, l)
	check(t, all(t, l, 0, 0), 1, n)
	close(release)
	work.Wait()
}

// TestFollowEnds: with the context, with the log, and when somebody has enough.
func TestFollowEnds(t *testing.T) {
	l := open(t, t.TempDir(), Options{})
	fill(t, l, 1, 3)
	for e := range l.Follow(t.Context(), 0) {
		if e.N == 2 {
			break
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int64, 2)
	started := make(chan bool, 2)
	for _, ctx := range []context.Context{ctx, t.Context()} {
		go func() {
			var last int64
			for e := range l.Follow(ctx, 2) {
				last = e.N
				started <- true
			}
			ended <- last
		}()
	}
	<-started
	<-started
	cancel()
	if n := <-ended; n != 3 {
		t.Errorf("it ended at %d", n)
	}
	l.Append(say(4)) // and is closed at once
	l.Close()
	if n := <-ended; n != 4 {
		t.Errorf("what was written before the end is not told: it ended at %d", n)
	}
	l.Append(say(5))
	if l.Last() != 4 {
		t.Error("a closed log takes events")
	}
}

// TestFullDisk: events wait for room, in order, and none is lost.
func TestFullDisk(t *testing.T) {
	testdisk.Run(t, 1<<20, func(t *testing.T, disk string) {
		dir := filepath.Join(disk, "events")
		l := open(t, dir, Options{Segment: 30_000})
		fill(t, l, 1, 100)
		free := testdisk.Fill(t, disk, 0)
		for n := 101; n <= 600; n++ {
			l.Append(say(n))
		}
		full, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if err := l.Flush(full); err == nil {
			t.Fatal("the disk is full, and took everything")
		}
		before := all(t, l, 0, 0)
		check(t, before, 1, int64(len(before)))
		if len(before) == 600 {
			t.Fatal("all is shown that was not written")
		}
		free()
		flush(t, l)
		check(t, all(t, l, 0, 0), 1, 600)
		l.Close()
		l = open(t, dir, Options{Segment: 30_000})
		check(t, all(t, l, 0, 0), 1, 600)
	})
}
