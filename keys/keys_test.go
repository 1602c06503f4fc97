package keys

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"golang.org/x/crypto/ssh"
)

// patience is how long anything may take on a slow machine that is busy.
const patience = 5 * time.Minute

func newKey(t testing.TB) ssh.PublicKey {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func line(k ssh.PublicKey, comment string) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k))) + " " + comment + "\n"
}

func put(t testing.TB, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestLookup(t *testing.T) {
	dir := t.TempDir()
	alice, alice2, bob, carol, dave := newKey(t), newKey(t), newKey(t), newKey(t), newKey(t)
	put(t, dir, "alice.pub", "# laptop\n\n"+line(alice, "Alice Liddell <alice@morphux.org>")+line(alice2, "work"))
	put(t, dir, "bob.pub", strings.TrimSpace(line(bob, "bob@host")))
	put(t, dir, "bob.toml", "name = \"Bob\"\nemail = \"bob@morphux.org\"\nrole = \"maintainer\"\npackages = [\"zlib\", \"lib*\"]\n")
	put(t, dir, "carol.pub", line(carol, ""))
	put(t, dir, "carol.toml", "disabled = true\n")
	put(t, dir, "dave.pub", line(dave, ""))
	put(t, dir, "dave.toml", "role = \"admin\"\n")
	put(t, dir, "README", "not a key")
	s := open(t, dir)

	for _, tt := range []struct {
		key  ssh.PublicKey
		user string
		name string
		role quarry.Role
		zlib bool
		vim  bool
	}{
		{alice, "alice", "Alice Liddell", quarry.RoleMaintainer, true, true},
		{alice2, "alice", "Alice Liddell", quarry.RoleMaintainer, true, true},
		{bob, "bob", "Bob", quarry.RoleMaintainer, true, false},
		{dave, "dave", "", quarry.RoleAdmin, true, true},
	} {
		id, err := s.Lookup(tt.key)
		if err != nil {
			t.Errorf("%s: %v", tt.user, err)
			continue
		}
		if id.User != tt.user || id.Name != tt.name || id.Role != tt.role || id.MayPush("zlib") != tt.zlib || id.MayPush("vim") != tt.vim || id.Key != ssh.FingerprintSHA256(tt.key) {
			t.Errorf("%s is %+v", tt.user, id)
		}
	}
	if _, err := s.Lookup(carol); !errors.Is(err, ErrDisabled) {
		t.Errorf("disabled carol: %v", err)
	}
	if _, err := s.Lookup(newKey(t)); !errors.Is(err, ErrUnknown) {
		t.Errorf("unknown key: %v", err)
	}
	if _, problems, err := s.List(); err != nil || len(problems) > 0 {
		t.Errorf("problems %v, %v", problems, err)
	}
}

// dsaKey is what ssh-keygen -t dsa made while it still did.
const dsaKey = "ssh-dss AAAAB3NzaC1kc3MAAACBAObYVcg/T8f9MPwQmVCnuMmxCKtuY6fbRMz++eW8dwed/afKDiDpH504SVTZTmdPkcLKGCqFh7A0+aQo1VPMCI8I79PMAre1mPQiOKlYOI2Ur9Pdid5q2ZjbzVfUTXtmNkDNUfZTfRrbY4ZLnYprtl6/VQmMvYG/kXNOLjHJ8iQRAAAAFQDQO7RGYWBpqgbMaz9QnZSERA6p0QAAAIBST+bYwdWAU/SnhDW7FdCt4rl8h7rLQeZBkO9fajrrFGi4SD1PV9u3lGXHvBqtITvmZYQMfut0KVZZwZVHx79sM/FYSDSFmGkq/1t0N973mtV/OMoGOKJED/tBFnMCOH6Hr1FO8HzXbVICweb/QwgFOfLux1AL+JruTk39lTWMuwAAAIBxC0XTH0auuiuY71qHp26cux7skN91cpxbk/msMlofRui+CM1XA3uCjoaFwGZRGJS4+DkeHFsHi3UBhY7mOxkFqIFa+xkrbzfeuZtzZJVVEvW1Kc7XdMRUw92wtaqDlBdHEs8GavDoDUSyX1VYytGzwIzuDu/TW2pUwJsjH2jvQQ== old"

// TestBroken: each broken file is a problem of its own, gives its owner
// nothing, and takes nothing from the others.
func TestBroken(t *testing.T) {
	good := newKey(t)
	weak := func() ssh.PublicKey {
		k, err := rsa.GenerateKey(rand.Reader, 1024)
		if err != nil {
			t.Fatal(err)
		}
		p, _ := ssh.NewPublicKey(&k.PublicKey)
		return p
	}
	t.Setenv("GODEBUG", "rsa1024min=0")
	mine := newKey(t)
	_, caPriv, _ := ed25519.GenerateKey(rand.Reader)
	ca, _ := ssh.NewSignerFromKey(caPriv)
	cert := &ssh.Certificate{Key: mine, CertType: ssh.UserCert, ValidBefore: ssh.CertTimeInfinity}
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}

	for name, tt := range map[string]struct {
		pub, toml string
		says      string // in the problem
		line      int
	}{
		"from":        {pub: "from=\"10.0.0.0/8\" " + line(mine, ""), says: "options before a key", line: 1},
		"command":     {pub: "command=\"rm -rf /\",no-pty " + line(mine, ""), says: "options before a key", line: 1},
		"restrict":    {pub: "restrict " + line(mine, ""), says: "options before a key", line: 1},
		"weak":        {pub: line(weak(), ""), says: "1024 bits", line: 1},
		"dsa":         {pub: "\n" + dsaKey + "\n", says: "ssh-dss", line: 2},
		"cert":        {pub: line(cert, ""), says: "certificates are not taken", line: 1},
		"private":     {pub: "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n", says: "no public key", line: 1},
		"junk":        {pub: "hello\x00\xff\n", says: "not a public key", line: 1},
		"cut":         {pub: line(mine, "")[:40] + "\n", says: "not a public key", line: 1},
		"huge":        {pub: strings.Repeat("#\n", MaxFile), says: "more than"},
		"unknown-key": {pub: line(mine, ""), toml: "name = \"M\"\nrol = \"admin\"\n", says: `key "rol" is unknown`, line: 2},
		"bad-role":    {pub: line(mine, ""), toml: "role = \"root\"\n", says: `role "root" is unknown`},
		"bad-mail":    {pub: line(mine, ""), toml: "mail = \"never\"\n", says: `mail "never" is unknown`},
		"bad-toml":    {pub: line(mine, ""), toml: "role =\n", says: "", line: 1},
		"bad-type":    {pub: line(mine, ""), toml: "\npackages = \"zlib\"\n", says: "", line: 2},
		"bad-pattern": {pub: line(mine, ""), toml: "packages = [\"[\"]\n", says: "package pattern"},
		"bad-name":    {pub: line(mine, ""), toml: "name = \"a\\nb\"\n", says: "cannot stand in a commit"},
		"admin-of":    {pub: line(mine, ""), toml: "role = \"reader\"\npackages = [\"a\"]\n", says: "only mean something"},
		"no-keys":     {toml: "name = \"X\"\n", says: "no usable key"},
		"-dash":       {pub: line(mine, ""), says: "may not begin with"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, dir, "good.pub", line(good, ""))
			if tt.pub != "" {
				put(t, dir, name+".pub", tt.pub)
			}
			if tt.toml != "" {
				put(t, dir, name+".toml", tt.toml)
			}
			s := open(t, dir)
			if id, err := s.Lookup(good); err != nil || id.User != "good" {
				t.Errorf("a broken file took good's key with it: %v", err)
			}
			if id, err := s.Lookup(mine); err == nil {
				t.Errorf("a key of a broken file is taken: %+v", id)
			}
			_, problems, err := s.List()
			if err != nil || len(problems) != 1 {
				t.Fatalf("problems %v, error %v, want one problem", problems, err)
			}
			p := problems[0]
			if !strings.HasPrefix(p.File, name) || p.Line != tt.line || !strings.Contains(p.Message, tt.says) || strings.Contains(p.Message, "\n") {
				t.Errorf("problem %q, line %d; want line %d and %q", p, p.Line, tt.line, tt.says)
			}
		})
	}
}

