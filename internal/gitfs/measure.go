package gitfs

import (
	"fmt"
	"math"

	"github.com/go-git/go-git/v5/plumbing"
)

// Limits on what Measure takes for a package's tree. Linux has 90,000 files,
// 11 folders deep.
const (
	MaxFiles = 1_000_000 // names of any kind
	MaxDepth = 200       // folders in each other
	MaxBytes = 64 << 30  // of all files; the farm's own limit on disk is lower
)

// Total is what a tree comes to when it is written out.
type Total struct {
	Files int64 // names of any kind, folders included
	Bytes int64 // in regular files and targets of links
}

// Measure adds up the tree without walking it: folders that are there many
// times are looked at once. A few hundred bytes of objects can name more files
// than any disk holds, so ask before writing a stranger's commit out. What is
// over the limits is a [BadTreeError].
func (f *FS) Measure() (Total, error) {
	m := &measure{fs: f, trees: map[plumbing.Hash]measured{}, blobs: map[plumbing.Hash]int64{}}
	whole, err := m.tree(f.root, ".", 1)
	return whole.Total, err
}

type measured struct {
	Total
	depth int // folders below, this one included
}

type measure struct {
	fs    *FS
	trees map[plumbing.Hash]measured
	blobs map[plumbing.Hash]int64
}

func (m *measure) tree(hash plumbing.Hash, dir string, above int) (measured, error) {
	tooDeep := func(depth int) error {
		return &BadTreeError{dir, fmt.Sprintf("is inside of %d folders: %d is the most", depth, MaxDepth)}
	}
	if above > MaxDepth {
		return measured{}, tooDeep(above)
	}
	if t, ok := m.trees[hash]; ok {
		if above+t.depth-1 > MaxDepth {
			return measured{}, tooDeep(above + t.depth - 1)
		}
		return t, nil
	}
	entries, err := m.fs.tree(hash, dir)
	if err != nil {
		return measured{}, err
	}
	sum := measured{depth: 1}
	for _, e := range entries {
		name := dir + "/" + e.name
		if dir == "." {
			name = e.name
		}
		var one measured
		switch {
		case e.sub:
		case e.mode.IsDir():
			if one, err = m.tree(e.hash, name, above+1); err != nil {
				return measured{}, err
			}
		default:
			size, ok := m.blobs[e.hash]
			if !ok {
				if size, err = m.fs.store.size(e.hash); err != nil {
					return measured{}, err
				}
				m.blobs[e.hash] = size
			}
			one.Bytes = size
		}
		sum.Files += one.Files + 1
		sum.depth = max(sum.depth, one.depth+1)
		// Sizes come out of object headers, which may say anything.
		if one.Bytes < 0 || sum.Bytes > math.MaxInt64-one.Bytes {
			one.Bytes = math.MaxInt64 - sum.Bytes
		}
		sum.Bytes += one.Bytes
		if sum.Files > MaxFiles {
			return measured{}, &BadTreeError{dir, fmt.Sprintf("holds more than %d files: that is the most", MaxFiles)}
		}
		if sum.Bytes > MaxBytes {
			return measured{}, &BadTreeError{dir, fmt.Sprintf("holds more than %d bytes: that is the most", int64(MaxBytes))}
		}
	}
	m.trees[hash] = sum
	return sum, nil
}
