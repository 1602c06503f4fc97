package main

import (
	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/keys"
	"github.com/Morphux/quarry/tokens"
	"github.com/spf13/cobra"
)

// openTokens opens the farm's folder of tokens, for the people of its keys.
func openTokens(c *config.Config) (*tokens.Store, error) {
	people, err := keys.Open(c.Keys(), nil)
	if err != nil {
		return nil, err
	}
	return tokens.Open(c.Tokens(), people.User)
}

// tokensAlone runs a verb about tokens on their folder, which needs no daemon.
func (a *app) tokensAlone(cmd *cobra.Command, c *config.Config, words []string, ends control.Terminal) (int, error) {
	store, err := openTokens(c)
	if err != nil {
		return 0, err
	}
	table := control.Verbs(&control.Farm{Tokens: store, Channels: farmChannels(c), Version: version})
	return table.Run(cmd.Context(), control.Owner(), words, nil, cmd.OutOrStdout(), cmd.ErrOrStderr(), ends), nil
}
