package main

import (
	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/keys"
	"github.com/Morphux/quarry/sshd"
)

// signedPushes says how signed pushes are checked.
func signedPushes(c *config.Config, people *keys.Store) sshd.Signed {
	if c.Git.Signed == config.SignedOff {
		return sshd.Signed{}
	}
	return sshd.Signed{Keys: people.Keys}
}
