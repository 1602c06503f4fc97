package extract

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Stored is an artifact in the store.
type Stored struct {
	SHA256 [32]byte
	Size   int64     // bytes
	Used   time.Time // when it was made last: the same artifact may be made again
	Linked bool      // it has other names, see Publish: removing it frees nothing
}

// Each calls f for every artifact of the store. What else lies there is passed over.
func (a *Artifacts) Each(ctx context.Context, f func(Stored) error) error {
	dirs, err := os.ReadDir(a.dir)
	if err != nil {
		return fmt.Errorf("artifact store cannot be listed: %w", err)
	}
	for _, d := range dirs {
		if !d.IsDir() || len(d.Name()) != 2 {
			continue
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		files, err := os.ReadDir(filepath.Join(a.dir, d.Name()))
		if err != nil {
			return fmt.Errorf("artifact store cannot be listed: %w", err)
		}
		for _, file := range files {
			sha, ok := strings.CutSuffix(file.Name(), artifactExt)
			if !ok || checkSHA(sha) != nil || sha[:2] != d.Name() {
				continue
			}
			var st unix.Stat_t
			if err := unix.Lstat(a.Path(sha), &st); errors.Is(err, fs.ErrNotExist) || err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
				continue
			} else if err != nil {
				return fmt.Errorf("artifact %s cannot be looked at: %w", sha, err)
			}
			s := Stored{Size: st.Size, Used: time.Unix(st.Mtim.Unix()), Linked: st.Nlink > 1}
			hex.Decode(s.SHA256[:], []byte(sha))
			if err := f(s); err != nil {
				return err
			}
		}
	}
	return nil
}

// RemoveUnused removes an artifact, unless it has been made again since a time.
func (a *Artifacts) RemoveUnused(sha string, since time.Time) (removed bool, err error) {
	if err := checkSHA(sha); err != nil {
		return false, err
	}
	unlock, err := a.lock(unix.LOCK_EX)
	if err != nil {
		return false, err
	}
	defer unlock()
	st, err := os.Lstat(a.Path(sha))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !st.ModTime().Before(since) {
		return false, nil
	}
	if err == nil {
		err = os.Remove(a.Path(sha))
	}
	if err != nil {
		return false, fmt.Errorf("artifact %s cannot be removed: %w", sha, err)
	}
	return true, nil
}

// again notes that an artifact was made once more, so that it is not removed for
// being old. It reports false when it is not there, or is not of that size.
func (a *Artifacts) again(path string, size int64) (bool, error) {
	unlock, err := a.lock(unix.LOCK_SH)
	if err != nil {
		return false, err
	}
	defer unlock()
	st, err := os.Stat(path)
	if err != nil || st.Size() != size {
		return false, nil
	}
	now := time.Now()
	return true, os.Chtimes(path, now, now)
}

// lock keeps who removes an artifact for being old apart from who has just made it
// again, in any process.
func (a *Artifacts) lock(how int) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(a.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("artifact store cannot be locked: %w", err)
	}
	for {
		if err = unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("artifact store cannot be locked: %w", err)
	}
	return func() { f.Close() }, nil
}
