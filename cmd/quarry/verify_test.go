package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/internal/testpkg"
	"github.com/Morphux/quarry/results"
)

// dated is a package that is never built the same twice, and says so in each way that
// packages do.
func dated(t testing.TB) string {
	return testpkg.Make(t, "dated", map[string]string{
		"package.json": `{"package": {"name": "dated", "version": "1.0", "description": "Never the same"}, "compilation": {"make": ""}}`,
		"srcs/dated.c": "#include <stdio.h>\nconst char *when = \"built at \" WHEN;\nint main(void) { return puts(when) < 0; }\n",
		"srcs/Makefile": "all:\n\tcc -O2 \"-DWHEN=\\\"$$(date '+%Y-%m-%d %H:%M:%S.%N')\\\"\" -o dated dated.c\n\tcc -c -o dated.o dated.c -DWHEN='\"then\"'\n" +
			"\thead -c 32 /dev/urandom >seed.bin\n\techo text >text; touch -d @$$(date +%s) text\n" +
			"install:\n\tinstall -D dated $(DESTDIR)/usr/bin/dated\n\tinstall -D -m 644 seed.bin $(DESTDIR)/usr/share/dated/seed.bin\n" +
			"\tdate +%s.%N >$(DESTDIR)/usr/share/dated/stamp\n\techo always >$(DESTDIR)/usr/share/dated/always\n",
	})
}

