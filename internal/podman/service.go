package podman

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/internal/podman/deltree"
)

const socketName = "podman.sock"

// script is the first process of the service's namespaces. It must be a shell
// and not podman itself, because the first process has to reap what conmon
// leaves, which podman does not do. Its folders: $1 the host's folder, seen as
// $2/s from here on; $2/r is a tmpfs for what must not outlive the service.
const script = `set -e
mount --make-rslave /
mount -t proc proc /proc
dir=$1 base=$2 podman=$3
shift 3
mount -t tmpfs -o mode=0711,nosuid,nodev quarry "$base"
mkdir "$base/s" "$base/r"
mount --bind "$dir" "$base/s"
n=0
for store; do
	mkdir "$base/i$n"
	mount --bind "$store" "$base/i$n"
	n=$((n+1))
done
# Places of the host's podman and runtimes that no setting moves. What is made
# there is seen by this service only; the empty folders are all the host gets.
for d in /run/containers /run/runc /run/crun /var/lib/containers; do
	case "$dir/" in "$d"/*) continue ;; esac
	[ -d "$d" ] || mkdir -m 0700 "$d" 2>/dev/null || continue
	mount -t tmpfs -o mode=0700,nosuid,nodev quarry "$d" || :
done
trap 'kill $pid' TERM
: >"$base/podman"
mount --bind "$podman" "$base/podman"
"$base/podman" --log-level=warn system service -t 0 "unix://$base/s/` + socketName + `" </dev/null &
pid=$!
# When a container ends, its monitor starts the podman that made it once more,
# to tidy up. Nobody waits for that here: workspaces are removed at once, which
# does all of it, and a start of podman costs as much as half a container. So
# from now on there is nothing at that path but a program that ends.
while kill -0 $pid 2>/dev/null && ! [ -S "$base/s/` + socketName + `" ]; do sleep 0.01; done
mount --bind "$(command -v true | grep / || echo /bin/true)" "$base/podman" 2>/dev/null || :
wait $pid && status=0 || status=$?
if kill -0 $pid 2>/dev/null; then
	# The trap broke the wait off.
	wait $pid && status=0 || status=$?
fi
exit $status
`

// setup is everything that is decided before the service starts.
type setup struct {
	dir, base string
	podman    string
	runtime   string // path
	driver    string
	fuse      string // path of fuse-overlayfs when driver is that
	stores    []string
	env       []string
	cgroups   Cgroups
	farm      string
	lock      *os.File
}

func prepare(ctx context.Context, c *Conn) (_ *setup, err error) {
	s := &setup{dir: c.dir, farm: c.farm, lock: c.lock}
	defer func() {
		if err != nil {
			s.sweep()
		}
	}()
	if s.podman, err = FindPodman(c.cfg.Podman); err != nil {
		return nil, err
	}
	for _, store := range c.cfg.ImageStores {
		abs, err := filepath.Abs(store)
		if err != nil {
			return nil, err
		}
		if _, err := os.Stat(filepath.Join(abs, "overlay-images")); err != nil {
			return nil, fmt.Errorf("image store %s is no podman storage: %w: give the folder that holds overlay-images", store, err)
		}
		s.stores = append(s.stores, abs)
	}
	if s.base, err = runtimeBase(); err != nil {
		return nil, err
	}
	if s.cgroups, err = DetectCgroups(); err != nil {
		return nil, err
	}
	// An earlier service's processes are dying at this moment, if any live.
	if err := s.waitForDead(ctx); err != nil {
		return nil, err
	}
	for _, d := range []string{"root", "tmp", "hooks", "networks", "home/.config/containers"} {
		if err := os.MkdirAll(filepath.Join(s.dir, d), 0o700); err != nil {
			return nil, fmt.Errorf("podman's folder cannot be made: %w", err)
		}
	}
	// Downloads and imports that an earlier service left half-way.
	clearDir(filepath.Join(s.dir, "tmp"))
	if left, err := filepath.Glob(filepath.Join(globEscape(s.dir), "tmp-*")); err == nil {
		for _, p := range left {
			if !inUse(p) {
				deltree.Remove(p)
			}
		}
	}
	if err := c.dropBroken(filepath.Join(s.dir, "root")); err != nil {
		return nil, err
	}
	if err := dropOrphans(filepath.Join(s.dir, "root")); err != nil {
		c.log.Warn("layers that an earlier service left half-made cannot be removed", "error", err)
	}
	if s.driver, s.fuse, err = chooseDriver(c.cfg.Driver, s.dir); err != nil {
		return nil, err
	}
	if s.driver == "vfs" {
		c.log.Warn("neither overlay nor fuse-overlayfs works here: vfs copies the whole base for every build, and writes outside the staging directory cannot be seen", "cure", "apt-get install fuse-overlayfs, or put the state folder on ext4, xfs or btrfs")
	}
	if s.runtime, err = chooseRuntime(ctx, c.cfg.Runtime, s.dir, s.cgroups.parent(s.farm)); err != nil {
		return nil, err
	}
	s.env = s.environment()
	return s, s.writeConfig()
}

