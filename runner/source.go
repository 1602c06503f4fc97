package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/gitfs"
	"github.com/Morphux/quarry/internal/human"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// owner is the host's ids of a workspace's root.
type owner struct{ uid, gid int }

// size is how much sources come to.
type size struct{ files, bytes int64 }

// sourceError is what is wrong with a package's sources: the recipe's fault.
type sourceError struct{ path, reason string }

func (e *sourceError) Error() string { return fmt.Sprintf("%s %s", shown(e.path), e.reason) }

// shown is a path as it is shown to people: quoted when it holds anything odd.
func shown(p string) string {
	if q := strconv.Quote(p); len(q) != len(p)+2 || strings.ContainsAny(p, " ,") {
		return q
	}
	return p
}

// refused makes a failure of an error that is about the sources.
func (r *run) refused(name string, err error) bool {
	var bad *gitfs.BadTreeError
	var own *sourceError
	if !errors.As(err, &bad) && !errors.As(err, &own) {
		return false
	}
	r.fail(&quarry.Failure{Step: name, Cause: quarry.CauseRecipe, Message: "the sources cannot be used: " + human.Safe(err.Error(), false)})
	return true
}

// Limits on sources that no package comes near. The bytes are bounded by the
// workspace's disk.
const (
	maxSourceFiles = 1_000_000
	maxSourceDepth = 200
	maxLinkTarget  = 4095 // PATH_MAX less its NUL
)

// writeSources writes a package out as src below the folder of a workspace,
// beside the empty dest and home. All of it belongs to the workspace's root
// and has one time: a checkout's arbitrary times would have automake rebuild
// its own makefiles.
//
// Nothing is followed on the way: every name is made new, relative to its
// folder's descriptor. Links are written as they are, wherever they point; the
// host never opens one.
func writeSources(ctx context.Context, src fs.FS, home string, own owner, at time.Time, disk int64) (size, error) {
	if m, ok := src.(interface{ Measure() (gitfs.Total, error) }); ok {
		// A few hundred bytes of git objects can name more than any disk holds.
		total, err := m.Measure()
		if err != nil {
			return size{}, err
		}
		if disk > 0 && total.Bytes > disk {
			return size{}, &sourceError{"the repository", fmt.Sprintf("comes to %s, and the build may use %s of disk", human.Size(total.Bytes), human.Size(disk))}
		}
	}
	top, err := os.Open(home)
	if err != nil {
		return size{}, err
	}
	defer top.Close()
	w := &writer{src: src, owner: own, disk: disk}
	ts := unix.NsecToTimespec(at.UnixNano())
	w.times = []unix.Timespec{ts, ts}
	w.chown = own.uid != os.Geteuid() || own.gid != os.Getegid()
	for _, name := range []string{"dest", "home"} {
		d, err := w.mkdir(top, name)
		if err != nil {
			return size{}, err
		}
		d.Close()
	}
	dir, err := w.mkdir(top, "src")
	if err != nil {
		return size{}, err
	}
	w.ctx, w.slots = ctx, make(chan struct{}, min(4, runtime.GOMAXPROCS(0)))
	err = w.folder(dir, ".", 1)
	return size{w.files.Load(), w.bytes.Load()}, err
}

type writer struct {
	owner
	src   fs.FS
	times []unix.Timespec
	chown bool
	disk  int64
	ctx   context.Context
	slots chan struct{} // one for each file that may be written at one time
	files atomic.Int64
	bytes atomic.Int64
}

// mkdir makes a folder and opens it.
func (w *writer) mkdir(in *os.File, name string) (*os.File, error) {
	fd := int(in.Fd())
	if err := unix.Mkdirat(fd, name, 0o755); err != nil {
		return nil, &os.PathError{Op: "mkdir", Path: filepath.Join(in.Name(), name), Err: err}
	}
	n, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: filepath.Join(in.Name(), name), Err: err}
	}
	f := os.NewFile(uintptr(n), filepath.Join(in.Name(), name))
	return f, w.own(f, 0o755)
}

// own gives an open file its owner and, whatever the umask, its mode.
func (w *writer) own(f *os.File, mode uint32) error {
	if w.chown {
		if err := unix.Fchown(int(f.Fd()), w.uid, w.gid); err != nil {
			return &os.PathError{Op: "chown", Path: f.Name(), Err: err}
		}
	}
	if err := unix.Fchmod(int(f.Fd()), mode); err != nil {
		return &os.PathError{Op: "chmod", Path: f.Name(), Err: err}
	}
	return nil
}

