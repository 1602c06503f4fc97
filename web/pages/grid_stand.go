package pages

import (
	"errors"
	"html/template"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/graph"
	"github.com/Morphux/quarry/queue"
	"github.com/Morphux/quarry/results"
)

// standing is where the newest version of a package stands on an arch.
type standing uint8

// The standings, in the order in which they are told.
const (
	standNone     standing = iota // its recipe does not want it there
	standDone                     // built
	standFailed                   // its newest build failed
	standBuilding                 // now
	standQueued                   //
	standWaiting                  // for what it needs
	standOutdated                 // only an older version is built
	standMissing                  // wanted, and not built
	standDeclined                 // its recipe, or the farm, says no
	standings
)

var standingWords = [standings]string{"none", "done", "failed", "building", "queued", "waiting", "outdated", "missing", "declined"}

// standingShapes tell them apart without colours.
var standingShapes = [standings]string{"", "✓", "✗", "▶", "○", "◌", "↑", "?", "⊘"}

// Word is the standing's name.
func (s standing) Word() string { return standingWords[s] }

// Shape is a sign for it.
func (s standing) Shape() string { return standingShapes[s] }

// cell is where a package stands on an arch, for showing.
type cell struct {
	Standing standing
	Arch     string
	Version  string // that it is about
	Build    int64  // to look at; 0: none
	URL      string // of that build or record
	Reason   string // one line, "" for none
}

// stand shows where a package stands by a word, a shape and a colour.
func stand(c cell) template.HTML {
	if c.Standing == standNone {
		return `<span class="st none">–</span>`
	}
	word := c.Standing.Word()
	var b strings.Builder
	tag := "span"
	if c.URL != "" {
		tag = "a"
	}
	b.WriteString("<" + tag + ` class="st ` + word + `"`)
	if c.URL != "" {
		b.WriteString(` href="` + template.HTMLEscapeString(c.URL) + `"`)
	}
	if c.Reason != "" {
		b.WriteString(` title="` + template.HTMLEscapeString(visible(c.Reason)) + `"`)
	}
	b.WriteString(`><i aria-hidden="true">` + c.Standing.Shape() + `</i> ` + word)
	if c.Standing == standOutdated {
		b.WriteString(" " + template.HTMLEscapeString(c.Version))
	}
	b.WriteString("</" + tag + ">")
	return template.HTML(b.String()) //nolint:gosec // what comes from outside is escaped
}

// placeKey finds builds under way.
type placeKey struct{ pkg, version, arch string }

// stander tells where packages stand on a channel.
type stander struct {
	s       *Site
	channel string
	archs   []string
	live    map[placeKey]quarry.Build
	lost    map[placeKey]quarry.Build // newest, that ended without a record
	g       *graph.Graph              // nil before git has been read
	view    *results.View
	bare    bool // only standings are wanted: cells have no addresses and reasons
}

// stander looks at the builds of a package, or of all for "".
func (s *Site) stander(v *results.View, pkg string) (*stander, error) {
	st := &stander{s: s, channel: v.Channel(), view: v, archs: s.archs(v.Channel()), live: map[placeKey]quarry.Build{}, lost: map[placeKey]quarry.Build{}}
	g, err := s.Queue.Graph(v.Channel())
	if err != nil && !errors.Is(err, queue.ErrUnsurveyed) {
		return nil, err
	}
	st.g = g
	for _, b := range s.Queue.List(queue.Filter{Channel: v.Channel(), Package: pkg, Live: true}) { // the newest first
		k := placeKey{b.Package, b.Version, b.Arch}
		if _, ok := st.live[k]; !ok {
			st.live[k] = b
		}
	}
	for _, b := range s.Queue.List(queue.Filter{Channel: v.Channel(), Package: pkg, States: []quarry.State{quarry.Errored, quarry.Cancelled}}) {
		k := placeKey{b.Package, b.Version, b.Arch}
		if _, ok := st.lost[k]; !ok {
			st.lost[k] = b
		}
	}
	return st, nil
}

// newest is the newest release of a package; nil when there is none.
func (st *stander) newest(pkg string) *quarry.Release {
	if st.g == nil {
		return nil
	}
	if nodes := st.g.Of(pkg); len(nodes) > 0 {
		return st.g.Release(nodes[0])
	}
	return nil
}

