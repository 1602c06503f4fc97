package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/internal/overlay"
	"github.com/Morphux/quarry/internal/podman/deltree"
	"github.com/Morphux/quarry/layers"
)

// This file lays unpacked dependencies into a workspace whose container runs
// already, without copying: an overlay is mounted of the layers that the
// workspace has, those of the dependencies over them, and a new empty one to
// write to, and made the root of its processes.

// laying is what a workspace knows of its layers.
type laying struct {
	lower []string // host folders of the layers that podman mounted, topmost first

	mu   sync.Mutex      // held while layers are laid in or removed; guards the following
	dir  string          // with the new layer to write to; "" until Lay
	over bool            // the workspace is closed
	laid []*layers.Layer // in use
}

// layExt is what the folder of a workspace's own overlay has after the name of
// the workspace's folder. It cannot lie in that, where builds write.
const layExt = ".lay"

// upperDir is Upper, for whoever is not the workspace's owner.
func (w *Workspace) upperDir() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.Upper
}

// LayerRoot describes the clean system that the workspace is of, for layers to be
// made over. An error says why no layers can be laid into it: its storage
// is no overlay of the kernel's, or the machine does not let it be mounted. The
// caller closes the root.
func (w *Workspace) LayerRoot() (*layers.Root, error) {
	m, err := w.rootMount()
	var r *layers.Root
	if err == nil {
		r, err = w.layerRoot(m)
	}
	if err != nil {
		w.log.Debug("no dependencies can be laid in", "workspace", w.Name, "error", err)
	}
	return r, err
}

func (w *Workspace) rootMount() (overlay.Mount, error) {
	if w.pid <= 0 || w.Upper == "" || len(w.laying.lower) == 0 {
		return overlay.Mount{}, errors.New("podman does not say where the workspace's layers and processes are")
	}
	mounts, err := overlay.Mounts(w.pid)
	if err != nil {
		return overlay.Mount{}, err
	}
	m, err := overlay.Root(mounts)
	if err == nil && m.Type != "overlay" {
		err = fmt.Errorf("podman's storage is %s here, no overlay of the kernel's", m.Type)
	}
	return m, err
}

func (w *Workspace) layerRoot(m overlay.Mount) (_ *layers.Root, err error) {
	r := &layers.Root{Digest: w.Instance.Digest, UID: w.UID, GID: w.GID, Count: w.store.opts.UIDCount}
	defer func() {
		if err != nil {
			r.Close()
		}
	}()
	mapped := false
	for _, o := range m.Options {
		name, value, _ := strings.Cut(o, "=")
		switch strings.TrimSuffix(name, "+") {
		case "rw", "upperdir", "workdir", "seclabel":
		case "lowerdir":
			// Where podman has the kernel map the layers' owners instead of
			// copying them, it mounts them at such a place, for a moment only.
			mapped = mapped || strings.Contains(value, "/mapped/")
		case "ro", "datadir":
			return nil, fmt.Errorf("podman's overlay has the option %s, with which nothing can be laid over it", o)
		default:
			r.Options = append(r.Options, o)
		}
	}
	for _, dir := range w.laying.lower {
		l := overlay.Lower{Dir: dir}
		if mapped {
			if l.IDs, err = os.Open(fmt.Sprintf("/proc/%d/ns/user", w.pid)); err != nil {
				return nil, fmt.Errorf("the workspace's user namespace cannot be opened: %w", err)
			}
		}
		r.Lower = append(r.Lower, l)
	}
	// So that all of it was said of this process, and not of one that got its
	// number.
	w.fdMu.Lock()
	defer w.fdMu.Unlock()
	if w.initFD < 0 || unix.PidfdSendSignal(w.initFD, 0, nil, 0) != nil {
		return nil, fmt.Errorf("the first process of workspace %s is gone", w.Name)
	}
	return r, nil
}

