package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/spf13/afero"
)

// world is what lasts outside the queue: branches that are pushed, and records.
// Its methods are the queue's stages. The real ones are tried against the queue
// by the tests of cmd/quarry; these can be told when to fail.
type world struct {
	mu       sync.Mutex
	t        testing.TB
	branches map[Line]quarry.Release
	problems []Problem
	records  map[quarry.Target]quarry.RecordRef
	abi      map[quarry.Target]string           // what a success offers to be built against
	built    map[quarry.Target][]quarry.DepUsed // what it was built against
	provides map[quarry.Target][]string
	mass     map[string]Campaign
	history  []quarry.Outcome // every record that was written, in order
	runs     map[quarry.Target]int
	running  map[quarry.Target]int
	peak     int // most builds at once

	// tick is called at every step of a stage; an error ends the stage there.
	tick func(where string) error
	// onRun may take over a build. Returning nil, nil leaves it to the world.
	onRun       func(ctx context.Context, b quarry.Build, onStep func(string)) (*quarry.Outcome, error)
	onRecord    func(o *quarry.Outcome) error
	onOutcome   func(o *quarry.Outcome, b quarry.Build) // may change what the world makes of a build
	releasesErr error
	recordsErr  error
	commits     int
}

func newWorld(t testing.TB) *world {
	return &world{t: t,
		branches: map[Line]quarry.Release{},
		records:  map[quarry.Target]quarry.RecordRef{},
		abi:      map[quarry.Target]string{},
		built:    map[quarry.Target][]quarry.DepUsed{},
		provides: map[quarry.Target][]string{},
		mass:     map[string]Campaign{},
		runs:     map[quarry.Target]int{},
		running:  map[quarry.Target]int{},
		tick:     func(string) error { return nil },
	}
}

var archs2 = []string{"aarch64", "x86_64"}

// push moves a branch, as git does before the queue hears of it. A package
// named bad... fails in make.
func (w *world) push(pkg, version, commit string, archs []string, needs ...string) quarry.Release {
	return w.pushAs(func(*quarry.Release) {}, pkg, version, commit, archs, needs...)
}

// pushAs pushes a release that is changed before anybody can see it: the queue may
// look at any time.
func (w *world) pushAs(change func(*quarry.Release), pkg, version, commit string, archs []string, needs ...string) quarry.Release {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := quarry.Release{Package: pkg, Version: version, Channel: "testing",
		Commit: fmt.Sprintf("%040s", commit), Pushed: time.Now(), Archs: archs, Needs: needs,
		Repo: "var/repos/" + pkg + ".git", Packager: quarry.Packager{User: "alice"}}
	change(&r)
	w.branches[lineOf(r)] = r
	return r
}

func (w *world) delete(pkg, version string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.branches, Line{"testing", pkg, version})
}

