package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/results"
	"github.com/spf13/cobra"
)

// newDBCmd is quarry db. It reads the results repository itself, so it needs
// no running daemon and disturbs none. path says where the repository is; more
// makes commands that need more of the farm than that.
func newDBCmd(path func() (string, error), more ...func(*dbCmd) []*cobra.Command) *cobra.Command {
	d := &dbCmd{path: path}
	cmd := &cobra.Command{
		Use:   "db",
		Short: "Read the database of results",
		Long: `The results repository holds a record of every package that was built: what it
installs, how long it took, or why it failed. These commands read it; so does
git, and doc/results.md describes every key.`,
	}
	cmd.PersistentFlags().StringVar(&d.repo, "repo", "", "results repository, or a bare clone of one, instead of this farm's")
	cmd.PersistentFlags().StringVar(&d.channel, "channel", "", "channel to read (default the repository's HEAD)")
	cmd.PersistentFlags().StringVar(&d.arch, "arch", "", "only this arch")
	cmd.PersistentFlags().StringVar(&d.at, "at", "", "answer as of a commit of the results, or of a time such as 2026-03-14")
	cmd.PersistentFlags().BoolVar(&d.json, "json", false, "write JSON, with the keys of the records")
	cmd.AddCommand(
		&cobra.Command{
			Use:   "show PACKAGE [VERSION]",
			Short: "Show a package's records, or one in full",
			Long: `With a package alone, one line for each record. With a version too (also as
NAME-VERSION), the whole record; one line for each arch if there are several and
--arch does not say which.`,
			Example: "  quarry db show zlib\n  quarry db show zlib 1.3.1 --arch x86_64",
			Args:    cobra.RangeArgs(1, 2),
			RunE:    d.run(d.show),
		},
		&cobra.Command{
			Use:     "files PACKAGE [VERSION]",
			Short:   "List what a package installs",
			Long:    "Lists the files that a version (the newest, when none is given) installs.",
			Example: "  quarry db files zlib 1.3.1",
			Args:    cobra.RangeArgs(1, 2),
			RunE:    d.run(d.files),
		},
		d.searchCmd(),
		d.diffCmd(),
		d.atCmd(),
		d.votesCmd(),
	)
	for _, f := range more {
		cmd.AddCommand(f(d)...)
	}
	return cmd
}

// newBisectCmd is quarry bisect, which reads the database as quarry db does.
func newBisectCmd(path func() (string, error)) *cobra.Command {
	d := &dbCmd{path: path}
	cmd := d.bisectCmd()
	cmd.Flags().StringVar(&d.repo, "repo", "", "results repository, or a bare clone of one, instead of this farm's")
	cmd.Flags().StringVar(&d.channel, "channel", "", "channel to search (default the repository's HEAD)")
	cmd.Flags().BoolVar(&d.json, "json", false, "write JSON")
	return cmd
}

// dbCmd is what the commands share.
type dbCmd struct {
	path          func() (string, error)
	repo          string
	channel, arch string
	at            string
	signers       string // file of allowed signers
	json          bool
	file          bool
}

func (d *dbCmd) searchCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "search TEXT",
		Short: "Find packages by name, description or file",
		Long: `Finds the packages whose name or description holds a text, in either case, or
whose whole name fits a pattern with * ? or [. A path (/usr/bin/minigzip) finds
who installs it, and so does --file with the name of a file or a pattern for it.`,
		Example: "  quarry db search compression\n  quarry db search 'lib*'\n  quarry db search /usr/bin/minigzip\n  quarry db search --file 'libz.so*'",
		Args:    cobra.ExactArgs(1),
		RunE:    d.run(d.search),
	}
	cmd.Flags().BoolVar(&d.file, "file", false, "look for files of that name")
	return cmd
}

