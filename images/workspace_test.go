package images_test

import (
	"context"
	"errors"
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

	"github.com/containers/podman/v4/pkg/bindings/containers"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/podman"
	"github.com/Morphux/quarry/internal/runnable"
	"github.com/Morphux/quarry/internal/testbase"
)

// farm is a podman service with the base and a store on it.
type farm struct {
	conn  *podman.Conn
	store *images.Store
	work  string
}

func newFarm(t testing.TB) farm {
	t.Helper()
	conn := testbase.Podman(t)
	work := filepath.Join(t.TempDir(), "work")
	return farm{conn, newStore(t, conn, images.Options{WorkDir: work}), work}
}

func (f farm) workspace(t testing.TB, limits images.Limits) *images.Workspace {
	t.Helper()
	w, err := f.store.Workspace(t.Context(), images.Spec{Name: "7", Arch: testbase.Arch, Channel: "testing", Limits: limits})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// clean fails the test when anything is left of closed workspaces.
func (f farm) clean(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if err := f.store.Drain(ctx); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(f.work); err != nil || len(left) > 0 {
		t.Errorf("work folder: %v, %v", left, err)
	}
	call, err := f.conn.Context(ctx)
	if err != nil {
		t.Fatal(err)
	}
	list, err := containers.List(call, new(containers.ListOptions).WithAll(true).WithExternal(true))
	if err != nil || len(list) > 0 {
		t.Errorf("containers: %v, %v", list, err)
	}
	// conmon, the monitor of a container, ends a moment after it.
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		f.store.Drain(ctx)
		left := cgroupsOf(t, f.conn.Farm())
		if len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("control groups: %v", left)
		}
	}
}

func cgroupsOf(t testing.TB, farm string) (found []string) {
	t.Helper()
	cg, err := podman.DetectCgroups()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range cg.Points() {
		filepath.WalkDir(p, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && strings.Contains(d.Name(), farm) {
				found = append(found, path)
			}
			return nil
		})
	}
	return found
}

