package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/control"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// topics are commands that only hold others: the first words of verbs that have
// two.
var topics = map[string]*cobra.Command{
	"images": {
		Use:   "images",
		Short: "Make and keep the clean systems that builds start from",
		Long: `A base is the clean, installed system for one arch, and never changes. An instance
is a base that a channel's setup has brought up to date. Every build starts from a
fresh layer over the instance of its channel and arch. These commands ask the
daemon, or do the work themselves while none runs.`,
		Args: cobra.NoArgs,
	},
	"group": {
		Use:   "group",
		Short: "Build releases together, and land all of them or none",
		Long: `Releases that are pushed with git push -o group=NAME are held. Submitted, they are
built against each other, and land on their channel as one commit when all of them
have succeeded.`,
		Args: cobra.NoArgs,
	},
	"keys": {
		Use:   "keys",
		Short: "Say whose keys are whose, through the daemon",
		Long: `People and their public keys, as the daemon's verbs have them. quarry key changes
the same files without a daemon.`,
		Args: cobra.NoArgs,
	},
	"token": {
		Use:   "token",
		Short: "Let programs in that cannot hold an SSH key",
		Long: `A token lets in as its user, over HTTP and over the text protocol, and never
further than the user may go. These commands ask the daemon, or do the work
themselves while none runs.`,
		Args: cobra.NoArgs,
	},
}

// verbCmds makes a command of every verb in the table: it carries the words to
// the daemon and brings its answer back.
func verbCmds(a *app) (farm, systems []*cobra.Command) {
	parents := map[string]*cobra.Command{}
	table := control.Verbs(nil)
	for _, v := range table {
		if v.Hidden || v.Name == "help" || v.Name == "build" { // cobra has its own, and so has newBuildCmd
			continue
		}
		topic, name, two := strings.Cut(v.Name, " ")
		cmd := &cobra.Command{
			Use:     strings.TrimSpace(cmp.Or(name, topic) + " " + v.Args),
			Short:   v.Short,
			Long:    v.Short + ".\n\n" + v.Long,
			Example: examples(v.Example),
			Args:    verbArgs(v),
			RunE: func(cmd *cobra.Command, args []string) error {
				return a.verb(cmd, v, cmd.Flags(), args)
			},
		}
		cmd.Flags().AddFlagSet(v.NewFlags())
		cmd.Flags().SetInterspersed(!v.Raw)
		switch {
		case two && parents[topic] == nil:
			parent := *topics[topic] // a copy: each tree of commands has its own
			parents[topic] = &parent
			if v.Systems {
				systems = append(systems, &parent)
			} else {
				farm = append(farm, &parent)
			}
			fallthrough
		case two:
			parents[topic].AddCommand(cmd)
		case v.Systems:
			systems = append(systems, cmd)
		default:
			farm = append(farm, cmd)
		}
		if !two && slices.ContainsFunc(table, func(o *control.Verb) bool { return strings.HasPrefix(o.Name, topic+" ") }) {
			parents[topic] = cmd // a verb that others are words of, such as jobs
		}
	}
	return farm, append(systems, seedCmds(a)...)
}

// verbArgs counts arguments as the verb does.
func verbArgs(v *control.Verb) cobra.PositionalArgs {
	if v.MaxArgs < 0 {
		return cobra.MinimumNArgs(v.MinArgs)
	}
	return cobra.RangeArgs(v.MinArgs, v.MaxArgs)
}