// TestGoodLineBesideBad: one bad line takes no other line with it.
func TestGoodLineBesideBad(t *testing.T) {
	dir := t.TempDir()
	k := newKey(t)
	put(t, dir, "alice.pub", "rubbish\n"+line(k, "x"))
	s := open(t, dir)
	if _, err := s.Lookup(k); err != nil {
		t.Error(err)
	}
}

func TestSharedKey(t *testing.T) {
	dir := t.TempDir()
	k, own := newKey(t), newKey(t)
	put(t, dir, "alice.pub", line(k, "")+line(k, "twice is fine")+line(own, ""))
	s := open(t, dir)
	if _, err := s.Lookup(k); err != nil {
		t.Fatal(err)
	}
	put(t, dir, "mallory.pub", line(k, ""))
	put(t, dir, "mallory.toml", "role = \"admin\"\n")
	if id, err := s.Lookup(k); !errors.Is(err, ErrShared) {
		t.Errorf("a key of two people is %+v, %v", id, err)
	}
	if id, err := s.Lookup(own); err != nil || id.User != "alice" {
		t.Errorf("alice's other key: %+v, %v", id, err)
	}
	_, problems, _ := s.List()
	if len(problems) != 1 || !strings.Contains(problems[0].Message, "alice's") {
		t.Errorf("problems: %v", problems)
	}
}

