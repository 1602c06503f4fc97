package results

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/Morphux/quarry"
)

// git runs stock git, which judges what this package writes.
func git(t testing.TB, repo string, args ...string) string {
	t.Helper()
	out, err := tryGit(repo, args...)
	if err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func tryGit(repo string, args ...string) (string, error) {
	cmd := exec.Command("git", append([]string{"-C", repo}, args...)...)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "LC_ALL=C",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b")
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return "", errors.New("this test needs git: install it, e.g. apt-get install git")
	}
	return strings.TrimSpace(string(out)), err
}

func open(t testing.TB, opts Options) *Repo {
	t.Helper()
	return openAt(t, filepath.Join(t.TempDir(), "results.git"), opts)
}

func openAt(t testing.TB, path string, opts Options) *Repo {
	t.Helper()
	r, err := Open(path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func record(t testing.TB, r *Repo, o *quarry.Outcome) string {
	t.Helper()
	h, err := r.Record(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func snapshot(t testing.TB, r *Repo) *Snapshot {
	t.Helper()
	s, err := r.Snapshot("testing")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func fsck(t testing.TB, repo string) {
	t.Helper()
	// While git repacks, git fsck finds that packs have gone.
	unlock, err := flock(filepath.Join(repo, workRoot, "maintenance"))
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	// Dangling objects, of an attempt that was killed, are no fault.
	if out := git(t, repo, "fsck", "--strict", "--full", "--no-progress", "--no-dangling"); out != "" {
		t.Errorf("git fsck --strict says:\n%s", out)
	}
}

// tree lists the files on a channel.
func treeOf(t testing.TB, repo, rev string) []string {
	t.Helper()
	out := git(t, repo, "ls-tree", "-r", "--name-only", rev)
	if out == "" {
		return nil
	}
	return strings.Split(out, "\n")
}

func TestRecordSuccess(t *testing.T) {
	r := open(t, Options{SBU: 12.5})
	o := sample("zlib", "1.3.1", "x86_64", 17)
	commit := record(t, r, o)
	fsck(t, r.Path())

	if got := git(t, r.Path(), "rev-parse", "refs/heads/testing"); got != commit {
		t.Errorf("the branch is at %s, Record said %s", got, commit)
	}
	want := []string{"packages/zl/ib/zlib/1.3.1/x86_64.files.toml", "packages/zl/ib/zlib/1.3.1/x86_64.toml"}
	if diff := cmp.Diff(want, treeOf(t, r.Path(), "testing")); diff != "" {
		t.Errorf("the tree is wrong (-want +got):\n%s", diff)
	}
	if got, want := git(t, r.Path(), "log", "-1", "--format=%s|%an|%ae|%aI|%cn|%ce", "testing"),
		"zlib 1.3.1 x86_64: succeeded in 41 s|Alice Liddell|alice@morphux.org|2026-03-14T15:08:26+00:00|Quarry|quarry@localhost"; got != want {
		t.Errorf("commit is\n%s, want\n%s", got, want)
	}
	wantTrailers := strings.Join([]string{
		"Package: zlib", "Version: 1.3.1", "Arch: x86_64", "Channel: testing", "Status: succeeded",
		"Source-Commit: " + o.Build.Commit, "Build: 17", "Build-Key: " + o.Build.Key, "Log: quarry log 17",
		"Pushed-By: alice (SHA256:uNiVztksCsDhcc0u9e8BrmkyZ1h1gDQ2aQrvjLQ)",
	}, "\n")
	if diff := cmp.Diff(wantTrailers, git(t, r.Path(), "log", "-1", "--format=%(trailers)", "testing")); diff != "" {
		t.Errorf("trailers are wrong (-want +got):\n%s", diff)
	}

	ref, ok, err := r.Lookup("testing", "zlib", "1.3.1", "x86_64")
	if want := (quarry.RecordRef{Status: quarry.Succeeded, Source: o.Build.Commit, Build: 17, Key: o.Build.Key}); err != nil || !ok || ref != want {
		t.Errorf("Lookup = %+v, %v, %v, want %+v", ref, ok, err, want)
	}
	s := snapshot(t, r)
	rec, err := s.Get("zlib", "1.3.1", "x86_64")
	if err != nil {
		t.Fatal(err)
	}
	wantRec, err := NewRecord(o, 12.5)
	if err != nil {
		t.Fatal(err)
	}
	wantRec.Revision = 1
	if diff := cmp.Diff(wantRec, rec); diff != "" {
		t.Errorf("the record read is not the one written (-want +got):\n%s", diff)
	}
	files, err := s.Files("zlib", "1.3.1", "x86_64")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(o.Facts.Files, files); diff != "" {
		t.Errorf("the files read are not those written (-want +got):\n%s", diff)
	}
}

func TestFailureIsClearedBySuccessAndKeepsOlderSuccess(t *testing.T) {
	r := open(t, Options{})
	record(t, r, failing("zlib", "1.3.1", "x86_64", 1))
	if got := git(t, r.Path(), "log", "-1", "--format=%s", "testing"); got != "zlib 1.3.1 x86_64: failed in make (exit status 2)" {
		t.Errorf("subject is %q", got)
	}
	s := snapshot(t, r)
	if _, err := s.Get("zlib", "1.3.1", "x86_64"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a failed build has a success: %v", err)
	}
	rec, err := s.Failure("zlib", "1.3.1", "x86_64")
	if err != nil {
		t.Fatal(err)
	}
	if rec.Failure.Step != "make" || rec.Failure.Status != 2 || len(rec.Failure.Log) != 3 {
		t.Errorf("the failure is %+v", rec.Failure)
	}

	good := sample("zlib", "1.3.1", "x86_64", 2)
	record(t, r, good)
	if files := treeOf(t, r.Path(), "testing"); slices.ContainsFunc(files, func(f string) bool { return strings.HasPrefix(f, "failures/") }) {
		t.Errorf("the success left the failure: %v", files)
	}
	// The failure is still in history, and the snapshot taken before sees it.
	if n := git(t, r.Path(), "rev-list", "--count", "testing", "--", "failures/zl/ib/zlib/1.3.1/x86_64.toml"); n != "2" {
		t.Errorf("history has %s commits on the failure, want 2", n)
	}
	if _, err := s.Failure("zlib", "1.3.1", "x86_64"); err != nil {
		t.Errorf("the old snapshot has changed: %v", err)
	}

	bad := failing("zlib", "1.3.1", "x86_64", 3)
	record(t, r, bad)
	ref, ok, err := r.Lookup("testing", "zlib", "1.3.1", "x86_64")
	if err != nil || !ok || ref.Status != quarry.Failed || ref.Build != 3 {
		t.Errorf("Lookup = %+v, %v, %v, want the failure of build 3", ref, ok, err)
	}
	a, ok, err := snapshot(t, r).Available("zlib", "1.3.1", "x86_64")
	if err != nil || !ok || a.Ref.Build != 2 || a.Artifact != good.Artifact.SHA256 {
		t.Errorf("Available = %+v, %v, %v, want build 2, which can still be installed", a, ok, err)
	}
	fsck(t, r.Path())
}

func TestRecordIsIdempotent(t *testing.T) {
	r := open(t, Options{})
	first := sample("zlib", "1.3.1", "x86_64", 1)
	want := record(t, r, first)
	for i := range int64(5) {
		record(t, r, sample("bash", "5.2", "x86_64", 10+i))
	}
	if got := record(t, r, first); got != want {
		t.Errorf("recorded again as %s, was %s", got, want)
	}
	// The same after a crash, in another process.
	r.Close()
	r = openAt(t, r.Path(), Options{})
	if got := record(t, r, first); got != want {
		t.Errorf("recorded again as %s after reopening, was %s", got, want)
	}
	if n := git(t, r.Path(), "rev-list", "--count", "testing"); n != "6" {
		t.Errorf("there are %s commits, want 6", n)
	}
	// A record that has been replaced since is still known.
	record(t, r, sample("zlib", "1.3.1", "x86_64", 30))
	if got := record(t, r, first); got != want {
		t.Errorf("recorded again as %s after a newer one, was %s", got, want)
	}
	if last, err := r.LastBuild(); err != nil || last != 30 {
		t.Errorf("LastBuild = %d, %v, want 30", last, err)
	}
}

func TestOldBuildNeverOverwritesNewer(t *testing.T) {
	for _, newer := range []func(string, string, string, int64) *quarry.Outcome{sample, failing} {
		for _, older := range []func(string, string, string, int64) *quarry.Outcome{sample, failing} {
			r := open(t, Options{})
			want := record(t, r, newer("zlib", "1.3.1", "x86_64", 9))
			if h, err := r.Record(t.Context(), older("zlib", "1.3.1", "x86_64", 8)); !errors.Is(err, ErrObsolete) {
				t.Errorf("an old build was recorded over a newer one: %s, %v", h, err)
			}
			if got := git(t, r.Path(), "rev-parse", "testing"); got != want {
				t.Error("the branch has moved")
			}
		}
	}
}

func TestChannelsAreApart(t *testing.T) {
	r := open(t, Options{})
	o := sample("zlib", "1.3.1", "x86_64", 1)
	o.Build.Channel = "stable"
	record(t, r, o)
	if got := git(t, r.Path(), "symbolic-ref", "HEAD"); got != "refs/heads/stable" {
		t.Errorf("HEAD is %s: a clone would check nothing out", got)
	}
	if _, ok, err := r.Lookup("testing", "zlib", "1.3.1", "x86_64"); ok || err != nil {
		t.Errorf("a record of stable is in testing: %v, %v", ok, err)
	}
	record(t, r, sample("zlib", "1.3.1", "x86_64", 2))
	if got := git(t, r.Path(), "symbolic-ref", "HEAD"); got != "refs/heads/stable" {
		t.Errorf("HEAD has moved to %s", got)
	}
	if chs, err := r.Channels(); err != nil || !slices.Equal(chs, []string{"stable", "testing"}) {
		t.Errorf("Channels = %v, %v", chs, err)
	}
	git(t, r.Path(), "pack-refs", "--all", "--prune")
	if chs, err := r.Channels(); err != nil || !slices.Equal(chs, []string{"stable", "testing"}) {
		t.Errorf("Channels of packed refs = %v, %v", chs, err)
	}
	if _, ok, err := r.Lookup("stable", "zlib", "1.3.1", "x86_64"); !ok || err != nil {
		t.Errorf("a packed ref is not found: %v, %v", ok, err)
	}
	record(t, r, sample("bash", "5", "x86_64", 3))
	if n := git(t, r.Path(), "rev-list", "--count", "testing"); n != "2" {
		t.Errorf("testing has %s commits after its ref was packed, want 2", n)
	}
	fsck(t, r.Path())
}

// TestHostileWords puts text into every field that a packager or a build can
// fill, and looks whether any of it gets out of its place.
func TestHostileWords(t *testing.T) {
	const evil = "x\n\nBuild-Key: 0000\nStatus: succeeded\n---\nPackage: bash <a@b> \x00\x1b[31m\xff\u2028\r\nSigned-off-by: root"
	r := open(t, Options{Log: func(quarry.Build) string { return evil }})
	for i, o := range []*quarry.Outcome{failing("zlib", "1.3.1", "x86_64", 1), sample("zlib", "1.3.1", "x86_64", 2)} {
		o.Build.Packager = quarry.Packager{User: evil, Name: evil, Email: evil, Key: evil}
		o.Info.Description, o.Info.Category, o.Info.Needed = evil, evil, []string{evil}
		o.Warnings, o.LogLines = []string{evil}, []string{evil, strings.Repeat("é", 5000)}
		o.Steps[0].Killed, o.Host.Kernel = evil, evil
		if o.Failure != nil {
			o.Failure.Step, o.Failure.Cause, o.Failure.Message, o.Failure.Command, o.Failure.Reproduce, o.Failure.Paths = evil, evil, evil, evil, evil, []string{evil}
		} else {
			o.Facts.Files[1].Path, o.Facts.Files[1].Kind, o.Facts.Files[1].SHA256, o.Facts.Files[1].ELF.Soname = evil, evil, evil, evil
			o.Facts.Libraries[0].Soname, o.Facts.Libraries[0].From = evil, evil
			o.Facts.Warnings = []string{evil}
		}
		record(t, r, o)
		fsck(t, r.Path())
		keys := git(t, r.Path(), "log", "-1", "--format=%(trailers:keyonly)", "testing")
		want := "Package\nVersion\nArch\nChannel\nStatus\nSource-Commit\nBuild\nBuild-Key\nLog\nPushed-By"
		if keys != want {
			t.Errorf("outcome %d: trailers are\n%s", i, keys)
		}
		if got := git(t, r.Path(), "log", "-1", "--format=%(trailers:key=Build-Key,valueonly)", "testing"); got != o.Build.Key {
			t.Errorf("outcome %d: Build-Key is %q", i, got)
		}
		msg := git(t, r.Path(), "log", "-1", "--format=%B", "testing")
		cmd := exec.Command("git", "interpret-trailers", "--parse")
		cmd.Stdin = strings.NewReader(msg)
		out, err := cmd.Output()
		if err != nil || strings.Contains(string(out), "\nBuild-Key: 0000") || strings.Count(string(out), "\n") != 10 {
			t.Errorf("outcome %d: git interpret-trailers finds %v\n%s", i, err, out)
		}
		if strings.ContainsAny(msg, "\x00\x1b\r") {
			t.Errorf("outcome %d: control characters in the message %q", i, msg)
		}
		if ref, ok, err := r.Lookup("testing", "zlib", "1.3.1", "x86_64"); err != nil || !ok || ref.Key != o.Build.Key {
			t.Errorf("outcome %d: Lookup = %+v, %v, %v", i, ref, ok, err)
		}
	}
	files, err := snapshot(t, r).Files("zlib", "1.3.1", "x86_64")
	if err != nil {
		t.Fatal(err)
	}
	if files[1].Path != evil || files[1].ELF.Soname != evil {
		t.Errorf("the odd path came back as %q, soname %q", files[1].Path, files[1].ELF.Soname)
	}
}

func TestRecordRefuses(t *testing.T) {
	r := open(t, Options{})
	for name, spoil := range map[string]func(*quarry.Outcome){
		"escaping name":     func(o *quarry.Outcome) { o.Build.Package = "../zlib" },
		"name with newline": func(o *quarry.Outcome) { o.Build.Package = "zlib\nStatus: failed" },
		"escaping version":  func(o *quarry.Outcome) { o.Build.Version = "1/../.." },
		"slash in arch":     func(o *quarry.Outcome) { o.Build.Arch = "a/b" },
		"arch of a list":    func(o *quarry.Outcome) { o.Build.Arch = "x86_64.files" },
		"channel":           func(o *quarry.Outcome) { o.Build.Channel = "../heads/x" },
		"no key":            func(o *quarry.Outcome) { o.Build.Key = "" },
		"key with newline":  func(o *quarry.Outcome) { o.Build.Key = o.Build.Key[:63] + "\n" },
		"errored":           func(o *quarry.Outcome) { o.Status = quarry.Errored },
		"source":            func(o *quarry.Outcome) { o.Build.Commit = "HEAD" },
		"failed silently":   func(o *quarry.Outcome) { o.Status = quarry.Failed },
		"path of no bytes":  func(o *quarry.Outcome) { o.Facts.Files[0].Path = "" },
	} {
		t.Run(name, func(t *testing.T) {
			o := sample("zlib", "1.3.1", "x86_64", 1)
			spoil(o)
			if h, err := r.Record(t.Context(), o); err == nil {
				t.Errorf("it was recorded as %s", h)
			}
		})
	}
	if chs, err := r.Channels(); err != nil || len(chs) > 0 {
		t.Errorf("something was written: %v, %v", chs, err)
	}
}

// TestEmptyFolder opens a repository in a folder that an admin made for it.
func TestEmptyFolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results.git")
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	r, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// TestRevisions: a version's artifacts are counted on each arch; what makes the
// same again, or fails, does not count.
func TestRevisions(t *testing.T) {
	r := open(t, Options{})
	number := int64(0)
	record := func(arch, artifact string) *Record {
		t.Helper()
		number++
		o := sample("zlib", "1.3.1", arch, number)
		if artifact == "" {
			o = failing("zlib", "1.3.1", arch, number)
		} else {
			o.Artifact.SHA256 = strings.Repeat(artifact, 32)
		}
		if _, err := r.Record(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Record(t.Context(), o); err != nil { // as after a crash
			t.Fatal(err)
		}
		get := snapshot(t, r).Get
		if artifact == "" {
			get = snapshot(t, r).Failure
		}
		rec, err := get("zlib", "1.3.1", arch)
		if err != nil {
			t.Fatal(err)
		}
		return rec
	}
	for i, step := range []struct {
		arch, artifact string
		want           int64
	}{
		{"x86_64", "", 0}, {"x86_64", "aa", 1}, {"x86_64", "aa", 1}, {"x86_64", "bb", 2}, {"i686", "bb", 1},
		{"x86_64", "", 0}, {"x86_64", "aa", 3}, {"x86_64", "aa", 3},
	} {
		if got := record(step.arch, step.artifact).Revision; got != step.want {
			t.Errorf("step %d: revision %d, want %d", i, got, step.want)
		}
	}
	a, ok, err := snapshot(t, r).Available("zlib", "1.3.1", "x86_64")
	if err != nil || !ok || a.Revision != 3 || a.Artifact != strings.Repeat("aa", 32) {
		t.Errorf("available: %+v, %v, %v", a, ok, err)
	}
}
