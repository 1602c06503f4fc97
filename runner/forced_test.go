package runner_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/Morphux/quarry/runner"
)

// TestForcedWatch finds make's words wherever output is cut.
func TestForcedWatch(t *testing.T) {
	const cmd, file = " on make's command line", " in its makefile"
	filler := strings.Repeat("cc -c x.c -o x.o\n", 300)
	for text, want := range map[string]string{
		"make: warning: -j4 forced in submake: resetting jobserver mode.\n":                                         "forces 4 jobs" + cmd,
		"make[1]: warning: -j0 forced in submake: resetting jobserver mode.\n":                                      "forces any number of jobs" + cmd,
		"gmake[2]: warning: -jN forced in submake: disabling jobserver mode.\n":                                     "forces any number of jobs" + cmd,
		"make: warning: -j12 forced in makefile: resetting jobserver mode.\n":                                       "forces 12 jobs" + file,
		"make: warning: -j1 forced in submake: resetting jobserver mode.\n":                                         "",
		"make: warning: -j123456789012 forced in submake: resetting jobserver mode.\n":                              "",
		"he was forced in submission, -j4 forced in submake, warning: -j4 forced in subm":                           "",
		"forced in warning: -j1 forced in submake: \nwarning: -j5 forced in submake: ":                              "forces 5 jobs" + cmd,
		"make: warning: -j3 forced in submake: x\nmake: warning: -j9 forced in makefile: resetting jobserver mode.": "forces 3 jobs" + cmd,
		filler + "make: warning: -j7 forced in submake: resetting jobserver mode.\n" + filler:                       "forces 7 jobs" + cmd,
	} {
		check := func(how string, chunks ...string) {
			t.Helper()
			found, out := runner.Forced(chunks...)
			if out != text {
				t.Fatalf("%s, %.80q becomes %.80q", how, text, out)
			}
			var all []string
			if want != "" {
				all = []string{want}
			}
			if !slices.Equal(found, all) {
				t.Errorf("%s, %.80q gives %q, not %q", how, text, found, all)
			}
		}
		check("whole", text)
		for i := range text {
			check("in two", text[:i], text[i:])
		}
		check("byte by byte", strings.Split(text, "")...)
	}
}

func TestForcedBy(t *testing.T) {
	for flags, jobs := range map[string]string{
		"": "", "-k": "", "-j1": "", "-k -j 1": "", "k": "", "--jobs=1": "", "V=j9": "", "-l 8": "", "--no-print-directory": "",
		"-j8": "8 jobs", "-k -j8": "8 jobs", "-j 3 V=1": "3 jobs", "-j": "any number of jobs", "-kj5": "5 jobs", "kj5": "5 jobs", "--jobs=6": "6 jobs", "--jobs": "any number of jobs",
		"-j4 --jobserver-auth=fifo:/tmp/mine": "", // it has made one of its own
	} {
		want := ""
		if jobs != "" {
			want = "has MAKEFLAGS of the recipe's own, which ask for " + jobs
		}
		if got := runner.ForcedBy(flags); got != want {
			t.Errorf("%q: %q, not %q", flags, got, want)
		}
	}
}

func FuzzForcedWatch(f *testing.F) {
	f.Add("make: warning: -j4 forced in submake: x", 10)
	f.Fuzz(func(t *testing.T, text string, at int) {
		whole, out := runner.Forced(text)
		if out != text || len(whole) > 1 {
			t.Fatalf("%q, %q", whole, out)
		}
		if at < 0 || at > len(text) {
			return
		}
		cut, out := runner.Forced(text[:at], text[at:])
		if out != text || !slices.Equal(cut, whole) {
			t.Errorf("cut at %d it gives %q, whole %q", at, cut, whole)
		}
	})
}
