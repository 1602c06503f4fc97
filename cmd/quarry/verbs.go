package main

import (
	"strings"

	"github.com/Morphux/quarry/control"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// verbCmds makes a command of every verb in the table: it carries the words to
// the daemon and brings its answer back.
func verbCmds(a *app) []*cobra.Command {
	var cmds []*cobra.Command
	for _, v := range control.Verbs(nil) {
		if v.Hidden || v.Name == "help" { // cobra has its own
			continue
		}
		cmd := &cobra.Command{
			Use:     v.Name + " " + v.Args,
			Short:   v.Short,
			Long:    v.Short + ".\n\n" + v.Long,
			Example: examples(v.Example),
			RunE: func(cmd *cobra.Command, args []string) error {
				words := []string{v.Name}
				own := v.NewFlags()
				cmd.Flags().Visit(func(f *pflag.Flag) {
					if own.Lookup(f.Name) != nil { // not --config and its like
						words = append(words, "--"+f.Name+"="+f.Value.String())
					}
				})
				words = append(append(words, "--"), args...)
				c, err := a.config()
				if err != nil {
					return err
				}
				client := control.Client{Socket: c.Socket()}
				code, err := client.Call(cmd.Context(), words, terminal(cmd.OutOrStdout()), cmd.OutOrStdout(), cmd.ErrOrStderr())
				if err == nil && code != control.ExitOK {
					err = &exitError{code}
				}
				return err
			},
		}
		cmd.Flags().AddFlagSet(v.NewFlags())
		cmds = append(cmds, cmd)
	}
	return cmds
}

func examples(s string) string {
	return "  quarry " + strings.ReplaceAll(s, "\n", "\n  quarry ")
}
