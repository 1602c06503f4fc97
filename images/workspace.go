package images

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containers/common/libnetwork/types"
	"github.com/containers/podman/v4/pkg/bindings/containers"
	"github.com/containers/podman/v4/pkg/bindings/system"
	"github.com/containers/podman/v4/pkg/specgen"
	"github.com/containers/storage/pkg/idtools"
	storage "github.com/containers/storage/types"
	spec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	quarry "github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/podman"
)

// capabilities that the root of a workspace keeps, over its own user namespace
// only. Everything else is dropped: no network (there is none), no mounts, no
// devices, no tracing of others, no file capabilities (SETFCAP: artifacts do
// not carry them, so a build that sets one should fail and not lose it
// silently).
var capabilities = []string{
	"CHOWN",        // install -o, chown and tar -p in an install step
	"DAC_OVERRIDE", // root writes into read-only files and folders, and makefiles rely on it
	"FOWNER",       // chmod and touch of what was just given to another owner
	"FSETID",       // the setgid bit stays when such a file is written
	"SETUID",       // tests that run as another user, package scripts with su
	"SETGID",
	"KILL", // the guest ends those other users' processes between steps
}

// Workspace returns a clean workspace with its guest connected: one of those
// that are kept ready for the channel and arch, else one that is made now from
// their instance. Errors are the farm's fault, except that a *NoBaseError says
// that somebody must load a base first.
func (s *Store) Workspace(ctx context.Context, want Spec) (*Workspace, error) {
	for try := 0; ; try++ {
		w, err := s.workspace(ctx, want)
		if try == 2 || ctx.Err() != nil || !errors.Is(err, podman.ErrGone) && !imageGone(err) {
			return w, err
		}
		// The service died under it and is being started again, or somebody
		// removed its image, which is looked up anew. Nothing of the build has
		// run, so nothing speaks against another try at once.
		s.log.With(want.About...).Warn("making a workspace once more", "workspace", want.Name, "error", err)
	}
}

func (s *Store) workspace(ctx context.Context, want Spec) (*Workspace, error) {
	began := time.Now()
	if err := quarry.CheckUser(want.Name); err != nil {
		return nil, fmt.Errorf("workspace: %w", err)
	}
	if err := quarry.CheckArch(want.Arch); err != nil {
		return nil, fmt.Errorf("workspace: %w", err)
	}
	limits := want.Limits.or(s.limits)
	if s.limited != nil && limits.NProc == 0 {
		limits.NProc = uint64(max(limits.Pids, 0)) // no cgroup counts here: this is all there is
	}
	limits = limits.fit()
	if err := limits.check(); err != nil {
		return nil, err
	}
	emulation, err := Emulation(want.Arch)
	if err != nil {
		return nil, err
	}
	base, inst, err := s.ground(ctx, want.Channel, want.Arch)
	if err != nil {
		return nil, err
	}
	var w *Workspace
	// What cannot be changed in a container that runs.
	if !want.Network && limits.Shm == s.wide().Shm {
		w = s.pool.take(ctx, env{want.Channel, want.Arch}, inst, want, limits)
	}
	if w == nil {
		w = s.blank(env{want.Channel, want.Arch}, base, inst, emulation)
		w.Name, w.Limits, w.log = want.Name, limits, s.log.With(want.About...)
		if err := s.pool.makeAside(ctx, w, want.Network); err != nil {
			return nil, err
		}
	}
	w.Made.Take = time.Since(began)
	s.pool.opened(w)
	w.watch()
	return w, nil
}

// ground finds what a workspace is made from: the instance of its channel and
// arch, which is the base where the channel has no setup.
func (s *Store) ground(ctx context.Context, channel, arch string) (Base, Instance, error) {
	inst, err := s.instance(ctx, channel, arch)
	return inst.Base, inst, err
}

