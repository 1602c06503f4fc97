package queue

import (
	"strings"
	"testing"

	"github.com/Morphux/quarry"
)

// on has a release cross built for an arch on machines of another.
func on(r quarry.Release, arch, machine string, tools ...string) quarry.Release {
	r.Traits = map[string]quarry.Traits{arch: {Cross: machine, HostNeeds: tools, TargetNeeds: []string{"libz"}}}
	return r
}

// A build that has not begun follows the configuration; one that somebody asked
// for is not forgotten for it.
func TestDecideCross(t *testing.T) {
	native := rel("1", "aaaa", t0, "aarch64")
	crossed := on(native, "aarch64", "x86_64")
	asked := func(k *Known) { k.Nonce = "0011" }
	for _, tt := range []struct {
		known Known
		now   quarry.Release
		want  string
	}{
		{known(1, native, "aarch64", quarry.Queued), crossed, "stop 1 it is to be built in another environment now; new aarch64 on x86_64"},
		{known(1, crossed, "aarch64", quarry.Waiting), native, "stop 1 it is to be built in another environment now; new aarch64 on "},
		{known(1, crossed, "aarch64", quarry.Waiting), crossed, ""},
		{known(1, native, "aarch64", quarry.Running), crossed, ""},
		{known(1, native, "aarch64", quarry.Queued, asked), crossed, ""},
	} {
		v := &View{Package: "zlib", Releases: map[Line]quarry.Release{lineOf(tt.now): tt.now}, Wants: []Want{{Release: tt.now, Arch: "aarch64"}}}
		p := v.Decide([]Known{tt.known})
		var got []string
		for _, s := range p.Stop {
			got = append(got, "stop 1 "+s.Reason)
		}
		for _, w := range p.New {
			got = append(got, "new "+w.Arch+" on "+w.Release.Traits[w.Arch].Cross)
		}
		if g := strings.Join(got, "; "); g != tt.want {
			t.Errorf("%s to %q: %q, want %q", tt.known.State, tt.now.Traits["aarch64"].Cross, g, tt.want)
		}
	}
}

// The tools of a cross build are those of its machine's arch, and it has an
// environment of its own.
func TestCrossNeeds(t *testing.T) {
	w := newWorld(t)
	q := start(t, w.options(folder(t)))
	w.push("gen", "1", "1", []string{"aarch64"})
	w.push("libz", "1", "2", []string{"x86_64"})
	w.pushAs(func(r *quarry.Release) { *r = on(*r, "aarch64", "x86_64", "gen") }, "tool", "1", "3", []string{"aarch64"})
	if err := q.Replan(t.Context()); err != nil {
		t.Fatal(err)
	}
	tool := q.first("tool")
	if got := tool.Environment().String(); got != "testing/aarch64@x86_64" {
		t.Errorf("it is built in %s", got)
	}
	q.until("the build says what it waits for", func() bool {
		b, _ := q.Get(tool.Number)
		return b.Reason == "waits for libz, which is not built for aarch64, and for gen, which is not built for x86_64"
	})
	w.push("gen", "1", "4", archs2)
	q.pushed("gen")
	q.until("the build only waits for what it is linked with", func() bool {
		b, _ := q.Get(tool.Number)
		return b.Reason == "waits for libz, which is not built for aarch64"
	})
	w.push("libz", "1", "5", archs2)
	q.pushed("libz")
	if b := q.wait(tool.Number); b.State != quarry.Succeeded {
		t.Fatalf("%s: %s", b.State, b.Reason)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var got []string
	for _, d := range w.built[tool.Target()] {
		got = append(got, d.Package+" "+d.Arch)
	}
	if s := strings.Join(got, ", "); s != "libz , gen x86_64" {
		t.Errorf("it was built with %s", s)
	}
}
