// Package trust signs what the farm says, with an SSH key, and checks such
// signatures: those of commits as git makes them (gpg.format=ssh), and those of
// files as ssh-keygen -Y makes them. The form is OpenSSH's PROTOCOL.sshsig.
package trust

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/Morphux/quarry/internal/sshkey"
)

// The namespaces of signatures: one made for one purpose is good for no other.
const (
	Git        = "git"         // commits and pushes, as git itself has it
	Provenance = "quarry-slsa" // statements on how something was built
	Vote       = "quarry-vote" // what came of building something again
	Head       = "quarry-head" // what a channel is at, over HTTP
)

// hash is what ssh-keygen takes where nothing else is said.
const hash = sshsig.HashSHA512

// agentTime is how long an agent may take for one signature. It may ask a person.
const agentTime = time.Minute

// Signer signs with the farm's key. It may be used by several goroutines.
type Signer struct {
	public ssh.PublicKey
	sign   func(namespace string, data []byte) (*sshsig.Signature, error)
}

// Open reads the key in a file that nobody else may read, and makes one when there
// is none.
func Open(path string) (*Signer, error) {
	key, err := sshkey.Open(path, "signing key")
	if err != nil {
		return nil, err
	}
	return &Signer{key.PublicKey(), func(namespace string, data []byte) (*sshsig.Signature, error) {
		return sshsig.Sign(bytes.NewReader(data), key, hash, namespace)
	}}, nil
}

