package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/graph"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/pipeline"
	"github.com/Morphux/quarry/recipe"
	"github.com/Morphux/quarry/results"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func newBuildCmd(a *app) *cobra.Command {
	var arch, channel, output string
	var asJSON, quiet, cross bool
	ask, _ := control.Verbs(nil).Find("build")
	cmd := &cobra.Command{
		Use:   "build DIR [CHANNEL] | NAME-VERSION | -",
		Short: "Build one package from a folder without a farm, or have the farm build a release",
		Long: `With a folder, no farm is asked: builds the package in DIR as the farm would, in
a clean workspace of the base of its arch, and prints the facts. Nothing is
recorded. DIR is taken as it stands, without .git; changes that are not
committed are built too. Needed packages come from the results repository and
the artifacts of the state folder. A daemon keeps its state folder's bases to
itself: beside one, build with a folder of your own (--state DIR), after quarry
images bootstrap with the same. With a configuration of the older form the
artifact also appears in output/CHANNEL/ in the state folder.

With the name of a release, or with -, the daemon is asked.

` + ask.Long,
		Example: `  quarry build zlib-1.3.1                             a release of the farm
  quarry build - --channel testing < zlib.tar         hand a release in as a tar
  quarry build ./zlib
  quarry build ./zlib stable
  quarry build --arch aarch64 --output out ./zlib     keep the record and the artifact`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !isFolder(args[0]) {
				return a.askToBuild(cmd, ask, args)
			}
			for _, name := range []string{"group", "confirm", "follow"} {
				if cmd.Flags().Changed(name) {
					return &flagError{fmt.Errorf("--%s is for the farm, and %s is a folder that is built here: leave it out", name, args[0])}
				}
			}
			c, err := a.config()
			if err != nil {
				return err
			}
			if len(args) == 2 {
				if channel != "" && channel != args[1] {
					return &flagError{fmt.Errorf("build is told two channels, %s and %s: leave one out", args[1], channel)}
				}
				channel = args[1]
			}
			log := cmd.ErrOrStderr()
			if quiet {
				log = io.Discard
			}
			if channel == "" {
				channel = c.DefaultChannel
			}
			if c.Channels[channel] == nil {
				return &control.Error{Code: control.ExitNotFound, Err: fmt.Errorf("there is no channel %.80q: there is %s",
					channel, strings.Join(slices.Sorted(maps.Keys(c.Channels)), ", "))}
			}
			if arch == "" {
				arch = config.HostArch()
				if c.Seed { // it says which arch it is for
					if arch, err = seedArch(c, ""); err != nil {
						return err
					}
				}
			}
			out, rec, err := buildFolder(cmd.Context(), a, c, args[0], arch, channel, output, cross, log)
			if err != nil {
				return err
			}
			if asJSON {
				err = human.JSON(cmd.OutOrStdout(), out)
			} else {
				err = printOutcome(cmd.OutOrStdout(), out, rec, terminal(cmd.OutOrStdout()).Color)
			}
			if err == nil && out.Failure != nil {
				err = &exitError{control.ExitBuild}
			}
			return err
		},
	}
	cmd.Flags().StringVar(&arch, "arch", "", "arch to build for (of a folder, default this machine's)")
	cmd.Flags().StringVar(&channel, "channel", "", "channel to build for (of a folder or a tar, default the configuration's)")
	cmd.Flags().StringVarP(&output, "output", "o", "", "folder to write the artifact, record and list of files to")
	cmd.Flags().BoolVar(&cross, "cross", false, "cross build on this machine's arch, whatever build.workers_for says")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the outcome as JSON")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "do not show the build's log")
	// Of the verb's flags, those that are not there.
	cmd.Flags().AddFlagSet(ask.NewFlags())
	return cmd
}

// isFolder reports whether the argument of quarry build names a folder, and no
// release. A release's name holds no slash.
func isFolder(arg string) bool {
	if arg == "-" {
		return false
	}
	info, err := os.Stat(arg)
	return strings.Contains(arg, "/") || err == nil && info.IsDir()
}

