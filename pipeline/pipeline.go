// Package pipeline makes one attempt at one build: a clean workspace, the
// recipe's steps in it, and what they staged read into facts and an artifact.
// The daemon and `quarry build` both go through it.
package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/extract"
	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/jobs"
	"github.com/Morphux/quarry/layers"
	"github.com/Morphux/quarry/recipe"
	"github.com/Morphux/quarry/runner"
	"github.com/Morphux/quarry/usage"
	"golang.org/x/sys/unix"
)

// Settings are the farm's own: what a recipe may ask less of, never more.
type Settings struct {
	Name     string // of this builder, in records
	Version  string // of Quarry
	Binary   string // SHA-256 of its binary, hex; for records
	HostArch string // this machine's arch
	Jobs     int    // make -j, where nobody shares slots out
	Command  string // builder in the image to call instead of the built-in steps
	Limits   images.Limits
	Step     time.Duration // wall time of one step
	Silence  time.Duration // without output
	Log      int64         // bytes of output
	Monitor  time.Duration // between two samples of what a build uses; 0: usage.DefaultEvery
	// Triplets name cross toolchains, by arch, where they are not runner.Triplet's.
	Triplets map[string]string
}

// Dependency is a package to install into the workspace before the build.
type Dependency struct {
	quarry.DepUsed
	Files []quarry.File // of its record: what libraries it has
	Size  int64         // installed, bytes
}

// Input is what one attempt is made from.
type Input struct {
	Build     quarry.Build
	Recipe    *recipe.Recipe
	Source    fs.FS // the exact commit, without .git
	Deps      []Dependency
	Reproduce string    // a command that shows a failure again
	Log       io.Writer // gets the output of the steps; errors are its own business
	OnStep    func(step string)
	// Name is the workspace's, where the build's number is another's; "": that number.
	Name string
	// Into gets the artifact; nil: the store where the dependencies are.
	Into *extract.Artifacts
	// Weight is its part of the machine's slots where several want them; 0: 1. Width
	// is how many it could use last time, on average; 0: nobody knows.
	Weight, Width float64
}

// Pipeline is where builds are made. It may be used by several goroutines.
type Pipeline struct {
	Images    *images.Store
	Artifacts *extract.Artifacts
	Settings  Settings
	// Libraries caches the library indexes of bases.
	Libraries *Libraries
	// Layers keeps dependencies unpacked; nil: they are unpacked for each build.
	Layers *layers.Cache
	// Usage keeps what builds use while they run; nil: only totals are kept.
	Usage *usage.Store
	// Jobs shares the machine's slots among builds; nil: each has Settings.Jobs.
	Jobs *jobs.Governor
	// Keep is offered the workspace of a failed build, and takes it over when it
	// says so; nil: all are closed.
	Keep func(ws *images.Workspace, scene *runner.Scene, o *quarry.Outcome) bool

	toolchains toolchains
}

