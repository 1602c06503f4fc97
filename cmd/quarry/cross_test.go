package main

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/internal/testbase"
	"github.com/Morphux/quarry/internal/testpkg"
	"github.com/Morphux/quarry/results"
)

// crossPackages are built for two archs, of which one is cross built.
func crossPackages(t *testing.T) map[string]string {
	t.Helper()
	recipe := func(name, rest string) string {
		return fmt.Sprintf(`{"package": {"name": %q, "version": "1.0", "description": "A test"}, %s}`, name, rest)
	}
	return map[string]string{
		// A tool that runs while others are built.
		"inscribe": testpkg.Make(t, "inscribe", map[string]string{
			"package.json":    recipe("inscribe", `"compilation": {"make": "${CC:-gcc} -o inscribe inscribe.c", "install": "install -D inscribe $DESTDIR/usr/bin/inscribe"}`),
			"srcs/inscribe.c": "#include <stdio.h>\nint main(void) { return puts(\"#define TEXT \\\"inscribed\\\"\") < 0; }\n",
		}),
		"libdial": testpkg.Make(t, "libdial", map[string]string{
			"package.json": recipe("libdial", `"compilation": {"make": "", "install": "install"}`),
			"srcs/Makefile": "all:\n\t$(CC) -shared -fPIC -Wl,-soname,libdial.so.1 -o libdial.so.1 dial.c\n" +
				"install:\n\tinstall -D libdial.so.1 $(DESTDIR)/usr/lib/libdial.so.1\n\tln -s libdial.so.1 $(DESTDIR)/usr/lib/libdial.so\n\tinstall -D -m 644 dial.h $(DESTDIR)/usr/include/dial.h\n",
			"srcs/dial.h": "int dial(void);\n", "srcs/dial.c": "#include \"dial.h\"\nint dial(void) { return 7; }\n",
		}),
		"reading": testpkg.Make(t, "reading", map[string]string{
			"package.json": recipe("reading", `"compilation": {"make": "", "test": "check", "install": "install"}, "dependencies": ["libdial"], "quarry": {"dependencies": {"host": ["inscribe"]}}`),
			"srcs/Makefile": "all:\n\tinscribe >text.h\n\t$(CC) -o reading reading.c -ldial\n" +
				"check:\n\t./reading\ninstall:\n\tinstall -D reading $(DESTDIR)/usr/bin/reading\n",
			"srcs/reading.c": "#include <stdio.h>\n#include <dial.h>\n#include \"text.h\"\nint main(void) { return printf(\"%s %d\\n\", TEXT, dial()) < 0; }\n",
		}),
		// It runs what it has built.
		"native": testpkg.Make(t, "native", map[string]string{
			"package.json": recipe("native", `"compilation": {"make": "true ;", "install": "mkdir -p $DESTDIR/usr/share"}, "quarry": {"when": [{"cross": true, "nocross": "it runs what it has built"}]}`),
			"srcs/README":  "none\n",
		}),
	}
}

