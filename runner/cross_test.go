package runner_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/extract"
	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/testbase"
	"github.com/Morphux/quarry/internal/testpkg"
	"github.com/Morphux/quarry/runner"
)

// crossed makes an attempt a cross build for testbase.Foreign.
func crossed(a attempt, runs bool) attempt {
	a.change = func(j *runner.Job) {
		j.Build.Arch = testbase.Foreign
		j.Cross = &runner.Cross{Machine: testbase.Arch, Triplet: runner.Triplet(testbase.Foreign), Build: runner.Triplet(testbase.Arch), Runs: runs}
	}
	return a
}

// gauge is a library made with the autotools, as most are. A program that runs
// while it is built makes one of its headers.
func gauge() pkg {
	return pkg{
		compilation: map[string]any{"configure": []any{map[string]string{"prefix": "/usr"}}, "make": "", "install": "install"},
		quarry:      map[string]any{"directory": "srcs"},
		files: map[string]string{
			"scripts/before.sh":  "autoreconf -fi\n",
			"scripts/after.sh":   "ln -s /usr/lib/libgauge.so $DESTDIR/usr/lib/libalias.so\nenv | grep -E '^(CC|CXX|AR|QUARRY_|CROSS|HOSTCC|PKG_CONFIG)' | sort\n",
			"srcs/configure.ac":  "AC_INIT([gauge], [1.0])\nAM_INIT_AUTOMAKE([foreign])\nAC_PROG_CC\nAM_PROG_AR\nLT_INIT\nAC_FUNC_MALLOC\nAC_CONFIG_FILES([Makefile gauge.pc])\nAC_OUTPUT\n",
			"srcs/Makefile.am":   "lib_LTLIBRARIES = libgauge.la\nlibgauge_la_SOURCES = gauge.c\nlibgauge_la_LIBADD = -lm\ninclude_HEADERS = gauge.h\npkgconfigdir = $(libdir)/pkgconfig\npkgconfig_DATA = gauge.pc\nBUILT_SOURCES = made.h\nmade.h: gen.c\n\t$(CC_FOR_BUILD) -o gen gen.c && ./gen >$@\n",
			"srcs/gen.c":         "#include <stdio.h>\nint main(void) { return puts(\"#define ANSWER 42.25\") < 0; }\n",
			"srcs/gauge.h":       "double gauge(double x);\n",
			"srcs/gauge.c":       "#include <math.h>\n#include <stdlib.h>\n#include \"made.h\"\n#include \"gauge.h\"\ndouble gauge(double x) { double *p = malloc(8); if (p) *p = floor(x * ANSWER); return p ? *p : 0; }\n",
			"srcs/gauge.pc.in":   "prefix=@prefix@\nlibdir=@libdir@\nincludedir=@includedir@\n\nName: gauge\nDescription: gauges\nVersion: 1.0\nLibs: -L${libdir} -lgauge\nCflags: -I${includedir}\n",
			"srcs/NEWS":          "none\n",
			"srcs/m4/.gitignore": "*\n",
		},
	}
}

// artifacts collects what builds installed.
type artifacts struct {
	store *extract.Artifacts
	facts *quarry.Facts
	art   *quarry.Artifact
	err   error
}

func (a *artifacts) take(t *testing.T, base extract.LibraryIndex, deps ...extract.Dependency) func(*images.Workspace) {
	return func(ws *images.Workspace) {
		a.facts, a.art, a.err = extract.Tree(t.Context(), filepath.Join(ws.Dir, "dest"), extract.Options{
			UIDBase: ws.UID, GIDBase: ws.GID, Store: a.store, SourceTime: time.Unix(testpkg.Unix, 0), BuildPaths: []string{"/quarry"},
			Base: base, Deps: deps, Cross: &extract.Cross{Machine: testbase.Arch, Arch: testbase.Foreign}})
	}
}

