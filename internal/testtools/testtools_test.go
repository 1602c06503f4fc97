package testtools

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Morphux/quarry/internal/testbase"
)

func TestPrograms(t *testing.T) {
	if path, ok := Make(t); ok {
		out, err := exec.Command(path, "--version").CombinedOutput()
		if err != nil || !strings.HasPrefix(string(out), "GNU Make 4.4.1\n") {
			t.Errorf("%s: %v: %s", path, err, out)
		}
		if data, err := os.ReadFile(path); err != nil || !strings.Contains(string(data), "jobserver-style") {
			t.Errorf("%s knows no --jobserver-style: %v", path, err)
		}
	}
	if path, ok := Ninja(t); ok {
		out, err := exec.Command(path, "--version").CombinedOutput()
		var major, minor int
		if _, serr := fmt.Sscanf(string(out), "%d.%d", &major, &minor); err != nil || serr != nil || major == 1 && minor < 13 {
			t.Errorf("%s: %v: %s", path, err, out)
		}
	}
	if dir, ok := Source(t, "gzip"); ok {
		if _, err := os.Stat(filepath.Join(dir, "configure")); err != nil {
			t.Error(err)
		}
	}
}

// Where there is no way to the archive, or another reason, nothing is kept.
func TestWhatCannotBeHad(t *testing.T) {
	defer func(was string) { archive = was }(archive)
	archive = "file:" + t.TempDir()
	path, err := kept("test-no-archive", func(to string) error { return unpack("bookworm", "gzip", to) })
	if err == nil {
		t.Errorf("it gave %s", path)
	}
	cache, err := testbase.Cache()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"test-no-archive", "test-no-archive.making"} {
		if _, err := os.Stat(filepath.Join(cache, "tools", name)); !os.IsNotExist(err) {
			t.Errorf("%s is kept: %v", name, err)
		}
	}
}
