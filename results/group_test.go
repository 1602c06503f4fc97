package results

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
)

var both = []string{"aarch64", "x86_64"}

// submission is of the group g, of packages at version 2.0 for both archs.
func submission(id string, pkgs ...string) quarry.Submission {
	s := quarry.Submission{Group: "g", Channel: "testing", ID: id, At: time.Unix(1_800_000_000, 0).UTC(),
		By: quarry.Packager{User: "alice", Name: "Alice Liddell", Email: "alice@morphux.org", Key: "SHA256:abc"}}
	for _, pkg := range pkgs {
		s.Members = append(s.Members, quarry.Member{Package: pkg, Version: "2.0", Commit: sample(pkg, "2.0", "x86_64", 1).Build.Commit, Archs: both})
	}
	return s
}

// of makes an outcome that of a build of the group g.
func of(id string, o *quarry.Outcome) *quarry.Outcome {
	o.Build.Group, o.Build.Stage = "g", id
	return o
}

func submit(t testing.TB, r *Repo, s quarry.Submission) {
	t.Helper()
	if err := r.Submit(context.Background(), s); err != nil {
		t.Fatal(err)
	}
}

func stage(t testing.TB, r *Repo, o *quarry.Outcome) string {
	t.Helper()
	h, err := r.Stage(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func land(t testing.TB, r *Repo, id string) string {
	t.Helper()
	h, err := r.Land(context.Background(), "testing", "g", id)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// stageAll stages successes of packages for both archs.
func stageAll(t testing.TB, r *Repo, id string, first int64, pkgs ...string) {
	t.Helper()
	for _, pkg := range pkgs {
		for _, arch := range both {
			stage(t, r, of(id, sample(pkg, "2.0", arch, first)))
			first++
		}
	}
}

func tipOf(t testing.TB, r *Repo) string {
	t.Helper()
	s, err := r.Snapshot("testing")
	if err != nil {
		t.Fatal(err)
	}
	return s.Commit()
}

// TestGroupLands: while a group is built nobody sees anything of it but itself;
// then all of it is there with one commit.
func TestGroupLands(t *testing.T) {
	r := open(t, Options{})
	record(t, r, sample("liba", "1.0", "x86_64", 1))
	record(t, r, sample("liba", "2.0", "x86_64", 2)) // another artifact of the same version
	record(t, r, failing("user", "2.0", "x86_64", 3))
	before := tipOf(t, r)
	submit(t, r, submission("one", "liba", "user"))

	pending := func(pkg, arch string) bool {
		s, err := r.Staged("testing", "g")
		if err != nil {
			t.Fatal(err)
		}
		is, err := s.Pending(pkg, arch)
		if err != nil {
			t.Fatal(err)
		}
		return is
	}
	if !pending("liba", "x86_64") || pending("other", "x86_64") || pending("liba", "riscv64") {
		t.Error("of a new submission nothing, or something else, is pending")
	}
	for i, arch := range both {
		o := of("one", sample("liba", "2.0", arch, int64(10+i)))
		o.Artifact.SHA256 = strings.Repeat("77", 32)
		stage(t, r, o)
	}
	if pending("liba", "x86_64") {
		t.Error("what is built is pending")
	}
	if _, err := r.Land(t.Context(), "testing", "g", "one"); err == nil || !strings.Contains(err.Error(), "user 2.0 aarch64 has not been built") {
		t.Errorf("half a group: %v", err)
	}
	stageAll(t, r, "one", 12, "user")
	if tip := tipOf(t, r); tip != before {
		t.Errorf("the channel is at %s while the group is built, and was at %s", tip, before)
	}
	view, err := r.Staged("testing", "g")
	if err != nil {
		t.Fatal(err)
	}
	if vs, err := view.Versions("liba", "x86_64"); err != nil || fmt.Sprint(vs) != "[1.0 2.0]" {
		t.Errorf("the group sees versions %v of liba, %v", vs, err)
	}
	if vs, err := view.Versions("liba", "aarch64"); err != nil || fmt.Sprint(vs) != "[2.0]" {
		t.Errorf("the group sees versions %v of liba for aarch64, %v", vs, err)
	}
	if ref, ok, err := view.Lookup("user", "2.0", "x86_64"); err != nil || !ok || ref.Status != quarry.Succeeded {
		t.Errorf("the group sees %v, %v, %v: the failure in the channel is not its own", ref, ok, err)
	}
	if n, err := r.LastBuild(); n != 13 || err != nil {
		t.Errorf("last build %d, %v", n, err)
	}
	staged := map[string]string{}
	for _, path := range []string{"packages/li/ba/liba/2.0/x86_64.toml", "packages/us/er/user/2.0/aarch64.toml", "packages/us/er/user/2.0/aarch64.files.toml"} {
		staged[path] = git(t, r.path, "show", "refs/quarry/group/testing/g:"+path)
	}

	h := land(t, r, "one")
	if tip := tipOf(t, r); tip != h {
		t.Errorf("landed as %s, and the channel is at %s", h, tip)
	}
	if parent := git(t, r.path, "rev-parse", h+"^"); parent != before {
		t.Errorf("it lies on %s and not on %s", parent, before)
	}
	if changed := git(t, r.path, "diff", "--no-renames", "--name-status", before, h); strings.Contains(changed, groupFile) || len(strings.Split(changed, "\n")) != 8 {
		t.Errorf("it changed\n%s", changed)
	}
	for path, text := range staged {
		if got := git(t, r.path, "show", "testing:"+path); got != text {
			t.Errorf("%s is\n%s\nand was staged as\n%s", path, got, text)
		}
	}
	message := git(t, r.path, "log", "-1", "--format=%an %B", "testing")
	for _, want := range []string{"Alice Liddell group g: liba 2.0, user 2.0 landed together\n", "    user 2.0 x86_64: succeeded in ", "\nGroup: g\n", "\nSubmission: one\n", "\nBuild: 13\n", "\nPushed-By: alice (SHA256:abc)"} {
		if !strings.Contains(message, want) {
			t.Errorf("its message has no %q:\n%s", want, message)
		}
	}
	if list, err := r.Groups(); len(list) != 0 || err != nil {
		t.Errorf("groups %v, %v are left", list, err)
	}
	if _, err := r.Land(t.Context(), "testing", "g", "one"); !errors.Is(err, ErrNoGroup) {
		t.Errorf("landed twice: %v", err)
	}
	if _, err := r.Staged("testing", "g"); !errors.Is(err, ErrNoGroup) {
		t.Errorf("its view: %v", err)
	}
	if _, err := r.Stage(t.Context(), of("one", sample("user", "2.0", "x86_64", 20))); !errors.Is(err, ErrObsolete) {
		t.Errorf("staged after it landed: %v", err)
	}
	fsck(t, r.path)
}

// TestGroupRevision: the revision counts what the channel has had when the group
// lands, not when it was built.
func TestGroupRevision(t *testing.T) {
	r := open(t, Options{})
	submit(t, r, submission("one", "liba"))
	stageAll(t, r, "one", 5, "liba")
	older := sample("liba", "2.0", "x86_64", 4)
	older.Artifact.SHA256 = strings.Repeat("99", 32)
	record(t, r, older)
	land(t, r, "one")
	s, err := r.Snapshot("testing")
	if err != nil {
		t.Fatal(err)
	}
	for arch, want := range map[string]int64{"x86_64": 2, "aarch64": 1} {
		if rec, err := s.Get("liba", "2.0", arch); err != nil || rec.Revision != want {
			t.Errorf("%s: revision %d, %v; want %d", arch, rec.Revision, err, want)
		}
	}
}

// TestGroupLandsOnce: the daemon ended between the commit and the end of the
// submission.
func TestGroupLandsOnce(t *testing.T) {
	r := open(t, Options{})
	submit(t, r, submission("one", "liba", "user"))
	stageAll(t, r, "one", 1, "liba", "user")
	ref := filepath.Join(r.path, "refs/quarry/group/testing/g")
	stands, err := os.ReadFile(ref)
	if err != nil {
		t.Fatal(err)
	}
	h := land(t, r, "one")
	for _, more := range []bool{false, true} {
		if more {
			record(t, r, sample("other", "1", "x86_64", 9))
		}
		if err := os.WriteFile(ref, stands, 0o666); err != nil {
			t.Fatal(err)
		}
		if again := land(t, r, "one"); again != h {
			t.Errorf("landed as %s, and then as %s", h, again)
		}
		if list, err := r.Groups(); len(list) != 0 || err != nil {
			t.Errorf("groups %v, %v are left", list, err)
		}
	}
	if n := git(t, r.path, "rev-list", "--count", "testing"); n != "2" {
		t.Errorf("%s commits, want 2", n)
	}
}

// TestGroupFails: a failure is in the channel for reviewers, and in the group only
// until that is submitted again; successes stay if their commits do.
func TestGroupFails(t *testing.T) {
	r := open(t, Options{})
	submit(t, r, submission("one", "liba", "user"))
	stageAll(t, r, "one", 1, "liba")
	bad := of("one", failing("user", "2.0", "x86_64", 3))
	h := stage(t, r, bad)
	if tip := tipOf(t, r); tip != h {
		t.Errorf("the failure is told to be at %s, and the channel is at %s", h, tip)
	}
	if again := stage(t, r, bad); again != h || tipOf(t, r) != h {
		t.Errorf("it was recorded as %s and as %s", h, again)
	}
	lookup := func(pkg, arch string) quarry.State {
		s, err := r.Staged("testing", "g")
		if err != nil {
			t.Fatal(err)
		}
		ref, _, err := s.Lookup(pkg, "2.0", arch)
		if err != nil {
			t.Fatal(err)
		}
		return ref.Status
	}
	if lookup("user", "x86_64") != quarry.Failed || lookup("liba", "x86_64") != quarry.Succeeded {
		t.Errorf("user %q, liba %q", lookup("user", "x86_64"), lookup("liba", "x86_64"))
	}

	two := submission("two", "liba", "user")
	submit(t, r, two)
	if lookup("user", "x86_64") != "" || lookup("liba", "aarch64") != quarry.Succeeded {
		t.Errorf("submitted again: user %q, liba %q", lookup("user", "x86_64"), lookup("liba", "aarch64"))
	}
	if _, err := r.Stage(t.Context(), of("one", sample("user", "2.0", "x86_64", 4))); !errors.Is(err, ErrObsolete) {
		t.Errorf("an outcome of the submission before: %v", err)
	}
	late := of("one", failing("user", "2.0", "x86_64", 5))
	if _, err := r.Stage(t.Context(), late); !errors.Is(err, ErrObsolete) || tipOf(t, r) != h {
		t.Errorf("a failure of the submission before: %v; the channel is at %s", err, tipOf(t, r))
	}
	stageAll(t, r, "two", 6, "user")
	stage(t, r, of("two", failing("liba", "2.0", "aarch64", 8))) // built again on request
	if _, err := r.Land(t.Context(), "testing", "g", "two"); !errors.As(err, new(*BackwardsError)) {
		t.Errorf("landed over a failure: %v", err)
	}
	submit(t, r, submission("four", "liba", "user"))
	if lookup("liba", "aarch64") != "" || lookup("liba", "x86_64") != quarry.Succeeded {
		t.Errorf("a success that has failed since is kept: %q, or another is not: %q", lookup("liba", "aarch64"), lookup("liba", "x86_64"))
	}
	stage(t, r, of("four", sample("liba", "2.0", "aarch64", 9)))
	land(t, r, "four")
	s, err := r.Snapshot("testing")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Failure("user", "2.0", "x86_64"); !errors.Is(err, ErrNotFound) {
		t.Errorf("the failure stands beside the success: %v", err)
	}

	two.ID, two.Members[0].Commit = "three", strings.Repeat("2c", 20)
	submit(t, r, two)
	if lookup("liba", "aarch64") != quarry.Succeeded { // the channel's own
		t.Error("what the channel has is not seen")
	}
	if err := r.DropGroup(t.Context(), "testing", "g"); err != nil {
		t.Fatal(err)
	}
	if err := r.DropGroup(t.Context(), "testing", "g"); err != nil {
		t.Errorf("dropped twice: %v", err)
	}
	fsck(t, r.path)
}

// TestGroupBackwards: what came into the channel meanwhile is not gone behind.
func TestGroupBackwards(t *testing.T) {
	for _, test := range []struct {
		name          string
		before, while *quarry.Outcome
		want          string // "": it lands
	}{
		{name: "nothing"},
		{name: "another package", while: sample("other", "9", "x86_64", 90)},
		{name: "older version", while: sample("liba", "1.9", "x86_64", 90)},
		{name: "newer version", while: sample("liba", "2.1", "x86_64", 90), want: "liba 2.1 has landed meanwhile, which is newer than the group's liba-2.0"},
		{name: "newer version that was there", before: sample("liba", "3.0", "x86_64", 1), while: sample("liba", "2.9", "x86_64", 90)},
		{name: "newer than that", before: sample("liba", "3.0", "x86_64", 1), while: sample("liba", "3.1", "aarch64", 90), want: "liba 3.1 has landed meanwhile"},
		{name: "newer failure", while: failing("liba", "2.0", "x86_64", 90), want: "liba 2.0 x86_64 has the record of build 90"},
		{name: "newer build", while: sample("liba", "2.0", "aarch64", 90), want: "liba 2.0 aarch64 has the record of build 90"},
		{name: "older build", while: sample("liba", "2.0", "aarch64", 2)},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := open(t, Options{})
			if test.before != nil {
				record(t, r, test.before)
			}
			submit(t, r, submission("one", "liba"))
			stageAll(t, r, "one", 10, "liba")
			if test.while != nil {
				record(t, r, test.while)
			}
			tip := tipOf(t, r)
			_, err := r.Land(t.Context(), "testing", "g", "one")
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errors.As(err, new(*BackwardsError)) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if now := tipOf(t, r); now != tip {
				t.Errorf("the channel moved to %s", now)
			}
			if list, err := r.Groups(); len(list) != 1 || err != nil {
				t.Errorf("groups %v, %v: it may be submitted again", list, err)
			}
			s := submission("two", "liba")
			submit(t, r, s)
			stageAll(t, r, "two", 100, "liba")
			land(t, r, "two") // now it is meant
		})
	}
}

// TestGroupsBesideGit: refs may be packed by hand, and others may be there.
func TestGroupsBesideGit(t *testing.T) {
	r := open(t, Options{})
	if list, err := r.Groups(); len(list) != 0 || err != nil {
		t.Errorf("no groups: %v, %v", list, err)
	}
	submit(t, r, submission("one", "liba"))
	git(t, r.path, "pack-refs", "--all")
	stageAll(t, r, "one", 1, "liba")
	git(t, r.path, "pack-refs", "--all")
	if list, err := r.Groups(); len(list) != 1 || err != nil || list[0].ID != "one" || list[0].Members[0].Package != "liba" {
		t.Errorf("groups %v, %v", list, err)
	}
	tree := git(t, r.path, "rev-parse", "refs/quarry/group/testing/g^{tree}")
	for name, id := range map[string]string{
		"refs/quarry/group/testing/tree": tree,                                                       // no commit
		"refs/quarry/group/testing/move": git(t, r.path, "rev-parse", "refs/quarry/group/testing/g"), // of another name
		"refs/quarry/group/Odd/name":     tree,                                                       // none of ours
		"refs/quarry/group/testing/a/b":  tree,
	} {
		git(t, r.path, "update-ref", name, id)
	}
	list, err := r.Groups()
	if len(list) != 1 || err == nil || strings.Count(err.Error(), "submit the group again") != 2 {
		t.Errorf("groups %v, %v", list, err)
	}
	land(t, r, "one")
	if out := git(t, r.path, "for-each-ref", "refs/quarry/group/testing/g"); out != "" {
		t.Errorf("its ref is left: %s", out)
	}
	if err := r.Maintain(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, s := range []quarry.Submission{
		{}, {Group: "../x", Channel: "testing", ID: "a"}, {Group: "g", Channel: "testing", ID: "a\nb"}, {Group: "g", Channel: "testing", ID: "a"},
		{Group: "g", Channel: "testing", ID: "a", Members: []quarry.Member{{Package: "..", Version: "1", Commit: strings.Repeat("1b", 20), Archs: both}}},
		{Group: "g", Channel: "testing", ID: "a", Members: []quarry.Member{{Package: "a", Version: "1", Commit: "HEAD", Archs: both}}},
		{Group: "g", Channel: "testing", ID: "a", Members: []quarry.Member{{Package: "a", Version: "1", Commit: strings.Repeat("1b", 20)}}},
	} {
		if err := r.Submit(t.Context(), s); err == nil {
			t.Errorf("%+v was submitted", s)
		}
	}
}

// TestKilledLander kills a process that submits, stages and lands groups with
// signal 9 at random moments. Afterwards each group is in the channel whole or not
// at all, once, and what was said to have landed has.
func TestKilledLander(t *testing.T) {
	if path := os.Getenv("QUARRY_TEST_LANDER"); path != "" {
		landForever(t, path)
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "results.git")
	said := 0
	for round := 0; round < 20 || said == 0 && round < 1000; round++ { // until something has landed, however slow it is here
		cmd := exec.Command(exe, "-test.run=^TestKilledLander$")
		cmd.Env = append(os.Environ(), "QUARRY_TEST_LANDER="+path)
		out := new(bytes.Buffer)
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(20+rand.IntN(150)+round) * time.Millisecond)
		cmd.Process.Kill()
		err = cmd.Wait()
		if ee := new(exec.ExitError); !errors.As(err, &ee) || !ee.Sys().(interface{ Signaled() bool }).Signaled() {
			t.Fatalf("round %d: the lander ended by itself: %v\n%s", round, err, out)
		}
		for line := range strings.Lines(out.String()) {
			if commit, ok := strings.CutPrefix(strings.TrimSpace(line), "landed "); ok && len(commit) == 40 {
				said++
				if out, err := tryGit(path, "merge-base", "--is-ancestor", commit, "testing"); err != nil {
					t.Errorf("round %d: commit %s is lost: %v %s", round, commit, err, out)
				}
			}
		}
	}
	r := openAt(t, path, Options{})
	list, err := r.Groups()
	if err != nil {
		t.Error(err)
	}
	for _, s := range list { // what was left goes on, or is taken back
		if _, err := r.Land(t.Context(), s.Channel, s.Group, s.ID); err != nil {
			if err := r.DropGroup(t.Context(), s.Channel, s.Group); err != nil {
				t.Fatal(err)
			}
		}
	}
	fsck(t, path)
	if said == 0 {
		t.Fatal("nothing has landed in all rounds, so this test shows nothing")
	}
	landings := strings.Fields(git(t, path, "log", "--format=%(trailers:key=Submission,valueonly,separator=)", "testing"))
	seen := map[string]bool{}
	for _, id := range landings {
		if seen[id] {
			t.Errorf("submission %s has landed twice", id)
		}
		seen[id] = true
	}
	for _, commit := range strings.Fields(git(t, path, "log", "--format=%H", "testing")) {
		names := strings.Fields(git(t, path, "ls-tree", "-r", "--name-only", commit, "packages"))
		if len(names)%6 != 0 { // three members, each a record and a list
			t.Errorf("commit %s has %d files: a part of a group", commit, len(names))
		}
	}
	t.Logf("%d landings said, %d made", said, len(landings))
}

func landForever(t *testing.T, path string) {
	r, err := Open(path, Options{MaxPacks: 20})
	if err != nil {
		t.Fatal(err)
	}
	for {
		list, err := r.Groups()
		if err != nil {
			t.Fatal(err)
		}
		last, err := r.LastBuild()
		if err != nil {
			t.Fatal(err)
		}
		var s quarry.Submission
		if len(list) > 0 {
			s = list[0] // left by the one before
		} else {
			s = quarry.Submission{Group: "g", Channel: "testing", ID: fmt.Sprintf("n%d-%d", last, rand.Int64()), At: time.Now(), By: quarry.Packager{User: "alice"}}
			for i := range 3 {
				o := sample(fmt.Sprintf("pkg%d", i), fmt.Sprint(last+1), "x86_64", 1)
				s.Members = append(s.Members, quarry.Member{Package: o.Build.Package, Version: o.Build.Version, Commit: o.Build.Commit, Archs: []string{"x86_64"}})
			}
			if err := r.Submit(t.Context(), s); err != nil {
				t.Fatal(err)
			}
		}
		view, err := r.Staged(s.Channel, s.Group)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range s.Members {
			last++
			if _, ok, err := view.Lookup(m.Package, m.Version, "x86_64"); err != nil || ok {
				if err != nil {
					t.Fatal(err)
				}
				continue
			}
			if _, err := r.Stage(t.Context(), of(s.ID, sample(m.Package, m.Version, "x86_64", last))); err != nil {
				t.Fatal(err)
			}
		}
		h, err := r.Land(t.Context(), s.Channel, s.Group, s.ID)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("landed", h)
	}
}
