// Package doctor finds out whether Quarry can work on this machine, and says
// for each thing that is wrong how to cure it. It tries things rather than
// looking for names: a runtime is fine when it runs a container.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/internal/podman"
	"github.com/Morphux/quarry/internal/podman/deltree"
)

// Status is how a check came out.
type Status string

// How checks come out. A warning does not keep Quarry from working.
const (
	OK   Status = "ok"
	Warn Status = "warn"
	Fail Status = "fail"
)

// Finding is what one check found.
type Finding struct {
	Name   string `json:"name"` // e.g. podman, arch aarch64
	Status Status `json:"status"`
	Detail string `json:"detail"`
	Cure   string `json:"cure,omitempty"`  // what to do; always there when Status is not ok
	Fixed  bool   `json:"fixed,omitempty"` // by this run
}

// Options say what Quarry is meant to do here.
type Options struct {
	Podman  podman.Config // as the daemon would use it
	Archs   []string      // that are to be built
	Refs    []string      // bases that channels stand on, ARCH or ARCH:NAME; none: one of each arch
	Setups  []string      // channels whose setup runs commands, which have a network
	Memory  int64         // bytes that one build may use; 0: not checked
	Workers int           // builds at once
	Guest   string        // program that is run in workspaces, as a rule Quarry itself
	UIDBase int           // first of the builds' ids on the host; 0: 100000
	Listen  string        // address for SSH; empty: not checked
	Socket  string        // of the daemon; tells whether it is the daemon who listens
	MinFree int64         // bytes that must be free in the state folder
	Fix     bool          // mend what can be mended without a package manager
	Only    []string      // names of checks to make; none: all
	// Consent is asked before anything of the machine is changed, with a sentence
	// that says what would be; nil: nobody consents.
	Consent func(would string) bool
	// Troubles tells what is wrong with bases and instances, as far as the farm
	// knows; nil: nobody is asked.
	Troubles func(context.Context) ([]Trouble, error)
	// Mail reaches MailServer, which letters are sent through; nil: there is none.
	Mail       func(context.Context) error
	MailServer string
}

// Trouble is something wrong with a base or an instance.
type Trouble struct {
	What   string // e.g. instance testing/x86_64
	Why    string
	Cure   string
	Builds bool // go on all the same, e.g. from the instance that was there before
}

// check is one thing to find out. Most look at nothing but the machine.
type check struct {
	name string
	run  func(ctx context.Context, o *Options) Finding
}

// Run makes all checks and reports each as soon as it is known. Only ctx ends
// it early.
func Run(ctx context.Context, o Options, report func(Finding)) []Finding {
	if report == nil {
		report = func(Finding) {}
	}
	var all []Finding
	do := func(checks ...check) {
		for _, c := range checks {
			if ctx.Err() != nil || len(o.Only) > 0 && !slices.Contains(o.Only, c.name) {
				continue
			}
			f := c.run(ctx, &o)
			f.Name = c.name
			f.Detail, f.Cure = oneLine(f.Detail), oneLine(f.Cure)
			all = append(all, f)
			report(f)
		}
	}
	do(check{"kernel", kernel}, check{"podman", podmanProgram}, check{"runtime", runtimes}, check{"cgroups", cgroups},
		check{"limits", limits}, check{"namespaces", namespaces}, check{"seccomp", seccomp}, check{"ids", ids},
		check{"storage", storage}, check{"disk", disk}, check{"memory", memory}, check{"clock", clock},
		check{"git", git}, check{"guest", guest}, check{"ssh", listen},
		check{"mmdebstrap", mmdebstrap}, check{"slirp4netns", slirp4netns}, check{"binfmt", binfmt})

	if o.Mail != nil {
		do(check{"mail", mail})
	}

	// What follows asks for the bases, which takes podman's service.
	b := &bench{o: &o}
	defer b.close(ctx)
	archs := slices.Clone(o.Archs)
	if ctx.Err() == nil && (len(o.Only) == 0 || slices.ContainsFunc(o.Only, func(name string) bool { return strings.HasPrefix(name, "arch ") })) {
		bases, _ := b.bases(ctx) // the check build says why there are none
		for _, base := range bases {
			if !slices.Contains(archs, base.Arch) {
				archs = append(archs, base.Arch)
			}
		}
	}
	for _, arch := range archs {
		do(check{"arch " + arch, func(ctx context.Context, o *Options) Finding { return b.arch(ctx, arch) }})
	}
	do(check{"build", b.build})
	b.close(ctx) // who tells of troubles may start a service too
	ts := troubles(ctx, &o)
	if slices.Contains(o.Only, "systems") || len(ts) == 1 && ts[0].name == "systems" {
		o.Only = nil // that is all of them; and where none is in trouble, whatever was named
	}
	do(ts...)
	return all
}

