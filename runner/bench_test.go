package runner_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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
		if out, err := podman("/bin/sh", "-c", steps).CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
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

// plainPodman returns commands that run in a new container of the base as
// anybody would have it by hand, with a user namespace and limits.
func plainPodman(b *testing.B, f *farm, image string) func(argv ...string) *exec.Cmd {
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
	call := func(args ...string) *exec.Cmd {
		cmd := exec.Command("podman", append(slices.Clone(global), args...)...)
		cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+conf, "CONTAINERS_STORAGE_CONF="+storage)
		return cmd
	}
	b.Cleanup(func() {
		if out, err := call("system", "reset", "--force").CombinedOutput(); err != nil {
			b.Errorf("podman: %v: %s", err, out)
		}
	})
	return func(argv ...string) *exec.Cmd {
		return call(append([]string{"run", "--rm", "--network=none", "--log-driver=none", "--uidmap=0:100000:65536", "--gidmap=0:100000:65536",
			"--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096", "--memory=4g", "--pids-limit=4096", image}, argv...)...)
	}
}

// mark is a log that notes when a build has printed something for the first
// time.
type mark struct{ at time.Time }

func (m *mark) Write(b []byte) (int, error) {
	if m.at.IsZero() && bytes.Contains(b, []byte("\nhere\n")) || bytes.HasPrefix(b, []byte("here\n")) {
		m.at = time.Now()
	}
	return len(b), nil
}

// until runs a command and returns the times until it printed "here", and until
// it had ended.
func until(b *testing.B, cmd *exec.Cmd) (first, all time.Duration) {
	b.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	began := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	text := make([]byte, 5)
	if _, err := io.ReadFull(out, text); err != nil || string(text) != "here\n" {
		b.Fatalf("%q, %v", text, err)
	}
	first = time.Since(began)
	if err := cmd.Wait(); err != nil {
		b.Fatal(err)
	}
	return first, time.Since(began)
}