// blank is a workspace of which nothing is made yet.
func (s *Store) blank(e env, base Base, inst Instance, emulation string) *Workspace {
	return &Workspace{
		Arch: e.arch, Channel: e.channel, Base: base, Instance: inst, Emulation: emulation,
		UID: s.opts.UIDBase, GID: s.opts.UIDBase, Runtime: s.conn.Runtime(),
		store: s, log: s.log, gen: s.conn.Generation(), pid: -1, initFD: -1, stop: func() {},
	}
}

// create makes the container of a blank workspace that has its name and limits,
// starts it and waits for its guest. Nothing is left of it when it fails.
func (s *Store) create(ctx context.Context, w *Workspace, network bool) (err error) {
	if s.opts.Guest == "" {
		return errors.New("workspaces need a guest program: set Options.Guest")
	}
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, s.opts.StartTimeout,
		fmt.Errorf("workspace %s was not ready after %v: see quarry doctor", w.Name, s.opts.StartTimeout))
	defer cancel()

	// Which build it is for may not be known yet.
	id := random()
	w.Dir = filepath.Join(s.opts.WorkDir, id)
	w.container = "quarry-" + s.conn.Farm() + "-" + id
	defer func() {
		if err != nil {
			if cause := context.Cause(ctx); cause != nil && ctx.Err() == context.DeadlineExceeded {
				err = fmt.Errorf("%w (%w)", cause, err)
			}
			clean, stop := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
			defer stop()
			w.Close(clean)
		}
	}()
	s.mu.Lock()
	s.open[w] = true
	s.mu.Unlock()

	listener, err := s.makeDir(w)
	if err != nil {
		return err
	}
	defer listener.Close()

	call, err := s.conn.Context(ctx)
	if err != nil {
		return err
	}
	// A create that is broken off may still leave a container of this name.
	w.asked = true
	made, err := containers.CreateWithSpec(call, s.container(w, network), nil)
	if err != nil {
		if imageGone(err) {
			s.forget(w.Base.Ref()) // somebody removed it behind our back
			s.forgetInstance(w.Channel, w.Arch)
		}
		return fmt.Errorf("workspace %s cannot be made: %w", w.Name, s.blame(w.gen, err))
	}
	w.ContainerID = made.ID
	w.Made.Create = time.Since(began)

	mark := time.Now()
	if err := containers.Start(call, made.ID, nil); err != nil {
		return fmt.Errorf("workspace %s cannot be started: %w", w.Name, s.blame(w.gen, err))
	}
	w.Made.Start = time.Since(mark)

	mark = time.Now()
	inspected := make(chan error, 1)
	go func() { inspected <- w.inspectUpper(call) }()
	err = w.accept(ctx, listener)
	if ierr := <-inspected; err == nil {
		err = ierr
	}
	if err != nil {
		return err
	}
	w.Made.Handshake = time.Since(mark)
	if s.conn.Lost(w.gen) {
		return fmt.Errorf("workspace %s: %w", w.Name, podman.ErrGone)
	}
	return nil
}

// blame finds out whether a refusal is due to the service dying: while it is
// being killed it can still say that its helpers have failed. It says no more then.
func (s *Store) blame(gen int64, err error) error {
	if podman.Code(err) != 500 {
		return s.explain(gone(err))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	call, lost := s.conn.Context(ctx)
	if lost == nil {
		_, lost = system.Version(call, nil)
	}
	if s.conn.Lost(gen) || podman.IsGone(lost) {
		return fmt.Errorf("%w: %w", podman.ErrGone, err)
	}
	return s.explain(err)
}

func random() string {
	b := make([]byte, 6)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// makeDir makes the workspace's own folder and listens in it for the guest.
func (s *Store) makeDir(w *Workspace) (*net.UnixListener, error) {
	if err := os.Mkdir(w.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("workspace folder cannot be made: %w", s.explain(err))
	}
	if err := os.Chown(w.Dir, w.UID, w.GID); err != nil {
		return nil, fmt.Errorf("workspace folder cannot be given to its root: %w: run Quarry as root, or inside `podman unshare`", err)
	}
	dir, err := os.Open(w.Dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	// The folder's path may be longer than the 107 bytes of a socket's.
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), SocketName)})
	if err != nil {
		return nil, fmt.Errorf("workspace's socket cannot be made: %w", err)
	}
	listener.SetUnlinkOnClose(false) // that path is no longer true by then
	if err := os.Lchown(filepath.Join(w.Dir, SocketName), w.UID, w.GID); err != nil {
		listener.Close()
		return nil, err
	}
	return listener, nil
}