// Failed counts the failures.
func Failed(all []Finding) (n int) {
	for _, f := range all {
		if f.Status == Fail {
			n++
		}
	}
	return n
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

func ok(format string, a ...any) Finding {
	return Finding{Status: OK, Detail: fmt.Sprintf(format, a...)}
}

func bad(status Status, cure, format string, a ...any) Finding {
	return Finding{Status: status, Detail: fmt.Sprintf(format, a...), Cure: cure}
}

// failure takes an error of the other packages, which end in their cure, apart.
func failure(status Status, err error, cure string) Finding {
	return Finding{Status: status, Detail: err.Error(), Cure: cure}
}

func output(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute) // of a machine that is very busy
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err
}

var versionRE = regexp.MustCompile(`(\d+)\.(\d+)(\.\d+)?`)

// atLeast reports whether the first version in text is major.minor or later.
func atLeast(text string, major, minor int) (version string, ok bool) {
	m := versionRE.FindStringSubmatch(text)
	if m == nil {
		return "", false
	}
	a, _ := strconv.Atoi(m[1])
	b, _ := strconv.Atoi(m[2])
	return m[0], a > major || a == major && b >= minor
}

func kernel(ctx context.Context, o *Options) Finding {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return failure(Fail, err, "run Quarry on Linux")
	}
	release := unix.ByteSliceToString(u.Release[:])
	// pidfd_open and clone3 are of 5.3; overlay in user namespaces of 5.11.
	if _, fine := atLeast(release, 5, 4); !fine {
		return bad(Fail, "boot Linux 5.4 or later", "Linux %s is too old for pidfd_open", release)
	}
	return ok("Linux %s on %s", release, podman.HostArch())
}

func podmanProgram(ctx context.Context, o *Options) Finding {
	if o.Podman.URI != "" {
		return ok("the service at %s is used", o.Podman.URI)
	}
	path, err := podman.FindPodman(o.Podman.Podman)
	if err != nil {
		return failure(Fail, err, "apt-get install podman")
	}
	text, err := output(ctx, path, "--version")
	if err != nil {
		return bad(Fail, "reinstall podman", "%s does not run: %v", path, err)
	}
	version, fine := atLeast(text, 4, 0)
	if !fine {
		return bad(Fail, "install podman 4.0 or later", "podman %s is too old for the bindings in use", version)
	}
	return ok("%s (%s)", version, path)
}

func runtimes(ctx context.Context, o *Options) Finding {
	if o.Podman.URI != "" {
		return ok("the service's own choice is used")
	}
	names := []string{"crun", "runc"}
	if o.Podman.Runtime != "" {
		names = []string{o.Podman.Runtime}
	}
	tmp, err := os.MkdirTemp("", "quarry-doctor-")
	if err != nil {
		return failure(Fail, err, "make room in "+os.TempDir()+", or set TMPDIR")
	}
	defer deltree.Remove(tmp)
	var works, not []string
	for _, name := range names {
		path, err := podman.LookPath(name)
		if err != nil {
			not = append(not, name+" is not installed")
			continue
		}
		farm := "doctor" + strconv.Itoa(os.Getpid())
		if err := podman.TryRuntime(ctx, path, tmp, "/quarry-"+farm); err != nil {
			not = append(not, err.Error())
		} else {
			version, _ := output(ctx, path, "--version")
			v, _ := atLeast(version, 0, 0)
			works = append(works, strings.TrimSpace(name+" "+v))
		}
		if cg, err := podman.DetectCgroups(); err == nil {
			cg.Sweep(farm)
		}
	}
	if len(works) == 0 {
		return bad(Fail, "apt-get install runc (crun wants cgroup v2)", "none ran a container: %s", strings.Join(not, "; "))
	}
	detail := strings.Join(works, " and ") + " ran a container"
	if len(works) > 1 {
		detail += ", the first is used"
	}
	if len(not) > 0 {
		detail += " (" + strings.Join(not, "; ") + ")"
	}
	return ok("%s", detail)
}

