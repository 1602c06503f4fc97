package extract

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/Morphux/quarry"
)

func shared(p, arch, soname string, needed ...string) quarry.File {
	return quarry.File{Path: p, Kind: quarry.KindRegular, Class: quarry.ClassShared,
		ELF: &quarry.ELF{Arch: arch, Type: "dyn", Soname: soname, Needed: needed}}
}

func binary_(p, arch string, runpath []string, needed ...string) quarry.File {
	return quarry.File{Path: p, Kind: quarry.KindRegular, Class: quarry.ClassBinary,
		ELF: &quarry.ELF{Arch: arch, Type: "dyn", RunPath: runpath, Needed: needed}}
}

func symlink(p, to string) quarry.File {
	return quarry.File{Path: p, Kind: quarry.KindSymlink, Target: to}
}

func TestResolveLibraries(t *testing.T) {
	var base LibraryIndex
	base.Add(Library{"x86_64", "libc.so.6"}, "/usr/lib/x86_64-linux-gnu/libc.so.6")
	base.Add(Library{"x86_64", "libz.so.1"}, "/usr/lib/libz.so.1")
	zlib := IndexFiles([]quarry.File{shared("/lib/libz.so.1.3.1", "x86_64", "libz.so.1"), symlink("/lib/libz.so.1", "libz.so.1.3.1")})
	files := []quarry.File{
		binary_("/opt/a/bin/a", "x86_64", []string{"$ORIGIN/../lib", "/x"}, "libc.so.6", "libz.so.1", "libown.so.2", "libprivate.so", "libgone.so.3"),
		binary_("/opt/a/bin/b", "i686", nil, "libc.so.6"),
		binary_("/opt/a/bin/c", "x86_64", nil, "libprivate.so", "libprivate.so", "libgone.so.3", "/opt/a/lib/libprivate.so"),
		shared("/opt/a/lib/libprivate.so", "x86_64", "", "libc.so.6"),
		shared("/usr/lib/libown.so.2.0", "x86_64", "libown.so.2"),
		symlink("/usr/lib/libown.so.2", "/usr/lib/libown.so.2.0"),
		symlink("/usr/lib/libloop.so", "libloop.so"),
	}
	libs, warnings := resolveLibraries(files, []Dependency{{"zlib", zlib}}, base)
	want := []quarry.NeededLibrary{
		{Soname: "/opt/a/lib/libprivate.so", Arch: "x86_64", From: "package", Path: "/opt/a/lib/libprivate.so", By: []string{"/opt/a/bin/c"}},
		{Soname: "libc.so.6", Arch: "i686", From: "nowhere", By: []string{"/opt/a/bin/b"}},
		{Soname: "libc.so.6", Arch: "x86_64", From: "base", Path: "/usr/lib/x86_64-linux-gnu/libc.so.6", By: []string{"/opt/a/bin/a", "/opt/a/lib/libprivate.so"}},
		{Soname: "libgone.so.3", Arch: "x86_64", From: "nowhere", By: []string{"/opt/a/bin/a", "/opt/a/bin/c"}},
		{Soname: "libown.so.2", Arch: "x86_64", From: "package", Path: "/usr/lib/libown.so.2", By: []string{"/opt/a/bin/a"}},
		{Soname: "libprivate.so", Arch: "x86_64", From: "package", Path: "/opt/a/lib/libprivate.so", By: []string{"/opt/a/bin/a", "/opt/a/bin/c"}},
		{Soname: "libz.so.1", Arch: "x86_64", From: "dependency", Owner: "zlib", Path: "/lib/libz.so.1", By: []string{"/opt/a/bin/a"}},
	}
	if d := cmp.Diff(want, libs); d != "" {
		t.Errorf("libraries (-want +got):\n%s", d)
	}
	if len(warnings) != 3 || !strings.HasPrefix(warnings[0], "library libc.so.6 (i686), needed by /opt/a/bin/b, is neither") ||
		!strings.HasPrefix(warnings[1], "library libgone.so.3 (x86_64), needed by /opt/a/bin/a and 1 further file, is neither") ||
		!strings.HasPrefix(warnings[2], "library libprivate.so (x86_64) is in /opt/a/lib, where the loader will not find it for /opt/a/bin/c") {
		t.Errorf("warnings:\n%s", strings.Join(warnings, "\n"))
	}
}

