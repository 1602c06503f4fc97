package queue

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Morphux/quarry"
)

// hall is a world with groups: what they have built waits beside its records.
type hall struct {
	*world
	groups map[string]*stageHall // by name
	landed []string              // names of groups, as they landed
	onLand func(s quarry.Submission) error
}

type stageHall struct {
	quarry.Submission
	at    map[quarry.Target]quarry.RecordRef
	abi   map[quarry.Target]string
	built map[quarry.Target][]quarry.DepUsed
}

func newHall(t testing.TB) *hall {
	return &hall{world: newWorld(t), groups: map[string]*stageHall{}}
}

func (h *hall) options(t testing.TB) Options {
	o := h.world.options(folder(t))
	o.Records, o.Record, o.Groups = h.Records, h.Record, inHall{h}
	return o
}

// pushTo pushes a release to a group.
func (h *hall) pushTo(group, pkg, version, commit string, archs []string, needs ...string) {
	h.pushAs(func(r *quarry.Release) { r.Group = group }, pkg, version, commit, archs, needs...)
}

type hallRecords struct {
	snapshot
	group *stageHall
}

func (h *hall) Records(ctx context.Context, view string) (Records, error) {
	channel, name := quarry.ParseView(view)
	r, err := h.world.Records(ctx, channel)
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.groups[name]
	if err != nil || g == nil {
		return r, err
	}
	s := r.(snapshot)
	for t, ref := range s.at {
		if ref.Status == quarry.Failed {
			delete(s.at, t)
		}
	}
	maps.Copy(s.at, g.at)
	maps.Copy(s.abi, g.abi)
	maps.Copy(s.built, g.built)
	c := *g
	c.at = maps.Clone(g.at)
	return hallRecords{s, &c}, nil
}

func (r hallRecords) Pending(pkg, arch string) (bool, error) {
	for _, m := range r.group.Members {
		ref := r.group.at[quarry.Target{Channel: "testing", Package: m.Package, Version: m.Version, Arch: arch}]
		if m.Package == pkg && slices.Contains(m.Archs, arch) && (ref.Status != quarry.Succeeded || ref.Source != m.Commit) {
			return true, nil
		}
	}
	return false, nil
}

func (h *hall) Record(ctx context.Context, o *quarry.Outcome) (string, error) {
	if o.Build.Stage == "" {
		return h.world.Record(ctx, o)
	}
	if err := h.tick("stage"); err != nil {
		return "", err
	}
	h.mu.Lock()
	g := h.groups[o.Build.Group]
	if g == nil || g.ID != o.Build.Stage {
		h.mu.Unlock()
		return "", ErrObsolete
	}
	if g.at[o.Build.Target()].Key == o.Build.Key {
		h.mu.Unlock()
		return "staged", nil
	}
	t := o.Build.Target()
	g.at[t] = quarry.RecordRef{Status: o.Status, Source: o.Build.Commit, Build: o.Build.Number, Key: o.Build.Key}
	if o.Facts != nil {
		g.abi[t] = o.Facts.ABI
	}
	g.built[t] = o.Deps
	h.mu.Unlock()
	if o.Status == quarry.Failed {
		return h.world.Record(ctx, o)
	}
	return "staged", h.tick("staged")
}

// inHall is where a hall's groups are kept.
type inHall struct{ *hall }

func (h inHall) List(context.Context) (list []quarry.Submission, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, g := range h.groups {
		list = append(list, g.Submission)
	}
	return list, nil
}

func (h inHall) Submit(_ context.Context, s quarry.Submission) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := &stageHall{s, map[quarry.Target]quarry.RecordRef{}, map[quarry.Target]string{}, map[quarry.Target][]quarry.DepUsed{}}
	if old := h.groups[s.Group]; old != nil {
		for t, ref := range old.at {
			if ref.Status == quarry.Succeeded && slices.ContainsFunc(s.Members, func(m quarry.Member) bool {
				return m.Package == t.Package && m.Version == t.Version && m.Commit == ref.Source
			}) {
				g.at[t], g.abi[t], g.built[t] = ref, old.abi[t], old.built[t]
			}
		}
	}
	h.groups[s.Group] = g
	return nil
}

func (h inHall) Drop(_ context.Context, _, group string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.groups, group)
	return nil
}

