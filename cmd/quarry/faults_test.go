package main

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/internal/testbase"
	"github.com/Morphux/quarry/internal/testpkg"
)

// tiny is a package that builds in no time, after as many tenths of a second
// as slow says.
func tiny(t testing.TB, name, version string, slow int) (dir string) {
	t.Helper()
	return testpkg.Make(t, name, map[string]string{
		"package.json": fmt.Sprintf(`{"package": {"name": %q, "version": %q, "description": "A test"}, "compilation": {"make": ""}}`, name, version),
		"srcs/Makefile": fmt.Sprintf("all:\n\tfor i in $$(seq %d); do sleep 0.1; echo tick; done\n"+
			"install:\n\tmkdir -p $(DESTDIR)/usr/share\n\techo %s-%s > $(DESTDIR)/usr/share/%s\n", slow, name, version, name),
	})
}

func (s *server) push(dir, name, version string) error {
	_, errOut, err := s.run(dir, "git", "push", "-q", s.url(name), "HEAD:refs/heads/"+name+"-"+version)
	if err != nil {
		return fmt.Errorf("push of %s-%s: %w: %s", name, version, err, errOut)
	}
	return nil
}

// subjects lists the commits of the results, newest first.
func (s *server) subjects(t testing.TB) []string {
	t.Helper()
	out := s.must(t, "git", "-C", s.state("results.git"), "log", "--format=%s", "testing")
	return strings.Split(strings.TrimSpace(out), "\n")
}

// checkResults sees that every release that was pushed has exactly one commit
// for each arch, and that the repository is sound.
func (s *server) checkResults(t testing.TB, archs ...string) {
	t.Helper()
	if out := s.must(t, "git", "-C", s.state("results.git"), "fsck", "--strict", "--no-dangling"); out != "" {
		t.Errorf("git fsck says %s", out)
	}
	count := map[string]int{}
	for _, subject := range s.subjects(t) {
		target, _, _ := strings.Cut(subject, ":")
		count[target]++
	}
	want := 0
	repos, err := filepath.Glob(s.state("repos", "*.git"))
	if err != nil {
		t.Fatal(err)
	}
	for _, repo := range repos {
		pkg := strings.TrimSuffix(filepath.Base(repo), ".git")
		for _, branch := range strings.Fields(s.must(t, "git", "-C", repo, "for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads")) {
			version, ok, err := quarry.ParseBranch(pkg, branch)
			if !ok || err != nil {
				continue
			}
			for _, arch := range archs {
				want++
				target := quarry.Target{Package: pkg, Version: version, Arch: arch}.String()
				if count[target] != 1 {
					t.Errorf("%s has %d records, want exactly one", target, count[target])
				}
				delete(count, target)
			}
		}
	}
	if len(count) > 0 {
		t.Errorf("records of what nobody pushed: %v", count)
	}
	if want == 0 {
		t.Error("nothing was pushed, so nothing was tested")
	}
}

// checkClean sees that a daemon that has ended left no process, mount or
// temporary behind.
func (s *server) checkClean(t testing.TB) {
	t.Helper()
	var left []string
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		left = nil
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(mounts)) {
			if strings.Contains(line, s.dir) {
				left = append(left, "mount: "+line)
			}
		}
		procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, p := range procs {
			if cmd, err := os.ReadFile(p); err == nil && strings.Contains(string(cmd), s.state()) {
				left = append(left, "process: "+strings.ReplaceAll(string(cmd), "\x00", " "))
			}
		}
		work, _ := filepath.Glob(s.state("work", "*"))
		left = append(left, work...)
		tmp, _ := filepath.Glob(s.state("artifacts", "tmp", "*"))
		left = append(left, tmp...)
		containers, _ := filepath.Glob(s.state("podman", "root", "overlay-containers", "*", "userdata"))
		left = append(left, containers...)
		if len(left) == 0 {
			return
		}
	}
	t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
}

