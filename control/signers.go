package control

import (
	"context"
	"errors"
	"io/fs"
)

// signersVerb gives the keys that the farm has signed with.
func (f *Farm) signersVerb() *Verb {
	return &Verb{Name: "signers", Looks: true, Text: true, Short: "Print the keys that the farm signs its results with",
		Long: "It is a file for git (gpg.ssh.allowedSignersFile) and ssh-keygen -Y verify. Keep what\n" +
			"you got once, over a connection that you trust, and compare when it changes.",
		Example: "signers >allowed_signers",
		Run: func(_ context.Context, c *Call) error {
			if f.Signers == nil {
				return errors.New("the farm does not sign its results")
			}
			data, err := f.Signers()
			if errors.Is(err, fs.ErrNotExist) {
				return errors.New("the farm does not sign its results: sign.off is set")
			}
			if err == nil {
				_, err = c.Out.Write(data)
			}
			return err
		}}
}