// run opens the repository for a command, and gives the errors their codes.
func (d *dbCmd) run(f func(context.Context, *results.Reader, io.Writer, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		for _, check := range []struct {
			value string
			by    func(string) error
		}{{d.channel, quarry.CheckChannel}, {d.arch, quarry.CheckArch}} {
			if check.value == "" {
				continue
			}
			if err := check.by(check.value); err != nil {
				return &control.Error{Code: control.ExitUsage, Err: err}
			}
		}
		path := d.repo
		if path != "" {
			if _, err := os.Stat(path); err != nil {
				return fmt.Errorf("results repository cannot be read: %w", err)
			}
		} else {
			var err error
			if path, err = d.path(); err != nil {
				return err
			}
		}
		r, err := results.OpenReader(path, d.channel)
		if err == nil && d.at != "" {
			err = r.Switch(d.at)
		}
		if err == nil {
			err = errors.Join(f(cmd.Context(), r, cmd.OutOrStdout(), args), r.Close())
		}
		if errors.Is(err, results.ErrNotFound) {
			return &control.Error{Code: control.ExitNotFound, Err: err}
		}
		return err
	}
}

// records lists the records of a package, or of one version of it. A name that
// nobody has may be one with its version, as a branch is called.
func (d *dbCmd) records(ctx context.Context, r *results.Reader, args []string) ([]*results.Record, error) {
	pkg, version := args[0], ""
	if len(args) == 2 {
		version = args[1]
		if err := quarry.CheckVersion(version); err != nil {
			return nil, &control.Error{Code: control.ExitUsage, Err: err}
		}
	}
	if err := quarry.CheckName(pkg); err != nil {
		return nil, &control.Error{Code: control.ExitUsage, Err: err}
	}
	found, err := d.recordsOf(ctx, r, pkg, version)
	for i := 0; err == nil && len(found) == 0 && version == "" && i < len(pkg); i++ {
		if pkg[i] != '-' || quarry.CheckName(pkg[:i]) != nil {
			continue
		}
		if v, ok, e := quarry.ParseBranch(pkg[:i], pkg); ok && e == nil {
			found, err = d.recordsOf(ctx, r, pkg[:i], v)
		}
	}
	if err == nil && len(found) == 0 {
		what := strings.Join(args, " ")
		if d.arch != "" {
			what += " for " + d.arch
		}
		err = fmt.Errorf("%s in channel %s: %w: quarry db search finds what there is", what, r.Channel(), results.ErrNotFound)
	}
	return found, err
}

func (d *dbCmd) recordsOf(ctx context.Context, r *results.Reader, pkg, version string) ([]*results.Record, error) {
	var out []*results.Record
	for rec, err := range r.ListPackage(ctx, pkg) {
		if err != nil {
			return nil, err
		}
		if (version == "" || rec.Version == version) && d.wants(rec.Arch) {
			out = append(out, rec)
		}
	}
	return out, nil
}

func (d *dbCmd) wants(arch string) bool {
	return d.arch == "" || d.arch == arch || arch == quarry.Noarch
}

func (d *dbCmd) show(ctx context.Context, r *results.Reader, w io.Writer, args []string) error {
	recs, err := d.records(ctx, r, args)
	if err != nil {
		return err
	}
	if d.json {
		return writeRecordsJSON(w, recs)
	}
	targets := make(map[quarry.Target]bool)
	for _, rec := range recs {
		targets[rec.Target()] = true
	}
	named := len(args) == 2 || recs[0].Package != args[0]
	if !named || len(targets) > 1 {
		return writeRecordTable(w, recs)
	}
	for i, rec := range recs { // a success, and a failure that came after it
		if i > 0 {
			fmt.Fprintln(w)
		}
		if err := writeRecord(w, rec, d.reproduced(r, rec)); err != nil {
			return err
		}
	}
	return nil
}

func writeRecordsJSON(w io.Writer, recs []*results.Record) error {
	out := []json.RawMessage{} // never null
	for _, rec := range recs {
		data, err := rec.JSON()
		if err != nil {
			return err
		}
		out = append(out, data)
	}
	return human.JSON(w, out)
}

