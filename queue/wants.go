package queue

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry"
)

// replan plans everything, off the owner's goroutine. done, if any, hears of a
// plan that began after this call.
func (o *owner) replan(done chan error) {
	if o.planning {
		o.planNext = append(o.planNext, done)
		return
	}
	o.planning = true
	o.planWaiters = []chan error{done}
	o.planLooks = maps.Clone(o.looking)
	ctx := o.workCtx
	o.aside(func() func(*owner) {
		views, mass, ticket, err := o.q.surveyMass(ctx, "")
		return func(o *owner) { o.surveyedAll(views, mass, ticket, err) }
	})
}

// packagesAtOnce is how many packages of a full plan are applied in one batch:
// pushes come in between.
const packagesAtOnce = 500

func (o *owner) surveyedAll(views map[string]*View, mass []Campaign, ticket int64, err error) {
	if o.stopping {
		return
	}
	if err != nil {
		o.setProblems("plan", []Problem{{Err: err}})
		o.q.opts.Log.Error("planning failed and is tried again", "error", err)
		o.planOver(err)
		return
	}
	o.massKnown = map[string]bool{}
	for i := range mass {
		o.massKnown[mass[i].ID] = true
	}
	// Packages that git has no more are planned too, so that their builds end:
	// unless something is wrong with the whole.
	if views[""] == nil {
		o.setProblems("", nil)
		for _, pkg := range slices.Concat(slices.Collect(maps.Keys(o.live)), slices.Collect(maps.Keys(o.lines))) {
			if views[pkg] == nil {
				views[pkg] = &View{Package: pkg}
			}
		}
	}
	// The oldest wish first, so that numbers follow the pushes.
	names := slices.Collect(maps.Keys(views))
	first := func(pkg string) time.Time {
		if w := views[pkg].Wants; len(w) > 0 {
			return w[0].Release.Pushed
		}
		return time.Time{}
	}
	slices.SortFunc(names, func(a, b string) int {
		if c := first(a).Compare(first(b)); c != 0 {
			return c
		}
		return strings.Compare(a, b)
	})
	o.applyAll(names, views, mass, ticket)
}

func (o *owner) applyAll(names []string, views map[string]*View, mass []Campaign, ticket int64) {
	o.applying = true
	n := min(len(names), packagesAtOnce)
	for _, pkg := range names[:n] {
		o.apply(views[pkg], ticket)
	}
	rest := names[n:]
	o.after(func(err error) {
		switch {
		case err != nil:
			o.planOver(err)
		case len(rest) > 0:
			// A new goroutine: the owner must not wait for itself.
			go o.q.post(func(o *owner) { o.applyAll(rest, views, mass, ticket) })
		default:
			o.setProblems("plan", nil)
			o.surveyed = true
			b := o.q.board
			b.mu.Lock()
			b.status.Planned = time.Now()
			b.mu.Unlock()
			if !o.stopping {
				o.conclude(views, mass)
				o.landDue = true
			}
			o.planOver(nil)
		}
	})
}

// planOver tells who waits, and sees to the next plan.
func (o *owner) planOver(err error) {
	o.planning, o.planned, o.applying = false, true, false
	o.looked(o.planLooks)
	for _, w := range o.planWaiters {
		if w != nil {
			w <- err
		}
	}
	o.planWaiters = nil
	// Whatever a nudge may have missed is found again here.
	for pkg := range o.waiters {
		o.touch(pkg)
	}
	d := o.q.opts.ReplanEvery
	if err != nil {
		d = min(d, o.q.opts.backoff(o.planTry))
		o.planTry++
	} else {
		o.planTry = 0
	}
	o.planGen++
	gen := o.planGen
	o.q.postAfter(d, func(o *owner) {
		if gen == o.planGen && !o.stopping && !o.planning {
			o.prune(time.Now())
			o.replan(nil)
		}
	})
	if next := o.planNext; len(next) > 0 && !o.stopping {
		o.planNext = nil
		o.replan(nil)
		o.planWaiters = next
	}
	go o.q.post(func(*owner) {}) // dispatch may have waited for the first plan
}

