package podman

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestTightenSeccomp(t *testing.T) {
	var src []byte
	for _, path := range seccompSources {
		if data, err := os.ReadFile(path); err == nil {
			src = data
		}
	}
	if src == nil {
		t.Fatal("no default seccomp profile: apt-get install golang-github-containers-common")
	}
	out, err := tightenSeccomp(src)
	if err != nil {
		t.Fatal(err)
	}
	type profile struct {
		Syscalls []struct {
			Names  []string
			Action string
			Args   []struct{ Index, Value uint64 }
		}
	}
	var before, after profile
	for data, p := range map[*[]byte]*profile{&src: &before, &out: &after} {
		if err := json.Unmarshal(*data, p); err != nil {
			t.Fatal(err)
		}
	}
	allowed := func(p profile) map[string]bool {
		m := map[string]bool{}
		for _, r := range p.Syscalls {
			if r.Action == "SCMP_ACT_ALLOW" {
				for _, n := range r.Names {
					m[n] = true
					if n == "clone" && len(r.Args) == 0 {
						m["clone without a condition"] = true
					}
				}
			}
		}
		return m
	}
	was, is := allowed(before), allowed(after)
	for _, n := range append([]string{"clone without a condition"}, denied...) {
		if is[n] {
			t.Errorf("%s is allowed", n)
		}
	}
	for n := range was {
		if !is[n] && !slices.Contains(denied, n) && n != "clone without a condition" {
			t.Errorf("%s is no longer allowed", n)
		}
	}
	if !is["clone"] || !is["execve"] || !is["vfork"] {
		t.Error("nothing can be started")
	}
	for _, bad := range []string{"", "[]", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[]}`, `{"defaultAction":"SCMP_ACT_ERRNO"}`, `{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[1]}`} {
		if _, err := tightenSeccomp([]byte(bad)); err == nil {
			t.Errorf("%q was taken for a profile", bad)
		}
	}
}

// The three ways in which machines set control groups up, as their mountinfo
// shows them.
func TestParseCgroups(t *testing.T) {
	const v1 = `25 30 0:22 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
33 25 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
34 25 0:30 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
35 25 0:31 / /sys/fs/cgroup/pids rw,nosuid - cgroup cgroup rw,pids
36 25 0:32 / /sys/fs/cgroup/systemd rw,nosuid - cgroup cgroup rw,xattr,name=systemd
`
	const unified = "37 25 0:33 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
	const v2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
	const inContainer = "30 23 0:26 /docker/abc /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup rw\n"
	const v1proc = "9:name=systemd:/sys\n4:memory:/quarry-x/libpod-1\n3:cpu,cpuacct:/quarry-x/libpod-1\n0::/uni\n"
	for name, c := range map[string]struct {
		mounts     string
		mode       CgroupMode
		proc       string
		memory     string
		cpuacct    string
		mostPoints int
	}{
		"v1":        {v1, CgroupV1, v1proc, "/sys/fs/cgroup/memory/quarry-x/libpod-1", "/sys/fs/cgroup/cpu,cpuacct/quarry-x/libpod-1", 4},
		"hybrid":    {v1 + unified, CgroupHybrid, v1proc, "/sys/fs/cgroup/memory/quarry-x/libpod-1", "/sys/fs/cgroup/cpu,cpuacct/quarry-x/libpod-1", 5},
		"v2":        {v2, CgroupV2, "0::/quarry-x/libpod-1\n", "/sys/fs/cgroup/quarry-x/libpod-1", "/sys/fs/cgroup/quarry-x/libpod-1", 1},
		"container": {inContainer, CgroupV2, "0::/docker/abc/quarry-x\n", "/sys/fs/cgroup/quarry-x", "/sys/fs/cgroup/quarry-x", 1},
		"none":      {"1 2 3:4 / / rw - ext4 /dev/sda rw\n", CgroupNone, v1proc, "", "", 0},
		"broken":    {"cgroup\n - \n1 2 - cgroup\n", CgroupNone, "::\nx\n", "", "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			cg := parseCgroups([]byte(c.mounts))
			if cg.Mode != c.mode || len(cg.Points()) != c.mostPoints {
				t.Errorf("%s, points %v", cg.Mode, cg.Points())
			}
			if got := cg.Dir([]byte(c.proc), "memory"); got != c.memory {
				t.Errorf("memory in %q", got)
			}
			if got := cg.Dir([]byte(c.proc), "cpuacct"); got != c.cpuacct {
				t.Errorf("cpuacct in %q", got)
			}
			if c.mode == CgroupNone && cg.Limits() == nil {
				t.Error("limits without control groups")
			}
		})
	}
}

func TestGlobEscape(t *testing.T) {
	if got := globEscape(`/a*b?[c]\`); got != `/a\*b\?\[c]\\` {
		t.Error(got)
	}
}

func TestLineLog(t *testing.T) {
	l := &lineLog{log: discard}
	for _, s := range []string{"@ - - [21/Nov] GET\n", "one", " two\nthree\n", strings.Repeat("x", 100<<10)} {
		if n, err := l.Write([]byte(s)); n != len(s) || err != nil {
			t.Fatal(n, err)
		}
	}
	if got := l.tail(); got != "one two; three" {
		t.Errorf("%q", got)
	}
}

func TestDropOrphans(t *testing.T) {
	id := func(c string) string { return strings.Repeat(c, 64) }
	root := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	list := func(records ...string) string {
		return "[" + strings.ReplaceAll(strings.Join(records, ","), "'", `"`) + "]"
	}
	// a <- b <- c: an image on b, a container on c; d is mapped; e and f belong to
	// nobody; 0 is not even listed.
	layers := list("{'id':'"+id("a")+"','odd':[1.50]}", "{'id':'"+id("b")+"','parent':'"+id("a")+"'}", "{'id':'"+id("d")+"'}", "{'id':'"+id("e")+"'}")
	write("overlay-layers/layers.json", layers)
	write("overlay-layers/volatile-layers.json", list("{'id':'"+id("c")+"','parent':'"+id("b")+"'}", "{'id':'"+id("f")+"','parent':'"+id("b")+"'}"))
	write("overlay-images/images.json", list("{'id':'"+id("1")+"','layer':'"+id("b")+"','mapped-layers':['"+id("d")+"']}"))
	write("overlay-containers/volatile-containers.json", list("{'id':'"+id("2")+"','layer':'"+id("c")+"'}"))
	for _, l := range "abcdef0" {
		write("overlay/"+id(string(l))+"/diff/file", "x")
		write("overlay-layers/"+id(string(l))+".tar-split.gz", "x")
		if err := os.MkdirAll(filepath.Join(root, "overlay/l"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("../"+id(string(l))+"/diff", filepath.Join(root, "overlay/l", strings.ToUpper(string(l)))); err != nil {
			t.Fatal(err)
		}
	}
	write("overlay-images/"+id("1")+"/manifest", "x")
	write("overlay-images/"+id("9")+"/manifest", "x")
	write("overlay-containers/"+id("2")+"/userdata/x", "x")
	write("overlay-containers/"+id("8")+"/userdata/x", "x")

	if err := dropOrphans(root); err != nil {
		t.Fatal(err)
	}
	var left []string
	filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, path)
		parts := strings.Split(rel, "/")
		if len(parts) == 2 {
			name := parts[1]
			if len(name) >= 64 {
				name = name[:1] + name[64:]
			}
			left = append(left, parts[0]+"/"+name)
		}
		if len(parts) == 3 && parts[1] == "l" {
			left = append(left, "l/"+parts[2])
		}
		return err
	})
	want := strings.Fields(`l/A l/B l/C l/D overlay-containers/2 overlay-containers/volatile-containers.json overlay-images/1 overlay-images/images.json
		overlay-layers/a.tar-split.gz overlay-layers/b.tar-split.gz overlay-layers/c.tar-split.gz overlay-layers/d.tar-split.gz overlay-layers/layers.json
		overlay-layers/volatile-layers.json overlay/a overlay/b overlay/c overlay/d overlay/l`)
	slices.Sort(left)
	slices.Sort(want)
	if !slices.Equal(left, want) {
		t.Errorf("left %q\nnot  %q", left, want)
	}
	got, err := os.ReadFile(filepath.Join(root, "overlay-layers/layers.json"))
	if err != nil || string(got) != strings.Replace(layers, `,{"id":"`+id("e")+`"}`, "", 1) {
		t.Errorf("%s, %v", got, err)
	}

	// With a list that cannot be understood everything stays.
	for _, broken := range []string{"{", `[{"id":"../../etc"}]`, `{"version":2}`} {
		write("overlay-images/images.json", broken)
		if err := dropOrphans(root); err == nil {
			t.Errorf("%s was understood", broken)
		}
		if _, err := os.Stat(filepath.Join(root, "overlay", id("b"))); err != nil {
			t.Errorf("%s: %v", broken, err)
		}
	}
	if err := dropOrphans(t.TempDir()); err != nil {
		t.Errorf("an empty storage: %v", err)
	}
}
