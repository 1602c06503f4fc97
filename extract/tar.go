package extract

import (
	"archive/tar"
	"bytes"
	"fmt"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/Morphux/quarry"
)

const (
	tarBlock = 512
	tarEnd   = 2 * tarBlock // two blocks of zeros end an archive
	// paxCaps is the PAX record that star and GNU tar --xattrs use.
	paxCaps = "SCHILY.xattr." + capXattr
)

// padding is how many zeros follow contents of this size.
func padding(size int64) int64 { return -size & (tarBlock - 1) }

// header is an entry's header in the archive: USTAR where that can hold it,
// with PAX records before it where not. It depends on nothing but the entry.
func (t *tree) header(e *entry) ([]byte, error) {
	h := &tar.Header{
		Name:    e.rel(),
		Mode:    int64(e.Mode),
		Uid:     int(e.UID),
		Gid:     int(e.GID),
		ModTime: time.Unix(t.clamp(e), 0),
	}
	switch e.Kind {
	case quarry.KindRegular:
		h.Typeflag, h.Size = tar.TypeReg, e.Size
	case quarry.KindDir:
		h.Typeflag = tar.TypeDir
		h.Name += "/"
	case quarry.KindSymlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, e.Target
	case quarry.KindHardlink:
		h.Typeflag, h.Linkname = tar.TypeLink, e.Target[1:]
	case quarry.KindFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		return nil, fmt.Errorf("%s is a %s, which an artifact cannot hold", quotePath(e.Path), e.Kind)
	}
	if e.caps != nil {
		h.PAXRecords = map[string]string{paxCaps: string(e.caps)}
	}
	// The writer prefers USTAR, then PAX, then GNU's own; what PAX cannot hold
	// (NUL in a name) is no file name.
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(h); err != nil {
		return nil, fmt.Errorf("cannot write the archive's header of %s: %w", quotePath(e.Path), err)
	}
	return b.Bytes(), nil
}

// newEncoder makes the encoder of one worker. Every option that changes the
// output is given, so that no default of the machine or of a later version of
// the library does.
func newEncoder() (*zstd.Encoder, error) {
	return zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.SpeedDefault),
		zstd.WithWindowSize(chunkSize),
		zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(true),
		zstd.WithAllLitEntropyCompression(true),
		zstd.WithZeroFrames(true),
		zstd.WithSingleSegment(true),
		zstd.WithLowerEncoderMem(true),
	)
}

// newDecoder reads artifacts: many small frames, none of which may ask for
// more memory than a chunk has.
func newDecoder(concurrency int) (*zstd.Decoder, error) {
	return zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(concurrency),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(chunkSize),
	)
}
