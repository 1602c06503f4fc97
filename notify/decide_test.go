package notify

import (
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/google/go-cmp/cmp"
)

var (
	monday  = time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)
	tuesday = monday.Add(24 * time.Hour)
)

// zlib is a build of zlib 1.3.1, pushed on Tuesday by alice, that failed.
func zlib(change ...func(*Build)) Build {
	b := Build{
		Target: quarry.Target{Channel: "testing", Package: "zlib", Version: "1.3.1", Arch: "x86_64"},
		Number: 17, Status: quarry.Failed, Source: "cc", Pushed: tuesday, Created: tuesday.Add(time.Second),
		Packager: quarry.Packager{User: "alice"}, Record: "rr",
	}
	for _, f := range change {
		f(&b)
	}
	return b
}

func good(b *Build)               { b.Status = quarry.Succeeded }
func nonce(s string) func(*Build) { return func(b *Build) { b.Nonce = s } }

func failed(source, user string) *Standing {
	return &Standing{Status: quarry.Failed, Source: source, Pushed: monday, User: user}
}

func fine(source, user string) *Standing {
	return &Standing{Status: quarry.Succeeded, Source: source, Pushed: monday, User: user}
}

func told(user, version string, pushed time.Time) Told {
	return Told{User: user, Version: version, Pushed: pushed}
}

