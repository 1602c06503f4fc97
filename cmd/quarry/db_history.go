package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/results"
	"github.com/spf13/cobra"
)

func (d *dbCmd) diffCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "diff A [B]",
		Short: "Show what differs between channels, commits or times",
		Long: `Lists the records that are in one state of the database and not in another. A and
B are each a channel, a commit or a time of --channel, or CHANNEL@COMMIT-OR-TIME;
without B it is the channel as it is now.`,
		Example: "  quarry db diff stable testing\n  quarry db diff 2026-03-14\n  quarry db diff stable@2026-03-14 stable",
		Args:    cobra.RangeArgs(1, 2),
		RunE:    d.run(d.diff),
	}
	return cmd
}

// state finds a state of the database by what people write for it.
func state(r *results.Reader, word string) (*results.Snapshot, error) {
	channel, when, both := strings.Cut(word, "@")
	if both {
		s, err := r.Other(channel)
		if err != nil {
			return nil, err
		}
		return s.At(when)
	}
	known, err := r.Channels()
	if err != nil {
		return nil, err
	}
	if slices.Contains(known, word) {
		return r.Other(word)
	}
	s, err := r.At(word)
	if err != nil && !errors.Is(err, results.ErrNotFound) {
		err = fmt.Errorf("%w; nor is it a channel: there is %s", err, strings.Join(known, ", "))
	}
	return s, err
}

// dbChange is a difference as JSON.
type dbChange struct {
	Package string `json:"package"`
	Version string `json:"version"`
	Arch    string `json:"arch"`
	Status  string `json:"status"` // of the record: succeeded or failed
	What    string `json:"what"`   // added, removed or changed
	Old     int64  `json:"old_build,omitempty"`
	New     int64  `json:"new_build,omitempty"`
	Was     string `json:"old_artifact,omitempty"`
	Is      string `json:"new_artifact,omitempty"`
}

func changeOf(c results.Change) dbChange {
	out := dbChange{Package: c.Package, Version: c.Version, Arch: c.Arch, Status: string(quarry.Succeeded), What: "changed"}
	if c.Failure {
		out.Status = string(quarry.Failed)
	}
	if c.Old != nil {
		out.Old, out.Was = c.Old.Ref.Build, c.Old.Artifact
	} else {
		out.What = "added"
	}
	if c.New != nil {
		out.New, out.Is = c.New.Ref.Build, c.New.Artifact
	} else {
		out.What = "removed"
	}
	return out
}

func (d *dbCmd) diff(ctx context.Context, r *results.Reader, w io.Writer, args []string) error {
	a, err := state(r, args[0])
	if err != nil {
		return err
	}
	b := r.Snapshot
	if len(args) > 1 {
		if b, err = state(r, args[1]); err != nil {
			return err
		}
	}
	changes, err := results.Diff(ctx, a, b)
	if err != nil {
		return err
	}
	list := []dbChange{}
	for _, c := range changes {
		if d.wants(c.Arch) {
			list = append(list, changeOf(c))
		}
	}
	if d.json {
		return human.JSON(w, list)
	}
	return writeChanges(w, list)
}

func writeChanges(w io.Writer, list []dbChange) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(w, "nothing differs")
		return err
	}
	t := human.Table{Head: []string{"", "PACKAGE", "VERSION", "ARCH", "STATUS", "BUILD"}, Color: terminal(w).Color}
	count := map[string]int{}
	for _, c := range list {
		count[c.What]++
		mark := map[string]any{"added": human.Cell("+", human.Green), "removed": human.Cell("-", human.Red), "changed": human.Cell("~", human.Yellow)}[c.What]
		build := fmt.Sprint(c.New)
		switch c.What {
		case "removed":
			build = fmt.Sprint(c.Old)
		case "changed":
			build = fmt.Sprintf("%d, was %d", c.New, c.Old)
			if c.Was == c.Is && c.Is != "" {
				build += ", same artifact"
			}
		}
		t.Row(mark, c.Package, c.Version, c.Arch, statusCell(quarry.State(c.Status)), build)
	}
	if _, err := t.WriteTo(w); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%d added, %d changed, %d removed\n", count["added"], count["changed"], count["removed"])
	return err
}

