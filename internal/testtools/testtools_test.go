package testtools

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
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

func TestWhatCannotBeHad(t *testing.T) {
	if path, err := kept("test-no-such-package", func(to string) error { return unpack("bookworm", "no-such-package-of-debian", to) }); err == nil {
		t.Errorf("it gave %s", path)
	}
}
