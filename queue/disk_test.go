package queue

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/testdisk"
	"github.com/spf13/afero"
)

// TestDiskFull fills the disk under a working queue: it pauses and says why,
// loses nothing that it had accepted, and goes on by itself when there is room.
func TestDiskFull(t *testing.T) {
	testdisk.Run(t, 1<<20, func(t *testing.T, dir string) {
		w := newWorld(t)
		finish := make(chan struct{})
		w.onRun = func(_ context.Context, b quarry.Build, _ func(string)) (*quarry.Outcome, error) {
			if b.Package == "slow" {
				<-finish
			}
			return nil, nil
		}
		var recordFull atomic.Bool
		w.onRecord = func(o *quarry.Outcome) error {
			if recordFull.Load() {
				return syscall.ENOSPC
			}
			return nil
		}
		opts := w.options(afero.NewBasePathFs(afero.NewOsFs(), dir))
		opts.Workers = 1
		q := start(t, opts)
		x := []string{"x86_64"}
		w.push("slow", "1", "a", x)
		w.push("second", "1", "b", x)
		slow, second := q.first("slow"), q.pushed("second")[0]
		q.untilState(slow.Number, quarry.Running)

		free := testdisk.Fill(t, dir, 0)
		fillJournal(t, q)
		w.push("third", "1", "c", x)
		if _, err := q.Pushed(t.Context(), "third"); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "cannot write the journal") {
			t.Fatalf("got %v", err)
		}
		paused := func(what string) {
			t.Helper()
			q.until("pause for "+what, func() bool {
				for _, p := range q.Status().Paused {
					if strings.Contains(p.Reason, what) && strings.Contains(p.Reason, "no space left on device") {
						return true
					}
				}
				return false
			})
		}
		paused("cannot write the journal")
		// A short line may still fit, and end the pause until the next longer one.
		q.until("what waits says why", func() bool {
			b, err := q.Get(second.Number)
			return err == nil && b.State == quarry.Queued && strings.Contains(b.Reason, "no space left")
		})
		if n := len(q.List(Filter{Package: "third"})); n != 0 {
			t.Errorf("what is not in the journal shows")
		}
		close(finish)
		paused("the outcome of build 1")
		if b, _ := q.Get(slow.Number); b.State != quarry.Running {
			t.Errorf("got %+v", plain(b))
		}
		free()
		resume(t, q)
		for _, n := range []int64{slow.Number, second.Number} {
			if b := q.wait(n); b.State != quarry.Succeeded || b.Attempt != 1 {
				t.Errorf("got %+v", plain(b))
			}
		}
		// The push that was refused is found without another word.
		q.until("all built", w.settled)
		q.until("pauses gone", func() bool { return len(q.Status().Paused) == 0 })

		// The disk of the results is full: what is built waits to be recorded.
		recordFull.Store(true)
		w.push("fourth", "1", "d", x)
		fourth := q.first("fourth")
		paused("cannot be recorded")
		q.stop()

		// Full when the daemon starts, in the middle of a recording.
		free = testdisk.Fill(t, dir, 0)
		recordFull.Store(false)
		q = start(t, opts)
		fillJournal(t, q) // it has been on a full disk then; for how long is not said
		free()
		resume(t, q)
		if b := q.wait(fourth.Number); b.State != quarry.Succeeded {
			t.Errorf("got %+v", plain(b))
		}
		q.until("pauses gone", func() bool { return len(q.Status().Paused) == 0 })
		if err := w.once(); err != nil || len(w.history) != 4 {
			t.Error(err, len(w.history))
		}
		// A new journal reads whole: nothing half written is in it.
		q.stop()
		if _, rep, _ := loadAll(opts.Fs); rep.Bad != 0 || rep.Torn {
			t.Errorf("got %+v", rep)
		}
	})
}

