package queue

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry"
)

// Line is what a branch is to the planner: one version of a package on one
// channel, wherever its commit stands.
type Line struct{ Channel, Package, Version string }

func lineOf(r quarry.Release) Line { return Line{r.Channel, r.Package, r.Version} }

// Want is a release on one arch that has no record of its commit.
type Want struct {
	Release quarry.Release
	Arch    string
	Unmet   []string // needed dependencies without a successful record
	Nonce   string   // of a rebuild of what has a record, see quarry.BuildKey
	Why     string   // such a rebuild is wanted

	mass *Campaign // the mass rebuild that wants it, if any
}

// Target is the place of the wanted record.
func (w Want) Target() quarry.Target {
	return quarry.Target{Channel: w.Release.Channel, Package: w.Release.Package, Version: w.Release.Version, Arch: w.Arch}
}

// View is what git says of one package, compared with itself: releases x archs
// minus records.
type View struct {
	Package  string
	Releases map[Line]quarry.Release
	Wants    []Want                             // oldest push first
	Recorded map[quarry.Target]quarry.RecordRef // records of the commits that the branches are at
	Stale    map[quarry.Target]string           // nonces of the rebuilds that successes need, whether or not they were tried
	Mass     map[quarry.Target][]string         // IDs of the mass rebuilds that have not had a target yet, whether or not that was tried
	Declined []quarry.Declined                  // what the recipes say not to build
	Problems []Problem
}

// Survey makes the views of some releases, by package. It asks records once for
// every release and arch, and once for every dependency of those that lack a
// record. It does not need the queue's state, so that it can be slow beside it.
// pkg limits it to one package; that one has a view even if it has no release.
func Survey(pkg string, releases []quarry.Release, problems []Problem, records func(view string) (Records, error), mass ...Campaign) (map[string]*View, error) {
	views := make(map[string]*View)
	view := func(name string) *View {
		v := views[name]
		if v == nil {
			v = &View{Package: name, Releases: map[Line]quarry.Release{}, Recorded: map[quarry.Target]quarry.RecordRef{}}
			views[name] = v
		}
		return v
	}
	if pkg != "" {
		view(pkg)
	}
	for _, p := range problems {
		if pkg == "" || p.Package == pkg {
			v := view(p.Package)
			v.Problems = append(v.Problems, p)
		}
	}
	for _, r := range releases {
		if pkg != "" && r.Package != pkg {
			continue
		}
		v := view(r.Package)
		if err := checkRelease(r); err != nil {
			v.Problems = append(v.Problems, Problem{r.Package, quarry.Branch(r.Package, r.Version), err})
			continue
		}
		v.Releases[lineOf(r)] = r
		recs, err := records(r.View())
		if err != nil {
			return nil, fmt.Errorf("cannot read the records of channel %s: %w", r.View(), err)
		}
		for _, arch := range r.Archs {
			w := Want{Release: r, Arch: arch}
			if why := r.Declined(arch); why != "" {
				v.Declined = append(v.Declined, quarry.Declined{Target: w.Target(), Reason: why})
				continue
			}
			ref, ok, err := recs.Lookup(r.Package, r.Version, arch)
			if err != nil {
				err = fmt.Errorf("cannot look up the record of %s %s %s: %w", r.Package, r.Version, arch, err)
			} else if ok && ref.Source == r.Commit {
				v.Recorded[w.Target()] = ref
				if r.Stage == "" {
					err = v.mass(recs, w, ref, mass)
				}
				if err == nil {
					err = v.rebuild(recs, w, ref)
				}
				if err == nil {
					continue
				}
			} else {
				if r.Stage != "" {
					w.Nonce = groupNonce + r.Stage
				}
				w.Unmet, err = unmet(recs, r, arch)
			}
			switch {
			case err == nil:
				v.Wants = append(v.Wants, w)
			case isFarmWide(err):
				return nil, err
			default: // one bad record stops no other release
				v.Problems = append(v.Problems, Problem{r.Package, quarry.Branch(r.Package, r.Version), err})
			}
		}
	}
	for _, v := range views {
		slices.SortStableFunc(v.Wants, func(a, b Want) int { return a.Release.Pushed.Compare(b.Release.Pushed) })
	}
	return views, nil
}

