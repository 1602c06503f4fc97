package trust

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

func signer(t *testing.T) (*Signer, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "signing_key")
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return s, path
}

func run(t *testing.T, in []byte, name string, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("%s is missing: make deps installs what the tests need", name)
	}
	cmd := exec.Command(name, args...)
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestAgreesWithOpenSSH signs for ssh-keygen, and checks what that signs.
func TestAgreesWithOpenSSH(t *testing.T) {
	s, path := signer(t)
	dir := t.TempDir()
	data := []byte("in this quarry\n")
	allowed := AllowedSigners{{Principal: "quarry@localhost", Key: s.Public(), Namespaces: []string{Git, Provenance}}}
	signers := filepath.Join(dir, "allowed")
	if err := os.WriteFile(signers, []byte(allowed.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	sig, err := s.Sign(Git, data)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "sig")
	if err := os.WriteFile(file, sig, 0o644); err != nil {
		t.Fatal(err)
	}
	verify := func(namespace string, data []byte) (string, error) {
		return run(t, data, "ssh-keygen", "-Y", "verify", "-f", signers, "-I", "quarry@localhost", "-n", namespace, "-s", file)
	}
	if out, err := verify(Git, data); err != nil {
		t.Errorf("ssh-keygen does not take the signature: %s", out)
	}
	if _, err := verify(Git, append(data, '!')); err == nil {
		t.Error("ssh-keygen takes it for something else")
	}
	if _, err := verify(Provenance, data); err == nil {
		t.Error("ssh-keygen takes it for another purpose")
	}

	theirs := filepath.Join(dir, "theirs")
	if err := os.WriteFile(theirs, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := run(t, nil, "ssh-keygen", "-Y", "sign", "-f", path, "-n", Git, theirs); err != nil {
		t.Fatalf("ssh-keygen: %s", out)
	}
	made, err := os.ReadFile(theirs + ".sig")
	if err != nil {
		t.Fatal(err)
	}
	key, err := allowed.Verify(Git, data, made, time.Now())
	if err != nil || ssh.FingerprintSHA256(key) != s.Fingerprint() {
		t.Errorf("what ssh-keygen signs is not taken: %v", err)
	}
}

func TestVerify(t *testing.T) {
	s, _ := signer(t)
	other, _ := signer(t)
	data := []byte("data")
	sig, err := s.Sign(Git, data)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)
	one := func(a AllowedSigner) AllowedSigners { return AllowedSigners{{Principal: "x", Key: other.Public()}, a} }
	for name, c := range map[string]struct {
		who       AllowedSigners
		namespace string
		data, sig []byte
		why       string // "": it is taken
		untrusted bool
	}{
		"good":               {one(AllowedSigner{Key: s.Public()}), Git, data, sig, "", false},
		"before it ended":    {one(AllowedSigner{Key: s.Public(), Before: now.Add(time.Second)}), Git, data, sig, "", false},
		"for the purpose":    {one(AllowedSigner{Key: s.Public(), Namespaces: []string{Provenance, Git}}), Git, data, sig, "", false},
		"nobody":             {nil, Git, data, sig, "not trusted", true},
		"somebody else":      {AllowedSigners{{Key: other.Public()}}, Git, data, sig, "not trusted", true},
		"after it ended":     {one(AllowedSigner{Key: s.Public(), Before: now.Add(-time.Second)}), Git, data, sig, "not trusted", true},
		"not for this":       {one(AllowedSigner{Key: s.Public(), Namespaces: []string{Provenance}}), Git, data, sig, "not trusted", true},
		"other purpose":      {one(AllowedSigner{Key: s.Public()}), Provenance, data, sig, `made for "git"`, false},
		"other data":         {one(AllowedSigner{Key: s.Public()}), Git, []byte("Data"), sig, "does not fit", false},
		"no signature":       {one(AllowedSigner{Key: s.Public()}), Git, data, []byte("hello"), "cannot be read", false},
		"none at all":        {one(AllowedSigner{Key: s.Public()}), Git, data, nil, "cannot be read", false},
		"cut in the middle":  {one(AllowedSigner{Key: s.Public()}), Git, data, sig[:len(sig)/2], "cannot be read", false},
		"changed on the way": {one(AllowedSigner{Key: s.Public()}), Git, data, bytes.Replace(sig, []byte("A"), []byte("B"), 1), "", false},
	} {
		_, err := c.who.Verify(c.namespace, c.data, c.sig, now)
		switch {
		case name == "changed on the way":
			if err == nil {
				t.Error("a changed signature is taken")
			}
		case (err == nil) != (c.why == ""), err != nil && !strings.Contains(err.Error(), c.why), errors.Is(err, ErrUntrusted) != c.untrusted:
			t.Errorf("%s: %v, want %q", name, err, c.why)
		}
	}
}

func TestAllowedSigners(t *testing.T) {
	s, _ := signer(t)
	list := AllowedSigners{
		{Principal: "quarry@localhost", Key: s.Public(), Namespaces: []string{Git, Provenance}, Before: time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)},
		{Principal: "quarry@farm", Key: s.Public()},
	}
	read, err := ParseAllowedSigners([]byte("# keys\n\n" + list.String()))
	if err != nil || read.String() != list.String() || len(read) != 2 {
		t.Errorf("%v\nread back:\n%swritten:\n%s", err, read, list)
	}
	for _, bad := range []string{"x", "x y", "x ssh-ed25519 AAAA", `x cert-authority ` + strings.TrimPrefix(list[1:].String(), "quarry@farm "), `x valid-before="soon" ` + strings.TrimPrefix(list[1:].String(), "quarry@farm ")} {
		if got, err := ParseAllowedSigners([]byte(bad)); err == nil {
			t.Errorf("%q is taken for %v", bad, got)
		}
	}
}

func TestAgent(t *testing.T) {
	s, path := signer(t)
	socket := filepath.Join(t.TempDir(), "agent")
	if _, err := exec.LookPath("ssh-agent"); err != nil {
		t.Fatal("ssh-agent is missing: make deps installs what the tests need")
	}
	a, err := OpenAgent(socket, path+".pub")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Sign(Git, []byte("x")); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("without an agent: %v", err)
	}
	cmd := exec.Command("ssh-agent", "-D", "-a", socket)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		_, err := a.Sign(Git, []byte("x"))
		if err != nil && strings.Contains(err.Error(), "does not hold") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the agent does not come up: %v", err)
		}
	}
	add := exec.Command("ssh-add", "-q", path)
	add.Env = append(os.Environ(), "SSH_AUTH_SOCK="+socket)
	if out, err := add.CombinedOutput(); err != nil {
		t.Fatalf("ssh-add: %s", out)
	}
	sig, err := a.Sign(Git, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (AllowedSigners{{Key: s.Public()}}).Verify(Git, []byte("x"), sig, time.Now()); err != nil {
		t.Error(err)
	}
}

func FuzzAllowedSigners(f *testing.F) {
	f.Add("quarry@localhost namespaces=\"git\" ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	f.Add("# x\n\nx y z")
	f.Fuzz(func(t *testing.T, s string) {
		list, err := ParseAllowedSigners([]byte(s))
		if err != nil {
			return
		}
		again, err := ParseAllowedSigners([]byte(list.String()))
		if err != nil || again.String() != list.String() {
			t.Errorf("%q is read as %q, and that as %q: %v", s, list, again, err)
		}
	})
}
