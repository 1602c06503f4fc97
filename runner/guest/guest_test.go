package guest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary is the guest too: started with this variable it becomes
// process 1 of namespaces of its own, as in a workspace.
const guestEnv = "QUARRY_TEST_GUEST"

// graceEnv is how long what outlives a command of that guest may take to end,
// however slow the machine is.
const graceEnv = "QUARRY_TEST_GRACE"

func TestMain(m *testing.M) {
	if socket := os.Getenv(guestEnv); socket != "" {
		os.Exit(asGuest(socket))
	}
	os.Exit(m.Run())
}

// asGuest runs in new pid and mount namespaces.
func asGuest(socket string) int {
	runtime.LockOSThread() // capabilities belong to threads
	if d, err := time.ParseDuration(os.Getenv(graceEnv)); err == nil {
		grace = d
	}
	// /proc must be of the new pid namespace; nobody outside sees it.
	for _, err := range []error{
		unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("proc", "/proc", "proc", 0, ""),
	} {
		if err != nil {
			fmt.Fprintln(os.Stderr, "mount:", err)
			return 1
		}
	}
	// What a workspace's processes cannot do, those of the test cannot do either.
	for _, c := range []uintptr{unix.CAP_SYS_PTRACE, unix.CAP_SYS_ADMIN, unix.CAP_SYS_RESOURCE, unix.CAP_PERFMON, unix.CAP_BPF, unix.CAP_CHECKPOINT_RESTORE} {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			fmt.Fprintln(os.Stderr, "drop a capability:", err)
			return 1
		}
	}
	return Main(socket)
}

// host is the runner's end of a guest.
type host struct {
	t    testing.TB
	conn *net.UnixConn
	r    *Reader
	cmd  *exec.Cmd
	err  bytes.Buffer
	dir  string // a folder of its own
	id   uint32
}

func start(t testing.TB, env ...string) *host {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test makes namespaces: run it as root")
	}
	h := &host{t: t, dir: t.TempDir()}
	socket := filepath.Join(h.dir, "ctl.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h.cmd = exec.Command(exe)
	h.cmd.Env = append([]string{guestEnv + "=" + socket, "PATH=" + os.Getenv("PATH")}, env...)
	h.cmd.Stderr = &h.err
	h.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if h.conn != nil {
			h.conn.Close()
		}
		time.AfterFunc(time.Minute, func() { _ = h.cmd.Process.Kill() })
		_ = h.cmd.Wait()
		if t.Failed() {
			t.Logf("the guest: %v: %s", h.cmd.ProcessState, h.err.String())
		}
	})
	if err := l.(*net.UnixListener).SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatalf("the guest does not connect: %v: %s", err, h.err.String())
	}
	h.conn = conn.(*net.UnixConn)
	h.r = NewReader(bufio.NewReader(conn))
	kind, payload, err := h.next()
	if err != nil || kind != KindHello {
		t.Fatalf("kind %v, error %v, want a hello", kind, err)
	}
	if _, err := DecodeHello(payload); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *host) next() (Kind, []byte, error) {
	if err := h.conn.SetReadDeadline(time.Now().Add(5 * time.Minute)); err != nil {
		h.t.Fatal(err)
	}
	return h.r.Next()
}

func (h *host) ask(q Request) {
	h.t.Helper()
	h.id++
	q.ID = h.id
	b, err := json.Marshal(q)
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := h.conn.Write(AppendFrame(nil, KindRequest, b)); err != nil {
		h.t.Fatal(err)
	}
}

// reply reads until the reply and returns what was printed before it.
func (h *host) reply() (Reply, []byte) {
	h.t.Helper()
	var out bytes.Buffer
	for {
		kind, payload, err := h.next()
		if err != nil {
			h.t.Fatalf("read from the guest: %v (output so far %.200q)", err, out.String())
		}
		switch kind {
		case KindOutput:
			out.Write(payload)
		case KindReply:
			r, err := DecodeReply(payload)
			if err != nil {
				h.t.Fatal(err)
			}
			if r.ID != h.id {
				h.t.Fatalf("reply to request %d, want %d", r.ID, h.id)
			}
			return r, out.Bytes()
		default:
			h.t.Fatalf("kind %v", kind)
		}
	}
}

// run runs a step with bounds that fit a test.
func (h *host) run(r Run) (Reply, string) {
	h.t.Helper()
	h.send(r)
	reply, out := h.reply()
	return reply, string(out)
}

