package pipeline_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/extract"
	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/testbase"
	"github.com/Morphux/quarry/internal/testtools"
	"github.com/Morphux/quarry/jobs"
	"github.com/Morphux/quarry/pipeline"
	"github.com/Morphux/quarry/recipe"
)

func TestMain(m *testing.M) {
	code := m.Run()
	testbase.Clean()
	os.Exit(code)
}

// mixed are real packages in the order in which they are asked for: some spend
// their time in configure, some in the compiler, one in a few large files.
var mixed = []struct {
	name        string
	compilation map[string]any
}{
	{"bzip2", map[string]any{"make": "make libbz2.a bzip2 bzip2recover", "install": "make install PREFIX=$DESTDIR/usr"}},
	{"gzip", map[string]any{"configure": []any{map[string]string{"prefix": "/usr"}}, "make": "", "install": "install"}},
	{"lua5.4", map[string]any{"make": "make posix", "install": "make install INSTALL_TOP=$DESTDIR/usr"}},
	{"lz4", map[string]any{"make": "make", "install": "make install PREFIX=/usr"}},
	{"sed", map[string]any{"configure": []any{map[string]string{"prefix": "/usr"}}, "make": "", "install": "install"}},
	{"zlib", map[string]any{"make": "./configure --prefix=/usr && make", "install": "make install"}},
}

// BenchmarkMakespan builds real packages, as their authors released them, several
// at one time as a farm does, in one run in each of the ways to say how many jobs
// make may run: one, one for each processor, the processors divided by the builds,
// and with slots that all builds share. Where two ways are the same number, one is
// left out. With -short it is the smaller packages only, a minute instead of four.
//
// Each of the N rounds takes every way once, beginning with another; what counts is
// the median. It prints how many seconds each took, how much time of processors,
// and how much of them lay idle while builds still waited for their turn, and in
// all. Another load on the machine counts as not idle, and makes all longer: the
// ratios are of one run, and one round of it says little.
func BenchmarkMakespan(b *testing.B) {
	const atOnce = 2
	cpus := runtime.NumCPU()
	store, err := images.New(testbase.Podman(b), images.Options{
		WorkDir:  filepath.Join(b.TempDir(), "work"),
		Guest:    testbase.Guest(b, "github.com/Morphux/quarry/runner/testdata/guest"),
		Channels: []images.Channel{{Name: "testing", Archs: []string{testbase.Arch}}},
		Pool:     images.PoolOptions{Max: 4, MinMemory: 1, MinDisk: 1, MaxStall: 100},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		if err := store.Close(ctx); err != nil {
			b.Errorf("workspaces are left: %v", err)
		}
	})
	var inputs []pipeline.Input
	for _, m := range mixed {
		if testing.Short() && (m.name == "lz4" || m.name == "sed") {
			continue
		}
		src, ok := testtools.Source(b, m.name)
		if !ok {
			b.Skip("without the sources of real packages there is nothing to measure")
		}
		inputs = append(inputs, packaged(b, m.name, src, m.compilation))
	}
	type way struct {
		name  string
		jobs  int // 0: shared
		spans []spanned
	}
	var ways []*way
	for _, w := range []*way{{name: "shared"}, {name: "j1", jobs: 1}, {name: "j-cores", jobs: cpus}, {name: "j-cores-per-build", jobs: max(1, cpus/atOnce)}} {
		if slices.ContainsFunc(ways, func(o *way) bool { return o.jobs == w.jobs }) {
			b.Logf("%s is what another way is on this machine", w.name)
			continue
		}
		ways = append(ways, w)
	}
	for round := range b.N {
		for i := range ways {
			w := ways[(round+i)%len(ways)]
			s := span(b, newPipeline(b, store, w.jobs), inputs, atOnce)
			w.spans = append(w.spans, s)
			b.Logf("%s: %.1f s, %.1f s of processors, %.1f %% idle while builds waited, %.1f %% in all", w.name, s.wall, s.work, 100*s.queued, 100*s.idle)
		}
	}
	var shared float64
	best := math.Inf(1)
	for _, w := range ways {
		wall := median(w.spans, func(s spanned) float64 { return s.wall })
		if w.jobs == 0 {
			shared = wall
		} else {
			best = min(best, wall)
		}
		b.ReportMetric(wall, "s-"+w.name)
		b.ReportMetric(median(w.spans, func(s spanned) float64 { return s.work }), "cpu-s-"+w.name)
		b.ReportMetric(100*median(w.spans, func(s spanned) float64 { return s.queued }), "%idle-queued-"+w.name)
		b.ReportMetric(100*median(w.spans, func(s spanned) float64 { return s.idle }), "%idle-"+w.name)
	}
	b.ReportMetric(shared/best, "vs-best-fixed")
	b.ReportMetric(0, "ns/op")
}

