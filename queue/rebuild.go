package queue

import (
	"fmt"
	"slices"
	"strings"

	"github.com/Morphux/quarry"
)

// rebuildNonce begins the nonce of a build that the planner wants because what
// a release was built against has changed. The rest names the change, so that
// the same change is never built twice, and one that is taken back not at all.
const rebuildNonce = "abi-"

// isRebuild reports whether the planner wanted a build for such a change.
func isRebuild(b *quarry.Build) bool { return strings.HasPrefix(b.Nonce, rebuildNonce) }

// rebuild looks whether a success that stands has to be made again, and says so
// in the view. newest is the newest record of its place, which may be the
// failure of just that rebuild.
func (v *View) rebuild(recs Records, w Want, newest quarry.RecordRef) error {
	why, change, err := recs.Stale(w.Release, w.Arch)
	if err != nil {
		return fmt.Errorf("cannot look at what %s was built against: %w", w.Target(), err)
	}
	if why == "" {
		return nil
	}
	w.Nonce, w.Why = rebuildNonce+change, "rebuilt: "+why
	if v.Stale == nil {
		v.Stale = map[quarry.Target]string{}
	}
	v.Stale[w.Target()] = w.Nonce
	if newest.Key == quarry.BuildKey(w.Target(), w.Release.Commit, w.Nonce) {
		return nil // it was tried, and failed
	}
	missing, err := unmet(recs, w.Release, w.Arch)
	if err == nil && len(missing) == 0 { // with something missing there is nothing to make it anew with
		v.Wants = append(v.Wants, w)
	}
	return err
}

// learnNeeds remembers what a package's releases need, by name, so that those
// who need it are found when something lands.
func (o *owner) learnNeeds(v *View) {
	for _, name := range o.needs[v.Package] {
		if delete(o.needers[name], v.Package); len(o.needers[name]) == 0 {
			delete(o.needers, name)
		}
	}
	var names []string
	for _, r := range v.Releases {
		for _, arch := range r.Archs {
			for dep := range needs(r, arch) {
				names = append(names, depNames(dep)...)
			}
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) == 0 {
		delete(o.needs, v.Package)
		return
	}
	o.needs[v.Package] = names
	for _, name := range names {
		if o.needers[name] == nil {
			o.needers[name] = map[string]struct{}{}
		}
		o.needers[name][v.Package] = struct{}{}
	}
}

// landed has the planner look again at all that may have been built against a
// package whose new artifact stands in the channel, and at the package itself:
// what it needs may have changed while it was built.
func (o *owner) landed(it *item) {
	o.again[it.Package] = struct{}{}
	for _, own := range append([]string{it.Package}, it.Provides...) {
		for _, name := range depNames(own) {
			for pkg := range o.needers[name] {
				o.again[pkg] = struct{}{}
			}
		}
	}
}

// surveysAtOnce is up to how many packages are surveyed one by one. A plan of
// everything is cheaper than more of them.
const surveysAtOnce = 100

// surveyAgain surveys the packages that landed has noted, off the owner's
// goroutine.
func (o *owner) surveyAgain() {
	if o.surveying || o.stopping || len(o.again) == 0 {
		return
	}
	if len(o.again) > surveysAtOnce {
		clear(o.again)
		o.replan(nil)
		return
	}
	var list []string
	for pkg := range o.again {
		list = append(list, pkg)
	}
	clear(o.again)
	slices.Sort(list)
	o.surveying = true
	ctx := o.workCtx
	o.aside(func() func(*owner) {
		type found struct {
			view   *View
			ticket int64
		}
		var all []found
		var failed error
		for _, pkg := range list {
			views, ticket, err := o.q.survey(ctx, pkg)
			if err != nil {
				failed = err
				break
			}
			all = append(all, found{views[pkg], ticket})
		}
		return func(o *owner) {
			o.surveying = false
			if o.stopping {
				return
			}
			for _, f := range all {
				o.apply(f.view, f.ticket)
			}
			if failed != nil {
				o.q.opts.Log.Warn("what depends on a new artifact could not be looked at: the next plan does", "error", failed)
			}
		}
	})
}

// heldBy finds the build that a rebuild has to let go first, so that it is made
// once for all changes and not once for each: that of something it needs, which
// is about to run or runs. nil when there is none.
func (o *owner) heldBy(it *item) *item {
	if !isRebuild(&it.Build) {
		return nil
	}
	for dep, arch := range needs(it.Release, it.Arch) {
		for _, name := range depNames(dep) {
			for n, other := range o.live[name] {
				if n == it.Number || other.Channel != it.Channel || other.Package == it.Package ||
					other.Arch != arch && other.Arch != quarry.Noarch && arch != quarry.Noarch {
					continue
				}
				if other.State != quarry.Queued && other.State != quarry.Running && other.State != quarry.Recording {
					continue // it may wait for ever
				}
				if other.State == quarry.Queued && o.needsBack(other, it) {
					continue // a cycle holds nobody
				}
				return other
			}
		}
	}
	return nil
}

// needsBack reports whether a queued build waits, over others that are queued,
// for start.
func (o *owner) needsBack(from, start *item) bool {
	seen := map[int64]bool{from.Number: true}
	for stack := []*item{from}; len(stack) > 0; {
		it := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for dep := range needs(it.Release, it.Arch) {
			for _, name := range depNames(dep) {
				for n, other := range o.live[name] {
					if other.Channel != start.Channel || seen[n] {
						continue
					}
					if other.Number == start.Number {
						return true
					}
					if seen[n] = true; other.State == quarry.Queued && isRebuild(&other.Build) {
						stack = append(stack, other)
					}
				}
			}
		}
	}
	return false
}

// hold sets a build aside until another has ended.
func (o *owner) hold(it, by *item) {
	add(o.held, by.Number, it.Number, struct{}{})
	if why := fmt.Sprintf("after build %d, as it needs %s", by.Number, by.Package); it.Reason != why {
		c := *it
		c.Reason = why
		o.set(&c)
	}
}

// release lets go what an ended build has held.
func (o *owner) release(number int64) {
	for n := range o.held[number] {
		if it := o.builds[n]; it != nil && it.State == quarry.Queued {
			o.enqueue(it.Environment(), n)
		}
	}
	delete(o.held, number)
}
