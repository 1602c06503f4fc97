package runner

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"golang.org/x/sys/unix"
)

// This file finds out what a step wrote outside of the staging directory. The
// workspace's writable layer is an overlay's upper folder; it is read on the
// host before and after the step, while nothing of the build runs. Nothing in
// it is opened but folders, and no link is followed.

// allowed are places that any install may write to: they are scratch, or
// caches that tools keep of what is installed. Paths are relative to the root.
var allowed = map[string]bool{
	"tmp": true, "var/tmp": true, "run": true, "var/run": true, "dev": true, "proc": true, "sys": true,
	"quarry": true, ".quarry": true,
	"etc/ld.so.cache":      true, // ldconfig
	"etc/ld.so.cache~":     true,
	"var/cache/ldconfig":   true,
	"var/cache/fontconfig": true,
	"var/cache/man":        true,
}

// allowedNames are folders that may appear anywhere: Python keeps compiled
// modules beside those that it imports.
var allowedNames = map[string]bool{"__pycache__": true}

// Limits on what a build may leave in its layer, which has to be read whole.
const (
	maxEntries = 1_000_000
	maxNames   = 64 << 20 // bytes of all names
	maxDepth   = 256
)

// tooMuchError is a layer over these limits.
type tooMuchError struct{ path, reason string }

func (e *tooMuchError) Error() string { return shown(e.path) + " " + e.reason }

func (e *tooMuchError) failure(step string) *quarry.Failure {
	return &quarry.Failure{Step: step, Cause: quarry.CauseEscape, Paths: []string{shown(e.path)},
		Message: "the build wrote more outside of the staging directory than can be looked at: " + e.Error()}
}

// entry is one name in the layer.
type entry struct {
	name  string
	mode  uint32
	uid   uint32
	gid   uint32
	ino   uint64
	size  int64
	mtime unix.Timespec
	ctime unix.Timespec
	// whiteout stands for a file of the base that was deleted.
	whiteout bool
	// pure is a folder through which the base does not show: a new one.
	pure bool
	bare bool    // a folder with nothing in it, allowed places included
	kids []entry // sorted by name
}

func (e *entry) dir() bool { return e.mode&unix.S_IFMT == unix.S_IFDIR }

// same reports whether nothing was done to what is not a folder. The inode's
// change time alone would tell, but for clocks that are set back.
func (e *entry) same(o *entry) bool {
	return e.mode == o.mode && e.uid == o.uid && e.gid == o.gid && e.ino == o.ino && e.size == o.size &&
		e.mtime == o.mtime && e.ctime == o.ctime
}

// escapes is the state of the layer before a step.
type escapes struct {
	before entry
	since  unix.Timespec // a clock like the file system's
}

// watchEscapes reads the layer before the first step that may not write to it.
func watchEscapes(ctx context.Context, upper string) (*escapes, error) {
	if upper == "" {
		return nil, errors.New("podman does not say where the workspace's layer is, so writing outside of the staging directory would go unseen: use podman's overlay storage on this machine")
	}
	root, latest, err := readLayer(ctx, upper)
	if err != nil {
		return nil, err
	}
	e := &escapes{before: root}
	// File times are as fine as the kernel's tick. Whatever is changed after
	// the next tick has a time that nothing had before.
	for wait := time.Now().Add(50 * time.Millisecond); ; {
		if err := unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &e.since); err != nil {
			return nil, os.NewSyscallError("clock_gettime", err)
		}
		if later(e.since, latest) || time.Now().After(wait) {
			return e, nil
		}
		time.Sleep(500 * time.Microsecond)
	}
}

func later(a, b unix.Timespec) bool {
	return a.Sec > b.Sec || a.Sec == b.Sec && a.Nsec > b.Nsec
}

// look compares the layer with what it was and lists what is different.
func (e *escapes) look(ctx context.Context, upper string) ([]change, error) {
	now, _, err := readLayer(ctx, upper)
	if err != nil {
		return nil, err
	}
	d := differ{since: e.since}
	d.folder("", &e.before, &now, false)
	slices.SortFunc(d.found, func(a, b change) int { return strings.Compare(a.path, b.path) })
	return d.found, nil
}

// change is one path that a step did something to.
type change struct{ path, what string }

// What is done to paths.
const (
	changeMade    = "made"
	changeWritten = "written"
	changeMode    = "given another owner or mode"
	changeRemoved = "removed"
)

type differ struct {
	since unix.Timespec
	found []change
}

func (d *differ) add(path, what string) { d.found = append(d.found, change{"/" + path, what}) }

// folder compares what a folder held and holds; before is nil for a folder
// that was not in the layer. pure is said of the folder: the base shows nothing
// through it.
func (d *differ) folder(path string, before, now *entry, pure bool) {
	var old []entry
	if before != nil {
		old = before.kids
	}
	merge(old, now.kids, func(b, n *entry) {
		var name string
		if n != nil {
			name = n.name
		} else {
			name = b.name
		}
		full := name
		if path != "" {
			full = path + "/" + name
		}
		switch {
		case n == nil:
			if !b.whiteout {
				d.add(full, changeRemoved)
			}
		case b == nil || b.ino != n.ino && !(b.whiteout && n.whiteout) || b.mode&unix.S_IFMT != n.mode&unix.S_IFMT:
			d.fresh(full, b, n, pure)
		case n.whiteout:
			// Overlays share one inode among all of them, whose times say nothing.
		case !n.dir():
			if !b.same(n) {
				d.add(full, changeWritten)
			}
		default:
			if b.mode != n.mode || b.uid != n.uid || b.gid != n.gid {
				d.add(full, changeMode)
			}
			d.folder(full, b, n, pure || n.pure)
		}
	})
}

