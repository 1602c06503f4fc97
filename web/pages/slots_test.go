package pages

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/jobs"
)

// TestSlots: who has which slots, and why there are fewer, is on the pages, with
// nothing in it that could do harm.
func TestSlots(t *testing.T) {
	w := newWorld(t, 1)
	st := control.JobsStatus{Status: jobs.Status{Total: 8, Limit: jobs.Limit{Slots: 2, Kind: jobs.KindHand, Why: "by hand: " + hostile}, Granted: 2, Used: 1}}
	st.Builds = []control.JobsBuild{
		{Package: "zlib", Version: "1.3", Step: "make", BuildStatus: jobs.BuildStatus{Number: 17, Name: "zlib-1.3", Granted: 2, Out: 3, Used: 1, Want: 7, Ceiling: 8, Hand: 2, By: "alice", Forced: hostile}},
		{BuildStatus: jobs.BuildStatus{Name: "verify-1 git-2.0", Waiting: true, Ceiling: 8}},
	}
	site := New(Source{Queue: w.q, Logs: w.logs, Jobs: func() (control.JobsStatus, bool) { return st, true }})
	get := func(path string) string {
		t.Helper()
		rec := httptest.NewRecorder()
		site.ServeHTTP(rec, httptest.NewRequest("GET", path, nil))
		if rec.Code != 200 || strings.Contains(rec.Body.String(), "<script>document") {
			t.Fatalf("%s: %d\n%s", path, rec.Code, rec.Body)
		}
		return rec.Body.String()
	}
	for path, wants := range map[string][]string{
		"/":         {"1 in use", "of 2 that builds may take, by hand: ", "there are 8"},
		"/builders": {`<a class="num" href="/builds/17">#17</a>`, "set to 2 by alice; 1 to come back", "verify-1 git-2.0", "waits for a slot", "there are 8"},
	} {
		page := get(path)
		for _, want := range wants {
			if !strings.Contains(page, want) {
				t.Errorf("%s has no %q:\n%s", path, want, page)
			}
		}
	}
	site = New(Source{Queue: w.q, Logs: w.logs, Jobs: func() (control.JobsStatus, bool) { return st, false }})
	if page := get("/builders"); strings.Contains(page, "Slots") || strings.Contains(page, "slots") {
		t.Error("where nobody shares slots out, there are none")
	}
}
