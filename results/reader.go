package results

import (
	"fmt"
	"path/filepath"
	"strings"
)

// Reader reads one channel of a results repository, or of a bare clone of one,
// and never writes. What it answers comes from one commit until [Reader.Refresh]
// goes to the newest.
type Reader struct {
	*Snapshot
	path string
}

// OpenReader opens a channel for reading. path is the bare repository (or the
// .git folder of a clone, for channels that have a local branch). A channel
// that has no branch is [ErrNotFound].
func OpenReader(path, channel string) (*Reader, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := checkRepo(path); err != nil {
		return nil, err
	}
	o := openODB(path)
	s, err := snapshotOf(path, o, channel)
	if err != nil {
		o.Close()
		return nil, err
	}
	if s.Commit() == "" {
		o.Close()
		known, err := channels(path)
		if err != nil {
			return nil, err
		}
		if len(known) == 0 {
			return nil, fmt.Errorf("channel %s in %s: %w: it has no records yet", channel, path, ErrNotFound)
		}
		return nil, fmt.Errorf("channel %s in %s: %w: it has %s", channel, path, ErrNotFound, strings.Join(known, ", "))
	}
	return &Reader{s, path}, nil
}

// Refresh goes to the newest commit of the channel and reports whether that is
// another one. Snapshots that were taken before stay what they are. It is not
// for use beside other methods of the same Reader.
func (r *Reader) Refresh() (bool, error) {
	s, err := snapshotOf(r.path, r.odb, r.channel)
	if err != nil {
		return false, err
	}
	moved := s.commit != r.commit
	r.Snapshot = s
	return moved, nil
}

// Close lets go of the repository's files.
func (r *Reader) Close() error { return r.odb.Close() }
