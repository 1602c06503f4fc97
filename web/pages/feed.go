package pages

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"iter"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/results"
)

// feedEntries is how many records a feed tells of.
const feedEntries = 50

// atomFeed is a feed as RFC 4287 has it.
type atomFeed struct {
	XMLName   xml.Name   `xml:"http://www.w3.org/2005/Atom feed"`
	ID        string     `xml:"id"`
	Title     string     `xml:"title"`
	Updated   string     `xml:"updated"`
	Author    atomPerson `xml:"author"`
	Links     []atomLink `xml:"link"`
	Generator string     `xml:"generator"`
	Entries   []atomEntry
}

type atomEntry struct {
	XMLName    xml.Name       `xml:"entry"`
	ID         string         `xml:"id"`
	Title      string         `xml:"title"`
	Updated    string         `xml:"updated"`
	Author     *atomPerson    `xml:"author,omitempty"`
	Links      []atomLink     `xml:"link"`
	Categories []atomCategory `xml:"category"`
	Content    atomText       `xml:"content"`
}

type atomPerson struct {
	Name string `xml:"name"`
}

type atomLink struct {
	Rel  string `xml:"rel,attr"`
	Type string `xml:"type,attr,omitempty"`
	Href string `xml:"href,attr"`
}

type atomCategory struct {
	Term string `xml:"term,attr"`
}

type atomText struct {
	Type string `xml:"type,attr"`
	Text string `xml:",chardata"`
}

// feedOf is what a feed is made of.
type feedOf struct {
	title   string
	page    string // address of the page that shows the same
	view    *results.View
	entries iter.Seq[*results.Entry]
}

// feed serves what a function chooses as a feed.
func (s *Site) feed(choose func(ctx context.Context, r *http.Request, v *results.View, status string) (*feedOf, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m, updated, err := s.madeFeed(r, choose)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		h := w.Header()
		h.Set("Content-Type", "application/atom+xml; charset=utf-8")
		h.Set("Cache-Control", "private, no-cache")
		h.Set("ETag", m.etag)
		if !updated.IsZero() {
			h.Set("Last-Modified", updated.UTC().Format(http.TimeFormat))
		}
		if same(r, m.etag) || r.Header.Get("If-None-Match") == "" && !modifiedSince(r, updated) {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		send(w, r, m.body, m.packed)
	})
}

// modifiedSince reports whether a reader has not seen what was made at a time.
func modifiedSince(r *http.Request, updated time.Time) bool {
	t, err := http.ParseTime(r.Header.Get("If-Modified-Since"))
	return err != nil || updated.IsZero() || updated.Truncate(time.Second).After(t)
}

func (s *Site) madeFeed(r *http.Request, choose func(ctx context.Context, r *http.Request, v *results.View, status string) (*feedOf, error)) (*made, time.Time, error) {
	p, err := params(r, "channel", "status")
	if err != nil {
		return nil, time.Time{}, err
	}
	switch quarry.State(p["status"]) {
	case "", quarry.Succeeded, quarry.Failed:
	default:
		return nil, time.Time{}, badRequest("status %.40q is none that is recorded: there is succeeded and failed", p["status"])
	}
	v, err := s.view(r.Context(), p["channel"])
	if err != nil {
		return nil, time.Time{}, err
	}
	// A commit's time is that of the newest record, whatever the feed is about: a
	// reader that asks once too often loses nothing.
	key := "feed\x00" + r.URL.Path + "\x00" + v.Channel() + "\x00" + p["status"]
	m, err := s.cache.fetch(r.Context(), key, fresh, func(ctx context.Context) ([]byte, error) {
		f, err := choose(ctx, r, v, p["status"])
		if err != nil {
			return nil, err
		}
		return s.atom(r.URL.Path, p, f)
	})
	return m, v.Time(), err
}

// atom makes the feed's text.
func (s *Site) atom(at string, p map[string]string, f *feedOf) ([]byte, error) {
	self := with(at, p)
	farm := s.Farm
	if farm == "" {
		farm = "Quarry"
	}
	feed := atomFeed{
		ID: uuid("feed", s.Farm, self), Title: xmlText(f.title + " · " + farm), Author: atomPerson{xmlText(farm)}, Generator: "Quarry",
		Links:   []atomLink{{"self", "application/atom+xml", s.URL + self}, {"alternate", "text/html", s.URL + f.page}},
		Updated: atomTime(f.view.Time()),
	}
	n := 0
	for e := range f.entries {
		if n++; n > feedEntries {
			break
		}
		if n == 1 && !e.Ended().IsZero() {
			feed.Updated = atomTime(e.Ended())
		}
		feed.Entries = append(feed.Entries, s.atomEntry(f.view.Channel(), e))
	}
	var b bytes.Buffer
	b.WriteString(xml.Header)
	enc := xml.NewEncoder(&b)
	enc.Indent("", " ")
	if err := enc.Encode(feed); err != nil {
		return nil, fmt.Errorf("feed %s cannot be made: %w", at, err)
	}
	return b.Bytes(), nil
}

