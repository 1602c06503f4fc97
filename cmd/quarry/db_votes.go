package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/results"
	"github.com/spf13/cobra"
)

func (d *dbCmd) votesCmd() *cobra.Command {
	var raw bool
	cmd := &cobra.Command{
		Use:   "votes PACKAGE [VERSION]",
		Short: "Show who has built a record again, and what came of it",
		Long: `Lists the votes on the artifacts of a version (also as NAME-VERSION; without one,
of every version): who has built it again of the same inputs, and whether it was the
same, bit for bit. Only votes count whose signature is of a key that is allowed to
vote. In a clone they are at refs/quarry/votes/*, which is fetched when asked for.

--raw prints the votes as they were signed, to be handed in at another farm.`,
		Example: "  quarry db votes zlib-1.3.1\n  quarry db votes zlib 1.3.1 --arch x86_64 --raw | ssh farm vote -\n" +
			"  git fetch origin 'refs/quarry/votes/*:refs/quarry/votes/*'",
		Args: cobra.RangeArgs(1, 2),
	}
	cmd.Flags().StringVar(&d.signers, "signers", "", "file of allowed signers (default allowed_signers beside the repository)")
	cmd.Flags().BoolVar(&raw, "raw", false, "print the signed votes themselves")
	cmd.RunE = d.run(func(ctx context.Context, r *results.Reader, w io.Writer, args []string) error {
		recs, err := d.records(ctx, r, args)
		if err != nil {
			return err
		}
		var all []control.Vote
		for _, rec := range recs {
			if rec.Artifact == "" {
				continue
			}
			list, text, err := d.votesOn(r, rec.Artifact, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			for _, v := range list {
				if raw {
					if _, err := w.Write(text[v.ID]); err != nil {
						return err
					}
				}
				all = append(all, v)
			}
		}
		switch {
		case raw:
			return nil
		case d.json:
			return human.JSON(w, append([]control.Vote{}, all...))
		}
		return writeVotes(w, all)
	})
	return cmd
}

// votesOn gives the votes on an artifact that count; what is wrong with others is
// told to errOut, unless it is nil.
func (d *dbCmd) votesOn(r *results.Reader, artifact string, errOut io.Writer) ([]control.Vote, map[string][]byte, error) {
	texts, err := r.Votes(artifact)
	if err != nil && errOut != nil {
		fmt.Fprintf(errOut, "quarry: %s\n", human.Safe(err.Error(), false))
	}
	if len(texts) == 0 {
		return nil, nil, nil
	}
	path := d.signers
	if path == "" {
		path = filepath.Join(filepath.Dir(r.Path()), "allowed_signers")
	}
	signers, err := readSigners(path)
	if err != nil {
		return nil, nil, err
	}
	list, problems := counted(signers, texts)
	for _, p := range problems {
		if errOut != nil {
			fmt.Fprintf(errOut, "quarry: %s\n", human.Safe(p.Error(), false))
		}
	}
	return list, texts, nil
}

func writeVotes(w io.Writer, votes []control.Vote) error {
	color := terminal(w).Color
	if len(votes) == 0 {
		_, err := fmt.Fprintln(w, "nobody has voted: quarry verify builds it again")
		return err
	}
	t := human.Table{Head: []string{"PACKAGE", "VERSION", "ARCH", "BUILD", "RESULT", "BUILDER", "SIGNER", "WHEN"}, Color: color}
	for _, v := range votes {
		verdict := human.Cell("same", human.Green)
		switch {
		case v.Failure != "":
			verdict = human.Cell("does not build", human.Red)
		case !v.Same:
			verdict = human.Cell("not the same", human.Red)
		}
		t.Row(v.Package, v.Version, v.Arch, v.Build, verdict, v.Builder, v.Signer, human.Ago(v.At, time.Now()))
	}
	if _, err := t.WriteTo(w); err != nil {
		return err
	}
	for _, v := range votes {
		if v.Same || len(v.Differences)+len(v.Changed) == 0 && v.Failure == "" {
			continue
		}
		fmt.Fprintf(w, "\n%s %s, by %s\n", v.Target(), human.Paint("not the same", human.Red, color), v.Builder)
		for _, s := range append(append([]string{}, v.Changed...), v.Failure) {
			if s != "" {
				fmt.Fprintf(w, "  %s\n", s)
			}
		}
		for _, s := range v.Differences {
			if _, err := fmt.Fprintf(w, "  %s\n", s); err != nil {
				return err
			}
		}
	}
	return nil
}

// reproduced says in a few words what became of an artifact that was built again.
func (d *dbCmd) reproduced(r *results.Reader, rec *results.Record) string {
	if rec.Artifact == "" {
		return ""
	}
	votes, _, err := d.votesOn(r, rec.Artifact, nil)
	if err != nil {
		return ""
	}
	return control.Reproduced(votes)
}