func statusCell(s quarry.State) any {
	if s == quarry.Succeeded {
		return human.Cell(string(s), human.Green)
	}
	return human.Cell(string(s), human.Red)
}

func seconds(s float64) string { return human.Duration(time.Duration(s * float64(time.Second))) }

func writeRecordTable(w io.Writer, recs []*results.Record) error {
	t := human.Table{Head: []string{"PACKAGE", "VERSION", "ARCH", "STATUS", "BUILD", "TIME", "INSTALLED", "ENDED"}, Color: terminal(w).Color}
	for _, rec := range recs {
		size := "-"
		if rec.Status == quarry.Succeeded {
			size = human.Size(rec.InstalledSize)
		}
		t.Row(rec.Package, rec.Version, rec.Arch, statusCell(rec.Status), rec.Build, seconds(rec.Time.Total), size, human.Ago(rec.Ended, time.Now()))
	}
	_, err := t.WriteTo(w)
	return err
}

// writeRecord writes one record for a person; verified says what came of building it
// again.
func writeRecord(w io.Writer, rec *results.Record, verified string) error {
	color := terminal(w).Color
	t := human.Table{Color: color}
	row := func(name string, value any) {
		if s, ok := value.(string); !ok || strings.Trim(s, " ,") != "" {
			t.Row(human.Cell(name, human.Dim), value)
		}
	}
	row("package", human.Cell(rec.Package+" "+rec.Version, human.Bold))
	row("arch", rec.Arch+", channel "+rec.Channel)
	row("status", statusCell(rec.Status))
	if f := rec.Failure; f != nil {
		row("failed", failureText(f.Step, f.Message))
		row("class", f.Class)
		if f.Error != f.Message {
			row("first error", f.Error)
		}
		row("what to do", f.Hint)
		row("see it again", f.Reproduce)
		for _, p := range f.Paths {
			row("path", p)
		}
	}
	row("description", rec.Description)
	row("category", rec.Category)
	row("build", fmt.Sprintf("%d, ended %s (%s)", rec.Build, rec.Ended.Format(time.DateTime), human.Ago(rec.Ended, time.Now())))
	row("source", rec.Source)
	row("packager", packagerText(rec.Packager))
	row("push signed", rec.Packager.Signed)
	row("time", timesText(rec.Time))
	row("used", usageText(rec.Usage))
	if c := rec.Contents; c != nil {
		row("installed", fmt.Sprintf("%s, files: %d, %s on disk", human.Size(rec.InstalledSize), c.Files, human.Size(c.DiskSize)))
	}
	if rec.Artifact != "" {
		row("artifact", fmt.Sprintf("%s (%s)", rec.Artifact, human.Size(rec.ArtifactSize)))
	}
	row("verified", verified)
	row("needs", strings.Join(rec.Recipe.Needed, ", "))
	row("recommends", strings.Join(rec.Recipe.Recommended, ", "))
	for _, d := range rec.Dependencies {
		row("built with", d.Package+" "+d.Version)
	}
	for _, l := range rec.Libraries {
		text, paint := string(l.Soname)+" from "+l.From, human.Plain
		if l.Owner != "" {
			text += " " + l.Owner
		}
		if l.From == "nowhere" {
			paint = human.Red
		}
		row("library", human.Cell(text, paint))
	}
	how := rec.Host.Emulation
	if rec.Host.Cross != "" {
		how += ", cross built on " + rec.Host.Cross
	}
	row("built on", fmt.Sprintf("%s, %s, %s", rec.Host.Builder, how, rec.Host.Runtime))
	for _, s := range append(rec.Warnings, warningsOf(rec.Contents)...) {
		row("warning", human.Cell(s, human.Yellow))
	}
	if _, err := t.WriteTo(w); err != nil {
		return err
	}
	if rec.Failure == nil || len(rec.Failure.Log) == 0 {
		return nil
	}
	if _, err := fmt.Fprintf(w, "\n%s\n", human.Paint(fmt.Sprintf("last %d lines of the log:", len(rec.Failure.Log)), human.Dim, color)); err != nil {
		return err
	}
	for _, line := range rec.Failure.Log {
		if _, err := fmt.Fprintln(w, human.Safe(line, false)); err != nil {
			return err
		}
	}
	return nil
}

