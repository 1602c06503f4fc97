package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/internal/testbase"
	"github.com/Morphux/quarry/internal/testpkg"
	"github.com/Morphux/quarry/internal/testport"
	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	code := m.Run()
	testbase.Clean()
	os.Exit(code)
}

// quarryBin is the real binary, built once for the test process.
func quarryBin(t testing.TB) string {
	t.Helper()
	return testbase.Guest(t, "github.com/Morphux/quarry/cmd/quarry")
}

// server is a real daemon with a state folder of its own, and a maintainer,
// alice, who can push to it with stock git over OpenSSH.
type server struct {
	bin    string
	dir    string // everything of this server's
	config string
	port   int    // of SSH
	web    int    // of HTTP
	text   int    // of the text protocol
	image  string // podman storage with the base
	env    []string

	cmd  *exec.Cmd
	log  *os.File
	over chan struct{} // closed when cmd has ended
	end  error         // how, then
}

// needTools fails a test where a program is missing, and says what to do.
func needTools(t testing.TB, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is missing: make deps installs what the tests need", tool)
		}
	}
}

func newServer(t testing.TB, dir string) *server {
	t.Helper()
	needTools(t, "git", "ssh", "ssh-keygen", "podman")
	s := &server{bin: quarryBin(t), dir: dir, config: filepath.Join(dir, "quarry.toml"), image: testbase.ImageStore(t)}
	ports := testport.Free(t, 3)
	s.port, s.web, s.text = ports[0], ports[1], ports[2]
	s.env = append(testpkg.Env(),
		"HOME="+dir, "TMPDIR="+os.TempDir(),
		"PATH="+filepath.Dir(s.bin)+":"+os.Getenv("PATH")+":/usr/sbin:/sbin",
		"QUARRY_CACHE="+os.Getenv("QUARRY_CACHE"))
	s.writeConfig(t, "")
	for _, who := range []string{"alice", "mallory"} {
		s.must(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", who, "-f", filepath.Join(dir, who))
	}
	s.must(t, s.bin, "-c", s.config, "key", "add", "alice", filepath.Join(dir, "alice.pub"), "--name", "Alice Liddell", "--email", "alice@example.org")
	s.as("alice")
	return s
}

// What else this machine does does not decide how many builds run, nor how many
// workspaces are ready or kept.
const (
	alone = "[jobs]\nothers = false\nmemory_stall = 0\n"
	roomy = "[pool]\nmin_memory = \"1\"\nmin_disk = \"1\"\n"
)

// writeConfig writes the configuration, with more tables at its end.
func (s *server) writeConfig(t testing.TB, extra string) {
	t.Helper()
	archs := fmt.Sprintf("[channel.testing]\narchs = [%q]\n", config.HostArch())
	if strings.Contains(extra, "[channel.testing]") {
		archs = ""
	}
	text := fmt.Sprintf("state = \"state\"\n%s[podman]\nimage_stores = [%q]\n%s%s%s", s.doors(), s.image, unless(extra), archs, extra)
	if err := os.WriteFile(s.config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// unless is alone and roomy, but for the tables that a configuration has itself.
func unless(extra string) (text string) {
	for _, table := range []string{alone, roomy} {
		if head, _, _ := strings.Cut(table, "\n"); !strings.Contains(extra, head) {
			text += table
		}
	}
	return text
}

// doors is the part of a configuration that says where the server listens.
func (s *server) doors() string {
	return fmt.Sprintf("[ssh]\nlisten = \"127.0.0.1:%d\"\n[web]\nlisten = \"127.0.0.1:%d\"\n[protocol]\nlisten = \"127.0.0.1:%d\"\n", s.port, s.web, s.text)
}

// as has ssh and git act for the holder of a key.
func (s *server) as(who string) {
	ssh := fmt.Sprintf("ssh -F /dev/null -p %d -i %s -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile=%s",
		s.port, filepath.Join(s.dir, who), filepath.Join(s.dir, "known_hosts"))
	s.setenv("GIT_SSH_COMMAND", ssh)
	s.setenv("SSH", ssh+" 127.0.0.1")
}

func (s *server) setenv(k, v string) { s.env = append(s.env, k+"="+v) }

func (s *server) url(pkg string) string { return fmt.Sprintf("ssh://127.0.0.1:%d/%s.git", s.port, pkg) }

func (s *server) state(elem ...string) string {
	return filepath.Join(append([]string{s.dir, "state"}, elem...)...)
}

// start starts the daemon and waits until it answers, or has ended.
func (s *server) start() error {
	var err error
	if s.log, err = os.OpenFile(filepath.Join(s.dir, "daemon.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err != nil {
		return err
	}
	cmd, over := exec.Command(s.bin, "-c", s.config, "-v", "serve"), make(chan struct{})
	cmd.Env, cmd.Dir = s.env, s.dir
	cmd.Stdout, cmd.Stderr = s.log, s.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.cmd, s.over = cmd, over
	go func() {
		s.end = cmd.Wait()
		close(over)
	}()
	deadline := time.Now().Add(5 * time.Minute)
	for time.Now().Before(deadline) {
		if out, _, err := s.run("", s.bin, "-c", s.config, "status"); err == nil && strings.HasPrefix(out, "quarry ") {
			if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.port)); err == nil {
				c.Close()
				return nil
			}
		}
		select {
		case <-over:
			return fmt.Errorf("the daemon ended before it answered: %v\n%s", s.end, s.logText())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return fmt.Errorf("the daemon does not answer:\n%s", s.logText())
}

func (s *server) logText() string {
	data, _ := os.ReadFile(filepath.Join(s.dir, "daemon.log"))
	if len(data) > 8000 {
		data = data[len(data)-8000:]
	}
	return string(data)
}

// stop ends the daemon with a signal and returns how it ended.
func (s *server) stop(sig syscall.Signal) error {
	if s.cmd == nil {
		return nil
	}
	s.cmd.Process.Signal(sig)
	var err error
	select {
	case <-s.over:
		err = s.end
	case <-time.After(3 * time.Minute):
		s.cmd.Process.Signal(syscall.SIGQUIT) // its goroutines go to the log
		time.Sleep(time.Second)
		s.cmd.Process.Kill()
		<-s.over
		err = fmt.Errorf("the daemon did not stop within three minutes:\n%s", s.logText())
	}
	s.cmd = nil
	s.log.Close()
	if sig == syscall.SIGKILL {
		return nil
	}
	return err
}

// run runs a program as alice's shell would.
func (s *server) run(dir, name string, args ...string) (stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env, cmd.Dir = s.env, dir
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	return out.String(), errOut.String(), err
}

func (s *server) must(t testing.TB, name string, args ...string) string {
	t.Helper()
	return s.mustIn(t, s.dir, name, args...)
}

func (s *server) mustIn(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	out, errOut, err := s.run(dir, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s\n--- daemon:\n%s", name, strings.Join(args, " "), err, out, errOut, s.logText())
	}
	return out
}

// quarry runs the command line against this server.
func (s *server) quarry(t testing.TB, args ...string) string {
	t.Helper()
	return s.must(t, s.bin, append([]string{"-c", s.config}, args...)...)
}

// TestStartFails: a daemon that ends is not waited for, and what it said is told.
func TestStartFails(t *testing.T) {
	s := newServer(t, t.TempDir())
	s.writeConfig(t, "[nonsense]\n")
	began := time.Now()
	if err := s.start(); err == nil || !strings.Contains(err.Error(), "nonsense") || time.Since(began) > 4*time.Minute {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
	if err := s.stop(syscall.SIGTERM); err == nil {
		t.Error("a daemon that failed has ended well")
	}
}

// TestScripts runs the scripts of testdata/script: a maintainer's and an
// admin's days, with the real binary, real git, real OpenSSH and real podman.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			tb := e.T().(testing.TB)
			s := newServer(tb, e.WorkDir)
			e.Vars = append(e.Vars, s.env...)
			e.Vars = append(e.Vars, "CONFIG="+s.config, "URL="+fmt.Sprintf("ssh://127.0.0.1:%d", s.port), "TEXT="+fmt.Sprint(s.text), "WEB="+fmt.Sprintf("http://127.0.0.1:%d", s.web),
				"STATE="+s.state(), "ARCH="+config.HostArch(), "ROOT="+testpkg.Root(tb), "BASE="+testbase.Tarball(tb))
			e.Values["server"] = s
			e.Defer(func() {
				if err := s.stop(syscall.SIGTERM); err != nil {
					tb.Errorf("the daemon ended badly: %v", err)
				}
				if tb.Failed() {
					tb.Logf("daemon's log:\n%s", s.logText())
				}
			})
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"serve":   cmdServe,
			"halt":    cmdHalt,
			"as":      cmdAs,
			"package": cmdPackage,
			"commit":  cmdCommit,
			"until":   cmdUntil,
			"record":  cmdRecord,
			"config":  cmdConfig,
		},
	})
}

func scriptServer(ts *testscript.TestScript) *server { return ts.Value("server").(*server) }

// serve starts the daemon.
func cmdServe(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: serve")
	}
	ts.Check(scriptServer(ts).start())
}

