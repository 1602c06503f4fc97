package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/internal/doctor"
)

// damages looks quickly through the storage of a farm that does not run, and
// keeps a daemon out meanwhile.
func damages(ctx context.Context, c *config.Config) (all []doctor.Trouble, err error) {
	if _, err := os.Stat(filepath.Join(c.State, "podman", "root")); err != nil {
		return nil, nil // there is nothing yet
	}
	unlock, err := lockState(c)
	if err != nil {
		return nil, err
	}
	defer unlock()
	store, conn, err := openImages(ctx, c, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, store.Close(context.WithoutCancel(ctx)), conn.Close()) }()
	found, err := store.Verify(ctx, false, nil)
	if err != nil {
		return nil, err
	}
	for _, d := range found {
		why := d.Detail
		if d.Path != "" {
			why = d.Path + " " + why
		}
		if n := len(all); n > 0 && all[n-1].What == d.What {
			all[n-1].Why += "; " + why
			continue
		}
		all = append(all, doctor.Trouble{What: d.What, Why: "it is not what it was when it was made: " + why,
			Cure: fmt.Sprintf("quarry serve repairs it at its start from the clean copy in %s", filepath.Join(c.State, "bases"))})
	}
	return all, nil
}