func cgroups(ctx context.Context, o *Options) Finding {
	cg, err := podman.DetectCgroups()
	if err != nil {
		return failure(Fail, err, "mount /proc")
	}
	if err := cg.Limits(); err != nil {
		detail, cure, _ := strings.Cut(err.Error(), ": ")
		status := Fail
		if podman.Rootless() {
			// It works, only without limits; the daemon says so too.
			status = Warn
			detail = "builds run without limits on memory, processes and CPU: " + detail
		}
		return bad(status, cure, "%s", detail)
	}
	return ok("%s, with memory, pids and cpu", cg.Mode)
}

func limits(ctx context.Context, o *Options) Finding {
	nofile, nproc := podman.HardLimit(unix.RLIMIT_NOFILE), podman.HardLimit(unix.RLIMIT_NPROC)
	detail := fmt.Sprintf("%d open files and %d processes at most", nofile, nproc)
	if !hasCap(unix.CAP_SYS_RESOURCE) {
		detail += "; without CAP_SYS_RESOURCE builds get no more than that either"
	}
	if nofile < 1024 || nproc < 1024 {
		return bad(Fail, "raise them: LimitNOFILE= and LimitNPROC= in the unit, or ulimit -Hn 65536 -Hu 65536 before the start", "%s: too little to build with", detail)
	}
	return ok("%s", detail)
}

func hasCap(c int) bool {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		if hex, found := strings.CutPrefix(line, "CapEff:"); found {
			mask, _ := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			return mask&(1<<c) != 0
		}
	}
	return false
}

func namespaces(ctx context.Context, o *Options) Finding {
	data, err := os.ReadFile("/proc/sys/user/max_user_namespaces")
	if err != nil {
		return bad(Fail, "boot a kernel with CONFIG_USER_NS", "this kernel has no user namespaces")
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil && n < 64 {
		return bad(Fail, "sysctl user.max_user_namespaces=96000", "%d user namespaces may exist, and every build wants one", n)
	}
	if os.Geteuid() == 0 && !podman.Rootless() {
		return ok("as root, each build in a user namespace of its own")
	}
	if os.Geteuid() != 0 {
		return bad(Fail, "start it as: podman unshare quarry ...", "Quarry runs as a plain user outside of a user namespace, where what builds write could not be read")
	}
	for _, name := range []string{"newuidmap", "newgidmap"} {
		if _, err := podman.LookPath(name); err != nil {
			return bad(Fail, "apt-get install uidmap", "%s is missing", name)
		}
	}
	return ok("rootless, inside podman unshare")
}

func seccomp(ctx context.Context, o *Options) Finding {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil || !strings.Contains(string(data), "Seccomp:") {
		return bad(Fail, "boot a kernel with CONFIG_SECCOMP_FILTER", "this kernel has no system call filters")
	}
	for _, p := range podman.SeccompSources() {
		if _, err := os.Stat(p); err == nil {
			return ok("from %s, without namespaces, mounts and keyrings", p)
		}
	}
	return bad(Warn, "apt-get install golang-github-containers-common", "no profile to start from: podman's built-in one lets builds make namespaces")
}

// ids looks whether somebody else uses the ids that builds run under.
func ids(ctx context.Context, o *Options) Finding {
	base, count := o.UIDBase, 65536
	if base == 0 {
		base = 100000
	}
	if podman.Rootless() {
		m, err := podman.IDMap("/proc/self/uid_map")
		if err != nil {
			return failure(Fail, err, "mount /proc")
		}
		most := int64(0)
		for _, r := range m {
			most = max(most, r.Count)
		}
		if most < 1000 {
			return bad(Fail, "usermod --add-subuids 200000-265535 --add-subgids 200000-265535 USER, then podman system migrate", "this user has %d subordinate ids", most)
		}
		return ok("%d subordinate ids", most)
	}
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // nobody has any
		}
		for line := range strings.Lines(string(data)) {
			f := strings.Split(strings.TrimSpace(line), ":")
			if len(f) != 3 {
				continue
			}
			first, err1 := strconv.Atoi(f[1])
			n, err2 := strconv.Atoi(f[2])
			if err1 == nil && err2 == nil && first < base+count && base < first+n && f[0] != "containers" && f[0] != "root" {
				return bad(Warn, "set podman.id_base to ids that nobody has, e.g. 1000000000",
					"%s gives ids from %d on to %s, who could signal builds and read what they write; builds run under %d to %d", file, first, f[0], base, base+count-1)
			}
		}
	}
	return ok("builds run under %d to %d, which %s", base, base+count-1, "no user has")
}

