package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/internal/durable"
	"github.com/Morphux/quarry/trust"
)

// principal is who signs, in the file of allowed signers: the committer.
const principal = "quarry@localhost"

// namespaces are what the farm's key signs.
var namespaces = []string{trust.Git, trust.Provenance, trust.Vote, trust.Head}

// openSigner opens the key that commits are signed with, and sees to it that the
// file of allowed signers has it. A key that is there no more stays in the file,
// for what it has signed, but only until now. nil: nothing is signed.
func openSigner(c *config.Config, log *slog.Logger) (*trust.Signer, error) {
	if c.Sign.Off {
		return nil, nil
	}
	var signer *trust.Signer
	var err error
	if c.Sign.Agent != "" {
		signer, err = trust.OpenAgent(c.Sign.Agent, c.SigningKey())
	} else {
		signer, err = trust.Open(c.SigningKey())
	}
	if err != nil {
		return nil, &control.Error{Code: control.ExitUsage, Err: fmt.Errorf("sign: %w", err)}
	}
	path := c.AllowedSigners()
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	list, err := trust.ParseAllowedSigners(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: mend or remove it", path, err)
	}
	known := false
	for i, a := range list {
		switch mine := bytes.Equal(a.Key.Marshal(), signer.Public().Marshal()); {
		case mine && a.Before.IsZero():
			known = true
			for _, n := range namespaces { // of before there were all of them
				if len(a.Namespaces) > 0 && !slices.Contains(list[i].Namespaces, n) {
					list[i].Namespaces = append(list[i].Namespaces, n)
				}
			}
		case !mine && a.Before.IsZero() && a.Principal == principal:
			list[i].Before = time.Now()
		}
	}
	if !known {
		list = append(list, trust.AllowedSigner{Principal: principal, Key: signer.Public(), Namespaces: namespaces})
		log.Info("results are signed with a new key", "key", signer.Fingerprint(), "signers", path)
	}
	if text := []byte(list.String()); !bytes.Equal(text, data) {
		if err := durable.WriteFile(path, text, 0o644, ".allowed_signers-*"); err != nil {
			return nil, err
		}
	}
	return signer, nil
}

// commitSigner is how commits are signed; nil: they are not.
func commitSigner(signer *trust.Signer) func([]byte) ([]byte, error) {
	if signer == nil {
		return nil
	}
	return signer.SignCommit
}

// signers reads the file of allowed signers.
func signers(c *config.Config) ([]byte, error) { return os.ReadFile(c.AllowedSigners()) }
