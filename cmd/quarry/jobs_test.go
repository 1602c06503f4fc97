package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Morphux/quarry/buildcontrol"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/internal/testtools"
)

// output is what a command writes while it runs.
type output struct {
	word, told string // once the word is there, a file of that name is, too

	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.b.Write(p)
	if o.word != "" && strings.Contains(o.b.String(), o.word) {
		return len(p), os.WriteFile(o.told, nil, 0o600)
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// jobsServer is quarry jobs serve, with somebody at its standard input.
type jobsServer struct {
	t       *testing.T
	control string
	in      *io.PipeWriter
	out     *bufio.Reader
	err     *output
	code    chan int
}

func newJobsServer(t *testing.T, args ...string) *jobsServer {
	t.Helper()
	in, typed := io.Pipe()
	said, out := io.Pipe()
	s := &jobsServer{t: t, in: typed, out: bufio.NewReader(said), err: &output{}, code: make(chan int, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		s.code <- run(ctx, append([]string{"jobs", "serve"}, args...), in, out, s.err)
		out.Close()
	}()
	t.Cleanup(func() {
		cancel()
		typed.Close()
		said.Close()
	})
	s.control = strings.TrimSuffix(s.line(), " to connect")
	return s
}

func (s *jobsServer) line() string {
	s.t.Helper()
	line, err := s.out.ReadString('\n')
	if err != nil {
		s.t.Fatalf("quarry jobs serve: %v, %s", err, s.err)
	}
	return strings.TrimSuffix(line, "\n")
}

func (s *jobsServer) say(line string) {
	s.t.Helper()
	if _, err := io.WriteString(s.in, line+"\n"); err != nil {
		s.t.Fatal(err)
	}
}

func (s *jobsServer) token() string {
	s.t.Helper()
	s.say("new")
	return s.line()
}

// ends waits for the server and gives its exit code.
func (s *jobsServer) ends() int {
	s.t.Helper()
	select {
	case code := <-s.code:
		return code
	case <-time.After(5 * time.Minute):
		s.t.Fatal("quarry jobs serve goes on")
		return 0
	}
}

func TestJobsServe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := l.Addr().String()
	s := newJobsServer(t, "--ceiling", "8", path, "127.0.0.1:0")
	token := s.token()
	s.say("1:100")
	c, err := buildcontrol.Dial(t.Context(), path, token)
	if err != nil {
		t.Fatal(err)
	}
	if n := <-c.Jobs(); n != 8 {
		t.Errorf("told %d jobs, and the ceiling is 8", n)
	}
	// Somebody else steers it through the socket.
	far, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	fmt.Fprintf(far, "%s\r\n1:3\r\nquit\r\n", s.control)
	if n := <-c.Jobs(); n != 3 {
		t.Errorf("told %d jobs instead of 3", n)
	}
	for _, tt := range []struct{ words, says string }{
		{path, "is answered"}, {taken, "in use"}, {"--ceiling 0 x", "--ceiling takes"}, {"--clients 0 x", "--clients"}, {"", "jobs serve takes ADDR"}, {"127.0.0.1:no-such-service", "no-such-service"},
	} {
		var out, errOut bytes.Buffer
		if code := run(t.Context(), append([]string{"jobs", "serve"}, strings.Fields(tt.words)...), strings.NewReader(""), &out, &errOut); code == 0 || !strings.Contains(errOut.String(), tt.says) || out.Len() > 0 {
			t.Errorf("jobs serve %s: exit %d, %q, %q", tt.words, code, &out, &errOut)
		}
	}
	s.say("quit")
	if code := s.ends(); code != control.ExitOK {
		t.Errorf("exit %d: %s", code, s.err)
	}
	if _, ok := <-c.Jobs(); ok || c.Err() == nil {
		t.Error("the client does not hear of the end")
	}
	if _, err := os.Lstat(path); err == nil {
		t.Error("the socket is left over")
	}
	// The end of its standard input is not that of the server.
	s = newJobsServer(t, path)
	s.in.Close()
	far, err = net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	fmt.Fprintf(far, "%s\nnew\n", s.control)
	if line, err := bufio.NewReader(far).ReadString('\n'); err != nil || !strings.HasPrefix(line, "1-") {
		t.Errorf("%q, %v", line, err)
	}
}

// Stock tools run as many jobs as the server says: more at once, fewer as jobs
// end, and those that they have when it is gone.
func TestJobsRun(t *testing.T) {
	for _, v := range []string{"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "BUILDCONTROLADDR", "BUILDSOCKET", "BUILDTOKEN"} {
		t.Setenv(v, "")
		os.Unsetenv(v)
	}
	const many = 200
	var targets, makefile, ninja strings.Builder
	for i := range many {
		fmt.Fprintf(&targets, " j%d", i)
		fmt.Fprintf(&ninja, "build j%d: job\n", i)
	}
	fmt.Fprintf(&makefile, "all:%s\n%s:\n\t@./job trace gate\nagain:\n\t@$(MAKE) all\n", &targets, &targets)
	fmt.Fprintf(&ninja, "build all: phony%s\n", &targets)
	type tool struct {
		name string
		argv []string
		late bool // ninja looks for tokens only when a job has ended
	}
	tools := []tool{{"make", []string{"make", "all"}, false}, {"recursive", []string{"sh", "-c", "make again"}, false}}
	if path, ok := testtools.Make(t); ok {
		tools = append(tools, tool{"make-4.4", []string{path, "all"}, false})
	}
	if path, ok := testtools.Ninja(t); ok {
		tools = append(tools, tool{"ninja", []string{path, "all"}, true})
	}
	for _, tool := range tools {
		t.Run(tool.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range map[string]string{"job": string(testtools.Job(t)), "Makefile": makefile.String(),
				"build.ninja": "rule job\n  command = ./job trace gate\n" + ninja.String()} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			trace := testtools.Watch(t, dir, os.Getuid())
			t.Chdir(dir)
			addr := filepath.Join(dir, "s")
			server := newJobsServer(t, addr)
			t.Setenv("BUILDTOKEN", server.token())
			var out, errOut output
			code := make(chan int, 1)
			go func() {
				code <- run(t.Context(), append([]string{"jobs", "run", "--max", "5", "--addr", addr, "--"}, tool.argv...), strings.NewReader(""), &out, &errOut)
			}()
			ended := func(n int) int { return (len(trace.Events(t)) - n) / 2 }
			wait := func(n int) {
				t.Helper()
				for tries := 0; tool.late && trace.Running(t) != n; tries++ {
					if tries > many/3 {
						t.Fatalf("%d jobs run, not %d", trace.Running(t), n)
					}
					time.Sleep(time.Duration(tries) * 10 * time.Millisecond) // it has not heard of it yet
					had := ended(trace.Running(t))
					trace.End(t, 1)
					testtools.Until(t, func() string {
						if running := trace.Running(t); running == 0 || ended(running) == had {
							return "no job ends or none begins"
						}
						return ""
					})
				}
				trace.Wait(t, n)
			}
			wait(1) // nobody has said more
			server.say("1:4")
			wait(4)
			server.say("1:2")
			// What jobs give back at their end is wanted by make and by the owner of the
			// jobserver. At last the latter has it, and no more than two run ever after.
			total := ended(trace.Running(t))
			for clean, since := 0, testtools.Clock(); clean < 3; clean++ {
				if total += 2; total > many-10 {
					t.Fatalf("%d jobs ran at one time after 2 were set", testtools.Peak(since, trace.Events(t)))
				}
				trace.End(t, 2)
				testtools.Until(t, func() string {
					if n := trace.Running(t); n < 2 || ended(n) < total {
						return fmt.Sprintf("%d jobs run and %d have ended", n, ended(n))
					}
					return ""
				})
				if testtools.Peak(since, trace.Events(t)) > 2 {
					clean, since = -1, testtools.Clock()
				}
			}
			wait(2)
			server.say("1:100") // and --max is 5
			wait(5)
			server.say("quit")
			server.ends()
			testtools.Until(t, func() string {
				if !strings.Contains(errOut.String(), "build control has ended") {
					return "it does not say that the server is gone, but " + errOut.String()
				}
				return ""
			})
			trace.End(t, 1)
			wait(5)
			trace.Open(t)
			if got := <-code; got != 0 {
				t.Fatalf("exit %d: %s\n%s", got, &out, &errOut)
			}
			all := trace.Events(t)
			if peak := testtools.Peak(0, all); len(all) != 2*many || peak != 5 {
				t.Errorf("%d events, %d jobs at one time", len(all), peak)
			}
			if strings.Contains(errOut.String(), "jobserver") {
				t.Errorf("it says %s", &errOut)
			}
		})
	}
}

// jobs run ends as its command does, and says what is wrong with a call.
func TestJobsRunEnds(t *testing.T) {
	dir := t.TempDir()
	addr := filepath.Join(dir, "s")
	server := newJobsServer(t, addr)
	t.Setenv("BUILDCONTROLADDR", addr)
	t.Setenv("BUILDTOKEN", server.token())
	t.Setenv("MAKEFLAGS", "")
	left := filepath.Join(dir, "tmp")
	if err := os.Mkdir(left, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", left)
	for _, tt := range []struct {
		args, sh string
		code     int
		out, err string
	}{
		{"", "exit 7", 7, "", ""},
		{"", "kill -TERM $$", 143, "", ""},
		{"", "cat; echo ${BUILDTOKEN-none} ${BUILDCONTROLADDR-none}", 0, "in\nnone none\n", ""},
		{"--max 9", "echo $MAKEFLAGS | tr ' ' '\n' | head -1", 0, "-j9\n", ""},
		{"--token 1-nobody -j 3", "for i in $(seq 2000); do [ -e " + dir + "/told ] && break; sleep 0.05; done; echo done", 0, "done\n", "does not know the token, or has ended"},
		{"--max 0", "", 2, "", "--max takes"},
		{"-j 0", "", 2, "", "--jobs"},
		{"--addr " + dir + "/nothing", "", 1, "", "nothing: connect: no such file or directory: is quarry jobs serve"},
		{"--token=", "", 0, "", ""},
	} {
		var out output
		errOut := output{word: tt.err, told: filepath.Join(dir, "told")}
		args := append([]string{"jobs", "run"}, strings.Fields(tt.args)...)
		code := run(t.Context(), append(args, "--", "sh", "-c", tt.sh), strings.NewReader("in\n"), &out, &errOut)
		if code != tt.code || out.String() != tt.out || !strings.Contains(errOut.String(), tt.err) || tt.err == "" && errOut.String() != "" {
			t.Errorf("%s %q: exit %d, %q, %q", tt.args, tt.sh, code, &out, &errOut)
		}
		// A token goes with its last client.
		t.Setenv("BUILDTOKEN", server.token())
	}
	var out, errOut output
	if code := run(t.Context(), []string{"jobs", "run", "--", "no-such-command"}, strings.NewReader(""), &out, &errOut); code != 127 {
		t.Errorf("exit %d: %s", code, &errOut)
	}
	// Told to end, it has the command end.
	ctx, cancel := context.WithCancel(t.Context())
	ready := filepath.Join(dir, "ready")
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, []string{"jobs", "run", "--", "sh", "-c", "trap 'echo ended; exit 9' TERM; : > " + ready + "; while :; do sleep 0.1; done"}, strings.NewReader(""), &out, &errOut)
	}()
	testtools.Until(t, func() string {
		if _, err := os.Stat(ready); err != nil {
			return "the command has not begun"
		}
		return ""
	})
	cancel()
	if got := <-code; got != 9 || out.String() != "ended\n" {
		t.Errorf("exit %d, %q, %q", got, &out, &errOut)
	}
	t.Setenv("MAKEFLAGS", "-j4")
	if code := run(t.Context(), []string{"jobs", "run", "--", "true"}, strings.NewReader(""), &out, &errOut); code == 0 || !strings.Contains(errOut.String(), "unset it") {
		t.Errorf("exit %d, %q", code, &errOut)
	}
	t.Setenv("BUILDTOKEN", "")
	if code := run(t.Context(), []string{"jobs", "run", "--", "true"}, strings.NewReader(""), &out, &errOut); code != control.ExitUsage {
		t.Errorf("exit %d, %q", code, &errOut)
	}
	if all, err := os.ReadDir(left); err != nil || len(all) > 0 {
		t.Errorf("it leaves %v, %v", all, err)
	}
}
