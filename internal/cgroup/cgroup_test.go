package cgroup

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// disksOf makes a sysfs with an LVM volume 253:0 on a partition of disk 8:0, or
// of 259:0, a floppy drive and an image file.
func disksOf(t *testing.T) string {
	t.Helper()
	sys := t.TempDir()
	file := func(name, text string) {
		path := filepath.Join(sys, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	link := func(name, to string) {
		path := filepath.Join(sys, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(sys, to), path); err != nil {
			t.Fatal(err)
		}
	}
	for name, dev := range map[string]string{"sda": "8:0", "nvme0n1": "259:0", "dm-0": "253:0", "loop1": "7:1", "fd0": "2:0"} {
		file("devices/"+name+"/dev", dev+"\n")
		if err := os.MkdirAll(filepath.Join(sys, "devices", name, "slaves"), 0o755); err != nil {
			t.Fatal(err)
		}
		link("block/"+name, "devices/"+name)
		link("dev/block/"+dev, "devices/"+name)
	}
	for _, disk := range []string{"sda", "nvme0n1"} {
		file("devices/"+disk+"/part3/dev", "9:9\n")
		file("devices/"+disk+"/part3/partition", "3\n")
		link("devices/dm-0/slaves/"+disk+"3", "devices/"+disk+"/part3")
	}
	return sys
}

// TestSamples reads groups as kernels show them.
func TestSamples(t *testing.T) {
	sys := disksOf(t)
	v1 := func(dir string) Group {
		dir = filepath.Join("testdata", dir)
		return Group{CPU: dir + "/cpuacct", Memory: dir + "/memory", Pids: dir + "/pids", IO: dir + "/blkio", Sys: sys}
	}
	hybrid := v1("hybrid")
	hybrid.Unified = "testdata/hybrid/unified"
	counted := hybrid
	counted.Counted = true
	const v2 = "testdata/v2"
	memory := Stat{Memory: Of(104857600), PeakMemory: Of(209715200), Anon: Of(52428800), File: Of(41943040), OOMKills: Of(2)}

	wantV1 := memory
	// The clock is cpuacct.usage's, divided as the ticks say.
	wantV1.User, wantV1.Sys = Of(3030303), Of(1010101)
	wantV1.Procs, wantV1.PidsHits = Of(12), Of(3) // no pids.peak before Linux 6.1
	// What went to the volume went through it to the disk: it counts once.
	wantV1.Read, wantV1.Written, wantV1.Reads, wantV1.Writes = Of(8192000), Of(4100096), Of(90), Of(51)

	wantHybrid := memory
	wantHybrid.User, wantHybrid.Sys = Of(3030303), Of(1010101)
	wantHybrid.Procs, wantHybrid.PidsHits, wantHybrid.PeakProcs = Of(12), Of(3), Of(40)
	wantHybrid.WaitCPU, wantHybrid.WaitMemory, wantHybrid.WaitIO = Of(32345), Of(62345), Of(22345)

	wantCounted := wantHybrid
	wantCounted.Read, wantCounted.Written, wantCounted.Reads, wantCounted.Writes = Of(0), Of(0), Of(0), Of(0)

	wantV2 := Stat{
		User: Of(3030303), Sys: Of(1010101), Memory: Of(314572800), PeakMemory: Of(524288000), Anon: Of(209715200), File: Of(94371840),
		OOMKills: Of(1), Procs: Of(25), PeakProcs: Of(61), PidsHits: Of(0),
		Read: Of(8192000), Written: Of(4100096), Reads: Of(90), Writes: Of(51),
		WaitCPU: Of(32345), WaitMemory: Of(62345), WaitIO: Of(22345),
	}
	for _, tt := range []struct {
		name  string
		group Group
		want  Stat
	}{
		{"v1", v1("v1"), wantV1},
		{"hybrid", hybrid, wantHybrid}, // a kernel that does not count io: no 0 is made of that
		{"hybrid that counts", counted, wantCounted},
		{"v2", Group{V2: true, CPU: v2, Memory: v2, Pids: v2, IO: v2, Unified: v2, Sys: sys}, wantV2},
		{"nothing", Group{}, Stat{}},
		{"gone", Group{V2: true, CPU: "testdata/no", Memory: "testdata/no", Pids: "testdata/no", IO: "testdata/no", Unified: "testdata/no"}, Stat{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.group.Read()
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			if got.Known() != (tt.want != Stat{}) {
				t.Errorf("known: %v", got.Known())
			}
		})
	}
}

// TestCPUOfTicks: where the ns are missing the ticks must do, and what took no
// tick is still something.
func TestCPUOfTicks(t *testing.T) {
	for _, tt := range []struct {
		stat, usage string
		want        Stat
	}{
		{"user 5\nsystem 7\n", "", Stat{User: Of(50_000), Sys: Of(70_000)}},
		{"user 0\nsystem 0\n", "1500000\n", Stat{User: Of(1500), Sys: Of(0)}},
		{"", "1500000\n", Stat{}},
		{"user 9223372036854775807\nsystem 9223372036854775807\n", "0\n", Stat{User: Of(0), Sys: Of(0)}},
	} {
		dir := t.TempDir()
		for name, text := range map[string]string{"cpuacct.stat": tt.stat, "cpuacct.usage": tt.usage} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); text != "" && err != nil {
				t.Fatal(err)
			}
		}
		if tt.usage == "" {
			os.Remove(filepath.Join(dir, "cpuacct.usage"))
		}
		if diff := cmp.Diff(tt.want, (&Group{CPU: dir}).Read()); diff != "" {
			t.Errorf("%q, %q: %s", tt.stat, tt.usage, diff)
		}
	}
}

