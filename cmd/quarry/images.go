package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/human"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
)

// opener opens the store of bases for one command.
type opener func(context.Context) (*images.Store, func() error, error)

// newImagesCmd is quarry images.
func newImagesCmd(open opener) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "images",
		Short: "Make and keep the clean systems that builds start from",
		Long: `A base is the clean, installed system for one arch. Every build starts from a
fresh layer over the base of its arch. Loading another base for an arch replaces
it from the next build on; builds that run keep theirs.`,
	}
	cmd.AddCommand(newImagesLoadCmd(open), newImagesBootstrapCmd(open), newImagesListCmd(open), newImagesRemoveCmd(open))
	return cmd
}

// with runs fn on the opened store.
func with(ctx context.Context, open opener, fn func(*images.Store) error) error {
	store, closeStore, err := open(ctx)
	if err != nil {
		return err
	}
	return errors.Join(fn(store), closeStore())
}

func newImagesLoadCmd(open opener) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "load ARCH FILE",
		Short: "Make a base of a tarball or an OCI archive",
		Long: `Makes the base of ARCH from FILE: a tarball of a root file system, or an image as
podman save and skopeo write it (oci-archive, docker-archive); plain, or
compressed with gzip, bzip2, xz or zstd. What it is shows from its content. A
system of another arch is refused.`,
		Example: `  quarry images load x86_64 vanilla-morphux.tar.xz
  quarry images load aarch64 image.oci.tar`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return with(cmd.Context(), open, func(s *images.Store) error {
				p := newProgress(cmd.ErrOrStderr())
				base, err := s.Load(cmd.Context(), args[0], args[1], p.show)
				p.end()
				return made(cmd.OutOrStdout(), base, err, asJSON)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON for scripts")
	return cmd
}

func newImagesBootstrapCmd(open opener) *cobra.Command {
	var asJSON bool
	var o images.BootstrapOptions
	cmd := &cobra.Command{
		Use:   "bootstrap ARCH",
		Short: "Make a base of Debian with mmdebstrap",
		Long: `Makes the base of ARCH with mmdebstrap, from Debian's packages: a compiler and
what plain C software takes to build. It is the stand-in where no tarball of
Vanilla Morphux is at hand. It takes a minute and some hundred megabytes of
download, and several minutes for an emulated arch.`,
		Example: `  quarry images bootstrap x86_64
  quarry images bootstrap aarch64 --include build-essential,cmake`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return with(cmd.Context(), open, func(s *images.Store) error {
				p := newProgress(cmd.ErrOrStderr())
				base, err := s.Bootstrap(cmd.Context(), args[0], o, p.show)
				p.end()
				return made(cmd.OutOrStdout(), base, err, asJSON)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON for scripts")
	cmd.Flags().StringVar(&o.Suite, "suite", "", "release of Debian (default bookworm)")
	cmd.Flags().StringVar(&o.Mirror, "mirror", "", "mirror of Debian (default mmdebstrap's choice)")
	cmd.Flags().StringVar(&o.Variant, "variant", "", "variant of mmdebstrap (default minbase)")
	cmd.Flags().StringSliceVar(&o.Include, "include", nil, "packages to install, instead of the usual ones")
	return cmd
}

func made(out io.Writer, base images.Base, err error, asJSON bool) error {
	if err != nil {
		return err
	}
	if asJSON {
		return human.JSON(out, base)
	}
	_, err = fmt.Fprintf(out, "base for %s: %s, %s, from %s\n", base.Arch, base.Digest, human.Size(base.Size), human.Safe(base.Source, false))
	return err
}

func newImagesListCmd(open opener) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Short: "List the bases", Example: "  quarry images list --json",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return with(cmd.Context(), open, func(s *images.Store) error {
				bases, err := s.Bases(cmd.Context())
				if err != nil {
					return err
				}
				out := cmd.OutOrStdout()
				if asJSON {
					if bases == nil {
						bases = []images.Base{}
					}
					return human.JSON(out, bases)
				}
				if len(bases) == 0 {
					_, err := fmt.Fprintln(out, "no bases yet: quarry images load ARCH FILE, or quarry images bootstrap ARCH, makes one")
					return err
				}
				t := human.Table{Head: []string{"ARCH", "RUNS", "SIZE", "MADE", "SOURCE", "DIGEST"}, Color: terminal(out).Color}
				for _, b := range bases {
					runs, err := images.Emulation(b.Arch)
					if err != nil {
						runs = "not here"
					}
					t.Row(b.Arch, runs, human.Size(b.Size), human.Ago(b.Created, time.Now()), b.Source, b.Digest)
				}
				_, err = t.WriteTo(out)
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON for scripts")
	return cmd
}

func newImagesRemoveCmd(open opener) *cobra.Command {
	return &cobra.Command{
		Use: "remove ARCH", Short: "Remove the base of an arch", Example: "  quarry images remove i686",
		Long: "Removes the base of an arch. Builds for it wait until there is another one; builds\nthat run keep it until they end.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return with(cmd.Context(), open, func(s *images.Store) error {
				if err := s.Remove(cmd.Context(), args[0]); err != nil {
					return err
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "base for %s is removed\n", args[0])
				return err
			})
		},
	}
}

// progress shows how far long work is: a bar on a terminal, plain lines every
// few seconds elsewhere.
type progress struct {
	out io.Writer
	tty bool

	mu   sync.Mutex // guards the following
	bar  *progressbar.ProgressBar
	step string
	line string // last that the tool said
	said time.Time
}

func newProgress(w io.Writer) *progress { return &progress{out: w, tty: terminal(w).TTY} }

func (p *progress) show(now images.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fresh := now.Step != p.step
	p.step = now.Step
	if fresh {
		p.line = ""
	}
	if now.Line != "" {
		p.line = human.Safe(now.Line, false)
	}
	if !p.tty {
		// Lines of a tool are many; one now and then shows that it is alive.
		if !fresh && time.Since(p.said) < 5*time.Second {
			return
		}
		p.said = time.Now()
		switch {
		case now.Total > 0:
			fmt.Fprintf(p.out, "%s: %s of %s\n", now.Step, human.Size(now.Done), human.Size(now.Total))
		case now.Done > 0:
			fmt.Fprintf(p.out, "%s: %s\n", now.Step, human.Size(now.Done))
		case p.line != "":
			fmt.Fprintf(p.out, "%s: %s\n", now.Step, p.line)
		default:
			fmt.Fprintf(p.out, "%s ...\n", now.Step)
		}
		return
	}
	if fresh || p.bar == nil {
		p.finish()
		total := now.Total
		if total <= 0 || now.Done >= total {
			total = -1 // all is read and podman works on it: a spinner
		}
		// Not the library's own figures of bytes: its rate jumps by powers of
		// ten where progress comes five times a second.
		p.bar = progressbar.NewOptions64(total, progressbar.OptionSetWriter(p.out), progressbar.OptionSetDescription(now.Step),
			progressbar.OptionFullWidth(), progressbar.OptionClearOnFinish(),
			progressbar.OptionSetPredictTime(false), progressbar.OptionSetElapsedTime(true), progressbar.OptionSpinnerType(14))
	}
	if now.Done > 0 && now.Done < now.Total {
		p.bar.Set64(now.Done)
		p.bar.Describe(fmt.Sprintf("%s %s of %s", now.Step, human.Size(now.Done), human.Size(now.Total)))
		return
	}
	if p.line != "" {
		p.bar.Describe(now.Step + ": " + shortLine(p.line))
	}
	p.bar.Add(1)
}

func shortLine(s string) string {
	if r := []rune(s); len(r) > 40 {
		return string(r[:39]) + "…"
	}
	return s
}

func (p *progress) finish() {
	if p.bar != nil {
		p.bar.Finish()
		p.bar = nil
	}
}

func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finish()
}
