package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry"
)

// Channel is a line of releases that MPM can follow.
type Channel struct {
	Archs []string `toml:"archs"` // blank: this machine's own
	// Base is the name of the bases that the channel is built on, e.g. trixie for
	// those loaded as x86_64:trixie; blank: the archs' own.
	Base string `toml:"base"`
	// Push and Promote name those who may push packages to the channel, and take
	// them into it from another: users, or role:admin and its like for everybody of
	// a role. An admin always may. Empty: whoever may push the package.
	Push    []string `toml:"push"`
	Promote []string `toml:"promote"`
	// Signed has releases come to the channel, and leave it, only by signed pushes.
	Signed bool `toml:"signed"`
	// State is stable, unstable or development: what package servers tell of it.
	// Blank: by the channel's name, see [Config.StateOf].
	State string `toml:"state"`
	Setup Setup  `toml:"setup"`
}

// Setup brings a base up to date for a channel. Without files and commands
// builds of the channel start from the base itself.
type Setup struct {
	// Files are files to copy in before the commands run: absolute paths inside to
	// files of this machine, which relative paths look for beside the configuration.
	Files map[string]string `toml:"files"`
	// Update are lines for /bin/sh, run as root inside, with the network.
	Update []string `toml:"update"`
	// MaxAge is how old the outcome may get before the commands run again.
	MaxAge Duration `toml:"max_age"`
	// Timeout bounds all commands together.
	Timeout Duration `toml:"timeout"`
	// LocalMirror lets the commands reach this machine's own 127.0.0.1 as
	// 10.0.2.2, for a mirror that runs here.
	LocalMirror bool `toml:"local_mirror"`
}

// SetupFile is a file of a setup, read.
type SetupFile struct {
	Path string      // inside, absolute
	Mode fs.FileMode // 0644, or 0755 when the file here can be executed
	Data []byte
}

const (
	maxSetupFile  = 4 << 20 // bytes in one file of a setup
	maxSetupFiles = 100     // of one setup
	maxUpdate     = 64 << 10
)

// What a setup takes that says nothing else.
const (
	defaultMaxAge  = Duration(24 * time.Hour)
	defaultTimeout = Duration(30 * time.Minute)
	minAge         = Duration(time.Minute)
)

// checkChannels looks at the channels and fills in what they leave out.
func (c *Config) checkChannels() error {
	for _, name := range slices.Sorted(maps.Keys(c.Channels)) {
		ch := c.Channels[name]
		bad := func(err error, key ...string) error {
			key = append([]string{"channel", name}, key...)
			return fmt.Errorf("%skey %q: %w", c.at(key...), strings.Join(key, "."), err)
		}
		if err := quarry.CheckChannel(name); err != nil {
			return fmt.Errorf("%s%w", c.at("channel", name), err)
		}
		if len(ch.Archs) == 0 {
			ch.Archs = []string{HostArch()}
		}
		for i, a := range ch.Archs {
			if err := quarry.CheckArch(a); err != nil {
				return bad(err, "archs")
			}
			if a == quarry.Noarch {
				return bad(errors.New("noarch is no arch to build on: leave it out, packages that are noarch are built all the same"), "archs")
			}
			if slices.Contains(ch.Archs[:i], a) {
				return bad(fmt.Errorf("%s is named twice: leave one out", a), "archs")
			}
		}
		if ch.Base != "" && quarry.CheckChannel(ch.Base) != nil { // the names of bases have the same grammar
			return bad(fmt.Errorf("%.40q names no base: use lower-case ASCII letters, digits and -, as in images load x86_64:trixie FILE", ch.Base), "base")
		}
		if err := checkState(ch.State); err != nil {
			return bad(err, "state")
		}
		for _, l := range []struct {
			key  string
			list []string
		}{{"push", ch.Push}, {"promote", ch.Promote}} {
			for _, who := range l.list {
				if err := quarry.CheckPeople(who); err != nil {
					return bad(err, l.key)
				}
			}
		}
		if ch.Signed && c.Git.Signed == SignedOff {
			return bad(errors.New(`no push can be signed while git.signed is "off": leave one of the two out`), "signed")
		}
		if err := ch.Setup.check(func(err error, key ...string) error {
			return bad(err, append([]string{"setup"}, key...)...)
		}); err != nil {
			return err
		}
	}
	return nil
}

