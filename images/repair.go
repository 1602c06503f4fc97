package images

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containers/podman/v4/pkg/bindings/containers"
	"github.com/containers/podman/v4/pkg/bindings/images"

	"github.com/Morphux/quarry/internal/podman"
)

// Repair brings back what podman's storage lost: it verifies everything
// quickly, and thoroughly what an earlier [Store.Verify] found damaged, and has
// it made again as [Store.VerifyAtStart] does. Containers of what is damaged
// are removed, and so builds that run in them end by the farm's fault. It
// returns a line for each thing done.
func (s *Store) Repair(ctx context.Context, progress func(Progress)) (done []string, err error) {
	if err := s.loading.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer s.loading.Release(1)
	f, err := s.verify(ctx, false, false, progress)
	if err != nil {
		return nil, err
	}
	return s.mend(ctx, f, progress)
}

// mend repairs what verify found, for who holds s.loading.
func (s *Store) mend(ctx context.Context, f findings, progress func(Progress)) (done []string, err error) {
	told := ""
	for _, d := range f.damage {
		s.log.Warn("podman's storage is damaged", "what", d.What, "path", d.Path, "detail", d.Detail)
		if d.What != told { // one of each is enough for people
			s.trouble("", "", "podman's storage is damaged: "+d.String())
		}
		told = d.What
	}
	refs := slices.Clone(f.gone)
	if len(f.bad) > 0 {
		d, err := s.readDisk(ctx)
		if err != nil {
			return nil, err
		}
		// What else stands on a damaged layer would keep it in the storage.
		maps.Copy(f.bad, d.standingOn(f.layers))
		names, err := s.purge(ctx, f.bad)
		for _, name := range names {
			what, ref := s.called(name)
			done = append(done, what+" was damaged and is removed")
			s.log.Warn("a damaged image is removed", "what", what)
			if ref != nil {
				refs = append(refs, ref.String())
			}
		}
		if err != nil {
			return done, err
		}
	}
	var errs []error
	for _, ref := range refs {
		if _, ok := s.copies.of(ref); !ok {
			errs = append(errs, fmt.Errorf("base %s was damaged and there is no clean copy of it: load it again, or bootstrap it", ref))
			continue
		}
		b, err := s.restore(ctx, ref, progress)
		if err != nil {
			errs = append(errs, err)
			s.log.Error("a base cannot be made again", "base", ref, "error", err)
			continue
		}
		done = append(done, "base "+ref+" is made again from its clean copy")
		s.log.Warn("a base is made again from its clean copy", "base", ref, "digest", b.Digest)
	}
	more, err := s.keepMissing(ctx)
	return append(done, more...), errors.Join(append(append(errs, f.stuck...), err)...)
}

// purge removes images, by force with their containers, and returns the names
// of those removed.
func (s *Store) purge(ctx context.Context, bad map[string]bool) (names []string, err error) {
	release := s.holdWarm("", "", "a damaged image is being replaced")
	defer release()
	call, err := s.conn.Context(ctx)
	if err != nil {
		return nil, err
	}
	d, err := s.readDisk(ctx)
	if err != nil {
		return nil, err
	}
	s.forgetAll()
	list := new(containers.ListOptions).WithAll(true)
	if s.conn.Own() {
		list = list.WithExternal(true)
	}
	found, err := containers.List(call, list)
	if err != nil {
		return nil, fmt.Errorf("containers of a damaged image cannot be listed: %w", gone(err))
	}
	for _, c := range found {
		if bad[strings.TrimPrefix(c.ImageID, "sha256:")] {
			s.log.Warn("a container of a damaged image is removed", "container", strings.Join(c.Names, " "))
			if err := s.removeContainer(ctx, c.ID, ""); err != nil {
				return nil, err
			}
		}
	}
	for _, img := range d.images {
		if !bad[img.ID] || img.root.readOnly {
			continue
		}
		names = append(names, img.Names...)
		for _, name := range img.Names {
			if e, ok := s.instanceOf(name); ok {
				defer s.forgetInstance(e.channel, e.arch)
			}
		}
		if err := s.removeImage(ctx, img.ID); err != nil {
			return names, fmt.Errorf("damaged image %.12s cannot be removed: %w", img.ID, err)
		}
	}
	s.dropTrees(ctx)
	return names, nil
}

// removeImage removes an image with all its names and containers.
func (s *Store) removeImage(ctx context.Context, id string) error {
	for try := range 10 {
		call, err := s.conn.Context(ctx)
		if err != nil {
			return err
		}
		// A container that is being removed by somebody else at this moment is
		// an error to podman.
		_, refused := images.Remove(call, []string{id}, new(images.RemoveOptions).WithForce(true))
		d, err := s.readDisk(ctx)
		if err != nil {
			return err
		}
		if _, left := d.image(id); !left {
			return nil
		}
		if try == 9 {
			return gone(errors.Join(append(refused, errors.New("podman still has it"))...))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(try+1) * 100 * time.Millisecond):
		}
	}
	return nil
}

// standingOn lists the farm's own images that containers of would see a layer.
func (d *disk) standingOn(layers []diskLayer) map[string]bool {
	ids := map[string]bool{}
	for _, img := range d.images {
		chain, _ := d.chain(img)
		for _, l := range layers {
			if !img.root.readOnly && slices.ContainsFunc(chain, func(c diskLayer) bool { return c.ID == l.ID }) {
				ids[img.ID] = true
			}
		}
	}
	return ids
}

