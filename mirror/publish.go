package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/durable"
	"github.com/Morphux/quarry/results"
)

// A head is good for life after the day on which it was made has begun; so it is
// renewed once a day, and everybody who makes one on the same day says the same.
const (
	day  = 24 * time.Hour
	life = 8 * day
)

func expires(now time.Time) time.Time { return now.UTC().Truncate(day).Add(life) }

// some is how many packages are read at a time.
const some = 1024

// entriesOf are a package's entries in the lists of an arch: that of its newest
// version, and all others.
func entriesOf(p *results.Package, arch string) (newest, older []byte) {
	var list []*results.Entry
	for i := 0; i < len(p.Entries); {
		// Of one version, the arch's own goes before noarch.
		end := i
		for end < len(p.Entries) && p.Entries[end].Version == p.Entries[i].Version {
			end++
		}
		for _, own := range []bool{true, false} {
			for _, e := range p.Entries[i:end] {
				if e.Fault == nil && (e.Arch == arch) == own && (own || e.Arch == quarry.Noarch) {
					list = append(list, e)
				}
			}
		}
		i = end
	}
	var w writer
	for i, e := range list {
		w.entry(e, arch)
		if i == 0 {
			newest, w.b = w.b, nil
		}
	}
	return newest, w.b
}

// packageText is a package's file.
func packageText(channel string, p *results.Package) []byte {
	l := List{Channel: channel}
	w := writer{b: []byte(l.head())}
	for _, e := range p.Entries {
		if e.Fault == nil {
			w.entry(e, "")
		}
	}
	return w.b
}

// archsOf adds the archs that packages are built for.
func archsOf(list []*results.Package, to map[string]bool) {
	for _, p := range list {
		for _, e := range p.Entries {
			if e.Fault == nil {
				to[e.Arch] = true
			}
		}
	}
}

// stage is a channel's folder, with the head that is in it.
type stage struct {
	dir  string
	head *Head // nil: none that can be built on
	anew bool  // lists are made out of nothing all the same
	log  *slog.Logger

	loader *loader // nil: none
}

// openStage reads what a folder has. A head that is of nothing, or of files that
// are gone, is none.
func openStage(dir string, log *slog.Logger) (*stage, error) {
	st := &stage{dir: dir, log: log}
	for _, name := range []string{string(Newest), string(Older), "sig"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return nil, err
		}
	}
	// A head that was being written when its writer was killed; sweep sees to lists.
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), newPrefix) {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return nil, err
			}
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, "head.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return st, nil
	}
	if err != nil {
		return nil, err
	}
	h, err := ParseHead(data)
	if err != nil {
		log.Warn("the head of a mirror cannot be read: it is made anew", "dir", dir, "err", err)
		return st, nil
	}
	for _, k := range Kinds {
		for _, f := range h.Files(k) {
			if info, err := os.Stat(filepath.Join(dir, f.Name)); err != nil || info.Size() != f.Size {
				log.Warn("a list of a mirror is missing: it is made anew", "dir", dir, "list", f.Name)
				return st, nil
			}
		}
	}
	st.head = h
	return st, nil
}

// build writes the lists of a snapshot into the stage, beside those that are
// there, and makes a head for them, which nobody sees yet.
func (st *stage) build(ctx context.Context, s *results.Snapshot, now time.Time) (*Head, error) {
	h := &Head{Schema: Schema, Channel: s.Channel(), Commit: s.Commit(), Time: s.Time().UTC(), Expires: expires(now)}
	on := st.head != nil && st.head.Channel == h.Channel && !st.anew
	if on && st.head.Commit == h.Commit {
		h.Packages, h.Index, h.Older = st.head.Packages, st.head.Index, st.head.Older
		return h, nil
	}
	if on {
		before, err := s.AsOf(st.head.Commit)
		if err == nil {
			err = st.lists(ctx, h, s, before)
		}
		if err == nil || ctx.Err() != nil {
			return h, err
		}
		if !errors.Is(err, errArch) {
			st.log.Warn("lists of a mirror cannot be built on: they are made anew", "dir", st.dir, "err", err)
		}
	}
	return h, st.lists(ctx, h, s, nil)
}

