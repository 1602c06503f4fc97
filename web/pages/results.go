package pages

import (
	"context"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/results"
)

// Records is what the pages of what was recorded are made of.
type Records struct {
	Index     *results.Index                                  // nil leaves those pages out
	Snapshot  func(channel string) (*results.Snapshot, error) // set where Index is
	Lines     []control.Channel                               // the channels of the configuration, by name
	Default   string                                          // the one that is shown when none is asked for
	Artifacts bool                                            // archives are to be had, see artifactAddress
	Votes     func(sha string) ([]control.Vote, error)        // on an artifact; nil: nobody votes
	// Clone is the address of the package repositories, without a slash at its
	// end, e.g. ssh://farm.example.org:2222; "": it is not told.
	Clone string
}

// recordedRoutes are the pages of what was recorded.
func (s *Site) recordedRoutes() []route {
	s.recorded.grids = map[string]*lately[*grid]{}
	for _, ch := range s.Lines {
		s.recorded.grids[ch.Name] = &lately[*grid]{keep: gridKept}
	}
	return []route{
		{"GET /results", s.page(fresh, s.results, resultKeys...)},
		{"GET /failures", s.page(fresh, s.failures, "channel", "class", "all")},
		{"GET /grid", s.page(fresh, s.gridPage, gridKeys...)},
		{"GET /packages", s.page(fresh, s.packages, "channel", "q", "from")},
		{"GET /search", http.HandlerFunc(s.search)},
		{"GET /packages/{name}", s.page(fresh, s.pkg, "channel", "all")},
		{"GET /packages/{name}/{version}", http.HandlerFunc(s.version)},
		{"GET /packages/{name}/{version}/{arch}", s.page(fresh, s.record, recordKeys...)},
		{"GET /packages/{name}/{version}/{arch}/record.toml", http.HandlerFunc(s.recordTOML)},
		{"GET /feed.atom", s.feed(s.feedAll)},
		{"GET /packages/{name}/feed.atom", s.feed(s.feedPackage)},
		{"GET /packagers/{user}/feed.atom", s.feed(s.feedPackager)},
		{"GET /packagers/{user}", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/results?"+url.Values{"packager": {r.PathValue("user")}}.Encode(), http.StatusFound)
		})},
	}
}

// recorded is what these pages keep between one another.
type recorded struct {
	grids map[string]*lately[*grid] // by channel; not changed after the start
}

// view is what was recorded on a channel; on the default one for "".
func (s *Site) view(ctx context.Context, channel string) (*results.View, error) {
	if s.Index == nil {
		return nil, notFound("this farm shows no records")
	}
	if channel == "" {
		channel = s.Default
	}
	if !slices.Contains(s.channels(), channel) {
		return nil, notFound("channel %.40q is not there: there is %s", channel, strings.Join(s.channels(), ", "))
	}
	return s.Index.View(ctx, channel)
}

// channels are the names of those of the configuration.
func (s *Site) channels() (list []string) {
	for _, ch := range s.Lines {
		list = append(list, ch.Name)
	}
	return list
}

// archs are those of a channel.
func (s *Site) archs(channel string) []string {
	if i := slices.IndexFunc(s.Lines, func(c control.Channel) bool { return c.Name == channel }); i >= 0 {
		return s.Lines[i].Archs
	}
	return nil
}

// on is the address of a page for a channel. The default one is not named.
func (s *Site) on(channel, address string) string {
	if channel == "" || channel == s.Default {
		return address
	}
	sep := "?"
	if strings.Contains(address, "?") {
		sep = "&"
	}
	return address + sep + "channel=" + url.QueryEscape(channel)
}

// maxParam is how long a word in an address may be.
const maxParam = 300

// params reads the words of an address that a page looks at.
func params(r *http.Request, keys ...string) (map[string]string, error) {
	query := r.URL.Query()
	p := make(map[string]string, len(keys))
	for _, k := range keys {
		v := strings.TrimSpace(query.Get(k))
		if len(v) > maxParam {
			return nil, badRequest("%s has %d bytes: %d is the most", k, len(v), maxParam)
		}
		p[k] = v
	}
	return p, nil
}

