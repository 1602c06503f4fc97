// Package gittend keeps a bare git repository quick to fetch from while it grows,
// with stock git, beside readers and writers, and never in their way.
//
//   - Packs are melted together geometrically (git repack --geometric=2): a pack is
//     touched only when those newer than it weigh half as much, so that the cost
//     follows what is new and not what there is. Every object is kept, reachable or
//     not.
//   - A bitmap says what is reachable from where, so that a clone need not walk the
//     history. To make one costs a walk over everything, so one is made again only
//     when a tenth of the objects is in none. The packs that it is of are left alone
//     until then, for a bitmap ends with any of its packs.
//   - A commit graph makes walks over commits, and git log over one path, quick.
package gittend

import (
	"bytes"
	"context"
	"encoding/binary"
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

// Options say how a repository is tended.
type Options struct {
	Git  string // the program
	Lock string // file that keeps a second process out; made
}

// niceness is how far git stands back behind builds and answers.
const niceness = 10

// Run tends a repository. While another process does, there is nothing to do, and
// it returns at once. It may be killed at any time: what it leaves is removed by
// the next.
func Run(ctx context.Context, repo string, o Options) error {
	// The lock goes to git as an open file, so that it lasts as long as git
	// does, even when this process is killed meanwhile.
	lock, err := os.OpenFile(o.Lock, os.O_RDWR|os.O_CREATE, 0o666)
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
	packs := filepath.Join(repo, "objects", "pack")
	if err := removeTemporary(packs); err != nil {
		return err
	}
	repack := []string{"repack", "-d", "-l", "-q", "--geometric=2"}
	kept, err := covered(packs)
	if err != nil {
		return err
	}
	old, fresh, err := weigh(packs, kept)
	if err != nil {
		return err
	}
	if kept == nil || fresh > old/10 {
		repack = append([]string{"-c", "pack.writeBitmapLookupTable=true"}, append(repack, "--write-midx", "--write-bitmap-index")...)
	} else {
		for _, name := range kept {
			repack = append(repack, "--keep-pack="+strings.TrimSuffix(name, ".idx")+".pack")
		}
	}
	for _, args := range [][]string{
		repack,
		{"commit-graph", "write", "--reachable", "--split", "--changed-paths", "--no-progress"},
	} {
		if err := runNice(ctx, o.Git, repo, lock, args); err != nil {
			return err
		}
	}
	return nil
}

// runNice runs git on a thread of its own, which stands back behind others and
// then ends: a thread that may not come forward again is of no use to anybody. Git
// has its place from the thread that starts it, and so have git's children.
func runNice(ctx context.Context, git, repo string, lock *os.File, args []string) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		// Where the kernel does not allow it, git runs as all others do.
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, niceness)
		const process, leastOfBestEffort = 1, 2<<13 | 7 // IOPRIO_WHO_PROCESS; class 2, level 7
		_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, process, 0, leastOfBestEffort)
		cmd := exec.CommandContext(ctx, git, append([]string{"-C", repo}, args...)...)
		// Should this process be killed, git gets a signal and clears away what it
		// has begun; the kernel goes by the thread that started it.
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
		err := cmd.Run()
		if err != nil && ctx.Err() != nil {
			err = ctx.Err()
		} else if err != nil {
			err = fmt.Errorf("git %s: %w: %s", strings.Join(args, " "), err, firstLine(out.String(), "it says nothing"))
		}
		done <- err
	}()
	return <-done
}

func firstLine(s, or string) string {
	if s, _, _ = strings.Cut(strings.TrimSpace(s), "\n"); s == "" {
		return or
	}
	return strings.ToValidUTF8(s[:min(len(s), 500)], "\uFFFD")
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

// weigh is the bytes of the packs that are among some, given by their indexes, and
// of all others.
func weigh(dir string, among []string) (in, out int64, err error) {
	is := map[string]bool{}
	for _, name := range among {
		is[strings.TrimSuffix(name, ".idx")+".pack"] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, 0, err
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".pack") {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, 0, err
		}
		if is[e.Name()] {
			in += info.Size()
		} else {
			out += info.Size()
		}
	}
	return in, out, nil
}

// covered lists the packs that the bitmap of a repository is of, by their indexes;
// nil where there is no bitmap, or it has lost a pack. They stand in the
// multi-pack-index (gitformat-pack), in the chunk PNAM.
func covered(dir string) ([]string, error) {
	bitmaps, err := filepath.Glob(filepath.Join(escape(dir), "multi-pack-index-*.bitmap"))
	if err != nil || len(bitmaps) == 0 {
		return nil, err
	}
	f, err := os.Open(filepath.Join(dir, "multi-pack-index"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	head := make([]byte, 12)
	if _, err := f.ReadAt(head, 0); err != nil || string(head[:4]) != "MIDX" {
		return nil, nil // git will write it anew
	}
	table := make([]byte, 12*(int(head[6])+1))
	if _, err := f.ReadAt(table, 12); err != nil {
		return nil, nil
	}
	for ; len(table) >= 24; table = table[12:] {
		if string(table[:4]) != "PNAM" {
			continue
		}
		from, to := binary.BigEndian.Uint64(table[4:]), binary.BigEndian.Uint64(table[16:])
		if to < from || to-from > 16<<20 {
			return nil, nil
		}
		text := make([]byte, to-from)
		if _, err := f.ReadAt(text, int64(from)); err != nil {
			return nil, nil
		}
		names := strings.FieldsFunc(string(text), func(c rune) bool { return c == 0 })
		for _, name := range names {
			_, err := os.Stat(filepath.Join(dir, strings.TrimSuffix(filepath.Base(name), ".idx")+".pack"))
			if errors.Is(err, os.ErrNotExist) {
				return nil, nil
			}
			if err != nil {
				return nil, err
			}
		}
		return names, nil
	}
	return nil, nil
}

// escape has a glob mean just this path.
func escape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}