func (w *world) Releases(_ context.Context, pkg string) (list []quarry.Release, problems []Problem, err error) {
	if err := w.tick("releases"); err != nil {
		return nil, nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.branches {
		if pkg == "" || r.Package == pkg {
			list = append(list, r)
		}
	}
	for _, p := range w.problems {
		if pkg == "" || p.Package == pkg {
			problems = append(problems, p)
		}
	}
	return list, problems, w.releasesErr
}

type snapshot struct {
	w     *world
	at    map[quarry.Target]quarry.RecordRef
	abi   map[quarry.Target]string
	built map[quarry.Target][]quarry.DepUsed

	provides map[quarry.Target][]string
}

func (w *world) Records(_ context.Context, channel string) (Records, error) {
	if err := w.tick("records"); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return snapshot{w, maps.Clone(w.records), maps.Clone(w.abi), maps.Clone(w.built), maps.Clone(w.provides)}, w.recordsErr
}

func (s snapshot) Lookup(pkg, version, arch string) (quarry.RecordRef, bool, error) {
	ref, ok := s.at[quarry.Target{Channel: "testing", Package: pkg, Version: version, Arch: arch}]
	return ref, ok, nil
}

func (s snapshot) Resolve(dep, arch string) (quarry.DepUsed, bool, error) {
	d, ok := s.resolve(dep, arch)
	return d, ok, nil
}

func (s snapshot) resolve(dep, arch string) (quarry.DepUsed, bool) {
	for t, ref := range s.at {
		if ref.Status == quarry.Succeeded && (t.Arch == arch || t.Arch == quarry.Noarch) && (depMayMean(dep, t.Package, t.Version) || slices.Contains(s.provides[t], dep)) {
			return quarry.DepUsed{Package: t.Package, Version: t.Version, Artifact: ref.Key, ABI: s.abi[t]}, true
		}
	}
	return quarry.DepUsed{}, false
}

func (s snapshot) Stale(r quarry.Release, arch string) (why, change string, err error) {
	for _, then := range s.built[quarry.Target{Channel: r.Channel, Package: r.Package, Version: r.Version, Arch: arch}] {
		now, ok := s.resolve(then.Package, arch)
		if ok && now.ABI != then.ABI {
			why += then.Package + " has changed"
			change += now.Package + "." + now.ABI
		}
	}
	return why, change, nil
}

func (w *world) Run(ctx context.Context, b quarry.Build, deps []quarry.DepUsed, onStep func(string)) (*quarry.Outcome, error) {
	w.mu.Lock()
	w.runs[b.Target()]++
	w.running[b.Target()]++
	if w.running[b.Target()] > 1 {
		w.t.Errorf("two builds of %s at once", b.Target())
	}
	w.peak = max(w.peak, len(w.running))
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.running[b.Target()]--; w.running[b.Target()] == 0 {
			delete(w.running, b.Target())
		}
	}()
	needed := 0
	for range needs(b.Release, b.Arch) {
		needed++
	}
	if len(deps)+len(b.Without) != needed {
		w.t.Errorf("%s was started with %d of its %d dependencies", b, len(deps), needed)
	}
	if err := w.tick("run"); err != nil {
		return nil, err
	}
	if w.onRun != nil {
		if out, err := w.onRun(ctx, b, onStep); out != nil || err != nil {
			return out, err
		}
	}
	onStep(quarry.StepMake)
	if err := w.tick("ran"); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	out := outcome(b, deps)
	if w.onOutcome != nil {
		w.onOutcome(out, b)
	}
	return out, nil
}

func outcome(b quarry.Build, deps []quarry.DepUsed) *quarry.Outcome {
	out := &quarry.Outcome{Status: quarry.Succeeded, Deps: deps, Started: b.Started, Ended: time.Now()}
	if strings.HasPrefix(b.Package, "bad") {
		out.Status = quarry.Failed
		out.Failure = &quarry.Failure{Step: quarry.StepMake, Cause: quarry.CauseExit, Message: "make ended with status 2", Status: 2}
	}
	return out
}

func (w *world) Record(_ context.Context, o *quarry.Outcome) (string, error) {
	if err := w.tick("record"); err != nil {
		return "", err
	}
	if w.onRecord != nil {
		if err := w.onRecord(o); err != nil {
			return "", err
		}
	}
	w.mu.Lock()
	t := o.Build.Target()
	if w.records[t].Key != o.Build.Key { // else it stands already
		w.records[t] = quarry.RecordRef{Status: o.Status, Source: o.Build.Commit, Build: o.Build.Number, Key: o.Build.Key}
		if o.Facts != nil {
			w.abi[t] = o.Facts.ABI
		}
		if o.Status == quarry.Succeeded {
			w.built[t], w.provides[t] = o.Deps, o.Build.Provides
		}
		w.history = append(w.history, *o)
		w.commits++
	}
	commit := fmt.Sprintf("%040x", w.commits)
	w.mu.Unlock()
	return commit, w.tick("recorded")
}

// kept are the world's mass rebuilds.
type kept struct{ *world }

func (w kept) List(context.Context) (list []Campaign, err error) {
	if err := w.tick("campaigns"); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.mass {
		list = append(list, c)
	}
	return list, nil
}

func (w kept) Save(_ context.Context, c Campaign) error {
	if err := w.tick("campaign"); err != nil {
		return err
	}
	w.mu.Lock()
	w.mass[c.ID] = c
	w.mu.Unlock()
	return w.tick("kept")
}

// compare tells whether a target has a success beside its failure.
func (w *world) compare(_ context.Context, t quarry.Target) ([]string, bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.built[t]
	return []string{"something"}, ok, nil
}

func (w *world) LastBuild(context.Context) (int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var last int64
	for _, o := range w.history {
		last = max(last, o.Build.Number)
	}
	return last, nil
}