// TestCross cross builds a library and a program that needs it, with a tool of
// the machine's own.
func TestCross(t *testing.T) {
	testbase.Emulate(t)
	f := farmOn(t, testbase.CrossPodman(t))
	store, err := extract.OpenArtifacts(filepath.Join(t.TempDir(), "artifacts"))
	if err != nil {
		t.Fatal(err)
	}
	made := &artifacts{store: store}
	_, out := f.succeed(t, crossed(attempt{pkg: gauge(), look: made.take(t, extract.LibraryIndex{})}, true))
	if made.err != nil {
		t.Fatal(made.err)
	}
	host, build := runner.Triplet(testbase.Foreign), runner.Triplet(testbase.Arch)
	for _, want := range []string{
		"==> prepare: cross building for " + testbase.Foreign + " on " + testbase.Arch + " with " + host + "-gcc\n",
		"==> configure: ./configure --host=" + host + " --build=" + build + " --prefix=/usr\n",
		"checking whether we are cross compiling... yes\n",
		"\nCC=" + host + "-gcc\n", "\nCXX=" + host + "-g++\n", "\nCROSS_COMPILE=" + host + "-\n", "\nHOSTCC=gcc\n", "AR=" + host + "-ar\n",
		"QUARRY_ARCH=" + testbase.Foreign + "\n", "QUARRY_CROSS=1\n", "QUARRY_HOST_ARCH=" + testbase.Arch + "\n", "QUARRY_SYSROOT=/quarry/sysroot\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the log lacks %q\n%s", want, out)
		}
	}
	lib := made.facts
	elves := 0
	for _, file := range lib.Files {
		if file.ELF != nil {
			elves++
			if file.ELF.Arch != testbase.Foreign {
				t.Errorf("%s is for %s", file.Path, file.ELF.Arch)
			}
		}
	}
	if elves != 1 || len(lib.Warnings) > 1 { // libc and libm are nowhere without an index of the base
		t.Errorf("%d ELF files, warnings %q", elves, lib.Warnings)
	}
	gaugeDep := runner.Dep{DepUsed: quarry.DepUsed{Package: "gauge", Version: "1.0", Artifact: made.art.SHA256}, Path: store.Path(made.art.SHA256)}

	// A tool for this machine; its name is that of nothing else.
	f.succeed(t, attempt{look: func(ws *images.Workspace) {
		_, made.art, made.err = extract.Tree(t.Context(), filepath.Join(ws.Dir, "dest"), extract.Options{UIDBase: ws.UID, GIDBase: ws.GID, Store: store})
	}, pkg: pkg{
		compilation: map[string]any{"make": "gcc -o inscribe inscribe.c", "install": "install -D inscribe $DESTDIR/usr/bin/inscribe"},
		files:       map[string]string{"srcs/inscribe.c": "#include <stdio.h>\nint main(void) { return puts(\"#define TEXT \\\"inscribed\\\"\") < 0; }\n"},
	}})
	if made.err != nil {
		t.Fatal(made.err)
	}
	toolDep := runner.Dep{DepUsed: quarry.DepUsed{Package: "inscribe", Version: "1.0", Artifact: made.art.SHA256, Arch: testbase.Arch}, Path: store.Path(made.art.SHA256)}

	program := pkg{
		compilation: map[string]any{
			"make": "inscribe >text.h && $CC -o reading reading.c $($PKG_CONFIG --cflags --libs gauge) && $CC -o alias reading.c -lalias",
			"test": "uname -m; ./reading; ./alias", "install": "install -D reading $DESTDIR/usr/bin/reading",
		},
		files: map[string]string{"srcs/reading.c": "#include <stdio.h>\n#include <gauge.h>\n#include \"text.h\"\nint main(void) { return printf(\"%s %g\\n\", TEXT, gauge(2)) < 0; }\n"},
	}
	deps := []runner.Dep{toolDep, gaugeDep}
	var base extract.LibraryIndex
	_, out = f.succeed(t, crossed(attempt{pkg: program, deps: deps, look: func(ws *images.Workspace) {
		if base, err = extract.IndexLibraries(ws.Root(), "/usr/"+host+"/lib"); err != nil {
			t.Fatal(err)
		}
		made.take(t, base, extract.Dependency{Package: "gauge", Libraries: extract.IndexFiles(lib.Files)})(ws)
		for path, want := range map[string]bool{"libgauge.so": true, "libgauge.la": false, "pkgconfig/gauge.pc": true} {
			if _, err := os.Lstat(filepath.Join(ws.Dir, "sysroot/usr/lib", path)); (err == nil) != want {
				t.Errorf("%s in the sysroot: %v, want it there: %v", path, err, want)
			}
		}
		if to, err := os.Readlink(filepath.Join(ws.Dir, "sysroot/usr/lib/libalias.so")); err != nil || to != "libgauge.so" {
			t.Errorf("an absolute link leads to %q, %v", to, err)
		}
	}}, true))
	if made.err != nil {
		t.Fatal(made.err)
	}
	if !strings.Contains(out, "\ninscribed 84\ninscribed 84\n") {
		t.Errorf("the programs did not run\n%s", out)
	}
	if !strings.Contains(out, "==> prepare: gauge 1.0 installed in /quarry/sysroot, ") || !strings.Contains(out, "==> prepare: inscribe 1.0 installed, ") {
		t.Errorf("dependencies are not where they belong\n%s", out)
	}
	if len(made.facts.Files) == 0 || len(made.facts.Warnings) > 0 {
		t.Errorf("facts %+v", made.facts)
	}
	for _, l := range made.facts.Libraries {
		want := map[string]string{"libgauge.so.0": "dependency gauge /usr/lib/libgauge.so.0", "libc.so.6": "base  /usr/" + host + "/lib/libc.so.6"}[l.Soname]
		if got := l.From + " " + l.Owner + " " + l.Path; got != want || l.Arch != testbase.Foreign {
			t.Errorf("%s of %s is from %s, want %s", l.Soname, l.Arch, got, want)
		}
	}
	if len(made.facts.Libraries) != 2 {
		t.Errorf("libraries %+v", made.facts.Libraries)
	}

	t.Run("without emulation", func(t *testing.T) {
		res, out := f.succeed(t, crossed(attempt{pkg: program, deps: deps}, false))
		if slices.Contains(strings.Fields(names(res.Steps)), "test") || !strings.Contains(out, "==> test: left out: programs for "+testbase.Foreign+" do not run") {
			t.Errorf("steps %s\n%s", names(res.Steps), out)
		}
	})
	t.Run("its compiler not used", func(t *testing.T) {
		hard := pkg{
			compilation: map[string]any{"make": "", "install": "install"},
			files: map[string]string{
				"srcs/Makefile": "CC = gcc\nAR = ar\nall:\n\t$(CC) -c x.c\n\t$(AR) rcs libx.a x.o\n\t$(CC) -o x x.c\n" +
					"install:\n\tinstall -D x $(DESTDIR)/usr/bin/x\n\tinstall -D libx.a $(DESTDIR)/usr/lib/libx.a\n",
				"srcs/x.c": "int main(void) { return 0; }\n",
			},
		}
		f.succeed(t, crossed(attempt{pkg: hard, look: made.take(t, base)}, true))
		refused := (*extract.RefusedError)(nil)
		if !errors.As(made.err, &refused) || made.art != nil {
			t.Fatalf("error %v, want a refusal", made.err)
		}
		want := "what it installed cannot be accepted: 2 files are for " + testbase.Arch + " and not for " + testbase.Foreign +
			": the cross build did not use its compiler, have it honour CC (and AR, LD), or say nocross (/usr/bin/x, /usr/lib/libx.a)"
		if refused.Error() != want {
			t.Errorf("%s\nwant %s", refused, want)
		}
	})
	t.Run("the recipe's own words", func(t *testing.T) {
		p := pkg{
			compilation: map[string]any{
				"configure": []any{map[string]string{"host": "other-linux-gnu"}, "x"},
				"env":       []any{map[string]string{"CC": "mine"}},
				"make":      "echo CC is $CC, LD is $LD",
			},
			files: map[string]string{"srcs/configure": "echo \"$@\"\n"},
		}
		_, out := f.succeed(t, crossed(attempt{pkg: p}, true))
		if !strings.Contains(out, "\n--build="+build+" --host=other-linux-gnu --x\n") || !strings.Contains(out, "\nCC is mine, LD is "+host+"-ld\n") {
			t.Errorf("%s", out)
		}
	})
	for name, tt := range map[string]struct{ triplet, why string }{
		"no toolchain":        {"none-linux-gnu", "none-linux-gnu-gcc, none-linux-gnu-ar, none-linux-gnu-as and 7 more are not found: "},
		"of another arch":     {"wrong-linux-gnu", "wrong-linux-gnu-gcc makes programs for another arch: "},
		"without a C library": {"bare-linux-gnu", "bare-linux-gnu-gcc cannot build a program: fatal: stdio.h is not there: "},
	} {
		t.Run(name, func(t *testing.T) {
			a := crossed(attempt{}, true)
			if tt.triplet != "none-linux-gnu" {
				a.deps = []runner.Dep{unfit(t, f, store)}
			}
			change := a.change
			a.change = func(j *runner.Job) { change(j); j.Cross.Triplet = tt.triplet }
			res, out, err := f.try(t, a)
			bad := (*runner.ToolchainError)(nil)
			if !errors.As(err, &bad) || res != nil || strings.Contains(out, "==> make") {
				t.Fatalf("%v, %v, want a ToolchainError and no step\n%s", res, err, out)
			}
			begin := testbase.Arch + " has no cross toolchain for " + testbase.Foreign + ": " + tt.why
			if s := err.Error(); !strings.HasPrefix(s, begin) || !strings.Contains(s, "on Debian gcc-"+strings.ReplaceAll(host, "_", "-")+", ") || bad.Instance == "" {
				t.Errorf("%s", s)
			}
		})
	}
}

