package images

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry/internal/durable"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// archive is the folder of clean copies: of each base HEX.tar.zst, which is
// what it was loaded from, and HEX.json, which says what that is; HEX are the
// digits of the base's digest. Podman's storage can be made again from it.
// Writing is for who holds Store.loading.
type archive struct{ dir string }

// Kinds of copies.
const (
	keptRootfs = "rootfs"  // a tar of a root file system
	keptImage  = "archive" // an image archive as podman save writes it, without names
)

// keptCopy says what a copy is.
type keptCopy struct {
	Digest string    `json:"digest"` // of the base
	Kind   string    `json:"kind"`   // rootfs or archive
	Sum    string    `json:"sum"`    // sha256:... of the copy before compression
	Bytes  int64     `json:"bytes"`  // before compression
	Refs   []keptRef `json:"refs"`   // what it is called; a copy that nothing is called is of no use
}

// keptRef is one name of a base, and what is known of it under that name.
type keptRef struct {
	Ref     string    `json:"ref"`
	Source  string    `json:"source"`
	Created time.Time `json:"created"` // when it was loaded
}

func (k keptCopy) ref(ref string) (keptRef, bool) {
	i := slices.IndexFunc(k.Refs, func(r keptRef) bool { return r.Ref == ref })
	if i < 0 {
		return keptRef{}, false
	}
	return k.Refs[i], true
}

// check refuses what this program cannot have written.
func (k keptCopy) check(digest string) error {
	switch {
	case k.Digest != digest || !isDigest(digest):
		return fmt.Errorf("it says that it is of %.80q", k.Digest)
	case k.Kind != keptRootfs && k.Kind != keptImage:
		return fmt.Errorf("it is of kind %.80q", k.Kind)
	case !isDigest(k.Sum) || k.Bytes < 0:
		return errors.New("it has no digest or size")
	}
	for _, r := range k.Refs {
		if _, err := ParseBaseRef(r.Ref); err != nil {
			return err
		}
	}
	return nil
}

func (a archive) path(digest, ext string) string {
	return filepath.Join(a.dir, strings.TrimPrefix(digest, "sha256:")+ext)
}

func (a archive) copyPath(digest string) string { return a.path(digest, ".tar.zst") }

// get reads what is known of a copy; ok is false when there is none, or when
// what is known cannot be read, which is the same to who wants to use it.
func (a archive) get(digest string) (k keptCopy, ok bool) {
	data, err := os.ReadFile(a.path(digest, ".json"))
	if err != nil || json.Unmarshal(data, &k) != nil || k.check(digest) != nil {
		return keptCopy{}, false
	}
	return k, true
}

// list reads all of them.
func (a archive) list() ([]keptCopy, error) {
	entries, err := os.ReadDir(a.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("clean copies of bases cannot be listed: %w", err)
	}
	var all []keptCopy
	for _, e := range entries {
		hexa, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || !isDigest("sha256:"+hexa) {
			continue
		}
		if k, ok := a.get("sha256:" + hexa); ok {
			all = append(all, k)
		}
	}
	return all, nil
}

// of finds the copy of the base that ref names. There are two while one base
// takes the place of another; the newer is meant.
func (a archive) of(ref string) (found keptCopy, ok bool) {
	all, _ := a.list()
	var newest time.Time
	for _, k := range all {
		if r, has := k.ref(ref); has && (!ok || r.Created.After(newest)) {
			found, ok, newest = k, true, r.Created
		}
	}
	return found, ok
}

// refs lists what all copies are called, each once, in order.
func (a archive) refs() ([]string, error) {
	all, err := a.list()
	var refs []string
	for _, k := range all {
		for _, r := range k.Refs {
			refs = append(refs, r.Ref)
		}
	}
	slices.Sort(refs)
	return slices.Compact(refs), err
}

func (a archive) write(k keptCopy) error {
	slices.SortFunc(k.Refs, func(x, y keptRef) int { return cmp.Compare(x.Ref, y.Ref) })
	data, err := json.Marshal(k)
	if err != nil {
		return err
	}
	if err := writeDurable(a.path(k.Digest, ".json"), append(data, '\n')); err != nil {
		return fmt.Errorf("note on a base's clean copy cannot be written: %w", err)
	}
	return nil
}

// name adds a ref to a copy, or changes what is known under it.
func (a archive) name(k keptCopy, ref keptRef) error {
	k.Refs = append(slices.DeleteFunc(slices.Clone(k.Refs), func(r keptRef) bool { return r.Ref == ref.Ref }), ref)
	return a.write(k)
}

// forget takes a ref from the copies that which picks by their digest, and
// removes those that are called nothing any more.
func (a archive) forget(ref string, which func(digest string) bool) error {
	all, err := a.list()
	if err != nil {
		return err
	}
	for _, k := range all {
		if _, has := k.ref(ref); !has || !which(k.Digest) {
			continue
		}
		k.Refs = slices.DeleteFunc(k.Refs, func(r keptRef) bool { return r.Ref == ref })
		if len(k.Refs) > 0 {
			err = errors.Join(err, a.write(k))
			continue
		}
		// The note first: a copy without one is cleared away by sweep.
		for _, p := range []string{a.path(k.Digest, ".json"), a.copyPath(k.Digest)} {
			if rerr := os.Remove(p); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
				err = errors.Join(err, fmt.Errorf("clean copy of a base cannot be removed: %w", rerr))
			}
		}
	}
	return err
}