// TestVerify builds again what was recorded, with a real daemon.
func TestVerify(t *testing.T) {
	s := newServer(t, t.TempDir())
	s.writeConfig(t, "[build]\nworkers = 1\n")
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	defer func() { s.stop(syscall.SIGTERM) }()
	for _, dir := range []string{testpkg.Init(t, "libgreet"), testpkg.Init(t, "greeter"), dated(t)} {
		name := filepath.Base(dir)
		s.mustIn(t, dir, "git", "push", "-o", "follow", s.url(name), "HEAD:refs/heads/"+name+"-1.0")
	}
	arch := config.HostArch()
	left := func() string {
		t.Helper()
		// The record, the store, the builds: nothing of it may change.
		head := s.must(t, "git", "-C", s.state("results.git"), "for-each-ref", "refs/heads")
		files, err := filepath.Glob(s.state("artifacts", "*", "*"))
		if err != nil {
			t.Fatal(err)
		}
		var builds []quarry.Build
		if err := json.Unmarshal([]byte(s.quarry(t, "status", "-n", "100", "--json")), &struct{ Ended *[]quarry.Build }{&builds}); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(head, files, len(builds))
	}
	before := left()

	out := s.quarry(t, "verify", "greeter-1.0")
	if !strings.Contains(out, "greeter 1.0 "+arch+", build 2: the same, bit for bit") {
		t.Errorf("it says\n%s", out)
	}
	if out := s.quarry(t, "db", "show", "greeter", "1.0"); !strings.Contains(out, "reproduced by 1") {
		t.Errorf("the record is shown as\n%s", out)
	}
	if out := s.quarry(t, "status", "2"); !strings.Contains(out, "reproduced by 1") {
		t.Errorf("the build is shown as\n%s", out)
	}

	// What differs is named, and what it is.
	out, errOut, err := s.run(s.dir, s.bin, "-c", s.config, "verify", "dated-1.0")
	if exit := new(exec.ExitError); !asExit(err, exit) || exit.ExitCode() != control.ExitBuild {
		t.Fatalf("it ended with %v:\n%s%s", err, out, errOut)
	}
	for _, want := range []string{
		"dated 1.0 " + arch + ", build 3: not the same: 3 of 8 paths differ", "\n/usr/bin/dated  content\n", "ELF section .rodata", "it looks like a date or a time of the build", `- "built at `, `+ "built at `,
		"\n/usr/share/dated/seed.bin  content\n", "it looks like a hash or something made at random", "\n/usr/share/dated/stamp  content\n", "text, from line 1 on: it looks like the time of the build, in seconds since 1970",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
	if strings.Contains(out, "always") {
		t.Errorf("what is the same is told of:\n%s", out)
	}
	out, _, _ = s.run(s.dir, s.bin, "-c", s.config, "verify", "dated-1.0", "--json")
	var list []control.Verified
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 1 || list[0].Same || !list[0].Recorded || list[0].Report == nil || list[0].Report.Differ != 3 {
		t.Errorf("as JSON it is %v\n%s", err, out)
	}
	if out := s.quarry(t, "db", "votes", "dated-1.0"); !strings.Contains(out, "not the same") || !strings.Contains(out, "/usr/share/dated/seed.bin: content") {
		t.Errorf("the votes are\n%s", out)
	}
	if now := left(); now != before {
		t.Errorf("a verification left\n%s\nwhere there was\n%s", now, before)
	}

	// A dependency that is not kept is named.
	lib := s.artifact(t, "libgreet")
	if err := os.Rename(lib, lib+".away"); err != nil {
		t.Fatal(err)
	}
	_, errOut, err = s.run(s.dir, s.bin, "-c", s.config, "verify", "greeter-1.0")
	if err == nil || !strings.Contains(errOut, "it was built with libgreet 1.0: artifact "+strings.TrimSuffix(filepath.Base(lib), ".tar.zst")+" is not in the store") {
		t.Errorf("without a dependency it says %v\n%s", err, errOut)
	}
	if err := os.Rename(lib+".away", lib); err != nil {
		t.Fatal(err)
	}
	for _, wrong := range []struct {
		args []string
		code int
	}{{[]string{"nothing-1.0"}, control.ExitNotFound}, {[]string{"greeter-1.0", "--arch", "zarch"}, control.ExitNotFound}, {[]string{"greeter-1.0", "--channel", "No"}, control.ExitUsage}, {[]string{"greeter-1.0", "-f", "--json"}, control.ExitUsage}} {
		_, errOut, err := s.run(s.dir, s.bin, append([]string{"-c", s.config, "verify"}, wrong.args...)...)
		if exit := new(exec.ExitError); !asExit(err, exit) || exit.ExitCode() != wrong.code {
			t.Errorf("%v: %v\n%s", wrong.args, err, errOut)
		}
	}
	// Over SSH it is the same verb; who may only look may not.
	s.must(t, s.bin, "-c", s.config, "key", "add", "mallory", filepath.Join(s.dir, "mallory.pub"), "--role", "reader")
	s.as("mallory")
	if out, errOut, err := s.run(s.dir, "sh", "-c", "$SSH verify greeter-1.0"); err == nil || !strings.Contains(errOut, "only maintainers may do this") {
		t.Errorf("a reader got %v\n%s%s", err, out, errOut)
	}
	s.as("alice")
	if out := s.must(t, "sh", "-c", "$SSH verify greeter-1.0 --follow"); !strings.Contains(out, "==> quarry: ") || !strings.Contains(out, "the same, bit for bit") {
		t.Errorf("over SSH it says\n%s", out)
	}

	// In another instance it is said that it is another one.
	if err := s.stop(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.writeConfig(t, fmt.Sprintf("[build]\nworkers = 1\n[channel.testing]\narchs = [%q]\n[channel.testing.setup]\nupdate = [\"touch /etc/changed\"]\n", arch))
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	out = s.quarry(t, "verify", "greeter-1.0")
	if !strings.Contains(out, "the same, bit for bit") || !strings.Contains(out, "not as it was: instance sha256:") {
		t.Errorf("in another instance it says\n%s", out)
	}
}

// asExit is errors.As for what a program ended with.
func asExit(err error, exit *exec.ExitError) bool {
	e, ok := err.(*exec.ExitError)
	if ok {
		*exit = *e
	}
	return ok
}

// artifact is the file of a package's only record.
func (s *server) artifact(t testing.TB, pkg string) string {
	t.Helper()
	r, err := results.OpenReader(s.state("results.git"), "")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	rec, err := r.Latest(pkg, config.HostArch())
	if err != nil {
		t.Fatal(err)
	}
	return s.state("artifacts", rec.Artifact[:2], rec.Artifact+".tar.zst")
}

// lines collects what a program writes, for who waits for some of it.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *lines) until(t testing.TB, want string, times int) {
	t.Helper()
	for end := time.Now().Add(3 * time.Minute); strings.Count(l.String(), want) < times; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%q did not come %d times:\n%s", want, times, l)
		}
	}
}

