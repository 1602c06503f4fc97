package images

import (
	"archive/tar"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containers/podman/v4/pkg/bindings/containers"
	"github.com/containers/podman/v4/pkg/bindings/images"
	"github.com/containers/podman/v4/pkg/domain/entities"

	"github.com/Morphux/quarry/internal/podman"
	"github.com/Morphux/quarry/internal/podman/tinyelf"
)

// NoBaseError says that no such base is loaded.
type NoBaseError struct {
	Arch string
	Name string // "" for the arch's default base
}

func (e *NoBaseError) Error() string {
	ref := BaseRef{e.Arch, e.Name}
	return fmt.Sprintf("no base for %s: load one with quarry images load %s FILE, or make one with quarry images bootstrap %s", ref, ref, ref)
}

// base finds a base, from memory when it can.
func (s *Store) base(ctx context.Context, ref string) (Base, error) {
	s.mu.Lock()
	b, ok := s.bases[ref]
	s.mu.Unlock()
	if ok {
		return b, nil
	}
	return s.Base(ctx, ref)
}

func (s *Store) forget(ref string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.bases, ref)
	s.forgotten++
}

// looking is called before podman is asked for a base, and tells remember when
// that was.
func (s *Store) looking() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.forgotten
}

// remember keeps what podman said of a base, unless one was forgotten since it was
// asked: then the answer may be about the one that was there before.
func (s *Store) remember(since int, b Base) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.forgotten == since {
		s.bases[b.Ref()] = b
	}
}

// forgetAll has bases and instances looked up again.
func (s *Store) forgetAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.bases)
	s.forgotten++
	s.inst.mu.Lock()
	defer s.inst.mu.Unlock()
	clear(s.inst.known)
	s.inst.forgotten++
}

// Base returns the base that ref names, ARCH or ARCH:NAME (see [ParseBaseRef]);
// when there is none, the error is a *NoBaseError. A base whose image somebody
// deleted underneath is made again from its clean copy first.
func (s *Store) Base(ctx context.Context, ref string) (Base, error) {
	r, err := ParseBaseRef(ref)
	if err != nil {
		return Base{}, err
	}
	b, err := s.lookUp(ctx, r)
	var none *NoBaseError
	if !errors.As(err, &none) {
		return b, err
	}
	if _, kept := s.copies.of(ref); !kept {
		return b, err
	}
	if err := s.loading.Acquire(ctx, 1); err != nil {
		return Base{}, err
	}
	defer s.loading.Release(1)
	if b, err = s.lookUp(ctx, r); !errors.As(err, &none) {
		return b, err // somebody was quicker
	}
	s.log.Warn("a base is gone from podman's storage, and is made again from its clean copy", "base", ref)
	return s.restore(ctx, ref, nil)
}

// lookUp asks podman for a base.
func (s *Store) lookUp(ctx context.Context, ref BaseRef) (Base, error) {
	call, err := s.conn.Context(ctx)
	if err != nil {
		return Base{}, err
	}
	since := s.looking()
	img, err := images.GetImage(call, ref.image(), new(images.GetOptions).WithSize(true))
	if err != nil {
		s.forget(ref.String())
		if podman.Code(err) == 404 {
			return Base{}, &NoBaseError{ref.Arch, ref.Name}
		}
		return Base{}, fmt.Errorf("base for %s cannot be looked up: %w", ref, s.explain(gone(err)))
	}
	b := Base{Name: ref.Name, Arch: ref.Arch, Image: "sha256:" + strings.TrimPrefix(img.ID, "sha256:"), Size: img.Size, Source: img.Labels[labelSource]}
	if b.Digest, err = contentDigest(img); err != nil {
		return Base{}, fmt.Errorf("base for %s: %w", ref, err)
	}
	if img.Created != nil {
		b.Created = img.Created.UTC()
	}
	if kept, ok := s.copies.get(b.Digest); ok {
		// An image cannot say of itself where it comes from: its archive must
		// not be changed when it is loaded.
		if r, ok := kept.ref(b.Ref()); ok {
			b.Source, b.Created = r.Source, r.Created
		}
	}
	s.remember(since, b)
	return b, nil
}

// contentDigest is the digest of what an image holds.
func contentDigest(img *entities.ImageInspectReport) (string, error) {
	if img.RootFS == nil {
		return chainID(nil)
	}
	var diffs []string
	for _, d := range img.RootFS.Layers {
		diffs = append(diffs, d.String())
	}
	return chainID(diffs)
}

// Bases lists the bases by arch and name.
func (s *Store) Bases(ctx context.Context) ([]Base, error) {
	call, err := s.conn.Context(ctx)
	if err != nil {
		return nil, err
	}
	list, err := images.List(call, new(images.ListOptions).WithFilters(map[string][]string{"reference": {repository}}))
	if err != nil {
		return nil, fmt.Errorf("bases cannot be listed: %w", gone(err))
	}
	seen := map[string]bool{}
	var bases []Base
	for _, img := range list {
		for _, name := range img.RepoTags {
			tag, ok := strings.CutPrefix(name, repository+":")
			ref, fits := parseTag(tag)
			if !ok || !fits || seen[tag] {
				continue
			}
			seen[tag] = true
			b, err := s.lookUp(ctx, ref)
			var none *NoBaseError
			if errors.As(err, &none) {
				continue // removed meanwhile
			}
			if err != nil {
				return nil, err
			}
			bases = append(bases, b)
		}
	}
	slices.SortFunc(bases, func(a, b Base) int {
		return cmp.Or(cmp.Compare(a.Arch, b.Arch), cmp.Compare(a.Name, b.Name))
	})
	return bases, nil
}

