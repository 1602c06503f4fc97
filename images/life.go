package images

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/containers/podman/v4/pkg/bindings/containers"
	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/internal/cgroup"
	"github.com/Morphux/quarry/internal/podman"
	"github.com/Morphux/quarry/internal/podman/deltree"
)

// How often the watcher looks.
const (
	watchEvery   = time.Second
	diskEvery    = 2 * time.Second
	diskPatience = 20 // measuring may take 1/20 of the time
)

// watch samples the counters and enforces the disk limit until the workspace
// is closed. ext4 has no quota for an overlay, and project quotas of xfs want
// mount options that few machines have, so the trees are measured: every two
// seconds, or less often when measuring takes long. A build can go over its
// limit for that while, but not beyond what it can write meanwhile; no single
// file can go over it at all (RLIMIT_FSIZE).
func (w *Workspace) watch() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	w.stop = func() { cancel(); <-done }
	go func() {
		defer close(done)
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		next := time.Now().Add(diskEvery)
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if w.idle.Load() {
				continue
			}
			w.sample()
			if time.Now().Before(next) {
				continue
			}
			began := time.Now()
			if err := w.measure(); errors.Is(err, errTooMuch) || errors.Is(err, errTooDeep) {
				w.mu.Lock()
				w.over = fmt.Sprintf("the farm ended it: %v (%d bytes)", err, w.Limits.Disk)
				if errors.Is(err, errTooDeep) {
					w.over = fmt.Sprintf("the farm ended it: %v", err)
				}
				w.mu.Unlock()
				w.kill()
				return
			}
			next = time.Now().Add(max(diskEvery, diskPatience*time.Since(began)))
		}
	}()
}

// measure finds out how much disk the workspace takes.
func (w *Workspace) measure() error {
	total, err := usage(w.Dir, w.Limits.Disk)
	if upper := w.upperDir(); err == nil && upper != "" {
		var more int64
		more, err = usage(upper, w.Limits.Disk-total)
		total += more
	}
	w.mu.Lock()
	w.disk = cgroup.Of(total)
	w.usage.Disk = max(w.usage.Disk, total)
	w.mu.Unlock()
	return err
}

// alive reports whether the guest is there: the service, whose death is also
// its own, its process, and its connection.
func (w *Workspace) alive() bool {
	if w.store.conn.Lost(w.gen) {
		return false
	}
	w.fdMu.Lock()
	dead := w.initFD < 0 || pollExit(w.initFD, 0)
	w.fdMu.Unlock()
	return !dead && connected(w.Conn)
}

// connected reports whether the other end of a socket is open.
func connected(conn net.Conn) bool {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	open := false
	err = raw.Control(func(fd uintptr) {
		// A guest may have said something already, which is the runner's to hear.
		var b [1]byte
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		open = n > 0 || errors.Is(err, unix.EAGAIN)
	})
	return open && err == nil
}

// Kill ends every process in the workspace at once. What it wrote stays until
// Close.
func (w *Workspace) Kill(ctx context.Context) error {
	w.mu.Lock()
	w.killed = true
	w.mu.Unlock()
	w.sample()
	if w.kill() {
		return nil
	}
	if w.ContainerID == "" || w.store.conn.Lost(w.gen) {
		return nil // it died with its service
	}
	call, err := w.store.conn.Context(ctx)
	if err != nil {
		return err
	}
	err = containers.Kill(call, w.ContainerID, new(containers.KillOptions).WithSignal("KILL"))
	if err != nil && podman.Code(err) != 404 && podman.Code(err) != 409 {
		return fmt.Errorf("workspace %s cannot be killed: %w", w.Name, gone(err))
	}
	return nil
}

// kill sends SIGKILL to the first process through its pidfd, which cannot hit
// another that got the same number, and waits until the kernel has ended all
// the others of its PID namespace too. It reports whether they are gone.
func (w *Workspace) kill() bool {
	w.fdMu.Lock()
	defer w.fdMu.Unlock()
	if w.initFD < 0 {
		return false
	}
	if err := unix.PidfdSendSignal(w.initFD, unix.SIGKILL, nil, 0); err != nil {
		return errors.Is(err, unix.ESRCH)
	}
	return pollExit(w.initFD, 10*time.Second)
}

// pollExit waits until the process of a pidfd is dead.
func pollExit(fd int, timeout time.Duration) bool {
	deadline := time.Now().Add(timeout)
	for {
		left := max(0, time.Until(deadline))
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, int(left.Milliseconds()))
		if n > 0 {
			return true
		}
		if err != nil && !errors.Is(err, unix.EINTR) || left == 0 {
			return false
		}
	}
}

