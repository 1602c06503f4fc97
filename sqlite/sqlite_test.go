package sqlite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/results/resultstest"
)

// ask puts a question to SQLite's own program.
func ask(tb testing.TB, file, query string) string {
	tb.Helper()
	if _, err := exec.LookPath("sqlite3"); err != nil {
		tb.Fatal("sqlite3 is missing: make deps installs it")
	}
	out, err := exec.Command("sqlite3", "-readonly", "-bail", file, query).CombinedOutput()
	if err != nil {
		tb.Fatalf("%s: %v: %s", query, err, out)
	}
	return strings.TrimSpace(string(out))
}

// farm is a repository that packages are put into.
type farm struct {
	*testing.T
	repo *results.Repo
	last int64
}

func newFarm(t *testing.T) *farm {
	r, err := results.Open(filepath.Join(t.TempDir(), "results.git"), results.Options{SBU: 30})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return &farm{T: t, repo: r}
}

func (f *farm) snapshot() *results.Snapshot {
	f.Helper()
	s, err := f.repo.Snapshot("testing")
	if err != nil {
		f.Fatal(err)
	}
	return s
}

// add records a success.
func (f *farm) add(name, version, arch string, with func(*quarry.Outcome)) {
	f.Helper()
	f.last++
	commit := fmt.Sprintf("%040x", f.last)
	target := quarry.Target{Channel: "testing", Package: name, Version: version, Arch: arch}
	start := time.Date(2026, 3, 14, 0, 0, int(f.last), 0, time.UTC)
	o := &quarry.Outcome{
		Build: quarry.Build{Number: f.last, Key: quarry.BuildKey(target, commit, ""), Arch: arch, Attempt: 1,
			Release: quarry.Release{Package: name, Version: version, Channel: "testing", Commit: commit, Packager: quarry.Packager{User: "alice", Name: "Alice", Email: "alice@morphux.org"}}},
		Status: quarry.Succeeded, Info: quarry.Info{Description: "It is " + name, Category: "lib"},
		Facts:    &quarry.Facts{Size: 2_500_000},
		Artifact: &quarry.Artifact{SHA256: resultstest.Artifact(name, version, arch), Size: 1_234_567},
		Steps:    []quarry.Step{{Name: quarry.StepMake, Wall: 45 * time.Second}},
		Started:  start, Ended: start.Add(time.Second),
	}
	if with != nil {
		with(o)
	}
	if _, err := f.repo.Record(f.Context(), o); err != nil {
		f.Fatal(err)
	}
}

func needs(list ...string) func(*quarry.Outcome) {
	return func(o *quarry.Outcome) { o.Info.Needed = list }
}

func options() Options {
	return Options{Arch: "x86_64", State: Unstable, Archive: func(sha string) string { return sha + ".tar.zst" }}
}

