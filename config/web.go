package config

import (
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strings"
)

// SelfSigned is the value of web.tls for a certificate of the farm's own making.
const SelfSigned = "self"

// Secure reports whether the web door speaks TLS.
func (w Web) Secure() bool { return w.TLS == SelfSigned || w.Cert != "" }

// Base is how people reach the web door, without a slash at its end, e.g.
// https://farm.example.org; "" where there is none.
func (w Web) Base() string {
	if w.Listen == "" {
		return ""
	}
	if w.URL != "" {
		return strings.TrimRight(w.URL, "/")
	}
	host, port, err := net.SplitHostPort(w.Listen)
	if err != nil {
		return ""
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	scheme := "http"
	if w.Secure() {
		scheme = "https"
	}
	return scheme + "://" + net.JoinHostPort(host, port)
}

func (c *Config) checkWeb() error {
	w := c.Web
	if w.Listen == "" {
		return nil
	}
	if _, port, err := net.SplitHostPort(w.Listen); err != nil || port == "" {
		return fmt.Errorf("web.listen %q is no address: write it as \"127.0.0.1:6680\", \":6680\" for all interfaces, or \"\" for none", w.Listen)
	}
	if u, err := url.Parse(w.URL); w.URL != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "") {
		return fmt.Errorf("web.url %q is none that a browser can begin from: write it as \"https://farm.example.org\", without a path", w.URL)
	}
	switch {
	case w.TLS != "" && w.TLS != SelfSigned:
		return fmt.Errorf("web.tls %q is not known: use \"self\" for a certificate of the farm's own making, or give web.cert and web.key", w.TLS)
	case (w.Cert == "") != (w.Key == ""):
		return fmt.Errorf("web.%s is blank: web.cert and web.key go together", map[bool]string{true: "cert", false: "key"}[w.Cert == ""])
	case w.TLS == SelfSigned && w.Cert != "":
		return fmt.Errorf("web.tls is \"self\" and web.cert is given: remove one of them")
	case w.MaxUpload < 1<<20:
		return fmt.Errorf("web.max_upload is %d bytes: no package's sources go into less than 1 MiB", w.MaxUpload)
	case w.Fetches < 0:
		return fmt.Errorf("web.fetches is %d: give how many git fetches may run at one time, or 0 for four for each core", w.Fetches)
	}
	return nil
}

// Certificate gives the files of the web door's certificate and its key; blank
// where none are given.
func (c *Config) Certificate() (cert, key string) {
	if c.Web.Cert == "" {
		return "", ""
	}
	return c.beside(c.Web.Cert), c.beside(c.Web.Key)
}

// TLS is the folder of the certificate of the farm's own making.
func (c *Config) TLS() string { return filepath.Join(c.State, "tls") }

// Tasks is the folder of what is handed in over the web door and not yet pushed.
func (c *Config) Tasks() string { return filepath.Join(c.State, "tasks") }
