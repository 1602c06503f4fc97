package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/Morphux/quarry/buildcontrol"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/jobserver"
	"github.com/Morphux/quarry/runner/guest"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// addJobsCmds puts what of quarry jobs needs no farm beside the verbs.
func addJobsCmds(a *app, root *cobra.Command) {
	for _, c := range root.Commands() {
		if c.Name() == "jobs" {
			c.AddCommand(newJobsServeCmd(a), newJobsRunCmd(a))
		}
	}
}

// newJobsServeCmd is quarry jobs serve.
func newJobsServeCmd(a *app) *cobra.Command {
	var ceiling, clients int
	cmd := &cobra.Command{
		Use:   "serve ADDR...",
		Short: "Serve the build control protocol by itself, without a farm",
		Long: `Tells build programs how many jobs they may run: those with the patches of
Marc Espie's build-control, and any others through quarry jobs run. An address
is the path of a Unix socket, HOST:SERVICE, or :SERVICE for all interfaces.

It prints the token of control connections, 0-HASH. Standard input is one, too:

  new      make a token; gives N-HASH, the BUILDTOKEN of a build
  N:JOBS   have the build with token N run so many jobs
  dump     show connections and tokens
  help     show these
  quit     end

Who can reach a TCP address and knows the control token steers all builds, and
what is said can be read on the way: listen on networks that you trust.`,
		Example: `  quarry jobs serve /tmp/jobs
  quarry jobs serve --ceiling 16 /tmp/jobs :7000`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if ceiling < 1 || ceiling > buildcontrol.MaxJobs || clients < 1 {
				return &flagError{fmt.Errorf("--ceiling takes 1 to %d jobs and --clients 1 or more: see quarry jobs serve --help", buildcontrol.MaxJobs)}
			}
			s := buildcontrol.New(buildcontrol.Options{
				Ceiling: ceiling, MaxClients: clients, MaxPerToken: clients, Control: true, Log: a.logger(cmd.ErrOrStderr()),
			})
			return serveJobs(cmd.Context(), s, args, cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
	cmd.Flags().IntVar(&ceiling, "ceiling", buildcontrol.MaxJobs, "never have a build run more jobs than this")
	cmd.Flags().IntVar(&clients, "clients", 16_384, "connections at one time")
	return cmd
}

// serveJobs listens to all addresses until ctx ends, somebody says quit to in, or
// one of them fails.
func serveJobs(ctx context.Context, s *buildcontrol.Server, addrs []string, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var listeners []net.Listener
	for _, addr := range addrs {
		ls, err := buildcontrol.Listen(ctx, addr)
		if err != nil {
			for _, l := range listeners {
				l.Close()
			}
			return err
		}
		listeners = append(listeners, ls...)
	}
	errs := make([]error, len(listeners))
	var all sync.WaitGroup
	for i, l := range listeners {
		all.Go(func() {
			defer cancel()
			errs[i] = s.Serve(ctx, l)
		})
	}
	fmt.Fprintf(out, "%s to connect\n", s.ControlToken())
	signal.Ignore(syscall.SIGTTIN) // in the background of a terminal, nobody types
	go func() {
		if quit, _ := s.Console(in, out); quit {
			cancel()
		}
	}()
	all.Wait()
	return errors.Join(errs...)
}

// newJobsRunCmd is quarry jobs run.
func newJobsRunCmd(a *app) *cobra.Command {
	var addr, token string
	first, most := 1, runtime.NumCPU()
	cmd := &cobra.Command{
		Use:   "run [--addr ADDR] [--token N-HASH] -- CMD [ARG...]",
		Short: "Run a command whose jobs a build control server steers",
		Long: `Runs make, ninja, cargo or whatever calls them, unpatched, with a GNU jobserver
whose tokens follow what a build control server says: quarry jobs serve, or any
other of that protocol. More jobs begin at once, fewer run as jobs end.

GNU make takes part from 4.2, ninja from 1.13, cargo and gcc's LTO always. CMD
must not be given -j: that would be a number of its own. When the server ends,
CMD goes on with the number it has. The exit code is that of CMD.`,
		Example: `  export BUILDCONTROLADDR=/tmp/jobs BUILDTOKEN=1-6f53946e9ead7cac9f4e4b2d
  quarry jobs run -- make
  quarry jobs run --max 64 -- ninja -C build`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r := jobsRun{first: first, most: most, argv: args, log: a.logger(cmd.ErrOrStderr()),
				addr:  cmp.Or(addr, os.Getenv("BUILDCONTROLADDR"), os.Getenv("BUILDSOCKET")),
				token: cmp.Or(token, os.Getenv("BUILDTOKEN"))}
			if most < 1 || most > jobserver.MaxJobs || first < 1 {
				return &flagError{fmt.Errorf("--max takes 1 to %d jobs and --jobs 1 or more: see quarry jobs run --help", jobserver.MaxJobs)}
			}
			if r.addr == "" || r.token == "" {
				return &flagError{errors.New("jobs run needs to know the server and the build: set BUILDCONTROLADDR and BUILDTOKEN, or give --addr and --token")}
			}
			return r.run(cmd)
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().StringVar(&addr, "addr", "", "the server: a path, or HOST:SERVICE (default BUILDCONTROLADDR, then BUILDSOCKET)")
	cmd.Flags().StringVar(&token, "token", "", "the build's token; others on this machine can read it here (default BUILDTOKEN)")
	cmd.Flags().IntVarP(&first, "jobs", "j", first, "jobs to run until the server says a number")
	cmd.Flags().IntVar(&most, "max", most, "never run more jobs than this")
	return cmd
}

// jobsRun is a command with a jobserver that follows a build control server.
type jobsRun struct {
	addr, token string
	first, most int
	argv        []string
	log         *slog.Logger
}

func (r *jobsRun) run(cmd *cobra.Command) error {
	env, err := r.environment()
	if err != nil {
		return err
	}
	path, err := exec.LookPath(r.argv[0])
	if err != nil {
		return &control.Error{Code: 127, Err: err}
	}
	dir, err := os.MkdirTemp("", "quarry-jobs-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if strings.ContainsAny(dir, " \t\n$\\\"'") { // as make takes MAKEFLAGS apart
		return fmt.Errorf("the folder %q for temporary files cannot stand in MAKEFLAGS: set TMPDIR to one with a plain name", dir)
	}
	pool, err := jobserver.New(jobserver.Options{Dir: dir, Name: "jobs", UID: os.Getuid(), GID: os.Getgid(), Log: r.log})
	if err != nil {
		return err
	}
	defer pool.Close()
	pool.Set(min(r.first, r.most))

	dialing, done := context.WithTimeout(cmd.Context(), 30*time.Second)
	defer done()
	client, err := buildcontrol.Dial(dialing, r.addr, r.token)
	if err != nil {
		return fmt.Errorf("%w: is quarry jobs serve, or another server, at this address?", err)
	}
	defer client.Close()

	c := exec.Command(path, r.argv[1:]...)
	c.Args[0] = r.argv[0]
	c.Stdin, c.Stdout, c.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	form, err := r.form(path)
	if err != nil {
		return err
	}
	if form == jobserver.Descriptor {
		// To read and write, and blocking, as make has its own.
		fd, err := unix.Open(pool.Path(), unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("jobserver: %w", err)
		}
		f := os.NewFile(uintptr(fd), pool.Path())
		defer f.Close()
		c.ExtraFiles = []*os.File{f} // descriptor 3
	}
	c.Env = append(env, "MAKEFLAGS="+jobserver.Flags(form, pool.Path(), max(2, r.most)))
	if err := c.Start(); err != nil {
		return err
	}
	go r.follow(client, pool)
	return r.wait(cmd.Context(), c)
}

// environment is that of the command, but for what steers it.
func (r *jobsRun) environment() ([]string, error) {
	if flags := os.Getenv("MAKEFLAGS"); flags != "" {
		return nil, fmt.Errorf("MAKEFLAGS is %q, and jobs run says in it where the jobs are: unset it and give such flags to the command itself", flags)
	}
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		// A patched make would take the same number once more.
		return slices.Contains([]string{"MAKEFLAGS", "BUILDCONTROLADDR", "BUILDSOCKET", "BUILDTOKEN"}, name)
	}), nil
}

// form is how the command is told of the jobserver.
func (r *jobsRun) form(path string) (string, error) {
	name := "make" // whichever the command calls
	switch filepath.Base(path) {
	case "ninja", "samu":
		return jobserver.FIFO, nil
	case "make", "gmake":
		abs, err := filepath.Abs(path)
		if err != nil {
			return "", err
		}
		name = abs
	}
	form := guest.MakeForm(name, "/", os.Environ())
	if form == jobserver.None && name != "make" {
		return "", fmt.Errorf("%s knows no jobserver: GNU make does from 4.2", path)
	}
	if form == jobserver.None {
		form = jobserver.FIFO
	}
	return form, nil
}

// follow has the jobserver hold what the server says, until it says no more.
func (r *jobsRun) follow(client *buildcontrol.Client, pool *jobserver.Pool) {
	told := false
	for n := range client.Jobs() {
		told = true
		pool.Set(min(n, r.most)) // the job that needs no token cannot be taken away
		r.log.Debug("build control", "jobs", n, "run", pool.State().Want)
	}
	if err := client.Err(); err != nil {
		what := "build control has ended"
		if !told {
			what = "build control does not know the token, or has ended"
		}
		r.log.Warn(what+": the command goes on with the jobs that it has", "jobs", pool.State().Want, "err", err)
	}
}

// wait waits for the command, and has it end when this one is to.
func (r *jobsRun) wait(ctx context.Context, c *exec.Cmd) error {
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	var err error
	select {
	case err = <-ended:
	case <-ctx.Done():
		_ = c.Process.Signal(syscall.SIGTERM)
		err = <-ended
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if s, ok := exit.Sys().(syscall.WaitStatus); ok && s.Signaled() {
		return &exitError{128 + int(s.Signal())}
	}
	return &exitError{exit.ExitCode()}
}
