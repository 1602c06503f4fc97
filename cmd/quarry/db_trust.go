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

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/fsck"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/provenance"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/trust"
)

// trustCmds are the commands of quarry db that ask whether what is there can be
// trusted.
func (a *app) trustCmds(d *dbCmd) []*cobra.Command {
	t := &trustCmd{dbCmd: d, app: a}
	return []*cobra.Command{t.provenanceCmd(), t.fsckCmd()}
}

type trustCmd struct {
	*dbCmd
	app *app

	signers          string
	verify, envelope bool

	artifacts, since string
	deep             bool
}

// allowed reads the file of allowed signers: the one that is named, or else this
// farm's own, which is nobody's word for another repository. nil: there is none.
func (t *trustCmd) allowed() (trust.AllowedSigners, error) {
	path := t.signers
	if path == "" {
		if t.repo != "" {
			return nil, nil
		}
		c, err := t.app.config()
		if err != nil {
			return nil, err
		}
		path = c.AllowedSigners()
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && t.signers == "" {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("allowed signers cannot be read: %w", err)
	}
	list, err := trust.ParseAllowedSigners(data)
	if err == nil && len(list) == 0 {
		err = errors.New("it names no key")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return list, nil
}

func (t *trustCmd) provenanceCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "provenance PACKAGE [VERSION]",
		Short: "Show, or check, how an artifact was made",
		Long: `Writes the statement on how the artifact of a version (the newest, when none is
given) was made: in-toto, with the predicate of SLSA, as doc/trust.md has it.
With --verify it checks that one of the farm's keys signed it and that it says
what the record says, and tells so in a line.`,
		Example: "  quarry db provenance zlib 1.3.1 --arch x86_64\n  quarry db provenance zlib --verify --repo results.git --signers allowed_signers",
		Args:    cobra.RangeArgs(1, 2),
		RunE:    t.run(t.provenance),
	}
	cmd.Flags().BoolVar(&t.verify, "verify", false, "check it, and say in a line what came of that")
	cmd.Flags().BoolVar(&t.envelope, "envelope", false, "write it with its signature, as a DSSE envelope")
	cmd.Flags().StringVar(&t.signers, "signers", "", "file of allowed signers (default this farm's own; none with --repo)")
	cmd.MarkFlagsMutuallyExclusive("verify", "envelope")
	return cmd
}

func (t *trustCmd) provenance(ctx context.Context, r *results.Reader, w io.Writer, args []string) error {
	rec, err := t.newest(ctx, r, args, "provenance")
	if err != nil {
		return err
	}
	p, err := r.Provenance(rec.Package, rec.Version, rec.Arch)
	if err != nil {
		return err
	}
	if !t.verify {
		out := p.Statement
		if t.envelope {
			if out, err = provenance.Envelope(p); err != nil {
				return err
			}
		}
		_, err = w.Write(out)
		return err
	}
	list, err := t.allowed()
	if err != nil {
		return err
	}
	if list == nil {
		return &control.Error{Code: control.ExitUsage, Err: errors.New("whose signature would do is not known: name a file of allowed signers with --signers")}
	}
	key, err := provenance.Verify(p, rec, list, rec.Ended)
	if err != nil {
		return fmt.Errorf("provenance of %s: %w", rec.Target(), err)
	}
	if t.json {
		return human.JSON(w, map[string]any{"package": rec.Package, "version": rec.Version, "arch": rec.Arch, "artifact": rec.Artifact, "source": rec.Source, "signed_by": ssh.FingerprintSHA256(key)})
	}
	_, err = fmt.Fprintf(w, "%s: good: %s attests that %s.tar.zst was made of commit %.12s\n", rec.Target(), ssh.FingerprintSHA256(key), rec.Artifact, rec.Source)
	return err
}

// newest is the newest success that words name.
func (d *dbCmd) newest(ctx context.Context, r *results.Reader, args []string, what string) (*results.Record, error) {
	recs, err := d.records(ctx, r, args)
	if err != nil {
		return nil, err
	}
	var rec *results.Record // the newest success is the last
	var archs []string
	for _, x := range recs {
		switch {
		case x.Status != quarry.Succeeded:
			continue
		case rec == nil || x.Version != rec.Version:
			archs = nil
		}
		rec, archs = x, append(archs, x.Arch)
	}
	if rec == nil {
		return nil, fmt.Errorf("%s of %s in channel %s: %w: it has only failed", what, strings.Join(args, " "), r.Channel(), results.ErrNotFound)
	}
	if len(archs) > 1 {
		return nil, &control.Error{Code: control.ExitUsage, Err: fmt.Errorf("%s %s was built for %s: choose one with --arch", rec.Package, rec.Version, strings.Join(archs, ", "))}
	}
	return rec, nil
}