// TestOddFiles: what is no regular file neither blocks nor breaks anything.
func TestOddFiles(t *testing.T) {
	dir := t.TempDir()
	k := newKey(t)
	put(t, dir, "good.pub", line(k, ""))
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo.pub"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.Mkdir(filepath.Join(dir, "dir.pub"), 0o755),
		os.Symlink("nowhere", filepath.Join(dir, "dangling.pub")),
		os.Symlink("loop.pub", filepath.Join(dir, "loop.pub")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	put(t, dir, ".good.pub.swp", "rubbish")
	done := make(chan struct{})
	go func() {
		defer close(done)
		s := open(t, dir)
		if _, err := s.Lookup(k); err != nil {
			t.Error(err)
		}
		if _, problems, _ := s.List(); len(problems) != 4 {
			t.Errorf("problems: %v", problems)
		}
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("reading the folder hangs")
	}
}

// TestEffectiveAtOnce: the look-up after a change sees it, with no watcher
// running and however quickly changes follow on one another.
func TestEffectiveAtOnce(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	a, b := newKey(t), newKey(t)
	for i := range 50 {
		k, other := a, b
		if i%2 == 1 {
			k, other = b, a
		}
		put(t, dir, "alice.pub", line(k, "")) // in place, same size
		if _, err := s.Lookup(k); err != nil {
			t.Fatalf("round %d: the new key: %v", i, err)
		}
		if _, err := s.Lookup(other); !errors.Is(err, ErrUnknown) {
			t.Fatalf("round %d: the old key: %v", i, err)
		}
	}
	if err := os.Remove(filepath.Join(dir, "alice.pub")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Lookup(b); !errors.Is(err, ErrUnknown) {
		t.Errorf("the key of a removed file: %v", err)
	}
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// TestWatch: a problem is in the log without anybody looking anything up.
func TestWatch(t *testing.T) {
	dir := t.TempDir()
	var log safeBuffer
	s, err := Open(dir, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Watch(ctx) }()
	deadline := time.Now().Add(patience)
	for !strings.Contains(log.String(), "mallory.pub:1") {
		if time.Now().After(deadline) {
			t.Fatalf("the problem is not in the log: %s", log.String())
		}
		put(t, dir, "mallory.pub", "rubbish\n")
		time.Sleep(20 * time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func ptr[T any](v T) *T { return &v }

func TestAddRemove(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	k, k2 := newKey(t), newKey(t)

	if _, err := s.Add("alice", nil, Change{Role: ptr(quarry.RoleAdmin)}); err == nil {
		t.Error("somebody without a key was added")
	}
	p, err := s.Add("alice", []byte(line(k, "laptop")), Change{Name: ptr("Alice Liddell"), Email: ptr("alice@morphux.org"), Packages: []string{"zlib", "lib*"}})
	if err != nil {
		t.Fatal(err)
	}
	if p.User != "alice" || len(p.Keys) != 1 || p.Keys[0].Comment != "laptop" {
		t.Errorf("added %+v", p)
	}
	// A second key; the first stays, what is known stays.
	if p, err = s.Add("alice", []byte(line(k, "")+line(k2, "desk")), Change{}); err != nil || len(p.Keys) != 2 {
		t.Fatalf("second key: %+v, %v", p, err)
	}
	// Another Quarry reads the same.
	id, err := open(t, dir).Lookup(k2)
	if err != nil || id.Name != "Alice Liddell" || !id.MayPush("libfoo") || id.MayPush("vim") {
		t.Errorf("read back: %+v, %v", id, err)
	}
	// Promotion drops the patterns, which mean nothing for an admin.
	if p, err = s.Add("alice", nil, Change{Role: ptr(quarry.RoleAdmin)}); err != nil || p.Role != quarry.RoleAdmin || len(p.Packages) != 0 {
		t.Errorf("promotion: %+v, %v", p, err)
	}
	if _, err := s.Add("bob", []byte(line(k, "")), Change{}); err == nil || !strings.Contains(err.Error(), "alice's") {
		t.Errorf("bob got alice's key: %v", err)
	}
	for what, data := range map[string]string{"options": "command=\"x\" " + line(newKey(t), ""), "rubbish": "x\n", "one bad line": line(newKey(t), "") + "x\n"} {
		if _, err := s.Add("bob", []byte(data), Change{}); err == nil {
			t.Errorf("%s was added", what)
		}
	}
	for _, user := range []string{"../alice", "", "-x", "a/b", ".ssh"} {
		if _, err := s.Add(user, []byte(line(newKey(t), "")), Change{}); err == nil {
			t.Errorf("user %q was added", user)
		}
		if err := s.Remove(user); err == nil {
			t.Errorf("user %q was removed", user)
		}
	}
	if _, err := s.Add("eve", []byte(line(newKey(t), "")), Change{Role: ptr(quarry.Role("root"))}); err == nil {
		t.Error("an unknown role was added")
	}
	if _, err := s.Lookup(k); err != nil {
		t.Errorf("refusals changed something: %v", err)
	}
	if err := s.Remove("alice"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Lookup(k); !errors.Is(err, ErrUnknown) {
		t.Errorf("a removed key: %v", err)
	}
	if err := s.Remove("alice"); err == nil || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("removing nobody: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, ".new-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestAddAtOnce: keys added at the same time by several processes all stay.
func TestAddAtOnce(t *testing.T) {
	dir := t.TempDir()
	const n = 20
	var wg sync.WaitGroup
	keys := make([]ssh.PublicKey, n)
	for i := range keys {
		keys[i] = newKey(t)
		wg.Go(func() {
			s := open(t, dir)
			if _, err := s.Add("alice", []byte(line(keys[i], "")), Change{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	s := open(t, dir)
	for i, k := range keys {
		if _, err := s.Lookup(k); err != nil {
			t.Errorf("key %d: %v", i, err)
		}
	}
}

func TestCheck(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rk, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, raw := range []any{&ec.PublicKey, &rk.PublicKey} {
		k, err := ssh.NewPublicKey(raw)
		if err != nil {
			t.Fatal(err)
		}
		if err := Check(k); err != nil {
			t.Errorf("%s: %v", k.Type(), err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(line(newKey(f), "Alice <a@b>")), []byte("name = \"x\"\n"))
	f.Add([]byte("from=\"x\" ssh-ed25519 AAAA\n#\n\n"), []byte("packages = [\"[\"]\nrole=\"admin\""))
	f.Fuzz(func(t *testing.T, pub, side []byte) {
		keys, problems := ParseKeys("f.pub", pub)
		for _, k := range keys {
			again, bad := ParseKeys("f.pub", []byte(k.Marshal()+"\n"))
			if len(bad) > 0 || len(again) != 1 || again[0].blob != k.blob {
				t.Fatalf("%q does not read back: %v", k.Marshal(), bad)
			}
			if n, e := fromComment(k.Comment); strings.ContainsAny(n+e, "<>\n\x00") {
				t.Fatalf("comment %q gave %q, %q", k.Comment, n, e)
			}
		}
		for _, p := range problems {
			if strings.ContainsAny(p.String(), "\n\x00\x1b") {
				t.Fatalf("problem %q is not one plain line", p)
			}
		}
		p, bad := parsePerson("f.toml", side)
		if bad == nil && p.check() != nil {
			t.Fatalf("%+v was taken and does not pass", p)
		}
		if bad != nil && strings.ContainsAny(bad.String(), "\n\x00\x1b") {
			t.Fatalf("problem %q is not one plain line", bad)
		}
	})
}
