package results

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"sort"
	"sync"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/klauspost/compress/zlib"
)

// pack reads objects out of one pack file through its index, both as
// gitformat-pack(5) has them, version 2. go-git has a reader too, but at the
// first delta it makes a map of all objects of the pack (at 100,000 packages a
// quarter of a second and 60 MB, again for every process that opens the
// repository), and it has one position in the file for all.
//
// Nothing in the files is believed: whatever they hold, the worst is an error.
type pack struct {
	name string
	file interface {
		io.ReaderAt
		io.Closer
	}
	idx []byte
	n   int // objects
}

const (
	idxHeader = 8
	idxFanout = 256 * 4
	idxTail   = 2 * 20
	// maxDepth bounds chains of deltas; git makes none longer than 4095.
	maxDepth = 4096
)

func openPack(dir, name string) (*pack, error) {
	idx, err := os.ReadFile(filepath.Join(dir, name+".idx"))
	if err != nil {
		return nil, err
	}
	p, err := newPack(name, idx)
	if err != nil {
		return nil, err
	}
	p.file, err = os.Open(filepath.Join(dir, name+".pack"))
	return p, err
}

// newPack takes an index; the pack's file is still to be set.
func newPack(name string, idx []byte) (*pack, error) {
	if len(idx) < idxHeader+idxFanout+idxTail || string(idx[:idxHeader]) != "\xfftOc\x00\x00\x00\x02" {
		return nil, errors.New("its index is not of version 2")
	}
	n := int(binary.BigEndian.Uint32(idx[idxHeader+255*4:]))
	if len(idx) < idxHeader+idxFanout+n*(20+4+4)+idxTail {
		return nil, fmt.Errorf("its index is cut short: it should have %d objects", n)
	}
	return &pack{name: name, idx: idx, n: n}, nil
}

// offset is where an object begins in the pack; false when it is not there.
func (p *pack) offset(h plumbing.Hash) (int64, bool) {
	fan := func(i int) int { return int(binary.BigEndian.Uint32(p.idx[idxHeader+i*4:])) }
	lo, hi := 0, fan(int(h[0]))
	if h[0] > 0 {
		lo = fan(int(h[0]) - 1)
	}
	if lo > hi || hi > p.n {
		return 0, false
	}
	names := p.idx[idxHeader+idxFanout:]
	i := lo + sort.Search(hi-lo, func(i int) bool {
		at := (lo + i) * 20
		return bytes.Compare(names[at:at+20], h[:]) >= 0
	})
	if i >= hi || !bytes.Equal(names[i*20:i*20+20], h[:]) {
		return 0, false
	}
	offsets := names[p.n*(20+4):]
	o := binary.BigEndian.Uint32(offsets[i*4:])
	if o < 1<<31 {
		return int64(o), true
	}
	// Beyond 2 GB the offset is in a further table.
	far := offsets[p.n*4:]
	at := int(o&^(1<<31)) * 8
	if at+8 > len(far)-idxTail {
		return 0, false
	}
	if v := binary.BigEndian.Uint64(far[at:]); v <= math.MaxInt64 {
		return int64(v), true
	}
	return 0, false
}

// packed is an object as it is in memory.
type packed struct {
	typ  plumbing.ObjectType
	data []byte
}

// bases keeps objects that deltas were applied to, by pack and offset.
type baseKey struct {
	p  *pack
	at int64
}

