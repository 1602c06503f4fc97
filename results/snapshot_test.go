package results

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/Morphux/quarry"
)

func TestSpread(t *testing.T) {
	for name, want := range map[string]string{
		"a": "1/a", "R": "1/R", "ab": "2/ab", "abc": "3/a/abc", "Ack": "3/a/Ack",
		"zlib": "zl/ib/zlib", "MPlayer": "mp/la/MPlayer", "a+b-c": "a+/b-/a+b-c", "gtk-doc": "gt/k-/gtk-doc",
	} {
		if got := Spread(name); got != want {
			t.Errorf("Spread(%q) = %q, want %q", name, got, want)
		}
	}
}

// shelf is a repository with a bit of everything.
func shelf(t *testing.T) (*Repo, *Snapshot) {
	t.Helper()
	r := open(t, Options{})
	n := int64(0)
	put := func(make func(string, string, string, int64) *quarry.Outcome, pkg, version, arch, description string) {
		n++
		o := make(pkg, version, arch, n)
		o.Info.Description = description
		record(t, r, o)
	}
	put(sample, "zlib", "1.2.9", "x86_64", "compression")
	put(sample, "zlib", "1.2.10", "x86_64", "compression")
	put(sample, "zlib", "1.3-rc1", "x86_64", "compression")
	put(sample, "zlib", "1.2.10", "riscv64", "compression")
	put(failing, "zlib", "1.3", "x86_64", "compression")
	put(sample, "a", "1", "noarch", "one letter")
	put(sample, "ab", "1", "x86_64", "two letters")
	put(sample, "abc", "1", "x86_64", "three letters")
	put(sample, "ABC", "2", "x86_64", "three LETTERS, upper")
	put(failing, "bash", "5.2", "x86_64", "shell")
	return r, snapshot(t, r)
}

func collect[T any](t *testing.T, seq iter.Seq2[T, error], name func(T) string) []string {
	t.Helper()
	var out []string
	for v, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, name(v))
	}
	return out
}

func recordName(r *Record) string { return r.Target().String() }

func same(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s = %q, want %q", what, got, want)
	}
}

