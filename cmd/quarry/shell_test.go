package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/internal/testpkg"
)

// flawed is a package that fails in make, half-way.
func flawed(t testing.TB, name string) string {
	t.Helper()
	return testpkg.Make(t, name, map[string]string{
		"package.json": fmt.Sprintf(`{"package": {"name": %q, "version": "1.0", "description": "A test"},
			"compilation": {"env": [{"CFLAGS": "-O3 -DSHELL='a b'"}], "make": "echo half > half.o; echo $$ >> tries; echo no more; (exit 3)", "install": ""}}`, name),
		"srcs/README": "read me\n",
	})
}

// failing is a server with a maintainer, and the number of a failed build.
func failing(t testing.TB, extra string) *server {
	t.Helper()
	s := newServer(t, t.TempDir())
	s.writeConfig(t, extra)
	s.must(t, s.bin, "-c", s.config, "key", "add", "mallory", filepath.Join(s.dir, "mallory.pub"), "--name", "Mallory", "--email", "mallory@example.org", "--role", "maintainer", "--package", "other")
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.stop(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("daemon's log:\n%s", s.logText())
		}
	})
	return s
}

// fail pushes a package that fails and gives what the pusher sees.
func (s *server) fail(t testing.TB, name string) string {
	t.Helper()
	_, told, err := s.run(flawed(t, name), "git", "push", "-o", "follow", s.url(name), "HEAD:refs/heads/"+name+"-1.0")
	if err != nil || !strings.Contains(told, "failed: make ended with status 3") {
		t.Fatalf("push: %v\n%s\n%s", err, told, s.logText())
	}
	return told
}

// sshArgs is ssh to this server, as words.
func (s *server) sshArgs(who string, words ...string) []string {
	return append([]string{"ssh", "-F", "/dev/null", "-p", fmt.Sprint(s.port), "-i", filepath.Join(s.dir, who), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
		"-o", "LogLevel=ERROR", "-o", "StrictHostKeyChecking=accept-new", "-o", "UserKnownHostsFile=" + filepath.Join(s.dir, "known_hosts")}, words...)
}

// ssh runs a verb over SSH without a terminal.
func (s *server) ssh(who string, words ...string) (out, errOut string, code int) {
	argv := s.sshArgs(who, append([]string{"127.0.0.1"}, words...)...)
	out, errOut, err := s.run("", argv[0], argv[1:]...)
	return out, errOut, exitCode(err)
}

// keptOnes asks for what is kept.
func (s *server) keptOnes(t testing.TB) (list []control.Kept) {
	t.Helper()
	if err := json.Unmarshal([]byte(s.quarry(t, "shell", "--json")), &list); err != nil {
		t.Fatal(err)
	}
	return list
}

// until waits for a condition.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s does not come about", what)
		}
	}
}

// workspaces counts those that a server has, in use or not.
func (s *server) workspaces(t testing.TB) int {
	t.Helper()
	dirs, err := os.ReadDir(s.state("work"))
	if err != nil {
		t.Fatal(err)
	}
	return len(dirs)
}

const here = "/quarry/src/srcs"