// checkRelease keeps out what would make a mess of keys and paths further on.
// The doors check too; a repository can be written past the doors.
func checkRelease(r quarry.Release) error {
	if err := quarry.CheckName(r.Package); err != nil {
		return err
	}
	if err := quarry.CheckVersion(r.Version); err != nil {
		return err
	}
	if err := quarry.CheckChannel(r.Channel); err != nil {
		return err
	}
	for _, a := range r.Archs {
		if err := quarry.CheckArch(a); err != nil {
			return err
		}
	}
	// The journal could not hold a time of no sane year, and with it no other
	// build of the same batch.
	for _, t := range []time.Time{r.Time, r.Pushed} {
		if err := quarry.CheckTime(t); err != nil && !t.IsZero() {
			return err
		}
	}
	if r.Commit == "" {
		return fmt.Errorf("release %s %s has no commit: push the branch again", r.Package, r.Version)
	}
	return nil
}

// needs lists what a release needs to be built for an arch, and of which arch: of
// a cross build's machine, too.
func needs(r quarry.Release, arch string) iter.Seq2[string, string] {
	return func(yield func(dep, arch string) bool) {
		for _, dep := range r.BuildNeeds(arch) {
			if !yield(dep, arch) {
				return
			}
		}
		machine, tools := r.CrossNeeds(arch)
		for _, dep := range tools {
			if !yield(dep, machine) {
				return
			}
		}
	}
}

// unmet lists what a release needs to be built for an arch and is not there.
func unmet(recs Records, r quarry.Release, arch string) (missing []string, err error) {
	_, missing, _, err = resolve(recs, r, arch)
	return missing, err
}

// resolve finds what meets the needs of a release on an arch. That of another
// arch says of which. What is not there is missing, or what a build goes without.
func resolve(recs Records, r quarry.Release, arch string) (deps []quarry.DepUsed, missing, without []string, err error) {
	machine, tools := r.CrossNeeds(arch)
	for _, of := range []struct {
		arch  string
		needs []string
	}{{arch, r.BuildNeeds(arch)}, {machine, tools}} {
		if len(of.needs) == 0 {
			continue
		}
		found, lack, err := resolveAll(recs, of.needs, of.arch)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("cannot look up what %s needs for %s: %w", quarry.Branch(r.Package, r.Version), of.arch, err)
		}
		for _, d := range found {
			if of.arch != arch {
				d.Arch = of.arch
			}
			if !slices.Contains(deps, d) {
				deps = append(deps, d)
			}
		}
		behind, err := pending(recs, r, arch, found, of.arch)
		if err != nil {
			return nil, nil, nil, err
		}
		for _, need := range append(lack, behind...) {
			if !slices.Contains(missing, need) {
				missing = append(missing, need)
			}
		}
	}
	missing, without = spare(recs, r, arch, missing)
	return deps, missing, without, nil
}

// pending lists the packages of a release's group that it must not be built
// before, though something older would do.
func pending(recs Records, r quarry.Release, arch string, found []quarry.DepUsed, of string) (names []string, err error) {
	group, ok := recs.(GroupRecords)
	if r.Stage == "" || !ok || r.Traits[arch].Bootstrap {
		return nil, nil
	}
	for _, d := range found {
		if d.Package == r.Package {
			continue
		}
		behind, err := group.Pending(d.Package, of)
		if err != nil {
			return nil, fmt.Errorf("cannot look up what group %s has of %s: %w", r.Group, d.Package, err)
		}
		if behind {
			names = append(names, d.Package)
		}
	}
	return names, nil
}

