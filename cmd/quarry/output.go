package main

import (
	"path/filepath"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/extract"
)

// publish puts the artifact of a build where people look for
// it: output/CHANNEL/NAME-VERSION-ARCH.tar.zst. A rebuild takes its place.
func publish(c *config.Config, store *extract.Artifacts, b quarry.Target, artifact string) error {
	return store.Publish(artifact, filepath.Join(c.Output(), b.Channel), quarry.Branch(b.Package, b.Version)+"-"+b.Arch+".tar.zst")
}