// errArch says that an arch has come of which there is no list to build on.
var errArch = errors.New("there is a new arch")

// lists makes the lists of a head, out of those of a snapshot before; nil: out of
// nothing.
func (st *stage) lists(ctx context.Context, h *Head, s, before *results.Snapshot) error {
	folders, err := s.Folders(ctx, before)
	if err != nil {
		return err
	}
	archs := map[string]bool{}
	if before != nil {
		for arch := range st.head.Index {
			archs[arch] = true
		}
		if h.Packages, err = count(st.head.Packages, folders, before); err != nil {
			return err
		}
	} else {
		h.Packages = len(folders)
	}
	for {
		known := len(archs)
		err := st.write(ctx, h, s, before, folders.Names(), archs)
		if !errors.Is(err, errArch) || before != nil || len(archs) == known {
			return err
		}
	}
}

// count is how many packages there are after some have changed.
func count(n int, folders results.Folders, before *results.Snapshot) (int, error) {
	for name, now := range folders {
		was, err := before.Folder(name)
		if err != nil {
			return 0, err
		}
		switch {
		case was == "" && now != "":
			n++
		case was != "" && now == "":
			n--
		}
	}
	return n, nil
}

// listing is a list that is being written.
type listing struct {
	kind    Kind
	arch    string
	changes chan change
	file    File
	own     int
	tmp     string
}

// write writes the lists of some archs. When a package is of another one, that is
// added to them, and the error is errArch.
func (st *stage) write(ctx context.Context, h *Head, s, before *results.Snapshot, names []string, archs map[string]bool) (err error) {
	g, ctx := errgroup.WithContext(ctx)
	var open []*listing
	closed := false
	finish := func() error {
		if !closed {
			closed = true
			for _, l := range open {
				close(l.changes)
			}
		}
		return g.Wait()
	}
	defer func() {
		finish()
		for _, l := range open {
			if l.tmp != "" {
				os.Remove(l.tmp)
			}
		}
	}()
	begin := func(arch string) {
		for _, k := range Kinds {
			l := &listing{kind: k, arch: arch, changes: make(chan change, 64)}
			open = append(open, l)
			old := ""
			if before != nil {
				old = filepath.Base(st.head.Files(k)[arch].Name)
				if old == "." {
					old = ""
				}
			}
			g.Go(func() (err error) {
				l.file, l.own, l.tmp, err = writeList(filepath.Join(st.dir, string(k)), old, &List{Channel: s.Channel(), Arch: arch}, l.changes)
				return err
			})
		}
	}
	for _, arch := range slices.Sorted(maps.Keys(archs)) {
		begin(arch)
	}
	noarch := before != nil
	load := func(chunk []string) ([]*results.Package, error) { return s.Load(ctx, chunk, nil) }
	if st.loader != nil && len(names) <= some {
		load = func(chunk []string) ([]*results.Package, error) { return st.loader.load(ctx, s, chunk) }
	}
	for chunk := range slices.Chunk(names, some) {
		list, err := load(chunk)
		if err != nil {
			return err
		}
		come := map[string]bool{}
		archsOf(list, come)
		for _, arch := range slices.Sorted(maps.Keys(come)) {
			if archs[arch] {
				continue
			}
			archs[arch] = true
			if noarch {
				// Its lists have packages that have gone by.
				return errArch
			}
			begin(arch)
		}
		noarch = noarch || come[quarry.Noarch]
		for _, p := range list {
			for _, problem := range p.Problems {
				st.log.Warn("a record is left out of the mirror", "channel", s.Channel(), "problem", problem)
			}
		}
		for i := 0; i < len(open); i += len(Kinds) {
			for _, p := range list {
				newest, older := entriesOf(p, open[i].arch)
				for j, with := range [][]byte{newest, older} {
					select {
					case open[i+j].changes <- change{p.Name, with}:
					case <-ctx.Done():
						return errors.Join(context.Cause(ctx), finish())
					}
				}
			}
		}
	}
	if err := finish(); err != nil {
		return err
	}
	h.Index, h.Older = map[string]File{}, nil
	for i := 0; i < len(open); i += len(Kinds) {
		newest, older := open[i], open[i+1]
		if newest.own+older.own == 0 {
			continue // an arch that nothing is built for any more
		}
		if h.Index[newest.arch], err = st.place(newest); err != nil {
			return err
		}
		if older.file.Packages == 0 {
			continue
		}
		if h.Older == nil {
			h.Older = map[string]File{}
		}
		if h.Older[older.arch], err = st.place(older); err != nil {
			return err
		}
	}
	for _, k := range Kinds {
		if err := durable.SyncDir(filepath.Join(st.dir, string(k))); err != nil {
			return err
		}
	}
	return nil
}