func TestDecide(t *testing.T) {
	push := Cause{Kind: ByPush, Channel: "testing", Package: "zlib", Version: "1.3.1", Source: "cc"}
	change := Cause{Kind: ByChange, Channel: "testing", Build: 12}
	mass := Cause{Kind: ByMass, ID: "20260303-aa"}
	for _, c := range []struct {
		name  string
		build Build
		past  History
		want  Decision
	}{
		{"the first release of a package", zlib(), History{}, Decision{Kind: Fails, Cause: push}},
		{"a release after a good one", zlib(), History{Last: fine("aa", "alice")}, Decision{Kind: Fails, Cause: push}},
		{"another commit of a version that was good", zlib(), History{Same: fine("aa", "alice")}, Decision{Kind: Fails, Cause: push}},
		{"a rebuild that somebody asked for, of what was good", zlib(nonce("f00d")), History{Same: fine("cc", "alice")}, Decision{Kind: Fails, Cause: push}},
		{"a rebuild that somebody asked for, of what failed", zlib(nonce("f00d")), History{Same: failed("cc", "alice")},
			Decision{Cause: push, Why: "the same commit was failing already"}},
		{"the same commit, pushed by somebody else", zlib(), History{Same: failed("cc", "bob")},
			Decision{Cause: push, Why: "the same commit was failing already"}},
		{"another commit of a version that failed", zlib(), History{Same: failed("aa", "alice")},
			Decision{Cause: push, Why: "the version was failing already, by the same person"}},
		{"another commit of a version that failed by somebody else", zlib(), History{Same: failed("aa", "bob")}, Decision{Kind: Fails, Cause: push}},
		{"a release after one that failed", zlib(), History{Last: failed("aa", "alice")},
			Decision{Cause: push, Why: "the release before it failed already, by the same person"}},
		{"a release after one of somebody else's that failed", zlib(), History{Last: failed("aa", "bob")}, Decision{Kind: Fails, Cause: push}},
		{"what was good breaks while a later release fails", zlib(nonce("abi-12-ff")), History{Same: fine("cc", "alice"), Last: failed("aa", "alice")},
			Decision{Kind: Breaks, Cause: change}},
		{"the person knows, and the records were lost", zlib(), History{Told: []Told{told("alice", "1.3", monday)}},
			Decision{Cause: push, Why: "the person knows of a failure of the package that is not over"}},
		{"somebody else knows", zlib(), History{Told: []Told{told("bob", "1.3", monday)}}, Decision{Kind: Fails, Cause: push}},
		{"a change of a dependency breaks it", zlib(nonce("abi-12-ff")), History{Same: fine("cc", "alice")}, Decision{Kind: Breaks, Cause: change}},
		{"a change of a dependency, and it failed before", zlib(nonce("abi-12-ff")), History{Same: failed("cc", "alice")},
			Decision{Cause: change, Why: "the same commit was failing already"}},
		{"a mass rebuild breaks it", zlib(nonce("mass-20260303-aa")), History{Same: fine("cc", "alice")}, Decision{Kind: Mass, Cause: mass}},
		{"a mass rebuild, and it failed before", zlib(nonce("mass-20260303-aa")), History{Same: failed("cc", "alice")},
			Decision{Cause: mass, Why: "the same commit was failing already"}},
		{"a build without a verdict", zlib(func(b *Build) { b.Status = quarry.Errored }), History{}, Decision{Cause: push, Why: "it has no verdict"}},

		{"a success that nobody waits for", zlib(good), History{}, Decision{Cause: push, Why: "nobody waits to hear of a success"}},
		{"the version that failed is good", zlib(good), History{Told: []Told{told("alice", "1.3.1", tuesday)}},
			Decision{Kind: Fixed, Cause: push, Users: []string{"alice"}}},
		{"a later release is good", zlib(good), History{Told: []Told{told("alice", "1.3", monday)}},
			Decision{Kind: Fixed, Cause: push, Users: []string{"alice"}}},
		{"an older release is good", zlib(good), History{Told: []Told{told("alice", "2.0", tuesday.Add(time.Hour))}},
			Decision{Cause: push, Why: "nobody waits to hear of a success"}},
		{"somebody mends what another has broken", zlib(good), History{Told: []Told{told("bob", "1.3.1", monday), told("carol", "1.2", monday)}},
			Decision{Kind: Fixed, Cause: push, Users: []string{"bob", "carol"}}},
		{"a change of a dependency mends it", zlib(good, nonce("abi-12-ff")), History{Told: []Told{told("alice", "1.3.1", tuesday)}},
			Decision{Kind: Fixed, Cause: change, Users: []string{"alice"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, Decide(c.build, c.past)); diff != "" {
				t.Errorf("decision (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCauseOf(t *testing.T) {
	late := func(b *Build) { b.Created = b.Pushed.Add(25 * time.Hour) }
	for _, c := range []struct {
		name  string
		build Build
		want  Cause
	}{
		{"push", zlib(), Cause{Kind: ByPush, Channel: "testing", Package: "zlib", Version: "1.3.1", Source: "cc"}},
		{"no time of push", zlib(func(b *Build) { b.Pushed = time.Time{} }), Cause{Kind: ByPush, Channel: "testing", Package: "zlib", Version: "1.3.1", Source: "cc"}},
		{"rebuild on request", zlib(late, nonce("f00d")), Cause{Kind: ByPush, Channel: "testing", Package: "zlib", Version: "1.3.1", Source: "cc"}},
		{"group", zlib(nonce("group-20260303-aa")), Cause{Kind: ByPush, Channel: "testing", Package: "zlib", Version: "1.3.1", Source: "cc"}},
		{"a new arch", zlib(late), Cause{Kind: ByBacklog, Channel: "testing", Arch: "x86_64"}},
		{"change", zlib(nonce("abi-12-ff")), Cause{Kind: ByChange, Channel: "testing", Build: 12}},
		{"change of before numbers", zlib(nonce("abi-ff")), Cause{Kind: ByChange, Channel: "testing"}},
		{"mass rebuild", zlib(nonce("mass-20260303-aa")), Cause{Kind: ByMass, ID: "20260303-aa"}},
	} {
		if got := CauseOf(c.build); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
	keys := map[string]bool{}
	for _, c := range []Cause{{Kind: ByPush, Package: "a", Version: "b"}, {Kind: ByPush, Package: "b", Version: "a"}, {Kind: ByMass, ID: "a"}, {Kind: ByChange, Build: 1}} {
		if keys[c.key()] {
			t.Errorf("%+v has the key of another", c)
		}
		keys[c.key()] = true
	}
}
