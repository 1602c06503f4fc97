package images_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/testbase"
)

// podmanRun is `podman run --rm` against the very storage of a farm, in the
// namespaces of its service.
func podmanRun(b *testing.B, f farm, args ...string) func() error {
	b.Helper()
	base, err := f.store.Base(b.Context(), testbase.Arch)
	if err != nil {
		b.Fatal(err)
	}
	env, err := os.ReadFile("/proc/" + strconv.Itoa(f.conn.PID()) + "/environ")
	if err != nil {
		b.Fatal(err)
	}
	// With events_logger=none, which the service has, podman run itself does
	// not work as it should.
	conf, err := os.ReadFile(filepath.Join(f.conn.Dir(), "containers.conf"))
	if err != nil {
		b.Fatal(err)
	}
	conf = regexp.MustCompile(`(?m)^events_logger.*$`).ReplaceAll(conf, []byte("events_logger = 'file'"))
	if err := os.WriteFile(filepath.Join(f.conn.Dir(), "bench.conf"), conf, 0o644); err != nil {
		b.Fatal(err)
	}
	args = append([]string{"--target", strconv.Itoa(f.conn.PID()), "--mount", "--pid", "podman", "run", "--rm", "--network=none", "--cgroup-parent=" + f.conn.CgroupParent()}, args...)
	args = append(args, base.Image[len("sha256:"):], "true")
	return func() error {
		cmd := exec.Command("nsenter", args...)
		for _, e := range bytes.Split(bytes.Trim(env, "\x00"), []byte{0}) {
			cmd.Env = append(cmd.Env, strings.Replace(string(e), "/containers.conf", "/bench.conf", 1))
		}
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
}

func (f farm) trivial(b *testing.B) (*images.Workspace, time.Duration) {
	began := time.Now()
	w, err := f.store.Workspace(b.Context(), images.Spec{Name: "1", Arch: testbase.Arch})
	if err != nil {
		b.Fatal(err)
	}
	if a, err := try(w, request{Shell: "true"}); err != nil || a.Status != 0 {
		b.Fatal(a, err)
	}
	if err := w.Close(b.Context()); err != nil {
		b.Fatal(err)
	}
	return w, time.Since(began)
}

// BenchmarkTrivial runs `true` in a clean workspace, and beside it, turn by
// turn, as `podman run --rm` does it, without and with the user namespace and
// limits that a workspace has. The times are medians in milliseconds.
//
// drain is what the removal takes afterwards, in the background.
func BenchmarkTrivial(b *testing.B) {
	f := farmOfB(b)
	plain := podmanRun(b, f)
	alike := podmanRun(b, f, "--uidmap=0:100000:65536", "--gidmap=0:100000:65536", "--cap-drop=all", "--security-opt=no-new-privileges", "--memory=1g", "--pids-limit=1000", "--cpus=2")
	f.trivial(b) // the first has an idmapped copy to make and caches to fill
	var ours, theirs, same, drain, create, start, shake []time.Duration
	timed := func(list *[]time.Duration, run func() error) {
		began := time.Now()
		if err := run(); err != nil {
			b.Fatal(err)
		}
		*list = append(*list, time.Since(began))
	}
	for b.Loop() {
		w, took := f.trivial(b)
		ours = append(ours, took)
		create, start, shake = append(create, w.Made.Create), append(start, w.Made.Start), append(shake, w.Made.Handshake)
		timed(&drain, func() error { return f.store.Drain(context.Background()) })
		timed(&theirs, plain)
		timed(&same, alike)
	}
	b.ReportMetric(0, "ns/op")
	for name, list := range map[string][]time.Duration{"workspace": ours, "podman-run": theirs, "podman-run-alike": same, "drain": drain,
		"create": create, "start": start, "handshake": shake} {
		b.ReportMetric(ms(list), name+"-ms")
	}
	b.ReportMetric(ms(ours)/ms(theirs), "x-podman-run")
}

func ms(list []time.Duration) float64 {
	slices.Sort(list)
	return float64(list[len(list)/2].Microseconds()) / 1000
}

func farmOfB(b *testing.B) farm {
	b.Helper()
	f := newFarm(b)
	b.Cleanup(func() { f.store.Drain(context.Background()) })
	return f
}

// BenchmarkSustained makes and closes workspaces without a pause, several at a
// time, removal included, beside podman run.
func BenchmarkSustained(b *testing.B) {
	for _, workers := range []int{1, 2, 4} {
		b.Run(fmt.Sprintf("workers=%d", workers), func(b *testing.B) {
			f := farmOfB(b)
			run := podmanRun(b, f)
			f.trivial(b)
			rate := func(do func()) float64 {
				const n = 16
				jobs := make(chan int)
				done := make(chan bool)
				began := time.Now()
				for range workers {
					go func() {
						for range jobs {
							do()
						}
						done <- true
					}()
				}
				for i := range n {
					jobs <- i
				}
				close(jobs)
				for range workers {
					<-done
				}
				if err := f.store.Drain(context.Background()); err != nil {
					b.Error(err)
				}
				return n / time.Since(began).Seconds()
			}
			var ours, theirs float64
			n := 0
			for b.Loop() {
				ours += rate(func() { f.trivial(b) })
				theirs += rate(func() {
					if err := run(); err != nil {
						b.Error(err)
					}
				})
				n++
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(ours/float64(n), "workspaces/s")
			b.ReportMetric(theirs/float64(n), "podman-run/s")
			b.ReportMetric(ours/theirs, "x-podman-run")
		})
	}
}