func (s *Setup) check(bad func(err error, key ...string) error) error {
	if len(s.Files) > maxSetupFiles {
		return bad(fmt.Errorf("%d files are more than %d: put them into the base", len(s.Files), maxSetupFiles), "files")
	}
	for _, inside := range slices.Sorted(maps.Keys(s.Files)) {
		switch {
		case !path.IsAbs(inside), path.Clean(inside) != inside, inside == "/", strings.ContainsFunc(inside, func(r rune) bool { return r < ' ' || r == 0x7f }):
			return bad(fmt.Errorf("%q is no path of a file inside: write it as /etc/apt/sources.list, with no . or .. in it", inside), "files", inside)
		case s.Files[inside] == "":
			return bad(errors.New("no file is named: name one, relative to the configuration"), "files", inside)
		}
	}
	size := 0
	for _, line := range s.Update {
		if size += len(line); size > maxUpdate || strings.ContainsRune(line, 0) || strings.TrimSpace(line) == "" {
			return bad(fmt.Errorf("a command is blank, holds a zero byte, or all have more than %d bytes: give lines for /bin/sh such as \"apt-get update\"", maxUpdate), "update")
		}
	}
	if s.MaxAge == 0 {
		s.MaxAge = defaultMaxAge
	}
	if s.Timeout == 0 {
		s.Timeout = defaultTimeout
	}
	if s.MaxAge < minAge {
		return bad(errors.New("less than a minute would have the farm do nothing but update: use \"1m\" or more"), "max_age")
	}
	if s.Timeout < Duration(time.Second) {
		return bad(errors.New("no command ends within less than a second: use \"1s\" or more"), "timeout")
	}
	return nil
}

// SetupFiles reads the files of a channel's setup, in the order of their paths
// inside. A file that is not there is an error that names the key and its line:
// a channel without its list of sources would be built from the wrong ones.
func (c *Config) SetupFiles(channel string) ([]SetupFile, error) {
	ch := c.Channels[channel]
	if ch == nil {
		return nil, fmt.Errorf("channel %q is not in the configuration", channel)
	}
	var list []SetupFile
	for _, inside := range slices.Sorted(maps.Keys(ch.Setup.Files)) {
		f, err := readSetupFile(c.beside(ch.Setup.Files[inside]))
		if err != nil {
			key := []string{"channel", channel, "setup", "files", inside}
			return nil, fmt.Errorf("%skey %q: %w", c.at(key...), strings.Join(key, "."), err)
		}
		f.Path = inside
		list = append(list, f)
	}
	return list, nil
}

func readSetupFile(name string) (SetupFile, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return SetupFile{}, fmt.Errorf("there is no file %s: make it, or take the line out", name)
	}
	if err != nil {
		return SetupFile{}, fmt.Errorf("file %s cannot be read: %w", name, errors.Unwrap(err))
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return SetupFile{}, err
	}
	if !info.Mode().IsRegular() {
		return SetupFile{}, fmt.Errorf("%s is no regular file: name one", name)
	}
	var data bytes.Buffer
	if _, err := io.Copy(&data, io.LimitReader(f, maxSetupFile+1)); err != nil {
		return SetupFile{}, fmt.Errorf("file %s cannot be read: %w", name, err)
	}
	if data.Len() > maxSetupFile {
		return SetupFile{}, fmt.Errorf("file %s has more than %d bytes: put it into the base", name, maxSetupFile)
	}
	// As git keeps modes: who checked the file out with which umask is no part of
	// what the setup is.
	mode := fs.FileMode(0o644)
	if info.Mode()&0o100 != 0 {
		mode = 0o755
	}
	return SetupFile{Mode: mode, Data: data.Bytes()}, nil
}

// beside is a path as the configuration means it.
func (c *Config) beside(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(c.dir, name)
}

// at is where a key is given: "quarry.toml:7: ", or without a line when the key
// is not in the file.
func (c *Config) at(key ...string) string {
	if n := lineOf(c.text, key...); n > 0 {
		return fmt.Sprintf("%s:%d: ", c.path, n)
	}
	return c.path + ": "
}
