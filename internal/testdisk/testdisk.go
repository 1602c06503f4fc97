// Package testdisk gives tests a real disk that is small enough to be filled.
package testdisk

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const inside = "QUARRY_TEST_DISK" // set in a test that was started again with a user namespace

// Run calls f with a folder on a tmpfs of size bytes. Where the tester may not
// mount, the whole test is run once more in its own user and mount namespace,
// where they may, and this call returns when that has passed.
func Run(t *testing.T, size int, f func(t *testing.T, dir string)) {
	t.Helper()
	dir := t.TempDir()
	err := unix.Mount("quarry-test", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("size=%d,mode=0700", size))
	switch {
	case err == nil:
		t.Cleanup(func() {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Errorf("cannot unmount %s: %v", dir, err)
			}
		})
		f(t, dir)
		return
	case !errors.Is(err, unix.EPERM) || os.Getenv(inside) != "":
		t.Fatalf("cannot mount a tmpfs of %d bytes: %v: run the tests as root, or allow user namespaces (sysctl kernel.unprivileged_userns_clone=1)", size, err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("in a user namespace: %v: run the tests as root, or allow user namespaces (sysctl kernel.unprivileged_userns_clone=1)\n%s", err, out)
	}
	t.Logf("in a user namespace:\n%s", out)
}

// Fill takes all the space of the folder's disk, but leaves some bytes. The
// returned function gives it back.
func Fill(t *testing.T, dir string, leave int64) (free func()) {
	t.Helper()
	name := filepath.Join(dir, "filling")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if n := int64(st.Bavail)*st.Bsize - leave; n > 0 {
		if err := unix.Fallocate(int(f.Fd()), 0, 0, n); err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		if err := os.Remove(name); err != nil {
			t.Error(err)
		}
	}
}
