package results

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/Morphux/quarry"
)

// ErrObsolete is wrapped by the error of [Repo.Record] for an outcome that
// comes after the record of a newer build: a slow old build never overwrites a
// newer one.
var ErrObsolete = errors.New("a newer build has a record")

// casTries is how often Record begins again because somebody else has moved
// the branch meanwhile. The farm is the only regular writer, so one is rare.
const casTries = 20

// politeTries is how many of them hold the branch only for the moment of its
// move. After that it is held for the whole of the work, so that somebody
// quicker cannot win for ever.
const politeTries = 3

// Record writes one outcome as one commit on its channel and returns the
// commit's id. When it returns without an error, the commit and the branch are
// on disk.
//
// A success goes to packages/, with the list of its files, and removes the
// failure of the same target. A failure goes to failures/ and leaves an older
// success where it is. An outcome whose key already has a record writes nothing
// and returns the commit that wrote it (or, should that lie further back than
// ten thousand commits, the newest commit, which holds the record as well).
// An outcome with a lower build number than the newest record of its target is
// refused with [ErrObsolete].
//
// Other errors are the farm's: a full disk (wrapping ENOSPC), a branch kept
// locked ([ErrLocked]). They leave nothing that a reader could see, except that
// after a failed sync of the branch's folder the commit may stand: recording
// the outcome once more settles it.
func (r *Repo) Record(ctx context.Context, o *quarry.Outcome) (string, error) {
	rec, err := NewRecord(o, r.opts.SBU)
	if err != nil {
		return "", err
	}
	list, err := filesText(rec, o)
	var proof Provenance
	if err == nil {
		proof, err = r.prove(rec)
	}
	if err == nil {
		// What cannot be written is known before anything is.
		_, err = recordEdits(rec, list, proof)
	}
	if err != nil {
		return "", fmt.Errorf("%v cannot be recorded: %w", o.Build, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	h, err := r.attempt(ctx, rec.Channel, func(lock *refLock, tip plumbing.Hash) (plumbing.Hash, error) {
		return r.record(ctx, rec, o.Build, list, proof, lock, tip)
	})
	if err != nil {
		return "", fmt.Errorf("%v cannot be recorded in %s: %w", o.Build, r.path, err)
	}
	return h.String(), nil
}

// attempt has try make a channel's next commit from its tip, and begin again when
// somebody else has moved the branch meanwhile, which try says with errMoved. lock
// is the branch's while it is held for the whole of the work, else nil: see
// politeTries. r.mu is held.
func (r *Repo) attempt(ctx context.Context, channel string, try func(lock *refLock, tip plumbing.Hash) (plumbing.Hash, error)) (plumbing.Hash, error) {
	for n := range casTries {
		if err := ctx.Err(); err != nil {
			return plumbing.ZeroHash, err
		}
		h, err := r.once(ctx, channel, n >= politeTries, try)
		if !errors.Is(err, errMoved) {
			return h, err
		}
		time.Sleep(rand.N(time.Duration(n+1) * 5 * time.Millisecond))
	}
	return plumbing.ZeroHash, fmt.Errorf("others moved the branch %s %d times meanwhile", channel, casTries)
}

func (r *Repo) once(ctx context.Context, channel string, hold bool, try func(lock *refLock, tip plumbing.Hash) (plumbing.Hash, error)) (plumbing.Hash, error) {
	var lock *refLock
	if hold { // others keep moving the branch: they wait this time
		var err error
		if lock, err = r.holdRef(ctx, channel); err != nil {
			return plumbing.ZeroHash, err
		}
		defer lock.release()
	}
	tip, err := readRef(r.path, channel)
	if err != nil {
		return tip, err
	}
	return try(lock, tip)
}

// filesText is the list of files of a success.
func filesText(rec *Record, o *quarry.Outcome) ([]byte, error) {
	if rec.Status == quarry.Failed {
		return nil, nil
	}
	var files []quarry.File
	if o.Facts != nil {
		files = o.Facts.Files
	}
	list, err := MarshalFiles(rec.Package, rec.Version, rec.Arch, files)
	if err == nil && len(list) > maxObject {
		err = fmt.Errorf("its list of files has %d bytes: %d is the most", len(list), maxObject)
	}
	return list, err
}

func recordEdits(rec *Record, list []byte, proof Provenance) ([]edit, error) {
	t := rec.Target()
	text, err := rec.Marshal()
	if err != nil {
		return nil, err
	}
	if len(text) > maxRecord {
		return nil, fmt.Errorf("its record has %d bytes: %d is the most", len(text), maxRecord)
	}
	if rec.Status == quarry.Failed {
		return []edit{{path: FailurePath(t), blob: text}}, nil
	}
	return append([]edit{{path: RecordPath(t), blob: text}, {path: FilesPath(t), blob: list}, {path: FailurePath(t)}}, proof.edits(t)...), nil
}

// record makes one attempt, see [Repo.attempt].
func (r *Repo) record(ctx context.Context, rec *Record, b quarry.Build, list []byte, proof Provenance, lock *refLock, tip plumbing.Hash) (plumbing.Hash, error) {
	var root plumbing.Hash
	before := Available{}
	if !tip.IsZero() {
		snap, err := r.odb.snapshot(rec.Channel, tip)
		if err != nil {
			return tip, err
		}
		if h, err := r.already(snap, rec); err != nil || !h.IsZero() {
			return h, err
		}
		root = snap.root
		// One that cannot be read is replaced, and counted as none.
		before, _, _ = snap.at(RecordPath(rec.Target()), rec.Target())
	}
	rec.Revision = revision(rec, before)
	edits, err := recordEdits(rec, list, proof)
	if err != nil {
		return tip, err
	}
	var set objectSet
	tree, err := r.odb.apply(root, edits, &set)
	if err != nil {
		return tip, err
	}
	now := r.opts.Now()
	author := rec.Packager
	authored := b.Pushed
	if authored.IsZero() {
		authored = now
	}
	text, err := r.commitObject(tree, tip, signature(author.Name, author.Email, author.User, authored), r.message(rec, b))
	if err != nil {
		return tip, err
	}
	h := set.add(plumbing.CommitObject, text)
	return r.advance(ctx, rec.Channel, lock, tip, h, &set)
}

// advance stores objects and moves a channel from one commit to the next, which is
// among them; errMoved says that the channel moved under it. lock is the
// channel's, which the caller releases, or nil: then it is held for the move alone.
// Unless the channel moves, the objects go again, and drops are called, for those
// stored before.
func (r *Repo) advance(ctx context.Context, channel string, lock *refLock, tip, next plumbing.Hash, set *objectSet, drops ...func()) (plumbing.Hash, error) {
	moved := false
	defer func() {
		if !moved {
			for _, drop := range drops {
				drop()
			}
		}
	}()
	drop, err := r.store(set)
	if err != nil {
		return tip, err
	}
	drops = append(drops, drop)
	r.stored()
	if tip.IsZero() {
		err = r.adoptHead(channel)
	}
	if err == nil && lock == nil {
		if lock, err = r.holdRef(ctx, channel); err == nil {
			defer lock.release()
		}
	}
	if err == nil {
		moved, err = lock.move(tip, next)
	}
	return next, err
}

// stored counts a pack that was written, and has them melted together now and
// then. r.mu is held.
func (r *Repo) stored() {
	if r.packs++; r.opts.MaxPacks > 0 && r.packs >= r.opts.MaxPacks {
		r.packs = 0
		r.startMaintenance()
	}
}

// revision is the number of the artifact among those that the record's place
// has had: one more, unless a rebuild made the very same again.
func revision(rec *Record, before Available) int64 {
	switch {
	case rec.Status != quarry.Succeeded:
		return 0
	case before.Artifact == rec.Artifact && before.Revision > 0:
		return before.Revision
	case before.Package != "":
		return max(before.Revision, 1) + 1
	}
	return 1
}

// already looks whether the record to be written stands already, or a newer
// one. The zero hash says that it is to be written.
func (r *Repo) already(snap *Snapshot, rec *Record) (plumbing.Hash, error) {
	t := rec.Target()
	var newest *quarry.RecordRef
	for _, path := range []string{RecordPath(t), FailurePath(t)} {
		h, err := r.odb.lookup(snap.root, path, false)
		if err != nil {
			return h, err
		}
		if h.IsZero() {
			continue
		}
		head, err := r.odb.head(h)
		if err != nil {
			// A record that cannot be read, written by hand perhaps, must not
			// stop the farm: the new one replaces it.
			r.opts.Logger.Warn("a record cannot be read and is replaced", "path", path, "channel", rec.Channel, "error", err)
			continue
		}
		if newest == nil || head.Ref.Build > newest.Build {
			newest = &head.Ref
		}
	}
	switch {
	case newest != nil && newest.Key == rec.Key:
		found, err := r.commitOf(snap, rec.Key)
		if found.IsZero() {
			found = snap.commit
		}
		return found, err
	case newest == nil || newest.Build <= rec.Build:
		// A record of this key beneath a newer one is of the same commit, when a
		// branch went there, elsewhere and back: then it is to be written anew.
		return plumbing.ZeroHash, nil
	}
	// It may have been recorded before the newer one was.
	found, err := r.commitOf(snap, rec.Key)
	if err == nil && found.IsZero() {
		err = fmt.Errorf("%w: %s has the record of build %d", ErrObsolete, t, newest.Build)
	}
	return found, err
}

// commitOf finds the commit that recorded a key by the trailers of the commits.
// What is asked for after a crash is among the last few.
func (r *Repo) commitOf(snap *Snapshot, key string) (found plumbing.Hash, err error) {
	err = r.odb.walk(snap.commit, func(h plumbing.Hash, c *commit) bool {
		if strings.Contains(c.message, key) && trailers(c.message)[TrailerBuildKey] == key {
			found = h
			return true
		}
		return false
	})
	return found, err
}

// adoptHead points HEAD to the first channel that gets a record, if it points
// to none that has, so that a plain clone checks something out.
func (r *Repo) adoptHead(channel string) error {
	chs, err := r.Channels()
	if err != nil || len(chs) > 0 {
		return err
	}
	head := filepath.Join(r.path, "HEAD")
	want := "ref: refs/heads/" + channel + "\n"
	if b, err := os.ReadFile(head); err != nil || string(b) == want {
		return err
	}
	tmp := filepath.Join(r.own.dir, "HEAD")
	if err := writeSynced(tmp, []byte(want), 0o666); err != nil {
		return err
	}
	if err := os.Rename(tmp, head); err != nil {
		return err
	}
	return syncDir(r.path)
}

// Lookup says what the planner needs of the newest record of a target, be it a
// success or a failure. false, without an error, says that there is none.
func (r *Repo) Lookup(channel, pkg, version, arch string) (quarry.RecordRef, bool, error) {
	s, err := r.Snapshot(channel)
	if err != nil {
		return quarry.RecordRef{}, false, err
	}
	return s.Lookup(pkg, version, arch)
}
