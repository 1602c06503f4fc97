package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/testpkg"
	"github.com/Morphux/quarry/repos"
	"github.com/Morphux/quarry/results"
)

// past is a farm's records and repositories, without a daemon.
type past struct {
	t    *testing.T
	why  why
	repo string
	next int64
}

func newPast(t *testing.T) *past {
	needTools(t, "git")
	dir := t.TempDir()
	res, err := results.Open(filepath.Join(dir, "results.git"), results.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { res.Close() })
	pkgs, err := repos.Open(filepath.Join(dir, "repos"), nil)
	if err != nil {
		t.Fatal(err)
	}
	repo, err := pkgs.Ensure("app")
	if err != nil {
		t.Fatal(err)
	}
	return &past{t: t, repo: repo, why: why{&stages{results: res, repos: pkgs, log: slog.New(slog.DiscardHandler)}}}
}

// commit puts files into the package's repository.
func (p *past) commit(files map[string]string) string {
	p.t.Helper()
	work := p.t.TempDir()
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(work, name)), 0o755); err != nil {
			p.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(work, name), []byte(text), 0o644); err != nil {
			p.t.Fatal(err)
		}
	}
	git := func(args ...string) string {
		cmd := exec.Command("git", append([]string{"-C", work}, args...)...)
		cmd.Env = testpkg.Env()
		out, err := cmd.CombinedOutput()
		if err != nil {
			p.t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	git("init", "-q", "-b", "master")
	git("add", "-A")
	git("commit", "-q", "-m", "Change")
	hash := git("rev-parse", "HEAD")
	git("push", "-q", p.repo, "HEAD:refs/heads/b-"+hash)
	return hash
}

// build records an outcome and gives its build.
func (p *past) build(version, commit string, change func(*quarry.Outcome)) quarry.Build {
	p.t.Helper()
	p.next++
	b := quarry.Build{Number: p.next, Arch: "x86_64", Attempt: 1, Nonce: fmt.Sprint(p.next),
		Release: quarry.Release{Package: "app", Version: version, Channel: "testing", Commit: commit, Time: time.Unix(1500000000, 0)}}
	b.Key = quarry.BuildKey(b.Target(), commit, b.Nonce)
	now := time.Unix(1500000000+p.next, 0)
	o := &quarry.Outcome{Build: b, Status: quarry.Succeeded, Started: now, Ended: now.Add(time.Second), Facts: &quarry.Facts{}, Artifact: &quarry.Artifact{SHA256: strings.Repeat("a", 64), Size: 1},
		Host: quarry.HostInfo{Builder: "farm1", Base: "sha256:base1", Instance: "sha256:base1", Kernel: "6.1", CPUs: 4, Memory: 4 << 30, Processes: 100, Step: 3600},
		Deps: []quarry.DepUsed{{Package: "zlib", Version: "1.3", Artifact: strings.Repeat("b", 64), Direct: true}}}
	if change != nil {
		change(o)
	}
	record, err := p.why.results.Record(context.Background(), o)
	if err != nil {
		p.t.Fatal(err)
	}
	b.State, b.Record = o.Status, record
	return b
}

func fails(o *quarry.Outcome) {
	o.Status, o.Facts, o.Artifact = quarry.Failed, nil, nil
	o.LogLines = []string{"one", "\x1b[31mtwo"}
	o.Failure = &quarry.Failure{Step: "make", Cause: quarry.CauseExit, Message: "make ended with status 2", Status: 2, Reproduce: "quarry build app",
		Class: "compiler", Error: "a.c:1:1: error: bad", Line: 7, Excerpt: []string{"  CC a.o", "a.c:1:1: error: bad"}, Hint: "Mend it."}
}

// TestSince: what is different from the last success is listed, and nothing else.
func TestSince(t *testing.T) {
	p := newPast(t)
	files := map[string]string{
		"package.json": "{\n\"a\": 1,\n\"b\": 2\n}\n", "srcs/app.tar": strings.Repeat("x", 2000), "scripts/before.sh": "true\n", "patches/gone.patch": "--- a\n"}
	first := p.commit(files)
	if b := p.build("1.0", first, fails); true {
		r, err := p.why.Why(t.Context(), b)
		if err != nil || r.Since != nil || r.Failure.Class != "compiler" || r.Failure.Line != 7 || r.Failure.Hint != "Mend it." || r.Reproduce != "quarry build app" {
			t.Fatalf("got %+v, %v", r, err)
		}
		if strings.Join(r.Log, "|") != `one|\x1b[31mtwo` {
			t.Errorf("the log is %q", r.Log)
		}
	}
	good := p.build("1.0", first, nil)
	if r, err := p.why.Why(t.Context(), good); err != nil || r.Failure != nil || r.Since != nil {
		t.Errorf("of a success it says %+v, %v", r, err)
	}

	// The same again, that fails: nothing has changed.
	same := p.build("1.0", first, fails)
	r, err := p.why.Why(t.Context(), same)
	if err != nil || r.Since == nil || r.Since.Changed() || r.Since.Build != good.Number || r.Since.Commit != first {
		t.Fatalf("got %+v, %v", r.Since, err)
	}
	if s := r.Since.Summary("1.0", time.Now()); !strings.HasPrefix(s, "nothing has changed since the last success (build 2, ") {
		t.Error(s)
	}

	// A newer version in which everything is different.
	files["package.json"] = "{\n\"a\": 1,\n\"b\": 3\n}\n"
	files["srcs/app.tar"] = strings.Repeat("y", 3000)
	files["scripts/after.sh"] = "echo \x1b[31m\n"
	delete(files, "patches/gone.patch")
	second := p.commit(files)
	bad := p.build("2.0", second, func(o *quarry.Outcome) {
		fails(o)
		o.Host = quarry.HostInfo{Builder: "farm2", Base: "sha256:base2", Instance: "sha256:instance2", Kernel: "6.2", CPUs: 2, Memory: 2 << 30, Processes: 100, Step: 60}
		o.Deps = []quarry.DepUsed{{Package: "zlib", Version: "1.3.1", Artifact: strings.Repeat("c", 64)}, {Package: "xz", Version: "5", Artifact: strings.Repeat("d", 64)}}
	})
	if r, err = p.why.Why(t.Context(), bad); err != nil {
		t.Fatal(err)
	}
	s := r.Since
	if s.Build != good.Number || s.Version != "1.0" || s.Base != "base sha256:base1 is now sha256:base2" || s.Instance != "instance sha256:base1 is now sha256:instance2" {
		t.Errorf("got %+v", s)
	}
	got := strings.Join(s.Lines(true), "\n")
	for _, want := range []string{
		"package.json: changed\n    @@ -1,4 +1,4 @@\n     {\n     \"a\": 1,\n    -\"b\": 2\n    +\"b\": 3\n     }\n",
		"scripts/after.sh: added\n    @@ -0,0 +1,1 @@\n    +echo \\x1b[31m\n",
		"patches/gone.patch: removed\n    @@ -1,1 +0,0 @@\n    ---- a\n",
		"srcs/app.tar: changed (2.9 KiB, git's hash ",
		"zlib 1.3 is now 1.3.1\nxz 5 is new among the dependencies\n",
		"builder farm1 is now farm2", "kernel 6.1 is now 6.2", "processors 4 is now 2", "limit of memory 4.0 GiB is now 2.0 GiB", "limit of a step 1 h 00 m is now 1 m 00 s",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
	if strings.Contains(got, "before.sh") || strings.Contains(got, "processes") {
		t.Errorf("it lists what is the same:\n%s", got)
	}

	// What has happened since is no reason; and old failures are still explained.
	p.build("2.0", second, nil)
	if r, err = p.why.Why(t.Context(), bad); err != nil || r.Since.Build != good.Number {
		t.Errorf("later: %+v, %v", r, err)
	}
	if b, ok, err := p.why.Last(t.Context(), bad.Target()); err != nil || !ok || b.State != quarry.Succeeded || b.Commit != second {
		t.Errorf("the last build is %+v, %v, %v", b, ok, err)
	}
	if _, ok, err := p.why.Last(t.Context(), quarry.Target{Channel: "testing", Package: "none", Version: "1", Arch: "x86_64"}); ok || err != nil {
		t.Error(ok, err)
	}

	// A source that is gone is no reason to say nothing.
	lost := p.build("3.0", strings.Repeat("e", 40), fails)
	if r, err = p.why.Why(t.Context(), lost); err != nil || r.Since == nil || r.Since.Note == "" || r.Since.Version != "2.0" {
		t.Errorf("got %+v, %v", r, err)
	}
	if _, err := p.why.Why(t.Context(), quarry.Build{Number: 99, State: quarry.Failed, Arch: "x86_64", Release: quarry.Release{Package: "app", Version: "9", Channel: "testing"}}); err == nil {
		t.Error("a build without a record is explained")
	}
}

// TestUnified holds the differences against diff -u.
func TestUnified(t *testing.T) {
	needTools(t, "diff")
	dir := t.TempDir()
	lines := func(n int, change map[int]string) string {
		var b strings.Builder
		for i := 1; i <= n; i++ {
			if s, ok := change[i]; !ok {
				fmt.Fprintf(&b, "line %d\n", i)
			} else if s != "" {
				b.WriteString(s + "\n")
			}
		}
		return b.String()
	}
	for i, c := range [][2]string{
		{lines(30, nil), lines(30, map[int]string{1: "first", 9: "", 20: "a\nb", 30: ""})},
		{lines(30, nil), lines(30, map[int]string{5: "x", 12: "y"})},
		{lines(30, nil), lines(30, map[int]string{5: "x", 13: "y"})},
		{lines(3, nil), lines(60, nil)},
		{"", lines(3, nil)},
		{lines(3, nil), ""},
	} {
		a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
		for path, text := range map[string]string{a: c[0], b: c[1]} {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		out, _ := exec.Command("diff", "-u", a, b).Output()
		_, want, _ := strings.Cut(string(out), "\n")
		_, want, _ = strings.Cut(want, "\n")
		got := strings.Join(unified([]byte(c[0]), []byte(c[1]), 1000), "\n") + "\n"
		// diff leaves a length of 1 out.
		if got = strings.NewReplacer(",1 @@", " @@", ",1 +", " +").Replace(got); got != want {
			t.Errorf("case %d: got\n%swant\n%s", i, got, want)
		}
	}
	if got := unified([]byte(lines(500, nil)), nil, 10); len(got) > 11 || got[len(got)-1] != "(cut here)" {
		t.Errorf("%d lines: %q", len(got), got)
	}
}

// TestCompareTreesBounded: however much has changed, what is shown is little.
func TestCompareTreesBounded(t *testing.T) {
	was, is := fstest.MapFS{}, fstest.MapFS{}
	for i := range 1000 {
		is[fmt.Sprintf("patches/%d.patch", i)] = &fstest.MapFile{Data: []byte(strings.Repeat("line "+strings.Repeat("x", 2000)+"\n", 20))}
	}
	is["patches/odd\x1b[31m"] = &fstest.MapFile{Data: []byte("a\x00b")}
	list, err := compareTrees(t.Context(), was, is)
	if err != nil || len(list) != maxDiffFiles+1 || !strings.Contains(list[maxDiffFiles].Path, "901 more files") {
		t.Fatalf("%d files, %v", len(list), err)
	}
	sum := 0
	for _, d := range list {
		sum += len(d.Diff)
		if slices.ContainsFunc(append(d.Diff, d.Path, d.What), func(s string) bool { return len(s) > maxDiffLine+10 || strings.Contains(s, "\x1b") }) {
			t.Errorf("%.100q is not fit to be shown", d)
		}
	}
	if sum > maxDiffLines+maxDiffFiles {
		t.Errorf("%d lines", sum)
	}
}