func resolveAll(recs Records, needs []string, arch string) (deps []quarry.DepUsed, missing []string, err error) {
	if all, ok := recs.(AllRecords); ok {
		return all.ResolveAll(needs, arch)
	}
	for _, need := range needs {
		switch dep, ok, err := recs.Resolve(need, arch); {
		case err != nil:
			return nil, nil, err
		case ok:
			deps = append(deps, dep)
		default:
			missing = append(missing, need)
		}
	}
	return deps, missing, nil
}

// unsure reports whether the view cannot tell if the line is still there.
func (v *View) unsure(l Line) bool {
	return slices.ContainsFunc(v.Problems, func(p Problem) bool {
		return p.Branch == "" || p.Branch == quarry.Branch(l.Package, l.Version)
	})
}

// Known is a build that the queue knows of, as the planner sees it.
type Known struct {
	quarry.Build
	Stop     quarry.State // Cancelled or Obsolete once it has been told to stop; "" otherwise
	Recorded bool         // its record was made after the view was begun, which may not show it
}

// Plan is the difference between what git wants and what the queue has.
type Plan struct {
	New  []Want // to be made
	Stop []Stop // obsolete
	Done []Done // not begun, and their record already stands
}

// Stop is a build that is no longer wanted, and why.
type Stop struct {
	Number int64
	Reason string
}

// Done is a build that has been overtaken by a record of its commit.
type Done struct {
	Number int64
	Ref    quarry.RecordRef
}

// Decide compares a view with the builds of its package that the queue knows:
// all that are under way, and the ended ones of the targets and commits it wants.
// Pure: the same arguments give the same plan.
//
//   - A build under way at the same commit is what is wanted.
//   - An errored or cancelled build stays so for its commit, until the commit
//     is pushed again (a later Pushed) or somebody asks for a rebuild.
//   - A success that was built against what has changed since is built again,
//     once for each change.
//   - A mass rebuild has each target built again once.
//   - A build that the planner wanted, has not begun and is to be cross built now,
//     or no longer, is obsolete, and wanted anew.
//   - A build under way for a submission of a group that its release is not, or no
//     longer, built for, is obsolete.
//   - A build under way whose branch is gone, or is at another commit, or no
//     longer wants the arch, is obsolete.
func (v *View) Decide(known []Known) Plan {
	var p Plan
	at := make(map[quarry.Target][]Known, len(known))
	for _, k := range known {
		at[k.Target()] = append(at[k.Target()], k)
		if k.State.Ended() || k.Stop != "" || k.Package != v.Package {
			continue
		}
		line := lineOf(k.Release)
		r, ok := v.Releases[line]
		branch := quarry.Branch(k.Package, k.Version)
		switch {
		case !ok && v.unsure(line):
		case !ok:
			p.Stop = append(p.Stop, Stop{k.Number, "branch " + branch + " is gone"})
		case r.Commit != k.Commit:
			p.Stop = append(p.Stop, Stop{k.Number, "branch " + branch + " moved on to " + short(r.Commit)})
		case r.Group != k.Group || r.Stage != k.Stage:
			p.Stop = append(p.Stop, Stop{k.Number, regrouped(r, k.Release)})
		case r.Declined(k.Arch) != "":
			p.Stop = append(p.Stop, Stop{k.Number, branch + " is not to be built for " + k.Arch + ", " + r.Declined(k.Arch)})
		case !slices.Contains(r.Archs, k.Arch):
			p.Stop = append(p.Stop, Stop{k.Number, branch + " is no longer wanted for " + k.Arch})
		case (k.Nonce == "" || isRebuild(&k.Build) || isGroup(&k.Build)) && (k.State == quarry.Waiting || k.State == quarry.Queued) && r.Traits[k.Arch].Cross != k.Traits[k.Arch].Cross:
			p.Stop = append(p.Stop, Stop{k.Number, "it is to be built in another environment now"})
			last := &at[k.Target()][len(at[k.Target()])-1]
			last.Stop = quarry.Obsolete
		case isRebuild(&k.Build) && (k.State == quarry.Waiting || k.State == quarry.Queued) && v.Stale[k.Target()] == "" && !v.unsure(line):
			p.Stop = append(p.Stop, Stop{k.Number, "what it was to be rebuilt for is as it was"})
		case isMass(&k.Build) && (k.State == quarry.Waiting || k.State == quarry.Queued) && v.rebuilt(k.Target()):
			p.Stop = append(p.Stop, Stop{k.Number, "no mass rebuild wants it any more"})
		case k.Nonce == "" && (k.State == quarry.Waiting || k.State == quarry.Queued):
			if ref, ok := v.Recorded[k.Target()]; ok && ref.Source == k.Commit {
				p.Done = append(p.Done, Done{k.Number, ref})
			}
		}
	}
	var last quarry.Target // wants of one target follow each other
	for _, w := range v.Wants {
		if t := w.Target(); t != last && wanted(w, at[t]) {
			p.New = append(p.New, w)
			last = t
		}
	}
	return p
}

