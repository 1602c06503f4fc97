package overlay_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/internal/overlay"
)

// spec makes the folders of an overlay, with layers that have a file each and
// one in common.
func spec(t testing.TB, n int) overlay.Spec {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("overlays are tested as root: run the tests with sudo, or inside podman unshare")
	}
	d := t.TempDir()
	s := overlay.Spec{Upper: d + "/upper", Work: d + "/work", Scratch: d + "/scratch"}
	dirs := []string{s.Upper, s.Work, s.Scratch}
	for i := range n {
		// Long, so that all together they are more than mount(2) takes.
		dir := filepath.Join(d, fmt.Sprintf("%03d: a, layer \\ with=%s", i, strings.Repeat("x", 150)))
		s.Lower = append(s.Lower, overlay.Lower{Dir: dir})
		dirs = append(dirs, dir)
	}
	for _, dir := range dirs {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for i, l := range s.Lower {
		for _, name := range []string{"all", fmt.Sprint(i)} {
			if err := os.WriteFile(filepath.Join(l.Dir, name), fmt.Append(nil, i), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return s
}

// in is the path of a file of a mount that is nowhere.
func in(m *os.File, name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", m.Fd(), name) }

func TestNew(t *testing.T) {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	s := spec(t, overlay.MaxLayers)
	s.Options, s.Flags = []string{"volatile"}, unix.MS_NOSUID
	m, err := overlay.New(s)
	if err != nil {
		t.Fatal(err)
	}
	for i := range s.Lower {
		if data, err := os.ReadFile(in(m, fmt.Sprint(i))); err != nil || string(data) != fmt.Sprint(i) {
			t.Errorf("layer %d: %q, %v", i, data, err)
		}
	}
	if data, err := os.ReadFile(in(m, "all")); err != nil || string(data) != "0" {
		t.Errorf("the topmost layer is %q, %v", data, err)
	}
	if err := os.WriteFile(in(m, "all"), []byte("new"), 0o644); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(s.Upper, "all")); err != nil || string(data) != "new" {
		t.Errorf("upper: %q, %v", data, err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(m.Fd()), &st); err != nil || st.Flags&unix.ST_NOSUID == 0 || st.Flags&unix.ST_NODEV != 0 {
		t.Errorf("flags %#x, %v", st.Flags, err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	// Others of the machine's mounts come and go with other tests.
	if after, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(after), filepath.Dir(s.Upper)) {
		t.Errorf("mounts are left, %v:\n%s", err, after)
	}
	if now, err := os.Getwd(); err != nil || now != wd {
		t.Errorf("the working directory is %s, %v", now, err)
	}
	if left, err := os.ReadDir(s.Scratch); err != nil || len(left) > 0 {
		t.Errorf("scratch: %v, %v", left, err)
	}
}

func TestNewRefuses(t *testing.T) {
	for want, change := range map[string]func(*overlay.Spec){
		"of 0 layers":              func(s *overlay.Spec) { s.Lower = nil },
		"of 201 layers":            func(s *overlay.Spec) { s.Lower = make([]overlay.Lower, overlay.MaxLayers+1) },
		"is no absolute path":      func(s *overlay.Spec) { s.Lower[0].Dir = "relative" },
		"folder \"upper\" is no a": func(s *overlay.Spec) { s.Upper = "upper" },
		"invalid argument":         func(s *overlay.Spec) { s.Options = []string{"nonsense"} },
		"no such file":             func(s *overlay.Spec) { s.Lower[1].Dir += "?" },
		"mount a tmpfs on":         func(s *overlay.Spec) { s.Scratch += "?" },
		"MOUNT_ATTR_IDMAP": func(s *overlay.Spec) {
			f, err := os.Open("/proc/self/ns/user") // everybody's own says nothing
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			s.Lower[0].IDs = f
		},
	} {
		s := spec(t, 2)
		change(&s)
		if m, err := overlay.New(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, %v; want %q", m, err, want)
		}
	}
}

// Neither the first thread nor any other that Go goes on using is ever in
// another namespace.
func TestThreads(t *testing.T) {
	s := make([]overlay.Spec, 8)
	for i := range s {
		s[i] = spec(t, 2)
	}
	var all sync.WaitGroup
	for i := range s {
		all.Go(func() {
			m, err := overlay.New(s[i])
			if err != nil {
				t.Error(err)
				return
			}
			defer m.Close()
			if _, err := os.Stat(in(m, "all")); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		all.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			if ns, err := os.Readlink("/proc/thread-self/ns/mnt"); err != nil || ns != own {
				t.Errorf("a thread is in %s, %v; want %s", ns, err, own)
			}
		})
	}
	all.Wait()
}

func TestMounts(t *testing.T) {
	all, err := overlay.Mounts(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, m := range all {
		found = found || m.Point == "/proc" && m.Type == "proc" && len(m.Flags) > 0 && len(m.Options) > 0 && m.ID > 0 && m.Parent > 0
	}
	if !found {
		t.Errorf("no /proc in %v", all)
	}
	if _, err := overlay.Mounts(1 << 30); err == nil {
		t.Error("mounts of a process that is not there")
	}
}