func (h inHall) Land(_ context.Context, s quarry.Submission) (string, error) {
	if err := h.tick("land"); err != nil {
		return "", err
	}
	if h.onLand != nil {
		if err := h.onLand(s); err != nil {
			return "", err
		}
	}
	h.mu.Lock()
	g := h.groups[s.Group]
	for _, m := range s.Members {
		for _, arch := range m.Archs {
			t := quarry.Target{Channel: "testing", Package: m.Package, Version: m.Version, Arch: arch}
			if ref := g.at[t]; ref.Status != quarry.Succeeded || ref.Source != m.Commit {
				h.t.Errorf("group %s lands without %s: %+v", s.Group, t, ref)
			}
			if _, ok := h.records[t]; ok && h.records[t].Status == quarry.Succeeded && h.records[t].Source == m.Commit {
				h.t.Errorf("%s was in the channel before its group", t)
			}
			h.records[t], h.abi[t], h.built[t] = g.at[t], g.abi[t], g.built[t]
		}
	}
	delete(h.groups, s.Group)
	h.landed = append(h.landed, s.Group)
	h.mu.Unlock()
	return "landed-" + s.Group, h.tick("landed")
}

func (h inHall) Landed(_ context.Context, r quarry.Release) (bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, arch := range r.Archs {
		ref := h.records[quarry.Target{Channel: r.Channel, Package: r.Package, Version: r.Version, Arch: arch}]
		if ref.Status == quarry.Succeeded && ref.Source == r.Commit {
			return true, nil
		}
	}
	return false, nil
}

var alice = quarry.Packager{User: "alice"}

func anybody(string) error { return nil }

func (q *running) submit(name string) Group {
	q.t.Helper()
	g, err := q.Submit(q.t.Context(), "testing", name, alice, anybody)
	if err != nil {
		q.t.Fatal(err)
	}
	return g
}

// stands waits until a group stands so; "" is when it is gone.
func (q *running) stands(name string, state GroupState) Group {
	q.t.Helper()
	var g Group
	var err error
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		g, err = q.Group(q.t.Context(), "testing", name)
		if state == "" && errors.Is(err, ErrNoGroup) || err == nil && g.State == state {
			return g
		}
	}
	q.t.Fatalf("group %s does not get %q: %+v, %v", name, state, g, err)
	return g
}

func (q *running) idle() {
	q.t.Helper()
	q.until("nothing is under way", func() bool { return len(q.List(Filter{Live: true})) == 0 })
}

// TestGroupLands: a group waits until it is submitted, is built in order against
// itself, and lands at once; what depends on it follows then.
func TestGroupLands(t *testing.T) {
	h := newHall(t)
	h.onOutcome = func(o *quarry.Outcome, b quarry.Build) {
		if b.Package == "user" && b.Version == "2" && !slices.ContainsFunc(o.Deps, func(d quarry.DepUsed) bool { return d.Version == "2" }) {
			t.Errorf("user 2 was built with %v", o.Deps)
		}
	}
	q := start(t, h.options(t))
	h.push("lib", "1", "a1", archs2)
	h.push("third", "1", "c1", archs2, "lib-2") // waits for what only the group has
	q.pushed("lib")
	q.pushed("third")
	h.pushTo("g", "user", "2", "b2", archs2, "lib-2")
	h.pushTo("g", "lib", "2", "a2", archs2)
	for _, pkg := range []string{"user", "lib"} {
		for _, b := range q.pushed(pkg) {
			if b.Version == "2" {
				t.Errorf("%v is built though its group is not submitted", b)
			}
		}
	}
	if d := q.Declined("user"); len(d) != 2 || d[0].Reason != "held in group g until that is submitted (group submit g)" {
		t.Errorf("declined: %+v", d)
	}
	if g := q.stands("g", GroupHeld); len(g.Members) != 4 || g.Members[0].State != "held" {
		t.Errorf("%+v", g)
	}
	if branch, group := q.GroupOf("testing", "lib", "other"); branch != "lib-2" || group != "g" {
		t.Errorf("lib is in %q with %q", group, branch)
	}
	g := q.submit("g")
	q.stands("g", "")
	if commit, ok := q.LandedGroup(g.ID); !ok || commit != "landed-g" {
		t.Errorf("landed as %q, %v", commit, ok)
	}
	for _, b := range q.List(Filter{Package: "user", Version: "2"}) {
		if b.State != quarry.Succeeded || b.Stage != g.ID || !strings.HasPrefix(b.Nonce, groupNonce) {
			t.Errorf("%+v", b)
		}
	}
	q.idle()
	q.until("nothing is declined after the landing", func() bool { return len(q.Declined("")) == 0 })
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, arch := range archs2 {
		if h.records[quarry.Target{Channel: "testing", Package: "third", Version: "1", Arch: arch}].Status != quarry.Succeeded {
			t.Errorf("third has not been built for %s after the landing", arch)
		}
	}
	if fmt.Sprint(h.landed) != "[g]" {
		t.Errorf("landed: %v", h.landed)
	}
}

