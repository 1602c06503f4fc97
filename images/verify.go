package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containers/podman/v4/pkg/bindings/containers"
	"github.com/containers/podman/v4/pkg/bindings/images"
	"github.com/containers/podman/v4/pkg/specgen"
	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/internal/podman"
	"github.com/Morphux/quarry/internal/treesum"
)

// Damage is something in podman's storage that is not what was put there.
type Damage struct {
	What   string `json:"what"`   // base x86_64, or instance testing/x86_64
	Path   string `json:"path"`   // inside, e.g. usr/bin/sh, quoted when it is odd; "" when it is about the whole
	Detail string `json:"detail"` // e.g. "has 0 bytes, not 1234"
}

func (d Damage) String() string {
	if d.Path == "" {
		return d.What + ": " + d.Detail
	}
	return fmt.Sprintf("%s: %s %s", d.What, d.Path, d.Detail)
}

// maxDamage is how many files of one layer are named.
const maxDamage = 5

// Verify compares every base and instance on disk with what was recorded when
// it was made, and returns what differs. The quick check takes files by their
// names, sizes, owners, modes and times, and so finds all that was changed
// through the file system; deep also reads everything, and so finds what a loss
// of power or a failing disk changed. Nothing is repaired: that is for
// [Store.Repair] and [Store.VerifyAtStart]. progress may be nil; it is called
// from another goroutine.
func (s *Store) Verify(ctx context.Context, deep bool, progress func(Progress)) ([]Damage, error) {
	if err := s.loading.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer s.loading.Release(1)
	f, err := s.verify(ctx, deep, deep, progress)
	return f.damage, err
}

// findings are what a verification found.
type findings struct {
	damage []Damage
	bad    map[string]bool // ids of own images that must go
	layers []diskLayer     // own ones that are damaged
	gone   []string        // refs of bases that should be there
	stuck  []error         // damage that is not for this farm to repair
}

// called tells what an image's name stands for; "" when it is none of Quarry's.
func (s *Store) called(name string) (what string, ref *BaseRef) {
	if tag, ok := strings.CutPrefix(name, repository+":"); ok {
		if r, ok := parseTag(tag); ok {
			return "base " + r.String(), &r
		}
	}
	if e, ok := s.instanceOf(name); ok {
		return "instance " + e.String(), nil
	}
	return "", nil
}

// instanceOf tells which environment's instance an image is by its name.
func (s *Store) instanceOf(name string) (e env, ok bool) {
	tag, ok := strings.CutPrefix(name, s.instanceRepo()+":")
	if ok {
		e.arch, e.channel, ok = strings.Cut(tag, ".")
	}
	return e, ok
}

// verify is Verify for who holds s.loading. Of storages that are only read the
// content counts with readOnlyDeep only.
func (s *Store) verify(ctx context.Context, deep, readOnlyDeep bool, progress func(Progress)) (findings, error) {
	f := findings{bad: map[string]bool{}}
	d, err := s.readDisk(ctx)
	if err != nil {
		return f, err
	}
	step := &meter{step: "verifying"}
	stop := step.report(progress)
	defer stop()
	v := &verifier{s: s, step: step, deep: deep, readOnlyDeep: readOnlyDeep, looked: map[string]verdict{}}
	there := map[string]bool{}
	for _, img := range d.images {
		for _, name := range img.Names {
			what, ref := s.called(name)
			if what == "" || there[what] || ref != nil && img.root.readOnly && s.shadows(ctx, *ref) {
				continue
			}
			there[what] = true
			found, err := v.image(ctx, d, img, what)
			if err != nil {
				return f, fmt.Errorf("%s cannot be verified: %w", what, err)
			}
			if len(found.damage) == 0 || s.replaced(ctx, name, img.ID) {
				continue // replaced while it was looked at: nobody uses this one any more
			}
			f.damage = append(f.damage, found.damage...)
			f.layers = append(f.layers, found.layers...)
			if found.readOnly != "" {
				f.stuck = append(f.stuck, fmt.Errorf("%v: it lies in %s, which is only read here: repair it where it was made", found.damage[0], found.readOnly))
			} else {
				f.bad[img.ID] = true
			}
		}
	}
	refs, err := s.copies.refs()
	if err != nil {
		return f, err
	}
	for _, ref := range refs {
		if !there["base "+ref] {
			f.gone = append(f.gone, ref)
			f.damage = append(f.damage, Damage{"base " + ref, "", "it is gone from podman's storage"})
		}
	}
	return f, nil
}

// verifier goes over images; each layer it looks at once.
type verifier struct {
	s                  *Store
	step               *meter
	deep, readOnlyDeep bool
	looked             map[string]verdict
}

type verdict struct {
	diffs []treesum.Diff
	total int
}

