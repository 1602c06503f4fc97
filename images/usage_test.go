package images_test

import (
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/images"
)

// TestSample: what a workspace is said to use is what it uses.
func TestSample(t *testing.T) {
	t.Parallel()
	f := newFarm(t)
	w := f.workspace(t, images.Limits{Memory: 512 << 20})
	defer w.Close(t.Context())
	before, measured := w.Sample()
	t.Logf("%+v", before)
	if !before.Memory.Known || !before.Anon.Known || !before.User.Known || !before.Sys.Known || !before.Procs.Known {
		t.Fatalf("at the beginning: %+v", before)
	}
	if measured.Known {
		t.Logf("disk is measured already: %d", measured.N)
	}
	if before.Procs.N > 2 {
		t.Errorf("%d processes run in an idle workspace, as the guest should not count", before.Procs.N)
	}

	// 64 MiB of memory held, 32 MiB made sure of on the disk, and a second of CPU. What
	// is written goes right to the disk where that can be: what waits in memory the
	// kernel writes when it pleases, and with version 1 for nobody's account.
	sh(t, w, `cd /quarry && (perl -e '$x = "x" x (64 << 20); open F, ">big"; sleep 1 until -e "go"' >/dev/null 2>&1 </dev/null &) &&
		{ dd if=/dev/zero of=written bs=1M count=32 oflag=direct 2>/dev/null || dd if=/dev/zero of=written bs=1M count=32 conv=fsync 2>/dev/null; } &&
		perl -e '1 while (times)[0] < 1' && until [ -e big ]; do sleep 0.1; done`)
	now, _ := w.Sample()
	t.Logf("%+v", now)
	if got := now.Anon.N - before.Anon.N; got < 64<<20 || got > 200<<20 {
		t.Errorf("64 MiB were taken, and anonymous memory grew by %d bytes", got)
	}
	if now.Memory.N < now.Anon.N-1<<20 || now.PeakMemory.Known && now.PeakMemory.N < now.Memory.N-4<<20 {
		t.Errorf("memory %d, anonymous %d, peak %d", now.Memory.N, now.Anon.N, now.PeakMemory.N)
	}
	if got := time.Duration(now.User.N-before.User.N) * time.Microsecond; got < 900*time.Millisecond || got > 10*time.Second {
		t.Errorf("a second of CPU was taken, and user time grew by %v", got)
	}
	if now.Procs.N < 1 || now.PeakProcs.Known && now.PeakProcs.N < now.Procs.N {
		t.Errorf("processes %d, peak %d", now.Procs.N, now.PeakProcs.N)
	}
	var fs syscall.Statfs_t
	disk := syscall.Statfs(w.Dir, &fs) == nil && fs.Type != unix.TMPFS_MAGIC // what lies in memory is never written
	if disk && now.Written.Known && (now.Written.N-before.Written.N < 32<<20 || now.Writes.N <= before.Writes.N) {
		t.Errorf("32 MiB were written: %+v", now)
	}
	w.MeasureDisk()
	if _, measured = w.Sample(); !measured.Known {
		t.Error("disk was measured, and is not known")
	}
	sh(t, w, "touch /quarry/go")

	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	u, err := w.Usage()
	if err != nil || u.Anonymous < 64<<20 || u.PeakMemory < 64<<20 || u.User < 900*time.Millisecond || u.PeakProcs < 1 || disk && u.Written != 0 && u.Written < 32<<20 {
		t.Errorf("after the end: %+v, %v", u, err)
	}
}

// BenchmarkSample is what a look at a running build costs, beside reading one
// file of the kernel's. CPU time is told too, as a busy machine adds to the other.
func BenchmarkSample(b *testing.B) {
	f := newFarm(b)
	w := f.workspace(b, images.Limits{})
	defer w.Close(b.Context())
	cpu := func() float64 {
		var r syscall.Rusage
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
		return float64(r.Utime.Nano() + r.Stime.Nano())
	}
	for name, look := range map[string]func() bool{
		"sample":   func() bool { now, _ := w.Sample(); return now.Known() },
		"one file": func() bool { text, err := os.ReadFile("/proc/self/stat"); return err == nil && len(text) > 0 },
	} {
		b.Run(name, func(b *testing.B) {
			before := cpu()
			for b.Loop() {
				if !look() {
					b.Fatal("nothing is known")
				}
			}
			b.ReportMetric((cpu()-before)/float64(b.N), "cpu-ns/op")
		})
	}
}
