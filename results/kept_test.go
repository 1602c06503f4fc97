package results

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/Morphux/quarry"
)

// TestKeep: texts beside the records last, survive a repack and git's own packing
// of refs, and are no channel.
func TestKeep(t *testing.T) {
	r := open(t, Options{MaxPacks: -1})
	if texts, err := r.Kept("mass"); err != nil || len(texts) != 0 {
		t.Errorf("at first there are %v, %v", texts, err)
	}
	record(t, r, sample("zlib", "1.3.1", "x86_64", 1))
	keep := func(name, text string) {
		t.Helper()
		if err := r.Keep(t.Context(), "mass", name, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	check := func(when string, want map[string]string) {
		t.Helper()
		fresh := openAt(t, r.Path(), Options{MaxPacks: -1})
		defer fresh.Close()
		texts, err := fresh.Kept("mass")
		if err != nil {
			t.Errorf("%s: %v", when, err)
		}
		got := map[string]string{}
		for name, text := range texts {
			got[name] = string(text)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v", when, got)
		}
	}
	keep("20260314-1", "one")
	keep("20260314-2", "two")
	keep("20260314-1", "one again")
	check("written over", map[string]string{"20260314-1": "one again", "20260314-2": "two"})
	git(t, r.Path(), "pack-refs", "--all")
	keep("20260314-2", "two again")
	if err := r.Maintain(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("packed", map[string]string{"20260314-1": "one again", "20260314-2": "two again"})
	fsck(t, r.Path())
	if chs, err := r.Channels(); err != nil || !slices.Equal(chs, []string{"testing"}) {
		t.Errorf("channels %v, %v", chs, err)
	}
	if got := git(t, r.Path(), "cat-file", "-p", "refs/quarry/mass/20260314-1"); strings.TrimSpace(got) != "one again" {
		t.Errorf("git reads %q", got)
	}
	for _, bad := range [][2]string{{"mass", "../x"}, {"mass", ""}, {"..", "x"}, {"a/b", "x"}, {"mass", "a/b"}, {"mass", "-x"}} {
		if err := r.Keep(t.Context(), bad[0], bad[1], []byte("x")); err == nil {
			t.Errorf("kept as %q", bad)
		}
	}
	// What somebody has written there by hand hides nothing else.
	dir := filepath.Join(r.Path(), "refs", "quarry", "mass")
	for name, text := range map[string]string{"hostile": "no hash\n", "gone": strings.Repeat("ab", 20) + "\n", "x.lock": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	texts, err := r.Kept("mass")
	if len(texts) != 2 || err == nil || !strings.Contains(err.Error(), "mass/hostile holds \"no hash\"") || !strings.Contains(err.Error(), "mass/gone cannot be read") {
		t.Errorf("among what is bad: %v, %v", texts, err)
	}
}

// TestProviders: who stands for a virtual package is found at once after every
// commit, and only in successes.
func TestProviders(t *testing.T) {
	r := open(t, Options{})
	number := int64(0)
	put := func(o *quarry.Outcome, provides ...string) {
		t.Helper()
		number++
		o.Build.Number, o.Build.Nonce = number, fmt.Sprint(number)
		o.Build.Key = quarry.BuildKey(o.Build.Target(), o.Build.Commit, o.Build.Nonce)
		o.Info.Provides = provides
		record(t, r, o)
	}
	who := func(name string) string {
		t.Helper()
		list, err := snapshot(t, r).Providers(name)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(list)
	}
	if got := who("awk"); got != "[]" {
		t.Errorf("in an empty channel: %s", got)
	}
	put(sample("gawk", "5.3", "x86_64", 0), "awk", "posix-awk-2")
	put(sample("a", "1", "x86_64", 0), "awk")
	put(sample("zlib", "1", "x86_64", 0))
	put(failing("mawk", "1", "x86_64", 0), "awk")
	before := snapshot(t, r)
	for name, want := range map[string]string{"awk": "[a gawk]", "posix-awk": "[gawk]", "posix-awk-2": "[gawk]", "zlib": "[]"} {
		if got := who(name); got != want {
			t.Errorf("%s is provided by %s", name, got)
		}
	}
	put(sample("mawk", "1", "x86_64", 0), "awk-1")
	put(sample("a", "1", "x86_64", 0))
	if got := who("awk"); got != "[gawk mawk]" {
		t.Errorf("after two commits: %s", got)
	}
	if list, err := before.Providers("awk"); err != nil || fmt.Sprint(list) != "[a gawk]" {
		t.Errorf("the snapshot of before says %v, %v", list, err)
	}
	for target, want := range map[[3]string]string{{"gawk", "5.3", "x86_64"}: "[awk posix-awk-2]", {"a", "1", "x86_64"}: "[]", {"gawk", "5.3", "i686"}: "[]"} {
		for range 2 {
			if list, err := snapshot(t, r).Provides(target[0], target[1], target[2]); err != nil || fmt.Sprint(list) != want {
				t.Errorf("%v provides %v, %v", target, list, err)
			}
		}
	}
}
