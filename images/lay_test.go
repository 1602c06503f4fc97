package images_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/extract"
	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/overlay"
	"github.com/Morphux/quarry/layers"
)

// larder is a farm with a cache of layers.
type larder struct {
	farm
	artifacts *extract.Artifacts
	cache     *layers.Cache
}

func newLarder(t testing.TB) larder {
	t.Helper()
	u := larder{farm: newFarm(t)}
	var err error
	if u.artifacts, err = extract.OpenArtifacts(filepath.Join(t.TempDir(), "artifacts")); err != nil {
		t.Fatal(err)
	}
	if u.cache, err = layers.Open(layers.Options{Dir: filepath.Join(t.TempDir(), "layers")}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.cache.Close() })
	return u
}

// pack makes an artifact of files by path.
func (u larder) pack(t testing.TB, files map[string]string) string {
	t.Helper()
	src := t.TempDir()
	for name, data := range files {
		p := filepath.Join(src, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(data), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	_, art, err := extract.Tree(t.Context(), src, extract.Options{Store: u.artifacts, SourceTime: time.Unix(1e9, 0)})
	if err != nil {
		t.Fatal(err)
	}
	return art.SHA256
}

// layers makes the layers of artifacts for a workspace.
func (u larder) layers(t testing.TB, w *images.Workspace, artifacts ...string) (ls []*layers.Layer) {
	t.Helper()
	root, err := w.LayerRoot()
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, a := range artifacts {
		l, err := u.cache.Get(t.Context(), root, a, u.artifacts.Path(a))
		if err != nil {
			t.Fatal(err)
		}
		ls = append(ls, l)
	}
	return ls
}

// idle fails the test when layers are in use, after those of closed workspaces
// have been let go.
func (u larder) idle(t testing.TB) {
	t.Helper()
	u.clean(t)
	if _, _, busy := u.cache.Usage(); busy > 0 {
		t.Errorf("%d layers are in use", busy)
	}
}

func pidOf(t testing.TB, w *images.Workspace) (pid int) {
	t.Helper()
	if _, err := fmt.Sscanf(w.Root(), "/proc/%d/", &pid); err != nil {
		t.Fatal(err)
	}
	return pid
}

// mounts describes what is mounted in a workspace, but for the root's layers.
func mounts(t testing.TB, pid int) []string {
	t.Helper()
	all, err := overlay.Mounts(pid)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, m := range all {
		options := slices.DeleteFunc(m.Options, func(o string) bool { return strings.Contains(o, "dir=") })
		lines = append(lines, fmt.Sprint(m.Point, m.Flags, m.Shared, m.Type, options))
	}
	slices.Sort(lines)
	return lines
}

func TestLay(t *testing.T) {
	u := newLarder(t)
	w := u.workspace(t, images.Limits{})
	defer w.Close(t.Context())
	a := u.pack(t, map[string]string{"lib/libdep.so": "first", "usr/bin/dep": "#!/bin/sh\necho dep\n"})
	b := u.pack(t, map[string]string{"usr/lib/libdep.so": "second", "opt/dep/data": "data"})
	pid := pidOf(t, w)
	before, upper := mounts(t, pid), w.Upper
	look := "ls -la / /etc /run | grep -v '^total\\|\\.\\.$'; ls /dev /sys /proc/self/ns; cat /etc/hostname; pwd; readlink /proc/1/cwd /proc/1/root; umask; id"
	was := sh(t, w, look)
	ls := u.layers(t, w, a, b)
	n, err := w.Lay(t.Context(), ls)
	if err != nil || n != 2 {
		t.Fatalf("%d laid in, %v", n, err)
	}
	if d := cmp.Diff(before, mounts(t, pid)); d != "" {
		t.Errorf("mounts (-before +after):\n%s", d)
	}
	// Others of the machine's mounts come and go with other tests.
	if now, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(now), u.work) {
		t.Errorf("this process sees mounts of the workspace's, %v:\n%s", err, now)
	}
	var kept []string // times of folders and the new ones are others
	strip := func(s string) (out []string) {
		for line := range strings.Lines(s) {
			f := strings.Fields(line)
			if len(f) > 8 {
				line = f[0] + " " + f[2] + " " + f[3] + " " + strings.Join(f[8:], " ")
			}
			out = append(out, strings.TrimSpace(line))
		}
		return out
	}
	kept = strip(sh(t, w, look))
	if d := cmp.Diff(strip(was), kept); d != "" {
		t.Errorf("what the guest sees (-before +after):\n%s", d)
	}
	// What is changed is looked at before.
	for _, tt := range [][2]string{
		{"cat /lib/libdep.so /opt/dep/data; readlink /lib; dep", "seconddatausr/lib\ndep"},
		{"stat -c '%u:%g %a %Y' /usr/bin/dep; stat -c %u:%g /usr/bin /etc/passwd /opt/dep", "0:0 755 1000000000\n0:0\n0:0\n0:0"},
		{"echo mine >/usr/lib/libdep.so; rm /opt/dep/data; cat /usr/lib/libdep.so; ls /opt/dep | wc -l", "mine\n0"},
		{"mount -t tmpfs x /mnt 2>/dev/null || echo no; unshare -m true 2>/dev/null || echo no", "no\nno"},
	} {
		line, want := tt[0], tt[1]
		if got := sh(t, w, line); got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
	if w.Upper == upper {
		t.Error("Upper is still what podman made")
	}
	if data, err := os.ReadFile(filepath.Join(w.Upper, "usr/lib/libdep.so")); err != nil || string(data) != "mine\n" {
		t.Errorf("upper: %q, %v", data, err)
	}
	if _, err := os.Stat(filepath.Join(w.Root(), "usr/bin/dep")); err != nil {
		t.Errorf("root: %v", err)
	}
	if n, err := w.Lay(t.Context(), ls); n != 0 || err == nil || !strings.Contains(err.Error(), "before") {
		t.Errorf("laid in twice: %d, %v", n, err)
	}
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	u.idle(t)
	// What the build did to its copy is not in the layer.
	next := u.workspace(t, images.Limits{})
	defer next.Close(t.Context())
	if n, err := next.Lay(t.Context(), u.layers(t, next, a, b)); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	if got := sh(t, next, "cat /lib/libdep.so /opt/dep/data"); got != "seconddata" {
		t.Errorf("the next workspace has %q", got)
	}
}

// Whatever keeps layers from being laid in leaves the workspace as it was.
func TestLayNot(t *testing.T) {
	u := newLarder(t)
	works := func(t *testing.T, w *images.Workspace) {
		t.Helper()
		if got := sh(t, w, "echo x >/usr/x; ls /usr/x /quarry /proc/self/comm"); !strings.Contains(got, "/usr/x") {
			t.Errorf("the workspace says %q", got)
		}
		if _, err := os.Stat(filepath.Join(w.Upper, "usr/x")); err != nil {
			t.Errorf("Upper is not where it writes: %v", err)
		}
	}
	a := u.pack(t, map[string]string{"opt/a": "a"})
	t.Run("in the way of the workspace", func(t *testing.T) {
		w := u.workspace(t, images.Limits{})
		defer w.Close(t.Context())
		ls := u.layers(t, w, u.pack(t, map[string]string{"etc/mtab": "not the link that is there"}))
		before := mounts(t, pidOf(t, w))
		n, err := w.Lay(t.Context(), ls)
		if n != 0 || err != nil {
			t.Errorf("%d laid in, %v", n, err)
		}
		ls[0].Release()
		if d := cmp.Diff(before, mounts(t, pidOf(t, w))); d != "" {
			t.Errorf("mounts:\n%s", d)
		}
		works(t, w)
	})
	t.Run("in each other's way", func(t *testing.T) {
		w := u.workspace(t, images.Limits{})
		defer w.Close(t.Context())
		ls := u.layers(t, w, a, u.pack(t, map[string]string{"opt/a/b": "b"}))
		if n, err := w.Lay(t.Context(), ls); n != 1 || err != nil {
			t.Errorf("%d laid in, %v", n, err)
		}
		ls[1].Release()
		if got := sh(t, w, "cat /opt/a"); got != "a" {
			t.Errorf("/opt/a is %q", got)
		}
		works(t, w)
	})
	for name, line := range map[string]string{"used before": "for i in $(seq 300); do : >/usr/u$i; done", "something was deleted": "rm /etc/passwd"} {
		t.Run(name, func(t *testing.T) {
			w := u.workspace(t, images.Limits{})
			defer w.Close(t.Context())
			ls := u.layers(t, w, a)
			sh(t, w, line)
			if n, err := w.Lay(t.Context(), ls); n != 0 || err == nil || !strings.Contains(err.Error(), "before the build") {
				t.Errorf("%d laid in, %v", n, err)
			}
			ls[0].Release()
			works(t, w)
		})
	}
	t.Run("no place for a mount", func(t *testing.T) {
		w := u.workspace(t, images.Limits{})
		defer w.Close(t.Context())
		root, err := w.LayerRoot()
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		d := t.TempDir()
		s := overlay.Spec{Lower: root.Lower, Upper: d + "/u", Work: d + "/w", Scratch: d + "/s", Options: root.Options}
		for _, p := range []string{s.Upper, s.Work, s.Scratch} {
			if err := os.Mkdir(p, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		m, err := overlay.New(s)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		pid := pidOf(t, w)
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		before := mounts(t, pid)
		if err := overlay.Replace(pid, fd, m); err == nil || !strings.Contains(err.Error(), "no such file") {
			t.Errorf("a root without /quarry: %v", err)
		}
		if d := cmp.Diff(before, mounts(t, pid)); d != "" {
			t.Errorf("mounts:\n%s", d)
		}
		works(t, w)
	})
	t.Run("closed", func(t *testing.T) {
		w := u.workspace(t, images.Limits{})
		ls := u.layers(t, w, a)
		if err := w.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n, err := w.Lay(t.Context(), ls); n != 0 || err == nil {
			t.Errorf("%d laid in, %v", n, err)
		}
		ls[0].Release()
	})
	u.idle(t)
}

// A workspace that is closed while layers are laid in leaves nothing.
func TestLayClosing(t *testing.T) {
	u := newLarder(t)
	a := u.pack(t, map[string]string{"opt/a": "a"})
	for i := range 8 {
		w := u.workspace(t, images.Limits{})
		ls := u.layers(t, w, a)
		var both sync.WaitGroup
		both.Go(func() {
			if n, _ := w.Lay(context.Background(), ls); n == 0 {
				ls[0].Release()
			}
		})
		both.Go(func() {
			time.Sleep(time.Duration(i) * 500 * time.Microsecond) // at whatever it is doing then
			w.Close(context.Background())
		})
		both.Wait()
	}
	u.idle(t)
}

// A podman that dies takes the workspace along, and nothing is left of it.
func TestLayPodmanKilled(t *testing.T) {
	u := newLarder(t)
	a := u.pack(t, map[string]string{"opt/a": "a"})
	w := u.workspace(t, images.Limits{})
	if n, err := w.Lay(t.Context(), u.layers(t, w, a)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if err := syscall.Kill(u.conn.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.Close(t.Context())
	next := u.workspace(t, images.Limits{}) // waits for the service that follows
	defer next.Close(t.Context())
	if n, err := next.Lay(t.Context(), u.layers(t, next, a)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if got := sh(t, next, "cat /opt/a"); got != "a" {
		t.Errorf("/opt/a is %q", got)
	}
	if err := u.store.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := sh(t, next, "cat /opt/a; echo b >/opt/b; cat /opt/b"); got != "ab" {
		t.Errorf("after a sweep: %q", got)
	}
	if err := next.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	u.idle(t)
}

// What a killed daemon left of its workspaces' layers is swept.
func TestLaySwept(t *testing.T) {
	u := newLarder(t)
	left := filepath.Join(u.work, "7-0badcafe.lay", "upper")
	if err := os.MkdirAll(left, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := u.store.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("%s: %v, want %v", left, err, fs.ErrNotExist)
	}
}