func (d *dbCmd) atCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "at DATE|COMMIT",
		Short: "Say what the database was at a time, or at a commit",
		Long: `Shows how a channel stood. With --at before or after them, the other commands
answer as of then, too: quarry db --at 2026-03-14 show zlib.`,
		Example: "  quarry db at 2026-03-14\n  quarry db --at 3f9a0c12 show zlib",
		Args:    cobra.ExactArgs(1),
		RunE:    d.run(d.stood),
	}
}

// stood says how a channel was.
func (d *dbCmd) stood(ctx context.Context, r *results.Reader, w io.Writer, args []string) error {
	if err := r.Switch(args[0]); err != nil {
		return err
	}
	count := struct {
		Channel  string         `json:"channel"`
		Commit   results.Commit `json:"commit"`
		Packages int            `json:"packages"`
		Records  int            `json:"records"`
		Failures int            `json:"failures"`
	}{Channel: r.Channel()}
	before, err := r.Before()
	if err != nil {
		return err
	}
	commits, err := r.Since(ctx, before)
	if err != nil {
		return err
	}
	count.Commit = commits[len(commits)-1]
	last := ""
	for t, err := range r.Targets(ctx, false) {
		if err != nil {
			return err
		}
		if t.Package != last {
			last = t.Package
			count.Packages++
		}
		count.Records++
	}
	for _, err := range r.Targets(ctx, true) {
		if err != nil {
			return err
		}
		count.Failures++
	}
	if d.json {
		return human.JSON(w, count)
	}
	_, err = fmt.Fprintf(w, "%s at %s, %s\nlast: %s\n%s, %s, %s\n", count.Channel, count.Commit.ID, count.Commit.Time.UTC().Format("2006-01-02 15:04:05 MST"),
		human.Safe(count.Commit.Subject, false), human.Count(count.Packages, "package"), human.Count(count.Records, "record"), human.Count(count.Failures, "failure"))
	return err
}

// skip is the exit status with which a command of bisect says that it cannot
// tell, as with git bisect run.
const skip = 125

func (d *dbCmd) bisectCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "bisect GOOD BAD -- COMMAND [ARG]...",
		Short: "Find the record that broke something",
		Long: `Runs a command against the states that a channel was in from GOOD to BAD, by
halves, and names the first commit with which it fails: which package changed,
from what source, built with what. Both are a commit or a time; BAD may be the
channel's name: as it is now. Exit status 0 of the command says good, 125 that it
cannot tell, any other bad.

The command gets QUARRY_COMMIT (the commit of the results), QUARRY_CHANNEL and
QUARRY_RESULTS (the repository) in its environment; quarry db takes
the first with --at "$QUARRY_COMMIT".`,
		Example: `  quarry bisect 2026-03-01 2026-03-14 -- sh -c 'quarry db --at "$QUARRY_COMMIT" show git 2.40'`,
		Args:    cobra.MinimumNArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			if at := cmd.ArgsLenAtDash(); at != 2 {
				return &control.Error{Code: control.ExitUsage, Err: errors.New("bisect takes GOOD BAD -- COMMAND: two states, then -- and what to run")}
			}
			return d.run(func(ctx context.Context, r *results.Reader, w io.Writer, args []string) error {
				return d.bisect(ctx, r, w, cmd.ErrOrStderr(), args[0], args[1], args[2:])
			})(cmd, args)
		},
	}
}

