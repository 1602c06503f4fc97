package podman

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// CgroupMode is how this machine's control groups are set up.
type CgroupMode string

// The ways to set control groups up. Hybrid has the controllers in version 1
// and an empty version 2 tree beside them; crun refuses it.
const (
	CgroupV1     CgroupMode = "v1"
	CgroupHybrid CgroupMode = "hybrid"
	CgroupV2     CgroupMode = "v2"
	CgroupNone   CgroupMode = "none"
)

// Cgroups is the set of control group trees that this machine has mounted.
type Cgroups struct {
	Mode CgroupMode
	// V1 is the mount point by controller name, e.g. memory to
	// /sys/fs/cgroup/memory; empty with v2.
	V1 map[string]string
	// V2 is the mount point of the unified tree, empty when there is none.
	V2 string
	// points are the mount points of all trees, those without a controller
	// (name=systemd) included: runtimes make groups in them too.
	points []string
	// roots says which part of a tree its mount point shows, "/" as a rule.
	roots map[string]string
}

// DetectCgroups reads what is mounted.
func DetectCgroups() (Cgroups, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return Cgroups{}, fmt.Errorf("mounts of this machine cannot be read: %w: mount /proc", err)
	}
	return parseCgroups(data), nil
}

func parseCgroups(mountinfo []byte) Cgroups {
	c := Cgroups{V1: map[string]string{}, roots: map[string]string{}, Mode: CgroupNone}
	controllers := 0
	for sc := bufio.NewScanner(bytes.NewReader(mountinfo)); sc.Scan(); {
		// proc_pid_mountinfo(5): id parent dev root point options [tags] - type source superoptions
		before, after, ok := strings.Cut(sc.Text(), " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 6 || len(g) < 3 {
			continue
		}
		root, point := f[3], f[4]
		if g[0] == "cgroup" || g[0] == "cgroup2" {
			c.points = append(c.points, point)
		}
		switch g[0] {
		case "cgroup2":
			if c.V2 == "" {
				c.V2 = point
				c.roots[""] = root
			}
		case "cgroup":
			for _, o := range strings.Split(g[2], ",") {
				if slices.Contains([]string{"memory", "pids", "cpu", "cpuacct", "cpuset", "devices", "freezer", "blkio"}, o) && c.V1[o] == "" {
					c.V1[o] = point
					c.roots[o] = root
					controllers++
				}
			}
		}
	}
	switch {
	case controllers > 0 && c.V2 != "":
		c.Mode = CgroupHybrid
	case controllers > 0:
		c.Mode = CgroupV1
	case c.V2 != "":
		c.Mode = CgroupV2
	}
	return c
}

// Dir returns the folder of a process's group for one controller, given the
// text of its /proc/PID/cgroup. It is empty when there is none.
func (c Cgroups) Dir(procCgroup []byte, controller string) string {
	for line := range strings.Lines(string(procCgroup)) {
		// cgroups(7): hierarchy:controllers:path
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 {
			continue
		}
		point, key := "", ""
		switch {
		case c.Mode == CgroupV2 && parts[0] == "0" && parts[1] == "":
			point = c.V2
		case c.Mode != CgroupV2 && slices.Contains(strings.Split(parts[1], ","), controller):
			point, key = c.V1[controller], controller
		default:
			continue
		}
		if point == "" {
			return ""
		}
		rel := parts[2]
		if root := c.roots[key]; root != "/" && root != "" {
			rel = strings.TrimPrefix(rel, root)
		}
		return filepath.Join(point, rel)
	}
	return ""
}

// Unified returns the folder of a process's group in the version 2 tree, given
// the text of its /proc/PID/cgroup. In a hybrid setup that tree has no
// controllers. It is empty when there is none.
func (c Cgroups) Unified(procCgroup []byte) string {
	for line := range strings.Lines(string(procCgroup)) {
		rel, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		if !ok || c.V2 == "" {
			continue
		}
		if root := c.roots[""]; root != "/" && root != "" {
			rel = strings.TrimPrefix(rel, root)
		}
		return filepath.Join(c.V2, rel)
	}
	return ""
}

// Points are the mount points of all trees, each once.
func (c Cgroups) Points() []string {
	points := slices.Clone(c.points)
	slices.Sort(points)
	return slices.Compact(points)
}

