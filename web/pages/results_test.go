package pages

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/html"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/queue"
	"github.com/Morphux/quarry/results"
)

// text is what a page says, tags and runs of spaces left out.
func text(page string) string {
	_, page, _ = strings.Cut(page, "<main")
	page = regexp.MustCompile(`(?s)<(script|style|select).*?</(script|style|select)>`).ReplaceAllString(page, "")
	page = html.UnescapeString(regexp.MustCompile(`<[^>]*>`).ReplaceAllString(page, " "))
	return strings.Join(strings.Fields(page), " ")
}

// says fails the test when a page is not there or lacks something.
func (s *shelf) says(path string, want ...string) string {
	s.t.Helper()
	resp, body := s.get(path)
	if resp.StatusCode != http.StatusOK {
		s.t.Fatalf("%s: %s: %s", path, resp.Status, text(body))
	}
	got := text(body)
	for _, w := range want {
		if !strings.Contains(got, w) {
			s.t.Errorf("%s does not say %q:\n%s", path, w, got)
		}
	}
	return body
}

func (s *shelf) lacks(path string, not ...string) {
	s.t.Helper()
	got := text(s.says(path))
	for _, w := range not {
		if strings.Contains(got, w) {
			s.t.Errorf("%s says %q:\n%s", path, w, got)
		}
	}
}

var recordedPages = []string{
	"/results", "/results?status=failed", "/failures", "/grid", "/grid?show=failed", "/packages", "/packages?q=z", "/packages/zlib", "/packages/vim", "/packages/evil",
	"/packages/fonts", "/packages/fresh", "/packages/stale", "/packages/zlib/1.3.1/x86_64", "/packages/zlib/1.3.1/riscv64", "/packages/zlib/1.3.1/riscv64?of=success",
	"/packages/evil/6.6.6/x86_64", "/packages/evil/6.6.6/aarch64", "/results?channel=stable", "/grid?channel=stable",
}

func TestResultsFilters(t *testing.T) {
	s := smallShelf(t)
	for path, want := range map[string]struct{ has, not []string }{
		"/results":                            {[]string{"zlib 1.3.1", "evil 6.6.6", "failed", "succeeded"}, nil},
		"/results?status=failed":              {[]string{"tin 2.0", "failed"}, []string{"succeeded", "fonts"}},
		"/results?status=succeeded":           {[]string{"fonts 3"}, []string{"tin 2.0"}},
		"/results?arch=riscv64":               {[]string{"zlib 1.3.1"}, []string{"vim", "tin 2.0"}},
		"/results?package=zlib":               {[]string{"zlib 1.2.11"}, []string{"vim", "tin 2.0"}},
		"/results?package=ncurses*":           {[]string{"ncurses-utilities-with-a-long-name-indeed"}, []string{"vim", "zlib 1"}},
		"/results?class=missing-program":      {[]string{"tin"}, []string{"vim", "curl 1"}},
		"/results?packager=alice":             {[]string{"vim"}, nil},
		"/results?packager=nobody":            {[]string{"Nothing that is recorded fits"}, []string{"vim"}},
		"/results?since=2100-01-01":           {[]string{"Nothing that is recorded fits"}, []string{"vim"}},
		"/results?until=2000-01-01":           {[]string{"Nothing that is recorded fits"}, []string{"vim"}},
		"/results?since=2001-01-01&package=z": {[]string{"Nothing that is recorded fits"}, nil},
		"/results?channel=stable":             {[]string{"Nothing has been recorded yet"}, []string{"vim"}},
	} {
		s.says(path, want.has...)
		s.lacks(path, want.not...)
	}
	for _, path := range []string{"/results?status=odd", "/results?package=[", "/results?at=odd", "/results?since=yesterday", "/grid?show=odd", "/packages/zlib/1.3.1/x86_64?files=[", "/packages/zlib/1.3.1/x86_64?from=-1", "/results?package=" + strings.Repeat("x", 400)} {
		if resp, body := s.get(path); resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s: %s", path, resp.Status, text(body))
		}
	}
	for _, path := range []string{"/results?channel=nowhere", "/packages/nobody", "/packages/-x", "/packages/zlib/9/x86_64", "/packages/zlib/1.3.1/x86_64?channel=stable", "/packages/..%2f..%2fetc/1/x86_64", "/packages/zlib/1.3.1/x86_64/record.json", "/packages/nobody/feed.atom", "/packagers/-/feed.atom"} {
		if resp, body := s.get(path); resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s: %s", path, resp.Status, text(body))
		}
	}
}

