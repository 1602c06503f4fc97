package pages

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/results"
)

var gridKeys = []string{"channel", "show", "q", "from"}

const (
	// gridRows is how many packages are on one page: with ten archs that is 300 KB,
	// 10 of them on the wire.
	gridRows = 200
	// gridKept is how old the picture of all packages may be. Making it takes some
	// 50 ms for 10,000 packages on ten archs, and that should not be felt by builds.
	gridKept = 5 * time.Second
)

// grid is where all packages of a channel stand.
type grid struct {
	*stander
	rows   []gridRow
	counts [][standings]int // by arch
	made   time.Time
}

type gridRow struct {
	name, version string
	stand         []standing // by arch
	pkg           *results.Package
	rel           *quarry.Release
}

// gridOf looks at all packages of a channel.
func (s *Site) gridOf(v *results.View) (*grid, error) {
	st, err := s.stander(v, "")
	if err != nil {
		return nil, err
	}
	g := &grid{stander: st, counts: make([][standings]int, len(st.archs)), made: time.Now()}
	names := st.names()
	g.rows = make([]gridRow, 0, len(names))
	bare := *st
	bare.bare = true
	stands := make([]standing, len(names)*len(st.archs))
	for _, name := range names {
		r := gridRow{name: name, pkg: v.Package(name), rel: st.newest(name)}
		r.version = newestOf(r.pkg, r.rel)
		r.stand, stands = stands[:len(st.archs):len(st.archs)], stands[len(st.archs):]
		for i, c := range bare.row(r.pkg, r.rel, r.version) {
			r.stand[i] = c.Standing
			g.counts[i][c.Standing]++
		}
		g.rows = append(g.rows, r)
	}
	return g, nil
}

// newestOf is the version that people would have now: the newest release's or, of
// a package that has none any more, the newest that was built.
func newestOf(p *results.Package, r *quarry.Release) string {
	switch {
	case r != nil:
		return r.Version
	case p != nil:
		return p.Newest()
	}
	return ""
}

// grid is the picture of a channel, which is made now and then.
func (s *Site) grid(v *results.View) (*grid, error) {
	l := s.recorded.grids[v.Channel()]
	if l == nil {
		return s.gridOf(v)
	}
	return l.get(func() (*grid, error) { return s.gridOf(v) })
}

// gridShow is a choice of which packages to list: those with an arch that matches.
type gridShow struct {
	value, text string
	match       func(standing) bool
}

var gridShows = []gridShow{
	{"", "all packages", func(standing) bool { return true }},
	{"failed", "with failures", func(s standing) bool { return s == standFailed }},
	{"missing", "not built, or outdated", func(s standing) bool {
		return s == standMissing || s == standOutdated || s == standFailed || s == standWaiting
	}},
	{"active", "under way", func(s standing) bool { return s == standBuilding || s == standQueued || s == standWaiting }},
	{"declined", "declined", func(s standing) bool { return s == standDeclined }},
}

// gridData is what the template grid.html shows.
type gridData struct {
	Words    map[string]string
	Channels []choice
	Shows    []choice
	Channel  string
	Archs    []gridArch
	Rows     []gridShown
	Total    int // packages that match
	All      int // of the channel
	From     int // the first that is shown, from 1
	Legend   []standing
	First    string // addresses; "" for none
	Next     string
	Made     time.Time
	Surveyed bool // the releases are known
}

// gridArch sums up one arch.
type gridArch struct {
	Arch string
	Bar  []gridPart
	Done int // of all that is wanted, per cent
}

type gridPart struct {
	Standing standing
	N        int
	X, Width string // of 100
}

type gridShown struct {
	Package, Version string
	Cells            []cell
}

func (s *Site) gridPage(ctx context.Context, r *http.Request) (*page, error) {
	p, err := params(r, gridKeys...)
	if err != nil {
		return nil, err
	}
	show := slices.IndexFunc(gridShows, func(c gridShow) bool { return c.value == p["show"] })
	if show < 0 {
		return nil, badRequest("show=%.40q is not there: choose of failed, missing, active and declined", p["show"])
	}
	v, err := s.view(ctx, p["channel"])
	if err != nil {
		return nil, err
	}
	g, err := s.grid(v)
	if err != nil {
		return nil, err
	}
	d := &gridData{Words: p, Channel: v.Channel(), Channels: choices(v.Channel(), "", s.channels()...), All: len(g.rows), Made: g.made, Surveyed: g.g != nil}
	for i, c := range gridShows {
		d.Shows = append(d.Shows, choice{c.value, c.text, i == show})
	}
	for st := standDone; st < standings; st++ {
		d.Legend = append(d.Legend, st)
	}
	for i, arch := range g.archs {
		d.Archs = append(d.Archs, sumArch(arch, g.counts[i]))
	}
	for _, row := range g.rows {
		if !contains(row.name, p["q"]) || !slices.ContainsFunc(row.stand, gridShows[show].match) && (show > 0) {
			continue
		}
		d.Total++
		if row.name < p["from"] {
			d.From++
			continue
		}
		if len(d.Rows) < gridRows {
			d.Rows = append(d.Rows, gridShown{row.name, row.version, g.row(row.pkg, row.rel, row.version)})
		} else if d.Next == "" {
			d.Next = with("/grid", p, "from", row.name)
		}
	}
	d.From++
	if p["from"] != "" {
		d.First = with("/grid", p, "from", "")
	}
	return &page{Title: "Grid of " + v.Channel(), Section: "grid", Template: "grid", Data: d, Feed: s.on(v.Channel(), "/feed.atom")}, nil
}

// To is the number of the last package that is shown.
func (d *gridData) To() int { return d.From + len(d.Rows) - 1 }

// sumArch makes the bar that says how far an arch is.
func sumArch(arch string, counts [standings]int) gridArch {
	a := gridArch{Arch: arch}
	total := 0
	for st, n := range counts {
		if standing(st) != standNone {
			total += n
		}
	}
	if total == 0 {
		return a
	}
	wanted := total - counts[standDeclined]
	if wanted > 0 {
		a.Done = counts[standDone] * 100 / wanted
	}
	at := 0
	for st := standDone; st < standings; st++ {
		if n := counts[st]; n > 0 {
			a.Bar = append(a.Bar, gridPart{st, n, percent(at, total), percent(n, total)})
			at += n
		}
	}
	return a
}

func percent(n, of int) string { return strconv.FormatFloat(float64(n)*100/float64(of), 'f', 2, 64) }
