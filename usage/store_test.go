package usage

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spf13/afero"

	"github.com/Morphux/quarry/internal/cgroup"
	"github.com/Morphux/quarry/internal/testdisk"
)

func openIn(dir string) *Store { return Open(afero.NewBasePathFs(afero.NewOsFs(), dir)) }

// work is a build that uses a processor and a half.
func work() Read {
	began := time.Now()
	return func() (cgroup.Stat, cgroup.Count) {
		used := time.Since(began).Microseconds()
		return cgroup.Stat{User: cgroup.Of(used), Sys: cgroup.Of(used / 2), Memory: cgroup.Of(100 << 20), Written: cgroup.Of(used * 10)}, cgroup.Of(7 << 20)
	}
}

func steps(a Attempt) string {
	var s []string
	for _, x := range a.Samples {
		s = append(s, x.Step)
	}
	return strings.Join(s, " ")
}

func readAll(t *testing.T, s *Store, number int64) []Attempt {
	t.Helper()
	list, err := s.Read(number)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestRecorder(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := openIn(dir)
		r := s.Begin(Build{Number: 1017, Attempt: 1, Memory: 1 << 30, CPUs: 2}, "prepare", 3*time.Second, work())
		time.Sleep(100 * time.Millisecond)
		r.Step("prepare") // it said so before
		r.Step("make")
		time.Sleep(10 * time.Second)
		r.Step("install")
		time.Sleep(time.Second)
		live := s.Live()
		if len(live) != 1 || live[0].Build != 1017 || live[0].Now.Step != "install" || live[0].Rate.CPU != cgroup.Of(150) ||
			live[0].Rate.Written != cgroup.Of(10_000_000) || live[0].Now.Disk != cgroup.Of(7<<20) || time.Since(live[0].StepBegan) != time.Second {
			t.Errorf("live: %+v", live)
		}
		list := readAll(t, s, 1017) // while it runs
		if len(list) != 1 || list[0].Ended || steps(list[0]) != "prepare prepare make make make make" {
			t.Errorf("while it runs: %+v", list)
		}
		r.End()
		r.End()
		r.Step("late")
		if err := r.Err(); err != nil {
			t.Error(err)
		}
		if live := s.Live(); live == nil || len(live) != 0 {
			t.Errorf("after the end: %+v", live)
		}
		// Nothing ticks any more: with a timer left this bubble would not end.
		list = readAll(t, s, 1017)
		if len(list) != 1 || !list[0].Ended || steps(list[0]) != "prepare prepare make make make make install" {
			t.Fatalf("after the end: %+v", list)
		}
		for i, at := range []time.Duration{0, 100 * time.Millisecond, 3100 * time.Millisecond, 6100 * time.Millisecond, 9100 * time.Millisecond, 10100 * time.Millisecond, 11100 * time.Millisecond} {
			if got := list[0].Samples[i].At.Sub(list[0].Began); got != at {
				t.Errorf("sample %d is of %v, want %v", i, got, at)
			}
		}
		total := list[0].Total()
		if total.Wall != 11100*time.Millisecond || total.User.N < 11_000_000 || total.User.N > 11_200_000 || total.PeakMemory != cgroup.Of(100<<20) || total.Read.Known {
			t.Errorf("total: %+v", total)
		}

		// Another attempt goes on in the same file.
		had, busy := 1, -1
		r = s.Begin(Build{Number: 1017, Attempt: 2, Slots: func() (int, int) { return had, busy }}, "prepare", 0, work())
		had, busy = 4, 3
		r.End()
		list = readAll(t, s, 1017)
		if len(list) != 2 || list[1].Attempt != 2 || list[1].Every != DefaultEvery || !list[0].Ended || !list[1].Ended || len(list[1].Samples) != 2 {
			t.Errorf("two attempts: %+v", list)
		}
		if list[0].Samples[0].Jobs.Known || list[0].Total().PeakBusy.Known {
			t.Error("slots are told of that nobody shares out")
		}
		if a, b := list[1].Samples[0], list[1].Samples[1]; a.Jobs != cgroup.Of(1) || a.Busy != cgroup.Of(0) || b.Jobs != cgroup.Of(4) || b.Busy != cgroup.Of(3) {
			t.Errorf("slots: %+v, %+v", a, b)
		}
		if total := list[1].Total(); total.PeakJobs != cgroup.Of(4) || total.PeakBusy != cgroup.Of(3) {
			t.Errorf("slots in all: %+v", total)
		}
	})
	if _, err := os.Stat(filepath.Join(dir, "0001/1017.usage")); err != nil {
		t.Error(err)
	}
}

// TestKilled: a daemon that is killed leaves what there was, even in the middle
// of a write, and the next one goes on behind it.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "0000/1.usage")
	synctest.Test(t, func(t *testing.T) {
		r := openIn(dir).Begin(Build{Number: 1, Attempt: 1}, "prepare", time.Second, work())
		time.Sleep(5500 * time.Millisecond)
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		r.End()
		if err := os.WriteFile(file, data[:len(data)-1], 0o644); err != nil {
			t.Fatal(err)
		}
		s := openIn(dir)
		if list := readAll(t, s, 1); len(list) != 1 || list[0].Ended || len(list[0].Samples) != 5 {
			t.Errorf("what was left: %+v", list)
		}
		r = s.Begin(Build{Number: 1, Attempt: 2}, "prepare", time.Second, work())
		time.Sleep(1500 * time.Millisecond)
		r.End()
		if list := readAll(t, s, 1); len(list) != 2 || list[0].Ended || len(list[0].Samples) != 5 || !list[1].Ended || len(list[1].Samples) != 3 {
			t.Errorf("after the next: %+v", list)
		}
	})
}

