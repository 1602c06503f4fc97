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
			Use:     v.Usage(),
			Short:   v.Short,
			Long:    v.Short + ".\n\n" + v.Long,
			Example: examples(v.Example),
			RunE: func(cmd *cobra.Command, args []string) error {
				words := []string{v.Name}
				words = append(words, typed(cmd)...)
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

// typed gives the flags that were given to a command itself, as words to send
// on; --config and its like are for this end.
func typed(cmd *cobra.Command) []string {
	var words []string
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if cmd.Root().PersistentFlags().Lookup(f.Name) != nil {
			return
		}
		value := f.Value.String()
		if list, ok := f.Value.(pflag.SliceValue); ok {
			value = strings.Join(list.GetSlice(), ",")
		}
		words = append(words, "--"+f.Name+"="+value)
	})
	return words
}

func examples(s string) string {
	return "  quarry " + strings.ReplaceAll(s, "\n", "\n  quarry ")
}
