package control

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/spf13/afero"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/cgroup"
	use "github.com/Morphux/quarry/usage"
)

// usingFarm is a farm that runs one build, which uses a processor and a half and
// is in make, until end is called.
func usingFarm(t *testing.T) (f *Farm, end func()) {
	t.Helper()
	store := use.Open(afero.NewMemMapFs())
	begun, release := make(chan bool), make(chan bool)
	f = testFarm(t, func(ctx context.Context, b quarry.Build, _ io.Writer) (*quarry.Outcome, error) {
		began := time.Now().Add(-time.Minute)
		r := store.Begin(use.Build{Number: b.Number, Attempt: b.Attempt, Memory: 1 << 30, CPUs: 2, Slots: func() (int, int) { return 4, 3 }}, quarry.StepPrepare, time.Hour,
			func() (cgroup.Stat, cgroup.Count) {
				used := time.Since(began).Microseconds()
				return cgroup.Stat{
					User: cgroup.Of(used), Sys: cgroup.Of(used / 2), Memory: cgroup.Of(1<<30 - 1<<20), Anon: cgroup.Of(300 << 20),
					Procs: cgroup.Of(5), PeakProcs: cgroup.Of(9),
				}, cgroup.Of(7 << 20)
			})
		defer r.End()
		r.Step(quarry.StepMake)
		close(begun)
		select {
		case <-release:
			return &quarry.Outcome{Build: b, Status: quarry.Succeeded}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	f.Usage = store
	<-begun
	return f, func() {
		t.Helper()
		ctx, stop := context.WithTimeout(t.Context(), patience)
		defer stop()
		close(release)
		if b, err := f.Queue.Wait(ctx, 1); err != nil || b.State != quarry.Succeeded {
			t.Fatalf("%+v, %v", b, err)
		}
	}
}

func TestTop(t *testing.T) {
	f, end := usingFarm(t)
	table := Verbs(f)
	out, errOut, code := call(t, table, reader, Terminal{}, "top")
	if code != ExitOK || errOut != "" || !strings.HasPrefix(out, "1 build running\n") || strings.Contains(out, "\x1b") {
		t.Fatalf("%d, %q\n%s", code, errOut, out)
	}
	for _, want := range []string{"zlib", "1.3-p1", "x86_64", "testing", "make", "1023.0 MiB", "1.0 GiB", "7.0 MiB", " CPU", ", load "} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if strings.Contains(out, "total") {
		t.Errorf("one build has a total:\n%s", out)
	}
	out, _, code = call(t, table, reader, Terminal{}, "top", "--json")
	var got topJSON
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != ExitOK {
		t.Fatalf("%d, %v\n%s", code, err, out)
	}
	if len(got.Builds) != 1 || got.Builds[0].Build != 1 || got.Builds[0].Step != "make" || got.Machine.CPUs < 1 || got.Builds[0].Usage == nil {
		t.Fatalf("%s", out)
	}
	if u := got.Builds[0].Usage; u.Now.Procs != cgroup.Of(5) || u.Now.Read.Known || u.Memory != 1<<30 || strings.Contains(out, `"read`) {
		t.Errorf("%s", out)
	}
	// How high the rate is depends on the machine here; usage/ has tests of that.
	if out, _, code = call(t, table, reader, Terminal{}, "top", "-n", "3", "--every", "600ms"); code != ExitOK || strings.Count(out, "1 build running") != 3 ||
		!regexp.MustCompile(`[0-9]%`).MatchString(out) {
		t.Errorf("%d\n%s", code, out)
	}
	for _, words := range []string{"top x", "top -n -1", "top --every 1ms", "top --every 0s"} {
		if _, errOut, code := call(t, table, reader, Terminal{}, strings.Fields(words)...); code != ExitUsage || !strings.Contains(errOut, "top") {
			t.Errorf("%s: %d, %q", words, code, errOut)
		}
	}
	end()
	out, _, code = call(t, table, reader, Terminal{}, "top")
	if code != ExitOK || !strings.HasPrefix(out, "nothing is being built") || strings.Contains(out, "zlib") {
		t.Errorf("%d\n%s", code, out)
	}
	if out, _, _ = call(t, table, reader, Terminal{}, "top", "--json"); !strings.Contains(out, `"builds": []`) {
		t.Errorf("%s", out)
	}
}

// TestTopOfNobody: a build of which nothing is known yet is shown all the same.
func TestTopOfNobody(t *testing.T) {
	f, end := usingFarm(t)
	defer end()
	f.Usage = nil
	out, _, code := call(t, Verbs(f), reader, Terminal{}, "top")
	if lines := strings.Split(out, "\n"); code != ExitOK || len(lines) < 5 || !strings.Contains(lines[4], "zlib") || strings.Contains(lines[4], "MiB") {
		t.Errorf("%d\n%s", code, out)
	}
}

// TestTopOnTerminal: it draws until q, ^C or the end of the connection, and
// leaves the terminal as it was.
func TestTopOnTerminal(t *testing.T) {
	f, end := usingFarm(t)
	defer end()
	table := Verbs(f)
	term := Terminal{TTY: true, Color: true, Width: 70, Height: 12}
	for name, in := range map[string]func() io.Reader{
		"q":               func() io.Reader { return strings.NewReader("xyq") },
		"^C as a byte":    func() io.Reader { return strings.NewReader("\x03") },
		"^D":              func() io.Reader { return strings.NewReader("") },
		"broken":          func() io.Reader { return iotest.ErrReader(io.ErrUnexpectedEOF) },
		"nobody can type": func() io.Reader { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, stop := context.WithTimeout(t.Context(), patience)
			defer stop()
			var out bytes.Buffer
			w := &once{w: &out, frame: func() {
				if in() == nil {
					stop() // ^C, which a door makes of the key
				}
			}}
			if code := table.Run(ctx, reader, []string{"top"}, in(), w, w, term); code != ExitOK {
				t.Errorf("exit %d", code)
			}
			text := out.String()
			if !strings.HasPrefix(text, strings.Repeat("\n", term.Height)+"\x1b[H\x1b[?7l") || !strings.HasSuffix(text, "\x1b[J\x1b[?7h\n") || strings.Contains(text, "quarry:") {
				t.Errorf("%q", text)
			}
			frame := text[strings.LastIndex(text, "\x1b[H"):]
			if n := strings.Count(frame, "\n"); n >= term.Height {
				t.Errorf("a frame of %d lines on %d", n, term.Height)
			}
			if strings.Contains(frame, "CHANNEL") || !strings.Contains(frame, "MEMORY") {
				t.Errorf("what fits into %d columns is not shown, or what does not is: %q", term.Width, frame)
			}
		})
	}
}

// once calls frame when the first frame is written.
type once struct {
	w     io.Writer
	frame func()
}

func (o *once) Write(p []byte) (int, error) {
	if bytes.HasPrefix(p, []byte("\x1b[H")) {
		defer o.frame()
	}
	return o.w.Write(p)
}

func TestScreen(t *testing.T) {
	if got, want := string(screen("a\nb\nc\nd\n", 4)), "\x1b[H\x1b[?7la\x1b[K\nb\x1b[K\nc\x1b[K\n\x1b[J\x1b[?7h"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestGauge(t *testing.T) {
	for share, want := range map[float64]string{-1: "········", 0: "········", 0.5: "████····", 1: "████████", 7: "████████", 1.0 / 64: "▏·······", 0.99: "███████▉"} {
		if got := gauge(share); got != want {
			t.Errorf("%v: %s, want %s", share, got, want)
		}
	}
}

// TestTopNarrow: what matters least is left out first.
func TestTopNarrow(t *testing.T) {
	for width, shown := range map[int]string{
		0:  "BUILD PACKAGE VERSION ARCH CHANNEL STEP SINCE CPU JOBS MEMORY OF READ/S WRITE/S PROCS DISK",
		90: "BUILD PACKAGE VERSION ARCH STEP SINCE CPU JOBS MEMORY READ/S WRITE/S PROCS",
		10: "BUILD PACKAGE STEP SINCE CPU MEMORY PROCS",
	} {
		table := topTable{width: width}
		table.build(running{Build: 1, Package: "zlib", Version: "1.0", Arch: "x86_64", Channel: "testing", Step: "make"}, time.Now())
		var b bytes.Buffer
		if err := table.writeTo(&b); err != nil {
			t.Fatal(err)
		}
		head, _, _ := strings.Cut(b.String(), "\n")
		if got := strings.Join(strings.Fields(head), " "); got != shown {
			t.Errorf("on %d columns: %s, want %s", width, got, shown)
		}
	}
}