// with is an address with words; what is empty is left out.
func with(address string, words map[string]string, more ...string) string {
	q := url.Values{}
	for k, v := range words {
		if v != "" {
			q.Set(k, v)
		}
	}
	for i := 0; i+1 < len(more); i += 2 {
		q.Del(more[i])
		if more[i+1] != "" {
			q.Set(more[i], more[i+1])
		}
	}
	if len(q) == 0 {
		return address
	}
	return address + "?" + q.Encode()
}

// choice is one entry of a list to choose from.
type choice struct {
	Value, Text string
	Chosen      bool
}

// choices makes a list to choose from; any, if it is not empty, is the text of
// the entry for no choice. What is chosen is in it, also when it is unknown.
func choices(chosen, any string, list ...string) (out []choice) {
	if any != "" {
		out = append(out, choice{"", any, chosen == ""})
	}
	if chosen != "" && !slices.Contains(list, chosen) {
		list = append(slices.Clone(list), chosen)
	}
	for _, v := range list {
		out = append(out, choice{v, visible(v), v == chosen})
	}
	return out
}

var resultKeys = []string{"channel", "status", "arch", "package", "packager", "class", "since", "until", "at"}

const (
	resultsShown = 50
	// resultsSeen bounds how many records one page is looked for in: the rest is
	// behind a link.
	resultsSeen = 200_000
)

// resultsData is what the template results.html shows.
type resultsData struct {
	Words                            map[string]string
	Channels, Statuses, Archs, Class []choice
	Channel                          string
	Entries                          []*results.Entry
	Total                            int // of all, without filters
	First, Older                     string
	Filtered, Cut                    bool
}

// Target is the place of an entry.
func (d *resultsData) Target(e *results.Entry) quarry.Target { return e.Target(d.Channel) }

func (s *Site) results(ctx context.Context, r *http.Request) (*page, error) {
	p, err := params(r, resultKeys...)
	if err != nil {
		return nil, err
	}
	v, err := s.view(ctx, p["channel"])
	if err != nil {
		return nil, err
	}
	f, err := newResultFilter(p)
	if err != nil {
		return nil, err
	}
	d := &resultsData{
		Words: p, Channel: v.Channel(),
		Channels: choices(v.Channel(), "", s.channels()...),
		Statuses: choices(p["status"], "any", string(quarry.Succeeded), string(quarry.Failed)),
		Archs:    choices(p["arch"], "any", s.archs(v.Channel())...),
		Class:    choices(p["class"], "any", classes(v)...),
		Filtered: f.any,
	}
	_, good, bad := v.Count()
	d.Total = good + bad
	seen := 0
	list := v.Recent(f.at)
	switch {
	case p["packager"] != "":
		list = v.PackagedBy(p["packager"], f.at)
	case f.failed:
		list = v.Failures(f.at)
	}
	for e := range list {
		if f.over(e) {
			break
		}
		if seen++; len(d.Entries) == resultsShown || seen > resultsSeen {
			d.Cut = len(d.Entries) < resultsShown
			break
		}
		f.last = e
		if f.match(e) {
			d.Entries = append(d.Entries, e)
		}
	}
	if len(d.Entries) == resultsShown || d.Cut {
		d.Older = with("/results", p, "at", results.After(f.last).String())
	}
	if p["at"] != "" {
		d.First = with("/results", p, "at", "")
	}
	feed := map[string]string{"channel": p["channel"]}
	if p["status"] == string(quarry.Failed) {
		feed["status"] = p["status"]
	}
	return &page{Title: "Results", Section: "results", Template: "results", Data: d, Feed: with("/feed.atom", feed)}, nil
}

// resultFilter chooses records.
type resultFilter struct {
	p            map[string]string
	at           results.Place
	since        time.Time
	failed, glob bool
	any          bool
	last         *results.Entry // that was looked at
}

