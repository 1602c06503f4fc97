package images

import (
	"bytes"
	"context"
	"errors"
	"io"
)

// LoadFrom is [Store.Load] from a stream; source says in one word or two where
// it comes from. A stream that was cut off is an error, also of a plain tarball,
// whose end only its last two blocks tell. When ctx ends it does not wait for a
// stream that stands still; then r may be read once more, whatever comes.
func (s *Store) LoadFrom(ctx context.Context, ref string, r io.Reader, source string, progress func(Progress)) (Base, error) {
	to, err := ParseBaseRef(ref)
	if err != nil {
		return Base{}, err
	}
	pr, pw := io.Pipe()
	defer pr.Close()
	stop := context.AfterFunc(ctx, func() { pr.Close() })
	defer stop()
	go func() {
		_, err := io.CopyBuffer(pw, struct{ io.Reader }{r}, make([]byte, 256<<10))
		pw.CloseWithError(err) // nil: its end
	}()
	b, err := s.load(ctx, to, &whole{r: pr}, source, 0, "reading", progress)
	if err != nil && ctx.Err() != nil {
		return Base{}, context.Cause(ctx)
	}
	return b, err
}

// tarEnd is the number of zero bytes that end every tarball (POSIX pax: two
// blocks of 512).
const tarEnd = 1024

// packed are the first bytes of streams whose end the decompressor checks.
var packed = [][]byte{{0x1f, 0x8b}, []byte("BZh"), {0xfd, '7', 'z', 'X', 'Z'}, {0x28, 0xb5, 0x2f, 0xfd}}

// whole gives an error instead of the end of a plain tarball that does not end
// as they do.
type whole struct {
	r     io.Reader
	first []byte // bytes
	zeros int    // at the end of what was read
}

func (w *whole) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if missing := 6 - len(w.first); missing > 0 {
		w.first = append(w.first, p[:min(n, missing)]...)
	}
	tail := n - len(bytes.TrimRight(p[:n], "\x00"))
	if tail < n {
		w.zeros = 0
	}
	w.zeros += tail
	if err == io.EOF && w.zeros < tarEnd && !w.packed() {
		err = errors.New("it ends in the middle: it was cut off on its way, or is no tarball")
	}
	return n, err
}

func (w *whole) packed() bool {
	for _, magic := range packed {
		if bytes.HasPrefix(w.first, magic) {
			return true
		}
	}
	return false
}
