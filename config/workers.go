package config

import (
	"fmt"
	"maps"
	"regexp"
	"slices"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/graph"
)

// maxWorkersFor is how many entries build.workers_for may have: each package is
// held against all of them.
const maxWorkersFor = 1000

// tripletRE is what a cross toolchain's programs may begin with. It becomes part
// of paths and of lines for the shell.
var tripletRE = regexp.MustCompile(`^[a-z0-9][a-z0-9_.]*(-[a-z0-9_.]+){1,3}$`)

func (c *Config) checkWorkers() error {
	at := func(key ...string) string { return c.at(append([]string{"build"}, key...)...) }
	if len(c.Build.WorkersFor) > maxWorkersFor {
		return fmt.Errorf("%sbuild.workers_for has %d entries, more than %d: leave out those that cost more than others for the same archs",
			at("workers_for"), len(c.Build.WorkersFor), maxWorkersFor)
	}
	for _, s := range c.Build.WorkersFor {
		if _, err := graph.ParseWorker(s); err != nil {
			return fmt.Errorf("%sbuild.workers_for: %w", at("workers_for"), err)
		}
	}
	for _, arch := range slices.Sorted(maps.Keys(c.Build.Triplets)) {
		if err := quarry.CheckArch(arch); err != nil {
			return fmt.Errorf("%sbuild.triplets: %w", at("triplets", arch), err)
		}
		if t := c.Build.Triplets[arch]; len(t) > 100 || !tripletRE.MatchString(t) {
			return fmt.Errorf("%sbuild.triplets: %.120q is no name of a toolchain: give what its programs begin with, such as aarch64-linux-gnu", at("triplets", arch), t)
		}
	}
	return nil
}

// Ways are the workers of build.workers_for. None: each arch is built in a system
// of its own.
func (c *Config) Ways() []graph.Worker {
	var ways []graph.Worker
	for _, s := range c.Build.WorkersFor {
		if w, err := graph.ParseWorker(s); err == nil { // check has seen to it
			ways = append(ways, w)
		}
	}
	return ways
}
