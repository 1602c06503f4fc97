// Package testbase gives tests a base to build in: a Debian with a compiler,
// unpacked once into a podman storage in the cache folder and then shared, only
// read, by every test process.
package testbase

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/podman"
)

// Arch is the arch of the base: the machine's own.
var Arch = podman.HostArch()

// Cache is the folder where bases for tests are kept: $QUARRY_CACHE, else
// /var/cache/quarry for root and ~/.cache/quarry for others.
func Cache() (string, error) {
	dir := os.Getenv("QUARRY_CACHE")
	if dir == "" && os.Geteuid() == 0 && !podman.Rootless() {
		dir = "/var/cache/quarry"
	}
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("no cache folder: %w: set QUARRY_CACHE", err)
		}
		dir = filepath.Join(home, ".cache", "quarry")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("cache folder cannot be made: %w: set QUARRY_CACHE", err)
	}
	return dir, nil
}

var tarballOnce = sync.OnceValues(tarball)

// Tarball returns the path of a base as a tarball: $QUARRY_TEST_BASE, or one
// from the cache folder, which mmdebstrap makes at first use (a minute, and
// some hundred megabytes of download).
func Tarball(t testing.TB) string {
	t.Helper()
	path, err := tarballOnce()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func tarball() (string, error) {
	if path := os.Getenv("QUARRY_TEST_BASE"); path != "" {
		if _, err := os.Stat(path); err != nil {
			return "", fmt.Errorf("QUARRY_TEST_BASE: %w", err)
		}
		return path, nil
	}
	return bootstrap(Arch, "--variant=minbase", "--include="+strings.Join(images.DefaultPackages, ","), "--", "bookworm")
}

// Second returns the path of a small base, with a C compiler and make, of the
// other arch that this machine's processor runs by itself (i686 on x86_64), and
// that arch. mmdebstrap makes it at first use.
func Second(t testing.TB) (arch, path string) {
	t.Helper()
	arch, ok := map[string]string{"x86_64": "i686", "aarch64": "armv7l"}[Arch]
	if !ok {
		t.Fatalf("no second arch is known that runs on %s: add it to testbase.Second", Arch)
	}
	debian := map[string]string{"i686": "i386", "armv7l": "armhf"}[arch]
	// One archive only: those of updates lag behind on mirrors now and then.
	path, err := bootstrap(arch, "--variant=minbase", "--architectures="+debian, "--include=gcc,libc6-dev,make,patch", "--",
		"bookworm", "TARBALL", "http://deb.debian.org/debian")
	if err != nil {
		t.Fatal(err)
	}
	return arch, path
}

// bootstrap gives the cached tarball of an arch, or has mmdebstrap make it; the
// word TARBALL among its arguments stands for the tarball.
func bootstrap(arch string, args ...string) (string, error) {
	cache, err := Cache()
	if err != nil {
		return "", err
	}
	path := filepath.Join(cache, "base-"+arch+".tar")
	unlock, err := lock(path+".lock", unix.LOCK_EX)
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	mm, err := exec.LookPath("mmdebstrap")
	if err != nil {
		return "", fmt.Errorf("no base for tests: apt-get install mmdebstrap, or set QUARRY_TEST_BASE to a tarball of a system for %s with a compiler and make", arch)
	}
	// Beside the final name, so that a half-made one never has it.
	tmp := path + ".new"
	defer os.Remove(tmp)
	if i := slices.Index(args, "TARBALL"); i >= 0 {
		args[i] = tmp
	} else {
		args = append(args, tmp)
	}
	args = append([]string{"--format=tar"}, args...)
	var out []byte
	for range 2 { // a mirror may be in the middle of an update
		if out, err = exec.Command(mm, args...).CombinedOutput(); err == nil {
			return path, os.Rename(tmp, path)
		}
	}
	return "", fmt.Errorf("no base for tests: mmdebstrap failed: %w: %s: set QUARRY_TEST_BASE to a tarball of a system for %s", err, lastLines(out), arch)
}

func lastLines(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "; ")
}

// version changes when the way in which the storage is made does.
const version = "1"

var storeOnce = sync.OnceValues(func() (string, error) {
	tar, err := tarball()
	if err != nil {
		return "", err
	}
	return imageStore("store-", tar)
})

