package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containers/podman/v4/pkg/bindings/images"
)

// fresh is a base that is about to be put in its place.
type fresh struct {
	ref     BaseRef
	source  string
	created time.Time
	kept    keptCopy    // its clean copy; Digest is "" when it has no name yet
	path    string      // of the copy
	w       *copyWriter // of a copy that has no name yet
	id      string      // of its image; "" when it is not imported yet
	before  map[string]bool
}

// install imports a base unless that is done, checks it, and puts it in its
// place: from then on, and not before, builds use it. s.loading is held.
func (s *Store) install(ctx context.Context, f fresh, progress func(Progress)) (_ Base, err error) {
	defer func() {
		if err != nil {
			// By way of prune, which leaves alone what has a name: the very
			// image may also be a base that is in use.
			s.prune(context.WithoutCancel(ctx))
		}
	}()
	digest := ""
	for try := 0; ; try++ {
		if f.id == "" {
			if f.before, err = s.layersNow(ctx); err != nil {
				return Base{}, err
			}
			if f.id, err = s.importCopy(ctx, f, progress); err != nil {
				return Base{}, err
			}
		}
		if digest, err = s.checkImage(ctx, f); err != nil {
			return Base{}, err
		}
		// A layer that is in the storage already is not unpacked again, however
		// it looks by now.
		err = s.vouchFor(ctx, f.id, f.before, true)
		var stale *staleError
		if err == nil {
			break
		}
		if !errors.As(err, &stale) || try > 0 {
			return Base{}, fmt.Errorf("base %s: %w", f.ref, err)
		}
		s.log.Warn("a layer was left damaged in podman's storage: what stands on it is removed, and the base is imported once more", "base", f.ref.String(), "layer", stale.layers[0].ID[:12])
		d, err := s.readDisk(ctx)
		if err != nil {
			return Base{}, err
		}
		if _, err := s.purge(ctx, d.standingOn(stale.layers)); err != nil {
			return Base{}, err
		}
		f.id = ""
	}
	return s.adopt(ctx, f, digest)
}

// checkImage makes sure that podman stored what it was given, and that it can
// be a base of the arch, and returns its digest.
func (s *Store) checkImage(ctx context.Context, f fresh) (string, error) {
	call, err := s.conn.Context(ctx)
	if err != nil {
		return "", err
	}
	img, err := images.GetImage(call, f.id, nil)
	if err != nil {
		return "", fmt.Errorf("image of base %s cannot be inspected: %w", f.ref, gone(err))
	}
	digest, err := contentDigest(img)
	if err != nil {
		return "", fmt.Errorf("base %s: %w", f.ref, err)
	}
	want := f.kept.Digest
	if want == "" && f.kept.Kind == keptRootfs {
		want = f.kept.Sum // one layer, whose DiffID is the tar's own digest
	}
	if want != "" && digest != want {
		return "", fmt.Errorf("podman stored base %s as %s, but was given %s: memory or disk of this machine may be failing; try again", f.ref, digest, want)
	}
	return digest, s.checkArch(ctx, f.ref.Arch, img)
}

// adopt gives a base that was checked its name.
func (s *Store) adopt(ctx context.Context, f fresh, digest string) (_ Base, err error) {
	call, err := s.conn.Context(ctx)
	if err != nil {
		return Base{}, err
	}
	ref := f.ref.String()
	old, had := s.copies.get(digest)
	_, named := old.ref(ref)
	if f.w != nil {
		f.kept.Digest, f.kept.Refs = digest, old.Refs
		if err := f.w.keep(s.copies, digest); err != nil {
			return Base{}, err
		}
	}
	defer func() {
		if err != nil && !named {
			s.copies.forget(ref, func(d string) bool { return d == digest })
			if !had {
				s.copies.sweep(false)
			}
		}
	}()
	if err := s.copies.name(f.kept, keptRef{ref, f.source, f.created}); err != nil {
		return Base{}, err
	}
	s.forget(ref)
	if err := images.Tag(call, f.id, f.ref.tag(), repository, nil); err != nil {
		return Base{}, fmt.Errorf("base for %s cannot be named: %w", ref, gone(err))
	}
	s.forget(ref)
	b, err := s.lookUp(ctx, f.ref)
	if err != nil {
		return Base{}, err
	}
	if err := s.copies.forget(ref, func(d string) bool { return d != digest }); err != nil {
		s.log.Warn("clean copy of the base that was replaced stays", "base", ref, "error", err)
	}
	s.baseChanged(ref)
	s.prune(ctx)
	return b, nil
}

// importCopy imports a clean copy, which may prove to be damaged on the way.
// The image has no name yet.
func (s *Store) importCopy(ctx context.Context, f fresh, progress func(Progress)) (id string, err error) {
	call, err := s.conn.Context(ctx)
	if err != nil {
		return "", err
	}
	step := &meter{step: "importing"}
	step.total.Store(fileSize(f.path))
	stop := step.report(progress)
	defer stop()
	r, err := s.copies.open(f.kept, f.path, func(n int64) { step.done.Add(n) })
	if err != nil {
		return "", err
	}
	defer r.Close()
	body := &once{r: r, done: func() {}}
	if f.kept.Kind == keptRootfs {
		id, err = s.importRootfs(call, f.ref.Arch, f.source, body)
	} else {
		id, err = s.loadArchive(call, body, io.Discard)
	}
	// Podman may be content with less than the whole.
	if broken := body.failure(); broken != nil {
		return "", broken
	}
	if err != nil {
		return "", fmt.Errorf("base %s cannot be imported from its clean copy: %w", f.ref, brief(s.explain(gone(err))))
	}
	return id, body.whole()
}

// exportImage writes an image archive without names.
func exportImage(call context.Context, id string, w io.Writer) error {
	pr, pw := io.Pipe()
	filter := make(chan error, 1)
	go func() {
		err := dropNames(w, pr)
		pr.CloseWithError(err)
		filter <- err
	}()
	err := images.Export(call, []string{id}, pw, new(images.ExportOptions).WithFormat("docker-archive"))
	pw.CloseWithError(err)
	return errors.Join(err, <-filter)
}
