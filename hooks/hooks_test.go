package hooks_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/hooks"
	"github.com/Morphux/quarry/hooks/hooktest"
	"github.com/Morphux/quarry/internal/testpkg"
	"github.com/Morphux/quarry/repos"
)

func TestMain(m *testing.M) {
	hooktest.Main()
	os.Exit(m.Run())
}

// patience is how long anything may take on a slow machine that is busy.
const patience = 5 * time.Minute

// server is a bare repository of some git server with Quarry's hooks in it.
type server struct {
	repo   string
	daemon *hooktest.Daemon
	opts   hooks.Options
}

func newServer(t testing.TB, pkg string) *server {
	t.Helper()
	s := &server{repo: filepath.Join(t.TempDir(), pkg+".git"), daemon: hooktest.Listen(t)}
	testpkg.Git(t, t.TempDir(), "init", "-q", "--bare", "-b", "master", s.repo)
	s.opts = hooks.Options{Binary: hooktest.Binary(t), Settings: hooks.Settings{Socket: s.daemon.Socket, Spool: t.TempDir()}}
	if err := hooks.Install(s.repo, s.opts); err != nil {
		t.Fatal(err)
	}
	return s
}

// push pushes with stock git and gives what the terminal shows. env are
// variables for the hooks.
func (s *server) push(t testing.TB, dir string, env []string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("git", append([]string{"push"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(testpkg.Env(), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// refs are the refs of the repository, without Quarry's own.
func (s *server) refs(t testing.TB) string {
	t.Helper()
	var refs []string
	for line := range strings.Lines(testpkg.Git(t, s.repo, "for-each-ref", "--format=%(refname)")) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "refs/quarry/") {
			refs = append(refs, line)
		}
	}
	return strings.Join(refs, " ")
}

func build(n int64, arch string) quarry.Build {
	return quarry.Build{Number: n, Arch: arch, State: quarry.Queued,
		Release: quarry.Release{Package: "hello", Version: "1.0", Channel: "testing"}}
}

func TestPush(t *testing.T) {
	s := newServer(t, "hello")
	dir := testpkg.Init(t, "hello")
	s.daemon.OnPush(func(p hooks.Push) ([]quarry.Build, error) {
		return []quarry.Build{build(12, "x86_64"), build(13, "i686")}, nil
	})
	out, err := s.push(t, dir, []string{"QUARRY_USER=alice", "QUARRY_NAME=Alice", "QUARRY_EMAIL=a@b", "QUARRY_SSH=ssh farm"}, s.repo, "HEAD:hello-1.0", "HEAD:master")
	if err != nil {
		t.Fatalf("push: %v\n%s", err, out)
	}
	for _, want := range []string{
		"remote: quarry: hello 1.0 (testing): build 12 for x86_64 is queued",
		"remote: quarry: hello 1.0 (testing): build 13 for i686 is queued",
		"remote: quarry: master is stored and not built",
		"ssh farm log -f 12",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("terminal does not show %q:\n%s", want, out)
		}
	}
	pushes := s.daemon.Pushes()
	if len(pushes) != 1 || len(pushes[0].Refs) != 2 {
		t.Fatalf("daemon heard %+v", pushes)
	}
	note, ok, err := repos.ReadPush(t.Context(), s.repo, "hello-1.0")
	if err != nil || !ok || note.Packager.User != "alice" || note.Packager.Name != "Alice" || note.Packager.Email != "a@b" || note.Commit != testpkg.Git(t, dir, "rev-parse", "HEAD") || note.Channel != "" {
		t.Errorf("the repository says %+v, %v, %v", note, ok, err)
	}
	p := pushes[0]
	if p.Package != "hello" || p.Repo != s.repo || p.Packager.User != "alice" || p.Packager.Name != "Alice" || p.Check() != nil {
		t.Errorf("daemon heard %+v (%v)", p, p.Check())
	}
	head := testpkg.Git(t, dir, "rev-parse", "HEAD")
	for _, r := range p.Refs {
		if r.New != head || r.Release() != (r.Name == "hello-1.0") {
			t.Errorf("ref %+v", r)
		}
	}

	// A branch taken back.
	out, err = s.push(t, dir, nil, s.repo, ":hello-1.0")
	if err != nil || !strings.Contains(out, "hello-1.0 is gone") {
		t.Errorf("deletion: %v\n%s", err, out)
	}
	if p := s.daemon.Pushes()[1]; !p.Refs[0].Deleted() || !p.Refs[0].Release() {
		t.Errorf("daemon heard %+v", p)
	}
	// What releases nothing is not told.
	if out, err = s.push(t, dir, nil, s.repo, "HEAD:refs/tags/v1"); err != nil {
		t.Errorf("tag: %v\n%s", err, out)
	}
	if len(s.daemon.Pushes()) != 2 {
		t.Errorf("daemon heard of a tag: %+v", s.daemon.Pushes()[2:])
	}
}

// TestRefusals: each push is refused before a ref moves, with one clear line
// that names what is wrong and what to do.
func TestRefusals(t *testing.T) {
	recipe := func(name, version string) string {
		return fmt.Sprintf("{\"package\": {\"name\": %q, \"version\": %q, \"description\": \"d\"}, \"compilation\": {}}\n", name, version)
	}
	maintainer := func(packages string) []string {
		return []string{"QUARRY_USER=bob", "QUARRY_ROLE=maintainer", "QUARRY_PACKAGES=" + packages}
	}
	// object makes a commit whose tree is what git mktree makes of lines.
	object := func(t *testing.T, dir, tree string) {
		tree = strings.ReplaceAll(tree, "BLOB", testpkg.GitInput(t, dir, []byte("x"), "hash-object", "-w", "--stdin"))
		tree = strings.ReplaceAll(tree, "RECIPE", testpkg.Git(t, dir, "rev-parse", "HEAD:package.json"))
		tree = strings.ReplaceAll(tree, "COMMIT", testpkg.Git(t, dir, "rev-parse", "HEAD"))
		id := testpkg.GitInput(t, dir, []byte(tree), "mktree", "-z", "--missing")
		testpkg.Git(t, dir, "reset", "-q", "--soft", testpkg.Git(t, dir, "commit-tree", "-m", "x", id))
	}
	for name, tt := range map[string]struct {
		files map[string]string // nil: a good hello 1.0
		tree  string            // instead of files: input of git mktree
		env   []string
		args  []string // after the repository
		want  []string // on the terminal
	}{
		"version": {args: []string{"HEAD:hello-1.1"},
			want: []string{"quarry: hello-1.1: package.json: package.version is \"1.0\"", "push it as hello-1.0"}},
		"name": {files: map[string]string{"package.json": recipe("hallo", "1.0")}, args: []string{"HEAD:hello-1.0"},
			want: []string{"package.json: package.name is \"hallo\"", "push to hallo.git"}},
		"no recipe": {files: map[string]string{"README": "x"}, args: []string{"HEAD:hello-1.0"},
			want: []string{"hello-1.0: package.json", "missing"}},
		"broken recipe": {files: map[string]string{"package.json": "{\n  \"package\": {\n    \"name\": \"hello\",,\n"}, args: []string{"HEAD:hello-1.0"},
			want: []string{"hello-1.0: package.json:3:"}},
		"wrong type": {files: map[string]string{"package.json": strings.Replace(recipe("hello", "1.0"), "\"compilation\": {}", "\"compilation\": {\"make\": 7}", 1)}, args: []string{"HEAD:hello-1.0"},
			want: []string{"hello-1.0: package.json:1:", "compilation.make"}},
		"missing patch": {files: map[string]string{"package.json": strings.Replace(recipe("hello", "1.0"), "\"compilation\": {}", "\"compilation\": {\"patches\": [\"a.patch\"]}", 1)}, args: []string{"HEAD:hello-1.0"},
			want: []string{"patches/a.patch", "missing"}},
		"huge recipe": {files: map[string]string{"package.json": recipe("hello", "1.0") + strings.Repeat(" ", 20<<20)}, args: []string{"HEAD:hello-1.0"},
			want: []string{"hello-1.0: package.json: is too large"}},
		"deep recipe": {files: map[string]string{"package.json": strings.Repeat("[", 100_000)}, args: []string{"HEAD:hello-1.0"},
			want: []string{"hello-1.0: package.json"}},
		"linked recipe": {tree: "120000 blob RECIPE\tpackage.json\x00", args: []string{"HEAD:hello-1.0"},
			want: []string{"package.json: is a link"}},
		"recipe is a folder": {files: map[string]string{"package.json/x": ""}, args: []string{"HEAD:hello-1.0"},
			want: []string{"package.json: is a folder"}},
		"submodule": {tree: "100644 blob RECIPE\tpackage.json\x00160000 commit COMMIT\tsrcs\x00", args: []string{"HEAD:hello-1.0"},
			want: []string{"srcs is a submodule", "commit its files"}},
		"dot git": {tree: "100644 blob RECIPE\tpackage.json\x00100644 blob BLOB\t.GIT\x00", args: []string{"HEAD:hello-1.0"},
			want: []string{".GIT", "rename it"}},
		"dot dot": {tree: "100644 blob RECIPE\tpackage.json\x00100644 blob BLOB\t..\x00", args: []string{"HEAD:hello-1.0"},
			want: []string{"..", "rename it"}},
		"long name": {tree: "100644 blob RECIPE\tpackage.json\x00100644 blob BLOB\t" + strings.Repeat("x", 300) + "\x00", args: []string{"HEAD:hello-1.0"},
			want: []string{"too long for a file system"}},
		"reader": {env: []string{"QUARRY_USER=carol", "QUARRY_ROLE=reader"}, args: []string{"HEAD:master"},
			want: []string{"quarry: carol may not push hello", "ask an admin"}},
		"other packages": {env: maintainer("zlib lib*"), args: []string{"HEAD:hello-1.0"},
			want: []string{"quarry: bob may not push hello: you maintain zlib, lib*"}},
		"deletion by another": {env: maintainer("zlib"), args: []string{":hello-0.9"},
			want: []string{"may not push hello"}},
		"quarry's refs": {args: []string{"HEAD:refs/notes/x"},
			want: []string{"refs/notes/x is not taken"}},
		"hidden refs": {args: []string{"HEAD:refs/quarry/push/hello-1.0"},
			want: []string{"deny updating a hidden ref"}},
		"bad version": {args: []string{"HEAD:refs/heads/hello-1;0"},
			want: []string{"branch hello-1;0", "may not hold"}},
		"unicode":         {args: []string{"HEAD:refs/heads/h\u00e9"}, want: []string{"may not hold"}},
		"escape sequence": {args: []string{"HEAD:refs/heads/x\u009b2J"}, want: []string{`branch "x\u009b2J"`}},
		"dash":            {args: []string{"HEAD:refs/heads/a/--upload-pack=x-1.0"}, want: []string{"does not begin with a letter"}},
		"channel":         {args: []string{"-o", "channel=../x", "HEAD:hello-1.0"}, want: []string{"push option channel"}},
		"no such channel": {env: []string{"QUARRY_CHANNELS=testing stable"}, args: []string{"-o", "channel=moon", "HEAD:hello-1.0"},
			want: []string{"there is no channel moon: there is testing, stable"}},
		"one of two": {args: []string{"HEAD:hello-1.1", "HEAD:hello-1.0"},
			want: []string{"hello-1.1: package.json: package.version", "stored whole or not at all"}},
		"two of two": {args: []string{"HEAD:hello-1.1", "HEAD:hello-1.2"},
			want: []string{"hello-1.1: package.json: package.version", "hello-1.2: package.json: package.version"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, "hello")
			var dir string
			if tt.files != nil {
				dir = testpkg.Make(t, "hello", tt.files)
			} else {
				dir = testpkg.Init(t, "hello")
			}
			if tt.tree != "" {
				object(t, dir, tt.tree)
			}
			testpkg.Git(t, s.repo, "fetch", "-q", testpkg.Init(t, "hello"), "HEAD:refs/heads/hello-0.9")
			args := tt.args
			if args[0] == "-o" {
				args = append(args[:2:2], append([]string{s.repo}, args[2:]...)...)
			} else {
				args = append([]string{s.repo}, args...)
			}
			out, err := s.push(t, dir, tt.env, args...)
			if err == nil {
				t.Errorf("the push was taken")
			}
			for _, want := range tt.want {
				found := false
				for line := range strings.Lines(out) {
					if strings.HasPrefix(line, "remote: ") && strings.ContainsAny(line, "\x1b\u009b") {
						t.Errorf("terminal gets an escape sequence: %q", line)
					}
					found = found || strings.Contains(line, want)
				}
				if !found {
					t.Errorf("terminal shows no line with %q", want)
				}
			}
			if refs := s.refs(t); refs != "refs/heads/hello-0.9" {
				t.Errorf("refs moved: %s", refs)
			}
			if p := s.daemon.Pushes(); len(p) > 0 {
				t.Errorf("daemon heard of it: %+v", p)
			}
			if strings.Contains(out, "goroutine") {
				t.Error("a panic")
			}
			if t.Failed() {
				t.Log(out)
			}
		})
	}
}

// TestManyFolders: a handful of trees that unfold into 10^9 files is refused
// and not walked to its end.
func TestManyFolders(t *testing.T) {
	s := newServer(t, "hello")
	dir := testpkg.Init(t, "hello")
	blob := testpkg.GitInput(t, dir, []byte("x"), "hash-object", "-w", "--stdin")
	line := "100644 blob " + blob
	for range 9 {
		var tree strings.Builder
		for i := range 10 {
			fmt.Fprintf(&tree, "%s\t%d\n", line, i)
		}
		line = "040000 tree " + testpkg.GitInput(t, dir, []byte(tree.String()), "mktree")
	}
	tree := testpkg.GitInput(t, dir, []byte(line+"\tsrcs\n100644 blob "+testpkg.Git(t, dir, "rev-parse", "HEAD:package.json")+"\tpackage.json\n"), "mktree")
	commit := testpkg.Git(t, dir, "commit-tree", "-m", "x", tree)
	start := time.Now()
	out, err := s.push(t, dir, nil, s.repo, commit+":refs/heads/hello-1.0")
	if err == nil || !strings.Contains(out, "holds more than") {
		t.Errorf("%v\n%s", err, out)
	}
	if d := time.Since(start); d > 5*time.Minute {
		t.Errorf("refusing it took %v", d)
	}
}

func TestWarnings(t *testing.T) {
	s := newServer(t, "hello")
	dir := testpkg.Make(t, "hello", map[string]string{
		"package.json":    `{"package": {"name": "hello", "version": "1.0", "description": "d", "colour": "red"}, "compilation": {}}`,
		"srcs/a\nb\u202e": "odd", "srcs/c": "x",
	})
	out, err := s.push(t, dir, nil, "-o", "dance", s.repo, "HEAD:hello-1.0")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{`push option "dance" means nothing`, "hello-1.0: warning:", "colour", `"srcs/a\nb\u202e" has an odd name`} {
		if !strings.Contains(out, want) {
			t.Errorf("terminal does not show %q:\n%s", want, out)
		}
	}
}

func TestFollow(t *testing.T) {
	s := newServer(t, "hello")
	dir := testpkg.Init(t, "hello")
	s.daemon.OnPush(func(hooks.Push) ([]quarry.Build, error) {
		return []quarry.Build{build(1, "x86_64"), build(2, "i686")}, nil
	})
	s.daemon.OnFollow(func(_ context.Context, n int64, w io.Writer) error {
		fmt.Fprintf(w, "line one of %d\nprogress 1%%\rprogress 100%%\r\n\x1b[31mre", n)
		fmt.Fprintf(w, "d\x9b2J\x00\u202e\nbuild %d: succeeded", n)
		return nil
	})
	out, err := s.push(t, dir, nil, "-o", "follow", s.repo, "HEAD:hello-1.0")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"x86_64  | line one of 1", "i686    | line one of 2", "| progress 100%", "| ?[31mred?2J??", "i686    | build 2: succeeded"} {
		if !strings.Contains(out, want) {
			t.Errorf("terminal does not show %q:\n%q", want, out)
		}
	}
	if strings.Contains(out, "progress 1%") {
		t.Errorf("a progress bar's every state is shown:\n%s", out)
	}
}

