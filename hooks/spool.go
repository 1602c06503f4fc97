package hooks

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/Morphux/quarry"
	"github.com/fsnotify/fsnotify"
)

// Push is what a hook tells Quarry: these refs of this repository have moved.
// It is only a nudge. What is to be built, Quarry finds in the repository.
type Push struct {
	Package  string          `json:"package"`
	Repo     string          `json:"repo"` // absolute path of the bare repository
	Packager quarry.Packager `json:"packager"`
	Channel  string          `json:"channel,omitempty"` // "": the default one
	Group    string          `json:"group,omitempty"`   // that its releases are to land with
	Time     time.Time       `json:"time"`
	Refs     []Ref           `json:"refs"`
}

// Limits on the spool. They bound what a git server gone wild can cost.
const (
	maxSpoolFile  = 1 << 20 // bytes in one push
	maxSpoolFiles = 10_000  // pushes read in one go; the others wait for the next
)

// spoolFile is the form of a push in the spool: version 1 of it.
type spoolFile struct {
	Version int `json:"quarry_push"`
	Push
}

// Spool leaves a push for a Quarry that does not run. It stands on the disk
// when Spool returns.
func Spool(dir string, p Push) (err error) {
	data, err := json.Marshal(spoolFile{1, p})
	if err != nil {
		return fmt.Errorf("push cannot be spooled: %w", err)
	}
	if len(data) > maxSpoolFile {
		return fmt.Errorf("push cannot be spooled: it takes %d bytes, and %d is the most", len(data), maxSpoolFile)
	}
	// The name sorts by time. The point hides it from readers until it is whole.
	name := fmt.Sprintf("%020d-%s.json", time.Now().UnixNano(), rand.Text()[:10])
	tmp := filepath.Join(dir, "."+name)
	defer func() {
		if err != nil {
			os.Remove(tmp)
			err = fmt.Errorf("push cannot be spooled: %w", err)
		}
	}()
	// Readable by the group only: the daemon is in that of the spool's folder.
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err = os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Drain gives every spooled push to take, the oldest first, and removes those
// that it took. What cannot be read is moved aside into the folder bad and
// does not hold up the others; a push that take refuses stays for the next
// time. The error joins all of these. A folder that is not there is empty.
//
// Whoever may write into the folder can claim any push in anybody's name. It
// is on the caller to believe no more than that something may be new: the
// repository says what.
func Drain(dir string, take func(Push) error) error {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("spool cannot be read: %w", err)
	}
	defer d.Close()
	names, err := d.Readdirnames(maxSpoolFiles)
	if err != nil && err != io.EOF {
		return fmt.Errorf("spool cannot be read: %w", err)
	}
	slices.Sort(names)
	var errs []error
	for _, name := range names {
		path := filepath.Join(dir, name)
		if strings.HasPrefix(name, ".") {
			// A writer died before the rename.
			if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() && time.Since(info.ModTime()) > time.Hour {
				os.Remove(path)
			}
			continue
		}
		if !strings.HasSuffix(name, ".json") {
			continue
		}
		p, err := readSpooled(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // another reader was quicker
		}
		if err != nil {
			bad := filepath.Join(dir, "bad")
			os.Mkdir(bad, 0o750)
			if moved := os.Rename(path, filepath.Join(bad, name)); moved != nil {
				err = errors.Join(err, moved)
			}
			errs = append(errs, fmt.Errorf("spooled push %s was set aside into %s: %w", name, bad, err))
			continue
		}
		if err := take(p); err != nil {
			errs = append(errs, fmt.Errorf("spooled push %s stays: %w", name, err))
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("spooled push %s was taken and cannot be removed: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func readSpooled(path string) (Push, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return Push{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return Push{}, err
	case !info.Mode().IsRegular():
		return Push{}, errors.New("it is no regular file")
	case info.Size() > maxSpoolFile:
		return Push{}, fmt.Errorf("it has %d bytes: %d is the most", info.Size(), maxSpoolFile)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSpoolFile+1))
	if err != nil {
		return Push{}, err
	}
	return parsePush(data)
}

// parsePush reads a spooled push and believes nothing in it that does not keep
// to the grammars.
func parsePush(data []byte) (Push, error) {
	var s spoolFile
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(&s); err != nil {
		return Push{}, fmt.Errorf("it is not what a hook writes: %w", err)
	}
	if s.Version != 1 {
		return Push{}, fmt.Errorf("it has version %d, and this Quarry knows 1: both should be of one release", s.Version)
	}
	return s.Push, s.Push.Check()
}

// Check reports whether a push that came from outside keeps to the grammars.
func (p Push) Check() error {
	if err := quarry.CheckName(p.Package); err != nil {
		return err
	}
	if p.Channel != "" {
		if err := quarry.CheckChannel(p.Channel); err != nil {
			return err
		}
	}
	if !filepath.IsAbs(p.Repo) || filepath.Clean(p.Repo) != p.Repo || strings.ContainsRune(p.Repo, 0) {
		return fmt.Errorf("repository %.100q is no absolute path", p.Repo)
	}
	for _, s := range []string{p.Packager.User, p.Packager.Name, p.Packager.Email, p.Packager.Key} {
		if len(s) > 1000 || clean(s) != s {
			return fmt.Errorf("packager %.100q does not print", s)
		}
	}
	if len(p.Refs) > maxRefs {
		return fmt.Errorf("it has %d refs: %d is the most", len(p.Refs), maxRefs)
	}
	for _, r := range p.Refs {
		if !isOID(r.Old) || !isOID(r.New) {
			return fmt.Errorf("ref %.100q moves between no object ids", r.Name)
		}
		full := r.Name
		if r.Branch {
			full = "refs/heads/" + r.Name
		}
		again, err := parseRef(p.Package, [3]string{r.Old, r.New, full})
		if err != nil {
			return err
		}
		if again != r {
			return fmt.Errorf("ref %.100q is not what it says", r.Name)
		}
	}
	return nil
}

// Watch drains the spool now, whenever something is put into it, and every
// minute besides, until ctx ends. The folder is made if it is not there.
func Watch(ctx context.Context, dir string, log *slog.Logger, take func(Push) error) error {
	if err := os.MkdirAll(dir, 0o770); err != nil {
		return fmt.Errorf("spool cannot be made: %w", err)
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("spool cannot be watched: %w", err)
	}
	defer w.Close()
	if err := w.Add(dir); err != nil {
		return fmt.Errorf("spool cannot be watched: %w", err)
	}
	// The timer finds what events missed, and tries again what was refused.
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		if err := Drain(dir, take); err != nil {
			log.Warn("draining the spool", "dir", dir, "err", err)
		}
		wait := true
		for wait {
			select {
			case <-ctx.Done():
				return nil
			case ev, ok := <-w.Events:
				// Of a push only the last rename counts; removals are our own.
				wait = ok && (!ev.Has(fsnotify.Create) || strings.HasPrefix(filepath.Base(ev.Name), ".") || filepath.Base(ev.Name) == "bad")
			case <-w.Errors:
				wait = false
			case <-tick.C:
				wait = false
			}
		}
	}
}
