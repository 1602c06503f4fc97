package web

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A certificate of our own is good for its names, lives through restarts, and is
// renewed before its end with the same key.
func TestOwnCertificate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tls")
	log := slog.New(slog.DiscardHandler)
	c, err := OwnCertificate(dir, []string{"localhost", "127.0.0.1", "farm.example.org", ""}, log)
	if err != nil {
		t.Fatal(err)
	}
	pin, ends := c.Pin(), c.Ends()
	addr, _ := serve(t, Options{Pages: pages(), Public: true, Identify: identify, TLS: c})
	file := filepath.Join(dir, "cert.pem")
	first, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	ask := func() {
		t.Helper()
		pem, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(pem)
		for _, name := range []string{"127.0.0.1", "farm.example.org"} {
			client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: name}, ForceAttemptHTTP2: true, DisableKeepAlives: true}}
			req, err := http.NewRequest("GET", "https://"+addr+"/who", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer good")
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if string(body) != "alice maintainer" || resp.ProtoMajor != 2 {
				t.Errorf("%s: %s, HTTP/%d", name, body, resp.ProtoMajor)
			}
		}
	}
	ask()
	if info, err := os.Stat(filepath.Join(dir, "key.pem")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key: %v, %v", info.Mode(), err)
	}

	again, err := OwnCertificate(dir, []string{"localhost"}, log)
	if err != nil {
		t.Fatal(err)
	}
	if text, _ := os.ReadFile(file); again.Pin() != pin || !bytes.Equal(text, first) {
		t.Error("a restart makes another certificate")
	}
	// Most of a year later.
	c.mu.Lock()
	c.now = func() time.Time { return ends.Add(-certRest + time.Hour) }
	c.mu.Unlock()
	if _, err := c.get(nil); err != nil {
		t.Fatal(err)
	}
	if text, _ := os.ReadFile(file); bytes.Equal(text, first) || c.Pin() != pin || !c.Ends().After(ends) {
		t.Errorf("it is not renewed: ends %s, pin %s", c.Ends(), c.Pin())
	}
	// For another name.
	if c, err = OwnCertificate(dir, []string{"elsewhere.example.org"}, log); err != nil || c.loaded.Leaf.VerifyHostname("elsewhere.example.org") != nil || c.Pin() != pin {
		t.Errorf("another name: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "key.pem"), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OwnCertificate(dir, nil, log); err == nil {
		t.Error("a broken key is replaced without a word")
	}
}

// A given certificate is read again when its files change, and a broken one
// leaves the old one in use.
func TestGivenCertificate(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	dir := t.TempDir()
	make := func(name string) (cert, key []byte) {
		t.Helper()
		if _, err := OwnCertificate(filepath.Join(dir, name), []string{name}, log); err != nil {
			t.Fatal(err)
		}
		cert, err := os.ReadFile(filepath.Join(dir, name, "cert.pem"))
		if err != nil {
			t.Fatal(err)
		}
		if key, err = os.ReadFile(filepath.Join(dir, name, "key.pem")); err != nil {
			t.Fatal(err)
		}
		return cert, key
	}
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	put := func(c, k []byte, at time.Time) {
		t.Helper()
		for path, data := range map[string][]byte{cert: c, key: k} {
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(path, at, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := GivenCertificate(cert, key, log); err == nil {
		t.Error("files that are not there are fine")
	}
	now := time.Now()
	one, oneKey := make("one.example.org")
	put(one, oneKey, now)
	c, err := GivenCertificate(cert, key, log)
	if err != nil {
		t.Fatal(err)
	}
	is := func(name string) {
		t.Helper()
		c.mu.Lock()
		now = now.Add(time.Minute)
		c.now = func() time.Time { return now }
		c.mu.Unlock()
		got, err := c.get(nil)
		if err != nil || got.Leaf.VerifyHostname(name) != nil {
			t.Errorf("it is not %s's: %v", name, err)
		}
	}
	is("one.example.org")
	two, twoKey := make("two.example.org")
	put(two, oneKey, now.Add(time.Second)) // between the writing of one and the other
	is("one.example.org")
	put(two, twoKey, now.Add(2*time.Second))
	is("two.example.org")
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	is("two.example.org")
}
