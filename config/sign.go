package config

import (
	"fmt"
	"path/filepath"
)

// Sign says with which key the farm signs its commits.
type Sign struct {
	// Key is a file with a private key that nobody else may read; blank: one of the
	// farm's own in the state folder, made at the first start. With an agent it is
	// the file with the public half.
	Key string `toml:"key"`
	// Agent is the socket of an agent that holds the key, in the way of ssh-agent.
	Agent string `toml:"agent"`
	// Off leaves commits unsigned.
	Off bool `toml:"off"`
}

// What [Git.Signed] can be.
const (
	SignedOff      = "off"
	SignedAllowed  = "allowed"
	SignedRequired = "required"
)

func (g Git) checkSigned() error {
	switch g.Signed {
	case SignedOff, SignedAllowed, SignedRequired:
		return nil
	}
	return fmt.Errorf("git.signed is %q: it is %q, %q or %q", g.Signed, SignedOff, SignedAllowed, SignedRequired)
}

// MustSign tells whether releases come to a channel only by signed pushes.
func (c *Config) MustSign(channel string) bool {
	ch := c.Channels[channel]
	return c.Git.Signed == SignedRequired || ch != nil && ch.Signed
}

// SigningKey is the file that [Sign.Key] means.
func (c *Config) SigningKey() string {
	if c.Sign.Key != "" {
		return c.beside(c.Sign.Key)
	}
	return filepath.Join(c.State, "signing_key")
}

// AllowedSigners is the file of keys that have signed for the farm.
func (c *Config) AllowedSigners() string { return filepath.Join(c.State, "allowed_signers") }