// The table is the package server's: columns by name and place, values of the
// types that it scans them into, the newest version of a name as the first row.
func TestExport(t *testing.T) {
	f := newFarm(t)
	f.add("zlib", "1.3.1", "x86_64", nil)
	f.add("zlib", "1.2", "x86_64", nil)  // older, though built later
	f.add("zlib", "1.4", "aarch64", nil) // for others
	f.add("certs", "2026", "noarch", func(o *quarry.Outcome) { o.Info.Category = "" })
	f.add("openjdk", "21", "x86_64", func(o *quarry.Outcome) { o.Info.Provides = []string{"java-runtime-21"} })
	f.add("app", "1.0", "x86_64", needs("zlib>=1.2", "java-runtime>=17", "certs", "zlib<1.4"))
	f.add("pinned", "1.0", "x86_64", needs("zlib-1.2"))
	file := filepath.Join(t.TempDir(), "what? #1%.db")
	sum, err := Export(t.Context(), f.snapshot(), file, options())
	if err != nil || sum.Rows != 6 || sum.New != 6 {
		t.Fatalf("%+v, %v", sum, err)
	}
	for _, tt := range []struct{ query, want string }{
		{"PRAGMA integrity_check", "ok"},
		{"SELECT group_concat(name || ' ' || type || ' ' || \"notnull\", ', ') FROM pragma_table_info('pkgs')",
			"id INTEGER 1, name TEXT 1, state INTEGER 1, version TEXT 1, category TEXT 1, description TEXT 1, dependencies TEXT 1, archive TEXT 1, " +
				"SBU REAL 1, archiveSize REAL 1, installedSize REAL 1, archiveHash TEXT 1, timeAddPkg INTEGER 1"},
		{"SELECT name FROM sqlite_schema WHERE type = 'table'", "pkgs"},
		{"SELECT name FROM pragma_table_info('pkgs') WHERE pk", "id"},
		// What the package server asks; it takes the first row.
		{"SELECT * FROM pkgs where name = 'zlib' AND category = 'lib'",
			"6|zlib|2|1.3.1|lib|It is zlib||" + resultstest.Artifact("zlib", "1.3.1", "x86_64") + ".tar.zst|1.5|1.234567|2.5|" +
				resultstest.Artifact("zlib", "1.3.1", "x86_64") + "|1773446402\n" +
				"5|zlib|2|1.2|lib|It is zlib||" + resultstest.Artifact("zlib", "1.2", "x86_64") + ".tar.zst|1.5|1.234567|2.5|" +
				resultstest.Artifact("zlib", "1.2", "x86_64") + "|1773446403"},
		{"SELECT version FROM pkgs where name = 'zlib'", "1.3.1\n1.2"},
		{"SELECT name, category FROM pkgs where id = 2", "certs|misc"},
		{"SELECT dependencies FROM pkgs WHERE name = 'app'", "6,3,2"},
		{"SELECT dependencies FROM pkgs WHERE name = 'pinned'", "5"},
	} {
		if got := ask(t, file, tt.query); got != tt.want {
			t.Errorf("%s\n  is   %s\n  want %s", tt.query, got, tt.want)
		}
	}
	if st, err := os.Stat(file); err != nil || st.Mode() != 0o644 {
		t.Errorf("the file's mode is %v, %v", st.Mode(), err)
	}
}