// sweep removes what killed loads left: half-made files, and copies without a
// note. Others may be at work here when the farm shares podman with somebody;
// then only what is old goes.
func (a archive) sweep(own bool) {
	for _, dir := range []string{a.dir, filepath.Join(a.dir, layersDir)} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			hexa, isCopy := strings.CutSuffix(e.Name(), ".tar.zst")
			_, noted := a.get("sha256:" + hexa)
			if !strings.HasPrefix(e.Name(), newPrefix) && (!isCopy || noted) {
				continue
			}
			if st, err := e.Info(); own || err == nil && time.Since(st.ModTime()) > 24*time.Hour {
				os.Remove(path)
			}
		}
	}
}

// newPrefix begins the names of files that are being written.
const newPrefix = "new-"

// copyWriter writes a copy that has no name yet.
type copyWriter struct {
	dir string
	f   *os.File
	enc *zstd.Encoder
	sum hash.Hash
	n   int64
	err error // of a write that failed; it says so again
}

func (a archive) create() (*copyWriter, error) {
	if err := os.MkdirAll(a.dir, 0o755); err != nil {
		return nil, fmt.Errorf("folder for clean copies of bases cannot be made: %w", err)
	}
	f, err := os.CreateTemp(a.dir, newPrefix+"*.tar.zst")
	if err != nil {
		return nil, fmt.Errorf("clean copy of the base cannot be made: %w", explainFull(a.dir, err))
	}
	enc, err := zstd.NewWriter(f, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(min(2, runtime.GOMAXPROCS(0))))
	if err != nil {
		f.Close()
		os.Remove(f.Name())
		return nil, err
	}
	return &copyWriter{dir: a.dir, f: f, enc: enc, sum: sha256.New()}, nil
}

func (w *copyWriter) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	w.sum.Write(p)
	n, err := w.enc.Write(p)
	w.n += int64(n)
	if err != nil {
		w.err = w.explain(err)
	}
	return n, w.err
}

func (w *copyWriter) explain(err error) error {
	return fmt.Errorf("clean copy of the base cannot be written: %w", explainFull(w.dir, err))
}

// explainFull says where there is no space.
func explainFull(dir string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("no space left in %s: make room and try again (%w)", dir, err)
	}
	return err
}

// finish brings everything to the disk and says what it is.
func (w *copyWriter) finish() (keptCopy, error) {
	err := w.err
	if err == nil {
		if err = errors.Join(w.enc.Close(), w.f.Sync()); err == nil {
			// Not before the next load: podman's own files go first in the cache.
			unix.Fadvise(int(w.f.Fd()), 0, 0, unix.FADV_DONTNEED)
		}
		if err = errors.Join(err, w.f.Close()); err != nil {
			err = w.explain(err)
		}
	}
	w.err = cmp.Or(err, errClosed)
	return keptCopy{Sum: digestOf(w.sum), Bytes: w.n}, err
}

// keep gives the finished copy its name. A copy that is there already under it
// is replaced: it may be the damaged one.
func (w *copyWriter) keep(a archive, digest string) error {
	if err := os.Rename(w.f.Name(), a.copyPath(digest)); err != nil {
		return fmt.Errorf("clean copy of the base cannot be named: %w", err)
	}
	return durable.SyncDir(a.dir)
}

// discard removes the copy unless it was kept.
func (w *copyWriter) discard() {
	w.enc.Close()
	w.f.Close()
	os.Remove(w.f.Name())
}

// copyReader reads a copy as it was before compression. At its end it is an
// error when it is not what it was.
type copyReader struct {
	k   keptCopy
	f   *os.File
	dec *zstd.Decoder
	sum hash.Hash
	n   int64
}

// open opens a copy; read is told of the bytes read from disk.
func (a archive) open(k keptCopy, path string, read func(int64)) (*copyReader, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, &copyError{k, err}
	}
	dec, err := zstd.NewReader(readTeller{f, read}, zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderConcurrency(1))
	if err != nil {
		f.Close()
		return nil, &copyError{k, err}
	}
	return &copyReader{k: k, f: f, dec: dec, sum: sha256.New()}, nil
}

type readTeller struct {
	r    io.Reader
	read func(int64)
}

func (t readTeller) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.read(int64(n))
	return n, err
}

func (r *copyReader) Read(p []byte) (int, error) {
	n, err := r.dec.Read(p)
	r.sum.Write(p[:n])
	r.n += int64(n)
	switch {
	case err == io.EOF && (r.n != r.k.Bytes || digestOf(r.sum) != r.k.Sum):
		err = &copyError{r.k, fmt.Errorf("its content is %s of %d bytes and should be %s of %d", digestOf(r.sum), r.n, r.k.Sum, r.k.Bytes)}
	case err != nil && err != io.EOF:
		err = &copyError{r.k, err}
	}
	return n, err
}

func (r *copyReader) Close() error {
	r.dec.Close()
	return r.f.Close()
}

// copyError says that a clean copy cannot be used, and what helps.
type copyError struct {
	k   keptCopy
	err error
}

func (e *copyError) Error() string {
	name := "a base"
	if len(e.k.Refs) > 0 {
		name = "base " + e.k.Refs[0].Ref
	}
	return fmt.Sprintf("clean copy of %s is damaged: %v: load the base again, or bootstrap it", name, e.err)
}

func (e *copyError) Unwrap() error { return e.err }

// writeDurable writes a small file so that it is either the old or the new one
// whatever happens.
func writeDurable(path string, data []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return explainFull(dir, durable.WriteFile(path, data, 0o644, newPrefix+"*"))
}
