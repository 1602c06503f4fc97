package pages

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/graph"
	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/cgroup"
	"github.com/Morphux/quarry/internal/livelog"
	"github.com/Morphux/quarry/queue"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/usage"
	"github.com/Morphux/quarry/web"
	"github.com/spf13/afero"
)

// patience is how long anything may take on a slow machine that is busy.
const patience = 3 * time.Minute

// world is a farm with a real queue, real logs and real series of samples behind
// the real web server. What a build does is up to the test.
type world struct {
	t     testing.TB
	q     *queue.Queue
	logs  *livelog.Store
	usage *usage.Store
	srv   *httptest.Server

	mu       sync.Mutex // guards the following
	releases []quarry.Release
	outcomes map[quarry.Target]*quarry.Outcome
	commits  int
	past     map[int64]quarry.Build // that the queue has forgotten
	why      map[int64]*control.Report
	run      func(ctx context.Context, b quarry.Build, log *livelog.Log, step func(string)) (*quarry.Failure, error)
}

func newWorld(t testing.TB, workers int) *world {
	w := &world{t: t, outcomes: map[quarry.Target]*quarry.Outcome{}, why: map[int64]*control.Report{}}
	dir := afero.NewBasePathFs(afero.NewOsFs(), t.TempDir())
	var err error
	if w.logs, err = livelog.Open(dir, livelog.Options{}); err != nil {
		t.Fatal(err)
	}
	w.usage = usage.Open(dir)
	w.q, err = queue.New(queue.Options{
		Fs: afero.NewMemMapFs(), Workers: workers, ReplanEvery: time.Hour, Log: slog.New(slog.DiscardHandler),
		RetryDelay: func(int) time.Duration { return time.Millisecond },
		Releases: func(_ context.Context, pkg string) (list []quarry.Release, _ []queue.Problem, _ error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, r := range w.releases {
				if pkg == "" || r.Package == pkg {
					list = append(list, r)
				}
			}
			return list, nil, nil
		},
		Records: func(context.Context, string) (queue.Records, error) { return records{w}, nil },
		Run:     w.attempt,
		Record: func(_ context.Context, o *quarry.Outcome) (string, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.outcomes[o.Build.Target()] = o
			w.commits++
			return fmt.Sprintf("%040x", w.commits), nil
		},
		Graph: func(string) graph.Options { return graph.Options{Archs: []string{"x86_64", "aarch64"}} },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() { defer close(over); w.q.Run(ctx) }()
	farm := &control.Farm{Queue: w.q, Logs: w.logs, Usage: w.usage, Default: "testing", Channels: []control.Channel{{Name: "testing", Archs: []string{"x86_64", "aarch64"}}}}
	site := New(Source{
		Farm: "farm1", URL: "https://farm.example.org", Version: "v1.2.3", Started: time.Now(),
		Queue: w.q, Logs: w.logs, Usage: w.usage, Plan: farm.Plan, Why: w, Record: w.record,
		Past: func(_ context.Context, n int64) (quarry.Build, bool) { b, ok := w.past[n]; return b, ok },
		Environments: func(context.Context) []images.Environment {
			base := images.Base{Arch: "x86_64", Digest: "sha256:" + strings.Repeat("ab", 32), Size: 300 << 20, Created: time.Now().Add(-72 * time.Hour), Source: "mmdebstrap"}
			return []images.Environment{
				{Channel: "testing", Arch: "x86_64", Warm: 2, Target: 2, Busy: 1, Started: true, Memory: 12 << 20, Disk: 1 << 20, Base: base,
					Instance: images.Instance{Channel: "testing", Arch: "x86_64", Base: base, Digest: "sha256:" + strings.Repeat("cd", 32), Made: time.Now().Add(-time.Hour), Checked: time.Now().Add(-time.Minute), Size: 310 << 20, Trouble: hostile}},
				{Channel: "testing", Arch: "aarch64", Paused: "its instance is not made yet"},
			}
		},
		Disk:    func() (free, size int64, err error) { return 40 << 30, 100 << 30, nil },
		Workers: []graph.Worker{{Host: "x86_64", Target: "x86_64", Cost: 100}, {Host: "x86_64", Target: "aarch64", Cost: 300, Cross: true}},
		Log:     slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})), // a page of which is not made
	})
	w.srv = httptest.NewServer(web.New(web.Options{Pages: site, Public: true, ErrorPage: site.ErrorPage}))
	t.Cleanup(func() {
		w.srv.CloseClientConnections()
		stop()
		<-over
		w.srv.Close()
	})
	return w
}

// hostile is what somebody may write where text goes.
const hostile = `</p></script><script>document.title='owned'</script><img src=x onerror="document.title='owned'">'"&amp; ${x} {{.}} ` + "\x1b[31m\u202e"