// TestLandedGroup: who finds that a group is gone is told that it has landed, though
// whoever landed it has not come back yet.
func TestLandedGroup(t *testing.T) {
	h := newHall(t)
	landed := make(chan struct{})
	h.tick = func(where string) error {
		if where == "landed" {
			<-landed
		}
		return nil
	}
	q := start(t, h.options(t))
	h.pushTo("g", "lib", "2", "a", archs2[:1])
	q.pushed("lib")
	g := q.submit("g")
	q.stands("g", "")
	time.AfterFunc(20*time.Millisecond, func() { close(landed) }) // the answer comes after that, or too soon
	if commit, ok := q.LandedGroup(g.ID); !ok || commit != "landed-g" {
		t.Errorf("landed as %q, %v", commit, ok)
	}
}

// TestGroupWaitsForItsOwn: what something older in the channel would do for is
// waited for all the same, and a cycle that is cut is not.
func TestGroupWaitsForItsOwn(t *testing.T) {
	recs := hallRecords{snapshot{at: map[quarry.Target]quarry.RecordRef{{Channel: "testing", Package: "lib", Version: "1", Arch: "x86_64"}: {Status: quarry.Succeeded}}},
		&stageHall{Submission: quarry.Submission{Members: []quarry.Member{{Package: "lib", Version: "2", Archs: []string{"x86_64"}}}}}}
	r := quarry.Release{Package: "user", Version: "2", Channel: "testing", Group: "g", Stage: "one", Needs: []string{"lib"}}
	for _, test := range []struct {
		name string
		r    func(*quarry.Release)
		want string
	}{
		{"in the group", func(*quarry.Release) {}, "[lib]"},
		{"not submitted", func(r *quarry.Release) { r.Stage = "" }, "[]"},
		{"bootstrap", func(r *quarry.Release) { r.Traits = map[string]quarry.Traits{"x86_64": {Bootstrap: true}} }, "[]"},
		{"itself", func(r *quarry.Release) { r.Package = "lib" }, "[]"},
		{"nobody has it", func(r *quarry.Release) { r.Needs = []string{"lib", "ghost"} }, "[ghost lib]"},
	} {
		r := r
		test.r(&r)
		for _, recs := range []Records{recs, cutting{Records: recs}} {
			missing, err := unmet(recs, r, "x86_64")
			if err != nil || fmt.Sprint(missing) != test.want {
				t.Errorf("%s: misses %v, %v; want %s", test.name, missing, err, test.want)
			}
		}
	}
}

// TestGroupFails: nothing lands; pushed anew and submitted again, only what has to
// be is built.
func TestGroupFails(t *testing.T) {
	h := newHall(t)
	h.onRun = func(_ context.Context, b quarry.Build, _ func(string)) (*quarry.Outcome, error) {
		if b.Package == "user" && strings.HasSuffix(b.Commit, "b1") {
			o := outcome(b, nil)
			o.Status, o.Failure = quarry.Failed, &quarry.Failure{Step: quarry.StepMake, Cause: quarry.CauseExit, Message: "make ended with status 2", Status: 2}
			return o, nil
		}
		return nil, nil
	}
	q := start(t, h.options(t))
	one := []string{"x86_64"}
	h.pushTo("g", "lib", "2", "a1", one)
	h.pushTo("g", "user", "2", "b1", one, "lib")
	q.pushed("lib")
	q.pushed("user")
	first := q.submit("g")
	g := q.stands("g", GroupFailed)
	if g.Reason != "user 2 x86_64 failed: make ended with status 2" {
		t.Errorf("%+v", g)
	}
	h.mu.Lock()
	if ref := h.records[quarry.Target{Channel: "testing", Package: "user", Version: "2", Arch: "x86_64"}]; ref.Status != quarry.Failed || len(h.records) != 1 {
		t.Errorf("the channel has %v", h.records)
	}
	h.mu.Unlock()

	// A failure is tried again when the group is submitted again, and nothing else is.
	second := q.submit("g")
	q.stands("g", GroupFailed)
	if second.ID == first.ID || h.ranTimes("user", "2") != 2 || h.ranTimes("lib", "2") != 1 {
		t.Errorf("user was built %d times, lib %d", h.ranTimes("user", "2"), h.ranTimes("lib", "2"))
	}
	h.pushTo("g", "user", "2", "b2", one, "lib")
	q.pushed("user")
	if g := q.stands("g", GroupChanged); !strings.Contains(g.Reason, "user-2 was pushed since it was submitted: submit it again") {
		t.Errorf("%+v", g)
	}
	q.submit("g")
	q.stands("g", "")
	if h.ranTimes("user", "2") != 3 || h.ranTimes("lib", "2") != 1 {
		t.Errorf("user was built %d times, lib %d", h.ranTimes("user", "2"), h.ranTimes("lib", "2"))
	}
}

