package extract

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry"
)

// Options says what Tree needs to know besides the tree.
type Options struct {
	// UIDBase and GIDBase are the host's ids of the workspace's root: a file
	// of UIDBase+7 is recorded as the workspace's user 7. Ids outside of the
	// 65536 from there are refused.
	UIDBase, GIDBase int
	// Store takes the artifact. Without one there are facts only.
	Store *Artifacts
	// SourceTime is the latest time a file in the artifact may have, the
	// commit's (SOURCE_DATE_EPOCH); later ones become it. Zero is 1970.
	SourceTime time.Time
	// Base and Deps are where needed libraries may come from besides the
	// package itself.
	Base LibraryIndex
	Deps []Dependency
	// BuildPaths are folders that exist in the workspace only, e.g. /quarry.
	// What the package has in them is refused, what it has pointing into them
	// is warned about.
	BuildPaths []string
	// Cross says that the tree was cross built: what is for the machine that did
	// is refused.
	Cross *Cross
	// Limits of zero are DefaultLimits.
	Limits Limits
	// Workers is how many cores to use; 0 is all, 16 at most. It does not
	// change the result.
	Workers int
}

// Dependency is a package that was installed into the workspace.
type Dependency struct {
	Package   string
	Libraries LibraryIndex // e.g. IndexFiles of its facts
}

// maxWarnings is how many warnings of one tree are kept.
const maxWarnings = 200

// Tree reads a staged tree once and returns its facts and, with a store, its
// artifact, which is then safe on disk. It follows no link and opens nothing
// but folders and regular files.
//
// Root of the host reads everything whatever its mode. A farm without root has
// to run this inside the user namespace of its containers (podman unshare),
// with UIDBase 0: outside of it, files of the container's users that are not
// its root cannot be read.
//
// A [RefusedError] is about what the recipe installed; another error is about
// the machine. When ctx ends the error wraps ctx.Err().
func Tree(ctx context.Context, root string, o Options) (*quarry.Facts, *quarry.Artifact, error) {
	o.Limits = o.Limits.or(DefaultLimits)
	t, err := walk(ctx, root, o)
	if err != nil {
		return nil, nil, err
	}
	defer t.close()
	for i := range t.entries {
		e := &t.entries[i]
		// Sizes come from the tree and may add up to more than a number holds.
		if t.bytes += min(e.Size, o.Limits.Bytes+1); t.bytes > o.Limits.Bytes {
			return nil, nil, refuse(e.Path, "it installs more than %d bytes: split the package or ship less", o.Limits.Bytes)
		}
	}
	var out *pending
	if o.Store != nil {
		if out, err = o.Store.create(); err != nil {
			return nil, nil, err
		}
		defer out.abort()
	}
	if err := t.read(ctx, out); err != nil {
		return nil, nil, err
	}
	if err := t.foreign(); err != nil {
		return nil, nil, err
	}
	facts := t.facts()
	if out == nil {
		return facts, nil, nil
	}
	art, err := out.commit()
	if err != nil {
		return nil, nil, err
	}
	return facts, &art, nil
}

// facts sums up a tree that has been read.
func (t *tree) facts() *quarry.Facts {
	f := &quarry.Facts{Files: make([]quarry.File, len(t.entries)), Size: t.bytes}
	class := map[string]quarry.Class{} // of files with several names
	for i := range t.entries {
		e := &t.entries[i]
		f.DiskSize += e.blocks * 512
		switch {
		case e.Kind == quarry.KindRegular && e.nlink > 1:
			class[e.Path] = e.Class
		case e.Kind == quarry.KindHardlink:
			e.Class = class[e.Target]
		}
		f.Files[i] = e.File
		t.pointsIntoBuild(e)
	}
	f.ABI = abi(f.Files)
	var libs []string
	f.Libraries, libs = resolveLibraries(f.Files, t.Deps, t.Base)

	dropped := 0
	warn := func(s string) {
		if len(f.Warnings) < maxWarnings {
			f.Warnings = append(f.Warnings, s)
		} else {
			dropped++
		}
	}
	if len(f.Files) == 0 {
		warn("it installs no file: check that its install step honours DESTDIR")
	}
	for _, s := range libs {
		warn(s)
	}
	for i := range t.entries {
		for _, s := range t.entries[i].warn {
			warn(quotePath(t.entries[i].Path) + " " + s)
		}
	}
	if dropped > 0 {
		f.Warnings = append(f.Warnings, plural(dropped, "further warning"))
	}
	return f
}

// inBuild reports whether a path is or is in one of the build's folders.
func (t *tree) inBuild(p string) bool {
	return slices.ContainsFunc(t.BuildPaths, func(dir string) bool {
		return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
	})
}

// pointsIntoBuild warns of what will be broken or unsafe outside the workspace.
func (t *tree) pointsIntoBuild(e *entry) {
	if e.Kind == quarry.KindSymlink && t.inBuild(e.Target) {
		e.warn = append(e.warn, fmt.Sprintf("points into the build, to %s", quotePath(e.Target)))
	}
	if t.inBuild(e.Interpreter) {
		e.warn = append(e.warn, fmt.Sprintf("has its interpreter in the build, %s", quotePath(e.Interpreter)))
	}
	if e.ELF == nil {
		return
	}
	for _, dir := range slices.Concat(e.ELF.RPath, e.ELF.RunPath) {
		if t.inBuild(dir) {
			e.warn = append(e.warn, fmt.Sprintf("searches libraries in the build, in %s: link it without this rpath", quotePath(dir)))
		}
	}
}

// clamp is the time an entry has in the artifact, in seconds.
func (t *tree) clamp(e *entry) int64 {
	latest := int64(0)
	if !t.SourceTime.IsZero() {
		latest = t.SourceTime.Unix()
	}
	return max(0, min(e.mtime, latest, maxTime))
}