// regrouped says why a build is not what its branch is for now.
func regrouped(now, then quarry.Release) string {
	branch := quarry.Branch(now.Package, now.Version)
	switch {
	case then.Stage == "":
		return branch + " is in group " + now.Group + " now"
	case now.Group != then.Group:
		return branch + " has left group " + then.Group
	case now.Stage == "":
		return "group " + then.Group + " was taken back"
	}
	return "group " + then.Group + " was submitted again"
}

func wanted(w Want, known []Known) bool {
	var latest Known
	for _, k := range known {
		if k.Commit != w.Release.Commit || k.Stage != w.Release.Stage {
			continue
		}
		// Whatever is under way takes what there is when it begins; if it has
		// begun before the change, its record will tell.
		if !k.State.Ended() && k.Stop == "" {
			return false
		}
		if w.Nonce != "" && k.Nonce != w.Nonce && !(w.mass != nil && isMass(&k.Build) && w.mass.counts(k.Number)) {
			if k.Recorded && (k.State == quarry.Succeeded || k.State == quarry.Failed) {
				return false // the view does not know what that was built against
			}
			continue
		}
		if k.Number > latest.Number {
			latest = k
		}
	}
	state := latest.State
	if latest.Stop != "" && !state.Ended() {
		state = latest.Stop
	}
	switch state {
	case quarry.Errored, quarry.Cancelled:
		return w.Release.Pushed.After(latest.Pushed)
	case quarry.Succeeded, quarry.Failed:
		// Its record has gone from git since (or was never seen by it): git
		// is right, unless the view is older than the record.
		return !latest.Recorded
	}
	return true
}

func short(commit string) string {
	if len(commit) > 12 {
		return commit[:12]
	}
	return commit
}

// depNames lists the packages that a dependency may mean. Names and versions
// may both hold dashes, so a-b-1.0 may be a-b 1.0 or a b-1.0.
func depNames(dep string) []string {
	dep = strings.TrimSpace(dep)
	if i := strings.IndexAny(dep, "<>="); i >= 0 {
		return []string{strings.TrimSpace(dep[:i])}
	}
	names := []string{dep}
	for i := len(dep) - 1; i > 0; i-- {
		if dep[i] == '-' {
			names = append(names, dep[:i])
		}
	}
	return names
}

// depMayMean reports whether a release could meet a dependency, going by its
// name only where an operator is used: comparing versions is not the queue's.
func depMayMean(dep, name, version string) bool {
	dep = strings.TrimSpace(dep)
	if i := strings.IndexAny(dep, "<>="); i >= 0 {
		return strings.TrimSpace(dep[:i]) == name
	}
	return dep == name || dep == quarry.Branch(name, version)
}
