package mpm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/graph"
	"github.com/Morphux/quarry/mirror"
)

// Done is what a change of a root came to.
type Done struct {
	Installed []mirror.Package `json:"installed,omitempty"` // what is needed first
	Removed   []mirror.Package `json:"removed,omitempty"`   // by name; those that were replaced are not among them
	Notes     []string         `json:"notes,omitempty"`     // for people: files that were left as they are, versions that were kept back
}

// Install installs packages into a root, with all that they need and it does not
// have. What is installed stays in its version, unless something needs another or
// it is asked for. All of it happens, or nothing. dry only tells.
func (c *Client) Install(ctx context.Context, r *Root, words []string, dry bool) (*Done, error) {
	if err := c.fits(ctx, r); err != nil {
		return nil, err
	}
	res := c.resolver(ctx, r.has())
	direct, err := res.wanted(words)
	if err != nil {
		return nil, err
	}
	asked := map[string]bool{}
	for _, d := range direct {
		asked[d.Package] = true
	}
	// What is there already takes part, so that what is new suits it; it gives way
	// where it does not.
	for _, i := range r.List() {
		if !asked[i.Package] {
			direct = append(direct, used(i.pkg()))
		}
	}
	all, err := res.closure(direct, func(name string) bool { return !asked[name] })
	if err != nil {
		return nil, err
	}
	// Of what they need, the artifacts are those that they were built with.
	involved, err := reach(all, asked, c.o.Arch)
	if err != nil {
		return nil, err
	}
	r.settle(all, func(name string) bool { return !involved[name] })
	return c.bring(ctx, r, all, asked, dry, "install "+strings.Join(words, " "))
}

// Upgrade brings what is installed to the newest versions that suit each other,
// with what these need; packages, or all for none.
func (c *Client) Upgrade(ctx context.Context, r *Root, names []string, dry bool) (*Done, error) {
	if err := c.fits(ctx, r); err != nil {
		return nil, err
	}
	for _, n := range names {
		if r.packages[n] == nil {
			return nil, fmt.Errorf("%s is not installed: %w", n, ErrNotFound)
		}
	}
	res := c.resolver(ctx, r.has())
	var direct []quarry.DepUsed
	for _, i := range r.List() {
		d := used(i.pkg())
		if len(names) == 0 || slices.Contains(names, i.Package) {
			list, err := res.of(i.Package)
			if err != nil {
				return nil, err
			}
			// The channel may have gone back; then what is installed stays.
			for _, p := range list {
				if quarry.CompareVersions(p.Version, d.Version) > 0 {
					d = used(p)
				}
			}
		}
		direct = append(direct, d)
	}
	all, err := res.closure(direct, func(string) bool { return true })
	if err != nil {
		return nil, err
	}
	var notes []string
	for _, p := range all {
		i := slices.IndexFunc(direct, func(d quarry.DepUsed) bool { return d.Package == p.Name })
		if i >= 0 && direct[i].Version != p.Version {
			notes = append(notes, fmt.Sprintf("%s stays at %s, as %s does not suit what else is installed", p.Name, p.Version, direct[i].Version))
		}
	}
	r.settle(all, func(name string) bool { return len(names) > 0 && !slices.Contains(names, name) })
	done, err := c.bring(ctx, r, all, nil, dry, "upgrade "+strings.Join(names, " "))
	if done != nil {
		done.Notes = append(notes, done.Notes...)
	}
	return done, err
}

// settle puts what is installed in the place of packages of the same version that
// are to stay, or of which the channel has an artifact that is no newer.
func (r *Root) settle(all []mirror.Package, stays func(name string) bool) {
	for i, p := range all {
		if old := r.packages[p.Name]; old != nil && old.Version == p.Version && (stays(p.Name) || p.Revision <= old.Revision) {
			all[i] = old.pkg()
		}
	}
}

// reach finds, of packages that are to be installed together, those that some of
// them need, with these.
func reach(all []mirror.Package, from map[string]bool, arch string) (map[string]bool, error) {
	by := map[string]mirror.Package{}
	offers := map[string][]graph.Offer{}
	for _, p := range all {
		by[p.Name] = p
		for _, v := range graph.Provides(p.Name, p.Provides) {
			offers[v.Name] = append(offers[v.Name], graph.Offer{DepUsed: used(p), Provided: v.Version})
		}
	}
	cat := graph.Catalog{
		There: func(name, _ string) ([]quarry.DepUsed, error) {
			if p, ok := by[name]; ok {
				return []quarry.DepUsed{used(p)}, nil
			}
			return nil, nil
		},
		Virtual: func(name, _ string) ([]graph.Offer, error) { return offers[name], nil },
	}
	out := map[string]bool{}
	todo := sortedKeys(from)
	for len(todo) > 0 {
		name := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if out[name] {
			continue
		}
		out[name] = true
		found, err := cat.ResolveAll(by[name].Needed, arch)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for _, f := range found {
			if f.Package != "" {
				todo = append(todo, f.Package)
			}
		}
	}
	return out, nil
}

// fits reports whether the channel's packages are for the root.
func (c *Client) fits(ctx context.Context, r *Root) error {
	if a := r.Arch(); a != "" && a != c.o.Arch {
		return fmt.Errorf("root %s has packages for %s, and these are for %s: say --arch %s", r.dir, a, c.o.Arch, a)
	}
	return c.ready(ctx)
}