// Ids stay what they are, and are not given out twice, whatever comes and goes; and
// what does not change is the same file.
func TestIDs(t *testing.T) {
	f := newFarm(t)
	f.add("b", "1", "x86_64", nil)
	f.add("c", "1", "x86_64", nil)
	dir := t.TempDir()
	file := filepath.Join(dir, "pkgs.db")
	export := func(s *results.Snapshot) string {
		t.Helper()
		if _, err := Export(t.Context(), s, file, options()); err != nil {
			t.Fatal(err)
		}
		return ask(t, file, "SELECT group_concat(id || name || version, ' ') FROM pkgs")
	}
	first := f.snapshot()
	if got := export(first); got != "1b1 2c1" {
		t.Fatal(got)
	}
	was, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	export(first)
	if again, err := os.ReadFile(file); err != nil || !bytes.Equal(was, again) {
		t.Errorf("the same channel gives other bytes, %v", err)
	}
	f.add("a", "1", "x86_64", nil)
	f.add("b", "2", "x86_64", needs("a"))
	if got := export(f.snapshot()); got != "3a1 4b2 1b1 2c1" {
		t.Error(got)
	}
	if got := export(first); got != "1b1 2c1" { // as after a roll-back
		t.Error(got)
	}
	f.add("d", "1", "x86_64", nil)
	if got := export(f.snapshot()); got != "5a1 6b2 1b1 2c1 7d1" {
		t.Errorf("%s: 3 and 4 have been other packages' once", got)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// What cannot be installed is said, all of it, and the file stays what it was.
func TestMissing(t *testing.T) {
	f := newFarm(t)
	f.add("a", "1", "x86_64", nil)
	dir := t.TempDir()
	file := filepath.Join(dir, "pkgs.db")
	if _, err := Export(t.Context(), f.snapshot(), file, options()); err != nil {
		t.Fatal(err)
	}
	was, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	f.add("b", "1", "x86_64", needs("nobody", "a>=1"))
	f.add("c", "1", "x86_64", needs("a>=2"))
	f.add("d", "1", "x86_64", needs("a>2", "a<1"))
	f.add("boot", "1", "x86_64", func(o *quarry.Outcome) { o.Info.Needed, o.Build.Without = []string{"later", "a"}, []string{"later"} })
	_, err = Export(t.Context(), f.snapshot(), file, options())
	missing := new(MissingError)
	if !errors.As(err, &missing) || len(missing.Missing) != 3 {
		t.Fatalf("%v", err)
	}
	for _, says := range []string{"b 1 needs nobody", "c 1 needs a>=2", "d 1: dependencies a>2 and a<1 contradict each other"} {
		if !strings.Contains(err.Error(), says) {
			t.Errorf("%q is not in %v", says, err)
		}
	}
	if now, err := os.ReadFile(file); err != nil || !bytes.Equal(was, now) {
		t.Errorf("the file is another one, %v", err)
	}
	o := options()
	o.Partial = true
	sum, err := Export(t.Context(), f.snapshot(), file, o)
	if err != nil || len(sum.Missing) != 3 || sum.New != 4 {
		t.Fatalf("%+v, %v", sum, err)
	}
	if got := ask(t, file, "SELECT group_concat(name || ':' || dependencies, ' ') FROM pkgs"); got != "a: b:1 boot:1 c: d:" {
		t.Error(got)
	}
}

// A file that is something else is not written over.
func TestNoDatabase(t *testing.T) {
	f := newFarm(t)
	f.add("a", "1", "x86_64", nil)
	dir := t.TempDir()
	text, other := filepath.Join(dir, "notes.txt"), filepath.Join(dir, "other.db")
	if err := os.WriteFile(text, []byte("notes of years"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("sqlite3", other, "CREATE TABLE people (name)").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, file := range []string{text, other} {
		was, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Export(t.Context(), f.snapshot(), file, options()); err == nil || !strings.Contains(err.Error(), "remove it, or name another file") {
			t.Errorf("%s: %v", file, err)
		}
		if now, err := os.ReadFile(file); err != nil || !bytes.Equal(was, now) {
			t.Errorf("%s is another file, %v", file, err)
		}
	}
	for _, arch := range []string{"", quarry.Noarch, "../x"} {
		o := options()
		o.Arch = arch
		if _, err := Export(t.Context(), f.snapshot(), filepath.Join(dir, "new.db"), o); err == nil {
			t.Errorf("arch %q is taken", arch)
		}
	}
}

// An export that is called off leaves nothing.
func TestCalledOff(t *testing.T) {
	f := newFarm(t)
	f.add("a", "1", "x86_64", nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	if _, err := Export(ctx, f.snapshot(), filepath.Join(dir, "pkgs.db"), options()); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func reader(tb testing.TB, size resultstest.Size) *results.Reader {
	tb.Helper()
	r, err := results.OpenReader(resultstest.Farm(tb, size), resultstest.Channel)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { r.Close() })
	return r
}

// At the size of a distribution every id that a package needs is there.
func TestWhole(t *testing.T) {
	r := reader(t, resultstest.Small)
	file := filepath.Join(t.TempDir(), "pkgs.db")
	sum, err := Export(t.Context(), r.Snapshot, file, options())
	if err != nil || sum.Rows != 1000*10 {
		t.Fatalf("%+v, %v", sum, err)
	}
	if got := ask(t, file, "PRAGMA integrity_check"); got != "ok" {
		t.Error(got)
	}
	const dangling = `WITH d(id, need) AS (SELECT pkgs.id, value FROM pkgs, json_each('[' || dependencies || ']'))
		SELECT count(*) || ' ' || (SELECT count(*) FROM d WHERE need NOT IN (SELECT id FROM pkgs)) FROM d`
	var n, bad int
	if _, err := fmt.Sscan(ask(t, file, dangling), &n, &bad); err != nil || n < 10_000 || bad != 0 {
		t.Errorf("%d dependencies, %d of them to nothing, %v", n, bad, err)
	}
}

func BenchmarkExport(b *testing.B) {
	for _, size := range []resultstest.Size{resultstest.Small, resultstest.Medium, resultstest.Large} {
		b.Run(fmt.Sprintf("%dx%d", size.Packages, size.Versions), func(b *testing.B) {
			r := reader(b, size)
			file := filepath.Join(b.TempDir(), "pkgs.db")
			for b.Loop() {
				if _, err := Export(b.Context(), r.Snapshot, file, options()); err != nil {
					b.Fatal(err)
				}
			}
			st, err := os.Stat(file)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(st.Size())/1e6, "MB")
			if got := ask(b, file, "PRAGMA integrity_check"); got != "ok" {
				b.Error(got)
			}
		})
	}
}
