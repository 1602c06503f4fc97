package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/events"
	"github.com/Morphux/quarry/extract"
	"github.com/Morphux/quarry/graph"
	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/livelog"
	"github.com/Morphux/quarry/internal/podman"
	"github.com/Morphux/quarry/layers"
	"github.com/Morphux/quarry/metrics"
	"github.com/Morphux/quarry/pipeline"
	"github.com/Morphux/quarry/queue"
	"github.com/Morphux/quarry/repos"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/runner"
	"golang.org/x/sys/unix"
)

// openImages starts podman and opens the bases of a configuration.
func openImages(ctx context.Context, c *config.Config, log *slog.Logger) (*images.Store, *podman.Conn, error) {
	channels, err := imageChannels(c)
	if err != nil {
		return nil, nil, &control.Error{Code: control.ExitUsage, Err: err}
	}
	conn, err := podman.Start(ctx, podmanConfig(c, log))
	if err != nil {
		return nil, nil, err
	}
	self, err := os.Executable()
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	store, err := images.New(conn, images.Options{
		WorkDir: c.Work(), Guest: self, UIDBase: c.Podman.IDBase, Limits: limits(c), Channels: channels,
		Pool: images.PoolOptions{Max: c.Warm(), Idle: time.Duration(c.Pool.Idle), MinMemory: int64(c.Pool.MinMemory), MinDisk: int64(c.Pool.MinDisk)},
		Keep: images.KeepOptions{For: time.Duration(c.Shell.Keep), Max: c.Shell.Max},
		Log:  log,
	})
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	// While nobody builds, nobody has the cache open either.
	store.OnDiscard(func() {
		if unpacked := openLayers(c, log); unpacked != nil {
			unpacked.Clean()
			unpacked.Close()
		}
	})
	return store, conn, nil
}

// openLayers opens the cache of unpacked dependencies; nil when there is none.
func openLayers(c *config.Config, log *slog.Logger) *layers.Cache {
	if c.Cache.Layers == 0 {
		return nil
	}
	unpacked, err := layers.Open(layers.Options{Dir: filepath.Join(c.State, "cache", "layers"), Limit: int64(c.Cache.Layers), Log: log})
	if err != nil {
		log.Warn("dependencies are unpacked for every build", "error", err)
	}
	return unpacked
}

func podmanConfig(c *config.Config, log *slog.Logger) podman.Config {
	return podman.Config{State: c.State, URI: c.Podman.URI, Runtime: c.Podman.Runtime, ImageStores: c.Podman.ImageStores, Log: log}
}

func limits(c *config.Config) images.Limits {
	return images.Limits{
		Memory: int64(c.Limits.Memory), Disk: int64(c.Limits.Disk), Pids: c.Limits.Processes, NoFile: c.Limits.Files,
	}
}

func newPipeline(c *config.Config, store *images.Store, log *slog.Logger) (*pipeline.Pipeline, error) {
	artifacts, err := extract.OpenArtifacts(c.Artifacts())
	if err != nil {
		return nil, err
	}
	unpacked := openLayers(c, log)
	store.OnDiscard(func() { unpacked.Clean() })
	return &pipeline.Pipeline{
		Layers: unpacked,
		Images: store, Artifacts: artifacts,
		Libraries: &pipeline.Libraries{Dir: filepath.Join(c.State, "cache", "libraries")},
		Settings: pipeline.Settings{
			Name: c.Builder, Version: version, Binary: binarySum(), HostArch: config.HostArch(), Jobs: max(1, c.Slots()/c.Workers()), Command: c.Build.Command, Triplets: c.Build.Triplets,
			Limits: limits(c), Step: time.Duration(c.Limits.Step), Silence: time.Duration(c.Limits.Silence), Log: int64(c.Limits.Log), Monitor: time.Duration(c.Monitor.Every),
		},
	}, nil
}

