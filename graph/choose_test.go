package graph

import (
	"strings"
	"testing"

	"github.com/Morphux/quarry"
)

func TestChoose(t *testing.T) {
	const nativeCheap, crossCheap, onlyCross = "x86_64:aarch64:300 aarch64:aarch64:50", "x86_64:aarch64:50 aarch64:aarch64:300", "x86_64:aarch64"
	broken, nocross := quarry.Traits{Broken: "no barriers"}, quarry.Traits{NoCross: true}
	sound := quarry.Traits{}
	for _, tt := range []struct {
		workers         string
		native, crossed quarry.Traits
		want            string
	}{
		{nativeCheap, sound, sound, "aarch64:aarch64:50"},
		{crossCheap, sound, sound, "x86_64:aarch64:50"},
		{"x86_64:aarch64 aarch64:aarch64", sound, sound, "aarch64:aarch64:100"},
		{crossCheap, nocross, nocross, "aarch64:aarch64:300"},
		{crossCheap, sound, nocross, "aarch64:aarch64:300"},
		{crossCheap, sound, broken, "aarch64:aarch64:300"},
		{nativeCheap, broken, sound, "x86_64:aarch64:300"}, // the other way it is not broken
		{nativeCheap, broken, broken, "aarch64:aarch64:50"},
		{onlyCross, broken, broken, "x86_64:aarch64:100"}, // the recipe declines it
		{onlyCross, nocross, nocross, "no worker can build it: nocross, and there is no native worker for aarch64"},
		{onlyCross, sound, broken, "no worker can build it: broken when it is cross built (no barriers), and there is no native worker for aarch64"},
		{"x86_64:x86_64", sound, sound, "no worker builds for aarch64: there is none for it in build.workers_for"},
		{"x86_64:aarch64:1:false x86_64:aarch64:2", nocross, nocross, "x86_64:aarch64:1:false"}, // it runs what it builds
		{"aarch64:aarch64:5:true", broken, sound, "aarch64:aarch64:5:true"},                     // its own arch: broken as that is
	} {
		workers, err := ParseWorkers(strings.Fields(tt.workers))
		if err != nil {
			t.Fatal(err)
		}
		w, why := Choose(workers, "aarch64", tt.native, tt.crossed)
		got := why
		if why == "" {
			got = w.String()
		}
		if got != tt.want {
			t.Errorf("%s, %+v, %+v: %s, want %s", tt.workers, tt.native, tt.crossed, got, tt.want)
		}
	}
}

func TestAssign(t *testing.T) {
	release := func() quarry.Release {
		return quarry.Release{Package: "gcc", Archs: []string{"aarch64", "riscv64", "x86_64", quarry.Noarch}, Needs: []string{"libc"},
			Traits:  map[string]quarry.Traits{"aarch64": {HostNeeds: []string{"make"}}, "x86_64": {HostNeeds: []string{"make"}}},
			Crossed: map[string]quarry.Traits{"aarch64": {HostNeeds: []string{"make", "gcc"}, TargetNeeds: []string{"make"}}, "x86_64": {NoCross: true}}}
	}
	r := release()
	before := r.Traits
	Assign(nil, &r)
	if len(r.Traits) != 2 || r.Crossed != nil || r.Traits["aarch64"].Cross != "" {
		t.Errorf("without workers: %+v", r)
	}
	workers, err := ParseWorkers([]string{"x86_64:x86_64", "x86_64:aarch64:50", "aarch64:aarch64", "aarch64:x86_64:1"})
	if err != nil {
		t.Fatal(err)
	}
	r = release()
	Assign(workers, &r)
	cross, native, none := r.Traits["aarch64"], r.Traits["x86_64"], r.Traits["riscv64"]
	if cross.Cross != "x86_64" || native.Cross != "" || native.NoWorker != "" || none.NoWorker == "" || r.Crossed != nil {
		t.Errorf("%+v", r.Traits)
	}
	if _, ok := r.Traits[quarry.Noarch]; ok || len(before) != 2 || before["aarch64"].Cross != "" {
		t.Errorf("%+v from %+v", r.Traits, before)
	}
	if r.Declined("riscv64") != none.NoWorker || r.Declined("aarch64") != "" {
		t.Errorf("declined: %q, %q", r.Declined("riscv64"), r.Declined("aarch64"))
	}
	system, tools := r.CrossNeeds("aarch64")
	if got := strings.Join(r.BuildNeeds("aarch64"), " ") + "; " + system + " " + strings.Join(tools, " "); got != "libc make; x86_64 make gcc" {
		t.Errorf("aarch64 needs %s", got)
	}
	if system, tools := r.CrossNeeds("x86_64"); strings.Join(r.BuildNeeds("x86_64"), " ") != "libc make" || system != "" || tools != nil {
		t.Errorf("x86_64 needs %v; %s %v", r.BuildNeeds("x86_64"), system, tools)
	}
}
