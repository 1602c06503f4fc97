package main

import (
	"encoding/xml"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/internal/testbrowser"
	"github.com/Morphux/quarry/internal/testpkg"
	"github.com/Morphux/quarry/results"
)

// TestRecordedPages has a real farm build one package that succeeds and one that
// fails, and follows them through the pages of what was recorded, in a browser.
func TestRecordedPages(t *testing.T) {
	s := newServer(t, t.TempDir())
	text, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.config, []byte(strings.Replace(string(text), "\n[protocol]", "\npublic = true\n[protocol]", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.stop(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	}()
	for _, pkg := range []string{"hello", "broken"} {
		dir := testpkg.Init(t, pkg)
		s.mustIn(t, dir, "git", "push", "-q", s.url(pkg), "HEAD:refs/heads/"+pkg+"-1.0")
	}
	get := func(path string) string {
		t.Helper()
		resp, err := http.Get(s.base() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s %v\n%s", path, resp.Status, err, body)
		}
		return string(body)
	}
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if list := get("/results"); strings.Contains(list, ">hello<") && strings.Contains(list, ">broken<") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the builds are not recorded:\n%s", s.logText())
		}
	}
	s.idle(t) // a build ends when its record is there
	arch := config.HostArch()
	tab := testbrowser.Start(t).Tab(t)
	tab.Go(s.base() + "/results")
	tab.Click(`a[href="/packages/hello/1.0/` + arch + `"]`)
	tab.Wait(`location.pathname == "/packages/hello/1.0/` + arch + `"`)
	for _, want := range []string{"succeeded", "Alice Liddell", "/usr/bin/hello", "install", "Linux ", "native"} {
		if got := tab.Text("main"); !strings.Contains(got, want) {
			t.Errorf("the record's page does not say %q:\n%s", want, got)
		}
	}
	tab.Audit()
	tab.Shot("h8-real-record")
	tab.Go(s.base() + "/failures")
	if got := tab.Text("main"); !strings.Contains(got, "broken") {
		t.Errorf("failures:\n%s", got)
	}
	tab.Click(`.fails a.small`) // to the line of the log
	tab.Wait(`location.pathname == "/builds/2" || location.pathname == "/builds/1"`)
	for name, path := range map[string]string{"grid": "/grid", "package": "/packages/hello", "failure": "/packages/broken/1.0/" + arch, "packages": "/packages"} {
		tab.Go(s.base() + path)
		tab.Audit()
		tab.Shot("h8-real-" + name)
	}
	tab.Go(s.base() + "/grid")
	if got := tab.Text("table.grid"); !regexp.MustCompile(`hello 1\.0\s+✓ done`).MatchString(got) || !regexp.MustCompile(`broken 1\.0\s+✗ failed`).MatchString(got) {
		t.Errorf("grid:\n%s", got)
	}
	tab.Check()

	// The artifact that the page links to is the one of the record.
	rec, err := results.Parse([]byte(get("/packages/hello/1.0/" + arch + "/record.toml")))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(get("/artifacts/" + rec.Artifact[:2] + "/" + rec.Artifact + ".tar.zst")); int64(n) != rec.ArtifactSize {
		t.Errorf("the artifact has %d bytes, want %d", n, rec.ArtifactSize)
	}
	var feed struct {
		Entries []struct {
			Title string `xml:"title"`
		} `xml:"entry"`
	}
	if err := xml.Unmarshal([]byte(get("/feed.atom")), &feed); err != nil || len(feed.Entries) != 2 {
		t.Errorf("feed: %v, %d entries", err, len(feed.Entries))
	}
}