// fresh is about an entry that the layer did not have: something new, or
// something of the base's that was copied up to be changed. b is what was there
// instead, if anything.
func (d *differ) fresh(path string, b, n *entry, pure bool) {
	switch {
	case n.whiteout:
		d.add(path, changeRemoved)
	case !n.dir():
		d.add(path, changeWritten)
	case pure || n.pure || b != nil:
		count := len(d.found)
		d.folder(path, nil, n, true)
		if len(d.found) == count {
			d.add(path, changeMade) // else what is in it says enough
		}
	case n.bare:
		// A folder of the base keeps its times when it is copied up. If something
		// came and went in it the time is new, and there is nothing to name.
		if later(d.since, n.mtime) {
			d.add(path, changeMode)
		}
	default:
		// Copied up on the way to something in it. Whether its own mode was
		// changed too would take a look at the base.
		d.folder(path, nil, n, false)
	}
}

// merge walks two sorted lists in step.
func merge(a, b []entry, do func(a, b *entry)) {
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(a) == 0 || len(b) > 0 && b[0].name < a[0].name:
			do(nil, &b[0])
			b = b[1:]
		case len(b) == 0 || a[0].name < b[0].name:
			do(&a[0], nil)
			a = a[1:]
		default:
			do(&a[0], &b[0])
			a, b = a[1:], b[1:]
		}
	}
}

// layer reads a writable layer.
type layer struct {
	ctx            context.Context
	entries, names int
	latest         unix.Timespec
}

// readLayer reads everything but the places that are allowed. The time is the
// latest change of any of it.
func readLayer(ctx context.Context, upper string) (entry, unix.Timespec, error) {
	l := &layer{ctx: ctx}
	fd, err := unix.Open(upper, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return entry{}, l.latest, &os.PathError{Op: "open", Path: upper, Err: err}
	}
	root := entry{mode: unix.S_IFDIR}
	err = l.folder(os.NewFile(uintptr(fd), upper), "", &root, 1)
	return root, l.latest, err
}

func (l *layer) folder(dir *os.File, path string, into *entry, depth int) error {
	defer dir.Close()
	if depth > maxDepth {
		return &tooMuchError{"/" + path, fmt.Sprintf("is inside of more than %d folders", maxDepth)}
	}
	if err := l.ctx.Err(); err != nil {
		return err
	}
	fd := int(dir.Fd())
	into.pure, into.bare = isNew(fd), true
	for {
		names, err := dir.Readdirnames(1024)
		into.bare = into.bare && len(names) == 0
		for _, name := range names {
			full := name
			if path != "" {
				full = path + "/" + name
			}
			if allowed[full] || allowedNames[name] {
				continue
			}
			l.entries++
			if l.names += len(name); l.entries > maxEntries || l.names > maxNames {
				return &tooMuchError{"/" + path, fmt.Sprintf("is where the limit of %d files was reached", maxEntries)}
			}
			var st unix.Stat_t
			if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return &os.PathError{Op: "stat", Path: dir.Name() + "/" + name, Err: err}
			}
			if later(st.Ctim, l.latest) {
				l.latest = st.Ctim
			}
			e := entry{name: name, mode: st.Mode, uid: st.Uid, gid: st.Gid, ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}
			e.whiteout = st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
			if e.dir() {
				n, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
				if err != nil {
					return &os.PathError{Op: "open", Path: dir.Name() + "/" + name, Err: err}
				}
				if err := l.folder(os.NewFile(uintptr(n), dir.Name()+"/"+name), full, &e, depth+1); err != nil {
					return err
				}
			}
			into.kids = append(into.kids, e)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	slices.SortFunc(into.kids, func(a, b entry) int { return cmp.Compare(a.name, b.name) })
	return nil
}

// isNew reports whether a folder of the layer is none of the base's that was
// copied up: the kernel marks those with the one they come from, even if it
// cannot name it. A new one in the place of an old one is marked opaque.
func isNew(fd int) bool {
	var buf [256]byte
	has := func(name string) bool {
		_, err := unix.Fgetxattr(fd, name, buf[:])
		return err == nil || err == unix.ERANGE
	}
	for _, overlay := range []string{"trusted.overlay.", "user.overlay.", "user.fuseoverlayfs."} {
		if n, err := unix.Fgetxattr(fd, overlay+"opaque", buf[:]); err == nil && bytes.Equal(buf[:n], []byte("y")) {
			return true
		}
		if has(overlay + "redirect") { // renamed
			return true
		}
		if has(overlay + "origin") {
			return false
		}
	}
	return true
}

// maxPaths is how many paths a failure lists.
const maxPaths = 100

// escaped fails the build when a step wrote outside of the staging directory.
func (r *run) escaped(ctx context.Context, s step, watch *escapes) error {
	changes, err := watch.look(ctx, r.ws.Upper)
	if err != nil {
		return r.unreadable(s.name, err)
	}
	if len(changes) == 0 {
		return nil
	}
	var paths, first []string
	for i, c := range changes {
		if i < maxPaths {
			paths = append(paths, shown(c.path))
		}
		if i < 3 {
			first = append(first, fmt.Sprintf("%s (%s)", shown(c.path), c.what))
		}
	}
	f := &quarry.Failure{Step: s.name, Cause: quarry.CauseEscape, Paths: paths,
		Message: fmt.Sprintf("%s changed %d %s outside of the staging directory ($DESTDIR): %s", s.name, len(changes),
			plural(len(changes), "path", "paths"), list(first, len(changes)))}
	if len(s.cmds) > 0 {
		f.Command = typed(s.cmds[len(s.cmds)-1])
	}
	r.fail(f)
	return nil
}
