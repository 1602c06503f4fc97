package pages

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/graph"
	"github.com/Morphux/quarry/internal/livelog"
	"github.com/Morphux/quarry/queue"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/web"
	"github.com/spf13/afero"
)

// shelf is a farm with a real repository of results, a real queue and the real
// web server. Its builds wait for the test.
type shelf struct {
	t      testing.TB
	repo   *results.Repo
	q      *queue.Queue
	site   *Site
	srv    *httptest.Server
	number int64

	mu       sync.Mutex // guards the following
	releases []quarry.Release
	let      chan struct{} // closed: builds go on
}

var shelfArchs = []string{"x86_64", "aarch64", "riscv64"}

// newShelf makes a farm with the records and releases that fill makes; then the
// queue starts.
func newShelf(t testing.TB, archs []string, fill func(*shelf)) *shelf {
	t.Helper()
	s := &shelf{t: t, let: make(chan struct{})}
	dir := t.TempDir()
	var err error
	if s.repo, err = results.Open(filepath.Join(dir, "results.git"), results.Options{MaxPacks: -1}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.repo.Close() })
	fill(s)
	logs, err := livelog.Open(afero.NewBasePathFs(afero.NewOsFs(), dir), livelog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s.q, err = queue.New(queue.Options{
		Fs: afero.NewMemMapFs(), Workers: 1, ReplanEvery: time.Hour, Log: slog.New(slog.DiscardHandler), LastBuild: func(context.Context) (int64, error) { return s.repo.LastBuild() },
		RetryDelay: func(int) time.Duration { return time.Millisecond },
		Releases: func(_ context.Context, pkg string) (list []quarry.Release, _ []queue.Problem, _ error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, r := range s.releases {
				if pkg == "" || r.Package == pkg {
					list = append(list, r)
				}
			}
			return list, nil, nil
		},
		Records: func(_ context.Context, view string) (queue.Records, error) {
			snap, err := s.repo.Snapshot(view)
			return shelfRecords{snap}, err
		},
		Run: func(ctx context.Context, b quarry.Build, _ []quarry.DepUsed, step func(string)) (*quarry.Outcome, error) {
			step(quarry.StepMake)
			select {
			case <-s.let:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			o := s.outcome(b.Package, b.Version, b.Arch)
			o.Build = b
			return o, nil
		},
		Record: func(ctx context.Context, o *quarry.Outcome) (string, error) { return s.repo.Record(ctx, o) },
		Graph:  func(string) graph.Options { return graph.Options{Archs: archs} },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() { defer close(over); s.q.Run(ctx) }()
	index := s.repo.Index()
	s.site = New(Source{
		Farm: "farm1", URL: "https://farm.example.org", Version: "v1.2.3", Started: time.Now(), Queue: s.q, Logs: logs,
		Records: Records{
			Index: index, Snapshot: s.repo.Snapshot, Default: "testing", Clone: "ssh://farm.example.org:2222",
			Lines:     []control.Channel{{Name: "stable", Archs: []string{"x86_64"}}, {Name: "testing", Archs: archs}},
			Artifacts: true,
		},
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
	})
	s.srv = httptest.NewServer(web.New(web.Options{Pages: s.site, Public: true, ErrorPage: s.site.ErrorPage}))
	t.Cleanup(func() {
		s.srv.CloseClientConnections()
		stop()
		<-over
		s.srv.Close()
		index.Close()
	})
	s.until("the releases are known", func() bool { return !s.q.Status().Planned.IsZero() })
	return s
}

// shelfRecords is what the queue asks of the records.
type shelfRecords struct{ *results.Snapshot }

func (r shelfRecords) Resolve(dep, arch string) (quarry.DepUsed, bool, error) {
	name, _, _ := strings.Cut(dep, ">=")
	vs, err := r.Versions(name, arch)
	if err != nil || len(vs) == 0 {
		return quarry.DepUsed{}, false, err
	}
	a, ok, err := r.Available(name, vs[len(vs)-1], arch)
	return quarry.DepUsed{Package: name, Version: a.Version, Artifact: a.Artifact}, ok && a.Artifact != "", err
}

func (r shelfRecords) Stale(quarry.Release, string) (string, string, error) { return "", "", nil }

func (s *shelf) until(what string, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("it does not come to be that %s", what)
		}
	}
}

// outcome is a success as real ones are.
func (s *shelf) outcome(pkg, version, arch string) *quarry.Outcome {
	r := rand.New(rand.NewPCG(uint64(len(pkg)*1000+len(arch)), uint64(quarry.CompareVersions(version, "1.0")+7)))
	start := time.Now().Add(-time.Duration(600-s.number) * time.Minute).Truncate(time.Millisecond)
	t := quarry.Target{Channel: "testing", Package: pkg, Version: version, Arch: arch}
	commit := fmt.Sprintf("%040x", len(pkg)+1)
	o := &quarry.Outcome{
		Build: quarry.Build{Number: s.number, Key: quarry.BuildKey(t, commit, fmt.Sprint(s.number)), Nonce: fmt.Sprint(s.number), Arch: arch, Attempt: 1, Release: quarry.Release{
			Package: pkg, Version: version, Channel: "testing", Commit: commit, Time: start.Add(-time.Hour), Pushed: start.Add(-time.Minute), Packager: shelfPackager,
		}},
		Status: quarry.Succeeded, Started: start, Ended: start.Add(time.Duration(20+r.IntN(100)) * time.Second),
		Info: quarry.Info{Description: "Some package of the shelf", Category: "libs"},
		Usage: quarry.Usage{PeakMemory: 131072000, PeakAnon: 104857600, User: 41 * time.Second, Sys: 2500 * time.Millisecond, Read: 4096, Written: 8192000, PeakProcs: 17, PeakDisk: 20000000, SourceSize: 1500000,
			SlotTime: 50 * time.Second, PeakJobs: 4, Width: 3.25, Forced: "make was called with -j8"},
		Artifact: &quarry.Artifact{SHA256: strings.Repeat("45", 32), Size: 250000 + r.Int64N(100000)},
		Facts: &quarry.Facts{Size: 700000 + r.Int64N(400000), DiskSize: 1200000, SizeBefore: 460000000, ABI: strings.Repeat("ab", 32), Files: []quarry.File{
			{Path: "/usr/bin/" + pkg, Kind: quarry.KindRegular, Class: quarry.ClassBinary, Mode: 0o755, Size: 86016, SHA256: strings.Repeat("cd", 32),
				ELF: &quarry.ELF{Arch: arch, Type: "dyn", Interpreter: "/lib64/ld-linux-x86-64.so.2", Needed: []string{"libz.so.1", "libc.so.6"}, PIE: true, RELRO: "full", NX: true}},
			{Path: "/usr/lib/lib" + pkg + ".so", Kind: quarry.KindSymlink, Mode: 0o777, Target: "lib" + pkg + ".so.1"},
			{Path: "/usr/lib/lib" + pkg + ".so.1", Kind: quarry.KindRegular, Class: quarry.ClassShared, Mode: 0o4755, Size: 117000, SHA256: strings.Repeat("ef", 32), ELF: &quarry.ELF{Arch: arch, Type: "dyn", Soname: "lib" + pkg + ".so.1", Stripped: true, Exports: 87}},
		}, Libraries: []quarry.NeededLibrary{{Soname: "libc.so.6", Arch: arch, From: "base", Path: "/lib/libc.so.6", By: []string{"/usr/bin/" + pkg}}, {Soname: "libodd.so.3", From: "nowhere", By: []string{"/usr/bin/" + pkg}}}},
		Host: quarry.HostInfo{Builder: "farm1", Base: "sha256:" + strings.Repeat("89", 32), Instance: "sha256:" + strings.Repeat("8a", 32), Emulation: "native", Kernel: "6.1.0", Runtime: "runc", CPUs: 2, Quarry: "v1.2.3"},
	}
	for i, name := range []string{quarry.StepPrepare, quarry.StepConfigure, quarry.StepMake, quarry.StepTest, quarry.StepInstall, quarry.StepExtract} {
		o.Steps = append(o.Steps, quarry.Step{Name: name, Wall: time.Duration(i+1) * 1234567 * time.Microsecond, User: time.Second, Sys: 250 * time.Millisecond, RSS: 65536000})
	}
	return o
}

var shelfPackager = quarry.Packager{User: "alice", Name: "Alice Liddell", Email: "alice@morphux.org", Key: "SHA256:uNiVztksCsDhcc0u9e8BrmkyZ1h1gDQ2aQrvjLQ"}

// built records a success; change may change it before.
func (s *shelf) built(pkg, version, arch string, change ...func(*quarry.Outcome)) {
	s.t.Helper()
	s.number++
	o := s.outcome(pkg, version, arch)
	for _, f := range change {
		f(o)
	}
	if _, err := s.repo.Record(context.Background(), o); err != nil {
		s.t.Fatal(err)
	}
}

// broke records a failure.
func (s *shelf) broke(pkg, version, arch, class, line string, change ...func(*quarry.Outcome)) {
	s.t.Helper()
	s.built(pkg, version, arch, append([]func(*quarry.Outcome){func(o *quarry.Outcome) {
		o.Status, o.Facts, o.Artifact = quarry.Failed, nil, nil
		o.Steps = o.Steps[:3]
		o.Steps[2].Status = 2
		o.Failure = &quarry.Failure{Step: quarry.StepMake, Cause: quarry.CauseExit, Message: "make ended with status 2", Status: 2, Command: "make",
			Reproduce: "git clone -b " + pkg + "-" + version + " ssh://farm.example.org/" + pkg + ".git && quarry build --arch " + arch + " " + pkg,
			Class:     class, Error: line, Line: 1234, Excerpt: []string{"gcc -c a.c", line, "compilation terminated."}, Hint: "add the package that has it to needed"}
	}}, change...)...)
}

// releases a version. Needs are as recipes write them.
func (s *shelf) release(pkg, version string, archs []string, change ...func(*quarry.Release)) {
	r := quarry.Release{Package: pkg, Version: version, Channel: "testing", Commit: fmt.Sprintf("%040x", len(pkg)+1), Time: time.Now().Add(-time.Hour), Pushed: time.Now(),
		Packager: shelfPackager, Repo: "/nowhere", Archs: archs}
	for _, f := range change {
		f(&r)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.releases = append(s.releases, r)
}

func needs(list ...string) func(*quarry.Release) {
	return func(r *quarry.Release) { r.Needs = list }
}

func used(list ...string) func(*quarry.Outcome) {
	return func(o *quarry.Outcome) {
		o.Info.Needed = list
		for _, name := range list {
			o.Deps = append(o.Deps, quarry.DepUsed{Package: name, Version: "1.3.1", Artifact: strings.Repeat("67", 32), Direct: true})
		}
	}
}

// smallShelf has something of everything.
func smallShelf(t testing.TB) *shelf {
	return newShelf(t, shelfArchs, func(s *shelf) {
		for _, v := range []string{"1.2.11", "1.2.13", "1.3", "1.3.1"} {
			for _, arch := range shelfArchs {
				s.built("zlib", v, arch)
			}
		}
		s.built("zlib", "1.3.1", "x86_64", func(o *quarry.Outcome) { o.Artifact.SHA256 = strings.Repeat("46", 32) }) // again
		s.broke("zlib", "1.3.1", "riscv64", "linker", "/usr/bin/ld: cannot find -lfoo")
		s.release("zlib", "1.3.1", shelfArchs)
		for _, pkg := range []string{"curl", "libpng", "openssh", "git", "mandoc", "ncurses-utilities-with-a-long-name-indeed"} {
			s.built(pkg, "1.0", "x86_64", used("zlib"))
			s.release(pkg, "1.0", shelfArchs[:2], needs("zlib"))
			s.broke(pkg, "1.0", "aarch64", "missing-header", "src/"+pkg+".c:3:10: fatal error: zlib.h: No such file or directory")
		}
		s.broke("tin", "2.0", "x86_64", "missing-program", "configure: error: yacc not found", func(o *quarry.Outcome) { o.Failure.Line = 0 })
		s.release("tin", "2.0", shelfArchs[:1])
		s.built("vim", "9.0", "x86_64", used("zlib", "ncurses-utilities-with-a-long-name-indeed"))
		s.release("vim", "9.1", shelfArchs, needs("zlib>=1.3", "ncurses-utilities-with-a-long-name-indeed", "nobody-has-pushed-this"), func(r *quarry.Release) {
			r.Traits = map[string]quarry.Traits{"riscv64": {Broken: "no barriers " + hostile}}
		})
		s.built("fonts", "3", quarry.Noarch)
		s.release("fonts", "3", []string{quarry.Noarch})
		s.release("fresh", "0.1", shelfArchs[:1], needs("zlib"))
		s.built("stale", "0.9", "x86_64")
		evil := func(o *quarry.Outcome) {
			o.Info.Description, o.Info.Category, o.Build.Packager.Name = hostile, hostile, hostile
			o.Warnings = []string{hostile}
		}
		s.built("evil", "6.6.6", "x86_64", evil, func(o *quarry.Outcome) {
			o.Facts.Files = nil
			for i := range 450 {
				o.Facts.Files = append(o.Facts.Files, quarry.File{Path: fmt.Sprintf("/usr/share/evil/%03d%s\xff\n", i, strings.ReplaceAll(hostile, "/", "|")), Kind: quarry.KindRegular, Class: quarry.ClassOther, Mode: 0o644, Size: int64(i), SHA256: strings.Repeat("01", 32)})
			}
			o.Facts.Libraries = []quarry.NeededLibrary{{Soname: hostile, From: "dependency", Owner: "zlib", Path: hostile, By: []string{hostile}}}
			o.Facts.Warnings = []string{hostile}
		})
		s.broke("evil", "6.6.6", "aarch64", hostile, hostile, evil, func(o *quarry.Outcome) {
			o.Failure.Message, o.Failure.Hint, o.Failure.Reproduce, o.Failure.Excerpt, o.Failure.Paths = hostile, hostile, hostile, []string{hostile}, []string{hostile}
		})
		s.release("evil", "6.6.6", shelfArchs[:2])
	})
}

// get asks for a page.
func (s *shelf) get(path string, headers ...string) (*http.Response, string) {
	s.t.Helper()
	req, err := http.NewRequest("GET", s.srv.URL+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Accept", "text/html")
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil && !errors.Is(err, io.EOF) {
		s.t.Fatal(err)
	}
	return resp, string(b)
}
