package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/provenance"
	"github.com/Morphux/quarry/results"
)

// Recorded is a record of a package, in short.
type Recorded struct {
	quarry.Target
	Status   quarry.State    `json:"status"` // succeeded or failed
	Build    int64           `json:"build"`
	Ended    time.Time       `json:"ended"`
	Source   string          `json:"source"`             // commit that was built
	Artifact string          `json:"artifact,omitempty"` // SHA-256
	Size     int64           `json:"size,omitempty"`     // bytes, installed
	Packager quarry.Packager `json:"packager"`
	Message  string          `json:"message,omitempty"` // of a failure
}

// Channel is a channel, and what stands on it.
type Channel struct {
	Name      string   `json:"name"`
	Default   bool     `json:"default,omitempty"` // where a push goes that names none
	Archs     []string `json:"archs"`
	Push      []string `json:"push,omitempty"` // who may push to it; absent: everybody who may push the package
	Commit    string   `json:"commit,omitempty"`
	Packages  int      `json:"packages"`
	Succeeded int      `json:"succeeded"` // records of success
	Failed    int      `json:"failed"`    // records of failure
}

// envelope is the media type of a DSSE envelope with a provenance, as in-toto names it.
const envelope = "application/vnd.in-toto.provenance+dsse"

var records = map[string]any{"application/json": anyObject, "application/toml": text}

func (a *API) recordRoutes() []route {
	channel := param{"path", "channel", "channel, e.g. testing", text, true}
	pkg := param{"path", "package", "package, e.g. zlib", text, true}
	version := param{"path", "version", "version, e.g. 1.3.1", text, true}
	arch := param{"path", "arch", "arch, e.g. x86_64", text, true}
	onChannel := param{"query", "channel", "channel; the farm's default without it", text, false}
	place := []param{channel, pkg, version, arch}
	return []route{
		{method: "GET", path: "/api/v1/channels", id: "listChannels", tag: "records", short: "List the channels",
			answers: []answer{{200, "the channels", jsonOf[[]Channel](), []string{"ETag"}}}, handle: a.listChannels},
		{method: "GET", path: "/api/v1/packages", id: "listPackages", tag: "records", short: "List the packages that have records, by name",
			params:  []param{onChannel, {"query", "after", "only those behind this name", text, false}, {"query", "limit", "how many at most", integer(1, 10000), false}},
			answers: []answer{{200, "names", jsonOf[[]string](), []string{"Link", "ETag"}}}, errors: []int{400, 404}, handle: a.listPackages},
		{method: "GET", path: "/api/v1/packages/{package}", id: "getPackage", tag: "records", short: "List a package's records, the newest version first",
			params: []param{pkg, onChannel}, answers: []answer{{200, "its records", jsonOf[[]Recorded](), []string{"ETag"}}}, errors: []int{400, 404}, handle: a.getPackage},
		{method: "GET", path: "/api/v1/records/{channel}/{package}/{version}/{arch}", id: "getRecord", tag: "records", short: "Get a record",
			long:    "The record of the last success, or where there is none of the failure; with\nstatus=failed, that of the failure. It is the file of the results repository, or\nthe same as JSON.",
			params:  append(slices.Clone(place), param{"query", "status", "which record", enum([]quarry.State{quarry.Succeeded, quarry.Failed}), false}),
			answers: []answer{{200, "the record", records, []string{"ETag"}}}, errors: []int{400, 404}, handle: a.getRecord},
		{method: "GET", path: "/api/v1/records/{channel}/{package}/{version}/{arch}/files", id: "getFiles", tag: "records", short: "List the files that a package installs",
			params: place, answers: []answer{{200, "the files", records, []string{"ETag"}}}, errors: []int{404}, handle: a.getFiles},
		{method: "GET", path: "/api/v1/records/{channel}/{package}/{version}/{arch}/provenance", id: "getProvenance", tag: "records", short: "Get what the farm attests of how an artifact was made",
			long:   "An in-toto statement with the predicate of SLSA, in a DSSE envelope that one of the\nfarm's keys has signed: doc/trust.md says how to check it.",
			params: place, answers: []answer{{200, "the envelope", map[string]any{envelope: anyObject}, []string{"ETag"}}}, errors: []int{404}, handle: a.getProvenance},
		{method: "GET", path: "/api/v1/artifacts/{digest}", id: "getArtifact", tag: "records", short: "Get what a build has made",
			long: "A tar.zst, which never changes.",
			params: []param{{"path", "digest", "SHA-256 in hex, as its record says", map[string]any{"type": "string", "pattern": "^[0-9a-f]{64}$"}, true},
				{"header", "Range", "a range of bytes", text, false}},
			answers: []answer{{200, "the archive", map[string]any{"application/zstd": nil}, []string{"ETag"}}, {206, "a part of it", map[string]any{"application/zstd": nil}, []string{"Content-Range"}}},
			errors:  []int{404, 416}, handle: a.getArtifact},
	}
}

