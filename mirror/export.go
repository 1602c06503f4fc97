package mirror

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/durable"
	"github.com/Morphux/quarry/results"
)

// ExportOptions say what an export has, and where it goes.
type ExportOptions struct {
	Dir      string
	Results  *results.Reader
	Channels []string // none: all of the repository
	Default  string   // channel
	Records  bool     // the records and lists of files, as they are in git
	// Artifacts is where archives lie, "" for none, by their SHA-256.
	Artifacts func(sum string) string
	Prune     bool // remove archives that no list names
	Sign      func(data []byte) ([]byte, error)
	Signers   []byte // the file of allowed signers; nil: none
	Force     bool   // also when the channel has shrunk, or archives are missing
	Full      bool   // compare all, whatever the export says of itself
	// Grace is for how long files stay that clients may have been sent to.
	Grace    time.Duration
	Now      time.Time
	Progress func(Progress) // nil: nobody looks on
	Log      *slog.Logger
}

// Progress says how far an export has come.
type Progress struct {
	Channel     string
	Step        string // what is being done
	Done, Total int
}

// Exported is what an export did.
type Exported struct {
	Channels []ExportedChannel `json:"channels"`
	Pruned   int               `json:"pruned,omitempty"` // archives
}

// ExportedChannel is what an export did in one channel.
type ExportedChannel struct {
	Channel   string `json:"channel"`
	From      string `json:"from,omitempty"` // commit that was there, blank for none
	Commit    string `json:"commit"`
	Packages  int    `json:"packages"`
	Changed   int    `json:"changed"` // packages that were looked at
	Written   int    `json:"written"` // files
	Bytes     int64  `json:"bytes"`
	Removed   int    `json:"removed"`   // files
	Artifacts int    `json:"artifacts"` // that came
	Missing   int    `json:"missing,omitempty"`
}

// ErrShrunk is wrapped by the error for a channel that has lost more than half of
// its packages since it was exported.
var ErrShrunk = errors.New("it has shrunk")

const (
	ownDir = ".quarry" // of an export: what it knows of itself
	// pastExports is from how many earlier exports there are deltas.
	pastExports = 30
)

// exportState is what an export keeps of a channel.
type exportState struct {
	Schema int    `json:"schema"`
	Commit string `json:"commit,omitempty"` // that all is of
	// Pending are commits whose export began and did not end: some files may be of
	// them.
	Pending   []string `json:"pending,omitempty"`
	Past      []string `json:"past,omitempty"` // that were exported, the newest last
	Records   bool     `json:"records,omitempty"`
	Artifacts bool     `json:"artifacts,omitempty"`
	Text      int      `json:"text"` // textVersion
}

type exporter struct {
	ExportOptions
	out    *Exported
	loader loader
}

