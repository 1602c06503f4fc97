package sshd

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/hooks"
	"github.com/Morphux/quarry/internal/testpkg"
	"github.com/Morphux/quarry/repos"
	"github.com/Morphux/quarry/trust"
	gossh "golang.org/x/crypto/ssh"
)

// signedFarm takes signed pushes; stable takes no others.
func signedFarm(t *testing.T) *farm {
	f := newFarm(t, func(o *Options) {
		store := o.Keys.(interface {
			Keys(string) ([]gossh.PublicKey, error)
		})
		o.Signed = Signed{Keys: store.Keys}
		o.Channels = []hooks.Channel{{Name: "stable", Signed: true}, {Name: "testing"}}
		o.Hooks.Channel = "testing"
	})
	f.daemon.OnPush(func(hooks.Push) ([]quarry.Build, error) { return nil, nil })
	return f
}

// signWith are the options of git that sign with a key.
func signWith(key string) []string {
	return []string{"-c", "gpg.format=ssh", "-c", "user.signingKey=" + key}
}

func fingerprint(t *testing.T, key string) string {
	t.Helper()
	data, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	pub, _, _, _, err := gossh.ParseAuthorizedKey(data)
	if err != nil {
		t.Fatal(err)
	}
	return gossh.FingerprintSHA256(pub)
}

// note is what the repository of hello says of a branch.
func (f *farm) note(branch string) repos.Push {
	f.t.Helper()
	note, ok, err := repos.ReadPush(f.t.Context(), filepath.Join(f.dir, "repos", "hello.git"), branch)
	if err != nil || !ok {
		f.t.Fatalf("%s is not noted: %v", branch, err)
	}
	return note
}

