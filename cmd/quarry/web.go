package main

import (
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"

	"github.com/Morphux/quarry/bundle"
	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/sshd"
	"github.com/Morphux/quarry/web"
	"github.com/Morphux/quarry/web/api"
)

// newWeb makes the web door and opens what it listens on; both are nil where
// there is to be none. o holds what is shown there.
func newWeb(c *config.Config, o web.Options, log *slog.Logger) (*web.Server, net.Listener, error) {
	if c.Web.Listen == "" {
		return nil, nil, nil
	}
	o.Public, o.MetricsPublic, o.Proxy, o.InsecureTokens, o.URL, o.Log = c.Web.Public, c.Web.MetricsPublic, c.Web.Proxy, c.Web.InsecureTokens, c.Web.Base(), log
	o.Limits.Upload = int64(c.Web.MaxUpload)
	cert, err := webCertificate(c, log)
	if err != nil {
		return nil, nil, err
	}
	o.TLS = cert
	l, err := web.Listen(c.Web.Listen)
	if err != nil {
		return nil, nil, err
	}
	if cert != nil {
		log.Info("web speaks TLS", "pin", cert.Pin(), "ends", cert.Ends())
	} else if host, _, _ := net.SplitHostPort(c.Web.Listen); !c.Web.Proxy && !loopback(host) {
		log.Warn("the web door is open to the network without TLS: it takes no tokens from there; web.tls = \"self\" makes a certificate", "listen", l.Addr())
	}
	return web.New(o), l, nil
}

// webCertificate is the certificate that the configuration says; nil for none.
func webCertificate(c *config.Config, log *slog.Logger) (*web.Certificate, error) {
	if cert, key := c.Certificate(); cert != "" {
		return web.GivenCertificate(cert, key, log)
	}
	if c.Web.TLS != config.SelfSigned {
		return nil, nil
	}
	names := []string{"localhost", "127.0.0.1", "::1"}
	if host, err := os.Hostname(); err == nil {
		names = append(names, host)
	}
	if u, err := url.Parse(c.Web.Base()); err == nil {
		names = append(names, u.Hostname())
	}
	if host, _, _ := net.SplitHostPort(c.Web.Listen); host != "" && !net.ParseIP(host).IsUnspecified() {
		names = append(names, host)
	}
	cert, err := web.OwnCertificate(c.TLS(), names, log)
	if err != nil {
		return nil, fmt.Errorf("web.tls: %w", err)
	}
	return cert, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// newBundles makes what pushes build bundles, through the hooks of the SSH door.
func newBundles(c *config.Config, door *sshd.Server) (*bundle.Pusher, error) {
	return bundle.New(bundle.Options{Dir: filepath.Join(c.State, "bundles"), Repo: door.Push, Env: door.PushEnv,
		Limits: bundle.Limits{Size: int64(c.Git.MaxPush)}, Most: int64(c.Web.MaxUpload)})
}

// newAPI makes the calls for programs.
func newAPI(c *config.Config, farm *control.Farm, verbs control.Table, res *results.Repo, index *results.Index, artifacts api.Artifacts, log *slog.Logger) (*api.API, error) {
	return api.New(api.Options{Farm: farm, Verbs: verbs, Results: res, Index: index, Artifacts: artifacts, Tasks: c.Tasks(), URL: c.Web.Base(), Log: log})
}
