package gitfs

import (
	"errors"
	"fmt"
	"io"

	"github.com/go-git/go-git/v5/plumbing"
)

// Repo is a bare repository from which several things are read. Close it after
// use, and after the last use of any FS that it gave.
type Repo struct{ store *store }

// OpenRepo opens the bare repository at path.
func OpenRepo(path string) (*Repo, error) {
	s, err := openStore(path)
	if err != nil {
		return nil, err
	}
	return &Repo{s}, nil
}

// Close lets go of the repository's files.
func (r *Repo) Close() error { return r.store.close() }

// Commit reads a commit, given by 40 hex digits.
func (r *Repo) Commit(hex string) (Info, error) {
	hash, err := parseHash(hex)
	if err != nil {
		return Info{}, err
	}
	return r.store.commit(hash)
}

// Tree gives the tree of a commit.
func (r *Repo) Tree(commit string) (*FS, error) {
	info, err := r.Commit(commit)
	if err != nil {
		return nil, err
	}
	return &FS{store: r.store, info: info, root: plumbing.NewHash(info.Tree), trees: map[plumbing.Hash][]entry{}}, nil
}

// ErrTooLarge is why Blob does not read what is over its limit.
var ErrTooLarge = errors.New("is too large")

// Blob reads a blob of at most limit bytes.
func (r *Repo) Blob(hex string, limit int64) ([]byte, error) {
	hash, err := parseHash(hex)
	if err != nil {
		return nil, err
	}
	in, size, err := r.store.blob(hash)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	data, err := io.ReadAll(io.LimitReader(in, limit+1))
	if err == nil && (int64(len(data)) > limit || size > limit) {
		err = fmt.Errorf("it %w: it has %d bytes, and %d is the most", ErrTooLarge, size, limit)
	}
	if err != nil {
		return nil, fmt.Errorf("object %s of %s cannot be read: %w", hash, r.store.path, err)
	}
	return data, nil
}