// TestCross has a farm cross build: first where the toolchain is missing, then
// where it is there.
func TestCross(t *testing.T) {
	testbase.Emulate(t)
	host, foreign := config.HostArch(), testbase.Foreign
	s := newServer(t, t.TempDir())
	s.writeConfig(t, fmt.Sprintf("[build]\nworkers_for = ['%s:%s', '%s:%s:50']\n[channel.testing]\narchs = [%q, %q]\n", host, host, host, foreign, host, foreign))
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	defer s.stop(syscall.SIGTERM)
	dirs := crossPackages(t)
	if err := s.push(dirs["libdial"], "libdial", "1.0"); err != nil {
		t.Fatal(err)
	}
	lacks := ""
	waitWithin(t, 5*time.Minute, s, "one build to succeed, and cross builds to pause", func(st statusOut) bool {
		for _, p := range st.Queue.Paused {
			lacks = p.Reason
		}
		return len(st.Ended) == 1 && len(st.Live) == 1 && strings.Contains(lacks, "has no cross toolchain for "+foreign)
	})
	if st := s.status(t); st.Ended[0].Arch != host || st.Ended[0].State != quarry.Succeeded || st.Live[0].Arch != foreign || st.Live[0].State != quarry.Queued {
		t.Errorf("ended %+v, live %+v", st.Ended, st.Live)
	}
	if !strings.Contains(lacks, "-linux-gnu-gcc") {
		t.Errorf("it pauses for %s", lacks)
	}
	// A base that has it is loaded, and builds go on by themselves.
	s.quarry(t, "images", "load", host, testbase.CrossTarball(t))
	for _, pkg := range []string{"reading", "inscribe", "native"} {
		if err := s.push(dirs[pkg], pkg, "1.0"); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.push(testdataPackage(t, "tally"), "tally", "1.0"); err != nil { // whose Makefile says CC = cc
		t.Fatal(err)
	}
	st := s.settle(t, 10*time.Minute)
	states := map[string]quarry.Build{}
	for _, b := range st.Ended {
		states[b.Package+" "+b.Arch] = b
	}
	for _, pkg := range []string{"libdial", "inscribe", "reading", "tally", "native"} {
		for _, arch := range []string{host, foreign} {
			want := quarry.Succeeded
			switch {
			case pkg == "tally" && arch == foreign:
				want = quarry.Failed
			case pkg == "native" && arch == foreign:
				want = "" // no build at all
			}
			if b := states[pkg+" "+arch]; b.State != want {
				t.Errorf("%s %s is %q, want %q: %s", pkg, arch, b.State, want, b.Reason)
			}
		}
	}
	if t.Failed() {
		t.Fatal(s.logText())
	}
	why := "no worker can build it: nocross, and there is no native worker for " + foreign
	if out := s.quarry(t, "status", "native"); !strings.Contains(out, "native 1.0 is not built for "+foreign+" on testing: "+why) {
		t.Errorf("status says\n%s", out)
	}

	for _, arch := range []string{host, foreign} {
		rec := s.record(t, "reading", arch)
		cross := ""
		if arch == foreign {
			cross = host
		}
		if rec.Host.Cross != cross || rec.Host.Emulation != "native" {
			t.Errorf("%s: built on %+v", arch, rec.Host)
		}
		libs := ""
		for _, l := range rec.Libraries {
			libs += fmt.Sprintf("%s %s %s %s; ", l.Soname, l.Arch, l.From, l.Owner)
		}
		if want := fmt.Sprintf("libc.so.6 %s base ; libdial.so.1 %s dependency libdial; ", arch, arch); libs != want {
			t.Errorf("%s: libraries %s, want %s", arch, libs, want)
		}
		deps := ""
		for _, d := range rec.Dependencies {
			deps += fmt.Sprintf("%s %s %v %v; ", d.Package, d.Arch, d.Direct, d.ABI != "")
		}
		want := "libdial  true true; inscribe  true false; "
		if cross != "" {
			want = "inscribe " + host + " true false; libdial  true true; "
		}
		if deps != want {
			t.Errorf("%s: built with %s, want %s", arch, deps, want)
		}
		for path, data := range artifactFiles(t, s.state("artifacts", rec.Artifact[:2], rec.Artifact+".tar.zst"), rec.Artifact) {
			e, err := elf.NewFile(bytes.NewReader(data))
			if err != nil || e.Machine != machineOf(t, arch) {
				t.Errorf("%s: %s is for %v (%v)", arch, path, e, err)
			}
		}
		log := s.quarry(t, "log", strconv.FormatInt(rec.Build, 10))
		if !strings.Contains(log, "\ninscribed 7\n") || strings.Contains(log, "cross built on "+host) != (cross != "") {
			t.Errorf("%s: the log says\n%s", arch, log)
		}
	}
	number := strconv.FormatInt(states["reading "+foreign].Number, 10)
	if out := s.quarry(t, "status", number); !strings.Contains(out, "cross built  on "+host) {
		t.Errorf("status %s says\n%s", number, out)
	}
	if out := s.quarry(t, "db", "show", "reading", "1.0", "--arch", foreign); !strings.Contains(out, "native, cross built on "+host) {
		t.Errorf("db show says\n%s", out)
	}
	bad := s.record(t, "tally", foreign)
	if f := bad.Failure; f == nil || f.Cause != quarry.CauseOutput || f.Step != quarry.StepExtract || !strings.Contains(f.Message, "honour CC") ||
		!strings.Contains(f.Reproduce, "--arch "+foreign+" --cross ") || strings.Join(f.Paths, " ") != "/usr/bin/tally /usr/bin/tally-static /usr/lib/libtally.a /usr/lib/libtally.so.1" {
		t.Errorf("the failure is %+v", f)
	}
}

// record is the newest record of a package's version 1.0.
func (s *server) record(t *testing.T, pkg, arch string) *results.Record {
	t.Helper()
	target := quarry.Target{Package: pkg, Version: "1.0", Arch: arch, Channel: "testing"}
	path := results.RecordPath(target)
	if _, _, err := s.run(s.dir, "git", "-C", s.state("results.git"), "cat-file", "-e", "testing:"+path); err != nil {
		path = results.FailurePath(target)
	}
	rec, err := results.Parse([]byte(s.must(t, "git", "-C", s.state("results.git"), "show", "testing:"+path)))
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

// TestBuildCross is one build without a farm.
func TestBuildCross(t *testing.T) {
	host, foreign := config.HostArch(), testbase.Foreign
	s := newServer(t, t.TempDir())
	s.image = testbase.CrossImageStore(t)
	s.writeConfig(t, "")
	dirs := crossPackages(t)
	var out quarry.Outcome
	text := s.quarry(t, "build", "-q", "--json", "--arch", foreign, "--cross", "-o", filepath.Join(s.dir, "out"), dirs["libdial"])
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		t.Fatal(err)
	}
	if out.Status != quarry.Succeeded || out.Host.Cross != host || out.Build.Environment().String() != "testing/"+foreign+"@"+host {
		t.Errorf("%s in %+v", out.Status, out.Host)
	}
	libs := 0
	for _, f := range out.Facts.Files {
		if f.ELF != nil {
			libs++
			if f.ELF.Arch != foreign {
				t.Errorf("%s is for %s", f.Path, f.ELF.Arch)
			}
		}
	}
	if libs != 1 {
		t.Errorf("%d libraries", libs)
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"build", "-q", "--cross", dirs["libdial"]}, host + " is not cross built on " + host},
		{[]string{"build", "-q", "--cross", "--arch", foreign, dirs["native"]}, "native cannot be cross built for " + foreign + ": its recipe says nocross"},
		{[]string{"build", "-q", "--cross", "--arch", foreign, dirs["reading"]}, "reading needs libdial, inscribe, and there are no records"},
	} {
		if _, errOut, err := s.run(s.dir, s.bin, append([]string{"-c", s.config}, tt.args...)...); err == nil || !strings.Contains(errOut, tt.want) {
			t.Errorf("%v: %v, %s; want %s", tt.args, err, errOut, tt.want)
		}
	}
}
