package mirror

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// A list is packed in pieces, a zstd frame each, so that where little changes most
// frames are those of the list before: their text has to be hashed, which is quick,
// and nothing has to be packed. Where a piece ends depends on the names in it
// alone, so that a list's bytes do not tell what was there before.
// Tests have small ones.
var (
	pieceNames uint32 = 512     // packages in a piece, in the mean
	pieceSize         = 4 << 20 // bytes from which on the next package begins another one
)

// begins reports whether a package begins a piece wherever it stands.
func begins(name string) bool {
	h := fnv.New32a()
	io.WriteString(h, name)
	return h.Sum32()%pieceNames == 0
}

// encoders pack one piece after the other. The same text gives the same bytes.
var encoders = sync.Pool{New: func() any {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithSingleSegment(true), zstd.WithEncoderLevel(zstd.SpeedBetterCompression))
	if err != nil {
		panic(err) // of options that are none
	}
	return z
}}

var decoders = sync.Pool{New: func() any {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxWindow))
	if err != nil {
		panic(err)
	}
	return d
}}

// pack packs a text that is not kept in pieces.
func pack(text []byte) []byte {
	z := encoders.Get().(*zstd.Encoder)
	defer encoders.Put(z)
	var out []byte
	for len(text) > pieceSize {
		out, text = z.EncodeAll(text[:pieceSize], out), text[pieceSize:]
	}
	return z.EncodeAll(text, out)
}

// packer writes a list.
type packer struct {
	out          *bufio.Writer
	encoder      *zstd.Encoder
	piece, frame []byte
	text, packed hash.Hash
	list         File
	own          int    // entries of the list's own arch
	last         string // package that was added
}

func newPacker(w io.Writer, l *List) *packer {
	p := &packer{out: bufio.NewWriterSize(w, 256<<10), encoder: encoders.Get().(*zstd.Encoder), text: sha256.New(), packed: sha256.New()}
	// The head is a piece of its own, so that all others are of entries.
	p.piece = append(p.piece, l.head()...)
	return p
}

var (
	entryMark = []byte(entryLine + "\n")
	archMark  = []byte("\narch = ")
)

// add adds entries of a package. Those of one package stay in one piece.
func (p *packer) add(name string, entries []byte) error {
	if name != p.last {
		if err := p.turn(name); err != nil {
			return err
		}
		p.last = name
	}
	p.piece = append(p.piece, entries...)
	return nil
}

// turn ends the piece, if a package begins another one.
func (p *packer) turn(name string) error {
	if len(p.piece) > 0 && (p.list.Size == 0 || len(p.piece) >= pieceSize || begins(name)) {
		return p.flush()
	}
	return nil
}

func (p *packer) flush() error {
	if len(p.piece) == 0 {
		return nil
	}
	p.frame = p.encoder.EncodeAll(p.piece, p.frame[:0])
	err := p.copy(p.frame, p.piece)
	p.piece = p.piece[:0]
	return err
}

// copy writes a piece as it was packed before.
func (p *packer) copy(frame, text []byte) error {
	n := bytes.Count(text, entryMark)
	p.list.Packages += n
	if p.list.Size > 0 {
		p.own += n - bytes.Count(text, archMark)
	}
	p.list.TextSize += int64(len(text))
	p.list.Size += int64(len(frame))
	p.text.Write(text)
	p.packed.Write(frame)
	_, err := p.out.Write(frame)
	return err
}

// close ends the list, and gives what a head says of it but its name.
func (p *packer) close() (File, error) {
	err := p.flush()
	if err == nil {
		err = p.out.Flush()
	}
	p.list.SHA256, p.list.TextSHA256 = hex.EncodeToString(p.packed.Sum(nil)), hex.EncodeToString(p.text.Sum(nil))
	encoders.Put(p.encoder)
	p.encoder = nil
	return p.list, err
}

// frames reads a list frame by frame.
type frames struct {
	r       *bufio.Reader
	decoder *zstd.Decoder
	this    piece
	next    piece
}

// piece is a frame, and what is in it.
type piece struct {
	frame, text []byte
	first       string // the name of its first package
}

func newFrames(r io.Reader) (*frames, error) {
	f := &frames{r: bufio.NewReaderSize(r, 256<<10), decoder: decoders.Get().(*zstd.Decoder)}
	err := f.read(&f.next)
	if err == nil {
		f.next = piece{frame: f.next.frame[:0], text: f.next.text[:0]} // the list's head
		err = f.read(&f.next)
	}
	if err == nil {
		err = f.advance()
	}
	return f, err
}

// advance goes to the next piece; that of no bytes is behind the last one.
func (f *frames) advance() error {
	f.this, f.next = f.next, f.this
	return f.read(&f.next)
}

func (f *frames) close() {
	if f.decoder != nil {
		decoders.Put(f.decoder)
		f.decoder = nil
	}
}

