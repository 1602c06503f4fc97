package main

import (
	"log/slog"
	"path/filepath"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/metrics"
	"github.com/Morphux/quarry/repos"
	"github.com/Morphux/quarry/sshd"
	"github.com/Morphux/quarry/web/githttp"
)

// newGit makes git over HTTP: of the same repositories as over SSH, to be read.
func newGit(c *config.Config, packages *repos.Repos, door *sshd.Server, m *metrics.Metrics, log *slog.Logger) *githttp.Handler {
	h := githttp.New(githttp.Options{
		Find: fetchable{packages, c.Results()}.Path,
		MayRead: func(who quarry.Identity, name string) bool {
			// Who has no user came without a token. The sources of packages may be what
			// nobody is to see yet, and they are large.
			return who.MayRead() && (who.User != "" || name == databaseName || c.Web.PublicSources)
		},
		Env: door.GitEnv(), Temp: filepath.Join(c.State, "home"), Push: sshBase(c.SSH.Listen),
		Limits: githttp.Limits{Running: c.Web.Fetches}, Log: log,
	})
	m.Gauge("http_fetches", "Git upload-packs under way over HTTP.", func() float64 { n, _ := h.Load(); return float64(n) })
	m.Gauge("http_fetches_waiting", "Git requests over HTTP that wait for their turn.", func() float64 { _, n := h.Load(); return float64(n) })
	return h
}