func TestWorkspace(t *testing.T) {
	f := newFarm(t)
	w := f.workspace(t, images.Limits{Memory: 512 << 20, Pids: 100, CPUs: 0.5, NoFile: 1000, FileSize: 64 << 20, Shm: 1 << 20})
	defer w.Close(t.Context())
	if w.Emulation != images.Native || !strings.HasPrefix(w.Base.Digest, "sha256:") || len(w.Base.Digest) != 71 || w.Runtime == "" {
		t.Errorf("%+v", w)
	}

	t.Run("isolation", func(t *testing.T) {
		for line, want := range map[string]string{
			"id -u; id -g":                      "0\n0",
			"tr -s ' ' </proc/self/uid_map":     fmt.Sprintf(" 0 %d 65536", w.UID),
			"tr -s ' ' </proc/self/gid_map":     fmt.Sprintf(" 0 %d 65536", w.GID),
			"grep CapEff /proc/self/status":     "CapEff:\t00000000000000fb", // CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID
			"grep CapBnd /proc/self/status":     "CapBnd:\t00000000000000fb",
			"grep NoNewPrivs /proc/self/status": "NoNewPrivs:\t1",
			"grep Seccomp: /proc/self/status":   "Seccomp:\t2",
			"ls /sys/class/net; wc -l </proc/net/route; wc -l </proc/net/fib_trie >/dev/null": "lo\n1",
			"hostname":                        "quarry",
			"pwd":                             "/",
			"umask":                           "0022",
			"ulimit -n; ulimit -c; ulimit -f": fmt.Sprintf("1000\n0\n%d", 64<<20/512),
			"ls -A /quarry":                   "", // the socket is gone
			"cat /etc/hosts /etc/hostname 2>/dev/null | grep -v quarry | grep -v '^#' | grep -c .": "0",
			"df -k --output=size /dev/shm | tail -1 | tr -d ' '":                                   "1024",
			"ls -A /run/secrets 2>/dev/null | wc -l":                                               "0",
			"touch /.quarry/guest 2>/dev/null || echo refused":                                     "refused",
			"chmod a-x /.quarry/guest 2>/dev/null || echo refused":                                 "refused",
			"mount -t tmpfs x /mnt 2>/dev/null || echo refused":                                    "refused",
			"mknod /tmp/null c 1 3 2>/dev/null || echo refused":                                    "refused",
			"mknod /quarry/sda b 8 0 2>/dev/null || echo refused":                                  "refused",
			"chroot / true 2>/dev/null || echo refused":                                            "refused",
			"unshare -U true 2>/dev/null || echo refused":                                          "refused",
			"echo 1 2>/dev/null >/proc/sys/kernel/panic || echo refused":                           "refused",
			"date -s 2001-01-01 >/dev/null 2>&1 || echo refused":                                   "refused",
			"chattr +i /etc/passwd 2>/dev/null || echo refused":                                    "refused",
			// What an install step needs works.
			"install -o 7 -g 12 -m 4755 /bin/true /tmp/t && stat -c '%u %g %a' /tmp/t":              "7 12 4755",
			"echo x >/tmp/ro && chmod 0 /tmp/ro && echo y >/tmp/ro && cat /tmp/ro":                  "y",
			"echo >/tmp/a; mkfifo /tmp/f && ln /tmp/a /tmp/hard && ln -s nowhere /tmp/soft && echo": "",
			"chown 65535:65535 /quarry && chown 0:0 /quarry && echo":                                "",
			"setpriv --reuid 1000 --regid 1000 --clear-groups id -u":                                "1000",
		} {
			if a := ask(t, w, request{Shell: line}); strings.TrimSuffix(a.Output, "\n") != want {
				t.Errorf("%s: %q instead of %q (%s)", line, a.Output, want, a.Error)
			}
		}
	})
	t.Run("environment", func(t *testing.T) {
		if a := ask(t, w, request{Action: "env"}); a.Output != `["HOSTNAME=quarry" "HOME=/root"]` {
			t.Errorf("the guest got %s", a.Output)
		}
	})
	t.Run("nothing of the host", func(t *testing.T) {
		host, err := os.Hostname()
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range []string{f.conn.Farm(), host} {
			if len(secret) < 4 {
				continue // such as "vm": would be found by chance
			}
			if a := ask(t, w, request{Shell: "cat /proc/self/mountinfo /proc/1/environ /etc/hosts /etc/hostname /run/.containerenv 2>/dev/null | tr '\\0' '\\n' | grep -F '" + secret + "'"}); a.Output != "" {
				t.Errorf("%q shows inside: %s", secret, a.Output)
			}
		}
	})
	t.Run("folders", func(t *testing.T) {
		sh(t, w, "echo in >/quarry/file; mkdir -p /opt/x; echo upper >/opt/x/file; rm /etc/issue")
		st, err := os.Stat(filepath.Join(w.Dir, "file"))
		if err != nil {
			t.Fatal(err)
		}
		if uid := int(st.Sys().(*syscall.Stat_t).Uid); uid != w.UID {
			t.Errorf("its root is %d on the host, not %d", uid, w.UID)
		}
		if b, err := os.ReadFile(filepath.Join(w.Upper, "opt/x/file")); err != nil || string(b) != "upper\n" {
			t.Errorf("upper: %q, %v", b, err)
		}
		st, err = os.Lstat(filepath.Join(w.Upper, "etc/issue"))
		if err != nil || st.Mode()&os.ModeCharDevice == 0 {
			t.Errorf("no whiteout: %v, %v", st, err)
		}
		// Somebody else on the host does not get in.
		if st, err := os.Stat(filepath.Dir(w.Dir)); err != nil || st.Mode().Perm()&0o066 != 0 {
			t.Errorf("work folder: %v, %v", st.Mode(), err)
		}
	})
	t.Run("usage", func(t *testing.T) {
		u, err := w.Usage()
		if err != nil || u.PeakMemory < 1<<20 || u.PeakMemory > 512<<20 || u.User+u.Sys <= 0 || u.OOMKills != 0 || u.PidsHits != 0 {
			t.Errorf("%+v, %v", u, err)
		}
	})
	t.Run("death", func(t *testing.T) {
		if d, err := w.Died(t.Context()); d.Dead || err != nil {
			t.Errorf("it lives, but: %+v, %v", d, err)
		}
		if err := w.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(t.Context()); err != nil {
			t.Errorf("closed twice: %v", err)
		}
		if d, err := w.Died(t.Context()); !d.Dead || !d.Killed || err != nil {
			t.Errorf("closed, but: %+v, %v", d, err)
		}
		if u, err := w.Usage(); u.PeakMemory == 0 || err != nil {
			t.Errorf("usage is lost: %+v, %v", u, err)
		}
		f.clean(t)
	})
}