func storage(ctx context.Context, o *Options) Finding {
	if o.Podman.URI != "" {
		return ok("the service's own")
	}
	if err := os.MkdirAll(o.Podman.State, 0o755); err != nil {
		return failure(Fail, err, "give a state folder that may be written")
	}
	driver, err := podman.TryDriver(o.Podman.Driver, o.Podman.State)
	switch {
	case err != nil:
		return failure(Fail, err, "put the state folder on ext4, xfs or btrfs, or apt-get install fuse-overlayfs")
	case driver == "vfs":
		return bad(Warn, "apt-get install fuse-overlayfs, or put the state folder on ext4, xfs or btrfs",
			"only vfs works in %s: it copies the whole base for every build", o.Podman.State)
	case driver == "fuse-overlayfs":
		return ok("fuse-overlayfs in %s; the kernel's own overlay, which is faster, does not work there", o.Podman.State)
	}
	return ok("%s in %s", driver, o.Podman.State)
}

func disk(ctx context.Context, o *Options) Finding {
	var st unix.Statfs_t
	dir := o.Podman.State
	for unix.Statfs(dir, &st) != nil {
		if dir == filepath.Dir(dir) {
			return bad(Fail, "give a state folder that exists", "%s cannot be looked at", o.Podman.State)
		}
		dir = filepath.Dir(dir)
	}
	free := int64(st.Bavail) * st.Bsize
	inodes := "inodes without end"
	if st.Files > 0 {
		inodes = fmt.Sprintf("%d inodes", st.Ffree)
	}
	detail := fmt.Sprintf("%s and %s free in %s", human.Size(free), inodes, o.Podman.State)
	least := max(o.MinFree, 64<<20)
	switch {
	case free < least, st.Files > 0 && st.Ffree < 10000:
		return bad(Fail, "make room, or move the state folder (state in the configuration)", "%s: builds want %s", detail, human.Size(least))
	case free < 5<<30:
		return bad(Warn, "make room: a base takes 0.5 GiB, and a large build more than one would think", "%s", detail)
	}
	return ok("%s", detail)
}

func git(ctx context.Context, o *Options) Finding {
	path, err := exec.LookPath("git")
	if err != nil {
		return failure(Fail, err, "apt-get install git")
	}
	text, err := output(ctx, path, "version")
	if err != nil {
		return bad(Fail, "reinstall git", "%s does not run: %v", path, err)
	}
	// Push options are of 2.10, protocol 2 of 2.18, core.fsync of 2.36 (which
	// older ones ignore).
	version, fine := atLeast(text, 2, 18)
	if !fine {
		return bad(Fail, "install git 2.18 or later", "git %s has no protocol version 2", version)
	}
	for _, sub := range []string{"receive-pack", "upload-pack"} {
		if dir, err := output(ctx, path, "--exec-path"); err == nil {
			if _, err := os.Stat(filepath.Join(dir, "git-"+sub)); err != nil {
				if _, err := exec.LookPath("git-" + sub); err != nil {
					return bad(Fail, "reinstall git", "git %s is missing", sub)
				}
			}
		}
	}
	return ok("%s (%s)", version, path)
}

// listen looks whether the SSH port is free, or the daemon's.
func listen(ctx context.Context, o *Options) Finding {
	if o.Listen == "" {
		return ok("not served")
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.Listen)
	if err == nil {
		l.Close()
		return ok("%s is free", o.Listen)
	}
	if o.Socket != "" {
		if c, derr := net.DialTimeout("unix", o.Socket, time.Second); derr == nil {
			c.Close()
			return ok("%s is in use, as a Quarry runs", o.Listen)
		}
	}
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return bad(Fail, "stop what listens there (ss -ltnp shows it), or set ssh.listen", "%s is taken by another program", o.Listen)
	case errors.Is(err, unix.EACCES):
		return bad(Fail, "use a port from 1024 on (ssh.listen)", "%s may not be listened on by this user", o.Listen)
	}
	return bad(Fail, "set ssh.listen to an address of this machine, e.g. 127.0.0.1:2222", "%v", err)
}