// TestResultsPages follows the links to older results: all come, once each.
func TestResultsPages(t *testing.T) {
	s := newShelf(t, shelfArchs, func(s *shelf) {
		for i := range 60 {
			s.built(fmt.Sprintf("p%03d", i), "1.0", "x86_64")
			s.built(fmt.Sprintf("p%03d", i), "1.0", "aarch64")
		}
	})
	row := regexp.MustCompile(`<a href="/packages/(p\d+/1.0/\w+)">`)
	older := regexp.MustCompile(`rel="next" href="([^"]*)"`)
	for path, want := range map[string]int{"/results": 120, "/results?arch=x86_64": 60, "/results?packager=alice&package=p0*": 120} {
		seen := 0
		var names []string
		for page := path; page != ""; {
			body := s.says(page)
			for _, m := range row.FindAllStringSubmatch(body, -1) {
				seen++
				names = append(names, m[1])
			}
			page = ""
			if m := older.FindStringSubmatch(body); m != nil {
				page = html.UnescapeString(m[1])
			}
		}
		slices.Sort(names)
		if n := len(slices.Compact(names)); n != want || seen != want {
			t.Errorf("%s: %d results, %d of them different, want %d", path, seen, n, want)
		}
	}
}

func TestPackagePage(t *testing.T) {
	s := smallShelf(t)
	s.says("/packages/zlib", "zlib 1.3.1", "Some package of the shelf", "git clone ssh://farm.example.org:2222/zlib.git", "1.2.11", "failed", "Needed by", "curl", "vim", "fresh", "Installed size", "Build time", "Alice Liddell", "riscv64", "revision 2")
	// The first artifact of 1.3.1 was replaced: the commit still tells of its build.
	s.says("/packages/zlib", "#12", "replaced")
	s.says("/packages/vim", "vim 9.1", "waits for", "◌ waiting", "9.0 ✓ done", "⊘ declined", "is not built for riscv64 on testing: broken: no barriers", "nobody-has-pushed-this nobody has pushed it", "zlib 1.3.1 as zlib>=1.3")
	s.says("/packages/fonts", "noarch", "done")
	s.says("/packages/stale", "stale 0.9")
	s.until("the page of a build that runs says so", func() bool {
		_, body := s.get("/packages/fresh")
		return strings.Contains(text(body), "Under way")
	})
	if resp, _ := s.get("/packages/zlib/1.3.1"); resp.StatusCode != http.StatusFound || resp.Header.Get("Location") != "/packages/zlib#v-1.3.1" {
		t.Errorf("a version: %s to %s", resp.Status, resp.Header.Get("Location"))
	}
	for q, want := range map[string]string{"zlib": "/packages/zlib", "lib": "/packages?q=lib", "": "/packages", "#12": "/builds/12", "<x>": "/packages?q=%3Cx%3E", "fresh": "/packages/fresh"} {
		if resp, _ := s.get("/search?q=" + strings.NewReplacer("#", "%23", "<", "%3C", ">", "%3E").Replace(q)); resp.Header.Get("Location") != want {
			t.Errorf("search for %q leads to %s, want %s", q, resp.Header.Get("Location"), want)
		}
	}
	s.says("/packages?q=LIB", "zlib", "libpng")
	s.lacks("/packages?q=LIB", "curl", "vim")
}

