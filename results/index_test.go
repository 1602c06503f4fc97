package results

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/Morphux/quarry"
)

func view(t testing.TB, x *Index, channel string) *View {
	t.Helper()
	v, err := x.View(t.Context(), channel)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// plainEntry is what a test compares of an entry, and of the record it is of.
type plainEntry struct {
	Target                                  quarry.Target
	Status                                  quarry.State
	Build, Revision, Size, ArtifactSize     int64
	Source, Artifact, Description, Category string
	Ended                                   time.Time
	Took                                    time.Duration
	Packager                                quarry.Packager
	Needed, Provides, Used                  []string
	Fault                                   Fault
}

func plainOf(channel string, e *Entry) plainEntry {
	p := plainEntry{
		e.Target(channel), e.Status(), e.Build, e.Revision, e.Size, e.ArtifactSize, e.Source(), e.Artifact(), e.Description(), e.Category(),
		e.Ended(), e.Took(), e.Packager(), e.Needed(), e.Provides(), e.Used(), Fault{},
	}
	if e.Fault != nil {
		p.Fault = *e.Fault
	}
	return p
}

func plainRecord(r *Record) plainEntry {
	p := plainEntry{
		r.Target(), r.Status, r.Build, r.Revision, r.InstalledSize, r.ArtifactSize, r.Source, r.Artifact, r.Description, r.Category,
		r.Ended, r.Ended.Sub(r.Started), r.Packager, r.Recipe.Needed, r.Recipe.Provides, nil, Fault{},
	}
	for _, d := range r.Dependencies {
		if d.Direct {
			p.Used = append(p.Used, d.Package)
		}
	}
	if f := r.Failure; f != nil {
		p.Fault = Fault{f.Step, f.Cause, f.Class, f.Message, f.Error, f.Line}
	}
	return p
}

// compareWithRecords checks a view against a plain reading of all records.
func compareWithRecords(t *testing.T, v *View, s *Snapshot) {
	t.Helper()
	want := map[string]plainEntry{}
	pkgs := map[string]bool{}
	failed := 0
	for _, seq := range []func(context.Context) func(func(*Record, error) bool){
		func(ctx context.Context) func(func(*Record, error) bool) { return s.List(ctx) },
		func(ctx context.Context) func(func(*Record, error) bool) { return s.Failures(ctx) },
	} {
		for r, err := range seq(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			want[fmt.Sprint(r.Target(), r.Status)] = plainRecord(r)
			pkgs[r.Package] = true
			if r.Status == quarry.Failed {
				failed++
			}
		}
	}
	got := map[string]plainEntry{}
	users, provided := map[edge]bool{}, map[edge]bool{}
	for p := range v.Packages("") {
		for _, e := range p.Entries {
			got[fmt.Sprint(e.Target(v.Channel()), e.Status())] = plainOf(v.Channel(), e)
			for _, u := range e.Used() {
				users[edge{u, p.Name}] = true
			}
			for _, u := range e.Provides() {
				provided[edge{u, p.Name}] = true
			}
		}
		if !slices.IsSortedFunc(p.Entries, compareTargets) {
			t.Errorf("entries of %s are out of order", p.Name)
		}
		if v.Package(p.Name) != p {
			t.Errorf("package %s is not found by its name", p.Name)
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("by package (-records +index):\n%s", d)
	}
	if a, b, c := v.Count(); a != len(pkgs) || b != len(want)-failed || c != failed {
		t.Errorf("counts %d %d %d, want %d %d %d", a, b, c, len(pkgs), len(want)-failed, failed)
	}
	// The other lists hold the same entries, in their order.
	recent := slices.Collect(v.Recent(Place{}))
	byUser := map[string]plainEntry{}
	for _, user := range []string{"alice", "bob", ""} {
		last := (*Entry)(nil)
		for e := range v.PackagedBy(user, Place{}) {
			if e.Packager().User != user || last != nil && compareRecent(last, e) >= 0 {
				t.Fatalf("%s after %s among those of %q", e, last, user)
			}
			last = e
			byUser[fmt.Sprint(e.Target(v.Channel()), e.Status())] = plainOf(v.Channel(), e)
		}
	}
	byTime := map[string]plainEntry{}
	for _, e := range recent {
		byTime[fmt.Sprint(e.Target(v.Channel()), e.Status())] = plainOf(v.Channel(), e)
	}
	if !slices.IsSortedFunc(recent, compareRecent) || len(recent) != len(want) || !cmp.Equal(byTime, want) || !cmp.Equal(byUser, want) {
		t.Fatalf("lists by time (%d) or packager (%d) do not hold the %d records", len(byTime), len(byUser), len(want))
	}
	inGroups := 0
	for _, g := range v.FailureGroups() {
		inGroups += len(g.Entries)
	}
	if inGroups != failed {
		t.Errorf("%d failures in groups, want %d", inGroups, failed)
	}
	for e := range v.users.all() {
		if !users[e] {
			t.Errorf("%s is said to use %s", e.to, e.from)
		}
	}
	for e := range users {
		if !slices.Contains(v.Users(e.from, 0), e.to) {
			t.Errorf("%s uses %s, and is not among its users", e.to, e.from)
		}
	}
	for e := range provided {
		if !slices.Contains(v.Providers(e.from, 0), e.to) {
			t.Errorf("%s provides %s, and is not among its providers", e.to, e.from)
		}
	}
	// Paging goes over all, once.
	var paged []*Entry
	for at := (Place{}); ; {
		n := 0
		for e := range v.Recent(at) {
			paged = append(paged, e)
			if n++; n == 7 {
				break
			}
		}
		if n == 0 {
			break
		}
		var ok bool
		if at, ok = ParsePlace(After(paged[len(paged)-1]).String()); !ok {
			t.Fatalf("place %q is not read again", After(paged[len(paged)-1]))
		}
	}
	if !slices.Equal(paged, recent) {
		t.Errorf("pages hold %d entries in another order than all %d", len(paged), len(recent))
	}
}

// anyOutcome is one of a small farm: few packages, so that much is replaced.
func anyOutcome(r *rand.Rand, n int64) *quarry.Outcome {
	pkg := []string{"a", "zl", "zlib", "zlib2", "libfoo", "libbar", "Libbar", "openssh", "gtk-doc", "java-17"}[r.IntN(10)]
	version := []string{"1.0", "1.1", "7.0-p1", "1.10"}[r.IntN(4)]
	arch := []string{"x86_64", "aarch64", "noarch"}[r.IntN(3)]
	o := sample(pkg, version, arch, n)
	if r.IntN(3) == 0 {
		o = failing(pkg, version, arch, n)
		o.Failure.Message = fmt.Sprintf("%s: make ended with status %d, it's \"odd\" \\", pkg, r.IntN(4))
		if r.IntN(2) == 0 {
			o.Failure.Class, o.Failure.Error, o.Failure.Line = "missing-header", fmt.Sprintf("a.c:%d:1: fatal error: 'x.h' not found", n), n
		}
	}
	o.Build.Packager.User = []string{"alice", "bob"}[r.IntN(2)]
	o.Started = o.Started.Add(time.Duration(r.IntN(100)) * time.Second)
	o.Ended = o.Started.Add(time.Duration(r.IntN(100)) * time.Second)
	for i, name := range []string{"zlib", "libfoo", "a"} {
		if r.IntN(3) == 0 {
			o.Deps = append(o.Deps, quarry.DepUsed{Package: name, Version: "1", Artifact: strings.Repeat("67", 32), Direct: i != 1 || r.IntN(2) == 0})
		}
	}
	if r.IntN(4) == 0 {
		o.Info.Provides = []string{"java-runtime-17", "editor"}
	}
	if r.IntN(4) == 0 {
		o.Info.Description = "it's \x1b[31m \"odd\" \\ \u2028 ''' \"\"\""
	}
	return o
}

// TestIndexFollows brings an index up to date after each of many commits and
// compares it with the records, and with an index that is made anew.
func TestIndexFollows(t *testing.T) {
	for seed := range uint64(4) {
		r := rand.New(rand.NewPCG(seed, 5))
		repo := open(t, Options{MaxPacks: -1})
		x := repo.Index()
		for n := int64(1); n <= 60; n++ {
			record(t, repo, anyOutcome(r, n))
			if r.IntN(3) > 0 { // several commits at once, too
				continue
			}
			compareWithRecords(t, view(t, x, "testing"), snapshot(t, repo))
		}
		followed := view(t, x, "testing")
		compareWithRecords(t, followed, snapshot(t, repo))
		fresh, err := OpenIndex(repo.Path())
		if err != nil {
			t.Fatal(err)
		}
		compareWithRecords(t, view(t, fresh, "testing"), snapshot(t, repo))
		if a, b := slices.Collect(followed.users.all()), slices.Collect(view(t, fresh, "testing").users.all()); !slices.Equal(a, b) {
			t.Errorf("users: %v, and anew %v", a, b)
		}
		if err := fresh.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestIndexSharesWhatStays(t *testing.T) {
	repo := open(t, Options{})
	for i := range int64(30) {
		record(t, repo, sample(fmt.Sprintf("pkg%02d", i), "1.0", "x86_64", i+1))
	}
	x := repo.Index()
	before := view(t, x, "testing")
	old := before.Package("pkg07")
	o := sample("pkg07", "1.1", "x86_64", 100)
	record(t, repo, o)
	after := view(t, x, "testing")
	for p := range after.Packages("") {
		if (p == before.Package(p.Name)) != (p.Name != "pkg07") {
			t.Errorf("package %s: shared is %v", p.Name, p == before.Package(p.Name))
		}
	}
	now := after.Package("pkg07")
	if len(now.Entries) != 2 || now.Newest() != "1.1" || now.Entries[1] != old.Entries[0] {
		t.Errorf("after a new version: %v", now.Entries)
	}
	if len(old.Entries) != 1 || before.Package("pkg07") != old {
		t.Error("the view from before has changed")
	}
}

func TestIndexEmpty(t *testing.T) {
	repo := open(t, Options{})
	x := repo.Index()
	v := view(t, x, "nowhere")
	if v.Commit() != "" || v.Package("zlib") != nil || len(v.FailureGroups()) != 0 || len(x.channels) != 0 {
		t.Errorf("a channel without records: %q, %d channels kept", v.Commit(), len(x.channels))
	}
	if _, err := x.View(t.Context(), "../../etc"); err == nil {
		t.Error("a channel of any name was taken")
	}
	if _, err := OpenIndex(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a repository that is not there was opened")
	}
}

// TestIndexDamage has a record that says something else than where it lies, one
// that is no TOML, and one of the wrong half: the rest is there.
func TestIndexDamage(t *testing.T) {
	repo := open(t, Options{})
	record(t, repo, sample("zlib", "1.0", "x86_64", 1))
	record(t, repo, sample("libfoo", "1.0", "x86_64", 2))
	work := filepath.Join(t.TempDir(), "work")
	git(t, repo.Path(), "worktree", "add", "-q", work, "testing")
	good, err := os.ReadFile(filepath.Join(work, "packages/zl/ib/zlib/1.0/x86_64.toml"))
	if err != nil {
		t.Fatal(err)
	}
	for p, text := range map[string]string{
		"packages/zl/ib/zlib/1.0/aarch64.toml":  string(good),
		"packages/zl/ib/zlib/1.0/riscv64.toml":  "schema = [",
		"failures/zl/ib/zlib/1.0/x86_64.toml":   string(good),
		"packages/zl/ib/zlib/odd name/a.toml":   "",
		"packages/other/place/zlib/1.0/a.toml":  "",
		"packages/zl/ib/zlib/1.0/odd.arch.toml": "",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(work, p)), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(work, p), []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	x := repo.Index()
	view(t, x, "testing")
	git(t, work, "add", "-A")
	git(t, work, "-c", "user.name=x", "-c", "user.email=x@x", "commit", "-q", "-m", "damage")
	check := func(v *View) {
		t.Helper()
		p := v.Package("zlib")
		if len(p.Entries) != 1 || len(p.Problems) != 3 || len(slices.Collect(v.Damaged())) != 1 || v.Package("libfoo") == nil {
			t.Errorf("entries %v, problems %q", p.Entries, p.Problems)
		}
	}
	check(view(t, x, "testing"))
	fresh, err := OpenIndex(repo.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	check(view(t, fresh, "testing"))
	git(t, work, "rm", "-q", "-r", "packages/zl", "failures")
	git(t, work, "-c", "user.name=x", "-c", "user.email=x@x", "commit", "-q", "-m", "all gone")
	if v := view(t, x, "testing"); v.Package("zlib") != nil || len(slices.Collect(v.Damaged())) != 0 {
		t.Errorf("after all is gone: %v", v.Package("zlib"))
	}
}

// TestIndexOfAnotherRepository has the branch moved to a history whose objects do
// not include what the index has read.
func TestIndexOfAnotherRepository(t *testing.T) {
	repo := open(t, Options{})
	record(t, repo, sample("zlib", "1.0", "x86_64", 1))
	other := open(t, Options{})
	record(t, other, sample("libfoo", "1.0", "x86_64", 1))
	clone := filepath.Join(t.TempDir(), "clone.git")
	git(t, repo.Path(), "clone", "-q", "--bare", repo.Path(), clone)
	x, err := OpenIndex(clone)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	if view(t, x, "testing").Package("zlib") == nil {
		t.Fatal("zlib is not there")
	}
	if err := os.RemoveAll(clone); err != nil {
		t.Fatal(err)
	}
	git(t, repo.Path(), "clone", "-q", "--bare", other.Path(), clone)
	v := view(t, x, "testing")
	if v.Package("zlib") != nil || v.Package("libfoo") == nil {
		t.Error("the index does not follow to another repository")
	}
}

// TestIndexManyReaders reads while records are written and git repacks: every
// view is whole, and none is older than one that the same reader had before.
func TestIndexManyReaders(t *testing.T) {
	repo := open(t, Options{MaxPacks: 8})
	record(t, repo, sample("zlib", "1.0", "x86_64", 1))
	x := repo.Index()
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			last := int64(0)
			for {
				v, err := x.View(context.Background(), "testing")
				if err != nil {
					t.Error(err)
					return
				}
				_, good, bad := v.Count()
				newest := int64(0)
				n := 0
				for e := range v.Recent(Place{}) {
					newest = max(newest, e.Build)
					n++
				}
				if n != good+bad || newest < last {
					t.Errorf("a view with %d of %d entries up to build %d, after one up to %d", n, good+bad, newest, last)
					return
				}
				last = newest
				v.FailureGroups()
				select {
				case <-done:
					return
				default:
					runtime.Gosched()
				}
			}
		})
	}
	r := rand.New(rand.NewPCG(1, 2))
	for n := int64(2); n < 80; n++ {
		record(t, repo, anyOutcome(r, n))
	}
	close(done)
	wg.Wait()
	compareWithRecords(t, view(t, x, "testing"), snapshot(t, repo))
}

func TestFailureGroups(t *testing.T) {
	repo := open(t, Options{})
	say := func(pkg string, n int64, class, err string) {
		o := failing(pkg, "1.0", "x86_64", n)
		o.Failure.Class, o.Failure.Error = class, err
		record(t, repo, o)
	}
	say("one", 1, "missing-header", "src/a.c:10:10: fatal error: foo.h: No such file or directory")
	say("two", 2, "missing-header", "b.c:1:2: fatal error: foo.h: No such file or directory")
	say("three", 3, "missing-header", "c.c:1:2: fatal error: bar.h: No such file or directory")
	say("four", 4, "", "")
	x := repo.Index()
	var got []string
	for _, g := range view(t, x, "testing").FailureGroups() {
		var names []string
		for _, e := range g.Entries {
			names = append(names, e.Package)
		}
		got = append(got, fmt.Sprintf("%s: %s: %s", g.Class, g.Error, strings.Join(names, " ")))
	}
	want := []string{
		"missing-header: fatal error: foo.h: No such file or directory: two one",
		"exit: make ended with status #: four",
		"missing-header: fatal error: bar.h: No such file or directory: three",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestSinceStandsBehindWhatEndedLater(t *testing.T) {
	repo := open(t, Options{})
	record(t, repo, sample("zlib", "1.0", "x86_64", 1))
	e := view(t, repo.Index(), "testing").Package("zlib").Entries[0]
	if Since(e.Ended()).before(e) != true || Since(e.Ended().Add(time.Millisecond)).before(e) {
		t.Error("the place of a time is off")
	}
}

// TestSortedAgainstModel puts in and takes out at random, and compares with a map.
func TestSortedAgainstModel(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 9))
		s := sorted[int]{cmp: func(a, b int) int { return a - b }}
		model := map[int]bool{}
		for range 60 {
			var del, add []int
			for range r.IntN(1 + []int{3, 50, 3000}[r.IntN(3)]) {
				add = append(add, r.IntN(20_000))
			}
			for range r.IntN(1 + []int{3, 50, 6000}[r.IntN(3)]) {
				del = append(del, r.IntN(20_000))
			}
			before := slices.Collect(s.all())
			next := s.with(del, add)
			if !slices.Equal(before, slices.Collect(s.all())) {
				t.Fatal("the list from before has changed")
			}
			s = next
			for _, v := range del {
				delete(model, v)
			}
			for _, v := range add {
				model[v] = true
			}
			got, want := slices.Collect(s.all()), slices.Sorted(maps.Keys(model))
			if !slices.Equal(got, want) || s.n != len(want) {
				t.Fatalf("seed %d: %d elements (says %d), want %d", seed, len(got), s.n, len(want))
			}
			for _, p := range s.pieces {
				if len(p) == 0 || len(p) > maxPiece {
					t.Fatalf("a piece has %d elements", len(p))
				}
			}
			at := r.IntN(20_000)
			i, _ := slices.BinarySearch(want, at)
			if got := slices.Collect(s.from(func(v int) bool { return v < at })); !slices.Equal(got, want[i:]) {
				t.Fatalf("from %d: %d elements, want %d", at, len(got), len(want)-i)
			}
		}
	}
}

// TestScanKnowsWhatMarshalWrites is why reading is fast: plain records need no
// reader of TOML.
func TestScanKnowsWhatMarshalWrites(t *testing.T) {
	for _, o := range []*quarry.Outcome{sample("zlib", "1.0", "x86_64", 1), failing("zlib", "1.0", "x86_64", 2), realistic("libfoo", 3)} {
		r, err := NewRecord(o, 0)
		if err != nil {
			t.Fatal(err)
		}
		data, err := r.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		got, ok := scan(data)
		if !ok {
			t.Errorf("the record of %s is not in the form that scan knows", r.Target())
		}
		if d := cmp.Diff(briefOf(r), got, cmp.AllowUnexported(brief{})); d != "" {
			t.Errorf("scan differs (-record +scan):\n%s", d)
		}
	}
}

// FuzzScan looks for a text that a reader of TOML takes in another way than scan.
func FuzzScan(f *testing.F) {
	r := rand.New(rand.NewPCG(3, 3))
	for n := range int64(40) {
		rec, err := NewRecord(anyOutcome(r, n+1), 0)
		if err != nil {
			f.Fatal(err)
		}
		data, err := rec.Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, ok := scan(data)
		if !ok {
			return
		}
		rec, err := Parse(data)
		if err != nil {
			return // what is damaged further down may be shown in a list all the same
		}
		if d := cmp.Diff(briefOf(rec), got, cmp.AllowUnexported(brief{})); d != "" {
			t.Errorf("scan differs (-record +scan):\n%s\n%s", d, data)
		}
	})
}