// FindPodman returns the path of the podman program.
func FindPodman(name string) (string, error) {
	if name == "" {
		name = "podman"
	}
	path, err := LookPath(name)
	if err != nil {
		return "", fmt.Errorf("podman is not installed (%w): apt-get install podman, or give its path in the configuration", err)
	}
	return path, nil
}

// LookPath finds a program as exec.LookPath does; it also looks where root's programs are, which a service's or a user's
// PATH often leaves out.
func LookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil || strings.Contains(name, "/") {
		return path, err
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin", "/usr/libexec/podman", "/usr/lib/podman"} {
		if p := filepath.Join(dir, name); unix.Access(p, unix.X_OK) == nil {
			return p, nil
		}
	}
	return "", err
}

// runtimeBase makes the empty folder over which every service mounts a tmpfs
// of its own, visible only to itself. Its path must not change from one start
// to the next: podman's database holds it.
func runtimeBase() (string, error) {
	var tried []error
	uid := os.Getuid()
	candidates := []string{"/run/quarry", os.Getenv("XDG_RUNTIME_DIR") + "/quarry", fmt.Sprintf("/tmp/.quarry-%d", uid)}
	if Rootless() {
		// Outside it is the user's own id that matters.
		if m, err := IDMap("/proc/self/uid_map"); err == nil && len(m) > 0 {
			candidates[2] = fmt.Sprintf("/tmp/.quarry-%d", m[0].Outside)
		}
	}
	for _, dir := range candidates {
		if !strings.HasPrefix(dir, "/") || dir == "/quarry" || len(dir) > 48 {
			continue
		}
		if err := os.Mkdir(dir, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
			tried = append(tried, err)
			continue
		}
		st, err := os.Lstat(dir)
		if err != nil {
			tried = append(tried, err)
			continue
		}
		if sys, ok := st.Sys().(*syscall.Stat_t); !st.IsDir() || !ok || int(sys.Uid) != uid {
			tried = append(tried, fmt.Errorf("%s is not a folder of this user", dir))
			continue
		}
		return dir, nil
	}
	return "", fmt.Errorf("no place for podman's run-time files: %w: make /run/quarry, or set XDG_RUNTIME_DIR", errors.Join(tried...))
}

// environment is all that podman gets to see of the daemon's own.
func (s *setup) environment() []string {
	env := []string{
		"PATH=" + os.Getenv("PATH") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"LC_ALL=C.UTF-8",
		"HOME=" + s.base + "/s/home",
		"TMPDIR=" + s.base + "/s/tmp",
		"CONTAINERS_CONF=" + s.base + "/s/containers.conf",
		"CONTAINERS_STORAGE_CONF=" + s.base + "/s/storage.conf",
		"CONTAINERS_REGISTRIES_CONF=" + s.base + "/s/registries.conf",
		"XDG_RUNTIME_DIR=" + s.base + "/r",
	}
	// So that podman inside `podman unshare` knows that it is already there.
	for _, k := range []string{"_CONTAINERS_USERNS_CONFIGURED", "_CONTAINERS_ROOTLESS_UID", "_CONTAINERS_ROOTLESS_GID"} {
		if v, ok := os.LookupEnv(k); ok {
			env = append(env, k+"="+v)
		}
	}
	return env
}

