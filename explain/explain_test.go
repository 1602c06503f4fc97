package explain

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/Morphux/quarry"
)

func exit(step string, status int) *quarry.Failure {
	return &quarry.Failure{Step: step, Cause: quarry.CauseExit, Status: status}
}

func classify(f *quarry.Failure, log string) Finding {
	return Classify(Input{Failure: f, Log: strings.NewReader(log)})
}

// TestLines is for what no log of testdata has: lines as their programs' sources
// print them, or other versions than those of the logs.
func TestLines(t *testing.T) {
	for _, c := range []struct{ class, line string }{
		{"compiler-crash", "clang: error: clang frontend command failed with exit code 139 (use -v to see invocation)"},
		{"memory", "memory allocation of 8589934592 bytes failed"},
		{"memory", "FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory"},
		{"disk", "/usr/bin/ld: final link failed: Disk quota exceeded"},
		{"processes", "RuntimeError: can't start new thread"},
		{"processes", "make: vfork: Resource temporarily unavailable"},
		{"implicit-declaration", "a.c:3:9: error: call to undeclared function 'foo'; ISO C99 and later do not support implicit function declarations [-Wimplicit-function-declaration]"},
		{"stricter-compiler", "a.c:3:9: error: returning 'int' from a function with return type 'char *' makes pointer from integer without a cast [-Wint-conversion]"},
		{"stricter-compiler", "a.c:3:1: error: type defaults to 'int' in declaration of 'x' [-Wimplicit-int]"},
		{"compiler-option", "gcc: error: unrecognized command line option '-fcf-protection'"},
		{"compiler-option", "clang: error: unsupported option '-mabi=lp64'"},
		{"missing-header", "a.cc:1:10: fatal error: experimental/optional: No such file or directory"},
		{"missing-library", "/usr/bin/ld: warning: libssl.so.3, needed by libcurl.so, not found (try using -rpath or -rpath-link)"},
		{"missing-library", "ld: library not found for -lpng"},
		{"undefined-reference", "/usr/bin/ld: //lib/libm.so.6: error adding symbols: DSO missing from command line"},
		{"multiple-definition", "ld.lld: error: duplicate symbol: yylval"},
		{"wrong-arch", "/bin/sh: 1: ./tool: Exec format error"},
		{"wrong-arch", "bash: line 1: ./tool: cannot execute binary file: Exec format error"},
		{"shared-library", "./prog: /lib/libc.so.6: version `GLIBC_2.99' not found (required by ./prog)"},
		{"linker", "collect2: error: ld returned 1 exit status"},
		{"version", `  Could NOT find ZLIB: Found unsuitable version "1.2.3", but required is at least "1.3" (found /usr/lib/libz.so)`},
		{"version", "meson.build:4:0: ERROR: Dependency lookup for glib-2.0 with method 'pkgconfig' failed: Invalid version, need 'glib-2.0' ['>= 2.80'] found '2.74.6'."},
		{"missing-pkg-config", "No package 'gtk4' found"},
		{"missing-python-module", "ImportError: No module named setuptools"},
		{"unvendored", `main.go:4:2: cannot find package "github.com/pkg/errors" in any of:`},
		{"interpreter", "/bin/sh: ./gen.pl: /usr/bin/perl5: bad interpreter: No such file or directory"},
		{"not-executable", "make: ./gen.sh: Permission denied"},
		{"config-guess", "./config.guess: unable to guess system type"},
		{"libtool", "libtool: link: cannot find the library `../libfoo.la' or unhandled argument `../libfoo.la'"},
		{"patch-malformed", "patch: **** malformed patch at line 12: foo"},
		{"patch", "error: src/main.c: patch does not apply"},
		{"network", "ERROR: Could not find a version that satisfies the requirement setuptools>=40.8.0 (from versions: none)"},
		{"network", "curl: (7) Failed to connect to example.org port 443 after 3 ms: Couldn't connect to server"},
		{"checksum", "verifying github.com/spf13/pflag@v1.0.5: checksum mismatch"},
		{"checksum", "error: hash mismatch for foo.tar.gz"},
		{"toolchain", "configure: error: cannot run C compiled programs."},
		{"meson", "ERROR: Neither source directory '.' nor build directory None contain a build file meson.build."},
		{"test", "not ok 3"},
		{"test", "Result: FAIL"},
		{"test", "#   Failed test 'adds'"},
		{"makefile", "Makefile:7: *** unterminated variable reference.  Stop."},
		{"script", "build.sh: line 9: unexpected EOF while looking for matching `\"'"},
		{"script", "  File \"gen.py\", line 3\nSyntaxError: invalid decimal literal"},
		{"exception", "KeyError: 'version'"},
		{"exception", "Exception in thread \"main\" java.lang.NullPointerException"},
		{"encoding", "sed: RE error: illegal byte sequence"},
		{"archive", "xz: data.xz: Unexpected end of input"},
		{"clock", "make: warning:  Clock skew detected.  Your build may be incomplete."},
		{"crash", "/bin/sh: line 1: 1234 Segmentation fault      (core dumped) ./gen"},
		{"documentation", "manual.texi:31: @ref reference to nonexistent node `Foo'"},
		{"no-user", "chgrp: invalid group: 'games'"},
		{"device", "stty: 'standard input': Inappropriate ioctl for device"},
		{"privilege", "you must be root to run this"},
		{"missing-file", "cat: VERSION: No such file or directory"},
		{"missing-file", "awk: cannot open \"x.awk\" (No such file or directory)"},
		{"patch-file", "patch: **** Can't open patch file /quarry/src/patches/a.patch : No such file or directory"},
		{Unknown, "frobnicate: error: cannot go on"},
	} {
		if f := classify(exit("make", 2), "one\n"+c.line+"\n"); f.Class != c.class {
			t.Errorf("%s: got %s (%q)", c.line, f.Class, f.Error)
		}
	}
}

