package results

import (
	"cmp"
	"iter"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/Morphux/quarry"
)

// View answers from what an [Index] keeps of one commit of one channel. It never
// changes, and is safe for use by several goroutines.
type View struct {
	channel string
	commit  plumbing.Hash // zero for a channel without a record
	root    plumbing.Hash
	when    time.Time

	packages sorted[*Package] // by name
	recent   sorted[*Entry]   // the newest first
	failures sorted[*Entry]   // likewise
	byUser   sorted[*Entry]   // by packager, then likewise
	users    sorted[edge]     // what is used, and by which package
	offers   sorted[edge]     // virtual package, and who provides it
	damaged  sorted[*Package] // that have problems

	groups func() []FailureGroup
}

// Package is what is recorded of a package in a channel.
type Package struct {
	Name string
	// Entries are its records: the newest version first, then by arch, and a
	// success before the failure of the same target.
	Entries []*Entry
	// Problems says which of its records cannot be read, and why.
	Problems []string

	dirs [2]plumbing.Hash // its folders in packages/ and failures/
}

// edge is two names that belong together.
type edge struct{ from, to string }

func compareEdges(a, b edge) int { return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to)) }

func comparePackages(a, b *Package) int { return cmp.Compare(a.Name, b.Name) }

// compareRecent has the newest first. Entries of one commit that compare equal
// are one and the same.
func compareRecent(a, b *Entry) int {
	if c := cmp.Or(cmp.Compare(b.ended, a.ended), cmp.Compare(b.Build, a.Build)); c != 0 {
		return c
	}
	return cmp.Or(cmp.Compare(a.String(), b.String()), cmp.Compare(kind(a), kind(b)))
}

func compareUsers(a, b *Entry) int {
	return cmp.Or(cmp.Compare(a.Packager().User, b.Packager().User), compareRecent(a, b))
}

// compareTargets orders the entries of one package, see Package.Entries.
func compareTargets(a, b *Entry) int {
	return cmp.Or(quarry.CompareVersions(b.Version, a.Version), cmp.Compare(b.Version, a.Version), cmp.Compare(a.Arch, b.Arch), cmp.Compare(kind(a), kind(b)))
}

func kind(e *Entry) int {
	if e.Fault != nil {
		return 1
	}
	return 0
}

func emptyView(channel string) *View {
	v := &View{
		channel:  channel,
		packages: sorted[*Package]{cmp: comparePackages}, damaged: sorted[*Package]{cmp: comparePackages},
		recent: sorted[*Entry]{cmp: compareRecent}, failures: sorted[*Entry]{cmp: compareRecent}, byUser: sorted[*Entry]{cmp: compareUsers},
		users: sorted[edge]{cmp: compareEdges}, offers: sorted[edge]{cmp: compareEdges},
	}
	v.groups = sync.OnceValue(v.group)
	return v
}

// changed makes the view in which packages have been replaced: each pair is what
// was there, which may be nil, and what is there now, which may be empty.
func (v *View) changed(pairs [][2]*Package) *View {
	n := *v
	var gone, come, badGone, bad []*Package
	var less, more, lessFailed, moreFailed []*Entry
	var unused, used, unoffered, offered []edge
	for _, p := range pairs {
		old, now := p[0], p[1]
		if old == nil {
			old = &Package{}
		} else {
			gone = append(gone, old)
			if len(old.Problems) > 0 {
				badGone = append(badGone, old)
			}
		}
		if len(now.Entries)+len(now.Problems) > 0 {
			come = append(come, now)
			if len(now.Problems) > 0 {
				bad = append(bad, now)
			}
		}
		kept := make(map[*Entry]bool, len(old.Entries))
		for _, e := range old.Entries {
			kept[e] = false
		}
		for _, e := range now.Entries {
			if _, ok := kept[e]; ok {
				kept[e] = true
				continue
			}
			more = append(more, e)
			if e.Fault != nil {
				moreFailed = append(moreFailed, e)
			}
		}
		for _, e := range old.Entries {
			if kept[e] {
				continue
			}
			less = append(less, e)
			if e.Fault != nil {
				lessFailed = append(lessFailed, e)
			}
		}
		oldUsed, oldOffered := old.edges()
		nowUsed, nowOffered := now.edges()
		unused, used = differ(oldUsed, nowUsed, unused, used)
		unoffered, offered = differ(oldOffered, nowOffered, unoffered, offered)
	}
	n.packages = v.packages.with(gone, come)
	n.damaged = v.damaged.with(badGone, bad)
	n.recent = v.recent.with(less, more)
	n.byUser = v.byUser.with(less, more)
	n.failures = v.failures.with(lessFailed, moreFailed)
	n.users = v.users.with(unused, used)
	n.offers = v.offers.with(unoffered, offered)
	n.groups = sync.OnceValue(n.group)
	return &n
}