func (st *stander) recordURL(e *results.Entry) string {
	if st.bare {
		return ""
	}
	return st.s.recordURL(e.Target(st.channel))
}

// row tells where a version of a package stands on each arch of the channel. p
// and r may be nil, not both.
func (st *stander) row(p *results.Package, r *quarry.Release, version string) []cell {
	cells := make([]cell, len(st.archs))
	var noarch cell
	for i, arch := range st.archs {
		cells[i] = cell{Arch: arch}
	}
	noarch.Arch = quarry.Noarch
	at := func(arch string) *cell {
		if arch == quarry.Noarch {
			return &noarch
		}
		if i := slices.Index(st.archs, arch); i >= 0 {
			return &cells[i]
		}
		return &cell{}
	}
	if p != nil {
		for _, e := range p.Entries { // the newest version first, a success before the failure
			c := at(e.Arch)
			switch {
			case e.Version == version && (c.Standing == standNone || c.Version == version && e.Build > c.Build):
				*c = cell{standDone, e.Arch, e.Version, e.Build, st.recordURL(e), ""}
				if e.Fault != nil {
					c.Standing, c.Reason = standFailed, said(e.Fault)
				}
			case e.Fault == nil && c.Standing == standNone && quarry.CompareVersions(e.Version, version) < 0:
				*c = cell{standOutdated, e.Arch, e.Version, e.Build, st.recordURL(e), "only " + e.Version + " is built"}
			}
		}
	}
	name := ""
	switch {
	case r != nil:
		name = r.Package
	case p != nil:
		name = p.Name
	}
	if r != nil {
		for _, arch := range r.Archs {
			c := at(arch)
			k := placeKey{r.Package, r.Version, arch}
			lost, isLost := st.lost[k]
			switch why := r.Declined(arch); {
			case why != "":
				old := ""
				if c.Standing == standOutdated {
					old = "; " + c.Reason
				}
				*c = cell{standDeclined, arch, r.Version, 0, "", why + old}
			case isLost && c.Standing == standOutdated:
				c.Reason += "; build " + strconv.FormatInt(lost.Number, 10) + " " + string(lost.State)
			case isLost && c.Standing == standNone:
				*c = cell{standMissing, arch, r.Version, lost.Number, buildURL(lost.Number), string(lost.State) + ": " + lost.Reason}
			case c.Standing == standNone:
				*c = cell{standMissing, arch, r.Version, 0, "", "not built yet"}
			}
		}
	}
	for _, arch := range append(slices.Clone(st.archs), quarry.Noarch) {
		b, ok := st.live[placeKey{name, version, arch}]
		if !ok {
			continue
		}
		c := at(arch)
		*c = cell{standQueued, arch, version, b.Number, buildURL(b.Number), b.Reason}
		switch b.State {
		case quarry.Running, quarry.Recording:
			c.Standing, c.Reason = standBuilding, b.Step
		case quarry.Waiting:
			c.Standing = standWaiting
		}
	}
	if noarch.Standing != standNone { // it serves them all
		for i := range cells {
			if cells[i].Standing == standNone {
				cells[i] = noarch
			}
		}
	}
	return cells
}

// folded leaves out all but one of the cells for which the same is built.
func folded(cells []cell) []cell {
	return slices.CompactFunc(cells, func(a, b cell) bool { return a.Arch == quarry.Noarch && b.Arch == quarry.Noarch })
}

// lately keeps what takes a while to make for some time, for all who ask.
type lately[T any] struct {
	keep time.Duration

	mu    sync.Mutex // guards the following; who makes a new one holds it
	v     T
	until time.Time
}

func (l *lately[T]) get(make func() (T, error)) (T, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Now().Before(l.until) {
		return l.v, nil
	}
	v, err := make()
	if err == nil {
		l.v, l.until = v, time.Now().Add(l.keep)
	}
	return v, err
}

// names lists all packages of a channel, sorted: those that somebody has released,
// and those that have records only.
func (st *stander) names() []string {
	var list []string
	if st.g != nil {
		list = st.g.Packages()
	}
	for p := range st.view.Packages("") {
		list = append(list, p.Name)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// contains reports whether a name holds a word, in either case.
func contains(name, word string) bool {
	return word == "" || strings.Contains(strings.ToLower(name), strings.ToLower(word))
}