// askToBuild calls the verb build.
func (a *app) askToBuild(cmd *cobra.Command, ask *control.Verb, args []string) error {
	if len(args) > 1 {
		return &flagError{fmt.Errorf("%s is no folder, and of a release the channel is said with --channel: build %s --channel %s", args[0], args[0], args[1])}
	}
	flags := ask.NewFlags()
	var err error
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if cmd.Root().PersistentFlags().Lookup(f.Name) != nil || err != nil {
			return
		}
		if flags.Lookup(f.Name) == nil {
			err = &flagError{fmt.Errorf("--%s is for a folder that is built here, and %s is none", f.Name, args[0])}
			return
		}
		err = flags.Set(f.Name, f.Value.String())
	})
	if err != nil {
		return err
	}
	return a.verb(cmd, ask, flags, args)
}

// buildFolder makes one attempt at the package in a folder.
func buildFolder(ctx context.Context, a *app, c *config.Config, dir, arch, channel, output string, cross bool, log io.Writer) (*quarry.Outcome, *results.Record, error) {
	for _, err := range []error{quarry.CheckArch(arch), quarry.CheckChannel(channel)} {
		if err != nil {
			return nil, nil, &control.Error{Code: control.ExitUsage, Err: err}
		}
	}
	source, closeSource, err := pipeline.Folder(dir)
	if err != nil {
		return nil, nil, err
	}
	defer closeSource()
	r, err := recipe.Load(source)
	if err != nil {
		var lines []string // as a push would say them
		for _, problem := range recipe.Problems(err) {
			lines = append(lines, problem.Error())
		}
		if len(lines) > 1 {
			err = errors.New(strings.Join(lines, "\n"))
		}
		return nil, nil, err
	}
	if r.Ext.Noarch {
		arch = quarry.Noarch
	}
	commit, when := headOf(dir)
	b := quarry.Build{
		Release: quarry.Release{Package: r.Package, Version: r.Version, Channel: channel, Commit: commit, Time: when},
		Arch:    arch, State: quarry.Running, Attempt: 1, Created: time.Now(), Started: time.Now(),
	}
	r.Fill(&b.Release, []string{arch})
	b.Archs = []string{arch} // whatever the recipe says: it was asked for
	how, err := way(c, r, &b, cross)
	if err != nil {
		return nil, nil, err
	}
	b.Key = quarry.BuildKey(b.Target(), commit, "")

	deps, err := localDependencies(c, b)
	if err != nil {
		return nil, nil, err
	}
	store, conn, err := openImages(ctx, c, a.logger(log))
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close()
	pipe, err := newPipeline(c, store, a.logger(log))
	if err != nil {
		return nil, nil, err
	}
	share, err := newSlots(c, store, false, a.logger(log))
	if err != nil {
		return nil, nil, err
	}
	pipe.Jobs = share.Governor
	sharing, done := context.WithCancel(ctx)
	var watched sync.WaitGroup
	watched.Go(func() { _ = share.Run(sharing) }) // it ends without an error
	defer watched.Wait()
	defer done()
	log, explained := explainLocal(log)
	out, err := pipe.Run(ctx, pipeline.Input{Build: b, Recipe: r, Source: source, Deps: deps, Log: log,
		Reproduce: fmt.Sprintf("quarry build --arch %s %s%s", arch, how, strconv.Quote(dir))})
	end, stop := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer stop()
	if err := errors.Join(err, store.Close(end), pipe.Layers.Close()); err != nil {
		return nil, nil, err
	}
	out.Build.State, out.Build.Ended = quarry.Succeeded, out.Ended
	if out.Failure != nil {
		out.Build.State = quarry.Failed
		explained(out.Failure)
		out.Build.Reason = out.Failure.Reason()
	}
	rec, err := results.NewRecord(out, time.Duration(c.Build.Standard).Seconds())
	if err != nil {
		return nil, nil, err
	}
	if output != "" {
		err = writeOutput(output, out, rec, pipe)
	}
	if c.Seed && out.Artifact != nil && out.Failure == nil {
		err = errors.Join(err, publish(c, pipe.Artifacts, out.Build.Target(), out.Artifact.SHA256))
	}
	return out, rec, err
}

