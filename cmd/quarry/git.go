package main

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/metrics"
	"github.com/Morphux/quarry/repos"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/sshd"
	"github.com/Morphux/quarry/web/githttp"
)

// tendEvery is how often the daemon tends the repositories; those of the results,
// which get a commit for each build, look after themselves in between.
const tendEvery = 24 * time.Hour

// tend keeps all repositories quick to fetch from, until ctx ends.
func tend(ctx context.Context, res *results.Repo, packages *repos.Repos, log *slog.Logger) {
	for wait := 10 * time.Minute; ; wait = tendEvery { // not while all starts
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if err := errors.Join(res.Maintain(ctx), packages.Maintain(ctx)); err != nil && ctx.Err() == nil {
			log.Warn("not all repositories could be maintained, which costs speed and nothing else", "err", err)
		}
	}
}

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