// unfit is two toolchains, as a package of this machine's arch: the compiler of
// bare-linux-gnu has no C library, that of wrong-linux-gnu is the machine's own.
func unfit(t *testing.T, f *farm, store *extract.Artifacts) runner.Dep {
	t.Helper()
	var art *quarry.Artifact
	f.succeed(t, attempt{look: func(ws *images.Workspace) {
		var err error
		if _, art, err = extract.Tree(t.Context(), filepath.Join(ws.Dir, "dest"), extract.Options{UIDBase: ws.UID, GIDBase: ws.GID, Store: store}); err != nil {
			t.Fatal(err)
		}
	}, pkg: pkg{compilation: map[string]any{"install": `mkdir -p $DESTDIR/usr/bin; cd $DESTDIR/usr/bin
for p in gcc ar as ld ranlib nm strip objcopy objdump readelf; do
	printf '#!/bin/sh\necho "fatal: stdio.h is not there." >&2\nexit 1\n' >bare-linux-gnu-$p
	printf '#!/bin/sh\n[ "${1#--sysroot}" = "$1" ] || shift\nexec %s "$@"\n' $p >wrong-linux-gnu-$p
done
chmod 755 *`}}})
	return runner.Dep{DepUsed: quarry.DepUsed{Package: "unfit", Version: "1.0", Artifact: art.SHA256, Arch: testbase.Arch}, Path: store.Path(art.SHA256)}
}
