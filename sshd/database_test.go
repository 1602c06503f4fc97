package sshd

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/repos"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/results/resultstest"
)

// withDatabase serves one more repository, as the farm does.
type withDatabase struct {
	*repos.Repos
	path string
}

func (d withDatabase) Path(name string) (string, error) {
	if name == "results" {
		return d.path, nil
	}
	return d.Repos.Path(name)
}

// The database can be had in part: without history, without records, and the
// farm's own refs when they are asked for.
func TestPartsOfTheDatabase(t *testing.T) {
	path := resultstest.Copy(t, resultstest.Size{Packages: 60, Archs: 2, Versions: 3})
	f := newFarm(t, func(o *Options) { o.Repos = withDatabase{o.Repos.(*repos.Repos), path} })
	carol := f.person("carol", quarry.RoleReader)
	into := t.TempDir()
	git := func(args ...string) string {
		t.Helper()
		out, err := f.git(carol, into, args...)
		if err != nil {
			t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(out)
	}
	git("-C", path, "update-ref", "refs/quarry/mass/one", resultstest.Channel)
	git("clone", "-q", "--bare", "--depth=1", "-b", resultstest.Channel, f.url("results"), "shallow.git")
	if n := git("-C", "shallow.git", "rev-list", "--count", "HEAD"); n != "1" {
		t.Errorf("a shallow clone has %s commits", n)
	}
	git("-C", "shallow.git", "fetch", "-q", "--deepen=3")
	if n := git("-C", "shallow.git", "rev-list", "--count", "HEAD"); n != "4" {
		t.Errorf("a deepened clone has %s commits", n)
	}
	git("clone", "-q", "--bare", "--filter=blob:none", f.url("results"), "part.git")
	missing := func() int {
		return strings.Count(git("-C", "part.git", "rev-list", "--objects", "--missing=print", resultstest.Channel), "\n?")
	}
	all := missing()
	record := results.RecordPath(quarry.Target{Package: resultstest.Name(3), Version: "1.1", Arch: "x86_64"})
	if got := git("-C", "part.git", "show", resultstest.Channel+":"+record); !strings.Contains(got, resultstest.Name(3)) {
		t.Errorf("the record is %q", got)
	}
	if all < 300 || missing() != all-1 {
		t.Errorf("%d objects were missing, and %d after one was asked for", all, missing())
	}
	if got := git("-C", "part.git", "for-each-ref", "--format=%(refname)"); got != "refs/heads/"+resultstest.Channel {
		t.Errorf("a clone has %q", got)
	}
	git("-C", "part.git", "fetch", "-q", "origin", "refs/quarry/*:refs/quarry/*")
	if got := git("-C", "part.git", "for-each-ref", "--format=%(refname)", "refs/quarry"); got != "refs/quarry/mass/one" {
		t.Errorf("the refs of the farm are %q", got)
	}
	git("clone", "-q", f.url("results"), filepath.Join(into, "all"))
	git("-C", "all", "fsck", "--no-dangling")
}