func warningsOf(c *results.Contents) []string {
	if c == nil {
		return nil
	}
	return c.Warnings
}

func packagerText(p quarry.Packager) string {
	s := p.Name
	if s == "" {
		s = p.User
	}
	if p.Email != "" {
		s += " <" + p.Email + ">"
	}
	return strings.TrimSpace(s)
}

func timesText(t results.Times) string {
	s := seconds(t.Total)
	for _, part := range []struct {
		name string
		s    float64
	}{{"configure", t.Configure}, {"make", t.Make}, {"test", t.Test}, {"install", t.Install}, {"CPU", t.User + t.Sys}} {
		if part.s > 0 {
			s += ", " + part.name + " " + seconds(part.s)
		}
	}
	if t.SBU > 0 {
		s += fmt.Sprintf(", %.2g SBU", t.SBU)
	}
	return s
}

// usageText says what is known of what a build used.
func usageText(u results.Usage) string {
	var parts []string
	add := func(known bool, format string, args ...any) {
		if known {
			parts = append(parts, fmt.Sprintf(format, args...))
		}
	}
	add(u.PeakMemory > 0, "%s of memory at most", human.Size(u.PeakMemory))
	add(u.PeakAnon > 0, "%s without file cache", human.Size(u.PeakAnon))
	add(u.User+u.Sys > 0, "CPU %s (user %s, sys %s)", seconds(u.User+u.Sys), seconds(u.User), seconds(u.Sys))
	add(u.PeakJobs > 1, "%d jobs at most", u.PeakJobs)
	add(u.Width > 1, "%.1f in the mean where there were more than one", u.Width)
	add(u.SlotSeconds > 0, "%s of slots", seconds(u.SlotSeconds))
	add(u.Efficiency > 0, "%.2f of a processor for each", u.Efficiency)
	add(u.Forced != "", "%s", u.Forced)
	add(u.Read > 0, "%s read", human.Size(u.Read))
	add(u.Written > 0, "%s written", human.Size(u.Written))
	add(u.PeakProcs > 0, "%d processes at most", u.PeakProcs)
	add(u.PeakDisk > 0, "%s of disk", human.Size(u.PeakDisk))
	return strings.Join(parts, ", ")
}

func (d *dbCmd) files(ctx context.Context, r *results.Reader, w io.Writer, args []string) error {
	rec, err := d.newest(ctx, r, args, "files")
	if err != nil {
		return err
	}
	files, err := r.Files(rec.Package, rec.Version, rec.Arch)
	if err != nil {
		return err
	}
	if d.json {
		data, err := results.FilesJSON(rec.Package, rec.Version, rec.Arch, files)
		if err != nil {
			return err
		}
		return human.JSON(w, json.RawMessage(data))
	}
	t := human.Table{Head: []string{"MODE", "OWNER", "SIZE", "CLASS", "PATH"}, Color: terminal(w).Color}
	for _, f := range files {
		t.Row(modeText(f), fmt.Sprintf("%d:%d", f.UID, f.GID), sizeText(f), string(f.Class), pathText(f))
	}
	_, err = t.WriteTo(w)
	return err
}

var kindLetters = map[quarry.FileKind]string{
	quarry.KindRegular: "-", quarry.KindDir: "d", quarry.KindSymlink: "l", quarry.KindHardlink: "h",
	quarry.KindChar: "c", quarry.KindBlock: "b", quarry.KindFIFO: "p", quarry.KindSocket: "s",
}

func modeText(f quarry.File) string {
	letter := kindLetters[f.Kind]
	if letter == "" {
		letter = "?"
	}
	return fmt.Sprintf("%s %04o", letter, f.Mode)
}

