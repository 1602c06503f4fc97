package hooks

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/Morphux/quarry"
)

// Certificate is what git knows of the certificate of a push that was signed (git
// push --signed): see git-receive-pack(1), and for the form gitformat-signature(5)
// and gitprotocol-pack(5).
type Certificate struct {
	ID     string // blob that holds it; "" when the push was not signed
	Status string // as git log's %G? has it: G is good
	Signer string // whose key it is, by the file of allowed signers
	Key    string // fingerprint, e.g. SHA256:uNiV...
	Nonce  string // OK when it answers to this very push

	text []byte // what the blob holds, when it has been looked at
}

// maxCertificate is the most bytes of a certificate: those of the most refs that one
// push may have.
const maxCertificate = maxRefs*(2*64+maxRef+20) + 64<<10

func certificateOf(env map[string]string) Certificate {
	return Certificate{
		ID: env["GIT_PUSH_CERT"], Status: env["GIT_PUSH_CERT_STATUS"], Signer: clean(cut(env["GIT_PUSH_CERT_SIGNER"])),
		Key: clean(cut(env["GIT_PUSH_CERT_KEY"])), Nonce: env["GIT_PUSH_CERT_NONCE_STATUS"],
	}
}

// certify checks the certificate of a push, if it has one, and reads it. problem is
// why the push is refused, in words for who pushes; err is trouble of the server's.
func (e *Env) certify(objs *objects, lines [][3]string) (problem string, err error) {
	c := &e.Cert
	if c.ID == "" {
		return "", nil
	}
	const cure = "sign with a key that is registered here, or push without --signed"
	key := cmp.Or(c.Key, "an unknown key")
	switch {
	case c.Status == "G" && c.Signer != "":
	case c.Status == "G", c.Status == "U": // it holds, and is of no key among those allowed
		return fmt.Sprintf("the push is signed by %s, which is no key of %s: %s", show(key), show(e.Identity.User), cure), nil
	case c.Status == "N", c.Status == "":
		return "the push has a certificate without a signature: " + cure, nil
	default:
		return fmt.Sprintf("the signature of the push does not hold (git calls it %q): %s", c.Status, cure), nil
	}
	// On other servers the file of allowed signers may call people by other names.
	if e.From == "QUARRY_USER" && c.Signer != e.Identity.User {
		return fmt.Sprintf("the push is signed by %s, and %s pushes: %s", show(c.Signer), show(e.Identity.User), cure), nil
	}
	if c.Nonce != "OK" {
		return fmt.Sprintf("the certificate is not of this push (its nonce is %s): push again", show(strings.ToLower(cmp.Or(c.Nonce, "missing")))), nil
	}
	kind, size, text, err := objs.get(c.ID, maxCertificate)
	switch {
	case err != nil:
		return "", fmt.Errorf("the certificate of the push cannot be read: %w", err)
	case kind != "blob" || size > maxCertificate:
		return fmt.Sprintf("the certificate of the push is a %s of %d bytes: push fewer branches at once", kind, size), nil
	}
	signed, err := certificateRefs(text)
	if err != nil {
		return fmt.Sprintf("the certificate of the push cannot be read: %v", err), nil
	}
	pushed := slices.Clone(lines)
	for _, list := range [][][3]string{signed, pushed} {
		slices.SortFunc(list, func(a, b [3]string) int { return strings.Compare(a[2], b[2]) })
	}
	if !slices.Equal(signed, pushed) {
		return "the certificate lists other branches than are pushed: push again, and only what you may push", nil
	}
	c.text = text
	return "", nil
}

// certificateRefs reads what a certificate says is pushed.
func certificateRefs(text []byte) (list [][3]string, err error) {
	head, rest, ok := strings.Cut(string(text), "\n\n")
	if !ok || !strings.HasPrefix(head, "certificate version 0.1\n") {
		return nil, errors.New("it is of another form: use a newer git")
	}
	body, _, ok := strings.Cut(rest, "-----BEGIN ")
	if !ok {
		return nil, errors.New("it has no signature")
	}
	for line := range strings.Lines(body) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 3)
		if len(f) != 3 || !isOID(f[0]) || !isOID(f[1]) || f[2] == "" {
			return nil, fmt.Errorf("its line %.100q is none", line)
		}
		list = append(list, [3]string{f[0], f[1], f[2]})
	}
	return list, nil
}

// good reports whether the push is signed; certify has found nothing wrong then.
func (c Certificate) good() bool {
	return c.ID != "" && c.Status == "G" && c.Signer != "" && c.Nonce == "OK"
}

// packager is the pusher, with what is known of the signature.
func (e Env) packager() quarry.Packager {
	p := e.Identity.Packager
	if e.Cert.good() {
		p.Signed, p.Certificate = e.Cert.Key, e.Cert.ID
	}
	return p
}

// mustSign reports why a release may not go to a channel, or leave it, unsigned.
func (e Env) mustSign(channel string) error {
	if c := e.find(channel); c != nil && c.Signed && !e.Cert.good() {
		return fmt.Errorf("%s takes only signed pushes: git push --signed, with gpg.format = ssh and user.signingKey set to a key that is registered here", c.Name)
	}
	return nil
}