// apply compares one package's view with the builds, and makes the difference.
// A view that is older than the last one applied says nothing new.
func (o *owner) apply(v *View, ticket int64) {
	if v.Package == "" {
		o.setProblems("", v.Problems)
		return
	}
	if o.tickets[v.Package] > ticket {
		return
	}
	before := o.tickets[v.Package]
	o.tickets[v.Package] = ticket
	o.after(func(err error) {
		// What could not be journalled is undone, so this plan was not made: an
		// older survey that comes now must not be told that there was nothing to do.
		if err != nil && o.tickets[v.Package] == ticket {
			o.tickets[v.Package] = before
		}
	})
	o.setProblems("package "+v.Package, v.Problems)
	o.setDeclined(v.Package, v.Declined)
	o.learn(v)
	o.learnNeeds(v)

	var known []Known
	see := func(it *item) {
		known = append(known, Known{it.Build, it.stop, it.endSeq > ticket})
	}
	for _, n := range slices.Sorted(maps.Keys(o.live[v.Package])) {
		see(o.builds[n])
	}
	for _, w := range v.Wants {
		for _, it := range o.targets[w.Target()] {
			if it.State.Ended() && it.Commit == w.Release.Commit {
				see(it)
			}
		}
	}
	plan := v.Decide(known)
	for _, s := range plan.Stop {
		o.tell(s.Number, quarry.Obsolete, s.Reason)
	}
	for _, d := range plan.Done {
		c := *o.builds[d.Number]
		o.end(&c, d.Ref.Status, "its record was there already")
	}
	for _, w := range plan.New {
		if w.mass != nil && !o.massKnown[w.mass.ID] {
			continue // the plan of all packages is to come, and has what goes before it, too
		}
		o.create(w, w.Nonce, w.Why)
	}
	if len(plan.New)+len(plan.Stop)+len(plan.Done) > 0 {
		o.touch(v.Package)
		for _, r := range v.Releases {
			o.touch(providedNames(r.Provides)...)
		}
	}
}

// learn remembers what git has, for telling why builds wait. Builds of branches
// that cannot be read are left alone, and so is what was known of those.
func (o *owner) learn(v *View) {
	old := o.lines[v.Package]
	defer o.learnProvides(v.Package, old)
	fresh := make(map[Line]*line, len(v.Releases))
	for l, r := range v.Releases {
		fresh[l] = &line{commit: r.Commit, archs: r.Archs, provides: providedNames(r.Provides)}
		for _, arch := range r.Archs {
			if why := r.Declined(arch); why != "" {
				if fresh[l].declined == nil {
					fresh[l].declined = map[string]string{}
				}
				fresh[l].declined[arch] = why
			}
		}
	}
	for t, ref := range v.Recorded {
		if l := fresh[Line{t.Channel, t.Package, t.Version}]; l != nil && ref.Status == quarry.Failed {
			if l.failed == nil {
				l.failed = map[string]bool{}
			}
			l.failed[t.Arch] = true
		}
	}
	for l, known := range old {
		if fresh[l] == nil && v.unsure(l) {
			fresh[l] = known
		}
	}
	if len(fresh) == 0 {
		delete(o.lines, v.Package)
		return
	}
	o.lines[v.Package] = fresh
}

// learnProvides keeps providers in step with the lines of a package.
func (o *owner) learnProvides(pkg string, old map[Line]*line) {
	for _, l := range old {
		for _, name := range l.provides {
			if delete(o.providers[name], pkg); len(o.providers[name]) == 0 {
				delete(o.providers, name)
			}
		}
	}
	for _, l := range o.lines[pkg] {
		for _, name := range l.provides {
			if o.providers[name] == nil {
				o.providers[name] = map[string]struct{}{}
			}
			o.providers[name][pkg] = struct{}{}
		}
	}
}