// Limits reports whether this process can limit what containers use, and if
// not, why.
func (c Cgroups) Limits() error {
	switch c.Mode {
	case CgroupNone:
		return fmt.Errorf("no control groups are mounted: mount them (mount -t cgroup2 none /sys/fs/cgroup), or boot with systemd")
	case CgroupV2:
		return c.limitsV2()
	}
	for _, want := range []string{"memory", "pids", "cpu"} {
		point := c.V1[want]
		if point == "" {
			return fmt.Errorf("control groups have no %s controller: mount it, or boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1)", want)
		}
		if unix.Access(point, unix.W_OK) != nil {
			return fmt.Errorf("%s may not be written by this user: version 1 control groups cannot be given to users, so run Quarry as root or boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1)", point)
		}
	}
	return nil
}

func (c Cgroups) limitsV2() error {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return fmt.Errorf("own control group cannot be read: %w: mount /proc", err)
	}
	dir := c.V2
	if os.Geteuid() != 0 || Rootless() {
		dir = c.Dir(own, "")
	}
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("control group %s cannot be read: %w", dir, err)
	}
	for _, want := range []string{"memory", "pids", "cpu"} {
		if !slices.Contains(strings.Fields(string(have)), want) {
			return fmt.Errorf("control group %s has no %s controller: delegate it (Delegate=yes in the unit that runs Quarry, or in user@.service)", dir, want)
		}
	}
	if unix.Access(dir, unix.W_OK) != nil {
		return fmt.Errorf("control group %s may not be written: put Delegate=yes in the unit that runs Quarry", dir)
	}
	return nil
}

// parent is where the containers' groups go, as podman wants it named.
func (c Cgroups) parent(farm string) string {
	if c.Mode == CgroupV2 && Rootless() {
		// Only the part of the tree that systemd delegated is writable.
		if own, err := os.ReadFile("/proc/self/cgroup"); err == nil {
			if dir := c.Dir(own, ""); dir != "" {
				return strings.TrimPrefix(filepath.Dir(dir), c.V2) + "/quarry-" + farm
			}
		}
	}
	return "/quarry-" + farm
}

// CPU is the folder of the control group that counts the processor time of all
// containers of a farm; "" where there can be none.
func (c Cgroups) CPU(farm string) string {
	point := c.V2
	if c.Mode != CgroupV2 {
		point = c.V1["cpuacct"]
	}
	if point == "" {
		return ""
	}
	return filepath.Join(point, c.parent(farm))
}

// Sweep removes the empty control groups that a farm left behind. Groups with
// processes in them stay.
func (c Cgroups) Sweep(farm string) {
	for _, point := range c.Points() {
		top := filepath.Join(point, c.parent(farm))
		if _, err := os.Stat(top); err != nil {
			continue
		}
		var dirs []string
		filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, d := range slices.Backward(dirs) {
			unix.Rmdir(d) // EBUSY while processes are in it
		}
	}
}

// left reports whether a farm still has control groups.
func (c Cgroups) left(farm string) bool {
	return slices.ContainsFunc(c.Points(), func(point string) bool {
		_, err := os.Stat(filepath.Join(point, c.parent(farm)))
		return err == nil
	})
}

// Rootless reports whether this process is root only of a user namespace, as
// inside `podman unshare`.
func Rootless() bool {
	if os.Geteuid() != 0 {
		return true
	}
	m, err := IDMap("/proc/self/uid_map")
	return err == nil && !(len(m) == 1 && m[0].Inside == 0 && m[0].Outside == 0 && m[0].Count == 1<<32-1)
}

// IDRange is one line of a uid_map or gid_map: Count ids from Inside on are
// those from Outside on in the namespace above.
type IDRange struct{ Inside, Outside, Count int64 }

// IDMap reads a /proc/PID/uid_map or gid_map (user_namespaces(7)).
func IDMap(path string) ([]IDRange, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var m []IDRange
	for line := range strings.Lines(string(data)) {
		var r IDRange
		if _, err := fmt.Sscan(line, &r.Inside, &r.Outside, &r.Count); err != nil {
			return nil, fmt.Errorf("%s holds %q, which is no id mapping: %w", path, line, err)
		}
		m = append(m, r)
	}
	return m, nil
}