// TestUnreachable: with no daemon the push stands, git is content, and the
// push is in the spool for when Quarry is back.
func TestUnreachable(t *testing.T) {
	s := newServer(t, "hello")
	s.daemon.Close()
	dir := testpkg.Init(t, "hello")
	out, err := s.push(t, dir, []string{"QUARRY_USER=alice"}, "-o", "channel=stable", "-o", "follow", s.repo, "HEAD:hello-1.0")
	if err != nil || !strings.Contains(out, "the build starts when it is back") {
		t.Fatalf("%v\n%s", err, out)
	}
	if s.refs(t) != "refs/heads/hello-1.0" {
		t.Errorf("refs: %s", s.refs(t))
	}
	var got []hooks.Push
	if err := hooks.Drain(s.opts.Spool, func(p hooks.Push) error { got = append(got, p); return nil }); err != nil {
		t.Fatal(err)
	}
	if note, ok, err := repos.ReadPush(t.Context(), s.repo, "hello-1.0"); err != nil || !ok || note.Channel != "stable" {
		t.Errorf("the repository says %+v, %v, %v", note, ok, err)
	}
	if len(got) != 1 || got[0].Channel != "stable" || got[0].Packager.User != "alice" || got[0].Refs[0].Name != "hello-1.0" {
		t.Errorf("spool held %+v", got)
	}
}