// TestShell walks through a shell's life as a maintainer does: a push fails, and
// what it says opens a shell.
func TestShell(t *testing.T) {
	s := failing(t, "[limits]\nmemory = \"256 MiB\"\nprocesses = 64\n[build]\nworkers = 1\n")
	told := s.fail(t, "flawed")
	hint := fmt.Sprintf("ssh -t -p %d 127.0.0.1 shell 1 opens a shell in its workspace, which is kept for ", s.port)
	if !strings.Contains(told, hint) {
		t.Errorf("the pusher is not told %q:\n%s", hint, told)
	}
	if out, _, _ := s.ssh("alice", "status", "1"); !strings.Contains(out, hint) {
		t.Errorf("the status does not say %q:\n%s", hint, out)
	}

	t.Run("terminal", func(t *testing.T) {
		sc := s.onScreen(t, 100, 30, s.sshArgs("alice", "-tt", "127.0.0.1", "shell", "1")...)
		greeting := sc.expect("build 1 " + here + "# ")
		for _, want := range []string{"build 1: flawed 1.0 for " + config.HostArch(), "in make: make ended with status 3", "again   runs what failed: echo half > half.o;", "10 m 00 s"} {
			if !strings.Contains(greeting, want) {
				t.Errorf("it is greeted without %q:\n%s", want, greeting)
			}
		}
		if strings.Contains(strings.ReplaceAll(greeting, "\r\n", ""), "\n") {
			t.Errorf("its lines do not begin at the left: %q", greeting)
		}
		ask := sc.ask
		for _, tt := range []struct{ line, want string }{
			{"pwd; cat half.o; wc -l <tries", here + "\nhalf\n1"},
			{"echo $CFLAGS $DESTDIR $HOME $TERM $SOURCE_DATE_EPOCH", "-O3 -DSHELL='a b' /quarry/dest /quarry/home xterm 1500000000"},
			{"tty; stty size", "/dev/pts/0\n30 100"},
			{"id -u; umask; cat /proc/self/oom_score_adj", "0\n0022\n500"},
			{"again; echo $?", "no more\n3"},
			{"cat half.o; wc -l <tries", "half\n2"},
			{"cut -d: -f1 /proc/net/dev | tail -n +3 | tr -d ' '", "lo"},
			{"echo $(ls /quarry); kill -9 1; echo alive", "dest home src\nalive"},
		} {
			if got := ask(tt.line); got != tt.want {
				t.Errorf("%s: %q, want %q", tt.line, got, tt.want)
			}
		}
		sc.resize(132, 50)
		until(t, "the new size", func() bool { return ask("stty size") == "50 132" })
		sc.enter("sh -c 'echo re\"\"ady; exec sleep 1000'\r")
		sc.expect("ready") // so what is to be interrupted has the terminal
		sc.enter("\x03")
		sc.expect("# ")
		if got := ask("echo $?"); got != "130" {
			t.Errorf("after ^C: %q", got)
		}
		if list := s.keptOnes(t); len(list) != 1 || list[0].Shells != 1 || !list[0].Until.IsZero() {
			t.Errorf("kept are %+v", list)
		}
		s.until(t, "an event tells of the shell", func() bool {
			return strings.Contains(s.quarry(t, "events", "--json"), `"kind":"shell","text":"alice opened a shell where flawed 1.0 `)
		})
		sc.enter("exit 42\r")
		if code := sc.status(); code != 42 {
			t.Errorf("status %d, want 42", code)
		}
	})

	t.Run("socket", func(t *testing.T) {
		sc := s.onScreen(t, 90, 20, s.bin, "-c", s.config, "shell", "1")
		sc.expect("build 1 " + here + "# ")
		if sc.cooked() {
			t.Error("the terminal is not handed through")
		}
		sc.resize(91, 21)
		until(t, "the new size", func() bool { return sc.ask("stty size") == "21 91" })
		sc.enter("\x04") // ends it as it ends every shell
		if code := sc.status(); code != 0 {
			t.Errorf("status %d", code)
		}
		if !sc.cooked() {
			t.Error("the terminal is left as the shell had it")
		}
		sc = s.onScreen(t, 90, 20, s.bin, "-c", s.config, "shell", "99")
		if code := sc.status(); code != control.ExitNotFound || !sc.cooked() {
			t.Errorf("status %d, %s", code, sc.text())
		}
	})

	t.Run("commands", func(t *testing.T) {
		for _, tt := range []struct {
			words       []string
			out, errOut string
			code        int
		}{
			{[]string{"cat half.o"}, "half\n", "", 0},
			{[]string{"--", "cat", "half.o"}, "half\n", "", 0},
			{[]string{"'ls *.o | wc -l; echo $CFLAGS; exit 5'"}, "", "sh: 1: ls *.o", 127},
			{[]string{"ls *.o | wc -l; echo $HOME >&2; exit 5"}, "1\n", "/quarry/home\n", 5},
			{[]string{"again"}, "no more\n", "", 3},
			{[]string{"kill -9 $$"}, "", "", 137},
			{[]string{"no-such-command"}, "", "not found", 127},
			{[]string{"tty"}, "not a tty\n", "", 1},
			{[]string{"-la"}, "", "-la: not found", 127},
		} {
			out, errOut, code := s.ssh("alice", append([]string{"shell", "1"}, tt.words...)...)
			if out != tt.out || !strings.Contains(errOut, tt.errOut) || tt.errOut == "" && errOut != "" || code != tt.code {
				t.Errorf("%q: %q, %q, status %d; want %+v", tt.words, out, errOut, code, tt)
			}
		}
		// Words stay words where there are some.
		if out := s.quarry(t, "shell", "1", "--", "printf", "<%s>", "a b", "$HOME", "-n"); out != "<a b><$HOME><-n>" {
			t.Errorf("words: %q", out)
		}
		// Input and output are carried unchanged, whatever is in them.
		data := make([]byte, 3<<20)
		for i := range data {
			data[i] = byte(i * i >> 5)
		}
		file := filepath.Join(s.dir, "data")
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
		ssh := strings.Join(s.sshArgs("alice", "127.0.0.1"), " ")
		s.must(t, "sh", "-c", ssh+" shell 1 'cat >data; wc -c <data' <data && "+ssh+" shell 1 -- cat data | cmp - data && "+
			s.bin+" -c "+s.config+" shell 1 'cat; echo' <data | head -c "+fmt.Sprint(len(data))+" | cmp - data")
		// Without a terminal, it reads commands.
		if out, errOut, err := s.run("", "sh", "-c", "echo 'pwd; exit 7' | "+ssh+" shell 1"); out != here+"\n" || exitCode(err) != 7 || !strings.Contains(errOut, "ssh -t gives it one") {
			t.Errorf("%q, %q, %v", out, errOut, err)
		}
	})

	t.Run("refused", func(t *testing.T) {
		for _, tt := range []struct {
			who   string
			words []string
			says  string
			code  int
		}{
			{"mallory", []string{"shell", "1", "id"}, "package flawed is not among those of mallory", control.ExitForbidden},
			{"alice", []string{"shell", "2"}, "build 2", control.ExitNotFound},
			{"alice", []string{"shell", "x"}, "x", control.ExitUsage},
			{"alice", []string{"shell", "--json", "1"}, "no JSON form", control.ExitUsage},
		} {
			if out, errOut, code := s.ssh(tt.who, tt.words...); out != "" || code != tt.code || !strings.HasPrefix(errOut, "quarry: ") || !strings.Contains(errOut, tt.says) {
				t.Errorf("%s %q: %q, %q, status %d", tt.who, tt.words, out, errOut, code)
			}
		}
	})

	t.Run("bounds", func(t *testing.T) {
		// As many as may be at one time; and a build meanwhile, on the one worker.
		var all []*screen
		for range 8 {
			sc := s.onScreen(t, 80, 25, s.sshArgs("alice", "-tt", "127.0.0.1", "shell", "1")...)
			sc.expect("# ")
			all = append(all, sc)
		}
		if _, errOut, code := s.ssh("alice", "shell", "1", "id"); code != control.ExitError || !strings.Contains(errOut, "there are 8 shells in this workspace already") {
			t.Errorf("a ninth: %s, status %d", errOut, code)
		}
		s.fail(t, "another")
		for _, sc := range all {
			sc.enter("exit\r")
			if code := sc.status(); code != 0 {
				t.Errorf("status %d", code)
			}
		}
		if list := s.keptOnes(t); len(list) != 2 || list[0].Build != 1 || list[1].Build != 2 {
			t.Errorf("kept are %+v", list)
		}
		out, _, _ := s.ssh("alice", "shell")
		if !strings.Contains(out, "flawed") || !strings.Contains(out, "another") {
			t.Errorf("the list is\n%s", out)
		}
	})

	t.Run("limits", func(t *testing.T) {
		out, errOut, code := s.ssh("alice", "shell", "1", `i=0; while [ $i -lt 200 ]; do sleep 1000 & i=$((i+1)); done`)
		if code == 0 || !strings.Contains(errOut, "Cannot fork") && !strings.Contains(errOut, "Resource temporarily unavailable") {
			t.Errorf("200 processes: %q, %q, status %d", out, errOut, code)
		}
		// What it left was ended with it.
		if out, errOut, code := s.ssh("alice", "shell", "1", "grep -l sleep /proc/[0-9]*/comm"); out != "" || code != 1 {
			t.Errorf("left are %q, %q", out, errOut)
		}
		if out, errOut, code := s.ssh("alice", "shell", "1", `perl -e '$x = "x" x (600 << 20); print length $x'`); code != 137 {
			t.Errorf("600 MiB: %q, %q, status %d", out, errOut, code)
		}
		if out, _, code := s.ssh("alice", "shell", "1", "cat half.o"); out != "half\n" || code != 0 {
			t.Errorf("afterwards: %q, status %d", out, code)
		}
	})
}