func newResultFilter(p map[string]string) (*resultFilter, error) {
	f := &resultFilter{p: p, glob: strings.ContainsAny(p["package"], "*?[")}
	for _, k := range []string{"status", "arch", "package", "packager", "class", "since", "until"} {
		f.any = f.any || p[k] != ""
	}
	var ok bool
	if f.at, ok = results.ParsePlace(p["at"]); !ok {
		return nil, badRequest("at=%.60q is no place in the list: begin at its top", p["at"])
	}
	if _, err := path.Match(p["package"], ""); err != nil {
		return nil, badRequest("pattern %.60q is malformed: a [ needs its ]", p["package"])
	}
	switch st := quarry.State(p["status"]); st {
	case "", quarry.Succeeded, quarry.Failed:
		f.failed = st == quarry.Failed || p["class"] != ""
	default:
		return nil, badRequest("status %.40q is none that is recorded: there is succeeded and failed", p["status"])
	}
	var err error
	if f.since, err = day(p["since"]); err != nil {
		return nil, err
	}
	until, err := day(p["until"])
	if err != nil {
		return nil, err
	}
	if !until.IsZero() && p["at"] == "" {
		f.at = results.Since(until.AddDate(0, 0, 1)) // with the whole of that day
	}
	return f, nil
}

// day reads a date as browsers send it.
func day(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.DateOnly, s)
	if err != nil {
		return t, badRequest("%.40q is no date: give one as 2026-03-14", s)
	}
	return t, nil
}

// over reports whether no entry from this one on can match.
func (f *resultFilter) over(e *results.Entry) bool {
	return !f.since.IsZero() && e.Ended().Before(f.since)
}

func (f *resultFilter) match(e *results.Entry) bool {
	if st := f.p["status"]; st != "" && st != string(e.Status()) {
		return false
	}
	if arch := f.p["arch"]; arch != "" && arch != e.Arch {
		return false
	}
	if class := f.p["class"]; class != "" && (e.Fault == nil || class != classOf(e.Fault)) {
		return false
	}
	if name := f.p["package"]; name != "" && name != e.Package {
		if !f.glob {
			return false
		}
		if ok, _ := path.Match(name, e.Package); !ok {
			return false
		}
	}
	return true
}

// classOf is the kind of trouble, or the cause where none is known.
func classOf(f *results.Fault) string {
	if f.Class != "" {
		return f.Class
	}
	return string(f.Cause)
}

// classes are the kinds of trouble that there are on a channel, sorted.
func classes(v *results.View) (list []string) {
	for _, g := range v.FailureGroups() {
		list = append(list, g.Class)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// said is the line that tells most of a failure.
func said(f *results.Fault) string {
	if f.Error != "" {
		return f.Error
	}
	return f.Message
}

// search goes to the package of that name, or to those whose names hold it.
func (s *Site) search(w http.ResponseWriter, r *http.Request) {
	q := strings.TrimSpace(r.URL.Query().Get("q"))
	if v, err := s.view(r.Context(), ""); err == nil && quarry.CheckName(q) == nil && (v.Package(q) != nil || s.released(s.Default, q)) {
		http.Redirect(w, r, packageURL(q), http.StatusFound)
		return
	}
	if n, ok := strings.CutPrefix(q, "#"); ok && n != "" && strings.Trim(n, "0123456789") == "" {
		http.Redirect(w, r, "/builds/"+n, http.StatusFound)
		return
	}
	http.Redirect(w, r, with("/packages", map[string]string{"q": q}), http.StatusFound)
}

// released reports whether somebody has pushed a release of a package.
func (s *Site) released(channel, pkg string) bool {
	g, err := s.Queue.Graph(channel)
	return err == nil && len(g.Of(pkg)) > 0
}

// artifactAddress is where the web door has an archive: see doc/mirror.md.
func artifactAddress(sum string) string {
	if len(sum) < 2 {
		return ""
	}
	return "/artifacts/" + sum[:2] + "/" + sum + ".tar.zst"
}