// create makes a build, in this batch.
func (o *owner) create(w Want, nonce, why string) int64 {
	o.last = max(o.last, o.q.campaigns.first.Load()-1) + 1
	it := &item{Build: quarry.Build{
		Number:  o.last,
		Key:     quarry.BuildKey(w.Target(), w.Release.Commit, nonce),
		Release: w.Release,
		Arch:    w.Arch,
		Nonce:   nonce,
		State:   quarry.Queued,
		Why:     why,
		Reason:  why,
		Created: time.Now(),
	}}
	if len(w.Unmet) > 0 {
		it.State, it.unmet = quarry.Waiting, w.Unmet
		it.Reason = o.explain(it)
		// A record may have come since the view was made.
		o.dirty[it.Number] = struct{}{}
	}
	o.set(it)
	return it.Number
}

// rebuild makes a new build of what may have a record, or finds the one that
// has not begun yet.
func (o *owner) rebuild(w Want, by string) int64 {
	for n, it := range o.targets[w.Target()] {
		if (it.State == quarry.Waiting || it.State == quarry.Queued) && it.Commit == w.Release.Commit {
			if isAutomatic(&it.Build) && !it.urgent {
				c := *it
				c.urgent = true
				c.Why += ", and asked for by " + by
				o.set(&c)
			}
			return n
		}
	}
	return o.create(w, nonce(), "rebuild asked for by "+by)
}

// tell makes a build end in a state that it did not choose: at once if it has
// not begun, else when its worker has stopped.
func (o *owner) tell(number int64, state quarry.State, reason string) {
	c := *o.builds[number]
	switch c.State {
	case quarry.Waiting, quarry.Queued:
		o.end(&c, state, reason)
	case quarry.Running, quarry.Recording:
		c.stop, c.stopReason = state, reason
		c.Reason = "stopping: " + reason
		o.set(&c)
		o.after(func(err error) {
			// A commit in progress is not torn: it ends before the newer
			// build may begin. One that fails over and over is given up.
			_, stuck := o.stuck[number]
			if cancel := o.cancels[number]; err == nil && cancel != nil && (c.State == quarry.Running || stuck) {
				cancel(errToldStop)
			}
		})
	}
}

func (o *owner) cancel(number int64, reason string) error {
	it := o.builds[number]
	switch {
	case it == nil:
		return unknown(number)
	case it.State.Ended():
		return fmt.Errorf("build %d has ended already: it is %s", number, it.State)
	case it.stop != "":
		return nil
	case it.State == quarry.Recording && o.stuck[number] == nil:
		return fmt.Errorf("build %d is done and being recorded: it is too late to cancel it", number)
	}
	o.tell(number, quarry.Cancelled, reason)
	return nil
}

// touch has all builds looked at again that wait for one of these packages, be
// they real or virtual.
func (o *owner) touch(names ...string) {
	for _, name := range names {
		for n := range o.waiters[name] {
			o.dirty[n] = struct{}{}
		}
	}
}

// examine looks at waiting builds again, off the owner's goroutine.
func (o *owner) examine() {
	if o.examining || o.stopping || len(o.dirty) == 0 {
		return
	}
	var list []*item
	for n := range o.dirty {
		if it := o.builds[n]; it != nil && it.State == quarry.Waiting {
			list = append(list, it)
		}
	}
	clear(o.dirty)
	if len(list) == 0 {
		return
	}
	o.examining = true
	ctx := o.workCtx
	o.aside(func() func(*owner) {
		found, problems, err := o.q.lookAgain(ctx, list)
		return func(o *owner) { o.examined(list, found, problems, err) }
	})
}

// lookAgain finds what builds still wait for. Those for which a bad record keeps
// it from being found are left out, and a problem each.
func (q *Queue) lookAgain(ctx context.Context, list []*item) (found map[int64][]string, problems []Problem, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("looking up dependencies panicked: %v", p)
		}
	}()
	open := q.snapshots(ctx)
	found = make(map[int64][]string, len(list))
	for _, it := range list {
		recs, err := open(it.View())
		if err != nil {
			return nil, nil, err
		}
		missing, err := unmet(recs, it.Release, it.Arch)
		switch {
		case err == nil:
			found[it.Number] = missing
		case isFarmWide(err):
			return nil, nil, err
		default:
			problems = append(problems, Problem{it.Package, quarry.Branch(it.Package, it.Version), fmt.Errorf("build %d cannot be looked at: %w", it.Number, err)})
		}
	}
	return found, problems, nil
}