// TestVerifyYields has a build go before a verification that is under way, and kills
// the daemon in the middle of one: nothing is left of it.
func TestVerifyYields(t *testing.T) {
	s := newServer(t, t.TempDir())
	s.writeConfig(t, "[build]\nworkers = 1\n")
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	defer func() { s.stop(syscall.SIGTERM) }()
	if err := s.push(held(t, "slow", "1.0"), "slow", "1.0"); err != nil {
		t.Fatal(err)
	}
	s.finish(t)
	verify := func() (*lines, chan error) {
		said, done := &lines{}, make(chan error, 1)
		cmd := exec.Command(s.bin, "-c", s.config, "verify", "--follow", "slow-1.0")
		cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = s.env, s.dir, said, said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		go func() { done <- cmd.Wait() }()
		return said, done
	}
	// through lets it go until it has ended.
	through := func(done chan error) error {
		for {
			s.letGo()
			select {
			case err := <-done:
				return err
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	// The only worker is taken, and a push has it at once.
	said, done := verify()
	said.until(t, "tick", 1)
	s.mustIn(t, testpkg.Init(t, "hello"), "git", "push", "-o", "follow", s.url("hello"), "HEAD:refs/heads/hello-1.0")
	if err := through(done); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	text := said.String()
	if !strings.Contains(text, "the same, bit for bit") || !strings.Contains(text, "put back: a build needs the worker") || strings.Count(text, "waits until a worker has nothing to build") < 2 {
		t.Errorf("it says\n%s", text)
	}

	for _, ref := range strings.Fields(s.must(t, "git", "-C", s.state("results.git"), "for-each-ref", "--format=%(refname)", "refs/quarry/votes")) {
		s.must(t, "git", "-C", s.state("results.git"), "update-ref", "-d", ref)
	}
	before := s.must(t, "git", "-C", s.state("results.git"), "for-each-ref")
	said, done = verify()
	said.until(t, "tick", 1)
	if err := s.stop(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Errorf("its daemon was killed, and it ends well:\n%s", said)
	}
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	if now := s.must(t, "git", "-C", s.state("results.git"), "for-each-ref"); now != before {
		t.Errorf("there is\n%s\nand was\n%s", now, before)
	}
	if entries, err := os.ReadDir(s.state("verify")); len(entries) > 0 || err != nil && !os.IsNotExist(err) {
		t.Errorf("the folder of verifications has %v, %v", entries, err)
	}
	said, done = verify()
	if err := through(done); err != nil || !strings.Contains(said.String(), "the same, bit for bit") {
		t.Errorf("again: %v\n%s", err, said)
	}
}

// TestVotes has a second farm, made of the first one's backup, build a record again,
// and hand its vote in.
func TestVotes(t *testing.T) {
	s := newServer(t, t.TempDir())
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	defer func() { s.stop(syscall.SIGTERM) }()
	s.mustIn(t, testpkg.Init(t, "hello"), "git", "push", "-o", "follow", s.url("hello"), "HEAD:refs/heads/hello-1.0")
	s.mustIn(t, dated(t), "git", "push", "-o", "follow", s.url("dated"), "HEAD:refs/heads/dated-1.0")
	s.quarry(t, "verify", "hello-1.0")

	other := newServer(t, t.TempDir())
	backup := filepath.Join(s.dir, "backup")
	shell(t, printed(t, "backup.md", "Backup"), s.state(), backup)
	shell(t, `cp -a "$BACKUP"/repos "$BACKUP"/results.git "$BACKUP"/artifacts "$STATE"/`, other.state(), backup)
	if err := other.start(); err != nil {
		t.Fatal(err)
	}
	other.quarry(t, "verify", "hello-1.0")
	if _, _, err := other.run(other.dir, other.bin, "-c", other.config, "verify", "dated-1.0"); err == nil {
		t.Error("what is never the same is the same")
	}
	vote := filepath.Join(s.dir, "vote")
	raw := func(release string) string {
		t.Helper()
		text := other.quarry(t, "db", "votes", release, "--raw")
		if err := os.WriteFile(vote, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return text
	}
	if err := other.stop(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	// ssh-keygen can check it, too.
	text, sig, ok := strings.Cut(raw("hello-1.0"), "-----BEGIN")
	if !ok {
		t.Fatalf("the vote is\n%s", text)
	}
	os.WriteFile(vote+".text", []byte(text), 0o644)
	os.WriteFile(vote+".sig", []byte("-----BEGIN"+sig), 0o644)
	other.must(t, "sh", "-c", fmt.Sprintf("ssh-keygen -Y verify -f %s -I quarry@localhost -n quarry-vote -s %s.sig <%s.text", other.state("allowed_signers"), vote, vote))

	// Nobody knows the key here yet; then it is a builder's.
	hand := func() (string, error) {
		_, errOut, err := s.run(s.dir, "sh", "-c", "$SSH vote - <"+vote)
		return errOut, err
	}
	if said, err := hand(); err == nil || !strings.Contains(said, "which is no key of alice here") {
		t.Errorf("a strange key: %v\n%s", err, said)
	}
	key := other.state("signing_key")
	pub := filepath.Join(s.dir, "builder2.pub")
	if err := os.WriteFile(pub, []byte(s.must(t, "ssh-keygen", "-y", "-f", key)), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(key, filepath.Join(s.dir, "builder2")); err != nil {
		t.Fatal(err)
	}
	s.quarry(t, "key", "add", "builder2", pub, "--role", "builder")
	if said, err := hand(); err == nil || !strings.Contains(said, "which is no key of alice here") {
		t.Errorf("another's vote: %v\n%s", err, said)
	}
	s.as("builder2")
	if out := s.must(t, "sh", "-c", "$SSH vote - <"+vote); !strings.Contains(out, "build 1: the same by") {
		t.Errorf("it says\n%s", out)
	}
	s.must(t, "sh", "-c", "$SSH vote - <"+vote) // the same once more counts once
	out := s.quarry(t, "db", "votes", "hello-1.0")
	if strings.Count(out, " same ") != 2 || !strings.Contains(out, "builder2") || !strings.Contains(out, "quarry@localhost") {
		t.Errorf("the votes are\n%s", out)
	}
	if out := s.quarry(t, "db", "show", "hello", "1.0"); !strings.Contains(out, "reproduced by 2") {
		t.Errorf("the record is\n%s", out)
	}
	raw("dated-1.0")
	s.must(t, "sh", "-c", "$SSH vote - <"+vote)
	if out := s.quarry(t, "db", "show", "dated", "1.0"); !strings.Contains(out, "not reproduced by 1") {
		t.Errorf("the record is\n%s", out)
	}
	// A vote that was changed is none, nor is one on what nobody has recorded.
	good := raw("hello-1.0")
	for said, bad := range map[string]string{"signature does not fit": strings.Replace(good, "build = 1\n", "build = 2\n", 1), "vote is not signed": text, "vote cannot be read": "x"} {
		os.WriteFile(vote, []byte(bad), 0o644)
		if errOut, err := hand(); err == nil || !strings.Contains(errOut, said) {
			t.Errorf("want %q, got %v\n%s", said, err, errOut)
		}
	}
	// A clone that has fetched the votes knows them, with the signers.
	clone := filepath.Join(s.dir, "clone.git")
	s.must(t, "git", "clone", "-q", "--bare", s.url("results"), clone)
	s.must(t, "git", "-C", clone, "fetch", "-q", "origin", "refs/quarry/votes/*:refs/quarry/votes/*")
	os.WriteFile(filepath.Join(s.dir, "signers"), []byte(s.quarry(t, "signers")), 0o644)
	if out := s.must(t, s.bin, "db", "--repo", clone, "votes", "hello-1.0", "--signers", filepath.Join(s.dir, "signers")); strings.Count(out, " same ") != 2 {
		t.Errorf("in a clone the votes are\n%s", out)
	}
}