// Export writes the database into a folder, for a web server: what has changed
// since the last time. Who reads meanwhile, and after it was killed at any point,
// finds each file whole, and a head whose files are all there.
func Export(ctx context.Context, o ExportOptions) (*Exported, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	all, err := o.Results.Channels()
	if err != nil {
		return nil, err
	}
	if len(o.Channels) == 0 {
		o.Channels = all
	}
	e := &exporter{ExportOptions: o, out: &Exported{}}
	own := filepath.Join(o.Dir, ownDir)
	for _, dir := range []string{own, filepath.Join(o.Dir, "db")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	lock, err := os.OpenFile(filepath.Join(own, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("%s is being written by another export: wait for it", o.Dir)
	}
	// What the lock's file holds says that an export began and did not end.
	if info, err := lock.Stat(); err != nil {
		return nil, err
	} else if info.Size() > 0 {
		if err := e.halfWritten(); err != nil {
			return nil, err
		}
	}
	if _, err := lock.WriteAt([]byte("an export is at work\n"), 0); err != nil {
		return nil, err
	}
	defer lock.Truncate(0)
	if err := e.leftOut(all); err != nil {
		return nil, err
	}
	if o.Signers != nil {
		if _, err := e.place(SignersName, o.Signers); err != nil {
			return nil, err
		}
	}
	for _, channel := range o.Channels {
		s, err := o.Results.Other(channel)
		if err != nil {
			return nil, err
		}
		done, err := e.channel(ctx, s)
		if err != nil {
			return e.out, fmt.Errorf("channel %s: %w", channel, err)
		}
		if done != nil {
			e.out.Channels = append(e.out.Channels, *done)
		}
	}
	there, err := e.exported()
	if err != nil {
		return e.out, err
	}
	list, err := channelList(there, o.Default)
	if err == nil {
		_, err = e.place(ChannelsName, list)
	}
	if err == nil && o.Prune {
		e.out.Pruned, err = e.prune(there)
	}
	return e.out, err
}

// halfWritten removes what an export was writing when it was killed, wherever that
// was.
func (e *exporter) halfWritten() error {
	list, err := e.below(".")
	for _, name := range list {
		if err == nil && strings.HasPrefix(filepath.Base(name), newPrefix) {
			err = os.Remove(filepath.Join(e.Dir, name))
		}
	}
	return err
}

// exported lists the channels that the folder has.
func (e *exporter) exported() ([]string, error) {
	heads, err := filepath.Glob(filepath.Join(globEscape(e.Dir), "db", "*", "head.json"))
	var list []string
	for _, name := range heads {
		list = append(list, filepath.Base(filepath.Dir(name)))
	}
	slices.Sort(list)
	return list, err
}

func globEscape(dir string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(dir)
}

// leftOut sees to channels that the folder has and the repository has not.
func (e *exporter) leftOut(known []string) error {
	there, err := e.exported()
	if err != nil {
		return err
	}
	for _, channel := range there {
		if slices.Contains(known, channel) {
			continue
		}
		if !e.Force {
			return fmt.Errorf("%s has channel %s and the repository has not: if it is meant to go, say --force", e.Dir, channel)
		}
		// First the head, that nobody begins to read.
		dir := filepath.Join(e.Dir, "db", channel)
		if err := errors.Join(os.Remove(filepath.Join(dir, "head.json")), os.RemoveAll(dir), os.RemoveAll(e.statePath(channel))); err != nil {
			return err
		}
	}
	return nil
}

func (e *exporter) statePath(channel string) string {
	return filepath.Join(e.Dir, ownDir, channel+".json")
}

func (e *exporter) load(channel string) (*exportState, error) {
	st := &exportState{}
	data, err := os.ReadFile(e.statePath(channel))
	if errors.Is(err, fs.ErrNotExist) {
		return st, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, st); err != nil || st.Schema != Schema || st.Text != textVersion {
		return &exportState{}, nil // all is compared
	}
	return st, nil
}

func (e *exporter) save(channel string, st *exportState) error {
	st.Schema, st.Text = Schema, textVersion
	data, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(e.statePath(channel), append(data, '\n'), 0o644, newPrefix+"*")
}

// channel exports one channel. Its order is what keeps readers whole: what a head
// names, then the files of packages, then the head, and only then what goes.
func (e *exporter) channel(ctx context.Context, s *results.Snapshot) (*ExportedChannel, error) {
	name := s.Channel()
	done := &ExportedChannel{Channel: name, Commit: s.Commit()}
	state, err := e.load(name)
	if err != nil {
		return nil, err
	}
	if e.Full {
		state.Commit, state.Pending = "", nil
	}
	lay, err := openStage(filepath.Join(e.Dir, "db", name), e.Log)
	if err != nil {
		return nil, err
	}
	lay.anew = e.Full
	e.Progress(Progress{Channel: name, Step: "index"})
	head, err := lay.build(ctx, s, e.Now)
	if err != nil {
		return nil, err
	}
	done.Packages = head.Packages
	if was := lay.head; was != nil {
		done.From = was.Commit
		if !e.Force && head.Packages*2 < was.Packages {
			return nil, fmt.Errorf("%w from %d packages to %d since it was exported, and the export stays as it is: if that is meant, say --force", ErrShrunk, was.Packages, head.Packages)
		}
	}
	if head.Packages == 0 && lay.head == nil && !e.Force {
		e.Log.Warn("a channel without packages is left out", "channel", name)
		return nil, nil
	}
	crashed := len(state.Pending) > 0
	names, full, err := e.changed(ctx, s, state)
	if err != nil {
		return nil, err
	}
	done.Changed = len(names)
	if e.Artifacts != nil {
		if err := e.artifacts(ctx, s, names, full || !state.Artifacts, done); err != nil {
			return nil, err
		}
	}
	if !slices.Contains(state.Pending, s.Commit()) {
		state.Pending = append(state.Pending, s.Commit())
	}
	if err := e.save(name, state); err != nil {
		return nil, err
	}
	records := names
	if e.Records && !state.Records && !full {
		all, err := s.Folders(ctx, nil)
		if err != nil {
			return nil, err
		}
		records = all.Names()
	}
	gone, err := e.packages(ctx, s, names, records, done)
	if err != nil {
		return nil, err
	}
	made, err := e.deltas(ctx, s, state, head, done)
	if err != nil {
		return nil, err
	}
	if err := syncAll(e.Dir); err != nil {
		return nil, err
	}
	if _, err := lay.show(head, e.Sign, e.Now); err != nil {
		return nil, err
	}
	for _, path := range gone {
		if err := e.remove(path, done); err != nil {
			return nil, err
		}
	}
	if full || crashed {
		if err := e.strays(ctx, s, done); err != nil {
			return nil, err
		}
	}
	if !e.Records && state.Records {
		if err := os.RemoveAll(filepath.Join(lay.dir, "records")); err != nil {
			return nil, err
		}
	}
	if n := len(state.Past); n == 0 || state.Past[n-1] != s.Commit() {
		state.Past = append(slices.DeleteFunc(state.Past, func(c string) bool { return c == s.Commit() }), s.Commit())
	}
	state.Past = state.Past[max(0, len(state.Past)-pastExports-1):]
	state.Commit, state.Pending, state.Records, state.Artifacts = s.Commit(), nil, e.Records, e.Artifacts != nil
	if err := e.save(name, state); err != nil {
		return nil, err
	}
	swept, err := lay.sweep(e.Now, e.Grace)
	done.Removed += swept
	if err == nil {
		err = e.oldDeltas(lay.dir, made, done)
	}
	return done, err
}

// changed lists the packages whose files may not be what they must be; full says
// that these are all.
func (e *exporter) changed(ctx context.Context, s *results.Snapshot, state *exportState) (names []string, full bool, err error) {
	set := map[string]bool{}
	bases := state.Pending
	if state.Commit != "" {
		bases = append([]string{state.Commit}, bases...)
	}
	for _, commit := range bases {
		before, err := s.AsOf(commit)
		var folders results.Folders
		if err == nil {
			folders, err = s.Folders(ctx, before)
		}
		if ctx.Err() != nil {
			return nil, false, context.Cause(ctx)
		}
		if err != nil {
			e.Log.Warn("what was exported is in the repository no more: all is compared", "channel", s.Channel(), "commit", commit, "err", err)
			state.Commit = ""
			break
		}
		for name := range folders {
			set[name] = true
		}
	}
	if state.Commit != "" {
		return slices.Sorted(maps.Keys(set)), false, nil
	}
	all, err := s.Folders(ctx, nil)
	for name := range all {
		set[name] = true // with those that are gone, as far as is known
	}
	return slices.Sorted(maps.Keys(set)), true, err
}

// packages brings the files of packages up to date. It returns the paths of what
// has to go when the head is there.
func (e *exporter) packages(ctx context.Context, s *results.Snapshot, names, records []string, done *ExportedChannel) (gone []string, err error) {
	channel := s.Channel()
	for i, chunk := range chunks(names) {
		e.Progress(Progress{channel, "packages", i, len(names)})
		list, err := s.Load(ctx, chunk, nil)
		if err != nil {
			return nil, err
		}
		for _, p := range list {
			if len(p.Entries) == 0 {
				gone = append(gone, PackageName(channel, p.Name))
				continue
			}
			if err := e.put(PackageName(channel, p.Name), packageText(channel, p), done); err != nil {
				return nil, err
			}
		}
	}
	if !e.Records {
		return gone, nil
	}
	for i, name := range records {
		if i%some == 0 {
			e.Progress(Progress{channel, "records", i, len(records)})
		}
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		files, err := s.Beside(name)
		if err != nil {
			return nil, err
		}
		dir := InChannel(channel, recordPrefix+results.Spread(name))
		for file, id := range files {
			data, err := s.ReadBlob(id)
			if err != nil {
				e.Log.Warn("a file is left out of the mirror", "channel", channel, "package", name, "file", file, "err", err)
				continue
			}
			if err := e.put(dir+"/"+file, data, done); err != nil {
				return nil, err
			}
		}
		there, err := e.below(dir)
		if err != nil {
			return nil, err
		}
		for _, file := range there {
			if _, ok := files[strings.TrimPrefix(file, dir+"/")]; !ok {
				gone = append(gone, file)
			}
		}
	}
	return gone, nil
}

func chunks(names []string) func(func(int, []string) bool) {
	return func(yield func(int, []string) bool) {
		for i := 0; i < len(names); i += some {
			if !yield(i, names[i:min(i+some, len(names))]) {
				return
			}
		}
	}
}

// below lists the files below a folder of the export, by their names.
func (e *exporter) below(dir string) (list []string, err error) {
	root := filepath.Join(e.Dir, dir)
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && !d.IsDir() {
			list = append(list, dir+filepath.ToSlash(strings.TrimPrefix(path, root)))
		}
		return err
	})
	return list, err
}

