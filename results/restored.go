package results

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// settle gives a repository the settings of a new one that has none of them: a
// backup that git has cloned brings the clone's own. Whatever somebody has set since
// stays.
func settle(path string) error {
	name := filepath.Join(path, "config")
	text, err := os.ReadFile(name)
	if err != nil || bytes.Contains(text, []byte("allowAnySHA1InWant")) {
		return nil // git takes the defaults too
	}
	_, rest, _ := strings.Cut(gitConfig, "bare = true\n")
	tmp, err := os.CreateTemp(path, ".config-")
	if err != nil {
		return err
	}
	tmp.Close()
	defer os.Remove(tmp.Name())
	err = writeSynced(tmp.Name(), append(append(bytes.TrimRight(text, "\n"), '\n'), "[core]\n"+rest...), 0o644)
	if err == nil {
		err = os.Rename(tmp.Name(), name)
	}
	if err != nil {
		return fmt.Errorf("results repository %s cannot be given its settings: %w", path, err)
	}
	return syncDir(path)
}