// mapIDs gives a container the user namespace of workspaces.
func (s *Store) mapIDs(g *specgen.SpecGenerator) {
	ids := []idtools.IDMap{{ContainerID: 0, HostID: s.opts.UIDBase, Size: s.opts.UIDCount}}
	g.UserNS = specgen.Namespace{NSMode: specgen.Private}
	g.IDMappings = &storage.IDMappingOptions{UIDMap: ids, GIDMap: ids}
}

// container is the whole of what podman is asked for.
func (s *Store) container(w *Workspace, network bool) *specgen.SpecGenerator {
	l := w.Limits
	g := specgen.NewSpecGenerator(w.Instance.Image[len("sha256:"):], false)
	g.Name = w.container
	g.Labels = map[string]string{labelFarm: s.conn.Farm(), labelFor: env{w.Channel, w.Arch}.String(), labelArch: w.Arch}

	// Whatever the image says of itself does not count.
	g.Entrypoint = []string{GuestPath}
	g.Command = []string{"guest", HomePath + "/" + SocketName}
	g.User = "0:0"
	g.WorkDir = "/"
	g.ImageVolumeMode = "ignore"
	g.UnsetEnvAll = true
	g.Umask = "0022"
	zero := uint(0)
	g.StopTimeout = &zero
	g.RestartPolicy = "no"
	g.Systemd = "false"
	g.SdNotifyMode = "ignore"
	g.LogConfiguration = &specgen.LogConfig{Driver: "none"}

	// Nothing of the host shows.
	g.Hostname = "quarry"
	g.UseImageHosts = true
	g.UseImageResolvConf = !network
	g.HTTPProxy = false
	g.Mounts = []spec.Mount{
		{Destination: HomePath, Type: "bind", Source: w.Dir, Options: []string{"bind", "rw", "nosuid", "nodev", "private"}},
		{Destination: GuestPath, Type: "bind", Source: s.opts.Guest, Options: []string{"bind", "ro", "nosuid", "nodev", "private"}},
	}
	g.ShmSize = &l.Shm

	s.mapIDs(g)
	for _, ns := range []*specgen.Namespace{&g.PidNS, &g.IpcNS, &g.UtsNS, &g.CgroupNS} {
		*ns = specgen.Namespace{NSMode: specgen.Private}
	}
	g.NetNS = specgen.Namespace{NSMode: specgen.NoNetwork}
	if network {
		// Not a bridge: that would need the host's forwarding and firewall.
		g.NetNS = specgen.Namespace{NSMode: specgen.Slirp}
		g.PortMappings = []types.PortMapping{}
	}
	g.NoNewPrivileges = true
	g.CapDrop = []string{"ALL"}
	g.CapAdd = capabilities
	g.SeccompProfilePath = s.conn.Seccomp()
	// The folder of a workspace is not relabelled, so on a SELinux host the
	// label must not matter; the user namespace and seccomp do not depend on it.
	g.SelinuxOpts = []string{"disable"}

	same := func(name string, n uint64) spec.POSIXRlimit { return spec.POSIXRlimit{Type: name, Hard: n, Soft: n} }
	g.Rlimits = []spec.POSIXRlimit{
		same("NOFILE", l.NoFile), same("NPROC", l.NProc),
		same("FSIZE", uint64(l.FileSize)), same("CORE", 0),
	}
	if s.limited == nil {
		period := uint64(100000)
		quota := int64(l.CPUs * float64(period))
		memory := &spec.LinuxMemory{Limit: &l.Memory}
		if swapLimited(s.cgroups) {
			memory.Swap = &l.Memory // memory and swap together
		}
		g.ResourceLimits = &spec.LinuxResources{
			Memory: memory,
			Pids:   &spec.LinuxPids{Limit: l.Pids},
			CPU:    &spec.LinuxCPU{Period: &period, Quota: &quota},
		}
		g.CgroupParent = s.conn.CgroupParent()
	} else if s.conn.Runtime() != "runc" {
		// runc refuses to be told, but goes without where it has no right.
		g.CgroupsMode = "disabled"
	}
	// The layer is thrown away: nothing of it needs to reach the disk.
	g.Volatile = true
	return g
}