// stages are what the queue works with: how this daemon finds releases, builds
// them and records what came of it.
type stages struct {
	cfg      *config.Config
	log      *slog.Logger
	conn     *podman.Conn
	images   *images.Store
	pipeline *pipeline.Pipeline
	repos    *repos.Repos
	results  *results.Repo
	index    *results.Index
	logs     *livelog.Store
	events   *events.Reporter
	metrics  *metrics.Metrics
	ssh      string                         // how people reach us, e.g. ssh://farm:2222
	width    func(pkg, arch string) float64 // jobs that its builds had a use for, see [queue.Queue.Width]
	// verified is closed when what lies on disk of bases and instances has been
	// looked at. No build begins before: what is damaged would be blamed on it.
	verified chan struct{}
	holds    holds
}

func (f *stages) channelArchs(channel string) []string {
	if ch := f.cfg.Channels[channel]; ch != nil {
		return ch.Archs
	}
	return nil
}

func (f *stages) releases(ctx context.Context, pkg string) ([]quarry.Release, []queue.Problem, error) {
	list, problems, err := f.repos.Releases(ctx, pkg, f.channelArchs)
	if err != nil {
		return nil, nil, err
	}
	for i := range list {
		graph.Assign(f.cfg.Ways(), &list[i])
	}
	f.events.Releases(list)
	out := make([]queue.Problem, len(problems))
	for i, p := range problems {
		out[i] = queue.Problem{Package: p.Package, Branch: p.Branch, Err: p.Err}
	}
	return list, out, nil
}

// records is the records of a channel, or of a group's view of it, as the queue looks at them.
type records struct{ *results.Snapshot }

func (f *stages) records(_ context.Context, view string) (queue.Records, error) {
	s, err := f.view(view)
	if err != nil {
		return nil, err
	}
	return records{s}, nil
}

func (r records) provider(pkg, arch string) ([]quarry.DepUsed, error) {
	versions, err := r.Versions(pkg, arch)
	if err != nil {
		return nil, err
	}
	var out []quarry.DepUsed
	for _, v := range versions {
		a, ok, err := r.Available(pkg, v, arch)
		if err != nil {
			return nil, err
		}
		if ok && a.Artifact != "" {
			out = append(out, quarry.DepUsed{Package: a.Package, Version: a.Version, Artifact: a.Artifact, ABI: a.ABI})
		}
	}
	return out, nil
}

func (r records) Resolve(dep, arch string) (quarry.DepUsed, bool, error) {
	return r.catalog().Resolve(dep, machine(arch))
}

// machine is the arch of the workspace that an arch is built in, and so of what
// is installed there: what is noarch is built on this machine's own.
func machine(arch string) string {
	if arch == quarry.Noarch {
		return config.HostArch()
	}
	return arch
}

// dependencies gives all that a build's dependencies bring with them, with
// their files: first the tools of a cross build, which are of its machine's arch.
func (r records) dependencies(b quarry.Build, direct []quarry.DepUsed) ([]pipeline.Dependency, error) {
	var own, tools []quarry.DepUsed
	for _, d := range direct {
		if d.Arch == "" {
			own = append(own, d)
		} else {
			d.Arch = ""
			tools = append(tools, d)
		}
	}
	list, err := r.closure(b.Arch, own)
	if err != nil || len(tools) == 0 {
		return list, err
	}
	system, _ := b.CrossNeeds(b.Arch)
	more, err := r.closure(system, tools)
	for i := range more {
		more[i].Arch = system
	}
	return append(more, list...), err
}

func (r records) closure(arch string, direct []quarry.DepUsed) ([]pipeline.Dependency, error) {
	arch = machine(arch)
	all, err := r.catalog().Closure(direct, arch, func(d quarry.DepUsed) ([]string, error) {
		rec, err := r.record(d, arch)
		if err != nil {
			return nil, err
		}
		if len(rec.Without) > 0 { // what it was built without is not installed with it
			return slices.DeleteFunc(slices.Clone(rec.Recipe.Needed), func(need string) bool { return slices.Contains(rec.Without, need) }), nil
		}
		return rec.Recipe.Needed, nil
	})
	if err != nil {
		return nil, err
	}
	var out []pipeline.Dependency
	for _, d := range all {
		rec, err := r.record(d, arch)
		if err != nil {
			return nil, err
		}
		files, err := r.Files(d.Package, d.Version, rec.Arch)
		if err != nil {
			return nil, err
		}
		d.Direct = slices.ContainsFunc(direct, func(n quarry.DepUsed) bool { return n.Package == d.Package })
		out = append(out, pipeline.Dependency{DepUsed: d, Files: files, Size: rec.InstalledSize})
	}
	return out, nil
}

