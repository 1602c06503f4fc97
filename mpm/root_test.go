package mpm

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry/mirror"
)

func pkgName(p mirror.Package) string { return p.Name + " " + p.Version }

func read(t *testing.T, parts ...string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// What is installed comes with what it needs, is not taken away from under it, and
// leaves nothing behind.
func TestInstallRemove(t *testing.T) {
	w := newWorld(t)
	w.add("libgreet", "1.0", files{"usr/lib/libgreet.so.1": "lib", "usr/lib/libgreet.so": "-> libgreet.so.1"})
	w.add("greeter", "2.0", files{"usr/bin/greeter": "bin", "usr/share/greeter/empty/": "", "usr/share/greeter/words": "hello"}, needs("libgreet>=1.0"))
	c := w.client()
	r := w.root(files{"usr/bin/sh": "shell", "etc/passwd": "root"})
	before := tree(t, r.dir)
	dry, err := c.Install(t.Context(), r, []string{"greeter"}, true)
	if err != nil || names(dry.Installed, pkgName) != "libgreet 1.0, greeter 2.0" || tree(t, r.dir) != before {
		t.Fatalf("%+v, %v", dry, err)
	}
	d := w.install(c, r, "greeter")
	if got := names(d.Installed, pkgName); got != "libgreet 1.0, greeter 2.0" {
		t.Errorf("installed %s", got)
	}
	if got := read(t, r.dir, "usr/lib/libgreet.so") + read(t, r.dir, "usr/share/greeter/words"); got != "libhello" {
		t.Error(got)
	}
	w.has(r, "greeter 2.0, libgreet 1.0")
	w.whole(r)
	if list := r.List(); !list[0].Asked || list[1].Asked {
		t.Errorf("%+v", list)
	}
	if d := w.install(c, r, "greeter", "libgreet"); len(d.Installed) != 0 || !r.packages["libgreet"].Asked {
		t.Errorf("%+v", d)
	}
	if st, err := os.Stat(filepath.Join(r.dir, "usr/share/greeter/words")); err != nil || !st.ModTime().Equal(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("%v, %v", st.ModTime(), err)
	}

	needed := new(NeededError)
	if _, err := r.Remove([]string{"libgreet"}, false); !errors.As(err, &needed) || !strings.Contains(err.Error(), "greeter needs libgreet>=1.0") {
		t.Fatalf("%v", err)
	}
	if _, err := r.Remove([]string{"nobody"}, false); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
	if d, err := r.Remove([]string{"libgreet", "greeter"}, true); err != nil || len(d.Removed) != 2 {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := r.Remove([]string{"greeter"}, false); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Remove([]string{"libgreet"}, false); err != nil {
		t.Fatal(err)
	}
	if after := tree(t, r.dir); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	w.has(r, "")
	w.whole(r)
}

// Links of the system are followed as a process in it would, and never out of it.
func TestLinksOfTheRoot(t *testing.T) {
	w := newWorld(t)
	w.add("zlib", "1", files{"lib/libz.so.1": "z", "usr/lib/libz.a": "a", "var/lock/zlib": "", "var/run/z/pid": "1", "usr/share/up/x": "x"})
	outside := t.TempDir()
	r := w.root(files{"usr/lib/libc.so": "c", "lib": "-> usr/lib", "var/lock": "-> /run/lock", "var/run": "-> ../run", "run/": "",
		"usr/share/up": "-> ../../../../../../../../../../" + outside})
	c := w.client()
	_, err := c.Install(t.Context(), r, []string{"zlib"}, false)
	if err == nil || !strings.Contains(err.Error(), "usr/share/up") {
		t.Fatalf("a link that leads nowhere in the root is made up: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(r.dir, outside), 0o755); err != nil {
		t.Fatal(err)
	}
	w.install(c, r, "zlib")
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Fatalf("outside of the root lies %v, %v", left, err)
	}
	if got := read(t, r.dir, outside, "x"); got != "x" {
		t.Error(got)
	}
	fs, err := r.Files("zlib")
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, f := range fs {
		paths = append(paths, f.Path)
	}
	for _, want := range []string{"/usr/lib/libz.so.1", "/usr/lib/libz.a", "/run/lock/zlib", "/run/z/pid", outside + "/x"} {
		if !strings.Contains(strings.Join(paths, " ")+" ", want+" ") {
			t.Errorf("%s is not among %v", want, paths)
		}
	}
	if target, err := os.Readlink(filepath.Join(r.dir, "lib")); err != nil || target != "usr/lib" {
		t.Errorf("/lib is %s, %v", target, err)
	}
	w.whole(r)
	if _, err := r.Remove([]string{"zlib"}, false); err != nil {
		t.Fatal(err)
	}
	if got := tree(t, filepath.Join(r.dir, "usr", "lib")); !strings.Contains(got, "libc.so") || strings.Contains(got, "libz") {
		t.Error(got)
	}
}

// Two packages do not get one file, by whatever names; and then nothing of either
// is installed.
func TestConflicts(t *testing.T) {
	w := newWorld(t)
	w.add("a", "1", files{"usr/bin/tool": "a", "usr/lib/x": "a"})
	w.add("b", "1", files{"usr/bin/b": "b", "usr/bin/tool": "b"})
	w.add("c", "1", files{"lib/x": "c"})
	w.add("d", "1", files{"usr/lib/x/file": "d"})
	w.add("e", "1", files{"usr/share/e": "-> /usr/bin"})
	w.add("f", "1", files{"usr/share/e/file": "f"})
	w.add("g", "1", files{"usr/bin": "g"})
	w.add("db", "1", files{"var/lib/quarry-mpm/installed/x.toml": "x"})
	c := w.client()
	r := w.root(files{"usr/lib/": "", "lib": "-> usr/lib"})
	before := tree(t, r.dir)
	refused := func(says string, words ...string) {
		t.Helper()
		was := tree(t, r.dir)
		_, err := c.Install(t.Context(), r, words, false)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v: %v", words, err)
		}
		if now := tree(t, r.dir); now != was {
			t.Errorf("%v changed the root to\n%s", words, now)
		}
		w.whole(r)
	}
	refused("/usr/bin/tool: a has that as well", "a", "b")
	refused("/lib/x: a has that as well", "a", "c")
	refused("that is where it is written what is installed", "db")
	w.install(c, r, "a")
	refused("/usr/bin/tool: a has installed that", "b")
	refused("/lib/x: a has installed that", "c")
	refused("a has installed that", "d")
	refused("a folder is there already", "g")
	w.install(c, r, "e")
	refused("e has installed that", "f")
	if _, err := r.Remove([]string{"a"}, false); err != nil {
		t.Fatal(err)
	}
	w.install(c, r, "b", "c")
	w.has(r, "b 1, c 1, e 1")
	if _, err := r.Remove([]string{"b", "c", "e"}, false); err != nil {
		t.Fatal(err)
	}
	if after := tree(t, r.dir); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
}

// Files under /etc that somebody changed stay; what the package has comes beside
// them when it is news.
func TestConfig(t *testing.T) {
	w := newWorld(t)
	w.add("app", "1", files{"etc/app/a.conf": "a1", "etc/app/b.conf": "b1", "etc/app/c.conf": "c1", "etc/app/gone.conf": "g1", "etc/own.conf": "o1"})
	c := w.client()
	r := w.root(files{"etc/own.conf": "mine"})
	d := w.install(c, r, "app")
	if len(d.Notes) != 1 || read(t, r.dir, "etc/own.conf") != "mine" || read(t, r.dir, "etc/own.conf.new") != "o1" {
		t.Errorf("%+v", d)
	}
	for name, text := range map[string]string{"a.conf": "a changed", "c.conf": "c changed"} {
		if err := os.WriteFile(filepath.Join(r.dir, "etc/app", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(r.dir, "etc/app/gone.conf")); err != nil {
		t.Fatal(err)
	}
	w.add("app", "2", files{"etc/app/a.conf": "a2", "etc/app/b.conf": "b2", "etc/app/c.conf": "c1", "etc/app/gone.conf": "g1", "etc/own.conf": "o1"})
	w.update(c)
	up, err := c.Upgrade(t.Context(), r, nil, false)
	if err != nil || names(up.Installed, pkgName) != "app 2" || len(up.Notes) != 1 {
		t.Fatalf("%+v, %v", up, err)
	}
	for name, want := range map[string]string{"app/a.conf": "a changed", "app/a.conf.new": "a2", "app/b.conf": "b2", "app/c.conf": "c changed", "own.conf": "mine"} {
		if got := read(t, r.dir, "etc", name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"app/c.conf.new", "app/gone.conf", "app/gone.conf.new"} {
		if _, err := os.Lstat(filepath.Join(r.dir, "etc", name)); err == nil {
			t.Errorf("%s is there", name)
		}
	}
	diff, err := r.Verify()
	if err != nil || len(diff) != 4 {
		t.Errorf("%+v, %v", diff, err)
	}
	for _, f := range diff {
		if !f.Config {
			t.Errorf("%+v is no config file", f)
		}
	}
	gone, err := r.Remove([]string{"app"}, false)
	if err != nil || len(gone.Notes) != 3 {
		t.Fatalf("%+v, %v", gone, err)
	}
	if read(t, r.dir, "etc/app/a.conf") != "a changed" || !strings.Contains(read(t, r.dir, "etc/app/b.conf"), "no such file") {
		t.Error(tree(t, r.dir))
	}
}

// An upgrade takes what is new and removes what is no more, folders and links that
// became each other too.
func TestUpgrade(t *testing.T) {
	w := newWorld(t)
	w.add("lib", "1", files{"usr/lib/lib.so.1": "1", "usr/share/lib/old": "1", "usr/share/doc/lib": "-> ../lib", "usr/share/moved": "m"})
	w.add("app", "1", files{"usr/bin/app": "1"}, needs("lib"))
	w.add("pin", "1", files{"usr/bin/pin": "1"}, needs("lib-1"))
	c := w.client()
	r := w.root(nil)
	w.install(c, r, "app", "pin")
	w.add("lib", "2", files{"usr/lib/lib.so.2": "2", "usr/share/doc/lib/new": "2"})
	w.add("more", "1", files{"usr/share/moved": "m2"})
	w.add("app", "2", files{"usr/bin/app": "2"}, needs("lib>=2", "more"))
	w.update(c)
	// pin keeps the old one of what both need, and so the old one of app.
	d, err := c.Upgrade(t.Context(), r, nil, false)
	if err != nil || len(d.Installed) != 0 || strings.Join(d.Notes, ";") != "lib stays at 1, as 2 does not suit what else is installed;app stays at 1, as 2 does not suit what else is installed" {
		t.Fatalf("%+v, %v", d, err)
	}
	w.whole(r)
	w.add("pin", "2", files{"usr/bin/pin": "2"})
	w.update(c)
	d, err = c.Upgrade(t.Context(), r, nil, false)
	if err != nil || names(d.Installed, pkgName) != "lib 2, more 1, app 2, pin 2" {
		t.Fatalf("%+v, %v", d, err)
	}
	w.whole(r)
	w.has(r, "app 2, lib 2, more 1, pin 2")
	got := tree(t, r.dir)
	for _, gone := range []string{"lib.so.1", "usr/share/lib "} {
		if strings.Contains(got, gone) {
			t.Errorf("%s is there still:\n%s", gone, got)
		}
	}
	if read(t, r.dir, "usr/share/doc/lib/new") != "2" || read(t, r.dir, "usr/share/moved") != "m2" {
		t.Error(got)
	}
	if d, err := c.Upgrade(t.Context(), r, nil, false); err != nil || len(d.Installed) != 0 {
		t.Errorf("%+v, %v", d, err)
	}
	// Another artifact of the same version is news as well.
	w.add("lib", "2", files{"usr/lib/lib.so.2": "2, rebuilt", "usr/share/doc/lib/new": "2"})
	w.update(c)
	if d, err := c.Upgrade(t.Context(), r, []string{"app"}, false); err != nil || len(d.Installed) != 0 {
		t.Errorf("what was not named is upgraded: %+v, %v", d, err)
	}
	if d, err := c.Upgrade(t.Context(), r, nil, false); err != nil || names(d.Installed, pkgName) != "lib 2" || read(t, r.dir, "usr/lib/lib.so.2") != "2, rebuilt" {
		t.Errorf("%+v, %v", d, err)
	}
	w.whole(r)
}

// An upgrade keeps a version back that something needs.
func TestKeptBack(t *testing.T) {
	w := newWorld(t)
	w.add("lib", "1", files{"usr/lib/lib.so.1": "1"})
	w.add("pin", "1", files{"usr/bin/pin": "1"}, needs("lib<2"))
	c := w.client()
	r := w.root(nil)
	w.install(c, r, "pin", "lib")
	w.add("lib", "1.5", files{"usr/lib/lib.so.1": "1.5"})
	w.add("lib", "2", files{"usr/lib/lib.so.2": "2"})
	w.update(c)
	d, err := c.Upgrade(t.Context(), r, nil, false)
	if err != nil || names(d.Installed, pkgName) != "lib 1.5" || len(d.Notes) != 1 || !strings.Contains(d.Notes[0], "lib stays at 1.5, as 2 does not suit") {
		t.Fatalf("%+v, %v", d, err)
	}
	w.whole(r)
	// What is asked for by its name does not give way.
	if _, err := c.Install(t.Context(), r, []string{"lib-2"}, false); err == nil {
		t.Error("two versions are to be installed at once")
	}
}

// What is not as it was installed is said.
func TestVerify(t *testing.T) {
	w := newWorld(t)
	w.add("a", "1", files{"usr/bin/a": "a", "usr/bin/b": "b", "usr/bin/c": "c", "usr/bin/l": "-> a", "usr/share/a/": "", "etc/a": "a"})
	c := w.client()
	r := w.root(nil)
	w.install(c, r, "a")
	at := func(name string) string { return filepath.Join(r.dir, name) }
	err := errors.Join(os.WriteFile(at("usr/bin/a"), []byte("b"), 0o644), os.Remove(at("usr/bin/b")), os.Chmod(at("usr/bin/c"), 0o755|os.ModeSetuid), os.Remove(at("usr/bin/l")),
		os.Symlink("/etc/shadow", at("usr/bin/l")), os.Remove(at("usr/share/a")), os.WriteFile(at("usr/share/a"), nil, 0o644), os.WriteFile(at("etc/a"), nil, 0o644))
	if err != nil {
		t.Fatal(err)
	}
	diff, err := r.Verify()
	if err != nil {
		t.Fatal(err)
	}
	got := names(diff, func(d Difference) string { return d.Path + " " + d.What })
	if want := "/etc/a changed, /usr/bin/a changed, /usr/bin/b missing, /usr/bin/c has the mode 4755, and was installed with 0644, /usr/bin/l leads elsewhere, /usr/share/a something else is there"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if _, err := r.Verify("nobody"); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// Two programs do not change a root at a time.
func TestOneAtATime(t *testing.T) {
	w := newWorld(t)
	r := w.root(nil)
	if _, _, err := OpenRoot(r.dir); err == nil || !strings.Contains(err.Error(), "is in use by another quarry mpm") {
		t.Errorf("%v", err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	w.open(r.dir)
}
