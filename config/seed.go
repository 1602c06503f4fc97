package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/Morphux/quarry"
	"github.com/pelletier/go-toml/v2"
)

// SeedDir is where a folder of the older form is looked for when no
// configuration is named.
const SeedDir = "/var/cache/aoinb/conf"

const (
	seedFile  = "config.toml"
	seedLists = "source_lists"
)

// seed is the older form's config.toml.
type seed struct {
	WorkDir string `toml:"work_dir"` // what is called state now
	Arch    string `toml:"arch"`     // as Debian calls it, e.g. amd64; blank: this machine's
}

// debianArch is uname's name for what Debian calls an arch, where they differ.
var debianArch = map[string]string{
	"amd64": "x86_64", "i386": "i686", "arm64": "aarch64", "armhf": "armv7l", "armel": "armv5tel",
	"ppc64el": "ppc64le", "powerpc": "ppc", "loong64": "loongarch64",
}

// IsSeed reports whether path is a configuration of the older form: a folder, or
// the config.toml in one, which is known by its keys.
func IsSeed(path string) bool {
	if info, err := os.Stat(path); err != nil || info.IsDir() {
		return err == nil
	}
	data, err := os.ReadFile(path)
	return err == nil && (lineOf(data, "work_dir") > 0 || filepath.Base(path) == seedFile && lineOf(data, "arch") > 0)
}

// LoadSeed reads a configuration of the older form, which is a folder: its
// config.toml names work_dir, which becomes the state folder, and arch, and each
// source_lists/BRANCH.list makes a channel BRANCH whose instances take their
// packages from the sources in that list. Path is the folder or its config.toml.
// What the form does not say is as in [Default]. Errors name the file, and the
// line where there is one.
func LoadSeed(path string) (*Config, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("configuration %s cannot be read: %w", path, errors.Unwrap(err))
	}
	dir, file := path, filepath.Join(path, seedFile)
	if !info.IsDir() {
		dir, file = filepath.Dir(path), path
	}
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("folder %s has no %s: name a file such as quarry.toml, or a folder with %s and %s/", dir, seedFile, seedFile, seedLists)
	}
	if err != nil {
		return nil, fmt.Errorf("configuration %s cannot be read: %w", file, errors.Unwrap(err))
	}
	c := Default()
	c.path, c.text, c.Seed = file, data, true
	var s seed
	if err := toml.NewDecoder(strings.NewReader(string(data))).DisallowUnknownFields().Decode(&s); err != nil {
		return nil, seedError(file, err)
	}
	if s.WorkDir == "" {
		return nil, fmt.Errorf("%swork_dir is not given: name the folder that everything is kept in", c.at("work_dir"))
	}
	arch := HostArch()
	if s.Arch != "" {
		arch = s.Arch
		if a, ok := debianArch[arch]; ok {
			arch = a
		}
		if err := quarry.CheckArch(arch); err != nil {
			return nil, fmt.Errorf("%skey \"arch\": %w", c.at("arch"), err)
		}
	}
	if c.Channels, err = seedChannels(filepath.Join(dir, seedLists), arch); err != nil {
		return nil, err
	}
	if c.Channels[c.DefaultChannel] == nil {
		names := make([]string, 0, len(c.Channels))
		for name := range c.Channels {
			names = append(names, name)
		}
		c.DefaultChannel = slices.Min(names)
	}
	c.State = s.WorkDir
	return c, c.finish(dir)
}

func seedError(file string, err error) error {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) && len(strict.Errors) > 0 {
		row, _ := strict.Errors[0].Position()
		return fmt.Errorf("%s:%d: key %q is unknown: beside %s/ there are work_dir and arch, for more write a quarry.toml",
			file, row, strings.Join(strict.Errors[0].Key(), "."), seedLists)
	}
	var de *toml.DecodeError
	if errors.As(err, &de) {
		row, col := de.Position()
		return fmt.Errorf("%s:%d:%d: %s", file, row, col, mend(de))
	}
	return fmt.Errorf("%s: %w", file, err)
}

// seedChannels makes a channel of each list in a folder.
func seedChannels(dir, arch string) (map[string]*Channel, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("folder %s cannot be read: %w", dir, errors.Unwrap(err))
	}
	channels := map[string]*Channel{}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".list")
		if !ok {
			continue // an editor's copy, a note
		}
		file, err := filepath.Abs(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		if err := quarry.CheckChannel(name); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if info, err := os.Stat(file); err != nil || !info.Mode().IsRegular() {
			return nil, fmt.Errorf("%s is no regular file: it takes a sources.list for channel %s", file, name)
		}
		channels[name] = &Channel{Archs: []string{arch}, Setup: Setup{
			Files: map[string]string{"/etc/apt/sources.list": file},
			Update: []string{
				"apt-get update",
				// Nobody is there to answer.
				"DEBIAN_FRONTEND=noninteractive apt-get -y -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold dist-upgrade",
			},
		}}
	}
	if len(channels) == 0 {
		return nil, fmt.Errorf("folder %s has no list: make one such as stable.list, with the sources.list of channel stable", dir)
	}
	return channels, nil
}

// SeedBaseFile returns the place where a base is looked for when none is named,
// e.g. buildkit_amd64.tar.xz in the state folder, and whether it is there.
func SeedBaseFile(c *Config, arch string) (path string, ok bool) {
	name := arch
	for debian, uname := range debianArch {
		if uname == arch {
			name = debian
		}
	}
	path = filepath.Join(c.State, "buildkit_"+name+".tar.xz")
	info, err := os.Stat(path)
	return path, err == nil && info.Mode().IsRegular()
}