// OpenAgent signs with a key that an agent holds (ssh-agent, or what speaks its
// protocol, such as one for a hardware token). socket is the agent's, pub the file
// with the public half. The agent is asked for each signature anew, so that it may
// be restarted.
func OpenAgent(socket, pub string) (*Signer, error) {
	data, err := os.ReadFile(pub)
	if err != nil {
		return nil, fmt.Errorf("public half of the signing key cannot be read: %w", err)
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(data)
	if err != nil {
		return nil, fmt.Errorf("%s is no public key: name the .pub file of a key that the agent holds: %w", pub, err)
	}
	return &Signer{key, func(namespace string, data []byte) (*sshsig.Signature, error) {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			return nil, fmt.Errorf("agent %s does not answer: start it and add the signing key: %w", socket, err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(agentTime)); err != nil {
			return nil, err
		}
		signers, err := agent.NewClient(conn).Signers()
		if err != nil {
			return nil, fmt.Errorf("agent %s cannot be asked: %w", socket, err)
		}
		for _, s := range signers {
			if bytes.Equal(s.PublicKey().Marshal(), key.Marshal()) {
				return sshsig.Sign(bytes.NewReader(data), s, hash, namespace)
			}
		}
		return nil, fmt.Errorf("agent %s does not hold the signing key %s: add it with ssh-add", socket, ssh.FingerprintSHA256(key))
	}}, nil
}

// Public is the public half of the key.
func (s *Signer) Public() ssh.PublicKey { return s.public }

// Fingerprint names the key, e.g. SHA256:uNiV...
func (s *Signer) Fingerprint() string { return ssh.FingerprintSHA256(s.public) }

// Sign signs data for a purpose. The signature is text, between lines that begin
// and end it.
func (s *Signer) Sign(namespace string, data []byte) ([]byte, error) {
	sig, err := s.sign(namespace, data)
	if err != nil {
		return nil, err
	}
	return sshsig.Armor(sig), nil
}

// SignCommit signs a commit for git.
func (s *Signer) SignCommit(commit []byte) ([]byte, error) { return s.Sign(Git, commit) }

// ErrUntrusted is wrapped by the error for a signature of a key that is not among
// those asked for, or was not at that time.
var ErrUntrusted = errors.New("key is not trusted")

// Verify checks a signature for a purpose against keys, as of a time, and returns
// the key that made it.
func (k AllowedSigners) Verify(namespace string, data, signature []byte, at time.Time) (ssh.PublicKey, error) {
	sig, err := unarmor(namespace, signature)
	if err != nil {
		return nil, err
	}
	trusted := false
	for _, a := range k {
		trusted = trusted || bytes.Equal(a.Key.Marshal(), sig.PublicKey.Marshal()) && a.holds(namespace, at)
	}
	if !trusted {
		return nil, fmt.Errorf("signature by %s: %w", ssh.FingerprintSHA256(sig.PublicKey), ErrUntrusted)
	}
	return fits(sig, data)
}

// Signed gives the key that has signed data for a purpose, whoever's it is.
func Signed(namespace string, data, signature []byte) (ssh.PublicKey, error) {
	sig, err := unarmor(namespace, signature)
	if err != nil {
		return nil, err
	}
	return fits(sig, data)
}

func unarmor(namespace string, signature []byte) (*sshsig.Signature, error) {
	sig, err := sshsig.Unarmor(bytes.TrimSpace(signature))
	if err != nil {
		return nil, fmt.Errorf("signature cannot be read: %w", err)
	}
	if sig.Namespace != namespace {
		return nil, fmt.Errorf("signature was made for %.40q, not for %s", sig.Namespace, namespace)
	}
	return sig, nil
}

func fits(sig *sshsig.Signature, data []byte) (ssh.PublicKey, error) {
	if err := sshsig.Verify(bytes.NewReader(data), sig, sig.PublicKey, sig.HashAlgorithm, sig.Namespace); err != nil {
		return nil, fmt.Errorf("signature does not fit: %w", err)
	}
	return sig.PublicKey, nil
}

// Principal is whose a key is; "" when it is not among them.
func (k AllowedSigners) Principal(key ssh.PublicKey) string {
	for _, a := range k {
		if bytes.Equal(a.Key.Marshal(), key.Marshal()) {
			return a.Principal
		}
	}
	return ""
}

// Allows reports whether a key is trusted for a purpose, with no end set.
func (k AllowedSigners) Allows(namespace string, key ssh.PublicKey) bool {
	for _, a := range k {
		if bytes.Equal(a.Key.Marshal(), key.Marshal()) && a.Before.IsZero() && a.holds(namespace, time.Time{}) {
			return true
		}
	}
	return false
}

// AllowedSigner is a key that is trusted to sign.
type AllowedSigner struct {
	Principal  string // e.g. quarry@localhost
	Key        ssh.PublicKey
	Namespaces []string  // none: all
	Before     time.Time // zero: for ever
}

func (a AllowedSigner) holds(namespace string, at time.Time) bool {
	if !a.Before.IsZero() && at.After(a.Before) {
		return false
	}
	for _, n := range a.Namespaces {
		if n == namespace {
			return true
		}
	}
	return len(a.Namespaces) == 0
}

// AllowedSigners is a file as git's gpg.ssh.allowedSignersFile and ssh-keygen -Y
// want it; see ssh-keygen(1), ALLOWED SIGNERS.
type AllowedSigners []AllowedSigner

const validBefore = "20060102150405Z"

// String writes the file.
func (k AllowedSigners) String() string {
	var b strings.Builder
	for _, a := range k {
		var options []string
		if len(a.Namespaces) > 0 {
			options = append(options, `namespaces="`+strings.Join(a.Namespaces, ",")+`"`)
		}
		if !a.Before.IsZero() {
			options = append(options, `valid-before="`+a.Before.UTC().Format(validBefore)+`"`)
		}
		b.WriteString(a.Principal)
		if len(options) > 0 {
			b.WriteString(" " + strings.Join(options, ","))
		}
		b.WriteString(" " + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(a.Key))) + "\n")
	}
	return b.String()
}

// ParseAllowedSigners reads what String writes, and what people write by hand with
// the options namespaces and valid-before. What it does not understand is an error:
// an option that is passed over may have been a limit.
func ParseAllowedSigners(data []byte) (AllowedSigners, error) {
	var list AllowedSigners
	for n, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		principal, rest, ok := strings.Cut(line, " ")
		if !ok {
			return nil, fmt.Errorf("allowed signers, line %d: it has no key", n+1)
		}
		key, _, options, _, err := ssh.ParseAuthorizedKey([]byte(rest))
		if err != nil {
			return nil, fmt.Errorf("allowed signers, line %d: %w", n+1, err)
		}
		a := AllowedSigner{Principal: principal, Key: key}
		for _, o := range options {
			name, value, _ := strings.Cut(o, "=")
			value = strings.Trim(value, `"`)
			switch strings.ToLower(name) {
			case "namespaces":
				a.Namespaces = strings.Split(value, ",")
			case "valid-before":
				if a.Before, err = time.Parse(validBefore, value); err != nil {
					return nil, fmt.Errorf("allowed signers, line %d: valid-before %.40q is no time: write it as %s", n+1, value, validBefore)
				}
			default:
				return nil, fmt.Errorf("allowed signers, line %d: option %.40q is not known here", n+1, name)
			}
		}
		list = append(list, a)
	}
	return list, nil
}
