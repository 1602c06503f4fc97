package repos

import (
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/testpkg"
)

var pushed = time.Date(2020, 2, 3, 4, 5, 6, 0, time.UTC)

var alice = quarry.Packager{User: "alice", Name: "Alice \"Liddell\" é", Email: "alice@morphux.org", Key: "SHA256:uNiVztksCsDhcc0u9e8BrdsU/X1SbhxZuEyv7KbrQ8s"}

// note notes a push of a branch of hello as it is now, by alice unless p says
// otherwise.
func note(t testing.TB, r *Repos, branch string, p Push) Push {
	t.Helper()
	repo := ensure(t, r, "hello")
	if p.Commit == "" {
		p.Commit = testpkg.Git(t, repo, "rev-parse", "refs/heads/"+branch)
	}
	if p.Packager == (quarry.Packager{}) {
		p.Packager = alice
	}
	if p.Pushed.IsZero() {
		p.Pushed = pushed
	}
	if err := WritePush(t.Context(), repo, branch, p); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPush(t *testing.T) {
	r := open(t)
	release(t, r, "hello", "1.0")
	repo := ensure(t, r, "hello")
	if _, ok, err := ReadPush(t.Context(), repo, "hello-1.0"); ok || err != nil {
		t.Errorf("noted already: %v, %v", ok, err)
	}
	// A hook's environment points git elsewhere; the note goes where it is told.
	t.Setenv("GIT_DIR", t.TempDir())
	t.Setenv("GIT_QUARANTINE_PATH", t.TempDir())
	t.Setenv("GIT_OBJECT_DIRECTORY", t.TempDir())
	want := note(t, r, "hello-1.0", Push{Channel: "stable"})
	got, ok, err := ReadPush(t.Context(), repo, "hello-1.0")
	if diff := cmp.Diff(want, got); diff != "" || !ok || err != nil {
		t.Errorf("%s, %v, %v", diff, ok, err)
	}
	if shown := testpkg.Git(t, repo, "show", "refs/quarry/push/hello-1.0"); !strings.Contains(shown, "user = 'alice'") {
		t.Errorf("git shows %s", shown)
	}
	releases, problems := list(t, r, "hello")
	if len(problems) != 0 || len(releases) != 1 {
		t.Fatalf("%v, %v", releases, problems)
	}
	if rel := releases[0]; rel.Packager != alice || !rel.Pushed.Equal(pushed) || rel.Channel != "stable" || len(rel.Archs) != 1 {
		t.Errorf("%+v", rel)
	}
	testpkg.Git(t, repo, "pack-refs", "--all", "--prune")
	if again, _ := list(t, r, "hello"); !cmp.Equal(releases, again) {
		t.Error(cmp.Diff(releases, again))
	}
	if out := testpkg.Git(t, repo, "fsck", "--strict"); strings.Contains(out, "error") {
		t.Error(out)
	}

	// A channel that is not there: the release is listed, for nothing.
	note(t, r, "hello-1.0", Push{Channel: "gone"})
	releases, problems = list(t, r, "hello")
	if len(releases) != 1 || len(releases[0].Archs) != 0 || releases[0].Channel != "gone" {
		t.Errorf("%+v", releases)
	}
	wantProblems(t, problems, map[string]string{"hello-1.0": "channel gone has no architecture to build for"})
}

// A branch that was moved without a note has its committer, not whoever pushed
// what was there before.
func TestPushOfAnotherCommit(t *testing.T) {
	r := open(t)
	old := release(t, r, "hello", "1.0")
	repo := ensure(t, r, "hello")
	note(t, r, "hello-1.0", Push{Channel: "stable"})
	newer := testpkg.Git(t, repo, "commit-tree", "-p", old, "-m", "Newer", old+"^{tree}")
	testpkg.Git(t, repo, "update-ref", "refs/heads/hello-1.0", newer)
	releases, problems := list(t, r, "hello")
	if len(releases) != 1 || len(problems) != 0 {
		t.Fatalf("%v, %v", releases, problems)
	}
	if rel := releases[0]; rel.Packager.User != "" || rel.Packager.Name != testpkg.AuthorName || rel.Channel != "testing" || rel.Pushed.Unix() != testpkg.Unix {
		t.Errorf("%+v", rel)
	}

	// The note of a push that came first and is written last is dropped.
	note(t, r, "hello-1.0", Push{Packager: quarry.Packager{User: "bob"}})
	note(t, r, "hello-1.0", Push{Commit: old})
	if got, ok, err := ReadPush(t.Context(), repo, "hello-1.0"); got.Packager.User != "bob" || !ok || err != nil {
		t.Errorf("%+v, %v, %v", got, ok, err)
	}
	// So is that of a branch which is gone since.
	testpkg.Git(t, repo, "update-ref", "-d", "refs/heads/hello-1.0")
	note(t, r, "hello-1.0", Push{Commit: newer})
	if got, _, _ := ReadPush(t.Context(), repo, "hello-1.0"); got.Packager.User != "bob" {
		t.Errorf("%+v", got)
	}
}

func TestPushRefuses(t *testing.T) {
	r := open(t)
	commit := release(t, r, "hello", "1.0")
	repo := ensure(t, r, "hello")
	good := Push{Packager: alice, Pushed: pushed, Commit: commit}
	for name, change := range map[string]func(*Push){
		"commit":  func(p *Push) { p.Commit = "HEAD" },
		"inject":  func(p *Push) { p.Commit = commit + "\ndelete refs/heads/master" },
		"channel": func(p *Push) { p.Channel = "../x" },
		"user":    func(p *Push) { p.Packager.User = "a b" },
		"name":    func(p *Push) { p.Packager.Name = "a\nb" },
		"email":   func(p *Push) { p.Packager.Email = "\x1b[2J" },
		"key":     func(p *Push) { p.Packager.Key = strings.Repeat("k", 1001) },
		"cert":    func(p *Push) { p.Packager.Certificate = strings.Repeat("a", 39) + "\n" },
		"signed":  func(p *Push) { p.Packager.Signed = "\xff" },
		"time":    func(p *Push) { p.Pushed = time.Time{} },
	} {
		bad := good
		change(&bad)
		if err := WritePush(t.Context(), repo, "hello-1.0", bad); err == nil {
			t.Errorf("%s: noted", name)
		}
	}
	for _, branch := range []string{"", "-x", "a b", "a\nb", "../x", "a/b", ".x", "x.lock", "a..b", strings.Repeat("x", 300)} {
		if err := WritePush(t.Context(), repo, branch, good); err == nil {
			t.Errorf("branch %q: noted", branch)
		}
	}
	if err := WritePush(t.Context(), t.TempDir(), "hello-1.0", good); err == nil {
		t.Error("noted in a folder")
	}
	if refs := testpkg.Git(t, repo, "for-each-ref", "refs/quarry"); refs != "" {
		t.Errorf("noted after all: %s", refs)
	}
}

// Notes of other servers may have been written by anybody. What cannot be read
// counts as none.
func TestOddNotes(t *testing.T) {
	r := open(t)
	commit := release(t, r, "hello", "1.0")
	repo := ensure(t, r, "hello")
	for name, text := range map[string]string{
		"empty":   "",
		"binary":  "\x00\xff",
		"schema":  "schema = 2\ncommit = '" + commit + "'\npushed = 2020-01-01T00:00:00Z\n",
		"user":    "schema = 1\ncommit = '" + commit + "'\npushed = 2020-01-01T00:00:00Z\n[packager]\nuser = '../../x'\n",
		"channel": "schema = 1\ncommit = '" + commit + "'\npushed = 2020-01-01T00:00:00Z\nchannel = '-x'\n",
		"no time": "schema = 1\ncommit = '" + commit + "'\n",
		"types":   "schema = 1\ncommit = 3\n",
		"large":   "#" + strings.Repeat("x", maxPush),
	} {
		blob := testpkg.GitInput(t, repo, []byte(text), "hash-object", "-w", "--stdin")
		testpkg.Git(t, repo, "update-ref", "refs/quarry/push/hello-1.0", blob)
		if got, ok, err := ReadPush(t.Context(), repo, "hello-1.0"); err == nil {
			t.Errorf("%s: read as %+v, %v", name, got, ok)
		}
		releases, problems := list(t, r, "hello")
		if len(releases) != 1 || releases[0].Packager.Name != testpkg.AuthorName || releases[0].Channel != "testing" || len(problems) != 0 {
			t.Errorf("%s: %+v, %v", name, releases, problems)
		}
	}
	// A note that is there and cannot be got at is trouble, not the absence of one.
	note(t, r, "hello-1.0", Push{})
	blob := testpkg.Git(t, repo, "rev-parse", "refs/quarry/push/hello-1.0")
	if err := os.Remove(repo + "/objects/" + blob[:2] + "/" + blob[2:]); err != nil {
		t.Fatal(err)
	}
	releases, problems := list(t, r, "hello")
	wantProblems(t, problems, map[string]string{"hello-1.0": "who pushed it cannot be read"})
	if len(releases) != 0 {
		t.Errorf("%+v", releases)
	}
	if err := os.RemoveAll(repo + "/refs/quarry"); err != nil {
		t.Fatal(err)
	}
	if releases, problems := list(t, r, "hello"); len(releases) != 1 || len(problems) != 0 {
		t.Errorf("%v, %v", releases, problems)
	}
}

// Several pushes at once: what is noted is about what is there.
func TestPushAtOnce(t *testing.T) {
	r := open(t)
	tree := release(t, r, "hello", "1.0") + "^{tree}"
	repo := ensure(t, r, "hello")
	var wg sync.WaitGroup
	for i := range 6 {
		commit := testpkg.Git(t, repo, "commit-tree", "-m", strings.Repeat("x", i+1), tree)
		testpkg.Git(t, repo, "update-ref", "refs/heads/hello-1.0", commit)
		wg.Go(func() {
			if err := WritePush(t.Context(), repo, "hello-1.0", Push{Packager: alice, Pushed: pushed, Commit: commit}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got, ok, err := ReadPush(t.Context(), repo, "hello-1.0")
	if head := testpkg.Git(t, repo, "rev-parse", "hello-1.0"); got.Commit != head || !ok || err != nil {
		t.Errorf("%+v, %v, %v; branch is at %s", got, ok, err, head)
	}
}

// FuzzParsePush: a note that is taken is fit to be shown, and can be written
// again.
func FuzzParsePush(f *testing.F) {
	f.Add([]byte("schema = 1\ncommit = '" + strings.Repeat("a", 40) + "'\npushed = 2020-01-01T00:00:00Z\nchannel = 'stable'\n[packager]\nuser = 'alice'\n"))
	f.Add([]byte("schema = 1\n"))
	f.Add([]byte("pushed = 9999-12-31T23:59:59-23:59"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := parsePush(data)
		if err != nil {
			return
		}
		if strings.ContainsAny(p.Packager.Name+p.Packager.Email+p.Packager.Key+p.Packager.Signed+p.Packager.Certificate+p.Packager.User, "\n\x1b\x00") {
			t.Fatalf("%+v", p)
		}
		again, err := toml.Marshal(pushFile{pushSchema, *p})
		if err != nil {
			t.Fatal(err)
		}
		q, err := parsePush(again)
		if err != nil {
			t.Fatalf("%v\n%s", err, again)
		}
		if diff := cmp.Diff(p, q); diff != "" {
			t.Fatal(diff)
		}
	})
}

// TestNext is the moment between a branch's moving and the note of who moved
// it: a plan that is made in it, or after a hook that died in it, must not take
// the commit's word, nor the default channel.
func TestNext(t *testing.T) {
	r := open(t)
	first := release(t, r, "hello", "1.0")
	repo := ensure(t, r, "hello")
	note(t, r, "hello-1.0", Push{Channel: "testing"})
	second := testpkg.Git(t, repo, "commit-tree", "-m", "again", "-p", first, first+"^{tree}")
	bob := quarry.Packager{User: "bob", Name: "Bob"}
	next := func(commit string, at time.Time) {
		t.Helper()
		err := WriteNext(t.Context(), repo, []Next{{"hello-1.0", Push{Packager: bob, Pushed: at, Commit: commit, Channel: "stable"}}}, nil)
		if err != nil {
			t.Fatal(err)
		}
	}
	want := func(commit string, by quarry.Packager, channel string) {
		t.Helper()
		got, problems := list(t, r, "hello")
		if len(problems) != 0 || len(got) != 1 || got[0].Commit != commit || got[0].Packager != by || got[0].Channel != channel {
			t.Errorf("got %+v, %v", got, problems)
		}
	}
	next(second, pushed.Add(time.Hour))
	want(first, alice, "testing") // let in, and not there yet
	testpkg.Git(t, repo, "update-ref", "refs/heads/hello-1.0", second)
	want(second, bob, "stable")
	// Back to the first commit, by another than who pushed it first.
	next(first, pushed.Add(2*time.Hour))
	testpkg.Git(t, repo, "update-ref", "refs/heads/hello-1.0", first)
	want(first, bob, "stable")
	note(t, r, "hello-1.0", Push{Pushed: pushed.Add(3 * time.Hour)})
	want(first, alice, "testing")
	if err := WriteNext(t.Context(), repo, nil, nil); err != nil {
		t.Error(err)
	}
	if err := WriteNext(t.Context(), repo, []Next{{"../x", Push{}}}, nil); err == nil {
		t.Error("a path is taken for a branch")
	}
}
