package queue

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/Morphux/quarry"
)

// groupNonce begins the nonce of a build that the planner wants for a submitted
// group; the rest is the submission's ID, so that what failed is tried again when
// the group is submitted anew.
const groupNonce = "group-"

func isGroup(b *quarry.Build) bool { return strings.HasPrefix(b.Nonce, groupNonce) }

// Groups is where submitted groups are kept: with the records, so that a wiped
// queue loses none.
type Groups interface {
	// List gives all submissions.
	List(ctx context.Context) ([]quarry.Submission, error)
	// Submit writes one, over an earlier one of the same group; what that has built
	// of the same members stays.
	Submit(ctx context.Context, s quarry.Submission) error
	// Drop takes one back, with all that it has built.
	Drop(ctx context.Context, channel, group string) error
	// Land writes all that one has built into its channel, as one commit, and ends
	// it. It is idempotent. An error that is ErrBackwards says that the channel has
	// gone on without it.
	Land(ctx context.Context, s quarry.Submission) (commit string, err error)
	// Landed reports whether a release's success stands in its channel, at its
	// commit and under nothing newer.
	Landed(ctx context.Context, r quarry.Release) (bool, error)
}

// GroupRecords is what the records of a group's view (see quarry.Release.View)
// have besides.
type GroupRecords interface {
	// Pending reports whether the group has yet to build a release of a package for
	// an arch: others of the group wait for it, even where an older one would do.
	Pending(pkg, arch string) (bool, error)
}

// Errors of groups.
var (
	ErrNoGroup   = errors.New("no such group: nobody has pushed to it, or it has landed")
	ErrBackwards = errors.New("the channel has gone on without the group")
)

// groups is what is remembered of landings.
type groups struct {
	mu      sync.Mutex               // guards the following
	refused map[string]string        // why landing was, by ID of the submission
	landed  map[string]string        // commits, by ID
	landing map[string]chan struct{} // by ID of the submission that is being landed: closed when that is over
}

// GroupState is how a group stands.
type GroupState string

// The states of a group.
const (
	GroupHeld     GroupState = "held"     // not submitted
	GroupBuilding GroupState = "building" // submitted, and on its way
	GroupFailed   GroupState = "failed"   // a build of it did not succeed
	GroupChanged  GroupState = "changed"  // its members are others than were submitted
	GroupRefused  GroupState = "refused"  // the channel has gone on without it
	GroupLanding  GroupState = "landing"  // all is built
)

// Group is a group as it stands.
type Group struct {
	Name    string        `json:"name"`
	Channel string        `json:"channel"`
	State   GroupState    `json:"state"`
	Reason  string        `json:"reason,omitempty"` // why it does not land, one line
	ID      string        `json:"id,omitempty"`     // of its submission; "" when it is held
	By      string        `json:"by,omitempty"`     // who submitted it
	At      time.Time     `json:"at,omitzero"`
	Members []GroupMember `json:"members"`

	sub   quarry.Submission
	ready bool // all is built and nothing is stale
}

