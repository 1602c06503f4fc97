package results

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/Morphux/quarry"
)

// Reader reads one channel of a results repository, or of a bare clone of one,
// and never writes. What it answers comes from one commit until [Reader.Refresh]
// goes to the newest.
type Reader struct {
	*Snapshot
	path string
}

// OpenReader opens a channel for reading. path is the bare repository (or the
// .git folder of a clone, for channels that have a local branch). An empty
// channel is the one that HEAD names, the farm's default. A repository that is
// not there and a channel that has no branch are [ErrNotFound].
func OpenReader(path, channel string) (*Reader, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("results repository %s: %w: nothing has been recorded yet", path, ErrNotFound)
	}
	if err := checkRepo(path); err != nil {
		return nil, err
	}
	if channel == "" {
		if channel, err = headChannel(path); err != nil {
			return nil, err
		}
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

func headChannel(repo string) (string, error) {
	b, err := os.ReadFile(filepath.Join(repo, "HEAD"))
	if err != nil {
		return "", err
	}
	channel, ok := strings.CutPrefix(strings.TrimSpace(string(b)), "ref: refs/heads/")
	if !ok || quarry.CheckChannel(channel) != nil {
		return "", fmt.Errorf("HEAD of %s is %.60q, which names no channel: say which one", repo, b)
	}
	return channel, nil
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
