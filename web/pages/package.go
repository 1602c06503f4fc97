package pages

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/graph"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/queue"
	"github.com/Morphux/quarry/results"
)

const (
	packagesShown = 100 // on a page of names
	versionsShown = 20  // in the matrix
	versionsAll   = 500
	buildsShown   = 40 // in the list
	buildsAll     = 1000
	usersShown    = 200 // packages that need one
)

// packagesData is what the template packages.html shows.
type packagesData struct {
	Words    map[string]string
	Channels []choice
	Channel  string
	Names    []packageShown
	Total    int // packages that match
	All      int
	First    string // addresses; "" for none
	Next     string
}

type packageShown struct {
	Package, Version, Description, Category string
	Cells                                   []cell
}

func (s *Site) packages(ctx context.Context, r *http.Request) (*page, error) {
	p, err := params(r, "channel", "q", "from")
	if err != nil {
		return nil, err
	}
	v, err := s.view(ctx, p["channel"])
	if err != nil {
		return nil, err
	}
	g, err := s.grid(v)
	if err != nil {
		return nil, err
	}
	d := &packagesData{Words: p, Channels: choices(v.Channel(), "", s.channels()...), Channel: v.Channel(), All: len(g.rows)}
	for _, row := range g.rows {
		if !contains(row.name, p["q"]) {
			continue
		}
		d.Total++
		switch {
		case row.name < p["from"]:
		case len(d.Names) < packagesShown:
			shown := packageShown{Package: row.name, Version: row.version, Cells: folded(g.row(row.pkg, row.rel, row.version))}
			if row.pkg != nil && len(row.pkg.Entries) > 0 {
				shown.Description, shown.Category = row.pkg.Entries[0].Description(), row.pkg.Entries[0].Category()
			}
			d.Names = append(d.Names, shown)
		case d.Next == "":
			d.Next = with("/packages", p, "from", row.name)
		}
	}
	if p["from"] != "" {
		d.First = with("/packages", p, "from", "")
	}
	return &page{Title: "Packages of " + v.Channel(), Section: "packages", Template: "packages", Data: d}, nil
}

// packageData is what the template package.html shows.
type packageData struct {
	Name, Version, Description, Category string
	Channel                              string
	Channels                             []choice
	Clone                                string
	Packager                             quarry.Packager
	Stands                               []channelStand
	Declined                             []quarry.Declined
	Live                                 []quarry.Build
	Problems                             []string
	Archs                                []string // of the matrix
	Matrix                               []versionStand
	Builds                               []pastBuild
	All                                  string // address of everything; "" when all is shown
	Sizes, Times                         *chart
	Needs, Users                         []neighbour
	UsersCut                             bool
	Provides                             []string
	Picture                              *picture
	Newest                               *results.Entry // success of the newest version
	Artifact                             string         // address
}

// channelStand is where the newest version stands on a channel.
type channelStand struct {
	Channel, Version string
	Cells            []cell
}

// versionStand is a line of the matrix.
type versionStand struct {
	Version string
	Cells   []cell
}

// pastBuild is a build of a package that has ended, or what is left of it.
type pastBuild struct {
	quarry.Target
	State   quarry.State
	Build   int64
	Ended   time.Time
	Took    time.Duration
	Why     string // why it failed, or was made
	By      string // user who released it
	Record  bool   // its record stands in the channel
	Commit  string // of the results repository, where that is known
	Revised int64  // revision
}

// neighbour is a package at the other end of a dependency.
type neighbour struct {
	Name     string   // of the package; "" when nothing meets the need
	Version  string   // of it
	Need     string   // as the recipe writes it
	Kind     string   // "" for what is needed always
	Standing string   // see graph
	Old      bool     // only former versions need it
	Archs    []string // where not all
	Why      string   // why nothing meets it
}

