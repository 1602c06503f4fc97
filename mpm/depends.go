package mpm

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/graph"
	"github.com/Morphux/quarry/mirror"
	"github.com/Morphux/quarry/recipe"
)

// offers reports whether a package provides a virtual one.
func offers(p *mirror.Package, name string) bool {
	return slices.ContainsFunc(graph.Provides(p.Name, p.Provides), func(v recipe.NameVersion) bool { return v.Name == name })
}

// resolver finds what is needed, out of a channel and of what is installed.
type resolver struct {
	ctx       context.Context
	c         *Client
	installed map[string]mirror.Package // counts as there, whatever the channel says
	versions  map[string][]mirror.Package
	virtual   map[string][]graph.Offer
}

func (c *Client) resolver(ctx context.Context, installed map[string]mirror.Package) *resolver {
	return &resolver{ctx: ctx, c: c, installed: installed, versions: map[string][]mirror.Package{}, virtual: map[string][]graph.Offer{}}
}

// of lists what can be installed of a name.
func (r *resolver) of(name string) ([]mirror.Package, error) {
	if list, ok := r.versions[name]; ok {
		return list, nil
	}
	if quarry.CheckName(name) != nil { // one reading of a dependency, which nobody can mean
		return nil, nil
	}
	list, err := r.c.Versions(r.ctx, name)
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(p mirror.Package) bool { return p.Artifact == "" })
	if p, ok := r.installed[name]; ok && !slices.ContainsFunc(list, func(q mirror.Package) bool { return q.Version == p.Version }) {
		list = append(list, p)
	}
	r.versions[name] = list
	return list, nil
}

func used(p mirror.Package) quarry.DepUsed {
	return quarry.DepUsed{Package: p.Name, Version: p.Version, Artifact: p.Artifact}
}

func (r *resolver) catalog() graph.Catalog {
	return graph.Catalog{
		There: func(name, _ string) (out []quarry.DepUsed, err error) {
			list, err := r.of(name)
			for _, p := range list {
				out = append(out, used(p))
			}
			return out, err
		},
		Virtual: func(name, _ string) ([]graph.Offer, error) {
			if list, ok := r.virtual[name]; ok {
				return list, nil
			}
			names, err := r.c.src.providers(r.ctx, name)
			if err != nil {
				return nil, err
			}
			for _, p := range r.installed {
				names = append(names, p.Name)
			}
			slices.Sort(names)
			var out []graph.Offer
			for _, pkg := range slices.Compact(names) {
				list, err := r.of(pkg)
				if err != nil {
					return nil, err
				}
				for _, p := range list {
					for _, v := range graph.Provides(p.Name, p.Provides) {
						if v.Name == name {
							out = append(out, graph.Offer{DepUsed: used(p), Provided: v.Version})
						}
					}
				}
			}
			r.virtual[name] = out
			return out, nil
		},
	}
}

// find gives the package that a DepUsed is of.
func (r *resolver) find(d quarry.DepUsed) (mirror.Package, error) {
	list, err := r.of(d.Package)
	if err != nil {
		return mirror.Package{}, err
	}
	for _, p := range list {
		if p.Version == d.Version {
			return p, nil
		}
	}
	return mirror.Package{}, fmt.Errorf("%s %s: %w", d.Package, d.Version, ErrNotFound)
}

func (r *resolver) needs(d quarry.DepUsed) ([]string, error) {
	p, err := r.find(d)
	return p.Needed, err
}

// wanted finds what a person means: zlib, zlib-1.3.1 or 'zlib>=1.2'.
func (r *resolver) wanted(words []string) ([]quarry.DepUsed, error) {
	var out []quarry.DepUsed
	for _, w := range words {
		d, ok, err := r.catalog().Resolve(w, r.c.o.Arch)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, fmt.Errorf("%s for %s in channel %s: %w: quarry mpm search finds what there is", w, r.c.o.Arch, r.c.o.Channel, ErrNotFound)
		}
		if i := slices.IndexFunc(out, func(o quarry.DepUsed) bool { return o.Package == d.Package }); i >= 0 {
			if out[i].Version != d.Version {
				return nil, fmt.Errorf("%s is wanted as %s and as %s: leave one out", d.Package, out[i].Version, d.Version)
			}
			continue
		}
		out = append(out, d)
	}
	return out, nil
}

// closure is all that direct packages need, what is needed first. Those that may
// give way take the version that another package needs, where theirs does not do;
// and where that does not do either, who needs it stays what is installed.
func (r *resolver) closure(direct []quarry.DepUsed, mayGive func(name string) bool) ([]mirror.Package, error) {
	direct = slices.Clone(direct)
	gave := map[string]bool{}
	give := func(name string, to quarry.DepUsed) bool {
		i := slices.IndexFunc(direct, func(d quarry.DepUsed) bool { return d.Package == name })
		if i < 0 || mayGive == nil || !mayGive(name) || gave[name] || direct[i].Version == to.Version {
			return false
		}
		gave[name] = true
		direct[i] = to
		return true
	}
	for {
		all, err := r.catalog().Closure(direct, r.c.o.Arch, r.needs)
		if conflict := new(graph.ConflictError); errors.As(err, &conflict) {
			if give(conflict.Chosen.Package, conflict.Wanted) {
				continue
			}
			if old, ok := r.installed[conflict.By]; ok && give(conflict.By, used(old)) {
				continue
			}
		}
		if err != nil {
			return nil, err
		}
		out := make([]mirror.Package, len(all))
		for i, d := range all {
			if out[i], err = r.find(d); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
}

// Depends lists packages and all that they need, in the order of installation:
// what is needed comes before what needs it.
func (c *Client) Depends(ctx context.Context, words ...string) ([]mirror.Package, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	r := c.resolver(ctx, nil)
	direct, err := r.wanted(words)
	if err != nil {
		return nil, err
	}
	return r.closure(direct, nil)
}

// Wanted finds the packages that words mean, without what they need.
func (c *Client) Wanted(ctx context.Context, words ...string) ([]mirror.Package, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	r := c.resolver(ctx, nil)
	direct, err := r.wanted(words)
	if err != nil {
		return nil, err
	}
	var out []mirror.Package
	for _, d := range direct {
		p, err := r.find(d)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}
