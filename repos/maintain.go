package repos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/Morphux/quarry/internal/gittend"
)

// From so many of a kind on a repository is worth tending: git looks at each pack
// for each object, and loose objects are one file each.
const (
	manyPacks = 10
	manyLoose = 200
)

// Maintain keeps the repositories quick to fetch from, those of extra left out: see
// package gittend. Nothing is pruned, so that what a record was built from stays
// there. It is meant to run once a day or so, and costs little where few have
// changed. One bad repository does not keep others from their turn.
func (r *Repos) Maintain(ctx context.Context) error {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return fmt.Errorf("repositories cannot be listed: %w", err)
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(r.dir, e.Name())
		if name, _ := packageOf(path); name == "" || !e.IsDir() {
			continue
		}
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		worth, err := worthTending(path)
		if err == nil && worth {
			err = gittend.Run(ctx, path, gittend.Options{Git: "git", Lock: filepath.Join(path, "quarry-maintenance")})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("repository %s cannot be maintained: %w", path, err))
		}
	}
	return errors.Join(errs...)
}

func worthTending(path string) (bool, error) {
	objects := filepath.Join(path, "objects")
	entries, err := os.ReadDir(objects)
	if err != nil {
		return false, err
	}
	loose, packs := 0, 0
	for _, e := range entries {
		if len(e.Name()) != 2 && e.Name() != "pack" {
			continue
		}
		files, err := os.ReadDir(filepath.Join(objects, e.Name()))
		if errors.Is(err, os.ErrNotExist) { // git removes empty ones
			continue
		}
		if err != nil {
			return false, err
		}
		if e.Name() != "pack" {
			loose += len(files)
			continue
		}
		for _, f := range files {
			if strings.HasSuffix(f.Name(), ".pack") {
				packs++
			}
		}
	}
	return loose >= manyLoose || packs >= manyPacks, nil
}