func (h *host) send(r Run) {
	h.t.Helper()
	if r.Dir == "" {
		r.Dir = h.dir
	}
	if r.Env == nil {
		r.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	}
	if r.Wall == 0 {
		r.Wall = 5 * time.Minute
	}
	if r.Log == 0 {
		r.Log = 64 << 20
	}
	h.ask(Request{Op: OpRun, Run: &r})
}

func sh(line string) []Command { return []Command{{Args: []string{"/bin/sh", "-c", line}}} }

func TestRefusesToBeAnythingButProcess1(t *testing.T) {
	if got := Main(filepath.Join(t.TempDir(), "x")); got != exitUsage {
		t.Errorf("exit status %d, want %d", got, exitUsage)
	}
}

func TestStep(t *testing.T) {
	h := start(t)
	if err := os.WriteFile(filepath.Join(h.dir, "plain"), []byte("echo plain $1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.dir, "bare"), []byte("echo bare $1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	// The guest has what the test has.
	text, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		t.Fatal(err)
	}
	own := strings.TrimSpace(string(text))
	n, err := strconv.Atoi(own)
	if err != nil {
		t.Fatal(err)
	}
	sooner := strconv.Itoa(min(n+500, 1000))
	for _, tt := range []struct {
		name   string
		run    Run
		status int
		signal int
		last   int
		out    string
		says   string
	}{
		{"output of both kinds", Run{Commands: sh("echo out; echo err >&2")}, 0, 0, 0, "out\nerr\n", ""},
		{"status", Run{Commands: sh("exit 7")}, 7, 0, 0, "", ""},
		{"signal", Run{Commands: sh("kill -9 $$")}, 137, 9, 0, "", ""},
		{"the first to fail ends it", Run{Commands: append(append(sh("echo 1"), sh("echo 2; exit 3")...), sh("echo 3")...)}, 3, 0, 1, "1\n2\n", ""},
		{"environment is what it was given", Run{Commands: []Command{{Args: []string{"/usr/bin/env"}}}, Env: []string{"A=b c", "N=l\nx"}}, 0, 0, 0, "A=b c\nN=l\nx\n", ""},
		{"found in PATH", Run{Commands: []Command{{Args: []string{"echo", "$HOME", "*"}}}}, 0, 0, 0, "$HOME *\n", ""},
		{"no such command", Run{Commands: []Command{{Args: []string{"no-such-command"}}}}, 127, 0, 0, "", "no-such-command: there is no such command in the base"},
		{"no such file", Run{Commands: []Command{{Args: []string{"./no-such"}}}}, 127, 0, 0, "", "./no-such: there is no such file"},
		{"a folder", Run{Commands: []Command{{Args: []string{"/etc"}}}}, 127, 0, 0, "", "/etc: there is no such file"},
		{"not executable", Run{Commands: []Command{{Args: []string{"./plain"}}}}, 126, 0, 0, "", "./plain cannot be run: permission denied"},
		{"not executable, for a shell", Run{Commands: []Command{{Args: []string{"./plain", "a b"}, Shell: true}}}, 0, 0, 0, "plain a b\n", ""},
		{"without #!", Run{Commands: []Command{{Args: []string{"./bare", "x"}}}}, 0, 0, 0, "bare x\n", ""},
		{"directory gone", Run{Commands: sh("true"), Dir: "/no/such"}, 126, 0, 0, "", "the working directory /no/such is gone"},
		{"stdin is empty", Run{Commands: sh("cat; readlink /proc/self/fd/0")}, 0, 0, 0, "/dev/null\n", ""},
		{"no other descriptors", Run{Commands: []Command{{Args: []string{"ls", "/proc/self/fd"}}}}, 0, 0, 0, "0\n1\n2\n3\n", ""}, // 3 is ls's own
		{"umask", Run{Commands: sh("umask")}, 0, 0, 0, "0022\n", ""},
		{"signals are as by default", Run{Commands: sh("cat /proc/self/status | grep -E '^Sig(Blk|Ign|Cgt)'")}, 0, 0, 0,
			"SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\nSigCgt:\t0000000000000000\n", ""},
		// The guest's own score comes back when the command runs already.
		{"killed before others", Run{Commands: sh("cat /proc/self/oom_score_adj; until grep -qx -e " + own + " /proc/1/oom_score_adj; do :; done")}, 0, 0, 0, sooner + "\n", ""},
		{"session of its own", Run{Commands: sh(`set -- $(cat /proc/$$/stat); [ $5 = $$ ] && [ $6 = $$ ] && [ $7 = 0 ] && echo yes`)}, 0, 0, 0, "yes\n", ""},
		{"no core files", Run{Commands: sh("ulimit -c")}, 0, 0, 0, "0\n", ""},
		{"compat", Run{Commands: sh("uname -m"), Compat: true}, 0, 0, 0, "i686\n", ""},
		{"and back", Run{Commands: sh("uname -m")}, 0, 0, 0, "x86_64\n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h.t = t
			r, out := h.run(tt.run)
			if r.Status != tt.status || r.Signal != tt.signal || r.Command != tt.last || r.Error != "" || r.Killed != "" {
				t.Errorf("reply %+v, want status %d, signal %d, last command %d", r, tt.status, tt.signal, tt.last)
			}
			if out != tt.out {
				t.Errorf("output %q, want %q", out, tt.out)
			}
			if (tt.says == "") != (r.Problem == "") || !strings.Contains(r.Problem, tt.says) {
				t.Errorf("problem %q, want %q", r.Problem, tt.says)
			}
			if r.NLeft != 0 {
				t.Errorf("%d processes left behind: %v", r.NLeft, r.Left)
			}
		})
	}
}

