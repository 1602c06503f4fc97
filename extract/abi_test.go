package extract

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/Morphux/quarry"
)

// library compiles a shared library and reads it.
func library(t *testing.T, source string, flags ...string) (*elfFile, string) {
	t.Helper()
	dir := t.TempDir()
	src, out := filepath.Join(dir, "lib.c"), filepath.Join(dir, "libx.so.1")
	if err := os.WriteFile(src, []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "map"), []byte("X_1 { global: old; both; }; X_2 { global: neu; both; local: hidden_by_map; } X_1;\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"-shared", "-fPIC", "-O1", "-Wl,-soname,libx.so.1", "-o", out, src}, flags...)
	cmd := exec.Command("gcc", args...)
	cmd.Dir = dir
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("gcc is needed with a C library (apt-get install gcc libc6-dev): %v\n%s", err, said)
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	e, err := parseELF(strings.NewReader(string(data)), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return e, out
}

const plainLibrary = `
int counter; static int hidden; int table[4] = {1}; __thread int mine;
__attribute__((visibility("hidden"))) int inside(void) { return hidden; }
__attribute__((weak)) int maybe(void) { return 1; }
int add(int a, int b) { return a + b + inside(); }
extern int elsewhere(void); int call(void) { return elsewhere(); }
`

func TestExports(t *testing.T) {
	plain, file := library(t, plainLibrary)
	if len(plain.Symbols) != 64 || plain.Exports != 6 {
		t.Errorf("%d exports, digest %q", plain.Exports, plain.Symbols)
	}
	out, err := exec.Command("readelf", "--dyn-syms", "-W", file).Output()
	if err != nil {
		t.Fatalf("readelf is needed (apt-get install binutils): %v", err)
	}
	// Peer: what readelf lists as defined, and global or weak.
	if n := len(regexp.MustCompile(`(?m) (GLOBAL|WEAK) +DEFAULT +[0-9]+ \S+$`).FindAll(out, -1)); n != plain.Exports {
		t.Errorf("readelf lists %d exports, we %d\n%s", n, plain.Exports, out)
	}
	digest := func(source string, flags ...string) string {
		e, _ := library(t, source, flags...)
		return e.Symbols
	}
	for name, same := range map[string]string{
		"other code":             digest(strings.Replace(plainLibrary, "a + b", "b - a", 1)),
		"another optimisation":   digest(plainLibrary, "-O3"),
		"a further hidden one":   digest(plainLibrary + "static int more(void) { return 3; } int (*hook)(void) __attribute__((visibility(\"hidden\"))) = more;"),
		"debug information":      digest(plainLibrary, "-g"),
		"stripped":               digest(plainLibrary, "-s"),
		"global instead of weak": digest(strings.Replace(plainLibrary, "__attribute__((weak)) ", "", 1)),
	} {
		if same != plain.Symbols {
			t.Errorf("%s: the digest has changed", name)
		}
	}
	for name, other := range map[string]string{
		"a further function": digest(plainLibrary + "int more(void) { return 3; }"),
		"a function gone":    digest(strings.Replace(plainLibrary, "int add(", "static int add(", 1)),
		"larger data":        digest(strings.Replace(plainLibrary, "table[4]", "table[5]", 1)),
		"data for function":  digest(strings.Replace(plainLibrary, "int call(void) { return elsewhere(); }", "int call = 3;", 1)),
	} {
		if other == plain.Symbols {
			t.Errorf("%s: the digest has not changed", name)
		}
	}
}

func TestExportsVersions(t *testing.T) {
	source := `
int old(void) { return 1; } int neu(void) { return 2; } int hidden_by_map(void) { return 3; }
__asm__(".symver both_1, both@X_1"); __asm__(".symver both_2, both@@X_2");
int both_1(void) { return 1; } int both_2(void) { return 2; }
`
	a, _ := library(t, source, "-Wl,--version-script=map")
	if a.Exports < 4 {
		t.Errorf("%d exports, want old, neu, and both in two versions at least", a.Exports)
	}
	c, _ := library(t, strings.Replace(source, "int neu(void)", "__attribute__((visibility(\"hidden\"))) int neu(void)", 1), "-Wl,--version-script=map")
	if a.Symbols == c.Symbols {
		t.Error("a symbol has gone and the digest has not changed")
	}
}

func TestABI(t *testing.T) {
	lib := func(soname, symbols string, needed ...string) quarry.File {
		return quarry.File{Path: "/usr/lib/" + soname, Kind: quarry.KindRegular, Class: quarry.ClassShared, SHA256: "x" + symbols,
			ELF: &quarry.ELF{Arch: "x86_64", Soname: soname, Symbols: symbols, Needed: needed}}
	}
	file := func(path string, class quarry.Class, sum string) quarry.File {
		return quarry.File{Path: path, Kind: quarry.KindRegular, Class: class, SHA256: sum}
	}
	header := file("/usr/include/x.h", quarry.ClassHeader, "h1")
	base := []quarry.File{header, lib("libx.so.1", "s1", "libc.so.6", "libm.so.6"), file("/usr/bin/x", quarry.ClassBinary, "b1")}
	want := abi(base)
	if len(want) != 64 {
		t.Fatalf("abi is %q", want)
	}
	if got := abi([]quarry.File{base[2], file("/usr/include/x.h", quarry.ClassHeader, "h2"), lib("libx.so.1", "s1", "libm.so.6", "libc.so.6")}); got != want {
		t.Error("order, programs and headers beside a shared library must not count")
	}
	seen := map[string]string{want: "the first"}
	for name, files := range map[string][]quarry.File{
		"symbols":        {lib("libx.so.1", "s2", "libc.so.6", "libm.so.6")},
		"soname":         {lib("libx.so.2", "s1", "libc.so.6", "libm.so.6")},
		"needed":         {lib("libx.so.1", "s1", "libc.so.6")},
		"a second":       append([]quarry.File{lib("liby.so.1", "s1")}, base...),
		"a static one":   append([]quarry.File{file("/usr/lib/liby.a", quarry.ClassStatic, "a1")}, base...),
		"another static": append([]quarry.File{file("/usr/lib/liby.a", quarry.ClassStatic, "a2")}, base...),
		"headers only":   {header},
		"another header": {file("/usr/include/x.h", quarry.ClassHeader, "h2")},
		"none":           {base[2]},
	} {
		got := abi(files)
		if other, ok := seen[got]; ok {
			t.Errorf("%s has the same abi as %s", name, other)
		}
		seen[got] = name
	}
	if got := abi([]quarry.File{base[2]}); got != "" {
		t.Errorf("a program has abi %q", got)
	}
	// One beside a shared library of its name is not what others are linked with.
	link := quarry.File{Path: "/usr/lib/libx.so", Kind: quarry.KindSymlink, Target: "libx.so.1"}
	for _, static := range []string{"a1", "a2"} {
		if got := abi(append([]quarry.File{file("/usr/lib/libx.a", quarry.ClassStatic, static), link}, base...)); got != want {
			t.Error("a static library beside the shared one counts")
		}
	}
	if got := abi(append([]quarry.File{file("/usr/lib/libx_nonshared.a", quarry.ClassStatic, "a1"), link}, base...)); got == want {
		t.Error("a static library of another name does not count")
	}
	// A static library with two names, whichever comes first.
	hard := quarry.File{Path: "/usr/lib/libz.a", Kind: quarry.KindHardlink, Class: quarry.ClassStatic, Target: "/usr/lib/libx.a"}
	one := abi([]quarry.File{file("/usr/lib/libx.a", quarry.ClassStatic, "a1"), hard})
	if two := abi([]quarry.File{file("/usr/lib/libx.a", quarry.ClassStatic, "a2"), hard}); one == two {
		t.Error("what a hard link holds does not count")
	}
}
