package images

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	quarry "github.com/Morphux/quarry"
)

// What a setup may hold. They are far above what any needs, and keep a mistake
// (a database given for a sources.list) from being copied into every instance.
const (
	maxSetupFiles    = 100
	maxSetupFile     = 4 << 20  // bytes in one file
	maxSetupSize     = 16 << 20 // bytes in all files
	maxUpdateLines   = 100
	maxUpdateSize    = 64 << 10 // bytes in all lines
	defaultMaxAge    = 24 * time.Hour
	defaultUpdateEnd = 30 * time.Minute
)

// reserved are places that are mounted over while a setup runs, so that what is
// written there does not last.
var reserved = []string{"/dev", "/proc", "/sys", "/run", "/tmp", "/var/tmp", "/etc/resolv.conf"}

// Empty reports whether the setup changes nothing.
func (u Setup) Empty() bool { return len(u.Files) == 0 && len(u.Update) == 0 }

func (u Setup) maxAge() time.Duration {
	if u.MaxAge > 0 {
		return u.MaxAge
	}
	return defaultMaxAge
}

func (u Setup) timeout() time.Duration {
	if u.Timeout > 0 {
		return u.Timeout
	}
	return defaultUpdateEnd
}

// Digest is a digest of all that decides what the setup makes of a base: its
// files and commands. When it changes instances are made anew.
func (u Setup) Digest() string {
	h := sha256.New()
	put := func(fields ...string) {
		for _, f := range fields {
			// Each with its length, so that no two setups read the same.
			h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(f))))
			h.Write([]byte(f))
		}
	}
	put("quarry setup 1")
	for _, f := range u.Files {
		put("file", f.Path, f.mode().String(), string(f.Data))
	}
	for _, line := range u.Update {
		put("update", line)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

func (f SetupFile) mode() fs.FileMode {
	if f.Mode == 0 {
		return 0o644
	}
	return f.Mode
}

// Check reports what is wrong with a setup.
func (u Setup) Check() error {
	if len(u.Files) > maxSetupFiles {
		return fmt.Errorf("setup has %d files: %d are the most, put the others into the base", len(u.Files), maxSetupFiles)
	}
	seen := map[string]bool{}
	size := 0
	for _, f := range u.Files {
		if err := checkInside(f.Path); err != nil {
			return err
		}
		switch {
		case seen[f.Path]:
			return fmt.Errorf("setup has the file %q twice: leave one out", f.Path)
		case f.Mode&^(fs.ModePerm) != 0:
			return fmt.Errorf("setup file %q has mode %v: give permissions only, such as 0644", f.Path, f.Mode)
		case len(f.Data) > maxSetupFile:
			return fmt.Errorf("setup file %q has %d bytes: %d are the most, put it into the base", f.Path, len(f.Data), maxSetupFile)
		}
		seen[f.Path] = true
		size += len(f.Data)
	}
	if size > maxSetupSize {
		return fmt.Errorf("setup's files have %d bytes together: %d are the most, put them into the base", size, maxSetupSize)
	}
	for p := range seen {
		for dir := path.Dir(p); dir != "/"; dir = path.Dir(dir) {
			if seen[dir] {
				return fmt.Errorf("setup file %q cannot lie in %q, which is a file too", p, dir)
			}
		}
	}
	if len(u.Update) > maxUpdateLines {
		return fmt.Errorf("setup has %d update commands: %d are the most, put them into a file of the setup and run that", len(u.Update), maxUpdateLines)
	}
	size = 0
	for _, line := range u.Update {
		size += len(line)
		switch {
		case strings.TrimSpace(line) == "":
			return errors.New("setup has a blank update command: leave it out")
		case strings.ContainsRune(line, 0):
			return fmt.Errorf("update command %.60q holds a zero byte, which no shell takes", line)
		case size > maxUpdateSize:
			return fmt.Errorf("setup's update commands have more than %d bytes: put them into a file of the setup and run that", maxUpdateSize)
		}
	}
	switch {
	case u.MaxAge < 0:
		return fmt.Errorf("setup's greatest age %v is negative: give one such as 24h", u.MaxAge)
	case u.Timeout < 0:
		return fmt.Errorf("setup's timeout %v is negative: give one such as 30m", u.Timeout)
	}
	return nil
}

// checkInside reports whether p can be the path of a setup's file.
func checkInside(p string) error {
	switch {
	case !strings.HasPrefix(p, "/"):
		return fmt.Errorf("setup file %.200q is not absolute: give its path inside, such as /etc/apt/sources.list", p)
	case len(p) > 1000:
		return fmt.Errorf("setup file %.60q... has a path of %d bytes: 1000 are the most", p, len(p))
	case path.Clean(p) != p || p == "/":
		return fmt.Errorf("setup file %q is no clean path of a file: write it without . and .. and doubled slashes", p)
	case strings.ContainsFunc(p, func(r rune) bool { return r < 0x20 || r == 0x7f || r == '\uFFFD' }):
		return fmt.Errorf("setup file %q has a path with control characters or broken UTF-8: leave them out", p)
	}
	for name := range strings.SplitSeq(p, "/") {
		if len(name) > 255 {
			return fmt.Errorf("setup file %.60q... has a name of %d bytes in its path: 255 are the most", p, len(name))
		}
	}
	for _, r := range append(slices.Clone(reserved), HomePath, path.Dir(GuestPath)) {
		if p == r || strings.HasPrefix(p, r+"/") {
			return fmt.Errorf("setup file %q lies in %s, which is mounted over and does not last: give another place", p, r)
		}
	}
	return nil
}

// check reports what is wrong with a channel.
func (c Channel) check() error {
	if err := quarry.CheckChannel(c.Name); err != nil {
		return err
	}
	for i, arch := range c.Archs {
		if err := quarry.CheckArch(arch); err != nil {
			return fmt.Errorf("channel %s: %w", c.Name, err)
		}
		if arch == quarry.Noarch {
			return fmt.Errorf("channel %s: noarch is no arch to build on", c.Name)
		}
		if slices.Contains(c.Archs[:i], arch) {
			return fmt.Errorf("channel %s has the arch %s twice: leave one out", c.Name, arch)
		}
	}
	if c.Base != "" {
		if err := checkBaseName(c.Base); err != nil {
			return fmt.Errorf("channel %s: %w", c.Name, err)
		}
	}
	if err := c.Setup.Check(); err != nil {
		return fmt.Errorf("channel %s: %w", c.Name, err)
	}
	return nil
}