// TestGroupStale: a member is built again within the group when what it was built
// against in there has changed, and only then does the group land.
func TestGroupStale(t *testing.T) {
	h := newHall(t)
	h.onOutcome = func(o *quarry.Outcome, b quarry.Build) { o.Facts = &quarry.Facts{ABI: b.Package + b.Commit} }
	h.onLand = func(s quarry.Submission) error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if d := h.groups["g"].built[quarry.Target{Channel: "testing", Package: "user", Version: "2", Arch: "x86_64"}]; len(d) != 1 || !strings.HasSuffix(d[0].ABI, "a2") {
			t.Errorf("it lands with a user that was built with %v", d)
		}
		return nil
	}
	q := start(t, h.options(t))
	one := []string{"x86_64"}
	h.pushTo("g", "lib", "2", "a1", one)
	h.pushTo("g", "user", "2", "b1", one, "lib")
	h.pushTo("g", "bad", "2", "d1", one)
	for _, pkg := range []string{"lib", "user", "bad"} {
		q.pushed(pkg)
	}
	q.submit("g")
	q.stands("g", GroupFailed)
	q.idle()
	h.pushTo("g", "lib", "2", "a2", one)
	h.delete("bad", "2")
	q.pushed("lib")
	q.pushed("bad")
	q.stands("g", GroupChanged)
	q.submit("g")
	q.stands("g", "")
	if h.ranTimes("user", "2") != 2 || h.ranTimes("lib", "2") != 2 {
		t.Errorf("user was built %d times, lib %d", h.ranTimes("user", "2"), h.ranTimes("lib", "2"))
	}
}

// TestGroupLeft: members leave, are called off and are dropped.
func TestGroupLeft(t *testing.T) {
	h := newHall(t)
	q := start(t, h.options(t))
	if err := q.Pause(t.Context(), "alice", ""); err != nil {
		t.Fatal(err)
	}
	one := []string{"x86_64"}
	h.pushTo("g", "lib", "2", "a1", one)
	h.pushTo("g", "user", "2", "b1", one, "lib")
	q.pushed("lib")
	q.pushed("user")
	if _, err := q.Drop(t.Context(), "testing", "g", anybody); err == nil || !strings.Contains(err.Error(), "is not submitted") {
		t.Errorf("dropped: %v", err)
	}
	for _, f := range []func() error{
		func() error {
			_, err := q.Submit(t.Context(), "testing", "g", alice, func(pkg string) error { return fmt.Errorf("not %s", pkg) })
			return err
		},
		func() error { _, err := q.Submit(t.Context(), "testing", "absent", alice, anybody); return err },
		func() error { _, err := q.Submit(t.Context(), "stable", "g", alice, anybody); return err },
	} {
		if err := f(); err == nil || len(h.groups) != 0 {
			t.Errorf("submitted: %v", err)
		}
	}
	g := q.submit("g")
	if g.State != GroupBuilding || g.By != "alice" {
		t.Errorf("%+v", g)
	}
	if _, err := q.Submit(t.Context(), "testing", "g", alice, anybody); err == nil || !strings.Contains(err.Error(), "has not changed") {
		t.Errorf("submitted twice: %v", err)
	}
	if _, err := q.Drop(t.Context(), "testing", "g", func(string) error { return errors.New("not you") }); err == nil || err.Error() != "not you" {
		t.Errorf("dropped by somebody: %v", err)
	}

	// The same package in two groups, past the door.
	h.pushTo("other", "lib", "3", "a3", one)
	q.pushed("lib")
	if _, err := q.Submit(t.Context(), "testing", "other", alice, anybody); err == nil || !strings.Contains(err.Error(), "lib is in group g, which is submitted") {
		t.Errorf("two groups with lib: %v", err)
	}
	h.delete("lib", "3")
	q.pushed("lib")

	// Called off: it is told, and submitting again has it built.
	lib := q.List(Filter{Package: "lib", Version: "2", Live: true})[0]
	if err := q.Cancel(t.Context(), lib.Number, "bob"); err != nil {
		t.Fatal(err)
	}
	if g := q.stands("g", GroupFailed); g.Reason != "lib 2 x86_64 cancelled: cancelled by bob" {
		t.Errorf("%+v", g)
	}
	user := q.List(Filter{Package: "user", Version: "2", Live: true})[0]
	g = q.submit("g")
	if b := q.wait(user.Number); b.State != quarry.Obsolete || b.Reason != "group g was submitted again" {
		t.Errorf("%+v", b)
	}
	if b := q.List(Filter{Package: "lib", Version: "2", Live: true}); len(b) != 1 || b[0].Stage != g.ID {
		t.Errorf("after it was submitted again: %+v", b)
	}

	// A push without the group leaves it.
	h.push("user", "2", "b2", one, "lib")
	if b := q.pushed("user"); len(b) != 1 || b[0].Group != "" || b[0].Stage != "" {
		t.Errorf("%+v", b)
	}
	if g := q.stands("g", GroupChanged); g.Reason != "user-2 has left it since it was submitted: submit it again" {
		t.Errorf("%+v", g)
	}
	after, err := q.Drop(t.Context(), "testing", "g", anybody)
	if err != nil || after.State != GroupHeld || len(after.Members) != 1 {
		t.Errorf("%+v, %v", after, err)
	}
	if b := q.List(Filter{Package: "lib", Live: true}); len(b) != 0 {
		t.Errorf("still under way: %+v", b)
	}
	h.delete("lib", "2")
	q.pushed("lib")
	q.stands("g", "")
}