// TestRecordedBuilds lists what has been replaced, too, and goes on from where it
// was.
func TestRecordedBuilds(t *testing.T) {
	repo := open(t, Options{})
	x := repo.Index()
	check := func(want ...string) {
		t.Helper()
		list, err := x.Recorded(t.Context(), "testing", "zlib")
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for r := range list {
			got = append(got, fmt.Sprintf("%d %s %s %s", r.Build, r.Version, r.Arch, r.Status))
			if c, err := repo.odb.commit(r.commit); err != nil || !strings.Contains(c.message, fmt.Sprintf("Build: %d", r.Build)) {
				t.Errorf("commit %s is not that of build %d", r.Commit(), r.Build)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("recorded %q, want %q", got, want)
		}
	}
	check()
	record(t, repo, sample("zlib", "1.0", "x86_64", 1))
	check("1 1.0 x86_64 succeeded")
	record(t, repo, sample("libfoo", "1.0", "x86_64", 2))
	record(t, repo, failing("zlib", "1.0", "x86_64", 3))
	record(t, repo, sample("zlib", "1.0", "x86_64", 4))
	check("4 1.0 x86_64 succeeded", "3 1.0 x86_64 failed", "1 1.0 x86_64 succeeded")
	check("4 1.0 x86_64 succeeded", "3 1.0 x86_64 failed", "1 1.0 x86_64 succeeded")
}