// TestKill kills the daemon with SIGKILL at random points, again and again.
// Whatever it was doing, in the end every release that was accepted has exactly
// one record.
func TestKill(t *testing.T) {
	rounds := 30
	if testing.Short() {
		rounds = 5
	}
	s := newServer(t, t.TempDir())
	var pushes sync.WaitGroup
	for i := range rounds {
		if err := s.start(); err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("kill%d", i%7)
		version := fmt.Sprintf("1.%d", i)
		dir := tiny(t, name, version, rand.IntN(3))
		if i%3 == 0 { // in the middle of the push
			pushes.Go(func() { s.push(dir, name, version) })
			time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
		} else { // anywhere between acceptance and record
			if err := s.push(dir, name, version); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(rand.IntN(900)) * time.Millisecond)
		}
		if err := s.stop(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	pushes.Wait() // one that was slow may be taken only now
	for _, b := range s.settle(t, 5*time.Minute).Ended {
		if b.State != quarry.Succeeded && b.State != quarry.Obsolete {
			t.Errorf("%s ended as %s: %s", b, b.State, b.Reason)
		}
	}
	s.checkResults(t, config.HostArch())
	if err := s.stop(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	s.checkClean(t)
}

// TestKillAtStates kills the daemon when its log says that a build has reached
// a given state: the points between two acts are hit on purpose.
func TestKillAtStates(t *testing.T) {
	s := newServer(t, t.TempDir())
	for i, state := range []string{"state=queued", "state=running", "state=recording", "state=succeeded"} {
		if err := s.start(); err != nil {
			t.Fatal(err)
		}
		name, version := "states", fmt.Sprintf("1.%d", i)
		dir := tiny(t, name, version, 1)
		watch, err := os.Open(s.log.Name())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := watch.Seek(0, 2); err != nil {
			t.Fatal(err)
		}
		pushed := make(chan error, 1)
		go func() { pushed <- s.push(dir, name, version) }()
		lines := bufio.NewReader(watch)
		line := "" // which may come in parts
		for deadline := time.Now().Add(5 * time.Minute); ; {
			part, err := lines.ReadString('\n')
			if line += part; strings.Contains(line, state) {
				break
			}
			if err == nil {
				line = ""
				continue
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s was not reached\n%s", state, s.logText())
			}
			time.Sleep(time.Millisecond)
		}
		if err := s.stop(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		watch.Close()
		<-pushed
	}
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	s.settle(t, 5*time.Minute)
	s.checkResults(t, config.HostArch())
	if err := s.stop(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	s.checkClean(t)
}

// TestWipedQueue loses the journal, the outcomes and the logs under a daemon
// that was killed: git holds the truth.
func TestWipedQueue(t *testing.T) {
	s := newServer(t, t.TempDir())
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	for version, dir := range []string{tiny(t, "wiped", "0", 0), held(t, "wiped", "1")} {
		if err := s.push(dir, "wiped", fmt.Sprint(version)); err != nil {
			t.Fatal(err)
		}
	}
	s.quarry(t, "log", "-f", "1")
	if err := s.stop(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"queue", "logs", "work", "cache"} {
		if err := os.RemoveAll(s.state(dir)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	st := s.finish(t)
	for _, b := range st.Ended {
		if b.Packager.User != "alice" {
			t.Errorf("%s has lost its packager: %+v", b, b.Packager)
		}
		if b.Number < 2 {
			t.Errorf("%s has a number that was used before", b)
		}
	}
	s.checkResults(t, config.HostArch())
	if err := s.stop(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
}

// TestStopPutsBack stops the daemon in the middle of a build.
func TestStopPutsBack(t *testing.T) {
	s := newServer(t, t.TempDir())
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	if err := s.push(held(t, "slow", "1"), "slow", "1"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, s, "running", func(st statusOut) bool { return len(st.Live) == 1 && st.Live[0].Step == "make" })
	began := time.Now()
	if err := s.stop(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 2*time.Minute {
		t.Errorf("stopping took %v", took)
	}
	s.checkClean(t)
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	s.finish(t)
	s.checkResults(t, config.HostArch())
	if err := s.stop(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
}

// TestPodmanKilled kills the podman service in the middle of a build. That is
// the farm's fault, so the build is tried again and its package is not blamed.
func TestPodmanKilled(t *testing.T) {
	s := newServer(t, t.TempDir())
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	defer s.stop(syscall.SIGTERM)
	if err := s.push(held(t, "survivor", "1"), "survivor", "1"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, s, "running", func(st statusOut) bool { return len(st.Live) == 1 && st.Live[0].Step == "make" })
	killed := 0
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		// The service's own command line is the same for every farm; that of
		// its parent names the state folder.
		cmd, err := os.ReadFile(p)
		if err != nil || !strings.Contains(string(cmd), "podman\x00") || !strings.Contains(string(cmd), "system\x00service") || !s.child(p) {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(p)))
		if syscall.Kill(pid, syscall.SIGKILL) == nil {
			killed++
		}
	}
	if killed == 0 {
		t.Fatal("no podman service was found to kill")
	}
	st := s.finish(t)
	if len(st.Ended) != 1 || st.Ended[0].State != quarry.Succeeded {
		t.Errorf("ended as %+v\n%s", st.Ended, s.logText())
	}
	for _, subject := range s.subjects(t) {
		if strings.Contains(subject, "failed") {
			t.Errorf("the package was blamed: %s", subject)
		}
	}
	s.checkResults(t, config.HostArch())
}

// child reports whether a process's parent has the state folder in its words.
func (s *server) child(cmdline string) bool {
	status, err := os.ReadFile(filepath.Join(filepath.Dir(cmdline), "status"))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(status), "\nPPid:\t")
	ppid, _, _ := strings.Cut(rest, "\n")
	parent, err := os.ReadFile("/proc/" + ppid + "/cmdline")
	return err == nil && strings.Contains(string(parent), s.state())
}

// TestPushers has twenty people push twenty packages at once.
func TestPushers(t *testing.T) {
	s := newServer(t, t.TempDir())
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	defer s.stop(syscall.SIGTERM)
	var wg sync.WaitGroup
	for i := range 20 {
		name := fmt.Sprintf("many%d", i)
		dir := tiny(t, name, "1", 0)
		wg.Go(func() {
			if err := s.push(dir, name, "1"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	st := s.settle(t, 5*time.Minute)
	if len(st.Ended) != 20 {
		t.Errorf("%d builds ended, want 20", len(st.Ended))
	}
	s.checkResults(t, config.HostArch())
}

// TestPushedAnew pushes another commit to a branch whose build runs: the older
// one is obsolete, and whatever it does, the newer one's record stands.
func TestPushedAnew(t *testing.T) {
	s := newServer(t, t.TempDir())
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	defer s.stop(syscall.SIGTERM)
	dir := held(t, "anew", "1")
	if err := s.push(dir, "anew", "1"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, s, "running", func(st statusOut) bool { return len(st.Live) == 1 && st.Live[0].Step == "make" })
	makefile := filepath.Join(dir, "srcs", "Makefile")
	if err := os.WriteFile(makefile, []byte("all:\ninstall:\n\tmkdir -p $(DESTDIR)/usr\n\techo newer > $(DESTDIR)/usr/anew\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	testpkg.Git(t, dir, "commit", "-q", "-a", "-m", "Newer")
	head := testpkg.Git(t, dir, "rev-parse", "HEAD")
	if err := s.push(dir, "anew", "1"); err != nil {
		t.Fatal(err)
	}
	st := s.settle(t, 5*time.Minute)
	states := map[int64]quarry.State{}
	for _, b := range st.Ended {
		states[b.Number] = b.State
	}
	if states[1] != quarry.Obsolete || states[2] != quarry.Succeeded {
		t.Errorf("builds ended as %v, want 1 obsolete and 2 succeeded", states)
	}
	s.checkResults(t, config.HostArch())
	rec := s.must(t, "git", "-C", s.state("results.git"), "show", "testing:packages/an/ew/anew/1/"+config.HostArch()+".toml")
	if !strings.Contains(rec, strings.TrimSpace(head)) {
		t.Errorf("the record is not of the newer commit %s:\n%s", head, rec)
	}
}

// TestThereAndBack pushes a commit that builds, one that does not, and the
// first again: the newest record is the first's, and nothing is built over and
// over.
func TestThereAndBack(t *testing.T) {
	s := newServer(t, t.TempDir())
	s.writeConfig(t, "[queue]\nreplan = \"1s\"\n")
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	defer s.stop(syscall.SIGTERM)
	dir := tiny(t, "swing", "1", 0)
	good := strings.TrimSpace(testpkg.Git(t, dir, "rev-parse", "HEAD"))
	if err := os.WriteFile(filepath.Join(dir, "srcs", "Makefile"), []byte("all:\n\tfalse\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	testpkg.Git(t, dir, "commit", "-q", "-a", "-m", "Worse")
	bad := strings.TrimSpace(testpkg.Git(t, dir, "rev-parse", "HEAD"))
	for _, commit := range []string{good, bad, good} {
		s.must(t, "git", "-C", dir, "push", "-q", "--force", s.url("swing"), commit+":refs/heads/swing-1")
		s.settle(t, 5*time.Minute)
	}
	for range 3 { // a plan, at least one that began since, and another
		before := s.status(t).Queue.Planned
		waitFor(t, s, "another plan", func(st statusOut) bool { return st.Queue.Planned.After(before) })
	}
	s.settle(t, 5*time.Minute)
	if got := s.subjects(t); len(got) != 3 || !strings.Contains(got[0], "succeeded") || !strings.Contains(got[1], "failed") {
		t.Errorf("commits are %q, want a success, a failure, a success", got)
	}
	if out := s.must(t, "git", "-C", s.state("results.git"), "ls-tree", "-r", "--name-only", "testing"); strings.Contains(out, "failures/") {
		t.Errorf("the failure still stands:\n%s", out)
	}
}

// TestDiskFull fills the disk of the state folder. The queue says so and waits;
// when there is room again it goes on by itself.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	s := newServer(t, dir)
	if err := os.RemoveAll(filepath.Join(dir, "tmp")); err != nil {
		t.Fatal(err)
	}
	keys := s.state("keys")
	saved := filepath.Join(dir, "keys")
	if err := os.Rename(keys, saved); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=64m", "quarry-test", s.state()).CombinedOutput(); err != nil {
		t.Fatalf("a small file system cannot be mounted (the test needs root): %v: %s", err, out)
	}
	t.Cleanup(func() {
		s.stop(syscall.SIGTERM)
		exec.Command("umount", "-l", s.state()).Run()
	})
	if err := os.CopyFS(keys, os.DirFS(saved)); err != nil {
		t.Fatal(err)
	}
	s.writeConfig(t, "[queue]\nmin_free = \"8 MiB\"\n[pool]\nmax = -1\n") // nothing but builds takes room
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	first := tiny(t, "full0", "1", 0)
	if err := s.push(first, "full0", "1"); err != nil {
		t.Fatal(err)
	}
	s.settle(t, 5*time.Minute)

	filler := s.state("filler")
	fill := func(leave int64) {
		var st syscall.Statfs_t
		if err := syscall.Statfs(s.state(), &st); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(filler, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		block := make([]byte, 4096)
		for n := int64(st.Bavail)*st.Bsize - leave; n > 0; n -= int64(len(block)) {
			if _, err := f.Write(block); err != nil {
				break // full is what was wanted
			}
		}
	}
	// Nearly full: pushes are taken, builds wait and say why.
	fill(4 << 20)
	if err := s.push(tiny(t, "full1", "1", 0), "full1", "1"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, s, "the pause", func(st statusOut) bool {
		return len(st.Queue.Paused) == 1 && strings.Contains(st.Queue.Paused[0].Reason, "make room")
	})
	if out := s.quarry(t, "status"); !strings.Contains(out, "paused") {
		t.Errorf("status does not tell:\n%s", out)
	}
	// Quite full: a push may be refused, but never half taken.
	fill(0)
	refused := s.push(tiny(t, "full2", "1", 0), "full2", "1")
	t.Logf("push to a full disk: %v", refused)
	if out := s.quarry(t, "status"); !strings.Contains(out, "paused") {
		t.Errorf("status does not tell:\n%s", out)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := s.push(tiny(t, "full3", "1", 0), "full3", "1"); err != nil {
		t.Error(err)
	}
	s.quarry(t, "replan") // what was pushed while nothing could be noted
	st := s.settle(t, 5*time.Minute)
	if len(st.Queue.Paused) != 0 {
		t.Errorf("still paused: %+v", st.Queue.Paused)
	}
	s.checkResults(t, config.HostArch())
}

// TestTwoArchs builds one push for two archs on one machine, the second with a
// base that is loaded while the farm runs.
func TestTwoArchs(t *testing.T) {
	second, tarball := testbase.Second(t)
	s := newServer(t, t.TempDir())
	s.writeConfig(t, fmt.Sprintf("[channel.testing]\narchs = [%q, %q]\n", config.HostArch(), second))
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	defer s.stop(syscall.SIGTERM)
	lib, prog := testpkg.Init(t, "libgreet"), testpkg.Init(t, "greeter")
	if err := s.push(prog, "greeter", "1.0"); err != nil {
		t.Fatal(err)
	}
	if err := s.push(lib, "libgreet", "1.0"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, s, "the pause for want of a base", func(st statusOut) bool {
		return len(st.Queue.Paused) == 1 && strings.Contains(st.Queue.Paused[0].Reason, second)
	})
	s.quarry(t, "images", "load", second, tarball)
	if st := s.settle(t, 5*time.Minute); len(st.Ended) != 4 {
		t.Errorf("%d builds ended, want 4", len(st.Ended))
	}
	s.checkResults(t, config.HostArch(), second)
	for _, arch := range []string{config.HostArch(), second} {
		files := s.must(t, "git", "-C", s.state("results.git"), "show", "testing:packages/gr/ee/greeter/1.0/"+arch+".files.toml")
		if !strings.Contains(files, "elf = {arch = '"+arch+"'") {
			t.Errorf("the program built for %s is of another arch:\n%s", arch, files)
		}
	}
	rec := s.must(t, "git", "-C", s.state("results.git"), "show", "testing:packages/gr/ee/greeter/1.0/"+second+".toml")
	if !strings.Contains(rec, "emulation = 'compat'") {
		t.Errorf("the record does not say how it was built:\n%s", rec)
	}
}
