package main

import (
	"maps"
	"slices"
	"time"

	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/hooks"
	"github.com/Morphux/quarry/images"
)

// What each room wants to know of the channels of a configuration, by name.

// imageChannels reads the files of the setups.
func imageChannels(c *config.Config) ([]images.Channel, error) {
	var list []images.Channel
	for _, name := range slices.Sorted(maps.Keys(c.Channels)) {
		ch := c.Channels[name]
		files, err := c.SetupFiles(name)
		if err != nil {
			return nil, err
		}
		setup := images.Setup{Update: ch.Setup.Update, MaxAge: time.Duration(ch.Setup.MaxAge),
			Timeout: time.Duration(ch.Setup.Timeout), LocalMirror: ch.Setup.LocalMirror}
		for _, f := range files {
			setup.Files = append(setup.Files, images.SetupFile{Path: f.Path, Mode: f.Mode, Data: f.Data})
		}
		list = append(list, images.Channel{Name: name, Archs: ch.Archs, Base: ch.Base, Setup: setup})
	}
	return list, nil
}

func hookChannels(c *config.Config) []hooks.Channel {
	var list []hooks.Channel
	for _, name := range slices.Sorted(maps.Keys(c.Channels)) {
		list = append(list, hooks.Channel{Name: name, Push: c.Channels[name].Push, Signed: c.MustSign(name)})
	}
	return list
}

func farmChannels(c *config.Config) []control.Channel {
	var list []control.Channel
	for _, name := range slices.Sorted(maps.Keys(c.Channels)) {
		list = append(list, control.Channel{Name: name, Archs: c.Channels[name].Archs, Base: c.Channels[name].Base, Push: c.Channels[name].Push, Promote: c.Channels[name].Promote})
	}
	return list
}