func TestTimes(t *testing.T) {
	h := start(t)
	// A grandchild whose parent does not wait for it counts too.
	first, _ := h.run(Run{Commands: sh(`(i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done) & wait`)})
	if first.Status != 0 || first.User < 20*time.Millisecond || first.Wall < first.User/4 || first.Wall > 10*time.Minute {
		t.Errorf("wall %v, user %v, sys %v", first.Wall, first.User, first.Sys)
	}
	r, _ := h.run(Run{Commands: sh("true")})
	if r.User >= first.User/2 {
		t.Errorf("the second step has %v of user time: the first one's is in it", r.User)
	}
	r, _ = h.run(Run{Commands: []Command{{Args: []string{"python3", "-c", "x = b'x' * (200 << 20)"}}}})
	if r.Status != 0 || r.RSS < 200<<20 || r.RSS > 400<<20 {
		t.Errorf("status %d, largest process %d bytes, want 200 MiB and a bit", r.Status, r.RSS)
	}
	// A small process is told from the guest, whose program alone has more.
	r, _ = h.run(Run{Commands: sh("true")})
	if r.RSS < 100<<10 || r.RSS > 8<<20 {
		t.Errorf("the largest process of a shell has %d bytes", r.RSS)
	}
	t.Logf("a shell is said to have had %d bytes", r.RSS)
}

func TestLimits(t *testing.T) {
	h := start(t)
	for _, tt := range []struct {
		name   string
		run    Run
		killed string
		most   time.Duration
	}{
		{"endless loop", Run{Commands: sh("while :; do :; done"), Wall: 300 * time.Millisecond}, KilledTime, 3 * time.Minute},
		{"endless loop of children that ignore signals", Run{Commands: sh(`trap "" TERM INT HUP; while :; do sleep 0.01; done`), Wall: 300 * time.Millisecond}, KilledTime, 3 * time.Minute},
		{"over several commands", Run{Commands: append(sh("sleep 0.3"), sh("sleep 900")...), Wall: 500 * time.Millisecond}, KilledTime, 3 * time.Minute},
		{"stopped by itself", Run{Commands: sh("kill -STOP $$"), Silence: 300 * time.Millisecond}, KilledSilence, 3 * time.Minute},
		{"silence", Run{Commands: sh("echo a; sleep 900"), Silence: 300 * time.Millisecond}, KilledSilence, 3 * time.Minute},
		{"endless output", Run{Commands: sh("yes"), Log: 5 << 20}, KilledLog, 3 * time.Minute},
		{"endless line", Run{Commands: sh("cat /dev/zero"), Log: 5 << 20}, KilledLog, 3 * time.Minute},
		{"endless output of the orphaned", Run{Commands: sh("setsid yes & setsid yes & exit 0"), Log: 5 << 20}, "", 3 * time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h.t = t
			began := time.Now()
			r, out := h.run(tt.run)
			if d := time.Since(began); d > tt.most {
				t.Errorf("it took %v", d)
			}
			if tt.killed != "" && r.Killed != tt.killed {
				t.Errorf("reply %+v, want killed for %s", r, tt.killed)
			}
			if r.Error != "" || int64(len(out)) != r.Output {
				t.Errorf("error %q; %d bytes came, %d were counted", r.Error, len(out), r.Output)
			}
			if tt.run.Log != 0 && int64(len(out)) > tt.run.Log {
				t.Errorf("%d bytes came, the limit is %d", len(out), tt.run.Log)
			}
			// The next step begins in peace.
			r, out = h.run(Run{Commands: sh("echo next; set -- /proc/[0-9]*; echo $#")})
			if r.Status != 0 || out != "next\n2\n" { // the guest and sh
				t.Errorf("next step: %+v, output %q", r, out)
			}
		})
	}
}

