package testtools

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Real make, with a jobserver of its own, is what the instrument is tried on.
func TestTrace(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "job"), Job(t), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "Makefile"), []byte("all: a b c d e\na b c d e:\n\t@./job trace gate\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := Watch(t, dir, os.Getuid())
	cmd := exec.Command("make", "-j3")
	cmd.Dir, cmd.Env = dir, []string{"PATH=" + os.Getenv("PATH")}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.Wait(t, 3)
	r.End(t, 1)
	Until(t, func() string {
		if n := len(r.Events(t)); n < 5 { // three begins, an end, a begin
			return "the fourth job has not begun"
		}
		return ""
	})
	now := Clock()
	r.Open(t)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	all := r.Events(t)
	if n := Peak(0, all); len(all) != 10 || n != 3 || r.Running(t) != 0 {
		t.Errorf("%d events, %d jobs at one time, %d still run", len(all), n, r.Running(t))
	}
	if n := Peak(0, all, all); n != 6 {
		t.Errorf("two builds like it run %d jobs at one time, not 6", n)
	}
	if all[0].At > now || all[len(all)-1].At < now {
		t.Error("the clock is another one than that of the jobs")
	}
}

// A job's line that is being written is none yet.
func TestHalfALine(t *testing.T) {
	dir := t.TempDir()
	r := Watch(t, dir, os.Getuid())
	var text string
	for _, want := range []struct {
		more                   string
		events, running, ended int
	}{{"s 1", 0, 0, 0}, {"2 34", 0, 0, 0}, {"56\n", 1, 1, 0}, {"e 12 34", 1, 1, 0}, {"57\ns", 2, 0, 1}} {
		text += want.more
		if err := os.WriteFile(filepath.Join(dir, "trace"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if n := len(r.Events(t)); n != want.events || r.Running(t) != want.running || r.Ended(t) != want.ended {
			t.Errorf("of %q are seen %d events, %d jobs that run and %d that have ended", text, n, r.Running(t), r.Ended(t))
		}
	}
}
