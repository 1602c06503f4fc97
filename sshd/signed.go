package sshd

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	gossh "golang.org/x/crypto/ssh"
)

// Signed says how git checks pushes that are signed (git push --signed): that the
// certificate is of this very push, and of a key of who pushes.
type Signed struct {
	// Keys are a person's; nil: pushes cannot be signed.
	Keys func(user string) ([]gossh.PublicKey, error)
}

func (s Signed) check() error {
	if s.Keys == nil {
		return nil
	}
	if _, err := exec.LookPath("ssh-keygen"); err != nil {
		return errors.New("ssh-keygen is not installed, and git checks signed pushes with it: apt-get install openssh-client, or set git.signed to off")
	}
	return nil
}

// signersPrefix begins the names of the files with a pusher's keys.
const signersPrefix = ".signers-"

// env has a git receive-pack offer signing and check it; clean is to be called when
// git has ended.
//
// A certificate answers to a nonce that git makes of a secret, the repository and
// the second. The process that gave the nonce is the one that gets the answer, so
// that each has a secret of its own: no certificate is good for a second push, not
// even within the second. It goes into the environment, which only the same user
// can read; a command line is for everybody.
func (s Signed) env(dir, user string) (env []string, clean func(), err error) {
	if s.Keys == nil {
		return nil, func() {}, nil
	}
	keys, err := s.Keys(user)
	if err != nil {
		return nil, nil, err
	}
	var text strings.Builder
	for _, k := range keys {
		fmt.Fprintf(&text, "%s namespaces=\"git\" %s", user, gossh.MarshalAuthorizedKey(k))
	}
	f, err := os.CreateTemp(dir, signersPrefix+"*")
	if err != nil {
		return nil, nil, err
	}
	clean = func() { os.Remove(f.Name()) }
	_, err = f.WriteString(text.String())
	if err = errors.Join(err, f.Close()); err != nil {
		clean()
		return nil, nil, err
	}
	env = []string{"GIT_CONFIG_COUNT=3"}
	for i, kv := range [][2]string{{"receive.certNonceSeed", rand.Text()}, {"gpg.format", "ssh"}, {"gpg.ssh.allowedSignersFile", f.Name()}} {
		env = append(env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", i, kv[0]), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", i, kv[1]))
	}
	return env, clean, nil
}

// sweepSigners removes what pushes have left that were under way when a server was
// killed.
func sweepSigners(dir string) {
	left, _ := filepath.Glob(filepath.Join(dir, signersPrefix+"*"))
	for _, name := range left {
		os.Remove(name)
	}
}
