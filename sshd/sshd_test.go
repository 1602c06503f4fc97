package sshd

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/hooks"
	"github.com/Morphux/quarry/hooks/hooktest"
	"github.com/Morphux/quarry/internal/testpkg"
	"github.com/Morphux/quarry/internal/words"
	"github.com/Morphux/quarry/keys"
	"github.com/Morphux/quarry/repos"
	gossh "golang.org/x/crypto/ssh"
)

func TestMain(m *testing.M) {
	hooktest.Main()
	os.Exit(m.Run())
}

// patience is how long anything may take on a slow machine that is busy.
const patience = 5 * time.Minute

// farm is a server with everything around it but builders.
type farm struct {
	*Server
	t      testing.TB
	dir    string
	l      net.Listener
	addr   string
	keys   *keys.Store
	repos  *repos.Repos
	daemon *hooktest.Daemon
}

// newFarm starts a server on loopback. change may alter its options.
func newFarm(t testing.TB, change func(*Options)) *farm {
	t.Helper()
	f := &farm{t: t, dir: t.TempDir(), daemon: hooktest.Listen(t)}
	var err error
	if f.keys, err = keys.Open(filepath.Join(f.dir, "keys"), nil); err != nil {
		t.Fatal(err)
	}
	if f.repos, err = repos.Open(filepath.Join(f.dir, "repos"), nil); err != nil {
		t.Fatal(err)
	}
	o := Options{
		HostKey: filepath.Join(f.dir, "host_key"), Keys: f.keys, Repos: f.repos, Home: filepath.Join(f.dir, "git"), MaxPush: 64 << 20,
		Hooks: hooks.Options{Binary: hooktest.Binary(t), Settings: hooks.Settings{Socket: f.daemon.Socket, Spool: filepath.Join(f.dir, "spool")}},
		Verbs: func(_ context.Context, id quarry.Identity, argv []string, _ io.Reader, out, _ io.Writer, term Terminal) int {
			fmt.Fprintf(out, "%s %s %q %v %d\n", id.User, id.Role, argv, term.TTY, term.Width)
			return 0
		},
		Log: slog.New(slog.NewTextHandler(testLog{t}, nil)),
	}
	if change != nil {
		change(&o)
	}
	if f.Server, err = New(o); err != nil {
		t.Fatal(err)
	}
	if f.l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	f.addr = f.l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- f.Serve(f.l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := f.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	host, port, _ := net.SplitHostPort(f.addr)
	known := fmt.Sprintf("[%s]:%s %s", host, port, gossh.MarshalAuthorizedKey(f.PublicKey()))
	if err := os.WriteFile(filepath.Join(f.dir, "known_hosts"), []byte(known), 0o644); err != nil {
		t.Fatal(err)
	}
	return f
}

// testLog writes a log to the test's.
type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	defer func() { recover() }() // a connection may end after its test
	if os.Getenv("QUARRY_TEST_LOG") != "" {
		l.t.Logf("%s", bytes.TrimSpace(p))
	}
	return len(p), nil
}

// key makes a key pair with ssh-keygen and gives its private file.
func (f *farm) key(name string) string {
	f.t.Helper()
	path := filepath.Join(f.t.TempDir(), name)
	out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", path).CombinedOutput()
	if err != nil {
		f.t.Fatalf("ssh-keygen: %v: %s (apt-get install openssh-client)", err, out)
	}
	return path
}

// person makes somebody with a key and gives the private file.
func (f *farm) person(user string, role quarry.Role, packages ...string) string {
	f.t.Helper()
	key := f.key(user)
	pub, err := os.ReadFile(key + ".pub")
	if err != nil {
		f.t.Fatal(err)
	}
	name, email := "Some "+user, user+"@morphux.org"
	if _, err := f.keys.Add(user, pub, keys.Change{Name: &name, Email: &email, Role: &role, Packages: packages}); err != nil {
		f.t.Fatal(err)
	}
	return key
}

// sshArgs are arguments of OpenSSH's client, without host and port.
func (f *farm) sshArgs(ids ...string) []string {
	args := []string{"-F", "none", "-o", "UserKnownHostsFile=" + filepath.Join(f.dir, "known_hosts"), "-o", "GlobalKnownHostsFile=none",
		"-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none"}
	for _, id := range ids {
		args = append(args, "-i", id)
	}
	return args
}

