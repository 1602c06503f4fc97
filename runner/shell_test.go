package runner_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/testbase"
	"github.com/Morphux/quarry/runner"
)

// said runs a command at a scene and gives what it printed, and its status.
func said(t *testing.T, sc *runner.Scene, q runner.Shell) string {
	t.Helper()
	var out, errOut bytes.Buffer
	q.Out, q.Err = &out, &errOut
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	status, err := sc.Shell(ctx, q)
	text := out.String()
	if errOut.Len() > 0 {
		text += "E " + errOut.String()
	}
	if err != nil {
		return fmt.Sprintf("%serror %v", text, err)
	}
	return fmt.Sprintf("%s%d", text, status)
}

func line(s string) runner.Shell { return runner.Shell{Args: []string{s}} }

// TestScene looks at builds that failed in each way that leaves something to
// look at.
func TestScene(t *testing.T) {
	f := newFarm(t)
	for _, tt := range []struct {
		name    string
		pkg     pkg
		limits  runner.Limits
		step    string
		cause   quarry.Cause
		command string
		again   string
	}{
		{"configure without its exec bit", pkg{compilation: map[string]any{"configure": []any{map[string]string{"say": "it's $HOME"}}},
			files: map[string]string{"srcs/configure": "echo \"$1\"; exit 4\n"}}, runner.Limits{}, "configure", quarry.CauseExit,
			`./configure '--say=it'\''s $HOME'`, "--say=it's $HOME\n4"},
		{"a line with quotes", inMake(`echo "it's" $TERM; readlink /proc/self/fd/0; exit 5`), runner.Limits{}, "make", quarry.CauseExit,
			`echo "it's" $TERM; readlink /proc/self/fd/0; exit 5 ;`, "it's dumb\n/dev/null\n5"},
		{"the second patch", pkg{compilation: map[string]any{"patches": []string{"1.patch", "2.patch"}}, files: map[string]string{
			"patches/1.patch": "--- a/README\n+++ b/README\n@@ -1 +1 @@\n-read me\n+read it\n",
			"patches/2.patch": "--- a/README\n+++ b/README\n@@ -1 +1 @@\n-read me\n+read no\n"}}, runner.Limits{}, "patches", quarry.CauseExit,
			"patch -p1 --force --no-backup-if-mismatch -i /quarry/src/patches/2.patch", "patching file README\nHunk #1 FAILED at 1.\n1 out of 1 hunk FAILED -- saving rejects to file README.rej\n1"},
		{"too long", inMake("[ -e there ] && exit 6; sleep 1000"), runner.Limits{Step: time.Second}, "make", quarry.CauseTime,
			"[ -e there ] && exit 6; sleep 1000 ;", "6"},
		{"an escape", pkg{compilation: map[string]any{"install": "touch /etc/escaped; ls /etc/escaped"}}, runner.Limits{}, "install", quarry.CauseEscape,
			"touch /etc/escaped; ls /etc/escaped", "/etc/escaped\n0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f.fails(t, attempt{pkg: tt.pkg, limits: tt.limits, jobs: 3, look: func(ws *images.Workspace) {
				if err := os.WriteFile(filepath.Join(ws.Dir, "src/srcs/there"), nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}, after: func(sc *runner.Scene) {
				if sc == nil || sc.Step != tt.step || sc.Command != tt.command || sc.Dir != runner.SourcePath+"/srcs" {
					t.Fatalf("scene %+v", sc)
				}
				if got := said(t, sc, line("again")); got != tt.again {
					t.Errorf("again: %q, want %q", got, tt.again)
				}
				// And from elsewhere, as a terminal's own.
				if got := said(t, sc, runner.Shell{TTY: true, Term: "xterm", Cols: 80, Rows: 25, Args: []string{"cd /; again; echo $TERM"}}); !strings.HasSuffix(got, "xterm\r\n0") ||
					!strings.Contains(got, strings.TrimRight(strings.ReplaceAll(tt.again, "\n", "\r\n"), "0123456789")) {
					t.Errorf("again on a terminal: %q", got)
				}
			}}, tt.step, tt.cause)
		})
	}
}

