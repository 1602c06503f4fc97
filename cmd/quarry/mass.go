package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/graph"
	"github.com/Morphux/quarry/queue"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/sched"
	"github.com/pelletier/go-toml/v2"
)

// graph says what the graph of a channel is of.
func (f *stages) graph(channel string) graph.Options {
	return graph.Options{Archs: f.channelArchs(channel), Machine: config.HostArch()}
}

// past tells the queue how long builds have taken, as the records say.
func (f *stages) past(ctx context.Context, observe func(queue.Past)) error {
	channels, err := f.results.Channels()
	if err != nil {
		return err
	}
	for _, ch := range channels {
		s, err := f.results.Snapshot(ch)
		if err != nil {
			return err
		}
		list, err := s.Past(ctx)
		if err != nil {
			return err
		}
		for _, p := range list {
			observe(queue.Past{Package: p.Package, Arch: p.Arch, Size: p.SourceSize, Ran: sched.Ran{
				Took: p.Took, CPU: p.CPU, SlotTime: p.SlotTime, Width: p.Width, Jobs: p.Jobs, CPUs: p.CPUs,
			}})
		}
	}
	return nil
}

// catalog is what can be installed: packages by their names, and by what their
// records say they provide.
func (r records) catalog() graph.Catalog {
	return graph.Catalog{There: r.provider, Virtual: r.virtual}
}

// virtual finds who provides a name for an arch.
func (r records) virtual(name, arch string) (offers []graph.Offer, err error) {
	packages, err := r.Providers(name)
	if err != nil {
		return nil, err
	}
	for _, pkg := range packages {
		versions, err := r.Versions(pkg, arch)
		if err != nil {
			return nil, err
		}
		for _, v := range versions {
			a, ok, err := r.Available(pkg, v, arch)
			if err != nil {
				return nil, err
			}
			if !ok || a.Artifact == "" {
				continue
			}
			provides, err := r.Provides(pkg, v, a.Arch)
			if err != nil {
				return nil, err
			}
			for _, p := range graph.Provides(pkg, provides) {
				if p.Name == name {
					offers = append(offers, graph.Offer{DepUsed: quarry.DepUsed{Package: pkg, Version: v, Artifact: a.Artifact, ABI: a.ABI}, Provided: p.Version})
				}
			}
		}
	}
	return offers, nil
}

// ResolveAll finds what meets all that a release needs on one arch. What nothing
// can meet, as it contradicts itself, is missing.
func (r records) ResolveAll(needs []string, arch string) (deps []quarry.DepUsed, missing []string, err error) {
	found, err := r.catalog().ResolveAll(needs, machine(arch))
	if contradiction := new(graph.ContradictionError); errors.As(err, &contradiction) {
		return nil, contradiction.Entries, nil
	}
	if err != nil {
		return nil, nil, err
	}
	for _, d := range found {
		switch {
		case len(d.Missing) > 0:
			missing = append(missing, d.Missing...)
		case !slices.Contains(deps, d.DepUsed):
			deps = append(deps, d.DepUsed)
		}
	}
	return deps, missing, nil
}

// massKind is what mass rebuilds are kept as, see [results.Repo.Keep].
const massKind = "mass"

// List reads the mass rebuilds. One that cannot be read stops no other.
func (f *stages) List(context.Context) ([]queue.Campaign, error) {
	texts, err := f.results.Kept(massKind)
	if texts == nil {
		return nil, err
	}
	if err != nil {
		f.log.Warn("not all mass rebuilds can be read", "err", err)
	}
	var list []queue.Campaign
	for id, text := range texts {
		var c queue.Campaign
		if err := toml.Unmarshal(text, &c); err != nil || c.ID != id {
			f.log.Warn("a mass rebuild cannot be read and is passed over", "id", id, "err", err)
			continue
		}
		list = append(list, c)
	}
	return list, nil
}

// Save keeps a mass rebuild in the results repository.
func (f *stages) Save(ctx context.Context, c queue.Campaign) error {
	text, err := toml.Marshal(c)
	if err != nil {
		return err
	}
	if err := f.results.Keep(ctx, massKind, c.ID, text); err != nil {
		return err
	}
	f.events.Mass(massOf(c))
	return nil
}

// compare tells what the newest failure of a target was built with that its last
// success was not.
func (f *stages) compare(_ context.Context, t quarry.Target) (differences []string, ok bool, err error) {
	s, err := f.results.Snapshot(t.Channel)
	if err != nil {
		return nil, false, err
	}
	good, err := s.Get(t.Package, t.Version, t.Arch)
	if errors.Is(err, results.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	bad, err := s.Failure(t.Package, t.Version, t.Arch)
	if err != nil {
		return nil, false, err
	}
	return differ(good, bad), true, nil
}

// differ says in lines for people how what two builds were made with differs.
func differ(before, after *results.Record) (list []string) {
	type key struct{ pkg, arch string }
	was := map[key]quarry.DepUsed{}
	for _, d := range before.Dependencies {
		was[key{d.Package, d.Arch}] = d
	}
	label := func(d quarry.DepUsed) string {
		if d.Arch != "" {
			return d.Package + " for " + d.Arch
		}
		return d.Package
	}
	for _, d := range after.Dependencies {
		k := key{d.Package, d.Arch}
		old, ok := was[k]
		delete(was, k)
		switch {
		case !ok:
			list = append(list, fmt.Sprintf("%s %s, was not there", label(d), d.Version))
		case old.Version != d.Version:
			list = append(list, fmt.Sprintf("%s %s, was %s", label(d), d.Version, old.Version))
		case old.Artifact != d.Artifact && old.ABI != d.ABI:
			list = append(list, fmt.Sprintf("%s %s, offers something else: artifact %.12s, was %.12s", label(d), d.Version, d.Artifact, old.Artifact))
		case old.Artifact != d.Artifact:
			list = append(list, fmt.Sprintf("%s %s, artifact %.12s, was %.12s", label(d), d.Version, d.Artifact, old.Artifact))
		}
	}
	for _, d := range was {
		list = append(list, fmt.Sprintf("%s is not there, was %s", label(d), d.Version))
	}
	if before.Source != after.Source {
		list = append(list, fmt.Sprintf("source %.12s, was %.12s", after.Source, before.Source))
	}
	if before.Host.Instance != after.Host.Instance || before.Host.Base != after.Host.Base {
		list = append(list, "the system that it is built in")
	}
	slices.SortFunc(list, strings.Compare)
	return list
}
