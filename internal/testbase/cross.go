package testbase

import (
	"sync"
	"testing"

	"github.com/Morphux/quarry/internal/podman"
)

var crossTarballOnce = sync.OnceValues(crossTarball)

// CrossTarball is [Tarball] for a base with a cross compiler for [Foreign].
func CrossTarball(t testing.TB) string {
	t.Helper()
	path, err := crossTarballOnce()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var crossOnce = sync.OnceValues(func() (string, error) {
	tar, err := crossTarballOnce()
	if err != nil {
		return "", err
	}
	return imageStore("cross-", tar)
})

// crossTarball is a base of this machine's arch with a C compiler for it and one
// for [Foreign], make, pkg-config and the autotools.
func crossTarball() (string, error) {
	gcc := map[string]string{"x86_64": "x86-64", "aarch64": "aarch64"}[Foreign]
	libc := map[string]string{"x86_64": "amd64", "aarch64": "arm64"}[Foreign]
	return bootstrap(Arch+"-cross", "--variant=minbase", `--aptopt=APT::Install-Recommends "false"`,
		"--include=gcc,libc6-dev,make,patch,pkg-config,autoconf,automake,libtool,gcc-"+gcc+"-linux-gnu,libc6-dev-"+libc+"-cross", "--",
		"bookworm", "TARBALL", "http://deb.debian.org/debian")
}

// CrossImageStore is [ImageStore] for a base with a cross compiler for [Foreign].
// mmdebstrap makes it at first use, which takes a minute and 100 megabytes of
// download.
func CrossImageStore(t testing.TB) string {
	t.Helper()
	dir, err := crossOnce()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// CrossPodman is [Podman] for a base with a cross compiler for [Foreign].
func CrossPodman(t testing.TB) *podman.Conn {
	t.Helper()
	return service(t, CrossImageStore(t))
}
