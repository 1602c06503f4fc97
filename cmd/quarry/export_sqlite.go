package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/sqlite"
	"github.com/spf13/cobra"
)

// sqliteExport is quarry db export --sqlite.
type sqliteExport struct {
	file    string
	url     string
	partial bool
}

func (s *sqliteExport) flags(c *cobra.Command) {
	c.Flags().StringVar(&s.file, "sqlite", "", "write one file as Morphux's package server reads it, for --channel and --arch, instead of a folder")
	c.Flags().StringVar(&s.url, "url", "", "with --sqlite: where artifacts are, put before their names (default by web.url, else names alone)")
	c.Flags().BoolVar(&s.partial, "partial", false, "with --sqlite: leave out dependencies that are not in the channel")
}

// run writes the file. load gives the farm's configuration, which says of what
// state a channel is.
func (s *sqliteExport) run(ctx context.Context, r *results.Reader, w io.Writer, arch string, asJSON bool, load func() (*config.Config, error)) error {
	c, err := load()
	if err != nil {
		return err
	}
	if s.url == "" && c.Web.URL != "" {
		s.url = strings.TrimRight(c.Web.URL, "/") + "/artifacts/"
	}
	name := func(sha string) string { return sha + ".tar.zst" }
	if s.url != "" {
		base := strings.TrimRight(s.url, "/")
		name = func(sha string) string { return base + "/" + sha[:2] + "/" + sha + ".tar.zst" }
	}
	arch = cmp.Or(arch, config.HostArch())
	sum, err := sqlite.Export(ctx, r.Snapshot, s.file, sqlite.Options{Arch: arch, State: sqlite.State(c.StateOf(r.Channel())), Archive: name, Partial: s.partial})
	if err != nil {
		return err
	}
	if asJSON {
		return human.JSON(w, struct {
			File    string   `json:"file"`
			Channel string   `json:"channel"`
			Commit  string   `json:"commit"`
			Arch    string   `json:"arch"`
			Rows    int      `json:"rows"`
			New     int      `json:"new"`
			Missing []string `json:"missing,omitempty"`
		}{s.file, r.Channel(), r.Commit(), arch, sum.Rows, sum.New, sum.Missing})
	}
	for _, m := range sum.Missing {
		if _, err := fmt.Fprintf(w, "left out: %s\n", m); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(w, "%s: %s of channel %s for %s, %d of them new\n", s.file, human.Count(sum.Rows, "row"), r.Channel(), arch, sum.New)
	return err
}

// check holds the words of a call against each other; args are the folder's.
func (s *sqliteExport) check(args []string) error {
	var err error
	switch {
	case s.file != "" && len(args) > 0:
		err = errors.New("db export writes a folder or, with --sqlite, a file: leave one out")
	case s.file == "" && (s.url != "" || s.partial):
		err = errors.New("--url and --partial are for --sqlite: leave them out")
	}
	if err != nil {
		return &control.Error{Code: control.ExitUsage, Err: err}
	}
	return nil
}