func TestRecordPage(t *testing.T) {
	s := smallShelf(t)
	s.says("/packages/zlib/1.3.1/x86_64", "succeeded", "Alice Liddell", "alice@morphux.org", strings.Repeat("46", 32), "libc.so.6", "base", "nowhere", "/usr/bin/zlib", "-rwxr-xr-x", "-rwsr-xr-x",
		"needs libz.so.1 libc.so.6", "PIE, NX, RELRO full", "soname libzlib.so.1", "configure", "by the farm", "125.0 MiB", "4 at most, 3.2 in the mean where there were more than one", "0.87 of a processor for each slot", "make was called with -j8", "native", "Linux 6.1.0", "to libzlib.so.1")
	s.says("/packages/zlib/1.3.1/riscv64", "failed", "/usr/bin/ld: cannot find -lfoo", "linker", "Line 1", "compilation terminated.", "quarry build --arch riscv64 zlib", "add the package", "older build that succeeded")
	if _, body := s.get("/packages/zlib/1.3.1/riscv64"); !strings.Contains(body, "<mark>/usr/bin/ld: cannot find -lfoo</mark>\n") || strings.Count(body, "<mark>") != 1 {
		t.Errorf("the line that tells does not stand out:\n%s", body)
	}
	s.says("/packages/zlib/1.3.1/riscv64?of=success", "succeeded", "A later try failed")
	s.says("/packages/curl/1.0/x86_64", "named by the recipe", "zlib", "Needed zlib")
	resp, body := s.get("/packages/zlib/1.3.1/riscv64/record.toml")
	rec, err := results.Parse([]byte(body))
	if err != nil || rec.Status != quarry.Failed || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") {
		t.Errorf("raw: %v %s %s", err, resp.Header.Get("Content-Type"), body)
	}
	if again, _ := s.get("/packages/zlib/1.3.1/riscv64/record.toml", "If-None-Match", resp.Header.Get("ETag")); again.StatusCode != http.StatusNotModified {
		t.Errorf("raw again: %s", again.Status)
	}
	if _, body := s.get("/packages/zlib/1.3.1/riscv64/record.toml?of=success"); !strings.Contains(body, "'succeeded'") {
		t.Errorf("raw success: %s", body)
	}
	// Every value of the record's main keys is on the page.
	snap, err := s.repo.Snapshot("testing")
	if err != nil {
		t.Fatal(err)
	}
	r, err := snap.Get("zlib", "1.3.1", "x86_64")
	if err != nil {
		t.Fatal(err)
	}
	data, err := r.JSON()
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]any
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	_, page := s.get("/packages/zlib/1.3.1/x86_64")
	for _, k := range []string{"package", "version", "arch", "channel", "source", "key", "description", "category", "artifact", "abi"} {
		if v, ok := all[k]; !ok || !strings.Contains(page, fmt.Sprint(v)) {
			t.Errorf("%s = %v is not on the page", k, v)
		}
	}
	// Files: 450 of them, 200 to a page.
	const evil = "/packages/evil/6.6.6/x86_64"
	s.says(evil, "1 to 200 of 450")
	s.says(evil+"?from=400", "401 to 450 of 450")
	s.says(evil+"?files=evil/01", "1 to 10 of 10, of 450 in all")
	s.says(evil+"?files=/usr/share/evil/449*", "1 to 1 of 1")
	s.says(evil+"?class=binary", "No file fits")
	if _, body := s.get(evil); !strings.Contains(body, `href="/artifacts/45/`+strings.Repeat("45", 32)+`.tar.zst"`) {
		t.Error("no link leads to the artifact")
	}
}

func TestFailuresPage(t *testing.T) {
	s := smallShelf(t)
	body := s.says("/failures", "missing-header fatal error: zlib.h: No such file or directory", "6 failures of 6 packages", "6 new", "missing-program", "linker")
	first := strings.Index(body, `<h2 id="g0">`)
	if !strings.Contains(body[first:first+200], "missing-header") {
		t.Error("the biggest group does not come first")
	}
	if !strings.Contains(body, `?line=1234#L1234"`) {
		t.Error("no link leads to the line of the log")
	}
	s.lacks("/failures?class=linker", "missing-header fatal", "tin 2.0")
	s.says("/failures?class=nothing", "Nothing fails for that reason")
	s.says("/failures?channel=stable", "Nothing fails.")
}

func TestGridPage(t *testing.T) {
	s := smallShelf(t)
	row := func(path, pkg string) string {
		_, body := s.get(path)
		_, rest, ok := strings.Cut(body, `href="/packages/`+pkg+`"`)
		if !ok {
			return ""
		}
		rest, _, _ = strings.Cut(rest, "</tr>")
		return strings.Join(strings.Fields(regexp.MustCompile(`<[^>]*>`).ReplaceAllString("<"+rest, " ")), " ")
	}
	for pkg, want := range map[string]string{
		"zlib":  "zlib 1.3.1 ✓ done ✓ done ✗ failed",
		"curl":  "curl 1.0 ✓ done ✗ failed –",
		"fonts": "fonts 3 ✓ done ✓ done ✓ done",
		"stale": "stale 0.9 ✓ done – –",
		"tin":   "tin 2.0 ✗ failed – –",
	} {
		if got := row("/grid", pkg); got != want {
			t.Errorf("%s: %q, want %q", pkg, got, want)
		}
	}
	if got := row("/grid", "vim"); !strings.HasPrefix(got, "vim 9.1 ") || !strings.HasSuffix(got, "⊘ declined") {
		t.Errorf("vim: %q", got)
	}
	s.until("a build that runs is seen", func() bool { return row("/grid?show=active", "fresh") == "fresh 0.1 ▶ building – –" })
	s.lacks("/grid?show=failed", "stale", "fonts")
	s.says("/grid?show=failed", "zlib", "tin")
	s.says("/grid?q=ZL", "zlib", "Packages 1 to 1 of 1, of")
	s.says("/grid?q=nothing", "No package fits")
	s.says("/grid", "x86_64", "% done", "Packages 1 to")
	// What was built before is shown when the newer version is not.
	var vim []quarry.Build
	s.until("the builds of vim wait", func() bool { vim = s.q.List(queue.Filter{Package: "vim", Live: true}); return len(vim) == 2 })
	for _, b := range vim {
		if err := s.q.Cancel(t.Context(), b.Number, "alice"); err != nil {
			t.Fatal(err)
		}
	}
	s.until("vim is outdated", func() bool { return row("/grid", "vim") == "vim 9.1 ↑ outdated 9.0 ? missing ⊘ declined" })
	close(s.let)
	s.until("it is built", func() bool { return row("/grid", "fresh") == "fresh 0.1 ✓ done – –" })
}