// TestOwn reads the group of this very process, whatever machine this is.
func TestOwn(t *testing.T) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var g Group
	for line := range strings.Lines(string(text)) {
		before, after, _ := strings.Cut(line, " - ")
		point, rest := strings.Fields(before)[4], strings.Fields(after)
		if rest[0] == "cgroup2" {
			g.Unified = point
		}
		if rest[0] != "cgroup" {
			continue
		}
		for _, o := range strings.Split(rest[2], ",") {
			switch o {
			case "memory":
				g.Memory = point
			case "cpuacct":
				g.CPU = point
			case "pids":
				g.Pids = point
			}
		}
	}
	if g.Memory == "" {
		if g.V2 = true; g.Unified == "" {
			t.Fatal("no control groups are mounted: mount them (mount -t cgroup2 none /sys/fs/cgroup), or boot with systemd")
		}
	}
	// The root of a tree counts CPU in every setup.
	if s := g.Read(); !s.User.Known || !s.Sys.Known || s.User.N <= 0 || s.Sys.N <= 0 {
		t.Errorf("%+v: %+v", g, s)
	}
}

func TestDisks(t *testing.T) {
	sys := disksOf(t)
	if got := strings.Join(disks(sys), " "); got != "259:0 8:0" {
		t.Errorf("disks are %s", got)
	}
	if got := strings.Join(below(sys, "253:0"), " "); got != "259:0 8:0" {
		t.Errorf("the volume lies on %s", got)
	}
	if got := below(sys, "1:1"); got != nil {
		t.Errorf("an unknown disk lies on %s", got)
	}
}

// TestCountIO: a limit is set for disks that are not counted, and taken back.
func TestCountIO(t *testing.T) {
	sys, root, dir := disksOf(t), t.TempDir(), t.TempDir()
	if ok, err := CountIO("", "", sys); ok || err != nil {
		t.Errorf("without a controller: %v, %v", ok, err)
	}
	if err := os.WriteFile(filepath.Join(root, "blkio.throttle.io_service_bytes_recursive"), []byte("8:0 Read 5\nTotal 5\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	ok, err := CountIO(root, dir, sys)
	text, _ := os.ReadFile(filepath.Join(dir, "blkio.throttle.write_bps_device"))
	if !ok || err != nil || string(text) != "259:0 0" { // the last word about the disk that was not counted
		t.Errorf("%v, %v, %q", ok, err, text)
	}
	if err := os.WriteFile(filepath.Join(root, "blkio.throttle.io_service_bytes_recursive"), []byte("Total 0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if ok, err := CountIO(root, filepath.Join(dir, "gone"), sys); ok || err == nil {
		t.Errorf("a group that is gone: %v, %v", ok, err)
	}
}

func TestJSON(t *testing.T) {
	s := Stat{User: Of(5), Memory: Of(0)}
	text, err := json.Marshal(s)
	if err != nil || string(text) != `{"user_us":5,"memory":0}` {
		t.Errorf("%s, %v", text, err)
	}
	var back Stat
	if err := json.Unmarshal([]byte(`{"user_us":5,"memory":0,"anon":null}`), &back); err != nil || back != s {
		t.Errorf("%+v, %v", back, err)
	}
	if err := json.Unmarshal([]byte(`{"user_us":"x"}`), &back); err == nil {
		t.Error("a word is a count")
	}
}

func TestMax(t *testing.T) {
	for _, tt := range [][3]Count{{Of(1), Of(2), Of(2)}, {Of(2), Of(1), Of(2)}, {{}, Of(0), Of(0)}, {Of(0), {}, Of(0)}, {{}, {}, {}}} {
		if got := tt[0].Max(tt[1]); got != tt[2] {
			t.Errorf("%v and %v: %v", tt[0], tt[1], got)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"v2/io.stat", "v1/blkio/blkio.throttle.io_service_bytes_recursive", "v2/memory.stat", "v2/io.pressure"} {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		_ = parseV1(text)
		a, b := parseV2(text)
		if len(a) != len(b) {
			t.Fatal("bytes and requests of different disks")
		}
		for _, n := range []Count{number(text), field(text, "anon"), pressure(text)} {
			if n.N < 0 || !n.Known && n.N != 0 {
				t.Fatalf("%+v", n)
			}
		}
	})
}