// TestRefusedByDaemon: a daemon that says no has been reached: nothing goes to
// the spool, where it would be refused again and again.
func TestRefusedByDaemon(t *testing.T) {
	s := newServer(t, "hello")
	s.daemon.OnPush(func(hooks.Push) ([]quarry.Build, error) { return nil, errors.New("the moon is full") })
	out, err := s.push(t, testpkg.Init(t, "hello"), nil, s.repo, "HEAD:hello-1.0")
	if err != nil || !strings.Contains(out, "it is stored, but Quarry says: the moon is full") {
		t.Fatalf("%v\n%s", err, out)
	}
	if files, _ := os.ReadDir(s.opts.Spool); len(files) > 0 {
		t.Errorf("spool holds %v", files)
	}
}

// TestHangUp: a pusher who goes while the build is followed leaves no hook
// behind, and the build is not asked to stop.
func TestHangUp(t *testing.T) {
	s := newServer(t, "hello")
	dir := testpkg.Init(t, "hello")
	following, ended := make(chan bool, 1), make(chan bool, 1)
	s.daemon.OnPush(func(hooks.Push) ([]quarry.Build, error) { return []quarry.Build{build(1, "x86_64")}, nil })
	s.daemon.OnFollow(func(ctx context.Context, n int64, w io.Writer) error {
		following <- true
		for ctx.Err() == nil {
			if _, err := io.WriteString(w, "still at it\n"); err != nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		ended <- true
		return nil
	})
	cmd := exec.Command("git", "push", "-o", "follow", s.repo, "HEAD:hello-1.0")
	// As the SSH server does it: a pipe that ends when the client is gone.
	alive, hold, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = []*os.File{alive}
	cmd.Dir, cmd.Env = dir, append(testpkg.Env(), "QUARRY_ALIVE_FD=3")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	alive.Close()
	<-following
	hold.Close()
	cmd.Process.Kill()
	cmd.Wait()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the hook goes on following for nobody")
	}
	// What git still does in the repository, it does without anybody who waits.
	for deadline := time.Now().Add(patience); len(hooktest.Working(t, s.repo)) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("left are %q", hooktest.Working(t, s.repo))
		}
	}
}

