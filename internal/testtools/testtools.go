// Package testtools gives tests programs that the base for tests is too old to
// have, and the sources of real packages to build. Both come from Debian's
// archive through apt-get, which checks their signatures, once for a machine:
// they stay in the cache folder (testbase.Cache).
//
// Where there is no apt-get, no compiler or no way to the archive there is
// nothing of that. A test then says so, and tests what it can without.
package testtools

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/internal/testbase"
)

// archive is where sources are fetched: the one that bases come from. A test
// changes it.
var archive = "http://deb.debian.org/debian"

// sums are the SHA-256 of the sources of releases that do not change any more.
// What else is fetched is believed as Debian's archive signs it.
var sums = map[string]string{
	"make-dfsg_4.4.1.orig.tar.xz": "3b16b00ea1079af9f8096bbc71ff7cc00c249fc6a862003da3c42308a0adb0fe",
}

// Make returns the path of GNU make 4.4.1, which speaks the jobserver over a
// named FIFO. It is linked statically, so that it runs in any system of this
// machine's arch. ok is false, and the test's log says why, where it cannot be had.
func Make(t testing.TB) (path string, ok bool) {
	t.Helper()
	return had(t, "GNU make 4.4.1", makeOnce)
}

// Ninja returns the path of a ninja of 1.13 or newer, which is a client of the
// jobserver, as [Make] does.
func Ninja(t testing.TB) (path string, ok bool) {
	t.Helper()
	return had(t, "ninja 1.13", ninjaOnce)
}

// Source returns a folder with the sources of a package of Debian bookworm as
// its authors released them, e.g. of gzip. It is not to be written to. ok is
// false, and the test's log says why, where they cannot be had.
func Source(t testing.TB, name string) (dir string, ok bool) {
	t.Helper()
	f, _ := sources.LoadOrStore(name, sync.OnceValues(func() (string, error) {
		return kept("source-"+name, func(to string) error { return unpack("bookworm", name, to) })
	}))
	return had(t, "the source of "+name, f.(func() (string, error)))
}

var sources sync.Map // name to func() (string, error)

func had(t testing.TB, what string, get func() (string, error)) (string, bool) {
	t.Helper()
	path, err := get()
	if err != nil {
		t.Logf("%s cannot be had here, and is not tested with: %v", what, err)
	}
	return path, err == nil
}

var makeOnce = sync.OnceValues(func() (string, error) {
	return built("make-4.4.1", "trixie", "make-dfsg", "make",
		"mkdir -p doc && : > doc/Makefile.in && "+ // Debian leaves the manual out, which is not free enough for it
			"./configure --disable-nls --without-guile LDFLAGS=-static CFLAGS=-O1 && make -C lib -j2 && make -j2 make")
})

var ninjaOnce = sync.OnceValues(func() (string, error) {
	// The sources of its own configure.py, without the Python: what is neither a
	// test, another system's, nor a program of its own.
	return built("ninja-1.13", "forky", "ninja-build", "ninja", `set -eu
cd src
for f in *.cc; do
	case $f in *test*|*.in.cc|*win32*|*msvc*|*perf*|browse.cc|minidump*|getopt*|hash_collision*) continue ;; esac
	echo "${f%.cc}.o"
done > objects
printf 'ninja: %s\n\tg++ -static -pthread -o ../ninja $^\n%%.o: %%.cc\n\tg++ -std=c++14 -O1 -DNDEBUG -DUSE_PPOLL=1 -c $<\n' "$(tr '\n' ' ' < objects)" > Makefile.test
make -j2 -f Makefile.test`)
})

// built returns the program that a line of shell makes of a package's source.
func built(as, suite, pkg, program, line string) (string, error) {
	dir, err := kept(as+"-"+testbase.Arch, func(to string) error {
		src := to + ".src"
		defer os.RemoveAll(src)
		if err := unpack(suite, pkg, src); err != nil {
			return err
		}
		cmd := exec.Command("/bin/sh", "-c", line)
		cmd.Dir = src
		for _, kv := range os.Environ() { // nobody's jobserver, nobody's flags
			switch name, _, _ := strings.Cut(kv, "="); name {
			case "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "CFLAGS", "LDFLAGS":
			default:
				cmd.Env = append(cmd.Env, kv)
			}
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s cannot be compiled: %w: %s", pkg, err, lastLines(out))
		}
		if err := os.Mkdir(to, 0o755); err != nil {
			return err
		}
		return os.Rename(filepath.Join(src, program), filepath.Join(to, program))
	})
	return filepath.Join(dir, program), err
}

