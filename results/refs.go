package results

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"golang.org/x/sys/unix"
)

// errMoved says that a ref was no longer where it was expected.
var errMoved = errors.New("the branch has moved")

// ErrLocked is wrapped by the error for a channel whose branch somebody else
// keeps locked.
var ErrLocked = errors.New("branch is locked")

// lockWait is how long a writer waits for another's lock on the branch. Git
// holds one for milliseconds.
const lockWait = 10 * time.Second

// readRef reads a branch of a bare repository; the zero hash when there is
// none.
func readRef(repo, channel string) (plumbing.Hash, error) {
	return readRefName(repo, "refs/heads/"+channel)
}

func readRefName(repo, name string) (plumbing.Hash, error) {
	// Between not finding the file and reading the packed refs somebody may
	// have packed or made it: so the file is looked at twice.
	for range 2 {
		b, err := os.ReadFile(filepath.Join(repo, filepath.FromSlash(name)))
		switch {
		case err == nil:
			s := strings.TrimSpace(string(b))
			if !isHex(s, 40) {
				return plumbing.ZeroHash, fmt.Errorf("branch %s of %s holds %.60q, not a commit: restore it with git update-ref", strings.TrimPrefix(name, "refs/heads/"), repo, s)
			}
			return plumbing.NewHash(s), nil
		case !errors.Is(err, os.ErrNotExist):
			return plumbing.ZeroHash, err
		}
		h, err := readPackedRef(repo, name)
		if err != nil || !h.IsZero() {
			return h, err
		}
	}
	return plumbing.ZeroHash, nil
}

