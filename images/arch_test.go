package images_test

import (
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/podman"
	"github.com/Morphux/quarry/internal/podman/tinyelf"
	"github.com/Morphux/quarry/internal/runnable"
	"github.com/Morphux/quarry/internal/testbase"
	"golang.org/x/sys/unix"
)

// Emulation says of each arch what trying it shows, whatever this machine can.
func TestEmulation(t *testing.T) {
	testbase.Emulate(t) // before looking, as tests of other packages do it at any time
	host := podman.HostArch()
	if how, err := images.Emulation(host); how != images.Native || err != nil {
		t.Errorf("%s: %q, %v", host, how, err)
	}
	for _, arch := range []string{"x86_64", "i686", "i386", "aarch64", "armv7l", "riscv64", "ppc64le", "s390x", "loongarch64"} {
		m, _ := tinyelf.Of(arch)
		prog, ok := m.Program()
		if !ok {
			t.Fatalf("%s has no program", arch)
		}
		path := filepath.Join(t.TempDir(), "tiny")
		if err := runnable.WriteFile(path, prog); err != nil {
			t.Fatal(err)
		}
		runs := exec.Command(path).Run()
		how, err := images.Emulation(arch)
		var no *images.NoEmulationError
		switch {
		case err == nil && runs != nil:
			t.Errorf("%s: said to be %s, but: %v", arch, how, runs)
		case err != nil && !errors.As(err, &no):
			t.Errorf("%s: %v", arch, err)
		case err != nil && runs == nil && !strings.Contains(err.Error(), "flag F") && !strings.Contains(err.Error(), "not mounted"):
			// Without flag F, or where binfmt_misc is mounted only elsewhere, it
			// runs here, but nobody can tell whether it would in a workspace.
			t.Errorf("%s runs, but: %v", arch, err)
		case err == nil && how != images.Native && how != images.Compat && how != images.Emulated:
			t.Errorf("%s: %q", arch, how)
		}
		if err != nil && no.Cure == "" {
			t.Errorf("%s: no cure", arch)
		}
	}
	if _, err := images.Emulation("pdp11"); err == nil {
		t.Error("a pdp11 runs here")
	}
}

// In a container binfmt_misc is often the host's, and not mounted: what counts
// is whether programs run.
func TestEmulationUnseen(t *testing.T) {
	const again = "QUARRY_TEST_UNSEEN"
	if os.Getenv(again) == "" {
		testbase.Emulate(t)
		cmd := exec.Command("unshare", "--mount", os.Args[0], "-test.run=^TestEmulationUnseen$", "-test.v")
		cmd.Env = append(os.Environ(), again+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return
	}
	for { // it may be mounted twice
		if err := unix.Unmount("/proc/sys/fs/binfmt_misc", 0); err != nil {
			break
		}
	}
	if _, err := images.Binfmt(); err == nil {
		t.Fatal("binfmt_misc is still mounted, so nothing is tested")
	}
	if how, err := images.Emulation(testbase.Foreign); how != images.Emulated || err != nil {
		t.Errorf("%q, %v", how, err)
	}
}

// The processor's other mode is a real second arch on one machine.
func TestCompatWorkspace(t *testing.T) {
	arch := map[string]string{"x86_64": "i686", "aarch64": "armv7l"}[testbase.Arch]
	if arch == "" {
		t.Fatalf("this test does not know the other mode of %s: name it here", testbase.Arch)
	}
	how, err := images.Emulation(arch)
	if err != nil {
		t.Fatal(err)
	}
	f := emptyFarm(t)
	for _, a := range []string{testbase.Arch, arch} {
		if _, err := f.store.Load(t.Context(), a, file(t, a, small(t, a)), nil); err != nil {
			t.Fatal(err)
		}
	}
	list, err := f.store.Bases(t.Context())
	if err != nil || len(list) != 2 || list[0].Arch == list[1].Arch || list[0].Digest == list[1].Digest {
		t.Errorf("%+v, %v", list, err)
	}
	w, err := f.store.Workspace(t.Context(), images.Spec{Name: "1", Arch: arch})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close(t.Context())
	if w.Arch != arch || w.Emulation != how {
		t.Errorf("%+v", w)
	}
	// Its /bin/sh is the other arch's program, which ends with 0.
	if a := ask(t, w, request{Shell: "x"}); a.Status != 0 || a.Error != "" {
		t.Errorf("%+v", a)
	}
}

// The line that is written into binfmt_misc gives the kernel what qemu's own
// table gives it.
func TestBinfmtLine(t *testing.T) {
	// From qemu-binfmt-conf.sh, magic and mask.
	for arch, want := range map[string][2]string{
		"aarch64": {"7f454c460201010000000000000000000200b700", "ffffffffffffff00fffffffffffffffffeffffff"},
		"armv7l":  {"7f454c4601010100000000000000000002002800", "ffffffffffffff00fffffffffffffffffeffffff"},
		"riscv64": {"7f454c460201010000000000000000000200f300", "ffffffffffffff00fffffffffffffffffeffffff"},
		"s390x":   {"7f454c4602020100000000000000000000020016", "ffffffffffffff00fffffffffffffffffffeffff"},
	} {
		line, err := images.BinfmtLine(arch, "/usr/bin/qemu-x-static")
		if err != nil {
			t.Fatal(err)
		}
		f := strings.Split(line, ":")
		if len(f) != 8 || f[0] != "" || f[1] != "qemu-"+images.QemuName(arch) || f[2] != "M" || f[3] != "0" || f[6] != "/usr/bin/qemu-x-static" || f[7] != "F" {
			t.Errorf("%s: %q", arch, line)
			continue
		}
		for i, w := range want {
			if got := strings.ReplaceAll(f[4+i], `\x`, ""); got != w {
				t.Errorf("%s: %s instead of %s", arch, got, w)
			}
			if _, err := hex.DecodeString(strings.ReplaceAll(f[4+i], `\x`, "")); err != nil {
				t.Error(err)
			}
		}
	}
	for _, bad := range [][2]string{{"pdp11", "/x"}, {"aarch64", "/a:b"}, {"aarch64", "/a b"}, {"aarch64", "/" + strings.Repeat("x", 200)}} {
		if line, err := images.BinfmtLine(bad[0], bad[1]); err == nil {
			t.Errorf("%v: %q", bad, line)
		}
	}
}
