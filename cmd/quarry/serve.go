package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/hooks"
	"github.com/Morphux/quarry/internal/livelog"
	"github.com/Morphux/quarry/keys"
	"github.com/Morphux/quarry/metrics"
	"github.com/Morphux/quarry/queue"
	"github.com/Morphux/quarry/repos"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/sshd"
	"github.com/Morphux/quarry/tokens"
	"github.com/Morphux/quarry/usage"
	"github.com/Morphux/quarry/web"
	"github.com/Morphux/quarry/web/db"
	"github.com/spf13/afero"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

func newServeCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "serve",
		Short: "Run the farm",
		Long: `Runs the daemon in the foreground until SIGTERM or SIGINT: the SSH server that
takes pushes, the queue and its builders, and the control socket. Running builds
are put back when it stops and run again when it starts.`,
		Example: `  quarry serve
  quarry serve --config /etc/quarry.toml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.config()
			if err != nil {
				return err
			}
			return serve(cmd.Context(), c, slog.New(c.Log.Handler(cmd.ErrOrStderr(), a.level())))
		},
	}
}

// serve runs the farm until ctx ends.
func serve(ctx context.Context, c *config.Config, log *slog.Logger) (err error) {
	unlock, err := lockState(c)
	if err != nil {
		return err
	}
	defer unlock()
	began := time.Now()
	if err := hooks.Share(c.Spool(), c.DefaultChannel, hookChannels(c)); err != nil {
		return err
	}

	// What only reads and writes files comes first: it fails at once or not at all.
	socket, err := control.Listen(c.Socket(), c.Git.Group)
	if err != nil {
		return err
	}
	defer socket.Close()
	people, err := keys.Open(c.Keys(), log)
	if err != nil {
		return err
	}
	bearers, err := tokens.Open(c.Tokens(), people.User)
	if err != nil {
		return err
	}
	logs, err := livelog.Open(afero.NewBasePathFs(afero.NewOsFs(), c.LogDir()),
		livelog.Options{MaxAge: time.Duration(c.Logs.Keep), MaxBytes: int64(c.Logs.Max)})
	if err != nil {
		return err
	}
	used := usage.Open(afero.NewBasePathFs(afero.NewOsFs(), c.LogDir()))
	signer, err := openSigner(c, log)
	if err != nil {
		return err
	}
	res, err := results.Open(c.Results(), results.Options{Sign: commitSigner(signer), Prove: prover(c, signer), SBU: time.Duration(c.Build.Standard).Seconds(), Head: c.DefaultChannel, Logger: log})
	if err != nil {
		return err
	}
	defer res.Close()
	packages, err := repos.Open(c.Repos(), c.Git.Extra)
	if err != nil {
		return err
	}

	packages.DefaultChannel = c.DefaultChannel
	happened, reporter, err := openEvents(c, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, reporter.Stopped()) }()

	store, conn, err := openImages(ctx, c, log)
	if err != nil {
		return err
	}
	store.OnTrouble(reporter.Trouble)
	defer func() { err = errors.Join(err, conn.Close()) }()
	if err := store.Sweep(ctx); err != nil {
		return err
	}
	pipe, err := newPipeline(c, store, log)
	if err != nil {
		return err
	}
	pipe.Usage = used
	share, err := newSlots(c, store, true, log)
	if err != nil {
		return err
	}
	pipe.Jobs = share.Governor
	if err := share.listen(ctx); err != nil {
		return err
	}
	defer share.close()
	open := newShells(c, store, sshBase(c.SSH.Listen), log, reporter)
	pipe.Keep = open.keep
	st := &stages{cfg: c, log: log, conn: conn, images: store, pipeline: pipe, repos: packages, results: res, index: res.Index(), logs: logs, events: reporter, ssh: sshBase(c.SSH.Listen), verified: make(chan struct{})}
	if err := os.MkdirAll(c.Journal(), 0o755); err != nil {
		return err
	}
	var q *queue.Queue
	m := newMetrics(c, func() *queue.Queue { return q }, store, share, happened)
	st.metrics = m
	q, err = queue.New(queue.Options{
		Fs:       afero.NewBasePathFs(afero.NewOsFs(), c.Journal()),
		Releases: st.releases, Records: st.records, Run: st.run, Record: st.record, LastBuild: st.lastBuild,
		Probe: st.probe, ProbeEnvironment: st.probeEnvironment, Graph: st.graph, Past: st.past, Campaigns: st, Groups: groups{st}, Compare: st.compare,
		Observe: func(b quarry.Build) { reporter.Build(b); m.Build(b) }, ObservePauses: func(list []queue.PauseStatus) { reporter.Pauses(pausesOf(list)) },
		Memory: c.BuildMemory(), BuildMemory: int64(c.Limits.Memory),
		Room:    func() int { return int(share.room.Load()) },
		Slots:   slotsOf(share.Status),
		Workers: c.Workers(), ReplanEvery: time.Duration(c.Queue.Replan), Log: log,
	})
	if err != nil {
		return err
	}
	st.width = q.Width
	st.makeUp(ctx, q)
	farm := &control.Farm{Queue: q, Logs: logs, Events: happened, Usage: used, Shells: open, Images: store, Channels: farmChannels(c), Version: version, Started: began, Tokens: bearers,
		Default: c.DefaultChannel, Workers: c.Ways(), Confirm: control.Confirm{Builds: c.Push.Confirm, Time: time.Duration(c.Push.ConfirmTime)}}
	farm.Jobs = share
	farm.Why = why{st}
	farm.Past = st.forgotten(q)
	teller, err := newNotify(c, farm, happened, res, people, log)
	if err != nil {
		return err
	}
	if teller != nil {
		farm.Notify = teller
	}
	farm.Mover = mover{st, q}
	rebuilds, err := newVerifier(st, q, signer, people)
	if err != nil {
		return err
	}
	farm.Verifier = rebuilds
	unused := &pruner{stages: st, queue: q}
	farm.Pruner = unused
	farm.Signers = func() ([]byte, error) { return signers(c) }
	verbs := control.Verbs(farm)
	door, err := newDoor(c, people, packages, verbs, log)
	if err != nil {
		return err
	}
	text, err := newText(c, bearers, verbs, log)
	if err != nil {
		return err
	}
	defer text.close()
	doorMetrics(m, door, text.server, teller)
	listener, err := net.Listen("tcp", c.SSH.Listen)
	if err != nil {
		return fmt.Errorf("ssh.listen %s cannot be listened on: %w", c.SSH.Listen, err)
	}

	farm.Keys, farm.Builder = people, c.Builder
	if farm.Bundles, err = newBundles(c, door); err != nil {
		return err
	}
	calls, err := newAPI(c, farm, verbs, res, st.index, pipe.Artifacts, log)
	if err != nil {
		return err
	}
	look := newPages(c, st, farm, log)
	files, err := newSite(c, res, pipe.Artifacts.Open, signer, log)
	if err != nil {
		return err
	}
	defer files.Close()
	site, siteListener, err := newWeb(c, web.Options{API: calls, Pages: look, DB: db.New(files, log), Git: newGit(c, packages, door, m, log), ErrorPage: look.ErrorPage, Identify: bearers.Lookup, Metrics: m.Handler(), Health: metrics.Health(st.health(q)), Observe: m.Request}, log)
	if err != nil {
		return err
	}

	log.Info("quarry serves", "version", version, "ssh", listener.Addr(), "state", c.State, "workers", c.Workers())
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return q.Run(ctx) })
	group.Go(func() error { return share.run(ctx, st, q) })
	group.Go(func() error { return st.maintain(ctx) })
	group.Go(func() error { st.expect(ctx, q); return nil })
	group.Go(func() error { return st.writeNotes(ctx, happened) })
	group.Go(func() error { return serveDoor(ctx, door, patient{listener, log}) })
	group.Go(func() error { return control.Serve(ctx, socket, verbs, log) })
	if site != nil {
		log.Info("web serves", "url", c.Web.Base(), "listen", siteListener.Addr())
		group.Go(func() error { return site.Serve(ctx, patient{siteListener, log}) })
		group.Go(func() error { warm(ctx, files, log); return nil })
	}
	group.Go(func() error { return text.serve(ctx) })
	group.Go(func() error { return people.Watch(ctx) })
	if teller != nil {
		group.Go(func() error { return teller.Run(ctx) })
	}
	group.Go(func() error {
		return hooks.Watch(ctx, c.Spool(), log, func(p hooks.Push) error {
			_, err := q.Pushed(ctx, p.Package)
			if problem := (queue.Problem{}); errors.As(err, &problem) {
				return nil // status shows it
			}
			return err
		})
	})
	group.Go(func() error { prune(ctx, logs, used, st.spoken(ctx), log); return nil })
	if c.Retain.Daily {
		group.Go(func() error { unused.daily(ctx); return nil })
	}
	group.Go(func() error { tend(ctx, res, packages, log); return nil })
	err = group.Wait()
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		err = nil
	}
	// Nothing new is begun now; what is left of workspaces goes with podman.
	end, stop := context.WithTimeout(context.Background(), 30*time.Second)
	defer stop()
	err = errors.Join(err, store.Close(end), pipe.Layers.Close())
	log.Info("quarry has stopped")
	return err
}

// newDoor makes the SSH server.
func newDoor(c *config.Config, people *keys.Store, packages *repos.Repos, verbs control.Table, log *slog.Logger) (*sshd.Server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return sshd.New(sshd.Options{
		Signed:  signedPushes(c, people),
		HostKey: c.HostKey(), Keys: people, Repos: fetchable{packages, c.Results()}, Channels: hookChannels(c),
		Verbs: func(ctx context.Context, id quarry.Identity, argv []string, in io.Reader, out, errOut io.Writer, term sshd.Terminal) int {
			return verbs.Run(ctx, id, argv, in, out, errOut, control.Terminal{TTY: term.TTY, Width: term.Width, Height: term.Height, Color: term.TTY, Live: term.TTY, Name: term.Name, Resize: term.Resize})
		},
		Raw:   verbs.Raw,
		Hooks: hooks.Options{Binary: self, Settings: hooks.Settings{Socket: c.Socket(), Spool: c.Spool(), Channel: c.DefaultChannel}},
		Home:  filepath.Join(c.State, "home"), MaxPush: int64(c.Git.MaxPush), Log: log,
	})
}

// serveDoor takes connections until ctx ends, then lets pushes under way end.
func serveDoor(ctx context.Context, door *sshd.Server, l net.Listener) error {
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		end, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		stopped <- door.Shutdown(end)
	})
	err := door.Serve(l)
	if !stop() {
		err = errors.Join(err, <-stopped)
	}
	return err
}

// databaseName is what the results repository is called over SSH, beside the
// packages; no package can have the name.
const databaseName = "results"

// fetchable is the package repositories and, only to be read, the results.
type fetchable struct {
	*repos.Repos
	results string
}

func (f fetchable) Path(name string) (string, error) {
	if name == databaseName {
		return f.results, nil
	}
	return f.Repos.Path(name)
}

func (f fetchable) Ensure(name string) (string, error) {
	if name == databaseName {
		return "", fmt.Errorf("results.git is the farm's database and can be fetched: %w", sshd.ErrReadOnly)
	}
	return f.Repos.Ensure(name)
}

// lockState keeps a second daemon out of the state folder. The lock goes with
// the process, however it ends.
func lockState(c *config.Config) (unlock func(), err error) {
	for _, dir := range []string{c.State, c.Spool()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("state folder cannot be made: %w", err)
		}
	}
	if err := shareSpool(c); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(c.State, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("state folder %s cannot be locked: %w", c.State, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("state folder %s is in use: another quarry serves it, stop that first", c.State)
	}
	return func() { f.Close() }, nil
}

// shareSpool lets the group of another git server's hooks leave pushes.
func shareSpool(c *config.Config) error {
	if c.Git.Group == "" {
		return nil
	}
	g, err := user.LookupGroup(c.Git.Group)
	if err != nil {
		return fmt.Errorf("git.group: %w", err)
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return fmt.Errorf("git.group: %w", err)
	}
	return errors.Join(os.Chown(c.Spool(), -1, gid), os.Chmod(c.Spool(), 0o2770))
}

// prune removes old logs now and then, and what is kept with them. still tells which
// builds have a record that stands.
func prune(ctx context.Context, logs *livelog.Store, used *usage.Store, still func([]int64) (map[int64]bool, error), log *slog.Logger) {
	for {
		if gone, err := logs.Prune(ctx, still); err != nil && ctx.Err() == nil {
			log.Warn("old logs cannot be removed", "err", err)
		} else if len(gone) > 0 {
			log.Info("old logs removed", "builds", len(gone))
		}
		if _, err := used.Prune(ctx, logs.Has); err != nil && ctx.Err() == nil {
			log.Warn("samples of old builds cannot be removed", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Hour):
		}
	}
}