func (s *Site) pkg(ctx context.Context, r *http.Request) (*page, error) {
	p, err := params(r, "channel", "all")
	if err != nil {
		return nil, err
	}
	name := r.PathValue("name")
	if err := quarry.CheckName(name); err != nil {
		return nil, notFound("%v", err)
	}
	v, err := s.view(ctx, p["channel"])
	if err != nil {
		return nil, err
	}
	d := &packageData{Name: name, Channel: v.Channel(), Channels: choices(v.Channel(), "", s.channels()...)}
	if s.Clone != "" {
		d.Clone = s.Clone + "/" + url.PathEscape(name) + ".git"
	}
	pkg := v.Package(name)
	st, err := s.stander(v, name)
	if err != nil {
		return nil, err
	}
	rel := st.newest(name)
	known := pkg != nil || rel != nil
	for _, ch := range s.channels() {
		if found, err := s.stand(ctx, ch, name); err != nil {
			return nil, err
		} else if found != nil {
			d.Stands = append(d.Stands, *found)
			known = true
		}
	}
	d.Live = s.Queue.List(queue.Filter{Package: name, Live: true})
	if !known && len(d.Live) == 0 {
		return nil, notFound("package %s is not there: nobody has pushed a release of it, and nothing was recorded", name)
	}
	d.Declined = s.Queue.Declined(name)
	d.Version = newestOf(pkg, rel)
	if rel != nil {
		d.Packager, d.Provides = rel.Packager, rel.Provides
	}
	all := p["all"] != ""
	if pkg != nil {
		s.recordedOf(d, pkg, st, all)
	}
	if err := s.builds(ctx, d, v, pkg, all); err != nil {
		return nil, err
	}
	if more := len(d.Matrix) == versionsShown || len(d.Builds) == buildsShown; more && !all {
		d.All = with(packageURL(name), p, "all", "1")
	}
	s.neighbours(d, v, st, rel)
	return &page{Title: name, Section: "packages", Template: "package", Data: d, Feed: s.on(v.Channel(), packageURL(name)+"/feed.atom")}, nil
}

// stand tells where a package stands on a channel; nil when it is not there.
func (s *Site) stand(ctx context.Context, channel, name string) (*channelStand, error) {
	v, err := s.view(ctx, channel)
	if err != nil {
		return nil, err
	}
	st, err := s.stander(v, name)
	if err != nil {
		return nil, err
	}
	pkg, rel := v.Package(name), st.newest(name)
	if pkg == nil && rel == nil {
		return nil, nil
	}
	version := newestOf(pkg, rel)
	return &channelStand{channel, version, folded(st.row(pkg, rel, version))}, nil
}

// recordedOf tells what the records say.
func (s *Site) recordedOf(d *packageData, pkg *results.Package, st *stander, all bool) {
	d.Problems = pkg.Problems
	limit := versionsShown
	if all {
		limit = versionsAll
	}
	var versions []string
	d.Archs = slices.Clone(st.archs)
	for _, e := range pkg.Entries {
		if n := len(versions); n == 0 || versions[n-1] != e.Version {
			versions = append(versions, e.Version)
		}
		if e.Arch != quarry.Noarch && !slices.Contains(d.Archs, e.Arch) {
			d.Archs = append(d.Archs, e.Arch) // one that the channel had formerly
		}
		if d.Newest == nil && e.Fault == nil {
			d.Newest = e
			if s.Artifacts && e.Artifact() != "" {
				d.Artifact = artifactAddress(e.Artifact())
			}
		}
	}
	if len(pkg.Entries) > 0 {
		e := pkg.Entries[0]
		d.Description, d.Category = e.Description(), e.Category()
		if d.Packager == (quarry.Packager{}) {
			d.Packager = e.Packager()
		}
		if len(d.Provides) == 0 {
			d.Provides = e.Provides()
		}
	}
	wide := *st
	wide.archs = d.Archs
	for _, version := range versions[:min(limit, len(versions))] {
		var rel *quarry.Release
		if st.g != nil {
			for _, arch := range d.Archs {
				if n, ok := st.g.Node(pkg.Name, version, arch); ok {
					rel = st.g.Release(n)
					break
				}
			}
		}
		cells := wide.row(pkg, rel, version)
		for i := range cells {
			if cells[i].Standing == standOutdated { // that is said in the lines below
				cells[i] = cell{Arch: cells[i].Arch}
			}
		}
		d.Matrix = append(d.Matrix, versionStand{version, cells})
	}
	oldest := slices.Clone(versions[:min(30, len(versions))])
	slices.Reverse(oldest)
	d.Sizes = newChart("Installed size", "bytes", oldest, d.Archs, pkg, func(e *results.Entry) float64 { return float64(e.Size) })
	d.Times = newChart("Build time", "seconds", oldest, d.Archs, pkg, func(e *results.Entry) float64 { return e.Took().Seconds() })
}