// halt [-kill] ends it. (A script's own stop ends the script, as one that went well.)
func cmdHalt(ts *testscript.TestScript, neg bool, args []string) {
	sig := syscall.SIGTERM
	if len(args) == 1 && args[0] == "-kill" {
		sig = syscall.SIGKILL
	}
	ts.Check(scriptServer(ts).stop(sig))
}

// as WHO has the following commands use WHO's key.
func cmdAs(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: as WHO")
	}
	s := scriptServer(ts)
	s.as(args[0])
	for _, kv := range s.env[len(s.env)-2:] {
		k, v, _ := strings.Cut(kv, "=")
		ts.Setenv(k, v)
	}
}

// config FILE appends a file to the configuration.
func cmdConfig(ts *testscript.TestScript, neg bool, args []string) {
	s := scriptServer(ts)
	data := ts.ReadFile(args[0])
	old := ts.ReadFile(s.config)
	if strings.Contains(data, "[channel.testing]") {
		old, _, _ = strings.Cut(old, "[channel.testing]")
	}
	old = strings.Replace(old, alone+roomy, unless(data), 1)
	ts.Check(os.WriteFile(s.config, []byte(old+data), 0o644))
}

// package NAME makes a folder NAME from testdata/packages and puts it under git.
func cmdPackage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: package NAME")
	}
	dir := ts.MkAbs(args[0])
	src := filepath.Join(ts.Getenv("ROOT"), "testdata", "packages", args[0])
	ts.Check(os.CopyFS(dir, os.DirFS(src)))
	for _, words := range [][]string{{"init", "-q", "-b", "master"}, {"add", "-A"}, {"commit", "-q", "-m", "Import " + args[0]}} {
		ts.Check(ts.Exec("git", append([]string{"-C", dir}, words...)...))
	}
}

