package runner_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/gitfs"
	"github.com/Morphux/quarry/internal/testbase"
	"github.com/Morphux/quarry/internal/testpkg"
	"github.com/Morphux/quarry/recipe"
	"github.com/Morphux/quarry/runner"
)

// BenchmarkTrivial builds a package of which every step is true: a workspace
// made, the build run, the workspace closed. Beside it, in the same run and on
// the same storage: the same commands run directly, and in podman run --rm.
// vs-podman and vs-direct are the ratios.
func BenchmarkTrivial(b *testing.B) {
	f := newFarm(b)
	p := pkg{compilation: map[string]any{"make": "true ;", "test": "true ;", "install": "true ;"}}
	src := p.fs(b)
	rec, err := recipe.Load(src)
	if err != nil {
		b.Fatal(err)
	}
	lines := []string{"true ;", "true ;", "true ;"}
	steps := strings.Join(lines, " ")

	direct := func(b *testing.B) time.Duration {
		began := time.Now()
		for _, line := range lines {
			if err := exec.Command("/bin/sh", "-c", line).Run(); err != nil {
				b.Fatal(err)
			}
		}
		return time.Since(began)
	}
	bases, err := f.store.Bases(b.Context())
	if err != nil || len(bases) != 1 {
		b.Fatal(bases, err)
	}
	podman := plainPodman(b, f, strings.TrimPrefix(bases[0].Image, "sha256:"))
	run := func(b *testing.B) time.Duration {
		began := time.Now()
		podman(b, "/bin/sh", "-c", steps)
		return time.Since(began)
	}
	var made images.Timing
	var inside, shut time.Duration
	build := func(b *testing.B) time.Duration {
		began := time.Now()
		ws, err := f.store.Workspace(b.Context(), images.Spec{Name: fmt.Sprint(number()), Arch: testbase.Arch, Channel: "testing"})
		if err != nil {
			b.Fatal(err)
		}
		mark := time.Now()
		res, err := runner.Run(b.Context(), ws, runner.Job{Recipe: rec, Source: src})
		if err != nil || res.Failure != nil {
			b.Fatal(res, err)
		}
		inside += time.Since(mark)
		mark = time.Now()
		if err := ws.Close(context.Background()); err != nil {
			b.Fatal(err)
		}
		shut += time.Since(mark)
		made.Create += ws.Made.Create
		made.Start += ws.Made.Start
		made.Handshake += ws.Made.Handshake
		return time.Since(began)
	}
	run(b) // the image's mapped layer is made at its first use
	build(b)
	if err := f.store.Drain(b.Context()); err != nil {
		b.Fatal(err)
	}
	made, inside, shut = images.Timing{}, 0, 0

	var ours, theirs, plain, drain time.Duration
	b.ResetTimer()
	for range b.N {
		ours += build(b)
		b.StopTimer()
		mark := time.Now()
		if err := f.store.Drain(b.Context()); err != nil {
			b.Fatal(err)
		}
		drain += time.Since(mark)
		theirs += run(b)
		plain += direct(b)
		b.StartTimer()
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 / float64(b.N) }
	b.ReportMetric(ms(ours), "ms/build")
	b.ReportMetric(ms(made.Create), "ms-create")
	b.ReportMetric(ms(made.Start), "ms-start")
	b.ReportMetric(ms(made.Handshake), "ms-handshake")
	b.ReportMetric(ms(inside), "ms-run")
	b.ReportMetric(ms(shut), "ms-close")
	b.ReportMetric(ms(drain), "ms-drain")
	b.ReportMetric(ms(theirs), "ms/podman-run")
	b.ReportMetric(ms(plain), "ms/direct")
	b.ReportMetric(float64(ours)/float64(theirs), "vs-podman")
	b.ReportMetric(float64(ours)/float64(plain), "vs-direct")
}