// TestSceneOfCross stands in a cross build, whose environment differs.
func TestSceneOfCross(t *testing.T) {
	f := farmOn(t, testbase.CrossPodman(t))
	f.fails(t, crossed(attempt{pkg: inMake("exit 3"), after: func(sc *runner.Scene) {
		got := said(t, sc, line("echo $CC $QUARRY_ARCH; echo 'int main(void) { return 0; }' >x.c && $CC -c x.c && readelf -h x.o | grep -c AArch64; gcc --version | grep -c gcc; again"))
		if want := runner.Triplet(testbase.Foreign) + "-gcc " + testbase.Foreign + "\n1\n1\n3"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}}, true), "make", quarry.CauseExit)
}

// TestShellStreams has shells end in other ways than by themselves, and what they
// read and write come and go as it does.
func TestShellStreams(t *testing.T) {
	f := newFarm(t)
	f.fails(t, attempt{pkg: inMake("exit 3"), spec: images.Spec{Limits: images.Limits{Memory: 256 << 20, Pids: 64}}, after: func(sc *runner.Scene) {
		for _, tt := range []struct {
			q    runner.Shell
			want string
		}{
			{line("echo out; echo err >&2; exit 9"), "out\nE err\n9"},
			{runner.Shell{In: strings.NewReader("echo $((6 * 7)); exit 1")}, "42\n1"},
			{runner.Shell{Args: []string{"cat", "-"}, In: strings.NewReader("unchanged\x00\xff\r\n")}, "unchanged\x00\xff\r\n0"},
			{runner.Shell{Args: []string{"printf", "%s|", "a b", "*"}}, "a b|*|0"},
			{runner.Shell{Args: []string{"nothing-such", "x"}}, "error nothing-such: there is no such command in the workspace"},
			{line("sleep 1000 & echo left"), "left\n0"}, // it keeps the output open
			{line("kill -TERM $$"), "143"},
			{runner.Shell{TTY: true, Args: []string{"cat"}, In: strings.NewReader("typed\n")}, "typed\r\ntyped\r\n0"}, // the end of input is Ctrl-D
			{runner.Shell{TTY: true, Term: "../../etc", Args: []string{"echo $TERM"}}, "dumb\r\n0"},
			{runner.Shell{TTY: true, Args: []string{"sleep 1000 & echo left"}}, "left\r\n0"},
			{runner.Shell{TTY: true, Args: []string{"seq 100000 | tail -n 1; seq 20000 | wc -l"}}, "100000\r\n20000\r\n0"},
			{runner.Shell{Args: []string{"head -c 20000000 /dev/zero | tr '\\0' x | wc -c"}}, "20000000\n0"},
			{runner.Shell{Args: []string{"sleep 1000"}, Limit: 100 * time.Millisecond}, "error the shell has taken 100 ms, and no more is granted"},
			{runner.Shell{TTY: true, Args: []string{"trap '' HUP; sleep 1000"}, Idle: 100 * time.Millisecond}, "error nothing was typed nor printed for 100 ms, so the shell was ended"},
			{runner.Shell{Args: []string{"sleep 1000"}, In: io.MultiReader(strings.NewReader("x"), broken{})}, "error the shell's input cannot be read: it broke"},
			{line("grep -l sleep /proc/[0-9]*/comm"), "1"}, // all of those were ended
			{line(`sleep 1 & first=$!; perl -e 'while (1) { fork }' & wait $first; exit 3`), "3"},
			{line("echo there"), "there\n0"},
		} {
			if got := said(t, sc, tt.q); got != tt.want {
				if len(got) > 1000 {
					got = got[:1000]
				}
				t.Errorf("%+v: %q, want %q", tt.q.Args, got, tt.want)
			}
		}
		// All output comes, however slow its reader is.
		r, w := io.Pipe()
		ended := make(chan error, 1)
		go func() {
			_, err := sc.Shell(t.Context(), runner.Shell{Args: []string{"seq 300000"}, Out: w, Err: io.Discard})
			ended <- err
		}()
		// Meanwhile others do not wait for it.
		if got := said(t, sc, line("echo here")); got != "here\n0" {
			t.Errorf("beside a slow one: %q", got)
		}
		go func() { ended <- errors.Join(<-ended, w.Close()) }()
		data, err := io.ReadAll(r)
		if lines := bytes.Count(data, []byte{'\n'}); err != nil || lines != 300000 {
			t.Errorf("%d lines, %v", lines, err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}}, "make", quarry.CauseExit)
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("it broke") }
