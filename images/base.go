package images

import (
	"archive/tar"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containers/podman/v4/pkg/bindings/containers"
	"github.com/containers/podman/v4/pkg/bindings/images"
	"github.com/containers/podman/v4/pkg/domain/entities"
	"github.com/containers/podman/v4/pkg/specgen"

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
}

// Base returns the base that ref names, ARCH or ARCH:NAME (see [ParseBaseRef]);
// when there is none, the error is a *NoBaseError.
func (s *Store) Base(ctx context.Context, ref string) (Base, error) {
	r, err := ParseBaseRef(ref)
	if err != nil {
		return Base{}, err
	}
	return s.lookUp(ctx, r)
}

// lookUp asks podman for a base.
func (s *Store) lookUp(ctx context.Context, ref BaseRef) (Base, error) {
	call, err := s.conn.Context(ctx)
	if err != nil {
		return Base{}, err
	}
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
	if note, ok := s.note(b.Image); ok {
		b.Source, b.Created = note.Source, note.Created
	}
	s.mu.Lock()
	s.bases[ref.String()] = b
	s.mu.Unlock()
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

// Remove removes a base. Builds that run keep it until they end.
func (s *Store) Remove(ctx context.Context, ref string) error {
	r, err := ParseBaseRef(ref)
	if err != nil {
		return err
	}
	b, err := s.lookUp(ctx, r)
	if err != nil {
		return err
	}
	call, err := s.conn.Context(ctx)
	if err != nil {
		return err
	}
	s.forget(ref)
	if err := images.Untag(call, b.Image[len("sha256:"):], r.tag(), repository, nil); err != nil {
		return fmt.Errorf("base for %s cannot be removed: %w", ref, gone(err))
	}
	s.prune(ctx)
	return nil
}

// prune removes images without a name that no container uses: bases that were
// replaced or removed.
func (s *Store) prune(ctx context.Context) {
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
		s.dropNote("sha256:" + strings.TrimPrefix(img.ID, "sha256:"))
	}
}

// adopt checks a fresh image and makes it the base that ref names: from then
// on, and not before, builds use it.
func (s *Store) adopt(ctx context.Context, ref BaseRef, id, source string) (_ Base, err error) {
	call, err := s.conn.Context(ctx)
	if err != nil {
		return Base{}, err
	}
	id = strings.TrimPrefix(strings.TrimSpace(id), "sha256:")
	defer func() {
		if err != nil {
			// By way of prune, which leaves alone what has a name: the very
			// image may also be a base that is in use.
			s.prune(context.WithoutCancel(ctx))
		}
	}()
	if err := s.checkArch(ctx, ref.Arch, id); err != nil {
		return Base{}, err
	}
	if err := s.writeNote("sha256:"+id, note{Source: source, Created: time.Now().UTC().Truncate(time.Second)}); err != nil {
		return Base{}, err
	}
	s.forget(ref.String())
	if err := images.Tag(call, id, ref.tag(), repository, nil); err != nil {
		return Base{}, fmt.Errorf("base for %s cannot be named: %w", ref, gone(err))
	}
	s.forget(ref.String())
	b, err := s.lookUp(ctx, ref)
	if err != nil {
		return Base{}, err
	}
	s.prune(ctx)
	return b, nil
}

// checkArch makes sure that the image's programs are of the arch: a base that
// was loaded under the wrong name would fail every build in a way that nobody
// understands.
func (s *Store) checkArch(ctx context.Context, arch, id string) error {
	call, err := s.conn.Context(ctx)
	if err != nil {
		return err
	}
	img, err := images.GetImage(call, id, nil)
	if err != nil {
		return fmt.Errorf("image cannot be inspected: %w", gone(err))
	}
	if want, _ := ociArch(arch); img.Architecture != "" && img.Architecture != want {
		return fmt.Errorf("image says that it is for %s, not for %s (%s): load it under the right architecture", img.Architecture, arch, want)
	}
	head, err := s.readImageFile(ctx, id, "/bin/sh", 20)
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
	g := specgen.NewSpecGenerator(id, false)
	g.Name = "quarry-" + s.conn.Farm() + "-look-" + random()
	g.Labels = map[string]string{labelFarm: s.conn.Farm()}
	g.Entrypoint = []string{"/bin/sh"}
	g.NetNS = specgen.Namespace{NSMode: specgen.NoNetwork}
	g.ImageVolumeMode = "ignore"
	made, err := containers.CreateWithSpec(call, g, nil)
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

// note is what an image cannot say of itself: OCI archives must not be changed
// when they are loaded, so where they came from is kept beside them.
type note struct {
	Source  string    `json:"source"`
	Created time.Time `json:"created"`
}

func (s *Store) notePath(image string) string {
	return filepath.Join(s.conn.Dir(), "bases", strings.TrimPrefix(image, "sha256:")+".json")
}

func (s *Store) note(image string) (n note, ok bool) {
	data, err := os.ReadFile(s.notePath(image))
	if err != nil || json.Unmarshal(data, &n) != nil {
		return note{}, false
	}
	return n, true
}

func (s *Store) dropNote(image string) { os.Remove(s.notePath(image)) }

func (s *Store) writeNote(image string, n note) error {
	path := s.notePath(image)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	data, err := json.Marshal(n)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("note on a base cannot be written: %w", err)
	}
	return os.Rename(path+".new", path)
}