// edges are what any record of the package used, and provides.
func (p *Package) edges() (used, offered map[edge]bool) {
	used, offered = map[edge]bool{}, map[edge]bool{}
	seen := map[any]bool{}
	for _, e := range p.Entries {
		if seen[e.info] {
			continue
		}
		seen[e.info] = true
		for _, name := range e.Used() {
			used[edge{name, p.Name}] = true
		}
		for _, name := range e.Provides() {
			// name-version may be a name or a version of one, see Snapshot.Providers.
			for i := len(name); i > 0; i = strings.LastIndexByte(name[:i], '-') {
				offered[edge{name[:i], p.Name}] = true
			}
		}
	}
	return used, offered
}

func differ(old, now map[edge]bool, del, add []edge) (_, _ []edge) {
	for e := range old {
		if !now[e] {
			del = append(del, e)
		}
	}
	for e := range now {
		if !old[e] {
			add = append(add, e)
		}
	}
	return del, add
}

// Channel is the channel's name.
func (v *View) Channel() string { return v.channel }

// Commit is the id of the commit that answers, "" for an empty channel.
func (v *View) Commit() string {
	if v.commit.IsZero() {
		return ""
	}
	return v.commit.String()
}

// Time is when that commit was made.
func (v *View) Time() time.Time { return v.when }

// Count is how many packages, records of successes and records of failures there are.
func (v *View) Count() (packages, succeeded, failed int) {
	return v.packages.n, v.recent.n - v.failures.n, v.failures.n
}

// Package is what is recorded of a package; nil when nothing is.
func (v *View) Package(name string) *Package {
	for p := range v.Packages(name) {
		if p.Name == name {
			return p
		}
		break
	}
	return nil
}

// Packages goes over all packages by name, bytewise, beginning with the first
// whose name is not before from.
func (v *View) Packages(from string) iter.Seq[*Package] {
	return v.packages.from(func(p *Package) bool { return p.Name < from })
}

// Damaged goes over the packages some of whose records cannot be read.
func (v *View) Damaged() iter.Seq[*Package] { return v.damaged.all() }

// Newest is the newest version of the package that has a record.
func (p *Package) Newest() string {
	if len(p.Entries) == 0 {
		return ""
	}
	return p.Entries[0].Version
}

// Find is the package's success of a version on an arch, or its failure; nil
// when there is none. The architecture is taken as it is.
func (p *Package) Find(version, arch string, failure bool) *Entry {
	for _, e := range p.Entries {
		if e.Version == version && e.Arch == arch && (e.Fault != nil) == failure {
			return e
		}
	}
	return nil
}

// Recent goes over the package's records by when their builds ended, the newest
// first.
func (p *Package) Recent() iter.Seq[*Entry] {
	list := slices.Clone(p.Entries)
	slices.SortFunc(list, compareRecent)
	return slices.Values(list)
}

// Place is a place in a list of entries by time: before the entries of a page to
// come.
type Place struct {
	ended, build int64
	target       string
}

// After is the place behind an entry.
func After(e *Entry) Place { return Place{e.ended, e.Build, e.String()} }

// Since is the place behind all entries whose builds ended at a time or later.
func Since(t time.Time) Place { return Place{ended: t.UnixMilli(), build: -1} }

// String is the place as text for an address, which [ParsePlace] reads.
func (p Place) String() string {
	if p == (Place{}) {
		return ""
	}
	return strings.Join([]string{strconv.FormatInt(p.ended, 10), strconv.FormatInt(p.build, 10), p.target}, " ")
}

// ParsePlace reads a place. false says that the text is none.
func ParsePlace(s string) (Place, bool) {
	if s == "" {
		return Place{}, true
	}
	words := strings.SplitN(s, " ", 3)
	if len(words) != 3 {
		return Place{}, false
	}
	ended, err1 := strconv.ParseInt(words[0], 10, 64)
	build, err2 := strconv.ParseInt(words[1], 10, 64)
	return Place{ended, build, words[2]}, err1 == nil && err2 == nil
}

