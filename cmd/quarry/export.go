package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/mirror"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/trust"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
)

// exportCmds write the database in other forms.
func (a *app) exportCmds(d *dbCmd) []*cobra.Command {
	e := &exportCmd{dbCmd: d, app: a}
	cmd := &cobra.Command{
		Use:   "export DIR",
		Short: "Write the database as files for a web server, or for Morphux's package server",
		Long: `Writes into a folder what the farm itself answers over HTTP, so that any web
server can be a mirror (doc/mirror.md): only what has changed since the last time,
while others read. All channels, or the one of --channel. A channel that has lost
more than half of its packages since is not written without --force.

The head of each channel is signed with the farm's key. It is good for a week, so
export at least that often.`,
		Example: "  quarry db export /srv/mirror --artifacts --prune\n  quarry db export --sqlite mpm.db --channel stable --arch x86_64",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := e.sqlite.check(args); err != nil {
				return err
			}
			if e.sqlite.file != "" {
				return d.run(func(ctx context.Context, r *results.Reader, w io.Writer, _ []string) error {
					return e.sqlite.run(ctx, r, w, d.arch, d.json, a.config)
				})(cmd, args)
			}
			if len(args) == 0 || d.at != "" || d.arch != "" {
				return &control.Error{Code: control.ExitUsage, Err: errors.New("db export writes to a folder that is named, all archs as they are now: quarry db export DIR")}
			}
			e.errOut = cmd.ErrOrStderr()
			return d.run(e.run)(cmd, args)
		},
	}
	e.sqlite.flags(cmd)
	cmd.Flags().BoolVar(&e.artifacts, "artifacts", false, "with the archives that the channels name, as links where the file system can")
	cmd.Flags().BoolVar(&e.noRecords, "no-records", false, "without the full records and the lists of files")
	cmd.Flags().BoolVar(&e.prune, "prune", false, "remove archives that no exported channel has named for --grace")
	cmd.Flags().DurationVar(&e.grace, "grace", 24*time.Hour, "how long files stay that clients may have been sent to")
	cmd.Flags().BoolVar(&e.force, "force", false, "also when a channel has shrunk or is gone, or archives are missing")
	cmd.Flags().BoolVar(&e.full, "full", false, "compare all files, not only what has changed")
	return []*cobra.Command{cmd}
}

type exportCmd struct {
	*dbCmd
	app    *app
	sqlite sqliteExport
	errOut io.Writer

	artifacts, noRecords, prune, force, full bool
	grace                                    time.Duration
}

func (e *exportCmd) run(ctx context.Context, r *results.Reader, w io.Writer, args []string) error {
	o := mirror.ExportOptions{Dir: args[0], Results: r, Default: r.Channel(), Records: !e.noRecords, Prune: e.prune, Force: e.force, Full: e.full,
		Grace: e.grace, Now: time.Now(), Progress: e.progress(), Log: e.app.logger(e.errOut)}
	if e.channel != "" {
		o.Channels = []string{e.channel}
	}
	if e.repo == "" {
		if err := e.ofFarm(&o); err != nil {
			return err
		}
	} else if e.artifacts {
		return &control.Error{Code: control.ExitUsage, Err: errors.New("--artifacts takes them from this farm's store: --repo has none")}
	}
	done, err := mirror.Export(ctx, o)
	if err != nil {
		return err
	}
	if e.json {
		return human.JSON(w, done)
	}
	for _, c := range done.Channels {
		parts := []string{human.Count(c.Written, "file") + " written, " + human.Size(c.Bytes), human.Count(c.Removed, "file") + " removed"}
		if e.artifacts {
			parts = append(parts, human.Count(c.Artifacts, "artifact")+" came")
		}
		if c.Missing > 0 {
			parts = append(parts, human.Count(c.Missing, "artifact")+" missing")
		}
		if _, err := fmt.Fprintf(w, "%s at %.12s: %s, %d of them looked at; %s\n", c.Channel, c.Commit, human.Count(c.Packages, "package"), c.Changed, strings.Join(parts, ", ")); err != nil {
			return err
		}
	}
	if e.prune {
		_, err = fmt.Fprintf(w, "%s pruned\n", human.Count(done.Pruned, "artifact"))
	}
	return err
}

// ofFarm adds what only the farm itself has: its key, and its artifacts.
func (e *exportCmd) ofFarm(o *mirror.ExportOptions) error {
	c, err := e.app.config()
	if err != nil {
		return err
	}
	o.Default = c.DefaultChannel
	if e.artifacts {
		o.Artifacts = func(sum string) string {
			return filepath.Join(c.Artifacts(), strings.TrimPrefix(mirror.ArtifactName(sum), "artifacts/"))
		}
	}
	if o.Signers, err = signers(c); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if c.Sign.Off {
		return nil
	}
	var signer *trust.Signer
	if c.Sign.Agent != "" {
		signer, err = trust.OpenAgent(c.Sign.Agent, c.SigningKey())
	} else if _, err = os.Stat(c.SigningKey()); err == nil { // none is made here: that is the daemon's
		signer, err = trust.Open(c.SigningKey())
	}
	if err != nil {
		return fmt.Errorf("the head cannot be signed: %w", err)
	}
	o.Sign = headSigner(signer)
	return nil
}

// progress shows on a terminal how far the export is.
func (e *exportCmd) progress() func(mirror.Progress) {
	if e.json || !terminal(e.errOut).TTY {
		return nil
	}
	var bar *progressbar.ProgressBar
	var of string
	return func(p mirror.Progress) {
		if what := p.Channel + ": " + p.Step; what != of {
			if bar != nil {
				bar.Finish()
			}
			of = what
			total := p.Total
			if total == 0 {
				total = -1 // a spinner
			}
			bar = progressbar.NewOptions(total, progressbar.OptionSetWriter(e.errOut), progressbar.OptionSetDescription(human.Safe(what, false)),
				progressbar.OptionShowCount(), progressbar.OptionFullWidth(), progressbar.OptionClearOnFinish())
		}
		bar.Set(p.Done)
	}
}
