package fsck

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/Morphux/quarry"
)

// place is where an artifact lies: doc/artifact.md.
func (c *checker) place(sha string) string {
	return filepath.Join(c.Artifacts, sha[:2], sha+".tar.zst")
}

func (c *checker) has(sha string) bool {
	if len(sha) != 64 || strings.Trim(sha, "0123456789abcdef") != "" {
		return false
	}
	fi, err := os.Lstat(c.place(sha))
	return err == nil && fi.Mode().IsRegular()
}

// store looks at the artifacts that records name, and counts the others.
func (c *checker) store() error {
	names := make([]string, 0, len(c.artifacts))
	for sha := range c.artifacts {
		names = append(names, sha)
	}
	slices.Sort(names)
	step := c.begin("artifacts", len(names))
	group, ctx := errgroup.WithContext(c.ctx)
	group.SetLimit(c.Workers)
	for part := range slices.Chunk(names, 16) {
		group.Go(func() error {
			for _, sha := range part {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				a := c.artifacts[sha]
				if what := c.look(sha, a); what != "" {
					c.bad(a.channel, "artifact "+sha, what+", and "+a.where+" names it", "restore it from a backup or a mirror, or "+rebuild)
				}
				step()
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if c.Since != "" || len(c.channels) != c.sum.Channels {
		return nil // who has not seen all cannot say what nobody names
	}
	var size int64
	folders, err := os.ReadDir(c.Artifacts)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, d := range folders {
		if len(d.Name()) != 2 {
			continue
		}
		files, err := os.ReadDir(filepath.Join(c.Artifacts, d.Name()))
		if err != nil {
			return err
		}
		for _, f := range files {
			sha, ok := strings.CutSuffix(f.Name(), ".tar.zst")
			if _, named := c.artifacts[sha]; !ok || named || len(sha) != 64 {
				continue
			}
			if fi, err := f.Info(); err == nil {
				c.sum.Orphans++
				size += fi.Size()
			}
		}
	}
	if c.sum.Orphans > 0 {
		c.tell(Finding{Note, "", "artifacts", fmt.Sprintf("%d artifacts (%d bytes) are named by no record that stands: history, builds under way, or nobody needs them", c.sum.Orphans, size), ""})
	}
	return nil
}

// look says what is wrong with an artifact; "" for nothing.
func (c *checker) look(sha string, a artifact) string {
	fi, err := os.Lstat(c.place(sha))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "it is missing"
	case err != nil:
		return "it cannot be looked at (" + err.Error() + ")"
	case !fi.Mode().IsRegular():
		return "it is no regular file"
	case fi.Size() != a.size:
		return fmt.Sprintf("it has %d bytes and should have %d", fi.Size(), a.size)
	case !c.Deep:
		return ""
	}
	f, err := os.Open(c.place(sha))
	if err != nil {
		return "it cannot be read (" + err.Error() + ")"
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "it cannot be read (" + err.Error() + ")"
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != sha {
		return "its content is damaged: its SHA-256 is " + got
	}
	if a.files == nil {
		return ""
	}
	files, err := a.files()
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err == nil {
		err = compare(f, files)
	}
	if err != nil {
		return "what is in it is not what the list of files says (" + oneLine(err.Error()) + ")"
	}
	return ""
}

// compare reads an archive and looks whether it holds the files of a list.
func compare(r io.Reader, files []quarry.File) error {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		return err
	}
	defer z.Close()
	want := make(map[string]quarry.File, len(files))
	for _, f := range files {
		want[f.Path] = f
	}
	tr := tar.NewReader(z)
	h := sha256.New()
	for {
		e, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		path := "/" + strings.TrimSuffix(e.Name, "/")
		f, ok := want[path]
		if !ok {
			return fmt.Errorf("%.200q is not in the list, or twice in the archive", path)
		}
		delete(want, path)
		kind := map[byte]quarry.FileKind{tar.TypeReg: quarry.KindRegular, tar.TypeDir: quarry.KindDir, tar.TypeSymlink: quarry.KindSymlink, tar.TypeLink: quarry.KindHardlink, tar.TypeFifo: quarry.KindFIFO}[e.Typeflag]
		target := e.Linkname
		if kind == quarry.KindHardlink {
			target = "/" + strings.TrimPrefix(target, "/")
		}
		switch {
		case kind != f.Kind:
			return fmt.Errorf("%.200q is a %s, not a %s", path, kind, f.Kind)
		case kind == quarry.KindRegular && e.Size != f.Size:
			return fmt.Errorf("%.200q has %d bytes, not %d", path, e.Size, f.Size)
		case kind != quarry.KindSymlink && uint32(e.Mode)&0o7777 != f.Mode&0o7777:
			return fmt.Errorf("%.200q has mode %04o, not %04o", path, e.Mode, f.Mode)
		case uint32(e.Uid) != f.UID || uint32(e.Gid) != f.GID:
			return fmt.Errorf("%.200q is of %d:%d, not of %d:%d", path, e.Uid, e.Gid, f.UID, f.GID)
		case (kind == quarry.KindSymlink || kind == quarry.KindHardlink) && target != f.Target:
			return fmt.Errorf("%.200q leads to %.200q, not to %.200q", path, target, f.Target)
		}
		if kind != quarry.KindRegular {
			continue
		}
		h.Reset()
		if _, err := io.Copy(h, tr); err != nil {
			return err
		}
		sum, err := hex.DecodeString(f.SHA256)
		if err != nil || !bytes.Equal(sum, h.Sum(nil)) {
			return fmt.Errorf("%.200q has another content", path)
		}
	}
	for path := range want {
		return fmt.Errorf("%.200q is not in the archive, and %d in all", path, len(want))
	}
	return nil
}