func (r records) record(d quarry.DepUsed, arch string) (*results.Record, error) {
	a, ok, err := r.Available(d.Package, d.Version, arch)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("dependency %s %s has no record for %s any more: build it again", d.Package, d.Version, arch)
	}
	return r.Get(d.Package, d.Version, a.Arch)
}

// run is one attempt at a build. The log of all attempts is one log.
func (f *stages) run(ctx context.Context, b quarry.Build, direct []quarry.DepUsed, onStep func(string)) (out *quarry.Outcome, err error) {
	select {
	case <-f.verified:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err := f.probe(ctx); err != nil {
		return nil, err
	}
	log, err := f.logs.Create(b.Number, b.Attempt)
	if err != nil {
		return nil, err
	}
	defer func() { // when the log is whole
		if out != nil {
			out.LogSum = f.logSum(b)
		}
	}()
	defer func() {
		if err != nil {
			why := err
			if ctx.Err() != nil {
				why = context.Cause(ctx)
			}
			fmt.Fprintf(log, "==> quarry: attempt %d ended without a result: %v\n", b.Attempt, why)
		}
		if cerr := log.Close(); cerr != nil {
			f.log.With(b.LogAttrs()...).Warn("a log could not be kept whole", "err", cerr)
		}
	}()
	before := f.logLines(b.Number)
	defer func() {
		if out != nil && out.Failure != nil {
			f.explain(b, before, out.Failure)
		}
	}()
	recipe, err := f.repos.Recipe(ctx, b.Release)
	if err != nil {
		return nil, err
	}
	source, err := f.repos.Source(b.Release)
	if err != nil {
		return nil, err
	}
	if c, ok := source.(io.Closer); ok {
		defer c.Close()
	}
	snap, err := f.view(b.View())
	if err != nil {
		return nil, err
	}
	how := ""
	if b.Environment().Cross != "" {
		how = "--cross "
	}
	if b.Channel != f.cfg.DefaultChannel {
		how += "--channel " + b.Channel + " "
	}
	// The branch may have moved on by when somebody looks.
	reproduce := fmt.Sprintf("git clone -b %s %s/%s.git && git -C %s checkout -q %.12s && quarry build --arch %s %s%s",
		quarry.Branch(b.Package, b.Version), f.ssh, b.Package, b.Package, b.Commit, b.Arch, how, b.Package)
	began := time.Now()
	deps, err := records{snap}.dependencies(b, direct)
	if conflict := new(graph.ConflictError); errors.As(err, &conflict) {
		fmt.Fprintf(log, "==> quarry: %v\n", err)
		return &quarry.Outcome{
			Build: b, Status: quarry.Failed, Info: recipe.Info, Started: began, Ended: time.Now(), Deps: direct,
			Failure: &quarry.Failure{Step: quarry.StepPrepare, Cause: quarry.CauseRecipe, Message: err.Error(), Reproduce: reproduce},
		}, nil
	}
	if err != nil {
		return nil, err
	}
	if len(b.Without) > 0 {
		fmt.Fprintf(log, "==> quarry: built without %s, as that needs %s in turn; it is built again when that is there\n", strings.Join(b.Without, ", "), b.Package)
	}
	out, err = f.pipeline.Run(ctx, pipeline.Input{
		Build: b, Recipe: recipe, Source: source, Deps: deps, Log: log, OnStep: onStep, Reproduce: reproduce, Weight: weight(b), Width: f.width(b.Package, b.Arch),
	})
	if err != nil {
		return nil, f.classify(err)
	}
	if err := recordable(out); err != nil && out.Failure == nil {
		fmt.Fprintf(log, "==> quarry: %v\n", err)
		out.Status, out.Facts, out.Artifact = quarry.Failed, nil, nil
		out.Failure = &quarry.Failure{Step: quarry.StepExtract, Cause: quarry.CauseOutput, Message: err.Error(), Reproduce: reproduce}
	}
	// What no record can hold even so must end here: recording is tried for ever.
	if err := recordable(out); err != nil {
		return nil, err
	}
	if out.Failure == nil { // a failure has been said by whoever found it
		fmt.Fprintf(log, "==> quarry: succeeded: %d files, artifact %s\n", len(out.Facts.Files), out.Artifact.SHA256)
	}
	return out, nil
}

// Parts of the machine's slots, where several builds want them; everybody else's
// is 1.
const (
	bulkWeight = 0.25 // work in bulk
	idleWeight = 0.1  // what is done when there is nothing else to build
)

// weight is a build's part of the machine's slots.
func weight(b quarry.Build) float64 {
	if queue.Bulk(b) {
		return bulkWeight
	}
	return 1
}

// What a record may take, in bytes: less than the results repository takes, so
// that nothing that passes here is refused there.
const (
	maxRecord = 8 << 20
	maxList   = 200 << 20
)

// recordable reports why an outcome cannot be recorded: what a build installed
// may name millions of libraries.
func recordable(o *quarry.Outcome) error {
	rec, err := results.NewRecord(o, 0)
	if err != nil {
		return err
	}
	text, err := rec.Marshal()
	if err != nil {
		return err
	}
	if len(text) > maxRecord {
		return fmt.Errorf("the record of what it installed would have %d bytes and %d is the most: split the package, or ship fewer libraries", len(text), maxRecord)
	}
	if o.Facts == nil {
		return nil
	}
	// A list is several times what its text is: most need no closer look.
	size := 0
	for _, file := range o.Facts.Files {
		size += 1000 + 6*(len(file.Path)+len(file.Target)+len(file.Interpreter))
		if e := file.ELF; e != nil {
			for _, list := range [][]string{e.Needed, e.RPath, e.RunPath, {e.Soname, e.Interpreter}} {
				for _, s := range list {
					size += 6 * (len(s) + 10)
				}
			}
		}
	}
	if size <= maxList {
		return nil
	}
	list, err := results.MarshalFiles(o.Build.Package, o.Build.Version, o.Build.Arch, o.Facts.Files)
	if err != nil {
		return err
	}
	if len(list) > maxList {
		return fmt.Errorf("the list of the files that it installed would have %d bytes and %d is the most: split the package", len(list), maxList)
	}
	return nil
}

// classify says how far an error of the farm reaches.
func (f *stages) classify(err error) error {
	switch {
	case errors.Is(err, podman.ErrGone):
		return &queue.FarmError{Err: err}
	case errors.As(err, new(*images.NoBaseError)), errors.As(err, new(*images.NoInstanceError)), errors.As(err, new(*images.NoEmulationError)),
		errors.As(err, new(*runner.ToolchainError)):
		return &queue.EnvironmentError{Err: err}
	}
	return err
}

// probe asks whether builds can run: podman answers and the disk has room.
func (f *stages) probe(ctx context.Context) error {
	if err := f.room(); err != nil {
		return &queue.FarmError{Err: err}
	}
	call, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	if _, err := f.conn.Context(call); err != nil {
		return &queue.FarmError{Err: err}
	}
	return nil
}

// room reports an error when the state folder is nearly full: a build that
// runs out of disk half-way would cost more than waiting.
func (f *stages) room() error {
	var s unix.Statfs_t
	if err := unix.Statfs(f.cfg.State, &s); err != nil {
		return fmt.Errorf("state folder %s cannot be looked at: %w", f.cfg.State, err)
	}
	free := int64(s.Bavail) * s.Bsize
	for free < int64(f.cfg.Queue.MinFree) && f.images.Relieve("a build needs the room") {
		end, stop := context.WithTimeout(context.Background(), time.Minute)
		err := f.images.Drain(end)
		stop()
		if err != nil || unix.Statfs(f.cfg.State, &s) != nil {
			break
		}
		free = int64(s.Bavail) * s.Bsize
	}
	if free < int64(f.cfg.Queue.MinFree) {
		return fmt.Errorf("state folder %s has %d MiB left, less than queue.min_free: make room", f.cfg.State, free>>20)
	}
	return nil
}

func (f *stages) probeEnvironment(ctx context.Context, env quarry.Environment) error {
	arch := machine(env.System())
	if _, err := images.Emulation(arch); err != nil {
		return err
	}
	in, err := f.images.Instance(ctx, env.Channel, arch)
	if err != nil {
		return err
	}
	return f.pipeline.Lacks(env, in.Digest)
}

// maintain looks after what builds stand on, until ctx ends.
func (f *stages) maintain(ctx context.Context) error {
	if _, err := f.images.VerifyAtStart(ctx); err != nil && ctx.Err() == nil {
		// What is damaged has been taken out of use, so builds may begin: those
		// that have nothing to stand on wait, and say so.
		f.log.Error("not all bases and instances can be vouched for: load what is damaged again, or run quarry sanitize", "err", err)
	}
	close(f.verified)
	return f.images.Maintain(ctx)
}

// expect tells the pool of workspaces how many builds wait in each environment,
// until ctx ends.
func (f *stages) expect(ctx context.Context, q *queue.Queue) {
	told := map[quarry.Environment]bool{}
	for range q.Subscribe(ctx) {
		wait := map[quarry.Environment]int{}
		for _, e := range q.Status().Envs {
			wait[quarry.Environment{Channel: e.Channel, Arch: machine(e.System())}] += e.Queued
		}
		for e := range told {
			if _, ok := wait[e]; !ok {
				f.images.Expect(e.Channel, e.Arch, 0)
				delete(told, e)
			}
		}
		for e, n := range wait {
			f.images.Expect(e.Channel, e.Arch, n)
			told[e] = true
		}
	}
}

func (f *stages) record(ctx context.Context, o *quarry.Outcome) (commit string, err error) {
	defer func(began time.Time) {
		if err == nil {
			f.metrics.Recorded(o, time.Since(began))
		}
	}(time.Now())
	if o.Build.Stage != "" {
		commit, err := f.results.Stage(ctx, o)
		if errors.Is(err, results.ErrObsolete) {
			return "", fmt.Errorf("%w: %w", queue.ErrObsolete, err)
		}
		return commit, err
	}
	commit, err = f.results.Record(ctx, o)
	if errors.Is(err, results.ErrObsolete) {
		return "", fmt.Errorf("%w: %w", queue.ErrObsolete, err)
	}
	if err == nil && o.Artifact != nil && o.Failure == nil {
		// For people; what reads records finds artifacts by their hashes.
		if err := publish(f.cfg, f.pipeline.Artifacts, o.Build.Target(), o.Artifact.SHA256); err != nil {
			f.log.With(o.Build.LogAttrs()...).Warn("a finished artifact does not appear in the output folder", "err", err)
		}
	}
	return commit, err
}

// lastBuild is the highest number that a record or a log knows, so that
// numbering goes on when the queue's folder was wiped.
func (f *stages) lastBuild(context.Context) (int64, error) {
	rec, err := f.results.LastBuild()
	if err != nil {
		return 0, err
	}
	log, err := f.logs.Last()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	return max(rec, log), nil
}

// sshBase is the address that people reach an SSH listener at.
func sshBase(listen string) string {
	host, port, _ := strings.Cut(listen, ":")
	if i := strings.LastIndexByte(listen, ':'); i >= 0 {
		host, port = listen[:i], listen[i+1:]
	}
	if host == "" || host == "0.0.0.0" || host == "[::]" {
		if h, err := os.Hostname(); err == nil {
			host = h
		}
	}
	if port == "22" {
		return "ssh://" + host
	}
	return "ssh://" + host + ":" + port
}