// level sets the time of an open file.
func (w *writer) level(f *os.File) error {
	tv := []unix.Timeval{unix.NsecToTimeval(w.times[0].Nano()), unix.NsecToTimeval(w.times[1].Nano())}
	if err := unix.Futimes(int(f.Fd()), tv); err != nil {
		return &os.PathError{Op: "set time of", Path: f.Name(), Err: err}
	}
	return nil
}

// folder fills a folder that was just made, and closes it. Its files are
// written by several at once, which pays because reading them out of git means
// inflating them.
func (w *writer) folder(dir *os.File, name string, depth int) error {
	defer dir.Close()
	if depth > maxSourceDepth {
		return &sourceError{name, fmt.Sprintf("is inside of more than %d folders: that is the most", maxSourceDepth)}
	}
	entries, err := fs.ReadDir(w.src, name)
	if err != nil {
		return fmt.Errorf("read the sources: %w", err)
	}
	files, ctx := errgroup.WithContext(w.ctx)
	for _, e := range entries {
		if err = ctx.Err(); err != nil {
			break
		}
		full := path.Join(name, e.Name())
		if err = w.fits(full, e.Name()); err != nil {
			break
		}
		switch e.Type() {
		case 0:
			w.slots <- struct{}{}
			files.Go(func() error {
				defer func() { <-w.slots }()
				return w.file(dir, full, e)
			})
		case fs.ModeDir:
			var sub *os.File
			if sub, err = w.mkdir(dir, e.Name()); err == nil {
				err = w.folder(sub, full, depth+1)
			}
		case fs.ModeSymlink:
			err = w.link(dir, full, e.Name())
		default:
			err = &sourceError{full, "is neither a file nor a folder nor a link"}
		}
		if err != nil {
			break
		}
	}
	if e := files.Wait(); e != nil && (err == nil || errors.Is(err, context.Canceled)) {
		err = e // the first one; that it stopped the others is no news
	}
	if err != nil {
		return err
	}
	return w.level(dir)
}

// fits bounds the number of files and checks that a name is one.
func (w *writer) fits(full, name string) error {
	if w.files.Add(1) > maxSourceFiles {
		return &sourceError{full, fmt.Sprintf("is one of more than %d files: that is the most", maxSourceFiles)}
	}
	if name == "" || name == "." || name == ".." || len(name) > 255 || strings.ContainsAny(name, "/\x00") {
		return &sourceError{full, "cannot be the name of a file"}
	}
	return nil
}

func (w *writer) file(dir *os.File, full string, e fs.DirEntry) error {
	info, err := e.Info()
	if err != nil {
		return fmt.Errorf("read the sources: %w", err)
	}
	in, err := w.src.Open(full)
	if err != nil {
		return fmt.Errorf("read the sources: %w", err)
	}
	defer in.Close()
	fd, err := unix.Openat(int(dir.Fd()), path.Base(full), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "create", Path: filepath.Join(dir.Name(), path.Base(full)), Err: err}
	}
	out := os.NewFile(uintptr(fd), filepath.Join(dir.Name(), path.Base(full)))
	err = w.fill(out, in, full)
	if err == nil {
		mode := uint32(0o644)
		if info.Mode()&0o111 != 0 {
			mode = 0o755
		}
		err = w.own(out, mode)
	}
	if err == nil {
		err = w.level(out)
	}
	if e := out.Close(); err == nil {
		err = e
	}
	return err
}

// fill copies a file, which may be longer than it said.
func (w *writer) fill(out *os.File, in io.Reader, full string) error {
	left := int64(1<<62) - 1
	if w.disk > 0 {
		left = w.disk - w.bytes.Load()
	}
	n, err := io.Copy(out, io.LimitReader(in, left+1))
	if err != nil {
		return fmt.Errorf("copy the sources: %w", err)
	}
	if w.bytes.Add(n); n > left {
		return &sourceError{full, fmt.Sprintf("makes the sources larger than the %s of disk that the build may use", human.Size(w.disk))}
	}
	return nil
}

func (w *writer) link(dir *os.File, full, name string) error {
	target, err := fs.ReadLink(w.src, full)
	if err != nil {
		return fmt.Errorf("read the sources: %w", err)
	}
	if target == "" || len(target) > maxLinkTarget || strings.ContainsRune(target, 0) {
		return &sourceError{full, "is a link whose target cannot be one"}
	}
	fd := int(dir.Fd())
	fail := func(op string, err error) error {
		return &os.PathError{Op: op, Path: filepath.Join(dir.Name(), name), Err: err}
	}
	if err := unix.Symlinkat(target, fd, name); err != nil {
		return fail("link", err)
	}
	if w.chown {
		if err := unix.Fchownat(fd, name, w.uid, w.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fail("chown", err)
		}
	}
	if err := unix.UtimesNanoAt(fd, name, w.times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fail("set time of", err)
	}
	return nil
}