func (t *trustCmd) fsckCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "fsck",
		Short: "Look whether the database is whole",
		Long: `Looks at all records, at what they refer to, at the signatures of all commits and
attestations, and whether commits have changed what they say; has git look at
its objects; and looks whether the artifacts are there. What is found comes a
line each, with what to do. The status is 1 when something is damaged. Nothing is
changed, and the farm may go on meanwhile.`,
		Example: "  quarry db fsck\n  quarry db fsck --deep\n  quarry db fsck --channel testing --since 4f2a91c",
		Args:    cobra.NoArgs,
		RunE:    t.fsck,
	}
	cmd.Flags().BoolVar(&t.deep, "deep", false, "read each artifact and each object of the history, too, and compare them with their hashes and lists of files")
	cmd.Flags().StringVar(&t.since, "since", "", "look only at what has come to the channel since a commit, or a time")
	cmd.Flags().StringVar(&t.artifacts, "artifacts", "", "folder of artifacts (default this farm's own; none with --repo)")
	cmd.Flags().StringVar(&t.signers, "signers", "", "file of allowed signers (default this farm's own; none with --repo)")
	return cmd
}

func (t *trustCmd) fsck(cmd *cobra.Command, _ []string) error {
	usage := func(err error) error { return &control.Error{Code: control.ExitUsage, Err: err} }
	if t.at != "" || t.arch != "" {
		return usage(errors.New("the database is looked at whole: --at and --arch say nothing here, --since and --channel do"))
	}
	o := fsck.Options{Repo: t.repo, Since: t.since, Deep: t.deep, Artifacts: t.artifacts, Progress: t.bar(cmd.ErrOrStderr())}
	if t.channel != "" {
		if err := quarry.CheckChannel(t.channel); err != nil {
			return usage(err)
		}
		o.Channels = []string{t.channel}
	}
	var err error
	if o.Repo == "" {
		if o.Repo, err = t.path(); err != nil {
			return err
		}
		if o.Artifacts == "" {
			c, err := t.app.config()
			if err != nil {
				return err
			}
			o.Artifacts = c.Artifacts()
		}
	}
	if o.Artifacts != "" {
		if o.Artifacts, err = filepath.Abs(o.Artifacts); err != nil {
			return err
		}
		if _, err := os.Stat(o.Artifacts); err != nil {
			return fmt.Errorf("artifacts cannot be looked at: %w", err)
		}
	}
	if o.Signers, err = t.allowed(); err != nil {
		return err
	}
	w := cmd.OutOrStdout()
	color := terminal(w).Color
	found := []fsck.Finding{} // never null
	sum, err := fsck.Run(cmd.Context(), o, func(f fsck.Finding) {
		if t.json {
			found = append(found, f)
			return
		}
		paint := human.Dim
		if f.Level == fsck.Error {
			paint = human.Red
		}
		fmt.Fprintf(w, "%s %s\n", human.Paint(string(f.Level)+":", paint, color), human.Safe(f.String(), false))
	})
	switch {
	case errors.Is(err, results.ErrNotFound):
		return &control.Error{Code: control.ExitNotFound, Err: err}
	case err != nil:
		return err
	case t.json:
		err = human.JSON(w, map[string]any{"findings": found, "summary": sum})
	default:
		_, err = fmt.Fprintln(w, fsckText(sum, o))
	}
	if err == nil && sum.Errors > 0 {
		err = fmt.Errorf("the database is damaged: %s", human.Count(sum.Errors, "error"))
	}
	return err
}

// fsckText says in a line what was looked at.
func fsckText(s fsck.Summary, o fsck.Options) string {
	parts := []string{human.Count(s.Records, "record"), human.Count(s.Files, "file"), fmt.Sprintf("%s (%d signed)", human.Count(s.Commits, "commit"), s.Signed), fmt.Sprintf("%d attested", s.Attested)}
	switch {
	case o.Artifacts == "":
		parts = append(parts, "artifacts not looked at")
	case s.Deep:
		parts = append(parts, human.Count(s.Artifacts, "artifact")+" read")
	default:
		parts = append(parts, human.Count(s.Artifacts, "artifact"))
	}
	if o.Signers == nil {
		parts = append(parts, "signatures not checked")
	}
	end := "nothing is damaged"
	if s.Errors > 0 {
		end = human.Count(s.Errors, "error")
	}
	return strings.Join(parts, ", ") + ": " + end
}

// bar shows on a terminal how far something is.
func (t *trustCmd) bar(w io.Writer) func(what string, done, total int) {
	if t.json || !terminal(w).TTY {
		return nil
	}
	var bar *progressbar.ProgressBar
	of := ""
	return func(what string, done, total int) {
		if what != of {
			of = what
			if total == 0 {
				total = -1 // a spinner
			}
			bar = progressbar.NewOptions(total, progressbar.OptionSetWriter(w), progressbar.OptionSetDescription(human.Safe(what, false)),
				progressbar.OptionShowCount(), progressbar.OptionFullWidth(), progressbar.OptionClearOnFinish())
		}
		if done == total {
			bar.Finish()
			return
		}
		bar.Set(done)
	}
}