func TestWorkspacesDoNotMeet(t *testing.T) {
	t.Parallel()
	f := newFarm(t)
	const n = 6
	ws := make([]*images.Workspace, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			w, err := f.store.Workspace(t.Context(), images.Spec{Name: fmt.Sprint(i % 2), Arch: testbase.Arch, Channel: "testing"})
			if err != nil {
				t.Error(err)
				return
			}
			ws[i] = w
		})
	}
	wg.Wait()
	if slices.Contains(ws, nil) {
		t.FailNow()
	}
	for i, w := range ws {
		sh(t, w, fmt.Sprintf("echo %d >/quarry/who; echo %d >/etc/who", i, i))
	}
	for i, w := range ws {
		if got := sh(t, w, "cat /quarry/who /etc/who"); got != fmt.Sprintf("%d\n%d", i, i) {
			t.Errorf("workspace %d: %q", i, got)
		}
	}
	for _, w := range ws {
		wg.Go(func() {
			if err := w.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	f.clean(t)
}

func TestLimits(t *testing.T) {
	t.Parallel()
	f := newFarm(t)
	t.Run("memory of a child", func(t *testing.T) {
		w := f.workspace(t, images.Limits{Memory: 64 << 20})
		defer w.Close(t.Context())
		a := ask(t, w, request{Shell: `echo 1000 >/proc/self/oom_score_adj; exec perl -e '$x = "x" x (200 << 20)'`})
		if a.Error == "" {
			t.Fatalf("200 MiB went into 64: %+v", a)
		}
		u, err := w.Usage()
		if err != nil || u.OOMKills < 1 || u.PeakMemory > 65<<20 {
			t.Errorf("%+v, %v", u, err)
		}
		if d, err := w.Died(t.Context()); d.Dead || err != nil {
			t.Errorf("the guest died too: %+v, %v", d, err)
		}
	})
	t.Run("memory of the guest", func(t *testing.T) {
		w := f.workspace(t, images.Limits{Memory: 64 << 20})
		defer w.Close(t.Context())
		if a, err := try(w, request{Action: "eat", N: 200}); err == nil {
			t.Fatalf("200 MiB went into 64: %+v", a)
		}
		d, err := w.Died(t.Context())
		if err != nil || !d.Dead || !d.OOM || d.Killed || d.ExitCode != 137 {
			t.Errorf("%+v, %v", d, err)
		}
		if !strings.Contains(d.String(), "memory") {
			t.Errorf("%q does not say why", d)
		}
	})
	t.Run("processes", func(t *testing.T) {
		w := f.workspace(t, images.Limits{Pids: 50, NProc: 1000})
		defer w.Close(t.Context())
		// A storm that never ends by itself.
		if a := ask(t, w, request{Shell: "storm() { storm | storm & }; (storm) >/dev/null 2>&1 &"}); a.Error != "" {
			t.Fatalf("%+v", a)
		}
		await(t, "forks are refused", func() bool {
			u, err := w.Usage()
			if err != nil {
				t.Fatal(err)
			}
			return u.PidsHits > 0
		})
		// That may fail for want of a process.
		if a := ask(t, w, request{Shell: "ls -d /proc/[0-9]* | wc -l"}); a.Error == "" && len(strings.TrimSpace(a.Output)) > 2 {
			t.Errorf("%s processes", a.Output)
		}
		if err := w.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if tasks, err := w.Tasks(); err != nil || tasks != (images.Tasks{}) {
			t.Errorf("after its end there are %+v, %v", tasks, err)
		}
	})
	t.Run("disk", func(t *testing.T) {
		for _, where := range []string{"/quarry", "/var/tmp"} {
			w := f.workspace(t, images.Limits{Disk: 32 << 20})
			a, err := try(w, request{Shell: "cd " + where + "; i=0; while dd if=/dev/zero of=f$i bs=1M count=4 2>/dev/null; do i=$((i+1)); sleep 0.05; done"})
			if err == nil {
				t.Errorf("%s: it went on: %+v", where, a)
			}
			d, err := w.Died(t.Context())
			if err != nil || !d.Dead || !d.Disk || !strings.Contains(d.Reason, "disk") {
				t.Errorf("%s: %+v, %v", where, d, err)
			}
			w.Close(t.Context())
		}
	})
	t.Run("empty files", func(t *testing.T) {
		w := f.workspace(t, images.Limits{Disk: 8 << 20})
		defer w.Close(t.Context())
		if a, err := try(w, request{Shell: "cd /var/tmp; seq 5000 | xargs touch; sleep 1000"}); err == nil {
			t.Errorf("5000 files of no bytes went on: %+v", a)
		}
		if d, err := w.Died(t.Context()); err != nil || !d.Disk {
			t.Errorf("%+v, %v", d, err)
		}
	})
	t.Run("one file", func(t *testing.T) {
		w := f.workspace(t, images.Limits{FileSize: 1 << 20})
		defer w.Close(t.Context())
		if a := ask(t, w, request{Shell: "dd if=/dev/zero of=/quarry/f bs=64k count=100 2>/dev/null; stat -c %s /quarry/f"}); strings.TrimSpace(a.Output) != fmt.Sprint(1<<20) {
			t.Errorf("%+v", a)
		}
	})
	f.clean(t)
}

func TestDied(t *testing.T) {
	f := newFarm(t)
	t.Run("exit", func(t *testing.T) {
		w := f.workspace(t, images.Limits{})
		defer w.Close(t.Context())
		if a, err := try(w, request{Action: "exit", N: 42}); err == nil {
			t.Fatalf("%+v", a)
		}
		d, err := w.Died(t.Context())
		if err != nil || !d.Dead || d.ExitCode != 42 || d.OOM || d.Pids || d.Disk || d.Killed {
			t.Errorf("%+v, %v", d, err)
		}
	})
	t.Run("kill", func(t *testing.T) {
		w := f.workspace(t, images.Limits{})
		defer w.Close(t.Context())
		if err := w.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := try(w, request{Shell: "true"}); err == nil {
			t.Error("it answers")
		}
		if d, err := w.Died(t.Context()); err != nil || !d.Dead || !d.Killed {
			t.Errorf("%+v, %v", d, err)
		}
	})
	t.Run("service", func(t *testing.T) {
		w := f.workspace(t, images.Limits{})
		if err := syscall.Kill(f.conn.PID(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if a, err := try(w, request{Action: "sleep"}); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("it outlived its service: %+v, %v", a, err)
		}
		if d, err := w.Died(t.Context()); !errors.Is(err, podman.ErrGone) {
			t.Errorf("%+v, %v", d, err)
		}
		if err := w.Close(t.Context()); err != nil {
			t.Errorf("close: %v", err)
		}
		// The farm goes on.
		w = f.workspace(t, images.Limits{})
		if got := sh(t, w, "echo again"); got != "again" {
			t.Errorf("%q", got)
		}
		w.Close(t.Context())
		f.clean(t)
	})
	t.Run("service while one starts", func(t *testing.T) {
		// Wherever it hits, the error says that the farm is at fault, or there
		// is none.
		for i := range 6 {
			pid := f.conn.PID()
			time.AfterFunc(time.Duration(i)*25*time.Millisecond, func() { syscall.Kill(pid, syscall.SIGKILL) })
			w, err := f.store.Workspace(t.Context(), images.Spec{Name: "1", Arch: testbase.Arch})
			if err == nil {
				w.Close(t.Context())
			} else if !errors.Is(err, podman.ErrGone) {
				t.Errorf("after %d ms: %v", i*25, err)
			}
			for deadline := time.Now().Add(2 * time.Minute); f.conn.PID() == pid || f.conn.PID() == 0; {
				if time.Now().After(deadline) {
					t.Fatal("no new service")
				}
				time.Sleep(5 * time.Millisecond)
			}
		}
		if err := f.store.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.clean(t)
	})
}

// A build may leave trees that no path can name and that its owner may not
// enter.
func TestHostileTrees(t *testing.T) {
	t.Parallel()
	f := newFarm(t)
	w := f.workspace(t, images.Limits{Disk: 1 << 30})
	sh(t, w, `cd /quarry; mkfifo pipe; ln -s / root; ln -s loop loop; touch "$(printf 'a\nb\377')"; mkdir -p x/y; ln -s /etc x/y/etc; chmod 000 x/y x .`)
	if a, err := try(w, request{Action: "nest", N: 30000}); err == nil && a.Error != "" {
		t.Fatal(a.Error)
	}
	if a, err := try(w, request{Action: "sleep"}); err == nil {
		t.Fatalf("it went on: %+v", a)
	}
	if d, err := w.Died(t.Context()); err != nil || !d.Disk || !strings.Contains(d.Reason, "nested folders") {
		t.Errorf("%+v, %v", d, err)
	}
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.clean(t)
	if _, err := os.Stat("/etc/passwd"); err != nil {
		t.Fatal(err)
	}
}

func TestWorkspaceRefusals(t *testing.T) {
	t.Parallel()
	f := newFarm(t)
	for name, c := range map[string]struct {
		spec images.Spec
		says string
	}{
		"no name":      {images.Spec{Arch: testbase.Arch}, "user name is empty"},
		"option":       {images.Spec{Name: "--rm", Arch: testbase.Arch}, "may not begin"},
		"path":         {images.Spec{Name: "a/../b", Arch: testbase.Arch}, "may not hold"},
		"no arch":      {images.Spec{Name: "1"}, "architecture is empty"},
		"unknown arch": {images.Spec{Name: "1", Arch: "pdp11"}, "do not run on this machine"},
		"no base":      {images.Spec{Name: "1", Arch: "i486"}, "quarry images load i486"},
		"memory":       {images.Spec{Name: "1", Arch: testbase.Arch, Limits: images.Limits{Memory: 1}}, "too little"},
		"processes":    {images.Spec{Name: "1", Arch: testbase.Arch, Limits: images.Limits{Pids: 1}}, "too little"},
	} {
		t.Run(name, func(t *testing.T) {
			w, err := f.store.Workspace(t.Context(), c.spec)
			if err == nil {
				w.Close(t.Context())
				t.Fatal("made")
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("%q does not say %q", err, c.says)
			}
		})
	}
	f.clean(t)
}

// A guest that does not do its part costs a clear error and nothing else.
func TestBadGuest(t *testing.T) {
	t.Parallel()
	conn := testbase.Podman(t)
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := runnable.WriteFile(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, c := range map[string]struct {
		guest string
		limit time.Duration
		says  string
	}{
		"ends at once":  {write("ends", "#!/bin/sh\nexit 3\n"), 3 * time.Minute, "status 3 before it connected"},
		"cannot run":    {write("not", "\x7fELFnonsense"), 3 * time.Minute, "before it connected"},
		"never answers": {write("never", "#!/bin/sh\nexec sleep 1000\n"), 2 * time.Second, "was not ready after 2s"},
	} {
		t.Run(name, func(t *testing.T) {
			work := filepath.Join(t.TempDir(), "work")
			f := farm{conn, newStore(t, conn, images.Options{WorkDir: work, Guest: c.guest, StartTimeout: c.limit}), work}
			w, err := f.store.Workspace(t.Context(), images.Spec{Name: "1", Arch: testbase.Arch})
			if err == nil {
				w.Close(t.Context())
				t.Fatal("made")
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("%q does not say %q", err, c.says)
			}
			f.clean(t)
		})
	}
	if _, err := images.New(conn, images.Options{WorkDir: t.TempDir(), Guest: "/nowhere"}); err == nil {
		t.Error("a guest that is not there was taken")
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	f := newFarm(t)
	for i := range 8 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*20*time.Millisecond)
		w, err := f.store.Workspace(ctx, images.Spec{Name: "1", Arch: testbase.Arch})
		cancel()
		if err == nil {
			w.Close(t.Context())
		} else if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after %d ms: %v", i*20, err)
		}
	}
	// The service may still be making what nobody waits for any more; the next
	// sweep finds it.
	if err := f.store.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := f.store.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.clean(t)
}
