package pages

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/internal/livelog"
	"github.com/Morphux/quarry/internal/testbrowser"
)

// someLog is a log such as builds write, with all that terminals know.
func someLog(w io.Writer, lines int) {
	fmt.Fprintf(w, "==> quarry: build 1, attempt 1: in a clean workspace\n==> make: make -j2\n")
	for i := range lines {
		fmt.Fprintf(w, "gcc -DHAVE_CONFIG_H -I. -I./include -O2 -g -pipe -Wall -fstack-protector-strong -c -o src/module_%03d.o src/module_%03d.c\n", i, i)
	}
	fmt.Fprintf(w, "\x1b[01m\x1b[Ksrc/main.c:17:9:\x1b[m\x1b[K \x1b[01;35m\x1b[Kwarning: \x1b[m\x1b[Kunused variable \x1b[01m\x1b[Kx\x1b[m\x1b[K\n")
	fmt.Fprintf(w, "%s\n", hostile)
	fmt.Fprintf(w, "\x1b[31mred \x1b[32mgreen \x1b[33myellow \x1b[34mblue \x1b[35mmagenta \x1b[36mcyan \x1b[37mwhite \x1b[30mblack \x1b[90mgrey\x1b[0m\n")
	fmt.Fprintf(w, "\x1b[41mon red\x1b[0m \x1b[42;31mred on green\x1b[0m \x1b[7minverse\x1b[0m \x1b[38;5;208m256\x1b[0m \x1b[38;2;10;200;30mtrue\x1b[0m \x1b[2J\x07\n")
	fmt.Fprintf(w, " 10%%\r 50%%\r100%%\n")
}

// farmAtWork has one build that runs until the context of the test ends, one that
// failed, one that waits and some that ended well.
func farmAtWork(t *testing.T) (w *world, running, failed quarry.Build) {
	w = newWorld(t, 1)
	w.does(func(_ context.Context, b quarry.Build, log *livelog.Log, step func(string)) (*quarry.Failure, error) {
		for _, s := range []string{quarry.StepConfigure, quarry.StepMake} {
			step(s)
			time.Sleep(30 * time.Millisecond)
		}
		someLog(log, 30)
		if b.Package != "broken" {
			step(quarry.StepInstall)
			return nil, nil
		}
		fmt.Fprintf(log, "src/main.c:3:10: fatal error: zlib.h: No such file or directory\n")
		return &quarry.Failure{Step: quarry.StepMake, Cause: quarry.CauseExit, Message: "make ended with status 2: " + hostile, Status: 2, Command: "make",
			Reproduce: "git clone -b broken-1.0 ssh://farm.example.org/broken.git && quarry build --arch x86_64 broken", Class: "missing-header", Error: "src/main.c:3:10: fatal error: zlib.h: No such file or directory", Line: 38,
			Hint: "add the package that has zlib.h to needed", Excerpt: []string{"src/main.c:3:10: fatal error: zlib.h: No such file or directory", hostile}}, nil
	})
	for i := range 6 {
		w.end(w.push(fmt.Sprintf("lib%c", 'a'+i), "1."+fmt.Sprint(i))[0].Number)
	}
	failed = w.end(w.push("broken", "1.0")[0].Number)
	w.mu.Lock()
	w.why[failed.Number] = &control.Report{Build: failed, Since: &control.Since{Build: 1, Version: "0.9", Ended: time.Now().Add(-50 * time.Hour),
		Recipe:       []control.FileDiff{{Path: "package.json", What: "changed", Diff: []string{"@@ -1,2 +1,2 @@", `-  "needed": ["zlib"]`, `+  "needed": []`, hostile}}},
		Dependencies: []string{"zlib 1.3 is gone", hostile}}}
	w.mu.Unlock()
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	began := make(chan struct{}, 1)
	w.does(func(ctx context.Context, _ quarry.Build, log *livelog.Log, step func(string)) (*quarry.Failure, error) {
		step(quarry.StepConfigure)
		someLog(log, 60)
		time.Sleep(700 * time.Millisecond) // for some samples
		step(quarry.StepMake)
		began <- struct{}{}
		select {
		case <-ctx.Done():
		case <-done:
		}
		return nil, ctx.Err()
	})
	running = w.push("gcc", "13.2.0")[0]
	select {
	case <-began:
	case <-time.After(patience):
		t.Fatal("the build does not begin")
	}
	w.push("git", "2.40", "gcc-13.2.0")
	w.push("perl", "5.38")
	w.push("linux-"+strings.Repeat("long", 15), "6.1."+strings.Repeat("9", 40))
	running, err := w.q.Get(running.Number)
	if err != nil {
		t.Fatal(err)
	}
	return w, running, failed
}

// TestLook: every page, in light and dark, wide and narrow, with and without
// scripts, draws no complaint of the browser, can be used by everybody, and has no
// text of a package's become markup.
func TestLook(t *testing.T) {
	w, running, failed := farmAtWork(t)
	b := testbrowser.Start(t)
	for name, path := range map[string]string{
		"now": "/", "queue": "/queue", "running": buildURL(running.Number), "failed": buildURL(failed.Number),
		"search": buildURL(failed.Number) + "?q=module_00", "builders": "/builders", "missing": "/builds/77",
	} {
		tab := b.Tab(t)
		check := func(kind string) {
			t.Helper()
			tab.Audit()
			if name != "missing" { // whose status the browser remarks upon
				tab.Check()
			}
			if title := testbrowser.Eval[string](tab, "document.title"); strings.Contains(title, "owned") || !strings.Contains(title, "farm1") {
				t.Errorf("%s: its title is %q", name, title)
			}
			tab.Shot(name + "-" + kind)
		}
		tab.Go(w.srv.URL + path)
		if name == "running" || name == "now" {
			tab.Wait("document.querySelector('#stream').textContent === 'live'")
		}
		check("light")
		tab.Scheme("dark")
		check("dark")
		tab.Size(320, 640)
		check("phone-dark")
		tab.Scheme("light")
		check("phone")
		tab.Size(1200, 900)
		tab.Script(false)
		tab.Go(w.srv.URL + path)
		check("noscript")
	}
}

var _ = testing.Short
