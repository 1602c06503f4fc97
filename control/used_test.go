package control

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry/internal/cgroup"
	use "github.com/Morphux/quarry/usage"
)

func TestLogUsage(t *testing.T) {
	f, end := usingFarm(t)
	table := Verbs(f)
	look := func(want ...string) string {
		t.Helper()
		out, errOut, code := call(t, table, reader, Terminal{}, "log", "--usage", "1")
		if code != ExitOK || errOut != "" {
			t.Fatalf("%d, %q\n%s", code, errOut, out)
		}
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("no %q in\n%s", w, out)
			}
		}
		return out
	}
	look("build 1: zlib 1.3-p1 x86_64, runs for ", "2 samples, one every 1 h 00 m", "prepare", "1.0 GiB", "7.0 MiB", "9 at most")
	end()
	out := look("build 1: zlib 1.3-p1 x86_64, took ", "3 samples", "make", "READ/S", "JOBS", " 3/4\n", "jobs       3 in use at most, 4 granted at most\n")
	if strings.Contains(out, "disks") || strings.Contains(out, "▁") {
		t.Errorf("what is not known is shown, or a curve where no terminal is:\n%s", out)
	}
	out, _, code := call(t, table, reader, Terminal{TTY: true, Color: true, Width: 100, Height: 30}, "log", "--usage", "1")
	if code != ExitOK || !strings.Contains(out, "█") || !strings.Contains(out, "\x1b[") {
		t.Errorf("%d\n%s", code, out)
	}
	out, _, code = call(t, table, reader, Terminal{}, "log", "--usage", "--json", "1")
	var got usedJSON
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != ExitOK {
		t.Fatalf("%d, %v\n%s", code, err, out)
	}
	if a := got.Attempts; got.Build != 1 || len(a) != 1 || !a[0].Ended || len(a[0].Samples) != 3 || a[0].Samples[2].Step != "make" ||
		a[0].Total.PeakProcs != cgroup.Of(9) || a[0].Total.User.N < 59_000_000 || strings.Contains(out, `"read"`) {
		t.Errorf("%s", out)
	}
	for _, tt := range []struct {
		words string
		code  int
		says  string
	}{
		{"log --usage 99", ExitNotFound, "not known here"},
		{"log --usage -f 1", ExitUsage, "-f"},
		{"log --usage --raw 1", ExitUsage, "--raw"},
		{"log --json 1", ExitUsage, "--usage"},
		{"log --usage -n -3 1", ExitUsage, "-n"},
		{"log --usage zlib", ExitUsage, "no number"},
	} {
		out, errOut, code := call(t, table, reader, Terminal{}, strings.Fields(tt.words)...)
		if code != tt.code || !strings.Contains(errOut, tt.says) || out != "" {
			t.Errorf("%s: %d, %q, %q", tt.words, code, errOut, out)
		}
	}
	f.Usage = nil
	if _, errOut, code := call(t, Verbs(f), reader, Terminal{}, "log", "--usage", "1"); code != ExitNotFound || !strings.Contains(errOut, "has no samples") {
		t.Errorf("a build with no samples: %d, %q", code, errOut)
	}
}

// TestSpans: however long a series is, it is told in so many lines, which leave
// nothing out.
func TestSpans(t *testing.T) {
	began := time.Now()
	for _, n := range []int{0, 1, 2, 3, 29, 30, 31, 32, 100, 7201} {
		a := use.Attempt{Began: began}
		for i := range n {
			step := "make"
			if i < 10 {
				step = "prepare"
			}
			s := use.Sample{At: began.Add(time.Duration(i) * 3 * time.Second), Step: step}
			s.User, s.Sys, s.Memory = cgroup.Of(int64(i)*3_000_000), cgroup.Of(0), cgroup.Of(int64(i))
			a.Samples = append(a.Samples, s)
		}
		list := spans(&a, 30)
		switch want := max(min(n-1, 30), min(n, 1)); {
		case len(list) != want:
			t.Errorf("%d samples make %d lines, want %d", n, len(list), want)
			continue
		case n == 0:
			continue
		}
		if end := list[len(list)-1]; end.end != a.Samples[n-1].At.Sub(began) || end.memory != cgroup.Of(int64(n-1)) {
			t.Errorf("of %d samples the last line is %+v", n, end)
		}
		if list[0].steps[0] != "prepare" {
			t.Errorf("of %d samples the first line is %+v", n, list[0])
		}
		for i, s := range list {
			if n > 1 && s.rate.CPU != cgroup.Of(100) || i > 0 && s.end <= list[i-1].end {
				t.Errorf("of %d samples line %d is %+v", n, i, s)
			}
		}
	}
	// All at one moment, as of a build that failed at once.
	a := use.Attempt{Began: began, Samples: []use.Sample{{At: began}, {At: began}, {At: began}}}
	if list := spans(&a, 1); len(list) != 1 || list[0].rate.CPU.Known {
		t.Errorf("%+v", list)
	}
}

func TestSparkline(t *testing.T) {
	var list []span
	for _, n := range []cgroup.Count{{}, cgroup.Of(0), cgroup.Of(50), cgroup.Of(100)} {
		list = append(list, span{memory: n})
	}
	of := func(s *span) cgroup.Count { return s.memory }
	if got := sparkline(list, of); got != " ▁▅█" {
		t.Errorf("%q", got)
	}
	if got := sparkline(list[:2], of); got != " ▁" {
		t.Errorf("%q", got)
	}
}
