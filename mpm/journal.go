package mpm

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/durable"
	"github.com/Morphux/quarry/results"
)

type unixStat = syscall.Stat_t

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// The steps of a change. Each may be done again after it was done.
const (
	opFolder       = "folder"        // make one, if none is there
	opPut          = "put"           // move a file from the stage to its place
	opRemove       = "remove"        // a file
	opRemoveFolder = "remove-folder" // if it is empty
)

// op is a step of a change. Path is relative to the root, and leads through no link.
type op struct {
	Kind string `toml:"kind"`
	Path string `toml:"path"`
	From string `toml:"from,omitempty"` // in the stage
	Mode uint32 `toml:"mode,omitempty"`
	UID  int    `toml:"uid,omitempty"`
	GID  int    `toml:"gid,omitempty"`
	Time int64  `toml:"time,omitempty"` // seconds since 1970
}

// journal is what is done of a change once it has begun. Before it stands nothing
// of the root has changed; from then on it is carried out to its end, by whoever
// comes.
type journal struct {
	Schema int    `toml:"schema"`
	What   string `toml:"what"` // for people, e.g. install greeter 1.0
	Ops    []op   `toml:"op"`
}

// note writes the entry of a package into the stage.
func (c *change) note(entry *Installed, files []quarry.File) error {
	data, err := marshal(entry)
	if err != nil {
		return err
	}
	list, err := results.MarshalFiles(entry.Package, entry.Version, entry.Arch, files)
	if err != nil {
		return err
	}
	// The list first: the entry says that it is there.
	return errors.Join(c.stage(path.Join(installed, entry.Package+".files.toml"), list), c.stage(path.Join(installed, entry.Package+".toml"), data))
}

// stage writes a file of the database into the stage, to be put into its place
// after all others.
func (c *change) stage(name string, data []byte) error {
	from := path.Join("db", name)
	file := filepath.Join(c.staged, from)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	crash()
	c.after = append(c.after, op{Kind: opPut, Path: path.Join(c.r.db, name), From: from})
	return os.WriteFile(file, data, 0o644)
}

// commit carries a change out. Once the journal stands it goes to its end, here or
// when the root is opened next.
func (c *change) commit(what string) error {
	for _, name := range sortedKeys(c.old) {
		file := path.Join(installed, name+".toml")
		if _, err := os.Stat(filepath.Join(c.staged, "db", file)); err == nil {
			continue // another version comes
		}
		c.after = append(c.after, op{Kind: opRemove, Path: path.Join(c.r.db, file)}, op{Kind: opRemove, Path: path.Join(c.r.db, installed, name+".files.toml")})
	}
	data, err := marshal(folders{rootSchema, sortedKeys(c.made)})
	if err == nil {
		err = c.stage(foldersFile, data)
	}
	if err != nil {
		return err
	}
	if data, err = marshal(journal{rootSchema, what, append(c.ops, c.after...)}); err != nil {
		return err
	}
	// What is staged is on disk before anything says that it is to be moved.
	crash()
	if err := c.r.sync(); err != nil {
		return err
	}
	crash()
	if err := durable.WriteFile(c.r.path(journalFile), data, 0o600, ".journal-*"); err != nil {
		return err
	}
	crash()
	if _, err := c.r.recover(); err != nil {
		return fmt.Errorf("%s is not finished, the next call goes on with it: %w", what, err)
	}
	return c.r.load()
}

// abort leaves the root as it is.
func (c *change) abort() error { return os.RemoveAll(c.staged) }

func (r *Root) sync() error { return unix.Syncfs(int(r.lock.Fd())) }

// recover carries out the journal, if there is one, and clears the stage.
func (r *Root) recover() (what string, err error) {
	var j journal
	switch err := readTOML(r.path(journalFile), &j); {
	case errors.Is(err, fs.ErrNotExist):
		return "", r.clear()
	case err != nil:
		return "", err
	case j.Schema != rootSchema:
		return "", fmt.Errorf("its journal is of schema %d, and this reads %d: a newer version is needed", j.Schema, rootSchema)
	}
	for _, o := range j.Ops {
		crash()
		if err := r.do(o); err != nil {
			return "", fmt.Errorf("%s: /%s: %w", j.What, o.Path, err)
		}
	}
	// Folders last, as what is put into them gives them another time.
	for _, o := range slices.Backward(j.Ops) {
		if o.Kind == opFolder {
			r.setTime(o)
		}
	}
	crash()
	if err := r.sync(); err != nil {
		return "", err
	}
	if err := os.Remove(r.path(journalFile)); err != nil {
		return "", err
	}
	crash()
	if err := durable.SyncDir(r.path()); err != nil {
		return "", err
	}
	return j.What, r.clear()
}

// clear removes what no journal speaks of.
func (r *Root) clear() error {
	left, err := filepath.Glob(r.path(".journal-*"))
	for _, name := range append(left, r.path(stageDir)) {
		crash()
		err = errors.Join(err, os.RemoveAll(name))
	}
	return err
}

// do carries out a step, whether or not it was done before.
func (r *Root) do(o op) error {
	d, err := r.fs.Real(path.Dir("/" + o.Path)[1:])
	if errors.Is(err, fs.ErrNotExist) && (o.Kind == opRemove || o.Kind == opRemoveFolder) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Close()
	dir, base := int(d.Fd()), path.Base(o.Path)
	switch o.Kind {
	case opFolder:
		return r.folder(dir, base, o)
	case opPut:
		if o.From == "" || !filepath.IsLocal(o.From) {
			return fmt.Errorf("the journal is damaged: %.80q is no file of the stage", o.From)
		}
		err := unix.Renameat(unix.AT_FDCWD, r.path(stageDir, o.From), dir, base)
		if errors.Is(err, unix.ENOENT) {
			return nil // it was done
		}
		return err
	case opRemove:
		err := unix.Unlinkat(dir, base, 0)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EISDIR) {
			return nil
		}
		return err
	case opRemoveFolder:
		err := unix.Unlinkat(dir, base, unix.AT_REMOVEDIR)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EBUSY) {
			return nil // something of somebody else's is in it, or it is another thing by now
		}
		return err
	}
	return fmt.Errorf("the journal is damaged: %.40q is no step", o.Kind)
}

func (r *Root) folder(dir int, base string, o op) error {
	// Nobody may look into it before it has its owner and mode.
	err := unix.Mkdirat(dir, base, 0o700)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	crash()
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if os.Geteuid() == 0 {
		if err := unix.Fchown(fd, o.UID, o.GID); err != nil {
			return err
		}
	}
	return unix.Fchmod(fd, o.Mode)
}

// setTime gives a folder the time that it was packed with, where that can be.
func (r *Root) setTime(o op) {
	d, err := r.fs.Real(path.Dir("/" + o.Path)[1:])
	if err != nil {
		return
	}
	defer d.Close()
	ts := unix.NsecToTimespec(time.Unix(o.Time, 0).UnixNano())
	unix.UtimesNanoAt(int(d.Fd()), path.Base(o.Path), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}