// commit DIR commits everything in DIR.
func cmdCommit(ts *testscript.TestScript, neg bool, args []string) {
	for _, words := range [][]string{{"add", "-A"}, {"commit", "-q", "--allow-empty", "-m", "Change"}} {
		ts.Check(ts.Exec("git", append([]string{"-C", ts.MkAbs(args[0])}, words...)...))
	}
}

// until TEXT COMMAND... repeats a command until its output holds TEXT, for minutes.
func cmdUntil(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: until TEXT COMMAND...")
	}
	s := scriptServer(ts)
	var out, errOut string
	for deadline := time.Now().Add(5 * time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		name := args[1]
		if name == "quarry" { // on the scripts' PATH, not on this process's
			name = s.bin
		}
		out, errOut, _ = s.run(ts.MkAbs("."), name, args[2:]...)
		if strings.Contains(out+errOut, args[0]) {
			return
		}
	}
	ts.Fatalf("%q did not appear; the last output was\n%s%s", args[0], out, errOut)
}

// record PATH puts a file of the results' testing branch into the file PATH's
// last part, so that scripts can grep it.
func cmdRecord(ts *testscript.TestScript, neg bool, args []string) {
	s := scriptServer(ts)
	out, errOut, err := s.run("", "git", "-C", s.state("results.git"), "show", "testing:"+args[0])
	if neg {
		if err == nil {
			ts.Fatalf("%s is there", args[0])
		}
		return
	}
	if err != nil {
		ts.Fatalf("%s: %s", args[0], errOut)
	}
	ts.Check(os.WriteFile(ts.MkAbs(filepath.Base(args[0])), []byte(out), 0o644))
}