// imageDamage is what is wrong with one image.
type imageDamage struct {
	damage   []Damage
	layers   []diskLayer // own ones that are damaged
	readOnly string      // storage that is only read and holds a damaged layer or the image itself
}

func (v *verifier) image(ctx context.Context, d *disk, img diskImage, what string) (f imageDamage, err error) {
	add := func(path, detail string) { f.damage = append(f.damage, Damage{what, path, detail}) }
	if img.root.readOnly {
		defer func() {
			if len(f.damage) > 0 {
				f.readOnly = img.root.dir
			}
		}()
	}
	layers, missing := d.chain(img)
	if missing != "" {
		add("", fmt.Sprintf("layer %.12s of it is gone from podman's storage", missing))
	}
	for _, l := range layers {
		key := v.s.treePath(l)
		seen, ok := v.looked[key]
		if !ok {
			deep := v.deep && (!l.root.readOnly || v.readOnlyDeep)
			seen.diffs, seen.total, err = v.s.checkLayer(ctx, l, deep, v.step)
			if err != nil {
				return f, err
			}
			v.looked[key] = seen
		}
		for _, diff := range seen.diffs {
			add(oneWord(diff.Path), diff.Detail)
		}
		if more := seen.total - len(seen.diffs); more > 0 {
			add("", fmt.Sprintf("%d more files differ", more))
		}
		switch {
		case seen.total == 0:
		case l.root.readOnly:
			f.readOnly = l.root.dir
		default:
			f.layers = append(f.layers, l)
		}
	}
	if len(f.damage) > 0 {
		return f, nil
	}
	if err := v.s.inspectable(ctx, img.ID); podman.IsGone(err) || ctx.Err() != nil {
		return f, err
	} else if err != nil {
		add("", fmt.Sprintf("podman cannot use it: %v", brief(err)))
	}
	return f, nil
}

// shadows reports whether a base in a storage that is only read would take the
// place of one that was loaded here and is gone.
func (s *Store) shadows(ctx context.Context, ref BaseRef) bool {
	kept, ok := s.copies.of(ref.String())
	if !ok {
		return false
	}
	b, err := s.lookUp(ctx, ref)
	return err == nil && b.Digest != kept.Digest
}

// replaced reports whether the name means another image by now.
func (s *Store) replaced(ctx context.Context, name, id string) bool {
	d, err := s.readDisk(ctx)
	if err != nil {
		return false
	}
	return !slices.ContainsFunc(d.images, func(img diskImage) bool { return img.ID == id && slices.Contains(img.Names, name) })
}

// inspectable reports whether podman can read an image's own notes.
func (s *Store) inspectable(ctx context.Context, id string) error {
	call, err := s.conn.Context(ctx)
	if err != nil {
		return err
	}
	img, err := images.GetImage(call, id, nil)
	if err != nil {
		return gone(err)
	}
	_, err = contentDigest(img)
	return err
}

// layersDir holds the measures of layers, below the folder of clean copies.
const layersDir = "layers"

// treePath is where the measure of a layer is kept.
func (s *Store) treePath(l diskLayer) string {
	name := l.ID
	if l.root.readOnly {
		// The same layer can lie here and there.
		name += "-" + strings.TrimPrefix(digestOfText(l.root.dir), "sha256:")[:12]
	}
	return filepath.Join(s.copies.dir, layersDir, name+".tree")
}

// badPath marks a layer that was found damaged, until it is gone or whole. A
// quick check might not see it again.
func (s *Store) badPath(l diskLayer) string {
	return strings.TrimSuffix(s.treePath(l), ".tree") + ".bad"
}

func (s *Store) writeTree(l diskLayer, t *treesum.Tree) error {
	data, err := t.Encode()
	if err == nil {
		err = writeDurable(s.treePath(l), data)
	}
	if err != nil {
		return fmt.Errorf("measure of layer %.12s cannot be written: %w", l.ID, err)
	}
	os.Remove(s.badPath(l))
	return nil
}

// readTree reads the measure of a layer, nil when none was taken.
func (s *Store) readTree(l diskLayer) (*treesum.Tree, error) {
	data, err := os.ReadFile(s.treePath(l))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return treesum.Decode(data)
}

