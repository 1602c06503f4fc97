package testbase

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/doctor"
)

// Foreign is the arch that tests build for under emulation: no processor of
// this machine's arch runs it.
var Foreign = map[bool]string{true: "x86_64", false: "aarch64"}[Arch == "aarch64"]

// Emulate has programs of [Foreign] run on this machine: where the kernel does
// not know qemu yet it is told, as quarry doctor --fix does, and goes on knowing
// it until the next boot.
func Emulate(t testing.TB) {
	t.Helper()
	if err := register(Foreign); err != nil {
		t.Fatal(err)
	}
}

var emulatedOnce = sync.OnceValues(emulated)

// Emulated returns [Foreign] and the path of a small base of it, with a C
// compiler and make. It does what [Emulate] does, and has mmdebstrap make the
// base at first use, which takes half a minute of processor time and 80 megabytes
// of download.
func Emulated(t testing.TB) (arch, path string) {
	t.Helper()
	path, err := emulatedOnce()
	if err != nil {
		t.Fatal(err)
	}
	return Foreign, path
}

func emulated() (string, error) {
	if err := register(Foreign); err != nil {
		return "", err
	}
	debian := map[string]string{"x86_64": "amd64", "aarch64": "arm64"}[Foreign]
	// Under emulation dpkg takes minutes, mostly to decompress. So the packages
	// are unpacked by this machine's own, and only their scripts are emulated:
	// the same system in a third of the time. usr-is-merged and the hook spare
	// the conversion of a system that was not merged, and perl with it.
	return bootstrap(Foreign, "--architectures="+debian, "--variant=extract",
		"--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
		"--include=?essential", "--include=usr-is-merged,gcc,libc6-dev,make,patch",
		`--aptopt=APT::Install-Recommends "false"`, "--extract-hook="+configure,
		"--", "bookworm", "TARBALL", "http://deb.debian.org/debian")
}

// configure makes a system of packages that were only unpacked; $1 is its root.
const configure = `set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
dpkg --root="$1" --force-depends --force-architecture --force-unsafe-io --no-triggers --unpack "$1"/var/cache/apt/archives/*.deb 2>&1 |
	grep '^dpkg: error' >&2 || :
chroot "$1" dpkg --force-unsafe-io --configure --pending >&2
bad=$(chroot "$1" dpkg --audit)
[ -z "$bad" ] || { echo "$bad" >&2; exit 1; }
rm -rf "$1"/usr/share/doc "$1"/usr/share/man "$1"/usr/share/info "$1"/usr/share/locale`

// register has programs of an arch run on this machine. Test processes that
// find them not to at the same time take turns.
func register(arch string) error {
	cache, err := Cache()
	if err != nil {
		return err
	}
	unlock, err := lock(filepath.Join(cache, "binfmt.lock"), unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	_, why := images.Emulation(arch)
	if why == nil {
		return nil
	}
	if _, err := doctor.Register(arch); err != nil {
		return fmt.Errorf("tests build for %s, and %w: %w", arch, why, err)
	}
	if _, err := images.Emulation(arch); err != nil {
		return fmt.Errorf("tests build for %s, and after registering qemu %w", arch, err)
	}
	return nil
}
