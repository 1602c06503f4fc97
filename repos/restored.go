package repos

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/Morphux/quarry/internal/durable"
)

// settled begins the settings that a repository has from Quarry.
const settled = "# written by quarry\n"

// settle gives the repositories in a folder their settings that have none: a backup
// that git has cloned brings the clone's own, and with those anybody who may push
// could push who pushed.
func settle(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() || !strings.HasSuffix(e.Name(), ".git") {
			continue
		}
		path := filepath.Join(dir, e.Name(), "config")
		text, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) || err == nil && bytes.Contains(text, []byte(settled)) {
			continue
		}
		if err == nil {
			err = durable.WriteFile(path, append(append(bytes.TrimRight(text, "\n"), '\n'), settings...), 0o644, ".config-*")
		}
		if err != nil {
			return fmt.Errorf("repository %s cannot be given its settings: %w", filepath.Join(dir, e.Name()), err)
		}
	}
	return nil
}
