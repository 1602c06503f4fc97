package mpm

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Morphux/quarry"
)

// The shell's client does with a handful of programs what its page says, and
// refuses what it has to.
func TestShellExample(t *testing.T) {
	for _, tool := range []string{"curl", "zstd", "sha256sum", "tar", "awk", "ssh-keygen"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is missing: make deps installs it", tool)
		}
	}
	script, err := filepath.Abs("../examples/mpm.sh")
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	w.add("libgreet", "1.0", files{"usr/lib/libgreet.so.1": "old"})
	w.add("libgreet", "1.1", files{"lib/libgreet.so.1": "lib"})
	w.add("lib-data", "1", files{"usr/share/data": "data"}, func(o *quarry.Outcome) { o.Build.Arch = quarry.Noarch })
	w.add("greeter", "2.0", files{"usr/bin/greeter": "bin"}, needs("libgreet-1.1", "lib-data>=1"), func(o *quarry.Outcome) { o.Info.Description = `It's a "greeter"` })
	w.add("lonely", "1", files{"usr/bin/l": "l"}, needs("nobody"))
	dir := filepath.Join(w.dir, "mirror")
	w.export(dir)
	srv := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer srv.Close()
	signers := filepath.Join(w.dir, "allowed_signers")
	if err := os.WriteFile(signers, []byte(w.signers().String()), 0o644); err != nil {
		t.Fatal(err)
	}
	cache := t.TempDir()
	call := func(args ...string) (string, error) {
		cmd := exec.Command("sh", append([]string{script}, args...)...)
		cmd.Env = append(os.Environ(), "MPM_FROM="+srv.URL+"/db/testing", "MPM_ARCH="+arch, "MPM_CACHE="+cache, "MPM_SIGNERS="+signers, "no_proxy=*")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	good := func(want string, args ...string) {
		t.Helper()
		if out, err := call(args...); err != nil || !strings.Contains(out, want) {
			t.Errorf("%v: %v: %s, and %q is wanted", args, err, out, want)
		}
	}
	bad := func(says string, args ...string) {
		t.Helper()
		if out, err := call(args...); err == nil || !strings.Contains(out, says) {
			t.Errorf("%v: %v: %s, and %q is wanted", args, err, out, says)
		}
	}
	r := w.root(files{"usr/lib/": "", "lib": "-> usr/lib"})
	bad("run mpm.sh update first", "search", "greet")
	good("4 packages for x86_64", "update")
	good("greeter 2.0\tIt's a \"greeter\"", "search", "GREET")
	good("version\t1.1", "show", "libgreet")
	bad("nobody is not in channel testing", "show", "nobody")
	bad("lonely needs nobody", "install", "lonely", r.dir)
	good("greeter 2.0 installed", "install", "greeter", r.dir)
	if got := read(t, r.dir, "usr/lib/libgreet.so.1") + read(t, r.dir, "usr/share/data") + read(t, r.dir, "usr/bin/greeter"); got != "libdatabin" {
		t.Error(got)
	}
	good("4 packages for x86_64", "update")

	// Another key, another artifact, another index.
	strangers := newWorld(t).signers().String()
	if err := os.WriteFile(signers, []byte(strangers), 0o644); err != nil {
		t.Fatal(err)
	}
	bad("the head is not signed by one of", "update")
	if err := os.WriteFile(signers, []byte(w.signers().String()), 0o644); err != nil {
		t.Fatal(err)
	}
	cache = t.TempDir()
	good("4 packages", "update")
	artifacts, err := filepath.Glob(filepath.Join(dir, "artifacts/*/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range artifacts {
		if err := os.WriteFile(a, []byte("evil"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	bad("another one than the index says", "install", "libgreet", r.dir)
	indexes, err := filepath.Glob(filepath.Join(dir, "db/testing/index/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range indexes {
		if err := os.WriteFile(i, []byte("evil"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cache = t.TempDir()
	bad("is another file than the head says", "update")
}