func (w *world) options(fsys afero.Fs) Options {
	return Options{
		Fs: fsys, Releases: w.Releases, Records: w.Records, Run: w.Run, Record: w.Record, LastBuild: w.LastBuild, Campaigns: kept{w}, Compare: w.compare,
		Workers: 2, ReplanEvery: time.Hour, BackoffMin: time.Millisecond, BackoffMax: 20 * time.Millisecond,
		RetryDelay: func(int) time.Duration { return time.Millisecond },
		Log:        slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}

// running is a queue that runs until the test, or stop, ends it.
type running struct {
	*Queue
	t    testing.TB
	stop func()
}

func start(t testing.TB, opts Options) *running {
	t.Helper()
	q, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- q.Run(ctx) }()
	var once sync.Once
	stop := func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("Run: %v", err)
				}
			case <-time.After(2 * time.Minute):
				t.Fatal("the queue does not stop")
			}
		})
	}
	t.Cleanup(stop)
	return &running{q, t, stop}
}

func folder(t testing.TB) afero.Fs {
	return afero.NewBasePathFs(afero.NewOsFs(), t.TempDir())
}

func (q *running) pushed(pkg string) []quarry.Build {
	q.t.Helper()
	builds, err := q.Pushed(q.t.Context(), pkg)
	if err != nil {
		q.t.Fatal(err)
	}
	return builds
}

// planned waits for the first plan of all. Before it is over, that plan may have
// built what is pushed, and be done with it, before the queue is told of the push.
func (q *running) planned() {
	q.t.Helper()
	q.until("the first plan", func() bool { return !q.Status().Planned.IsZero() })
}

// first is the oldest build under way of what was pushed, or the newest that has
// ended: a plan of everything may have come before this one.
func (q *running) first(pkg string) quarry.Build {
	q.t.Helper()
	if list := q.pushed(pkg); len(list) > 0 {
		return list[0]
	}
	list := q.List(Filter{Package: pkg, Limit: 1})
	if len(list) == 0 {
		q.t.Fatalf("nothing was made of what was pushed for %s", pkg)
	}
	return list[0]
}

func (q *running) wait(number int64) quarry.Build {
	q.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	b, err := q.Wait(ctx, number)
	if err != nil {
		q.t.Fatalf("build %d did not end: %v; it is %+v; status %+v", number, err, plain(b), q.Status())
	}
	return b
}

// until waits for something to become true.
func (q *running) until(what string, f func() bool) {
	q.t.Helper()
	for end := time.Now().Add(2 * time.Minute); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			q.t.Fatalf("never came: %s; status %+v; builds %v", what, q.Status(), states(q.List(Filter{})))
		}
	}
}

func (q *running) untilState(number int64, s quarry.State) quarry.Build {
	q.t.Helper()
	q.until(fmt.Sprintf("build %d %s", number, s), func() bool { b, _ := q.Get(number); return b.State == s })
	b, _ := q.Get(number)
	return b
}

// settled reports whether every release has its record.
func (w *world) settled() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.branches {
		for _, a := range r.Archs {
			ref, ok := w.records[Want{Release: r, Arch: a}.Target()]
			if !ok || ref.Source != r.Commit {
				return false
			}
		}
	}
	return true
}

// ranTimes is how often builds of a release were begun.
func (w *world) ranTimes(pkg, version string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for t, runs := range w.runs {
		if t.Package == pkg && t.Version == version {
			n += runs
		}
	}
	return n
}

// once checks that no target has more than one record for a commit, and that
// no two records share a number.
func (w *world) once() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var errs []error
	seen := map[string]int64{}
	numbers := map[int64]string{}
	for _, o := range w.history {
		k := o.Build.Target().String() + " at " + o.Build.Commit
		if n, ok := seen[k]; ok {
			errs = append(errs, fmt.Errorf("%s was recorded by builds %d and %d", k, n, o.Build.Number))
		}
		seen[k] = o.Build.Number
		if other, ok := numbers[o.Build.Number]; ok {
			errs = append(errs, fmt.Errorf("number %d is of %s and of %s", o.Build.Number, k, other))
		}
		numbers[o.Build.Number] = k
	}
	return errors.Join(errs...)
}

// plain prints as its fields; quarry.Build prints as its name.
type plain quarry.Build

func states(builds []quarry.Build) (list []string) {
	for _, b := range builds {
		list = append(list, b.Target().String()+" "+string(b.State))
	}
	slices.Sort(list)
	return list
}

func readDirNames(fsys afero.Fs, dir string) (names []string, err error) {
	infos, err := afero.ReadDir(fsys, dir)
	for _, fi := range infos {
		names = append(names, fi.Name())
	}
	return names, err
}