// before reports whether an entry stands before the place, or at it.
func (p Place) before(e *Entry) bool {
	if p == (Place{}) {
		return false
	}
	c := cmp.Or(cmp.Compare(p.ended, e.ended), cmp.Compare(p.build, e.Build))
	if c == 0 {
		c = cmp.Compare(e.String(), p.target)
	}
	return c <= 0
}

// Recent goes over all records by when their builds ended, the newest first,
// beginning behind a place; the zero place is the beginning.
func (v *View) Recent(at Place) iter.Seq[*Entry] { return v.recent.from(at.before) }

// Failures goes over the failures that no success has cleared, likewise.
func (v *View) Failures(at Place) iter.Seq[*Entry] { return v.failures.from(at.before) }

// PackagedBy goes over the records of what a person released, likewise.
func (v *View) PackagedBy(user string, at Place) iter.Seq[*Entry] {
	return func(yield func(*Entry) bool) {
		list := v.byUser.from(func(e *Entry) bool {
			c := cmp.Compare(e.Packager().User, user)
			return c < 0 || c == 0 && at.before(e)
		})
		for e := range list {
			if e.Packager().User != user || !yield(e) {
				return
			}
		}
	}
}

// Users lists the packages of which some record says that the package was
// installed for its build because the recipe names it, sorted, max at most; all
// for 0.
func (v *View) Users(pkg string, max int) []string { return edgesOf(v.users, pkg, max) }

// Providers lists the packages of which some record says that they provide a
// virtual package, likewise. As [Snapshot.Providers] has it, java-runtime-17 may
// be a name, or java-runtime in version 17.
func (v *View) Providers(name string, max int) []string { return edgesOf(v.offers, name, max) }

func edgesOf(s sorted[edge], name string, max int) (list []string) {
	for e := range s.from(func(e edge) bool { return e.from < name }) {
		if e.from != name || max > 0 && len(list) == max {
			break
		}
		list = append(list, e.to)
	}
	return list
}

// FailureGroup is failures that have the same cause.
type FailureGroup struct {
	Class string // the kind of trouble; the cause where no kind is known
	Error string // what the first line of each log that tells the cause has in common: numbers are #
	// Entries are the failures, the newest first.
	Entries []*Entry
	Since   time.Time // when the earliest of them ended
}

// FailureGroups lists the failures that no success has cleared by class and then
// by what they say, the biggest group first. It must not be changed.
func (v *View) FailureGroups() []FailureGroup { return v.groups() }

func (v *View) group() []FailureGroup {
	type key struct{ class, err string }
	at := map[key]int{}
	var list []FailureGroup
	for e := range v.Failures(Place{}) {
		k := key{cmp.Or(e.Fault.Class, string(e.Fault.Cause)), Alike(cmp.Or(e.Fault.Error, e.Fault.Message))}
		i, ok := at[k]
		if !ok {
			i = len(list)
			at[k] = i
			list = append(list, FailureGroup{Class: k.class, Error: k.err})
		}
		g := &list[i]
		g.Entries = append(g.Entries, e)
		if t := e.Ended(); g.Since.IsZero() || t.Before(g.Since) {
			g.Since = t
		}
	}
	slices.SortStableFunc(list, func(a, b FailureGroup) int {
		return cmp.Or(cmp.Compare(len(b.Entries), len(a.Entries)), cmp.Compare(a.Class, b.Class), cmp.Compare(a.Error, b.Error))
	})
	return list
}

// Alike is what two lines that say the same of different packages have in
// common: the place that a compiler names before its message is taken off, and
// numbers are #.
func Alike(line string) string {
	// adler32.c:1:10: error: ...
	if head, rest, ok := strings.Cut(line, ": "); ok && strings.ContainsRune(head, ':') && !strings.ContainsAny(head, " \t") {
		line = rest
	}
	var b strings.Builder
	for i := 0; i < len(line); i++ {
		c := line[i]
		if c < '0' || c > '9' {
			b.WriteByte(c)
			continue
		}
		for i+1 < len(line) && line[i+1] >= '0' && line[i+1] <= '9' {
			i++
		}
		b.WriteByte('#')
	}
	return b.String()
}