// view is the index of a channel as it stands.
func (a *API) view(ctx context.Context, channel string) (*results.View, error) {
	if channel == "" {
		channel = a.farm.Default
	}
	if !a.isChannel(channel) {
		return nil, notFound("there is no channel %.40q: /api/v1/channels lists those there are", channel)
	}
	v, err := a.opts.Index.View(ctx, channel)
	if err != nil {
		return nil, err
	}
	return v, nil
}

func (a *API) isChannel(name string) bool {
	for _, ch := range a.farm.Channels {
		if ch.Name == name {
			return true
		}
	}
	return false
}

func (a *API) listChannels(w http.ResponseWriter, r *http.Request) error {
	list := []Channel{}
	for _, ch := range a.farm.Channels {
		c := Channel{Name: ch.Name, Default: ch.Name == a.farm.Default, Archs: append([]string{}, ch.Archs...), Push: ch.Push}
		v, err := a.view(r.Context(), ch.Name)
		switch {
		case errors.Is(err, results.ErrNotFound): // nothing is recorded there yet
		case err != nil:
			return err
		default:
			c.Commit = v.Commit()
			c.Packages, c.Succeeded, c.Failed = v.Count()
		}
		list = append(list, c)
	}
	return send(w, r, http.StatusOK, list)
}

func (a *API) listPackages(w http.ResponseWriter, r *http.Request) error {
	q, err := query(r, "channel", "after", "limit")
	if err != nil {
		return err
	}
	limit, err := number(q, "limit", 1000, 1, 10000)
	if err != nil {
		return err
	}
	names := []string{}
	v, err := a.view(r.Context(), q.Get("channel"))
	if errors.Is(err, results.ErrNotFound) {
		return send(w, r, http.StatusOK, names)
	}
	if err != nil {
		return err
	}
	after := q.Get("after")
	for p := range v.Packages(after) {
		if p.Name == after && after != "" {
			continue
		}
		if int64(len(names)) == limit {
			next(w, r, "after", names[limit-1])
			break
		}
		names = append(names, p.Name)
	}
	return send(w, r, http.StatusOK, names)
}

func (a *API) getPackage(w http.ResponseWriter, r *http.Request) error {
	q, err := query(r, "channel")
	if err != nil {
		return err
	}
	name := r.PathValue("package")
	v, err := a.view(r.Context(), q.Get("channel"))
	if err != nil && !errors.Is(err, results.ErrNotFound) {
		return err
	}
	var p *results.Package
	if err == nil {
		p = v.Package(name)
	}
	if p == nil {
		return notFound("nothing is recorded of package %s", name)
	}
	list := []Recorded{}
	for _, e := range p.Entries {
		rec := Recorded{Target: e.Target(v.Channel()), Status: e.Status(), Build: e.Build, Ended: e.Ended().UTC(), Source: e.Source(), Artifact: e.Artifact(), Size: e.Size, Packager: e.Packager()}
		if e.Fault != nil {
			rec.Message = e.Fault.Message
		}
		list = append(list, rec)
	}
	return send(w, r, http.StatusOK, list)
}