// checkLayer compares a layer on disk with its measure. Where none was taken,
// it is taken now. An error means that it cannot be known.
func (s *Store) checkLayer(ctx context.Context, l diskLayer, deep bool, step *meter) (diffs []treesum.Diff, n int, err error) {
	whole := func(detail string) ([]treesum.Diff, int, error) {
		return []treesum.Diff{{Path: ".", Detail: detail}}, 1, nil
	}
	known, err := s.readTree(l)
	if err != nil {
		return whole(fmt.Sprintf("cannot be told right from wrong: %v", err))
	}
	if detail := l.crooked(); detail != "" {
		return whole(detail)
	}
	if _, err := os.Lstat(s.badPath(l)); err == nil {
		deep = true
	}
	if known != nil && deep {
		step.total.Add(known.Bytes())
	}
	read := func(n int64) { step.done.Add(n) }
	if !deep && (known != nil || l.root.readOnly) {
		now, err := treesum.Scan(ctx, l.dir(), false, read)
		if err != nil {
			return scanFailed(ctx, err)
		}
		if known == nil {
			return nil, 0, s.writeTree(l, now) // its content is another day's matter
		}
		path, touched := treesum.Touched(known, now)
		if !touched {
			return nil, 0, nil
		}
		s.log.Warn("a layer was touched: it is read as a whole to see whether it is still what it was", "layer", l.ID[:12], "path", oneWord(path))
	}
	now, err := treesum.Scan(ctx, l.dir(), true, read)
	if err != nil {
		return scanFailed(ctx, err)
	}
	if known != nil {
		if diffs, n = treesum.Compare(known, now, maxDamage); n > 0 {
			if err := writeDurable(s.badPath(l), []byte(diffs[0].String()+"\n")); err != nil {
				s.log.Warn("a damaged layer cannot be marked as such", "layer", l.ID[:12], "error", err)
			}
			return diffs, n, nil
		}
		if _, touched := treesum.Touched(known, now); !touched && known.Deep {
			os.Remove(s.badPath(l))
			return nil, 0, nil
		}
	} else {
		s.log.Info("a layer is trusted as it is, since nobody took its measure when it was made", "layer", l.ID[:12], "files", now.Files())
	}
	if e := now.Unread(); e != nil {
		return whole(fmt.Sprintf("%s cannot be read: %s", oneWord(e.Path), e.Unread))
	}
	return nil, 0, s.writeTree(l, now)
}

// scanFailed is what it means that a layer cannot be scanned.
func scanFailed(ctx context.Context, err error) ([]treesum.Diff, int, error) {
	if ctx.Err() != nil {
		return nil, 0, ctx.Err()
	}
	return []treesum.Diff{{Path: ".", Detail: fmt.Sprintf("cannot be read: %v", err)}}, 1, nil
}

// crooked tells what is wrong with the files beside a layer with which podman
// finds it and those below it. After a loss of power they have been found empty.
func (l diskLayer) crooked() string {
	if l.root.driver != "overlay" {
		return ""
	}
	dir := filepath.Dir(l.dir())
	link, err := os.ReadFile(filepath.Join(dir, "link"))
	if err != nil {
		return fmt.Sprintf("has lost its link: %v", err)
	}
	name := strings.TrimSpace(string(link))
	if name == "" || strings.ContainsAny(name, "/\x00") {
		return fmt.Sprintf("has the broken link %.40q", name)
	}
	to, err := os.Readlink(filepath.Join(l.root.dir, "overlay", "l", name))
	if err != nil {
		return fmt.Sprintf("has lost its link: %v", err)
	}
	if want := filepath.Join("..", l.ID, "diff"); to != want {
		return fmt.Sprintf("has a link to %.100q in place of %q", to, want)
	}
	lower, err := os.ReadFile(filepath.Join(dir, "lower"))
	if l.Parent == "" && (errors.Is(err, os.ErrNotExist) || len(lower) == 0) {
		return ""
	}
	if err != nil || len(lower) == 0 {
		return "has lost the layers below it"
	}
	return ""
}

// staleError says that podman used layers for a fresh image that were on disk
// before, and are not what they should be.
type staleError struct{ layers []diskLayer }

func (e *staleError) Error() string {
	return fmt.Sprintf("layer %.12s was in podman's storage already, and is damaged", e.layers[0].ID)
}

// layersNow lists the farm's own layers, for vouchFor.
func (s *Store) layersNow(ctx context.Context) (map[string]bool, error) {
	d, err := s.readDisk(ctx)
	if err != nil {
		return nil, err
	}
	return d.known, nil
}

// vouch takes the measure of the layers that containers of a fresh image are
// made from, after bringing them to the disk, so that whatever happens from
// now on shows.
func (s *Store) vouch(ctx context.Context, image string) error {
	return s.vouchFor(ctx, image, nil, false)
}