// kept returns a folder of the cache, which create makes where it is not there.
// Processes take turns; a half-made one never has the name.
func kept(name string, create func(to string) error) (string, error) {
	cache, err := testbase.Cache()
	if err != nil {
		return "", err
	}
	cache = filepath.Join(cache, "tools")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(cache, name+".lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close() // and with it the lock goes
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, name)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	making := dir + ".making"
	if err := os.RemoveAll(making); err != nil {
		return "", err
	}
	if err := os.RemoveAll(making + ".src"); err != nil {
		return "", err
	}
	defer os.RemoveAll(making)
	if err := create(making); err != nil {
		return "", err
	}
	return dir, os.Rename(making, dir)
}

// unpack fetches the source of a package as its authors released it, without
// Debian's changes, and unpacks it, without the folder that it is in.
func unpack(suite, pkg, to string) error {
	for _, tool := range []string{"apt-get", "tar"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is missing", tool)
		}
	}
	// What apt knows of this machine is left alone.
	dir, err := os.MkdirTemp("", "quarry-apt-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, d := range []string{"lists/partial", "cache/archives/partial", "got"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	signed := "/usr/share/keyrings/debian-archive-keyring.gpg"
	if _, err := os.Stat(signed); err == nil {
		signed = "[signed-by=" + signed + "] "
	} else {
		signed = "" // those that apt trusts anyway
	}
	list := filepath.Join(dir, "sources.list")
	if err := os.WriteFile(list, fmt.Appendf(nil, "deb-src %s%s %s main\n", signed, archive, suite), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "status"), nil, 0o644); err != nil {
		return err
	}
	apt := func(args ...string) error {
		options := []string{"-qq", "-o", "Dir::Etc::SourceList=" + list, "-o", "Dir::Etc::SourceParts=/dev/null",
			"-o", "Dir::State::Lists=" + dir + "/lists", "-o", "Dir::Cache=" + dir + "/cache", "-o", "Dir::State::Status=" + dir + "/status",
			"-o", "APT::Sandbox::User=", "-o", "Acquire::Languages=none", "-o", "Acquire::http::Timeout=30", "-o", "Acquire::Retries=1"}
		cmd := exec.Command("apt-get", slices.Concat(options, args)...)
		cmd.Dir = filepath.Join(dir, "got")
		cmd.Env = append(os.Environ(), "LC_ALL=C")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w: %s", args[0], err, lastLines(out))
		}
		return nil
	}
	if err := apt("update", "--error-on=any"); err != nil {
		return err
	}
	if err := apt("source", "--download-only", pkg); err != nil {
		return err
	}
	found, _ := filepath.Glob(filepath.Join(dir, "got", "*.orig.tar.*"))
	found = slices.DeleteFunc(found, func(f string) bool { return strings.HasSuffix(f, ".asc") })
	if len(found) != 1 {
		return fmt.Errorf("the source of %s is %d archives, not one", pkg, len(found))
	}
	if want, ok := sums[filepath.Base(found[0])]; ok {
		data, err := os.ReadFile(found[0])
		if err != nil {
			return err
		}
		if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != want {
			return fmt.Errorf("%s has the SHA-256 %x, and should have %s", filepath.Base(found[0]), sum, want)
		}
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	if out, err := exec.Command("tar", "-xf", found[0], "-C", to, "--strip-components=1", "--no-same-owner").CombinedOutput(); err != nil {
		return fmt.Errorf("%s cannot be unpacked: %w: %s", filepath.Base(found[0]), err, lastLines(out))
	}
	return nil
}

func lastLines(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "; ")
}