func (o *owner) examined(list []*item, found map[int64][]string, problems []Problem, err error) {
	o.examining = false
	if err != nil {
		for _, it := range list {
			o.dirty[it.Number] = struct{}{}
		}
		o.setProblems("waiting", []Problem{{Err: fmt.Errorf("waiting builds cannot be looked at: %w", err)}})
		o.examining = true
		o.q.postAfter(o.q.opts.backoff(o.examTry), func(o *owner) { o.examining = false })
		o.examTry++
		return
	}
	o.examTry = 0
	o.setProblems("waiting", problems)
	for n, missing := range found {
		it := o.builds[n]
		if it == nil || it.State != quarry.Waiting {
			continue
		}
		c := *it
		c.unmet = missing
		if len(missing) == 0 {
			c.State, c.Reason = quarry.Queued, ""
		} else if c.Reason = o.explain(&c); c.Reason == it.Reason && slices.Equal(missing, it.unmet) {
			o.release(n) // it may wait in vain now
			continue
		}
		o.set(&c)
		o.after(func(err error) {
			if err != nil {
				o.dirty[n] = struct{}{} // looked at again when the journal works
			}
		})
	}
}

// explain says what a waiting build waits for, and why that is not there.
func (o *owner) explain(it *item) string {
	var b strings.Builder
	for i, dep := range it.unmet {
		if i == 0 {
			b.WriteString("waits for ")
		} else {
			b.WriteString(", and for ")
		}
		if i == 8 {
			fmt.Fprintf(&b, "%d more", len(it.unmet)-i)
			break
		}
		b.WriteString(dep)
		b.WriteString(o.whyNot(dep, it))
	}
	return b.String()
}

// whyNot says why a dependency has no record. Nothing is said of one that is
// being built, nor before the first plan, when nothing is known.
func (o *owner) whyNot(dep string, it *item) string {
	named, provided, forArch := false, false, false
	declined := "" // why one that fits is not built
	ended := ""    // the worst that happened to one that fits
	onArch := it.Arch
	if machine, tools := it.CrossNeeds(it.Arch); slices.Contains(tools, dep) && !slices.Contains(it.BuildNeeds(it.Arch), dep) {
		onArch = machine
	}
	names := depNames(dep)
	for name := range o.mayMean(dep) {
		for l, known := range o.lines[name] {
			if l.Channel != it.Channel {
				continue
			}
			stands := slices.ContainsFunc(known.provides, func(p string) bool { return slices.Contains(names, p) })
			if !stands && !slices.Contains(names, name) {
				continue // another version of it does
			}
			named = true
			if !stands && !depMayMean(dep, name, l.Version) {
				continue
			}
			provided = true
			archs := []string{onArch, quarry.Noarch}
			if onArch == quarry.Noarch {
				archs = known.archs // it is built on a machine of one of them
			}
			for _, arch := range archs {
				if !slices.Contains(known.archs, arch) {
					continue
				}
				if why := known.declined[arch]; why != "" {
					declined = why
					continue
				}
				forArch = true
				var latest *item
				for _, other := range o.targets[quarry.Target{Channel: l.Channel, Package: name, Version: l.Version, Arch: arch}] {
					if other.Commit == known.commit && (latest == nil || other.Number > latest.Number) {
						latest = other
					}
				}
				switch {
				case latest != nil && !latest.State.Ended():
					return ""
				case latest != nil && latest.State == quarry.Cancelled:
					ended = ", whose build was cancelled"
				case latest != nil && latest.State == quarry.Errored:
					ended = ", whose build the farm gave up (errored)"
				case known.failed[arch], latest != nil && latest.State == quarry.Failed:
					ended = ", whose build failed"
				}
			}
		}
	}
	switch {
	case ended != "":
		return ended
	case !o.surveyed:
		return ""
	case !named:
		return ", which nobody has pushed"
	case !provided:
		return ", a version that nobody has pushed"
	case !forArch && declined != "":
		return ", which is " + declined
	case !forArch:
		return ", which is not built for " + onArch
	}
	return ""
}