// has is what is installed.
func (r *Root) has() map[string]mirror.Package {
	out := map[string]mirror.Package{}
	for name, i := range r.packages {
		out[name] = i.pkg()
	}
	return out
}

// bring sees to it that a root has just these versions of packages.
func (c *Client) bring(ctx context.Context, r *Root, all []mirror.Package, asked map[string]bool, dry bool, what string) (*Done, error) {
	done := &Done{}
	going := map[string]bool{}
	var marked []*Installed // that were needed by others, and are asked for now
	for _, p := range all {
		old := r.packages[p.Name]
		if old != nil && old.Version == p.Version && old.Artifact == p.Artifact {
			if asked[p.Name] && !old.Asked {
				marked = append(marked, old)
			}
			continue
		}
		done.Installed = append(done.Installed, p)
		if old != nil {
			going[p.Name] = true
		}
	}
	if dry || len(done.Installed)+len(marked) == 0 {
		return done, nil
	}
	files := make([]string, len(done.Installed))
	for i, p := range done.Installed {
		var err error
		if files[i], err = c.Fetch(ctx, p); err != nil {
			return nil, err
		}
	}
	ch, err := r.begin(going)
	if err != nil {
		return nil, err
	}
	err = func() error {
		now := time.Now().UTC().Truncate(time.Second)
		for i, p := range done.Installed {
			entry := &Installed{Schema: rootSchema, Package: p.Name, Version: p.Version, Arch: p.Arch, Revision: p.Revision, Description: p.Description,
				Channel: c.o.Channel, Commit: c.head.Commit, Artifact: p.Artifact, InstalledSize: p.InstalledSize, Installed: now,
				Asked: asked[p.Name] || r.packages[p.Name] != nil && r.packages[p.Name].Asked, Needed: p.Needed, Provides: p.Provides}
			if err := ch.lay(ctx, p, files[i], entry); err != nil {
				return err
			}
		}
		for _, i := range marked {
			entry := *i
			entry.Asked = true
			list, err := r.Files(i.Package)
			if err == nil {
				err = ch.note(&entry, list)
			}
			if err != nil {
				return err
			}
		}
		return ch.leave()
	}()
	if err != nil {
		return nil, errors.Join(err, ch.abort())
	}
	done.Notes = ch.Kept
	return done, ch.commit(what)
}

// NeededError says that packages cannot be removed, as others need them.
type NeededError struct {
	By map[string][]string // what needs, and what of the packages
}

func (e *NeededError) Error() string {
	var list []string
	for _, by := range sortedKeys(e.By) {
		list = append(list, fmt.Sprintf("%s needs %s", by, strings.Join(e.By[by], ", ")))
	}
	return strings.Join(list, "; ") + ": remove what needs it as well"
}

// Remove removes packages from a root: their files and no others. What another one
// needs is a *NeededError. dry only tells.
func (r *Root) Remove(names []string, dry bool) (*Done, error) {
	going := map[string]bool{}
	done := &Done{}
	for _, n := range names {
		i := r.packages[n]
		if i == nil {
			return nil, fmt.Errorf("%s is not installed: %w", n, ErrNotFound)
		}
		if !going[n] {
			going[n] = true
			done.Removed = append(done.Removed, i.pkg())
		}
	}
	if err := r.needed(going); err != nil {
		return nil, err
	}
	slices.SortFunc(done.Removed, func(a, b mirror.Package) int { return strings.Compare(a.Name, b.Name) })
	if dry || len(going) == 0 {
		return done, nil
	}
	ch, err := r.begin(going)
	if err != nil {
		return nil, err
	}
	if err := ch.leave(); err != nil {
		return nil, errors.Join(err, ch.abort())
	}
	done.Notes = ch.Kept
	return done, ch.commit("remove " + strings.Join(names, " "))
}

// needed reports what would miss something, and did not before.
func (r *Root) needed(going map[string]bool) error {
	missing := func(without map[string]bool) (map[string][]string, error) {
		cat := graph.Catalog{
			There: func(name, _ string) ([]quarry.DepUsed, error) {
				if i := r.packages[name]; i != nil && !without[name] {
					return []quarry.DepUsed{used(i.pkg())}, nil
				}
				return nil, nil
			},
			Virtual: func(name, _ string) (out []graph.Offer, err error) {
				for _, i := range r.List() {
					for _, v := range graph.Provides(i.Package, i.Provides) {
						if v.Name == name && !without[i.Package] {
							out = append(out, graph.Offer{DepUsed: used(i.pkg()), Provided: v.Version})
						}
					}
				}
				return out, nil
			},
		}
		out := map[string][]string{}
		for _, i := range r.List() {
			if without[i.Package] {
				continue
			}
			found, err := cat.ResolveAll(i.Needed, i.Arch)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", i.Package, err)
			}
			for _, f := range found {
				out[i.Package] = append(out[i.Package], f.Missing...)
			}
		}
		return out, nil
	}
	before, err := missing(nil)
	if err != nil {
		return err
	}
	after, err := missing(going)
	if err != nil {
		return err
	}
	e := &NeededError{map[string][]string{}}
	for by, list := range after {
		for _, need := range list {
			if !slices.Contains(before[by], need) {
				e.By[by] = append(e.By[by], need)
			}
		}
	}
	if len(e.By) > 0 {
		return e
	}
	return nil
}
