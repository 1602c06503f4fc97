package api

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"

	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/web"
)

// farmRoutes are what is known by verbs alone, and the document itself.
func (a *API) farmRoutes() []route {
	list := []route{
		{method: "GET", path: "/api/v1/openapi.json", id: "getDocument", tag: "about", short: "Get this document",
			answers: []answer{{200, "the OpenAPI document", map[string]any{"application/json": anyObject}, []string{"ETag"}}}, handle: a.getDocument},
		{method: "GET", path: "/api/v1/verbs", id: "listVerbs", tag: "about", short: "List the verbs, with their flags and help",
			answers: []answer{{200, "the verbs", jsonOf[[]Verb](), []string{"ETag"}}}, handle: a.listVerbs},
		{method: "GET", path: "/api/v1/builders", id: "listBuilders", tag: "farm", short: "List what builds, and what it does",
			answers: []answer{{200, "the builders", jsonOf[[]control.Builder](), []string{"ETag"}}}, handle: a.listBuilders},
		{method: "GET", path: "/api/v1/jobs", id: "getJobs", tag: "farm", short: "Show who has how many of the machine's slots",
			long:    "A slot is the right to run one job, such as a compiler, at one time. The verbs jobs set and jobs limit change who has how many.",
			answers: []answer{{200, "the slots, and the builds that have some", jsonOf[control.JobsStatus](), []string{"ETag"}}}, errors: []int{404}, handle: a.getJobs},
	}
	for _, v := range []struct{ path, id, verb, short string }{
		{"/api/v1/status", "getStatus", "status", "Show what the farm does, as the verb status does"},
		{"/api/v1/groups", "listGroups", "group list", "List the groups of releases that are to land together"},
		{"/api/v1/environments", "listEnvironments", "images list", "List bases and environments"},
	} {
		list = append(list, route{method: "GET", path: v.path, id: v.id, tag: "farm", short: v.short,
			answers: []answer{{200, "as the verb " + v.verb + " prints it", map[string]any{"application/json": anyJSON}, []string{"ETag"}}},
			handle:  func(w http.ResponseWriter, r *http.Request) error { return a.ofVerb(w, r, v.verb) }})
	}
	return list
}

func (a *API) getDocument(w http.ResponseWriter, r *http.Request) error {
	if web.NotModified(w, r, a.docTag) {
		return nil
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(a.doc)
	return nil
}

func (a *API) listBuilders(w http.ResponseWriter, r *http.Request) error {
	return send(w, r, http.StatusOK, a.farm.Builders())
}

func (a *API) getJobs(w http.ResponseWriter, r *http.Request) error {
	st, ok := a.farm.JobsNow()
	if !ok {
		return notFound("this farm shares no jobs out")
	}
	return send(w, r, http.StatusOK, st)
}

// ofVerb answers with what a verb without arguments prints.
func (a *API) ofVerb(w http.ResponseWriter, r *http.Request, verb string) error {
	var out, errOut bytes.Buffer
	argv := append(strings.Fields(verb), "--json")
	if code := a.opts.Verbs.Run(r.Context(), web.Who(r.Context()), argv, nil, &out, &errOut, control.Terminal{}); code != control.ExitOK {
		return &control.Error{Code: code, Err: fmt.Errorf("%s", said(errOut.String()))}
	}
	return sendBytes(w, r, http.StatusOK, "application/json", out.Bytes())
}

// said is the error that a verb has printed, which is its last line.
func said(text string) string { return strings.TrimPrefix(lastLine(text), "quarry: ") }

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}