// plainPodman returns a function that runs a command in a new container of the
// base as anybody would by hand, with a user namespace and limits.
func plainPodman(b *testing.B, f *farm, image string) func(b *testing.B, argv ...string) {
	dir := b.TempDir()
	conf := filepath.Join(dir, "containers.conf")
	if err := os.WriteFile(conf, []byte("[engine]\nlock_type = \"file\"\nevents_logger = \"none\"\ntmp_dir = \""+dir+"/tmp\"\n"), 0o644); err != nil {
		b.Fatal(err)
	}
	storage := filepath.Join(dir, "storage.conf")
	if err := os.WriteFile(storage, []byte("[storage]\ndriver = \"overlay\"\ngraphroot = \""+dir+"/root\"\nrunroot = \""+dir+"/run\"\n"), 0o644); err != nil {
		b.Fatal(err)
	}
	global := []string{"--root", dir + "/root", "--runroot", dir + "/run", "--storage-driver=overlay", "--storage-opt=additionalimagestore=" + testbase.ImageStore(b),
		"--cgroup-manager=cgroupfs", "--runtime=" + f.conn.Runtime()}
	call := func(b *testing.B, args ...string) {
		b.Helper()
		cmd := exec.Command("podman", append(slices.Clone(global), args...)...)
		cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+conf, "CONTAINERS_STORAGE_CONF="+storage)
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("podman %s: %v: %s", args, err, out)
		}
	}
	b.Cleanup(func() { call(b, "system", "reset", "--force") })
	return func(b *testing.B, argv ...string) {
		b.Helper()
		call(b, append([]string{"run", "--rm", "--network=none", "--log-driver=none", "--uidmap=0:100000:65536", "--gidmap=0:100000:65536",
			"--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096", "--memory=4g", "--pids-limit=4096", image}, argv...)...)
	}
}

// BenchmarkSources brings the sources of a package of 2,000 files out of a git
// repository into a workspace's folder, beside git's own checkout of them.
func BenchmarkSources(b *testing.B) {
	f := newFarm(b)
	dir := b.TempDir()
	for i := range 2000 {
		name := filepath.Join(dir, "srcs", fmt.Sprintf("d%02d", i%40), fmt.Sprintf("f%04d.c", i))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(strings.Repeat(fmt.Sprintf("int f%d(void);\n", i), 500)), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	text := `{"package": {"name": "probe", "version": "1.0", "description": "d"}, "compilation": {"make": "true ;", "install": "true ;"}, "dependencies": []}`
	if err := os.WriteFile(filepath.Join(dir, "package.json"), []byte(text), 0o644); err != nil {
		b.Fatal(err)
	}
	git := func(args ...string) string {
		b.Helper()
		out, err := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=a", "-c", "user.email=a@b"}, args...)...).CombinedOutput()
		if err != nil {
			b.Fatalf("git %v: %v: %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	git("init", "-q")
	git("add", ".")
	git("commit", "-q", "-m", "m")
	git("gc", "-q")
	hash := git("rev-parse", "HEAD")
	src, err := gitfs.Open(filepath.Join(dir, ".git"), hash)
	if err != nil {
		b.Fatal(err)
	}
	rec, err := recipe.Load(src)
	if err != nil {
		b.Fatal(err)
	}
	var ours, theirs time.Duration
	for range b.N {
		ws, err := f.store.Workspace(b.Context(), images.Spec{Name: fmt.Sprint(number()), Arch: testbase.Arch, Channel: "testing"})
		if err != nil {
			b.Fatal(err)
		}
		res, err := runner.Run(b.Context(), ws, runner.Job{Recipe: rec, Source: fs.FS(src),
			Build: quarry.Build{Release: quarry.Release{Time: time.Unix(testpkg.Unix, 0)}}})
		if err != nil || res.Failure != nil {
			b.Fatal(res, err)
		}
		ours += res.Steps[0].Wall
		if err := ws.Close(context.Background()); err != nil {
			b.Fatal(err)
		}
		out := b.TempDir()
		began := time.Now()
		git("--work-tree", out, "checkout", "-q", hash, "--", ".")
		theirs += time.Since(began)
	}
	b.ReportMetric(float64(ours.Microseconds())/1000/float64(b.N), "ms/prepare")
	b.ReportMetric(float64(theirs.Microseconds())/1000/float64(b.N), "ms/git-checkout")
	b.ReportMetric(float64(ours)/float64(theirs), "vs-git")
}