// TestEachRule: a rule that no log and no line of the tests fits is not known to
// work.
func TestEachRule(t *testing.T) {
	text, err := os.ReadFile("explain_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var all bytes.Buffer
	for _, m := range regexp.MustCompile("(?m)^\t\t\\{[\\w\"-]+, [\"`](.*)[\"`]\\},$").FindAllSubmatch(text, -1) {
		all.WriteString(strings.NewReplacer(`\"`, `"`, `\n`, "\n").Replace(string(m[1])) + "\n")
	}
	for _, s := range samples(t) {
		all.Write(s.log)
	}
	used := make([]bool, len(rules))
	for line := range bytes.Lines(all.Bytes()) {
		line = said(append(plain(bytes.TrimSuffix(line, []byte("\n")), nil), 0))
		if len(line) == 0 {
			continue
		}
		line = line[:len(line)-1]
		set := table.find(line)
		for i, r := range rules {
			fits := r.fits == nil && set.has(i) || r.fits != nil && r.fits.Match(line)
			if fits && !set.has(i) {
				t.Errorf("rule %d (%s) fits, but none of its words %q is in %q", i, r.class, r.words, line)
			}
			used[i] = used[i] || fits
		}
	}
	for i, r := range rules {
		if !used[i] {
			t.Errorf("rule %d (%s, %q) fits nothing that the tests have", i, r.class, r.words)
		}
		if classHints[r.class] == "" {
			t.Errorf("rule %d has the class %s, which is not in the table", i, r.class)
		}
		for _, w := range r.words {
			if w != strings.ToLower(w) {
				t.Errorf("rule %d (%s): %q is not in lower case", i, r.class, w)
			}
		}
	}
}

// TestNoError: lines that speak of errors, and are none.
func TestNoError(t *testing.T) {
	log := `checking for error.h... yes
checking for strlcpy... no
checking for gawk... no
checking whether the compiler gives an error: for unknown options... no
-- Looking for fatal error: handlers - not found
-- Could NOT find Doxygen (missing: DOXYGEN_EXECUTABLE)
gcc -DHAVE_CONFIG_H -Wall -Wno-error=format -Werror=vla -c -o error.o error.c
gcc -c segmentation_fault.c
  CC      lib/out_of_memory.o
warning.c:12:3: warning: 'x' is deprecated: error: do not use
   12 | fprintf(stderr, "x.c:1: error: Cannot allocate memory\n");
PASS: fails with a Segmentation fault
ok 3 - says Permission denied
not ok 4 - known to be broken # TODO
XFAIL: broken.sh
# FAIL:  0
100% tests passed, 0 tests failed out of 12
make[1]: Nothing to be done for 'all'.
libtool: install: warning: relinking
error.c: In function 'error':
Makefile:12: warning: overriding recipe for target 'error:'
In file included from fatal.h:1
`
	f := classify(exit("make", 1), log)
	if f.Class != Unknown || f.Line != 22 {
		t.Fatalf("got %s, line %d: %s", f.Class, f.Line, f.Error)
	}
}

// TestInterleaved: of a parallel make's log the first error counts, and what it
// has gone on after does not.
func TestInterleaved(t *testing.T) {
	log := `==> make: make -j8
git describe: fatal: not a git repository
make[2]: git: No such file or directory
curl: (6) Could not resolve host: example.org
  CC a.o
  CC b.o
rm: cannot remove 'old': No such file or directory
make[2]: [Makefile:9: clean] Error 1 (ignored)
b.c:7:1: error: unknown type name 'foo_t'
    7 | foo_t x;
  CC c.o
make[2]: *** [Makefile:3: b.o] Error 1
c.c:1:10: fatal error: zlib.h: No such file or directory
make[2]: *** Waiting for unfinished jobs....
make[1]: *** [Makefile:20: all-recursive] Error 1
make: *** [Makefile:8: all] Error 2
==> make: ended with status 2 in 3.1 s
==> failed: make ended with status 2
`
	f := classify(exit("make", 2), log)
	if f.Class != "compiler" || f.Line != 9 || !strings.Contains(f.Hint, "on line 4, it tried to reach the network") {
		t.Fatalf("got %+v", f)
	}
	want := "  CC a.o|  CC b.o|rm: cannot remove 'old': No such file or directory|make[2]: [Makefile:9: clean] Error 1 (ignored)|"
	if got := strings.Join(f.Excerpt, "|"); !strings.Contains(got, want) || strings.Contains(got, "==>") {
		t.Fatalf("the excerpt is %s", got)
	}
	// The program before make's status 127 is the one that was missed.
	f = classify(exit("make", 2), "==> make: make\nsh: 1: git: not found\nok\nsh: 1: gperf: not found\nmake: *** [Makefile:1: x] Error 127\nsh: 1: later: not found\n")
	if f.Class != "missing-program" || f.Line != 4 || !strings.Contains(f.Hint, "gperf") {
		t.Fatalf("got %+v", f)
	}
	// Earlier steps and attempts say nothing about this one.
	f = Classify(Input{Failure: exit("test", 1), From: 2, Log: strings.NewReader(
		"x.c:1:1: error: of the attempt before\n\n==> make: make\ny.c:1:1: error: make went on\n==> make: ended with status 0 in 1 s\n==> test: make check\nz.c:1:1: error: is expected\nFAIL: z\n==> test: ended with status 2\n")})
	if f.Class != "test" || f.Line != 8 || f.Error != "FAIL: z" {
		t.Fatalf("got %+v", f)
	}
}

// TestCauses: what the farm knows wins, and the log says where.
func TestCauses(t *testing.T) {
	log := "==> install: make install\ncp: one\nvirtual memory exhausted: Cannot allocate memory\nlast words\n\n==> install: ended with status 137 in 1 s\n==> failed: it is over\n==> install: /usr/lib/libfoo.so\n"
	for _, c := range []struct {
		cause quarry.Cause
		class string
		line  int64
		error string
	}{
		{quarry.CauseTime, "time", 4, "last words"},
		{quarry.CauseSilence, "silence", 4, "last words"},
		{quarry.CauseLog, "log", 4, "last words"},
		{quarry.CauseMemory, "memory", 3, "virtual memory exhausted: Cannot allocate memory"},
		{quarry.CauseDisk, "disk", 4, "last words"},
		{quarry.CauseProcs, "processes", 4, "last words"},
		{quarry.CauseEscape, "escape", 7, "it is over"},
		{quarry.CauseOutput, "output", 7, "it is over"},
		{quarry.CauseRecipe, "recipe", 7, "it is over"},
	} {
		f := classify(&quarry.Failure{Step: "install", Cause: c.cause, Message: "it is over"}, log)
		if f.Class != c.class || f.Line != c.line || f.Error != c.error || f.Hint == "" || len(f.Excerpt) == 0 {
			t.Errorf("%s: got %+v", c.cause, f)
		}
	}
	f := classify(&quarry.Failure{Step: "install", Cause: quarry.CauseEscape, Message: "it is over", Paths: []string{"/usr/lib/libfoo.so"}}, log)
	if f.Class != "destdir" || !strings.Contains(strings.Join(f.Excerpt, "\n"), "==> install: /usr/lib/libfoo.so") {
		t.Errorf("got %+v", f)
	}
	// A step that could not be begun has printed nothing.
	f = classify(exit("make", 127), "==> make: mkae\n==> make: ended with status 127 in 1 ms\n==> failed: make: mkae is not there\n")
	if f.Class != "missing-program" || f.Line != 3 {
		t.Errorf("got %+v", f)
	}
	if f = classify(exit("make", 2), ""); f.Class != Unknown || f.Line != 0 || f.Excerpt != nil {
		t.Errorf("got %+v", f)
	}
}

// TestHostile: whatever a build prints, what comes out is short and fit to be shown.
func TestHostile(t *testing.T) {
	for name, log := range map[string]string{
		"escapes":   "\x1b]0;owned\x07\x1b[31ma.c:1:1: \x1b[1merror:\x1b[0m \x1b[2J\x00\x07bad\u202e\u2028\r\n",
		"progress":  strings.Repeat("10%\r", 3000) + "a.c:1:1: error: bad\n",
		"megabyte":  strings.Repeat("\xff", 1<<20) + "\na.c:1:1: error: " + strings.Repeat("é", 1<<20) + "\n" + strings.Repeat("x", 1<<20),
		"invalid":   "\xc3\x28 \xa0\xa1\na.c:1:1: error: \xe2\x28\xa1\n",
		"unending":  "a.c:1:1: error: bad" + strings.Repeat(" worse", 1<<18),
		"plays us":  "==> make: x\n==> failed: \n==> quarry: \n==> \n==>\na.c:1:1: error: bad\n==> make: x\na.c:1:1: error: bad\n",
		"half CSI":  "a.c:1:1: error: bad \x1b[31",
		"no column": "a.c:99999999999999999999: error: bad\n",
	} {
		f := classify(exit("make", 2), log)
		if f.Class != "compiler" || !strings.HasPrefix(f.Error, "a.c:") {
			t.Errorf("%s: got %s, %.100q", name, f.Class, f.Error)
		}
		fit(t, name, f)
	}
}

func fit(t testing.TB, name string, f Finding) {
	t.Helper()
	if len(f.Excerpt) > 20 {
		t.Errorf("%s: the excerpt has %d lines", name, len(f.Excerpt))
	}
	for _, s := range append([]string{f.Class, f.Error, f.Hint}, f.Excerpt...) {
		if !utf8.ValidString(s) || len(s) > maxShown+300 || strings.ContainsAny(s, "\n\r\x1b\x00\x07\u202e\u2028") {
			t.Errorf("%s: %.200q is not fit to be shown", name, s)
		}
	}
}

// TestWrites: it does not matter in which parts a log comes.
func TestWrites(t *testing.T) {
	for _, s := range samples(t) {
		f := exit(s.step, s.status)
		want := fmt.Sprint(Classify(Input{Failure: f, Log: bytes.NewReader(s.log)}))
		for _, n := range []int{1, 7, 64} {
			scan := newScanner(s.step, 0)
			for p := s.log; len(p) > 0; p = p[min(n, len(p)):] {
				scan.Write(p[:min(n, len(p))])
			}
			if got := fmt.Sprint(scan.Finding(f)); got != want {
				t.Errorf("%s by %d bytes: got %s, want %s", s.name, n, got, want)
			}
		}
	}
}

// FuzzClassify: no log panics, and what comes out is fit to be shown.
func FuzzClassify(f *testing.F) {
	for _, s := range samples(f) {
		f.Add(s.log, s.step, s.status, uint8(0))
	}
	causes := []quarry.Cause{quarry.CauseExit, quarry.CauseTime, quarry.CauseMemory, quarry.CauseEscape, quarry.CauseRecipe, quarry.CauseDisk}
	f.Fuzz(func(t *testing.T, log []byte, step string, status int, cause uint8) {
		fl := &quarry.Failure{Step: step, Status: status, Cause: causes[int(cause)%len(causes)], Message: string(log[:min(len(log), 50)])}
		got := Classify(Input{Failure: fl, Log: io.MultiReader(bytes.NewReader(log), bytes.NewReader(log)), From: int64(cause / 64)})
		fit(t, "fuzz", got)
		if classHints[got.Class] == "" {
			t.Errorf("class %q is in no table", got.Class)
		}
		if got.Line > int64(2*bytes.Count(log, []byte("\n")))+2 {
			t.Errorf("line %d of %q twice", got.Line, log)
		}
	})
}

// TestCheap: what an ordinary log has most of is looked at by no rule closely.
func TestCheap(t *testing.T) {
	s, log := newScanner("", 0), bigLog()[:1<<20]
	s.Write(log)
	sum := 0
	for i, n := range s.seen {
		if sum += n; n > len(log)/1000 {
			t.Errorf("rule %d (%s) looks at %d bytes of %d", i, rules[i].class, n, len(log))
		}
	}
	if sum > len(log)/100 {
		t.Errorf("the rules look at %d bytes of %d", sum, len(log))
	}
}
