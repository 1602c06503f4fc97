package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/control"
	"github.com/spf13/cobra"
)

// seedCmds are commands by the names that they have in the builder whose
// configuration [config.LoadSeed] reads: other words for those of this one.
func seedCmds(a *app) []*cobra.Command {
	var arch string
	load := &cobra.Command{
		Use:   "load-baseos [FILE]",
		Short: "Load the base of the configured arch: images load, or bootstrap",
		Long: `Makes the base of the configuration's arch: of FILE, else of buildkit_ARCH.tar.xz in
the state folder (work_dir) when it is there, else with mmdebstrap. The same as
images load and images bootstrap.`,
		Example: `  quarry -c /etc/builder load-baseos
  quarry -c /etc/builder load-baseos buildkit.tar.xz`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.config()
			if err != nil {
				return err
			}
			if arch, err = seedArch(c, arch); err != nil {
				return err
			}
			if len(args) == 0 {
				if file, ok := config.SeedBaseFile(c, arch); ok {
					args = []string{file}
				}
			}
			if len(args) == 0 {
				return a.run(cmd, "images bootstrap", arch)
			}
			return a.run(cmd, "images load", arch, args[0])
		},
	}
	load.Flags().StringVar(&arch, "arch", "", "arch of the base, where the configuration has several")
	update := &cobra.Command{
		Use:   "update-baseos",
		Short: "Bring bases and instances up to date: images renew, then images update --force",
		Long: `Makes the bases anew that mmdebstrap made, then brings every instance up to date.
A base that was loaded from a file stays, as a base never changes: load a newer
one. The same as images renew and images update --force.`,
		Example: "  quarry -c /etc/builder update-baseos",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.run(cmd, "images renew"); err != nil {
				return err
			}
			return a.run(cmd, "images update --force")
		},
	}
	var yes bool
	clean := &cobra.Command{
		Use:   "cleanup all|baseos|NAME",
		Short: "Throw away everything, the base, or an instance: images clean",
		Long: `all is every instance and every base; baseos is the base of the configuration's
arch, with the instances on it; any other word is the name of instances: CHANNEL,
or CHANNEL/ARCH. The same as images clean.`,
		Example: "  quarry -c /etc/builder cleanup testing\n  quarry -c /etc/builder cleanup all --yes",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			verb := "images clean"
			if yes {
				verb += " --yes"
			}
			if args[0] != "baseos" {
				return a.run(cmd, verb, args[0])
			}
			c, err := a.config()
			if err != nil {
				return err
			}
			if arch, err = seedArch(c, arch); err != nil {
				return err
			}
			return a.run(cmd, verb, "base", arch)
		},
	}
	clean.Flags().StringVar(&arch, "arch", "", "arch of the base, where the configuration has several")
	clean.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return []*cobra.Command{load, update, clean}
}

// run runs a verb: its name with flags, and arguments.
func (a *app) run(cmd *cobra.Command, verb string, args ...string) error {
	v, flags := control.Verbs(nil).Find(strings.Fields(verb)...)
	fs := v.NewFlags()
	if err := fs.Parse(flags); err != nil {
		return err
	}
	return a.verb(cmd, v, fs, args)
}

// seedArch is the arch that a configuration is for: asked for, its only one, or
// this machine's among several.
func seedArch(c *config.Config, asked string) (string, error) {
	var archs []string
	for _, ch := range c.Channels {
		archs = append(archs, ch.Archs...)
	}
	slices.Sort(archs)
	archs = slices.Compact(archs)
	switch {
	case asked != "":
		return asked, nil
	case len(archs) == 1:
		return archs[0], nil
	case slices.Contains(archs, config.HostArch()):
		return config.HostArch(), nil
	}
	return "", &flagError{fmt.Errorf("the configuration has %s: name one with --arch", strings.Join(archs, ", "))}
}