// place gives a list its name.
func (st *stage) place(l *listing) (File, error) {
	l.file.Name = listName(l.kind, l.arch, l.file.SHA256)
	tmp := l.tmp
	l.tmp = ""
	if err := os.Rename(tmp, filepath.Join(st.dir, l.file.Name)); err != nil {
		return l.file, errors.Join(err, os.Remove(tmp))
	}
	return l.file, nil
}

// show makes a head the stage's: the signature first. From then on the files of
// the head before are old.
func (st *stage) show(h *Head, sign func([]byte) ([]byte, error), now time.Time) (data []byte, err error) {
	if data, err = h.marshal(); err != nil {
		return nil, err
	}
	if sign != nil {
		sig, err := sign(data)
		if err != nil {
			return nil, fmt.Errorf("the head of channel %s cannot be signed: %w", h.Channel, err)
		}
		if err := st.put(signature(data), sig); err != nil {
			return nil, err
		}
	}
	if err := st.put("head.json", data); err != nil {
		return nil, err
	}
	before := st.head
	st.head = h
	if before == nil {
		return data, nil
	}
	gone := []string{}
	old, err := before.marshal()
	if err != nil {
		return nil, err
	}
	if string(old) != string(data) {
		gone = append(gone, signature(old))
	}
	for _, k := range Kinds {
		for arch, f := range before.Files(k) {
			if h.Files(k)[arch].Name != f.Name {
				gone = append(gone, f.Name)
			}
		}
	}
	for _, name := range gone {
		// The time of a file says since when nobody is sent to it.
		if err := os.Chtimes(filepath.Join(st.dir, name), now, now); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return data, nil
}

// put replaces a small file. One that is the same stays, so that who asks when it
// has changed is told right.
func (st *stage) put(name string, data []byte) error {
	path := filepath.Join(st.dir, name)
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return nil
	}
	return durable.WriteFile(path, data, 0o644, newPrefix+"*")
}

// sweep removes lists and signatures that nobody was sent to for a while.
func (st *stage) sweep(now time.Time, grace time.Duration) (gone int, err error) {
	keep := map[string]bool{}
	if st.head != nil {
		data, err := st.head.marshal()
		if err != nil {
			return 0, err
		}
		keep[signature(data)] = true
		for _, k := range Kinds {
			for _, f := range st.head.Files(k) {
				keep[f.Name] = true
			}
		}
	}
	for _, name := range []string{string(Newest), string(Older), "sig"} {
		list, err := os.ReadDir(filepath.Join(st.dir, name))
		if err != nil {
			return gone, err
		}
		for _, e := range list {
			info, err := e.Info()
			if errors.Is(err, fs.ErrNotExist) || keep[name+"/"+e.Name()] {
				continue
			}
			// What was being written is of somebody who was killed: nobody else is at it.
			if err == nil && !strings.HasPrefix(e.Name(), newPrefix) && now.Sub(info.ModTime()) < grace {
				continue
			}
			if err == nil {
				err = os.Remove(filepath.Join(st.dir, name, e.Name()))
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return gone, err
			}
			gone++
		}
	}
	return gone, nil
}