// Lay makes layers appear in the workspace, each over those before it, as if
// their artifacts had been installed one after the other, and tells how many
// of them: it stops at one that would be another layer over those before, or
// when there are too many. Those count as released by the workspace's end, the
// others are the caller's. Upper is a new folder afterwards, without what podman
// wrote and with nothing of the layers.
//
// It may be called once, before anything of the build runs, by the workspace's owner.
// An error with which errors.As finds an *overlay.BrokenError means that the
// workspace has to be closed. After any other it is as it was.
func (w *Workspace) Lay(ctx context.Context, ls []*layers.Layer) (laid int, err error) {
	l := &w.laying
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case len(ls) == 0:
		return 0, nil
	case l.over:
		return 0, fmt.Errorf("workspace %s is closed", w.Name)
	case l.dir != "":
		return 0, fmt.Errorf("layers were laid into workspace %s before", w.Name)
	}
	m, err := w.rootMount()
	if err != nil {
		return 0, err
	}
	root, err := w.layerRoot(m)
	if err != nil {
		return 0, err
	}
	defer root.Close()
	// Before the folder is made, so that it goes with the workspace.
	l.dir = w.Dir + layExt
	defer func() {
		if laid > 0 {
			return
		}
		if err != nil {
			w.log.Debug("dependencies are not laid in", "workspace", w.Name, "error", err)
		}
		if e := deltree.Remove(l.dir); e != nil {
			w.log.Warn("a folder for layers stays until its workspace goes", "workspace", w.Name, "folder", l.dir, "error", e)
		}
	}()
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	n, spec, err := w.stack(root, m, ls)
	if n == 0 || err != nil {
		return 0, err
	}
	merged, err := overlay.New(spec)
	if err != nil {
		return 0, err
	}
	defer merged.Close()
	if err := w.replace(merged); err != nil {
		return 0, err
	}
	l.laid = append(l.laid, ls[:n]...)
	w.mu.Lock()
	w.Upper = spec.Upper
	w.mu.Unlock()
	return n, nil
}

// stack makes the folders of the new overlay and decides what lies in it.
func (w *Workspace) stack(root *layers.Root, m overlay.Mount, ls []*layers.Layer) (int, overlay.Spec, error) {
	dir := w.laying.dir
	seed := filepath.Join(dir, "seed")
	spec := overlay.Spec{
		Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"), Scratch: filepath.Join(dir, "scratch"),
		Options: root.Options, Flags: mountFlags(m.Flags),
	}
	for _, d := range []string{dir, spec.Upper, spec.Work, spec.Scratch, seed} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return 0, spec, fmt.Errorf("a folder for layers cannot be made: %w", w.store.explain(err))
		}
	}
	// What podman wrote into the layer that it made: places to mount on, mostly.
	// The folder itself cannot serve as a layer, for an overlay that is mounted still
	// has it to write to.
	if err := copySmall(w.Upper, seed); err != nil {
		return 0, spec, err
	}
	tree, err := layers.Scan(seed, false)
	if err != nil {
		return 0, spec, err
	}
	n := 0
	room := overlay.MaxLayers - len(root.Lower) - 1
	for n < len(ls) && n < room {
		why := ls[n].Conflict(tree)
		for i := 0; i < n && why == ""; i++ {
			why = ls[n].Over(ls[i])
		}
		if why != "" {
			w.log.Debug("a dependency is not laid in but installed, as are those after it", "workspace", w.Name,
				"artifact", ls[n].Artifact, "because of", why)
			break
		}
		n++
	}
	for i := n - 1; i >= 0; i-- {
		spec.Lower = append(spec.Lower, overlay.Lower{Dir: ls[i].Dir})
	}
	spec.Lower = append(append(spec.Lower, overlay.Lower{Dir: seed}), root.Lower...)
	var st unix.Stat_t
	if err := unix.Stat(w.Root(), &st); err != nil {
		return 0, spec, &os.PathError{Op: "stat", Path: w.Root(), Err: err}
	}
	return n, spec, likeness(&st, spec.Upper)
}

// replace makes an overlay the root of the workspace's processes.
func (w *Workspace) replace(merged *os.File) error {
	if err := w.resembles(merged); err != nil {
		return err
	}
	w.fdMu.Lock()
	fd := -1
	var err error
	if w.initFD >= 0 {
		fd, err = unix.FcntlInt(uintptr(w.initFD), unix.F_DUPFD_CLOEXEC, 0)
	}
	w.fdMu.Unlock()
	if err != nil || fd < 0 {
		return fmt.Errorf("workspace %s: its first process is gone", w.Name)
	}
	defer unix.Close(fd)
	return overlay.Replace(w.pid, fd, merged)
}

