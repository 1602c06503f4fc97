package queue

import (
	"fmt"
	"iter"
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

// isAutomatic reports whether a build is work in the background: nobody waits for
// it in person.
func isAutomatic(b *quarry.Build) bool { return isRebuild(b) || isMass(b) }

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
// package whose new artifact stands in the channel.
func (o *owner) landed(it *item) {
	for _, name := range slices.Concat(depNames(it.Package), providedNames(it.Provides)) {
		for pkg := range o.needers[name] {
			o.look(pkg)
		}
	}
}

// look has a package surveyed again.
func (o *owner) look(pkg string) {
	o.looks++
	o.again[pkg], o.looking[pkg] = struct{}{}, o.looks
}

// looked notes that a survey has been applied, or has failed, which began when
// these were the last wishes.
func (o *owner) looked(at map[string]int64) {
	for pkg, look := range at {
		if o.looking[pkg] == look {
			delete(o.looking, pkg)
		}
	}
}

// unsettled reports whether a build in the background may be about to get another
// one before it, which its plan knows and the queue does not yet.
func (o *owner) unsettled(it *item) bool {
	if !isAutomatic(&it.Build) {
		return false
	}
	if o.applying {
		return true
	}
	for dep := range needs(it.Release, it.Arch) {
		for name := range o.mayMean(dep) {
			if _, ok := o.looking[name]; ok {
				return true
			}
		}
	}
	return false
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
	at := make(map[string]int64, len(list))
	for _, pkg := range list {
		at[pkg] = o.looking[pkg]
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
			o.looked(at)
			if failed != nil {
				o.q.opts.Log.Warn("what depends on a new artifact could not be looked at: the next plan does", "error", failed)
			}
		}
	})
}

// heldBy finds the build that one in the background has to let go first, so that
// it is made once for all changes and not once for each: that of something it
// needs, which is about to run or runs. One of a mass rebuild also lets what waits
// go first, if it does not wait in vain. nil when there is none.
func (o *owner) heldBy(it *item) *item {
	if !isAutomatic(&it.Build) {
		return nil
	}
	for other := range o.needed(it) {
		switch {
		case other.Number == it.Number || other.Package == it.Package || !o.before(other, it):
			continue // a cycle holds nobody
		case other.State == quarry.Queued, occupies(other):
			return other
		case isMass(&it.Build) && o.goesOn(other, map[int64]bool{it.Number: true}):
			return other
		}
	}
	return nil
}

// needed gives the builds under way of what a build may need.
func (o *owner) needed(it *item) iter.Seq[*item] {
	return func(yield func(*item) bool) {
		for dep, arch := range needs(it.Release, it.Arch) {
			for name := range o.mayMean(dep) {
				for _, other := range o.live[name] {
					if other.Channel == it.Channel && (other.Stage == "" || other.Stage == it.Stage) && (other.Arch == arch || other.Arch == quarry.Noarch || arch == quarry.Noarch) && !yield(other) {
						return
					}
				}
			}
		}
	}
}

// before reports whether one build goes before another that needs it. The graph
// says so; of those that it has not seen yet, all that does not need the other in
// turn does. What runs already goes before all.
func (o *owner) before(other, it *item) bool {
	if occupies(other) {
		return true
	}
	a, seen := o.ranks[other.Number]
	b, known := o.ranks[it.Number]
	if seen && known {
		return a.pos < b.pos
	}
	return !o.needsBack(other, it)
}

// needsBack reports whether a build waits, over others that have not begun, for
// start.
func (o *owner) needsBack(from, start *item) bool {
	seen := map[int64]bool{from.Number: true}
	for stack := []*item{from}; len(stack) > 0; {
		it := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for other := range o.needed(it) {
			if other.Number == start.Number {
				return true
			}
			if !seen[other.Number] && !occupies(other) {
				seen[other.Number] = true
				stack = append(stack, other)
			}
		}
	}
	return false
}

// goesOn reports whether a waiting build waits for nothing but what is under way
// itself: then its turn will come, or it will be told that it does not. seen has
// those that have been asked, and answer no: what is in a cycle waits for ever.
func (o *owner) goesOn(it *item, seen map[int64]bool) bool {
	if it.State != quarry.Waiting {
		return true
	}
	if seen[it.Number] || len(seen) > 1000 {
		return false
	}
	seen[it.Number] = true
	for _, dep := range it.unmet {
		found := false
		for name := range o.mayMean(dep) {
			for _, other := range o.live[name] {
				found = found || other.Number != it.Number && other.Channel == it.Channel && o.goesOn(other, seen)
			}
		}
		if !found {
			return false
		}
	}
	return true
}

// mayMean gives the packages that a dependency may mean: those of that name, and
// those that provide it.
func (o *owner) mayMean(dep string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, name := range depNames(dep) {
			if !yield(name) {
				return
			}
			for pkg := range o.providers[name] {
				if !yield(pkg) {
					return
				}
			}
		}
	}
}

// hold sets a build aside until another has ended.
func (o *owner) hold(it, by *item) {
	add(o.held, by.Number, it.Number, struct{}{})
	o.say(it, fmt.Sprintf("after build %d, as it needs %s", by.Number, by.Package))
}

// release lets go what an ended build has held.
func (o *owner) release(number int64) {
	held := o.held[number]
	delete(o.held, number)
	for n := range held {
		o.unpark(n)
	}
}
