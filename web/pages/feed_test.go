package pages

import (
	"encoding/xml"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// element is any element of a document.
type element struct {
	XMLName xml.Name
	Attrs   []xml.Attr `xml:",any,attr"`
	Kids    []element  `xml:",any"`
	Text    string     `xml:",chardata"`
}

func (e element) all(name string) (list []element) {
	for _, k := range e.Kids {
		if k.XMLName.Local == name {
			list = append(list, k)
		}
	}
	return list
}

func (e element) attr(name string) string {
	for _, a := range e.Attrs {
		if a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

// What RFC 4287 lets stand in a feed, and in an entry (4.1.1 and 4.1.2): how many
// there must be, and how many there may be.
var feedRules = map[string]map[string][2]int{
	"feed": {"author": {0, 99}, "category": {0, 99}, "contributor": {0, 99}, "generator": {0, 1}, "icon": {0, 1}, "id": {1, 1}, "link": {0, 99}, "logo": {0, 1},
		"rights": {0, 1}, "subtitle": {0, 1}, "title": {1, 1}, "updated": {1, 1}, "entry": {0, 999}},
	"entry": {"author": {0, 99}, "category": {0, 99}, "content": {0, 1}, "contributor": {0, 99}, "id": {1, 1}, "link": {0, 99}, "published": {0, 1}, "rights": {0, 1},
		"source": {0, 1}, "summary": {0, 1}, "title": {1, 1}, "updated": {1, 1}},
}

// checkAtom checks a feed as the standard's schema and its text demand.
func checkAtom(t *testing.T, text string) element {
	t.Helper()
	dec := xml.NewDecoder(strings.NewReader(text))
	dec.Strict = true
	var feed element
	if err := dec.Decode(&feed); err != nil {
		t.Fatalf("feed is no XML: %v\n%s", err, text)
	}
	if _, err := dec.Token(); err != io.EOF {
		t.Errorf("something stands behind the feed: %v", err)
	}
	var check func(e element)
	check = func(e element) {
		if e.XMLName.Space != "http://www.w3.org/2005/Atom" {
			t.Errorf("%s is in the namespace %q", e.XMLName.Local, e.XMLName.Space)
		}
		switch e.XMLName.Local {
		case "feed", "entry":
			for _, k := range e.Kids {
				if _, ok := feedRules[e.XMLName.Local][k.XMLName.Local]; !ok {
					t.Errorf("%s has a %s", e.XMLName.Local, k.XMLName.Local)
				}
			}
			for name, n := range feedRules[e.XMLName.Local] {
				if have := len(e.all(name)); have < n[0] || have > n[1] {
					t.Errorf("%s has %d of %s", e.XMLName.Local, have, name)
				}
			}
			alternates := map[string]bool{}
			for _, l := range e.all("link") {
				if l.attr("rel") == "alternate" {
					if alternates[l.attr("type")] {
						t.Error("two alternate links of one type")
					}
					alternates[l.attr("type")] = true
				}
			}
			if len(alternates) == 0 && len(e.all("content")) == 0 {
				t.Error("neither an alternate link nor content")
			}
		case "id":
			if u, err := url.Parse(e.Text); err != nil || !u.IsAbs() {
				t.Errorf("id %q is no IRI", e.Text)
			}
		case "updated":
			if _, err := time.Parse(time.RFC3339, e.Text); err != nil {
				t.Errorf("updated %q: %v", e.Text, err)
			}
		case "author":
			if len(e.all("name")) != 1 || e.all("name")[0].Text == "" {
				t.Error("an author has no name")
			}
		case "link":
			if u, err := url.Parse(e.attr("href")); err != nil || !u.IsAbs() {
				t.Errorf("link %q is not absolute", e.attr("href"))
			}
		case "category":
			if e.attr("term") == "" {
				t.Error("a category has no term")
			}
		case "content", "title":
			if k := e.attr("type"); k != "" && k != "text" || len(e.Kids) > 0 {
				t.Errorf("%s is of type %q", e.XMLName.Local, k)
			}
		}
		for _, k := range e.Kids {
			check(k)
		}
	}
	check(feed)
	if feed.XMLName.Local != "feed" {
		t.Fatalf("it is a %s", feed.XMLName.Local)
	}
	ids := map[string]bool{}
	last := time.Time{}
	for i, e := range feed.all("entry") {
		id := e.all("id")[0].Text
		if ids[id] {
			t.Errorf("two entries have the id %s", id)
		}
		ids[id] = true
		at, _ := time.Parse(time.RFC3339, e.all("updated")[0].Text)
		if i > 0 && at.After(last) {
			t.Error("a newer entry comes after an older one")
		}
		last = at
	}
	if len(feed.all("author")) == 0 {
		t.Error("the feed has no author")
	}
	return feed
}

func titles(feed element) (list []string) {
	for _, e := range feed.all("entry") {
		list = append(list, e.all("title")[0].Text)
	}
	return list
}

func TestFeeds(t *testing.T) {
	s := smallShelf(t)
	ids := map[string]string{} // by self link
	for path, want := range map[string]struct {
		n    int
		has  string
		page string
	}{
		"/feed.atom":                                {31, "tin 2.0 x86_64 failed in make", "/results"},
		"/feed.atom?status=failed":                  {9, "tin 2.0 x86_64 failed in make", "/failures"},
		"/feed.atom?channel=stable":                 {0, "", "/results?channel=stable"},
		"/packages/zlib/feed.atom":                  {13, "zlib 1.3.1 riscv64 failed in make", "/packages/zlib"},
		"/packages/zlib/feed.atom?status=succeeded": {12, "zlib 1.3.1 riscv64 succeeded", "/packages/zlib"},
		"/packages/fresh/feed.atom":                 {0, "", "/packages/fresh"},
		"/packages/evil/feed.atom":                  {2, "evil 6.6.6 x86_64 succeeded", "/packages/evil"},
		"/packagers/alice/feed.atom":                {31, "fonts 3 noarch succeeded", "/results?channel=testing&packager=alice"},
		"/packagers/bob/feed.atom":                  {0, "", "/results?channel=testing&packager=bob"},
	} {
		resp, body := s.get(path)
		if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/atom+xml; charset=utf-8" {
			t.Errorf("%s: %s %s", path, resp.Status, resp.Header.Get("Content-Type"))
			continue
		}
		feed := checkAtom(t, body)
		got := titles(feed)
		if len(got) != want.n || want.has != "" && !slices.Contains(got, want.has) {
			t.Errorf("%s has %d entries, want %d and %q: %q", path, len(got), want.n, want.has, got)
		}
		for _, l := range feed.all("link") {
			switch href := strings.TrimPrefix(l.attr("href"), "https://farm.example.org"); l.attr("rel") {
			case "self":
				if href != path {
					t.Errorf("%s says that it is %s", path, href)
				}
			case "alternate":
				if href != want.page {
					t.Errorf("%s belongs to %s, want %s", path, href, want.page)
				}
				s.says(href)
			}
		}
		id := feed.all("id")[0].Text
		if other, ok := ids[id]; ok {
			t.Errorf("%s and %s have one id", path, other)
		}
		ids[id] = path
		for _, e := range feed.all("entry") {
			for _, l := range e.all("link") {
				if l.attr("rel") == "alternate" {
					s.says(strings.TrimPrefix(l.attr("href"), "https://farm.example.org"))
				}
			}
		}
		// Not again, by either way of asking.
		if again, b := s.get(path, "If-None-Match", resp.Header.Get("ETag")); again.StatusCode != http.StatusNotModified || b != "" {
			t.Errorf("%s again: %s", path, again.Status)
		}
		if at := resp.Header.Get("Last-Modified"); at != "" {
			if again, _ := s.get(path, "If-Modified-Since", at); again.StatusCode != http.StatusNotModified {
				t.Errorf("%s since %s: %s", path, at, again.Status)
			}
		} else if want.n > 0 {
			t.Errorf("%s does not tell when it was made", path)
		}
	}
	if resp, _ := s.get("/feed.atom?status=odd"); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("an odd status: %s", resp.Status)
	}
}

// TestFeedIdsStay compares ids from before and after a new record, and of a farm at
// another address.
func TestFeedIdsStay(t *testing.T) {
	s := smallShelf(t)
	entries := func() map[string]string {
		_, body := s.get("/feed.atom")
		list := map[string]string{}
		for _, e := range checkAtom(t, body).all("entry") {
			list[e.all("title")[0].Text+e.all("updated")[0].Text] = e.all("id")[0].Text
		}
		return list
	}
	before := entries()
	s.site.URL = "https://elsewhere.example.org"
	s.built("newcomer", "1.0", "x86_64")
	var after map[string]string
	s.until("the new record is told", func() bool { after = entries(); return len(after) == len(before)+1 })
	for title, id := range before {
		if after[title] != id {
			t.Errorf("%s was %s and is %s", title, id, after[title])
		}
	}
}

// TestPagesNameTheirFeeds follows the links by which readers find feeds.
func TestPagesNameTheirFeeds(t *testing.T) {
	s := smallShelf(t)
	link := regexp.MustCompile(`<link rel="alternate" type="application/atom\+xml" href="([^"]*)">`)
	for path, want := range map[string]string{
		"/results": "/feed.atom", "/failures": "/feed.atom?status=failed", "/packages/zlib": "/packages/zlib/feed.atom", "/grid": "/feed.atom",
		"/packages/zlib/1.3/x86_64": "/packages/zlib/feed.atom", "/failures?channel=stable": "/feed.atom?channel=stable&amp;status=failed",
	} {
		m := link.FindStringSubmatch(s.says(path))
		if m == nil || m[1] != want {
			t.Errorf("%s names the feed %q, want %s", path, m, want)
			continue
		}
		if resp, _ := s.get(strings.ReplaceAll(m[1], "&amp;", "&")); resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", m[1], resp.Status)
		}
	}
}

// TestUUIDs are as RFC 9562 has them.
func TestUUIDs(t *testing.T) {
	id := uuid("record", "a", "b")
	if !regexp.MustCompile(`^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(id) || id != uuid("record", "a", "b") || id == uuid("record", "ab") {
		t.Errorf("id %s", id)
	}
}

// FuzzFeedText has any text in a record: the feed stays XML.
func FuzzFeedText(f *testing.F) {
	f.Add(hostile)
	f.Add("\x00\xff\ufffe]]>&#0;")
	f.Fuzz(func(t *testing.T, s string) {
		b, err := xml.Marshal(atomText{"text", xmlText(s)})
		if err != nil {
			t.Fatal(err)
		}
		var e element
		if err := xml.Unmarshal(b, &e); err != nil {
			t.Errorf("%q: %v", s, err)
		}
		if strings.ContainsAny(e.Text, "\x00\x1b\x07") {
			t.Errorf("%q becomes %q", s, e.Text)
		}
	})
}