func median(spans []spanned, of func(spanned) float64) float64 {
	var list []float64
	for _, s := range spans {
		list = append(list, of(s))
	}
	slices.Sort(list)
	return (list[len(list)/2] + list[(len(list)-1)/2]) / 2
}

// packaged is a package of the sources in a folder.
func packaged(b *testing.B, name, src string, compilation map[string]any) pipeline.Input {
	b.Helper()
	dir := filepath.Join(b.TempDir(), name)
	if err := os.CopyFS(filepath.Join(dir, "srcs"), os.DirFS(src)); err != nil {
		b.Fatal(err)
	}
	compilation["test"] = ""
	text, err := json.Marshal(map[string]any{
		"package":      map[string]any{"name": name, "version": "1.0", "description": "A real package"},
		"compilation":  compilation,
		"dependencies": []string{},
	})
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "package.json"), text, 0o644); err != nil {
		b.Fatal(err)
	}
	tree, done, err := pipeline.Folder(dir)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { done() })
	rec, err := recipe.Load(tree)
	if err != nil {
		b.Fatal(err)
	}
	return pipeline.Input{Recipe: rec, Source: tree, Reproduce: "quarry build ."}
}

func newPipeline(b *testing.B, store *images.Store, fixed int) *pipeline.Pipeline {
	b.Helper()
	dir := b.TempDir()
	artifacts, err := extract.OpenArtifacts(filepath.Join(dir, "artifacts"))
	if err != nil {
		b.Fatal(err)
	}
	p := &pipeline.Pipeline{
		Images: store, Artifacts: artifacts, Libraries: &pipeline.Libraries{Dir: filepath.Join(dir, "libraries")},
		Settings: pipeline.Settings{Name: "bench", HostArch: testbase.Arch, Jobs: fixed, Step: time.Hour, Silence: time.Hour, Log: 64 << 20},
	}
	if fixed == 0 {
		if p.Jobs, err = jobs.New(jobs.Options{}); err != nil {
			b.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- p.Jobs.Run(ctx) }()
		b.Cleanup(func() {
			cancel()
			<-done
		})
	}
	return p
}

var number atomic.Int64

// spanned is what making all builds took.
type spanned struct {
	wall, work   float64 // s; work is of all processors together
	queued, idle float64 // the part of the processors that did nothing until the last build was begun, and until the end
}

// span makes all builds, some at one time.
func span(b *testing.B, p *pipeline.Pipeline, inputs []pipeline.Input, atOnce int) (s spanned) {
	b.Helper()
	next := make(chan pipeline.Input)
	var wg sync.WaitGroup
	cpus := float64(runtime.NumCPU())
	began, start := time.Now(), processors(b)
	for range atOnce {
		wg.Go(func() {
			for in := range next {
				n := number.Add(1)
				var log strings.Builder
				in.Log = &log
				in.Build = quarry.Build{Number: n, Attempt: 1, Arch: testbase.Arch, Key: fmt.Sprint(n), Release: quarry.Release{
					Package: in.Recipe.Package, Version: in.Recipe.Version, Channel: "testing", Time: time.Unix(1500000000, 0),
				}}
				out, err := p.Run(context.Background(), in)
				if err != nil || out.Failure != nil {
					b.Errorf("%s: %v: %+v\n%s", in.Recipe.Package, err, out, last(log.String()))
				}
			}
		})
	}
	for _, in := range inputs {
		next <- in
	}
	close(next)
	s.queued = (processors(b).idle - start.idle) / time.Since(began).Seconds() / cpus
	wg.Wait()
	s.wall = time.Since(began).Seconds()
	end := processors(b)
	s.work = end.work - start.work
	s.idle = (end.idle - start.idle) / s.wall / cpus
	return s
}

func last(s string) string { return s[max(0, len(s)-3000):] }

// times are what all processors have done since this machine started, in s.
type times struct{ work, idle float64 }

// processors reads /proc/stat, in which the kernel counts in hundredths. To wait
// for disks is to be idle.
func processors(b *testing.B) times {
	b.Helper()
	f, err := os.Open("/proc/stat")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	line, err := bufio.NewReader(f).ReadString('\n')
	if err != nil && err != io.EOF {
		b.Fatal(err)
	}
	var user, nice, system, idle, wait, irq, soft int64
	if _, err := fmt.Sscanf(line, "cpu %d %d %d %d %d %d %d", &user, &nice, &system, &idle, &wait, &irq, &soft); err != nil {
		b.Fatalf("/proc/stat: %v: %q", err, line)
	}
	return times{work: float64(user+nice+system+irq+soft) / 100, idle: float64(idle+wait) / 100}
}