// BenchmarkFirstStep measures how long it takes from asking for a workspace
// until the first step of the recipe prints something, and until the workspace
// is closed: with a workspace that is ready, and with one that has to be made.
// Beside them, turn by turn in the same run: the same command in podman run
// --rm, and in namespaces and an overlay made by hand. Times are medians in
// milliseconds.
func BenchmarkFirstStep(b *testing.B) {
	f := newFarm(b)
	warm := newFarm(b)
	warm.pool(b)
	src := pkg{compilation: map[string]any{"make": "echo here", "install": "true ;"}}.fs(b)
	rec, err := recipe.Load(src)
	if err != nil {
		b.Fatal(err)
	}
	bases, err := f.store.Bases(b.Context())
	if err != nil || len(bases) != 1 {
		b.Fatal(bases, err)
	}
	podman := plainPodman(b, f, strings.TrimPrefix(bases[0].Image, "sha256:"))
	bare := bareOverlay(b, f)

	times := map[string][]time.Duration{}
	build := func(f *farm, name string) {
		began := time.Now()
		ws, err := f.store.Workspace(b.Context(), images.Spec{Name: fmt.Sprint(number()), Arch: testbase.Arch, Channel: "testing"})
		if err != nil {
			b.Fatal(err)
		}
		if ws.Warm != (name == "warm") {
			b.Fatalf("the workspace for %s is warm: %v", name, ws.Warm)
		}
		out := &mark{}
		res, err := runner.Run(b.Context(), ws, runner.Job{Recipe: rec, Source: src, Log: out})
		if err != nil || res.Failure != nil {
			b.Fatal(res, err)
		}
		if err := ws.Close(context.Background()); err != nil {
			b.Fatal(err)
		}
		times[name+"-first"] = append(times[name+"-first"], out.at.Sub(began))
		times[name+"-all"] = append(times[name+"-all"], time.Since(began))
		times[name+"-take"] = append(times[name+"-take"], ws.Made.Take)
		if err := f.store.Drain(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	add := func(name string, cmd *exec.Cmd) {
		first, all := until(b, cmd)
		times[name+"-first"] = append(times[name+"-first"], first)
		times[name+"-all"] = append(times[name+"-all"], all)
	}
	round := func() {
		warm.full(b)
		build(warm, "warm")
		warm.full(b)
		build(f, "cold")
		add("podman-run", podman("/bin/sh", "-c", "echo here"))
		add("bare", bare("echo here"))
	}
	round() // the first has an idmapped copy to make and caches to fill
	clear(times)
	for b.Loop() {
		round()
	}
	b.ReportMetric(0, "ns/op")
	for name, list := range times {
		b.ReportMetric(median(list), name+"-ms")
	}
	first := median(times["warm-first"])
	b.ReportMetric(first/median(times["bare-first"]), "warm-x-bare")
	b.ReportMetric(median(times["podman-run-first"])/first, "podman-run-x-warm")
	b.ReportMetric(median(times["podman-run-all"])/median(times["warm-all"]), "podman-run-all-x-warm-all")
}

// BenchmarkSustained makes trivial builds without a pause, several at a time:
// with workspaces that are made ready in the background, with workspaces that
// are made when they are asked for, and as podman run --rm, removal included
// each time. Rates are builds a second, medians of rounds of 24 builds.
func BenchmarkSustained(b *testing.B) {
	src := pkg{compilation: map[string]any{"make": "echo here", "install": "true ;"}}.fs(b)
	rec, err := recipe.Load(src)
	if err != nil {
		b.Fatal(err)
	}
	for _, workers := range []int{1, 2, 4} {
		b.Run(fmt.Sprintf("workers=%d", workers), func(b *testing.B) {
			f, warm := newFarm(b), newFarm(b)
			warm.pool(b)
			bases, err := f.store.Bases(b.Context())
			if err != nil || len(bases) != 1 {
				b.Fatal(bases, err)
			}
			podman := plainPodman(b, f, strings.TrimPrefix(bases[0].Image, "sha256:"))
			var ready, builds int64
			build := func(f *farm) func() {
				return func() {
					ws, err := f.store.Workspace(b.Context(), images.Spec{Name: fmt.Sprint(number()), Arch: testbase.Arch, Channel: "testing"})
					if err != nil {
						b.Error(err)
						return
					}
					if f == warm {
						atomic.AddInt64(&builds, 1)
						if ws.Warm {
							atomic.AddInt64(&ready, 1)
						}
					}
					if res, err := runner.Run(b.Context(), ws, runner.Job{Recipe: rec, Source: src}); err != nil || res.Failure != nil {
						b.Error(res, err)
					}
					if err := ws.Close(context.Background()); err != nil {
						b.Error(err)
					}
				}
			}
			rate := func(do func()) time.Duration {
				jobs := make(chan int)
				var wg sync.WaitGroup
				began := time.Now()
				for range workers {
					wg.Go(func() {
						for range jobs {
							do()
						}
					})
				}
				for i := range perRound {
					jobs <- i
				}
				close(jobs)
				wg.Wait()
				for _, f := range []*farm{f, warm} {
					if err := f.store.Drain(context.Background()); err != nil {
						b.Error(err)
					}
				}
				return time.Since(began)
			}
			ways := map[string]func(){"pool": build(warm), "no-pool": build(f), "podman-run": func() {
				if out, err := podman("/bin/sh", "-c", "echo here; true").CombinedOutput(); err != nil {
					b.Errorf("%v: %s", err, out)
				}
			}}
			times := map[string][]time.Duration{}
			round := func() {
				for name, do := range ways {
					warm.full(b)
					times[name] = append(times[name], rate(do))
				}
			}
			round() // the first has an idmapped copy to make and caches to fill
			clear(times)
			for b.Loop() {
				round()
			}
			b.ReportMetric(0, "ns/op")
			for name, list := range times {
				b.ReportMetric(perRound*1000/median(list), name+"/s")
			}
			b.ReportMetric(median(times["podman-run"])/median(times["pool"]), "x-podman-run")
			b.ReportMetric(100*float64(ready)/float64(builds), "%-ready")
		})
	}
}

const perRound = 24

// BenchmarkReady keeps 16 workspaces ready whose guest is Quarry itself, as a
// daemon does, and tells what one of them takes: memory of guest, kernel and
// monitor, what the podman service grows by, and disk; and how long it takes to
// make one when nothing else is done, and to drop all of them.
func BenchmarkReady(b *testing.B) {
	const n = 16
	for b.Loop() {
		conn := testbase.Podman(b)
		store, err := images.New(conn, images.Options{
			WorkDir: filepath.Join(b.TempDir(), "work"), Guest: testbase.Guest(b, "github.com/Morphux/quarry/cmd/quarry"),
			Channels: []images.Channel{{Name: "testing", Archs: []string{testbase.Arch}}},
			Pool:     images.PoolOptions{Max: n, MinMemory: 1, MinDisk: 1, MaxStall: 100},
		})
		if err != nil {
			b.Fatal(err)
		}
		f := &farm{conn, store}
		f.pool(b)
		f.full(b)
		before := serviceMemory(b, conn.PID())
		began := time.Now()
		store.Expect("testing", testbase.Arch, n)
		f.full(b)
		b.ReportMetric(float64(time.Since(began).Milliseconds())/(n-1), "ms-to-make")
		e := store.Environments(b.Context())[0]
		b.ReportMetric(float64(e.Memory)/n/1024, "KiB-memory")
		b.ReportMetric(float64(serviceMemory(b, conn.PID())-before)/(n-1)/1024, "KiB-of-podman")
		b.ReportMetric(float64(e.Disk)/n/1024, "KiB-disk")
		began = time.Now()
		if err := store.Close(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(time.Since(began).Milliseconds()), "ms-to-drop-all")
	}
	b.ReportMetric(0, "ns/op")
}

// serviceMemory is the proportional memory of a podman service itself, in
// bytes: of the child of its first process that serves.
func serviceMemory(b *testing.B, pid int) (total int64) {
	b.Helper()
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		b.Fatal(err)
	}
	for _, child := range strings.Fields(string(children)) {
		cmd, _ := os.ReadFile("/proc/" + child + "/cmdline")
		if !bytes.Contains(cmd, []byte("\x00system\x00service\x00")) {
			continue
		}
		data, err := os.ReadFile("/proc/" + child + "/smaps_rollup")
		if err != nil {
			b.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			var kb int64
			if _, err := fmt.Sscanf(line, "Pss: %d kB", &kb); err == nil {
				return kb << 10
			}
		}
	}
	b.Fatalf("no process of %d serves: %s", pid, children)
	return 0
}

func median(list []time.Duration) float64 {
	slices.Sort(list)
	return float64(list[len(list)/2].Microseconds()) / 1000
}

// full waits until the pool has what it should.
func (f *farm) full(b *testing.B) {
	b.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		e := f.store.Environments(b.Context())[0]
		if e.Warm > 0 && e.Warm == e.Target && e.Making == 0 {
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("the pool does not fill: %+v", e)
		}
	}
}

// bareOverlay returns commands in namespaces over an overlay on the very image,
// made by hand and removed afterwards.
func bareOverlay(b *testing.B, f *farm) func(line string) *exec.Cmd {
	dir := b.TempDir()
	layers, err := filepath.Glob(filepath.Join(testbase.ImageStore(b), "overlay", strings.Repeat("?", 64), "diff"))
	if err != nil || len(layers) != 1 {
		b.Fatal(layers, err)
	}
	const script = `set -e; cd "$1"; mkdir u w m
mount -t overlay overlay -o "lowerdir=$2,upperdir=u,workdir=w" m
chroot m /bin/sh -c "$3"
umount m; rm -rf u w m`
	return func(line string) *exec.Cmd {
		return exec.Command("unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "/bin/sh", "-c", script, "bare", dir, layers[0], line)
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