// builds lists all builds that anybody knows of: by records, by the queue, and by
// the commits of records that have been replaced.
func (s *Site) builds(ctx context.Context, d *packageData, v *results.View, pkg *results.Package, all bool) error {
	byNumber := map[int64]pastBuild{}
	if pkg != nil {
		for _, e := range pkg.Entries {
			b := pastBuild{Target: e.Target(v.Channel()), State: e.Status(), Build: e.Build, Ended: e.Ended(), Took: e.Took(), By: e.Packager().User, Record: true, Revised: e.Revision}
			if e.Fault != nil {
				b.Why = said(e.Fault)
			}
			byNumber[e.Build] = b
		}
	}
	list, err := s.Index.Recorded(ctx, v.Channel(), d.Name)
	if err != nil {
		return err
	}
	for r := range list {
		b, ok := byNumber[r.Build]
		if !ok {
			b = pastBuild{Target: r.Target, State: r.Status, Build: r.Build, Ended: r.At}
		}
		b.Commit = r.Commit()
		byNumber[r.Build] = b
	}
	for _, q := range s.Queue.List(queue.Filter{Package: d.Name, Channel: v.Channel()}) {
		if !q.State.Ended() {
			continue
		}
		b, ok := byNumber[q.Number]
		if !ok {
			b = pastBuild{Target: q.Target(), State: q.State, Build: q.Number, Ended: q.Ended, By: q.Packager.User, Commit: q.Record}
		}
		if b.Took == 0 && !q.Started.IsZero() && q.Attempt > 0 {
			b.Took = q.Ended.Sub(q.Started)
		}
		if b.Why == "" {
			b.Why = cmp.Or(q.Reason, q.Why)
		}
		byNumber[q.Number] = b
	}
	for _, b := range byNumber {
		d.Builds = append(d.Builds, b)
	}
	slices.SortFunc(d.Builds, func(a, b pastBuild) int {
		return cmp.Or(b.Ended.Compare(a.Ended), cmp.Compare(b.Build, a.Build))
	})
	limit := buildsShown
	if all {
		limit = buildsAll
	}
	d.Builds = d.Builds[:min(limit, len(d.Builds))]
	return nil
}

// neighbours finds what the package needs, and what needs it.
func (s *Site) neighbours(d *packageData, v *results.View, st *stander, rel *quarry.Release) {
	if rel != nil {
		d.Needs = needsOf(st.g, d.Name)
	} else if d.Newest != nil {
		for _, need := range d.Newest.Needed() {
			d.Needs = append(d.Needs, neighbour{Need: need})
		}
		for _, used := range d.Newest.Used() {
			d.Needs = append(d.Needs, neighbour{Name: used, Kind: "used"})
		}
	}
	users := map[string]neighbour{}
	if st.g != nil {
		for _, n := range st.g.Of(d.Name) {
			for _, u := range st.g.Dependents(n) {
				r := st.g.Release(u)
				users[r.Package] = neighbour{Name: r.Package, Version: r.Version}
			}
		}
	}
	for _, u := range v.Users(d.Name, usersShown+1) {
		if _, ok := users[u]; ok {
			continue
		}
		if p := v.Package(u); p != nil {
			current := slices.ContainsFunc(p.Entries, func(e *results.Entry) bool {
				return e.Version == p.Newest() && slices.Contains(e.Used(), d.Name)
			})
			users[u] = neighbour{Name: u, Version: p.Newest(), Old: !current}
		}
	}
	for _, u := range users {
		d.Users = append(d.Users, u)
	}
	slices.SortFunc(d.Users, func(a, b neighbour) int { return cmp.Compare(a.Name, b.Name) })
	d.UsersCut = len(d.Users) > usersShown
	d.Users = d.Users[:min(usersShown, len(d.Users))]
	d.Picture = drawNeighbours(d)
}

// needsOf lists what the newest release of a package needs, on any arch.
func needsOf(g *graph.Graph, pkg string) (list []neighbour) {
	at := map[string]int{}
	nodes := g.Of(pkg)
	if len(nodes) == 0 {
		return nil
	}
	newest := g.Release(nodes[0])
	archs := 0
	for _, n := range nodes {
		if g.Release(n) != newest {
			break
		}
		archs++
		for _, need := range g.Needs(n) {
			key := need.Raw + "\x00" + need.Kind.String()
			i, ok := at[key]
			if !ok {
				i = len(list)
				at[key] = i
				list = append(list, neighbour{Need: need.Raw})
				if k := need.Kind.String(); k != "needed" {
					list[i].Kind = k
				}
			}
			if g.Valid(need.To) {
				r := g.Release(need.To)
				list[i].Name, list[i].Version, list[i].Why = r.Package, r.Version, ""
			} else if list[i].Name == "" {
				list[i].Why = unmetWords[need.Why]
			}
			list[i].Archs = append(list[i].Archs, g.Arch(n))
		}
	}
	for i := range list {
		if len(list[i].Archs) == archs {
			list[i].Archs = nil
		}
	}
	return list
}