// vouchFor is vouch for an image that may stand on layers which were there
// before. One without a measure may be what an import left that was killed, or
// cut off from the disk by a loss of power: that, and one that differs from its
// measure, makes a *staleError. deep reads also those that look as they should.
func (s *Store) vouchFor(ctx context.Context, image string, before map[string]bool, deep bool) error {
	if err := s.mapLayers(ctx, image); err != nil {
		return err
	}
	s.trees.Lock()
	defer s.trees.Unlock()
	d, err := s.readDisk(ctx)
	if err != nil {
		return err
	}
	img, ok := d.image(image)
	if !ok {
		return fmt.Errorf("image %.19s is not in podman's storage", image)
	}
	layers, missing := d.chain(img)
	if missing != "" {
		return fmt.Errorf("image %.19s lacks its layer %.12s", image, missing)
	}
	if err := syncfs(img.root.dir); err != nil {
		return err
	}
	var stale []diskLayer
	for _, l := range layers {
		known, err := s.readTree(l)
		switch {
		case l.root.readOnly:
			continue
		case (known == nil || err != nil) && before[l.ID]:
			stale = append(stale, l)
			continue
		case known == nil:
			known, err := treesum.Scan(ctx, l.dir(), true, nil)
			if err != nil {
				return fmt.Errorf("layer %.12s cannot be read: %w", l.ID, err)
			}
			if err := s.writeTree(l, known); err != nil {
				return err
			}
			continue
		}
		_, n, err := s.checkLayer(ctx, l, deep, new(meter))
		if err != nil {
			return err
		}
		if n > 0 {
			stale = append(stale, l)
		}
	}
	if len(stale) > 0 {
		return &staleError{stale}
	}
	return nil
}

// mapLayers has podman make, where it has to, the copy of an image's layer that
// workspaces will be made from: in a build's place, and so that vouch covers it.
func (s *Store) mapLayers(ctx context.Context, image string) error {
	call, err := s.conn.Context(ctx)
	if err != nil {
		return err
	}
	made, err := containers.CreateWithSpec(call, s.lookSpec(image), nil)
	if err != nil {
		return fmt.Errorf("no container can be made from image %.19s: %w", image, brief(s.explain(gone(err))))
	}
	return s.removeContainer(context.WithoutCancel(ctx), made.ID, "")
}

// lookSpec is a container that is never started, over the layers that a
// workspace would have.
func (s *Store) lookSpec(image string) *specgen.SpecGenerator {
	g := specgen.NewSpecGenerator(strings.TrimPrefix(image, "sha256:"), false)
	g.Name = "quarry-" + s.conn.Farm() + "-look-" + random()
	g.Labels = map[string]string{labelFarm: s.conn.Farm()}
	g.Entrypoint = []string{"/bin/sh"}
	g.NetNS = specgen.Namespace{NSMode: specgen.NoNetwork}
	g.ImageVolumeMode = "ignore"
	s.mapIDs(g)
	return g
}

// dropTrees removes the measures of layers that are in the storage no more.
func (s *Store) dropTrees(ctx context.Context) {
	s.trees.Lock()
	defer s.trees.Unlock()
	d, err := s.readDisk(ctx)
	if err != nil {
		return // another time
	}
	dir := filepath.Join(s.copies.dir, layersDir)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		name := strings.TrimSuffix(strings.TrimSuffix(e.Name(), ".tree"), ".bad")
		id, _, _ := strings.Cut(name, "-")
		if _, there := d.layers[id]; !there && isHex(id) {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

func syncfs(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("podman's storage cannot be brought to the disk: %w", err)
	}
	return nil
}

// oneWord makes a path from a hostile image fit for a line of text.
func oneWord(path string) string {
	if q := strconv.Quote(path); q != `"`+path+`"` {
		return q
	}
	return path
}

// VerifyAtStart makes sure that builds find what was put into podman's storage:
// it verifies all bases and instances, quickly, or deep when the machine was
// started since the last time, and has everything damaged or lost made again:
// bases from their clean copies; instances are removed, for their maker to make
// them anew. It returns what it found. An error means that something damaged is
// still there, or that nothing can be known; the log has a line for each. Call
// it before builds run: a damaged image's containers are removed with it.
func (s *Store) VerifyAtStart(ctx context.Context) ([]Damage, error) {
	if err := s.loading.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer s.loading.Release(1)
	s.copies.sweep(s.conn.Own())
	boot := bootID()
	last, err := os.ReadFile(s.bootPath())
	deep := err == nil && strings.TrimSpace(string(last)) != boot
	began := time.Now()
	f, err := s.verify(ctx, deep, false, nil)
	if err != nil {
		return f.damage, err
	}
	s.log.Debug("bases and instances were verified", "deep", deep, "damages", len(f.damage), "took", time.Since(began))
	if _, err := s.mend(ctx, f, nil); err != nil {
		return f.damage, err
	}
	if err := writeDurable(s.bootPath(), []byte(boot+"\n")); err != nil {
		return f.damage, err
	}
	return f.damage, nil
}

// bootPath says under which start of the machine all was verified.
func (s *Store) bootPath() string { return filepath.Join(s.copies.dir, "verified") }

// bootID is the kernel's name of this start of the machine.
func bootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(data))
}
