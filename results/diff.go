package results

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/Morphux/quarry"
)

// Change is a record that differs between two commits.
type Change struct {
	quarry.Target      // Channel is that of the later snapshot
	Failure       bool // of a failure's record; else of a success
	// Old and New are what stands before the first table of the record that was
	// there and of the one that is; nil where there is none.
	Old, New *Available
	// OldBlob and NewBlob are the ids of the records as git has them; "" for none.
	OldBlob, NewBlob string
}

// Diff lists the records that differ from one snapshot to a later one, or to one
// of another channel: by package, then by version, the oldest first, then by
// architecture. Folders that are the same are not looked into, so that the cost is
// that of the difference.
func Diff(ctx context.Context, from, to *Snapshot) ([]Change, error) {
	var list []Change
	err := diff(ctx, from, to, func(t quarry.Target, failure bool, old, now plumbing.Hash) error {
		t.Channel = to.channel
		c := Change{Target: t, Failure: failure}
		for _, side := range []struct {
			s     *Snapshot
			h     plumbing.Hash
			head  **Available
			place *string
		}{{from, old, &c.Old, &c.OldBlob}, {to, now, &c.New, &c.NewBlob}} {
			if side.h.IsZero() {
				continue
			}
			a, err := side.s.odb.head(side.h)
			if err != nil {
				path := RecordPath
				if failure {
					path = FailurePath
				}
				return side.s.bad(path(t), err)
			}
			*side.head, *side.place = &a, side.h.String()
		}
		list = append(list, c)
		return nil
	})
	slices.SortFunc(list, func(a, b Change) int {
		if c := strings.Compare(a.Package, b.Package); c != 0 {
			return c
		}
		if c := quarry.CompareVersions(a.Version, b.Version); c != 0 {
			return c
		}
		return strings.Compare(a.Version+" "+a.Arch, b.Version+" "+b.Arch)
	})
	return list, err
}

// diff calls f for each record that differs. Both snapshots may be of one
// repository each.
func diff(ctx context.Context, from, to *Snapshot, f func(t quarry.Target, failure bool, old, now plumbing.Hash) error) error {
	for _, top := range []string{packagesDir, failuresDir} {
		old, err := from.odb.lookup(from.root, top, true)
		if err != nil {
			return err
		}
		now, err := to.odb.lookup(to.root, top, true)
		if err != nil {
			return err
		}
		if err := diffTrees(ctx, from, to, old, now, nil, func(at []string, old, now plumbing.Hash) error {
			t, ok := placeOf(at)
			if !ok {
				return nil // not Quarry's
			}
			return f(t, top == failuresDir, old, now)
		}); err != nil {
			return err
		}
	}
	return nil
}

// diffTrees calls f for each file below two folders that differs. at are the names
// on the way to the folders.
func diffTrees(ctx context.Context, from, to *Snapshot, old, now plumbing.Hash, at []string, f func(at []string, old, now plumbing.Hash) error) error {
	if old == now || len(at) > deepest {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	var trees [2]tree
	for i, side := range []struct {
		s *Snapshot
		h plumbing.Hash
	}{{from, old}, {to, now}} {
		if side.h.IsZero() {
			continue
		}
		var err error
		if trees[i], err = side.s.odb.tree(side.h); err != nil {
			return fmt.Errorf("folder %s at commit %.12s: %w", strings.Join(at, "/"), side.s.commit, err)
		}
	}
	for _, d := range differences(trees[0], trees[1]) {
		path := append(slices.Clone(at), d.name)
		below := f
		if d.dir {
			below = func(at []string, old, now plumbing.Hash) error { return diffTrees(ctx, from, to, old, now, at, f) }
		}
		if err := below(path, d.old, d.now); err != nil {
			return err
		}
	}
	return nil
}

// placeOf reads the names on the way to a record below packages/ or failures/.
func placeOf(at []string) (t quarry.Target, ok bool) {
	n := len(at)
	if n < 4 {
		return t, false
	}
	arch, ok := archOf(at[n-1])
	if !ok {
		return t, false
	}
	t = quarry.Target{Package: at[n-3], Version: at[n-2], Arch: arch}
	return t, checkPlace(t.Package, t.Version, t.Arch) == nil && Spread(t.Package) == strings.Join(at[:n-2], "/")
}