// strays removes what belongs to no package: what a killed export left behind, and
// what somebody else put there.
func (e *exporter) strays(ctx context.Context, s *results.Snapshot, done *ExportedChannel) error {
	for _, top := range []string{packagePrefix, recordPrefix} {
		list, err := e.below(InChannel(s.Channel(), strings.TrimSuffix(top, "/")))
		if err != nil {
			return err
		}
		for _, path := range list {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			at := strings.TrimPrefix(path, InChannel(s.Channel(), top))
			there := ""
			if top == recordPrefix {
				there, err = s.Blob(at)
			} else if name := strings.TrimSuffix(filepath.Base(at), textExt); PackageName(s.Channel(), name) == path && quarry.CheckName(name) == nil {
				there, err = s.Folder(name)
			}
			if err == nil && there == "" {
				err = e.remove(path, done)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// put makes a file what it must be. It is not synced: that is done for all at once,
// before the head.
func (e *exporter) put(name string, data []byte, done *ExportedChannel) error {
	wrote, err := e.replace(name, data)
	if wrote {
		done.Written++
		done.Bytes += int64(len(data))
	}
	return err
}

// place replaces a file that belongs to no channel.
func (e *exporter) place(name string, data []byte) (bool, error) {
	wrote, err := e.replace(name, data)
	if err == nil && wrote {
		err = syncAll(e.Dir)
	}
	return wrote, err
}

func (e *exporter) replace(name string, data []byte) (wrote bool, err error) {
	path := filepath.Join(e.Dir, name)
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return false, nil
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, newPrefix+"*")
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(dir, 0o755); err == nil {
			f, err = os.CreateTemp(dir, newPrefix+"*")
		}
	}
	if err != nil {
		return false, err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return true, err
}

// remove removes a file, and the folders above it that are empty then.
func (e *exporter) remove(name string, done *ExportedChannel) error {
	path := filepath.Join(e.Dir, name)
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	done.Removed++
	top := filepath.Join(e.Dir, "db", done.Channel)
	for dir := filepath.Dir(path); filepath.Dir(dir) != top && os.Remove(dir) == nil; dir = filepath.Dir(dir) {
	}
	return nil
}

// syncAll has all that was written to a file system outlast a loss of power.
func syncAll(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}

// deltas writes the deltas from earlier exports, and returns the names of all that
// there are to the head that is to come.
func (e *exporter) deltas(ctx context.Context, s *results.Snapshot, state *exportState, head *Head, done *ExportedChannel) (map[string]bool, error) {
	made := map[string]bool{}
	archs := slices.Sorted(maps.Keys(head.Index))
	past := slices.DeleteFunc(slices.Clone(state.Past), func(c string) bool { return c == s.Commit() })
	for i, commit := range past[max(0, len(past)-pastExports):] {
		e.Progress(Progress{s.Channel(), "deltas", i, len(past)})
		before, err := s.AsOf(commit)
		if err != nil {
			continue // somebody put another repository here
		}
		missing := false
		for _, arch := range archs {
			for _, k := range Kinds {
				name := deltaName(k, arch, commit, s.Commit())
				made[name] = true
				_, err := os.Stat(filepath.Join(e.Dir, InChannel(s.Channel(), name)))
				missing = missing || err != nil
			}
		}
		if !missing {
			continue
		}
		all, err := e.loader.deltas(ctx, before, s, archs, deltaLimit(head.Packages))
		if errors.Is(err, errLarge) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for name, data := range all {
			if err := e.put(InChannel(s.Channel(), name), data, done); err != nil {
				return nil, err
			}
		}
	}
	return made, nil
}

// oldDeltas removes the deltas to heads of long ago.
func (e *exporter) oldDeltas(dir string, made map[string]bool, done *ExportedChannel) error {
	for _, k := range Kinds {
		list, err := os.ReadDir(filepath.Join(dir, "delta", string(k)))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, f := range list {
			if made["delta/"+string(k)+"/"+f.Name()] {
				continue
			}
			info, err := f.Info()
			if err != nil {
				return err
			}
			if e.Now.Sub(info.ModTime()) < e.Grace {
				continue
			}
			if err := os.Remove(filepath.Join(dir, "delta", string(k), f.Name())); err != nil {
				return err
			}
			done.Removed++
		}
	}
	return nil
}

// artifacts brings the archives of packages, of all for all.
func (e *exporter) artifacts(ctx context.Context, s *results.Snapshot, names []string, all bool, done *ExportedChannel) error {
	if all {
		folders, err := s.Folders(ctx, nil)
		if err != nil {
			return err
		}
		names = folders.Names()
	}
	var missing []string
	for i, chunk := range chunks(names) {
		e.Progress(Progress{s.Channel(), "artifacts", i, len(names)})
		list, err := s.Load(ctx, chunk, nil)
		if err != nil {
			return err
		}
		for _, p := range list {
			for _, entry := range p.Entries {
				sum := entry.Artifact()
				if sum == "" {
					continue
				}
				came, err := e.bring(ctx, sum)
				if errors.Is(err, fs.ErrNotExist) {
					missing = append(missing, fmt.Sprintf("%s of %s", sum, entry))
					continue
				}
				if err != nil {
					return fmt.Errorf("artifact %s of %s: %w", sum, entry, err)
				}
				if came {
					done.Artifacts++
				}
			}
		}
	}
	if done.Missing = len(missing); done.Missing > 0 {
		if !e.Force {
			return fmt.Errorf("%d artifacts are not in the store, the first is %s: build these again, or say --force", len(missing), missing[0])
		}
		e.Log.Warn("artifacts are missing from the export", "count", len(missing), "first", missing[0])
	}
	return nil
}

// bring gives the export an archive: a link where the file system can, else a copy.
func (e *exporter) bring(ctx context.Context, sum string) (bool, error) {
	to := filepath.Join(e.Dir, ArtifactName(sum))
	if _, err := os.Stat(to); err == nil {
		return false, nil
	}
	from := e.Artifacts(sum)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return false, err
	}
	err := os.Link(from, to)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return err == nil, nil
	}
	in, err := os.Open(from)
	if err != nil {
		return false, err
	}
	defer in.Close()
	out, err := os.CreateTemp(filepath.Dir(to), newPrefix+"*")
	if err != nil {
		return false, err
	}
	_, err = io.Copy(out, in)
	if err = errors.Join(err, ctx.Err(), out.Chmod(0o644), out.Sync(), out.Close()); err == nil {
		err = os.Rename(out.Name(), to)
	}
	if err != nil {
		os.Remove(out.Name())
	}
	return err == nil, err
}

// prune removes the archives that no list of any channel has named for a while.
func (e *exporter) prune(channels []string) (gone int, err error) {
	wanted := map[string]bool{}
	for _, channel := range channels {
		data, err := os.ReadFile(filepath.Join(e.Dir, HeadName(channel)))
		if err != nil {
			return 0, err
		}
		h, err := ParseHead(data)
		if err != nil {
			return 0, err
		}
		for _, k := range Kinds {
			for _, f := range h.Files(k) {
				packed, err := os.ReadFile(filepath.Join(e.Dir, InChannel(channel, f.Name)))
				if err != nil {
					return 0, err
				}
				text, err := f.Unpack(packed)
				if err != nil {
					return 0, err
				}
				list, err := ParseList(text)
				if err != nil {
					return 0, err
				}
				for _, p := range list.Packages {
					wanted[p.Artifact] = true
				}
			}
		}
	}
	path := filepath.Join(e.Dir, ownDir, "unwanted.json")
	since := map[string]time.Time{}
	if data, err := os.ReadFile(path); err == nil {
		if json.Unmarshal(data, &since) != nil {
			since = map[string]time.Time{} // their time begins again
		}
	}
	list, err := e.below("artifacts")
	if err != nil {
		return 0, err
	}
	still := map[string]time.Time{}
	for _, name := range list {
		sum := strings.TrimSuffix(filepath.Base(name), ".tar.zst")
		if wanted[sum] {
			continue
		}
		first, ok := since[sum]
		if !ok {
			first = e.Now
		}
		if e.Now.Sub(first) < e.Grace {
			still[sum] = first
			continue
		}
		if err := os.Remove(filepath.Join(e.Dir, name)); err != nil {
			return gone, err
		}
		gone++
	}
	data, err := json.Marshal(still)
	if err != nil {
		return gone, err
	}
	return gone, durable.WriteFile(path, data, 0o644, newPrefix+"*")
}