// Run makes one attempt. A failed build is an outcome; an error is the farm's
// fault, or ctx's end.
func (p *Pipeline) Run(ctx context.Context, in Input) (*quarry.Outcome, error) {
	if in.OnStep == nil {
		in.OnStep = func(string) {}
	}
	tail := &tailWriter{}
	log := io.MultiWriter(tail, in.Log)
	env := in.Build.Environment()
	out := &quarry.Outcome{Build: in.Build, Info: in.Recipe.InfoFor(in.Build.Arch, env.Cross != ""), Started: time.Now()}
	out.Info.Recipe = in.Recipe.Digest
	out.Warnings = append(out.Warnings, in.Recipe.Warnings...)
	for _, d := range in.Deps {
		out.Deps = append(out.Deps, d.DepUsed)
	}

	slots, err := p.begin(ctx, &in, log)
	if err != nil {
		return nil, err
	}
	defer slots.end() // when the workspace is closed, so that nothing of it runs
	out.Started = time.Now()
	in.OnStep(quarry.StepPrepare)
	lim := p.limits(in.Recipe)
	ws, err := p.Images.Workspace(ctx, images.Spec{
		Name: cmp.Or(in.Name, fmt.Sprint(in.Build.Number)), Arch: p.arch(env.System()), Channel: in.Build.Channel,
		Limits: lim,
		// No network, whatever the recipe asks for: a build that could fetch
		// could not be reproduced.
		Network: false,
		About:   in.Build.LogAttrs(),
	})
	if err != nil {
		return nil, err
	}
	kept := false
	defer func() {
		if kept {
			return
		}
		// The build may have ended because ctx did; cleaning up must not.
		clean, stop := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer stop()
		if cerr := ws.Close(clean); cerr != nil && err == nil {
			fmt.Fprintf(log, "==> quarry: workspace is not gone yet: %v\n", cerr)
		}
	}()
	if p.Usage != nil {
		rec := p.Usage.Begin(usage.Build{Number: in.Build.Number, Attempt: in.Build.Attempt, Memory: ws.Limits.Memory, CPUs: ws.Limits.CPUs, Slots: slots.look()},
			quarry.StepPrepare, p.Settings.Monitor, ws.Sample)
		defer func() {
			rec.End()
			if rerr := rec.Err(); rerr != nil {
				fmt.Fprintf(log, "==> quarry: warning: %v\n", rerr)
			}
		}()
		tell := in.OnStep
		in.OnStep = func(step string) { rec.Step(step); tell(step) }
	}
	out.Host = p.host(ws)
	out.Host.Cross = env.Cross
	how := ws.Emulation
	if env.Cross != "" {
		how += ", cross built on " + env.Cross
	}
	fmt.Fprintf(log, "==> quarry: build %d, attempt %d: %s at %.12s in instance %.19s (%s)\n", in.Build.Number,
		in.Build.Attempt, in.Build.Target(), in.Build.Commit, ws.Instance.Digest, how)
	job := p.job(in, log)
	slots.give(&job)
	out.Host.Jobs = job.Jobs
	triplet := ""
	if job.Cross != nil {
		triplet = job.Cross.Triplet
	}
	if in.Build.Why != "" {
		fmt.Fprintf(log, "==> quarry: %s\n", in.Build.Why)
	}
	base, err := p.Libraries.of(ws, triplet)
	if err != nil {
		return nil, err
	}

	res, err := runner.Run(ctx, ws, job)
	p.toolchain(env, err)
	if err != nil {
		return nil, err
	}
	out.Steps, out.Usage = res.Steps, res.Usage
	out.Warnings = append(out.Warnings, res.Warnings...)
	out.Failure = res.Failure
	if out.Failure == nil {
		in.OnStep(quarry.StepExtract)
		begun := time.Now()
		out.Facts, out.Artifact, err = extract.Tree(ctx, res.Staged, extract.Options{
			UIDBase: ws.UID, GIDBase: ws.GID, Store: cmp.Or(in.Into, p.Artifacts), SourceTime: in.Build.Time,
			Base: base, Deps: depIndexes(in.Deps), BuildPaths: []string{"/quarry"}, Cross: crossOf(env),
		})
		var refused *extract.RefusedError
		switch {
		case errors.As(err, &refused):
			out.Failure = &quarry.Failure{Step: quarry.StepExtract, Cause: quarry.CauseOutput,
				Message: refused.Error(), Paths: refused.Paths, Reproduce: in.Reproduce}
			fmt.Fprintf(log, "==> quarry: %s\n", out.Failure.Message)
			err = nil
		case err != nil:
			return nil, err
		default:
			if env.Cross == "" { // else no system that it is for has been there
				out.Facts.SizeBefore = ws.Instance.Size
				for _, d := range in.Deps {
					out.Facts.SizeBefore += d.Size
				}
			}
			for _, w := range out.Facts.Warnings {
				fmt.Fprintf(log, "==> quarry: warning: %s\n", w)
			}
			out.Steps = append(out.Steps, quarry.Step{Name: quarry.StepExtract, Wall: time.Since(begun)})
		}
	}
	out.Ended = time.Now()
	slots.fill(out)
	out.Status = quarry.Succeeded
	if out.Failure != nil {
		out.Status = quarry.Failed
		if out.Failure.Reproduce == "" {
			out.Failure.Reproduce = in.Reproduce
		}
		out.LogLines = tail.lines()
		kept = p.Keep != nil && res.Scene != nil && p.Keep(ws, res.Scene, out)
	}
	return out, nil
}