// TestSignedPush is stock git push --signed, with an SSH key, over OpenSSH.
func TestSignedPush(t *testing.T) {
	f := signedFarm(t)
	alice, bob, stranger := f.person("alice", quarry.RoleMaintainer), f.person("bob", quarry.RoleMaintainer), f.key("stranger")
	dir := testpkg.Init(t, "hello")
	repo := filepath.Join(f.dir, "repos", "hello.git")
	push := func(who, with string, words ...string) (string, error) {
		t.Helper()
		return f.git(who, dir, append(append(signWith(with), "push"), words...)...)
	}

	out, err := push(alice, alice, "--signed", f.url("hello"), "HEAD:hello-1.0", "HEAD:master")
	if err != nil {
		t.Fatalf("push: %v\n%s", err, out)
	}
	note := f.note("hello-1.0")
	if note.Packager.Signed != fingerprint(t, alice) || note.Packager.Key != note.Packager.Signed {
		t.Errorf("noted is %+v", note.Packager)
	}
	if p := f.daemon.Pushes(); len(p) != 1 || p[0].Packager != note.Packager {
		t.Errorf("the daemon heard %+v, and noted is %+v", p, note.Packager)
	}
	// The certificate outlives git's cleaning, and anybody can check it.
	testpkg.Git(t, repo, "gc", "-q", "--prune=now")
	cert, err := repos.Certificate(repo, note.Packager.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	head, sig, _ := strings.Cut(string(cert), "-----BEGIN SSH SIGNATURE-----")
	keys, err := f.keys.Keys("alice")
	if err != nil {
		t.Fatal(err)
	}
	allowed := trust.AllowedSigners{{Principal: "alice", Key: keys[0], Namespaces: []string{trust.Git}}}
	if _, err := allowed.Verify(trust.Git, []byte(head), []byte("-----BEGIN SSH SIGNATURE-----"+sig), note.Pushed); err != nil {
		t.Errorf("the certificate that is kept: %v\n%s", err, cert)
	}
	commit := testpkg.Git(t, dir, "rev-parse", "HEAD")
	if !strings.Contains(head, commit+" refs/heads/hello-1.0\n") {
		t.Errorf("the certificate does not say what was pushed:\n%s", cert)
	}

	// A push of the same branch that is not signed takes its signature with it.
	testpkg.Git(t, dir, "commit", "-q", "--allow-empty", "-m", "More")
	if out, err := push(alice, alice, f.url("hello"), "HEAD:hello-1.0"); err != nil {
		t.Fatalf("push: %v\n%s", err, out)
	}
	if p := f.note("hello-1.0").Packager; p.Signed != "" || p.Certificate != "" {
		t.Errorf("noted is %+v", p)
	}
	if _, err := repos.Certificate(repo, note.Packager.Certificate); err != nil {
		t.Errorf("the older certificate is gone: %v", err)
	}

	refs := testpkg.Git(t, repo, "for-each-ref", "refs/heads", "refs/quarry/cert")
	testpkg.Git(t, dir, "commit", "-q", "--allow-empty", "-m", "Yet more")
	for _, c := range []struct {
		what, who, with string
		words           []string
		says            string
	}{
		{"a key that nobody knows", alice, stranger, []string{"--signed"}, "quarry: the push is signed by " + fingerprint(t, stranger) + ", which is no key of alice"},
		{"somebody else's key", alice, bob, []string{"--signed"}, "quarry: the push is signed by " + fingerprint(t, bob) + ", which is no key of alice"},
		{"nothing, where a signature is required", alice, alice, []string{"-o", "channel=stable"}, "quarry: stable takes only signed pushes"},
	} {
		words := append(c.words, f.url("hello"), "HEAD:hello-1.0")
		if out, err := push(c.who, c.with, words...); err == nil || !strings.Contains(out, c.says) {
			t.Errorf("signed with %s: %v\n%s", c.what, err, out)
		}
	}
	if again := testpkg.Git(t, repo, "for-each-ref", "refs/heads", "refs/quarry/cert"); again != refs {
		t.Errorf("refused pushes have left\n%s\nand before there was\n%s", again, refs)
	}

	if out, err := push(alice, alice, "--signed=if-asked", "-o", "channel=stable", f.url("hello"), "HEAD:hello-1.0"); err != nil {
		t.Errorf("a signed push to stable: %v\n%s", err, out)
	}
	// Nor does it leave the channel without.
	testpkg.Git(t, dir, "commit", "-q", "--allow-empty", "-m", "The last")
	for _, what := range []string{"HEAD:hello-1.0", ":hello-1.0"} {
		if out, err := push(alice, alice, f.url("hello"), what); err == nil || !strings.Contains(out, "quarry: stable takes only signed pushes") {
			t.Errorf("push of %s: %v\n%s", what, err, out)
		}
	}
	if out, err := push(alice, alice, "--signed", f.url("hello"), ":hello-1.0"); err != nil {
		t.Errorf("a signed deletion: %v\n%s", err, out)
	}
	if left, err := filepath.Glob(filepath.Join(f.dir, "git", signersPrefix+"*")); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}

// Where signing is not offered, git says so, or pushes unsigned if it may.
func TestSigningOff(t *testing.T) {
	f := newFarm(t, nil)
	f.daemon.OnPush(func(hooks.Push) ([]quarry.Build, error) { return nil, nil })
	alice := f.person("alice", quarry.RoleMaintainer)
	dir := testpkg.Init(t, "hello")
	if out, err := f.git(alice, dir, append(signWith(alice), "push", "--signed", f.url("hello"), "HEAD:hello-1.0")...); err == nil || !strings.Contains(out, "does not support --signed") {
		t.Errorf("push --signed: %v\n%s", err, out)
	}
	if out, err := f.git(alice, dir, append(signWith(alice), "push", "--signed=if-asked", f.url("hello"), "HEAD:hello-1.0")...); err != nil {
		t.Errorf("push --signed=if-asked: %v\n%s", err, out)
	}
}

// rawPush speaks the protocol of git's pushes by hand, so that it can say what
// stock git never would.
type rawPush struct {
	t       *testing.T
	session *gossh.Session
	in      io.WriteCloser
	out     *bufio.Reader
	errs    bytes.Buffer
	nonce   string
}

func (f *farm) rawPush(key string) *rawPush {
	f.t.Helper()
	t := f.t.(*testing.T)
	p := &rawPush{t: t}
	var err error
	if p.session, err = f.dial(key).NewSession(); err != nil {
		t.Fatal(err)
	}
	if p.in, err = p.session.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.session.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out, p.session.Stderr = bufio.NewReader(out), &p.errs
	if err := p.session.Start("git-receive-pack '/hello.git'"); err != nil {
		t.Fatal(err)
	}
	for {
		line, ok := p.read()
		if !ok {
			break
		}
		if m := regexp.MustCompile(`push-cert=(\S+)`).FindStringSubmatch(line); m != nil {
			p.nonce = m[1]
		}
	}
	if p.nonce == "" {
		t.Fatal("the server does not offer signed pushes")
	}
	return p
}

// read reads a line as git frames them; false at the end of a list.
func (p *rawPush) read() (string, bool) {
	p.t.Helper()
	head := make([]byte, 4)
	if _, err := io.ReadFull(p.out, head); err != nil {
		return "", false
	}
	n, err := strconv.ParseUint(string(head), 16, 16)
	if err != nil {
		p.t.Fatalf("%q is no length", head)
	}
	if n < 4 {
		return "", false
	}
	text := make([]byte, n-4)
	if _, err := io.ReadFull(p.out, text); err != nil {
		p.t.Fatal(err)
	}
	return string(text), true
}

// send gives a certificate and an empty pack, and returns what the server says.
func (p *rawPush) send(cert string, more ...string) string {
	p.t.Helper()
	var b bytes.Buffer
	line := func(s string) { fmt.Fprintf(&b, "%04x%s", len(s)+4, s) }
	line("push-cert\x00 report-status object-format=sha1")
	for l := range strings.Lines(cert) {
		line(l)
	}
	line("push-cert-end\n")
	for _, l := range more {
		line(l)
	}
	b.WriteString("0000")
	pack := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32([]byte("PACK"), 2), 0)
	sum := sha1.Sum(pack)
	b.Write(append(pack, sum[:]...))
	if _, err := p.in.Write(b.Bytes()); err != nil {
		p.t.Fatal(err)
	}
	p.in.Close()
	var said strings.Builder
	for {
		l, ok := p.read()
		if !ok {
			break
		}
		said.WriteString(l)
	}
	p.session.Wait()
	return said.String() + p.errs.String()
}

