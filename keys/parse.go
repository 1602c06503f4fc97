package keys

import (
	"bytes"
	"crypto/rsa"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/Morphux/quarry"
	"github.com/pelletier/go-toml/v2"
	"golang.org/x/crypto/ssh"
)

// Limits on what is read from the folder. They are far above what people
// need and far below what would hurt.
const (
	MaxFile     = 64 << 10 // bytes in one file
	MaxKeys     = 100      // keys of one person
	MaxText     = 200      // bytes in a name or an e-mail address
	MaxPatterns = 1000     // package patterns of one person
)

// Key is one public key of a person.
type Key struct {
	Fingerprint string `json:"fingerprint"` // e.g. SHA256:uNiVztksCsDhcc0u9e8BrrfJQnsXDzKNnZ9QHYeQqrI
	Type        string `json:"type"`        // e.g. ssh-ed25519
	Comment     string `json:"comment,omitempty"`
	Line        int    `json:"line"` // where its file has it, from 1

	blob string // wire form, the key of lookups
}

// Marshal is the key as a line of a .pub file, without a line's end.
func (k Key) Marshal() string {
	pub, err := ssh.ParsePublicKey([]byte(k.blob))
	if err != nil { // it was parsed before
		return ""
	}
	line := strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(pub)), "\n")
	if k.Comment != "" {
		line += " " + k.Comment
	}
	return line
}

// Check reports whether a public key is of a kind that Quarry takes: Ed25519,
// ECDSA, RSA of 2048 to 8192 bits, and the first two on a security key.
// Certificates are not taken: there is no authority to have signed them, the
// folder is the authority.
func Check(pub ssh.PublicKey) error {
	if _, ok := pub.(*ssh.Certificate); ok {
		return errors.New("certificates are not taken: add the plain public key")
	}
	switch pub.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256,
		ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521:
		return nil
	case ssh.KeyAlgoRSA:
		bits := 0
		if c, ok := pub.(ssh.CryptoPublicKey); ok {
			if k, ok := c.CryptoPublicKey().(*rsa.PublicKey); ok {
				bits = k.N.BitLen()
			}
		}
		// 2048: NIST SP 800-57; 8192: what x/crypto still verifies.
		if bits < 2048 || bits > 8192 {
			return fmt.Errorf("an RSA key of %d bits is not taken: use one of 2048 to 8192, or ssh-keygen -t ed25519", bits)
		}
		return nil
	}
	return fmt.Errorf("a key of type %q is not taken: make one with ssh-keygen -t ed25519", pub.Type())
}

// ParseKeys reads a file of public keys, one a line, with blank lines and
// #-comments between them. A line that cannot be taken is a problem of its own
// and does not take the others with it. name is used in problems.
func ParseKeys(name string, data []byte) (keys []Key, problems []Problem) {
	bad := func(line int, format string, args ...any) {
		problems = append(problems, Problem{File: name, Line: line, Message: fmt.Sprintf(format, args...)})
	}
	if len(data) > MaxFile {
		bad(0, "has more than %d bytes: keep one person's keys in it", MaxFile)
		return nil, problems
	}
	seen := map[string]bool{}
	n := 0
	for raw := range bytes.Lines(data) {
		n++
		line := strings.TrimSpace(string(raw))
		if line == "" || line[0] == '#' {
			continue
		}
		switch {
		case strings.HasPrefix(line, "-----BEGIN"):
			bad(n, "this is no public key in OpenSSH's form: use the .pub file that ssh-keygen wrote beside the private key, and if this is a private key, it is one no longer")
			return keys, problems
		case len(keys) == MaxKeys:
			bad(n, "more than %d keys: the rest is not read", MaxKeys)
			return keys, problems
		}
		k, err := parseKey(line)
		if err != nil {
			bad(n, "%v", err)
			continue
		}
		if seen[k.blob] {
			continue
		}
		seen[k.blob] = true
		k.Line = n
		keys = append(keys, k)
	}
	return keys, problems
}

func parseKey(line string) (Key, error) {
	first, _, _ := strings.Cut(line, " ")
	pub, comment, options, _, err := ssh.ParseAuthorizedKey([]byte(line))
	switch {
	case err != nil && (strings.Contains(first, "=") || strings.Contains(first, ",")), len(options) > 0:
		return Key{}, errors.New("options before a key, such as from= or command=, are not understood: remove them, roles are set in the .toml file beside")
	case err != nil:
		return Key{}, errors.New("not a public key: a line is TYPE KEY COMMENT, as ssh-keygen writes it into the .pub file")
	}
	if err := Check(pub); err != nil {
		return Key{}, err
	}
	if len(comment) > MaxText || !printable(comment) {
		comment = ""
	}
	return Key{Fingerprint: ssh.FingerprintSHA256(pub), Type: pub.Type(), Comment: comment, blob: string(pub.Marshal())}, nil
}