// read reads the object at an offset. base is asked for what a delta builds on.
func (p *pack) read(at int64, depth int, bases *bounded[baseKey, packed]) (packed, error) {
	if depth > maxDepth {
		return packed{}, fmt.Errorf("a chain of deltas in %s is longer than %d", p.name, maxDepth)
	}
	if b, ok := bases.get(baseKey{p, at}); ok {
		return b, nil
	}
	r, _ := readers.Get().(*bufio.Reader)
	if r == nil {
		r = bufio.NewReaderSize(nil, 4096)
	}
	defer readers.Put(r)
	r.Reset(io.NewSectionReader(p.file, at, math.MaxInt64-at))
	c, err := r.ReadByte()
	if err != nil {
		return packed{}, err
	}
	typ := plumbing.ObjectType(c >> 4 & 7)
	size := uint64(c & 15)
	for shift := 4; c&0x80 != 0; shift += 7 {
		if c, err = r.ReadByte(); err != nil {
			return packed{}, err
		}
		if shift > 56 {
			return packed{}, fmt.Errorf("the object at %d of %s has a size that is none", at, p.name)
		}
		size |= uint64(c&0x7f) << shift
	}
	if size > maxObject {
		return packed{}, fmt.Errorf("the object at %d of %s has %d bytes: %d is the most", at, p.name, size, maxObject)
	}
	var baseAt int64
	switch typ {
	case plumbing.OFSDeltaObject:
		back, err := readBack(r)
		if err != nil {
			return packed{}, err
		}
		if baseAt = at - back; back <= 0 || baseAt <= 0 {
			return packed{}, fmt.Errorf("the delta at %d of %s builds on nothing", at, p.name)
		}
	case plumbing.REFDeltaObject:
		var h plumbing.Hash
		if _, err := io.ReadFull(r, h[:]); err != nil {
			return packed{}, err
		}
		ok := false
		if baseAt, ok = p.offset(h); !ok {
			return packed{}, fmt.Errorf("the delta at %d of %s builds on %s, which is not there", at, p.name, h)
		}
	case plumbing.CommitObject, plumbing.TreeObject, plumbing.BlobObject, plumbing.TagObject:
	default:
		return packed{}, fmt.Errorf("the object at %d of %s is of unknown type %d", at, p.name, typ)
	}
	data, err := inflate(r, int(size))
	if err != nil {
		return packed{}, fmt.Errorf("the object at %d of %s is damaged: %w", at, p.name, err)
	}
	if baseAt == 0 {
		return packed{typ, data}, nil
	}
	base, err := p.read(baseAt, depth+1, bases)
	if err != nil {
		return packed{}, err
	}
	bases.put(baseKey{p, baseAt}, base, len(base.data)+100)
	if n := deltaSize(data); n > maxObject {
		return packed{}, fmt.Errorf("the delta at %d of %s makes %d bytes: %d is the most", at, p.name, n, maxObject)
	}
	data, err = packfile.PatchDelta(base.data, data)
	if err != nil {
		return packed{}, fmt.Errorf("the delta at %d of %s is damaged: %w", at, p.name, err)
	}
	return packed{base.typ, data}, nil
}

// readBack reads how far before a delta its base begins.
func readBack(r io.ByteReader) (int64, error) {
	c, err := r.ReadByte()
	if err != nil {
		return 0, err
	}
	v := int64(c & 0x7f)
	for c&0x80 != 0 {
		if v > 1<<50 {
			return 0, errors.New("a delta builds on what is further back than any file is long")
		}
		if c, err = r.ReadByte(); err != nil {
			return 0, err
		}
		v = (v+1)<<7 | int64(c&0x7f)
	}
	return v, nil
}

// deltaSize is how many bytes a delta makes, as it says itself.
func deltaSize(delta []byte) uint64 {
	_, n := binary.Uvarint(delta) // the base's
	if n <= 0 {
		return 0
	}
	size, _ := binary.Uvarint(delta[n:])
	return size
}

// inflaters are kept for the next object, and so are the readers before them: making
// one costs more than reading a record with it.
var inflaters, readers sync.Pool

func inflate(r io.Reader, size int) ([]byte, error) {
	z, _ := inflaters.Get().(io.ReadCloser)
	var err error
	if z == nil {
		z, err = zlib.NewReader(r)
	} else {
		err = z.(zlib.Resetter).Reset(r, nil)
	}
	if err != nil {
		return nil, err
	}
	defer inflaters.Put(z)
	// What a damaged pack says of its size is not allocated before it has come.
	buf := bytes.NewBuffer(make([]byte, 0, min(size, 1<<20)+bytes.MinRead))
	n, err := io.Copy(buf, io.LimitReader(z, int64(size)+1))
	if err != nil {
		return nil, err
	}
	if n != int64(size) {
		return nil, fmt.Errorf("it has %d bytes, not %d", n, size)
	}
	return buf.Bytes(), nil
}