// ssh runs OpenSSH's client.
func (f *farm) ssh(args []string, command ...string) (string, error) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	_, port, _ := net.SplitHostPort(f.addr)
	cmd := exec.CommandContext(ctx, "ssh", append(append(args, "-p", port, "git@127.0.0.1"), command...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (f *farm) gitCmd(key, dir string, args ...string) *exec.Cmd {
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(testpkg.Env(), "GIT_SSH_COMMAND=ssh "+strings.Join(f.sshArgs(key), " "))
	return cmd
}

// git runs stock git over OpenSSH.
func (f *farm) git(key, dir string, args ...string) (string, error) {
	f.t.Helper()
	out, err := f.gitCmd(key, dir, args...).CombinedOutput()
	return string(out), err
}

func (f *farm) url(pkg string) string { return "ssh://git@" + f.addr + "/" + pkg + ".git" }

// dial connects with the SSH library, for what stock clients do not do.
func (f *farm) dial(key string) *gossh.Client {
	f.t.Helper()
	pem, err := os.ReadFile(key)
	if err != nil {
		f.t.Fatal(err)
	}
	signer, err := gossh.ParsePrivateKey(pem)
	if err != nil {
		f.t.Fatal(err)
	}
	c, err := gossh.Dial("tcp", f.addr, &gossh.ClientConfig{User: "git", Auth: []gossh.AuthMethod{gossh.PublicKeys(signer)}, HostKeyCallback: gossh.FixedHostKey(f.PublicKey())})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { c.Close() })
	return c
}

func (f *farm) repoNames() string {
	var names []string
	entries, err := os.ReadDir(filepath.Join(f.dir, "repos"))
	if err != nil {
		f.t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

func build(n int64, arch string) quarry.Build {
	return quarry.Build{Number: n, Arch: arch, State: quarry.Queued, Release: quarry.Release{Package: "hello", Version: "1.0", Channel: "testing"}}
}

// TestPushFetchClone is the main road, with stock git over OpenSSH.
func TestPushFetchClone(t *testing.T) {
	f := newFarm(t, nil)
	alice := f.person("alice", quarry.RoleMaintainer)
	f.daemon.OnPush(func(hooks.Push) ([]quarry.Build, error) { return []quarry.Build{build(12, "x86_64")}, nil })
	dir := testpkg.Init(t, "hello")
	out, err := f.git(alice, dir, "push", f.url("hello"), "HEAD:hello-1.0", "HEAD:master")
	if err != nil {
		t.Fatalf("push: %v\n%s", err, out)
	}
	_, port, _ := net.SplitHostPort(f.addr)
	for _, want := range []string{
		"remote: quarry: hello 1.0 (testing): build 12 for x86_64 is queued",
		"remote: quarry: master is stored and not built",
		"remote: quarry: follow it: ssh -p " + port + " 127.0.0.1 log -f 12",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("terminal does not show %q:\n%s", want, out)
		}
	}
	if p := f.daemon.Pushes(); len(p) != 1 || p[0].Packager.User != "alice" || !strings.HasPrefix(p[0].Packager.Key, "SHA256:") || p[0].Packager.Email != "alice@morphux.org" {
		t.Errorf("daemon heard %+v", p)
	}
	repo := filepath.Join(f.dir, "repos", "hello.git")
	note, ok, err := repos.ReadPush(t.Context(), repo, "hello-1.0")
	if err != nil || !ok || note.Packager.User != "alice" {
		t.Errorf("the repository says %+v, %v, %v", note, ok, err)
	}
	if log, err := os.ReadFile(filepath.Join(repo, "logs/refs/heads/hello-1.0")); err != nil || !strings.Contains(string(log), "Some alice <alice@morphux.org>") {
		t.Errorf("reflog does not name the pusher: %s, %v", log, err)
	}

	// A reader clones, with protocol 2, and sees nothing of Quarry's own refs.
	carol := f.person("carol", quarry.RoleReader)
	clone := filepath.Join(t.TempDir(), "clone")
	cmd := f.gitCmd(carol, t.TempDir(), "clone", f.url("hello"), clone)
	cmd.Env = append(cmd.Env, "GIT_TRACE_PACKET=1")
	trace, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(trace, []byte("clone< version 2")) {
		t.Errorf("clone does not speak protocol 2: %v\n%s", err, trace)
	}
	if bytes.Contains(trace, []byte("refs/quarry")) {
		t.Error("refs/quarry are shown to clients")
	}
	if got, want := testpkg.Git(t, clone, "rev-parse", "origin/hello-1.0"), testpkg.Git(t, dir, "rev-parse", "HEAD"); got != want {
		t.Errorf("cloned %s, pushed %s", got, want)
	}
	// The scp form, and protocol 0.
	cmd = f.gitCmd(carol, clone, "-c", "protocol.version=0", "fetch", "git@127.0.0.1:hello.git", "hello-1.0")
	cmd.Env = append(cmd.Env, "GIT_SSH_COMMAND=ssh -p "+port+" "+strings.Join(f.sshArgs(carol), " "))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("fetch: %v\n%s", err, out)
	}
	if out, err := f.git(carol, clone, "push", f.url("hello"), "HEAD:hello-1.0"); err == nil || !strings.Contains(out, "quarry: carol may not push hello") {
		t.Errorf("a reader pushed: %v\n%s", err, out)
	}
	if out, err := f.git(carol, clone, "fetch", f.url("nothing")); err == nil || !strings.Contains(out, "quarry: there is no package nothing") {
		t.Errorf("nothing was fetched: %v\n%s", err, out)
	}
	if names := f.repoNames(); names != "hello.git" {
		t.Errorf("repositories: %s", names)
	}
}

func TestUnknownKey(t *testing.T) {
	f := newFarm(t, nil)
	f.person("alice", quarry.RoleMaintainer)
	mallory := f.key("mallory")
	out, err := f.git(mallory, testpkg.Init(t, "hello"), "push", f.url("hello"), "HEAD:hello-1.0")
	pub, _ := os.ReadFile(mallory + ".pub")
	parsed, _, _, _, perr := gossh.ParseAuthorizedKey(pub)
	if perr != nil {
		t.Fatal(perr)
	}
	want := "quarry: ssh-ed25519 " + gossh.FingerprintSHA256(parsed) + ": key is unknown here: ask an admin to add it with quarry key add NAME"
	if err == nil || !strings.Contains(out, want) {
		t.Errorf("want %q, got %v\n%s", want, err, out)
	}
	if names := f.repoNames(); names != "" {
		t.Errorf("repositories: %s", names)
	}
	// Added while the server runs, it holds at once.
	if _, err := f.keys.Add("mallory", pub, keys.Change{}); err != nil {
		t.Fatal(err)
	}
	if out, err := f.git(mallory, testpkg.Init(t, "hello"), "push", f.url("hello"), "HEAD:hello-1.0"); err != nil {
		t.Errorf("after key add: %v\n%s", err, out)
	}
	yes := true
	if _, err := f.keys.Add("mallory", nil, keys.Change{Disabled: &yes}); err != nil {
		t.Fatal(err)
	}
	if out, err := f.ssh(f.sshArgs(mallory), "whoami"); err == nil || !strings.Contains(out, "this person is disabled") {
		t.Errorf("disabled: %v\n%s", err, out)
	}
}

// TestStolenPublicKey: a client that shows an admin's public key, which it
// cannot sign with, and then proves its own, is not the admin (CVE-2024-45337).
// OpenSSH does this by itself when it is given only the .pub of a key.
func TestStolenPublicKey(t *testing.T) {
	f := newFarm(t, nil)
	admin := f.person("root", quarry.RoleAdmin)
	bob := f.person("bob", quarry.RoleMaintainer, "lib*")
	if err := os.WriteFile(admin, []byte("the private half is somebody else's\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := append(f.sshArgs(admin, bob), "-v")
	out, err := f.ssh(args, "whoami")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.Contains(out, "Server accepts key: "+admin) {
		t.Fatalf("the client did not show the admin's key first:\n%s", out)
	}
	if !strings.Contains(out, "bob maintainer") || strings.Contains(out, "root admin") {
		t.Errorf("the client got another's rights:\n%s", out)
	}
	if out, err := f.ssh(f.sshArgs(admin), "whoami"); err == nil {
		t.Errorf("a key without its private half was enough:\n%s", out)
	}
}

// TestSeveralKeys: an unknown key tried first does not hide a known one, and is
// told of only the first time.
func TestSeveralKeys(t *testing.T) {
	f := newFarm(t, nil)
	other := f.key("other")
	alice := f.person("alice", quarry.RoleMaintainer)
	for i := range 2 {
		out, err := f.ssh(f.sshArgs(other, alice), "whoami")
		if err != nil || !strings.Contains(out, "alice maintainer") {
			t.Fatalf("%v\n%s", err, out)
		}
		if told := strings.Contains(out, "is unknown here"); told != (i == 0) {
			t.Errorf("connection %d: told %v\n%s", i, told, out)
		}
	}
}

// TestRights: patterns hold at the door, and what is refused leaves nothing.
func TestRights(t *testing.T) {
	f := newFarm(t, nil)
	bob := f.person("bob", quarry.RoleMaintainer, "lib*", "zlib")
	dir := testpkg.Init(t, "hello")
	if out, err := f.git(bob, dir, "push", f.url("hello"), "HEAD:hello-1.0"); err == nil || !strings.Contains(out, "quarry: bob may not push hello: ask an admin") {
		t.Errorf("%v\n%s", err, out)
	}
	// Allowed by pattern, refused by its recipe: the repository goes again.
	if out, err := f.git(bob, dir, "push", f.url("libhello"), "HEAD:libhello-1.0"); err == nil || !strings.Contains(out, `package.name is "hello"`) {
		t.Errorf("%v\n%s", err, out)
	}
	if names := f.repoNames(); names != "" {
		t.Errorf("repositories: %s", names)
	}
	if out, err := f.git(bob, dir, "push", f.url("libhello"), "HEAD:master"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if names := f.repoNames(); names != "libhello.git" {
		t.Errorf("repositories: %s", names)
	}
	// A refusal in a repository that holds something takes nothing away.
	if out, err := f.git(bob, dir, "push", f.url("libhello"), "HEAD:libhello-1.0"); err == nil {
		t.Errorf("%v\n%s", err, out)
	}
	if names := f.repoNames(); names != "libhello.git" {
		t.Errorf("repositories: %s", names)
	}
}

// TestOnlyWhatIsServed: commands and paths that are not served do nothing.
func TestOnlyWhatIsServed(t *testing.T) {
	f := newFarm(t, func(o *Options) { o.Verbs = nil })
	admin := f.person("root", quarry.RoleAdmin)
	secret := filepath.Join(f.dir, "secret.git")
	testpkg.Git(t, f.dir, "init", "-q", "--bare", secret)
	if err := os.Symlink(secret, filepath.Join(f.dir, "repos", "-link.git")); err != nil {
		t.Fatal(err)
	}
	c := f.dial(admin)
	before := f.repoNames()
	for _, command := range []string{
		"git-upload-pack '../secret.git'", "git-upload-pack '/../secret.git'", "git-upload-pack '" + secret + "'",
		"git-upload-pack 'x/../../secret.git'", "git-upload-pack '//secret.git'", "git-upload-pack '~root'", "git-upload-pack '/~/x.git'",
		"git-upload-pack '-link.git'", "git-upload-pack '--help'", "git-upload-pack '.git'", "git-upload-pack '..git'", "git-upload-pack ''",
		"git-upload-pack", "git-upload-pack a b", "git-upload-pack a.git.git", "git-upload-pack 'a.git/'", "git-upload-pack 'a\n'", "git-upload-pack 'a\x00b'",
		"git-receive-pack '../new.git'", "git-receive-pack 'a/b.git'", "git-receive-pack '$HOME.git'", "git-receive-pack `id`.git", "git-receive-pack a.git;id",
		"git-receive-pack a.git && id", "git-receive-pack \"$(id).git\"", "git-receive-pack 'é.git'", "git-receive-pack a.lock", "git-receive-pack " + strings.Repeat("a", 300) + ".git",
		"git-upload-archive 'x.git'", "git upload-archive x.git", "git", "git -c alias.x=!id x", "git --exec-path=/tmp receive-pack x.git", "git-shell", "git-receive-pack --help", "git receive-pack -- x.git",
		"sh", "/bin/sh -c id", "scp -t /tmp", "sftp", "rsync --server . /", "internal-sftp", "'", "\"", "\\", "\xff\xfe", strings.Repeat("x", words.MaxLine+1),
	} {
		se, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		var out, errOut bytes.Buffer
		se.Stdout, se.Stderr = &out, &errOut
		err = se.Run(command)
		if err == nil {
			t.Errorf("%.100q succeeded: %s", command, out.String())
		}
		if !strings.HasPrefix(errOut.String(), "quarry: ") || strings.Count(errOut.String(), "\n") != 1 || len(errOut.String()) > 600 || out.Len() > 0 {
			t.Errorf("%.100q says %q and %q, not one clear line", command, errOut.String(), out.String())
		}
		se.Close()
	}
	if names := f.repoNames(); names != before {
		t.Errorf("repositories: %s", names)
	}

	// Requests and channels.
	for name, payload := range map[string][]byte{
		"auth-agent-req@openssh.com": nil,
		"x11-req":                    gossh.Marshal(struct{ A bool }{}),
		"subsystem":                  gossh.Marshal(struct{ S string }{"sftp"}),
		"env":                        gossh.Marshal(struct{ K, V string }{"QUARRY_USER", "root"}),
		"break":                      gossh.Marshal(struct{ N uint32 }{1}),
	} {
		se, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		if ok, err := se.SendRequest(name, true, payload); ok || err != nil {
			t.Errorf("request %s is granted (%v)", name, err)
		}
		se.Close()
	}
	for k, want := range map[[2]string]bool{
		{"GIT_PROTOCOL", "version=2"}: true, {"GIT_PROTOCOL", "version=0"}: true, {"GIT_PROTOCOL", "version=3"}: false, {"GIT_PROTOCOL", "version=2:x"}: false,
		{"GIT_PROTOCOL", "version=2\n"}: false, {"GIT_TRACE", "/tmp/x"}: false, {"LD_PRELOAD", "x"}: false, {"GIT_SSH_COMMAND", "x"}: false,
	} {
		se, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		if err := se.Setenv(k[0], k[1]); (err == nil) != want {
			t.Errorf("environment %q: %v", k, err)
		}
		se.Close()
	}
	if _, err := c.Dial("tcp", f.addr); err == nil {
		t.Error("a port is forwarded")
	}
	if _, err := c.Listen("tcp", "127.0.0.1:0"); err == nil {
		t.Error("a port is forwarded back")
	}
	if _, _, err := c.OpenChannel("direct-streamlocal@openssh.com", nil); err == nil {
		t.Error("a socket is forwarded")
	}
}

// TestAlgorithms: what is old is not spoken.
func TestAlgorithms(t *testing.T) {
	f := newFarm(t, nil)
	alice := f.person("alice", quarry.RoleMaintainer)
	for _, opt := range []string{"KexAlgorithms=diffie-hellman-group14-sha256", "KexAlgorithms=diffie-hellman-group14-sha1", "Ciphers=aes128-ctr", "HostKeyAlgorithms=rsa-sha2-512", "Ciphers=3des-cbc"} {
		if out, err := f.ssh(append(f.sshArgs(alice), "-o", opt), "whoami"); err == nil || !strings.Contains(out, "no matching") {
			t.Errorf("%s: %v\n%s", opt, err, out)
		}
	}
	for _, opt := range []string{"KexAlgorithms=curve25519-sha256", "Ciphers=chacha20-poly1305@openssh.com", "Ciphers=aes256-gcm@openssh.com"} {
		if out, err := f.ssh(append(f.sshArgs(alice), "-o", opt), "whoami"); err != nil {
			t.Errorf("%s: %v\n%s", opt, err, out)
		}
	}
	for kind, bits := range map[string]string{"ecdsa": "384", "rsa": "2048"} {
		path := filepath.Join(t.TempDir(), kind)
		if out, err := exec.Command("ssh-keygen", "-q", "-t", kind, "-b", bits, "-N", "", "-f", path).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		pub, _ := os.ReadFile(path + ".pub")
		if _, err := f.keys.Add(kind, pub, keys.Change{}); err != nil {
			t.Fatal(err)
		}
		if out, err := f.ssh(f.sshArgs(path), "whoami"); err != nil || !strings.Contains(out, kind+" maintainer") {
			t.Errorf("%s: %v\n%s", kind, err, out)
		}
	}
	if out, err := f.ssh(append(f.sshArgs(alice), "-o", "PreferredAuthentications=password,keyboard-interactive"), "whoami"); err == nil {
		t.Errorf("a password was asked for:\n%s", out)
	}
}

func TestTwentyPushers(t *testing.T) {
	f := newFarm(t, nil)
	alice := f.person("alice", quarry.RoleMaintainer)
	dir := testpkg.Init(t, "hello")
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			pkg := fmt.Sprintf("pkg%d", i%10) // two push to one repository, which neither finds
			if out, err := f.git(alice, dir, "push", f.url(pkg), fmt.Sprintf("HEAD:refs/heads/side%d", i)); err != nil {
				t.Errorf("pusher %d: %v\n%s", i, err, out)
			}
		})
	}
	wg.Wait()
	for i := range 10 {
		repo := filepath.Join(f.dir, "repos", fmt.Sprintf("pkg%d.git", i))
		if got := testpkg.Git(t, repo, "for-each-ref", "--format=%(refname:short)"); got != fmt.Sprintf("side%d\nside%d", i, i+10) && got != fmt.Sprintf("side%d\nside%d", i+10, i) {
			t.Errorf("pkg%d holds %q", i, got)
		}
		testpkg.Git(t, repo, "fsck", "--strict")
	}
}

// oneReadOnly are repositories of which results.git is not a package's.
type oneReadOnly struct {
	*repos.Repos
	path string
}

func (o oneReadOnly) Path(pkg string) (string, error) {
	if pkg == "results" {
		return o.path, nil
	}
	return o.Repos.Path(pkg)
}

func (o oneReadOnly) Ensure(pkg string) (string, error) {
	if pkg == "results" {
		return "", fmt.Errorf("results.git is the database: %w", ErrReadOnly)
	}
	return o.Repos.Ensure(pkg)
}

// TestReadOnly: what Repos will not have pushed to can be fetched, and nothing
// in it changes, not even for an admin.
func TestReadOnly(t *testing.T) {
	path := testpkg.Bare(t, "hello", "1.0")
	f := newFarm(t, func(o *Options) { o.Repos = oneReadOnly{o.Repos.(*repos.Repos), path} })
	root := f.person("root", quarry.RoleAdmin)
	dir := testpkg.Init(t, "hello")
	before := testpkg.Git(t, path, "for-each-ref") + testpkg.Git(t, path, "config", "--list")
	if out, err := f.git(root, dir, "push", f.url("results"), "HEAD:side"); err == nil || !strings.Contains(out, "quarry: results.git is the database: only the farm writes it") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := f.git(root, dir, "fetch", f.url("results"), "hello-1.0"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if after := testpkg.Git(t, path, "for-each-ref") + testpkg.Git(t, path, "config", "--list"); after != before {
		t.Errorf("was\n%s\nis\n%s", before, after)
	}
}

// Who may push to a channel holds over SSH, and nobody gets past it by what the
// client sends along.
func TestChannelPermission(t *testing.T) {
	f := newFarm(t, func(o *Options) {
		o.Channels = []hooks.Channel{{Name: "stable", Push: []string{"carol"}}, {Name: "testing"}}
		o.Hooks.Channel = "testing"
	})
	alice, carol := f.person("alice", quarry.RoleMaintainer), f.person("carol", quarry.RoleMaintainer)
	dir := testpkg.Init(t, "hello")
	f.daemon.OnPush(func(hooks.Push) ([]quarry.Build, error) { return nil, nil })
	cmd := f.gitCmd(alice, dir, "push", "-o", "channel=stable", f.url("hello"), "HEAD:hello-1.0")
	for i, kv := range cmd.Env {
		if strings.HasPrefix(kv, "GIT_SSH_COMMAND=") {
			cmd.Env[i] = kv + " -o SetEnv=QUARRY_CHANNELS=stable"
		}
	}
	text, err := cmd.CombinedOutput()
	out := string(text)
	if err == nil || !strings.Contains(out, "remote: quarry: alice may not push to stable: carol and admins may") {
		t.Errorf("alice pushes to stable: %v\n%s", err, out)
	}
	for key, channel := range map[string]string{alice: "testing", carol: "stable"} {
		if out, err := f.git(key, dir, "push", "-f", "-o", "channel="+channel, f.url("hello"), "HEAD:hello-1.0"); err != nil {
			t.Errorf("%s: %v\n%s", channel, err, out)
		}
	}
}
