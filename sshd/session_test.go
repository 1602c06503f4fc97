package sshd

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/hooks"
	"github.com/Morphux/quarry/hooks/hooktest"
	"github.com/Morphux/quarry/internal/testpkg"
	"github.com/Morphux/quarry/internal/words"
	gossh "golang.org/x/crypto/ssh"
)

// within fails the test when c is not closed, or sent to, in time.
func within[T any](t *testing.T, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatalf("%s: nothing happened in %v", what, patience)
	}
	return v
}

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen in %v", what, patience)
		}
	}
}

// pkt is one line of git's wire protocol.
func pkt(s string) string { return fmt.Sprintf("%04x%s", len(s)+4, s) }

// readPkts reads lines up to a flush.
func readPkts(r *bufio.Reader) (lines []string, err error) {
	for {
		var head [4]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return lines, err
		}
		n, err := strconv.ParseUint(string(head[:]), 16, 16)
		if err != nil || n > 0 && n < 4 {
			return lines, fmt.Errorf("bad length %q", head)
		}
		if n == 0 {
			return lines, nil
		}
		buf := make([]byte, n-4)
		if _, err := io.ReadFull(r, buf); err != nil {
			return lines, err
		}
		lines = append(lines, string(buf))
	}
}

// TestRawBranches sends refs that stock git would not, byte by byte.
func TestRawBranches(t *testing.T) {
	f := newFarm(t, nil)
	alice := f.person("alice", quarry.RoleAdmin)
	dir := testpkg.Init(t, "hello")
	if out, err := f.git(alice, dir, "push", f.url("hello"), "HEAD:master"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	head := testpkg.Git(t, dir, "rev-parse", "HEAD")
	emptyPack := []byte("PACK\x00\x00\x00\x02\x00\x00\x00\x00\x02\x9d\x08\x82\x3b\xd8\xa8\xea\xb5\x10\xad\x6a\xc7\x5c\x82\x3c\xfd\x3e\xd3\x1e")
	c := f.dial(alice)
	try := func(ref string) string {
		t.Helper()
		se, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		defer se.Close()
		in, _ := se.StdinPipe()
		out, _ := se.StdoutPipe()
		if err := se.Start("git-receive-pack '/hello.git'"); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(out)
		if _, err := readPkts(r); err != nil {
			t.Fatal(err)
		}
		io.WriteString(in, pkt(strings.Repeat("0", 40)+" "+head+" "+ref+"\x00report-status")+"0000")
		in.Write(emptyPack)
		in.Close()
		report, err := readPkts(r)
		if err != nil && len(report) > 0 {
			t.Fatalf("%q: report %q: %v", ref, report, err)
		}
		return strings.Join(report, "")
	}
	// The way works, so refusals below are refusals.
	if report := try("refs/heads/side"); !strings.Contains(report, "ok refs/heads/side") {
		t.Fatalf("a plain branch: %q", report)
	}
	for _, ref := range []string{
		"refs/heads/--upload-pack=x-1.0", "refs/heads/-hello-1.0", "refs/heads/hello-1.0;reboot", "refs/heads/hello-$(id)", "refs/heads/hello-1.0\nrefs/heads/x",
		"refs/heads/../../config", "refs/heads/hello-1..0", "refs/heads/hello-1.0.lock", "HEAD", "refs/quarry/push/hello-1.0", "refs/replace/" + head, "refs/notes/x",
		"refs/heads/", "refs/", "config", "../config", "refs/heads/\x1b[2J", "refs/heads/\xff", "refs/heads/hello-1:0", "refs/heads/.hidden",
	} {
		if report := try(ref); strings.Contains(report, "ok refs") || strings.Contains(report, "ok HEAD") {
			t.Errorf("%q was taken: %q", ref, report)
		}
	}
	repo := filepath.Join(f.dir, "repos", "hello.git")
	if refs := testpkg.Git(t, repo, "for-each-ref", "--format=%(refname)"); refs != "refs/heads/master\nrefs/heads/side" {
		t.Errorf("refs are\n%s", refs)
	}
}

// TestFollow: the log comes down the push, and a client that vanishes leaves no
// process behind; what it pushed stays.
func TestFollow(t *testing.T) {
	f := newFarm(t, nil)
	alice := f.person("alice", quarry.RoleMaintainer)
	following, hold, ended := make(chan bool, 1), make(chan bool), make(chan bool, 1)
	f.daemon.OnPush(func(hooks.Push) ([]quarry.Build, error) { return []quarry.Build{build(7, "x86_64")}, nil })
	f.daemon.OnFollow(func(ctx context.Context, n int64, w io.Writer) error {
		io.WriteString(w, "first line\n")
		following <- true
		select {
		case <-hold:
			fmt.Fprintf(w, "build %d: succeeded in 41s\n", n)
		case <-ctx.Done():
		}
		ended <- true
		return nil
	})
	dir := testpkg.Init(t, "hello")
	done := make(chan string, 1)
	go func() {
		out, err := f.git(alice, dir, "push", "-o", "follow", f.url("hello"), "HEAD:hello-1.0")
		done <- fmt.Sprintf("%v\n%s", err, out)
	}()
	within(t, "following", following)
	hold <- true
	if out := within(t, "the push", done); !strings.Contains(out, "remote: first line") || !strings.Contains(out, "remote: build 7: succeeded in 41s") {
		t.Errorf("terminal shows\n%s", out)
	}
	<-ended

	testpkg.Git(t, dir, "commit", "-q", "--allow-empty", "-m", "again")
	cmd := f.gitCmd(alice, dir, "push", "-o", "follow", f.url("hello"), "HEAD:hello-1.0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	within(t, "following", following)
	// Somebody pulls the plug: git and ssh die.
	syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	cmd.Wait()
	within(t, "end of following", ended)
	repo := filepath.Join(f.dir, "repos", "hello.git")
	eventually(t, "end of git", func() bool { return len(hooktest.Working(t, repo)) == 0 })
	if got, want := testpkg.Git(t, repo, "rev-parse", "hello-1.0"), testpkg.Git(t, dir, "rev-parse", "HEAD"); got != want {
		t.Errorf("branch is at %s, pushed was %s", got, want)
	}
	if n := len(f.daemon.Pushes()); n != 2 {
		t.Errorf("daemon heard of %d pushes", n)
	}
}

// TestVanishedMidway: a client that goes in the middle of its pack moves
// nothing and leaves nothing.
func TestVanishedMidway(t *testing.T) {
	f := newFarm(t, nil)
	alice := f.person("alice", quarry.RoleMaintainer)
	c := f.dial(alice)
	se, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	in, _ := se.StdinPipe()
	out, _ := se.StdoutPipe()
	if err := se.Start("git-receive-pack '/hello.git'"); err != nil {
		t.Fatal(err)
	}
	if _, err := readPkts(bufio.NewReader(out)); err != nil {
		t.Fatal(err)
	}
	io.WriteString(in, pkt(strings.Repeat("0", 40)+" "+strings.Repeat("a", 40)+" refs/heads/hello-1.0\x00report-status")+"0000PACK\x00\x00\x00\x02\x00\x00\x00\x09")
	c.Close()
	repo := filepath.Join(f.dir, "repos", "hello.git")
	eventually(t, "end of git", func() bool { return len(hooktest.Working(t, repo)) == 0 && f.repoNames() == "" })
}

// TestHugePush: git stops at the limit, and says so.
func TestHugePush(t *testing.T) {
	f := newFarm(t, func(o *Options) { o.MaxPush = 100 << 10 })
	alice := f.person("alice", quarry.RoleMaintainer)
	noise := make([]byte, 1<<20)
	r, err := os.Open("/dev/urandom")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	io.ReadFull(r, noise)
	dir := testpkg.Make(t, "hello", map[string]string{"noise": string(noise)})
	if out, err := f.git(alice, dir, "push", f.url("hello"), "HEAD:master"); err == nil || !strings.Contains(out, "maximum allowed size") {
		t.Errorf("%v\n%s", err, out)
	}
	if names := f.repoNames(); names != "" {
		t.Errorf("repositories: %s", names)
	}
}

// TestVerbs: words arrive as they were typed, status and output go back.
func TestVerbs(t *testing.T) {
	f := newFarm(t, func(o *Options) {
		o.Verbs = func(_ context.Context, id quarry.Identity, argv []string, in io.Reader, out, errOut io.Writer, term Terminal) int {
			fmt.Fprintf(out, "%s|%s", id.User, strings.Join(argv, "|"))
			if argv[0] == "cat" {
				io.Copy(out, in)
			}
			if argv[0] == "panic" {
				panic("at the disco")
			}
			io.WriteString(errOut, "err")
			return len(argv)
		}
	})
	alice := f.person("alice", quarry.RoleReader)
	c := f.dial(alice)
	for line, want := range map[string]string{
		`status --json`:     `alice|status|--json`,
		`log  'a b' "c d"`:  `alice|log|a b|c d`,
		`x 'it'\''s' "\$\"`: "",
		`x a\ b ''`:         `alice|x|a b|`,
		"cat":               "alice|catinput",
	} {
		se, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		se.Stdout, se.Stdin = &out, strings.NewReader("input")
		err = se.Run(line)
		if want == "" {
			if err == nil || out.Len() > 0 {
				t.Errorf("%q: %q, %v", line, out.String(), err)
			}
			continue
		}
		exit, ok := err.(*gossh.ExitError)
		if out.String() != want || !ok || exit.ExitStatus() != strings.Count(strings.TrimSuffix(want, "input"), "|") {
			t.Errorf("%q: %q, %v", line, out.String(), err)
		}
	}
	// A verb that panics takes nobody else with it.
	se, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := se.Run("panic"); err == nil {
		t.Error("a panic succeeded")
	}
	out, err := f.ssh(f.sshArgs(alice))
	if err == nil || !strings.Contains(out, "Hello Some alice (alice), this is Quarry. You are reader here") || !strings.Contains(out, "alice|help") {
		t.Errorf("greeting: %v\n%s", err, out)
	}
}

// TestTerminal: with a terminal there are carriage returns, and Ctrl-C.
func TestTerminal(t *testing.T) {
	begun := make(chan Terminal, 1)
	f := newFarm(t, func(o *Options) {
		o.Verbs = func(ctx context.Context, _ quarry.Identity, _ []string, in io.Reader, out, _ io.Writer, term Terminal) int {
			fmt.Fprint(out, "one\ntwo\r\n")
			begun <- term
			<-ctx.Done()
			return 9
		}
	})
	c := f.dial(f.person("alice", quarry.RoleReader))
	se, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := se.RequestPty("xterm", 24, 132, nil); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	se.Stdout = &out
	in, _ := se.StdinPipe()
	if err := se.Start("wait"); err != nil {
		t.Fatal(err)
	}
	if term := within(t, "verb", begun); !term.TTY || term.Width != 132 {
		t.Errorf("terminal %+v", term)
	}
	for range 5 {
		if err := se.WindowChange(30, 100); err != nil {
			t.Fatal(err)
		}
	}
	io.WriteString(in, "typed ahead\r\x03")
	err = se.Wait()
	if exit, ok := err.(*gossh.ExitError); !ok || exit.ExitStatus() != 9 || out.String() != "one\r\ntwo\r\n" {
		t.Errorf("%v, %q", err, out.String())
	}

	// A client that goes ends its verb, and so does a signal it sends on.
	for _, end := range []func(*gossh.Session){func(s *gossh.Session) { s.Close() }, func(s *gossh.Session) { s.Signal(gossh.SIGINT) }} {
		se, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		if err := se.Start("wait"); err != nil {
			t.Fatal(err)
		}
		within(t, "verb", begun)
		end(se)
		eventually(t, "end of the verb", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.sessions == 0 })
	}
}

// TestKeyTakenAway: on a connection that is kept, a key holds only as long as
// it is in the folder.
func TestKeyTakenAway(t *testing.T) {
	f := newFarm(t, nil)
	c := f.dial(f.person("alice", quarry.RoleAdmin))
	run := func() error {
		se, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		defer se.Close()
		return se.Run("whoami")
	}
	if err := run(); err != nil {
		t.Fatal(err)
	}
	if err := f.keys.Remove("alice"); err != nil {
		t.Fatal(err)
	}
	if err := run(); err == nil {
		t.Error("a removed key can do things")
	}
}

func TestHostKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "key")
	a, err := HostKey(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	b, err := HostKey(path)
	if err != nil || !bytes.Equal(a.PublicKey().Marshal(), b.PublicKey().Marshal()) {
		t.Errorf("the second start has another key (%v)", err)
	}
	if pub, err := os.ReadFile(path + ".pub"); err != nil || !bytes.Equal(pub, gossh.MarshalAuthorizedKey(a.PublicKey())) {
		t.Errorf("public half %q, %v", pub, err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".key-*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	for what, change := range map[string]func() error{
		"can be read by others": func() error { return os.Chmod(path, 0o644) },
		"is broken":             func() error { return os.WriteFile(path, nil, 0o600) },
	} {
		if what == "is broken" {
			os.Chmod(path, 0o600)
		}
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if _, err := HostKey(path); what == "can be read by others" && (err == nil || !strings.Contains(err.Error(), what)) {
			t.Errorf("want %q, got %v", what, err)
		}
	}
	os.Chmod(path, 0o600)
	if _, err := HostKey(path); err == nil || !strings.Contains(err.Error(), "is broken") {
		t.Errorf("an empty key: %v", err)
	}
}

func FuzzGit(f *testing.F) {
	for _, s := range []string{"git-receive-pack '/zlib.git'", "git upload-pack zlib", "git-receive-pack '-x'"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		args, err := words.Split(line)
		if err != nil {
			return
		}
		g, ok, err := parseGit(args)
		if ok && err == nil && (quarry.CheckName(g.pkg) != nil || strings.ContainsAny(g.pkg, "/\\\x00 ") || strings.HasPrefix(g.pkg, "-")) {
			t.Fatalf("package %q was taken", g.pkg)
		}
	})
}
