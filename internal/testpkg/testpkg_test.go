package testpkg

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// run runs a command in dir as the farm's steps would, and reports what it
// printed.
func run(t *testing.T, dir string, env []string, name string, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil && !strings.Contains(name, "/") {
		t.Fatalf("%s is not installed: apt-get install build-essential", name)
	}
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func must(t *testing.T, dir string, env []string, name string, args ...string) string {
	t.Helper()
	out, err := run(t, dir, env, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// files lists what is below dir, folders left out.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var list []string
	for line := range strings.Lines(must(t, dir, nil, "find", ".", "!", "-type", "d", "-printf", `%P\n`)) {
		list = append(list, strings.TrimSpace(line))
	}
	slices.Sort(list)
	return list
}

// Other rooms' tests rest on what these packages do, so their sources are built
// here by hand once, outside of any container.
func TestPackagesDoWhatTheyClaim(t *testing.T) {
	dest := t.TempDir()
	install := "DESTDIR=" + dest

	t.Run("hello", func(t *testing.T) {
		srcs := filepath.Join(Copy(t, "hello"), "srcs")
		must(t, srcs, nil, "make")
		must(t, srcs, nil, "make", "check")
		must(t, srcs, nil, "make", "install", install)
	})
	t.Run("libgreet then greeter", func(t *testing.T) {
		lib := filepath.Join(Copy(t, "libgreet"), "srcs")
		must(t, lib, nil, "make")
		must(t, lib, nil, "make", "install", install)
		srcs := filepath.Join(Copy(t, "greeter"), "srcs")
		if out, err := run(t, srcs, nil, "make"); err == nil {
			t.Fatalf("greeter was built without libgreet:\n%s", out)
		}
		flags := []string{"CPPFLAGS=-I" + dest + "/usr/include", "LDFLAGS=-L" + dest + "/usr/lib"}
		must(t, srcs, nil, "make", flags...)
		must(t, srcs, []string{"LD_LIBRARY_PATH=" + dest + "/usr/lib"}, "make", append(flags, "check")...)
		must(t, srcs, nil, "make", append(flags, "install", install)...)
	})
	t.Run("autohello", func(t *testing.T) {
		dir := Copy(t, "autohello")
		srcs := filepath.Join(dir, "srcs")
		env := []string{"HOME=" + t.TempDir(), install, "AUTOHELLO_ENV=from the recipe", "AUTOHELLO_EMPTY="}
		must(t, srcs, env, "/bin/sh", "../scripts/before.sh")
		must(t, srcs, env, "patch", "-p1", "-i", "../patches/01-greeting.patch")
		must(t, srcs, env, "patch", "-p1", "-i", "../patches/02-manual.patch")
		must(t, srcs, env, "./configure", "--prefix=/usr", "--with-greeting-to=the whole wide world", "--enable-shouting")
		must(t, srcs, env, "make")
		must(t, srcs, env, "make", "check")
		must(t, srcs, env, "make", "install", install)
		must(t, srcs, env, "/bin/sh", "../scripts/after.sh")
	})
	want := []string{
		"etc/hello.conf", "usr/bin/autohello", "usr/bin/greeter", "usr/bin/hello", "usr/include/greet.h",
		"usr/lib/libgreet.a", "usr/lib/libgreet.so", "usr/lib/libgreet.so.1", "usr/lib/libgreet.so.1.0",
		"usr/share/doc/autohello/MANUAL", "usr/share/man/man1/hello.1",
	}
	if got := files(t, dest); !slices.Equal(got, want) {
		t.Errorf("installed\n%q, want\n%q", got, want)
	}

	t.Run("broken", func(t *testing.T) {
		out, err := run(t, filepath.Join(Copy(t, "broken"), "srcs"), nil, "make")
		if err == nil || !strings.Contains(out, "broken.c:5") {
			t.Errorf("broken: %v, want a compiler error at broken.c:5\n%s", err, out)
		}
	})
	t.Run("escaper", func(t *testing.T) {
		// -n: the recipe's commands are only printed; running them is for containers.
		out := must(t, filepath.Join(Copy(t, "escaper"), "srcs"), nil, "make", "-n", "install", install)
		if !strings.Contains(out, " /usr/share/escaper/escaped.txt") {
			t.Errorf("escaper does not escape:\n%s", out)
		}
	})
}

func TestBare(t *testing.T) {
	path := Bare(t, "hello", "2.0-p1")
	if got := Git(t, path, "for-each-ref", "--format=%(refname)"); got != "refs/heads/hello-2.0-p1\nrefs/heads/master" {
		t.Errorf("refs: %q", got)
	}
	if got := Git(t, path, "show", "hello-2.0-p1:package.json"); !strings.Contains(got, `"version": "2.0-p1"`) {
		t.Errorf("package.json: %s", got)
	}
	again := Bare(t, "hello", "2.0-p1")
	if a, b := Git(t, path, "rev-parse", "master"), Git(t, again, "rev-parse", "master"); a != b {
		t.Errorf("the same package gave two commits: %s and %s", a, b)
	}
	if got := Git(t, Init(t, "autohello"), "ls-files", "-s", "srcs/configure"); !strings.HasPrefix(got, "100755 ") {
		t.Errorf("configure is not executable: %s", got)
	}
}
