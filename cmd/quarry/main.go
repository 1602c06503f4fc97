// Command quarry is the build farm of Morphux Linux: the daemon, its git hooks,
// the guest that runs in a build's container, and the command line, in one
// binary.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/layers"
	"github.com/Morphux/quarry/runner/guest"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// version is set by the linker (make build); go install leaves it to the
// module's.
var version = ""

func init() {
	if version != "" {
		return
	}
	version = "unknown"
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		version = info.Main.Version
	}
}

func main() {
	layers.Unpacker()
	// The guest is the first process of a hostile container: it must start in
	// milliseconds and has no use for flags, signals or colours.
	if len(os.Args) == 3 && os.Args[1] == "guest" {
		os.Exit(guest.Main(os.Args[2]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// app is what the commands share: the global flags, and what follows from them.
type app struct {
	configPath string
	state      string
	farm       string // far away; see farmURL
	verbose    bool
}

// config reads the configuration, once the flags are known.
func (a *app) config() (*config.Config, error) {
	if a.farm != "" {
		return nil, &flagError{errors.New("--farm is for what a running farm is asked: this works on files of this machine")}
	}
	c, err := config.Load(a.configPath)
	if err != nil {
		return nil, &control.Error{Code: control.ExitUsage, Err: err}
	}
	if a.state != "" {
		if err := c.SetState(a.state); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// logger logs as text; the daemon does as its configuration says.
func (a *app) logger(w io.Writer) *slog.Logger {
	return slog.New(config.Log{}.Handler(w, a.level()))
}

func (a *app) level() slog.Level {
	if a.verbose {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

// run is main without the process: arguments in, exit code out. Errors become
// text here and nowhere else.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	root := newRootCmd()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	err := wrongSubcommand(root, args)
	if err == nil {
		err = root.ExecuteContext(ctx)
	}
	if err == nil {
		return control.ExitOK
	}
	var silent *exitError
	if errors.As(err, &silent) {
		return silent.code
	}
	fmt.Fprintf(errOut, "quarry: %s\n", strings.ReplaceAll(err.Error(), "\n", "\nquarry: "))
	if ctx.Err() != nil {
		return 130
	}
	var flag *flagError
	if errors.As(err, &flag) {
		return control.ExitUsage
	}
	var coded interface{ ExitCode() int }
	if errors.As(err, &coded) {
		return coded.ExitCode()
	}
	return control.Code(err)
}

// exitError ends the program with a code when everything has been said.
type exitError struct{ code int }

func (e *exitError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// flagError is a call whose words are off.
type flagError struct{ error }

// wrongSubcommand says that quarry, or a command such as quarry db, has no
// command of the name given. For the latter cobra would print help and call that
// a success.
func wrongSubcommand(root *cobra.Command, args []string) error {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd(args...)
	c, rest, _ := root.Find(args)
	if c.Runnable() || !c.HasSubCommands() || c.ParseFlags(rest) != nil || c.Flags().NArg() == 0 {
		return nil
	}
	name, hint := c.Flags().Arg(0), ""
	if strings.HasPrefix(name, cobra.ShellCompRequestCmd) { // hidden, and made when it is called
		return nil
	}
	c.SuggestionsMinimumDistance = 2
	if close := c.SuggestionsFor(name); len(close) > 0 {
		hint = "did you mean " + strings.Join(close, " or ") + "? "
	}
	where := strings.TrimPrefix(c.CommandPath()+" ", "quarry ")
	return &flagError{fmt.Errorf("command %q is unknown: %ssee %s --help", where+shorten(name), hint, c.CommandPath())}
}

func shorten(s string) string {
	if r := []rune(s); len(r) > 40 {
		return string(r[:40]) + "..."
	}
	return s
}

// sayArgs has every command name the arguments that it takes when it gets
// others.
func sayArgs(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if check(c, args) == nil {
				return nil
			}
			_, takes, _ := strings.Cut(c.Use, " ")
			if takes == "" {
				takes = "no arguments"
			}
			return &flagError{fmt.Errorf("%s takes %s: see %s --help", strings.TrimPrefix(c.CommandPath(), "quarry "), takes, c.CommandPath())}
		}
	}
	for _, sub := range c.Commands() {
		sayArgs(sub)
	}
}

func newRootCmd() *cobra.Command {
	a := &app{}
	root := &cobra.Command{
		Use:   "quarry",
		Short: "The build farm of Morphux Linux",
		Long: `Quarry builds packages. A maintainer pushes a branch name-version over SSH;
Quarry builds it in a clean system for each arch and commits a record of what
came out into a git results repository, which MPM reads as its database.`,
		Example: `  quarry images bootstrap x86_64          make a clean base system
  quarry key add alice alice.pub          let alice push
  quarry serve                            run the farm
  quarry status                           see what it does
  quarry build ./zlib                     build one package here, without a farm`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version,
	}
	root.PersistentFlags().StringVarP(&a.configPath, "config", "c", "", "configuration file (default quarry.toml if there is one)")
	root.PersistentFlags().StringVar(&a.state, "state", "", "state folder, instead of the configuration's")
	root.PersistentFlags().StringVar(&a.farm, "farm", "", "ask this farm, e.g. tls://farm.example.org:6694, with the token in QUARRY_TOKEN (default QUARRY_FARM, or this machine's)")
	root.PersistentFlags().BoolVarP(&a.verbose, "verbose", "v", false, "log more")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &flagError{fmt.Errorf("%w: see %s --help", err, c.CommandPath())}
	})
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddGroup(&cobra.Group{ID: "farm", Title: "A running farm:"}, &cobra.Group{ID: "systems", Title: "What builds start from:"},
		&cobra.Group{ID: "admin", Title: "Setting one up:"}, &cobra.Group{ID: "local", Title: "Without a farm:"})
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	farm, systems := verbCmds(a)
	add("farm", farm...)
	add("systems", systems...)
	add("admin", newServeCmd(a), newKeyCmd(a.dir((*config.Config).Keys)), newDoctorCmd(a.doctor), newHookCmd(a))
	add("local", newBuildCmd(a), newDBCmd(a.dir((*config.Config).Results), a.trustCmds, a.exportCmds), newBisectCmd(a.dir((*config.Config).Results)), newMPMCmd())
	addJobsCmds(a, root)
	sayArgs(root)
	return root
}

// dir gives a function that tells one of the configured places.
func (a *app) dir(place func(*config.Config) string) func() (string, error) {
	return func() (string, error) {
		c, err := a.config()
		if err != nil {
			return "", err
		}
		return place(c), nil
	}
}

// terminal says what an output is.
func terminal(w io.Writer) control.Terminal {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return control.Terminal{}
	}
	width, height, err := term.GetSize(int(f.Fd()))
	if err != nil {
		width, height = 0, 0
	}
	return control.Terminal{TTY: true, Width: width, Height: height, Color: os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}
