package main

import (
	"context"
	"io"
	"net"
	"path/filepath"

	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/images"
	"github.com/spf13/cobra"
)

// images opens the bases for one command. The daemon must not run: it keeps
// podman's storage to itself.
func (a *app) images(ctx context.Context) (*images.Store, func() error, error) {
	c, err := a.config()
	if err != nil {
		return nil, nil, err
	}
	store, conn, err := openImages(ctx, c, a.logger(io.Discard))
	if err != nil {
		return nil, nil, err
	}
	return store, conn.Close, nil
}

// newImagesDoor is quarry images. While a daemon runs, its storage is its own:
// then the words go to it, and it runs them on the store that it has open.
func newImagesDoor(a *app) *cobra.Command {
	cmd := newImagesCmd(a.images)
	for _, sub := range cmd.Commands() {
		alone := sub.RunE
		sub.RunE = func(cmd *cobra.Command, args []string) error {
			c, err := a.config()
			if err != nil {
				return err
			}
			conn, err := net.Dial("unix", c.Socket())
			if err != nil {
				return alone(cmd, args)
			}
			conn.Close()
			words := append([]string{"images", "--", sub.Name()}, typed(cmd)...)
			words = append(words, "--")
			for i, arg := range args {
				if sub.Name() == "load" && i == 1 { // the daemon works in another folder
					if arg, err = filepath.Abs(arg); err != nil {
						return err
					}
				}
				words = append(words, arg)
			}
			client := control.Client{Socket: c.Socket()}
			code, err := client.Call(cmd.Context(), words, terminal(cmd.OutOrStdout()), cmd.OutOrStdout(), cmd.ErrOrStderr())
			if err == nil && code != control.ExitOK {
				err = &exitError{code}
			}
			return err
		}
	}
	return cmd
}

// imagesOf runs the words of quarry images on a store that is open.
func imagesOf(store *images.Store) func(context.Context, []string, io.Writer, io.Writer) error {
	return func(ctx context.Context, words []string, out, errOut io.Writer) error {
		cmd := newImagesCmd(func(context.Context) (*images.Store, func() error, error) {
			return store, func() error { return nil }, nil
		})
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetArgs(words)
		cmd.SetOut(out)
		cmd.SetErr(errOut)
		return cmd.ExecuteContext(ctx)
	}
}