// GroupMember is a release of a group on one arch.
type GroupMember struct {
	quarry.Target
	Commit string `json:"commit"`
	State  string `json:"state"` // held, a state of builds, declined, stale, or gone
	Build  int64  `json:"build,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// assign tells of the releases that were pushed to groups which are held, which
// are to be built for a submission, and which have landed.
func (q *Queue) assign(ctx context.Context, releases []quarry.Release) ([]quarry.Submission, error) {
	if !slices.ContainsFunc(releases, func(r quarry.Release) bool { return r.Group != "" }) {
		return nil, nil
	}
	var subs []quarry.Submission
	if q.opts.Groups != nil {
		var err error
		if subs, err = q.opts.Groups.List(ctx); err != nil {
			return nil, fmt.Errorf("cannot read the submitted groups: %w", err)
		}
	}
	for i := range releases {
		r := &releases[i]
		if r.Group == "" {
			continue
		}
		if q.opts.Groups == nil || quarry.CheckGroup(r.Group) != nil {
			r.Group = ""
			continue
		}
		why := fmt.Sprintf("held in group %s until that is submitted (group submit %s)", r.Group, r.Group)
		if s := find(subs, r.Channel, r.Group); s != nil {
			if s.Has(*r) {
				r.Stage = s.ID
				continue
			}
			why = fmt.Sprintf("held in group %s, which was submitted without it (group submit %s)", r.Group, r.Group)
		}
		landed, err := q.opts.Groups.Landed(ctx, *r)
		if err == nil && landed {
			r.Group = ""
			continue
		}
		if err != nil {
			why += ", and whether it has landed cannot be told: " + oneLine(err)
		}
		r.Traits = maps.Clone(r.Traits)
		if r.Traits == nil {
			r.Traits = map[string]quarry.Traits{}
		}
		for _, arch := range r.Archs {
			t := r.Traits[arch]
			t.Held = why
			r.Traits[arch] = t
		}
	}
	return subs, nil
}

func find(subs []quarry.Submission, channel, group string) *quarry.Submission {
	for i := range subs {
		if subs[i].Channel == channel && subs[i].Group == group {
			return &subs[i]
		}
	}
	return nil
}

// declined tells why a release is not built for an arch, held or not.
func declined(r quarry.Release, arch string) string {
	t, ok := r.Traits[arch]
	if ok && t.Held != "" {
		t.Held = ""
		r.Traits = map[string]quarry.Traits{arch: t}
	}
	return r.Declined(arch)
}

// GroupOf names the group that another release of a package is in, on a channel,
// as git was last read; "" when there is none but those of not.
func (q *Queue) GroupOf(channel, pkg, not string, gone ...string) (branch, group string) {
	q.releases.mu.Lock()
	defer q.releases.mu.Unlock()
	for _, r := range q.releases.of(channel, pkg) {
		if r.Group != "" && r.Group != not && !slices.Contains(gone, r.Version) {
			return quarry.Branch(r.Package, r.Version), r.Group
		}
	}
	return "", ""
}

// grouped reads the releases that are in groups, and the submissions.
func (q *Queue) grouped(ctx context.Context) ([]quarry.Release, []quarry.Submission, error) {
	if q.opts.Groups == nil {
		return nil, nil, nil
	}
	subs, err := q.opts.Groups.List(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot read the submitted groups: %w", err)
	}
	pkgs := map[string]bool{}
	for _, s := range subs {
		for _, m := range s.Members {
			pkgs[m.Package] = true
		}
	}
	q.releases.mu.Lock()
	all := q.releases.all
	for name, p := range q.releases.packages {
		for _, r := range p.lines {
			if r.Group != "" {
				pkgs[name] = true
			}
		}
	}
	q.releases.mu.Unlock()
	if !all {
		pkgs = map[string]bool{"": true}
	}
	var list []quarry.Release
	for _, pkg := range slices.Sorted(maps.Keys(pkgs)) {
		releases, _, err := q.opts.Releases(ctx, pkg)
		if err != nil {
			return nil, nil, fmt.Errorf("cannot list the releases: %w", err)
		}
		for _, r := range releases {
			if r.Group != "" && checkRelease(r) == nil {
				list = append(list, r)
			}
		}
	}
	subs2, err := q.assign(ctx, list)
	if err != nil {
		return nil, nil, err
	}
	if len(list) > 0 {
		subs = subs2 // what the releases were held against
	}
	return slices.DeleteFunc(list, func(r quarry.Release) bool { return r.Group == "" }), subs, nil
}

// Groups tells how the groups stand that there are on a channel, or (channel
// empty) on all.
func (q *Queue) Groups(ctx context.Context, channel string) ([]Group, error) {
	releases, subs, err := q.grouped(ctx)
	if err != nil {
		return nil, err
	}
	type key struct{ channel, name string }
	of := map[key][]quarry.Release{}
	for _, r := range releases {
		of[key{r.Channel, r.Group}] = append(of[key{r.Channel, r.Group}], r)
	}
	for _, s := range subs {
		k := key{s.Channel, s.Group}
		of[k] = slices.Clone(of[k])
	}
	var list []Group
	for k, members := range of {
		if channel != "" && k.channel != channel {
			continue
		}
		g := Group{Name: k.name, Channel: k.channel, Members: []GroupMember{}}
		if s := find(subs, k.channel, k.name); s != nil {
			g.sub, g.ID, g.By, g.At = *s, s.ID, s.By.User, s.At
		}
		if err := q.look(ctx, &g, members); err != nil {
			return nil, fmt.Errorf("group %s on %s cannot be looked at: %w", k.name, k.channel, err)
		}
		list = append(list, g)
	}
	slices.SortFunc(list, func(a, b Group) int { return cmp.Or(cmp.Compare(a.Channel, b.Channel), cmp.Compare(a.Name, b.Name)) })
	return list, nil
}

// look finds out how a group stands.
func (q *Queue) look(ctx context.Context, g *Group, members []quarry.Release) error {
	slices.SortFunc(members, func(a, b quarry.Release) int {
		return cmp.Or(cmp.Compare(a.Package, b.Package), cmp.Compare(a.Version, b.Version))
	})
	var changed, failed, open string
	note := func(to *string, format string, args ...any) {
		if *to == "" {
			*to = fmt.Sprintf(format, args...)
		}
	}
	var recs Records
	for _, r := range members {
		if r.Stage != "" && recs == nil {
			var err error
			if recs, err = q.opts.Records(ctx, r.View()); err != nil {
				return err
			}
		}
		if g.ID != "" && r.Stage == "" {
			note(&changed, "%s was pushed since it was submitted", quarry.Branch(r.Package, r.Version))
		}
		for _, arch := range r.Archs {
			m := GroupMember{Target: Want{Release: r, Arch: arch}.Target(), Commit: r.Commit, State: "held"}
			why := declined(r, arch)
			switch {
			case why != "":
				m.State, m.Reason = "declined", why
			case r.Stage != "":
				if err := q.lookAt(recs, r, &m); err != nil {
					return err
				}
				switch m.State {
				case string(quarry.Succeeded):
				case string(quarry.Failed), string(quarry.Errored), string(quarry.Cancelled):
					note(&failed, "%s %s%s", m.Target, m.State, colon(m.Reason))
				default:
					note(&open, "%s", m.State)
				}
			}
			g.Members = append(g.Members, m)
		}
	}
	for _, s := range g.sub.Members {
		i := slices.IndexFunc(members, func(r quarry.Release) bool { return s.Package == r.Package && s.Version == r.Version })
		if i < 0 {
			g.Members = append(g.Members, GroupMember{Target: quarry.Target{Channel: g.Channel, Package: s.Package, Version: s.Version}, Commit: s.Commit, State: "gone"})
			note(&changed, "%s has left it since it was submitted", s.Branch())
			continue
		}
		for _, arch := range members[i].Archs {
			if declined(members[i], arch) == "" && !slices.Contains(s.Archs, arch) {
				note(&changed, "%s is to be built for %s since it was submitted", s.Branch(), arch)
			}
		}
		for _, arch := range s.Archs {
			if !slices.Contains(members[i].Archs, arch) || declined(members[i], arch) != "" {
				note(&changed, "%s is not built for %s any longer", s.Branch(), arch)
			}
		}
	}
	q.groups.mu.Lock()
	refused := q.groups.refused[g.ID]
	q.groups.mu.Unlock()
	switch {
	case g.ID == "":
		g.State = GroupHeld
	case changed != "":
		g.State, g.Reason = GroupChanged, changed+": submit it again"
	case failed != "":
		g.State, g.Reason = GroupFailed, failed
	case open != "":
		g.State = GroupBuilding
	case refused != "":
		g.State, g.Reason = GroupRefused, refused
	default:
		g.State, g.ready = GroupLanding, true
	}
	return nil
}

func colon(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

// lookAt finds out how a release of a submitted group stands on an arch: what is
// under way goes before what is recorded, and that before how a build was lost.
func (q *Queue) lookAt(recs Records, r quarry.Release, m *GroupMember) error {
	ref, ok, err := recs.Lookup(r.Package, r.Version, m.Arch)
	if err != nil {
		return err
	}
	builds := q.List(Filter{Channel: r.Channel, Package: r.Package, Version: r.Version, Arch: m.Arch, Commit: r.Commit})
	builds = slices.DeleteFunc(builds, func(b quarry.Build) bool { return b.Stage != r.Stage })
	var newest *quarry.Build
	for i := range builds {
		b := &builds[i]
		if !b.State.Ended() {
			m.State, m.Build, m.Reason = string(b.State), b.Number, b.Reason
			return nil
		}
		if newest == nil || b.Number > newest.Number {
			newest = b
		}
	}
	recorded := ok && ref.Source == r.Commit
	if newest != nil && (newest.State == quarry.Errored || newest.State == quarry.Cancelled) && (!recorded || newest.Number > ref.Build) {
		m.State, m.Build, m.Reason = string(newest.State), newest.Number, newest.Reason
		return nil
	}
	if !recorded {
		m.State = "planned"
		return nil
	}
	m.State, m.Build = string(ref.Status), ref.Build
	if newest != nil && newest.Number == ref.Build {
		m.Reason = newest.Reason
	}
	if ref.Status != quarry.Succeeded {
		return nil
	}
	why, _, err := recs.Stale(r, m.Arch)
	if err != nil {
		return err
	}
	if why != "" {
		m.State, m.Reason = "stale", why
	}
	return nil
}

// Group tells how one group stands.
func (q *Queue) Group(ctx context.Context, channel, name string) (Group, error) {
	list, err := q.Groups(ctx, channel)
	if err != nil {
		return Group{}, err
	}
	for _, g := range list {
		if g.Name == name {
			return g, nil
		}
	}
	return Group{}, fmt.Errorf("group %.40q on %s: %w", name, channel, ErrNoGroup)
}

// Submit has a group built, and landed when all of it has succeeded. by is who
// asks; may reports why they may not push a package, and is asked of each. What an
// earlier submission has built of the same commits is not built again, unless
// what it was built against has changed.
func (q *Queue) Submit(ctx context.Context, channel, name string, by quarry.Packager, may func(pkg string) error) (Group, error) {
	if q.opts.Groups == nil {
		return Group{}, fmt.Errorf("group %.40q on %s: %w", name, channel, ErrNoGroup)
	}
	q.submitting.Lock()
	defer q.submitting.Unlock()
	old, err := q.Group(ctx, channel, name)
	if err != nil {
		return old, err
	}
	if old.State == GroupBuilding || old.State == GroupLanding {
		return old, fmt.Errorf("group %s has been submitted by %s already, and has not changed: see group show %s", name, old.By, name)
	}
	releases, subs, err := q.grouped(ctx)
	if err != nil {
		return old, err
	}
	s := quarry.Submission{Group: name, Channel: channel, By: by, At: time.Now().UTC().Truncate(time.Second)}
	for _, r := range releases {
		if r.Channel != channel || r.Group != name {
			continue
		}
		if err := may(r.Package); err != nil {
			return old, err
		}
		m := quarry.Member{Package: r.Package, Version: r.Version, Commit: r.Commit}
		why := ""
		for _, arch := range r.Archs {
			if d := declined(r, arch); d != "" {
				why = d
			} else {
				m.Archs = append(m.Archs, arch)
			}
		}
		if len(m.Archs) == 0 {
			return old, fmt.Errorf("group %s cannot be submitted: %s is not built for any architecture (%s): change its recipe, or delete the branch", name, m.Branch(), cmp.Or(why, "the channel has none for it"))
		}
		for _, other := range subs {
			if other.Channel == channel && other.Group != name && slices.ContainsFunc(other.Members, func(o quarry.Member) bool { return o.Package == m.Package }) {
				return old, fmt.Errorf("group %s cannot be submitted: %s is in group %s, which is submitted: let that land or drop it first", name, m.Package, other.Group)
			}
		}
		s.Members = append(s.Members, m)
	}
	if len(s.Members) == 0 {
		return old, fmt.Errorf("group %s cannot be submitted: nothing is left in it: push a release with -o group=%s", name, name)
	}
	var random [4]byte
	rand.Read(random[:])
	s.ID = fmt.Sprintf("%s-%x", s.At.Format("20060102"), random)
	if err := q.opts.Groups.Submit(ctx, s); err != nil {
		return old, err
	}
	q.replanned(ctx)
	g, err := q.Group(ctx, channel, name)
	if errors.Is(err, ErrNoGroup) { // it has landed already
		g = Group{Name: name, Channel: channel, ID: s.ID, State: GroupLanding, By: by.User, At: s.At, Members: []GroupMember{}}
		for _, m := range s.Members {
			for _, arch := range m.Archs {
				g.Members = append(g.Members, GroupMember{Target: quarry.Target{Channel: channel, Package: m.Package, Version: m.Version, Arch: arch},
					Commit: m.Commit, State: string(quarry.Succeeded)})
			}
		}
		return g, nil
	}
	return g, err
}

// Drop takes back the submission of a group: its builds are called off, and what
// they made is thrown away. Its releases are held again. may is as for Submit.
func (q *Queue) Drop(ctx context.Context, channel, name string, may func(pkg string) error) (Group, error) {
	q.submitting.Lock()
	defer q.submitting.Unlock()
	g, err := q.Group(ctx, channel, name)
	if err != nil {
		return g, err
	}
	for _, m := range g.Members {
		if err := may(m.Package); err != nil {
			return g, err
		}
	}
	if g.ID == "" {
		return g, fmt.Errorf("group %s is not submitted, so there is nothing to take back: delete its branches to be rid of it", name)
	}
	if err := q.opts.Groups.Drop(ctx, channel, name); err != nil {
		return g, err
	}
	q.replanned(ctx)
	if after, err := q.Group(ctx, channel, name); !errors.Is(err, ErrNoGroup) {
		return after, err
	}
	g.State, g.ID, g.Reason, g.Members = GroupHeld, "", "", []GroupMember{}
	return g, nil
}
