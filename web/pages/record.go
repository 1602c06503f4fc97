package pages

import (
	"context"
	"errors"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/results"
)

var recordKeys = []string{"channel", "of", "files", "class", "from"}

const filesShown = 200 // of a list of files, on a page

// recordData is what the template record.html shows.
type recordData struct {
	T         quarry.Target
	Rec       *results.Record
	Also      *results.Record // the success beside a failure, or the failure beside a success
	AlsoURL   string
	Raw       string // address of the record's text
	Artifact  string // address; "" where it is not to be had
	Verified  string // what came of building it again; "" when nobody has
	LogLine   string // address of the line of the log that tells
	Times     []stepTime
	Deps      []depShown
	Libraries []libraryShown

	Files     []fileShown
	FilesWord string
	Classes   []choice
	FilesAll  int // without filters
	FilesHave int // that match
	FilesFrom int // the first that is shown, from 1
	FilesPrev string
	FilesNext string
	FilesNone string // why there is no list
}

// FilesTo is the number of the last file that is shown.
func (d *recordData) FilesTo() int { return d.FilesFrom + len(d.Files) - 1 }

type stepTime struct {
	results.Step
	X, Width string  // of 100
	CPU      float64 // seconds
	Farm     bool    // the farm's own, and not the recipe's
}

type depShown struct {
	quarry.DepUsed
	URL string // "" for what is of another arch's tools
}

type libraryShown struct {
	results.Library
	By   []string
	More int64
}

type fileShown struct {
	quarry.File
	Mode string // as ls prints it
	Text []string
}

func (s *Site) target(r *http.Request, channel string) (quarry.Target, error) {
	if channel == "" {
		channel = s.Default
	}
	t := quarry.Target{Channel: channel, Package: r.PathValue("name"), Version: r.PathValue("version"), Arch: r.PathValue("arch")}
	if err := results.CheckTarget(t); err != nil {
		return t, notFound("%v", err)
	}
	if s.Index == nil || !slices.Contains(s.channels(), channel) {
		return t, notFound("channel %.40q is not there: there is %s", channel, strings.Join(s.channels(), ", "))
	}
	return t, nil
}

// read reads the record of a target, and the other one beside it: of a success
// and a failure the newer comes first, or the one that of names.
func (s *Site) read(t quarry.Target, of string) (rec, also *results.Record, snap *results.Snapshot, err error) {
	if snap, err = s.Snapshot(t.Channel); err != nil {
		return nil, nil, nil, err
	}
	good, err := snap.Get(t.Package, t.Version, t.Arch)
	if err != nil && !errors.Is(err, results.ErrNotFound) {
		return nil, nil, nil, err
	}
	bad, err := snap.Failure(t.Package, t.Version, t.Arch)
	if err != nil && !errors.Is(err, results.ErrNotFound) {
		return nil, nil, nil, err
	}
	switch {
	case good == nil && bad == nil:
		return nil, nil, nil, notFound("nothing was recorded of %s on %s", t, t.Channel)
	case good == nil:
		return bad, nil, snap, nil
	case bad == nil, of == "success", of != "failure" && good.Build > bad.Build:
		return good, bad, snap, nil
	}
	return bad, good, snap, nil
}