// certify makes a certificate as git does, signed by a key.
func certify(t *testing.T, key, nonce string, refs ...string) string {
	t.Helper()
	text := "certificate version 0.1\npusher " + key + " 1700000000 +0000\nnonce " + nonce + "\n\n" + strings.Join(refs, "\n") + "\n"
	cmd := exec.Command("ssh-keygen", "-Y", "sign", "-n", "git", "-f", key)
	cmd.Stdin = strings.NewReader(text)
	sig, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return text + string(sig)
}

// TestForgedCertificates sends what stock git would not.
func TestForgedCertificates(t *testing.T) {
	f := signedFarm(t)
	alice := f.person("alice", quarry.RoleMaintainer)
	dir := testpkg.Init(t, "hello")
	if out, err := f.git(alice, dir, "push", f.url("hello"), "HEAD:master"); err != nil {
		t.Fatalf("push: %v\n%s", err, out)
	}
	commit := testpkg.Git(t, dir, "rev-parse", "HEAD")
	none := strings.Repeat("0", 40)
	release := func(v string) string { return none + " " + commit + " refs/heads/hello-" + v }

	// That it is done right here is seen by that it is taken.
	p := f.rawPush(alice)
	old := certify(t, alice, p.nonce, release("1.0"))
	if said := p.send(old); !strings.Contains(said, "ok refs/heads/hello-1.0") {
		t.Fatalf("a good certificate is refused: %s", said)
	}
	if f.note("hello-1.0").Packager.Signed != fingerprint(t, alice) {
		t.Error("it is not noted")
	}
	testpkg.Git(t, filepath.Join(f.dir, "repos", "hello.git"), "update-ref", "-d", "refs/heads/hello-1.0")

	for what, c := range map[string]struct {
		send func(p *rawPush) string
		says string
	}{
		"replayed": {func(p *rawPush) string { return p.send(old) }, "the certificate is not of this push"},
		"of no push": {func(p *rawPush) string {
			return p.send(certify(t, alice, "", release("1.0")))
		}, "the certificate is not of this push"},
		"changed after it was signed": {func(p *rawPush) string {
			cert := certify(t, alice, p.nonce, release("9.9"))
			return p.send(strings.Replace(cert, "hello-9.9", "hello-1.0", 1))
		}, "the signature of the push does not hold"},
		"with its signature cut off": {func(p *rawPush) string {
			cert, _, _ := strings.Cut(certify(t, alice, p.nonce, release("1.0")), "-----BEGIN")
			return p.send(cert)
		}, "signature"},
		"of another purpose": {func(p *rawPush) string {
			cert, _, _ := strings.Cut(certify(t, alice, p.nonce, release("1.0")), "-----BEGIN")
			cmd := exec.Command("ssh-keygen", "-Y", "sign", "-n", "file", "-f", alice)
			cmd.Stdin = strings.NewReader(cert)
			sig, err := cmd.Output()
			if err != nil {
				t.Error(err)
			}
			return p.send(cert + string(sig))
		}, "quarry: the "},
		"with a branch beside it": {func(p *rawPush) string {
			return p.send(certify(t, alice, p.nonce, release("1.1")), release("1.0")+"\x00 report-status\n")
		}, ""},
	} {
		said := c.send(f.rawPush(alice))
		if strings.Contains(said, "ok refs/heads/hello") || !strings.Contains(said, c.says) {
			t.Errorf("a certificate %s: %s", what, said)
		}
	}
	if refs := testpkg.Git(t, filepath.Join(f.dir, "repos", "hello.git"), "for-each-ref", "refs/heads"); strings.Contains(refs, "hello-") {
		t.Errorf("there is\n%s", refs)
	}
}
