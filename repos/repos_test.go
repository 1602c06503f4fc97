package repos

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/gitfs"
	"github.com/Morphux/quarry/internal/testpkg"
	"github.com/Morphux/quarry/recipe"
)

func open(t testing.TB, extra ...string) *Repos {
	t.Helper()
	r, err := Open(filepath.Join(t.TempDir(), "repos"), extra)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func ensure(t testing.TB, r *Repos, name string) string {
	t.Helper()
	path, err := r.Ensure(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// tryPush pushes with stock git and reports what it said.
func tryPush(dir, repo string, args ...string) (string, error) {
	cmd := exec.Command("git", append([]string{"push", "-q", repo}, args...)...)
	cmd.Dir, cmd.Env = dir, testpkg.Env()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// release pushes a package of testdata/packages to its repository and gives
// the commit.
func release(t testing.TB, r *Repos, name, version string) string {
	t.Helper()
	dir := testpkg.Init(t, name)
	testpkg.SetVersion(t, dir, version)
	if version != "1.0" {
		testpkg.Git(t, dir, "commit", "-q", "-a", "-m", "Release "+version)
	}
	testpkg.Git(t, dir, "push", "-q", ensure(t, r, name), "HEAD:refs/heads/"+quarry.Branch(name, version), "HEAD:refs/heads/master")
	return testpkg.Git(t, dir, "rev-parse", "HEAD")
}

func archs(channel string) []string {
	switch channel {
	case "testing":
		return []string{"x86_64", "aarch64"}
	case "stable":
		return []string{"x86_64"}
	}
	return nil
}

func list(t testing.TB, r *Repos, pkg string) ([]quarry.Release, []Problem) {
	t.Helper()
	releases, problems, err := r.Releases(t.Context(), pkg, archs)
	if err != nil {
		t.Fatal(err)
	}
	return releases, problems
}

// branches is the releases in short, for comparing.
func branches(releases []quarry.Release) []string {
	var names []string
	for _, r := range releases {
		names = append(names, quarry.Branch(r.Package, r.Version))
	}
	return names
}

// wantProblems compares what is wrong, by branch or name of the repository and
// a part of the text.
func wantProblems(t testing.TB, got []Problem, want map[string]string) {
	t.Helper()
	seen := map[string]bool{}
	for _, p := range got {
		key := p.Branch
		if key == "" {
			key = filepath.Base(p.Repo)
		}
		text, ok := want[key]
		if !ok || !strings.Contains(p.Error(), text) || seen[key] {
			t.Errorf("problem with %s: %v, want %q", key, p, text)
		}
		if strings.Contains(p.Error(), "\n") {
			t.Errorf("problem of more than one line: %q", p)
		}
		seen[key] = true
	}
	for key, text := range want {
		if !seen[key] {
			t.Errorf("no problem with %s: %q", key, text)
		}
	}
}

func TestEnsure(t *testing.T) {
	r := open(t)
	prepared := 0
	r.Prepare = func(path string) error {
		prepared++
		return os.WriteFile(filepath.Join(path, "prepared"), nil, 0o644)
	}
	path := ensure(t, r, "zlib")
	if again := ensure(t, r, "zlib"); again != path || filepath.Base(path) != "zlib.git" || prepared != 1 || !isThere(filepath.Join(path, "prepared")) {
		t.Errorf("%s, then %s; prepared %d times", path, again, prepared)
	}
	for key, want := range map[string]string{
		"core.bare": "true", "core.fsync": "committed,reference", "core.logallrefupdates": "true",
		"receive.advertisepushoptions": "true", "receive.hiderefs": "refs/quarry", "receive.fsckobjects": "true", "receive.denydeletes": "false",
	} {
		if got := testpkg.Git(t, path, "config", key); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	for _, name := range []string{"", "..", "../x", "a/b", "-x", ".x", "x.git", "x y", "x\n", strings.Repeat("x", 101)} {
		if path, err := r.Ensure(name); err == nil {
			t.Errorf("repository for %q was made at %s", name, path)
		}
		if path, err := r.Path(name); err == nil {
			t.Errorf("repository for %q is at %s", name, path)
		}
	}
	if _, err := r.Path("nothing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("path of nothing: %v", err)
	}
	if entries, _ := os.ReadDir(r.dir); len(entries) != 1 {
		t.Errorf("folder holds %v", entries)
	}

	// What fails leaves nothing behind, and what a crash left is swept.
	r.Prepare = func(string) error { return errors.New("no hooks today") }
	if _, err := r.Ensure("other"); err == nil || !strings.Contains(err.Error(), "no hooks today") {
		t.Errorf("made in spite of it: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(r.dir, ".new-other-123", "objects"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(r.dir, nil); err != nil {
		t.Fatal(err)
	}
	if entries, _ := os.ReadDir(r.dir); len(entries) != 1 {
		t.Errorf("folder holds %v", entries)
	}
}

func TestEnsureAtOnce(t *testing.T) {
	r := open(t)
	var wg sync.WaitGroup
	paths := make([]string, 12)
	for i := range paths {
		wg.Go(func() {
			path, err := r.Ensure("zlib")
			if err != nil {
				t.Error(err)
			}
			paths[i] = path
		})
	}
	wg.Wait()
	if paths = slices.Compact(paths); len(paths) != 1 {
		t.Errorf("several repositories: %q", paths)
	}
	if entries, _ := os.ReadDir(r.dir); len(entries) != 1 {
		t.Errorf("folder holds %v", entries)
	}
	if got := testpkg.Git(t, paths[0], "config", "--get-all", "receive.hideRefs"); got != "refs/quarry" {
		t.Errorf("configured as %q", got)
	}
}

// What the repositories themselves refuse, hooks or not.
func TestWhatARepositoryRefuses(t *testing.T) {
	r := open(t)
	dir := testpkg.Init(t, "hello")
	repo := ensure(t, r, "hello")
	if out, err := tryPush(dir, repo, "-o", "follow", "HEAD:refs/heads/hello-1.0"); err != nil {
		t.Fatalf("push with an option: %v\n%s", err, out)
	}
	testpkg.Git(t, dir, "update-ref", "refs/blob", testpkg.GitInput(t, dir, []byte("schema = 1\n"), "hash-object", "-w", "--stdin"))
	if out, err := tryPush(dir, repo, "refs/blob:refs/quarry/push/hello-1.0"); err == nil {
		t.Errorf("a pusher could say who pushes:\n%s", out)
	}
	blob := testpkg.GitInput(t, dir, []byte("evil"), "hash-object", "-w", "--stdin")
	tree := testpkg.GitInput(t, dir, []byte("100644 blob "+blob+"\t.git\n"), "mktree")
	commit := testpkg.Git(t, dir, "commit-tree", "-m", "Evil", tree)
	if out, err := tryPush(dir, repo, commit+":refs/heads/hello-2.0"); err == nil {
		t.Errorf("a tree with .git was taken:\n%s", out)
	}
	// A release can be replaced and taken back.
	other := testpkg.Git(t, dir, "commit-tree", "-m", "Other", "HEAD^{tree}")
	if out, err := tryPush(dir, repo, "+"+other+":refs/heads/hello-1.0"); err != nil {
		t.Errorf("release could not be replaced: %v\n%s", err, out)
	}
	if out, err := tryPush(dir, repo, ":refs/heads/hello-1.0"); err != nil {
		t.Errorf("release could not be taken back: %v\n%s", err, out)
	}
}

func TestReleases(t *testing.T) {
	r := open(t)
	if releases, problems := list(t, r, ""); len(releases) != 0 || len(problems) != 0 {
		t.Errorf("nothing yet: %v, %v", releases, problems)
	}
	hello := release(t, r, "hello", "1.0")
	greeter := release(t, r, "greeter", "7.0-p1")
	ensure(t, r, "empty")

	at := time.Unix(testpkg.Unix, 0).UTC()
	who := quarry.Packager{Name: testpkg.AuthorName, Email: testpkg.AuthorEmail}
	want := []quarry.Release{
		{Package: "greeter", Version: "7.0-p1", Channel: "testing", Commit: greeter, Time: at, Pushed: at, Packager: who,
			Repo: filepath.Join(r.dir, "greeter.git"), Archs: []string{"x86_64", "aarch64"}, Needs: []string{"libgreet-1.0"}},
		{Package: "hello", Version: "1.0", Channel: "testing", Commit: hello, Time: at, Pushed: at, Packager: who,
			Repo: filepath.Join(r.dir, "hello.git"), Archs: []string{"x86_64", "aarch64"}},
	}
	for range 2 { // the second time from memory
		releases, problems := list(t, r, "")
		if diff := cmp.Diff(want, releases); diff != "" || len(problems) != 0 {
			t.Errorf("%s\n%v", diff, problems)
		}
	}
	releases, _ := list(t, r, "hello")
	if diff := cmp.Diff(want[1:], releases); diff != "" {
		t.Error(diff)
	}
	if releases, problems := list(t, r, "nothing"); len(releases) != 0 || len(problems) != 0 {
		t.Errorf("no such package: %v, %v", releases, problems)
	}

	// Whatever git does to its files, the list stays the same.
	testpkg.Git(t, want[1].Repo, "gc", "-q")
	fresh, err := Open(r.dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []*Repos{r, fresh} {
		releases, problems := list(t, r, "")
		if diff := cmp.Diff(want, releases); diff != "" || len(problems) != 0 {
			t.Errorf("%s\n%v", diff, problems)
		}
	}

	// A release that moved, one more, one taken back.
	second := release(t, r, "hello", "2.0")
	testpkg.Git(t, want[1].Repo, "update-ref", "refs/heads/hello-1.0", second)
	if releases, problems := list(t, r, "hello"); fmt.Sprint(branches(releases)) != "[hello-2.0]" {
		t.Errorf("%v, %v", releases, problems)
	} else {
		wantProblems(t, problems, map[string]string{"hello-1.0": "package.json says version 2.0: push it as hello-2.0"})
	}
	testpkg.Git(t, want[1].Repo, "update-ref", "-d", "refs/heads/hello-1.0")
	if releases, problems := list(t, r, ""); fmt.Sprint(branches(releases)) != "[greeter-7.0-p1 hello-2.0]" || len(problems) != 0 {
		t.Errorf("%v, %v", releases, problems)
	}
}

func TestRecipeAndSource(t *testing.T) {
	r := open(t)
	release(t, r, "autohello", "1.0")
	releases, _ := list(t, r, "autohello")
	for range 2 {
		got, err := r.Recipe(t.Context(), releases[0])
		if err != nil {
			t.Fatal(err)
		}
		want, err := recipe.Load(os.DirFS(testpkg.Dir(t, "autohello")))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	source, err := r.Source(releases[0])
	if err != nil {
		t.Fatal(err)
	}
	defer source.(*gitfs.FS).Close()
	if info, err := fs.Stat(source, "srcs/configure"); err != nil || info.Mode() != 0o755 {
		t.Errorf("%v, %v", info, err)
	}
	gone := releases[0]
	gone.Commit = strings.Repeat("1", 40)
	if _, err := r.Recipe(t.Context(), gone); err == nil || len(recipe.Problems(err)) > 0 {
		t.Errorf("recipe of a commit that is not there: %v", err)
	}
	if _, err := r.Source(gone); err == nil {
		t.Error("source of a commit that is not there")
	}
}

// One bad row must not stop all.
func TestProblems(t *testing.T) {
	r := open(t)
	good := release(t, r, "hello", "1.0")
	path := func(name string) string { return filepath.Join(r.dir, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	commit := func(repo string, files map[string]string) string {
		t.Helper()
		dir := testpkg.Make(t, "made", files)
		testpkg.Git(t, dir, "push", "-q", repo, "HEAD:refs/heads/incoming")
		testpkg.Git(t, repo, "update-ref", "-d", "refs/heads/incoming")
		return testpkg.Git(t, dir, "rev-parse", "HEAD")
	}
	point := func(repo, branch, hash string) {
		t.Helper()
		testpkg.Git(t, repo, "update-ref", "refs/heads/"+branch, hash)
	}
	recipeOf := func(name, version, more string) map[string]string {
		return map[string]string{"srcs/x": "", "package.json": fmt.Sprintf(`{"package": {"name": %q, "version": %q, "description": "d"}, "compilation": {}%s}`, name, version, more)}
	}

	hello := path("hello.git")
	point(hello, "hello-2", commit(hello, map[string]string{"package.json": "{"}))
	point(hello, "hello-3", commit(hello, map[string]string{"srcs/x": ""}))
	point(hello, "hello-4", commit(hello, recipeOf("other", "4", "")))
	point(hello, "hello-5.lock5", good)
	point(hello, "hello-6", commit(hello, recipeOf("hello", "6", `, "quarry": {"archs": ["vax"]}`)))
	blob := testpkg.GitInput(t, hello, []byte("x"), "hash-object", "-w", "--stdin")
	must(os.WriteFile(filepath.Join(hello, "refs/heads/hello-7"), []byte(blob+"\n"), 0o644))
	point(hello, "hello-8", commit(hello, recipeOf("hello", "8", "")))
	evil := testpkg.GitInput(t, hello, []byte("100644 blob "+testpkg.Git(t, hello, "rev-parse", good+":package.json")+"\t..\n"), "mktree")
	withEvil := testpkg.Git(t, hello, "ls-tree", good) + "\n040000 tree " + evil + "\tdeep"
	point(hello, "hello-10", testpkg.Git(t, hello, "commit-tree", "-m", "Evil", testpkg.GitInput(t, hello, []byte(withEvil+"\n"), "mktree")))
	must(os.WriteFile(filepath.Join(hello, "refs/heads/hello-9"), []byte("ref: refs/heads/hello-1.0\n"), 0o644))
	must(os.WriteFile(filepath.Join(hello, "refs/heads/hello-11"), []byte(strings.Repeat("3", 40)+"\n"), 0o644))
	must(os.WriteFile(filepath.Join(hello, "refs/heads/hello-1~2"), []byte(good+"\n"), 0o644))
	must(os.Mkdir(path("-x.git"), 0o755))
	must(os.Mkdir(path("sp ace.git"), 0o755))
	must(os.Mkdir(path("folder"), 0o755))
	must(os.Mkdir(path("lost+found"), 0o755))
	must(os.Mkdir(path("nogit.git"), 0o755))
	must(os.WriteFile(path("README"), nil, 0o644))
	must(os.Symlink("nowhere", path("dangling.git")))
	broken := release(t, r, "broken", "1.0")
	must(os.RemoveAll(filepath.Join(path("broken.git"), "objects", broken[:2], broken[2:])))
	release(t, r, "escaper", "1.0")
	must(os.RemoveAll(filepath.Join(path("escaper.git"), "packed-refs")))
	must(os.Mkdir(filepath.Join(path("escaper.git"), "packed-refs"), 0o755))
	release(t, r, "autohello", "1.0")

	for range 2 {
		releases, problems := list(t, r, "")
		if got := fmt.Sprint(branches(releases)); got != "[autohello-1.0 hello-1.0 hello-6 hello-8]" {
			t.Errorf("releases %s", got)
		}
		wantProblems(t, problems, map[string]string{
			"hello-2":       "package.json:1:2: the document ends too early",
			"hello-3":       "package.json: is missing",
			"hello-4":       "package.json says that it is other: push it to other.git",
			"hello-6":       "package.json allows only vax, and channel testing has x86_64, aarch64: nothing can be built",
			"hello-7":       "cannot be read",
			"hello-9":       "does not point to a commit",
			"hello-10":      "is a name that git refuses",
			"hello-11":      "object not found",
			"hello-1~2":     "git refuses it in a branch name",
			"hello-5.lock5": "package.json says version 1.0",
			"-x.git":        "may not begin with '-'",
			"sp ace.git":    "may not hold ' '",
			"folder":        "is no repository of a package",
			"README":        "is no repository of a package",
			"nogit.git":     "is no bare git repository, as it has no HEAD",
			"dangling.git":  "is no bare git repository",
			"broken-1.0":    "object not found",
			"escaper.git":   "packed-refs",
		})
		for _, rel := range releases {
			if rel.Version == "6" && len(rel.Archs) != 0 {
				t.Errorf("hello-6 is for %v", rel.Archs)
			}
		}
	}
	// A problem of one package is not asked of another.
	if _, problems := list(t, r, "autohello"); len(problems) != 0 {
		t.Errorf("autohello: %v", problems)
	}
}

func TestExtra(t *testing.T) {
	server := t.TempDir()
	put := func(team, name, version string) string {
		t.Helper()
		path := filepath.Join(server, team, name+".git")
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(testpkg.Bare(t, name, version), path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	r := open(t, filepath.Join(server, "*", "*.git"), filepath.Join(server, "absent", "x.git"))
	release(t, r, "hello", "1.0")
	put("a", "hello", "9.0")
	greeter := put("a", "greeter", "1.0")
	put("b", "greeter", "2.0")
	if err := os.Mkdir(filepath.Join(server, "b", "-bad.git"), 0o755); err != nil {
		t.Fatal(err)
	}
	releases, problems := list(t, r, "")
	if got := fmt.Sprint(branches(releases)); got != "[greeter-1.0 hello-1.0]" || releases[0].Repo != greeter {
		t.Errorf("%s from %v", got, releases)
	}
	wantProblems(t, problems, map[string]string{
		"greeter.git": "package greeter is in " + greeter + " already",
		"hello.git":   "package hello is in " + filepath.Join(r.dir, "hello.git") + " already",
		"-bad.git":    "may not begin with '-'",
	})
	// One that came since is found when it is asked for.
	libgreet := put("c", "libgreet", "1.0")
	if path, err := r.Path("libgreet"); path != libgreet || err != nil {
		t.Errorf("%s, %v", path, err)
	}
	if releases, problems := list(t, r, "libgreet"); len(releases) != 1 || len(problems) != 0 {
		t.Errorf("%v, %v", releases, problems)
	}
	if path, err := r.Ensure("libgreet"); path != libgreet || err != nil {
		t.Errorf("Ensure made %s, %v", path, err)
	}
	// And one that left is gone.
	if err := os.RemoveAll(libgreet); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Path("libgreet"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
	for _, bad := range []string{"relative/*.git", "/srv/[", ""} {
		if _, err := Open(t.TempDir(), []string{bad}); err == nil {
			t.Errorf("extra %q was taken", bad)
		}
	}
}

func TestListingRunsNoGit(t *testing.T) {
	r := open(t)
	release(t, r, "hello", "1.0")
	note(t, r, "hello-1.0", Push{Channel: "stable"})
	t.Setenv("PATH", t.TempDir())
	if _, err := exec.LookPath("git"); err == nil {
		t.Fatal("git is still in PATH")
	}
	releases, problems := list(t, r, "")
	if len(releases) != 1 || releases[0].Channel != "stable" || len(problems) != 0 {
		t.Errorf("%v, %v", releases, problems)
	}
}

// Commits that are gone are forgotten, those in use are not.
func TestForgets(t *testing.T) {
	r := open(t)
	release(t, r, "hello", "1.0")
	repo := ensure(t, r, "hello")
	list(t, r, "")
	dir := testpkg.Init(t, "hello")
	for i := range 5 {
		testpkg.Git(t, dir, "commit", "-q", "--allow-empty", "-m", fmt.Sprint(i))
		testpkg.Git(t, dir, "push", "-q", "-f", repo, "HEAD:refs/heads/hello-1.0")
		list(t, r, "hello")
	}
	if len(r.commits) != 6 {
		t.Fatalf("%d commits are remembered, want 6", len(r.commits))
	}
	for range 3 {
		list(t, r, "")
	}
	if len(r.commits) != 1 {
		t.Errorf("%d commits are remembered, want the one that is released", len(r.commits))
	}
}

func TestConcurrentUse(t *testing.T) {
	r := open(t)
	for _, name := range []string{"hello", "greeter", "libgreet", "autohello"} {
		release(t, r, name, "1.0")
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 5 {
				pkg := ""
				if i%2 == 0 {
					pkg = "hello"
				}
				releases, problems, err := r.Releases(t.Context(), pkg, archs)
				if err != nil || len(problems) > 0 || (pkg == "" && len(releases) != 4) {
					t.Errorf("%v, %v, %v", releases, problems, err)
					return
				}
				for _, rel := range releases {
					if _, err := r.Recipe(t.Context(), rel); err != nil {
						t.Error(err)
					}
				}
				if _, err := r.Ensure(fmt.Sprintf("new%d", i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 3 {
		dir := testpkg.Init(t, "hello")
		testpkg.Git(t, dir, "commit", "-q", "--allow-empty", "-m", fmt.Sprint("again ", i))
		testpkg.Git(t, dir, "push", "-q", "-f", ensure(t, r, "hello"), "HEAD:refs/heads/hello-1.0")
		testpkg.Git(t, ensure(t, r, "hello"), "gc", "-q")
	}
	wg.Wait()
}

func TestCancelled(t *testing.T) {
	r := open(t)
	release(t, r, "hello", "1.0")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := r.Releases(ctx, "", archs); !errors.Is(err, ctx.Err()) {
		t.Errorf("listed in spite of it: %v", err)
	}
}

// TestTimes: a commit that another server took has a time that nothing here can
// write down.
func TestTimes(t *testing.T) {
	r := open(t)
	good := release(t, r, "hello", "1.0")
	repo := filepath.Join(r.dir, "hello.git")
	raw := testpkg.Git(t, repo, "cat-file", "commit", good)
	head, _, _ := strings.Cut(raw, "committer ")
	late := testpkg.GitInput(t, repo, []byte(head+"committer A <a@b> 253402400000 +0000\n\nx\n"), "hash-object", "-t", "commit", "-w", "--stdin")
	testpkg.Git(t, repo, "update-ref", "refs/heads/hello-1.0", late)
	for range 2 { // read, and remembered
		releases, problems := list(t, r, "hello")
		if len(releases) != 0 || len(problems) != 1 || !strings.Contains(problems[0].Error(), "year 10000") {
			t.Errorf("got %v, %v", releases, problems)
		}
	}
}