func (s *Site) record(_ context.Context, r *http.Request) (*page, error) {
	p, err := params(r, recordKeys...)
	if err != nil {
		return nil, err
	}
	t, err := s.target(r, p["channel"])
	if err != nil {
		return nil, err
	}
	rec, also, snap, err := s.read(t, p["of"])
	if err != nil {
		return nil, err
	}
	d := &recordData{T: t, Rec: rec, Also: also, FilesWord: p["files"]}
	at := s.recordURL(t)
	d.Raw = s.on(t.Channel, at+"/record.toml")
	if i := strings.IndexByte(at, '?'); i >= 0 {
		d.Raw = at[:i] + "/record.toml" + at[i:]
	}
	of := map[quarry.State]string{quarry.Succeeded: "success", quarry.Failed: "failure"}
	if also != nil {
		d.Raw = with(strings.SplitN(d.Raw, "?", 2)[0], map[string]string{"channel": p["channel"], "of": of[rec.Status]})
		d.AlsoURL = with(strings.SplitN(at, "?", 2)[0], map[string]string{"channel": p["channel"], "of": of[also.Status]})
	}
	if s.Artifacts && rec.Artifact != "" {
		d.Artifact = artifactAddress(rec.Artifact)
	}
	if s.Votes != nil && rec.Artifact != "" {
		votes, _ := s.Votes(rec.Artifact) // those that can be read count
		d.Verified = control.Reproduced(votes)
	}
	if f := rec.Failure; f != nil {
		d.LogLine = logURL(rec.Build, f.Line)
	}
	d.steps()
	d.dependencies(s)
	if rec.Status == quarry.Succeeded {
		if err := d.files(snap, p, strings.SplitN(at, "?", 2)[0]); err != nil {
			return nil, err
		}
	}
	return &page{Title: t.String(), Section: "packages", Template: "record", Data: d, Feed: s.on(t.Channel, packageURL(t.Package)+"/feed.atom")}, nil
}

// steps lays the steps out on a line of time.
func (d *recordData) steps() {
	total := 0.0
	for _, st := range d.Rec.Steps {
		total += st.Wall
	}
	at := 0.0
	for _, st := range d.Rec.Steps {
		shown := stepTime{Step: st, CPU: st.User + st.Sys, Farm: st.Name == quarry.StepPrepare || st.Name == quarry.StepExtract}
		if total > 0 {
			shown.X = strconv.FormatFloat(at*100/total, 'f', 2, 64)
			shown.Width = strconv.FormatFloat(max(st.Wall*100/total, 0.3), 'f', 2, 64)
		}
		at += st.Wall
		d.Times = append(d.Times, shown)
	}
}

func (d *recordData) dependencies(s *Site) {
	for _, dep := range d.Rec.Dependencies {
		arch := d.T.Arch
		if dep.Arch != "" {
			arch = dep.Arch
		}
		d.Deps = append(d.Deps, depShown{dep, s.recordURL(quarry.Target{Channel: d.T.Channel, Package: dep.Package, Version: dep.Version, Arch: arch})})
	}
	for _, l := range d.Rec.Libraries {
		shown := libraryShown{Library: l, More: l.Count - int64(len(l.By))}
		for _, b := range l.By {
			shown.By = append(shown.By, string(b))
		}
		d.Libraries = append(d.Libraries, shown)
	}
}

// files lists what is installed, as far as the words of the address choose.
func (d *recordData) files(snap *results.Snapshot, p map[string]string, at string) error {
	word := p["files"]
	glob := strings.ContainsAny(word, "*?[")
	if _, err := path.Match(word, ""); err != nil {
		return badRequest("pattern %.60q is malformed: a [ needs its ]", word)
	}
	from := 0
	if p["from"] != "" {
		n, err := strconv.Atoi(p["from"])
		if err != nil || n < 0 {
			return badRequest("from=%.20q is no number of a file", p["from"])
		}
		from = n
	}
	list, err := snap.Files(d.T.Package, d.T.Version, d.T.Arch)
	switch {
	case errors.Is(err, results.ErrNotFound):
		d.FilesNone = "there is no list of its files"
		return nil
	case err != nil:
		return err
	}
	d.FilesAll = len(list)
	var kinds []string
	for _, f := range list {
		kind := string(f.Class)
		if kind == "" {
			kind = string(f.Kind)
		}
		kinds = append(kinds, kind)
		ok := contains(f.Path, word)
		if glob {
			ok, _ = path.Match(word, f.Path)
			if !ok {
				ok, _ = path.Match(word, path.Base(f.Path))
			}
		}
		if !ok || p["class"] != "" && p["class"] != kind {
			continue
		}
		if d.FilesHave++; d.FilesHave > from && len(d.Files) < filesShown {
			d.Files = append(d.Files, showFile(f))
		}
	}
	slices.Sort(kinds)
	d.Classes = choices(p["class"], "any", slices.Compact(kinds)...)
	d.FilesFrom = from + 1
	if from+len(d.Files) < d.FilesHave {
		d.FilesNext = with(at, p, "from", strconv.Itoa(from+filesShown)) + "#files"
	}
	if from > 0 {
		prev := ""
		if from > filesShown {
			prev = strconv.Itoa(from - filesShown)
		}
		d.FilesPrev = with(at, p, "from", prev) + "#files"
	}
	return nil
}