func TestSnapshotAnswers(t *testing.T) {
	_, s := shelf(t)
	ctx := t.Context()

	same(t, "Packages", collect(t, s.Packages(ctx), func(s string) string { return s }), "a", "ab", "ABC", "abc", "zlib")
	same(t, "List", collect(t, s.List(ctx), recordName),
		"a 1 noarch", "ab 1 x86_64", "ABC 2 x86_64", "abc 1 x86_64",
		"zlib 1.2.9 x86_64", "zlib 1.2.10 riscv64", "zlib 1.2.10 x86_64", "zlib 1.3-rc1 x86_64")
	same(t, "Failures", collect(t, s.Failures(ctx), recordName), "bash 5.2 x86_64", "zlib 1.3 x86_64")
	same(t, "ListPackage", collect(t, s.ListPackage(ctx, "zlib"), recordName),
		"zlib 1.2.9 x86_64", "zlib 1.2.10 riscv64", "zlib 1.2.10 x86_64", "zlib 1.3-rc1 x86_64", "zlib 1.3 x86_64")
	same(t, "ListPackage of none", collect(t, s.ListPackage(ctx, "nothing"), recordName))

	for arch, want := range map[string][]string{"": {"1.2.9", "1.2.10", "1.3-rc1"}, "x86_64": {"1.2.9", "1.2.10", "1.3-rc1"}, "riscv64": {"1.2.10"}, "i686": nil} {
		got, err := s.Versions("zlib", arch)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "Versions for "+arch, got, want...)
	}
	if got, err := s.Versions("a", "x86_64"); err != nil || !slices.Equal(got, []string{"1"}) {
		t.Errorf("Versions of a noarch package = %v, %v", got, err)
	}
	if got, err := s.Archs("zlib", "1.2.10"); err != nil || !slices.Equal(got, []string{"riscv64", "x86_64"}) {
		t.Errorf("Archs = %v, %v", got, err)
	}
	if rec, err := s.Latest("zlib", "riscv64"); err != nil || rec.Version != "1.2.10" {
		t.Errorf("Latest = %v, %v", rec, err)
	}
	if rec, err := s.Latest("a", "x86_64"); err != nil || rec.Arch != "noarch" {
		t.Errorf("Latest of a noarch package = %v, %v", rec, err)
	}
	if a, ok, err := s.Available("a", "1", "x86_64"); err != nil || !ok || a.Arch != "noarch" {
		t.Errorf("Available of a noarch package = %v, %v, %v", a, ok, err)
	}
	if _, ok, err := s.Available("zlib", "1.3", "x86_64"); err != nil || ok {
		t.Errorf("a version that only failed is available: %v", err)
	}
	if rec, err := s.Latest("nothing", "x86_64"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Latest of nothing = %v, %v", rec, err)
	}
	for _, err := range []error{
		second(s.Get("zlib", "1.3", "x86_64")), second(s.Get("nothing", "1", "x86_64")), second(s.Failure("a", "1", "noarch")), second(s.Files("zlib", "1.3", "x86_64")),
	} {
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("%v, want ErrNotFound", err)
		}
	}
	for _, err := range []error{
		second(s.Get("../../x", "1", "x86_64")), second(s.Files("zlib", "1/..", "x86_64")), second(s.Versions("", "")), second(s.Archs("zlib", "..")), second(s.Latest("zlib", "a/b")),
	} {
		if err == nil || errors.Is(err, ErrNotFound) {
			t.Errorf("an unfit name: %v", err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestSearch(t *testing.T) {
	_, s := shelf(t)
	for query, want := range map[string][]string{
		"letters": {"ab 1 x86_64", "ABC 2 x86_64", "abc 1 x86_64"},
		"UPPER":   {"ABC 2 x86_64"},
		"abc":     {"ABC 2 x86_64", "abc 1 x86_64"},
		"a*":      {"a 1 noarch", "ab 1 x86_64", "ABC 2 x86_64", "abc 1 x86_64"},
		"??":      {"ab 1 x86_64"},
		"shell":   nil, // it only failed
	} {
		same(t, "Search "+query, collect(t, s.Search(t.Context(), query), recordName), want...)
	}
	for _, err := range s.Search(t.Context(), "[a") {
		if err == nil || !strings.Contains(err.Error(), "malformed") {
			t.Errorf("Search of a malformed pattern: %v", err)
		}
	}
}

func TestOwners(t *testing.T) {
	_, s := shelf(t)
	owner := func(o Owner) string { return o.Target.String() + " " + o.File.Path }
	all := []string{"a 1 noarch", "ab 1 x86_64", "ABC 2 x86_64", "abc 1 x86_64", "zlib 1.2.9 x86_64", "zlib 1.2.10 riscv64", "zlib 1.2.10 x86_64", "zlib 1.3-rc1 x86_64"}
	with := func(path string, of []string) (out []string) {
		for _, t := range of {
			out = append(out, t+" "+path)
		}
		return out
	}
	same(t, "Owners of a path", collect(t, s.Owners(t.Context(), "/usr/bin/minigzip", ""), owner), with("/usr/bin/minigzip", all)...)
	same(t, "Owners for riscv64", collect(t, s.Owners(t.Context(), "minigzip", "riscv64"), owner),
		"a 1 noarch /usr/bin/minigzip", "zlib 1.2.10 riscv64 /usr/bin/minigzip")
	same(t, "Owners of a pattern", collect(t, s.Owners(t.Context(), "libz.so.*", "riscv64"), owner),
		"a 1 noarch /usr/lib/libz.so.1.3.1", "zlib 1.2.10 riscv64 /usr/lib/libz.so.1.3.1")
	same(t, "Owners of a class", collect(t, s.Owners(t.Context(), "mini[g]zip", "riscv64"), owner),
		"a 1 noarch /usr/bin/minigzip", "zlib 1.2.10 riscv64 /usr/bin/minigzip")
	same(t, "Owners of an odd name", collect(t, s.Owners(t.Context(), "/usr/share/odd\n\xff\\name", ""), owner), with("/usr/share/odd\n\xff\\name", all)...)
	same(t, "Owners of nothing", collect(t, s.Owners(t.Context(), "/usr/bin/minigz", ""), owner))
	for _, query := range []string{"", "[a"} {
		for _, err := range s.Owners(t.Context(), query, "") {
			if err == nil {
				t.Errorf("query %q is accepted", query)
			}
		}
	}
}

func TestWalksStop(t *testing.T) {
	_, s := shelf(t)
	for range s.List(t.Context()) {
		break // must not go on, or range panics
	}
	for range s.Owners(t.Context(), "minigzip", "") {
		break
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var last error
	for _, last = range s.List(ctx) {
	}
	if !errors.Is(last, context.Canceled) {
		t.Errorf("List after the end of its context: %v", last)
	}
}

func TestEmptyChannel(t *testing.T) {
	r := open(t, Options{})
	s := snapshot(t, r)
	if _, ok, err := s.Lookup("zlib", "1", "x86_64"); ok || err != nil {
		t.Errorf("Lookup = %v, %v", ok, err)
	}
	same(t, "List", collect(t, s.List(t.Context()), recordName))
	if vs, err := s.Versions("zlib", ""); len(vs) > 0 || err != nil {
		t.Errorf("Versions = %v, %v", vs, err)
	}
	if n, err := r.LastBuild(); n != 0 || err != nil {
		t.Errorf("LastBuild = %d, %v", n, err)
	}
	if _, err := OpenReader(r.Path(), "testing"); !errors.Is(err, ErrNotFound) {
		t.Errorf("OpenReader of an empty channel: %v", err)
	}
	record(t, r, sample("zlib", "1", "x86_64", 1))
	if _, err := OpenReader(r.Path(), "stable"); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "testing") {
		t.Errorf("OpenReader of an unknown channel: %v", err)
	}
	if _, err := OpenReader(t.TempDir(), "testing"); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("OpenReader of an empty folder: %v", err)
	}
}

// TestOneBadRowStopsNothing puts what others might write beside good records.
func TestOneBadRowStopsNothing(t *testing.T) {
	r, _ := shelf(t)
	good := string(marshal(t, sample("good", "1", "x86_64", 1)))
	edits := []edit{
		{path: "packages/ba/d-/bad-toml/1/x86_64.toml", blob: []byte("schema = 1\n!!")},
		{path: "packages/ba/d-/bad-schema/1/x86_64.toml", blob: []byte(strings.Replace(good, "schema = 1", "schema = 9", 1))},
		{path: "packages/ba/d-/bad-place/1/x86_64.toml", blob: []byte(good)}, // says that it is good 1
		{path: "packages/ba/d-/bad-files/1/x86_64.toml", blob: []byte(strings.ReplaceAll(good, "'good'", "'bad-files'"))},
		{path: "packages/ba/d-/bad-files/1/x86_64.files.toml", blob: []byte("minigzip")},
		{path: "packages/ba/d-/bad-file", blob: []byte("a file where a folder should be")},
		{path: "packages/ba/d-/README", blob: []byte("notes")},
		{path: "packages/xx/yy/elsewhere/1/x86_64.toml", blob: []byte(good)},
		{path: "packages/-x/--/--option/1/x86_64.toml", blob: []byte(good)},
		{path: "packages/go/od/good/1/x86_64.toml", blob: []byte(good)},
		{path: "packages/go/od/good/-1/x86_64.toml", blob: []byte(good)},
		{path: "README.md", blob: []byte("hello")},
	}
	tip, err := readRef(r.Path(), "testing")
	if err != nil {
		t.Fatal(err)
	}
	c, err := r.odb.commit(tip)
	if err != nil {
		t.Fatal(err)
	}
	var set objectSet
	root, err := r.odb.apply(c.tree, edits, &set)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.store(&set); err != nil {
		t.Fatal(err)
	}
	git(t, r.Path(), "update-ref", "refs/heads/testing", git(t, r.Path(), "commit-tree", root.String(), "-p", tip.String(), "-m", "by hand"))

	s := snapshot(t, r)
	var names []string
	var bad []string
	for rec, err := range s.List(t.Context()) {
		if err != nil {
			bad = append(bad, err.Error())
			continue
		}
		names = append(names, recordName(rec))
	}
	same(t, "List", names, "a 1 noarch", "ab 1 x86_64", "ABC 2 x86_64", "abc 1 x86_64", "bad-files 1 x86_64", "good 1 x86_64",
		"zlib 1.2.9 x86_64", "zlib 1.2.10 riscv64", "zlib 1.2.10 x86_64", "zlib 1.3-rc1 x86_64")
	if len(bad) != 3 {
		t.Errorf("List had the errors %q, want three", bad)
	}
	found, failed := 0, 0
	for _, err := range s.Owners(t.Context(), "minigzip", "") {
		if err != nil {
			failed++
		} else {
			found++
		}
	}
	if found != 8 || failed != 1 {
		t.Errorf("Owners found %d and failed for %d, want 8 and 1", found, failed)
	}
	if _, _, err := s.Lookup("bad-toml", "1", "x86_64"); err == nil || !strings.Contains(err.Error(), "packages/ba/d-/bad-toml/1/x86_64.toml") {
		t.Errorf("Lookup of a bad record: %v, want an error that names the file", err)
	}
	// The farm goes on: a new build replaces what cannot be read.
	for i, pkg := range []string{"bad-toml", "bad-schema", "bad-place", "bad-file"} {
		record(t, r, sample(pkg, "1", "x86_64", int64(100+i)))
		if _, ok, err := r.Lookup("testing", pkg, "1", "x86_64"); !ok || err != nil {
			t.Errorf("Lookup of the new record of %s: %v, %v", pkg, ok, err)
		}
	}
	fsck(t, r.Path())
}

// TestReaderOnClone reads a bare clone, as a package manager has it, follows it
// through a fetch, and is not disturbed meanwhile.
func TestReaderOnClone(t *testing.T) {
	r, _ := shelf(t)
	clone := filepath.Join(t.TempDir(), "clone.git")
	git(t, ".", "clone", "-q", "--mirror", r.Path(), clone)
	reader, err := OpenReader(clone, "testing")
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	old := reader.Snapshot
	for i := range int64(3) {
		record(t, r, sample("later", fmt.Sprint(i), "x86_64", 100+i))
	}
	if moved, err := reader.Refresh(); err != nil || moved {
		t.Errorf("Refresh before the fetch = %v, %v", moved, err)
	}
	git(t, clone, "fetch", "-q")
	if moved, err := reader.Refresh(); err != nil || !moved {
		t.Errorf("Refresh after the fetch = %v, %v", moved, err)
	}
	if rec, err := reader.Latest("later", "x86_64"); err != nil || rec.Version != "2" {
		t.Errorf("Latest = %v, %v", rec, err)
	}
	if vs, err := old.Versions("later", ""); err != nil || len(vs) > 0 {
		t.Errorf("the old snapshot has changed: %v, %v", vs, err)
	}
}

func TestOpenRefusesWhatItCannotRead(t *testing.T) {
	dir := t.TempDir()
	git(t, dir, "init", "-q", "--bare", "--object-format=sha256", "long.git")
	for path, want := range map[string]string{
		filepath.Join(dir, "long.git"): "SHA-1",
		dir:                            "no bare git repository",
	} {
		if _, err := Open(path, Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Open(%s) = %v, want an error about %s", filepath.Base(path), err, want)
		}
	}
	// One that stock git has made is fine.
	git(t, dir, "init", "-q", "--bare", "stock.git")
	r := openAt(t, filepath.Join(dir, "stock.git"), Options{})
	record(t, r, sample("zlib", "1", "x86_64", 1))
	fsck(t, r.Path())
	if got := git(t, r.Path(), "symbolic-ref", "HEAD"); got != "refs/heads/testing" {
		t.Errorf("HEAD is %s", got)
	}
}