func TestSilenceIsNotTheRunnersOwn(t *testing.T) {
	h := start(t)
	// Nobody reads for a while: the step prints more than all buffers hold.
	h.send(Run{Commands: sh("head -c 30000000 /dev/zero"), Silence: 4 * time.Second})
	time.Sleep(6 * time.Second)
	r, out := h.reply()
	if r.Killed != "" || r.Status != 0 || len(out) != 30_000_000 {
		t.Errorf("reply %+v with %d bytes, want all 30000000", r, len(out))
	}
}

func TestLeftBehind(t *testing.T) {
	h := start(t)
	began := time.Now()
	// Each of them has to be what it is going to be by the end of the command.
	r, out := h.run(Run{Commands: sh("sleep 1000 & (setsid sleep 1001 &) ; until [ $(grep -lx sleep /proc/[0-9]*/comm | wc -l) = 2 ]; do :; done; echo done")})
	if r.Status != 0 || out != "done\n" || r.NLeft != 2 || strings.Join(r.Left, " ") != "sleep sleep" {
		t.Errorf("reply %+v, output %q, want two sleeps left behind", r, out)
	}
	if d := time.Since(began); d > 3*time.Minute {
		t.Errorf("the step hung for %v on a process that holds its output", d)
	}
	r, out = h.run(Run{Commands: sh("set -- /proc/[0-9]*; echo $#")})
	if out != "2\n" { // the guest and sh
		t.Errorf("%s processes in the next step", out)
	}
}

// Those that end by themselves at once are no news, where that is a minute.
func TestEndsByItself(t *testing.T) {
	h := start(t, graceEnv+"=1m")
	r, out := h.run(Run{Commands: sh("(sleep 0.03; echo late) & exit 0")})
	if r.NLeft != 0 || out != "late\n" {
		t.Errorf("reply %+v, output %q, want nothing left behind", r, out)
	}
}

func TestOutputPassesThrough(t *testing.T) {
	h := start(t)
	// What a frame and a reply look like, and what terminals obey.
	want := string(AppendFrame(nil, KindReply, []byte(`{"id":1}`))) + "\x00\x1b[2J\xff\xfeO\x00\x00\x00\x01==> make: ended with status 0\r\n"
	file := filepath.Join(h.dir, "bytes")
	if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
	r, out := h.run(Run{Commands: sh("cat bytes; exit 9")})
	if out != want || r.Status != 9 {
		t.Errorf("status %d, output %q, want %q", r.Status, out, want)
	}
}

func TestCancel(t *testing.T) {
	h := start(t)
	h.send(Run{Commands: sh("echo up; sleep 1000")})
	if kind, _, err := h.next(); kind != KindOutput || err != nil {
		t.Fatal(kind, err)
	}
	if _, err := h.conn.Write(AppendFrame(nil, KindCancel, nil)); err != nil {
		t.Fatal(err)
	}
	if r, _ := h.reply(); r.Killed != KilledCancel {
		t.Errorf("reply %+v, want it cancelled", r)
	}
	// One that comes too late does no harm.
	if _, err := h.conn.Write(AppendFrame(nil, KindCancel, nil)); err != nil {
		t.Fatal(err)
	}
	if r, _ := h.run(Run{Commands: sh("echo alive")}); r.Status != 0 || r.Killed != "" {
		t.Errorf("reply %+v", r)
	}
}

func TestEndsWithItsConnection(t *testing.T) {
	h := start(t)
	h.send(Run{Commands: sh("echo up; sleep 1000")})
	if _, _, err := h.next(); err != nil {
		t.Fatal(err)
	}
	h.conn.Close()
	done := make(chan error, 1)
	go func() { done <- h.cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("the guest ended with %v, want status 0", err)
		}
	case <-time.After(2 * time.Minute):
		t.Error("the guest lives on after its connection has ended")
	}
}