func TestLibraryIndexJSON(t *testing.T) {
	var x, y LibraryIndex
	x.Add(Library{"x86_64", "libz.so.1"}, "/usr/lib/libz.so.1")
	x.Add(Library{"i686", "libz.so.1"}, "/usr/lib32/libz.so.1")
	b, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"i686":{"libz.so.1":"/usr/lib32/libz.so.1"},"x86_64":{"libz.so.1":"/usr/lib/libz.so.1"}}`; string(b) != want {
		t.Errorf("JSON %s, want %s", b, want)
	}
	if err := json.Unmarshal(b, &y); err != nil {
		t.Fatal(err)
	}
	if p, ok := y.Lookup(Library{"i686", "libz.so.1"}); !ok || p != "/usr/lib32/libz.so.1" || y.Len() != 2 {
		t.Errorf("read back: %q %v, %d libraries", p, ok, y.Len())
	}
	if err := json.Unmarshal([]byte(`[1]`), &y); err == nil {
		t.Error("a list is no index")
	}
}

// The machine itself is a base.
func TestIndexLibrariesOfThisMachine(t *testing.T) {
	x, err := IndexLibraries("/")
	if err != nil {
		t.Fatal(err)
	}
	arch := map[string]string{"amd64": "x86_64", "arm64": "aarch64", "riscv64": "riscv64", "ppc64le": "ppc64le", "s390x": "s390x"}[runtime.GOARCH]
	p, ok := x.Lookup(Library{arch, "libc.so.6"})
	if !ok {
		t.Fatalf("no libc.so.6 for %s among %d libraries", arch, x.Len())
	}
	if _, err := os.Stat(p); err != nil {
		t.Error(err)
	}
	// What is installed here needs nothing that is not.
	b, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	in := inspect("/bin/sh", bytes.NewReader(b), int64(len(b)))
	libs, warnings := resolveLibraries([]quarry.File{{Path: "/bin/sh", Kind: quarry.KindRegular, Class: in.class, ELF: in.elf}}, nil, x)
	if len(libs) == 0 || len(warnings) > 0 || libs[0].From != "base" {
		t.Errorf("/bin/sh: %+v %v", libs, warnings)
	}
}

// A root with links of all kinds, none of which leads out of it.
func TestIndexLibrariesStaysInside(t *testing.T) {
	d := t.TempDir()
	src := filepath.Join(d, "a.c")
	if err := os.WriteFile(src, []byte("int foo(void) { return 0; }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	lib := func(to, soname string) {
		t.Helper()
		compile(t, "-shared", "-fPIC", "-nostdlib", "-Wl,-soname,"+soname, "-o", to, src)
	}
	root := filepath.Join(d, "root")
	outside := filepath.Join(d, "outside")
	for _, p := range []string{"usr/lib/x86_64-linux-gnu", "opt/conf", "opt/incl", "opt/alt", "etc/ld.so.conf.d", "../outside"} {
		if err := os.MkdirAll(filepath.Join(root, p), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	lib(filepath.Join(root, "usr/lib/libone.so.1.0"), "libone.so.1")
	lib(filepath.Join(root, "usr/lib/x86_64-linux-gnu/libmulti.so"), "libmulti.so")
	lib(filepath.Join(root, "opt/conf/libconf.so"), "libconf.so")
	lib(filepath.Join(root, "opt/incl/libincl.so"), "libincl.so")
	lib(filepath.Join(root, "opt/alt/libalt.so.1"), "libalt.so.1")
	lib(filepath.Join(outside, "libout.so"), "libout.so")
	links := map[string]string{
		"lib":                  "usr/lib",
		"usr/lib/libone.so.1":  "libone.so.1.0",
		"usr/lib/libalt.so.1":  "/etc/alternatives/libalt", // absolute: from this root
		"etc/alternatives":     "../opt/alt/../alt",
		"opt/alt/libalt":       "libalt.so.1",
		"usr/lib/libgone.so":   "nowhere",
		"usr/lib/libloop.so":   "libloop.so",
		"usr/lib/libout.so":    filepath.Join(outside, "libout.so"),
		"usr/lib/libout.so.2":  "../../../outside/libout.so",
		"usr/lib/libdir.so":    ".",
		"usr/local":            outside,
		"etc/ld.so.conf.d/x":   "/dev/zero",
		"usr/lib/libzero.so.0": "/dev/zero",
	}
	for p, to := range links {
		if err := os.Symlink(to, filepath.Join(root, p)); err != nil {
			t.Fatal(err)
		}
	}
	for p, text := range map[string]string{
		"etc/ld.so.conf":               "# comment\n/opt/conf /nowhere\ninclude ld.so.conf.d/*.conf\ninclude /etc/ld.so.conf\n",
		"etc/ld.so.conf.d/a.conf":      "/opt/incl=libc6\n",
		"etc/ld.so.conf.d/ignored":     "/opt/alt\n",
		"usr/lib/libscript.so":         "INPUT(libone.so.1)\n",
		"usr/lib/libbad.so":            elfMagic,
		"usr/lib/python.cpython-3.txt": "x",
	} {
		if err := os.WriteFile(filepath.Join(root, p), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	x, err := IndexLibraries(root)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for l, p := range x.paths {
		got[l.Soname] = p
	}
	want := map[string]string{
		"libone.so.1": "/usr/lib/libone.so.1", "libone.so.1.0": "/usr/lib/libone.so.1.0",
		"libmulti.so": "/usr/lib/x86_64-linux-gnu/libmulti.so",
		"libconf.so":  "/opt/conf/libconf.so", "libincl.so": "/opt/incl/libincl.so",
		"libalt.so.1": "/usr/lib/libalt.so.1",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("libraries (-want +got):\n%s", d)
	}
}

// From a compiled package to its needed libraries, through Tree.
func TestTreeLibraries(t *testing.T) {
	root := t.TempDir()
	build(t, root, dir("usr", 0o755), dir("usr/bin", 0o755), dir("usr/lib", 0o755))
	src := filepath.Join(t.TempDir(), "a.c")
	if err := os.WriteFile(src, []byte("int foo(void);\n#ifdef LIB\nint foo(void) { return 0; }\n#else\nint main(void) { return foo(); }\n#endif\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	lib := filepath.Join(root, "usr/lib/libfoo.so.1")
	compile(t, "-DLIB", "-shared", "-fPIC", "-Wl,-soname,libfoo.so.1", "-o", lib, src)
	compile(t, "-Wl,-rpath,/quarry/dest/usr/lib", "-o", filepath.Join(root, "usr/bin/foo"), src, lib)
	for _, p := range []string{lib, filepath.Join(root, "usr/bin/foo")} {
		if err := os.Chown(p, uidBase, uidBase); err != nil {
			t.Fatal(err)
		}
	}
	base, err := IndexLibraries("/")
	if err != nil {
		t.Fatal(err)
	}
	facts, _ := extractTree(t, root, Options{Base: base, BuildPaths: []string{"/quarry"}})
	from := map[string]string{}
	for _, l := range facts.Libraries {
		from[l.Soname] = l.From
	}
	if d := cmp.Diff(map[string]string{"libc.so.6": "base", "libfoo.so.1": "package"}, from); d != "" {
		t.Errorf("libraries (-want +got):\n%s", d)
	}
	if !slices.Equal(facts.Warnings, []string{"/usr/bin/foo searches libraries in the build, in /quarry/dest/usr/lib: link it without this rpath"}) {
		t.Errorf("warnings %q", facts.Warnings)
	}
}