// showFile says in words what is known of a file.
func showFile(f quarry.File) fileShown {
	out := fileShown{File: f, Mode: modeText(f)}
	add := func(k, v string) {
		if v != "" {
			out.Text = append(out.Text, k+v)
		}
	}
	switch f.Kind {
	case quarry.KindSymlink:
		add("to ", f.Target)
	case quarry.KindHardlink:
		add("another name of ", f.Target)
	case quarry.KindChar, quarry.KindBlock:
		add("device ", strconv.Itoa(int(f.Major))+":"+strconv.Itoa(int(f.Minor)))
	}
	if f.UID != 0 || f.GID != 0 {
		add("of ", strconv.Itoa(int(f.UID))+":"+strconv.Itoa(int(f.GID)))
	}
	add("run by ", f.Interpreter)
	if e := f.ELF; e != nil {
		add("", e.Arch)
		add("soname ", e.Soname)
		add("needs ", strings.Join(e.Needed, " "))
		add("rpath ", strings.Join(e.RPath, ":"))
		add("runpath ", strings.Join(e.RunPath, ":"))
		var has []string
		for _, b := range []struct {
			is   bool
			word string
		}{{e.PIE, "PIE"}, {e.NX, "NX"}, {e.RELRO != "", "RELRO " + e.RELRO}, {e.Static, "static"}, {e.Stripped, "stripped"}} {
			if b.is {
				has = append(has, b.word)
			}
		}
		add("", strings.Join(has, ", "))
		if e.Exports > 0 {
			add("exports ", human.Count(e.Exports, "symbol"))
		}
	}
	return out
}

// modeText is a mode as ls prints it.
func modeText(f quarry.File) string {
	b := []byte("-rwxrwxrwx")
	switch f.Kind {
	case quarry.KindDir:
		b[0] = 'd'
	case quarry.KindSymlink:
		b[0] = 'l'
	case quarry.KindChar:
		b[0] = 'c'
	case quarry.KindBlock:
		b[0] = 'b'
	case quarry.KindFIFO:
		b[0] = 'p'
	case quarry.KindSocket:
		b[0] = 's'
	}
	for i := range 9 {
		if f.Mode&(1<<(8-i)) == 0 {
			b[1+i] = '-'
		}
	}
	for _, special := range []struct {
		bit uint32
		at  int
		c   byte
	}{{0o4000, 3, 's'}, {0o2000, 6, 's'}, {0o1000, 9, 't'}} {
		if f.Mode&special.bit != 0 {
			if b[special.at] == '-' {
				special.c -= 'a' - 'A'
			}
			b[special.at] = special.c
		}
	}
	return string(b)
}

// recordTOML sends a record as it is in the repository.
func (s *Site) recordTOML(w http.ResponseWriter, r *http.Request) {
	p, err := params(r, recordKeys...)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	t, err := s.target(r, p["channel"])
	if err != nil {
		s.fail(w, r, err)
		return
	}
	rec, _, _, err := s.read(t, p["of"])
	if err != nil {
		s.fail(w, r, err)
		return
	}
	data, err := rec.Marshal()
	if err != nil {
		s.fail(w, r, err)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8") // so that browsers show it
	h.Set("Cache-Control", "private, no-cache")
	etag := `"` + rec.Key + "-" + strconv.FormatInt(rec.Build, 10) + `"`
	h.Set("ETag", etag)
	if same(r, etag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	send(w, r, data, nil)
}