// TestHostileToProcess1 is what a build may try against the guest itself.
func TestHostileToProcess1(t *testing.T) {
	h := start(t)
	// Signals that come while process 1 forks: each step of this kind ends with
	// many on their way.
	for range 30 {
		h.run(Run{Commands: append(sh(`for j in 1 2 3 4 5 6 7 8; do (while :; do for s in 32 33 34 64 11 9 19; do kill -$s 1 2>/dev/null; done; done) & done; exit 0`), sh("true")...)})
	}
	r, out := h.run(Run{Commands: sh(`
		for s in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 50 64; do
			kill -$s 1 2>/dev/null
		done
		i=0; while [ $i -lt 2000 ]; do kill -TERM 1; kill -SEGV 1; kill -CHLD 1; kill -URG 1; i=$((i+1)); done
		echo signalled
		cat /proc/1/environ /proc/1/maps /proc/1/mem && echo READ
		ls -l /proc/1/fd/ /proc/1/cwd/ /proc/1/root/ && echo LISTED
		echo 1000 >/proc/1/oom_score_adj
		python3 - <<'EOF'
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for req in (16, 0x4206):  # PTRACE_ATTACH, PTRACE_SEIZE
    if libc.ptrace(req, 1, 0, 0) == 0: print("TRACED")
fd = libc.syscall(434, 1, 0)  # pidfd_open
if fd >= 0:
    for n in range(64):
        if libc.syscall(438, fd, n, 0) >= 0: print("TOOK A DESCRIPTOR")  # pidfd_getfd
buf = ctypes.create_string_buffer(64)
EOF
		echo tried
		exit 5
	`), Silence: 2 * time.Minute})
	if r.Status != 5 || !strings.Contains(out, "signalled\n") || !strings.HasSuffix(out, "tried\n") {
		t.Fatalf("reply %+v, output %q", r, out)
	}
	for _, bad := range []string{"READ", "LISTED", "TRACED", "TOOK"} {
		if strings.Contains(out, bad) {
			t.Errorf("the build reached into process 1 (%s): %q", bad, out)
		}
	}
	if r, out := h.run(Run{Commands: sh("echo alive")}); r.Status != 0 || out != "alive\n" {
		t.Errorf("reply %+v, output %q", r, out)
	}
}

// forkBomb forks in every process it has, for ever, and prints meanwhile.
const forkBomb = `
import os
while True:
    try:
        os.fork()
    except OSError:
        os.write(1, b"x")
`

// TestForkStorm fills a limit on processes with the guest inside of it.
func TestForkStorm(t *testing.T) {
	group := pidsGroup(t, 64)
	h := start(t)
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(fmt.Sprint(h.cmd.Process.Pid)), 0o644); err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		// Every process forks until nothing is left to fork, and prints.
		r, out := h.run(Run{Commands: []Command{{Args: []string{"python3", "-c", forkBomb}}}, Wall: time.Second, Log: 1 << 30})
		if r.Killed != KilledTime || r.Error != "" {
			t.Fatalf("round %d: reply %+v after %d bytes", round, r, len(out))
		}
		r, out = h.run(Run{Commands: sh(`i=0; while [ $i -lt 40 ]; do sleep 100 & i=$((i+1)); done; echo ok`)})
		if r.Status != 0 || out != "ok\n" || r.NLeft != 40 {
			t.Fatalf("round %d: reply %+v, output %.200q", round, r, out)
		}
		// Orphans that end at once, by the thousand.
		r, _ = h.run(Run{Commands: sh(`i=0; while [ $i -lt 3000 ]; do (true &); i=$((i+1)); done`)})
		if r.Error != "" {
			t.Fatalf("round %d: reply %+v", round, r)
		}
	}
}

// pidsGroup makes a cgroup with a limit on processes, under v1 or v2.
func pidsGroup(t *testing.T, most int) string {
	t.Helper()
	var tried []error
	for _, root := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		dir, err := os.MkdirTemp(root, "quarry-guest-test-")
		if err != nil {
			tried = append(tried, err)
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, "pids.max"), []byte(fmt.Sprint(most)), 0o644); err != nil {
			tried = append(tried, err)
			os.Remove(dir)
			continue
		}
		t.Cleanup(func() {
			for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
				switch err := os.Remove(dir); {
				case err == nil:
					return
				case time.Now().After(end):
					t.Errorf("the cgroup stays: %v", err)
					return
				}
			}
		})
		return dir
	}
	t.Fatalf("no cgroup with a pids controller can be made: %v", errors.Join(tried...))
	return ""
}

func TestUnfitRequests(t *testing.T) {
	h := start(t)
	for _, q := range []Request{{Op: "nonsense"}, {Op: OpRun}, {Op: OpInstall}, {Op: OpPlace}} {
		h.ask(q)
		if r, _ := h.reply(); r.Error == "" {
			t.Errorf("%s without what it needs: reply %+v", q.Op, r)
		}
	}
	if r, _ := h.run(Run{Commands: []Command{{}}}); r.Error == "" {
		t.Errorf("a command without a name: reply %+v", r)
	}
	// A frame that is none ends the guest.
	if _, err := h.conn.Write([]byte("GET / HTTP/1.0\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := h.next(); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("error %v, want the end", err)
	}
}
