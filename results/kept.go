package results

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/Morphux/quarry"
)

// keptDir is where what is kept besides records stands among the refs: each is a
// ref to a blob. No clone fetches it unless it is asked to.
const keptDir = "refs/quarry/"

// maxKept is the most bytes that one such text may have.
const maxKept = 16 << 20

// Keep writes a text that is no record, under two words such as mass and
// 20260314-3f9a, over what stood there. When it returns without an error it is on
// disk. Records are not touched, nor does anybody who follows a channel see it.
// Of several processes that keep texts under the same name the last one wins.
func (r *Repo) Keep(ctx context.Context, kind, name string, text []byte) error {
	if err := errors.Join(quarry.CheckName(kind), quarry.CheckName(name)); err != nil {
		return err
	}
	return r.keepBelow(ctx, kind, name, text)
}

// keepBelow writes a text below refs/quarry/: below is one word or, with a slash, two.
func (r *Repo) keepBelow(ctx context.Context, below, name string, text []byte) error {
	if len(text) > maxKept {
		return fmt.Errorf("%s %s has %d bytes: %d is the most that is kept", below, name, len(text), maxKept)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	var set objectSet
	h := set.add(plumbing.BlobObject, text)
	drop, err := r.store(&set)
	if err != nil {
		return err
	}
	r.packs++
	top := filepath.Join(r.path, filepath.FromSlash(keptDir))
	dir := filepath.Join(top, filepath.FromSlash(below))
	err = os.MkdirAll(dir, 0o777)
	tmp := filepath.Join(r.own.dir, "kept-"+name)
	if err == nil {
		err = writeSynced(tmp, []byte(h.String()+"\n"), 0o666)
	}
	if err == nil {
		err = os.Rename(tmp, filepath.Join(dir, name))
	}
	if err != nil {
		drop()
		return err
	}
	// The folders may be new.
	for err == nil && len(dir) >= len(filepath.Dir(top)) {
		err = syncDir(dir)
		dir = filepath.Dir(dir)
	}
	return err
}

// Kept reads all texts of a kind, by name. Those that cannot be read are told of
// in the error; the others are there all the same.
func (r *Repo) Kept(kind string) (map[string][]byte, error) {
	if err := quarry.CheckName(kind); err != nil {
		return nil, err
	}
	refs, err := keptRefs(r.path, kind)
	if err != nil {
		return nil, err
	}
	return r.odb.keptTexts(kind, refs)
}

// keptRefs lists what refs/quarry/BELOW/NAME point to, by name.
func keptRefs(repo, below string) (map[string]string, error) {
	refs := map[string]string{}
	err := eachPackedRef(repo, func(name, hash string) {
		if s, ok := strings.CutPrefix(name, keptDir+below+"/"); ok {
			refs[s] = hash
		}
	})
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(repo, filepath.FromSlash(keptDir), filepath.FromSlash(below))
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		refs[e.Name()] = strings.TrimSpace(string(b))
	}
	return refs, nil
}

func (o *odb) keptTexts(below string, refs map[string]string) (map[string][]byte, error) {
	texts := make(map[string][]byte, len(refs))
	var errs []error
	for name, hash := range refs {
		if quarry.CheckName(name) != nil || strings.HasSuffix(name, ".lock") {
			continue // nothing that Keep has written
		}
		if !isHex(hash, 40) {
			errs = append(errs, fmt.Errorf("%s%s/%s holds %.60q, no object: restore it with git update-ref, or remove it", keptDir, below, name, hash))
			continue
		}
		b, err := o.get(plumbing.BlobObject, plumbing.NewHash(hash))
		if err != nil {
			errs = append(errs, fmt.Errorf("%s%s/%s cannot be read: %w", keptDir, below, name, err))
			continue
		}
		texts[name] = slices.Clone(b)
	}
	return texts, errors.Join(errs...)
}