func sizeText(f quarry.File) string {
	switch f.Kind {
	case quarry.KindRegular, quarry.KindHardlink:
		return human.Size(f.Size)
	case quarry.KindChar, quarry.KindBlock:
		return fmt.Sprintf("%d,%d", f.Major, f.Minor)
	}
	return ""
}

func pathText(f quarry.File) string {
	if f.Target != "" {
		return f.Path + " -> " + f.Target
	}
	return f.Path
}

func (d *dbCmd) search(ctx context.Context, r *results.Reader, w io.Writer, args []string) error {
	if d.file || strings.HasPrefix(args[0], "/") {
		return d.owners(ctx, r, w, args[0])
	}
	t := human.Table{Head: []string{"PACKAGE", "VERSION", "ARCH", "INSTALLED", "DESCRIPTION"}, Color: terminal(w).Color}
	recs, bad, err := gather(ctx, r.Search(ctx, args[0]))
	if err != nil {
		return err
	}
	var found []*results.Record
	for _, rec := range recs {
		if d.wants(rec.Arch) {
			found = append(found, rec)
			t.Row(rec.Package, rec.Version, rec.Arch, human.Size(rec.InstalledSize), rec.Description)
		}
	}
	return d.finish(w, &t, len(found), bad, args[0], r.Channel(), func() error { return writeHeads(w, found) })
}

// writeHeads writes what a search knows of a record: the keys before its first
// table.
func writeHeads(w io.Writer, recs []*results.Record) error {
	out := []map[string]any{} // never null
	for _, rec := range recs {
		out = append(out, map[string]any{
			"package": rec.Package, "version": rec.Version, "arch": rec.Arch, "channel": rec.Channel,
			"source": rec.Source, "build": rec.Build, "key": rec.Key, "description": rec.Description, "category": rec.Category,
			"artifact": rec.Artifact, "artifact_size": rec.ArtifactSize, "installed_size": rec.InstalledSize, "ended": rec.Ended,
		})
	}
	return human.JSON(w, out)
}

func (d *dbCmd) owners(ctx context.Context, r *results.Reader, w io.Writer, query string) error {
	found, bad, err := gather(ctx, r.Owners(ctx, query, d.arch))
	if err != nil {
		return err
	}
	t := human.Table{Head: []string{"PACKAGE", "VERSION", "ARCH", "CLASS", "PATH"}, Color: terminal(w).Color}
	type owner struct {
		Package string      `json:"package"`
		Version string      `json:"version"`
		Arch    string      `json:"arch"`
		File    quarry.File `json:"file"`
	}
	out := []owner{} // never null
	for _, o := range found {
		t.Row(o.Package, o.Version, o.Arch, string(o.File.Class), pathText(o.File))
		out = append(out, owner{o.Package, o.Version, o.Arch, o.File})
	}
	return d.finish(w, &t, len(out), bad, query, r.Channel(), func() error { return human.JSON(w, out) })
}

// gather collects a walk. Records that cannot be read are kept apart, for the
// others are still an answer; only the end of the context ends it.
func gather[T any](ctx context.Context, seq iter.Seq2[T, error]) (found []T, bad []error, err error) {
	for v, err := range seq {
		switch {
		case ctx.Err() != nil:
			return nil, nil, ctx.Err()
		case err != nil:
			bad = append(bad, err)
		default:
			found = append(found, v)
		}
	}
	return found, bad, nil
}

func (d *dbCmd) finish(w io.Writer, t *human.Table, n int, bad []error, query, channel string, asJSON func() error) error {
	var err error
	switch {
	case d.json:
		err = asJSON()
	case n > 0:
		_, err = t.WriteTo(w)
	}
	if err != nil {
		return err
	}
	if len(bad) > 0 {
		return fmt.Errorf("%d records could not be searched: %w", len(bad), bad[0])
	}
	if n == 0 {
		return fmt.Errorf("%q in channel %s: %w", query, channel, results.ErrNotFound)
	}
	return nil
}