func TestNone(t *testing.T) {
	dir := t.TempDir()
	s := openIn(dir)
	if _, err := s.Read(1); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "0000"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"2": "no series", "3": "", "4": magic} {
		if err := os.WriteFile(filepath.Join(dir, "0000", name+".usage"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []int64{2, 3} {
		if _, err := s.Read(n); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("build %d: %v", n, err)
		}
	}
	if _, err := s.Read(4); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty series: %v", err)
	}
	// Something else in the place of a series is no reason to keep none.
	r := s.Begin(Build{Number: 2, Attempt: 1}, "prepare", time.Hour, work())
	r.End()
	if list := readAll(t, s, 2); len(list) != 1 || r.Err() != nil {
		t.Errorf("%+v, %v", list, r.Err())
	}
}

// TestTwice: two recorders of one build do not write into one file.
func TestTwice(t *testing.T) {
	s := openIn(t.TempDir())
	a := s.Begin(Build{Number: 1, Attempt: 1}, "prepare", time.Hour, work())
	b := s.Begin(Build{Number: 1, Attempt: 2}, "prepare", time.Hour, work())
	b.Step("make")
	b.End()
	if b.Err() == nil || len(s.Live()) != 1 {
		t.Errorf("%v, %+v", b.Err(), s.Live())
	}
	a.End()
	if list := readAll(t, s, 1); len(list) != 1 || list[0].Attempt != 1 || a.Err() != nil {
		t.Errorf("%+v, %v", list, a.Err())
	}
}

// TestLiveBegins: a build that is just being added to those that are sampled has no
// sample to tell of.
func TestLiveBegins(t *testing.T) {
	s := openIn(t.TempDir())
	s.live[1] = &Recorder{s: s, build: Build{Number: 1}}
	if live := s.Live(); len(live) != 0 {
		t.Errorf("%+v", live)
	}
}

func TestPrune(t *testing.T) {
	dir := t.TempDir()
	s := openIn(dir)
	if gone, err := s.Prune(t.Context(), func(int64) bool { return false }); gone != nil || err != nil {
		t.Errorf("nothing is there: %v, %v", gone, err)
	}
	for _, n := range []int64{1, 2, 1003} {
		s.Begin(Build{Number: n, Attempt: 1}, "prepare", time.Hour, work()).End()
	}
	running := s.Begin(Build{Number: 3, Attempt: 1}, "prepare", time.Hour, work())
	log := filepath.Join(dir, "0000/1.log.zst")
	if err := os.WriteFile(log, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	gone, err := s.Prune(t.Context(), func(n int64) bool { return n == 1 })
	if err != nil || len(gone) != 2 || gone[0] != 2 || gone[1] != 1003 {
		t.Errorf("%v, %v", gone, err)
	}
	readAll(t, s, 1)
	readAll(t, s, 3)
	running.End()
	for name, want := range map[string]bool{"0001": false, "0000/2.usage": false, "0000/3.usage": true, "0000/1.log.zst": true} {
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Prune(ctx, func(int64) bool { return false }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestDiskFull: a full disk costs samples, never the build; what can be written
// later is.
func TestDiskFull(t *testing.T) {
	testdisk.Run(t, 1<<20, func(t *testing.T, dir string) {
		s := openIn(dir)
		var n atomic.Int64
		r := s.Begin(Build{Number: 1, Attempt: 1}, "prepare", time.Hour, func() (cgroup.Stat, cgroup.Count) {
			return cgroup.Stat{User: cgroup.Of(n.Add(1) * 1000)}, cgroup.Count{}
		})
		free := testdisk.Fill(t, dir, 0)
		// Until the page that the file has is full, and then some.
		for range 3000 {
			r.Step("make")
			r.Step("test")
		}
		if err := r.Err(); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("got %v: is the disk not full?", err)
		}
		free()
		r.Step("install")
		r.End()
		a := readAll(t, s, 1)[0]
		last := a.Samples[len(a.Samples)-1]
		if want := n.Load() * 1000; !a.Ended || last.Step != "install" || last.User.N < want-want/64-1000 || last.User.N > want+want/64+1000 {
			t.Errorf("%d samples, ended %v, the last is %+v, want %d µs", len(a.Samples), a.Ended, last, want)
		}
	})
}

func TestThisMachine(t *testing.T) {
	m := ThisMachine()
	if m.CPUs < 1 || m.Memory.N < 1<<20 || m.Available.N > m.Memory.N || len(m.Load) != 3 {
		t.Errorf("%+v", m)
	}
}

// BenchmarkKeep is what a sample costs beside reading it.
func BenchmarkKeep(b *testing.B) {
	s := openIn(b.TempDir())
	r := s.Begin(Build{Number: 1, Attempt: 1}, "make", time.Hour, work())
	defer r.End()
	for b.Loop() {
		r.mu.Lock()
		r.sample()
		r.mu.Unlock()
	}
}
