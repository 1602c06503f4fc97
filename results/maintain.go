package results

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Maintain melts the many small packs of recent commits together, with stock
// git. It may run beside readers and writers at any time:
//
//   - git repack --geometric=2 touches a pack only when those newer than it
//     weigh half as much, so that the cost follows what is new and not what
//     there is;
//   - it keeps every object, reachable or not, so that what a writer has stored
//     but not yet put on the branch survives;
//   - the commit graph makes git log over one package's path quick.
//
// It is run by itself in the background, see [Options].MaxPacks. While another
// process maintains the repository there is nothing to do, and Maintain returns
// at once.
func (r *Repo) Maintain(ctx context.Context) error {
	// The lock goes to git as an open file, so that it lasts as long as git
	// does, even when this process is killed meanwhile.
	lock, err := os.OpenFile(filepath.Join(r.path, workRoot, "maintenance"), os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil
		}
		return fmt.Errorf("%s cannot be locked: %w", lock.Name(), err)
	}
	if err := removeTemporary(filepath.Join(r.path, "objects", "pack")); err != nil {
		return err
	}
	// Should this process be killed, git gets a signal and clears away what it
	// has begun; the kernel goes by the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, args := range [][]string{
		{"repack", "-d", "-l", "-q", "--geometric=2"},
		{"commit-graph", "write", "--reachable", "--split", "--changed-paths", "--no-progress"},
	} {
		cmd := exec.CommandContext(ctx, r.opts.Git, append([]string{"-C", r.path}, args...)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
		cmd.ExtraFiles = []*os.File{lock}
		cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) } // git removes its temporary files
		cmd.WaitDelay = 5 * time.Second
		// Whatever the caller's environment says of git is about another
		// repository: a hook's GIT_DIR would lead astray.
		for _, kv := range os.Environ() {
			if !strings.HasPrefix(kv, "GIT_") {
				cmd.Env = append(cmd.Env, kv)
			}
		}
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil {
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			return fmt.Errorf("results repository %s cannot be repacked: git %s: %w: %s", r.path, args[0], err, oneLine(out.String(), 500))
		}
	}
	return nil
}

// startMaintenance begins maintenance in the background unless it is running.
// Its trouble is logged and costs nothing but speed: the next try comes with
// the next packs.
func (r *Repo) startMaintenance() {
	r.bg.Lock()
	defer r.bg.Unlock()
	if r.bg.done != nil {
		select {
		case <-r.bg.done:
		default:
			return
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	r.bg.cancel, r.bg.done = cancel, done
	go func() {
		defer close(done)
		defer cancel()
		if err := r.Maintain(ctx); err != nil && ctx.Err() == nil {
			r.opts.Logger.Warn("the results repository was not maintained", "error", err)
		}
	}()
}

func (r *Repo) stopMaintenance() {
	r.bg.Lock()
	cancel, done := r.bg.cancel, r.bg.done
	r.bg.Unlock()
	if cancel != nil {
		cancel()
		<-done
	}
}

// removeTemporary removes what a repack that was killed has left. Git itself
// would wait two weeks; an hour is enough for somebody else's that is running.
func removeTemporary(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "tmp_") && !strings.HasPrefix(e.Name(), ".tmp-") {
			continue
		}
		info, err := e.Info()
		if err != nil || time.Since(info.ModTime()) < time.Hour {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

func countPacks(repo string) int {
	packs, err := os.ReadDir(filepath.Join(repo, "objects", "pack"))
	if err != nil {
		return 0
	}
	n := 0
	for _, e := range packs {
		if strings.HasSuffix(e.Name(), ".idx") {
			n++
		}
	}
	return n
}
