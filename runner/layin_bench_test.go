package runner_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/extract"
	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/testbase"
	"github.com/Morphux/quarry/internal/testpkg"
	"github.com/Morphux/quarry/recipe"
	"github.com/Morphux/quarry/runner"
)

// BenchmarkDependency brings a dependency of 1 GB in 20,000 files into a
// workspace: laid in from the cache, laid in for the first time, which unpacks
// it, and streamed; beside them, in the same run, tar -x of the same artifact
// into a folder. What is measured of the first three is the whole step prepare.
func BenchmarkDependency(b *testing.B) {
	k := newKept(b)
	src := b.TempDir()
	r := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 1<<20)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	// Half of each file can be compressed, as programs can.
	size := 1 << 30 / 20_000
	data := make([]byte, size)
	for i := range 20_000 {
		for at := 0; at < size; at += 4096 {
			n := min(2048, size-at)
			copy(data[at:at+n], noise[r.IntN(len(noise)-n):])
		}
		name := filepath.Join(src, "usr/lib", fmt.Sprintf("d%03d", i/100), fmt.Sprintf("f%05d", i))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(name, data, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	_, art, err := extract.Tree(b.Context(), src, extract.Options{Store: k.store, SourceTime: time.Unix(testpkg.Unix, 0)})
	if err != nil {
		b.Fatal(err)
	}
	dep := runner.Dep{DepUsed: quarry.DepUsed{Package: "large", Version: "1.0", Artifact: art.SHA256}, Path: k.store.Path(art.SHA256)}
	fsys := pkg{}.fs(b)
	rec, err := recipe.Load(fsys)
	if err != nil {
		b.Fatal(err)
	}
	prepare := func(cached bool) time.Duration {
		unix.Sync() // what others left to be written is not to be waited for
		ws, err := k.farm.store.Workspace(b.Context(), images.Spec{Name: fmt.Sprint(number()), Arch: testbase.Arch, Channel: "testing"})
		if err != nil {
			b.Fatal(err)
		}
		job := runner.Job{Recipe: rec, Source: fsys, Deps: []runner.Dep{dep}}
		if cached {
			job.Layers = k.cache
		}
		res, err := runner.Run(b.Context(), ws, job)
		if err != nil || res.Failure != nil {
			b.Fatal(res, err)
		}
		ws.Close(context.Background())
		if err := k.farm.store.Drain(b.Context()); err != nil {
			b.Fatal(err)
		}
		return res.Steps[0].Wall
	}
	tar := func() time.Duration {
		unix.Sync()
		dir := b.TempDir()
		began := time.Now()
		if out, err := exec.Command("tar", "-x", "--zstd", "-f", dep.Path, "-C", dir).CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		took := time.Since(began)
		os.RemoveAll(dir)
		return took
	}
	none := func() time.Duration {
		d := dep
		defer func() { dep = d }()
		dep = k.depSmall(b)
		prepare(true)
		return prepare(true)
	}()
	prepare(false) // the base's files into memory
	var warm, first, streamed, plain time.Duration
	b.ResetTimer()
	for range b.N {
		k.cache.Clean()
		first += prepare(true)
		warm += prepare(true)
		streamed += prepare(false)
		plain += tar()
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 / float64(b.N) }
	b.ReportMetric(ms(warm), "ms/warm")
	b.ReportMetric(ms(first), "ms/first")
	b.ReportMetric(ms(streamed), "ms/streamed")
	b.ReportMetric(ms(plain), "ms/tar")
	b.ReportMetric(float64(none.Microseconds())/1000, "ms/tiny")
	b.ReportMetric(float64(plain)/float64(warm), "tar/warm")
	b.ReportMetric(float64(first)/float64(plain), "first/tar")
	b.ReportMetric(float64(streamed)/float64(plain), "streamed/tar")
}

// depSmall is a dependency of one file: what laying in costs at least.
func (k *kept) depSmall(b *testing.B) runner.Dep {
	b.Helper()
	src := b.TempDir()
	if err := os.WriteFile(filepath.Join(src, "small"), nil, 0o644); err != nil {
		b.Fatal(err)
	}
	_, art, err := extract.Tree(b.Context(), src, extract.Options{Store: k.store, SourceTime: time.Unix(testpkg.Unix, 0)})
	if err != nil {
		b.Fatal(err)
	}
	return runner.Dep{DepUsed: quarry.DepUsed{Package: "small", Version: "1.0", Artifact: art.SHA256}, Path: k.store.Path(art.SHA256)}
}
