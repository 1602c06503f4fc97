package main

import (
	"context"
	"io"
	"os"

	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/protocol"
)

// Where a farm far away is told, and the token for it. A token has no flag: other
// people of the machine see the words of a command.
const (
	farmEnv  = "QUARRY_FARM"
	tokenEnv = "QUARRY_TOKEN"
)

// farmURL is the farm far away that verbs are for; "" for the one of this machine,
// as it is for somebody who names its configuration or state folder.
func (a *app) farmURL() string {
	if a.farm == "" && a.configPath == "" && a.state == "" {
		return os.Getenv(farmEnv)
	}
	return a.farm
}

// callFar runs a verb of a farm far away, through the text protocol. What changes
// something is asked for under a request id: it is done once, and its outcome is
// told, also when the connection was lost meanwhile.
func callFar(ctx context.Context, farm string, v *control.Verb, words []string, in io.Reader, out, errOut io.Writer, ends control.Terminal) (int, error) {
	client, err := protocol.Dial(ctx, farm, os.Getenv(tokenEnv), protocol.Terminal{TTY: ends.TTY && in == nil, Width: ends.Width, Height: ends.Height, Color: ends.Color})
	if err != nil {
		return control.ExitUnreachable, err
	}
	defer client.Close()
	call := protocol.Call{Words: words, In: in, Out: out, Err: errOut}
	if (v.Need == control.Push || v.Need == control.Admin) && !v.Secret && !v.Raw {
		call.ID = protocol.NewID()
	}
	return client.Do(ctx, call)
}