// TestIdentity: identities of other git servers.
func TestIdentity(t *testing.T) {
	for _, tt := range []struct {
		env        []string
		user, from string
		push       bool
	}{
		{[]string{"QUARRY_USER=alice", "QUARRY_ROLE=maintainer", "QUARRY_PACKAGES=zlib", "GL_USER=x"}, "alice", "QUARRY_USER", false},
		{[]string{"GL_USER=bob", "REMOTE_USER=x"}, "bob", "GL_USER", true},
		{[]string{"GITEA_PUSHER_NAME=carol", "GITEA_PUSHER_EMAIL=c@d"}, "carol", "GITEA_PUSHER_NAME", true},
		{[]string{"REMOTE_USER=dave"}, "dave", "REMOTE_USER", true},
		{[]string{"REMOTE_USER=d\u00e4ve.x@corp.example"}, "d-ve.x", "REMOTE_USER", true},
		{[]string{"REMOTE_USER=../../x\n"}, "x", "REMOTE_USER", true},
		{[]string{"GL_USER=\x1b\xff"}, "unknown", "GL_USER", true},
	} {
		e, err := hooks.NewEnv(tt.env, "/srv/hello.git", hooks.Settings{})
		if err != nil {
			t.Fatal(err)
		}
		if e.Identity.User != tt.user || e.From != tt.from || e.Identity.MayPush("hello") != tt.push || e.Package != "hello" {
			t.Errorf("%v gives %+v", tt.env, e)
		}
	}
	if e, err := hooks.NewEnv(nil, "/srv/hello.git", hooks.Settings{}); err != nil || e.From != "unix" || e.Identity.User == "" {
		t.Errorf("without a word: %+v, %v", e, err)
	}
	if _, err := hooks.NewEnv(nil, "/srv/--x.git", hooks.Settings{}); err == nil {
		t.Error("the repository --x is taken")
	}
	id := quarry.Identity{Packager: quarry.Packager{User: "u", Name: "N", Email: "e@f", Key: "SHA256:x"}, Role: quarry.RoleMaintainer, Packages: []string{"a", "b*"}}
	e, err := hooks.NewEnv(hooks.Environ(id, "zlib"), "/srv/other.git", hooks.Settings{})
	if err != nil || fmt.Sprint(e.Identity) != fmt.Sprint(id) || e.Package != "zlib" {
		t.Errorf("environment does not carry an identity: %+v, %v", e, err)
	}
}