// read reads a frame into a piece, whose memory is used again.
func (f *frames) read(p *piece) error {
	p.text, p.first = p.text[:0], ""
	var err error
	if p.frame, err = readFrame(f.r, p.frame[:0]); err == io.EOF {
		return nil
	}
	if err == nil {
		p.text, err = f.decoder.DecodeAll(p.frame, p.text)
	}
	if err != nil {
		return err
	}
	if bytes.HasPrefix(p.text, entryMark) {
		name, ok := nameOf(p.text)
		if !ok {
			return errors.New("a piece of the list does not begin with a name")
		}
		p.first = name
	}
	return nil
}

// readFrame reads a zstd frame as it is (RFC 8878, 3.1.1). io.EOF says that there
// is no other.
func readFrame(r *bufio.Reader, to []byte) ([]byte, error) {
	start, err := r.Peek(zstd.HeaderMaxSize)
	if len(start) == 0 {
		return to, err
	}
	var h zstd.Header
	if err := h.Decode(start); err != nil || h.Skippable {
		return to, fmt.Errorf("no zstd frame begins where one must: %v", err)
	}
	take := func(n int) error {
		at := len(to)
		to = append(to, make([]byte, n)...)
		_, err := io.ReadFull(r, to[at:])
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	if err := take(h.HeaderSize); err != nil {
		return to, err
	}
	for last := false; !last; {
		if err := take(3); err != nil {
			return to, err
		}
		b := to[len(to)-3:]
		word := int(b[0]) | int(b[1])<<8 | int(b[2])<<16
		size := word >> 3
		last = word&1 == 1
		if word>>1&3 == 1 { // a block of one byte, repeated
			size = 1
		}
		if size > 1<<17 || len(to)+size > maxWindow {
			return to, errors.New("a zstd frame is larger than any of ours")
		}
		if err := take(size); err != nil {
			return to, err
		}
	}
	if h.HasCheckSum {
		return to, take(4)
	}
	return to, nil
}

// merger makes a list out of the one before and what has changed in it.
type merger struct {
	out  *packer
	old  *frames // nil: there was none
	rest entries // of the piece of old that is being gone through
}

// put replaces the entries of a package; none: they are removed. Names come in
// order.
func (m *merger) put(name string, with []byte) error {
	if err := m.upTo(name, false); err != nil {
		return err
	}
	if len(with) == 0 {
		return nil
	}
	return m.out.add(name, with)
}

// upTo takes over what stands before a name, or all that there is, and passes over
// the name's own entries.
func (m *merger) upTo(name string, all bool) error {
	for m.old != nil {
		if len(m.rest) == 0 {
			p := &m.old.this
			if len(p.text) == 0 || !all && p.first > name {
				return nil
			}
			// Nothing in it has changed, and neither has what ends it.
			if all || m.old.next.first != "" && m.old.next.first < name {
				if err := m.out.turn(p.first); err != nil {
					return err
				}
				if len(m.out.piece) == 0 {
					err := m.out.copy(p.frame, p.text)
					if err == nil {
						err = m.old.advance()
					}
					if err != nil {
						return err
					}
					continue
				}
			}
			m.rest = p.text
		}
		if at, ok := m.rest.peek(); ok && !all && at > name {
			return nil
		}
		entry, at, err := m.rest.next()
		if err != nil {
			return err
		}
		if all || at != name {
			if err := m.out.add(at, entry); err != nil {
				return err
			}
		}
		if len(m.rest) == 0 {
			if err := m.old.advance(); err != nil {
				return err
			}
		}
	}
	return nil
}

// change is a package's new entries in one list.
type change struct {
	name string
	with []byte
}

// writeList writes a list into a folder, under a name of its own, and says what it
// is. old is the list before, "" for none; the changes come in the order of names.
func writeList(dir, old string, l *List, changes <-chan change) (f File, own int, tmp string, err error) {
	file, err := os.CreateTemp(dir, newPrefix+"*")
	if err != nil {
		return f, 0, "", err
	}
	defer func() {
		if err = errors.Join(err, file.Close()); err != nil {
			os.Remove(file.Name())
		}
	}()
	m := &merger{out: newPacker(file, l)}
	if old != "" {
		was, err := os.Open(filepath.Join(dir, old))
		if err != nil {
			return f, 0, "", err
		}
		defer was.Close()
		if m.old, err = newFrames(was); err != nil {
			return f, 0, "", fmt.Errorf("%s: %w", was.Name(), err)
		}
		defer m.old.close()
	}
	for c := range changes {
		if err := m.put(c.name, c.with); err != nil {
			return f, 0, "", err
		}
	}
	if err := m.upTo("", true); err != nil {
		return f, 0, "", err
	}
	if f, err = m.out.close(); err != nil {
		return f, 0, "", err
	}
	return f, m.out.own, file.Name(), errors.Join(file.Chmod(0o644), file.Sync())
}

// newPrefix begins the names of files that are being written.
const newPrefix = ".new-"
