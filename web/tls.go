package web

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/Morphux/quarry/internal/durable"
)

const (
	// certAge is how long a certificate of our own making is good: what browsers
	// take (CA/Browser Forum, 398 days).
	certAge = 397 * 24 * time.Hour
	// certRest is from when before its end on it is made anew.
	certRest = 30 * 24 * time.Hour
	// certLook is how long a certificate is used before its files are looked at.
	certLook = 2 * time.Second
)

// Certificate is a TLS certificate in two files. It is read again when they
// change, without a restart.
type Certificate struct {
	cert, key string
	names     []string // of one of our own making; nil: somebody else makes it
	log       *slog.Logger
	now       func() time.Time

	mu     sync.Mutex // guards the following
	loaded *tls.Certificate
	looked time.Time
	stamp  [2]stamp // of the files that loaded is from
}

// stamp is what changes with a file.
type stamp struct {
	size int64
	time time.Time
}

// GivenCertificate reads a certificate, with those that it leads to, and its key
// from files in PEM.
func GivenCertificate(cert, key string, log *slog.Logger) (*Certificate, error) {
	c := &Certificate{cert: cert, key: key, log: log, now: time.Now}
	if _, err := c.load(); err != nil {
		return nil, err
	}
	return c, nil
}

// OwnCertificate is a certificate of our own making, in a folder, for names and
// addresses. Its key stays when the certificate is renewed, so that who pins the
// key ([Certificate.Pin]) has nothing to do.
func OwnCertificate(dir string, names []string, log *slog.Logger) (*Certificate, error) {
	names = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == "" })
	slices.Sort(names)
	c := &Certificate{cert: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem"), names: slices.Compact(names), log: log, now: time.Now}
	if err := c.renew(); err != nil {
		return nil, fmt.Errorf("certificate in %s cannot be made: %w", dir, err)
	}
	return c, nil
}

// Pin is the fingerprint of the certificate's key, as curl --pinnedpubkey takes
// it, e.g. sha256//Wk0Vt5gqkxa4FbUOYtcVXWkhYZ4CCJ3hSv9FZeBIEnI=.
func (c *Certificate) Pin() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	sum := sha256.Sum256(c.loaded.Leaf.RawSubjectPublicKeyInfo)
	return "sha256//" + base64.StdEncoding.EncodeToString(sum[:])
}

// Config is for a listener that shows the certificate.
func (c *Certificate) Config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.get}
}

// Ends is when the certificate ceases to be good.
func (c *Certificate) Ends() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.loaded.Leaf.NotAfter
}

// get is for tls.Config. Trouble with new files leaves the old certificate in
// use, and is said in the log.
func (c *Certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	look := c.now().Sub(c.looked) > certLook
	if look {
		c.looked = c.now()
	}
	changed := look && c.stamps() != c.stamp
	old := look && c.names != nil && c.due(c.loaded)
	loaded := c.loaded
	c.mu.Unlock()
	var err error
	switch {
	case old:
		err = c.renew()
	case changed:
		_, err = c.load()
	default:
		return loaded, nil
	}
	if err != nil {
		c.log.Error("the web certificate stays the old one", "err", err)
		return loaded, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.log.Info("the web certificate is a new one", "ends", c.loaded.Leaf.NotAfter)
	return c.loaded, nil
}

// stamps needs mu only in that the paths never change.
func (c *Certificate) stamps() (s [2]stamp) {
	for i, path := range []string{c.cert, c.key} {
		if info, err := os.Stat(path); err == nil {
			s[i] = stamp{info.Size(), info.ModTime()}
		}
	}
	return s
}

// load reads the files.
func (c *Certificate) load() (*tls.Certificate, error) {
	stamp := c.stamps() // before the files: a change meanwhile is seen next time
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s cannot be used: %w", c.cert, c.key, err)
	}
	if pair.Leaf == nil {
		if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return nil, fmt.Errorf("certificate %s cannot be used: %w", c.cert, err)
		}
	}
	if c.names == nil && c.now().After(pair.Leaf.NotAfter) {
		c.log.Warn("the web certificate has ended", "file", c.cert, "ended", pair.Leaf.NotAfter)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.loaded, c.stamp, c.looked = &pair, stamp, c.now()
	return c.loaded, nil
}

// due reports whether a certificate of ours ends soon or is for other names.
func (c *Certificate) due(pair *tls.Certificate) bool {
	if c.now().After(pair.Leaf.NotAfter.Add(-certRest)) || c.now().Before(pair.Leaf.NotBefore) {
		return true
	}
	for _, name := range c.names {
		if pair.Leaf.VerifyHostname(name) != nil {
			return true
		}
	}
	return false
}

// renew makes the certificate where there is none, or none that will do.
func (c *Certificate) renew() error {
	have, err := c.load()
	if err == nil && !c.due(have) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.log.Warn("the web certificate is made anew", "err", err)
	}
	if err := os.MkdirAll(filepath.Dir(c.key), 0o700); err != nil {
		return err
	}
	key, err := c.ownKey()
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return err
	}
	now := c.now()
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "quarry"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(certAge),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, name := range c.names {
		if ip := net.ParseIP(name); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(c.cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644, ".cert-*"); err != nil {
		return err
	}
	_, err = c.load()
	return err
}

// ownKey reads the key, or makes it.
func (c *Certificate) ownKey() (*ecdsa.PrivateKey, error) {
	data, err := os.ReadFile(c.key)
	if err == nil {
		if block, _ := pem.Decode(data); block != nil {
			if k, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
				if key, ok := k.(*ecdsa.PrivateKey); ok {
					return key, nil
				}
			}
		}
		return nil, fmt.Errorf("key %s is none of ours: put it back from a copy, or remove it and let quarry make another, which those who pinned it will stumble over", c.key)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, durable.WriteFile(c.key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600, ".key-*")
}
