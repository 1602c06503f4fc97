package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/Morphux/quarry/events"
	"github.com/Morphux/quarry/notes"
	"github.com/Morphux/quarry/repos"
)

// writeNotes tells those who made commits what came of them, as notes of git,
// until ctx ends. Its trouble is no build's: it is logged, and the farm goes on.
func (f *stages) writeNotes(ctx context.Context, happened *events.Log) error {
	w := &notes.Writer{
		Events: happened, Dir: filepath.Join(f.cfg.State, "notes"), Note: f.repos.Note, Log: f.log,
		Never: func(err error) bool { return errors.Is(err, repos.ErrNoCommit) || errors.Is(err, repos.ErrNotOurs) },
		URL: func(build int64) string {
			if f.cfg.Web.URL == "" {
				return "" // an address of this machine's own means nothing in a note that is fetched
			}
			return fmt.Sprintf("%s/builds/%d", f.cfg.Web.Base(), build)
		},
	}
	if err := w.Run(ctx); err != nil && ctx.Err() == nil {
		f.log.Error("no notes of builds are written any more, until the next start", "err", err)
	}
	return nil
}