// Remove removes a base and its clean copy. Builds that run keep it until they
// end.
func (s *Store) Remove(ctx context.Context, ref string) error {
	r, err := ParseBaseRef(ref)
	if err != nil {
		return err
	}
	if err := s.loading.Acquire(ctx, 1); err != nil {
		return err
	}
	defer s.loading.Release(1)
	b, err := s.lookUp(ctx, r)
	var none *NoBaseError
	if err != nil && !errors.As(err, &none) {
		return err
	}
	_, kept := s.copies.of(ref)
	if err != nil && !kept {
		return err
	}
	s.forget(ref)
	if err == nil {
		call, err := s.conn.Context(ctx)
		if err != nil {
			return err
		}
		if err := images.Untag(call, b.Image[len("sha256:"):], r.tag(), repository, nil); err != nil {
			return fmt.Errorf("base for %s cannot be removed: %w", ref, gone(err))
		}
	}
	if err := s.copies.forget(ref, func(string) bool { return true }); err != nil {
		return err
	}
	s.baseChanged(ref)
	s.prune(ctx)
	return nil
}

// prune removes images without a name that no container uses: bases that were
// replaced or removed.
func (s *Store) prune(ctx context.Context) {
	s.inst.saving.Lock() // an instance has no name for a moment
	defer s.inst.saving.Unlock()
	call, err := s.conn.Context(ctx)
	if err != nil {
		return
	}
	filters := map[string][]string{"dangling": {"true"}}
	if !s.conn.Own() {
		// The admin's own nameless images are none of ours.
		filters["label"] = []string{labelArch}
	}
	list, err := images.List(call, new(images.ListOptions).WithAll(true).WithFilters(filters))
	if err != nil {
		return
	}
	for _, img := range list {
		if img.ReadOnly {
			continue
		}
		// An image in use is refused, which is as it should be.
		images.Remove(call, []string{img.ID}, new(images.RemoveOptions).WithForce(false))
	}
	s.dropTrees(ctx)
}

// checkArch makes sure that the image's programs are of the arch: a base that
// was loaded under the wrong name would fail every build in a way that nobody
// understands.
func (s *Store) checkArch(ctx context.Context, arch string, img *entities.ImageInspectReport) error {
	if want, _ := ociArch(arch); img.Architecture != "" && img.Architecture != want {
		return fmt.Errorf("image says that it is for %s, not for %s (%s): load it under the right architecture", img.Architecture, arch, want)
	}
	head, err := s.readImageFile(ctx, img.ID, "/bin/sh", 20)
	if err != nil {
		return fmt.Errorf("image has no /bin/sh that can be read (%w): a base is a whole system, with a shell, make and a compiler", err)
	}
	return checkELF(arch, head)
}

// checkELF compares the header of a program with what the arch's have.
func checkELF(arch string, head []byte) error {
	if len(head) < 20 || string(head[:4]) != "\x7fELF" {
		return errors.New("image's /bin/sh is not an ELF program: a base is a whole system, with a shell, make and a compiler")
	}
	want, ok := tinyelf.Of(arch)
	if !ok {
		return nil // an arch that nobody has heard of is carried through
	}
	got := tinyelf.Machine{Bits: 32}
	if head[4] == 2 {
		got.Bits = 64
	}
	var order binary.ByteOrder = binary.LittleEndian
	if head[5] == 2 {
		order, got.Big = binary.BigEndian, true
	}
	got.EM = order.Uint16(head[18:])
	if got != want {
		return fmt.Errorf("image's /bin/sh is a program for %s, not for %s: load it under the right architecture", tinyelf.Name(got), arch)
	}
	return nil
}

// readImageFile reads the beginning of a file of an image, following links
// inside of it, by way of a container that is never started.
func (s *Store) readImageFile(ctx context.Context, id, path string, n int64) ([]byte, error) {
	call, err := s.conn.Context(ctx)
	if err != nil {
		return nil, err
	}
	made, err := containers.CreateWithSpec(call, s.lookSpec(id), nil)
	if err != nil {
		return nil, gone(err)
	}
	defer s.removeContainer(context.WithoutCancel(ctx), made.ID, "")
	for range 8 { // links: the archive holds the link, its header where it leads
		pr, pw := io.Pipe()
		copyOut, err := containers.CopyToArchive(call, made.ID, path, pw)
		if err != nil {
			return nil, gone(err)
		}
		go func() { pw.CloseWithError(cmp.Or(copyOut(), io.EOF)) }()
		tr := tar.NewReader(pr)
		h, err := tr.Next()
		if err != nil {
			pr.Close()
			return nil, err
		}
		if h.Typeflag == tar.TypeSymlink {
			pr.Close()
			if !filepath.IsAbs(h.Linkname) {
				h.Linkname = filepath.Join(filepath.Dir(path), h.Linkname)
			}
			path = filepath.Clean(h.Linkname)
			continue
		}
		data, err := io.ReadAll(io.LimitReader(tr, n))
		pr.Close()
		return data, err
	}
	return nil, fmt.Errorf("%s is a chain of links", path)
}