func (s *Site) atomEntry(channel string, e *results.Entry) atomEntry {
	t := e.Target(channel)
	out := atomEntry{
		ID:         uuid("record", t.Channel, t.Package, t.Version, t.Arch, fmt.Sprint(e.Build), e.Source()),
		Title:      fmt.Sprintf("%s %s", t, e.Status()),
		Updated:    atomTime(e.Ended()),
		Links:      []atomLink{{"alternate", "text/html", s.URL + s.recordURL(t)}, {"related", "text/html", s.URL + buildURL(e.Build)}},
		Categories: []atomCategory{{string(e.Status())}, {t.Channel}, {t.Arch}},
	}
	who := e.Packager()
	if name := strings.TrimSpace(who.Name + " "); name != "" {
		out.Author = &atomPerson{xmlText(name)}
	} else if who.User != "" {
		out.Author = &atomPerson{xmlText(who.User)}
	}
	var lines []string
	if f := e.Fault; f != nil {
		out.Title += " in " + f.Step
		out.Categories = append(out.Categories, atomCategory{xmlText(classOf(f))})
		lines = append(lines, said(f))
		if f.Error != "" {
			lines = append(lines, f.Message)
		}
		lines = append(lines, "Log: "+s.URL+logURL(e.Build, f.Line))
	} else {
		lines = append(lines, e.Description(), fmt.Sprintf("Built in %s, %s installed.", human.Duration(e.Took()), human.Size(e.Size)))
	}
	out.Title = xmlText(out.Title)
	out.Content = atomText{"text", xmlText(strings.Trim(strings.Join(lines, "\n"), "\n"))}
	return out
}

// atomTime is a time as RFC 3339 has it. A feed needs one, also where the record
// tells none.
func atomTime(t time.Time) string {
	if t.IsZero() {
		t = time.Unix(0, 0)
	}
	return t.UTC().Format("2006-01-02T15:04:05.000Z")
}

// xmlText leaves out what XML 1.0 cannot hold. The encoder would put a sign of
// its own there.
func xmlText(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || r < 0x20 && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 || r == 0xfffe || r == 0xffff {
			return ' '
		}
		return r
	}, s)
}

// uuid is an id that is the same for the same words, whatever address the farm
// has today (RFC 9562, version 5).
func uuid(words ...string) string {
	space, _ := hex.DecodeString("6ba7b8119dad11d180b400c04fd430c8") // of URLs
	h := sha1.New()
	h.Write(space)
	h.Write([]byte("quarry:" + strings.Join(words, "/")))
	b := h.Sum(nil)[:16]
	b[6], b[8] = b[6]&0x0f|0x50, b[8]&0x3f|0x80
	return fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func (s *Site) feedAll(_ context.Context, _ *http.Request, v *results.View, status string) (*feedOf, error) {
	f := &feedOf{title: "Results on " + v.Channel(), page: s.on(v.Channel(), "/results"), view: v, entries: only(v.Recent(results.Place{}), status)}
	if status == string(quarry.Failed) {
		f.title, f.page, f.entries = "Failures on "+v.Channel(), s.on(v.Channel(), "/failures"), v.Failures(results.Place{})
	}
	return f, nil
}

func (s *Site) feedPackage(_ context.Context, r *http.Request, v *results.View, status string) (*feedOf, error) {
	name := r.PathValue("name")
	p := v.Package(name)
	if p == nil && (quarry.CheckName(name) != nil || !s.released(v.Channel(), name)) {
		return nil, notFound("package %.100q is not there", name)
	}
	f := &feedOf{title: name + " on " + v.Channel(), page: s.on(v.Channel(), packageURL(name)), view: v, entries: func(func(*results.Entry) bool) {}}
	if p != nil {
		f.entries = only(p.Recent(), status)
	}
	return f, nil
}

func (s *Site) feedPackager(_ context.Context, r *http.Request, v *results.View, status string) (*feedOf, error) {
	user := r.PathValue("user")
	if err := quarry.CheckUser(user); err != nil {
		return nil, notFound("%v", err)
	}
	return &feedOf{
		title: "Packages of " + user + " on " + v.Channel(), page: with("/results", map[string]string{"packager": user, "channel": v.Channel()}),
		view: v, entries: only(v.PackagedBy(user, results.Place{}), status),
	}, nil
}

// only chooses by status; "" is any.
func only(list iter.Seq[*results.Entry], status string) iter.Seq[*results.Entry] {
	if status == "" {
		return list
	}
	return func(yield func(*results.Entry) bool) {
		for e := range list {
			if string(e.Status()) == status && !yield(e) {
				return
			}
		}
	}
}
