package sshd

import (
	gossh "golang.org/x/crypto/ssh"

	"github.com/Morphux/quarry/internal/sshkey"
)

// HostKey reads the server's own key, or makes it at the first start: Ed25519,
// readable by its owner only. The public half is written beside it, for those
// who want to put it into known_hosts.
func HostKey(path string) (gossh.Signer, error) { return sshkey.Open(path, "host key") }
