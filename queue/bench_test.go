package queue

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/graph/graphtest"
	"github.com/spf13/afero"
)

var archs4 = []string{"aarch64", "i686", "riscv64", "x86_64"}

// bigFarm is n packages of one release each, on four archs, all recorded.
func bigFarm(b *testing.B, n int) *world {
	w := newWorld(b)
	for i := range n {
		r := w.push(fmt.Sprintf("package-%d", i), "1.0", fmt.Sprintf("%x", i), archs4, "zlib")
		for _, a := range archs4 {
			t := Want{Release: r, Arch: a}.Target()
			w.records[t] = quarry.RecordRef{Status: quarry.Succeeded, Source: r.Commit, Build: int64(i), Key: quarry.BuildKey(t, r.Commit, "")}
		}
	}
	return w
}

func surveyOnce(b *testing.B, w *world, pkg string) map[string]*View {
	releases, _, _ := w.Releases(b.Context(), pkg)
	views, err := Survey(pkg, releases, nil, func(c string) (Records, error) { return snapshot{w: w, at: w.records}, nil })
	if err != nil {
		b.Fatal(err)
	}
	return views
}

// BenchmarkPlanAll is a full plan of 10,000 releases on 4 archs: nothing new,
// and everything new.
func BenchmarkPlanAll(b *testing.B) {
	for _, c := range []struct {
		name     string
		recorded bool
	}{{"recorded", true}, {"new", false}} {
		b.Run(c.name, func(b *testing.B) {
			w := bigFarm(b, 10000)
			want := 0
			if !c.recorded {
				clear(w.records)
				want = 40000
			}
			for b.Loop() {
				got := 0
				for _, v := range surveyOnce(b, w, "") {
					got += len(v.Decide(nil).New)
				}
				if got != want {
					b.Fatal(got)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/40000, "ns/target")
		})
	}
}

// BenchmarkPlanOne is the plan of one package in farms of two sizes: its cost is
// the package's, not the farm's. (The time to list the releases is the stage's.)
func BenchmarkPlanOne(b *testing.B) {
	for _, n := range []int{10, 10000} {
		b.Run(fmt.Sprintf("of%d", n), func(b *testing.B) {
			w := bigFarm(b, n)
			r := w.push("package-5", "1.0", "ffff", archs4)
			known := []Known{{Build: quarry.Build{Number: 1, Release: r, Arch: "x86_64", State: quarry.Running}}}
			for b.Loop() {
				views, err := Survey("package-5", []quarry.Release{r}, nil, func(string) (Records, error) { return snapshot{w: w, at: w.records}, nil })
				if err != nil || len(views["package-5"].Decide(known).New) != 3 {
					b.Fatal(views, err)
				}
			}
		})
	}
}

// BenchmarkPushed is a push of one package, from the nudge to builds that are
// in the journal, with few and with 10,000 builds known.
func BenchmarkPushed(b *testing.B) {
	for _, n := range []int{10, 10000} {
		b.Run(fmt.Sprintf("known%d", n), func(b *testing.B) {
			w := newWorld(b)
			opts := w.options(afero.NewBasePathFs(afero.NewOsFs(), b.TempDir()))
			opts.History = 1 << 20
			// One package is asked for at a time, and the world lists it without
			// a search through all: that would be the stage's time.
			q := start(b, opts)
			if err := q.Pause(b.Context(), "bench", ""); err != nil {
				b.Fatal(err)
			}
			for i := range n / 4 {
				w.push(fmt.Sprintf("package-%d", i), "1.0", "a", archs4)
			}
			if err := q.Replan(b.Context()); err != nil {
				b.Fatal(err)
			}
			if got := len(q.List(Filter{Live: true})); got != n/4*4 {
				b.Fatal(got)
			}
			one := w.push("pushed", "1.0", "0", archs4)
			w.mu.Lock()
			w.branches = map[Line]quarry.Release{}
			w.mu.Unlock()
			for i := 0; b.Loop(); i++ {
				w.mu.Lock()
				one.Commit = fmt.Sprintf("%040x", i)
				w.branches[lineOf(one)] = one
				w.mu.Unlock()
				if builds, err := q.Pushed(b.Context(), "pushed"); err != nil || len(builds) != 4 {
					b.Fatal(len(builds), err)
				}
			}
		})
	}
}

// BenchmarkRawAppend and BenchmarkJournalAppend compare journalled changes with
// a bare write and fsync of as many bytes on the same disk: one change, and the
// eight that a push of a moved branch on four archs makes.
func BenchmarkRawAppend(b *testing.B) {
	for _, n := range []int{1, 8} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			f, err := os.OpenFile(filepath.Join(b.TempDir(), "raw"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			var data []byte
			for _, e := range changes(n) {
				data, _ = appendLine(data, e)
			}
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				if _, err := f.Write(data); err != nil {
					b.Fatal(err)
				}
				if err := f.Sync(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func changes(n int) (list []entry) {
	for range n {
		b := sample(1, quarry.Queued)
		list = append(list, entry{Build: &b})
	}
	return list
}

func BenchmarkJournalAppend(b *testing.B) {
	for _, n := range []int{1, 8} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			j, _, _ := loadAll(afero.NewBasePathFs(afero.NewOsFs(), b.TempDir()))
			defer j.close()
			list := changes(n)
			for b.Loop() {
				if err := j.append(list...); err != nil {
					b.Fatal(err)
				}
			}
			b.SetBytes(j.size / int64(b.N))
		})
	}
}

// BenchmarkLoad is the start of a queue with 10,000 builds in its journal.
func BenchmarkLoad(b *testing.B) {
	fsys := afero.NewBasePathFs(afero.NewOsFs(), b.TempDir())
	var data []byte
	for i := range 10000 {
		bu := sample(int64(i+1), quarry.Succeeded)
		bu.Ended = time.Now()
		data, _ = appendLine(data, entry{Build: &bu})
	}
	if err := afero.WriteFile(fsys, journalName, data, 0o644); err != nil {
		b.Fatal(err)
	}
	w := newWorld(b)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := New(w.options(fsys)); err != nil {
			b.Fatal(err)
		}
	}
}

// queued is a queue with so many builds that could start, made of a distribution.
func queued(b *testing.B, n int, mass bool) *Queue {
	w := newWorld(b)
	opts := w.options(afero.NewMemMapFs())
	opts.Memory, opts.Workers = 64<<30, 16
	q, err := New(opts)
	if err != nil {
		b.Fatal(err)
	}
	d := graphtest.Generate(graphtest.Options{Packages: n / 5, Archs: archs4, Seed: 1})
	q.releases.learn("", d.Releases, nil, 0)
	made := 0
	for _, r := range d.Releases {
		for _, arch := range r.Archs {
			if made == n {
				return q
			}
			made++
			it := &item{Build: quarry.Build{Number: int64(made), Release: r, Arch: arch, State: quarry.Queued, Created: time.Unix(1_700_000_000, int64(made))}}
			if mass {
				it.Nonce = massNonce + "x"
			}
			q.owner.put(it.Number, it)
		}
	}
	return q
}

// BenchmarkDecision is one decision what to start, and the build's way out of the
// queue and back, with so many that could start. Of a mass rebuild also what holds
// it back is looked at.
func BenchmarkDecision(b *testing.B) {
	for _, n := range []int{1000, 10000, 100000} {
		for _, mass := range []bool{false, true} {
			b.Run(fmt.Sprintf("queued%d/mass=%v", n, mass), func(b *testing.B) {
				q := queued(b, n, mass)
				o := q.owner
				var items []*item
				for _, it := range o.builds {
					items = append(items, it)
				}
				o.ranked(q.rank(items))
				now := time.Now()
				for b.Loop() {
					it := o.next(now, o.gate(now))
					if it == nil {
						b.Fatal("nothing to start")
					}
					c := *it
					c.State = quarry.Running
					o.put(c.Number, &c)
					o.put(c.Number, it)
				}
			})
		}
	}
}

// BenchmarkRank is the ranking of all that is queued, beside the queue's owner, and
// its taking over by that.
func BenchmarkRank(b *testing.B) {
	for _, n := range []int{1000, 10000, 100000} {
		q := queued(b, n, false)
		var items []*item
		for _, it := range q.owner.builds {
			items = append(items, it)
		}
		var ranks map[int64]rank
		b.Run(fmt.Sprintf("queued%d/beside", n), func(b *testing.B) {
			for b.Loop() {
				ranks = q.rank(items)
			}
		})
		b.Run(fmt.Sprintf("queued%d/owner", n), func(b *testing.B) {
			for b.Loop() {
				q.owner.ranks = nil // all have changed
				q.owner.ranked(ranks)
			}
		})
	}
}