// Died tells why the workspace's first process is gone; Death.Dead is false
// when it lives. Call it when the connection broke, which happens a moment
// before the process is gone: it waits for that (see ended). An error means that it
// cannot be known, as a rule because podman is gone (errors.Is podman.ErrGone): then
// the workspace is lost and the farm is at fault.
func (w *Workspace) Died(ctx context.Context) (Death, error) {
	w.sample() // before podman removes the cgroup
	w.mu.Lock()
	u := w.usage
	over, killed, lost := w.over, w.killed, w.lost
	w.mu.Unlock()
	d := Death{Dead: true, ExitCode: 137, Killed: true}
	switch {
	case over != "":
		d.Disk, d.Reason = true, over
		return d, nil
	case w.store.conn.Lost(w.gen):
		return Death{}, fmt.Errorf("workspace %s ended with its service: %w", w.Name, podman.ErrGone)
	case lost != "":
		return Death{}, w.lostError(lost)
	case killed:
		d.Reason = "the farm ended it"
		return d, nil
	}
	known, dead := w.ended()
	if known && !dead {
		return Death{}, nil
	}
	// conmon writes the exit status down a moment after the death.
	for deadline := time.Now().Add(30 * time.Second); ; {
		var err error
		d, err = w.inspectDeath(ctx)
		if err != nil {
			return Death{}, err
		}
		if d.Dead || !known || time.Now().After(deadline) {
			break
		}
		select {
		case <-ctx.Done():
			return Death{}, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	if w.store.conn.Lost(w.gen) {
		return Death{}, fmt.Errorf("workspace %s ended with its service: %w", w.Name, podman.ErrGone)
	}
	if known && !d.Dead {
		d = Death{Dead: true, ExitCode: 137}
	}
	if !d.Dead {
		return d, nil
	}
	d.OOM = d.OOM || u.OOMKills > 0
	d.Pids = u.PidsHits > 0
	switch {
	case d.OOM:
		d.Reason = fmt.Sprintf("the kernel killed it because it used more than its %d bytes of memory", w.Limits.Memory)
	case d.Pids:
		d.Reason = fmt.Sprintf("it ended with status %d after it had reached its limit of %d processes", d.ExitCode, w.Limits.Pids)
	default:
		d.Reason = fmt.Sprintf("its first process ended with status %d", d.ExitCode)
	}
	return d, nil
}

// ended reports whether the first process is dead, when that can be seen. It waits a
// second, and longer when the connection is broken: on a busy machine it may take a
// while until all that ends with the process has.
func (w *Workspace) ended() (known, dead bool) {
	w.fdMu.Lock()
	fd, err := w.initFD, error(nil)
	if fd >= 0 {
		fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0) // which nobody closes meanwhile
	}
	w.fdMu.Unlock()
	if fd < 0 || err != nil {
		return false, false
	}
	defer unix.Close(fd)
	return true, pollExit(fd, time.Second) || !connected(w.Conn) && pollExit(fd, 10*time.Second)
}

// inspectDeath asks podman.
func (w *Workspace) inspectDeath(ctx context.Context) (Death, error) {
	call, err := w.store.conn.Context(ctx)
	if err != nil {
		return Death{}, err
	}
	data, err := containers.Inspect(call, w.ContainerID, new(containers.InspectOptions).WithSize(false))
	if err != nil {
		if podman.Code(err) == 404 {
			return Death{}, fmt.Errorf("workspace %s: its container was removed by somebody else: %w", w.Name, podman.ErrGone)
		}
		return Death{}, fmt.Errorf("workspace %s cannot be inspected: %w", w.Name, gone(err))
	}
	if w.store.conn.Lost(w.gen) {
		// What the next service says of it is that it is not running.
		return Death{}, fmt.Errorf("workspace %s ended with its service: %w", w.Name, podman.ErrGone)
	}
	st := data.State
	if st == nil || (st.Status != "exited" && st.Status != "stopped" && st.Status != "dead") {
		return Death{}, nil
	}
	return Death{Dead: true, ExitCode: int(st.ExitCode), OOM: st.OOMKilled}, nil
}

// Close ends the workspace: when it returns, nothing of it runs any more. Its
// container and its folder are removed in the background (see [Store.Drain]).
// It may be called again.
func (w *Workspace) Close(ctx context.Context) error {
	s := w.store
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return nil
	}
	w.closed = true
	w.mu.Unlock()
	w.stop()
	err := w.Kill(ctx)
	if w.Conn != nil {
		w.Conn.Close()
	}
	w.fdMu.Lock()
	if w.initFD >= 0 {
		unix.Close(w.initFD)
		w.initFD = -1
	}
	w.fdMu.Unlock()

	s.pool.closed(w)
	s.pending.add()
	go func() {
		defer s.pending.done()
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if s.removal.Acquire(ctx, 1) == nil {
			defer s.removal.Release(1)
		}
		w.discard(ctx)
		s.mu.Lock()
		delete(s.open, w)
		s.mu.Unlock()
	}()
	return err
}

// discard removes what the workspace leaves. What cannot be removed now is
// left to the next Sweep.
func (w *Workspace) discard(ctx context.Context) {
	s := w.store
	if w.asked {
		if err := s.removeContainer(ctx, w.container, w.upperDir()); err != nil {
			w.log.Error("a workspace's container stays until the next start", "workspace", w.Name, "error", err)
		}
	}
	w.unlay()
	if w.Dir != "" {
		if err := deltree.Remove(w.Dir); err != nil {
			w.log.Error("a workspace's folder stays until the next start", "workspace", w.Name, "error", err)
		}
	}
}
