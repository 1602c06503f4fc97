package podman

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	spec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/internal/podman/tinyelf"
	"github.com/Morphux/quarry/internal/runnable"
)

// HostArch is what uname -m prints.
func HostArch() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Machine[:])
}

// chooseRuntime returns the path of the first runtime that really runs a
// container here. crun comes first because it is the quicker one; it refuses
// hybrid control groups, and other machines have other tempers, so each is
// tried rather than judged by its name.
func chooseRuntime(ctx context.Context, want, dir, parent string) (string, error) {
	names := []string{"crun", "runc"}
	if want != "" {
		names = []string{want}
	}
	var tried []error
	for _, name := range names {
		path, err := LookPath(name)
		if err != nil {
			tried = append(tried, fmt.Errorf("%s is not installed", name))
			continue
		}
		if err := TryRuntime(ctx, path, filepath.Join(dir, "tmp"), parent); err != nil {
			tried = append(tried, err)
			continue
		}
		return path, nil
	}
	return "", fmt.Errorf("no OCI runtime works here: %w: apt-get install runc (or crun, which wants cgroup v2)", errors.Join(tried...))
}

// TryRuntime runs a container with the runtime at path: in a user namespace,
// with limits, ending at once. It takes some 50 ms.
func TryRuntime(ctx context.Context, path, tmp, parent string) error {
	m, _ := tinyelf.Of(HostArch())
	prog, ok := m.Program()
	if !ok {
		return nil // nothing to run on a machine nobody knows: podman will tell
	}
	dir, err := os.MkdirTemp(tmp, "probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	rootfs := filepath.Join(dir, "rootfs")
	if err := os.Mkdir(rootfs, 0o755); err != nil {
		return err
	}
	if err := runnable.WriteFile(filepath.Join(rootfs, "tiny"), prog); err != nil {
		return err
	}
	id := "quarry-probe-" + filepath.Base(dir)
	limit, pids := int64(64<<20), int64(16)
	s := spec.Spec{
		Version: spec.Version,
		Process: &spec.Process{Args: []string{"/tiny"}, Cwd: "/", NoNewPrivileges: true},
		Root:    &spec.Root{Path: rootfs},
		Mounts:  []spec.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
		Linux: &spec.Linux{
			Namespaces: []spec.LinuxNamespace{{Type: "pid"}, {Type: "mount"}, {Type: "ipc"}, {Type: "uts"}, {Type: "network"}},
		},
	}
	args := []string{"--root", filepath.Join(dir, "state")}
	// Where there is no right to make groups, runc goes without as long as none
	// is named, and crun when it is told to.
	if cg, err := DetectCgroups(); err != nil || cg.Limits() != nil {
		if filepath.Base(path) == "crun" {
			args = append(args, "--cgroup-manager=disabled")
		}
	} else {
		s.Linux.CgroupsPath = parent + "/" + id
		s.Linux.Resources = &spec.LinuxResources{Memory: &spec.LinuxMemory{Limit: &limit}, Pids: &spec.LinuxPids{Limit: pids}}
	}
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o644); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, path, append(args, "run", "--bundle", dir, id)...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s does not work here: %w: %s", filepath.Base(path), err, oneLine(out.String()))
	}
	return nil
}

// chooseDriver returns the storage driver to use, and the path of
// fuse-overlayfs when it is that.
func chooseDriver(want, dir string) (driver, fuse string, err error) {
	switch want {
	case "", "overlay", "fuse-overlayfs":
	case "vfs":
		return "vfs", "", nil
	default:
		return "", "", fmt.Errorf("storage driver %q is not known: use overlay, fuse-overlayfs or vfs", want)
	}
	if want != "fuse-overlayfs" {
		err = TryOverlay(dir)
		if err == nil {
			return "overlay", "", nil
		}
		if want == "overlay" {
			return "", "", err
		}
	}
	fuse, ferr := LookPath("fuse-overlayfs")
	if ferr == nil {
		var f *os.File
		if f, ferr = os.OpenFile("/dev/fuse", os.O_RDWR, 0); ferr == nil {
			f.Close()
			return "fuse-overlayfs", fuse, nil
		}
	}
	if want == "fuse-overlayfs" {
		return "", "", fmt.Errorf("fuse-overlayfs does not work here: %w: apt-get install fuse-overlayfs, modprobe fuse", ferr)
	}
	return "vfs", "", nil
}

// TryDriver returns the storage driver that a service with its storage below
// dir would use.
func TryDriver(want, dir string) (string, error) {
	driver, _, err := chooseDriver(want, dir)
	return driver, err
}

// TryOverlay mounts an overlay whose layers lie in dir, where nobody sees it.
func TryOverlay(dir string) error {
	tmp, err := os.MkdirTemp(dir, "tmp-overlay-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	for _, d := range []string{"l", "u", "w", "m"} {
		if err := os.Mkdir(filepath.Join(tmp, d), 0o755); err != nil {
			return err
		}
	}
	// Paths are relative: a colon or comma in the folder's name would read as
	// the next option.
	cmd := exec.Command("/bin/sh", "-c", `mount --make-rprivate / && mount -t overlay -o lowerdir=l,upperdir=u,workdir=w overlay m && : >m/file`)
	cmd.Dir = tmp
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("overlay cannot be mounted in %s: %w: %s", dir, err, oneLine(string(out)))
	}
	return nil
}

func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 400 {
		s = s[:400] + "..."
	}
	if s == "" {
		return "it said nothing"
	}
	return s
}