func (p *Pipeline) job(in Input, log io.Writer) runner.Job {
	job := runner.Job{
		Build: in.Build, Recipe: in.Recipe, Source: in.Source, Reproduce: in.Reproduce, Log: log, OnStep: in.OnStep,
		Layers:  p.Layers,
		Command: p.Settings.Command, Jobs: lower(p.Settings.Jobs, in.Recipe.Ext.Jobs),
		Limits: runner.Limits{Step: p.Settings.Step, Silence: p.Settings.Silence, Log: p.Settings.Log},
	}
	if env := in.Build.Environment(); env.Cross != "" {
		how, err := images.Emulation(env.Arch)
		job.Cross = &runner.Cross{Machine: env.Cross, Triplet: p.triplet(env.Arch), Build: p.triplet(env.Cross),
			Runs: err == nil && how == images.Emulated}
	}
	for _, d := range in.Deps {
		job.Deps = append(job.Deps, runner.Dep{DepUsed: d.DepUsed, Path: p.Artifacts.Path(d.Artifact)})
	}
	return job
}

func depIndexes(deps []Dependency) []extract.Dependency {
	var out []extract.Dependency
	for _, d := range deps {
		if d.Arch != "" {
			continue // it runs, and nothing is linked with it
		}
		out = append(out, extract.Dependency{Package: d.Package, Libraries: extract.IndexFiles(d.Files)})
	}
	return out
}

// arch is the architecture of the workspace: what noarch packages are built on
// is this machine's own.
func (p *Pipeline) arch(arch string) string {
	if arch == quarry.Noarch {
		return p.Settings.HostArch
	}
	return arch
}

func lower[T int | int64 | time.Duration](farm, asked T) T {
	if asked > 0 && (asked < farm || farm == 0) {
		return asked
	}
	return farm
}

func (p *Pipeline) limits(r *recipe.Recipe) images.Limits {
	l := p.Settings.Limits
	l.Memory = lower(l.Memory, r.Ext.Memory)
	l.Disk = lower(l.Disk, r.Ext.Disk)
	l.Pids = lower(l.Pids, int64(r.Ext.Processes))
	return l
}

func (p *Pipeline) host(ws *images.Workspace) quarry.HostInfo {
	return quarry.HostInfo{
		Builder: p.Settings.Name, Base: ws.Base.Digest, Instance: ws.Instance.Digest, Emulation: ws.Emulation, Kernel: kernel(),
		Runtime: ws.Runtime, CPUs: runtime.NumCPU(), Quarry: p.Settings.Version,
		Memory: max(0, ws.Limits.Memory), Disk: max(0, ws.Limits.Disk), Processes: max(0, ws.Limits.Pids),
		Step: int64(p.Settings.Step.Seconds()), Silence: int64(p.Settings.Silence.Seconds()),
		Log: p.Settings.Log, Command: p.Settings.Command, Binary: p.Settings.Binary,
	}
}

func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// Folder reads a working tree, as `quarry build DIR` does: without .git, never
// out of the folder.
func Folder(dir string) (fs.FS, func() error, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("folder %s cannot be read: %w", dir, err)
	}
	return withoutGit{root.FS()}, root.Close, nil
}

type withoutGit struct{ fs.FS }

func hidden(name string) bool { return name == ".git" || strings.HasPrefix(name, ".git/") }

func (f withoutGit) Open(name string) (fs.File, error) {
	if hidden(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return f.FS.Open(name)
}

func (f withoutGit) ReadDir(name string) ([]fs.DirEntry, error) {
	entries, err := fs.ReadDir(f.FS, name)
	if name == "." {
		kept := entries[:0]
		for _, e := range entries {
			if e.Name() != ".git" {
				kept = append(kept, e)
			}
		}
		entries = kept
	}
	return entries, err
}

func (f withoutGit) ReadLink(name string) (string, error)   { return fs.ReadLink(f.FS, name) }
func (f withoutGit) Lstat(name string) (fs.FileInfo, error) { return fs.Lstat(f.FS, name) }
func (f withoutGit) ReadFile(name string) ([]byte, error)   { return fs.ReadFile(f.FS, name) }
func (f withoutGit) Stat(name string) (fs.FileInfo, error)  { return fs.Stat(f.FS, name) }
func (f withoutGit) Sub(dir string) (fs.FS, error)          { return fs.Sub(f.FS, filepath.ToSlash(dir)) }