// TestGroupSurvives: the queue ends at any time, and loses all that it knows; the
// group lands, once.
func TestGroupSurvives(t *testing.T) {
	for _, where := range []string{"releases", "records", "run", "ran", "stage", "staged", "land", "landed"} {
		t.Run(where, func(t *testing.T) {
			h := newHall(t)
			one := []string{"x86_64"}
			h.pushTo("g", "lib", "2", "a1", one)
			h.pushTo("g", "user", "2", "b1", one, "lib")
			var armed, dead atomic.Bool // from the first time that it is there, everything fails
			at := make(chan struct{}, 1)
			h.tick = func(w string) error {
				if armed.Load() && w == where && !dead.Swap(true) {
					at <- struct{}{}
				}
				if dead.Load() {
					return errors.New("killed")
				}
				return nil
			}
			q := start(t, h.options(t))
			q.pushed("lib")
			q.pushed("user")
			armed.Store(true)
			if _, err := q.Submit(t.Context(), "testing", "g", alice, anybody); err != nil && !dead.Load() {
				t.Fatal(err)
			}
			<-at
			q.stop()
			armed.Store(false)
			dead.Store(false)
			q = start(t, h.options(t))                     // in an empty folder
			if where == "releases" || where == "records" { // before it was submitted, perhaps
				if g, err := q.Group(t.Context(), "testing", "g"); err == nil && g.State == GroupHeld {
					q.submit("g")
				}
			}
			q.stands("g", "")
			q.idle()
			h.mu.Lock()
			defer h.mu.Unlock()
			if fmt.Sprint(h.landed) != "[g]" || len(h.records) != 2 {
				t.Errorf("landed %v; records %v", h.landed, h.records)
			}
		})
	}
}

// TestGroupRefused: a group that would go backwards does not land until it is
// submitted again; trouble is over some time.
func TestGroupRefused(t *testing.T) {
	h := newHall(t)
	tries := 0
	h.onLand = func(quarry.Submission) error {
		tries++
		switch tries {
		case 1, 2:
			return errors.New("the disk is full")
		case 3:
			return fmt.Errorf("%w: lib 3 is there", ErrBackwards)
		}
		return nil
	}
	q := start(t, h.options(t))
	h.pushTo("g", "lib", "2", "a1", []string{"x86_64"})
	q.pushed("lib")
	q.submit("g")
	if g := q.stands("g", GroupRefused); !strings.Contains(g.Reason, "lib 3 is there") {
		t.Errorf("%+v", g)
	}
	if err := q.Replan(t.Context()); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if p := q.Status().Problems; len(p) == 1 && strings.Contains(p[0].Error(), "group g does not land on testing") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("problems: %v", q.Status().Problems)
		}
	}
	q.submit("g")
	q.stands("g", "")
	if h.ranTimes("lib", "2") != 1 || tries != 4 {
		t.Errorf("lib was built %d times, and tried to land %d times", h.ranTimes("lib", "2"), tries)
	}
}
