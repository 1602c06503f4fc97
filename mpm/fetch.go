package mpm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/internal/durable"
	"github.com/Morphux/quarry/mirror"
)

// progress tells of a copy as it goes.
type progress struct {
	tell        func(what string, done, total int64)
	what        string
	done, total int64
}

// copy copies up to max bytes; more is an error.
func (p *progress) copy(w io.Writer, r io.Reader, max int64) error {
	buf := make([]byte, 128<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if p.done += int64(n); p.done > max {
				return fmt.Errorf("%s goes on after %d bytes, which is its size", p.what, max)
			}
			if _, werr := w.Write(buf[:n]); werr != nil {
				return werr
			}
			p.tell(p.what, p.done, p.total)
			crash()
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// Fetch sees to it that a package's artifact is in the cache, whole and with the
// digest that the channel tells, and returns where. What was fetched of it before
// is gone on with.
func (c *Client) Fetch(ctx context.Context, p mirror.Package) (string, error) {
	if p.Artifact == "" {
		return "", fmt.Errorf("%s %s has no artifact: there is nothing to fetch", p.Name, p.Version)
	}
	file := filepath.Join(c.o.Cache, mirror.ArtifactName(p.Artifact))
	switch sum, err := digest(file); {
	case err == nil && sum == p.Artifact:
		return file, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	if c.o.Offline {
		return "", fmt.Errorf("the artifact of %s %s is not in the cache: leave out --offline", p.Name, p.Version)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return "", err
	}
	err := c.fetch(ctx, p, file)
	if err != nil {
		return "", fmt.Errorf("the artifact of %s %s cannot be fetched: %w", p.Name, p.Version, err)
	}
	return file, nil
}

func (c *Client) fetch(ctx context.Context, p mirror.Package, file string) error {
	from, name, err := c.artifacts(p.Artifact)
	if err != nil {
		return err
	}
	part, err := flock(file+".part", "artifact "+p.Artifact)
	if err != nil {
		return err
	}
	defer part.Close()
	for {
		sum := sha256.New()
		resumed, err := io.Copy(sum, part)
		if err != nil {
			return err
		}
		err = c.download(ctx, from, name, p, part, sum, resumed)
		if err != nil {
			return err
		}
		if hex.EncodeToString(sum.Sum(nil)) == p.Artifact {
			break
		}
		if err := errors.Join(part.Truncate(0), seek(part, 0)); err != nil {
			return err
		}
		if resumed == 0 {
			return fmt.Errorf("what came has another digest than the channel tells, %s: it is damaged, or was exchanged", p.Artifact)
		}
		// What was here from before was no part of it.
	}
	if err := part.Sync(); err != nil {
		return err
	}
	crash()
	if err := os.Rename(part.Name(), file); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(file))
}

// download goes on with what part has.
func (c *Client) download(ctx context.Context, from site, name string, p mirror.Package, part *os.File, sum hash.Hash, have int64) error {
	if p.ArtifactSize > 0 && have >= p.ArtifactSize {
		return nil // the digest says whether it is right
	}
	r, at, err := from.open(ctx, name, have)
	if err != nil {
		return err
	}
	defer r.Close()
	if at != have { // the server cannot go on, and begins anew
		sum.Reset()
		if err := errors.Join(part.Truncate(0), seek(part, 0)); err != nil {
			return err
		}
	}
	total, most := int64(-1), int64(1<<40)
	if p.ArtifactSize > 0 {
		total, most = p.ArtifactSize, p.ArtifactSize
	}
	pr := progress{c.o.Progress, p.Name + " " + p.Version, at, total}
	if err := pr.copy(io.MultiWriter(part, sum), r, most); err != nil {
		return err
	}
	if total > 0 && pr.done < total {
		return fmt.Errorf("it ended after %d of %d bytes: %w: try again, and it goes on from there", pr.done, total, io.ErrUnexpectedEOF)
	}
	c.o.Progress(pr.what, pr.done, pr.done)
	return nil
}

func seek(f *os.File, to int64) error {
	_, err := f.Seek(to, io.SeekStart)
	return err
}

func digest(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	// Reading it twice, here and to unpack it, is quicker from memory.
	unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_WILLNEED)
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// artifacts tells where an artifact is.
func (c *Client) artifacts(sha string) (site, string, error) {
	name := mirror.ArtifactName(sha)
	switch {
	case c.o.Artifacts != "":
		_, name, _ = strings.Cut(name, "/")
		base := c.o.Artifacts
		if rest, ok := strings.CutPrefix(base, "file://"); ok {
			base = rest
		}
		return c.o.site(base), name, nil
	case c.site != nil:
		return c.site, name, nil
	}
	u, err := url.Parse(c.o.From)
	switch {
	case strings.HasPrefix(c.o.From, "/"):
		return dirSite(filepath.Dir(c.o.From)), name, nil
	case err == nil && (u.Scheme == "http" || u.Scheme == "https"):
		u.Path = strings.TrimSuffix(path.Dir(strings.TrimRight(u.Path, "/")), "/")
		u.Path = strings.TrimSuffix(u.Path, "/git")
		return c.o.site(u.String()), name, nil
	}
	return nil, "", fmt.Errorf("%s has no artifacts: give --artifacts, e.g. https://farm.example.org/artifacts", c.o.From)
}