// way decides on what a build is made: as the farm would, or crossed because
// that is asked for. how is the flag that asks for what was decided.
func way(c *config.Config, r *recipe.Recipe, b *quarry.Build, cross bool) (how string, err error) {
	ways := c.Ways()
	if cross {
		if b.Arch == config.HostArch() || b.Arch == quarry.Noarch {
			return "", &control.Error{Code: control.ExitUsage, Err: fmt.Errorf("%s is not cross built on %s: leave --cross out, or name another --arch", b.Arch, config.HostArch())}
		}
		ways = []graph.Worker{{Host: config.HostArch(), Target: b.Arch, Cross: true}}
	}
	// One arch is asked for, and it is tried even if the recipe says that it is
	// not for it, or broken there.
	native, crossed := r.Traits(b.Arch, false), r.Traits(b.Arch, true)
	b.Traits, b.Crossed = map[string]quarry.Traits{b.Arch: native}, map[string]quarry.Traits{b.Arch: crossed}
	graph.Assign(ways, &b.Release)
	t := b.Traits[b.Arch]
	switch {
	case t.NoWorker != "" && cross:
		return "", fmt.Errorf("%s cannot be cross built for %s: its recipe says nocross, or that it is broken then", b.Package, b.Arch)
	case t.NoWorker != "": // as if there were no workers
		b.Traits[b.Arch] = native
	case t.Cross != "":
		return "--cross ", nil
	}
	return "", nil
}

// localDependencies finds what a build needs among the records at hand.
func localDependencies(c *config.Config, b quarry.Build) ([]pipeline.Dependency, error) {
	needs := b.BuildNeeds(b.Arch)
	system, tools := b.CrossNeeds(b.Arch)
	if len(needs)+len(tools) == 0 {
		return nil, nil
	}
	if _, err := os.Stat(c.Results()); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s needs %s, and there are no records at %s: push it to a farm here first", b.Package, strings.Join(slices.Concat(needs, tools), ", "), c.Results())
	}
	reader, err := results.OpenReader(c.Results(), b.Channel)
	if err != nil {
		return nil, fmt.Errorf("%s needs %s: %w", b.Package, strings.Join(slices.Concat(needs, tools), ", "), err)
	}
	defer reader.Close()
	r := records{reader.Snapshot}
	var direct []quarry.DepUsed
	for i, n := range slices.Concat(needs, tools) {
		arch := b.Arch
		if i >= len(needs) {
			arch = system
		}
		d, ok, err := r.Resolve(n, arch)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, fmt.Errorf("%s needs %s, which has no record for %s in %s: push it to the farm first", b.Package, n, arch, c.Results())
		}
		if arch != b.Arch {
			d.Arch = arch
		}
		direct = append(direct, d)
	}
	return r.dependencies(b, direct)
}

// headOf gives the commit a folder stands at and its time; a folder that is no
// git repository has none, and its time is fixed so that artifacts reproduce.
func headOf(dir string) (commit string, when time.Time) {
	cmd := exec.Command("git", "-C", dir, "log", "-1", "--format=%H %ct")
	cmd.Env = append(os.Environ(), "GIT_CEILING_DIRECTORIES="+filepath.Dir(mustAbs(dir)))
	out, err := cmd.Output()
	hash, secs, ok := strings.Cut(strings.TrimSpace(string(out)), " ")
	n, perr := strconv.ParseInt(secs, 10, 64)
	if err != nil || !ok || perr != nil || len(hash) != 40 {
		return hex.EncodeToString(make([]byte, 20)), time.Unix(315532800, 0) // 1980, which zip files can hold
	}
	return hash, time.Unix(n, 0)
}

func mustAbs(dir string) string {
	if abs, err := filepath.Abs(dir); err == nil {
		return abs
	}
	return dir
}

func writeOutput(dir string, out *quarry.Outcome, rec *results.Record, pipe *pipeline.Pipeline) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	name := fmt.Sprintf("%s-%s-%s", out.Build.Package, out.Build.Version, out.Build.Arch)
	data, err := rec.Marshal()
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, name+".toml"), data, 0o644); err != nil {
		return err
	}
	if out.Artifact == nil {
		return nil
	}
	data, err = results.MarshalFiles(out.Build.Package, out.Build.Version, out.Build.Arch, out.Facts.Files)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, name+".files.toml"), data, 0o644); err != nil {
		return err
	}
	src, err := pipe.Artifacts.Open(out.Artifact.SHA256)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.Create(filepath.Join(dir, name+".tar.zst"))
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}