// resembles makes sure that an overlay shows the system that it should: that
// no layer is missing, and none seen with wrong owners.
func (w *Workspace) resembles(merged *os.File) error {
	old, err := os.Open(w.Root())
	if err != nil {
		return err
	}
	defer old.Close()
	var top unix.Stat_t
	if err := unix.Fstat(int(old.Fd()), &top); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	for _, dir := range []string{".", "usr", "etc"} {
		f, err := openDir(int(old.Fd()), dir)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "open", Path: "/" + dir, Err: err}
		}
		names, err := f.Readdirnames(-1)
		f.Close()
		if err != nil && err != io.EOF {
			return err
		}
		for _, name := range names {
			path := filepath.Join(dir, name)
			var a, b unix.Stat_t
			if err := unix.Fstatat(int(old.Fd()), path, &a, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return &os.PathError{Op: "stat", Path: "/" + path, Err: err}
			}
			err := unix.Fstatat(int(merged.Fd()), path, &b, unix.AT_SYMLINK_NOFOLLOW)
			if err != nil {
				return fmt.Errorf("an overlay of the workspace's layers has no /%s: %w", path, err)
			}
			// Of a place that something is mounted on only the kind can be told.
			if a.Mode&unix.S_IFMT != b.Mode&unix.S_IFMT || a.Dev == top.Dev && w.inside(a.Uid) != w.inside(b.Uid) {
				return fmt.Errorf("an overlay of the workspace's layers has another /%s than the workspace: mode %o and owner %d instead of %o and %d",
					path, b.Mode, b.Uid, a.Mode, a.Uid)
			}
		}
	}
	return nil
}

// inside reports whether an id of the host is one of the workspace's.
func (w *Workspace) inside(id uint32) bool {
	return int(id) >= w.UID && int(id) < w.UID+w.store.opts.UIDCount
}

func openDir(at int, path string) (*os.File, error) {
	fd, err := unix.Openat(at, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// mountFlags are the flags of a mount as mount(2) takes them.
func mountFlags(of []string) (flags uintptr) {
	known := map[string]uintptr{
		"ro": unix.MS_RDONLY, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC,
		"noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME,
	}
	for _, f := range of {
		flags |= known[f]
	}
	return flags
}

// unlay removes what Lay left, once no process of the workspace lives.
func (w *Workspace) unlay() {
	l := &w.laying
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	if l.dir != "" {
		if err := deltree.Remove(l.dir); err != nil {
			w.log.Error("a workspace's layer stays until the next start", "workspace", w.Name, "error", err)
		}
	}
	for _, x := range l.laid {
		x.Release()
	}
	l.laid = nil
}

// What copySmall takes on.
const (
	smallEntries = 200
	smallBytes   = 64 << 10
)

// copySmall copies what podman and the guest put into a workspace's layer:
// folders, links and small files, of which there are about ten. More or other
// things there mean that the workspace has been used.
func copySmall(from, to string) error {
	left := smallEntries
	var folder func(from, to string) error
	folder = func(from, to string) error {
		names, err := os.ReadDir(from)
		if err != nil {
			return err
		}
		for _, d := range names {
			a, b := filepath.Join(from, d.Name()), filepath.Join(to, d.Name())
			if left--; left < 0 {
				return fmt.Errorf("the workspace's layer has more than %d files before the build", smallEntries)
			}
			var st unix.Stat_t
			if err := unix.Lstat(a, &st); err != nil {
				return &os.PathError{Op: "lstat", Path: a, Err: err}
			}
			switch st.Mode & unix.S_IFMT {
			case unix.S_IFDIR:
				if err := os.Mkdir(b, 0o700); err != nil {
					return err
				}
				if err := folder(a, b); err != nil {
					return err
				}
			case unix.S_IFLNK:
				target, err := os.Readlink(a)
				if err != nil {
					return err
				}
				if err := os.Symlink(target, b); err != nil {
					return err
				}
			case unix.S_IFREG:
				if st.Size > smallBytes {
					return fmt.Errorf("the workspace's layer has %s of %d bytes before the build", d.Name(), st.Size)
				}
				data, err := os.ReadFile(a)
				if err != nil {
					return err
				}
				if err := os.WriteFile(b, data, 0o600); err != nil {
					return err
				}
			default: // a deleted file among them
				return fmt.Errorf("the workspace's layer has %s, which cannot be copied, before the build", d.Name())
			}
			if err := likeness(&st, b); err != nil {
				return err
			}
		}
		return nil
	}
	if err := folder(from, to); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(from, &st); err != nil {
		return &os.PathError{Op: "stat", Path: from, Err: err}
	}
	return likeness(&st, to)
}

// likeness gives a file owner, mode and time of another.
func likeness(st *unix.Stat_t, path string) error {
	if err := os.Lchown(path, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Chmod(path, st.Mode&0o7777); err != nil {
			return &os.PathError{Op: "chmod", Path: path, Err: err}
		}
	}
	times := []unix.Timespec{st.Mtim, st.Mtim}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "set time of", Path: path, Err: err}
	}
	return nil
}