// accept waits for the guest, and closes the door behind it: what the build
// runs later finds no socket.
func (w *Workspace) accept(ctx context.Context, listener *net.UnixListener) error {
	stop := context.AfterFunc(ctx, func() { listener.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	// A guest that cannot even start never connects, so look now and then.
	var conn *net.UnixConn
	for wait := 500 * time.Millisecond; ; wait *= 2 {
		listener.SetDeadline(time.Now().Add(wait))
		if ctx.Err() != nil {
			return fmt.Errorf("workspace %s is not ready: %w", w.Name, ctx.Err())
		}
		var err error
		if conn, err = listener.AcceptUnix(); err == nil {
			break
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("workspace %s: its guest cannot be waited for: %w", w.Name, err)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("workspace %s is not ready: %w", w.Name, ctx.Err())
		}
		if w.store.conn.Lost(w.gen) {
			return fmt.Errorf("workspace %s: %w", w.Name, podman.ErrGone)
		}
		if d, err := w.inspectDeath(ctx); err != nil {
			return err
		} else if d.Dead {
			return fmt.Errorf("workspace %s: its guest ended with status %d before it connected: the guest program must be a static program for this machine", w.Name, d.ExitCode)
		}
	}
	w.Conn = conn
	if err := os.Remove(filepath.Join(w.Dir, SocketName)); err != nil {
		return fmt.Errorf("workspace %s: its socket cannot be removed: %w", w.Name, err)
	}
	w.identify(conn)
	return nil
}

// identify finds out which process of the host the guest is, and where its
// control groups are.
func (w *Workspace) identify(conn *net.UnixConn) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	var cred *unix.Ucred
	raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err != nil || cred.Pid <= 1 {
		return // a service in a place that this process cannot see
	}
	fd, err := unix.PidfdOpen(int(cred.Pid), 0)
	if err != nil {
		return
	}
	w.pid, w.initFD = int(cred.Pid), fd
	if w.store.limited == nil {
		w.cgroup = readCgroup(w.store.cgroups, w.pid)
		w.store.count(&w.cgroup)
	}
}

// inspectUpper asks podman where the writable layer lies.
func (w *Workspace) inspectUpper(call context.Context) error {
	data, err := containers.Inspect(call, w.ContainerID, new(containers.InspectOptions).WithSize(false))
	if err != nil {
		return fmt.Errorf("workspace %s cannot be inspected: %w", w.Name, gone(err))
	}
	if data.GraphDriver != nil {
		if upper := data.GraphDriver.Data["UpperDir"]; upper != "" {
			w.Upper = w.store.conn.HostPath(upper)
		}
		for lower := range strings.SplitSeq(data.GraphDriver.Data["LowerDir"], ":") {
			if lower != "" {
				w.laying.lower = append(w.laying.lower, w.store.conn.HostPath(lower))
			}
		}
	}
	if w.Runtime == "" {
		w.Runtime = filepath.Base(data.OCIRuntime)
	}
	return nil
}
