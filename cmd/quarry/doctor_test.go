package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/internal/testbase"
	"github.com/Morphux/quarry/results"
)

// Doctor shows what is wrong with bases and instances, beside a daemon and
// without one.
func TestDoctorTroubles(t *testing.T) {
	arch := config.HostArch()
	s := newServer(t, t.TempDir())
	// No base from elsewhere.
	text := fmt.Sprintf("state = \"state\"\n%s[channel.testing]\narchs = [%q]\n", s.doors(), arch)
	if err := os.WriteFile(s.config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	s.quarry(t, "images", "load", arch, testbase.Tiny(t, arch))
	systems := []string{"-c", s.config, "doctor", "systems", "base " + arch, "instance testing/" + arch}
	if out := s.must(t, s.bin, systems...); !strings.Contains(out, "ok  systems") {
		t.Errorf("a farm that is well:\n%s", out)
	}

	// An update that failed, of one channel that is there and one that was.
	record := []byte(`{"digest": "sha256:0123", "made": "2026-01-02T03:04:05Z", "trouble": "apt-get update ended with status 100", "trouble_at": "2026-01-03T03:04:05Z"}`)
	for _, channel := range []string{"testing", "bygone"} {
		if err := os.MkdirAll(s.state("instances"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.state("instances", channel+"."+arch+".json"), record, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out := s.must(t, s.bin, systems...)
	if !strings.Contains(out, "warn  instance testing/"+arch) || !strings.Contains(out, "status 100; that of 2026-01-02 03:04 UTC stays in use") || strings.Contains(out, "bygone") {
		t.Errorf("an update that failed:\n%s", out)
	}
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	if out := s.must(t, s.bin, "-c", s.config, "doctor", "arch "+arch, "ssh"); !strings.Contains(out, "native; base "+arch+" sha256:") || !strings.Contains(out, "as a Quarry runs") {
		t.Errorf("beside a daemon:\n%s", out)
	}
	if err := s.stop(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}

	// Somebody alters the base underneath.
	found, err := filepath.Glob(s.state("podman", "root", "overlay", "*", "diff", "bin", "sh"))
	if err != nil || len(found) == 0 {
		t.Fatalf("the base is not where it is altered: %v, %v", found, err)
	}
	for _, sh := range found {
		if err := os.WriteFile(sh, []byte("#!altered"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	out, _, err = s.run("", s.bin, systems...)
	if err == nil || !strings.Contains(out, "fail  base "+arch) || !strings.Contains(out, "bin/sh") {
		t.Errorf("a base that was altered: %v\n%s", err, out)
	}
}

func TestInstanceTroubles(t *testing.T) {
	c := config.Default()
	c.State = t.TempDir()
	c.Channels = map[string]*config.Channel{"testing": {Archs: []string{"x86_64", "zarch", "i686"}}}
	dir := filepath.Join(c.State, "instances")
	now := time.Date(2026, 1, 3, 4, 0, 0, 0, time.UTC)
	if all := instanceTroubles(c, now); len(all) != 0 {
		t.Errorf("without a folder: %v", all)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"testing.x86_64": `{"trouble": "no route", "trouble_at": "2026-01-03T03:00:00Z"}`,
		"testing.zarch":  `{"tr`,
		"testing.i686":   `{"digest": "sha256:1"}`,
		"..":             `{"trouble": "x"}`,
		"testing":        `{"trouble": "x"}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name+".json"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	all := instanceTroubles(c, now)
	if len(all) != 2 {
		t.Fatalf("%+v", all)
	}
	if a := all[0]; a.What != "instance testing/x86_64" || a.Builds || !strings.Contains(a.Why, "could not be made") || !strings.Contains(a.Why, "no route") {
		t.Errorf("%+v", a)
	}
	if a := all[1]; a.What != "instance testing/zarch" || !a.Builds || !strings.Contains(a.Why, "cannot be read") {
		t.Errorf("%+v", a)
	}
}

// TestDoctorLost tells of a farm of which only a part was restored.
func TestDoctorLost(t *testing.T) {
	c := config.Default()
	c.State = t.TempDir()
	said := func() (what string) {
		for _, l := range lost(t.Context(), c) {
			what += l.What + " "
		}
		return what
	}
	mk := func(path string) {
		t.Helper()
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if got := said(); got != "" {
		t.Errorf("of nothing it says %s", got)
	}
	mk(filepath.Join(c.Repos(), "zlib.git"))
	if got := said(); got != "results " {
		t.Errorf("without results it says %s", got)
	}
	repo, err := results.Open(c.Results(), results.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	if got := said(); got != "" {
		t.Errorf("of a farm that has built nothing it says %s", got)
	}
	b := quarry.Build{Number: 1, Release: quarry.Release{Package: "zlib", Version: "1", Channel: "testing", Commit: strings.Repeat("a", 40), Time: time.Unix(1, 0)}, Arch: "x86_64"}
	b.Key = quarry.BuildKey(b.Target(), b.Commit, "")
	if _, err := repo.Record(t.Context(), &quarry.Outcome{Build: b, Status: quarry.Succeeded, Started: time.Unix(1, 0), Ended: time.Unix(2, 0), Facts: &quarry.Facts{}, Artifact: &quarry.Artifact{SHA256: sha("x")}}); err != nil {
		t.Fatal(err)
	}
	mk(c.Artifacts())
	if got := said(); got != "artifacts " {
		t.Errorf("without artifacts it says %s", got)
	}
	mk(filepath.Join(c.Artifacts(), "ab"))
	if got := said(); got != "" {
		t.Errorf("of a whole farm it says %s", got)
	}
}