// Restore makes a base's image again from its clean copy. When the image that
// is there proves to hold what it should, byte for byte, it stays. A damaged
// copy is an error, and so is a damaged image in a storage that is only read,
// of which there is no copy.
func (s *Store) Restore(ctx context.Context, ref string, progress func(Progress)) (Base, error) {
	if _, err := ParseBaseRef(ref); err != nil {
		return Base{}, err
	}
	if err := s.loading.Acquire(ctx, 1); err != nil {
		return Base{}, err
	}
	defer s.loading.Release(1)
	return s.restore(ctx, ref, progress)
}

// restore is Restore for who holds s.loading.
func (s *Store) restore(ctx context.Context, name string, progress func(Progress)) (Base, error) {
	ref, err := ParseBaseRef(name)
	if err != nil {
		return Base{}, err
	}
	kept, has := s.copies.of(name)
	now, err := s.lookUp(ctx, ref)
	var none *NoBaseError
	if err != nil && (!errors.As(err, &none) || !has) {
		return Base{}, err
	}
	if err == nil {
		if has && now.Digest != kept.Digest && s.readOnly(ctx, now.Image) {
			err = &NoBaseError{ref.Arch, ref.Name}
		}
	}
	if err == nil {
		stale, err := s.proof(ctx, now.Image, progress)
		if err != nil {
			return Base{}, err
		}
		if len(stale) == 0 {
			return now, nil
		}
		if i := slices.IndexFunc(stale, func(l diskLayer) bool { return l.root.readOnly }); i >= 0 {
			return Base{}, fmt.Errorf("base %s is damaged in %s, which is only read here: repair it where it was made", name, stale[i].root.dir)
		}
		if !has {
			return Base{}, fmt.Errorf("base %s is damaged and there is no clean copy of it: load it again, or bootstrap it", name)
		}
		d, err := s.readDisk(ctx)
		if err != nil {
			return Base{}, err
		}
		s.log.Warn("a base is damaged and is made again from its clean copy", "base", name)
		if _, err := s.purge(ctx, d.standingOn(stale)); err != nil {
			return Base{}, err
		}
	}
	was, _ := kept.ref(name)
	f := fresh{ref: ref, source: was.Source, created: was.Created, kept: kept, path: s.copies.copyPath(kept.Digest)}
	return s.install(ctx, f, progress)
}

// readOnly reports whether an image lies in a storage that is only read.
func (s *Store) readOnly(ctx context.Context, image string) bool {
	d, err := s.readDisk(ctx)
	if err != nil {
		return false
	}
	img, ok := d.image(image)
	return ok && img.root.readOnly
}

// proof reads an image's layers and returns those that are not what they
// should be.
func (s *Store) proof(ctx context.Context, image string, progress func(Progress)) (stale []diskLayer, err error) {
	d, err := s.readDisk(ctx)
	if err != nil {
		return nil, err
	}
	img, ok := d.image(image)
	if !ok {
		return nil, fmt.Errorf("image %.19s is not in podman's storage", image)
	}
	layers, missing := d.chain(img)
	if missing != "" {
		return []diskLayer{{ID: missing, root: img.root}}, nil
	}
	step := &meter{step: "verifying"}
	stop := step.report(progress)
	defer stop()
	for _, l := range layers {
		_, n, err := s.checkLayer(ctx, l, true, step)
		if err != nil {
			return nil, err
		}
		if n > 0 {
			stale = append(stale, l)
		}
	}
	return stale, nil
}

// keepMissing makes the clean copies that bases lack, from podman's storage:
// those of bases loaded before there were copies, or of which they were
// deleted. It also forgets what copies were called that is another base by now.
func (s *Store) keepMissing(ctx context.Context) (done []string, err error) {
	d, err := s.readDisk(ctx)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, img := range d.images {
		for _, name := range img.Names {
			_, ref := s.called(name)
			if ref == nil || img.root.readOnly {
				continue
			}
			b, err := s.lookUp(ctx, *ref)
			if err != nil || strings.TrimPrefix(b.Image, "sha256:") != img.ID {
				continue
			}
			kept, ok := s.copies.get(b.Digest)
			if _, named := kept.ref(b.Ref()); ok && named && fileSize(s.copies.copyPath(b.Digest)) > 0 {
				errs = append(errs, s.copies.forget(b.Ref(), func(digest string) bool { return digest != b.Digest }))
				continue
			}
			if err := s.exportCopy(ctx, b); err != nil {
				errs = append(errs, err)
				continue
			}
			done = append(done, "a clean copy of base "+b.Ref()+" is made")
			s.log.Info("a clean copy of a base is made", "base", b.Ref())
		}
	}
	return done, errors.Join(errs...)
}

// exportCopy makes the clean copy of a base from its image.
func (s *Store) exportCopy(ctx context.Context, b Base) error {
	call, err := s.conn.Context(ctx)
	if err != nil {
		return err
	}
	w, err := s.copies.create()
	if err != nil {
		return err
	}
	defer w.discard()
	if err := exportImage(call, b.Image, w); err != nil {
		return fmt.Errorf("clean copy of base %s cannot be made from podman's storage: %w", b.Ref(), brief(s.explain(gone(err))))
	}
	k, err := w.finish()
	if err != nil {
		return err
	}
	k.Digest, k.Kind = b.Digest, keptImage
	if old, ok := s.copies.get(b.Digest); ok {
		k.Refs = old.Refs
	}
	if err := w.keep(s.copies, b.Digest); err != nil {
		return err
	}
	return s.copies.name(k, keptRef{b.Ref(), b.Source, b.Created})
}

// fileSize is the size of a file, 0 when there is none.
func fileSize(path string) int64 {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return st.Size()
}

// imageGone reports whether podman refused to make a container because it does
// not have the image. Its status need not say so (500 in 4.3).
func imageGone(err error) bool {
	return podman.Code(err) == 404 || podman.Code(err) == 500 && strings.Contains(err.Error(), "image not known")
}