func TestGridIsPaged(t *testing.T) {
	const n = 450
	s := newShelf(t, shelfArchs, func(s *shelf) {
		for i := range n {
			s.release(fmt.Sprintf("p%04d", i), "1.0", shelfArchs, func(r *quarry.Release) {
				r.Traits = map[string]quarry.Traits{}
				for _, a := range shelfArchs {
					r.Traits[a] = quarry.Traits{Broken: "all of it"}
				}
			})
		}
	})
	next := regexp.MustCompile(`rel="next" href="([^"]*)"`)
	for _, path := range []string{"/grid", "/packages"} {
		var names []string
		for page := path; page != ""; {
			body := s.says(page)
			for _, m := range regexp.MustCompile(`<a class="pkg" href="/packages/(p\d+)">`).FindAllStringSubmatch(body, -1) {
				names = append(names, m[1])
			}
			if len(body) > 400<<10 {
				t.Errorf("%s has %d bytes", page, len(body))
			}
			page = ""
			if m := next.FindStringSubmatch(body); m != nil {
				page = html.UnescapeString(m[1])
			}
		}
		if len(names) != n || !slices.IsSorted(names) || len(slices.Compact(slices.Clone(names))) != n {
			t.Errorf("%s: %d packages on its pages, want %d", path, len(names), n)
		}
	}
}

// TestRecordedPagesAreSafe looks for what hostile text would be in a page that does
// not escape it, and for what the policy for content does not allow.
func TestRecordedPagesAreSafe(t *testing.T) {
	s := smallShelf(t)
	for _, path := range recordedPages {
		body := s.says(path)
		doc, err := html.Parse(strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		var walk func(n *html.Node)
		walk = func(n *html.Node) {
			if n.Type == html.ElementNode {
				if n.Data == "style" || n.Data == "img" || n.Data == "script" && !strings.Contains(fmt.Sprint(n.Attr), "/static/") {
					t.Errorf("%s has a %s", path, n.Data)
				}
				for _, a := range n.Attr {
					if a.Key == "style" || strings.HasPrefix(a.Key, "on") || (a.Key == "href" || a.Key == "src") && strings.HasPrefix(strings.ToLower(strings.TrimSpace(a.Val)), "javascript:") {
						t.Errorf("%s: %s has %s=%q", path, n.Data, a.Key, a.Val)
					}
				}
			}
			if strings.ContainsAny(n.Data, "\x1b\u202e\x00") {
				t.Errorf("%s has control characters: %.80q", path, n.Data)
			}
			for c := n.FirstChild; c != nil; c = c.NextSibling {
				walk(c)
			}
		}
		walk(doc)
	}
}

// TestRecordedPagesAreNotSentAgain asks a second time with what came the first
// time, by many at once, and then after something has changed.
func TestRecordedPagesAreNotSentAgain(t *testing.T) {
	s := smallShelf(t)
	s.until("what can be started is", func() bool { return s.q.Status().Busy == 1 })
	for _, path := range append(recordedPages, "/feed.atom") {
		resp, _ := s.get(path)
		etag := resp.Header.Get("ETag")
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				again, body := s.get(path, "If-None-Match", etag)
				// A page tells how long ago something was: it may have become another one.
				if again.StatusCode != http.StatusNotModified && again.Header.Get("ETag") == etag || again.StatusCode == http.StatusNotModified && body != "" {
					t.Errorf("%s again: %s with %d bytes", path, again.Status, len(body))
				}
			})
		}
		wg.Wait()
	}
	resp, _ := s.get("/feed.atom")
	s.built("newcomer", "1.0", "x86_64")
	s.until("what is new is seen", func() bool {
		again, body := s.get("/feed.atom", "If-None-Match", resp.Header.Get("ETag"))
		return again.StatusCode == http.StatusOK && strings.Contains(body, "newcomer 1.0 x86_64 succeeded")
	})
	s.until("the results have it", func() bool { _, body := s.get("/results"); return strings.Contains(body, "newcomer") })
	s.until("the grid has it", func() bool { _, body := s.get("/grid"); return strings.Contains(body, "newcomer") })
}

// TestNoRecords has a farm that shows none.
func TestNoRecords(t *testing.T) {
	s := smallShelf(t)
	s.site.Index = nil
	for _, path := range []string{"/results", "/packages/zlib", "/packages/zlib/1.3.1/x86_64", "/feed.atom", "/grid"} {
		if resp, _ := s.get(path); resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
}
