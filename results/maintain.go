package results

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/Morphux/quarry/internal/gittend"
)

// manyRefs is from how many refs in files of their own on they are put into one
// file: git reads all that it lists.
const manyRefs = 500

// Maintain melts the many small packs of recent commits together and keeps clones
// and fetches quick, with stock git: see package gittend. It may run beside readers
// and writers at any time; what a writer has stored but not yet put on the branch
// survives.
//
// It is run by itself in the background, see [Options].MaxPacks. While another
// process maintains the repository there is nothing to do, and Maintain returns
// at once.
func (r *Repo) Maintain(ctx context.Context) error {
	err := gittend.Run(ctx, r.path, gittend.Options{Git: r.opts.Git, Lock: filepath.Join(r.path, workRoot, "maintenance")})
	if err == nil {
		err = r.packRefs(ctx)
	}
	if err != nil {
		return fmt.Errorf("results repository %s cannot be maintained: %w", r.path, err)
	}
	return nil
}

// packRefs puts refs into one file when there are many. No writer of ours goes on
// meanwhile: one that has just removed a ref would see it come back.
func (r *Repo) packRefs(ctx context.Context) error {
	n := 0
	err := filepath.WalkDir(filepath.Join(r.path, "refs"), func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			n++
		}
		if errors.Is(err, fs.ErrNotExist) { // a lock, say
			return nil
		}
		return err
	})
	if err != nil || n < manyRefs {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	out, err := exec.CommandContext(ctx, r.opts.Git, "-C", r.path, "pack-refs", "--all").CombinedOutput()
	if err != nil {
		return fmt.Errorf("git pack-refs: %w: %s", err, oneLine(string(out), 500))
	}
	return nil
}

// startMaintenance begins maintenance in the background unless it is running.
// Its trouble is logged and costs nothing but speed: the next try comes with
// the next packs.
func (r *Repo) startMaintenance() {
	r.bg.Lock()
	defer r.bg.Unlock()
	if r.bg.done != nil {
		select {
		case <-r.bg.done:
		default:
			return
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	r.bg.cancel, r.bg.done = cancel, done
	go func() {
		defer close(done)
		defer cancel()
		if err := r.Maintain(ctx); err != nil && ctx.Err() == nil {
			r.opts.Logger.Warn("the results repository was not maintained", "error", err)
		}
	}()
}

func (r *Repo) stopMaintenance() {
	r.bg.Lock()
	cancel, done := r.bg.cancel, r.bg.done
	r.bg.Unlock()
	if cancel != nil {
		cancel()
		<-done
	}
}

func countPacks(repo string) int {
	packs, err := os.ReadDir(filepath.Join(repo, "objects", "pack"))
	if err != nil {
		return 0
	}
	n := 0
	for _, e := range packs {
		if strings.HasSuffix(e.Name(), ".idx") {
			n++
		}
	}
	return n
}