// verb has the daemon run a verb, or runs it here when none does and the verb
// needs none.
func (a *app) verb(cmd *cobra.Command, v *control.Verb, flags *pflag.FlagSet, args []string) error {
	farm := a.farmURL()
	var c *config.Config
	var client control.Client
	var err error
	if farm == "" {
		if c, err = a.config(); err != nil {
			return err
		}
		client.Socket = c.Socket()
	}
	in := cmd.InOrStdin()
	ends := terminal(cmd.OutOrStdout())
	ends.Live = terminal(cmd.ErrOrStderr()).TTY
	if f, ok := in.(*os.File); ok && ends.Live && term.IsTerminal(int(f.Fd())) {
		if err := v.Confirm(&control.Call{Verb: v, Args: args, Flags: flags, In: in, Err: cmd.ErrOrStderr()}); err != nil {
			return err
		}
	}
	if i := v.File - 1; i >= 0 && i < len(args) {
		if args[i] == "-" {
			client.In = in
		} else if v.Name == "build" { // a release, and no file
		} else if farm != "" { // which cannot read files of this machine
			file, err := os.Open(args[i])
			if err != nil {
				return err
			}
			defer file.Close()
			client.In, args[i] = file, "-"
		} else if args[i], err = filepath.Abs(args[i]); err != nil { // the daemon works in another folder
			return err
		}
	}
	if f := flags.Lookup(v.Send); v.Send != "" && f.Changed {
		client.In = in
		if name := f.Value.String(); name != "-" {
			file, err := os.Open(name)
			if err != nil {
				return fmt.Errorf("--%s cannot be read: %w", v.Send, err)
			}
			defer file.Close()
			client.In = file
			if err := f.Value.Set("-"); err != nil {
				return err
			}
		}
	}
	ctx := cmd.Context()
	if v.Raw && len(args) > 0 && farm != "" {
		if client.In = in; terminal(cmd.OutOrStdout()).TTY {
			return fmt.Errorf("%s: a terminal cannot go through the text protocol: use ssh, or the farm's machine", v.Name)
		}
	} else if v.Raw && len(args) > 0 {
		client.In = in
		var restore func()
		ends.Resize, restore, ends.TTY = rawTerminal(in, cmd.OutOrStdout())
		defer restore()
	}
	if v.Keys && ends.TTY {
		var restore func()
		ctx, restore = untilQ(ctx, in)
		defer restore()
	}
	words := append(append(strings.Fields(v.Name), typed(cmd, flags)...), "--")
	words = append(words, args...)
	var code int
	if farm != "" {
		code, err = callFar(ctx, farm, v, words, client.In, cmd.OutOrStdout(), cmd.ErrOrStderr(), ends)
	} else {
		code, err = client.Call(ctx, words, ends, cmd.OutOrStdout(), cmd.ErrOrStderr())
	}
	switch {
	case !errors.Is(err, control.ErrUnreachable):
	case v.Alone:
		code, err = a.alone(cmd, c, words, client.In, ends)
	case strings.HasPrefix(v.Name, "token "):
		code, err = a.tokensAlone(cmd, c, words, ends)
	case v.Send != "" && client.In != nil: // what is asked is about the file alone
		table := control.Verbs(&control.Farm{Channels: farmChannels(c), Default: c.DefaultChannel, Version: version})
		code, err = table.Run(ctx, control.Owner(), words, client.In, cmd.OutOrStdout(), cmd.ErrOrStderr(), ends), nil
	}
	if v.Keys && ends.TTY && ctx.Err() != nil { // q or ^C, as it is meant to be ended
		fmt.Fprintln(cmd.OutOrStdout())
		return nil
	}
	if err == nil && code != control.ExitOK {
		err = &exitError{code}
	}
	return err
}

// untilQ gives a context that ends when somebody types q. Until restore the
// terminal gives each key as it is typed and does not show it; ^C and its like
// stay signals.
func untilQ(ctx context.Context, in io.Reader) (_ context.Context, restore func()) {
	f, ok := in.(*os.File)
	if !ok {
		return ctx, func() {}
	}
	fd := int(f.Fd())
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return ctx, func() {} // no terminal
	}
	keys := *old
	keys.Lflag &^= unix.ICANON | unix.ECHO
	keys.Cc[unix.VMIN], keys.Cc[unix.VTIME] = 1, 0
	if unix.IoctlSetTermios(fd, unix.TCSETS, &keys) != nil {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		for b := make([]byte, 64); ; {
			n, err := f.Read(b)
			if err != nil || bytes.ContainsAny(b[:n], "qQ\x04") {
				cancel()
				return
			}
		}
	}()
	return ctx, func() {
		cancel()
		_ = unix.IoctlSetTermios(fd, unix.TCSETS, old)
	}
}

// alone runs a verb on the store of images, which no daemon has open.
func (a *app) alone(cmd *cobra.Command, c *config.Config, words []string, in io.Reader, ends control.Terminal) (int, error) {
	ctx := cmd.Context()
	store, conn, err := openImages(ctx, c, a.logger(io.Discard))
	if err != nil {
		return 0, err
	}
	table := control.Verbs(&control.Farm{Images: store, Channels: farmChannels(c), Version: version, Started: time.Now()})
	code := table.Run(ctx, control.Owner(), words, in, cmd.OutOrStdout(), cmd.ErrOrStderr(), ends)
	end, stop := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer stop()
	return code, errors.Join(store.Close(end), conn.Close())
}

// typed gives the flags that were given to a command itself, as words to send
// on; --config and its like are for this end.
func typed(cmd *cobra.Command, flags *pflag.FlagSet) []string {
	var words []string
	flags.Visit(func(f *pflag.Flag) {
		if cmd.Root().PersistentFlags().Lookup(f.Name) != nil {
			return
		}
		value := f.Value.String()
		if list, ok := f.Value.(pflag.SliceValue); ok {
			value = strings.Join(list.GetSlice(), ",")
		}
		words = append(words, "--"+f.Name+"="+value)
	})
	return words
}

func examples(s string) string {
	return "  quarry " + strings.ReplaceAll(s, "\n", "\n  quarry ")
}
