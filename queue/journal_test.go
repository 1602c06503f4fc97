package queue

import (
	"bytes"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/google/go-cmp/cmp"
	"github.com/spf13/afero"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func sample(number int64, s quarry.State) quarry.Build {
	r := rel("1", "aaaa", t0, "x86_64")
	b := quarry.Build{Number: number, Release: r, Arch: "x86_64", State: s, Reason: "tab\tand \"line\nbreak\"", Attempt: 1, Created: t0}
	b.Key = quarry.BuildKey(b.Target(), b.Commit, "")
	return b
}

func loadAll(fsys afero.Fs) (j *journal, rep journalReport, list []entry) {
	j, rep = openJournal(fsys, quiet, func(e entry) { list = append(list, e) })
	j.all = func() iter.Seq[entry] {
		return func(yield func(entry) bool) {
			for _, e := range list {
				if !yield(e) {
					return
				}
			}
		}
	}
	return j, rep, list
}

func TestJournalRoundTrip(t *testing.T) {
	fsys := folder(t)
	j, _, _ := loadAll(fsys)
	b := sample(1, quarry.Running)
	want := []entry{{Build: &b, Stop: quarry.Cancelled, StopReason: "cancelled by bob"}, {Last: 17},
		{Pause: &Pause{By: "bob", Reason: "moving", Since: t0}}}
	for _, e := range want {
		if err := j.append(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	_, rep, got := loadAll(fsys)
	if diff := cmp.Diff(want, got); diff != "" || rep.Lines != 3 || rep.Bad != 0 || rep.Torn {
		t.Error(rep, diff)
	}
	// People read it with stock tools.
	data, err := afero.ReadFile(fsys, journalName)
	if err != nil || !strings.Contains(string(data), ` {"last":17}`+"\n") {
		t.Errorf("%v: %s", err, data)
	}
}

// TestJournalDamage: damage costs the lines that it hits.
func TestJournalDamage(t *testing.T) {
	line := func(n int64) string {
		b := sample(n, quarry.Queued)
		l, err := appendLine(nil, entry{Build: &b})
		if err != nil {
			t.Fatal(err)
		}
		return string(l)
	}
	odd := func(change func(*quarry.Build)) string {
		b := sample(9, quarry.Queued)
		change(&b)
		l, _ := appendLine(nil, entry{Build: &b})
		return string(l)
	}
	for _, c := range []struct {
		name, data string
		want       []int64
		bad        int
		torn       bool
	}{
		{"empty", "", nil, 0, false},
		{"torn last line", line(1) + line(2)[:40], []int64{1}, 0, true},
		{"no newline at the end", line(1) + strings.TrimSuffix(line(2), "\n"), []int64{1, 2}, 0, true},
		{"flipped bit", line(1) + strings.Replace(line(2), "queued", "quexed", 1) + line(3), []int64{1, 3}, 1, false},
		{"torn in the middle", line(1) + line(2)[:40] + "\n" + line(3), []int64{1, 3}, 1, false},
		{"two lines run into one", line(1) + line(2)[:40] + line(3) + line(4), []int64{1, 4}, 1, false},
		{"zeros from a crash", line(1) + strings.Repeat("\x00", 4096) + "\n" + line(2), []int64{1, 2}, 1, false},
		{"no journal at all", "PK\x03\x04\n\n\nhello\n", nil, 2, false},
		{"an endless line", line(1) + strings.Repeat("x", 9<<20) + "\n" + line(2), []int64{1, 2}, 1, false},
		{"an endless last line", line(1) + strings.Repeat("x", 9<<20), []int64{1}, 1, true},
		{"a state of tomorrow", line(1) + odd(func(b *quarry.Build) { b.State = "dreaming" }) + line(2), []int64{1, 2}, 1, false},
		{"a number below one", odd(func(b *quarry.Build) { b.Number = -1 }) + line(2), []int64{2}, 1, false},
		{"a key of another build", odd(func(b *quarry.Build) { b.Commit = "bbbb" }) + line(2), []int64{2}, 1, false},
		{"a path as a name", odd(func(b *quarry.Build) { b.Package = "../x"; b.Key = quarry.BuildKey(b.Target(), b.Commit, "") }), nil, 1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			fsys := folder(t)
			if err := afero.WriteFile(fsys, journalName, []byte(c.data), 0o644); err != nil {
				t.Fatal(err)
			}
			check := func(more ...int64) (j *journal) {
				t.Helper()
				j, rep, list := loadAll(fsys)
				var got []int64
				for _, e := range list {
					got = append(got, e.Build.Number)
				}
				if diff := cmp.Diff(append(c.want, more...), got); diff != "" {
					t.Error(diff)
				}
				if len(more) == 0 && (rep.Bad != c.bad || rep.Torn != c.torn) {
					t.Errorf("got %+v", rep)
				}
				if bad, err := afero.ReadFile(fsys, journalBad); c.bad > 0 && (err != nil || len(bad) == 0) {
					t.Errorf("no copy of the bad journal is kept: %v", err)
				}
				return j
			}
			j := check()
			b := sample(77, quarry.Queued)
			if err := j.append(entry{Build: &b}); err != nil {
				t.Fatal(err)
			}
			if !bytes.Contains(mustRead(t, fsys), []byte(`"number":77`)) { // rewritten: the caller's state is written, which here is the old one
				if err := j.append(entry{Build: &b}); err != nil {
					t.Fatal(err)
				}
			}
			j.close()
			check(77)
		})
	}
}

func mustRead(t testing.TB, fsys afero.Fs) []byte {
	data, err := afero.ReadFile(fsys, journalName)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// FuzzJournal: whatever is in the file, reading it does not fail, and what is
// appended is there afterwards, along with what was.
func FuzzJournal(f *testing.F) {
	b := sample(1, quarry.Queued)
	l, _ := appendLine(nil, entry{Build: &b})
	f.Add(l)
	f.Add(append(bytes.Clone(l), l[:50]...))
	f.Add([]byte("00000000 {}\n\n\x00"))
	l, _ = appendLine(nil, entry{Pause: &Pause{By: "x"}})
	f.Add(l)
	l, _ = appendLine(nil, entry{Last: 1 << 62})
	f.Add(l)
	f.Fuzz(func(t *testing.T, data []byte) {
		fsys := afero.NewMemMapFs()
		afero.WriteFile(fsys, journalName, data, 0o644)
		j, _, before := loadAll(fsys)
		j.rewrite = false // appending to the very bytes is the harder case
		next := sample(4711, quarry.Errored)
		if err := j.append(entry{Build: &next}); err != nil {
			t.Fatal(err)
		}
		j.close()
		_, rep, after := loadAll(fsys)
		if rep.Torn {
			t.Errorf("torn after a whole line was appended")
		}
		if len(after) != len(before)+1 || after[len(before)].Build.Number != 4711 {
			t.Errorf("%d entries before, %d after", len(before), len(after))
		}
		q, err := New(Options{Fs: fsys, Releases: newWorld(t).Releases, Records: newWorld(t).Records, Run: newWorld(t).Run, Record: newWorld(t).Record, Log: quiet})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := q.Get(4711); err != nil {
			t.Error(err)
		}
	})
}

func TestOutcomes(t *testing.T) {
	fsys := folder(t)
	o := outcomes{fsys}
	b := sample(5, quarry.Running)
	out := &quarry.Outcome{Build: b, Status: quarry.Succeeded, Steps: []quarry.Step{{Name: "make", Wall: time.Second}}}
	if err := o.save(5, out); err != nil {
		t.Fatal(err)
	}
	got, err := o.load(5, b.Key)
	if diff := cmp.Diff(out, got); diff != "" || err != nil {
		t.Error(err, diff)
	}
	if _, err := o.load(5, "other"); err == nil || !strings.Contains(err.Error(), "another build") {
		t.Errorf("got %v", err)
	}
	if _, err := o.load(6, b.Key); !os.IsNotExist(err) {
		t.Errorf("got %v", err)
	}
	data, _ := afero.ReadFile(fsys, o.name(5))
	for i := range data[:len(data)-1] { // the newline may go
		broken := bytes.Clone(data)
		broken[i] ^= 0x01
		afero.WriteFile(fsys, o.name(5), broken, 0o644)
		if _, err := o.load(5, b.Key); err == nil {
			t.Fatalf("byte %d is wrong, and nobody sees it", i)
		}
	}
	afero.WriteFile(fsys, "outcomes/7.json.new", []byte("half"), 0o644)
	afero.WriteFile(fsys, "outcomes/x.json", nil, 0o644)
	if got := fmt.Sprint(o.list()); got != "[5]" {
		t.Errorf("got %s", got)
	}
	if names, _ := readDirNames(fsys, outcomesDir); len(names) != 2 {
		t.Errorf("got %v", names)
	}
}

// TestCompaction: the journal's size follows what is kept, not what happened.
func TestCompaction(t *testing.T) {
	w := newWorld(t)
	fsys := folder(t)
	opts := w.options(fsys)
	opts.History = 10
	q := start(t, opts)
	for i := range 400 {
		w.push("zlib", "1", fmt.Sprint(i), []string{"x86_64"})
		q.wait(q.first("zlib").Number)
	}
	q.stop()
	if n := bytes.Count(mustRead(t, fsys), []byte("\n")); n > 1100 {
		t.Errorf("%d lines are kept", n)
	}
	q2, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	if s := q2.Status(); s.Last != 400 {
		t.Errorf("got %+v", s)
	}
}