// attempt is a build as the test wants it, with its log and samples.
func (w *world) attempt(ctx context.Context, b quarry.Build, _ []quarry.DepUsed, onStep func(string)) (_ *quarry.Outcome, err error) {
	w.mu.Lock()
	run := w.run
	w.mu.Unlock()
	log, err := w.logs.Create(b.Number, b.Attempt)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	began := time.Now()
	var cpu int64
	rec := w.usage.Begin(usage.Build{Number: b.Number, Attempt: b.Attempt, Memory: 2 << 30, CPUs: 2, Slots: func() (int, int) { return 4, 3 }}, quarry.StepPrepare, 200*time.Millisecond,
		func() (cgroup.Stat, cgroup.Count) {
			cpu += 150_000
			mem := 100<<20 + cpu*100
			return cgroup.Stat{User: cgroup.Of(cpu), Sys: cgroup.Of(cpu / 10), Memory: cgroup.Of(mem), PeakMemory: cgroup.Of(mem), Procs: cgroup.Of(7),
				Read: cgroup.Of(cpu * 3), Written: cgroup.Of(cpu * 5)}, cgroup.Of(1 << 20)
		})
	defer rec.End()
	var steps []quarry.Step
	step := func(name string) {
		rec.Step(name)
		onStep(name)
		steps = append(steps, quarry.Step{Name: name, Wall: time.Duration(len(steps)+1) * time.Second, User: time.Second})
	}
	out := &quarry.Outcome{Build: b, Status: quarry.Succeeded, Started: began, Facts: &quarry.Facts{}, Artifact: &quarry.Artifact{SHA256: strings.Repeat("0f", 32), Size: 4711},
		Host: quarry.HostInfo{Builder: "farm1", Base: "sha256:" + strings.Repeat("ab", 32), Instance: "sha256:" + strings.Repeat("ab", 32), Emulation: "native", Kernel: "6.1", Runtime: "runc"}}
	if run != nil {
		if out.Failure, err = run(ctx, b, log, step); err != nil {
			return nil, err
		}
	}
	out.Steps, out.Ended = steps, time.Now()
	if out.Failure != nil {
		out.Status, out.Facts, out.Artifact = quarry.Failed, nil, nil
	}
	return out, nil
}

// record reads what was recorded of a build, as from the results repository.
func (w *world) record(_ context.Context, b quarry.Build) (*results.Record, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	o := w.outcomes[b.Target()]
	if o == nil || o.Build.Number != b.Number {
		return nil, nil
	}
	return results.NewRecord(o, 0)
}

// Why gives the report that the test has for a build, with its failure.
func (w *world) Why(_ context.Context, b quarry.Build) (*control.Report, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	rep := &control.Report{Build: b}
	if r := w.why[b.Number]; r != nil {
		*rep = *r
	}
	if o := w.outcomes[b.Target()]; o != nil && o.Build.Number == b.Number {
		rep.Failure = o.Failure
	}
	return rep, nil
}

func (w *world) Last(context.Context, quarry.Target) (quarry.Build, bool, error) {
	return quarry.Build{}, false, nil
}

// records says what has been built.
type records struct{ w *world }

func (r records) Lookup(pkg, version, arch string) (quarry.RecordRef, bool, error) {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	o := r.w.outcomes[quarry.Target{Channel: "testing", Package: pkg, Version: version, Arch: arch}]
	if o == nil {
		return quarry.RecordRef{}, false, nil
	}
	return quarry.RecordRef{Status: o.Status, Source: o.Build.Commit, Build: o.Build.Number, Key: o.Build.Key}, true, nil
}

func (r records) Resolve(dep, arch string) (quarry.DepUsed, bool, error) {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	for t, o := range r.w.outcomes {
		if quarry.Branch(t.Package, t.Version) == dep && t.Arch == arch && o.Failure == nil {
			return quarry.DepUsed{Package: t.Package, Version: t.Version, Artifact: o.Artifact.SHA256}, true, nil
		}
	}
	return quarry.DepUsed{}, false, nil
}

func (r records) Stale(quarry.Release, string) (string, string, error) { return "", "", nil }

// push releases something, and gives its builds.
func (w *world) push(pkg, version string, needs ...string) []quarry.Build {
	w.t.Helper()
	w.mu.Lock()
	w.releases = append(w.releases, quarry.Release{Package: pkg, Version: version, Channel: "testing", Commit: fmt.Sprintf("%040x", len(w.releases)+1),
		Time: time.Now().Add(-time.Hour), Pushed: time.Now(), Packager: quarry.Packager{User: "alice", Name: "Alice " + hostile, Email: "alice@example.org"},
		Repo: "/nowhere", Archs: []string{"x86_64"}, Needs: needs})
	w.mu.Unlock()
	builds, err := w.q.Pushed(context.Background(), pkg)
	if err != nil {
		w.t.Fatal(err)
	}
	return builds
}

// does says what builds do from now on.
func (w *world) does(run func(ctx context.Context, b quarry.Build, log *livelog.Log, step func(string)) (*quarry.Failure, error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.run = run
}

// end waits until a build has ended.
func (w *world) end(number int64) quarry.Build {
	w.t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	b, err := w.q.Wait(ctx, number)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// until waits until something is so.
func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("it does not come to be that %s", what)
		}
	}
}

// get asks for a page.
func (w *world) get(path string, headers ...string) (*http.Response, string) {
	w.t.Helper()
	req, err := http.NewRequest("GET", w.srv.URL+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Accept", "text/html")
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	var b strings.Builder
	if _, err := fmt.Fprint(&b, readAll(w.t, resp)); err != nil {
		w.t.Fatal(err)
	}
	return resp, b.String()
}
