package results

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // git's own hash
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/idxfile"
	"github.com/klauspost/compress/zlib"
	"golang.org/x/sync/errgroup"
)

// objectSet is the new objects of one commit.
type objectSet struct {
	list []newObject
	seen map[plumbing.Hash]bool
}

type newObject struct {
	typ  plumbing.ObjectType
	hash plumbing.Hash
	data []byte
}

func (s *objectSet) add(typ plumbing.ObjectType, data []byte) plumbing.Hash {
	h := plumbing.ComputeHash(typ, data)
	if s.seen == nil {
		s.seen = make(map[plumbing.Hash]bool)
	}
	if !s.seen[h] {
		s.seen[h] = true
		s.list = append(s.list, newObject{typ, h, data})
	}
	return h
}

// pack makes a pack file of the set, in the format of gitformat-pack(5),
// version 2, without deltas, and its index.
func (s *objectSet) pack() (pack, idx []byte, sum plumbing.Hash, err error) {
	var buf bytes.Buffer
	var w idxfile.Writer
	buf.WriteString("PACK")
	buf.Write(binary.BigEndian.AppendUint32(nil, 2))
	buf.Write(binary.BigEndian.AppendUint32(nil, uint32(len(s.list))))
	if err := w.OnHeader(uint32(len(s.list))); err != nil {
		return nil, nil, sum, err
	}
	// Trees are hashes, which nothing compresses, and the repack compresses the
	// rest once more: so the quickest level.
	zw, err := zlib.NewWriterLevel(nil, zlib.BestSpeed)
	if err != nil {
		return nil, nil, sum, err
	}
	for _, o := range s.list {
		start := buf.Len()
		// Type and size: four bits of the size beside the type, then seven a
		// byte, the lowest first.
		size := uint64(len(o.data))
		c := byte(o.typ)<<4 | byte(size&15)
		for size >>= 4; size > 0; size >>= 7 {
			buf.WriteByte(c | 0x80)
			c = byte(size & 0x7f)
		}
		buf.WriteByte(c)
		zw.Reset(&buf)
		if _, err := zw.Write(o.data); err != nil {
			return nil, nil, sum, err
		}
		if err := zw.Close(); err != nil {
			return nil, nil, sum, err
		}
		w.Add(o.hash, uint64(start), crc32.ChecksumIEEE(buf.Bytes()[start:]))
	}
	sum = sha1.Sum(buf.Bytes()) //nolint:gosec // git's own hash
	buf.Write(sum[:])
	if err := w.OnFooter(sum); err != nil {
		return nil, nil, sum, err
	}
	index, err := w.Index()
	if err != nil {
		return nil, nil, sum, err
	}
	var x bytes.Buffer
	if _, err := idxfile.NewEncoder(&x).Encode(index); err != nil {
		return nil, nil, sum, err
	}
	return buf.Bytes(), x.Bytes(), sum, nil
}

// store puts a set of objects into the repository such that they stand after a
// loss of power as soon as it returns. They go into one small pack: that is
// two files and one folder to sync where loose objects would be nine files and
// as many folders, which on a disk that has to turn or to erase is most of the
// cost of a commit. Maintain melts the packs together later. go-git's own
// writers do not sync, so they are not used.
//
// drop takes the pack away again, for when its commit did not get onto the
// branch; without that a farm which tries again and again on a full disk would
// fill it further.
func (r *Repo) store(s *objectSet) (drop func(), err error) {
	pack, idx, sum, err := s.pack()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(r.path, "objects", "pack")
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return nil, err
	}
	files := []struct {
		ext  string
		data []byte
	}{{".pack", pack}, {".idx", idx}}
	tmp := func(ext string) string { return filepath.Join(r.own.dir, sum.String()+ext) }
	final := func(ext string) string { return filepath.Join(dir, "pack-"+sum.String()+ext) }
	undo := func() {
		os.Remove(final(".idx"))
		os.Remove(final(".pack"))
	}
	defer func() {
		if err != nil {
			os.Remove(tmp(".pack"))
			os.Remove(tmp(".idx"))
			undo()
		}
	}()
	// Syncing both at once lets the file system put them into one transaction.
	var g errgroup.Group
	for _, f := range files {
		g.Go(func() error { return writeSynced(tmp(f.ext), f.data, 0o444) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	// The index last, as git does: a pack without one is not looked at.
	for _, f := range files {
		if err := os.Rename(tmp(f.ext), final(f.ext)); err != nil {
			return nil, err
		}
	}
	if err := syncDir(dir); err != nil {
		return nil, err
	}
	for _, o := range s.list {
		if o.typ != plumbing.BlobObject {
			r.odb.keep(o.hash, o.data)
		}
	}
	return undo, nil
}

// writeSynced writes a file anew and waits until it is on disk.
func writeSynced(name string, data []byte, perm os.FileMode) error {
	os.Remove(name) // of an attempt that failed
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// syncDir waits until the names in a folder are on disk.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("folder %s cannot be synced: %w", dir, err)
	}
	return nil
}