// snapshot is a channel's records as they stand, for the target of a path.
func (a *API) snapshot(r *http.Request) (*results.Snapshot, quarry.Target, error) {
	t := quarry.Target{Channel: r.PathValue("channel"), Package: r.PathValue("package"), Version: r.PathValue("version"), Arch: r.PathValue("arch")}
	if !a.isChannel(t.Channel) {
		return nil, t, notFound("there is no channel %.40q: /api/v1/channels lists those there are", t.Channel)
	}
	if err := results.CheckTarget(t); err != nil {
		return nil, t, notFound("%w", err)
	}
	s, err := a.opts.Results.Snapshot(t.Channel)
	return s, t, err
}

func (a *API) getRecord(w http.ResponseWriter, r *http.Request) error {
	q, err := query(r, "status")
	if err != nil {
		return err
	}
	s, t, err := a.snapshot(r)
	if err != nil {
		return err
	}
	var rec *results.Record
	switch status := q.Get("status"); status {
	case "":
		if rec, err = s.Get(t.Package, t.Version, t.Arch); errors.Is(err, results.ErrNotFound) {
			rec, err = s.Failure(t.Package, t.Version, t.Arch)
		}
	case string(quarry.Succeeded):
		rec, err = s.Get(t.Package, t.Version, t.Arch)
	case string(quarry.Failed):
		rec, err = s.Failure(t.Package, t.Version, t.Arch)
	default:
		return usage("status is %.40q: give succeeded or failed", status)
	}
	if err != nil {
		return err
	}
	return sendTOML(w, r, rec.Marshal, rec.JSON)
}

func (a *API) getFiles(w http.ResponseWriter, r *http.Request) error {
	s, t, err := a.snapshot(r)
	if err != nil {
		return err
	}
	files, err := s.Files(t.Package, t.Version, t.Arch)
	if err != nil {
		return err
	}
	return sendTOML(w, r,
		func() ([]byte, error) { return results.MarshalFiles(t.Package, t.Version, t.Arch, files) },
		func() ([]byte, error) { return results.FilesJSON(t.Package, t.Version, t.Arch, files) })
}

func (a *API) getProvenance(w http.ResponseWriter, r *http.Request) error {
	s, t, err := a.snapshot(r)
	if err != nil {
		return err
	}
	p, err := s.Provenance(t.Package, t.Version, t.Arch)
	if err != nil {
		return err
	}
	data, err := provenance.Envelope(p)
	if err != nil {
		return err
	}
	return sendBytes(w, r, http.StatusOK, envelope, data)
}

// sendTOML answers with a file of the results repository, as it is or as JSON.
func sendTOML(w http.ResponseWriter, r *http.Request, asTOML, asJSON func() ([]byte, error)) error {
	w.Header().Add("Vary", "Accept")
	kind, make := "application/json", asJSON
	if prefers(r, "application/toml", "application/json") {
		kind, make = "application/toml", asTOML
	}
	data, err := make()
	if err != nil {
		return err
	}
	return sendBytes(w, r, http.StatusOK, kind, data)
}

func (a *API) getArtifact(w http.ResponseWriter, r *http.Request) error {
	digest := r.PathValue("digest")
	f, err := a.opts.Artifacts.Open(digest)
	if errors.Is(err, fs.ErrNotExist) || len(digest) != 64 {
		return notFound("artifact %.70s is not here", digest)
	}
	if err != nil {
		return notFound("%w", err)
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/zstd")
	w.Header().Set("Content-Disposition", fmt.Sprintf(`attachment; filename="%s.tar.zst"`, digest))
	// The name is the content's, for ever.
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	w.Header().Set("ETag", `"`+digest+`"`)
	http.ServeContent(w, r, "", time.Time{}, f)
	return nil
}
