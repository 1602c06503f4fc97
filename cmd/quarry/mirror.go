package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/mirror"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/trust"
)

// newSite makes the database as files, which the web door shows.
func newSite(c *config.Config, res *results.Repo, open func(sum string) (*os.File, error), signer *trust.Signer, log *slog.Logger) (*mirror.Site, error) {
	return mirror.NewSite(mirror.SiteOptions{
		Results: res, Dir: filepath.Join(c.State, "cache", "mirror"), Default: c.DefaultChannel,
		Artifacts: open, Sign: headSigner(signer), Signers: func() ([]byte, error) { return signers(c) }, Log: log,
	})
}

// warm makes the indexes before the first client asks.
func warm(ctx context.Context, site *mirror.Site, log *slog.Logger) {
	if err := site.Warm(ctx); err != nil && ctx.Err() == nil {
		log.Error("the index cannot be made: clients who ask for it are told so", "err", err)
	}
}

// headSigner is how heads are signed; nil: they are not.
func headSigner(signer *trust.Signer) func([]byte) ([]byte, error) {
	if signer == nil {
		return nil
	}
	return func(data []byte) ([]byte, error) { return signer.Sign(trust.Head, data) }
}