// unmetWords say why nothing meets a need.
var unmetWords = map[graph.ReasonKind]string{
	graph.Missing: "nobody has pushed it", graph.WrongVersion: "only versions that do not fit", graph.WrongArch: "not for this arch",
	graph.Contradiction: "no version can be all that is asked", graph.Unreadable: "it is neither a name nor name-version",
}

// version goes to the page of the package: a version alone has none.
func (s *Site) version(w http.ResponseWriter, r *http.Request) {
	name, version := r.PathValue("name"), r.PathValue("version")
	if quarry.CheckName(name) != nil || quarry.CheckVersion(version) != nil {
		s.fail(w, r, notFound("there is no version %.80q of %.80q", version, name))
		return
	}
	http.Redirect(w, r, s.on(r.URL.Query().Get("channel"), packageURL(name))+"#v-"+url.PathEscape(version), http.StatusFound)
}

// chart is figures over versions, a line for each arch.
type chart struct {
	Title         string
	Width, Height int
	Lines         []chartLine
	First, Last   string // versions at its ends
	Top           string // what the highest point is
	Rows          []chartRow
	Archs         []string
}

type chartLine struct {
	Arch   string
	Class  int // of its colour, from 0
	Points string
	Dots   []chartDot
}

type chartDot struct{ X, Y, Text string }

// chartRow is a version's figures in words, for those who do not see the lines.
type chartRow struct {
	Version string
	Values  []string
}

// newChart draws what say tells of the successes of some versions, the oldest
// first; nil when fewer than two versions tell anything.
func newChart(title, unit string, versions, archs []string, pkg *results.Package, say func(*results.Entry) float64) *chart {
	const width, height, pad = 560, 140, 12
	text := func(v float64) string {
		if unit == "bytes" {
			return human.Size(int64(v))
		}
		return human.Duration(time.Duration(v * float64(time.Second)))
	}
	values := map[string]map[string]float64{}
	high, told := 0.0, map[string]bool{}
	for _, e := range pkg.Entries {
		if e.Fault != nil {
			continue
		}
		if v := say(e); v > 0 {
			if values[e.Arch] == nil {
				values[e.Arch] = map[string]float64{}
			}
			values[e.Arch][e.Version] = v
			if slices.Contains(versions, e.Version) {
				high, told[e.Version] = max(high, v), true
			}
		}
	}
	versions = slices.DeleteFunc(slices.Clone(versions), func(v string) bool { return !told[v] })
	if len(versions) < 2 {
		return nil
	}
	c := &chart{Title: title, Width: width, Height: height, First: versions[0], Last: versions[len(versions)-1], Top: text(high)}
	for _, arch := range append(slices.Clone(archs), quarry.Noarch) {
		line := chartLine{Arch: arch, Class: len(c.Lines) % 6}
		var points []string
		for i, v := range versions {
			n, ok := values[arch][v]
			if !ok {
				continue
			}
			x := pad + float64(i)*(width-2*pad)/float64(len(versions)-1)
			y := height - pad - n*(height-2*pad)/high
			dot := chartDot{coordinate(x), coordinate(y), arch + " " + v + ": " + text(n)}
			points = append(points, dot.X+","+dot.Y)
			line.Dots = append(line.Dots, dot)
		}
		if len(points) == 0 {
			continue
		}
		line.Points = strings.Join(points, " ")
		c.Lines = append(c.Lines, line)
		c.Archs = append(c.Archs, arch)
	}
	for _, v := range versions {
		row := chartRow{Version: v}
		for _, arch := range c.Archs {
			s := "–"
			if n, ok := values[arch][v]; ok {
				s = text(n)
			}
			row.Values = append(row.Values, s)
		}
		c.Rows = append(c.Rows, row)
	}
	return c
}

func coordinate(f float64) string { return strconv.FormatFloat(f, 'f', 1, 64) }
