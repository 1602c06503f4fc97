package treesum

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// A tree on disk is one zstd frame with its checksum. In it stand a magic line,
// a byte that is 1 for a deep scan, the number of entries, and these in the
// order of a walk, each with its depth and last name in place of its path.
// Numbers are varints (encoding/binary), texts are preceded by their length.
const magic = "quarry tree 1\n"

// Limits of what Decode takes; the first three are the kernel's.
const (
	maxName    = 255
	maxLink    = 4096
	maxAttr    = 64 << 10
	maxDecoded = 256 << 20 // bytes of a tree before it is compressed
)

// Encode writes the tree down. It must be as [Scan] made it, and wholly read.
func (t *Tree) Encode() ([]byte, error) {
	if e := t.Unread(); e != nil {
		return nil, fmt.Errorf("%q cannot be read: %s", e.Path, e.Unread)
	}
	b := append([]byte(nil), magic...)
	b = append(b, flag(t.Deep))
	b = binary.AppendUvarint(b, uint64(len(t.Entries)))
	text := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	for i := range t.Entries {
		e := &t.Entries[i]
		depth, name := 0, e.Path
		if e.Path != "." {
			depth = strings.Count(e.Path, "/") + 1
			name = e.Path[strings.LastIndexByte(e.Path, '/')+1:]
		}
		b = binary.AppendUvarint(b, uint64(depth))
		text(name)
		b = append(b, byte(e.Kind))
		for _, n := range []uint64{uint64(e.Mode), uint64(e.UID), uint64(e.GID), e.Inode, uint64(e.Mtime.Nsec), uint64(e.Ctime.Nsec)} {
			b = binary.AppendUvarint(b, n)
		}
		b = binary.AppendVarint(b, e.Mtime.Sec)
		b = binary.AppendVarint(b, e.Ctime.Sec)
		switch e.Kind {
		case File:
			b = binary.AppendUvarint(b, uint64(e.Size))
			if t.Deep {
				b = append(b, e.Sum[:]...)
			}
		case Link:
			text(e.Link)
		case Char, Block:
			b = binary.AppendUvarint(b, e.Rdev)
		}
		if t.Deep {
			b = binary.AppendUvarint(b, uint64(len(e.Attrs)))
			for _, x := range e.Attrs {
				text(x.Name)
				text(x.Value)
			}
		}
	}
	enc, err := compressor()
	if err != nil {
		return nil, err
	}
	return enc.EncodeAll(b, nil), nil
}

// Both may be used by several goroutines at once.
var (
	compressor = sync.OnceValues(func() (*zstd.Encoder, error) {
		return zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
	})
	decompressor = sync.OnceValues(func() (*zstd.Decoder, error) {
		return zstd.NewReader(nil, zstd.WithDecoderMaxMemory(maxDecoded), zstd.WithDecoderConcurrency(0))
	})
)

func flag(b bool) byte {
	if b {
		return 1
	}
	return 0
}

var errCut = errors.New("it ends too early")

// decoder takes a tree apart; after the first failure it yields zeros.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf(format, args...)
	}
	d.b = nil
}

func (d *decoder) bytes(n int) []byte {
	if n > len(d.b) {
		d.fail("%w", errCut)
		return nil
	}
	out := d.b[:n]
	d.b = d.b[n:]
	return out
}

func (d *decoder) byte() byte {
	if b := d.bytes(1); len(b) == 1 {
		return b[0]
	}
	return 0
}

func (d *decoder) number(most uint64) uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail("%w", errCut)
		return 0
	}
	d.b = d.b[n:]
	if v > most {
		d.fail("number %d is above %d", v, most)
		return 0
	}
	return v
}

func (d *decoder) signed() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail("%w", errCut)
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) text(most uint64) string { return string(d.bytes(int(d.number(most)))) }

// Decode reads what Encode wrote, and refuses everything else.
func Decode(data []byte) (*Tree, error) {
	t, err := decode(data)
	if err != nil {
		return nil, fmt.Errorf("measure of a tree is damaged: %w", err)
	}
	return t, nil
}

func decode(data []byte) (*Tree, error) {
	dec, err := decompressor()
	if err != nil {
		return nil, err
	}
	plain, err := dec.DecodeAll(data, nil)
	if err != nil {
		return nil, err
	}
	d := &decoder{b: plain}
	if string(d.bytes(len(magic))) != magic {
		return nil, errors.New("it does not begin as one")
	}
	t := &Tree{}
	switch d.byte() {
	case 0:
	case 1:
		t.Deep = true
	default:
		d.fail("unknown flag")
	}
	count := d.number(1 << 40)
	// A folder's path by depth, as far as the walk is in it.
	var stack []string
	var last string
	for i := uint64(0); i < count && d.err == nil; i++ {
		var e Entry
		depth := d.number(maxDepth + 1)
		name := d.text(maxName)
		switch {
		case i == 0 && (depth != 0 || name != "."), i > 0 && (depth == 0 || depth > uint64(len(stack))):
			d.fail("entry %d is in no folder", i)
		case i == 0:
			e.Path = "."
		case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
			d.fail("%q is no file name", name)
		default:
			stack = stack[:depth]
			e.Path = join(stack[depth-1], name)
			if comparePaths(last, e.Path) >= 0 {
				d.fail("%q does not follow %q", e.Path, last)
			}
		}
		if d.err != nil {
			break
		}
		last = e.Path
		d.entry(&e, t.Deep)
		if i == 0 && e.Kind != Dir {
			d.fail("the root is %v", e.Kind)
		}
		if e.Kind == Dir {
			stack = append(stack, e.Path)
		}
		t.Entries = append(t.Entries, e)
	}
	if d.err == nil && len(d.b) > 0 {
		d.fail("%d bytes follow its end", len(d.b))
	}
	if d.err == nil && len(t.Entries) == 0 {
		d.fail("it has no root")
	}
	return t, d.err
}

func (d *decoder) entry(e *Entry, deep bool) {
	const max32 = 1<<32 - 1
	e.Kind = Kind(d.byte())
	e.Mode, e.UID, e.GID = uint32(d.number(07777)), uint32(d.number(max32)), uint32(d.number(max32))
	e.Inode = d.number(1<<64 - 1)
	e.Mtime.Nsec, e.Ctime.Nsec = uint32(d.number(999999999)), uint32(d.number(999999999))
	e.Mtime.Sec, e.Ctime.Sec = d.signed(), d.signed()
	switch e.Kind {
	case File:
		e.Size = int64(d.number(1<<63 - 1))
		if deep {
			copy(e.Sum[:], d.bytes(len(e.Sum)))
		}
	case Link:
		e.Link = d.text(maxLink)
	case Char, Block:
		e.Rdev = d.number(1<<64 - 1)
	case Dir, Pipe, Socket:
	default:
		d.fail("%q is %v", e.Path, e.Kind)
	}
	if !deep {
		return
	}
	n := d.number(maxAttr)
	for i := uint64(0); i < n && d.err == nil; i++ {
		x := Xattr{Name: d.text(maxName), Value: d.text(maxAttr)}
		if x.Name == "" || i > 0 && x.Name <= e.Attrs[i-1].Name {
			d.fail("extended attributes of %q are out of order", e.Path)
			return
		}
		e.Attrs = append(e.Attrs, x)
	}
}