// writeConfig generates what podman reads in place of /etc/containers and
// /usr/share/containers.
func (s *setup) writeConfig() error {
	type m = map[string]any
	inside := func(p string) string { return s.base + "/s/" + p }
	name := filepath.Base(s.runtime)
	nofile, nproc := HardLimit(unix.RLIMIT_NOFILE), HardLimit(unix.RLIMIT_NPROC)
	conf := m{
		"containers": m{
			"log_driver": "none",
			"netns":      "none",
			// podman's own defaults may lie above what this process may grant.
			"default_ulimits": []string{fmt.Sprintf("nofile=%d:%d", nofile, nofile), fmt.Sprintf("nproc=%d:%d", nproc, nproc)},
			"default_sysctls": []string{},
			// Some distributions lay the host's subscription secrets into every container.
			"default_mounts_file": inside("mounts.conf"),
			"http_proxy":          false,
		},
		"engine": m{
			"cgroup_manager":     "cgroupfs",
			"events_logger":      "none",
			"lock_type":          "file", // the default shares /dev/shm/libpod_lock with the host's podman
			"runtime":            name,
			"runtimes":           m{name: []string{s.runtime}},
			"tmp_dir":            s.base + "/r/t",
			"image_copy_tmp_dir": inside("tmp"),
			"service_timeout":    0,
			"hooks_dir":          []string{inside("hooks")}, // not the host's
		},
		"network": m{"network_config_dir": inside("networks")},
	}
	options := m{}
	var stores []string
	for i := range s.stores {
		stores = append(stores, fmt.Sprintf("%s/i%d", s.base, i))
	}
	if stores != nil {
		options["additionalimagestores"] = stores
	}
	driver := s.driver
	if driver == "fuse-overlayfs" {
		driver = "overlay"
		options["overlay"] = m{"mount_program": s.fuse}
	}
	storage := m{"storage": m{"driver": driver, "graphroot": inside("root"), "runroot": s.base + "/r/c", "options": options,
		"rootless_storage_path": inside("root")}}

	for path, v := range map[string]any{"containers.conf": conf, "storage.conf": storage, "registries.conf": m{"unqualified-search-registries": []string{}}} {
		data, err := toml.Marshal(v)
		if err != nil {
			return err
		}
		if err := writeFile(filepath.Join(s.dir, path), data); err != nil {
			return err
		}
	}
	if err := writeFile(filepath.Join(s.dir, "mounts.conf"), nil); err != nil {
		return err
	}
	// podman refuses every image when no policy says otherwise, and a host may
	// have none. Images come only from files that the admin names.
	return writeFile(filepath.Join(s.dir, "home/.config/containers/policy.json"), []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`+"\n"))
}

func writeFile(path string, data []byte) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, data, 0o644); err != nil {
		return fmt.Errorf("podman's configuration cannot be written: %w", err)
	}
	return os.Rename(tmp, path)
}

// HardLimit is the hard resource limit of this process, the most it can grant
// to a container without CAP_SYS_RESOURCE. Limits above 2^20 are cut down to
// it: that is what the kernel allows for open files by default, and programs
// that close every possible descriptor would take minutes.
func HardLimit(resource int) uint64 {
	var r unix.Rlimit
	if err := unix.Getrlimit(resource, &r); err != nil {
		return 1024
	}
	return min(r.Max, 1<<20)
}

func (s *setup) hostPath(path string) string {
	if rest, ok := strings.CutPrefix(path, s.base+"/s/"); ok {
		return filepath.Join(s.dir, rest)
	}
	for i, store := range s.stores {
		if rest, ok := strings.CutPrefix(path, fmt.Sprintf("%s/i%d/", s.base, i)); ok {
			return filepath.Join(store, rest)
		}
	}
	return path
}

// waitForDead kills what may still run of an earlier service's containers and
// waits until it is gone.
func (s *setup) waitForDead(ctx context.Context) error {
	deadline := time.Now().Add(30 * time.Second)
	for {
		alive := 0
		for _, point := range s.cgroups.Points() {
			alive += killGroups(filepath.Join(point, s.cgroups.parent(s.farm)))
		}
		if alive == 0 {
			s.sweep()
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes of an earlier service do not end: look below control group %s", alive, s.cgroups.parent(s.farm))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (s *setup) sweep() { s.cgroups.Sweep(s.farm) }

// killGroups kills every process in the control groups at and below dir and
// returns how many it found.
func killGroups(dir string) (found int) {
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		procs, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		for _, f := range strings.Fields(string(procs)) {
			var pid int
			if _, err := fmt.Sscan(f, &pid); err == nil && pid > 1 {
				found++
				unix.Kill(pid, unix.SIGKILL)
			}
		}
		return nil
	})
	return found
}

// service is one run of podman.
type service struct {
	cmd  *exec.Cmd
	done chan struct{}
	out  *lineLog
	err  error // of Wait; valid once done is closed
}

// run starts the service; it answers only a little later.
func (s *setup) run(log *slog.Logger) (*service, error) {
	os.Remove(filepath.Join(s.dir, socketName))
	args := append([]string{"-c", script, "quarry-podman", s.dir, s.base, s.podman}, s.stores...)
	cmd := exec.Command("/bin/sh", args...)
	cmd.Env = s.env
	cmd.Dir = "/"
	svc := &service{cmd: cmd, done: make(chan struct{}), out: &lineLog{log: log}}
	cmd.Stdout, cmd.Stderr = svc.out, svc.out
	cmd.WaitDelay = 2 * time.Second
	if s.lock != nil {
		// The service holds the lock too, so that a daemon that follows on a
		// killed one waits until all of it is gone.
		cmd.ExtraFiles = []*os.File{s.lock}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
		Setpgid:    true, // a ^C on the terminal is for the daemon
	}
	started := make(chan error)
	go func() {
		// The kernel sends Pdeathsig when the thread that forked ends, so this
		// one must stay until the service is gone.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			svc.err = cmd.Wait()
			close(svc.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("podman cannot be started in namespaces of its own: %w: run Quarry as root, or as a user inside `podman unshare`", err)
	}
	return svc, nil
}

// stop ends the service, politely for as long as given, then by force.
func (s *service) stop(grace time.Duration) {
	if grace > 0 {
		s.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-s.done:
			return
		case <-time.After(grace):
		}
	}
	s.cmd.Process.Kill()
	<-s.done
}

func (s *service) status() string {
	select {
	case <-s.done:
		if s.err != nil {
			return s.err.Error()
		}
		return "exit status 0"
	default:
		return "running"
	}
}

func (s *service) tail() string { return s.out.tail() }

// lineLog logs podman's output line by line and keeps the last few lines.
type lineLog struct {
	log  *slog.Logger
	mu   sync.Mutex
	rest []byte
	last []string
}

var noise = regexp.MustCompile(`^@ - - \[|level=(debug|info)|Request Failed\(Not Found\)`)

func (l *lineLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, p...)
	for {
		i := bytes.IndexByte(l.rest, '\n')
		if i < 0 {
			if len(l.rest) > 64<<10 {
				l.rest = nil
			}
			return len(p), nil
		}
		line := strings.TrimSpace(string(l.rest[:i]))
		l.rest = l.rest[i+1:]
		if line == "" || noise.MatchString(line) {
			continue
		}
		l.log.Debug("podman says", "line", line)
		l.last = append(l.last, line)
		if len(l.last) > 10 {
			l.last = l.last[1:]
		}
	}
}

func (l *lineLog) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.last) == 0 {
		return "it said nothing"
	}
	return strings.Join(l.last, "; ")
}

// takeLock makes sure that only one daemon uses the folder.
func (c *Conn) takeLock(ctx context.Context) error {
	f, err := os.OpenFile(filepath.Join(c.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("podman's folder cannot be locked: %w", err)
	}
	c.lock = f
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("%s cannot be locked: %w", f.Name(), err)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is in use by another Quarry: stop it, or give another state folder", c.dir)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// inUse reports whether a service runs in a state folder.
func inUse(state string) bool {
	f, err := os.Open(filepath.Join(state, "podman", "lock"))
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// farmID reads the farm's name, or makes it. It is kept in a file and not
// derived from the path, so that a state folder that was moved still finds
// what it left behind.
func farmID(dir string) (string, error) {
	path := filepath.Join(dir, "farm")
	if data, err := os.ReadFile(path); err == nil {
		if id := strings.TrimSpace(string(data)); regexp.MustCompile(`^[0-9a-f]{12}$`).MatchString(id) {
			return id, nil
		}
	}
	b := make([]byte, 6)
	rand.Read(b)
	id := hex.EncodeToString(b)
	return id, writeFile(path, []byte(id+"\n"))
}

func clearDir(dir string) {
	deltree.Clear(dir)
}

// globEscape makes a path stand for itself in a pattern.
func globEscape(path string) string {
	return strings.NewReplacer(`*`, `\*`, `?`, `\?`, `[`, `\[`, `\`, `\\`).Replace(path)
}