func (d *dbCmd) bisect(ctx context.Context, r *results.Reader, w, progress io.Writer, good, bad string, command []string) error {
	from, err := r.At(good)
	if err != nil {
		return err
	}
	to := r.Snapshot
	if bad != r.Channel() {
		if to, err = r.At(bad); err != nil {
			return err
		}
	}
	commits, err := to.Since(ctx, from)
	if err != nil {
		return err
	}
	if len(commits) == 0 {
		return &control.Error{Code: control.ExitUsage, Err: fmt.Errorf("%s and %s are the same commit: there is nothing between them", good, bad)}
	}
	try := func(commit, what string) (ok, told bool, err error) {
		cmd := exec.CommandContext(ctx, command[0], command[1:]...)
		cmd.Stdout, cmd.Stderr = progress, progress
		cmd.Env = append(os.Environ(), "QUARRY_COMMIT="+commit, "QUARRY_CHANNEL="+r.Channel(), "QUARRY_RESULTS="+r.Path())
		err = cmd.Run()
		verdict := "good"
		exit := new(exec.ExitError)
		switch {
		case ctx.Err() != nil:
			return false, false, context.Cause(ctx)
		case err == nil:
			ok, told = true, true
		case !errors.As(err, &exit):
			return false, false, fmt.Errorf("command cannot be run: %w", err)
		case exit.ExitCode() == skip:
			verdict = "cannot tell"
		default:
			verdict, told = "bad", true
		}
		fmt.Fprintf(progress, "bisect: %.12s %s: %s\n", commit, what, verdict)
		return ok, told, nil
	}
	// What was claimed is looked at first: from a wrong end any answer is wrong.
	if from.Commit() != "" {
		switch ok, told, err := try(from.Commit(), "(given as good)"); {
		case err != nil:
			return err
		case told && !ok:
			return fmt.Errorf("command fails at %s as well, which was given as good: give an older one", good)
		}
	}
	switch ok, told, err := try(to.Commit(), "(given as bad)"); {
	case err != nil:
		return err
	case told && ok:
		return fmt.Errorf("command succeeds at %s as well, which was given as bad: nothing is broken there", bad)
	}
	// commits[hi] is bad, what comes before commits[lo] is good.
	unknown := map[int]bool{}
	lo, hi := 0, len(commits)-1
	for lo < hi {
		mid := nearest(lo, hi, unknown)
		if mid < 0 {
			break
		}
		fmt.Fprintf(progress, "bisect: %s left, %.100s\n", human.Count(hi-lo+1, "commit"), human.Safe(commits[mid].Subject, false))
		ok, told, err := try(commits[mid].ID, "")
		switch {
		case err != nil:
			return err
		case !told:
			unknown[mid] = true
		case ok:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return d.found(ctx, r, w, commits[lo:hi+1])
}

// nearest is the commit nearest to the middle of lo and hi-1 that can be tried; -1
// when there is none.
func nearest(lo, hi int, unknown map[int]bool) int {
	mid := (lo + hi) / 2
	for off := 0; mid-off >= lo || mid+off < hi; off++ {
		for _, at := range []int{mid - off, mid + off} {
			if at >= lo && at < hi && !unknown[at] {
				return at
			}
		}
	}
	return -1
}

// found names the commit that broke it, or those among which it is.
func (d *dbCmd) found(ctx context.Context, r *results.Reader, w io.Writer, commits []results.Commit) error {
	type culprit struct {
		results.Commit
		Changes []dbChange `json:"changes"`
	}
	list := []culprit{}
	for _, c := range commits {
		s, err := r.At(c.ID)
		if err != nil {
			return err
		}
		before, err := s.Before()
		if err != nil {
			return err
		}
		changes, err := results.Diff(ctx, before, s)
		if err != nil {
			return err
		}
		one := culprit{c, []dbChange{}}
		for _, ch := range changes {
			one.Changes = append(one.Changes, changeOf(ch))
		}
		list = append(list, one)
	}
	if d.json {
		return human.JSON(w, list)
	}
	if len(list) > 1 {
		fmt.Fprintf(w, "it is one of these %d commits; the command could not tell which:\n", len(list))
	}
	for _, c := range list {
		fmt.Fprintf(w, "%s\n%s  %s\n", c.ID, c.Time.UTC().Format("2006-01-02 15:04:05"), human.Safe(c.Subject, false))
		if err := writeChanges(w, c.Changes); err != nil {
			return err
		}
	}
	if len(list) == 1 {
		fmt.Fprintf(w, "see git -C %s show %s\n", r.Path(), list[0].ID)
	}
	return nil
}
