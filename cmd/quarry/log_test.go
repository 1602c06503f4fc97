package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/internal/testpkg"
)

// TestJSONLog: the daemon's log is one object a line where that is asked for, and
// every line about a build has its number and its release.
func TestJSONLog(t *testing.T) {
	s := newServer(t, t.TempDir())
	s.writeConfig(t, "[log]\nformat = \"json\"\n")
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	defer s.stop(syscall.SIGTERM)
	for _, pkg := range []string{"hello", "broken"} {
		dir := testpkg.Init(t, pkg)
		out, errOut, err := s.run(dir, "git", "push", "-o", "follow", s.url(pkg), "HEAD:refs/heads/"+pkg+"-1.0")
		if err != nil {
			t.Fatalf("push of %s: %v\n%s%s", pkg, err, out, errOut)
		}
	}
	if err := s.stop(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(s.dir, "daemon.log"))
	if err != nil {
		t.Fatal(err)
	}
	type line struct {
		Time, Level, Msg string
		Build            int64
		State            string
		Release          *struct{ Package, Version, Arch, Channel string }
	}
	says := regexp.MustCompile(`\bbuild [0-9]+\b`)
	states := map[string]bool{}
	for l := range strings.Lines(string(text)) {
		var e line
		if err := json.Unmarshal([]byte(l), &e); err != nil {
			t.Errorf("a line is no JSON: %v: %s", err, l)
			continue
		}
		if e.Time == "" || e.Level == "" || e.Msg == "" {
			t.Errorf("a line lacks what all have: %s", l)
		}
		if (e.Build != 0) != (e.Release != nil) || e.Build == 0 && says.MatchString(e.Msg) {
			t.Errorf("a line about a build does not name it and its release: %s", l)
		}
		if r := e.Release; r != nil {
			want := map[int64]string{1: "hello", 2: "broken"}[e.Build]
			if r.Package != want || r.Version != "1.0" || r.Arch != config.HostArch() || r.Channel != "testing" {
				t.Errorf("build %d is not of this release: %s", e.Build, l)
			}
			states[r.Package+" "+e.State] = true
		}
	}
	for _, want := range []string{"hello queued", "hello running", "hello recording", "hello succeeded", "broken failed"} {
		if !states[want] {
			t.Errorf("no line tells that %s; the log:\n%s", want, text)
		}
	}
}
