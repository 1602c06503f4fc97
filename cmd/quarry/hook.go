package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/hooks"
	"github.com/spf13/cobra"
)

// newHookCmd is quarry hook.
func newHookCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "hook",
		Short: "Check pushes and hand them over, as a git hook",
	}
	for _, hook := range []string{hooks.Pre, hooks.Post} {
		var s hooks.Settings
		sub := &cobra.Command{
			Use:   hook,
			Short: "Run as the " + hook + " hook; git calls this",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, args []string) error {
				if code := hooks.Run(cmd.Context(), hook, s, cmd.InOrStdin(), cmd.ErrOrStderr(), dialFarm); code != 0 {
					return &exitError{code} // the hook has said why
				}
				return nil
			},
		}
		hookFlags(sub, &s)
		cmd.AddCommand(sub)
	}
	cmd.AddCommand(newHookInstallCmd(a))
	return cmd
}

func hookFlags(cmd *cobra.Command, s *hooks.Settings) {
	cmd.Flags().StringVar(&s.Package, "package", "", "package of the repository (default: the folder's name without .git)")
	cmd.Flags().StringVar(&s.Socket, "socket", "", "control socket of Quarry")
	cmd.Flags().StringVar(&s.Spool, "spool", "", "folder for pushes that find no Quarry running")
	cmd.Flags().StringVar(&s.Channel, "channel", "", "channel of a push that names none")
}

func newHookInstallCmd(a *app) *cobra.Command {
	var o hooks.Options
	cmd := &cobra.Command{
		Use:   "install REPO...",
		Short: "Put the hooks into bare repositories of any git server",
		Long: `Makes pushes to a bare repository of another git server (gitolite, Gitea, plain
OpenSSH, ...) go through Quarry's checks and to its builders. Run it as the user
that owns the repository. Add the repository to git.extra in Quarry's
configuration, so that Quarry finds what it missed while it did not run.`,
		Example: `  quarry hook install /srv/git/zlib.git
  quarry hook install --socket /var/lib/quarry/quarry.sock --spool /var/lib/quarry/spool /srv/git/*.git`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.Package != "" && len(args) > 1 {
				return fmt.Errorf("--package names the package of one repository, and %d are given: install them one by one", len(args))
			}
			var err error
			if o.Binary, err = os.Executable(); err == nil {
				o.Binary, err = filepath.EvalSymlinks(o.Binary)
			}
			if err != nil {
				return fmt.Errorf("path of this program cannot be found: %w", err)
			}
			if o.Socket == "" || o.Spool == "" {
				c, err := a.config()
				if err != nil {
					return err
				}
				if o.Socket == "" {
					o.Socket = c.Socket()
				}
				if o.Spool == "" {
					o.Spool = c.Spool()
				}
			}
			// The spool is for when the daemon does not run, so it must be there.
			if err := os.MkdirAll(o.Spool, 0o755); err != nil {
				return fmt.Errorf("folder of the spool cannot be made: %w", err)
			}
			for _, repo := range args {
				if err := hooks.Install(repo, o); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s: pushes go to the Quarry at %s\n", repo, o.Socket)
			}
			return nil
		},
	}
	hookFlags(cmd, &o.Settings)
	cmd.Flags().BoolVar(&o.Force, "force", false, "replace hooks that are somebody else's (kept as NAME.old)")
	return cmd
}

// farm is the running Quarry behind a control socket, as hooks need it.
type farm struct{ client control.Client }

func dialFarm(ctx context.Context, socket string) (hooks.Daemon, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err // a caller that spools wants to know before it writes anything
	}
	c.Close()
	return farm{control.Client{Socket: socket}}, nil
}

func (f farm) Close() error { return nil }

// Impact asks what a push would cause.
func (f farm) Impact(ctx context.Context, p hooks.Proposal) (im hooks.Impact, err error) {
	body, err := json.Marshal(p)
	if err != nil {
		return im, err
	}
	var out, errOut bytes.Buffer
	client := f.client
	client.In = bytes.NewReader(body)
	code, err := client.Call(ctx, []string{"impact"}, control.Terminal{}, &out, &errOut)
	if err != nil {
		return im, err
	}
	if code != control.ExitOK {
		return im, &hooks.Refused{Err: errors.New(strings.TrimPrefix(strings.TrimSpace(errOut.String()), "quarry: "))}
	}
	if err := json.Unmarshal(out.Bytes(), &im); err != nil {
		return im, &hooks.Refused{Err: fmt.Errorf("the answer cannot be read: %w", err)}
	}
	return im, nil
}

// Pushed tells of a push. The channel is not among the words: post-receive has
// written it into the repository beside who pushed.
func (f farm) Pushed(ctx context.Context, p hooks.Push) (hooks.Answer, error) {
	var out, errOut bytes.Buffer
	words := []string{"pushed", "--", p.Package}
	for _, r := range p.Refs {
		if r.Release() && !r.Deleted() {
			words = append(words, r.Name)
		}
	}
	code, err := f.client.Call(ctx, words, control.Terminal{}, &out, &errOut)
	if err != nil {
		return hooks.Answer{}, err
	}
	// There may be both: builds, and branches that cannot be built.
	if code != control.ExitOK {
		err = &hooks.Refused{Err: errors.New(strings.TrimPrefix(strings.TrimSpace(errOut.String()), "quarry: "))}
	}
	var answer control.Pushed
	if jerr := json.Unmarshal(out.Bytes(), &answer); jerr != nil && err == nil {
		err = &hooks.Refused{Err: fmt.Errorf("builds of the push cannot be read: %w", jerr)}
	}
	return hooks.Answer(answer), err
}

func (f farm) Follow(ctx context.Context, number int64, w io.Writer) error {
	var errOut bytes.Buffer
	code, err := f.client.Call(ctx, []string{"log", "--follow", "--raw", "--", strconv.FormatInt(number, 10)}, control.Terminal{}, w, &errOut)
	if err == nil && code != control.ExitOK && code != control.ExitBuild {
		err = errors.New(strings.TrimPrefix(strings.TrimSpace(errOut.String()), "quarry: "))
	}
	return err
}