func eachPackedRef(repo string, f func(name, hash string)) error {
	p, err := os.Open(filepath.Join(repo, "packed-refs"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.Close()
	sc := bufio.NewScanner(p)
	for sc.Scan() {
		if hash, name, ok := strings.Cut(sc.Text(), " "); ok && isHex(hash, 40) {
			f(name, hash)
		}
	}
	return sc.Err()
}

func readPackedRef(repo, name string) (h plumbing.Hash, err error) {
	err = eachPackedRef(repo, func(n, hash string) {
		if n == name {
			h = plumbing.NewHash(hash)
		}
	})
	return h, err
}

// refLock is a branch's lock, git's own (CHANNEL.lock), while it is held.
type refLock struct {
	path, channel string
	lock, own     string // the lock, and the file of ours that it is a second name of
	gone          bool   // the lock has become the branch
}

// holdRef takes a branch's lock. The lock is a second name of a file in our own
// folder. That is how it is known to be ours should we die with it: see cure.
func (r *Repo) holdRef(ctx context.Context, channel string) (*refLock, error) {
	heads := filepath.Join(r.path, "refs", "heads")
	if err := os.MkdirAll(heads, 0o777); err != nil {
		return nil, err
	}
	l := &refLock{path: r.path, channel: channel, lock: filepath.Join(heads, channel+".lock"), own: filepath.Join(r.own.dir, "ref-"+channel)}
	err := writeSynced(l.own, nil, 0o666)
	if err == nil {
		err = r.lockRef(ctx, l.own, l.lock)
	}
	if err != nil {
		os.Remove(l.own)
		return nil, err
	}
	return l, nil
}

// release gives the lock back.
func (l *refLock) release() {
	if !l.gone {
		os.Remove(l.lock)
	}
	os.Remove(l.own)
}

// move moves the branch from old to new, or makes it if old is zero, as git
// does: the new value is written to the lock, which then becomes the branch.
// (go-git locks the branch's file instead, which git does not heed, and writes
// it in place.) When it returns without an error the move has been synced.
// moved says whether the branch has moved, synced or not. errMoved says that it
// was elsewhere.
func (l *refLock) move(old, new plumbing.Hash) (moved bool, err error) {
	now, err := readRef(l.path, l.channel)
	if err != nil {
		return false, err
	}
	if now != old {
		return false, errMoved
	}
	f, err := os.OpenFile(l.lock, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return false, err
	}
	_, err = f.WriteString(new.String() + "\n")
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return false, err
	}
	if err := os.Rename(l.lock, strings.TrimSuffix(l.lock, ".lock")); err != nil {
		return false, err
	}
	l.gone = true
	return true, syncDir(filepath.Dir(l.lock))
}

func (r *Repo) lockRef(ctx context.Context, tmp, lock string) error {
	deadline := time.Now().Add(lockWait)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		err := os.Link(tmp, lock)
		if !errors.Is(err, os.ErrExist) {
			return err
		}
		if err := cure(r.path); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w: %s has been there for %v: end the git process that holds it, or remove it if there is none", ErrLocked, lock, lockWait)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// workDir is the folder in the repository where one open Repo keeps what is
// not finished: packs before they are renamed and the file that becomes a lock.
// Its file "alive" is locked (flock) for as long as the Repo is open, and the
// kernel lets go of that when the process dies, however it dies.
type workDir struct {
	dir   string
	alive *os.File
}

const (
	workRoot   = "quarry"
	workPrefix = "writer-"
)

func newWorkDir(repo string) (*workDir, error) {
	root := filepath.Join(repo, workRoot)
	if err := os.MkdirAll(root, 0o777); err != nil {
		return nil, err
	}
	unlock, err := flock(filepath.Join(root, "lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := cureLocked(repo); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(root, workPrefix)
	if err != nil {
		return nil, err
	}
	alive, err := os.OpenFile(filepath.Join(dir, "alive"), os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	if err := unix.Flock(int(alive.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		alive.Close()
		os.RemoveAll(dir)
		return nil, fmt.Errorf("%s cannot be locked: %w", alive.Name(), err)
	}
	return &workDir{dir, alive}, nil
}

func (w *workDir) Close() error {
	return errors.Join(os.RemoveAll(w.dir), w.alive.Close())
}

// flock waits for a lock on a file, making the file.
func flock(name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s cannot be locked: %w", name, err)
	}
	return func() { f.Close() }, nil
}

// cure clears away what writers that were killed have left: their temporary
// files, and their locks on branches. A lock is theirs if it is the same file
// as one in the folder of a writer that is dead; a lock of git's is none of
// ours and stays. Looking and removing are one step under a lock of our own,
// so that two who cure never remove a third's new lock.
func cure(repo string) error {
	unlock, err := flock(filepath.Join(repo, workRoot, "lock"))
	if err != nil {
		return err
	}
	defer unlock()
	return cureLocked(repo)
}

func cureLocked(repo string) error {
	root := filepath.Join(repo, workRoot)
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), workPrefix) {
			continue
		}
		dir := filepath.Join(root, e.Name())
		alive, err := os.OpenFile(filepath.Join(dir, "alive"), os.O_RDWR, 0)
		if err == nil {
			err = unix.Flock(int(alive.Fd()), unix.LOCK_EX|unix.LOCK_NB)
			alive.Close()
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue // it lives
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("folder %s of another writer cannot be examined: %w", dir, err)
		}
		if err := removeLocks(repo, dir); err != nil {
			return err
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

func removeLocks(repo, dir string) error {
	own, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil // its writer has closed just now
	}
	if err != nil {
		return err
	}
	for _, e := range own {
		channel, ok := strings.CutPrefix(e.Name(), "ref-")
		if !ok {
			continue
		}
		mine, err := e.Info()
		if err != nil {
			continue
		}
		lock := filepath.Join(repo, "refs", "heads", channel+".lock")
		held, err := os.Lstat(lock)
		if err == nil && os.SameFile(mine, held) {
			if err := os.Remove(lock); err != nil {
				return fmt.Errorf("%s, left by a writer that died, cannot be removed: %w", lock, err)
			}
		}
	}
	return nil
}