// What a person wants to be written about.
const (
	MailAll      = "all"      // the default: releases of theirs that start failing, and that are fixed
	MailFailures = "failures" // not that they are fixed
	MailNone     = "none"
)

// person is a sidecar file: what alice.toml may say of alice.
type person struct {
	Name     string   `toml:"name,omitempty"`
	Email    string   `toml:"email,omitempty"`
	Role     string   `toml:"role,omitempty"`
	Packages []string `toml:"packages,omitempty"`
	Disabled bool     `toml:"disabled,omitempty"`
	Mail     string   `toml:"mail,omitempty"`
}

func parsePerson(file string, data []byte) (p person, problem *Problem) {
	bad := func(line int, format string, args ...any) (person, *Problem) {
		return person{}, &Problem{File: file, Line: line, Message: fmt.Sprintf(format, args...)}
	}
	if len(data) > MaxFile {
		return bad(0, "has more than %d bytes", MaxFile)
	}
	dec := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		var strict *toml.StrictMissingError
		if errors.As(err, &strict) && len(strict.Errors) > 0 {
			row, _ := strict.Errors[0].Position()
			return bad(row, "key %q is unknown: name, email, role, packages, disabled and mail are all there is", strings.Join(strict.Errors[0].Key(), "."))
		}
		var de *toml.DecodeError
		if errors.As(err, &de) {
			row, _ := de.Position()
			return bad(row, "%v", strings.ReplaceAll(err.Error(), "\n", " "))
		}
		return bad(0, "%v", strings.ReplaceAll(err.Error(), "\n", " "))
	}
	if err := p.check(); err != nil {
		return bad(0, "%v", err)
	}
	return p, nil
}

func (p person) check() error {
	switch quarry.Role(p.Role) {
	case "", quarry.RoleAdmin, quarry.RoleMaintainer, quarry.RoleReader, quarry.RoleBuilder:
	default:
		return fmt.Errorf("role %q is unknown: use admin, maintainer, reader or builder", p.Role)
	}
	if !slices.Contains([]string{"", MailAll, MailFailures, MailNone}, p.Mail) {
		return fmt.Errorf("mail %.40q is unknown: use all, failures or none", p.Mail)
	}
	if len(p.Packages) > 0 && p.Role != "" && p.Role != string(quarry.RoleMaintainer) {
		return fmt.Errorf("packages are given for the role %s: they only mean something for a maintainer", p.Role)
	}
	if len(p.Packages) > MaxPatterns {
		return fmt.Errorf("%d package patterns: %d are the most", len(p.Packages), MaxPatterns)
	}
	for _, pattern := range p.Packages {
		if _, err := path.Match(pattern, "x"); err != nil || pattern == "" || len(pattern) > quarry.MaxName || !printable(pattern) || strings.ContainsAny(pattern, " /") {
			return fmt.Errorf("package pattern %q is none: write a name, or one with * ? [a-z] in it, such as lib*", pattern)
		}
	}
	if err := checkText("name", p.Name); err != nil {
		return err
	}
	if err := checkText("email", p.Email); err != nil {
		return err
	}
	if p.Email != "" && (!strings.Contains(p.Email, "@") || strings.ContainsAny(p.Email, " \t")) {
		return fmt.Errorf("email %q is no address: write it as alice@morphux.org", p.Email)
	}
	return nil
}

// checkText refuses what git cannot carry in an author line.
func checkText(what, s string) error {
	if len(s) > MaxText || !printable(s) || strings.ContainsAny(s, "<>") {
		return fmt.Errorf("%s %.40q cannot stand in a commit: use at most %d bytes of UTF-8 without control characters, < or >", what, s, MaxText)
	}
	return nil
}

// fromComment reads "Alice Liddell <alice@morphux.org>". The user@host that
// ssh-keygen writes says nothing about a person and is left alone.
func fromComment(comment string) (name, email string) {
	name, rest, ok := strings.Cut(comment, "<")
	if !ok {
		return "", ""
	}
	email, tail, ok := strings.Cut(rest, ">")
	name = strings.TrimSpace(name)
	if !ok || tail != "" || name == "" || (person{Name: name, Email: email}).check() != nil {
		return "", ""
	}
	return name, email
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}