func TestInstall(t *testing.T) {
	bare := func(t *testing.T) string {
		repo := filepath.Join(t.TempDir(), "hello.git")
		testpkg.Git(t, t.TempDir(), "init", "-q", "--bare", repo)
		return repo
	}
	opts := hooks.Options{Binary: "/usr/bin/it's quarry", Settings: hooks.Settings{Socket: "/run/q.sock"}}

	t.Run("twice", func(t *testing.T) {
		repo := bare(t)
		for range 2 {
			if hooks.Install(repo, opts) != nil || !hooks.Installed(repo, hooks.Options{Binary: opts.Binary, Settings: hooks.Settings{Socket: "/run/q.sock", Package: "hello"}}) {
				t.Fatal("not installed")
			}
		}
		if got := testpkg.Git(t, repo, "config", "--get-all", "transfer.hideRefs"); got != "refs/quarry" {
			t.Errorf("hideRefs is %q", got)
		}
	})
	t.Run("gone binary", func(t *testing.T) {
		repo := bare(t)
		if err := hooks.Install(repo, opts); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("git", "push", repo, "HEAD:master")
		cmd.Dir, cmd.Env = testpkg.Init(t, "hello"), testpkg.Env()
		out, err := cmd.CombinedOutput()
		if err == nil || !bytes.Contains(out, []byte("it's quarry is gone")) {
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Run("somebody else's", func(t *testing.T) {
		repo := bare(t)
		other := filepath.Join(repo, "hooks", "post-receive")
		if err := os.WriteFile(other, []byte("#!/bin/sh\necho mine\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		err := hooks.Install(repo, opts)
		if err == nil || !strings.Contains(err.Error(), "--force") || !strings.Contains(err.Error(), "hook post-receive --package") {
			t.Errorf("error %v", err)
		}
		if _, err := os.Stat(filepath.Join(repo, "hooks", "pre-receive")); err == nil {
			t.Error("half of the hooks are installed")
		}
		forced := opts
		forced.Force = true
		if err := hooks.Install(repo, forced); err != nil {
			t.Fatal(err)
		}
		if old, err := os.ReadFile(other + ".old"); err != nil || !strings.Contains(string(old), "echo mine") {
			t.Errorf("the old hook is lost: %v", err)
		}
	})
	t.Run("folder of hooks", func(t *testing.T) {
		repo := bare(t)
		for _, d := range []string{"pre-receive.d", "post-receive.d"} {
			if err := os.MkdirAll(filepath.Join(repo, "hooks", d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		os.WriteFile(filepath.Join(repo, "hooks", "pre-receive"), []byte("#!/bin/sh\n# the server's\n"), 0o755)
		if err := hooks.Install(repo, opts); err != nil {
			t.Fatal(err)
		}
		for _, f := range []string{"pre-receive.d/quarry", "post-receive.d/quarry"} {
			if info, err := os.Stat(filepath.Join(repo, "hooks", f)); err != nil || info.Mode()&0o111 == 0 {
				t.Errorf("%s: %v", f, err)
			}
		}
	})
	t.Run("hooks path", func(t *testing.T) {
		repo, dir := bare(t), t.TempDir()
		testpkg.Git(t, repo, "config", "core.hooksPath", dir)
		if err := hooks.Install(repo, opts); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(dir, "pre-receive")); err != nil {
			t.Error(err)
		}
	})
	t.Run("not bare", func(t *testing.T) {
		if err := hooks.Install(testpkg.Init(t, "hello"), opts); err == nil {
			t.Error("a working copy was taken")
		}
		if err := hooks.Install(filepath.Join(bare(t), "refs"), opts); err == nil {
			t.Error("a folder inside a repository was taken")
		}
		if err := hooks.Install("/nonexistent/x.git", opts); err == nil {
			t.Error("nothing was taken")
		}
	})
}

// TestTimes: git takes any 64 bits for the time of a commit, and records and
// journal cannot hold years beyond 9999.
func TestTimes(t *testing.T) {
	for when, want := range map[string]string{
		"253402400000 +0000":         "hello-1.0: time of the commit is in the year 10000",
		"9223372036854775807 +0000":  "hello-1.0: ",
		"18446744073709551616 +0000": "",
		"x +0000":                    "",
		"1500000000 +0000":           "ok",
		"4294967296 -0330":           "ok",
	} {
		s := newServer(t, "hello")
		// So that what git itself would refuse is seen too.
		testpkg.Git(t, s.repo, "config", "receive.fsckObjects", "false")
		dir := testpkg.Init(t, "hello")
		raw := fmt.Sprintf("tree %s\nauthor A <a@b> 1 +0000\ncommitter A <a@b> %s\n\nx\n", testpkg.Git(t, dir, "rev-parse", "HEAD^{tree}"), when)
		id := testpkg.GitInput(t, dir, []byte(raw), "hash-object", "--literally", "-t", "commit", "-w", "--stdin")
		out, err := s.push(t, dir, []string{"QUARRY_USER=alice"}, s.repo, id+":refs/heads/hello-1.0")
		if (err == nil) != (want == "ok") || want != "ok" && !strings.Contains(out, want) {
			t.Errorf("%s: %v\n%s", when, err, out)
		}
	}
}

// TestPostReceiveDies: the branch has moved and nobody could write down who
// moved it. Pre-receive had.
func TestPostReceiveDies(t *testing.T) {
	s := newServer(t, "hello")
	post := filepath.Join(s.repo, "hooks", "post-receive")
	if err := os.WriteFile(post, []byte("#!/bin/sh\nkill -9 $$\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir := testpkg.Init(t, "hello")
	if out, err := s.push(t, dir, []string{"QUARRY_USER=alice", "QUARRY_NAME=Alice", "QUARRY_EMAIL=a@b"}, "-o", "channel=stable", s.repo, "HEAD:hello-1.0", "HEAD:master"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	r, err := repos.Open(filepath.Join(t.TempDir(), "none"), []string{s.repo})
	if err != nil {
		t.Fatal(err)
	}
	list, problems, err := r.Releases(t.Context(), "hello", func(string) []string { return []string{"x86_64"} })
	if err != nil || len(problems) > 0 || len(list) != 1 || list[0].Packager.User != "alice" || list[0].Channel != "stable" {
		t.Errorf("got %+v, %v, %v", list, problems, err)
	}
	// A push that is refused leaves no word of it.
	if _, err := s.push(t, dir, []string{"QUARRY_USER=mallory"}, s.repo, "HEAD:hello-1.1", "+HEAD:hello-1.0"); err == nil {
		t.Error("hello-1.1 was taken")
	}
	if refs := testpkg.Git(t, s.repo, "for-each-ref", "--format=%(refname)", "refs/quarry"); refs != "refs/quarry/next/hello-1.0" {
		t.Errorf("refs are %s", refs)
	}
}
