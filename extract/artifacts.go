package extract

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/Morphux/quarry"
)

// Artifacts is a folder of artifacts, each named by the SHA-256 of its bytes:
// DIR/ab/abcd....tar.zst. A file is there whole and on disk, or not at all.
// Any number of goroutines and processes may use one folder.
type Artifacts struct{ dir string }

const (
	artifactExt = ".tar.zst"
	// artifactTmp holds files that are being written; it is no hash's folder.
	artifactTmp = "tmp"
)

// OpenArtifacts opens a store, making its folder where there is none, and
// clears away what a crash has left half written. Only one process may open a
// folder while others write to it: the daemon, at its start.
func OpenArtifacts(dir string) (*Artifacts, error) {
	tmp := filepath.Join(dir, artifactTmp)
	if err := os.RemoveAll(tmp); err != nil {
		return nil, fmt.Errorf("cannot clear %s: %w", tmp, err)
	}
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the artifact store: %w", err)
	}
	return &Artifacts{dir}, nil
}

// checkSHA keeps words that are no hashes from becoming paths.
func checkSHA(sha string) error {
	b, err := hex.DecodeString(sha)
	if err != nil || len(b) != sha256.Size || strings.ToLower(sha) != sha {
		return fmt.Errorf("artifact %.80q is no SHA-256: give 64 lower-case hex digits", sha)
	}
	return nil
}

// Path is where an artifact lies, whether or not it is there. It is "" for
// what is no lower-case hex SHA-256.
func (a *Artifacts) Path(sha string) string {
	if checkSHA(sha) != nil {
		return ""
	}
	return filepath.Join(a.dir, sha[:2], sha+artifactExt)
}

// Open opens an artifact. The error wraps fs.ErrNotExist where there is none.
func (a *Artifacts) Open(sha string) (*os.File, error) {
	if err := checkSHA(sha); err != nil {
		return nil, err
	}
	f, err := os.Open(a.Path(sha))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("artifact %s is not in the store, build its package again: %w", sha, fs.ErrNotExist)
	}
	return f, err
}

// Verify reads an artifact and compares it with its name.
func (a *Artifacts) Verify(sha string) error {
	f, err := a.Open(sha)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return fmt.Errorf("cannot read artifact %s: %w", sha, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != sha {
		return fmt.Errorf("artifact %s is damaged, its bytes have the hash %s: build its package again", sha, got)
	}
	return nil
}

// Remove removes an artifact; one that is not there is no error.
func (a *Artifacts) Remove(sha string) error {
	if err := checkSHA(sha); err != nil {
		return err
	}
	if err := os.Remove(a.Path(sha)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Put stores what r holds.
func (a *Artifacts) Put(r io.Reader) (quarry.Artifact, error) {
	p, err := a.create()
	if err != nil {
		return quarry.Artifact{}, err
	}
	defer p.abort()
	if _, err := io.Copy(p, r); err != nil {
		return quarry.Artifact{}, fmt.Errorf("cannot store an artifact: %w", err)
	}
	return p.commit()
}

// pending is an artifact that is being written.
type pending struct {
	store *Artifacts
	file  *os.File // nil when it has ended, either way
	sum   hash.Hash
	size  int64
}

func (a *Artifacts) create() (*pending, error) {
	f, err := os.CreateTemp(filepath.Join(a.dir, artifactTmp), "*"+artifactExt)
	if err != nil {
		return nil, fmt.Errorf("cannot write to the artifact store: %w", err)
	}
	return &pending{store: a, file: f, sum: sha256.New()}, nil
}

func (p *pending) Write(b []byte) (int, error) {
	n, err := p.file.Write(b)
	p.sum.Write(b[:n])
	p.size += int64(n)
	if err != nil {
		err = fmt.Errorf("cannot write to the artifact store: %w", err)
	}
	return n, err
}

// abort removes what was written, unless it has been committed.
func (p *pending) abort() {
	if p.file != nil {
		p.file.Close()
		os.Remove(p.file.Name())
		p.file = nil
	}
}

// commit gives the artifact its name, and returns when it is on disk under it.
func (p *pending) commit() (art quarry.Artifact, err error) {
	defer p.abort()
	art = quarry.Artifact{SHA256: hex.EncodeToString(p.sum.Sum(nil)), Size: p.size}
	to := p.store.Path(art.SHA256)
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot keep artifact %s: %w", art.SHA256, err)
		}
	}()
	// The same artifact again: keep the file that others may be reading, if it
	// still is what its name says.
	there, err := p.store.again(to, art.Size)
	if err != nil {
		return art, err
	}
	if there && p.store.Verify(art.SHA256) == nil {
		return art, syncDirs(to)
	}
	if err := p.file.Chmod(0o644); err != nil {
		return art, err
	}
	if err := p.file.Sync(); err != nil {
		return art, err
	}
	if err := os.Mkdir(filepath.Dir(to), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return art, err
	}
	if err := os.Rename(p.file.Name(), to); err != nil {
		return art, err
	}
	p.file.Close()
	p.file = nil
	return art, syncDirs(to)
}

// syncDirs makes a new name durable, and that of its folder.
func syncDirs(name string) error {
	dir := filepath.Dir(name)
	for _, d := range []string{dir, filepath.Dir(dir)} {
		f, err := os.Open(d)
		if err != nil {
			return err
		}
		err = f.Sync()
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}
