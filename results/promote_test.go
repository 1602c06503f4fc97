package results

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/google/go-cmp/cmp"

	"github.com/Morphux/quarry"
)

var bob = quarry.Packager{User: "bob", Name: "Bob", Email: "bob@morphux.org", Key: "SHA256:bobskey"}

// on has an outcome be of another channel and packager.
func on(channel, user string, o *quarry.Outcome) *quarry.Outcome {
	o.Build.Channel = channel
	o.Build.Packager = quarry.Packager{User: user, Name: strings.ToUpper(user[:1]) + user[1:], Email: user + "@morphux.org"}
	o.Build.Key = quarry.BuildKey(o.Build.Target(), o.Build.Commit, o.Build.Nonce)
	return o
}

func promotion(releases ...string) Promotion {
	p := Promotion{From: "testing", To: "stable", By: bob}
	for _, s := range releases {
		name, version, _ := strings.Cut(s, " ")
		p.Releases = append(p.Releases, quarry.Release{Package: name, Version: version})
	}
	p.All = len(releases) == 0
	return p
}

func promote(t *testing.T, r *Repo, p Promotion) *Promoted {
	t.Helper()
	done, err := r.Promote(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

// holds lists a channel's records with the ids of their blobs.
func holds(t *testing.T, r *Repo, channel string) map[string]string {
	t.Helper()
	s, err := r.Snapshot(channel)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, top := range []string{packagesDir, failuresDir} {
		for p, err := range s.places(context.Background(), top, nil) {
			if err != nil {
				t.Fatal(err)
			}
			all[p.path] = p.hash.String()
			if top == packagesDir {
				files, err := s.blob(FilesPath(p.Target))
				if err != nil || files.IsZero() {
					t.Errorf("%s has no list of files: %v", p.Target, err)
				}
				all[FilesPath(p.Target)] = files.String()
			}
		}
	}
	return all
}

// root is the tree of a channel.
func root(t *testing.T, r *Repo, channel string) plumbing.Hash {
	t.Helper()
	s, err := r.Snapshot(channel)
	if err != nil {
		t.Fatal(err)
	}
	return s.root
}

func TestPromote(t *testing.T) {
	r := open(t, Options{})
	record(t, r, on("testing", "alice", sample("zlib", "1.3", "x86_64", 1)))
	record(t, r, on("testing", "alice", sample("zlib", "1.3", "aarch64", 2)))
	record(t, r, on("testing", "carol", sample("git", "2.40", "x86_64", 3)))
	record(t, r, on("stable", "alice", failing("zlib", "1.3", "x86_64", 4)))

	done := promote(t, r, promotion("zlib 1.3"))
	if len(done.Moves) != 2 || done.New == "" || done.Channel != "stable" {
		t.Fatalf("promoted %+v", done)
	}
	// Records and lists of files are the very same; the failure is cleared.
	want := maps.Clone(holds(t, r, "testing"))
	maps.DeleteFunc(want, func(path, _ string) bool { return strings.Contains(path, "/git/") })
	if diff := cmp.Diff(want, holds(t, r, "stable")); diff != "" {
		t.Errorf("stable holds (-want +got):\n%s", diff)
	}
	s, err := r.Snapshot("stable")
	if err != nil {
		t.Fatal(err)
	}
	if rec, err := s.Latest("zlib", "x86_64"); err != nil || rec.Build != 1 || rec.Channel != "testing" {
		t.Errorf("stable has %+v, %v; want build 1, built on testing", rec, err)
	}
	// The packager is the author.
	author := git(t, r.Path(), "log", "-1", "--format=%an <%ae>|%cn|%s|%(trailers:key=From,valueonly,separator=%x2c)|%(trailers:key=Promoted-By,valueonly,separator=%x2c)", "stable")
	if want := "Alice <alice@morphux.org>|Quarry|promote zlib 1.3 from testing|testing|bob (SHA256:bobskey)"; strings.TrimSpace(author) != want {
		t.Errorf("commit is %q, want %q", author, want)
	}
	if _, err := r.Promote(context.Background(), promotion("zlib 1.3")); !errors.Is(err, ErrNothing) {
		t.Errorf("once more: %v", err)
	}

	// Of several packagers' releases who promotes is the author. One commit.
	before := root(t, r, "stable")
	record(t, r, on("testing", "alice", sample("zlib", "1.4", "x86_64", 5)))
	record(t, r, on("testing", "alice", sample("zlib", "1.4", "aarch64", 6)))
	done = promote(t, r, promotion())
	if got := moved(done); got != "git 2.40 x86_64, zlib 1.4 aarch64 (1.3), zlib 1.4 x86_64 (1.3)" {
		t.Errorf("all: %s", got)
	}
	if a := git(t, r.Path(), "log", "-1", "--format=%an", "stable"); strings.TrimSpace(a) != "Bob" {
		t.Errorf("author of several packagers' releases is %s", a)
	}
	if s, err := r.SnapshotAt("stable", done.Old); err != nil || s.root != before || strings.TrimSpace(git(t, r.Path(), "rev-parse", "stable~1")) != done.Old {
		t.Errorf("it is not one commit on top of the one before: %v", err)
	}
	fsck(t, r.Path())
}

func moved(p *Promoted) string {
	var list []string
	for _, m := range p.Moves {
		s := fmt.Sprintf("%s %s %s", m.Package, m.Version, m.Arch)
		if m.Newest != "" && m.Newest != m.Version {
			s += " (" + m.Newest + ")"
		}
		if m.Blob == "" {
			s = "-" + s
		}
		list = append(list, s)
	}
	return strings.Join(list, ", ")
}

func TestPromoteRefuses(t *testing.T) {
	r := open(t, Options{})
	for i, rel := range []string{"zlib 1.3 x86_64", "zlib 1.3 aarch64", "git 2.40 x86_64", "git 2.41 x86_64", "old 1 x86_64"} {
		w := strings.Fields(rel)
		record(t, r, on("testing", "alice", sample(w[0], w[1], w[2], int64(i+1))))
	}
	promote(t, r, promotion("zlib 1.3", "git 2.41", "old 1"))
	record(t, r, on("testing", "alice", sample("zlib", "1.4", "x86_64", 10)))
	record(t, r, on("stable", "alice", sample("own", "1", "x86_64", 11)))
	record(t, r, on("stable", "alice", sample("git", "2.42", "x86_64", 12)))
	record(t, r, on("testing", "alice", sample("git", "2.42", "x86_64", 9)))

	never := func(_, after *Snapshot, moves []Move) ([]string, []string, error) {
		if _, err := after.Get(moves[0].Package, moves[0].Version, moves[0].Arch); err != nil {
			return nil, nil, fmt.Errorf("the channel as it would be lacks what moves: %w", err)
		}
		return []string{"glibc is not there"}, nil, nil
	}
	for name, c := range map[string]struct {
		p      Promotion
		why    string
		forced bool // Force overrides it
	}{
		"older version":   {promotion("git 2.40"), "git 2.40 x86_64: stable has 2.42, which is newer: use --force", true},
		"older build":     {promotion("git 2.42"), "git 2.42 x86_64: stable has build 12, which is newer than build 9", true},
		"fewer archs":     {promotion("zlib 1.4"), "zlib 1.4 is not there for aarch64, which 1.3 is", true},
		"fewer packages":  {Promotion{From: "testing", To: "stable", All: true, Prune: true, By: bob, Archs: []string{"x86_64"}}, "which is newer than build 9, and 2 more reasons", true},
		"not there":       {promotion("zlib 9"), "zlib 9 has no success on testing", false},
		"not for arch":    {Promotion{From: "testing", To: "stable", Releases: promotion("git 2.41").Releases, Archs: []string{"aarch64"}, By: bob}, "for aarch64", false},
		"to itself":       {Promotion{From: "testing", To: "testing", All: true}, "to itself", false},
		"neither":         {Promotion{From: "testing", To: "stable"}, "name the one or the other", false},
		"bad name":        {promotion("../x 1"), "name", false},
		"empty channel":   {Promotion{From: "nothing", To: "stable", All: true}, "channel nothing has no records", false},
		"what is missing": {Promotion{From: "testing", To: "stable", Releases: promotion("zlib 1.4").Releases, Force: true, Check: never, By: bob}, "glibc is not there", false},
	} {
		t.Run(name, func(t *testing.T) {
			before, refs := root(t, r, "stable"), git(t, r.Path(), "for-each-ref")
			packs := git(t, r.Path(), "count-objects", "-v")
			if _, err := r.Promote(context.Background(), c.p); err == nil || !strings.Contains(err.Error(), c.why) {
				t.Errorf("error %v, want %q", err, c.why)
			}
			p := c.p
			p.Force, p.Dry = true, true
			if _, err := r.Promote(context.Background(), p); (err == nil) != c.forced {
				t.Errorf("with force: %v", err)
			}
			if root(t, r, "stable") != before || git(t, r.Path(), "for-each-ref") != refs || git(t, r.Path(), "count-objects", "-v") != packs {
				t.Error("something was left in the repository")
			}
		})
	}
}

func TestPrune(t *testing.T) {
	r := open(t, Options{})
	record(t, r, on("testing", "alice", sample("zlib", "1.3", "x86_64", 1)))
	for i, name := range []string{"a", "b", "zlib"} {
		record(t, r, on("stable", "alice", sample(name, "1.0", "x86_64", int64(i+2))))
	}
	p := promotion()
	p.Prune = true
	_, err := r.Promote(context.Background(), p)
	if refused := new(RefusedError); !errors.As(err, &refused) || len(refused.Never) != 0 || !strings.Contains(err.Error(), "stable would lose 2 packages (a, b)") {
		t.Fatalf("pruning: %v", err)
	}
	p.Force = true
	if got := moved(promote(t, r, p)); got != "zlib 1.3 x86_64 (1.0), -a 1.0 x86_64, -b 1.0 x86_64, -zlib 1.0 x86_64" {
		t.Errorf("pruned %s", got)
	}
	if diff := cmp.Diff(holds(t, r, "testing"), holds(t, r, "stable")); diff != "" {
		t.Errorf("stable is not testing (-testing +stable):\n%s", diff)
	}
}

func TestRollback(t *testing.T) {
	ctx := context.Background()
	r := open(t, Options{})
	for i, rel := range []string{"zlib 1.3 x86_64", "zlib 1.4 x86_64", "git 2.40 x86_64"} {
		w := strings.Fields(rel)
		record(t, r, on("testing", "alice", sample(w[0], w[1], w[2], int64(i+1))))
	}
	if _, err := r.Rollback(ctx, Rollback{Channel: "stable"}); !errors.Is(err, ErrNotFound) {
		t.Errorf("of an empty channel: %v", err)
	}
	first := promote(t, r, promotion("zlib 1.3"))
	if _, err := r.Rollback(ctx, Rollback{Channel: "stable", By: bob}); err == nil || !strings.Contains(err.Error(), "stable would be empty") {
		t.Errorf("of the only promotion: %v", err)
	}
	record(t, r, on("stable", "alice", failing("git", "2.40", "x86_64", 5)))
	before := root(t, r, "stable")
	second := promote(t, r, promotion("zlib 1.4", "git 2.40"))
	done, err := r.Rollback(ctx, Rollback{Channel: "stable", By: bob, Reason: "git breaks"})
	if err != nil || root(t, r, "stable") != before {
		t.Fatalf("the channel is not as before: %v", err)
	}
	if done.From != second.New || len(done.Moves) != 2 {
		t.Errorf("rolled back %+v", done)
	}
	subject := git(t, r.Path(), "log", "-1", "--format=%an|%s|%(trailers:key=Reverts,valueonly,separator=%x2c)", "stable")
	if want := fmt.Sprintf("Bob|take back commit %.12s|%s", second.New, second.New); strings.TrimSpace(subject) != want {
		t.Errorf("commit %q, want %q", subject, want)
	}
	// Whoever may not change a package may not take its failure away either.
	record(t, r, on("stable", "carol", failing("vim", "9.0", "x86_64", 6)))
	failed := strings.TrimSpace(git(t, r.Path(), "rev-parse", "stable"))
	for _, b := range []Rollback{{Commit: failed}, {Commit: done.New, Restore: true}} {
		var asked []string
		b.Channel, b.By, b.May = "stable", bob, func(moves []Move) error {
			for _, m := range moves {
				asked = append(asked, m.Target.String())
			}
			return errors.New("not yours")
		}
		if _, err := r.Rollback(ctx, b); err == nil || !strings.Contains(err.Error(), "not yours") || !slices.Equal(asked, []string{"vim 9.0 x86_64"}) {
			t.Errorf("of a failure, asked of %q: %v", asked, err)
		}
	}
	if _, err := r.Rollback(ctx, Rollback{Channel: "stable", Commit: failed, By: bob}); err != nil {
		t.Error(err)
	}
	// It can be promoted again, and what has been replaced since stays.
	third := promote(t, r, promotion("zlib 1.4", "git 2.40"))
	record(t, r, on("testing", "alice", sample("git", "2.40", "x86_64", 8)))
	promote(t, r, promotion("git 2.40"))
	if _, err := r.Rollback(ctx, Rollback{Channel: "stable", Commit: third.New, By: bob, Force: true}); err == nil || !strings.Contains(err.Error(), "git 2.40 x86_64 has another record since") {
		t.Errorf("of what has been replaced: %v", err)
	}
	// Going back to a commit takes force where the channel shrinks.
	back := Rollback{Channel: "stable", Commit: first.New, Restore: true, By: bob}
	if _, err := r.Rollback(ctx, back); err == nil || !strings.Contains(err.Error(), "stable would lose the package git") {
		t.Errorf("shrinking: %v", err)
	}
	back.Force = true
	if _, err := r.Rollback(ctx, back); err != nil {
		t.Fatal(err)
	}
	s, err := r.SnapshotAt("stable", first.New)
	if err != nil || s.root != root(t, r, "stable") {
		t.Errorf("the channel is not as it was at that commit: %v", err)
	}
	if _, err := r.Rollback(ctx, back); !errors.Is(err, ErrNothing) {
		t.Errorf("once more: %v", err)
	}
	for _, bad := range []string{"HEAD", strings.Repeat("1", 40)} {
		if _, err := r.Rollback(ctx, Rollback{Channel: "stable", Commit: bad}); err == nil {
			t.Errorf("commit %s was taken back", bad)
		}
	}
	fsck(t, r.Path())
}

// TestPromoteBesideRecords moves channels from many goroutines at once: nothing is
// lost, and what a promotion took over is the same blob in both.
func TestPromoteBesideRecords(t *testing.T) {
	r := open(t, Options{})
	other, err := Open(r.Path(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	const n = 12
	for i := range n {
		record(t, r, on("testing", "alice", sample(fmt.Sprintf("pkg%d", i), "1", "x86_64", int64(i+1))))
	}
	var wg sync.WaitGroup
	for i := range n {
		wg.Add(2)
		go func() {
			defer wg.Done()
			if _, err := other.Promote(context.Background(), promotion(fmt.Sprintf("pkg%d 1", i))); err != nil {
				t.Error(err)
			}
		}()
		go func() {
			defer wg.Done()
			if _, err := r.Record(context.Background(), on("stable", "alice", sample(fmt.Sprintf("own%d", i), "1", "x86_64", int64(100+i)))); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	got := holds(t, r, "stable")
	for path, blob := range holds(t, r, "testing") {
		if got[path] != blob {
			t.Errorf("%s is %s in stable, %s in testing", path, got[path], blob)
		}
	}
	if len(got) != 4*n {
		t.Errorf("stable has %d files, want %d", len(got), 4*n)
	}
}

// TestDiff compares the difference of random channels with what they hold.
func TestDiff(t *testing.T) {
	r := open(t, Options{})
	rnd := rand.New(rand.NewPCG(1, 2))
	names := []string{"a", "ab", "abc", "zlib", "zlib-ng", "MPlayer", "mplayer"}
	for i := range 60 {
		channel := []string{"testing", "stable"}[rnd.IntN(2)]
		o := sample(names[rnd.IntN(len(names))], []string{"1", "2"}[rnd.IntN(2)], []string{"x86_64", "noarch"}[rnd.IntN(2)], int64(i+1))
		if rnd.IntN(3) == 0 {
			o = failing(o.Build.Package, o.Build.Version, o.Build.Arch, int64(i+1))
		}
		record(t, r, on(channel, "alice", o))
	}
	from, err := r.Snapshot("testing")
	if err != nil {
		t.Fatal(err)
	}
	to, err := r.Snapshot("stable")
	if err != nil {
		t.Fatal(err)
	}
	list, err := Diff(context.Background(), from, to)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][2]string{}
	old, now := holds(t, r, "testing"), holds(t, r, "stable")
	for path := range old {
		if !strings.HasSuffix(path, filesExt) && old[path] != now[path] {
			want[path] = [2]string{old[path], now[path]}
		}
	}
	for path := range now {
		if !strings.HasSuffix(path, filesExt) && old[path] != now[path] {
			want[path] = [2]string{old[path], now[path]}
		}
	}
	got := map[string][2]string{}
	for _, c := range list {
		path := RecordPath(c.Target)
		if c.Failure {
			path = FailurePath(c.Target)
		}
		got[path] = [2]string{c.OldBlob, c.NewBlob}
		if (c.Old == nil) != (c.OldBlob == "") || (c.New == nil) != (c.NewBlob == "") || c.New != nil && c.New.Package != c.Package {
			t.Errorf("change %+v does not hold together", c)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" || len(want) < 10 {
		t.Errorf("%d differences (-want +got):\n%s", len(want), diff)
	}
	if !slices.IsSortedFunc(list, func(a, b Change) int { return strings.Compare(a.Package, b.Package) }) {
		t.Error("they are not sorted")
	}
}