// ImageStore returns a podman storage folder that holds the base, for
// podman.Config.ImageStores. It is only read; many processes may use it at
// once. The first use takes as long as importing the tarball.
func ImageStore(t testing.TB) string {
	t.Helper()
	dir, err := storeOnce()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// imageStore gives the storage folder of a tarball, one of those that begin with
// prefix: of these only the newest stays.
func imageStore(prefix, tar string) (string, error) {
	st, err := os.Stat(tar)
	if err != nil {
		return "", err
	}
	cache, err := Cache()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %s %d %d", version, Arch, tar, st.Size(), st.ModTime().UnixNano()))
	dir := filepath.Join(cache, prefix+hex.EncodeToString(sum[:6]))
	complete := filepath.Join(dir, "complete")

	for {
		// The shared lock stays until this process ends: it keeps others from
		// removing what is in use.
		unlock, err := lock(dir+".lock", unix.LOCK_SH)
		if err != nil {
			return "", err
		}
		if _, err := os.Stat(complete); err == nil {
			removeStale(cache, prefix, dir)
			return dir, nil
		}
		unlock()
		if err := makeStore(dir, tar, complete); err != nil {
			return "", fmt.Errorf("base for tests cannot be imported: %w", err)
		}
	}
}

// makeStore makes the storage unless another process was quicker. What a
// killed process left half-made has no mark and is made anew.
func makeStore(dir, tar, complete string) error {
	unlock, err := lock(dir+".lock", unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Stat(complete); err == nil {
		return nil
	}
	making := dir + ".making"
	// The service of a process that was killed may still be ending, and writing.
	if unlock, err := lock(filepath.Join(making, "podman", "lock"), unix.LOCK_EX); err == nil {
		unlock()
	}
	for _, d := range []string{dir, making} {
		if err := os.RemoveAll(d); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	conn, err := podman.Start(ctx, podman.Config{State: making})
	if err != nil {
		return err
	}
	defer conn.Close()
	s, err := images.New(conn, images.Options{WorkDir: filepath.Join(making, "work")})
	if err != nil {
		return err
	}
	if _, err := s.Load(ctx, Arch, tar, nil); err != nil {
		return err
	}
	if err := errors.Join(s.Close(ctx), conn.Close()); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(making, "podman", "root"), dir); err != nil {
		return err
	}
	if err := os.RemoveAll(making); err != nil {
		return err
	}
	unix.Sync() // so that the mark never outlives the data in a crash
	return os.WriteFile(complete, []byte(tar+"\n"), 0o644)
}

// removeStale removes storages of earlier tarballs that nobody uses.
func removeStale(cache, prefix, keep string) {
	found, _ := filepath.Glob(filepath.Join(cache, prefix+"*.lock"))
	for _, l := range found {
		dir := strings.TrimSuffix(l, ".lock")
		if dir == keep {
			continue
		}
		if unlock, err := lock(l, unix.LOCK_EX|unix.LOCK_NB); err == nil {
			os.RemoveAll(dir)
			os.RemoveAll(dir + ".making")
			os.Remove(l)
			unlock()
		}
	}
}

func lock(path string, how int) (unlock func(), err error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return nil, err
		}
		for {
			err = unix.Flock(int(f.Fd()), how)
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		if err != nil {
			f.Close()
			return nil, err
		}
		// Somebody may have removed the file while this one waited for it.
		var a, b unix.Stat_t
		if unix.Fstat(int(f.Fd()), &a) == nil && unix.Stat(path, &b) == nil && a.Ino == b.Ino {
			held.Store(f, true)
			return func() { held.Delete(f); f.Close() }, nil
		}
		f.Close()
	}
}

// held keeps locked files from being closed by the garbage collector.
var held sync.Map

// Podman returns a podman service of the test's own that has the base.
func Podman(t testing.TB) *podman.Conn {
	t.Helper()
	return service(t, ImageStore(t))
}

func service(t testing.TB, store string) *podman.Conn {
	t.Helper()
	conn, err := podman.Start(context.Background(), podman.Config{State: t.TempDir(), ImageStores: []string{store}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// Store returns a store of the test's own that has the base. guest is the
// first program of its workspaces; see Guest.
func Store(t testing.TB, guest string) *images.Store {
	t.Helper()
	s, err := images.New(Podman(t), images.Options{WorkDir: filepath.Join(t.TempDir(), "work"), Guest: guest})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Errorf("workspaces are left: %v", err)
		}
	})
	return s
}

var guests sync.Map // package to func() (string, error)

// Guest builds a main package (e.g. github.com/Morphux/quarry/cmd/quarry) into
// a static program that everybody may run, once for the test process.
func Guest(t testing.TB, pkg string) string {
	t.Helper()
	build := sync.OnceValues(func() (string, error) {
		cache, err := Cache()
		if err != nil {
			return "", err
		}
		// What killed tests could not clean.
		old, _ := filepath.Glob(filepath.Join(cache, "guest-*"))
		for _, d := range old {
			if st, err := os.Stat(d); err == nil && time.Since(st.ModTime()) > 24*time.Hour {
				os.RemoveAll(d)
			}
		}
		dir, err := os.MkdirTemp(cache, "guest-")
		if err != nil {
			return "", err
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			return "", err
		}
		path := filepath.Join(dir, "quarry")
		cmd := exec.Command("go", "build", "-tags", "remote", "-o", path, pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+runtime.GOARCH)
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("guest program cannot be built: %w: %s", err, out)
		}
		// Users in containers run it, whatever the caller's umask.
		return path, os.Chmod(path, 0o755)
	})
	f, _ := guests.LoadOrStore(pkg, build)
	path, err := f.(func() (string, error))()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Clean removes what this process built; call it at the end of TestMain.
func Clean() {
	guests.Range(func(_, f any) bool {
		if path, err := f.(func() (string, error))(); err == nil {
			os.RemoveAll(filepath.Dir(path))
		}
		return true
	})
}