// fillJournal uses up what is left of the journal's last block, down to the
// shortest line.
func fillJournal(t *testing.T, q *running) {
	t.Helper()
	for _, size := range []int{500, 0} {
		full := false
		for range 1000 {
			err := q.ask(t.Context(), func(o *owner) error {
				o.extra = append(o.extra, entry{Pause: &Pause{Reason: strings.Repeat("x", size)}}) // the end of no pause
				return nil
			})
			if full = errors.Is(err, syscall.ENOSPC); full {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if !full {
			t.Fatal("the disk does not get full")
		}
	}
}

// resume has the journal tried again at once.
func resume(t *testing.T, q *running) {
	t.Helper()
	q.until("resume", func() bool { return q.Resume(t.Context()) == nil })
}

// sick is a file system whose journal can fail in one way while all else works.
type sick struct {
	afero.Fs
	how *atomic.Value // "", write, half, sync, open
}

func (s sick) OpenFile(name string, flag int, perm os.FileMode) (afero.File, error) {
	if s.how.Load() == "open" && flag != os.O_RDONLY {
		return nil, syscall.ENOSPC
	}
	f, err := s.Fs.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return sickFile{f, s.how}, nil
}

func (s sick) Create(name string) (afero.File, error) {
	if !strings.HasPrefix(name, "journal") {
		return s.Fs.Create(name)
	}
	return s.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
}

type sickFile struct {
	afero.File
	how *atomic.Value
}

func (f sickFile) Write(p []byte) (int, error) {
	switch f.how.Load() {
	case "write":
		return 0, syscall.ENOSPC
	case "half":
		n, _ := f.File.Write(p[:len(p)/2])
		return n, syscall.ENOSPC
	}
	return f.File.Write(p)
}

func (f sickFile) Truncate(n int64) error {
	if f.how.Load() == "half" {
		return syscall.EIO
	}
	return f.File.Truncate(n)
}

func (f sickFile) Sync() error {
	if f.how.Load() == "sync" {
		return syscall.EIO
	}
	return f.File.Sync()
}

// TestJournalTrouble: what happens while the journal cannot be written is
// neither shown nor lost.
func TestJournalTrouble(t *testing.T) {
	for _, how := range []string{"write", "half", "sync"} {
		t.Run(how, func(t *testing.T) {
			w := newWorld(t)
			run, record := make(chan struct{}), make(chan struct{})
			w.onRun = func(_ context.Context, b quarry.Build, _ func(string)) (*quarry.Outcome, error) {
				if b.Package == "running" {
					<-run
				}
				return nil, nil
			}
			w.onRecord = func(o *quarry.Outcome) error {
				if o.Build.Package == "recording" {
					<-record
				}
				return nil
			}
			disk := sick{folder(t), new(atomic.Value)}
			disk.how.Store("")
			opts := w.options(disk)
			opts.Workers = 3
			q := start(t, opts)
			x := []string{"x86_64"}
			var numbers []int64
			for _, p := range []string{"running", "recording"} {
				w.push(p, "1", "a", x)
				numbers = append(numbers, q.first(p).Number)
			}
			q.untilState(numbers[0], quarry.Running)
			q.untilState(numbers[1], quarry.Recording)
			w.push("waiting", "1", "a", x, "recording-1")
			numbers = append(numbers, q.first("waiting").Number)

			disk.how.Store(how)
			if err := q.Cancel(t.Context(), numbers[2], "bob"); err == nil {
				t.Fatal("it says that it cancelled")
			}
			close(run)
			close(record)
			q.until("the record", func() bool { return len(w.branchRecords("recording")) == 1 })
			time.Sleep(30 * time.Millisecond)
			for i, want := range []quarry.State{quarry.Running, quarry.Recording, quarry.Waiting} {
				if b, _ := q.Get(numbers[i]); b.State != want {
					t.Errorf("got %+v, want %s", plain(b), want)
				}
			}
			q.until("the pause for the journal", func() bool {
				p := q.Status().Paused
				return len(p) == 1 && strings.Contains(p[0].Reason, "the journal")
			})
			disk.how.Store("")
			for _, n := range numbers {
				if b := q.wait(n); b.State != quarry.Succeeded || b.Attempt != 1 {
					t.Errorf("got %+v", plain(b))
				}
			}
			if err := w.once(); err != nil || len(w.history) != 3 || len(w.runs) != 3 {
				t.Error(err, w.history, w.runs)
			}
			q.until("pause gone", func() bool { return len(q.Status().Paused) == 0 })
			q.stop()
			q2, err := New(w.options(disk))
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range numbers {
				if b, err := q2.Get(n); err != nil || b.State != quarry.Succeeded {
					t.Errorf("got %+v, %v", plain(b), err)
				}
			}
		})
	}
}

// TestNoDisk: a queue whose journal cannot even be opened starts all the same,
// and says what is wrong.
func TestNoDisk(t *testing.T) {
	w := newWorld(t)
	disk := sick{folder(t), new(atomic.Value)}
	disk.how.Store("open")
	q := start(t, w.options(disk))
	w.push("zlib", "1", "a", []string{"x86_64"})
	if _, err := q.Pushed(t.Context(), "zlib"); err == nil || !strings.Contains(err.Error(), "cannot open the journal") {
		t.Errorf("got %v", err)
	}
	disk.how.Store("")
	q.until("all built", w.settled)
}
