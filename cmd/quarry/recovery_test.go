package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/internal/testpkg"
)

// printed are the commands that a page of the documentation prints below a heading.
func printed(t testing.TB, page, heading string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(testpkg.Root(t), "doc", page))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "\n## "+heading+"\n")
	if !ok {
		t.Fatalf("doc/%s has no heading %q", page, heading)
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	var blocks []string
	for _, m := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(rest, -1) {
		blocks = append(blocks, m[1])
	}
	if len(blocks) == 0 {
		t.Fatalf("doc/%s prints no commands below %q", page, heading)
	}
	return strings.Join(blocks, "\n")
}

// shell runs commands of a page, where STATE and BACKUP are these.
func shell(t testing.TB, commands, state, backup string) {
	t.Helper()
	cmd := exec.Command("sh", "-eu", "-c", commands)
	cmd.Env = append(testpkg.Env(), "STATE="+state, "BACKUP="+backup, "PATH="+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s\n--- of\n%s", err, out, commands)
	}
}

// TestRecovery loses a state folder, and has the farm go on from the backup that
// doc/backup.md describes: nothing that has a record is built again.
func TestRecovery(t *testing.T) {
	s := newServer(t, t.TempDir())
	arch := config.HostArch()
	channels := fmt.Sprintf("[build]\nworkers = 2\n[channel.testing]\narchs = [%q]\n[channel.stable]\narchs = [%q]\n", arch, arch)
	s.writeConfig(t, channels)
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	defer func() { s.stop(syscall.SIGTERM) }()
	backup := filepath.Join(s.dir, "backup")
	save := func() { t.Helper(); shell(t, printed(t, "backup.md", "Backup"), s.state(), backup) }
	push := func(dir, name, version string, more ...string) {
		t.Helper()
		args := append(append([]string{"push", "-q"}, more...), s.url(name), "HEAD:refs/heads/"+name+"-"+version)
		s.mustIn(t, dir, "git", args...)
	}
	dirs := map[string]string{}
	for _, name := range []string{"libgreet", "greeter", "hello"} {
		dirs[name] = testpkg.Init(t, name)
		push(dirs[name], name, "1.0", "-o", "follow")
	}
	dirs["broken"] = testpkg.Init(t, "broken")
	push(dirs["broken"], "broken", "1.0")
	s.idle(t)
	save() // in the middle, so that the next one adds to it
	s.quarry(t, "promote", "greeter-1.0", "libgreet-1.0", "testing", "stable")
	for _, name := range []string{"libgreet", "hello"} { // together, and one of a group that stays held
		testpkg.SetVersion(t, dirs[name], "2.0")
		testpkg.Git(t, dirs[name], "commit", "-q", "-a", "-m", "Release 2.0")
	}
	push(dirs["libgreet"], "libgreet", "2.0", "-o", "group=pair")
	s.quarry(t, "group", "submit", "--follow", "pair")
	push(dirs["hello"], "hello", "2.0", "-o", "group=later")
	s.idle(t)
	s.quarry(t, "rebuild", "--mass", "--match", "hello", "--reason", "a new compiler")
	s.idle(t)
	s.quarry(t, "verify", "greeter-1.0")
	token := s.must(t, s.bin, "-c", s.config, "token", "add", "alice", "--name", "ci", "--json")

	// What is pushed and not built yet when all is lost.
	s.quarry(t, "pause", "the disk is about to go")
	push(testpkg.Init(t, "autohello"), "autohello", "1.0")
	save()
	type state struct {
		refs  string
		last  int64
		total int
		keys  string
	}
	look := func() (st state) {
		t.Helper()
		st.refs = s.must(t, "git", "-C", s.state("results.git"), "for-each-ref")
		st.total = strings.Count(s.must(t, "git", "-C", s.state("results.git"), "log", "--format=%(trailers:key=Build)", "testing"), "Build:")
		var q struct{ Queue struct{ Last int64 } }
		if err := json.Unmarshal([]byte(s.quarry(t, "status", "--json")), &q); err != nil {
			t.Fatal(err)
		}
		st.last = q.Queue.Last
		st.keys = s.quarry(t, "token", "list", "--json") + s.quarry(t, "keys", "list") + s.quarry(t, "signers")
		return st
	}
	before := look()
	if err := s.stop(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(s.state(), s.state()+".lost"); err != nil {
		t.Fatal(err)
	}
	shell(t, printed(t, "backup.md", "Recovery"), s.state(), backup)
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	// Only what has no record is built: autohello.
	s.until(t, "autohello built", func() bool {
		out, _, _ := s.run(s.dir, s.bin, "-c", s.config, "db", "show", "autohello", "1.0")
		return strings.Contains(out, "succeeded")
	})
	s.idle(t)
	var all struct{ Live, Ended []quarry.Build }
	if err := json.Unmarshal([]byte(s.quarry(t, "status", "-n", "1000", "--json")), &all); err != nil {
		t.Fatal(err)
	}
	for _, b := range append(all.Live, all.Ended...) {
		if b.Package != "autohello" {
			t.Errorf("%v is built again", b)
		} else if b.Number < before.last {
			t.Errorf("%v has a number that was another's: the last was %d", b, before.last)
		}
	}
	after := look()
	if after.total != before.total+1 {
		t.Errorf("%d records were made, there had been %d", after.total, before.total)
	}
	was, is := strings.Split(before.refs, "\n"), strings.Split(after.refs, "\n")
	for i := range was { // all but testing, which has autohello now
		if !strings.HasSuffix(was[i], "refs/heads/testing") && (i >= len(is) || was[i] != is[i]) {
			t.Errorf("%s is not there: there is\n%s", was[i], after.refs)
		}
	}
	if after.keys != before.keys {
		t.Errorf("people, tokens or signers are\n%s\nand were\n%s", after.keys, before.keys)
	}
	if out := s.quarry(t, "group", "list"); !strings.Contains(out, "later") || !strings.Contains(out, "held") {
		t.Errorf("the groups are\n%s", out)
	}
	if out := s.quarry(t, "db", "show", "broken", "1.0"); !strings.Contains(out, "failed") {
		t.Errorf("the failure is\n%s", out)
	}
	if out := s.quarry(t, "db", "show", "greeter", "1.0", "--channel", "stable"); !strings.Contains(out, "reproduced by 1") {
		t.Errorf("what was promoted is\n%s", out)
	}
	if list := s.quarry(t, "token", "list", "--json"); !strings.Contains(token, `"ci"`) || !strings.Contains(list, `"ci"`) {
		t.Errorf("the tokens are\n%s", list)
	}
	s.quarry(t, "db", "fsck", "--deep")

	// It works on: pushes, permissions, what is verified, clones.
	if out := s.must(t, "sh", "-c", "$SSH verify greeter-1.0"); !strings.Contains(out, "the same, bit for bit") {
		t.Errorf("verified it says\n%s", out)
	}
	if out := s.must(t, "git", "-C", s.state("repos", "hello.git"), "config", "receive.hideRefs"); !strings.Contains(out, "refs/quarry") {
		t.Errorf("who pushed may be pushed: %s", out)
	}
	testpkg.SetVersion(t, dirs["greeter"], "1.1")
	testpkg.Git(t, dirs["greeter"], "commit", "-q", "-a", "-m", "Release 1.1")
	push(dirs["greeter"], "greeter", "1.1", "-o", "follow")
	if out := s.quarry(t, "db", "show", "greeter", "1.1"); !strings.Contains(out, "succeeded") || !strings.Contains(out, "Alice Liddell") {
		t.Errorf("a push came to\n%s", out)
	}
}

// idle waits until nothing is under way that could go on.
func (s *server) idle(t testing.TB) {
	t.Helper()
	s.until(t, "nothing under way", func() bool {
		var st struct {
			Live  []quarry.Build
			Queue struct{ Planned time.Time }
		}
		out, _, err := s.run(s.dir, s.bin, "-c", s.config, "status", "--json")
		return err == nil && json.Unmarshal([]byte(out), &st) == nil && len(st.Live) == 0 && !st.Queue.Planned.IsZero()
	})
}
