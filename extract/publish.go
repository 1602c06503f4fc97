package extract

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Publish gives an artifact a second name for people, DIR/NAME, in place of what
// had the name before. It is another link to the same file, so it takes no room
// and may not be changed in place; DIR has to be on the store's file system.
func (a *Artifacts) Publish(sha, dir, name string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("artifact cannot be put at %s: %w", filepath.Join(dir, name), err)
		}
	}()
	if err := checkSHA(sha); err != nil {
		return err
	}
	if name == "" || name[0] == '.' || strings.ContainsAny(name, "/\x00") {
		return errors.New("that is no name of a file")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	to := filepath.Join(dir, name)
	// A name that is there already cannot be linked to. Renaming one link of a file
	// over another is nothing to POSIX and leaves the first: so look beforehand.
	from, err := os.Stat(a.Path(sha))
	if err != nil {
		return err
	}
	if old, err := os.Lstat(to); err == nil && os.SameFile(from, old) {
		return nil
	}
	tmp := filepath.Join(dir, ".new-"+rand.Text())
	if err := os.Link(a.Path(sha), tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, to); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	// The same file under both names after a race with another of its like.
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