// TestShellEnds has kept workspaces go: by time, by number, with a daemon that
// is killed, and by what is done in them.
func TestShellEnds(t *testing.T) {
	const quick = "[limits]\nmemory = \"256 MiB\"\nprocesses = 64\ndisk = \"64 MiB\"\n[shell]\nmax = 2\n"
	s := failing(t, quick)
	for _, name := range []string{"a", "b", "c"} {
		s.fail(t, name)
	}
	// The oldest made way for the youngest, and an open one does not.
	if list := s.keptOnes(t); len(list) != 2 || list[0].Package != "b" || list[1].Package != "c" {
		t.Fatalf("kept are %+v", list)
	}
	if _, errOut, code := s.ssh("alice", "shell", "1"); code != control.ExitNotFound ||
		!strings.Contains(errOut, "workspace of build 1 is not kept: a newer one took its place (shell.max): rebuild 1 makes another") {
		t.Errorf("the oldest: %s, status %d", errOut, code)
	}
	sc := s.onScreen(t, 80, 25, s.sshArgs("alice", "-tt", "127.0.0.1", "shell", "2")...)
	sc.expect("# ")
	s.fail(t, "d")
	if list := s.keptOnes(t); len(list) != 2 || list[0].Package != "b" || list[0].Shells != 1 || list[1].Package != "d" {
		t.Errorf("kept are %+v", list)
	}

	t.Run("hostile", func(t *testing.T) {
		// A storm of forks goes with its caller, and takes nobody along.
		bomb := s.onScreen(t, 80, 25, s.sshArgs("alice", "-tt", "127.0.0.1", "shell", "4", `trap '' HUP INT TERM; echo bo""om; perl -e 'while (1) { fork }'`)...)
		bomb.expect("boom")
		bomb.cmd.Process.Kill()
		until(t, "the end of the storm", func() bool {
			for _, k := range s.keptOnes(t) {
				if k.Build == 4 {
					return k.Shells == 0
				}
			}
			return true
		})
		if out, errOut, code := s.ssh("alice", "shell", "4", "cat half.o"); out != "half\n" || code != 0 {
			t.Errorf("after the storm: %q, %q, status %d", out, errOut, code)
		}
		// What it would reach is as far away as it was from the build.
		for _, try := range []string{"readlink /proc/1/fd/*", "ls /proc/1/root/", "ls /proc/1/cwd/", "cat /proc/1/mem", "cat /proc/1/environ", "ls /quarry/ctl.sock",
			"mount -t tmpfs none /mnt", "unshare -U true", "echo >/.quarry/guest", "mknod /tmp/sda b 8 0", "hostname x", "dmesg"} {
			if out, errOut, code := s.ssh("alice", "shell", "4", try); code == 0 || out != "" {
				t.Errorf("a shell could %s: %q, %q", try, out, errOut)
			}
		}
		// Nor does it keep the next one out.
		_, _, _ = s.ssh("alice", "shell", "4", "kill -9 1; kill -STOP 1; kill -34 1; rm -rf /dev/ptmx /quarry/.shell; ln -s /etc /quarry/.shell; mkfifo /dev/ptmx")
		if got, err := s.screenOf(t, "shell", "4", "tty"); got != "/dev/pts/0" || err != 0 {
			t.Errorf("the next: %q, status %d", got, err)
		}
		if out, errOut, code := s.ssh("alice", "shell", "4", "echo there; rm -rf --no-preserve-root / 2>/dev/null"); out != "there\n" {
			t.Errorf("it was lost: %q, %q, status %d", out, errOut, code)
		}
		if _, errOut, code := s.ssh("alice", "shell", "4", "true"); code != control.ExitError || !strings.Contains(errOut, "there is no such command in the workspace") {
			t.Errorf("an empty workspace: %s, status %d", errOut, code)
		}
		// More disk than the build may have ends the workspace, and nothing else.
		_, errOut, code := s.ssh("alice", "shell", "2", `i=0; while :; do head -c 8000000 /dev/zero >f$i; i=$((i+1)); done`)
		if code != control.ExitError || !strings.Contains(errOut, "shell of build 2: the workspace has ended: the farm ended it") {
			t.Errorf("a full disk: %s, status %d", errOut, code)
		}
		sc.expect("the workspace has ended")
		if code := sc.status(); code != control.ExitError {
			t.Errorf("status %d", code)
		}
		until(t, "the end of workspace 2", func() bool { l := s.keptOnes(t); return len(l) == 1 && l[0].Build == 4 })
	})

	t.Run("killed daemon", func(t *testing.T) {
		s.fail(t, "e")
		sc := s.onScreen(t, 80, 25, s.bin, "-c", s.config, "shell", "5")
		sc.expect("# ")
		if err := s.stop(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if code := sc.status(); code != control.ExitUnreachable || !sc.cooked() {
			t.Errorf("status %d, %s", code, sc.text())
		}
		// From here on they are kept for a moment only.
		s.writeConfig(t, roomy+"max = -1\n"+quick+"keep = \"1ms\"\n")
		if err := s.start(); err != nil {
			t.Fatal(err)
		}
		if left := s.workspaces(t); left != 0 {
			t.Errorf("%d workspaces are left by the daemon that was killed", left)
		}
		if _, errOut, code := s.ssh("alice", "shell", "5"); code != control.ExitNotFound || !strings.Contains(errOut, "its time is over: rebuild 5 makes another") {
			t.Errorf("%s, status %d", errOut, code)
		}
	})

	t.Run("time", func(t *testing.T) {
		s.fail(t, "f")
		until(t, "the end of workspace 6", func() bool { return len(s.keptOnes(t)) == 0 && s.workspaces(t) == 0 })
		if _, errOut, code := s.ssh("alice", "shell", "6"); code != control.ExitNotFound || !strings.Contains(errOut, "nobody used it for") {
			t.Errorf("%s, status %d", errOut, code)
		}
	})
}