// failureText says what failed and in which step, unless the message begins
// with that itself ("make ended with status 2").
func failureText(step, message string) string {
	if step == "" || strings.HasPrefix(message, step+" ") {
		return message
	}
	return step + ": " + message
}

// printOutcome shows a build's outcome to a person.
func printOutcome(w io.Writer, o *quarry.Outcome, rec *results.Record, color bool) error {
	b := o.Build
	verdict := human.Paint("succeeded", human.Green, color)
	if o.Failure != nil {
		verdict = human.Paint("failed", human.Red, color)
	}
	fmt.Fprintf(w, "%s %s %s %s in %s\n", b.Package, b.Version, b.Arch, verdict, human.Duration(o.Ended.Sub(o.Started)))
	if o.Failure != nil {
		fmt.Fprintln(w, human.Safe(failureText(o.Failure.Step, o.Failure.Message), false))
		for _, p := range o.Failure.Paths {
			fmt.Fprintf(w, "  %s\n", human.Safe(p, false))
		}
		fmt.Fprintln(w)
		control.WriteFailure(w, o.Failure, 0, color)
	}
	if len(o.Steps) > 0 {
		fmt.Fprintln(w, "\nSteps")
		t := human.Table{Head: []string{"  STEP", "WALL", "USER", "SYS", "STATUS"}, Color: color}
		for _, s := range o.Steps {
			t.Row("  "+s.Name, human.Duration(s.Wall), human.Duration(s.User), human.Duration(s.Sys), s.Status)
		}
		if _, err := t.WriteTo(w); err != nil {
			return err
		}
	}
	warnings := o.Warnings
	if o.Facts != nil {
		warnings = slices.Concat(warnings, o.Facts.Warnings)
	}
	for _, warning := range warnings {
		fmt.Fprintln(w, human.Paint("warning", human.Yellow, color)+": "+human.Safe(warning, false))
	}
	if o.Facts == nil {
		return nil
	}
	folders := 0
	for _, f := range o.Facts.Files {
		if f.Kind == quarry.KindDir {
			folders++
		}
	}
	fmt.Fprintf(w, "\nFiles (%d in %s, %s)\n", len(o.Facts.Files)-folders, human.Count(folders, "folder"), human.Size(o.Facts.Size))
	t := human.Table{Head: []string{"  MODE", "CLASS", "SIZE", "PATH", ""}, Color: color}
	for _, f := range o.Facts.Files {
		if f.Kind == quarry.KindDir {
			continue
		}
		what := f.Target
		switch {
		case what != "":
			what = "-> " + what
		case f.ELF != nil && f.ELF.Soname != "":
			what = f.ELF.Arch + " " + f.ELF.Soname
		case f.ELF != nil:
			what = f.ELF.Arch
		case f.Interpreter != "":
			what = f.Interpreter
		}
		t.Row(fmt.Sprintf("  %04o", f.Mode), string(f.Class), human.Size(f.Size), f.Path, human.Cell(what, human.Dim))
	}
	if _, err := t.WriteTo(w); err != nil {
		return err
	}
	if len(o.Facts.Libraries) > 0 {
		fmt.Fprintln(w, "\nNeeded libraries")
		t := human.Table{Color: color}
		for _, l := range o.Facts.Libraries {
			from, paint := l.From, human.Plain
			if l.Owner != "" {
				from += " " + l.Owner
			}
			if l.From == "nowhere" {
				paint = human.Red
			}
			t.Row("  "+l.Soname, human.Cell(from, paint), l.Path)
		}
		if _, err := t.WriteTo(w); err != nil {
			return err
		}
	}
	fmt.Fprintf(w, "\nPeak memory %s", human.Size(o.Usage.PeakMemory))
	if u := rec.Usage; u.PeakJobs > 1 {
		fmt.Fprintf(w, ", %d jobs at most, %.1f in the mean where there were more than one", u.PeakJobs, u.Width)
	}
	if rec.Time.SBU > 0 {
		fmt.Fprintf(w, ", %.2f SBU", rec.Time.SBU)
	}
	fmt.Fprintf(w, "\nArtifact %s (%s)\n", o.Artifact.SHA256, human.Size(o.Artifact.Size))
	return nil
}
